"""Programs that lie beside a step's file, ready for a board: stream.py and stream.cpp."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from edgesmith.board.join import join
from edgesmith.exporters.streaming import runner
from edgesmith.exporters.usage.facts import Facts, states_handed_on
from edgesmith.exporters.usage.source import CPP, PYTHON, Snippet

FILES = {PYTHON: runner.FILE, CPP: "stream.cpp"}
"""Of a step whose states the caller hands on, by language."""


def beside_step(language: str, facts: Facts) -> str:
    """Return the file with a program in a language that lies beside a step; empty where none does."""
    return FILES[language] if states_handed_on(facts) else ""


def write_programs(folder: Path, snippets: Iterable[Snippet]) -> None:
    """Write the programs that lie beside a file: Python's is a command and a class, the others as they are printed."""
    for one in snippets:
        if one.beside:
            text = join(Path(runner.__file__)) if one.language == PYTHON else one.code
            (folder / one.beside).write_text(text, encoding="utf-8")
