"""The protocol of a device where commands run, and what its commands end with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from edgesmith.bench import runner
from edgesmith.board.join import join
from edgesmith.errors import DeviceFailed

Heard = Callable[[str], None]
"""Hears what a command writes to stderr, line by line."""


class CommandFailed(Exception):
    """A command on the device ended with a code other than 0; callers make a sentence of it.

    Attributes:
        code: its exit code.
        said: what it wrote to stderr.
    """

    def __init__(self, code: int, said: str) -> None:
        super().__init__(f"exit code {code}: {said}")
        self.code, self.said = code, said

    @property
    def last_line(self) -> str:
        """The last line of what it said, which in a traceback is the error."""
        lines = self.said.strip().splitlines()
        return lines[-1].strip() if lines else "it said nothing"


class CutOff(DeviceFailed):
    """The connection ended before the command did."""


class Transport(Protocol):
    """A device where commands run: connected by `connect`, cleaned up when its block ends.

    Attributes:
        name: what a record calls the device.
        is_here: whether it is this machine.
        python: what starts Python there.
        runs_there: its runner is a process on it, and not one here that drives it.
    """

    name: str
    is_here: bool
    python: Sequence[str]
    runs_there: bool

    def write_runner(self, folder: Path) -> Path:
        """Write the file that carries out a plan into a folder here. Returns its path."""
        ...

    def put(self, file: Path, name: str) -> str:
        """Copy a file into this run's folder there, or the rest of one. Returns its path there.

        Raises:
            OutputError: there is no room for it.
            DeviceFailed: it did not arrive whole.
        """
        ...

    def get(self, name: str, file: Path) -> None:
        """Copy a file of this run's folder here. Raises DeviceFailed where it does not arrive whole."""
        ...

    def run(self, command: Sequence[str], given: str = "", heard: Heard | None = None) -> Iterator[str]:
        """The lines that a command writes to stdout, as it does; `given` is its stdin.

        Raises:
            CommandFailed: its exit code is not 0.
            CutOff: the connection ended first; the command is ended there.
        """
        ...


def write_runner(folder: Path) -> Path:
    """Join runner.py into one file in a folder. Returns its path."""
    source = Path(runner.__file__)
    file = folder / source.name
    file.write_text(join(source), encoding="utf-8")
    return file
