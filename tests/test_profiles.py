"""Device profiles: every figure has a source or says that it has none; `edgesmith devices` lists them all."""

from __future__ import annotations

import json
import re
import shutil
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from edgesmith.board import common
from edgesmith.exporters import targets
from edgesmith.plugins import PluginWarning
from edgesmith.profiles import device as devices

if TYPE_CHECKING:
    import subprocess

PROFILES = devices.all_devices()
WANTED = (
    [f"iphone{n}" for n in range(12, 18)]
    + [f"iphone{n}pro" for n in range(12, 18)]
    + ["m1", "m2", "m3", "m4"]
    + ["jetson-nano", "jetson-xavier-nx", "jetson-orin-nano", "jetson-orin-nx", "jetson-agx-orin", "jetson-thor"]
    + ["rtx2080", "rtx3080", "rtx4070", "rtx5080", "rpi4", "rpi5", "galaxy-s23", "galaxy-s24", "galaxy-s25"]
)
UNITS = {"tflops", "tops", "gb_s", "gb", "ghz"}


@pytest.mark.parametrize("name", sorted(PROFILES.keys() - {"host-gpu"}))  # which is whatever this machine has
def test_every_figure_says_where_it_is_from_in_one_way(name: str) -> None:
    profile = PROFILES[name]
    figures = {**profile.peak, **profile.memory, **profile.clocks}
    assert figures
    for figure_name, figure in figures.items():
        said = [bool(figure.source), bool(figure.derived), bool(figure.unsourced)]
        assert sum(said) == 1, figure_name
        assert figure.value is not None or figure.unsourced, figure_name
        assert figure.value is None or figure.value > 0, figure_name
        assert any(figure_name.endswith(f"_{unit}") for unit in UNITS), figure_name


@pytest.mark.parametrize("name", sorted(PROFILES))
def test_every_device_takes_targets_that_exist_and_is_reached_in_a_known_way(name: str) -> None:
    profile = PROFILES[name]
    assert profile.targets
    assert set(profile.targets) <= set(targets.all_targets())
    assert profile.reach in {"ssh", "adb", "mac", "mac or ssh", "itself"}
    assert not profile.models or profile.reach == "adb"
    assert not (profile.systems and not profile.systems.source)


def test_the_devices_that_people_ask_for_are_there() -> None:
    assert set(WANTED) <= set(PROFILES)


def test_phones_of_one_chip_have_its_figures() -> None:
    of: dict[str, set[float | None]] = {}
    for profile in PROFILES.values():
        if profile.reach == "mac":
            for name in ("peak npu_fp16_tflops", "memory bandwidth_gb_s"):
                table, key = name.split()
                of.setdefault(f"{profile.soc} {name}", set()).add(getattr(profile, table)[key].value)
    assert len(of) > 10
    assert {key: values for key, values in of.items() if len(values) > 1} == {}


def test_no_profile_has_a_table_that_nobody_reads() -> None:
    known = {"title", "soc", "targets", "reach", "models", "fit", "systems", "cuda", "cpu", "peak", "memory", "clocks"}
    for name in PROFILES:
        path = Path(devices.__file__).with_name(f"{name}.toml")
        assert set(tomllib.loads(path.read_text(encoding="utf-8"))) <= known, path.name


@pytest.mark.wheel
def test_devices_lists_all_of_them_and_the_machine_itself(
    edgesmith: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    shown = edgesmith("devices").stdout
    assert re.search(r"^ +host ", shown, re.MULTILINE)
    for name in PROFILES:
        assert name in shown
    rows = json.loads(edgesmith("devices", "--json").stdout)["devices"]
    assert [row["name"] for row in rows] == ["host", *PROFILES]
    assert rows[1 + list(PROFILES).index("iphone15")]["peak"]["npu_fp16_tflops"]["value"] == 17.0


def test_what_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    from edgesmith.cli.devices import _reached

    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(sys, "platform", "linux")
    assert _reached(PROFILES["galaxy-s24"]) == "adb: not here"
    assert _reached(PROFILES["rpi5"]) == "ssh: not here"
    assert _reached(PROFILES["iphone15"]) == "a Mac: not here"
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    assert _reached(PROFILES["galaxy-s24"]) == "adb"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert _reached(PROFILES["iphone15"]) == "this Mac"
    monkeypatch.setattr(common, "processor", lambda: "Apple M3")
    assert _reached(PROFILES["m3"]) == "itself: --device mac"
    assert _reached(PROFILES["m4"]) == "ssh"


BOARD = """
title = "Board 7"
soc = "S7"
targets = ["onnx"]
[memory]
bandwidth_gb_s = {value = 12.5, source = "its manual"}
"""
Install = Callable[..., None]


@pytest.mark.parametrize(("attribute", "found"), [("", ["board7", "board8"]), (":board8", ["board8"])])
def test_devices_of_another_package_are_listed_last(attribute: str, found: list[str], install: Install) -> None:
    files = {"boards/__init__.py": "", "boards/board7.toml": BOARD, "boards/board8.toml": BOARD}
    install("boards", None, group="edgesmith.devices", files=files, boards=attribute)
    listed = devices.all_devices()
    assert list(listed) == [*PROFILES, *found]
    assert listed["board8"].memory["bandwidth_gb_s"].value == 12.5
    assert devices.get("board8").title == "Board 7"


@pytest.mark.parametrize(
    ("name", "facts", "sentence"),
    [
        ("rpi5", BOARD, "boards of boards 1.0 has a device rpi5, and so has Raspberry Pi 5"),
        (
            "board7",
            BOARD.replace("targets", "formats"),
            "boards of boards 1.0 is wrong in board7 (board7.toml has 'formats', which is none of name, title",
        ),
        ("board7", "title", "boards of boards 1.0 does not load ("),
    ],
)
def test_a_device_that_is_wrong_is_one_sentence_and_the_others_are_there(
    name: str, facts: str, sentence: str, install: Install
) -> None:
    files = {"boards/__init__.py": "", f"boards/{name}.toml": facts}
    install("boards", None, group="edgesmith.devices", files=files, mine="")
    with pytest.warns(PluginWarning, match=re.escape(f"plugin 'mine' of edgesmith.devices is left out: {sentence}")):
        assert devices.all_devices() == PROFILES


def test_a_device_package_that_is_not_there_is_one_sentence(install: Install) -> None:
    install("boards", None, group="edgesmith.devices", mine="")
    with pytest.warns(PluginWarning, match=r"does not load \(ModuleNotFoundError: No module named 'boards'\)"):
        assert devices.all_devices() == PROFILES
