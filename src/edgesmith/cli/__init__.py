"""The command line."""

from edgesmith.cli.app import app, main, run

__all__ = ["app", "main", "run"]
