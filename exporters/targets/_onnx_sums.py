"""Running sums that TensorRT would take for one another: from 10.8 on it computes two CumSum of a network as one.

    CumSum(x, axis, reverse)   ->   T^-1(F(CumSum(F(T(x)), 0)))     T moves the axis to the front, F turns it round

So where two differ in their axis or direction (TR10 of exporters/departures) all go along axis 0, forwards: the same
sums in the same order, and what is computed as one is one. Files for devices without TensorRT stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx

_CHANGE = "a running sum goes along axis 0, forwards, as all others do"


def align_sums(model: onnx.ModelProto) -> list[dict[str, str]]:
    """Let all running sums of a model go along axis 0, where they differ. Returns what was changed."""
    import onnx

    graph = model.graph
    constants = {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer}
    inferred = onnx.shape_inference.infer_shapes(model).graph
    ranks = {
        one.name: len(one.type.tensor_type.shape.dim)
        for one in (*inferred.value_info, *inferred.input, *inferred.output)
    }
    sums = [_Sum(node, constants, ranks) for node in graph.node if node.op_type == "CumSum"]
    if any(not one.is_known for one in sums) or len({(one.axis, one.is_reversed) for one in sums}) < 2:
        return []
    done = []
    for one in sums:
        if (one.axis, one.is_reversed) != (0, False):
            position = list(graph.node).index(one.node)
            nodes = list(one.aligned())
            graph.node.remove(one.node)
            for number, node in enumerate(nodes):
                graph.node.insert(position + number, node)
            graph.initializer.extend(one.constants())
            done.append({"rule": "TR10", "name": one.node.name, "change": _CHANGE})
    return done


class _Sum:
    """A running sum, with its axis counted from the front."""

    def __init__(self, node: onnx.NodeProto, constants: dict[str, Any], ranks: dict[str, int]) -> None:
        self.node = node
        axis = constants.get(node.input[1])
        self.rank = ranks.get(node.input[0], 0)
        self.axis = int(axis.reshape(-1)[0]) % self.rank if axis is not None and self.rank else 0
        self.is_known = axis is not None and self.rank > 0
        settings = {one.name: one.i for one in node.attribute}
        self.is_reversed = bool(settings.get("reverse", 0))
        self.is_exclusive = int(settings.get("exclusive", 0))
        self._name = node.output[0]

    def aligned(self) -> Iterator[onnx.NodeProto]:
        """Yield the nodes that stand in its place."""
        from onnx import helper

        order = [self.axis, *(axis for axis in range(self.rank) if axis != self.axis)]
        back = [order.index(axis) for axis in range(self.rank)]
        before = [("Transpose", {"perm": order})] if self.axis else []
        turn: list[tuple[str, dict[str, Any]]] = [("Slice", {})] if self.is_reversed else []
        after = [("Transpose", {"perm": back})] if self.axis else []
        steps = [*before, *turn, ("CumSum", {"exclusive": self.is_exclusive}), *turn, *after]
        value = self.node.input[0]
        for number, (kind, settings) in enumerate(steps):
            is_last = number == len(steps) - 1
            result = self._name if is_last else f"{self._name}_aligned_{number}"
            more = {"CumSum": ["axis"], "Slice": ["last", "first", "zero", "step"]}.get(kind, [])
            taken = [value, *(f"{self._name}_{one}" for one in more)]
            name = self.node.name if kind == "CumSum" else f"{self.node.name}_{number}"
            yield helper.make_node(kind, taken, [result], name, **settings)
            value = result

    def constants(self) -> Iterator[onnx.TensorProto]:
        """Yield what its nodes read: all of the axis, from its end to its beginning."""
        from onnx import numpy_helper

        values: dict[str, Any] = {"axis": 0}
        if self.is_reversed:
            values |= {"zero": [0], "last": [-1], "first": [np.iinfo(np.int64).min], "step": [-1]}
        for name, value in values.items():
            yield numpy_helper.from_array(np.array(value, np.int64), f"{self._name}_{name}")
