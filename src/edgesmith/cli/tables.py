"""Output of the commands: tables and JSON on stdout, stages and bars on stderr.

`rich` is imported where something is shown, so that a refused option does not wait for it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TextIO

from edgesmith.cli import layout
from edgesmith.show import in_json, in_terminal

WIDTH = 120
"""Characters of a line where stdout is a file or a pipe."""

LEAST_WIDTH = 40
"""Characters of a line, however narrow the terminal is."""


@contextlib.contextmanager
def show_stage(stage: str) -> Iterator[None]:
    """Show a line on stderr for a stage, a `Watch`: running, then done with its time. Libraries print there, too."""
    from rich.console import Console

    console = Console(stderr=True, highlight=False, markup=False)
    start = time.perf_counter()
    with console.status(f"{stage} ..."), printing_to_stderr():
        yield
    console.print(f"  {stage:<20} {time.perf_counter() - start:6.1f} s")


def printing_to_stderr() -> contextlib.AbstractContextManager[Any]:
    """Let what a model's own code and libraries print go to stderr: stdout is for results."""
    return contextlib.redirect_stdout(sys.stderr)


@contextlib.contextmanager
def show_progress(task: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar on stderr with the time left, where that is a terminal: elsewhere it would be an empty line.

    Yields what to call with how much is done, of how much.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda *_: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        shown = bar.add_task(task, total=None)
        yield lambda done, of: bar.update(shown, completed=done, total=of)


class Table:
    """Rows under columns, made fit for a terminal as they come.

    Attributes:
        has_header: show the columns' titles.
        names: whether the first column holds names, which are not broken over lines.
    """

    def __init__(self, title: str, columns: Sequence[str], has_header: bool, names: bool) -> None:
        self.title = in_terminal(title)
        self.columns, self.has_header, self.names = tuple(columns), has_header, names
        self.rows: list[tuple[str, ...]] = []

    def add_row(self, *cells: str) -> None:
        """Add a row; a cell may have several lines."""
        self.rows.append(tuple(in_terminal(cell, lines=True) for cell in cells))


def new_table(title: str, *columns: str, header: bool = True, names: bool = False) -> Table:
    """Return an empty table.

    Args:
        header: show the columns' titles.
        names: whether the first column holds names, which are not broken over lines.
    """
    return Table(title, columns, header, names)


def line_width() -> int:
    """Return the characters of a line: COLUMNS, or the terminal's, or WIDTH where stdout is a file or a pipe."""
    asked = os.environ.get("COLUMNS", "")
    if asked.isascii() and asked.isdigit() and int(asked) > 0:
        return max(int(asked), LEAST_WIDTH)
    if not sys.stdout.isatty():
        return WIDTH
    return max(shutil.get_terminal_size((WIDTH, 24)).columns, LEAST_WIDTH)


def print_line(text: object = "", *, to_stderr: bool = False, to: TextIO | None = None) -> None:
    """Print one line, in which a foreign text moves no cursor and begins no other line.

    On a terminal it is broken between words; in a file or pipe it stays one line, for what reads it.

    Args:
        to: a stream in the place of either, such as the stderr of before a progress bar.
    """
    stream = to or (sys.stderr if to_stderr else sys.stdout)
    shown = in_terminal(str(text))
    if stream is sys.stdout and sys.stdout.isatty():
        shown = layout.break_lines(shown, line_width())
    print(shown, file=stream, flush=stream is not sys.stdout)


def print_lines(text: str) -> None:
    """Print a text of several lines that ends with one, such as Markdown."""
    print(in_terminal(text, lines=True, longest=len(text)), end="")


def print_block(text: str) -> None:
    """Print a text, broken between words wherever it goes to."""
    print(layout.break_lines(text, line_width()))


def print_table(table: Table, after: str = "") -> None:
    """Print a table on stdout: a row is a line where there is room, and else a block.

    Args:
        after: a line right below it.
    """
    is_utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    lines = layout.draw(
        table.columns if table.has_header else ("",) * len(table.columns),
        table.rows,
        width=line_width(),
        has_names=table.names or not table.has_header,
        rule="\N{BOX DRAWINGS LIGHT HORIZONTAL}" if is_utf8 else "-",
    )
    if table.title:
        print(_in_bold(layout.break_lines(table.title, line_width())))
    print("\n".join(lines))
    if after:
        print_line(after)
    print()


def _in_bold(text: str) -> str:
    """Return a text in bold, on a terminal that takes it."""
    is_plain = "NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb" or not sys.stdout.isatty()
    return text if is_plain else "\n".join(f"\x1b[1m{line}\x1b[0m" for line in text.split("\n"))


def print_json(content: Any) -> None:
    """Print JSON on stdout."""
    print(in_json(json.dumps(content, indent=2, ensure_ascii=False)))


def counted(number: int, word: str, words: str = "") -> str:
    """Return `1 launch`, `2 launches`: a number with its noun, whose plural adds an s where none is given."""
    return f"{number} {word if number == 1 else words or word + 's'}"


def describe_interval(figure: Mapping[str, Any] | None) -> str:
    """Return a figure with the ends of its interval: `3.120 (3.101 to 3.150)`; nothing where there is none."""
    if figure is None:
        return ""
    from edgesmith.bench.statistics import with_ends  # which brings numpy

    return with_ends(figure["value"], figure["low"], figure["high"])
