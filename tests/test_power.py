"""Power modes and energy, on stand-ins: folders laid out as a system's own, and commands that print what systems' do.

No Jetson, Mac or phone, and no counter of RAPL's, has been met by any of this.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from test_bench import noisy

from edgesmith import cli
from edgesmith.bench import measure, measured, measurement, runner, verdict
from edgesmith.bench.measurement import Energy, Metered
from edgesmith.bench.report.page import write_report
from edgesmith.bench.transport.local import Local
from edgesmith.board import common
from edgesmith.board.join import join
from edgesmith.errors import INCONCLUSIVE_CODE, SLOWER_CODE, BadInput
from edgesmith.exporters.artifact import Artifact
from edgesmith.exporters.tensorrt.kit import build

CPU = "sys/devices/system/cpu"
INA = "sys/bus/i2c/drivers/ina3221"

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


def joined(source: ModuleType) -> ModuleType:
    """A file for boards as it is there."""
    module = ModuleType(f"joined_{Path(str(source.__file__)).stem}")
    exec(compile(join(Path(str(source.__file__))), module.__name__, "exec"), vars(module))
    return module


FILES = [joined(runner), joined(build)]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for a system's files; no command is found but those that a test puts into `bin` beside it."""
    folder = tmp_path / "root"
    folder.mkdir()
    for module in (common, runner, *FILES):
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


@pytest.mark.parametrize("module", FILES, ids=lambda module: module.__name__)
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
    monkeypatch.setattr(common, "ANSWER_S", 0.2)
    command(root, "nvpmodel", "exec /bin/sleep 600")
    start = time.perf_counter()
    assert common.power_mode() is None
    assert time.perf_counter() - start < 60
    command(root, "nvpmodel", "echo NV Power Mode: 15W", "exit 3")
    assert common.power_mode() is None
    assert common.ask_system("no such command") == ""


def test_a_record_has_the_power_mode_and_another_is_not_comparable(root: Path) -> None:
    plain = measure.this_machine()
    assert plain.power_mode is None
    lay(root, STATUS | CONF)
    assert measure.this_machine() == replace(plain, power_mode="MAXN_SUPER")
    found = verdict.compare(replace(noisy(1.0), device=plain), replace(noisy(1.0), device=measure.this_machine()))
    assert found.reason == "power mode differs: not known and MAXN_SUPER"
    kept = next(measured.condense(replace(noisy(1.0), device=measure.this_machine())))
    assert ", MAXN_SUPER, " in measured.describe_device(kept)


# meters


def zones(root: Path, *named: tuple[str, str, int]) -> None:
    for zone, name, microjoules in named:
        folder = f"sys/class/powercap/intel-rapl:{zone}"
        lay(root, {f"{folder}/name": name, f"{folder}/energy_uj": str(microjoules)})
        lay(root, {f"{folder}/max_energy_range_uj": "262143328850"})


def test_packages_and_their_memory_are_counted_and_no_part_twice(root: Path) -> None:
    zones(root, ("0", "package-0", 5_000_000), ("0:0", "core", 1), ("0:1", "dram", 700_000), ("1", "psys", 1))
    found = runner.meter("onnxruntime")
    assert found is not None
    source, start = found
    assert source == "package-0 + dram (RAPL)"
    stop = start()
    zones(root, ("0", "package-0", 6_500_000), ("0:0", "core", 9_000_000), ("0:1", "dram", 900_000))
    assert stop() == pytest.approx(1.7)


def test_a_counter_that_goes_round_goes_on_at_its_range(root: Path) -> None:
    zones(root, ("0", "package-0", 262143_000_000))
    stop = runner.count_joules(runner.rapl())
    zones(root, ("0", "package-0", 2_000_000))
    assert stop() == pytest.approx(2.32885)


def test_a_counter_that_only_root_reads_is_no_meter(root: Path) -> None:
    zones(root, ("0", "package-0", 1))
    counter = root / "sys/class/powercap/intel-rapl:0/energy_uj"
    stop = runner.count_joules(runner.rapl())
    counter.unlink()
    counter.mkdir()  # opening it fails, also for root
    assert runner.meter("onnxruntime") is None
    assert stop() is None


def hwmon(root: Path, device: str, **rails: tuple[int, int]) -> None:
    """An INA3221 of the kernel's own driver: millivolts and milliamperes of up to three rails."""
    folder = f"{INA}/{device}/hwmon/hwmon3"
    for channel, (label, (millivolts, milliamperes)) in enumerate(rails.items(), 1):
        lay(root, {f"{folder}/in{channel}_label": label, f"{folder}/in{channel}_input": str(millivolts)})
        lay(root, {f"{folder}/curr{channel}_input": str(milliamperes)})
    lay(root, {f"{folder}/in7_label": "sum of shunt voltages", f"{folder}/in7_input": "3"})


def orin_nano(root: Path, milliamperes: int = 1200) -> None:
    hwmon(root, "1-0040", VDD_IN=(5000, milliamperes), VDD_CPU_GPU_CV=(5000, 400), VDD_SOC=(5000, 300))


def agx_orin(root: Path) -> None:
    hwmon(root, "1-0040", VDD_GPU_SOC=(20000, 100), VDD_CPU_CV=(20000, 50), VIN_SYS_5V0=(5000, 200))
    hwmon(root, "1-0041", NC=(0, 0), VDDQ_VDD2_1V8AO=(5000, 80))


def nano(root: Path) -> None:
    folder = "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0"
    for channel, (label, milliwatts) in enumerate((("POM_5V_IN", 4500), ("POM_5V_GPU", 900), ("POM_5V_CPU", 800))):
        lay(root, {f"{folder}/rail_name_{channel}": label, f"{folder}/in_power{channel}_input": str(milliwatts)})


def thor(root: Path) -> None:
    hwmon(root, "2-0040", VDD_GPU=(5000, 100), VDD_CPU_SOC_MSS=(5000, 100), VIN_SYS_5V0=(5000, 100))


@pytest.mark.parametrize(
    ("lay_out", "names", "watts"),
    [
        (orin_nano, ["VDD_IN"], 6.0),
        (agx_orin, ["VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"], 4.0),
        (nano, ["POM_5V_IN"], 4.5),
        (thor, [], 0.0),
    ],
)
def test_rails_of_a_board_add_up_once_and_rails_that_nobody_explains_are_left_out(
    lay_out: Callable[[Path], None], names: list[str], watts: float, root: Path
) -> None:
    lay_out(root)
    found = runner.rails()
    assert list(found) == names
    assert runner.watts(found) == pytest.approx(watts)


def test_a_rail_that_is_switched_off_is_no_meter(root: Path) -> None:
    orin_nano(root)
    (root / INA / "1-0040/hwmon/hwmon3/curr1_input").unlink()
    assert runner.meter("tensorrt") is None


def test_energy_is_the_area_under_the_power(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[float] = []

    def rising(_: object) -> float:
        looks.append(time.perf_counter())
        return 3.0 * looks[-1]

    monkeypatch.setattr(runner, "watts", rising)
    monkeypatch.setattr(runner, "BETWEEN_S", 0.02)
    stop = runner.integrate({})
    time.sleep(0.3)
    joules = stop()
    assert len(looks) > 4
    assert joules == pytest.approx(1.5 * (looks[-1] ** 2 - looks[0] ** 2), rel=0.05)  # the area of a straight line


def test_power_that_cannot_be_read_all_the_time_is_no_energy(root: Path) -> None:
    orin_nano(root)
    stop = runner.integrate(runner.rails())
    (root / INA / "1-0040/hwmon/hwmon3/curr1_input").unlink()
    assert stop() is None


def test_a_processors_counters_say_nothing_of_a_card(root: Path) -> None:
    zones(root, ("0", "package-0", 1))
    assert runner.meter("onnxruntime") is not None
    assert runner.meter("tensorrt") is None
    orin_nano(root)
    for runtime in ("onnxruntime", "tensorrt", "tensorrt_rtx"):
        found = runner.meter(runtime)
        assert found is not None
        assert found[0] == "rails VDD_IN (INA3221)"


# bench


@pytest.fixture
def metered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Runners that see a stand-in for an Orin Nano's files, which shows 6 W at all times."""
    root = tmp_path / "root"
    orin_nano(root)
    see(root, monkeypatch)
    return root


def see(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let runners see a folder's files as the system's."""
    source = join(Path(runner.__file__))
    assert source.count('ROOT = Path("/")') == 1

    def write(self: Local, folder: Path) -> Path:
        file = folder / "runner.py"
        file.write_text(source.replace('ROOT = Path("/")', f"ROOT = Path({str(root)!r})"))
        return file

    monkeypatch.setattr(Local, "write_runner", write)


def test_bench_has_joules_per_inference_where_the_board_has_a_meter(
    metered: Path, export_small: Callable[..., Artifact], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, record = str(export_small("onnx").path), tmp_path / "record.json"
    options = ["--seconds", "0.1", "--launches", "1", "--out", str(record)]
    assert cli.run(["bench", file, file, *options]) == 0
    shown = capsys.readouterr().out
    assert "energy" in shown.splitlines()[1] + shown.splitlines()[2]  # a column, narrow as the terminal
    assert "share of rails VDD_IN (INA3221), with all that idles" in shown
    made = measurement.read(record)
    assert made.complete
    assert json.loads(record.read_text())["schema"] == 3
    for subject in made.subjects:
        energy = subject.energy
        assert energy is not None
        assert len(energy.runs) == measure.ENERGY_RUNS
        assert energy.watts == pytest.approx(6.0, rel=0.2)
        assert energy.joules == pytest.approx(median_of(energy), rel=1e-9)
    assert cli.run(["compare", file, file, *options]) in (0, SLOWER_CODE, INCONCLUSIVE_CODE)  # which has no use for it
    assert all(subject.energy is None for subject in measurement.read(record).subjects)


def median_of(energy: Energy) -> float:
    return sorted(run.joules / run.calls for run in energy.runs)[len(energy.runs) // 2]


def test_a_bench_interrupted_while_it_meters_keeps_its_launches(
    metered: Path, export_small: Callable[..., Artifact], tmp_path: Path
) -> None:
    def on_progress(done: int, total: int) -> None:
        if done == 3:  # cold, launch, a run of the meter
            raise KeyboardInterrupt

    path, said = tmp_path / "record.json", list[str]()
    made = measure.measure(
        [export_small("onnx").path],
        measure.Settings(seconds=0.1, launches=1, energy=True),
        reports=measure.Reports(path, on_progress, said.append),
    )
    assert (made.complete, len(made.launches), made.subjects[0].energy) == (True, 1, None)
    assert [one for one in said if "is busy" not in one] == ["no energy: interrupted while it was metered"]
    assert measurement.read(path) == made


def test_a_host_without_a_meter_is_asked_for_no_energy(
    export_small: Callable[..., Artifact], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    see(tmp_path, monkeypatch)
    steps: list[tuple[int, int]] = []
    made = measure.measure(
        [export_small("onnx").path],
        measure.Settings(seconds=0.1, launches=1, energy=True),
        reports=measure.Reports(tmp_path / "record.json", lambda *step: steps.append(step)),
    )
    assert made.complete
    assert steps == [(0, 2), (1, 2), (2, 2)]
    assert "energy" not in json.loads((tmp_path / "record.json").read_text())["subjects"][0]


# records


ENERGY = Energy("rails VDD_IN (INA3221)", (Metered(100, 2.0, 12.0), Metered(90, 2.0, 12.6), Metered(110, 2.0, 11.0)))


def test_energy_is_kept_and_records_from_before_it_are_read(tmp_path: Path) -> None:
    made = noisy(1.0)
    made = replace(made, subjects=(replace(made.subjects[0], energy=ENERGY), made.subjects[1]))
    assert (ENERGY.joules, ENERGY.watts) == (0.12, 6.0)
    path = tmp_path / "record.json"
    measurement.write(made, path)
    assert measurement.read(path) == made
    record = json.loads(path.read_text())
    record["schema"] = 1
    del record["subjects"][0]["energy"]
    path.write_text(json.dumps(record))
    assert measurement.read(path) == noisy(1.0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"joules": -1.0}, "/subjects/0/energy/runs/0/joules"),
        ({"calls": 0}, "/subjects/0/energy/runs/0/calls"),
        ({"joules": 424242}, "it holds 1e999, and numbers are finite"),
    ],
)
def test_energy_that_no_meter_shows_is_refused(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    made = noisy(1.0)
    path = tmp_path / "record.json"
    measurement.write(replace(made, subjects=(replace(made.subjects[0], energy=ENERGY), made.subjects[1])), path)
    record = json.loads(path.read_text())
    record["subjects"][0]["energy"]["runs"][0] |= change
    path.write_text(json.dumps(record).replace("424242", "1e999"))
    with pytest.raises(BadInput, match=said):
        measurement.read(path)


def test_the_page_shows_energy_where_there_is_any(tmp_path: Path) -> None:
    made = noisy(1.0)
    folder = tmp_path / "made"
    measurement.write(made, folder / "record.json")
    write_report(folder, tmp_path / "page.html")
    assert "energy" not in (tmp_path / "page.html").read_text().lower()
    measurement.write(
        replace(made, subjects=(replace(made.subjects[0], energy=ENERGY), made.subjects[1])), folder / "record.json"
    )
    write_report(folder, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    for part in ("energy, mJ", ">120<", ">6<", "share of rails VDD_IN (INA3221)"):
        assert part in page
