"""The core without what exports: commands that read, lint and compare do without torch; others say what to install."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edgesmith.bench.history import change_points
from edgesmith.exporters.artifact import Artifact

WITHOUT = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "onnxscript", "onnxsim", "onnxruntime", "coremltools", "scipy"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
from edgesmith.__main__ import main
main()
"""


def run_core(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command where only the core's dependencies can be imported."""
    command = [sys.executable, "-P", "-c", WITHOUT, *arguments]
    environment = {**os.environ, "COLUMNS": "200"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_the_core_reads_and_lints(export_small: Callable[..., Artifact], tmp_path: Path) -> None:
    made = export_small("onnx")
    shown = {"lint": "counts", "use": "Python", "models": "casvit_xs", "operators": "softmax", "--help": "Make a file"}
    for command in (
        ["--help"],
        ["models", "--json"],
        ["devices"],
        ["operators", "softmax"],
        ["lint", str(made.file), "--strict", "--json"],
        ["use", str(made.path)],
    ):
        done = run_core(*command, folder=tmp_path)
        assert done.returncode == 0, (command, done.stderr)
        assert shown.get(command[0], "") in done.stdout


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        (["export", "--model", "casvit_xs", "--target", "onnx"], "export"),
        (["explain", "--model", "casvit_xs"], "export"),
        (["verify", "{}"], "export"),
        (["bench", "{}", "--seconds", "1"], "run"),
    ],
)
def test_what_the_core_lacks_is_a_sentence(
    command: list[str], extra: str, export_small: Callable[..., Artifact], tmp_path: Path
) -> None:
    made = export_small("onnx")
    given = [one.format(made.path) for one in command]
    done = run_core(*given, "--json", folder=tmp_path)
    assert done.returncode == 4, done.stderr
    assert f'pip install "edgesmith[{extra}]"' in json.loads(done.stdout)["error"]


def test_levels_are_found_as_they_were_made() -> None:
    noise = [0.004, -0.003, 0.001, -0.004, 0.002, 0.003, -0.001, 0.0, 0.002, -0.002]
    level = [10.0 * (1 + one) for one in noise]
    assert change_points(level * 3) == []
    assert change_points(level + [1.2 * one for one in level] + [0.9 * one for one in level]) == [10, 20]
    assert change_points([*level, 30.0, *level]) == [], "a slow run is no level"
    assert change_points(level[:5]) == [], "too few points for two levels"
