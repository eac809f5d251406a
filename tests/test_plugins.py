"""A package outside the tree adds a target, a precision, a fused op, a rewrite, a model family and a device."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

OUTSIDE = Path(__file__).parent / "fixtures" / "outside"

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def with_outside(tmp_path: Path) -> Run:
    """Run the command line where the package `outside` is installed, or a copy of it that a test has changed."""

    def run(*arguments: str, package: Path = OUTSIDE) -> subprocess.CompletedProcess[str]:
        paths = [str(package), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
        command = [sys.executable, "-m", "edgesmith", *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)

    return run


def test_what_is_outside_is_listed(with_outside: Run) -> None:
    models = json.loads(with_outside("models", "--json").stdout)
    assert [one["family"] for one in models if one["name"] == "smoother"] == ["smoother"]
    targets = {one["name"]: one for one in json.loads(with_outside("targets", "--json").stdout)}
    assert targets["pt2"]["precisions"] == ["fp32", "w16"]
    assert targets["onnx"]["precisions"] == ["fp32", "fp16", "int8", "w16"]
    assert targets["coreml"]["precisions"] == ["fp16", "fp32", "mixed"]
    devices = json.loads(with_outside("targets", "--devices", "--json").stdout)
    assert [one["title"] for one in devices if one["name"] == "board"] == ["Outside's board"]


def test_export_explain_and_verify_with_all_of_it(with_outside: Run, tmp_path: Path) -> None:
    explained = json.loads(with_outside("explain", "--model", "smoother", "--target", "pt2", "--json").stdout)
    (report,) = [one for one in explained["rewrites"] if one["name"] == "drop_abs"]
    assert [note for _, note in report["applied"]] == ["abs after relu -> nothing"]
    assert explained["operators"]["rewritten"]["edgesmith.average"] == 1
    assert "aten.abs" not in explained["operators"]["rewritten"]
    options = ("--model", "smoother", "--target", "pt2", "--precision", "w16", "--device", "board", "--json")
    done = with_outside("export", *options)
    assert done.returncode == 0, done.stderr
    manifest = json.loads(done.stdout)
    assert (manifest["precision"], manifest["target"]["options"]["device"]) == ("w16", "board")
    (checked,) = [step for step in manifest["verification"]["steps"] if step["step"] == "eager -> file"]
    assert 1e-6 < checked["relative_error"] < 2e-2, "weights were rounded"
    assert manifest["verification"]["judged_as"] == "w16"
    verified = with_outside("verify", manifest["path"], "--json")
    assert verified.returncode == 0, verified.stderr
    (again,) = [step for step in json.loads(verified.stdout)["steps"] if step["step"] == "eager -> file"]
    assert again["relative_error"] == checked["relative_error"]


@pytest.mark.parametrize("target", ["onnx", "pt2"])
def test_the_op_streams(target: str, with_outside: Run) -> None:
    done = with_outside("export", "--model", "smoother", "--target", target, "--streaming", "--json")
    assert done.returncode == 0, done.stderr
    manifest = json.loads(done.stdout)
    (state,) = manifest["streaming"]["states"]
    assert state["meaning"].startswith("moving average of ")
    assert {step["step"] for step in manifest["verification"]["steps"]} >= {"eager -> step program", "eager -> file"}


def test_the_op_stays_float_in_int8(with_outside: Run) -> None:
    done = with_outside("export", "--model", "smoother", "--target", "onnx", "--precision", "int8", "--json")
    assert done.returncode == 0, done.stderr
    manifest = json.loads(done.stdout)
    assert manifest["int8"]["layers"] == 2, "the two layers, and none of the average's"


def test_a_plugin_that_fails_is_one_sentence_and_the_rest_works(with_outside: Run, tmp_path: Path) -> None:
    broken = shutil.copytree(OUTSIDE, tmp_path / "broken")
    (broken / "outside" / "pt2.py").write_text("raise RuntimeError('it is broken')\n", encoding="utf-8")
    done = with_outside("export", "--model", "smoother", "--target", "onnx", "--precision", "w16", package=broken)
    assert done.returncode == 0, done.stderr
    (sentence,) = [line for line in done.stderr.splitlines() if "pt2" in line]
    assert "plugin 'pt2' of edgesmith.targets is left out: outside.pt2:TARGET of outside 1.0 does not load" in sentence
    assert "it is broken" in sentence
