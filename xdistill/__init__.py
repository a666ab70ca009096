"""xdistill: few-step generation for everything that is not a plain image."""

__version__ = "0.1.0"
