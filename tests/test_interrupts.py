"""An interrupt at any line of what begins, writes and ends: one sentence that is true, and nothing is left.

pytest tests/test_interrupts.py              every few lines
pytest tests/test_interrupts.py --kills 200  every line, as `make kills` has it
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_bench import noisy

from edgesmith.bench import measurement
from edgesmith.errors import INTERRUPTED, TERMINATED

HERE = Path(__file__).parent
CODES = {signal.SIGINT: INTERRUPTED, signal.SIGTERM: TERMINATED}
BEFORE_OURS = 12
"""Lines of `__main__` and of what begins to hear the signals, at which Python's own answer to them may stand."""

CASES = [
    ("--version", signal.SIGINT, 1, []),
    ("nonsense", signal.SIGINT, 5, []),
    ("file", signal.SIGINT, 5, ["deep", "deep/file"]),
    ("file", signal.SIGTERM, 5, ["deep", "deep/file"]),
    ("artifact", signal.SIGINT, 5, ["a", "a/m.onnx", "a/manifest.json"]),
    ("history add RECORD --file OUT/new/h.sqlite", signal.SIGINT, 40, ["new", "new/h.sqlite"]),
]
"""Commands, each with a signal, every how many lines it comes, and what the command leaves when it is done."""


def ends(words: str, folder: Path, number: int, step: int) -> list[dict[str, Any]]:
    """Return how the runs of a command ended, one for each line at which the signal came."""
    record, runs = folder / "record.json", folder / "runs"
    measurement.write(noisy(1.0), record)
    command = [sys.executable, "-P", "-m", "support.interrupting", str(runs), str(number), str(step)]
    found = subprocess.run(
        [*command, *words.replace("RECORD", str(record)).split()],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])},
    )
    assert found.returncode == 0, found.stderr
    return list(json.loads(found.stdout))


def faults(end: dict[str, Any], line: int, number: signal.Signals, whole: list[str], code: int = 0) -> list[str]:
    """Return what is wrong with a run that ended."""
    said, left = end["said"], end["left"]
    if line <= BEFORE_OURS and end["code"] == -number:
        return []
    found = []
    if end["code"] not in (code, CODES[number]):
        found.append(f"ended with {end['code']}")
    if "Traceback" in said or "ignored" in said:
        found.append("a traceback")
    if end["temporary"]:
        found.append("a temporary file is left")
    if left not in ([], whole) or end["is_there"] != bool(left):
        found.append("half of it is left")
    if "had been written" in said and not left:
        found.append("what it says had been written is not there")
    if "nothing was published" in said and left:
        found.append("what is there had not been published, it says")
    return found


@pytest.mark.parametrize(("words", "number", "step", "whole"), CASES)
def test_an_interrupt_at_any_line_is_one_true_sentence_and_leaves_nothing(
    words: str, number: signal.Signals, step: int, whole: list[str], tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    step = 1 if pytestconfig.getoption("--kills") >= 100 else step
    *runs, last = ends(words, tmp_path, number, step)
    wrong = {}
    for i, end in enumerate(runs):
        if found := faults(end, 1 + i * step, number, whole, last["code"]):
            wrong[end["where"]] = (found, end)
    assert wrong == {}
    assert last["left"] == whole
    assert sum(end["code"] == CODES[number] for end in runs) > 0.7 * len(runs), "few were interrupted"


def test_what_the_checks_are_for_is_found(tmp_path: Path) -> None:
    found = [faults(end, 100, signal.SIGINT, ["whole"]) for end in ends("careless", tmp_path, signal.SIGINT, 1)]
    kinds = {kind for one in found for kind in one}
    assert kinds == {
        "half of it is left",
        "what is there had not been published, it says",
        "ended with -2",
        "a traceback",
    }
