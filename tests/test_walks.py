"""The guides and the README, walked to their end by what they say alone; pages whose commands and links are real."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.main import get_command

from edgesmith.cli.app import app
from edgesmith.exporters import artifact as artifacts
from edgesmith.exporters import targets

WALK = Path(__file__).parent / "walks" / "walk.py"

GUIDES = {"own-module": ("coreml",), "coreml": ("coreml",), "jetson": (), "gate": ()}
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


def check_own_module(folder: Path) -> None:
    assert artifacts.read(folder / "artifacts" / "net-coreml-fp16").model == "net"
    assert "MLModel" in (folder / "Net.swift").read_text()


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
    "own-module": check_own_module,
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


@pytest.mark.slow
def test_the_readmes_commands_run(checkout: Path, tmp_path: Path, on_path: Path) -> None:
    """All but the setting up of environments, which CI and tests/walks/fresh.sh do."""
    if missing := targets.get("coreml").missing_packages():
        pytest.skip(f"{missing[0]} is not installed")
    text = (checkout / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    typed = re.sub(r"^python3 -m venv .*&& .venv/bin/(.*)$", r"\1", text, flags=re.MULTILINE)
    typed = re.sub(r"^pytest -n 2$", "true", typed, flags=re.MULTILINE)  # which runs this test
    page = tmp_path / "README.md"
    page.write_text(re.sub(r"^```python\n.*?^```$", "", typed, flags=re.MULTILINE | re.DOTALL))
    done = walked(page, tmp_path / "walk", on_path)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "<html" in (tmp_path / "walk" / "report.html").read_text()


def pages(checkout: Path) -> list[Path]:
    """The pages that users read."""
    listed = subprocess.run(["git", "ls-files", "*.md"], cwd=checkout, capture_output=True, text=True, check=True)
    return [checkout / name for name in listed.stdout.split() if not name.startswith("tests/")]


COMMAND = re.compile(r"^ *(?:\.venv/bin/)?edgesmith ([a-z].*)$", re.MULTILINE)
FENCE = re.compile(r"^```sh\n(.*?)^```$|^(    edgesmith .*)$", re.MULTILINE | re.DOTALL)


def test_every_command_on_a_page_is_one(checkout: Path) -> None:
    """Its name and its options, as the command line parses them; values are looked at by what runs."""
    group: Any = get_command(app)
    found, wrong = 0, []
    for page in pages(checkout):
        for block in FENCE.finditer(page.read_text(encoding="utf-8")):
            for line in COMMAND.findall("".join(one or "" for one in block.groups())):
                words = shlex.split(re.split(r" (?:[|>]|&&) | #", line)[0])
                command, context = group, group.make_context("edgesmith", [], resilient_parsing=True)
                while words and words[0] in getattr(command, "commands", ()):
                    command, words = command.commands[words[0]], words[1:]
                    context = type(context)(command, parent=context)
                try:
                    command.make_parser(context).parse_args(list(words))
                    unknown = words and not words[0].startswith("-") and getattr(command, "commands", ())
                    assert not unknown, "no such command"
                except Exception as error:
                    wrong.append(f"{page.name}: {line}: {error}")
                found += 1
    assert not wrong, wrong
    assert found > 30


LINK = re.compile(r"(?<!`)\]\(([^)\s]+)\)")


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as mkdocs and code hosts make them."""
    heads = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", one.lower()).strip().replace(" ", "-") for one in heads}


def test_every_link_on_a_page_leads_somewhere(checkout: Path) -> None:
    wrong = []
    for page in pages(checkout):
        for link in LINK.findall(page.read_text(encoding="utf-8")):
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            if "://" in link or link == "NNNN-short-name.md":
                continue
            if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
                wrong.append(f"{page.relative_to(checkout)}: {link}")
    assert not wrong, wrong


def test_the_pages_make_a_site(checkout: Path, tmp_path: Path) -> None:
    pytest.importorskip("material", reason="the extra docs is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    site = tmp_path / "site"
    for page in ("guides/jetson", "api", "families/casvit", "schemas"):
        assert (site / page / "index.html").is_file(), page
    assert "StreamingSession" in (site / "api" / "index.html").read_text(encoding="utf-8")
    assert json.loads((site / "schemas" / "manifest.schema.json").read_text(encoding="utf-8"))["properties"]


def test_a_guide_that_stumbles_fails(tmp_path: Path, on_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```sh\nedgesmith lint nothing.onnx\n```\n\n```sh\ntouch reached\n```\n")
    done = walked(page, tmp_path / "walk", on_path)
    assert done.returncode == 2
    assert "nothing.onnx" in done.stderr
    assert not (tmp_path / "walk" / "reached").exists()
