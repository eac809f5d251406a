"""Sigmoids of which somebody reads the digits: ONNX Runtime's have those of a number around 1.

    Log(Sigmoid(x)), y / Sigmoid(x) ...   ->   Log(1 / (1 + exp(-x))) ...

Its kernel is a half plus a rational function, off by up to 8e-8 wherever x is: nothing beside the numbers that a gate
or a score is added to or multiplied with, and -inf for log(sigmoid(-18)). Two operators more are no price for what is
not a number otherwise. A sigmoid that is read by anything else stays one: see docs/decisions/0144.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

READERS = {"Div": 1, "Log": 0, "Pow": 0, "Reciprocal": 0, "Sqrt": 0}
"""Operators whose result hangs on how large a small number is, with the position of that number."""

_HANDING_ON = frozenset(
    {"Cast", "Expand", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"}
)
"""Operators that do nothing to numbers."""


def keep_digits(model: onnx.ModelProto) -> None:
    """Spell the sigmoids of a model that are read for their digits, so that small ones have them."""
    import numpy as np
    import onnx

    graph = model.graph
    wanted: set[str] = set()
    for node in reversed(graph.node):
        place = READERS.get(node.op_type)
        if place is not None and place < len(node.input):
            wanted.add(node.input[place])
        elif node.op_type in _HANDING_ON and node.output[0] in wanted:
            wanted.add(node.input[0])
    known = {
        one.name: one.type.tensor_type.elem_type for one in onnx.shape_inference.infer_shapes(model).graph.value_info
    }
    nodes = list(graph.node)
    chosen = [n for n in nodes if n.op_type == "Sigmoid" and n.output[0] in wanted]
    chosen = [n for n in chosen if known.get(n.output[0]) == onnx.TensorProto.FLOAT]
    if not chosen:
        return
    one = f"{chosen[0].name}_one"
    graph.initializer.append(onnx.numpy_helper.from_array(np.ones((), dtype=np.float32), one))
    del graph.node[:]
    for node in nodes:
        graph.node.extend(_spelled(node, one) if any(node is other for other in chosen) else [node])


def _spelled(node: onnx.NodeProto, one: str) -> list[onnx.NodeProto]:
    """Return 1 / (1 + exp(-x)) in place of a sigmoid."""
    from onnx import helper

    made = node.output[0]
    minus, power, total = (f"{made}_{word}" for word in ("minus", "power", "total"))
    return [
        helper.make_node("Neg", [node.input[0]], [minus], name=f"{node.name}_minus"),
        helper.make_node("Exp", [minus], [power], name=f"{node.name}_power"),
        helper.make_node("Add", [power, one], [total], name=f"{node.name}_total"),
        helper.make_node("Reciprocal", [total], [made], name=node.name),
    ]
