"""The wheel holds everything that ships, under one import name; the README's commands are real."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.wheel

SHIPPED = ("bench", "exporters", "kernels", "models", "profiles")
FOLDERS = (*SHIPPED, "tests")


@pytest.fixture(scope="module")
def tracked(checkout: Path) -> list[str]:
    listed = subprocess.run(["git", "ls-files"], cwd=checkout, capture_output=True, text=True, check=True)
    return listed.stdout.splitlines()


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Names in a wheel built from the tracked files alone, so that nothing untracked gets in."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=checkout, capture_output=True, check=True).stdout
    subprocess.run(["tar", "-x", "-C", str(source)], input=archive, check=True)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    (file,) = out.glob("*.whl")
    return zipfile.ZipFile(file).namelist()


def test_wheel_holds_every_tracked_file_of_the_folders(wheel: list[str], tracked: list[str]) -> None:
    wanted = {f"edgesmith/{name}" for name in tracked if name.split("/")[0] in SHIPPED}
    wanted |= {name.removeprefix("src/") for name in tracked if name.startswith("src/")}
    shipped = {name for name in wheel if name.startswith("edgesmith/")}
    assert shipped == wanted


def test_wheel_brings_no_generic_name(wheel: list[str]) -> None:
    assert {name.split("/")[0].split("-")[0] for name in wheel} == {"edgesmith"}
    assert any(name.endswith("licenses/LICENSE") for name in wheel)


def test_installed_package_brings_no_generic_name() -> None:
    code = f"import importlib.util as u; print([n for n in {FOLDERS!r} if u.find_spec(n)])"
    found = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_readme_has_the_two_commands_and_they_name_what_exists(checkout: Path) -> None:
    readme = (checkout / "README.md").read_text(encoding="utf-8")
    lines = re.findall(r"^python3 -m venv .*$", readme, flags=re.MULTILINE)
    assert len(lines) == 2
    assert lines[0].endswith("edgesmith export --model casvit_xs --target coreml")
    assert "pytest" in lines[1]
    for line in lines:
        assert "-c constraints.txt" in line


def test_extras_are_the_documented_ones_and_every_pin_is_a_version(checkout: Path) -> None:
    project = tomllib.loads((checkout / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(project["optional-dependencies"]) == {
        "run",
        "export",
        "coreml",
        "coreai",
        "tensorrt",
        "tvm",
        "peers",
        "all",
        "docs",
        "dev",
    }
    names = [re.split(r"[<>=\[]", requirement)[0] for requirement in project["dependencies"]]
    own = [
        "onnx",
        "numpy",
        "jsonschema",
        "jinja2",
        "typer",
        "rich",
        "safetensors",
    ]
    assert names == own
    pins = [p for p in (checkout / "constraints.txt").read_text(encoding="utf-8").splitlines() if p and p[0] != "#"]
    assert "torch==2.13.0" in pins
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][A-Za-z0-9.]*", pin) for pin in pins)


def test_tracked_files_name_no_machine(checkout: Path, tracked: list[str]) -> None:
    for name in tracked:
        if name.startswith("tests/") or name.endswith(".npz"):
            continue
        text = (checkout / name).read_text(encoding="utf-8", errors="ignore")
        assert not re.search(r"(?<![\w.])/(work|root|home|opt/pypi)/", text), name
