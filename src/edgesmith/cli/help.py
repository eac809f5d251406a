"""The root's `--help`: options, and the commands by their groups, each in a frame.

typer's own would import rich's Markdown, tracebacks and columns, which take longer than all of the rest. This has the
same layout with frames and tables alone, so that the first thing that anybody types answers at once. The help of one
command is typer's.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from typer.core import TyperGroup

if TYPE_CHECKING:
    from rich.panel import Panel

OPTION, SWITCH, USAGE, FRAME = "bold cyan", "bold green", "yellow", "dim"
"""Styles of a long option or a command, of a short option, of the word Usage, and of a frame."""

OPTIONS, COMMANDS = "Options", "Commands"
"""Titles of frames: of the options, and of commands without a group."""


class RootHelp(TyperGroup):
    """The root of the command line, with a help of its own."""

    def format_help(self, ctx: Any, formatter: Any) -> None:  # Any: typer has a click of its own from 0.26 on
        """Print the help. The formatter is for plain text, and is left empty."""
        from rich.console import Console
        from rich.padding import Padding
        from rich.text import Text

        console = Console(highlight=False)
        label, _, usage = self.get_usage(ctx).partition(" ")
        console.print(Padding(Text.assemble((label, f"bold {USAGE}"), " ", (usage, "bold")), 1))
        console.print(Padding(_one_line(self.help), (0, 1, 1, 1)))
        rows = [_option_row(one) for one in self.get_params(ctx) if not getattr(one, "hidden", False)]
        console.print(_frame(OPTIONS, rows, [OPTION, SWITCH, ""]))
        groups: dict[str, list[list[str]]] = {}
        names = [name for name in self.list_commands(ctx) if not self.commands[name].hidden]
        for name in names:
            group = getattr(self.commands[name], "rich_help_panel", None)
            groups.setdefault(group or COMMANDS, []).append([name, _one_line(self.commands[name].help)])
        for title, listed in groups.items():
            console.print(_frame(title, listed, [OPTION, ""], max(map(len, names))))
        console.print(Padding(Text(_one_line(self.epilog)), 1))


def _one_line(text: str | None) -> str:
    """Return the first paragraph of a text on one line."""
    return " ".join(inspect.cleandoc(text or "").split("\n\n")[0].split())


def _option_row(option: Any) -> list[str]:
    """Return an option's long names, its short ones, and its help."""
    long = [name for name in option.opts if name.startswith("--")]
    return [",".join(long), ",".join(name for name in option.opts if name not in long), _one_line(option.help)]


def _frame(title: str, rows: Sequence[Sequence[str]], styles: Sequence[str], least: int = 0) -> Panel:
    """Return rows in a frame. Names stay whole, and what is last in a row has the room that they leave.

    Args:
        rows: cells, one for each style.
        least: characters of the first column, or of the longest in it where that is more.
    """
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    *names, told = styles
    table = Table(box=None, show_header=False, expand=True, pad_edge=False)
    for i, style in enumerate(names):
        longest = max(len(row[i]) for row in rows)
        table.add_column(style=style, no_wrap=True, width=longest if i else max(longest, least))
    table.add_column(style=told, ratio=1)
    for row in rows:
        table.add_row(*map(Text, row))
    return Panel(table, border_style=FRAME, title=title, title_align="left")
