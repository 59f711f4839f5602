"""What every other package may lean on: errors, files, processes, the machine, randomness."""
