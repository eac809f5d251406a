"""Bilinear samples by gathers, for TensorRT: it sums several GridSample wrongly (TR5), and misreads opset 20's (TR6).

    p      = ((g + 1) size - 1) / 2, or (g + 1) (size - 1) / 2 where corners are aligned    for each axis, in pixels
    i, f   = floor p, p - floor p
    y      = sum over both neighbours of both axes of  weight x[neighbour],  weights 1 - f and f

Outside of the map a weight is 0, or p is moved to its border. The arithmetic is fp32, as positions need more than half
precision has. Other modes, and maps whose sizes a run decides, stay, as do files for devices without TensorRT.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx

MODES, PADDINGS = ("linear", "bilinear"), ("zeros", "border")
_LARGEST = 1 << 24
"""Positions that fp32 counts exactly."""

_CHANGE = "a bilinear GridSample is four gathers and their weighted sum"


def gather_samples(model: onnx.ModelProto) -> list[dict[str, str]]:
    """Write the bilinear GridSample of a model as gathers. Returns what was changed."""
    import onnx

    graph = model.graph
    samples = [node for node in graph.node if node.op_type == "GridSample"]
    if not samples:
        return []
    inferred = onnx.shape_inference.infer_shapes(model).graph
    known = {one.name: one.type.tensor_type for one in (*inferred.value_info, *inferred.input, *inferred.output)}
    stored = {one.name: onnx.helper.make_tensor_type_proto(one.data_type, one.dims) for one in graph.initializer}
    known |= {name: one.tensor_type for name, one in stored.items()}
    done = []
    for node in samples:
        made = _Sample.of(node, known)
        if made is None:
            continue
        position = list(graph.node).index(node)
        made.write()
        graph.node.remove(node)
        for number, one in enumerate(made.nodes):
            one.metadata_props.extend(node.metadata_props)
            graph.node.insert(position + number, one)
        graph.initializer.extend(made.constants)
        rule = "TR5" if len(samples) > 1 else "TR6"
        done.append({"rule": rule, "name": node.name, "change": _CHANGE})
    return done


class _Sample:
    """A GridSample of x [N, C, H, W] by grid [N, h, w, 2], and the nodes in its place."""

    def __init__(
        self, node: onnx.NodeProto, sizes: tuple[list[int], list[int]], types: list[int], settings: dict[str, Any]
    ) -> None:
        self.node, self.settings = node, settings
        (self.batch, self.channels, *self.map), (_, *self.places, _) = sizes
        self.types = types
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    @classmethod
    def of(cls, node: onnx.NodeProto, known: dict[str, Any]) -> _Sample | None:
        """Return one that can be gathers; None for others."""
        from onnx import helper

        settings = {one.name: helper.get_attribute_value(one) for one in node.attribute}
        mode, padding = settings.get("mode", b"linear").decode(), settings.get("padding_mode", b"zeros").decode()
        if mode not in MODES or padding not in PADDINGS or any(name not in known for name in node.input):
            return None
        dims = [known[name].shape.dim for name in node.input]
        x, grid = ([one.dim_value for one in sizes] for sizes in dims)
        if len(x) != 4 or len(grid) != 4 or not all(x + grid) or x[2] * x[3] >= _LARGEST:
            return None
        types = [known[name].elem_type for name in node.input]
        return cls(node, (x, grid), types, {"padding": padding, "aligned": bool(settings.get("align_corners", 0))})

    def op(self, kind: str, *inputs: str, **settings: Any) -> str:
        """Add a node. Returns its result."""
        from onnx import helper

        number = len(self.nodes)
        result = f"{self.node.output[0]}_gathered_{number}"
        self.nodes.append(helper.make_node(kind, list(inputs), [result], f"{self.node.name}_{number}", **settings))
        return result

    def constant(self, value: Any, dtype: type = np.float32) -> str:
        """Add a constant. Returns its name."""
        from onnx import numpy_helper

        name = f"{self.node.output[0]}_number_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.array(value, dtype), name))
        return name

    def single(self, index: int) -> str:
        """Return an operand in fp32."""
        from onnx import TensorProto

        name = str(self.node.input[index])
        return name if self.types[index] == TensorProto.FLOAT else self.op("Cast", name, to=TensorProto.FLOAT)

    def neighbours(self, grid: str, axis: int) -> list[tuple[str, str]]:
        """Return both neighbours along an axis, 0 for rows: positions within the map, and weights [N, h, w]."""
        from onnx import TensorProto

        size = self.map[axis]
        scale = (size - 1) / 2 if self.settings["aligned"] else size / 2
        along = self.op("Gather", grid, self.constant(1 - axis, np.int64), axis=3)
        place = self.op("Add", self.op("Mul", along, self.constant(scale)), self.constant((size - 1) / 2))
        is_border = self.settings["padding"] == "border"
        bounds = (0, size - 1) if is_border else (-2, size + 1)  # beyond those every weight is 0, at infinity too
        place = self.op("Clip", place, *map(self.constant, bounds))
        first = self.op("Floor", place)
        behind = self.op("Sub", place, first)
        found = []
        for step in (0, 1):
            at = first if step == 0 else self.op("Add", first, self.constant(1))
            weight = behind if step else self.op("Sub", self.constant(1), behind)
            inside = self.op("Clip", at, self.constant(0), self.constant(size - 1))
            if not is_border:
                is_inside = self.op("Cast", self.op("Equal", at, inside), to=TensorProto.FLOAT)
                weight = self.op("Mul", weight, is_inside)
            found.append((inside, weight))
        return found

    def write(self) -> None:
        """Add all nodes; the last one makes what GridSample made."""
        from onnx import TensorProto

        count = self.places[0] * self.places[1]
        rows = self.constant([self.batch, 1, count], np.int64)
        taken = self.constant([self.batch, self.channels, count], np.int64)
        flat = self.constant([self.batch, self.channels, self.map[0] * self.map[1]], np.int64)
        pixels = self.op("Reshape", self.single(0), flat)
        grid = self.single(1)
        total = ""
        across = self.neighbours(grid, 1)
        for y, by_row in self.neighbours(grid, 0):
            for x, by_column in across:
                place = self.op("Add", self.op("Mul", y, self.constant(self.map[1])), x)
                index = self.op("Reshape", self.op("Cast", place, to=TensorProto.INT64), rows)
                value = self.op("GatherElements", pixels, self.op("Expand", index, taken), axis=2)
                weight = self.op("Reshape", self.op("Mul", by_row, by_column), rows)
                term = self.op("Mul", value, weight)
                total = self.op("Add", total, term) if total else term
        made = self.constant([self.batch, self.channels, *self.places], np.int64)
        self.op("Reshape", total, made)
        if self.types[0] != TensorProto.FLOAT:
            self.op("Cast", self.nodes[-1].output[0], to=self.types[0])
        self.nodes[-1].output[0] = self.node.output[0]
