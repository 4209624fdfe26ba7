"""Shannon Control Unit: holds the information ratio of an adapter at a set point while it
trains."""

__version__ = "0.1.0"
