"""Types that ONNX Runtime has no kernel for: what an operator reads is cast, and what it makes is cast back.

    tan(x: double)      Cast(Tan(Cast(x, float)), double)          as precise as float32, which is what is asked for
    x @ y: uint8        Cast(MatMul(Cast(x, int32), Cast(y, int32)), uint8)        the same whole numbers, modulo 256

    Transpose(x: float16) @ y   Cast(Transpose(Cast(x, float)), float16) @ y       which else ONNX Runtime dies of
    Floor(Sin(x: float16))      both between casts, as far up as the numbers that Floor reads are rounded

`LACKS` says what ONNX Runtime's CPU kernels do not take of what ONNX allows an operator, and the last lines what ONNX
itself does not allow, which torch's exporter writes all the same. float16 is left out: ONNX Runtime casts that itself.
But it takes away each two casts that meet, and the rounding with them, unless both of them are in the file.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx

OPSET = 20
"""Whose operators these are."""

_DOUBLE = ("DOUBLE",)
_SMALL = ("INT8", "UINT8", "INT16")
_WHOLE = (*_SMALL, "INT32", "INT64")

# By onnxruntime's get_all_opkernel_def() of 1.23 to 1.31, operators of models only.
LACKS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Cosh", "Erf", "Sinh", "Tan"), _DOUBLE),
    **dict.fromkeys(("Elu", "Gelu", "HardSigmoid", "LeakyRelu", "Selu", "Softplus", "Softsign"), _DOUBLE),
    **dict.fromkeys(("Conv", "ConvTranspose", "GlobalAveragePool", "GlobalMaxPool", "LpPool"), _DOUBLE),
    "AveragePool": (*_DOUBLE, *_WHOLE),
    **dict.fromkeys(("InstanceNormalization", "LRN", "Mean", "MeanVarianceNormalization", "Det"), _DOUBLE),
    "PRelu": (*_DOUBLE, "INT32", "INT64"),
    "Resize": (*_DOUBLE, "INT16", "INT32", "INT64", "BOOL"),
    **dict.fromkeys(("ArgMax", "ArgMin", "Clip", "Max", "Min", "Pad"), ("INT16",)),
    **dict.fromkeys(("DepthToSpace", "SpaceToDepth"), ("INT16", "INT32", "INT64", "BOOL")),
    "GridSample": (*_WHOLE, "BOOL"),
    "Pow": _SMALL,
    "Relu": ("INT16", "INT64", "UINT8"),
    "Trilu": _SMALL,
    "Where": ("INT16", "BOOL"),
    # Not in ONNX.
    "Neg": ("UINT8",),
    "MaxPool": ("INT16", "INT32", "INT64", "BOOL"),
    **dict.fromkeys(("Gemm", "MatMul"), (*_SMALL, "BOOL")),
    **dict.fromkeys(("CumSum", "Einsum", "ReduceMean", "ReduceProd", "ReduceSum", "ReduceSumSquare"), _SMALL),
}
"""Types of the first input that an operator has no kernel for."""

_WIDER = {
    "DOUBLE": ("FLOAT",),
    "INT64": ("DOUBLE", "FLOAT"),
    "INT32": ("DOUBLE", "FLOAT"),
    "INT16": ("INT32", "FLOAT"),
    "INT8": ("INT32", "FLOAT"),
    "UINT8": ("INT32", "FLOAT"),
    "BOOL": ("INT32", "UINT8", "FLOAT"),
    "FLOAT16": ("FLOAT",),
}
"""Types that hold a type's values, the best first; float32 holds those of a double as far as it can."""


def legalize(model: onnx.ModelProto) -> None:
    """Put casts around the nodes of a model whose types ONNX Runtime has no kernel for."""
    if not any(node.op_type in LACKS for node in model.graph.node):
        return
    known = dict(_types(_inferred(model).graph))
    nodes = list(model.graph.node)
    if not any(_lacking(node, known) for node in nodes):
        return
    del model.graph.node[:]
    del model.graph.value_info[:]  # torch's exporter says what it meant, and the casts are not in it
    for node in nodes:
        kind = _lacking(node, known)
        model.graph.node.extend([node] if kind is None else _cast(node, kind, known))


def _inferred(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model with the types of all its values."""
    from onnx import shape_inference

    return shape_inference.infer_shapes(model)


def _types(graph: onnx.GraphProto) -> Iterator[tuple[str, str]]:
    """Yield the values of a graph with the names of their types."""
    import onnx

    for value in (*graph.input, *graph.value_info, *graph.output):
        yield value.name, onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type)
    for one in graph.initializer:
        yield one.name, onnx.TensorProto.DataType.Name(one.data_type)


def _lacking(node: onnx.NodeProto, known: dict[str, str]) -> str | None:
    """Return the type that a node has no kernel for, or None."""
    lacks = LACKS.get(node.op_type, ())
    if not lacks:
        return None
    return next((kind for k in _of_type(node) if (kind := known.get(node.input[k])) in lacks), None)


def _of_type(node: onnx.NodeProto, *, made: bool = False) -> list[int]:
    """Return the inputs, or with `made` the outputs, of the type that `LACKS` is about: not the sizes of a Resize."""
    import onnx

    schema = onnx.defs.get_schema(node.op_type, OPSET)
    kind = schema.inputs[1 if node.op_type == "Where" else 0].type_str
    declared, given = (schema.outputs, node.output) if made else (schema.inputs, node.input)
    return [k for k, name in enumerate(given) if name and declared[min(k, len(declared) - 1)].type_str == kind]


def _cast(node: onnx.NodeProto, kind: str, known: dict[str, str]) -> list[onnx.NodeProto]:
    """Return a node of another type, between casts from `kind` and back."""
    import onnx
    from onnx import helper

    by = next(one for one in _WIDER[kind] if one not in LACKS.get(node.op_type, ()))
    before, after = [], []
    made = onnx.NodeProto()
    made.CopyFrom(node)
    for k in _of_type(node):
        made.input[k] = f"{node.name}_given_{k}"
        to = getattr(onnx.TensorProto, by)
        before.append(helper.make_node("Cast", [node.input[k]], [made.input[k]], name=f"{node.name}_cast_{k}", to=to))
    for k in _of_type(node, made=True):
        made.output[k] = f"{node.name}_made_{k}"
        back = getattr(onnx.TensorProto, kind)
        after.append(
            helper.make_node("Cast", [made.output[k]], [node.output[k]], name=f"{node.name}_back_{k}", to=back)
        )
    return [*before, made, *after]


BINARY = frozenset(("Add", "Div", "Mul", "Sub"))
PASSED = BINARY | {"Cast", "Dropout", "Expand", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}
"""What ONNX Runtime may take away in front of a product: what changes nothing, or is a factor of it, a number."""

FLOATS = frozenset(("DOUBLE", "FLOAT", "FLOAT16", "BFLOAT16"))

PRODUCTS = frozenset(("Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul"))
"""Over which it moves no Transpose."""

_COMPARISONS = ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")

DECIDE = frozenset(
    {"ArgMax", "ArgMin", "Ceil", "Cos", "Floor", "Mod", "Round", "Sign", "Sin", "Tan", "TopK", *_COMPARISONS}
)
"""Operators that make much of a little: a rounding of what they read is seen in what they return."""

_LAYERS = frozenset({"Attention", "Conv", "ConvTranspose", "Einsum", "GRU", "Gemm", "LSTM", "MatMul", "RNN"})
"""Operators that stay in half precision, which is why a model has it: their sums have an order of their own anyway."""

_IN_HALF = frozenset(
    {
        *("Cast", "Clip", "Compress", "Concat", "ConstantOfShape", "Expand", "Flatten"),
        *("Gather", "GatherElements", "GatherND"),
        *("Identity", "If", "IsInf", "IsNaN", "LayerNormalization", "Loop", "Max", "Min", "RMSNormalization"),
        *("Reshape", "Scan", "ScatterElements", "ScatterND", "Shape", "Slice", "Split", "Squeeze", "Transpose"),
        *("TopK", "Unsqueeze"),
    }
)
"""Operators that ONNX Runtime's CPU provider has in half precision, which most but hand numbers on."""


def round_halves(model: onnx.ModelProto) -> None:
    """Put casts around what half precision has to round for an operator of `DECIDE`, up to the layers before it.

    PyTorch rounds what each operator of a model in half precision returns. So does ONNX, but ONNX Runtime does not.
    """
    ahead = [node for node in model.graph.node if _decides(node)]
    known = dict(_types(_inferred(model).graph)) if ahead else {}
    if "FLOAT16" not in known.values():
        return
    made_by = {name: node for node in model.graph.node for name in node.output}
    seen: set[str] = set()
    while ahead:
        node = ahead.pop()
        if node.op_type in _LAYERS or node.output[0] in seen:
            continue
        seen.add(node.output[0])
        ahead += [made_by[name] for name in node.input if name in made_by and known.get(name) in FLOATS]
    nodes = list(model.graph.node)
    del model.graph.node[:]
    for node in nodes:
        is_seen = node.output[0] in seen and node.op_type not in _IN_HALF
        is_half = is_seen and any(known.get(node.input[k]) == "FLOAT16" for k in _of_type(node))
        model.graph.node.extend(_cast(node, "FLOAT16", known) if is_half else [node])


def _decides(node: onnx.NodeProto) -> bool:
    """Return whether an operator makes much of a little, as a cast to whole numbers or truth values does too."""
    from onnx import TensorProto

    if node.op_type != "Cast":
        return node.op_type in DECIDE
    return TensorProto.DataType.Name(next(one.i for one in node.attribute if one.name == "to")) not in FLOATS


def turn_in_single(model: onnx.ModelProto) -> None:
    """Transpose numbers of half precision as float32 where a product reads rows that were the first axis.

    ONNX Runtime's MatmulTransposeFusion, of 1.31.1, makes a product over other batch axes of them, and ends the process
    where the two are in half precision. Other optimisations take away what is `PASSED` between them before. So
    everything from the Transpose on is in float32, and what the product reads is rounded last.
    """
    from onnx import TensorProto, helper

    graph = model.graph
    turned = _Turned(graph, {})
    if not any(turned.is_turned(name) for node in graph.node if node.op_type == "MatMul" for name in node.input):
        return
    turned = _Turned(graph, dict(_types(_inferred(model).graph)))
    nodes = list(graph.node)
    del graph.node[:]
    for node in nodes:
        for k, name in enumerate(node.input if node.op_type == "MatMul" else ()):
            if turned.known.get(name) == "FLOAT16" and turned.is_turned(name):
                node.input[k] = half = f"{name}_turned"
                if half not in turned.known:
                    single, turned.known[half] = turned.in_single(name), "FLOAT16"
                    graph.node.extend(turned.made)
                    turned.made.clear()
                    cast = helper.make_node("Cast", [single], [half], name=f"{half}_half", to=TensorProto.FLOAT16)
                    graph.node.append(cast)
        graph.node.append(node)
    _drop_unread(graph)


class _Turned:
    """Values in front of products, behind nothing but what is `PASSED`.

    Attributes:
        known: the types of values, those that are made here too.
        made: nodes of float32 that are not in the graph yet.
    """

    def __init__(self, graph: onnx.GraphProto, known: dict[str, str]) -> None:
        self.known = known
        self.made: list[onnx.NodeProto] = []
        constants = {one.name: math.prod(one.dims) for one in graph.initializer}
        self._behind: dict[str, tuple[onnx.NodeProto, str]] = {}
        self._passed = set[str]()
        for node in graph.node:
            varying = [name for name in node.input if name and name not in constants]
            if node.op_type in PASSED - BINARY:
                self._behind[node.output[0]] = node, node.input[0]
                self._passed.add(node.output[0])
            elif len(varying) == 1 and node.op_type not in PRODUCTS:
                self._behind[node.output[0]] = node, varying[0]
                if node.op_type in BINARY and any(constants.get(name) == 1 for name in node.input):
                    self._passed.add(node.output[0])

    def _turns(self, name: str, *, everywhere: bool = False) -> list[onnx.NodeProto]:
        """Return the Transposes behind a value, the last one first; `everywhere`: behind what it may be moved over."""
        turns = []
        while name in self._passed or (everywhere and name in self._behind):
            node, name = self._behind[name]
            turns += [node] if node.op_type == "Transpose" else []
        return turns

    def is_turned(self, name: str) -> bool:
        """Return whether one takes the first axis to the last two; of several ONNX Runtime may make one."""
        if not self._turns(name):
            return False
        orders = [_order(node) for node in self._turns(name, everywhere=True)]
        together = list(range(len(orders[0])))
        for order in orders:
            if len(order) != len(together):
                return True
            together = [order[axis] for axis in together]
            if _turns_first_axis(together):
                return True
        return False

    def in_single(self, name: str) -> str:
        """Return a value of half precision as one of float32, from the first Transpose on."""
        from onnx import NodeProto, TensorProto, helper

        turns_half = any(self.known.get(node.input[0]) == "FLOAT16" for node in self._turns(name))
        if self.known.get(name) == "FLOAT" and not turns_half:
            return name
        single, node = f"{name}_single", self._behind[name][0] if name in self._passed else None
        if single in self.known:
            return single
        if node is not None and node.op_type == "Cast" and self.known.get(node.input[0]) in FLOATS:
            return self.in_single(node.input[0])
        self.known[single] = "FLOAT"
        if node is None or not turns_half:
            self.made.append(helper.make_node("Cast", [name], [single], name=f"{single}_cast", to=TensorProto.FLOAT))
            return single
        copied = NodeProto()
        copied.CopyFrom(node)
        copied.name, copied.output[0] = f"{node.name or name}_single", single
        for k, source in enumerate(node.input):
            if self.known.get(source) in FLOATS:
                copied.input[k] = self.in_single(source)
        self.made.append(copied)
        return single


def _order(node: onnx.NodeProto) -> list[int]:
    return next((list(one.ints) for one in node.attribute if one.name == "perm"), [])


def _turns_first_axis(order: list[int]) -> bool:
    """Return whether an order takes the first of three axes or more to the last two, with the others in order."""
    return len(order) > 2 and order[:-2] == list(range(1, len(order) - 1))


def _drop_unread(graph: onnx.GraphProto) -> None:
    """Drop what is `PASSED` and nothing reads any more."""
    read = {value.name for value in graph.output}
    kept = list[Any]()
    for node in reversed(graph.node):
        if node.op_type in PASSED and not read & {*node.output}:
            continue
        kept.append(node)
        read |= {*node.input}
        read |= {name for one in node.attribute if one.HasField("g") for name in _read_inside(one.g)}
    dropped = {name for node in graph.node for name in node.output} - {name for node in kept for name in node.output}
    values = [value for value in graph.value_info if value.name not in dropped]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(reversed(kept))
    graph.value_info.extend(values)


def _read_inside(graph: onnx.GraphProto) -> Iterator[str]:
    """Yield the names that the body of a loop reads."""
    for node in graph.node:
        yield from node.input
        for one in node.attribute:
            if one.HasField("g"):
                yield from _read_inside(one.g)
