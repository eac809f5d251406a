"""Power modes, on stand-ins: folders laid out as a system's own, and commands that print what systems' do.

No Jetson, Mac or phone has been met by any of this.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from edgesmith.bench import measure, measured, runner, verdict
from edgesmith.exporters.kit import build as board
from edgesmith.tests.test_bench import noisy

CPU = "sys/devices/system/cpu"

STATUS = {"var/lib/nvpmodel/status": "pmode:0002 fmode:quiet"}
CONF = {
    "etc/nvpmodel.conf": "# < POWER_MODEL ID=2 NAME=NOTE >\n< POWER_MODEL ID=0 NAME=15W >\n"
    "< POWER_MODEL ID=2 NAME=MAXN_SUPER >"
}
QUERY = "NV Fan Mode:quiet\nNV Power Mode: MODE_15W_DESKTOP\n7\nNVPM ERROR: failed to read PARAM EMC: ARG MAX_FREQ"
PMSET = (
    "System-wide power settings:\nCurrently in use:\n standby              1\n {}         {}\n womp                 1"
)


def lay(root: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{content}\n")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for a system's files; no command is found but those that a test puts into `bin` beside it."""
    folder = tmp_path / "root"
    folder.mkdir()
    for module in (runner, board):
        monkeypatch.setattr(module, "ROOT", folder)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return folder


def command(root: Path, name: str, *lines: str) -> None:
    """A stand-in for a command."""
    path = root.parent / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(("#!/bin/sh", *lines, "")))
    path.chmod(0o755)


def prints(root: Path, name: str, text: str) -> None:
    command(root, name, "/bin/cat <<'END'", text, "END")


# power mode


@pytest.mark.parametrize("module", [runner, board])
@pytest.mark.parametrize(
    ("files", "commands", "expected"),
    [
        ({}, {}, None),
        ({}, {"nvpmodel": "NV Power Mode: MAXN\n0"}, "MAXN"),
        (STATUS | CONF, {"nvpmodel": QUERY}, "MODE_15W_DESKTOP"),
        (STATUS | CONF, {}, "MAXN_SUPER"),
        (STATUS, {}, "nvpmodel 2"),
        (STATUS | CONF, {"nvpmodel": "NVPM ERROR: not supported"}, "MAXN_SUPER"),
        ({}, {"pmset": PMSET.format("lowpowermode", 1)}, "low power"),
        ({}, {"pmset": PMSET.format("powermode", 0)}, "automatic"),
        ({}, {"pmset": PMSET.format("powermode", 2)}, "high power"),
        ({}, {"pmset": " sleep                1"}, None),
        ({"system/build.prop": ""}, {"settings": "1"}, "battery saver on"),
        ({"system/build.prop": "", f"{CPU}/cpu0/cpufreq/scaling_governor": "walt"}, {"settings": "0"},
         "battery saver off, governor walt"),
        ({"system/build.prop": ""}, {"settings": "null"}, None),
        ({}, {"settings": "1"}, None),
        ({f"{CPU}/cpu{i}/cpufreq/scaling_governor": "ondemand" for i in range(4)}, {}, "governor ondemand"),
        ({f"{CPU}/cpu0/cpufreq/scaling_governor": "powersave", f"{CPU}/cpu1/cpufreq/scaling_governor": "performance",
          "sys/firmware/acpi/platform_profile": "balanced", f"{CPU}/intel_pstate/no_turbo": "1"}, {},
         "balanced, governor performance and powersave, no boost"),
        ({f"{CPU}/intel_pstate/no_turbo": "0"}, {}, None),
        ({f"{CPU}/cpufreq/boost": "0"}, {}, "no boost"),
        ({f"{CPU}/cpufreq/boost": "1"}, {}, None),
    ],
)  # fmt: skip
def test_a_power_mode_is_what_the_system_says_and_none_where_it_says_nothing(
    module: ModuleType, files: dict[str, str], commands: dict[str, str], expected: str | None, root: Path
) -> None:
    lay(root, files)
    for name, text in commands.items():
        prints(root, name, text)
    assert module.power_mode() == expected


def test_a_command_that_fails_or_hangs_shows_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "TOLD_S", 0.2)
    command(root, "nvpmodel", "exec /bin/sleep 600")
    start = time.perf_counter()
    assert runner.power_mode() is None
    assert time.perf_counter() - start < 60
    command(root, "nvpmodel", "echo NV Power Mode: 15W", "exit 3")
    assert runner.power_mode() is None
    assert runner.told("no such command") == ""


def test_a_record_has_the_power_mode_and_another_is_not_comparable(root: Path) -> None:
    plain = measure.this_machine()
    assert plain.power_mode is None
    lay(root, STATUS | CONF)
    assert measure.this_machine() == replace(plain, power_mode="MAXN_SUPER")
    found = verdict.compare(replace(noisy(1.0), device=plain), replace(noisy(1.0), device=measure.this_machine()))
    assert found.reason == "power mode differs: not known and MAXN_SUPER"
    kept = next(measured.condense(replace(noisy(1.0), device=measure.this_machine())))
    assert ", MAXN_SUPER, " in measured.describe_device(kept)
