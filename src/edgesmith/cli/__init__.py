"""The command line."""

from edgesmith.cli.app import main, run

__all__ = ["main", "run"]
