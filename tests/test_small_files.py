"""The ONNX files of the second zoo's families, small: their nodes, and nothing among them that is constant."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from support.lowering import assert_nothing_constant, lower
from support.small_models import FAMILIES

from edgesmith.exporters import targets
from edgesmith.exporters.graph.capture import capture
from edgesmith.exporters.rewrites.order import rewrite

LEFT_OUT = ("hydra bert", "longvq of frames")
"""As the others of their family."""
SLOW = ("vim2", "tsm2", "longvq of tokens")
"""Their rewritten graphs have goldens of their own."""


@pytest.mark.parametrize(
    "family",
    [pytest.param(one, marks=pytest.mark.slow) if one in SLOW else one for one in FAMILIES if one not in LEFT_OUT],
)
def test_a_file_has_the_nodes_of_the_golden_and_folding_finds_nothing(
    family: str, golden: Callable[[str, str], None], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model, inputs = FAMILIES[family]()
    program, _ = rewrite(capture(model.eval(), inputs), targets.get("onnx").costs)
    file = lower("onnx", program, tmp_path / "small.onnx")
    assert_nothing_constant(tmp_path / "small.onnx")
    counts = sorted(file.count_operators().items())
    golden(f"{family.replace(' ', '_')}.onnx", "".join(f"{count:5} {op}\n" for op, count in counts))


@pytest.mark.parametrize("inside", [False, True], ids=["in the graph", "in a loop's body"])
def test_a_node_of_constants_is_found(inside: bool, tmp_path: Path) -> None:
    def value(name: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, [1])

    two = helper.make_tensor("two", TensorProto.FLOAT, [1], [2.0])
    nodes = [
        helper.make_node("Constant", [], ["three"], value_floats=[3.0]),
        helper.make_node("Mul", ["two", "three"], ["six"]),
        helper.make_node("Add", ["x", "six"], ["y"]),
    ]
    if inside:
        body = helper.make_graph(nodes, "step", [value("x")], [value("y")])
        nodes = [helper.make_node("Scan", ["start"], ["end"], body=body, num_scan_inputs=0)]
        graph = helper.make_graph(nodes, "loop", [value("start")], [value("end")], [two])
    else:
        graph = helper.make_graph(nodes, "graph", [value("x")], [value("y")], [two])
    onnx.save(helper.make_model(graph), tmp_path / "planted.onnx")
    with pytest.raises(AssertionError, match=r"planted\.onnx: Mul six"):
        assert_nothing_constant(tmp_path / "planted.onnx")
