"""Data sets as tensors, and the exact solution of the toy."""
