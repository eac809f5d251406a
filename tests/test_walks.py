"""The guides and the README: walked to their end by what they say alone; commands that are real; links that lead somewhere."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgesmith.exporters import artifact as artifacts
from edgesmith.exporters import targets

WALK = Path(__file__).parent / "walks" / "walk.py"

GUIDES = {"coreml": ("coreml",), "jetson": (), "gate": ()}
"""Each guide, and the targets whose packages it needs."""


@pytest.fixture(scope="module")
def on_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a command `edgesmith` that is this code, and the Python of these tests."""
    folder = tmp_path_factory.mktemp("bin")
    (folder / "edgesmith").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -P -m edgesmith "$@"\n')
    (folder / "edgesmith").chmod(0o755)
    (folder / "python3").symlink_to(sys.executable)
    return folder


def walked(page: Path, folder: Path, on_path: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": f"{on_path}{os.pathsep}{os.environ['PATH']}"}
    command = [sys.executable, "-P", str(WALK), str(page), str(folder)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def check_classifier(folder: Path) -> None:
    made = artifacts.read(folder / "artifacts" / "casvit_xs-coreml-fp16-labels-image")
    assert made.manifest["weights"]["origin"] == "file rcvit_xs.pth"
    assert "VNCoreMLRequest" in (folder / "Classifier.swift").read_text()


def check_keywords(folder: Path) -> None:
    assert np.load(folder / "predictions.npy").shape == (98, 35)  # and the guide's last block has compared them


def check_gate(folder: Path) -> None:
    assert "lmuformer" in (folder / "latency.md").read_text()
    assert "<testsuite" in (folder / "latency.xml").read_text()
    assert "<html" in (folder / "report.html").read_text()


CHECKS: dict[str, Callable[[Path], None]] = {
    "coreml": check_classifier,
    "jetson": check_keywords,
    "gate": check_gate,
}


@pytest.mark.slow
@pytest.mark.parametrize("guide", GUIDES)
def test_a_guide_leads_to_its_end(guide: str, checkout: Path, tmp_path: Path, on_path: Path) -> None:
    for target in GUIDES[guide]:
        if missing := targets.get(target).missing_packages():
            pytest.skip(f"{missing[0]} is not installed")
    done = walked(checkout / "docs" / "guides" / f"{guide}.md", tmp_path / "walk", on_path)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    CHECKS[guide](tmp_path / "walk")


def test_a_guide_that_stumbles_fails(tmp_path: Path, on_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```sh\nedgesmith lint nothing.onnx\n```\n\n```sh\ntouch reached\n```\n")
    done = walked(page, tmp_path / "walk", on_path)
    assert done.returncode == 2
    assert "nothing.onnx" in done.stderr
    assert not (tmp_path / "walk" / "reached").exists()
