"""Macs and iPhones: with stand-ins, as neither was ever asked. What is attached to this machine.

The coremltools that runs is the real one. Below it are tests/standins/mac, in the place of its binding to Core ML, and
tests/xcode_stand_in.py, in the place of Xcode's programs and of the app on the phone.
"""

from __future__ import annotations

import inspect
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from edgesmith.bench import measurement, runner
from edgesmith.bench.transport import attached, parse
from edgesmith.board.join import join
from edgesmith.errors import BackendMissing, BadInput, DeviceFailed
from edgesmith.exporters import targets
from edgesmith.exporters.artifact import Artifact

HERE = Path(__file__).parent
Run = Callable[..., "subprocess.CompletedProcess[str]"]
UDID = "00008130-001234560E12001C"
SIGNED = ["--sign", "team=ABCDE12345", "--sign", "bundle=com.example.runner"]


def one_sentence(done: subprocess.CompletedProcess[str], code: int) -> str:
    (line,) = done.stderr.strip().splitlines()
    assert (done.returncode, line[:11]) == (code, "edgesmith: "), (done.returncode, line)
    return line


@pytest.fixture
def package(export_small: Callable[..., Artifact]) -> Path:
    return export_small("coreml").path


@pytest.fixture
def mac(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine plays a Mac: to edgesmith, and to coremltools in the processes that it starts. Export before."""
    if sys.platform == "darwin":
        pytest.skip("this is a Mac, whose own Core ML stands where the stand-in would")
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setenv("PYTHONPATH", str(HERE / "standins" / "mac"))


def listed(name: str = "Jo's iPhone", udid: str = UDID, model: str = "iPhone 15 Pro", **changed: Any) -> dict[str, Any]:
    """An iPhone as `xcrun devicectl list devices` shows it, as far as edgesmith and coremltools read it."""
    facts = {
        "pairingState": "paired",
        "transportType": "wired",
        "tunnelState": "disconnected",
        "developerModeStatus": "enabled",
    } | changed
    return {
        "identifier": f"5B4C4E0B-0000-4000-8000-{udid[-12:]}",
        "connectionProperties": {key: facts[key] for key in ("pairingState", "transportType", "tunnelState")},
        "deviceProperties": {
            "name": name,
            "osVersionNumber": "18.1",
            "osBuildUpdate": "22B83",
            "developerModeStatus": facts["developerModeStatus"],
        },
        "hardwareProperties": {
            "deviceType": facts.get("deviceType", "iPhone"),
            "marketingName": model,
            "productType": "iPhone16,1",
            "udid": udid,
        },
    }


Phones = Callable[..., Path]


@pytest.fixture
def phones(mac: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Phones:
    """Connect iPhones to the Mac that this machine plays. Returns the folder that is the phone."""
    folder, programs = tmp_path / "phone", tmp_path / "programs"

    def connect(*entries: dict[str, Any]) -> Path:
        for place in (folder / "xcode", programs):
            place.mkdir(parents=True, exist_ok=True)
        for place, name in ((programs, "xcrun"), (programs, "xcodebuild"), (folder / "xcode", "devicectl")):
            stand_in = f'exec {sys.executable} -S -E {HERE / "xcode_stand_in.py"} {name} "$@"'
            (place / name).write_text(f"#!/bin/sh\n{stand_in}\n")
            (place / name).chmod(0o755)
        (folder / "devices.json").write_text(json.dumps({"result": {"devices": list(entries)}}))
        monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
        monkeypatch.setenv("STANDIN_PHONE", str(folder))
        return folder

    return connect


# a Mac


def test_a_mac_times_core_ml_by_its_own_count_on_the_units_that_are_asked_for(
    package: Path, mac: None, edgesmith: Run, tmp_path: Path
) -> None:
    quick = ["--seconds", "0.1", "--launches", "1", "--device", "mac", "--json"]
    done = edgesmith("bench", str(package), *quick, "-o", "all.json")
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)["subjects"]
    assert (row["runtime"], row["compute_units"], row["steady_launches"]) == ("coremltools", "ALL", 1)
    assert row["cold"]["memory_mib"] > 1
    made = measurement.read(tmp_path / "all.json")
    assert (made.device.name, made.runtimes.keys()) == ("mac", {"coremltools"})
    samples = [ms for launch in made.samples(0) for ms in launch]
    assert min(samples) >= 0.5
    assert statistics.median(samples) < 5  # what coremltools does with the outputs takes that long
    assert edgesmith("bench", str(package), *quick, "--compute-units", "cpu_only", "-o", "cpu.json").returncode == 0
    slower = measurement.read(tmp_path / "cpu.json")
    assert min(slower.samples(0)[0]) >= 1.0
    compared = edgesmith("compare", "all.json", "cpu.json")
    assert compared.returncode == 10
    assert "not comparable: compute units differs: ALL and CPU_ONLY" in compared.stdout
    assert edgesmith("profile", "all.json", "cpu.json", "--folder", "kept").returncode == 0
    names = sorted(path.relative_to(tmp_path / "kept").as_posix() for path in (tmp_path / "kept").rglob("*.json"))
    assert [name.split("fp16")[1] for name in names] == [".cpu_only.json", ".json"]
    shown = edgesmith("profile", "--folder", "kept").stdout
    assert "coreml, CPU_ONLY" in shown


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        ([], 4, "Core ML is part of macOS, and this is Linux: time it on a Mac, --device ssh://user@mac"),
        (["--device", "mac"], 4, "Core ML is part of macOS, and this is Linux"),
        (["--device", "mac:iphone15"], 4, "--device mac:IPHONE takes a Mac, and this is Linux"),
        (["--compute-units", "tpu"], 2, "must be one of ALL, CPU_ONLY, CPU_AND_GPU, CPU_AND_NE, got 'TPU'"),
        (["--device", "ssh://x", "--threads", "2"], 2, "--threads: Core ML starts as many as it likes, got 2"),
        (["--device", "ssh://x", "--ops"], 2, "--ops: coremltools does not time operators"),
        (["--sign", "team=A"], 2, "--sign is for --device mac:IPHONE, got --device host"),
        (["--device", "mac:X", "--sign", "team=$(id)"], 2, "--sign must be team=ID, bundle=com.example.runner"),
        (["--device", "mac:X", "--sign", "colour=red"], 2, "got 'colour=red'"),
        (["--device", "mac:X", "--python", "python3"], 2, "are for devices that are not this machine"),
    ],
)
def test_what_cannot_be_is_one_sentence_and_nothing_is_written(
    options: list[str], code: int, said: str, package: Path, edgesmith: Run, tmp_path: Path
) -> None:
    if platform.system() == "Darwin" and code == 4:
        pytest.skip("this is a Mac")
    before = sorted(tmp_path.iterdir())
    assert said in one_sentence(edgesmith("bench", str(package), *options), code)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.skipif(sys.platform == "darwin", reason="this is a Mac")
def test_other_files_take_no_compute_units_and_no_mac(export_small: Callable[..., Artifact], edgesmith: Run) -> None:
    onnx = str(export_small("onnx").path)
    for options, code, said in (
        (["--compute-units", "all"], 2, "--compute-units is for coreml, and small-onnx-fp32 is for onnx"),
        (["--device", "mac:iphone15"], 2, "small-onnx-fp32 is for onnx, and an iPhone takes coreml"),
        (["--device", "mac"], 4, "--device mac takes a Mac, and this is Linux"),
    ):
        assert said.replace("small-", Path(onnx).name.removesuffix("onnx-fp32")) in one_sentence(
            edgesmith("bench", onnx, *options), code
        )


def test_doctor_says_who_times_what(edgesmith: Run) -> None:
    rows = {row["target"]: row for row in json.loads(edgesmith("doctor", "--json").stdout)["targets"]}
    assert rows["onnx"]["time"] == "yes (onnxruntime)"
    assert rows["coreai"]["time"].endswith("is an interpreter, whose times say nothing")
    if sys.platform != "darwin":
        assert rows["coreml"]["time"].startswith("no: Core ML is part of macOS, and this is Linux")


def test_inputs_are_what_a_package_describes() -> None:
    model_pb2 = pytest.importorskip("coremltools.proto.Model_pb2", reason="coremltools is not installed")
    spec = model_pb2.Model()
    wanted = {"half": (65552, "float16"), "single": (65568, "float32"), "double": (65600, "float64")}
    for name, (number, _) in (wanted | {"integers": (131104, "int32")}).items():
        array = spec.description.input.add(name=name).type.multiArrayType
        array.dataType = number
        array.shape.extend([1, 3])
    kinds = dict(spec.description.input[0].type.multiArrayType.ArrayDataType.items())
    assert {number for number, _ in wanted.values()} | {131104} <= set(kinds.values())
    for name, space in (("colours", "RGB"), ("grey", "GRAYSCALE")):
        image = spec.description.input.add(name=name).type.imageType
        image.width, image.height, image.colorSpace = 8, 4, image.ColorSpace.Value(space)
    feeds = runner.feeds_coremltools(runner.described_coremltools(spec), seed=0)
    assert {name: str(feeds[name].dtype) for name in wanted} == {name: kind for name, (_, kind) in wanted.items()}
    assert feeds["half"].shape == (1, 3)
    assert abs(feeds["half"]).min() > 0
    assert (str(feeds["integers"].dtype), feeds["integers"].any()) == ("int32", False)
    assert (feeds["colours"].size, feeds["colours"].mode, feeds["grey"].mode) == ((8, 4), "RGB", "L")
    two = spec.description.functions
    two.add(name="sequence").input.add(name="frames")
    two.add(name="step").input.add(name="frame")
    spec.description.defaultFunctionName = "step"
    assert [one.name for one in runner.described_coremltools(spec).input] == ["frame"]


def test_states_are_made_where_a_package_has_them(mac: None, tmp_path: Path) -> None:
    model_pb2 = pytest.importorskip("coremltools.proto.Model_pb2", reason="coremltools is not installed")
    spec = model_pb2.Model(specificationVersion=9)
    spec.mlProgram.version = 1
    array = spec.description.input.add(name="x").type.multiArrayType
    array.dataType = 65568
    array.shape.extend([1, 2])
    spec.description.state.add(name="s")
    place = tmp_path / "stateful.mlpackage" / "Data" / "com.apple.CoreML"
    place.mkdir(parents=True)
    (place / "model.mlmodel").write_bytes(spec.SerializeToString())
    entry = {
        "path": "com.apple.CoreML/model.mlmodel",
        "name": "model.mlmodel",
        "author": "com.apple.CoreML",
        "description": "",
    }
    manifest = {"fileFormatVersion": "1.0.0", "itemInfoEntries": {"1": entry}, "rootModelIdentifier": "1"}
    (tmp_path / "stateful.mlpackage" / "Manifest.json").write_text(json.dumps(manifest))
    plan = {"models": [{"file": str(tmp_path / "stateful.mlpackage"), "runtime": "coremltools"}]}
    plan |= {"threads": 1, "cores": None, "seed": 0, "seconds": 0, "slot_ms": 1.0}
    (tmp_path / "runner.py").write_text(join(Path(runner.__file__)))
    command = [sys.executable, "-P", str(tmp_path / "runner.py")]
    done = subprocess.run(command, input=json.dumps(plan), capture_output=True, text=True, check=False)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["event"] for event in events] == ["start", "open", "end"], done.stderr
    assert "noise of a library" in done.stderr


# coremltools, as it is


def test_coremltools_is_called_as_its_signatures_say() -> None:
    pytest.importorskip("coremltools")
    from coremltools import ComputeUnit
    from coremltools.models import MLModel
    from coremltools.models.ml_program.experimental import async_wrapper, remote_device

    def takes(function: Callable[..., Any], *arguments: object, **named: object) -> None:
        inspect.signature(function).bind(*arguments, **named)

    assert {unit.name for unit in ComputeUnit} == set(targets.get("coreml").compute_units)
    takes(MLModel, "path", compute_units=ComputeUnit.ALL)
    takes(MLModel.predict, "self", {}, None)
    takes(MLModel.make_state, "self")
    assert isinstance(MLModel.last_predict_duration_in_nano_seconds, property)
    takes(remote_device.Device.get_devices)
    takes(remote_device.Device.prepare_for_model_debugging, "self", credentials=None, working_directory=Path())
    assert inspect.iscoroutinefunction(remote_device.Device.prepare_for_model_debugging)
    assert {"udid", "os_version", "os_build_number", "state", "session"} <= {
        f.name for f in fields(remote_device.Device)
    }
    takes(remote_device._AppSession.stop, "self")
    named = {"development_team": "", "provisioning_profile_uuid": None, "bundle_identifier": None}
    takes(remote_device.AppSigningCredentials, **named)
    assert remote_device.DeviceState.CONNECTED
    wrapper = async_wrapper.MLModelAsyncWrapper
    takes(wrapper.from_spec_or_path, spec_or_path="", weights_dir="", compute_units=ComputeUnit.ALL, device=None)
    for name in ("load", "unload", "predict"):
        assert inspect.iscoroutinefunction(getattr(async_wrapper.RemoteMLModelAsyncWrapper, name))
    for name in ("load_duration_in_nano_seconds", "last_predict_duration_in_nano_seconds"):
        assert isinstance(getattr(async_wrapper.RemoteMLModelAsyncWrapper, name), property)
    assert remote_device._AppBuilder.Error.__qualname__ == "_AppBuilder.Error"


# an iPhone


def test_an_iphone_gives_the_same_record_by_the_apps_own_count(
    package: Path, phones: Phones, edgesmith: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    phone = phones(listed())
    monkeypatch.setattr(tempfile, "tempdir", None)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    options = ["--device", "mac:iphone15pro", *SIGNED, "--compute-units", "cpu-only", "-o", "r.json"]
    quick = ["--seconds", "0.1", "--launches", "1"]
    done = edgesmith("bench", str(package), "--against", str(package), *options, *quick)
    assert done.returncode == 0, done.stderr
    assert "iphone15pro: A17 Pro, CPU_ONLY" in done.stdout
    made = measurement.read(tmp_path / "r.json")
    assert (made.device.name, made.device.cpu, made.device.system) == ("iphone15pro", "A17 Pro", "iOS 18.1 (22B83)")
    assert made.complete
    for i, subject in enumerate(made.subjects):
        assert subject.cold == measurement.Cold(load_ms=7.0, first_ms=1.0, memory_mib=None)
        assert made.samples(i) == [[1.0] * len(made.samples(i)[0])]
    (launch,) = made.launches
    assert all(len(slot.samples_ms) == 1 for slot in launch.slots)
    assert [warm.calls for warm in launch.warm] == [3, 3]
    did = (phone / "log").read_text().splitlines()
    assert did.count("build ABCDE12345 com.example.runner") == 1
    assert did.count("install") == did.count("launch") == 4  # to ask, two cold starts, one launch of both
    assert did.count("Load CPU_ONLY") == did.count("Unload CPU_ONLY") == 4
    until = time.monotonic() + 10
    while list((phone / "running").iterdir()):  # the app that was launched last is about to end
        assert time.monotonic() < until
        time.sleep(0.02)
    assert not list((tmp_path / "tmp").glob("edgesmith-*"))


def test_an_iphone_that_stops_keeps_whole_launches(
    package: Path, phones: Phones, edgesmith: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    phones(listed())
    monkeypatch.setenv("STANDIN_FAILS", "Prediction:40")  # cold 1, each of 9 launches 1 + 3 to 10 + at least 1
    options = ["--device", f"mac:{UDID}", *SIGNED, "--seconds", "0.1", "--launches", "9", "-o", "r.json"]
    said = one_sentence(edgesmith("bench", str(package), *options), 7)
    assert "iphone15pro does not do what coremltools asks of it (the phone does no Prediction) while measuring" in said
    kept = len(measurement.read(tmp_path / "r.json").launches)
    assert 1 <= kept < 9
    assert f"{kept} of 9 launches are in r.json" in said


def test_an_app_that_nobody_signs_is_a_sentence_about_signing(package: Path, phones: Phones, edgesmith: Run) -> None:
    phones(listed())
    said = one_sentence(edgesmith("bench", str(package), "--device", "mac:iPhone 15 Pro"), 4)
    assert "Xcode does not build and sign the app" in said
    assert "--sign team=TEAMID --sign bundle=com.example.runner" in said


OTHER = "00008130-0000000000000002"


@pytest.mark.parametrize(
    ("entries", "which", "found"),
    [
        ([listed()], "jo's iphone", UDID),
        ([listed(), listed("Mo's iPhone", OTHER)], "Mo's iPhone", OTHER),
        ([listed(), listed("Mo's iPhone", OTHER)], UDID.lower(), UDID),
        ([listed(tunnelState="unavailable"), listed("Mo's iPhone", OTHER)], "iphone15pro", OTHER),
        ([listed(model="iPhone 99")], "iphone 99", UDID),
        (
            [listed(), listed("Mo's iPhone", OTHER)],
            "iphone15pro",
            f"2 iPhones here are 'iphone15pro': say which, mac:{UDID}",
        ),
        ([listed()], "iphone12", rf"no iPhone here is 'iphone12'; this Mac knows Jo's iPhone (iPhone 15 Pro, {UDID})"),
        ([listed(deviceType="iPad")], "Jo's iPhone", "this Mac knows none: connect it, and trust this Mac on it"),
        ([listed(pairingState="unpaired")], UDID, "Jo's iPhone cannot be used: it is not paired"),
        ([listed(tunnelState="unavailable")], UDID, "Jo's iPhone cannot be used: it is not connected: plug it in"),
        ([listed(transportType=None)], UDID, "it is not connected: plug it in"),
        ([listed(developerModeStatus="disabled")], UDID, "its developer mode is off: Settings, Privacy & Security"),
    ],
)
def test_an_iphone_is_found_by_name_udid_or_model_where_it_is_ready(
    entries: list[dict[str, Any]], which: str, found: str, phones: Phones
) -> None:
    phones(*entries)
    if found in (UDID, OTHER):
        assert attached.find_iphone(which).udid == found
    else:
        with pytest.raises(DeviceFailed) as raised:
            attached.find_iphone(which)
        assert found in str(raised.value)


def test_a_mac_that_cannot_list_iphones_says_what_it_lacks(phones: Phones, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = phones(listed())
    monkeypatch.setenv("STANDIN_UNKNOWN", "1")
    with pytest.raises(
        BackendMissing, match=r"devicectl, which is not here: install Xcode 15 or later, .* xcode-select"
    ):
        attached.find_iphone(UDID)
    monkeypatch.delenv("STANDIN_UNKNOWN")
    (folder / "devices.json").write_text("{}")
    with pytest.raises(DeviceFailed, match=r"what devicectl lists is not understood \(KeyError: 'result'\)"):
        attached.find_iphone(UDID)
    monkeypatch.setattr(attached, "TIMEOUT_S", 0.05)
    monkeypatch.setenv("STANDIN_SLOW", "60")
    with pytest.raises(DeviceFailed, match=r"xcrun devicectl list does not answer within 0\.1 s"):
        attached.find_iphone(UDID)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(BackendMissing, match="there is no Xcode here: install Xcode 15 or later"):
        attached.find_iphone(UDID)


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("image_input", True, "takes an image, and coremltools has an iPhone take and give arrays alone"),
        ("labels", 2, "answers with labels, and coremltools has an iPhone take and give arrays alone"),
    ],
)
def test_what_the_app_cannot_take_is_refused_before_the_phone_is_asked(
    option: str, value: object, said: str, package: Path, phones: Phones, edgesmith: Run
) -> None:
    phone = phones(listed())
    manifest = json.loads((package / "manifest.json").read_text())
    manifest["target"]["options"][option] = value  # as exporting with it writes it
    (package / "manifest.json").write_text(json.dumps(manifest))
    assert said in one_sentence(edgesmith("bench", str(package), "--device", f"mac:{UDID}", *SIGNED), 2)
    assert not (phone / "log").exists()


def test_names_of_iphones_are_what_their_owners_call_them() -> None:
    address = parse("mac:Jo's  iPhone", signing=["profile=1234-AB"])
    assert (address.kind, address.name, address.signing) == ("iphone", "Jo's  iPhone", ("profile=1234-AB",))
    for device in ("mac:", "mac: ", "mac:a\nb", "mac//x"):
        with pytest.raises(BadInput, match="--device must be host, mac, mac:IPHONE, ssh"):
            parse(device)


# what is attached


def adb(folder: Path, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir()
    (folder / "adb").write_text(f"#!/bin/sh\n{line}\n")
    (folder / "adb").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_devices_lists_what_is_attached_with_what_stands_in_its_way(
    phones: Phones, edgesmith: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    phones(listed(), listed("Old iPhone", OTHER, "iPhone SE", tunnelState="unavailable"))
    adb(tmp_path / "adb", f'exec {sys.executable} {HERE / "adb_stand_in.py"} "$@"', monkeypatch)
    facts = json.loads(edgesmith("devices", "--json").stdout)
    rows = {row["device"]: (row["profile"], row["hindrance"]) for row in facts["attached"]}
    assert rows == {
        "adb:STANDIN": ("galaxy-s23", None),
        "adb:R5CX10ABCDE": (None, None),  # an Exynos, and the profile's Galaxy S24 has a Snapdragon
        "adb:R5CX10ABCDF": ("galaxy-s24", None),
        "adb:ZY22ABC": (None, "unauthorized: allow this computer on its screen"),
        "adb:0123456789ABCDEF": (None, "no permissions: this user may not use it: see adb's udev rules"),
        "adb:192.168.1.20:5555": (None, "offline: it does not answer adb: connect it again"),
        "adb:emulator-5554": (None, "recovery"),
        f"mac:{UDID}": ("iphone15pro", None),
        f"mac:{OTHER}": (None, "it is not connected: plug it in, and unlock it"),
    }
    for device in rows:
        parse(device)
    shown = edgesmith("devices").stdout
    for word in ("attached here", "Jo's iPhone: iPhone", f"mac:{UDID}", "iphone15pro", "--device ssh://user@host"):
        assert word in shown


def test_devices_says_what_could_not_be_asked_and_waits_for_nobody(
    edgesmith: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attached, "TIMEOUT_S", 0.2)
    adb(tmp_path / "slow", "sleep 60 & exec sleep 60", monkeypatch)
    notes = json.loads(edgesmith("devices", "--json").stdout)["notes"]
    assert "adb devices -l does not answer within 0.2 s" in notes
    if sys.platform != "darwin":
        assert f"iPhones are reached through a Mac, and this is {platform.system()}" in notes
    adb(tmp_path / "broken", "echo 'error: cannot bind' >&2; exit 1", monkeypatch)
    assert "adb lists no devices: cannot bind" in json.loads(edgesmith("devices", "--json").stdout)["notes"]
    monkeypatch.setattr(shutil, "which", lambda name: None)
    facts = json.loads(edgesmith("devices", "--json").stdout)
    assert facts["attached"] == []
    assert "Android devices are reached by adb, which is not here: install the platform tools" in facts["notes"]
    assert facts["notes"][-1].endswith("there is no ssh here: install openssh-client")
    assert "attached here: nothing that was found" in edgesmith("devices").stdout


def test_the_targets_of_devices_that_a_mac_reaches_are_timed_there() -> None:
    assert targets.get("onnx").cannot_time() is None
    assert "interpreter" in str(targets.get("coreai").cannot_time())
