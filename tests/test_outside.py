"""A package outside the tree adds a target, a precision, a fused op, a rewrite, a model family and a device."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

OUTSIDE = Path(__file__).parent / "fixtures" / "outside"

EXPORT = ("export", "--model", "smoother", "--json")
COMMANDS: dict[str, tuple[str, ...]] = {
    "models": ("models", "--json"),
    "targets": ("targets", "--json"),
    "devices": ("targets", "--devices", "--json"),
    "explain": ("explain", "--model", "smoother", "--target", "pt2", "--json"),
    "export": (*EXPORT, "--target", "pt2", "--precision", "w16", "--device", "board"),
    "verify": ("verify", "artifacts/smoother-pt2-w16", "--json"),
    "onnx": (*EXPORT, "--target", "onnx", "--streaming"),
    "pt2": (*EXPORT, "--target", "pt2", "--streaming"),
    "int8": (*EXPORT, "--target", "onnx", "--precision", "int8"),
}
RUN = """
import contextlib, io, json, sys
from edgesmith import cli
for name, arguments in json.loads(sys.argv[1]).items():
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.run(arguments)
    print(json.dumps([name, code, out.getvalue(), err.getvalue()]))
"""


def run(package: Path, folder: Path, **commands: tuple[str, ...]) -> dict[str, tuple[int, str, str]]:
    """Run commands in one process where a package is installed. Returns exit code, stdout and stderr of each."""
    paths = [str(package), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    call = [sys.executable, "-c", RUN, json.dumps(commands)]
    done = subprocess.run(call, capture_output=True, text=True, cwd=folder, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return {name: (code, out, err + done.stderr) for name, code, out, err in lines}


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What each command printed as JSON where the package `outside` is installed."""
    found = run(OUTSIDE, tmp_path_factory.mktemp("outside"), **COMMANDS)
    assert {name: err for name, (code, _, err) in found.items() if code} == {}
    return {name: json.loads(out) for name, (_, out, _) in found.items()}


def test_what_is_outside_is_listed(outside: dict[str, Any]) -> None:
    assert [one["family"] for one in outside["models"] if one["name"] == "smoother"] == ["smoother"]
    targets = {one["name"]: one["precisions"] for one in outside["targets"]}
    assert targets["pt2"] == ["fp32", "w16"]
    assert targets["onnx"] == ["fp32", "fp16", "int8", "w16"]
    assert targets["coreml"] == ["fp16", "fp32", "mixed"]
    assert [one["title"] for one in outside["devices"] if one["name"] == "board"] == ["Outside's board"]


def test_explain_shows_the_rewrite_and_the_op(outside: dict[str, Any]) -> None:
    (report,) = [one for one in outside["explain"]["rewrites"] if one["name"] == "drop_abs"]
    assert [note for _, note in report["applied"]] == ["abs after relu -> nothing"]
    operators = outside["explain"]["operators"]["rewritten"]
    assert operators["edgesmith.average"] == 1
    assert "aten.abs" not in operators


def test_export_and_verify_in_the_precision_for_the_target_and_device(outside: dict[str, Any]) -> None:
    manifest = outside["export"]
    assert (manifest["precision"], manifest["target"]["options"]["device"]) == ("w16", "board")
    (checked,) = [step for step in manifest["verification"]["steps"] if step["step"] == "eager -> file"]
    assert 1e-6 < checked["relative_error"] < 2e-2, "weights were rounded"
    assert manifest["verification"]["judged_as"] == "w16"
    (again,) = [step for step in outside["verify"]["steps"] if step["step"] == "eager -> file"]
    assert again["relative_error"] == checked["relative_error"]


@pytest.mark.parametrize("target", ["onnx", "pt2"])
def test_the_op_streams(target: str, outside: dict[str, Any]) -> None:
    manifest = outside[target]
    (state,) = manifest["streaming"]["states"]
    assert state["meaning"].startswith("moving average of ")
    assert {step["step"] for step in manifest["verification"]["steps"]} >= {"eager -> step program", "eager -> file"}


def test_the_op_stays_float_in_int8(outside: dict[str, Any]) -> None:
    assert outside["int8"]["int8"]["layers"] == 2, "the two layers, and none of the average's"


def test_a_plugin_that_fails_is_one_sentence_and_the_rest_works(tmp_path: Path) -> None:
    broken = shutil.copytree(OUTSIDE, tmp_path / "broken")
    (broken / "outside" / "pt2.py").write_text("raise RuntimeError('it is broken')\n", encoding="utf-8")
    code, _, said = run(broken, tmp_path, it=("export", "--model", "smoother", "--target", "onnx"))["it"]
    assert code == 0, said
    (sentence,) = [line for line in said.splitlines() if "plugin" in line]
    assert "plugin 'pt2' of edgesmith.targets is left out: outside.pt2:TARGET of outside 1.0 does not load" in sentence
    assert "it is broken" in sentence
