"""Errors for a lowered ONNX file, one at a time: each is what a wrong lowering, or a wrong kernel, would have made."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

Mutation = tuple[str, str, Callable[[Any], None]]
"""The kind, the place in words, and what changes a model."""

SWAPPED = frozenset(
    (
        *("Sub", "Div", "Pow", "Less", "Greater", "LessOrEqual", "GreaterOrEqual", "Where", "MatMul", "Gemm", "Mod"),
        *("PRelu", "Concat"),
    )
)
"""Operators whose first two inputs, of `Where` the last two, are no matter of taste."""

NEIGHBOURS = {
    "Less": ("LessOrEqual",),
    "LessOrEqual": ("Less",),
    "Greater": ("GreaterOrEqual",),
    "GreaterOrEqual": ("Greater",),
    "Max": ("Min",),
    "Min": ("Max",),
    "Floor": ("Round", "Ceil"),
    "Ceil": ("Floor",),
    "Round": ("Floor", "Ceil"),
    "Relu": ("Identity", "Abs"),
    "Abs": ("Identity",),
    "ReduceSum": ("ReduceMean",),
    "ReduceMean": ("ReduceSum",),
    "ReduceMax": ("ReduceMin",),
    "ReduceMin": ("ReduceMax",),
    "ArgMax": ("ArgMin",),
    "ArgMin": ("ArgMax",),
    "Softmax": ("LogSoftmax",),
    "LogSoftmax": ("Softmax",),
    "And": ("Or", "Xor"),
    "Or": ("And", "Xor"),
    "Xor": ("Or",),
    "BitwiseAnd": ("BitwiseOr", "BitwiseXor"),
    "BitwiseOr": ("BitwiseXor",),
    "Sin": ("Cos",),
    "Cos": ("Sin",),
    "Tanh": ("Sigmoid",),
    "Sigmoid": ("HardSigmoid",),
    "Sign": ("Identity",),
    "Add": ("Sub",),
    "Sub": ("Add",),
    "Mul": ("Div",),
    "Exp": ("Identity",),
    "AveragePool": ("MaxPool",),
    "IsNaN": ("IsInf",),
    "IsInf": ("IsNaN",),
    "Erf": ("Tanh",),
    "Elu": ("Selu",),
}

TEXTS = {
    "mode": ("constant", "edge", "reflect", "wrap", "nearest", "linear", "cubic", "bilinear", "bicubic"),
    "padding_mode": ("zeros", "border", "reflection"),
    "approximate": ("none", "tanh"),
    "coordinate_transformation_mode": ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"),
    "nearest_mode": ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil"),
    "direction": ("forward", "reverse", "RIGHT", "LEFT"),
    "reduction": ("none", "add"),
}


def mutations(model: Any) -> Iterator[Mutation]:
    """Yield the mutations of a model."""
    _lift_constants(model)
    types = _types(model)
    for at, node in enumerate(model.graph.node):
        where = f"{node.op_type} {at}"
        for k, attribute in enumerate(node.attribute):
            for kind, words, change in _of_attribute(attribute):
                yield kind, f"{where} {attribute.name} {words}", _attribute_change(at, k, change)
        yield from _of_node(at, node, where, types)
    for k, tensor in enumerate(model.graph.initializer):
        for kind, words, altered in of_array(_to_array(tensor)):
            yield kind, f"{tensor.name} {words}", _initializer_change(k, altered)


def _lift_constants(model: Any) -> None:
    """Make initializers of nodes that are constants."""
    import onnx

    kept = []
    for node in model.graph.node:
        value = next((a for a in node.attribute if a.name == "value"), None)
        if node.op_type == "Constant" and value is not None:
            tensor = model.graph.initializer.add()
            tensor.CopyFrom(value.t)
            tensor.name = node.output[0]
        else:
            kept.append(onnx.NodeProto.FromString(node.SerializeToString()))
    del model.graph.node[:]
    model.graph.node.extend(kept)


def _types(model: Any) -> dict[str, tuple[int, tuple[Any, ...]]]:
    """Return types and shapes of values by name, as far as they are known."""
    import onnx

    graph = onnx.shape_inference.infer_shapes(model).graph
    found = {}
    for value in (*graph.input, *graph.output, *graph.value_info):
        kind = value.type.tensor_type
        found[value.name] = kind.elem_type, tuple(d.dim_value or d.dim_param for d in kind.shape.dim)
    for tensor in graph.initializer:
        found[tensor.name] = tensor.data_type, tuple(tensor.dims)
    return found


def _of_attribute(attribute: Any) -> Iterator[tuple[str, str, Callable[[Any], None]]]:
    kind = attribute.type
    if kind == attribute.INT and attribute.name not in ("to", "output_dtype", "stash_type"):
        for step in (1, -1):
            yield "integer attribute", f"{step:+}", lambda a, step=step: setattr(a, "i", a.i + step)  # type: ignore[misc]  # bound at once
    elif kind == attribute.INTS:
        for i in range(len(attribute.ints)):
            for step in (1, -1):
                yield "integer attribute", f"[{i}] {step:+}", lambda a, i=i, step=step: _add(a.ints, i, step)  # type: ignore[misc]  # bound at once
        if len(attribute.ints) > 1 and attribute.ints[0] != attribute.ints[-1]:
            yield "integer attribute", "reversed", lambda a: _reverse(a.ints)
    elif kind == attribute.FLOAT:
        for factor in (1.01, 2.0, 0.0):
            if attribute.f:
                yield "float attribute", f"x {factor}", lambda a, factor=factor: setattr(a, "f", a.f * factor)  # type: ignore[misc]  # bound at once
    elif kind == attribute.STRING:
        for other in TEXTS.get(attribute.name, ()):
            if other.encode() != attribute.s:
                yield "mode", other, lambda a, other=other: setattr(a, "s", other.encode())  # type: ignore[misc]  # bound at once


def _add(values: Any, i: int, step: int) -> None:
    values[i] += step


def _reverse(values: Any) -> None:
    values[:] = list(values)[::-1]


def _of_node(at: int, node: Any, where: str, types: dict[str, tuple[int, tuple[Any, ...]]]) -> Iterator[Mutation]:
    import onnx

    first = 1 if node.op_type == "Where" else 0
    if node.op_type in SWAPPED and len(node.input) > first + 1 and node.input[first] != node.input[first + 1]:
        yield "inputs swapped", where, _swap(at, first)
    for other in NEIGHBOURS.get(node.op_type, ()):
        yield "neighbour", f"{where} -> {other}", _rename(at, other)
    if node.op_type == "Mod":
        yield "neighbour", f"{where} fmod", _toggle_fmod(at)
    if node.op_type == "Gelu" and not node.attribute:
        yield (
            "neighbour",
            f"{where} tanh",
            lambda m: m.graph.node[at].attribute.append(onnx.helper.make_attribute("approximate", "tanh")),
        )
    if node.op_type == "Clip":
        for k in (1, 2):
            if len(node.input) > k and node.input[k]:
                yield "bound dropped", f"{where} {k}", _drop_input(at, k)
    made = types.get(node.output[0])
    for name in dict.fromkeys(node.input):
        if made is not None and types.get(name) == made and node.op_type != "Identity":
            yield "bypassed", f"{where} by {name}", _bypass(at, name)
    if made is not None and made[0] == onnx.TensorProto.FLOAT:
        yield "cast to half", where, _halve(at)


def _attribute_change(at: int, k: int, change: Callable[[Any], None]) -> Callable[[Any], None]:
    return lambda model: change(model.graph.node[at].attribute[k])


def _swap(at: int, first: int) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        inputs = model.graph.node[at].input
        inputs[first], inputs[first + 1] = inputs[first + 1], inputs[first]

    return change


def _rename(at: int, other: str) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        node = model.graph.node[at]
        node.op_type = other
        if other in ("Identity", "Abs", "Selu", "HardSigmoid"):
            del node.attribute[:]

    return change


def _toggle_fmod(at: int) -> Callable[[Any], None]:
    import onnx

    def change(model: Any) -> None:
        node = model.graph.node[at]
        was = next((a.i for a in node.attribute if a.name == "fmod"), 0)
        del node.attribute[:]
        node.attribute.append(onnx.helper.make_attribute("fmod", 1 - was))

    return change


def _drop_input(at: int, k: int) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        model.graph.node[at].input[k] = ""

    return change


def _bypass(at: int, name: str) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        node = model.graph.node[at]
        del node.input[:], node.attribute[:]
        node.op_type, node.domain = "Identity", ""
        node.input.append(name)
        del node.output[1:]

    return change


def _halve(at: int) -> Callable[[Any], None]:
    import onnx

    def change(model: Any) -> None:
        node = model.graph.node[at]
        name = node.output[0]
        node.output[0] = f"{name}_before"
        half = onnx.helper.make_node("Cast", [f"{name}_before"], [f"{name}_half"], to=onnx.TensorProto.FLOAT16)
        back = onnx.helper.make_node("Cast", [f"{name}_half"], [name], to=onnx.TensorProto.FLOAT)
        nodes = [copy.deepcopy(n) for n in model.graph.node]
        nodes[at + 1 : at + 1] = [half, back]
        del model.graph.node[:]
        model.graph.node.extend(nodes)

    return change


def _to_array(tensor: Any) -> np.ndarray:
    from onnx import numpy_helper

    return np.asarray(numpy_helper.to_array(tensor))


def _initializer_change(k: int, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Any], None]:
    from onnx import numpy_helper

    def apply(model: Any) -> None:
        tensor = model.graph.initializer[k]
        changed = np.ascontiguousarray(change(_to_array(tensor).copy()))
        tensor.CopyFrom(numpy_helper.from_array(changed, tensor.name))

    return apply


def of_array(x: np.ndarray) -> Iterator[tuple[str, str, Callable[[np.ndarray], np.ndarray]]]:
    """Yield what may be wrong with a constant: `change` takes a copy of it."""
    places = sorted({0, x.size // 2, x.size - 1}) if x.size else []
    if x.dtype == bool:
        for i in places:
            yield "constant's element", f"[{i}] not", lambda a, i=i: _put(a, i, lambda v: not v)  # type: ignore[misc]  # bound at once
        return
    if np.issubdtype(x.dtype, np.integer):
        for i in places:
            for step in (1, -1):
                yield "whole constant", f"[{i}] {step:+}", lambda a, i=i, step=step: _put(a, i, lambda v: v + step)  # type: ignore[misc]  # bound at once
        return
    if not np.issubdtype(x.dtype, np.floating):
        return
    if x.size > 1 and x.any():
        yield "constant zeroed", "", np.zeros_like
    for i in places:
        value = x.flat[i]
        if np.isfinite(value):
            yield "constant's element", f"[{i}] + 1", lambda a, i=i: _put(a, i, lambda v: v + 1)  # type: ignore[misc]  # bound at once
            if value:
                yield "constant's element", f"[{i}] x 1.1", lambda a, i=i: _put(a, i, lambda v: v * 1.1)  # type: ignore[misc]  # bound at once
        else:
            yield "infinity", f"[{i}] 1e4", lambda a, i=i: _put(a, i, lambda v: np.sign(v) * 1e4)  # type: ignore[misc]  # bound at once
    if x.size == 1 and x.any() and np.isfinite(x).all():
        for factor in (1.01, 0.0):
            yield "float constant", f"x {factor}", lambda a, factor=factor: a * np.asarray(factor, a.dtype)  # type: ignore[misc]  # bound at once
    if np.isinf(x).any():
        yield "infinity", "all 1e4", lambda a: np.where(np.isinf(a), np.sign(a) * np.asarray(1e4, a.dtype), a)
    if x.ndim and x.shape[0] > 1 and not np.array_equal(x[0], x[-1]):
        yield "rows swapped", "", lambda a: a[[x.shape[0] - 1, *range(1, x.shape[0] - 1), 0]]


def _put(a: np.ndarray, i: int, change: Callable[[Any], Any]) -> np.ndarray:
    a.flat[i] = change(a.flat[i])
    return a
