"""The version of DINO-X."""

__version__ = "0.1.0"
