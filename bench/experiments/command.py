"""The shape of an experiment as a command: numbers as arguments, and a table that grows while it is measured."""

from __future__ import annotations

import argparse
from collections.abc import Sequence


def read_arguments(
    question: str | None, given: Sequence[str] | None = None, listed: str = "", **counts: int
) -> argparse.Namespace:
    """Return an experiment's arguments.

    Args:
        question: the module's docstring, which `--help` shows.
        given: default: those of the command line.
        listed: the name of any number of words behind the counts; none without it.
        counts: positive numbers by name, in order, each with its default.
    """
    parser = argparse.ArgumentParser(description=question, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in counts.items():
        parser.add_argument(name, type=int, nargs="?", default=default, help=f"default {default}")
    if listed:
        parser.add_argument(listed, nargs="*")
    found = parser.parse_args(given)
    for name in counts:
        if vars(found)[name] <= 0:
            parser.error(f"{name} must be more than 0, got {vars(found)[name]}")
    return found


class Table:
    """Rows under columns, each printed at once. A column is as wide as its title, or as a number behind it says."""

    def __init__(self, *columns: str | tuple[str, int]) -> None:
        """Print the titles."""
        pairs = [(column, len(column)) if isinstance(column, str) else column for column in columns]
        self._widths = [width for _, width in pairs]
        self.add(*(title for title, _ in pairs))

    def add(self, *cells: object) -> None:
        """Print a row: words to the left, numbers to the right, floats with two digits."""
        words = []
        for cell, width in zip(cells, self._widths, strict=True):
            if isinstance(cell, float):
                words.append(f"{cell:{width}.2f}")
            else:
                words.append(f"{cell!s:>{width}}" if isinstance(cell, int) else f"{cell!s:<{width}}")
        print("  ".join(words).rstrip(), flush=True)
