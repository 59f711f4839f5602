"""From yaml and the command line to one checked configuration."""
