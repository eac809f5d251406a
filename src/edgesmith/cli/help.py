"""The root's `--help`: options, and the commands by their groups.

It is drawn as every other table here, without rich or any command's module, so that the first thing that anybody types
answers at once. The help of one command is typer's.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

from typer.core import TyperGroup

from edgesmith.cli.commands import COMMANDS, Imported
from edgesmith.cli.tables import new_table, print_block, print_line, print_table

OPTIONS = "Options"
"""Title of the options."""


class Root(TyperGroup):
    """The root of the command line, with a help of its own, and commands that are imported when they are called."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.commands = Imported()  # type: ignore[assignment]  # nothing adds to it

    def list_commands(self, ctx: Any) -> list[str]:  # Any: typer has a click of its own from 0.26 on
        """Return the commands' names in the order of the help."""
        return list(self.commands)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help. The formatter is for plain text, and is left empty."""
        for text in (self.get_usage(ctx), self.help or ""):
            print_block(text)
            print_line()
        given: list[Any] = self.get_params(ctx)
        options = ((_names(one), _one_line(one.help)) for one in given if not one.hidden)
        _print_group(OPTIONS, options)
        groups: dict[str, list[tuple[str, str]]] = {}
        widest = max(map(len, COMMANDS))
        for name, command in COMMANDS.items():
            groups.setdefault(command.group, []).append((name.ljust(widest), command.summary))
        for title, rows in groups.items():
            _print_group(title, rows)
        print_block(self.epilog or "")


def _print_group(title: str, rows: Iterable[tuple[str, str]]) -> None:
    table = new_table(title, "", "", header=False)
    for row in rows:
        table.add_row(*row)
    print_table(table)


def _names(option: Any) -> str:
    """Return an option's names, the short ones first."""
    return ", ".join(sorted(option.opts, key=len))


def _one_line(text: str | None) -> str:
    """Return the first paragraph of a text on one line."""
    return " ".join(inspect.cleandoc(text or "").split("\n\n")[0].split())
