"""The training loop and the run that consumes its steps."""
