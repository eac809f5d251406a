"""Which TensorRT has which ONNX operator: the table, where it is measured, and what is refused because of it."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

import edgesmith
from edgesmith.errors import Unsupported
from edgesmith.exporters import targets
from edgesmith.exporters.artifact import Artifact
from edgesmith.profiles import operators

ZOO = [
    "Add",
    "BatchNormalization",
    "Cast",
    "Clip",
    "Concat",
    "Conv",
    "Gather",
    "Gelu",
    "Gemm",
    "GlobalAveragePool",
    "InstanceNormalization",
    "LayerNormalization",
    "LessOrEqual",
    "MatMul",
    "Mul",
    "ReduceMean",
    "Relu",
    "Reshape",
    "Scan",
    "Sigmoid",
    "Slice",
    "Softmax",
    "Split",
    "Sub",
    "ThresholdedRelu",
    "Transpose",
]
"""What the typed ONNX of every model uses, fp32 and fp16 (`count_operators` of one model of each kind)."""


def test_every_row_has_a_version_and_a_source() -> None:
    table = tomllib.loads(Path(operators.__file__).with_name("tensorrt-ops.toml").read_text(encoding="utf-8"))
    assert all("github.com" in source for source in table["sources"].values())
    used = {row["source"] for row in table["operators"].values()}
    assert used == table["sources"].keys()
    for name, row in table["operators"].items():
        assert row["since"] == operators.NEVER or len(row["since"].split(".")) == 2, name
    assert list(table["operators"]) == sorted(table["operators"], key=str.lower)


def test_every_operator_of_the_zoo_is_in_the_table_and_on_every_board() -> None:
    for name in ZOO:
        assert operators.all_operators()[name].rtx, name
        assert operators.lacks(name, "10.3") is None, name


def test_the_column_of_tensorrt_rtx_is_what_its_parser_says() -> None:
    if targets.get("tensorrt").missing_packages():
        pytest.skip("tensorrt_rtx is not installed")
    import tensorrt_rtx as trt

    log = trt.Logger(trt.Logger.ERROR)
    network = trt.Builder(log).create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    told = {name: bool(parser.supports_operator(name)) for name in operators.all_operators()}
    assert told == {name: row.rtx for name, row in operators.all_operators().items()}


@pytest.mark.parametrize(
    ("operator", "version", "why"),
    [
        ("Conv", "8.6", None),
        ("LayerNormalization", "8.5", "TensorRT has it from 8.6 on"),
        ("LayerNormalization", "10.3", None),
        ("ReduceMean", "9.3", "TensorRT has it from 10.3 on"),  # axes as an input are passed over before
        ("ReduceSum", "8.6", None),
        ("ReduceLogSumExp", "10.13", "TensorRT has it from 10.15 on"),
        ("STFT", "10.3", "TensorRT has it from 10.5 on"),
        ("STFT", "10.13", None),  # no comparison of text
        ("DFT", "10.13", "TensorRT has it from 11.2 on"),
        ("DFT", "11.4", None),
        ("DFT", None, "TensorRT has it from 11.2 on"),
        ("Unique", "11.4", "no TensorRT up to 11.4 has it"),
        ("Unique", None, "no TensorRT up to 11.4 has it"),
        ("SomebodysOwn", "10.3", None),
    ],
)
def test_what_a_version_lacks(operator: str, version: str | None, why: str | None) -> None:
    assert operators.lacks(operator, version) == why


class Bits(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x > 0).to(torch.int32) & (x > 1).to(torch.int32)


@pytest.mark.parametrize(
    ("device", "sentence"),
    [
        (
            "jetson-orin-nano",
            r"TensorRT 10\.3, which Jetson Orin Nano has \(JetPack 6\.2\), has no BitwiseAnd as at .*BitwiseAnd_\d+.*:"
            r" no TensorRT up to 11\.4 has it",
        ),
        ("rtx4070", r"TensorRT-RTX 1\.7 has no BitwiseAnd as at .*: no TensorRT up to 11\.4 has it"),
    ],
)
def test_export_refuses_what_the_devices_tensorrt_lacks(device: str, sentence: str, tmp_path: Path) -> None:
    if targets.get("tensorrt").missing_packages():
        pytest.skip("tensorrt_rtx is not installed")
    with pytest.raises(Unsupported, match=rf"^{sentence}$"):
        edgesmith.export(Bits(), "tensorrt", device=device, inputs=torch.randn(2, 3), out=tmp_path)
    assert list(tmp_path.iterdir()) == []


class Reductions(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x = nn.functional.pad(x, (1, 2, 0, 1))
        return x.mean(2), x.sum(1), x.amax(1), x.amin(1), x.prod(1), torch.linalg.vector_norm(x, dim=1)


def test_axes_are_inputs_of_reductions_and_not_of_pads(tmp_path: Path) -> None:
    """The form that the table's rows are about."""
    artifact = edgesmith.export(Reductions(), "onnx", inputs=torch.randn(2, 3, 8, 8), out=tmp_path, name="r")
    nodes = onnx.load(str(artifact.file)).graph.node
    reductions = [node for node in nodes if node.op_type.startswith("Reduce")]
    assert len(reductions) == 6
    assert all(len(node.input) == 2 for node in reductions)
    assert not any(attribute.name == "axes" for node in reductions for attribute in node.attribute)
    assert [len([name for name in node.input if name]) <= 3 for node in nodes if node.op_type == "Pad"] == [True]


@pytest.mark.parametrize("operator", [name for name in operators.all_operators() if name.startswith("Reduce")])
def test_tensorrt_rtx_reads_the_axes_of_reductions(operator: str) -> None:
    if targets.get("tensorrt").missing_packages():
        pytest.skip("tensorrt_rtx is not installed")
    import tensorrt_rtx as trt

    node = onnx.helper.make_node(operator, ["x", "axes"], ["y"])
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2, None, 4]) for name in "xy"]
    values[0].type.tensor_type.shape.dim[1].dim_value = 3
    axes = onnx.helper.make_tensor("axes", onnx.TensorProto.INT64, [1], [1])
    graph = onnx.helper.make_graph([node], "g", values[:1], values[1:], [axes])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    log = trt.Logger(trt.Logger.ERROR)
    network = trt.Builder(log).create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    assert trt.OnnxParser(network, log).parse(model.SerializeToString())
    assert tuple(network.get_output(0).shape) == (2, 1, 4)


def test_a_kit_knows_since_when_there_are_its_operators(export_small: Callable[..., Artifact]) -> None:
    found = export_small("tensorrt", device="jetson-orin-nano", precision="fp16").manifest["kit"]["operators"]
    assert found["Gelu"] == "10.0"
    assert None not in found.values()
