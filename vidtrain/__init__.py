"""vidtrain: config-driven training and evaluation for video understanding."""

__version__ = "0.1.0"
