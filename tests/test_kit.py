"""Kits: what they hold, and what becomes of them with tests/standins, which says that it is no TensorRT."""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import edgesmith
from edgesmith import cli, records
from edgesmith.bench import measure, measurement, runner, subjects
from edgesmith.bench.report.page import find, write_report
from edgesmith.bench.transport import Address
from edgesmith.bench.transport.local import Local
from edgesmith.board.common import Cuda, Refusal
from edgesmith.board.join import join
from edgesmith.errors import BackendMissing, BadInput, Unsupported, VerificationFailed
from edgesmith.exporters import artifact as artifacts
from edgesmith.exporters import figures as figures_of
from edgesmith.exporters import targets
from edgesmith.exporters.artifact import Artifact
from edgesmith.exporters.precision import table
from edgesmith.exporters.tensorrt import engine, kit
from edgesmith.exporters.tensorrt.kit import build as board
from edgesmith.exporters.verification.check import AcceptanceCriteria, describe_figures
from edgesmith.exporters.verify import read_evidence
from edgesmith.profiles import operators

STANDINS = Path(__file__).parent / "standins"
QUICK = ("--launches", "1", "--seconds", "0.1")
BUILT = ["casvit.engine", "layers.json", "manifest.json", "measurement.json"]


@pytest.fixture
def orin(export_small: Callable[..., Artifact]) -> Artifact:
    return export_small("tensorrt", device="jetson-orin-nano", precision="fp16")


def environment(**settings: str) -> dict[str, str]:
    """A machine with a stand-in for TensorRT."""
    return {**os.environ, "PYTHONPATH": str(STANDINS), **{f"STANDIN_{key}": value for key, value in settings.items()}}


def build(folder: Path, *options: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run a kit's build.py as a board does, into `built` beside it."""
    command = [sys.executable, str(folder / "build.py"), *options]
    if "--out" not in options:
        command += ["--out", str(folder.parent / "built")]
    return subprocess.run(command, capture_output=True, text=True, env=environment(**settings), check=False)


def refused(done: subprocess.CompletedProcess[str], folder: Path) -> str:
    """The sentence of a build that has left nothing behind."""
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("build.py: ")
    assert done.stderr.count("\n") == 1
    left = [path.name for path in folder.parent.iterdir() if path.name not in (folder.name, "bin", "building")]
    assert left == []
    return done.stderr.removeprefix("build.py: ").rstrip("\n")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The engine that the stand-in builds of a kit, once for the tests that only read it."""
    return {}


@pytest.fixture
def built(made: dict[str, Path], orin: Artifact, tmp_path: Path, run_folder: Path) -> Path:
    if "orin" not in made:
        copied = tmp_path / "copied"  # what `build-on` copies: kit.json, and the files that it lists
        copied.mkdir()
        for name in ("kit.json", *kit.read_kit(orin.path)["files"]):
            shutil.copy(orin.path / name, copied)
        done = build(copied, *QUICK, "--version-compatible")
        assert done.returncode == 0, done.stderr
        kept = tempfile.mkdtemp(dir=run_folder)  # the module's fixtures may be made twice in a worker
        made["orin"] = Path(shutil.copytree(tmp_path / "built", kept, dirs_exist_ok=True))
        shutil.rmtree(tmp_path / "built")
    return Path(shutil.copytree(made["orin"], tmp_path / "built"))


# what a kit is


def test_a_kit_holds_what_the_board_needs_and_no_engine(orin: Artifact) -> None:
    files = sorted(path.name for path in orin.path.iterdir())
    assert files == [
        "README.md",
        "USE.md",
        "build.py",
        "cases.npz",
        "casvit.onnx",
        "kit.json",
        "manifest.json",
        "reference.safetensors",
    ]
    found = kit.read_kit(orin.path)
    assert (found["schema"], found["model"], found["device"], found["precision"]) == (
        1,
        "casvit",
        "jetson-orin-nano",
        "fp16",
    )
    assert found["board"]["compute_capability"] == "8.7"
    assert found["board"]["tensorrt"] == "10.3"
    assert found["thresholds"] == {"relative_error": 0.02, "snr_db": 40.0, "other_whole": 0.1}
    assert found["flags"] == {"strongly_typed": True, "tf32": False, "optimization_level": 3}
    assert found["operators"]["Gelu"] == "10.0"
    assert set(found["files"]) == {"README.md", "build.py", "cases.npz", "casvit.onnx"}
    assert not any(path.read_bytes()[:4] in (b"vtrt", b"ftrt") for path in orin.path.iterdir())
    assert "engine" not in orin.manifest
    assert orin.manifest["kit"]["board"] == found["board"]


def test_a_kit_of_a_step_has_steps_as_its_cases_and_is_built(tmp_path: Path) -> None:
    options = {"device": "jetson-orin-nano", "frames": 12, "streaming": True, "out": tmp_path}
    made = edgesmith.export("lmuformer_psmnist", "tensorrt", **options)  # type: ignore[arg-type]
    described = kit.read_kit(made.path)
    inputs, outputs = board.read_cases(described, made.path)
    assert len(inputs) == len(outputs) == 8
    states = len(made.manifest["streaming"]["states"])
    assert states > 0
    for before, after in zip(outputs, inputs[1:], strict=False):
        for mine, theirs in zip(before[-states:], after[-states:], strict=True):
            np.testing.assert_array_equal(mine, theirs)
    done = build(made.path, *QUICK)
    assert done.returncode == 0, done.stderr


def test_a_kits_cases_are_all_inputs_but_the_loud_one_and_pytorchs_outputs(orin: Artifact) -> None:
    inputs, outputs = board.read_cases(kit.read_kit(orin.path), orin.path)
    every = read_evidence(orin)
    few = every.chosen(lambda call: call.kind != "loud")
    assert len(inputs) == len(few.inputs) == len(every.inputs) - 1
    assert all(np.array_equal(a, b) for x, y in zip(inputs, few.calls, strict=True) for a, b in zip(x, y, strict=True))
    assert all(
        np.array_equal(a, b) for x, y in zip(outputs, few.reference, strict=True) for a, b in zip(x, y, strict=True)
    )


def test_a_kit_is_exported_and_verified_without_the_builder_of_engines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    monkeypatch.setattr(type(targets.get("tensorrt")), "missing_packages", lambda target: ["tensorrt_rtx"])
    made = edgesmith.export(
        nn.Linear(4, 4), "tensorrt", inputs=(torch.randn(1, 4),), name="line", device="jetson-orin-nano", out=tmp_path
    )
    assert "tensorrt_rtx" not in made.manifest["versions"]
    edgesmith.verify(made.path)
    with pytest.raises(BackendMissing, match=r"target tensorrt needs tensorrt_rtx.*edgesmith\[tensorrt\]"):
        edgesmith.export(nn.Linear(4, 4), "tensorrt", inputs=(torch.randn(1, 4),), device="rtx4070", out=tmp_path)


def test_a_kit_verifies_and_says_that_the_engine_is_not_built_here(orin: Artifact) -> None:
    _, steps = edgesmith.verify(orin.path)
    assert steps[2]["runtime"] == "typed ONNX in ONNX Runtime, CPU"
    assert steps[3] == {
        "step": "eager -> engine",
        "not_checked_here": "engine not built here: the device builds its own, with build.py",
    }
    assert steps[2:] == orin.manifest["verification"]["steps"][2:]


def test_a_kit_has_the_same_bytes_again(orin: Artifact, tmp_path: Path) -> None:
    from edgesmith.profiles import device as devices

    found = kit.read_kit(orin.path)
    again = tmp_path / "again"
    again.mkdir()
    shutil.copy(orin.file, again)
    inputs, outputs = board.read_cases(found, orin.path)
    same = {key: found[key] for key in ("thresholds", "spikes", "operators")}  # type: ignore[literal-required]
    same["manifest"] = orin.manifest
    kit.write_kit(again / orin.file.name, devices.get("jetson-orin-nano"), kit.Cases(inputs, outputs), **same)
    for name in (*found["files"], "kit.json"):
        assert (again / name).read_bytes() == (orin.path / name).read_bytes(), name


def test_a_damaged_file_of_a_kit_is_found_here_too(orin: Artifact) -> None:
    damage(orin.path / "cases.npz")
    with pytest.raises(Unsupported, match=r"cases\.npz of the kit .* is damaged"):
        targets.get("tensorrt").open(orin.file).check()
    with pytest.raises(VerificationFailed, match=r"cases\.npz was altered"):
        edgesmith.verify(orin.path)


def test_a_kit_allows_the_models_own_noise() -> None:
    def limits(precision: str, noise: float | None) -> tuple[float, float]:
        found = AcceptanceCriteria(table.get(precision), False, lambda: noise).thresholds()
        return found.relative_error, round(found.snr_db, 1)  # as publish.py rounds it

    assert limits("fp32", 1e-7) == (1e-5, 100.0)
    assert limits("fp32", 1e-5) == (4e-5, 88.0)
    assert limits("fp32", None) == (1e-5, 100.0)
    assert limits("fp16", 1e-5) == (2e-2, 40.0)


def test_readme_is_one_page_and_names_what_the_board_has(orin: Artifact) -> None:
    text = (orin.path / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 60
    assert "JetPack 6.2 brings TensorRT 10.3" in text
    assert "--dla" not in text
    assert "--hardware-compatible" not in text


# building


def test_a_build_writes_an_engine_with_its_records(built: Path, orin: Artifact) -> None:
    assert sorted(path.name for path in built.iterdir()) == BUILT
    artifact = artifacts.read(built)
    assert artifacts.changed_files(artifact) == []
    manifest = artifact.manifest
    assert (artifact.model, artifact.target, artifact.precision) == ("casvit", "tensorrt", "fp16")
    assert manifest["weights"] == orin.manifest["weights"]
    assert manifest["target"]["options"]["device"] == "jetson-orin-nano"
    assert manifest["versions"] == {"tensorrt": "10.3.0.26", "cuda": "12.6"}
    assert manifest["kit"]["onnx"] == kit.read_kit(orin.path)["files"]["casvit.onnx"]
    (step,) = manifest["verification"]["steps"]
    few = read_evidence(orin).chosen(lambda call: call.kind != "loud")
    outputs = targets.get("tensorrt").open(orin.file).run(few.calls)  # the stand-in's numbers are ONNX Runtime's
    assert isinstance(outputs, list)
    figures = describe_figures(figures_of.measure(few.reference, outputs, 0.02))
    assert {key: step[key] for key in ("max_abs_error", "relative_error", "snr_db", "top1")} == figures
    assert step["runtime"] == "TensorRT 10.3.0 on jetson-orin-nano"
    flags = manifest["engine"]["flags"]
    assert flags["strongly_typed"]
    assert flags["version_compatible"]
    assert not flags["tf32"]


def test_a_builds_measurement_is_one_of_edgesmiths(built: Path) -> None:
    record = measurement.read(built / "measurement.json")
    assert record.complete
    assert record.device.name == "jetson-orin-nano"
    assert record.runtimes == {"tensorrt": "10.3.0.26", "cuda": "12.6"}
    (subject,) = record.subjects
    assert (subject.model, subject.target, subject.runtime) == ("casvit", "tensorrt", "tensorrt")
    assert subject.sha256 == artifacts.read(built).sha256["casvit.engine"]
    assert subject.cold is not None
    assert subject.cold.load_ms > 0
    assert len(record.launches) == 1
    assert len(record.samples(0)[0]) >= 3


def test_a_builds_layers_have_the_schema_of_every_engine(
    built: Path, installed: None, export_small: Callable[..., Artifact]
) -> None:
    ahead = engine.read_layers(export_small("tensorrt", precision="fp16").path)
    found = engine.read_layers(built)
    assert found.keys() == ahead.keys()
    assert found["layers"][0].keys() == ahead["layers"][0].keys()
    nodes = {node for layer in found["layers"] for node in layer["nodes"]}
    assert "stages.0.0.mixer/Conv_1" in nodes or len(nodes) > 100
    counts = engine.summarise(found)
    assert counts["precisions"]["fp16"] > 100
    assert artifacts.read(built).manifest["engine"]["layers"] == counts["layers"]


@pytest.fixture
def installed() -> None:
    missing = targets.get("tensorrt").missing_packages()
    if missing:
        pytest.skip(f"tensorrt: {', '.join(missing)} not installed")


def test_an_engine_of_a_kit_is_inspected_and_not_verified(built: Path) -> None:
    found = engine.inspect(built)
    assert found["made_by"] == "TensorRT"
    assert found["version"] == "10.3.0.26"
    assert found["compute_capabilities"] == ["8.7"]
    assert found["devices"] == ["jetson-agx-orin", "jetson-orin-nano", "jetson-orin-nx"]
    assert engine.inspect(built, "jetson-agx-orin")["changed"] == []
    with pytest.raises(BadInput, match="only the kit has PyTorch's outputs: verify that"):
        edgesmith.verify(built)


def test_an_engine_for_another_gpu_or_tensorrt_is_refused_with_what_it_fits(built: Path) -> None:
    with pytest.raises(BadInput, match=r"SM 8\.7 and Jetson AGX Thor is SM 11\.0; it fits jetson-agx-orin, jetson-or"):
        engine.inspect(built, "jetson-thor")
    path = built / "casvit.engine"
    content = bytearray(path.read_bytes())
    content[25] = 0
    path.write_bytes(content)
    assert engine.inspect(built, "jetson-orin-nano")["version"] == "10.0.0.26"  # it is version compatible
    content[25] = 7
    path.write_bytes(content)
    with pytest.raises(BadInput, match=r"10\.7\.0\.26, for later TensorRTs .* too, and Jetson Orin Nano has 10\.3"):
        engine.inspect(built, "jetson-orin-nano")
    manifest = json.loads((built / "manifest.json").read_text(encoding="utf-8"))
    manifest["engine"]["flags"]["version_compatible"] = False
    (built / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(BadInput, match=r"TensorRT 10\.7\.0\.26 and Jetson Orin Nano has 10\.3 \(JetPack 6\.2\)"):
        engine.inspect(built, "jetson-orin-nano")
    (built / "manifest.json").unlink()
    assert engine.inspect(path)["devices"] == []
    with pytest.raises(BadInput, match="does not say which GPU it is built for"):
        engine.inspect(path, "jetson-orin-nano")


def test_a_kit_is_inspected(orin: Artifact, built: Path, edgesmith: Callable[..., Any]) -> None:
    shown = edgesmith("inspect", str(orin.path)).stdout
    for part in ("casvit, fp16", "Jetson Orin Nano, SM 8.7", "JetPack 6.2 brings TensorRT 10.3", "not built here"):
        assert part in shown
    assert "TensorRT 10.3.0.26" in edgesmith("inspect", str(built)).stdout
    wrong = edgesmith("inspect", str(orin.path), "--device", "jetson-thor")
    assert wrong.returncode == 2
    assert "is a kit for jetson-orin-nano, not for jetson-thor" in wrong.stderr
    assert "TensorRT 10.3 or later" in shown  # its means; Gelu needs 10.0
    described = kit.read_kit(orin.path)
    del described["operators"]  # type: ignore[misc]  # it is required, and a damaged file lacks it
    (orin.path / "kit.json").write_text(json.dumps(described), encoding="utf-8")
    said = r"kit\.json is no sound kit: at the top, 'operators' is a required property; export the model again$"
    with pytest.raises(BadInput, match=said):
        engine.inspect(orin.path)


# what goes wrong on the board


def test_no_tensorrt_is_one_sentence_and_nothing_half_written(orin: Artifact, tmp_path: Path) -> None:
    bare = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"PATH": str(tmp_path / "bin")}
    command = [sys.executable, str(orin.path / "build.py"), "--out", str(tmp_path / "built")]
    done = subprocess.run(command, capture_output=True, text=True, env=bare, check=False)
    assert refused(done, orin.path) == (
        "TensorRT is not on this machine: there is neither the Python module tensorrt nor the command trtexec; on a"
        " Jetson type: sudo apt-get install tensorrt python3-libnvinfer"
    )


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"VERSION": "8.5.3.1"}, "TensorRT 8.5.3 is too old: this kit needs 8.6 or later"),
        ({"VERSION": "9.3.0.1"}, "TensorRT 9.3.0 has no Gelu; TensorRT has it from 10.0 on"),
        ({"LACKS": "Split"}, "TensorRT 10.3.0 does not read Split "),
        ({"SM": "8.6"}, "this GPU is SM 8.6, and the kit is for Jetson Orin Nano, SM 8.7: build it there"),
        ({"NO_CUDA": "1"}, "CUDA's runtime library libcudart is not on this machine"),
        ({"SCALE": "1.1"}, "the engine's numbers are wrong: error 0.1 of the peak, allowed 0.02"),
        ({"SCALE": "nan"}, "the engine's numbers are wrong: error inf of the peak"),
    ],
)
def test_what_goes_wrong_is_one_sentence_and_nothing_half_written(
    settings: dict[str, str], sentence: str, orin: Artifact
) -> None:
    said = refused(build(orin.path, *QUICK, **settings), orin.path)
    assert said.startswith(sentence)


def test_what_fills_the_folder_fails_in_its_own_words(tmp_path: Path) -> None:
    out = tmp_path / "built"
    for place in (out, tmp_path / "new" / "folder" / "built"):
        with pytest.raises(OSError, match="No space left"), board.staging(place):
            raise OSError(28, "No space left on device")
        assert list(tmp_path.iterdir()) == []
    with pytest.raises(board.Refusal, match=f"cannot write to {tmp_path}: .*; nothing was written"), board.staging(out):
        out.write_bytes(b"somebody's")
    assert [path.name for path in tmp_path.iterdir()] == ["built"]


def test_a_timing_cache_that_cannot_be_written_is_one_sentence(
    orin: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = build(orin.path, "--timing-cache", "/dev/full/cache")
    assert refused(done, orin.path).startswith("--timing-cache /dev/full/cache can be neither read nor written")
    monkeypatch.setattr(board.os, "access", lambda path, mode: False)
    with pytest.raises(board.Refusal, match="its permissions forbid it"):
        board.check_cache(tmp_path / "cache")


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
def test_a_dla_computes_in_fp16_and_int8(precision: str) -> None:
    options = board.parse_options(["--out", "x", "--dla", "1"])
    kit = {"board": {"dla_cores": 2, "title": "Orin", "jetpack": "6.2"}, "precision": precision}
    if precision in ("fp16", "int8"):
        board.check_options(kit, options)
        return
    with pytest.raises(board.Refusal, match=f"^a DLA computes in fp16 and int8, and this kit is {precision}: export "):
        board.check_options(kit, options)


@pytest.mark.parametrize(
    ("version", "has"),
    [
        ((8, 6, 1), True),
        ((10, 7, 0), True),
        ((10, 8, 0), False),
        ((11, 0, 0), False),
        ((11, 4, 0), False),
        ((11, 4, 1), True),
        ((11, 5, 0), True),
    ],
)
def test_some_tensorrts_have_no_dla(version: tuple[int, ...], has: bool) -> None:
    tensorrt = SimpleNamespace(version=version)
    board.check_dla(board.parse_options(["--out", "x"]), tensorrt)  # type: ignore[arg-type]
    options = board.parse_options(["--out", "x", "--dla", "0"])
    if has:
        board.check_dla(options, tensorrt)  # type: ignore[arg-type]
        return
    with pytest.raises(board.Refusal, match=r"has no DLA; TensorRT has it up to 10\.7 and from 11\.4\.1 on: leave out"):
        board.check_dla(options, tensorrt)  # type: ignore[arg-type]


def test_an_operator_that_no_tensorrt_has_is_refused_before_it_is_built() -> None:
    kit = {"operators": {"Conv": "7.2", "Det": operators.NEVER, "Own": None}}
    with pytest.raises(board.Refusal, match=r"^TensorRT 10\.3\.0 has no Det; no TensorRT up to 11\.4 has it$"):
        board.check_operators(kit, SimpleNamespace(version=(10, 3, 0)))  # type: ignore[arg-type]
    board.check_operators(kit, SimpleNamespace(version=(11, 5, 0)))  # type: ignore[arg-type]
    assert board.NEVER == operators.NEVER
    assert board.written(board.NEWEST) in (operators.lacks("Det", "10.3") or "")


def test_the_numbers_of_trtexec_that_are_none_are_read() -> None:
    found = json.loads(board.to_json('[{"name": "nan", "values": [1.5, nan, -nan, inf, -inf]}]'))[0]
    np.testing.assert_array_equal(found["values"], [1.5, np.nan, np.nan, np.inf, -np.inf])


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        (
            lambda kit: damage(kit / "casvit.onnx"),
            "the kit is damaged: casvit.onnx is not what it was; copy its folder",
        ),
        (lambda kit: damage(kit / "cases.npz"), "the kit is damaged: cases.npz is not what it was"),
        (lambda kit: (kit / "casvit.onnx").unlink(), "the kit is not whole: casvit.onnx is missing; copy its folder"),
        (lambda kit: (kit / "kit.json").unlink(), "the kit is not whole: kit.json is missing"),
        (lambda kit: (kit / "kit.json").write_text("[]"), "the kit is damaged: kit.json cannot be read"),
        (lambda kit: (kit / "kit.json").write_text('{"schema": 1'), "the kit is damaged: kit.json cannot be read"),
        (
            lambda kit: (kit / "kit.json").write_text('{"schema": 9}'),
            "kit.json has schema 9, and this build.py reads 1",
        ),
    ],
)
def test_a_damaged_kit_is_one_sentence(harm: Callable[[Path], object], sentence: str, orin: Artifact) -> None:
    harm(orin.path)
    assert refused(build(orin.path), orin.path).startswith(sentence)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--dla", "0"), "Jetson Orin Nano has no DLA, got --dla 0"),
        (("--hardware-compatible",), "TensorRT has no hardware compatibility on JetPack"),
        (("--timing-cache", "nodir/cache"), "--timing-cache nodir/cache can be neither read nor written: there is no"),
        (("--timing-cache", "."), "--timing-cache . can be neither read nor written: it is a folder"),
        (("--seconds", "0"), "--seconds must be more than 0 and finite, got 0.0"),
        (("--launches", "0"), "--launches must be more than 0 and finite, got 0"),
        (("--fp16",), "unrecognized arguments: --fp16; see: python3 build.py --help"),
        (("--workspace", "much"), "argument --workspace: invalid int value: 'much'"),
    ],
)
def test_wrong_options_are_one_sentence(options: tuple[str, ...], sentence: str, orin: Artifact) -> None:
    assert refused(build(orin.path, *options), orin.path).startswith(sentence)


def test_where_the_engine_goes_must_be_new(orin: Artifact, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "file").write_text("mine")
    done = build(orin.path, "--out", str(taken))
    assert done.returncode == 2
    assert done.stderr == f"build.py: {taken} is there already; choose another --out, or remove it\n"
    assert [path.name for path in taken.iterdir()] == ["file"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_build_leaves_nothing(number: signal.Signals, orin: Artifact, tmp_path: Path) -> None:
    process = start(orin.path, tmp_path)
    process.send_signal(number)
    stdout, stderr = process.communicate()
    done = subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)
    assert refused(done, orin.path) == "interrupted; nothing was written"


def test_what_a_killed_build_left_goes_with_the_next_one(orin: Artifact, tmp_path: Path) -> None:
    process = start(orin.path, tmp_path)
    process.kill()
    process.communicate()
    assert len(list(tmp_path.glob(".built.*.partial"))) == 1
    assert not (tmp_path / "built").exists()
    refused(build(orin.path, SCALE="2"), orin.path)


def start(folder: Path, scratch: Path) -> subprocess.Popen[str]:
    """A build that has come to where TensorRT takes its time."""
    (scratch / "building").unlink(missing_ok=True)
    process = subprocess.Popen(
        [sys.executable, str(folder / "build.py"), "--out", str(scratch / "built")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(WAIT=str(scratch / "building")),
    )
    while not (scratch / "building").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    return process


# how it builds


SETTINGS = """
import json, sys
sys.path.insert(0, sys.argv[1])
import build
from pathlib import Path
kit = build.read_kit(Path(sys.argv[1]))
found = []
for arguments in json.loads(sys.argv[2]):
    options = build.parse_options(["--out", "x", *arguments])
    tensorrt = build.find_tensorrt()
    engine = Path(sys.argv[3]) / "model.engine"
    report = tensorrt.build(Path(sys.argv[1]) / kit["onnx"], engine, options, kit)
    found.append([list(engine.read_bytes()[40:48]), report["layers"][:3]])
print(json.dumps(found))
"""


def settings(folder: Path, scratch: Path, *options: list[str], version: str) -> list[Any]:
    """What the stand-in was asked for with options (see its `_settings`), and the first layers that it showed."""
    command = [sys.executable, "-c", SETTINGS, str(folder), json.dumps(options), str(scratch)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(VERSION=version), check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def test_networks_are_strongly_typed_wherever_tensorrt_has_that(orin: Artifact, tmp_path: Path) -> None:
    """Byte 0: strongly typed. Byte 1, a bit each: TF32, GPU fallback, version compatible, FP16. Byte 2: DLA."""
    plain: list[str] = []
    ten = settings(orin.path, tmp_path, plain, ["--version-compatible"], ["--dla", "1"], version="10.3.0.26")
    assert [one[:3] for one, _ in ten] == [[1, 0, 0], [1, 4, 0], [0, 2 + 8, 1]]
    eleven = settings(orin.path, tmp_path, plain, ["--dla", "0"], version="11.4.1.10")
    assert [one[:3] for one, _ in eleven] == [[1, 0, 0], [1, 2, 1]]
    eight = settings(orin.path, tmp_path, plain, version="8.6.1.6")
    assert [one[:3] for one, _ in eight] == [[0, 8, 0]]
    assert ten[0][1] == eleven[0][1] == eight[0][1]  # two generations of inspectors, one form of layers


def test_a_timing_cache_is_read_and_written(orin: Artifact, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    settings(orin.path, tmp_path, ["--timing-cache", str(cache)], version="10.3.0.26")
    first = cache.read_bytes()
    settings(orin.path, tmp_path, ["--timing-cache", str(cache)], version="10.3.0.26")
    assert first.startswith(b"timing cache")
    assert len(cache.read_bytes()) > len(first)
    cache.write_bytes(b"of another machine")
    done = build(orin.path, "--timing-cache", str(cache))
    assert done.returncode == 2
    assert "is a timing cache of another GPU or TensorRT; choose another --timing-cache" in done.stderr
    assert cache.read_bytes() == b"of another machine"


@pytest.fixture
def trtexec(tmp_path: Path) -> dict[str, str]:
    """A machine with a stand-in for trtexec, and no module."""
    command = tmp_path / "bin" / "trtexec"
    command.parent.mkdir()
    lines = (STANDINS / "trtexec").read_text(encoding="utf-8").splitlines()
    command.write_text("\n".join([f"#!{sys.executable}", *lines[1:]]), encoding="utf-8")
    command.chmod(0o755)
    bare = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return {**bare, "PATH": f"{command.parent}:{os.environ['PATH']}"}


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_kit_of_a_step_in_half_precision_is_built_and_judges_no_rounding(precision: str, tmp_path: Path) -> None:
    options = {"device": "jetson-orin-nano", "frames": 12, "streaming": True, "precision": precision, "out": tmp_path}
    made = edgesmith.export("lmuformer_psmnist", "tensorrt", **options)  # type: ignore[arg-type]
    steps = [one["step"] for one in made.manifest["verification"]["steps"]]
    assert steps[-2:] == ["eager -> file", "eager -> engine"]
    assert "engine not built here" in made.manifest["verification"]["steps"][-1]["not_checked_here"]
    rests = {state["next"] for state in made.manifest["streaming"]["states"] if state["name"].endswith("_rest")}
    described = kit.read_kit(made.path)
    assert rests
    assert not rests & set(described["outputs"])
    inputs, outputs = board.read_cases(described, made.path)
    assert (len(inputs[0]), len(outputs[0])) == (len(described["inputs"]), len(described["outputs"]))
    if precision == "fp16":  # the stand-in computes as ONNX Runtime does, which has no bf16
        done = build(made.path, *QUICK)
        assert done.returncode == 0, done.stderr


def test_trtexec_serves_where_the_module_is_missing(orin: Artifact, tmp_path: Path, trtexec: dict[str, str]) -> None:
    command = [sys.executable, str(orin.path / "build.py"), "--out", str(tmp_path / "built"), *QUICK]
    done = subprocess.run(command, capture_output=True, text=True, env=trtexec, check=False)
    assert done.returncode == 0, done.stderr
    artifact = artifacts.read(tmp_path / "built")
    assert sorted(path.name for path in artifact.path.iterdir()) == BUILT
    assert artifact.manifest["engine"]["version"] == "10.3.0"
    assert artifact.manifest["engine"]["compute_capabilities"] == ["8.7"]
    assert artifact.manifest["engine"]["weights_bytes"] == 4096
    assert artifact.manifest["engine"]["warnings"] == ["a warning of the stand-in"]
    record = measurement.read(tmp_path / "built" / "measurement.json")
    assert record.runtimes == {"trtexec": "10.3.0"}
    assert record.subjects[0].cold is None
    assert record.samples(0)[0][:3] == [1.02, 1.03, 1.04]


def test_what_trtexec_says_is_passed_on(orin: Artifact, tmp_path: Path, trtexec: dict[str, str]) -> None:
    command = [sys.executable, str(orin.path / "build.py"), "--out", str(tmp_path / "built")]
    for settings, sentence in (
        ({"STANDIN_LACKS": "Split"}, "failed with 1: ModelImporter.cpp:948: no importer for Split"),
        ({"STANDIN_NUMBER": "8503"}, "TensorRT 8.5.3 is too old"),
    ):
        done = subprocess.run(command, capture_output=True, text=True, env={**trtexec, **settings}, check=False)
        assert sentence in refused(done, orin.path)


# bench


@pytest.fixture
def with_module(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Processes find a stand-in for the module `tensorrt`."""
    monkeypatch.setenv("PYTHONPATH", str(STANDINS))
    return monkeypatch


def timed(engine: Path, tmp_path: Path, *options: str) -> tuple[int, Path]:
    """The exit code of bench, and where its record is."""
    record = tmp_path / "record.json"
    code = cli.run(["bench", str(engine), "--seconds", "0.1", "--launches", "1", "--out", str(record), *options])
    return code, record


def test_bench_times_an_engine_that_came_back_from_a_board(
    built: Path, with_module: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    code, record = timed(built, tmp_path, "--ops")
    assert code == 0
    made = measurement.read(record)
    assert made.runtimes == {"tensorrt": "10.3.0.26"}
    (subject,) = made.subjects
    assert (subject.name, subject.model, subject.target, subject.precision) == ("built", "casvit", "tensorrt", "fp16")
    assert subject.sha256 == measurement.read(built / "measurement.json").subjects[0].sha256
    assert subject.cold is not None
    assert len(made.samples(0)[0]) >= 3
    profile = subject.profile
    assert profile is not None
    assert profile.calls >= runner.FEWEST_PROFILED
    assert {one.ms for one in profile.operators} == {1.0}
    assert len(profile.operators) == artifacts.read(built).manifest["engine"]["layers"]["engine"]
    assert {one.type for one in profile.operators} == {"kgen"}
    assert "network.2.0.local_perception.network.4" in {one.module for one in profile.operators}
    kinds = {one.op for one in profile.operators}
    assert "conv" in kinds  # its kit is not at hand, and with it the file that says more than names of nodes
    assert "additive_attention" not in kinds


def test_layers_are_ops_of_the_program_where_the_kit_is_beside_its_engine(
    built: Path, orin: Artifact, with_module: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kits = tmp_path / "made"
    kit = shutil.copytree(orin.path, kits / "small-kit")
    engine = Path(shutil.copytree(built, kits / "small-kit-built"))
    assert timed(engine, tmp_path, "--ops")[0] == 0
    profile = measurement.read(tmp_path / "record.json").subjects[0].profile
    assert profile is not None
    assert "additive_attention" in {one.op for one in profile.operators}
    assert all(one.op is not None for one in profile.operators)
    damage(Path(kit) / "casvit.onnx")  # it is not what the engine was built of
    assert timed(engine, tmp_path, "--ops")[0] == 0
    profile = measurement.read(tmp_path / "record.json").subjects[0].profile
    assert profile is not None
    assert "additive_attention" not in {one.op for one in profile.operators}


@pytest.mark.parametrize(
    ("settings", "code", "sentence"),
    [
        ({"NO_CUDA": "1"}, 4, "tensorrt cannot work here: CUDA's runtime library libcudart is not on this machine"),
        ({"OTHER": "1"}, 6, "tensorrt 10.3.0.26 does not open casvit.engine: IRuntime::deserializeCudaEngine: Error"),
    ],
)
def test_an_engine_that_cannot_be_timed_is_one_sentence(
    settings: dict[str, str],
    code: int,
    sentence: str,
    built: Path,
    with_module: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for key, value in settings.items():
        with_module.setenv(f"STANDIN_{key}", value)
    found, record = timed(built, tmp_path)
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert found == code
    assert sentence in said
    assert "Traceback" not in said
    assert not record.exists()


class Far(Local):
    """A stand-in for a device: this machine, under another name."""

    is_here = False

    def __init__(self) -> None:
        super().__init__("jetson")
        self.copied: list[str] = []

    def put(self, file: Path, name: str) -> str:
        self.copied.append(name)
        return super().put(file, name)


def test_what_a_device_lacks_for_an_engine_is_said_before_it_is_copied(
    built: Path, with_module: pytest.MonkeyPatch
) -> None:
    far = Far()
    with_module.setattr(measure, "connect", lambda _: contextlib.nullcontext(far))
    with_module.setenv("STANDIN_NO_CUDA", "1")
    with pytest.raises(BackendMissing, match=r"^tensorrt cannot work on jetson: CUDA's .* is not on"):
        measure.measure([built], device=Address("ssh", "jetson"))
    with_module.delenv("PYTHONPATH")
    if importlib.util.find_spec("tensorrt") is None:
        said = (
            r"on jetson cannot import tensorrt \(No module named 'tensorrt'\): install it there with .* \(on a Jetson: "
        )
        with pytest.raises(BackendMissing, match=said):
            measure.measure([built], device=Address("ssh", "jetson"))
    assert set(far.copied) == {"runner.py"}


def test_a_kit_without_an_engine_is_not_timed(
    orin: Artifact, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert timed(orin.path, tmp_path)[0] == 2
    said = capsys.readouterr().err
    assert f"{orin.path.name} is a kit, and there is no engine in it to time: build it on its board with" in said


def test_an_engine_of_tensorrt_rtx_is_for_its_own_module(
    installed: None, export_small: Callable[..., Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = export_small("tensorrt", precision="fp16")
    assert subjects.runtime_of(made) == "tensorrt_rtx"
    assert made.file.read_bytes()[:4] == b"vtrt"
    # The stand-in for it is the other's: its engines have ONNX behind the header, TensorRT-RTX's do not.
    (tmp_path / "tensorrt_rtx.py").write_text((STANDINS / "tensorrt.py").read_text(encoding="utf-8"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    made.file.write_bytes(b"vtrt".ljust(64, b"\0") + made.file.with_suffix(".onnx").read_bytes())
    monkeypatch.setattr(engine, "read_header", lambda _: engine.Header("1.7.1.116", ("8.6",), 1))
    assert timed(made.path, tmp_path, "--ops")[0] == 0
    record = measurement.read(tmp_path / "record.json")
    assert record.subjects[0].runtime == "tensorrt_rtx"
    assert list(record.runtimes) == ["tensorrt_rtx"]
    profile = record.subjects[0].profile
    assert profile is not None
    assert "additive_attention" in {one.op for one in profile.operators}  # by the typed ONNX beside it


def test_tensorrt_rtx_without_a_gpu_is_one_sentence(
    installed: None, export_small: Callable[..., Artifact], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No stand-in: TensorRT-RTX's own module, and CUDA's library where it is installed."""
    with contextlib.suppress(Refusal):
        Cuda().compute_capability()
        pytest.skip("there is a GPU here")
    code, _ = timed(export_small("tensorrt", precision="fp16").path, tmp_path)
    assert code == BackendMissing.exit_code
    assert "tensorrt_rtx cannot work here: CUDA's " in capsys.readouterr().err


# this machine's own GPU


def test_host_gpu_without_tensorrt_says_what_to_do(
    small: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(board, "find_trtexec", lambda: None)
    with pytest.raises(
        BackendMissing, match="--device host-gpu builds with this machine's TensorRT, and there is neither"
    ):
        edgesmith.export(small, "tensorrt", device="host-gpu", inputs=torch.randn(1, 3, 32, 64), out=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def with_tensorrt(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """This machine has a stand-in for TensorRT."""
    monkeypatch.syspath_prepend(str(STANDINS))
    monkeypatch.setenv("PYTHONPATH", str(STANDINS))
    monkeypatch.setenv("STANDIN_SM", "8.9")
    monkeypatch.setattr(kit, "OPTIONS", QUICK)
    return monkeypatch


def test_host_gpu_is_a_kit_with_its_engine(installed: None, with_tensorrt: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5))
    options = {"inputs": torch.randn(1, 3, 8, 8), "name": "model", "device": "host-gpu", "out": tmp_path}
    artifact = edgesmith.export(model, "tensorrt", **options)  # type: ignore[arg-type]
    assert sorted(path.name for path in (artifact.path / "engine").iterdir()) == [*BUILT[1:], "model.engine"]
    last = artifact.manifest["verification"]["steps"][-1]
    assert last["step"] == "eager -> engine"
    assert last["relative_error"] <= 1e-6
    assert last["runtime"] == "TensorRT 10.3.0 on host-gpu"
    _, steps = edgesmith.verify(artifact.path)
    assert "was checked when it was built" in steps[-1]["not_checked_here"]
    assert engine.inspect(artifact.path)["engine"]["devices"] == ["rtx4070"]
    assert timed(artifact.path, tmp_path / "record")[0] == 0
    record = measurement.read(tmp_path / "record" / "record.json")
    assert record.subjects[0].name == artifact.path.name
    shutil.rmtree(tmp_path / "record")
    with_tensorrt.setenv("STANDIN_SCALE", "1.5")
    with pytest.raises(VerificationFailed, match=r"the engine's numbers are wrong: error 0\.5 of the peak"):
        edgesmith.export(model, "tensorrt", **options | {"name": "wrong"})  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == [artifact.path.name]
    name = artifact.path.name
    assert [made for made, _ in find(tmp_path).artifacts] == [name, f"{name}/engine"]
    write_report(tmp_path, tmp_path / "page.html")  # a build has neither operators nor rewrites to show
    assert f"{name}/engine" in (tmp_path / "page.html").read_text(encoding="utf-8")


# one file, and the same rules as edgesmith's


def test_build_py_is_a_python_3_8_program_of_its_own(orin: Artifact) -> None:
    source = (orin.path / "build.py").read_text(encoding="utf-8")
    tree = ast.parse(source, feature_version=(3, 8))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    modules = {name.split(".")[0] for name in names}
    assert modules - sys.stdlib_module_names == {"numpy"}
    later = {"removeprefix", "removesuffix", "is_relative_to", "bit_count", "pairwise"}  # of Python 3.9 and after
    assert not {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)} & later
    assert source == join(Path(board.__file__))


def test_build_py_writes_measurements_of_the_schema_that_bench_reads() -> None:
    assert board.MEASUREMENT_SCHEMA == measurement.SCHEMA
    assert board.SLOT_MS == measure.SLOT_MS
    assert records.schema_numbers(records.schema_of(kit.Kit)) == (board.SCHEMA,)


@pytest.mark.parametrize("scale", [0.0, 1e-6, 1e-3, 0.3])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("shapes", [((1, 10),), ((2, 4), (2, 3, 5))])
def test_build_py_judges_as_edgesmith_does(scale: float, precision: str, shapes: tuple[Any, ...]) -> None:
    draw = np.random.default_rng(3)
    reference = [[draw.standard_normal(shape).astype(np.float32) for shape in shapes] for _ in range(8)]
    outputs = [
        [y + np.float32(scale) * draw.standard_normal(y.shape).astype(np.float32) for y in ys] for ys in reference
    ]
    thresholds = table.get(precision).limits()
    limits = {"relative_error": thresholds.relative_error, "snr_db": thresholds.snr_db}
    figures = figures_of.measure(reference, outputs, thresholds.relative_error)
    own = board.measure(reference, outputs, thresholds.relative_error)
    assert own["max_abs_error"] == figures.max_abs_error
    assert own["relative_error"] == figures.relative_error
    assert own["snr_db"] == figures.snr_db
    assert own.get("top1", {}).get("agreeing") == figures.agreeing
    assert board.judge(own, limits) == figures_of.judge(figures, thresholds)
    assert board.agreeing_cases(reference, outputs, 1e-2) == figures_of.agreeing_inputs(reference, outputs, 1e-2)


def test_build_py_takes_as_a_tie_what_edgesmith_does() -> None:
    allowed, top = 1e-2, 1.0
    gaps = (1.9, 2.1)  # of what is allowed: a tie, and a decision
    reference = [[np.array([[top, top - gap * allowed, 0.0]], np.float32)] for gap in gaps]
    outputs = [[y[:, [1, 0, 2]] for y in ys] for ys in reference]
    figures = figures_of.measure(reference, outputs, allowed)
    assert (figures.agreeing, figures.decided, figures.ties) == (0, 1, 1)
    assert board.measure(reference, outputs, allowed)["top1"] == {"agreeing": 0, "decided": 1, "ties": 1}


def test_build_py_takes_half_of_the_cases_of_a_spiking_model() -> None:
    reference = [[np.full((1, 4), i + 1.0, np.float32)] for i in range(8)]
    outputs = [[y + (1.0 if i < 4 else 0.0) for y in ys] for i, ys in enumerate(reference)]
    limits = {"thresholds": {"relative_error": 1e-5, "snr_db": 100.0}}
    entry = board.check_numbers({**limits, "spikes": True}, reference, outputs)
    assert entry["spike_for_spike"] == {"inputs": 4, "of": 8}
    with pytest.raises(board.Refusal, match="numbers are wrong"):
        board.check_numbers({**limits, "spikes": False}, reference, outputs)
    outputs[4][0] += 1.0
    with pytest.raises(board.Refusal, match="numbers are wrong"):
        board.check_numbers({**limits, "spikes": True}, reference, outputs)


def test_build_py_counts_integers_that_are_others() -> None:
    """An error of 2 % of the peak would let a class be 19 others; one pixel's may be any other class."""
    classes = np.arange(1000, dtype=np.int64).reshape(1, 1000)
    scores = np.linspace(-1, 1, 8, dtype=np.float32)
    limits = {"thresholds": {"relative_error": 0.02, "snr_db": 40.0, "other_whole": 1e-3}, "spikes": False}
    far, near = classes.copy(), np.minimum(classes + 1, 999)
    far[0, 0] = 999
    entry = board.check_numbers(limits, [[classes]], [[far.astype(np.int32)]])
    assert entry["top1"] == {"agreeing": 999, "decided": 1000, "ties": 0}
    for outputs, reference in (([near], [classes]), ([scores, near], [scores, classes])):
        with pytest.raises(board.Refusal, match="999 of 1000 whole numbers are others than in PyTorch"):
            board.check_numbers(limits, [reference], [outputs])
    with pytest.raises(board.Refusal, match=r"shape \[1, 999\] where PyTorch's has \[1, 1000\]"):
        board.check_numbers(limits, [[classes]], [[near[:, 1:]]])
    older = {**limits, "thresholds": {"relative_error": 0.02, "snr_db": 40.0}}
    with pytest.raises(board.Refusal, match="1 of 1000 whole"):
        board.check_numbers(older, [[classes]], [[far]])


def test_build_py_describes_figures_as_a_manifest_does() -> None:
    from edgesmith.exporters.verification.check import describe_figures

    draw = np.random.default_rng(1)
    reference = [[draw.standard_normal((1, 10)).astype(np.float32)] for _ in range(3)]
    outputs = [[y * np.float32(1.0001) for y in ys] for ys in reference]
    entry = board.check_numbers(
        {"thresholds": {"relative_error": 1e-2, "snr_db": 40.0}, "spikes": False}, reference, outputs
    )
    assert entry == describe_figures(figures_of.measure(reference, outputs, 1e-2))


def test_versions_are_read() -> None:
    assert board.version_of("10.3.0.26") == (10, 3, 0)
    assert board.is_typed((10, 3, 0), SimpleNamespace(dla=None))  # type: ignore[arg-type]
    assert not board.is_typed((8, 6, 1), SimpleNamespace(dla=None))  # type: ignore[arg-type]
    assert not board.is_typed((10, 3, 0), SimpleNamespace(dla=0))  # type: ignore[arg-type]
    assert board.is_typed((11, 4, 1), SimpleNamespace(dla=0))  # type: ignore[arg-type]
