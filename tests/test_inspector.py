"""Engine inspectors of both generations give the same report; what is no inspector's JSON is a sentence."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgesmith.errors import Unreadable
from edgesmith.exporters.tensorrt import engine
from edgesmith.exporters.tensorrt.kit import build as board


def load(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def test_a_recording_of_tensorrt_10_is_read(fixtures: Path) -> None:
    report = engine.inspect(fixtures / "inspector_10.json")
    assert report["kind"] == "layers"
    assert report["tensors"] == ["input.1", "476"]
    assert report["precisions"] == {"fp32": 1, "int8": 2}
    assert report["types"] == {"CaskConvolution": 1, "NoOp": 1, "Reformat": 1}
    assert report["layers"][1] == {
        "name": "layer1.0.conv1.weight + QuantizeLinear_20 + Conv_22",
        "type": "CaskConvolution",
        "precision": "int8",
        "nodes": [],
    }


def test_a_recording_of_tensorrt_11_is_read(fixtures: Path) -> None:
    report = engine.inspect(fixtures / "inspector_11.json")
    assert report["tensors"] == ["pixels", "logits"]
    assert report["layers"] == [
        {
            "name": "__myl_CastTranReshMulAdd_myl0_0",
            "type": "kgen",
            "precision": "fp16",
            "nodes": ["Cast_0", "Transpose_1", "conv1/Conv_2"],
        }
    ]


def test_the_json_of_tensorrt_11_says_what_the_log_of_the_same_layer_does(fixtures: Path) -> None:
    log = [("VERBOSE", (fixtures / "inspector_11.txt").read_text(encoding="utf-8"))]
    (layer,) = engine.condense(log, 1)["layers"]
    layer["nodes"] = list(layer["nodes"])
    assert [layer] == engine.inspect(fixtures / "inspector_11.json")["layers"]


def to_generation(information: dict[str, Any], generation: int) -> dict[str, Any]:
    """The same engine as the other generation writes it."""
    rewritten = copy.deepcopy(information)
    for layer in rewritten["Layers"]:
        for tensor in (*layer["Inputs"], *layer["Outputs"]):
            words = tensor.pop("Format/Datatype", None) or tensor.pop("Datatype")
            if generation == 10:
                tensor["Format/Datatype"] = words
                tensor.pop("Format", None)
            else:
                tensor["Format"] = words
                tensor["Datatype"] = {"fp32": "Float", "fp16": "Half", "int8": "Int8"}[board.precision_of(words)]
    names = board.tensors_of(information)
    for key in ("Bindings", "I/O Tensors"):
        rewritten.pop(key, None)
    if generation == 10:
        return rewritten | {"Bindings": names}
    return rewritten | {"I/O Tensors": [{"Name": name} for name in names]}


@pytest.mark.parametrize(("recording", "other"), [("inspector_10.json", 11), ("inspector_11.json", 10)])
def test_both_generations_of_an_engine_give_the_same_report(
    recording: str, other: int, fixtures: Path, tmp_path: Path
) -> None:
    information = load(fixtures / recording)
    rewritten = to_generation(information, other)
    assert rewritten != information
    path = tmp_path / "other.json"
    path.write_text(json.dumps(rewritten), encoding="utf-8")
    expected = engine.inspect(fixtures / recording)
    assert engine.inspect(path) == {**expected, "path": str(path)}


@pytest.mark.parametrize(
    ("words", "precision"),
    [
        ("Row major linear FP32", "fp32"),
        ("Float", "fp32"),
        ("Half", "fp16"),
        ("Channel major FP16 format where channel % 8 == 0", "fp16"),
        ("Row major linear BFloat16 format", "bf16"),
        ("Thirty-two wide channel vectorized row major Int8 format", "int8"),
        ("Row major linear Int64 format", "int64"),
        ("Row major linear FP8 format", "fp8"),
        ("FP4E2M1", "fp4"),
        ("Unknown format", "unknown"),
        ("", "none"),
    ],
)
def test_every_way_to_write_a_type_is_known(words: str, precision: str) -> None:
    assert board.precision_of(words) == precision


def test_an_engine_without_detailed_profiling_has_names_only(tmp_path: Path) -> None:
    path = tmp_path / "names.json"
    path.write_text(json.dumps({"Layers": ["conv0 + relu0", "pool0"], "Bindings": ["x", "y"]}), encoding="utf-8")
    report = engine.inspect(path)
    assert [layer["name"] for layer in report["layers"]] == ["conv0 + relu0", "pool0"]
    assert report["precisions"] == {"unknown": 2}


def test_a_layer_without_outputs_is_counted_as_a_signal() -> None:
    layer = {"Name": "wait", "LayerType": "wait", "Inputs": [], "Outputs": []}
    report = board.condense((), None, board.read_inspector({"Layers": [layer]}))
    assert board.summarise(report)["synchronisations"] == 1


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"Layers": 3}',
        '{"Layers": [{"LayerType": "kgen"}]}',
        '{"Layers": [{"Name": "a", "Outputs": {"Name": "y"}}]}',
        '{"Layers": [], "I/O Tensors": ["x"]}',
        '{"Layers": [], "I/O Tensors": [{}]}',
        '{"Layers": [], "I/O Tensors": {"Name": "x"}}',
        '{"Layers": [], "Bindings": null}',
        '{"Layers": [], "Bindings": [3]}',
    ],
)
def test_what_is_no_inspectors_json_is_one_sentence(content: str, tmp_path: Path) -> None:
    path = tmp_path / "layers.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(Unreadable, match=r"layers\.json is no inspector's JSON .*trtexec --exportLayerInfo writes"):
        engine.inspect(path)


def test_inspect_shows_an_inspectors_json(fixtures: Path, edgesmith: Callable[..., Any]) -> None:
    shown = edgesmith("inspect", str(fixtures / "inspector_10.json")).stdout
    for part in ("input.1, 476", "fp32 1, int8 2", "CaskConvolution 1"):
        assert part in shown
