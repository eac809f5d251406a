"""The gate in somebody's project: the pytest fixture, and the workflow of docs/latency-gate.yml."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_bench import noisy
from torch import nn

import edgesmith
from edgesmith.bench import measure as measures
from edgesmith.bench import measurement
from edgesmith.bench.pytest_plugin import check_latency
from edgesmith.errors import INCONCLUSIVE_CODE, SLOWER_CODE, BadInput


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    out = tmp_path_factory.mktemp("artifacts")
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
    return edgesmith.export(model, "onnx", inputs=(torch.randn(1, 3, 32, 32),), name="tiny", out=out).path


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let measuring return a record of the given ratio."""

    def to(ratio: float, **facts: Any) -> None:
        monkeypatch.setattr(measures, "measure", lambda paths, **options: replace(noisy(ratio), **facts))

    return to


def test_slower_fails_and_faster_and_unchanged_pass(timed: Any) -> None:
    told: dict[str, object] = {}
    timed(1.2)
    with pytest.raises(pytest.fail.Exception, match=r"s1 against s0: slower: head takes 1"):
        check_latency("base", "head", on_result=told.__setitem__)
    assert told["edgesmith verdict"] == "slower"
    assert float(str(told["edgesmith ratio"])) == pytest.approx(1.2, rel=0.01)
    for ratio, verdict in ((1.0, "unchanged"), (0.8, "faster")):
        timed(ratio)
        assert check_latency("base", "head").verdict == verdict
    timed(1.2)
    assert check_latency("base", "head", threshold=0.5).verdict == "unchanged"


def test_what_is_not_known_is_a_skip_and_no_pass(timed: Any) -> None:
    timed(1.0, launches=noisy(1.0).launches[:2])
    with pytest.raises(pytest.skip.Exception, match="inconclusive: 2 launches are too few"):
        check_latency("base", "head")


def test_an_interrupt_is_no_pass(timed: Any) -> None:
    timed(1.0, complete=False)
    with pytest.raises(KeyboardInterrupt):
        check_latency("base", "head")


def test_no_artifact_fails_with_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(pytest.fail.Exception, match="no artifact at"):
        check_latency(tmp_path, tmp_path)


def in_a_project(folder: Path, test: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "test_it.py").write_text(test)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.wheel
def test_a_project_finds_the_fixture_and_pays_nothing_where_it_does_not_use_it(artifact: Path, tmp_path: Path) -> None:
    used = in_a_project(
        tmp_path,
        "def test_latency(edgesmith_latency):\n"
        f"    edgesmith_latency({str(artifact)!r}, {str(artifact)!r}, seconds=0.1, launches=1)\n",
        "-rs",
        "--junit-xml=out.xml",
    )
    assert "1 skipped" in used.stdout, used.stdout
    assert "launches are too few" in used.stdout
    assert 'name="edgesmith verdict" value="inconclusive"' in (tmp_path / "out.xml").read_text()
    unused = in_a_project(
        tmp_path,
        "import sys\ndef test_other():\n"
        "    assert 'edgesmith.bench.pytest_plugin' in sys.modules\n"
        "    heavy = {'torch', 'numpy', 'onnxruntime', 'typer', 'edgesmith.bench.measure'}\n"
        "    assert not heavy & sys.modules.keys()\n",
        "-W",
        "error",
    )
    assert unused.returncode == 0, unused.stdout


def run_step(workflow: dict[str, Any], name: str, folder: Path, path: str = "", **more: str) -> int:
    """Run one step of the workflow's job as a runner does: bash, where a failing line ends it."""
    (step,) = (step for step in workflow["jobs"]["latency"]["steps"] if step.get("name") == name)
    program = os.pathsep.join(filter(None, (path, str(Path(sys.executable).parent), os.environ["PATH"])))
    places = {
        "GITHUB_STEP_SUMMARY": str(folder / "summary.md"),
        "GITHUB_OUTPUT": str(folder / "output"),
        "GITHUB_WORKSPACE": str(folder),
    }
    environment = {**os.environ, **workflow["env"], **places, "PATH": program, **more}
    return subprocess.run(["bash", "-e", "-c", step["run"]], cwd=folder, env=environment, check=False).returncode


@pytest.fixture
def workflow(checkout: Path) -> dict[str, Any]:
    yaml = pytest.importorskip("yaml")
    found: dict[str, Any] = yaml.safe_load((checkout / "docs" / "latency-gate.yml").read_text(encoding="utf-8"))
    return found


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def test_the_workflow_installs_what_is_there(workflow: dict[str, Any], checkout: Path, tmp_path: Path) -> None:
    """A stand-in for pip tells what it is asked for; the steps before have checked both sides out."""
    (tmp_path / "head").symlink_to(checkout)
    pip = script(tmp_path / "bin" / "pip", f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/asked\n')
    assert run_step(workflow, "install", tmp_path, str(pip.parent)) == 0
    action, _, constraints, project = (tmp_path / "asked").read_text().splitlines()
    assert action == "install"
    assert (tmp_path / constraints).is_file()
    assert project.startswith("./")  # without it pip asks an index for a package of that name
    folder, _, extra = project.rstrip("]").partition("[")
    declared = tomllib.loads((tmp_path / folder / "pyproject.toml").read_text())["project"]
    assert declared["name"] == "edgesmith"
    assert extra in declared["optional-dependencies"]


def test_the_workflow_exports_and_measures_both_sides(workflow: dict[str, Any], artifact: Path, tmp_path: Path) -> None:
    for side in ("base", "head"):
        (tmp_path / side).mkdir()
    copies = script(tmp_path / "bin" / "exports", f'#!/bin/sh\nmkdir -p "$2" && cp -r {artifact} "$2/tiny"\n')
    assert run_step(workflow, "export", tmp_path, EXPORT=f"{copies} --out") == 0
    assert run_step(workflow, "measure", tmp_path, ARTIFACT="tiny", SECONDS_TO_MEASURE="1") == 0
    made = measurement.read(tmp_path / "made" / "latency.json")
    assert len(made.subjects) == 2
    assert made.looks
    assert all(subject.profile for subject in made.subjects)


@pytest.mark.parametrize(
    ("ratio", "facts", "code", "passes"),
    [
        (1.0, {}, 0, True),
        (1.3, {}, SLOWER_CODE, False),
        (1.0, {"launches": noisy(1.0).launches[:2]}, INCONCLUSIVE_CODE, True),
        (1.0, {"subjects": (noisy(1.0).subjects[0], replace(noisy(1.0).subjects[1], precision="int8"))}, 10, False),
    ],
)
def test_the_workflow_takes_each_verdict_by_its_meaning(
    ratio: float, facts: dict[str, Any], code: int, passes: bool, workflow: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "made").mkdir()
    measurement.write(replace(noisy(ratio), **facts), tmp_path / "made" / "latency.json")
    assert run_step(workflow, "judge", tmp_path) == 0
    assert (tmp_path / "output").read_text() == f"code={code}\n"
    assert "| base | head |" in (tmp_path / "summary.md").read_text()
    assert (tmp_path / "made" / "report.html").is_file()
    assert (run_step(workflow, "gate", tmp_path, CODE=str(code)) == 0) == passes


def test_the_workflow_ends_where_there_is_no_verdict(workflow: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "latency.json").write_text("{}")
    assert run_step(workflow, "judge", tmp_path) == BadInput.exit_code
    assert not (tmp_path / "output").exists()
    for code in ("", "1", "2"):
        assert run_step(workflow, "gate", tmp_path, CODE=code) == 1
