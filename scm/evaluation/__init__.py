"""How good samples and networks are: metrics, errors, pictures."""
