"""The version of edgesmith."""

__version__ = "0.1.0"
