"""The examples, run as their first lines say."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgesmith.models.front_end import LENGTH, SHIFT

OPTIONS = ["--input", "1x98x40"]


def run(*command: str, folder: Path, **more: Any) -> subprocess.CompletedProcess[Any]:
    done = subprocess.run([sys.executable, "-P", *command], cwd=folder, capture_output=True, check=False, **more)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done


def test_a_module_of_ones_own_becomes_a_file(checkout: Path, edgesmith: Callable[..., Any], tmp_path: Path) -> None:
    line = re.search(r"^    edgesmith (export .*)$", (checkout / "examples/own_module.py").read_text(), re.MULTILINE)
    assert line is not None
    words = line[1].replace("examples/", f"{checkout}/examples/").split()
    done = edgesmith(*words, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["model"]["name"] == "keywords"


@pytest.fixture
def plugin(checkout: Path, tmp_path: Path) -> dict[str, str]:
    """An environment in which the example's package is installed, as pip would do it."""
    folder = checkout / "examples" / "plugin"
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    info = tmp_path / "site" / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    groups = [
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in points.items())
        for group, points in project["entry-points"].items()
    ]
    (info / "entry_points.txt").write_text("\n".join(groups))
    path = [str(folder), str(info.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path)}


NET = """
import torch

class Net(torch.nn.Module):
    def forward(self, x):
        return torch.sqrt(x * x) + torch.sqrt(x.exp() * (x + 9).exp())

def net():
    return Net().eval()
"""


def test_a_rewrite_and_a_target_are_found_where_their_package_is(plugin: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NET)
    command = ("-m", "edgesmith", "export", "--module", "net.py:net", "--input", "1x8", "--target", "pt2", "--json")
    done = run(*command, folder=tmp_path, env=plugin, text=True)
    made = json.loads(done.stdout)
    assert made["target"]["name"] == "pt2"
    assert made["file"].endswith(".pt2")
    fired = json.dumps(made)
    assert "root_of_square" in fired
    assert len((Path(__file__).parent.parent / "examples/plugin/own_rewrite.py").read_text().splitlines()) <= 40


def test_a_microphones_words_are_those_of_the_session(checkout: Path, tmp_path: Path, small_speech: Path) -> None:
    samples = np.random.default_rng(0).normal(0, 2000, 16000 // 4).astype("<i2")
    done = run(str(checkout / "examples/microphone.py"), str(small_speech), folder=tmp_path, input=samples.tobytes())
    lines = done.stdout.decode().splitlines()
    delay = json.loads((small_speech / "manifest.json").read_text())["streaming"]["delay"]
    assert len(lines) == (len(samples) - LENGTH) // SHIFT + 1 - delay
    assert all(re.fullmatch(r" +[\d.]+ s  class +\d+  -?[\d.]+", line) for line in lines)


@pytest.fixture(scope="module")
def small_speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A streaming artifact of 128 mel bands."""
    import torch

    import edgesmith

    torch.manual_seed(0)
    layers = [torch.nn.Conv1d(128, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv1d(8, 35, 1)]

    class Words(torch.nn.Module):
        """[1, T, 128] to the scores of each frame, [1, T, 35]."""

        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.Sequential(*layers)

        def forward(self, frames: torch.Tensor) -> torch.Tensor:
            return torch.as_tensor(self.layers(frames.transpose(1, 2)).transpose(1, 2))

    made = edgesmith.export(
        Words().eval(),
        "onnx",
        inputs=(torch.randn(1, 12, 128),),
        name="words",
        streaming=True,
        out=tmp_path_factory.mktemp("speech"),
    )
    return made.path


@pytest.mark.parametrize(("base", "head", "code"), [("a", "a", 0), ("a", "missing", 1)])
def test_the_gate_is_a_test(
    base: str, head: str, code: int, checkout: Path, small_speech: Path, tmp_path: Path
) -> None:
    (tmp_path / "a").symlink_to(small_speech)
    settings = {"BASE": base, "HEAD": head, "SECONDS_TO_MEASURE": "4"}
    command = ["-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "-p", "edgesmith.bench.pytest_plugin"]
    done = subprocess.run(
        [sys.executable, "-P", *command, "--rootdir", str(tmp_path), str(checkout / "examples/test_latency.py")],
        cwd=tmp_path,
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stdout[-2000:]
    assert ("1 passed" in done.stdout or "1 skipped" in done.stdout) == (code == 0)
