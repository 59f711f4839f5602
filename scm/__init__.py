"""sCM: continuous-time consistency models (Lu & Song, ICLR 2025), small and readable."""

__version__ = "0.1.0"
