"""What a person calls: train, sweep, sample, evaluate, diagnose, export, report."""
