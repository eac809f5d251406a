"""Products of one value by several matrices, for TensorRT: it fuses them side by side, and wrongly.

    x W1, x W2, ...   ->   x [W1 | W2 | ...], split

So the projections of one input become one product. Every number is the same sum of the same terms. It is done for GPUs
of compute capability 11.0, where two or three products of one layer norm come out corrupt (TR3 of
exporters/departures), and elsewhere for three and more in half precision over a batch of 2 or more, for TensorRT 10.6
to 10.16 (TR2). Matrices that are computed, or quantised by scales that cannot be put side by side, stay, as do files
for devices without TensorRT.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx

    from edgesmith.profiles.device import Cuda

CORRUPT = "11.0"
"""The compute capability of TR3."""

SINCE, FIXED = (10, 6), (11, 0)
"""The versions of TR2: from the first on, before the second."""

_CHANGE = "{count} products of one input are one, whose result is split"


def join_projections(model: onnx.ModelProto, cuda: Cuda) -> list[dict[str, str]]:
    """Join the products with constants that read one value, for a GPU. Returns what was changed."""
    import onnx

    graph = model.graph
    inferred = onnx.shape_inference.infer_shapes(model).graph
    types = {one.name: one.type.tensor_type for one in (*inferred.value_info, *inferred.input, *inferred.output)}
    matrices = _Matrices(graph)
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        if node.op_type in ("MatMul", "Gemm") and matrices.is_product(node):
            readers.setdefault(node.input[0], []).append(node)
    done = []
    for value, products in readers.items():
        rule = _rule(len(products), types.get(value), cuda)
        if rule is None or not matrices.fit(products):
            continue
        position = list(graph.node).index(products[0])
        nodes = list(matrices.joined(products))
        for node in products:
            graph.node.remove(node)
        for number, node in enumerate(nodes):
            graph.node.insert(position + number, node)
        done.append({"rule": rule, "name": products[0].name, "change": _CHANGE.format(count=len(products))})
    if done:
        matrices.sweep()
    return done


def _rule(count: int, read: Any, cuda: Cuda) -> str | None:
    """Return the departure that products of one value would meet; None where there is none."""
    from onnx import TensorProto

    if count >= 2 and cuda.compute_capability in (CORRUPT, ""):
        return "TR3"
    sizes = [] if read is None else list(read.shape.dim)
    is_batch = len(sizes) > 2 and sizes[0].dim_value != 1
    if count < 3 or not is_batch or read.elem_type != TensorProto.FLOAT16:
        return None
    version = SINCE if cuda.tensorrt is None else tuple(map(int, cuda.tensorrt.split(".")))
    return "TR2" if SINCE <= version < FIXED else None


class _Matrices:
    """The constant matrices of a graph's products: stored as they are, or behind a DequantizeLinear."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph
        self.stored = {one.name: one for one in graph.initializer}
        self.makers = {name: node for node in graph.node for name in node.output}

    def is_product(self, node: onnx.NodeProto) -> bool:
        """Return whether a node multiplies by a constant matrix [C, C'], and adds a constant row at most."""
        given = {one.name: one for one in node.attribute}
        plain = not (given["transA"].i if "transA" in given else 0)
        plain = plain and all(given[name].f == 1 for name in ("alpha", "beta") if name in given)
        weight = self._weight(node.input[1])
        return plain and weight is not None and len(weight.dims) == 2 and all(n in self.stored for n in node.input[2:])

    def fit(self, products: list[onnx.NodeProto]) -> bool:
        """Return whether products' matrices are of one type, and of one kind of scale, so that they can be one."""
        makers = [self._maker(one) for one in products]
        if all(maker is None for maker in makers):
            return len({self._type(one.input[1]) for one in products}) == 1
        is_alike = len({(len(maker.input), self._type(maker.input[0])) for maker in makers if maker is not None}) == 1
        return is_alike and all(map(self._has_scale_each, products, makers))

    def joined(self, products: list[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
        """Yield the nodes in products' place: one product, its split, and the rows that were added."""
        from onnx import helper

        first = products[0]
        whole, result = f"{first.output[0]}_matrix", f"{first.output[0]}_joined"
        nodes = list(self._put_matrix(products, whole))
        widths = [self._upright(one).shape[1] for one in products]
        nodes.append(helper.make_node("MatMul", [first.input[0], whole], [result], first.name))
        ends = [f"{one.output[0]}_plain" if len(one.input) > 2 else one.output[0] for one in products]
        cuts = self._put(f"{result}_widths", np.array(widths, np.int64))
        nodes.append(helper.make_node("Split", [result, cuts], ends, f"{first.name}_split", axis=-1))
        nodes += [
            helper.make_node("Add", [end, one.input[2]], [one.output[0]], f"{one.name}_bias")
            for one, end in zip(products, ends, strict=True)
            if len(one.input) > 2
        ]
        for node in nodes:
            node.metadata_props.extend(first.metadata_props)
            yield node

    def _put_matrix(self, products: list[onnx.NodeProto], name: str) -> Iterator[onnx.NodeProto]:
        """Store products' matrices as one of a name; yield the node that dequantises it, where they have some."""
        from onnx import helper

        matrix = np.concatenate([self._upright(one) for one in products], 1)
        makers = [maker for maker in map(self._maker, products) if maker is not None]
        if not makers:
            self._put(name, matrix)
            return
        parts = [self._put(f"{name}_quantised", matrix)]
        for number in range(1, len(makers[0].input)):
            rows = [self._numbers(maker.input[number]).reshape(-1) for maker in makers]
            parts.append(self._put(f"{name}_{number}", np.concatenate(rows)))
        yield helper.make_node("DequantizeLinear", parts, [name], f"{makers[0].name}_matrix", axis=1)

    def _upright(self, node: onnx.NodeProto) -> np.ndarray:
        """Return a product's matrix as [C, C'], as it is stored."""
        maker = self._maker(node)
        numbers = self._numbers(node.input[1] if maker is None else maker.input[0])
        return numbers.T if self._is_turned(node) else numbers

    def sweep(self) -> None:
        """Drop the matrices that nothing reads any more, and what dequantised them."""
        while True:
            read = {name for node in self.graph.node for name in _reads(node)} | {one.name for one in self.graph.output}
            idle = [one for one in self.graph.node if one.op_type == "DequantizeLinear" and one.output[0] not in read]
            for node in idle:
                self.graph.node.remove(node)
            if not idle:
                break
        for one in [one for one in self.graph.initializer if one.name not in read]:
            self.graph.initializer.remove(one)

    def _maker(self, node: onnx.NodeProto) -> onnx.NodeProto | None:
        return self.makers.get(node.input[1])

    def _weight(self, name: str) -> onnx.TensorProto | None:
        """Return the stored numbers of a matrix."""
        maker = self.makers.get(name)
        if maker is not None:
            return self.stored.get(maker.input[0]) if maker.op_type == "DequantizeLinear" else None
        return self.stored.get(name)

    def _is_turned(self, node: onnx.NodeProto) -> bool:
        """Return whether a product's matrix is stored as [C', C]."""
        return any(one.name == "transB" and one.i == 1 for one in node.attribute)

    def _has_scale_each(self, node: onnx.NodeProto, maker: onnx.NodeProto | None) -> bool:
        """Return whether a matrix is dequantised by one scale a column of the product."""
        if maker is None or any(name not in self.stored for name in maker.input):
            return False
        axis = next((one.i for one in maker.attribute if one.name == "axis"), 1) % 2
        sizes, columns = self.stored[maker.input[0]].dims, 0 if self._is_turned(node) else 1
        return axis == columns and all(math.prod(self.stored[n].dims) == sizes[columns] for n in maker.input[1:])

    def _type(self, name: str) -> int | None:
        return self.stored[name].data_type if name in self.stored else None

    def _numbers(self, name: str) -> np.ndarray:
        from onnx import numpy_helper

        return numpy_helper.to_array(self.stored[name])

    def _put(self, name: str, numbers: np.ndarray) -> str:
        from onnx import numpy_helper

        self.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(numbers), name))
        return name


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    """Yield the values that a node reads, in its bodies too."""
    yield from node.input
    for attribute in node.attribute:
        for body in (attribute.g, *attribute.graphs):
            for inner in body.node:
                yield from _reads(inner)
            yield from (one.name for one in body.output)
