"""Networks F(x_t / sigma_data, t): plain modules that know neither objectives nor tangents."""
