"""This machine as a device: files stay where they are, commands are processes."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from edgesmith.bench.transport.process import Errors, give, started
from edgesmith.bench.transport.protocol import CommandFailed, Heard, write_runner


def _scratch() -> tempfile.TemporaryDirectory[str]:
    """Make the folder of a command's temporary files, so that none outlives a command that is killed."""
    return tempfile.TemporaryDirectory(prefix="edgesmith-", ignore_cleanup_errors=True)


class Local:
    """The machine that this runs on."""

    is_here = True
    runs_there = True
    python: Sequence[str] = (sys.executable, "-P")  # -P: what lies beside the runner shadows no module of Python's

    def __init__(self, name: str = "host") -> None:
        self.name = name

    def write_runner(self, folder: Path) -> Path:
        return write_runner(folder)

    def put(self, file: Path, name: str) -> str:
        return str(file.resolve())

    def get(self, name: str, file: Path) -> None:
        shutil.copyfile(name, file)

    def run(self, command: Sequence[str], given: str = "", heard: Heard | None = None) -> Iterator[str]:
        with _scratch() as scratch, started(command, TMPDIR=scratch) as process:
            assert process.stdout is not None
            said = Errors(process, heard)
            give(process, given.encode())
            for raw in process.stdout:
                if not raw.endswith(b"\n") and process.wait() != 0:
                    break  # half a line of what was killed is none
                yield raw.decode(errors="replace").rstrip("\r\n")
            code = process.wait()
        if code != 0:
            raise CommandFailed(code, "\n".join(said.lines()))
