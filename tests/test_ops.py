"""Time per operator: what a profile says, and where in the model its operators come from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import helper
from support.manifests import smallest_manifest
from torch import nn

import edgesmith
from edgesmith import cli
from edgesmith.bench import measurement, runner
from edgesmith.bench.measurement import Operator
from edgesmith.bench.operators import group_by_module, group_by_op, ops_of_nodes, place_layers, place_operators
from edgesmith.errors import BadInput
from edgesmith.exporters.artifact import Artifact
from edgesmith.exporters.tensorrt import engine as engines


def run(ts: int, dur: int) -> dict[str, Any]:
    return {"cat": "Session", "name": "model_run", "ts": ts, "dur": dur, "args": {}}


def node(name: str, ts: int, dur: int, kind: str = "Conv") -> dict[str, Any]:
    return {"cat": "Node", "name": f"{name}_kernel_time", "ts": ts, "dur": dur, "args": {"op_name": kind}}


def test_a_profile_gives_medians_of_the_calls_after_the_warm_up() -> None:
    calls = [(0, 900), (1000, 100), (2000, 300), (3000, 200)]  # the first is warm-up
    events = [event for ts, dur in calls for event in (run(ts, dur), node("a", ts + 1, dur // 2))]
    found = runner.time_operators(events, skipped=1)
    assert found["calls"] == 3
    assert found["call_ms"] == 0.2
    assert found["operators"] == [{"name": "a", "type": "Conv", "ms": 0.1}]


def test_a_body_is_part_of_its_loop_and_several_runs_of_a_node_in_a_call_add_up() -> None:
    events = [run(0, 1000), node("loop", 10, 500, "Scan"), node("body", 20, 100), node("body", 200, 100)]
    events += [node("after", 510, 20), node("after", 530, 30)]
    found = {one["name"]: one["ms"] for one in runner.time_operators(events, skipped=0)["operators"]}
    assert found == {"loop": 0.5, "after": 0.05}


def test_nodes_that_unnamed_values_connect_within_a_module_are_one_op() -> None:
    def chain(*nodes: tuple[str, str, str, str]) -> onnx.GraphProto:
        made = [helper.make_node(kind, [read], [written], name=name) for name, kind, read, written in nodes]
        value = helper.make_tensor_value_info("logits", 1, [1])
        return helper.make_graph(made, "g", [], [value])

    graph = chain(
        ("a/Mul_0", "Mul", "x", "val_1"),
        ("a/Add_1", "Add", "val_1", "additive_attention_3"),
        ("b/Reshape_2", "Reshape", "additive_attention_3", "val_4"),
        ("c/MatMul_3", "MatMul", "val_4", "mixer_2__1"),
        ("c/MatMul_4", "MatMul", "mixer_2__1", "getitem"),
        ("d/MatMul_5", "MatMul", "getitem", "val_5"),
        ("d/Reshape_6", "Reshape", "val_5", "getitem_2"),  # nothing reads its other result, which would name it
        ("e/Gemm_7", "Gemm", "getitem_2", "logits"),
    )
    ops = ["additive_attention"] * 2 + ["reshape"] + ["mixer"] * 4 + ["gemm"]
    assert list(ops_of_nodes(graph).values()) == ops


@pytest.mark.wheel
def test_every_operator_that_onnxruntime_runs_is_placed(export_small: Callable[..., Artifact]) -> None:
    artifact = export_small("onnx")
    found = runner.operators_onnxruntime(str(artifact.file), 1, 0, 0.0)
    operators = place_operators(
        [Operator(o["name"], o["type"], None, None, o["ms"]) for o in found["operators"]], artifact.file
    )
    assert found["calls"] == runner.FEWEST_PROFILED
    unplaced = [one for one in operators if one.op is None and not one.type.startswith("Reorder")]
    assert not unplaced
    modules = {one.module for one in operators if one.op == "additive_attention"}
    assert modules == {
        report["site"]
        for rewrite in artifact.manifest["rewrites"]
        for report in rewrite["applied"]
        if rewrite["name"] == "fuse_additive_attention"
    }
    kinds = {one.type for one in operators if one.op == "additive_attention"}
    assert "Conv" in kinds  # in blocks of channels, under the name of a value


def test_groups_add_up_and_modules_are_joined_by_the_first_names_of_their_paths() -> None:
    names = ["s.0.a.x", "s.0.a.y", "s.0.b", "s.1.a", None]
    operators = [Operator(str(i), "Conv", "conv2d", name, i + 1.0) for i, name in enumerate(names)]
    operators.append(Operator("r", "ReorderInput", None, None, 0.5))
    assert group_by_op(operators) == {"conv2d": (15.0, 5), "layout": (0.5, 1)}
    deep = {"(no module)": (5.0, 1), "s.1.a": (4.0, 1), "s.0.b": (3.0, 1), "s.0.a.y": (2.0, 1), "s.0.a.x": (1.0, 1)}
    assert group_by_module(operators) == {**deep, "layout": (0.5, 1)}
    flat = {"s.0": (6.0, 3), "(no module)": (5.0, 1), "s.1": (4.0, 1), "layout": (0.5, 1)}
    assert group_by_module(operators, most=4) == flat


def engine_with(folder: Path, *layers: tuple[str, str, list[str]]) -> Path:
    """Where an engine would lie, with what the builder wrote down of its layers: name, type, ONNX nodes."""
    listed = [{"name": name, "type": kind, "precision": "fp16", "nodes": nodes} for name, kind, nodes in layers]
    (folder / "layers.json").write_text(json.dumps({"layers": listed}))
    return folder / "model.engine"


def test_layers_of_an_engine_are_all_that_was_joined_in_them(tmp_path: Path) -> None:
    names = ["s.0/Conv_0", "s.0/Relu_1", "s.1.a/Conv_2", "s.1.b/Sigmoid_3", "s.1.b/Mul_4", "head/Gemm_5"]
    values = ["x", "conv2d", "relu", "conv2d_1", "sigmoid", "mul", "logits"]
    made = [
        helper.make_node(name.rpartition("/")[2].partition("_")[0], [read], [written], name=name)
        for name, read, written in zip(names, values, values[1:], strict=False)
    ]
    value = helper.make_tensor_value_info("logits", 1, [1])
    file = engine_with(
        tmp_path,
        ("s.0/Conv_0 + s.0/Relu_1", "CaskConvolution", []),
        ("__myl_CastConvMul_myl0_0", "kgen", [*names[2:5], "s.1.b/Cast_99"]),
        ("Reformatting CopyNode for Input Tensor 0 to s.0/Conv_0 + s.0/Relu_1", "Reformat", []),
        ("signal", "signal", []),
        ("head/Gemm_5", "MatrixMultiply", []),
    )
    onnx.save(helper.make_model(helper.make_graph(made, "g", [], [value])), str(tmp_path / "model.onnx"))
    listed = json.loads((tmp_path / "layers.json").read_text())["layers"]
    seen = [layer["name"] for layer in listed] + [
        "PWN(s.1.b/Sigmoid_3, s.1.b/Mul_4)",
        "{ForeignNode[s.0/Conv_0...head/Gemm_5]}",
    ]
    found = place_layers([Operator(name, "", None, None, 1.0) for name in seen], file)
    assert [(one.type, one.op, one.module) for one in found] == [
        ("CaskConvolution", "conv2d + relu", "s.0"),
        ("kgen", "conv2d + sigmoid + mul + 1 more", "s.1"),
        ("Reformat", None, None),
        ("signal", None, None),
        ("MatrixMultiply", "gemm", "head"),
        ("", "sigmoid + mul", "s.1.b"),
        ("", "conv2d + gemm", None),
    ]
    assert group_by_op(found)["layout"] == (1.0, 1)
    assert group_by_module(found)["layout"] == (1.0, 1)


def test_layers_that_tensorrt_recorded_are_placed_by_the_names_of_their_nodes(fixtures: Path, tmp_path: Path) -> None:
    (layer,) = engines.inspect(fixtures / "inspector_11.json")["layers"]
    listed = {"path": "model.engine", "bytes": 0, "sha256": "0" * 64}
    manifest = smallest_manifest(file="model.engine", precision="fp16", files=[listed])
    manifest["target"]["name"] = "tensorrt"
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    file = engine_with(tmp_path, (layer["name"], layer["type"], layer["nodes"]))
    (found,) = place_layers([Operator(layer["name"], "", None, None, 1.0)], file)
    assert (found.type, found.op, found.module) == ("kgen", "cast + transpose + conv", None)

    layers = engines.inspect(fixtures / "inspector_10.json")["layers"]
    file = engine_with(tmp_path, *((layer["name"], layer["type"], layer["nodes"]) for layer in layers))
    made = [
        helper.make_node("QuantizeLinear", ["w", "s"], ["quantize"], name="QuantizeLinear_20"),
        helper.make_node("Conv", ["x", "quantize"], ["conv2d"], name="Conv_22"),
    ]
    value = helper.make_tensor_value_info("conv2d", 1, [1])
    onnx.save(helper.make_model(helper.make_graph(made, "g", [], [value])), str(tmp_path / "model.onnx"))
    placed = place_layers([Operator(layer["name"], "", None, None, 1.0) for layer in layers], file)
    assert [(one.type, one.op) for one in placed] == [
        ("Reformat", None),
        ("CaskConvolution", "quantize + conv"),  # beside the weight's name
        ("NoOp", None),
    ]


def test_bench_ops_keeps_time_per_operator_beside_the_samples(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3))
    artifact = edgesmith.export(model, "onnx", inputs=(torch.randn(1, 3, 48, 48),), name="tiny", out=tmp_path).path
    record = tmp_path / "record.json"
    options = ["--seconds", "0.1", "--launches", "1", "--out", str(record)]
    assert cli.run(["bench", str(artifact), "--ops", *options]) == 0
    shown = capsys.readouterr().out
    kept = measurement.read(record).subjects[0].profile
    assert kept is not None
    assert {one.op for one in kept.operators} >= {"conv2d"}
    assert {one.module for one in kept.operators if "Conv" in one.type} == {"0", "2"}
    assert "conv2d" in shown
    assert cli.run(["bench", str(artifact), *options]) == 0
    assert "profile" not in json.loads(record.read_text())["subjects"][0]


def test_operators_that_took_less_than_nothing_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    operators = [{"name": "a", "type": "Conv", "op": None, "module": None, "ms": -1.0}]
    profile = {"calls": 1, "call_ms": 1.0, "operators": operators}
    subject = {"name": "s", "model": "m", "target": "onnx", "precision": "fp32", "runtime": "onnxruntime"}
    subject |= {"sha256": "0" * 64, "bytes": 1, "cold": None, "profile": profile}
    device = {"name": "host", "system": "s", "cpu": "c", "machine": "m", "power_mode": None}
    record = {"schema": 1, "edgesmith": "0", "complete": True, "started": "", "device": device, "runtimes": {}}
    record |= {
        "threads": 1,
        "cores": None,
        "seconds": 1,
        "slot_ms": 1,
        "seed": 0,
        "subjects": [subject],
        "launches": [],
    }
    path.write_text(json.dumps(record))
    with pytest.raises(BadInput, match=r"at /subjects/0/profile/operators/0/ms, -1\.0 is less than"):
        measurement.read(path)
