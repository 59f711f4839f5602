"""Networks F(x_t / sigma_data, t): plain modules."""
