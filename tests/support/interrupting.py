"""A command that is interrupted at one line after another of the code that begins, writes and ends.

    python -m support.interrupting FOLDER SIGNAL STEP WORD...

One process imports all that the command needs. For each line, counted as they are run, or each STEPth, a fork of it
runs the command and gets the signal there. Printed is a list in JSON of how each ended, up to the one that ran to its
end. `file` and `artifact` are what most commands do. OUT in a word is a folder of each run's own.
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
import json
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, Never

from edgesmith import __main__, ending, locks, writing
from edgesmith.bench import history
from edgesmith.cli import app, signals
from edgesmith.exporters import artifact
from support.manifests import smallest_manifest

OURS: tuple[ModuleType, ...] = (__main__, app, artifact, ending, history, locks, signals, writing)
MODULES = (*OURS, contextlib, shutil, tempfile)
"""Those that begin, write and end, and what they use of Python's library."""

LONGEST_S = 30


def write_artifact(out: Path) -> None:
    """Publish the smallest artifact, in the place of an older one where there is one."""
    with artifact.staging(out, "a") as folder:
        (folder / "m.onnx").write_text("m")
        artifact.write_manifest(folder, smallest_manifest())
        artifact.publish(folder, out, "a")


def write_file(out: Path) -> None:
    """Write a file, in the place of an older one where there is one."""
    writing.write_whole(out / "deep" / "file", "whole", "file")


def write_carelessly(out: Path) -> None:
    """Leave a file where the interrupt comes before the block that removes it, and say nothing of another."""
    out.mkdir()
    half = out / "half.partial"
    half.touch()
    try:
        (out / "whole").touch()
    finally:
        half.unlink()


WRITERS = {"artifact": write_artifact, "file": write_file, "careless": write_carelessly}
"""What is not a command, but a part of most; and what the checks are to find."""


def interrupt_at(line: int, number: int, told: Path) -> None:
    """Have this process send itself a signal at a line, of those that are run from now on, and write where that was."""
    files = {__file__, *(inspect.getfile(module) for module in MODULES)}
    left = line

    def at(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        if frame.f_code.co_filename not in files:
            return None
        if event == "line" and left:
            left -= 1
            if not left:
                told.write_text(f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}")
                os.kill(os.getpid(), number)
        return at

    sys.settrace(at)


def run(line: int, number: int, folder: Path, words: list[str]) -> Never:
    """Run the command in this process, which it ends."""
    temporary = folder / "tmp"
    temporary.mkdir(parents=True)
    os.environ["TMPDIR"], tempfile.tempdir = str(temporary), None
    for stream, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(folder / name, os.O_CREAT | os.O_WRONLY), stream)
    signal.alarm(LONGEST_S)
    if words[0] in WRITERS:
        app.app = lambda **_: WRITERS[words[0]](folder / "out")  # type: ignore[assignment]
    sys.argv = ["edgesmith", *(word.replace("OUT", str(folder / "out")) for word in words)]
    interrupt_at(line, number, folder / "where")
    __main__.main()


def end_of(folder: Path, code: int) -> dict[str, Any]:
    """Return how a run ended, and what it left in its folders."""
    where, out = folder / "where", folder / "out"
    return {
        "code": code,
        "where": where.read_text() if where.exists() else "",
        "said": (folder / "stderr").read_text(),
        "temporary": [path.name for path in (folder / "tmp").iterdir()],
        "left": sorted(path.relative_to(out).as_posix() for path in out.rglob("*")),
        "is_there": out.exists(),
    }


def main() -> None:
    """Fork for one line after another, and print how each ended."""
    folder, number, step, words = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]
    ends: list[dict[str, Any]] = []
    for line in itertools.count(1, step):
        place = folder / str(line)
        child = os.fork()
        if child == 0:
            run(line, number, place, words)
        _, status = os.waitpid(child, 0)
        ends.append(end_of(place, os.waitstatus_to_exitcode(status)))
        if not ends[-1]["where"]:
            break
    print(json.dumps(ends))


if __name__ == "__main__":
    main()
