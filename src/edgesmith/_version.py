"""The version of edgesmith."""

__version__ = "0.2.0"
