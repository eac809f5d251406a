"""The graph of an ONNX file. Shapes are inferred where they are not written; weights are read when a detector asks.

Other spellings of the same become one: functions of the model stand where they are called, what reads a copy reads what
was copied, names of a body that are taken elsewhere are others, operators that are several (compounds.py) are those.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edgesmith.errors import Unsupported
from edgesmith.exporters.departures.compounds import COMPOUNDS, Part
from edgesmith.exporters.departures.graph import Graph, Node, Shape, Value, same_pads
from edgesmith.readers.messages import infer_shapes

if TYPE_CHECKING:
    import onnx

_KINDS = {
    "ConvTranspose": "conv_transpose",
    "MatMul": "matmul",
    "Gemm": "linear",
    "MaxPool": "max_pool",
    "AveragePool": "avg_pool",
    "GlobalAveragePool": "global_avg_pool",
    "ReduceMean": "reduce_mean",
    "ReduceSum": "reduce_sum",
    "ReduceMax": "reduce_max",
    "ReduceLogSumExp": "log_sum_exp",
    "LogSoftmax": "log_softmax",
    "LayerNormalization": "layer_norm",
    "RMSNormalization": "rms_norm",
    "BatchNormalization": "batch_norm",
    "GroupNormalization": "group_norm",
    "QuantizeLinear": "quantize",
    "DequantizeLinear": "dequantize",
    "GatherND": "gather_nd",
    "GatherElements": "gather_along_axis",
    "GridSample": "grid_sample",
    "HardSigmoid": "hardsigmoid",
    "HardSwish": "hardswish",
    "LeakyRelu": "leaky_relu",
    "Unsqueeze": "expand_dims",
    "Dropout": "identity",
    "Where": "select",
    "ScatterND": "scatter_nd",
}
"""Kinds of operators that are not their names in lower case."""

_CONTRIBUTED = {
    "FusedMatMul": "matmul",
    "Gelu": "gelu",
    "FastGelu": "gelu",
    "QuantizeLinear": "quantize",
    "DequantizeLinear": "dequantize",
    "GridSample": "grid_sample",
}
"""Kinds of ONNX Runtime's own operators that take and give what ONNX's do."""

_ONNX, _ORT = ("", "ai.onnx"), "com.microsoft"

_TYPES = {
    "FLOAT": "fp32",
    "FLOAT16": "fp16",
    "BFLOAT16": "bf16",
    "DOUBLE": "fp64",
}


def graph_of_onnx(model: onnx.ModelProto, what: str = "the model") -> Graph:
    """Return the graph of a model; the bodies of loops and branches stand before their nodes.

    Args:
        what: the file's name. Raises Unreadable where native code ends its process over it.
    """
    import onnx

    reader = _Reader(onnx)
    for tensor in model.graph.initializer:
        reader.constant(tensor.name, tensor)
    reader.graph(_inferred(model, what))
    opset = next((one.version for one in model.opset_import if one.domain in ("", "ai.onnx")), 0)
    stored = {one.name for one in model.graph.initializer}
    return Graph(
        reader.nodes,
        reader.values,
        [one.name for one in model.graph.input if one.name not in stored],
        [one.name for one in model.graph.output],
        settings={"opset": opset, "name": "main"},
    )


def _inferred(model: onnx.ModelProto, what: str) -> onnx.GraphProto:
    """Return a model's graph with the shapes of its values. What ONNX refuses is read without shapes."""
    try:
        return infer_shapes(model, what)
    except Unsupported:
        return model.graph


class _Reader:
    """A graph while it is read."""

    def __init__(self, onnx: Any) -> None:
        self.onnx = onnx
        self.nodes: list[Node] = []
        self.values: dict[str, Value] = {}
        self.names: dict[str, str] = {}
        """What a name of the file means where this reader is; a copy means what was copied."""

    def graph(self, graph: onnx.GraphProto) -> None:
        for tensor in graph.initializer:
            self.constant(self.named(tensor.name), tensor)
        for info in (*graph.input, *graph.value_info, *graph.output):
            name = self.named(info.name)
            if name not in self.values and info.type.HasField("tensor_type"):
                kind = info.type.tensor_type
                shape = _shape(kind.shape) if kind.HasField("shape") else None
                self.values[name] = Value(name, self.type(kind.elem_type), shape)
        for number, node in enumerate(graph.node):
            self.node(node, f"{node.op_type}_{number}")

    def body(self, graph: onnx.GraphProto) -> None:
        """Read what is in a loop or a branch; names of its own that are taken outside or beside it become others."""
        outside = self.names
        own = [one.name for one in (*graph.input, *graph.initializer)] + [x for one in graph.node for x in one.output]
        taken = {name for name in own if name in self.values}
        self.names = outside | {name: f"{name}@{len(self.values)}" for name in taken}
        self.graph(graph)
        self.names = outside

    def named(self, name: str) -> str:
        return self.names.get(name, name)

    def type(self, number: int) -> str:
        if number not in self.onnx.TensorProto.DataType.values():
            return ""
        name: str = self.onnx.TensorProto.DataType.Name(number)
        return _TYPES.get(name, name.lower())

    def constant(self, name: str, tensor: onnx.TensorProto) -> None:
        numbers = self.onnx.numpy_helper.to_array
        external = tensor.data_location == self.onnx.TensorProto.EXTERNAL

        def read() -> np.ndarray:
            try:
                return np.zeros(0) if external else np.asarray(numbers(tensor))
            except (ValueError, TypeError):  # of a tensor with fewer bytes than its shape takes
                return np.zeros(0)

        self.values[name] = Value(name, self.type(tensor.data_type), tuple(tensor.dims), read)

    def node(self, node: onnx.NodeProto, name: str) -> None:
        attributes = {one.name: self.onnx.helper.get_attribute_value(one) for one in node.attribute}
        if node.op_type == "Constant" and node.output:
            self.literal(self.named(node.output[0]), attributes)
            return
        given = type(node)()
        given.CopyFrom(node)
        given.input[:] = [self.named(one) for one in node.input]
        given.output[:] = [self.named(one) for one in node.output]
        settings = self.settings(given, attributes)
        bodies = [one for one in attributes.values() if isinstance(one, self.onnx.GraphProto)]
        for body in bodies:
            self.body(body)
        if node.op_type == "Loop" and bodies:
            settings["computed_condition"] = self.is_computed(bodies[0])
        for output in given.output:
            self.values.setdefault(output, Value(output, "", None))
        kind, own = self.kind(node, settings), node.name or name
        parts = COMPOUNDS.get(node.op_type) if node.domain in _ONNX else None
        if parts is not None:
            self.parts(given, own, parts(given.input, given.output, own), settings)
            return
        if kind == "identity" and given.input and given.output:
            self.names[node.output[0]] = given.input[0]  # a body has a table of its own
        self.nodes.append(Node(kind, own, tuple(given.input), tuple(given.output) or (name,), settings, node.op_type))

    def kind(self, node: onnx.NodeProto, settings: dict[str, Any]) -> str:
        """Return a node's kind; operators of others have their domain in front, whatever they are called."""
        if settings.get("reduces_nothing"):
            return "identity"
        if node.domain in _ONNX:
            return _KINDS.get(node.op_type, node.op_type.lower())
        own = _CONTRIBUTED.get(node.op_type) if node.domain == _ORT else None
        return own or f"{node.domain}.{node.op_type}".lower()

    def parts(self, node: onnx.NodeProto, name: str, parts: Sequence[Part], settings: dict[str, Any]) -> None:
        """Keep an operator as those that it consists of."""
        for part in parts:
            for one in part.ones:
                self.values[one] = Value(one, "fp32", (), lambda: np.ones((), np.float32))
            read = part.inputs[0] if part.kind in ("dequantize", "square", "reduce_sum") else node.output[0]
            known = self.values.get(read)
            shape = known.shape if known is not None and part.kind != "reduce_sum" else None
            dtype = part.dtype or (known.dtype if known is not None else "")
            self.values.setdefault(part.output, Value(part.output, dtype, shape))
            kept = settings if part.is_itself else {}
            self.nodes.append(Node(part.kind, name, part.inputs, (part.output,), kept, node.op_type))

    def literal(self, name: str, attributes: dict[str, Any]) -> None:
        """Keep the value of a Constant."""
        if "value" in attributes:
            self.constant(name, attributes["value"])
            return
        (given,) = list(attributes.values())[:1] or [0]
        array = np.array(given, np.float32 if isinstance(given, float) else None)
        dtype = "fp32" if array.dtype.kind == "f" else str(array.dtype)
        self.values[name] = Value(name, dtype, array.shape, lambda: array)

    def settings(self, node: onnx.NodeProto, attributes: dict[str, Any]) -> dict[str, Any]:
        """Return the settings of a node under this package's names."""
        plain = {
            name: value.decode(errors="replace") if isinstance(value, bytes) else value
            for name, value in attributes.items()
            if isinstance(value, int | float | bytes) or (isinstance(value, Sequence) and not hasattr(value, "node"))
        }
        found = dict(plain)
        for name, rename in _SETTINGS.items():
            if name in plain:
                found[rename] = plain[name]
        translate = _MORE.get(node.op_type) if node.domain in (*_ONNX, _ORT) else None
        return found | (translate(self, node, plain) if translate is not None else {})

    def ints(self, node: onnx.NodeProto, index: int) -> list[int]:
        """Return the whole numbers of an input, where it is constant."""
        known = self.values.get(node.input[index]) if index < len(node.input) else None
        if known is None or known.numbers is None:
            return []
        return [int(one) for one in known.numbers().reshape(-1)]

    def is_computed_input(self, node: onnx.NodeProto, index: int) -> bool:
        """Return whether a run decides an input."""
        known = self.values.get(node.input[index]) if index < len(node.input) and node.input[index] else None
        return known is not None and known.numbers is None

    def sizes(self, node: onnx.NodeProto) -> Shape:
        """Return the sizes of the first input but batch and channels."""
        known = self.values.get(node.input[0]) if node.input else None
        return (known.shape or ())[2:] if known is not None else ()

    def rank(self, node: onnx.NodeProto) -> int:
        known = self.values.get(node.input[0]) if node.input else None
        return len(known.shape) if known is not None and known.shape is not None else 0

    def is_computed(self, body: onnx.GraphProto) -> bool:
        """Return whether a loop's body decides whether it goes on."""
        condition = body.output[0].name if body.output else ""
        given = body.input[1].name if len(body.input) > 1 else ""
        makers = {name: one for one in body.node for name in one.output}
        for _ in body.node:
            if condition in makers and makers[condition].op_type in ("Identity", "Cast") and makers[condition].input:
                condition = makers[condition].input[0]
        maker = makers.get(condition)
        stored = {one.name for one in body.initializer}
        return not (condition == given or condition in stored or (maker is not None and maker.op_type == "Constant"))


_SETTINGS = {
    "group": "groups",
    "kernel_shape": "kernel",
    "transA": "transpose_x",
    "transB": "transpose_y",
    "ceil_mode": "ceil",
}
"""Attributes that have other names here."""

Settings = dict[str, Any]


def _conv(reader: _Reader, node: onnx.NodeProto, given: Settings) -> Settings:
    axes = max(reader.rank(node) - 2, 0)
    found: Settings = {"groups": given.get("group", 1)}
    for name, default in (("strides", 1), ("dilations", 1)):
        found[name] = list(given.get(name, [default] * axes))
    found["pads"] = list(given.get("pads", [0] * (2 * axes)))
    if str(given.get("auto_pad", "")).startswith("SAME"):
        weight = reader.values.get(node.input[_WEIGHT.get(node.op_type, 1)]) if len(node.input) > 1 else None
        kernel = given.get("kernel_shape") or (weight.shape or ())[2:] if weight is not None else ()
        sizes = None if node.op_type == "ConvTranspose" else reader.sizes(node)
        found["pads"] = same_pads(sizes, kernel, found["strides"], found["dilations"], given["auto_pad"] == _LOWER)
    if "output_shape" in given:
        found["given_shape"] = True
    return found


_WEIGHT = {"QLinearConv": 3}
"""Which input is a convolution's weight, where it is not the second."""

_LOWER = "SAME_LOWER"


def _pool(reader: _Reader, node: onnx.NodeProto, given: Settings) -> Settings:
    axes = max(reader.rank(node) - 2, 0)
    found: Settings = {
        "strides": list(given.get("strides", [1] * axes)),
        "pads": list(given.get("pads", [0] * (2 * axes))),
        "count_padding": bool(given.get("count_include_pad", 0)),
        "ceil": bool(given.get("ceil_mode", 0)),
    }
    if str(given.get("auto_pad", "")).startswith("SAME"):
        kernel, dilations = given.get("kernel_shape", ()), list(given.get("dilations", [1] * axes))
        lower = given["auto_pad"] == _LOWER
        found["pads"] = same_pads(reader.sizes(node), kernel, found["strides"], dilations, lower)
    return found


def _reduction(reader: _Reader, node: onnx.NodeProto, given: Settings) -> Settings:
    axes = list(given.get("axes", ())) or reader.ints(node, 1)
    is_given = len(node.input) > 1 and bool(node.input[1])
    found: Settings = {"axes": axes, "keep_dims": bool(given.get("keepdims", 1))}
    if not axes and given.get("noop_with_empty_axes") and not reader.is_computed_input(node, 1):
        found["reduces_nothing"] = True
    elif not axes and is_given and reader.is_computed_input(node, 1):
        found["computed_axes"] = True
    return found


def _attention(reader: _Reader, node: onnx.NodeProto, given: Settings) -> Settings:
    return {"heads": int(given.get("q_num_heads", 1)) if reader.rank(node) == 3 else 1}


def _norm(reader: _Reader, node: onnx.NodeProto, given: Settings) -> Settings:
    rank = reader.rank(node)
    axis = int(given.get("axis", -1))
    return {"axes": list(range(axis % rank, rank)) if rank else [axis]}


def _cumsum(reader: _Reader, node: onnx.NodeProto, given: Settings) -> Settings:
    return {"axis": (reader.ints(node, 1) or [0])[0], "reverse": bool(given.get("reverse", 0))}


def _slice(reader: _Reader, node: onnx.NodeProto, given: Settings) -> Settings:
    begin = list(given.get("starts", ())) or reader.ints(node, 1)
    axes = list(given.get("axes", ())) or reader.ints(node, 3) or list(range(len(begin)))
    return {"begin": begin, "end": list(given.get("ends", ())) or reader.ints(node, 2), "axes": axes}


def _pad(reader: _Reader, node: onnx.NodeProto, given: Settings) -> Settings:
    pads, axes, rank = list(given.get("pads", ())) or reader.ints(node, 1), reader.ints(node, 3), reader.rank(node)
    if axes and rank and len(pads) == 2 * len(axes):
        every = [0] * (2 * rank)
        for number, axis in enumerate(axes):
            every[axis % rank], every[rank + axis % rank] = pads[number], pads[len(axes) + number]
        pads = every
    return {"pads": pads, "mode": given.get("mode", "constant")}


def _clip(reader: _Reader, node: onnx.NodeProto, given: Settings) -> Settings:
    found: Settings = {}
    for index, name in ((1, "min"), (2, "max")):
        known = reader.values.get(node.input[index]) if len(node.input) > index and node.input[index] else None
        if known is not None and known.numbers is not None and known.numbers().size:
            found[name] = float(known.numbers().reshape(-1)[0])
    return found


def _last_axis(reader: _Reader, node: onnx.NodeProto, given: Settings) -> Settings:
    return {"axis": given.get("axis", -1)}


def _first_axis(reader: _Reader, node: onnx.NodeProto, given: Settings) -> Settings:
    return {"axis": given.get("axis", 0)}


_MORE: dict[str, Callable[[_Reader, Any, Settings], Settings]] = {
    **dict.fromkeys(("Conv", "ConvTranspose", "ConvInteger", "QLinearConv"), _conv),
    **dict.fromkeys(("MaxPool", "AveragePool"), _pool),
    **dict.fromkeys(("ReduceMean", "ReduceSum", "ReduceMax", "ReduceLogSumExp"), _reduction),
    **dict.fromkeys(("ReduceSumSquare", "ReduceL2"), _reduction),
    "Attention": _attention,
    **dict.fromkeys(("LayerNormalization", "RMSNormalization"), _norm),
    **dict.fromkeys(("Softmax", "LogSoftmax", "TopK"), _last_axis),
    **dict.fromkeys(("Gather", "ArgMax"), _first_axis),
    "CumSum": _cumsum,
    "Slice": _slice,
    "Pad": _pad,
    "Clip": _clip,
}
"""Settings that come from inputs, or have defaults."""


def _shape(shape: Any) -> Shape:
    return tuple(one.dim_value if one.HasField("dim_value") else None for one in shape.dim)
