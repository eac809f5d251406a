"""Manifests: what every product says of itself keeps to the schema, what does not is one sentence, old ones read."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from support.manifests import smallest_manifest
from torch import Tensor, nn

import edgesmith
from edgesmith.errors import BadInput, VerificationFailed
from edgesmith.exporters import manifest as manifests
from edgesmith.exporters import targets
from edgesmith.exporters.artifact import read, write_manifest
from edgesmith.exporters.manifest import MANIFEST, SCHEMA, Manifest
from edgesmith.exporters.precision import calibration
from edgesmith.kernels import lif

STANDINS = Path(__file__).parent / "standins"
OLD = Path(__file__).parent / "fixtures" / "schema_1"
"""Two artifacts of schema 1, which says `wide` and `mended`."""


# products


class Neurons(nn.Module):
    """A linear layer and neurons over time: streams. [B, T, 4] -> [B, T, 6]"""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mix = nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        spikes: Tensor = lif.OP.overload(3 * self.mix(x), dim=1)
        return spikes


def maps() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1))


def installed(target: str) -> None:
    if missing := targets.get(target).missing_packages():
        pytest.skip(f"{target}: {', '.join(missing)} not installed")


def checked(folder: Path) -> Manifest:
    """What the manifest in a folder says, held against the committed schema by its text alone."""
    schema = json.loads(Path(manifests.__file__).with_name("manifest.schema.json").read_text(encoding="utf-8"))
    text = (folder / MANIFEST).read_text(encoding="utf-8")
    jsonschema.Draft202012Validator(schema).validate(json.loads(text))
    found = manifests.read(folder)
    assert found == json.loads(text)
    assert found["schema"] == SCHEMA
    return found


@pytest.mark.parametrize("target", ["onnx", "coreml", "coreai", "tensorrt"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_whole_model(target: str, precision: str, export_small: Callable[..., Any]) -> None:
    found = checked(export_small(target, precision=precision).path)
    assert not found.keys() & {"streaming", "functions", "kit", "device", "details", "int8", "keep_fp32"}
    assert ("engine" in found) == (target == "tensorrt")
    assert found["model"].keys() == {"name", "inputs", "outputs", "interface"}


def test_a_named_model_has_its_source_and_what_its_input_is(artifact: Callable[..., Any]) -> None:
    found = checked(artifact("casvit_xs", "onnx", input_size=(32, 32)).path)["model"]
    assert found["source"].startswith("https://github.com/")
    assert (found["paper"], found["licence"], found["features"]) == ("arXiv:2408.03703", "MIT", False)
    assert found["normalisation"] == {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


@pytest.mark.parametrize("target", ["onnx", "coreml", "coreai", "tensorrt"])
def test_a_step(target: str, tmp_path: Path) -> None:
    installed(target)
    device = {"device": "jetson-orin-nano"} if target == "tensorrt" else {}
    made = edgesmith.export(
        Neurons(), target, inputs=torch.randn(1, 9, 4), streaming=True, precision="fp32", out=tmp_path, **device
    )
    found = checked(made.path)
    assert "functions" not in found
    assert found["operators"]["step"]
    assert found["streaming"]["kept_by"] == "caller"
    assert found["model"]["inputs"][0]["name"] == found["streaming"]["frame"]["name"]
    assert found["streaming"]["states"]


def test_a_step_with_its_sequence(tmp_path: Path) -> None:
    installed("coreml")
    made = edgesmith.export(
        Neurons(),
        "coreml",
        inputs=torch.randn(1, 9, 4),
        streaming=True,
        with_sequence=True,
        precision="fp32",
        deployment_target="iOS18",
        out=tmp_path,
    )
    found = checked(made.path)
    functions = found["functions"]
    assert functions["default"] == "step"
    assert found["streaming"]["kept_by"] == "runtime"
    states = [state["name"] for state in found["streaming"]["states"]]
    assert functions["step"]["states"] == states
    assert functions["sequence"]["states"] == []
    assert functions["sequence"]["inputs"][0]["shape"] == [1, 9, 4]
    assert found["model"]["inputs"] == functions["step"]["inputs"]
    assert not {one["name"] for one in found["model"]["inputs"]} & set(states)


@pytest.mark.parametrize("target", ["onnx", "tensorrt"])
def test_an_int8_file(target: str, tmp_path: Path) -> None:
    installed(target)
    device = {"device": "rtx3080"} if target == "tensorrt" else {}
    with pytest.warns(calibration.RandomCalibration):
        made = edgesmith.export(
            maps(), target, inputs=torch.randn(1, 3, 8, 8), precision="int8", out=tmp_path, **device
        )
    found = checked(made.path)
    assert found["int8"]["layers"] == 2
    assert found["verification"]["judged_as"] == "int8"


def test_a_kit_and_the_engine_that_a_board_builds_of_it(tmp_path: Path) -> None:
    """The board is tests/standins, which says that it is no TensorRT."""
    installed("tensorrt")
    kit = edgesmith.export(
        maps(),
        "tensorrt",
        inputs=torch.randn(1, 3, 8, 8),
        precision="fp16",
        device="jetson-orin-nano",
        name="maps",
        out=tmp_path,
    )
    found = checked(kit.path)
    assert found["kit"].keys() == {"board", "flags", "thresholds", "operators"}
    command = [sys.executable, str(kit.path / "build.py"), "--launches", "1", "--seconds", "0.1"]
    environment = {**os.environ, "PYTHONPATH": str(STANDINS)}
    built = tmp_path / "built"
    done = subprocess.run([*command, "--out", str(built)], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    of_engine = checked(built)
    assert of_engine["kit"].keys() == {"onnx", "cases"}
    assert of_engine["engine"]["version"].startswith("10.3")
    assert not of_engine.keys() & {"rewrites", "operators"}
    assert read(built).file.name == "maps.engine"


def test_what_stays_fp32_has_its_reason(tmp_path: Path) -> None:
    class Large(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x * 1e6).tanh() + (x * 1e6).sqrt() * 1e-3

    made = edgesmith.export(Large(), "onnx", inputs=torch.rand(1, 8) + 1, precision="fp16", out=tmp_path)
    assert all("half precision ends at" in why for why in checked(made.path)["keep_fp32"].values())


# what is wrong


def change(manifest: dict[str, Any], pointer: str, value: object) -> dict[str, Any]:
    """A copy with one place set, or, with `...`, removed."""
    changed = copy.deepcopy(manifest)
    *folders, last = pointer.strip("/").split("/")
    place: Any = changed
    for key in folders:
        place = place[int(key) if isinstance(place, list) else key]
    if value is ...:
        del place[last]
    else:
        place[int(last) if isinstance(place, list) else last] = value
    return changed


@pytest.mark.parametrize(
    ("pointer", "value", "said"),
    [
        ("mood", "good", "at the top, Additional properties are not allowed ('mood' was unexpected)"),
        ("wide", {}, "at the top, Additional properties are not allowed ('wide' was unexpected)"),
        ("model/size", 3, "at /model, Additional properties are not allowed ('size' was unexpected)"),
        ("target/options/threads", 1, "at /target/options, Additional properties"),
        ("file", 3, "at /file, 3 is not of type 'string'"),
        ("model/inputs", {}, "at /model/inputs, {} is not of type 'array'"),
        ("model/inputs/0/shape", ["a", None], "at /model/inputs/0/shape/1, None is not "),
        ("target/options/batch", 1.5, "at /target/options/batch, 1.5 is not "),
        ("precision", None, "at /precision, None is not of type 'string'"),
        ("keep_fp32", {"a/b": 3}, "at /keep_fp32/a~1b, 3 is not of type 'string'"),
        ("legalized", [{"rule": "r", "name": "n"}], "at /legalized/0, 'change' is a required property"),
        ("verification/steps", [{"runtime": "r"}], "at /verification/steps/0, 'step' is a required property"),
        ("verification/steps", [{"step": "s", "snr_db": "high"}], "at /verification/steps/0/snr_db, 'high' is not of"),
        ("file", ..., "at the top, 'file' is a required property"),
        ("weights/sha256", ..., "at /weights, 'sha256' is a required property"),
        ("files", ..., "at the top, 'files' is a required property"),
        ("schema", 3, "has schema 3, and this edgesmith reads 2: export the model again"),
        ("schema", "2", "has schema '2', and this edgesmith reads 2: export the model again"),
        ("schema", ..., "is no manifest: it names no schema"),
    ],
)
def test_what_a_manifest_must_not_hold_is_one_sentence_with_its_place(
    pointer: str, value: object, said: str, tmp_path: Path
) -> None:
    (tmp_path / MANIFEST).write_text(json.dumps(change(smallest_manifest(), pointer, value)), encoding="utf-8")
    with pytest.raises(BadInput) as raised:
        read(tmp_path)
    assert said in str(raised.value)
    assert str(tmp_path / MANIFEST) in str(raised.value)
    assert "export the model again" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"{", "is damaged or no manifest: Expecting property name enclosed in double quotes in line 1"),
        (b"", "is damaged or no manifest: Expecting value in line 1"),
        (b"\xff\xfe", "is no manifest: it is no text"),
        (b"[]", "is no manifest: it holds no object"),
        (b"3", "is no manifest: it holds no object"),
        (b'{"schema": 2, "file": NaN}', "is no manifest: it holds NaN, and numbers are finite"),
        (b'{"schema": 2, "file": -Infinity}', "is no manifest: it holds -Infinity, and numbers are finite"),
        (b'{"schema": 2}', "is no sound manifest: at the top, 'file' is a required property"),
        (b'{"schema": 1, "file": "x.onnx"}', "is no sound manifest: at the top, 'model' is a required property"),
        (b'{"schema": 99, "file": "x"}', "has schema 99, and this edgesmith reads 2: export the model again"),
        (b"[" * 100_000, "is no manifest: it is nested too deeply"),
    ],
)
def test_what_is_no_manifest_is_one_sentence(text: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_bytes(text)
    with pytest.raises(BadInput) as raised:
        read(tmp_path)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_is_not_written(number: float, tmp_path: Path) -> None:
    step = {"step": "eager -> file", "relative_error": number}
    verification = smallest_manifest()["verification"] | {"steps": [step]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_manifest(tmp_path, smallest_manifest(verification=verification))  # type: ignore[arg-type]
    assert not (tmp_path / MANIFEST).exists()


def test_what_is_written_is_read_and_lists_the_files_that_are_there(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"graph")
    write_manifest(tmp_path, smallest_manifest())  # type: ignore[arg-type]
    found = read(tmp_path)
    assert [(one["path"], one["bytes"]) for one in found.manifest["files"]] == [("m.onnx", 5)]
    assert found.manifest == smallest_manifest(files=found.manifest["files"])


# one key at a time

ENGINE = {
    "version": "10.3.0",
    "compute_capabilities": ["8.7"],
    "bytes": 9,
    "flags": {
        "strongly_typed": True,
        "tf32": False,
        "optimization_level": 3,
        "version_compatible": False,
        "hardware_compatible": False,
        "dla": None,
    },
    "layers": {"network": None, "engine": 3},
    "precisions": {"fp16": 3},
    "synchronisations": 0,
    "types": {"gemm": 3},
    **dict.fromkeys(("weights_bytes", "activations_bytes", "workspace_bytes"), 7),
    "warnings": ["a warning"],
}
KINDS: dict[str, dict[str, Any]] = {
    "a kit": {
        "kit": {
            "board": {**dict.fromkeys(("compute_capability", "tensorrt", "jetpack")), "title": "b", "dla_cores": 0},
            "flags": {"strongly_typed": True, "tf32": False, "optimization_level": 3},
            "thresholds": {"relative_error": 0.1, "snr_db": 20.0},
            "operators": {"Conv": "7.0", "New": None},
        }
    },
    "an engine": {
        "engine": ENGINE,
        "kit": {"onnx": "0" * 64, "cases": "1" * 64},
        "device": {
            "name": "orin",
            "system": "Linux",
            "cpu": "A78",
            "machine": "abc",
            "power_mode": None,
            **dict.fromkeys(("board", "compute_capability", "l4t", "gpu")),
        },
    },
    "a library": {
        "details": {
            "triple": "aarch64",
            "cpu": "a76",
            "memory_bytes": 8,
            "macs": {"tvm": 1},
            "covered": {"tvm": {"add": 1}},
        }
    },
    "a plugin's": {"details": {"plugin": "p", "values": {"fast": True, "cores": 3, "note": None}}},
    "an int8 file": {
        "int8": {
            "layers": 1,
            "sums": 0,
            "macs": {"all": 1},
            "share_of_macs": 0.5,
            "weight_bits": 8,
            "snr_db": None,
            "calibration": {"source": "random", "calls": 2, "held_out": 1, "seeds": "1 to 2", "warning": "w"},
            "joined": True,
        }
    },
}


def places(part: Any, pointer: str = "") -> Iterator[str]:
    """Every object and every value in a manifest, by its pointer."""
    if pointer:
        yield pointer
    pairs = part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ()
    for key, inner in pairs:
        yield from places(inner, f"{pointer}/{key}")


@pytest.mark.parametrize("kind", KINDS)
def test_every_object_is_closed_and_every_value_has_its_type(kind: str, tmp_path: Path) -> None:
    """A key more, in whatever object; another type, of whatever value; a key less is read, or refused."""
    sound = smallest_manifest(**KINDS[kind], files=[{"path": "m.onnx", "bytes": 1, "sha256": "0" * 64}])

    def is_refused(changed: dict[str, Any]) -> bool:
        (tmp_path / MANIFEST).write_text(json.dumps(changed), encoding="utf-8")
        try:
            manifests.read(tmp_path)
        except BadInput:
            return True
        return False

    assert not is_refused(sound)
    for pointer in ("", *places(sound)):
        value: Any = sound
        for key in pointer.split("/")[1:]:
            value = value[int(key) if isinstance(value, list) else key]
        if isinstance(value, dict):
            assert is_refused(change(sound, f"{pointer}/unexpected", [{"deep": "x"}])), pointer
        if pointer:
            assert is_refused(change(sound, pointer, [[{"deep": "x"}]])), pointer
        if pointer and not pointer.rpartition("/")[2].isdigit():
            is_refused(change(sound, pointer, ...))


# schema 1


@pytest.mark.parametrize("name", ["attention-onnx-fp16", "attention-coreml-mixed"])
def test_an_artifact_of_schema_1_is_read_and_verified(name: str) -> None:
    written = json.loads((OLD / name / MANIFEST).read_text(encoding="utf-8"))
    assert written["schema"] == 1
    artifact = read(OLD / name)
    assert artifact.manifest["schema"] == SCHEMA
    assert artifact.manifest["keep_fp32"] == written["wide"] != {}
    assert artifact.manifest.get("legalized") == written.get("mended")
    assert not artifact.manifest.keys() & {"wide", "mended"}
    kept = {key: value for key, value in written.items() if key not in ("schema", "wide", "mended")}
    assert kept.items() <= artifact.manifest.items()
    installed(artifact.target)
    _, steps = edgesmith.verify(OLD / name)
    assert steps[2]["relative_error"] == written["verification"]["steps"][2]["relative_error"]


def test_an_altered_artifact_of_schema_1_is_found(tmp_path: Path) -> None:
    installed("coreml")
    folder = Path(shutil.copytree(OLD / "attention-coreml-mixed", tmp_path / "old"))
    (weights,) = folder.rglob("weight.bin")
    content = bytearray(weights.read_bytes())
    content[-2] ^= 64
    weights.write_bytes(content)
    with pytest.raises(VerificationFailed, match=r"weight\.bin was altered; its numbers are others from .* on"):
        edgesmith.verify(folder)


def test_a_word_of_schema_1_is_unknown_in_schema_2_and_its_new_word_in_schema_1_is_read() -> None:
    assert "mended" not in json.dumps(manifests.schema())
    assert "wide" not in manifests.schema()["properties"]
    assert {"keep_fp32", "legalized"} <= manifests.schema()["properties"].keys()
