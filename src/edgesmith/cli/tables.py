"""Output of the commands: tables and JSON on stdout, stages and bars on stderr.

`rich` is imported where something is shown, so that a refused option does not wait for it.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TextIO

from edgesmith.show import in_json, in_terminal

if TYPE_CHECKING:
    from rich.table import Table

WIDTH = 120
"""Characters of a line where stdout is a file or a pipe."""


@contextlib.contextmanager
def show_stage(stage: str) -> Iterator[None]:
    """Show a line on stderr for a stage, a `Watch`: running, then done with its time."""
    from rich.console import Console

    console = Console(stderr=True, highlight=False, markup=False)
    start = time.perf_counter()
    with console.status(f"{stage} ..."):
        yield
    console.print(f"  {stage:<20} {time.perf_counter() - start:6.1f} s")


def printing_to_stderr() -> contextlib.AbstractContextManager[Any]:
    """Let what a model's own code prints go to stderr: stdout is for results."""
    return contextlib.redirect_stdout(sys.stderr)


@contextlib.contextmanager
def show_progress(task: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar on stderr with the time left. Yields what to call with how much is done, of how much."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bar:
        shown = bar.add_task(task, total=None)
        yield lambda done, of: bar.update(shown, completed=done, total=of)


def new_table(title: str, *columns: str, header: bool = True, names: bool = False) -> Table:
    """Return an empty table.

    Args:
        header: show the columns' titles.
        names: whether the first column holds names, which are not broken over lines.
    """
    from rich import box
    from rich.table import Table as Plain

    class Table(Plain):
        """A table whose cells are made fit for a terminal."""

        def add_row(self, *cells: Any, **style: Any) -> None:
            super().add_row(*(in_terminal(cell, lines=True) for cell in cells), **style)

    table = Table(
        title=in_terminal(title), box=box.SIMPLE_HEAD, title_justify="left", title_style="bold", show_header=header
    )
    for i, column in enumerate(columns):
        table.add_column(column, overflow="fold", no_wrap=names and i == 0)
    return table


def print_line(text: object = "", *, to_stderr: bool = False, to: TextIO | None = None) -> None:
    """Print one line, in which a foreign text moves no cursor and begins no other line.

    Args:
        to: a stream in the place of either, such as the stderr of before a progress bar.
    """
    stream = to or (sys.stderr if to_stderr else sys.stdout)
    print(in_terminal(str(text)), file=stream, flush=stream is not sys.stdout)


def print_lines(text: str) -> None:
    """Print a text of several lines that ends with one, such as Markdown."""
    print(in_terminal(text, lines=True, longest=len(text)), end="")


def print_table(table: Table) -> None:
    """Print a table on stdout."""
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = WIDTH
    console.print(table)


def print_json(content: Any) -> None:
    """Print JSON on stdout."""
    print(in_json(json.dumps(content, indent=2, ensure_ascii=False)))


def describe_interval(figure: Mapping[str, Any] | None) -> str:
    """Return a figure with the ends of its interval: `3.120 (3.101 to 3.150)`; nothing where there is none."""
    if figure is None:
        return ""
    ends = "" if figure["low"] is None else f" ({figure['low']:.3f} to {figure['high']:.3f})"
    return f"{figure['value']:.3f}{ends}"
