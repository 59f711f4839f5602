"""Times and memory of steps, sampling and data, side by side: `python -m benchmark --help`."""
