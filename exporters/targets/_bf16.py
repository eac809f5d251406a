"""ONNX files in bf16 on a CPU, for which ONNX Runtime has no bf16 kernels: other types stand in.

    to fold constants    double, which holds every bf16 number exactly; the results are made bf16 again
    to execute           float; each result is computed in fp32, then rounded once to bf16

ONNX has bf16 convolutions from opset 22 on. All other operators here mean the same as in opset 20.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 22

BF16, FLOAT, DOUBLE = TensorProto.BFLOAT16, TensorProto.FLOAT, TensorProto.DOUBLE

_MOVES = frozenset({"Concat", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze"})
_ROUNDED = _MOVES | {"Transpose", "Unsqueeze", "Cast", "Constant", "ConstantOfShape", "Pad", "Relu", "Neg", "Clip"}
"""Operators whose results need no rounding where their operands need none."""


def has_bf16(model: onnx.ModelProto) -> bool:
    """Return whether a model has bf16 anywhere: a weight, or a cast to it."""
    for graph in _graphs(model.graph):
        if any(tensor.data_type == BF16 for tensor in graph.initializer):
            return True
        if any(_cast_to(node) == BF16 for node in graph.node):
            return True
    return False


def to_double(model: onnx.ModelProto) -> None:
    """Replace bf16 by double everywhere, for an optimiser that folds constants."""
    _retype(model, {BF16: DOUBLE})


def from_double(model: onnx.ModelProto) -> None:
    """Replace double by bf16 everywhere, rounded to nearest even, and raise the opset to one that has bf16."""
    _retype(model, {DOUBLE: BF16})
    for opset in model.opset_import:
        if opset.domain in ("", "ai.onnx"):
            opset.version = max(opset.version, OPSET)


def to_rounded_float(model: onnx.ModelProto) -> None:
    """Replace bf16 by float everywhere, numbers unchanged: two casts round each result that may have more digits."""
    typed = onnx.shape_inference.infer_shapes(model)
    kinds = {
        value.name: value.type.tensor_type.elem_type
        for graph in _graphs(typed.graph)
        for value in (*graph.value_info, *graph.input, *graph.output)
    }
    for graph in _graphs(model.graph):
        nodes = list(graph.node)
        del graph.node[:]
        for node in nodes:
            to = _cast_to(node)
            rounds = [name for name in node.output if to == BF16 or _makes(node, name, kinds)]
            for i, name in enumerate(node.output):
                if name in rounds:
                    node.output[i] = f"{name}.unrounded"
            if to == BF16:
                node.op_type = "Identity"
                del node.attribute[:]
            graph.node.append(node)
            for name in rounds:
                graph.node.append(helper.make_node("Cast", [f"{name}.unrounded"], [f"{name}.bf16"], to=BF16))
                graph.node.append(helper.make_node("Cast", [f"{name}.bf16"], [name], to=FLOAT))
    rounding = {f"{name}.bf16" for name in kinds}
    _retype(model, {BF16: FLOAT}, keep=rounding)


def _makes(node: onnx.NodeProto, name: str, kinds: Mapping[str, int]) -> bool:
    """Return whether a node makes a bf16 value that may have more digits when it is computed in float."""
    return kinds.get(name) == BF16 and node.op_type not in _ROUNDED


def _retype(model: onnx.ModelProto, kinds: Mapping[int, int], keep: frozenset[str] | set[str] = frozenset()) -> None:
    """Replace element types everywhere in a model: weights, values, and what casts and constants say; not in `keep`."""
    for graph in _graphs(model.graph):
        for tensor in graph.initializer:
            _retype_tensor(tensor, kinds)
        for value in (*graph.value_info, *graph.input, *graph.output):
            kind = value.type.tensor_type
            if value.name not in keep:
                kind.elem_type = kinds.get(kind.elem_type, kind.elem_type)
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.TENSOR:
                    _retype_tensor(attribute.t, kinds)
                if attribute.name in ("to", "dtype") and not keep.intersection(node.output):
                    attribute.i = kinds.get(attribute.i, attribute.i)


def _retype_tensor(tensor: TensorProto, kinds: Mapping[int, int]) -> None:
    if tensor.data_type not in kinds:
        return
    kind = kinds[tensor.data_type]
    array = numpy_helper.to_array(tensor).astype(helper.tensor_dtype_to_np_dtype(kind))
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def _cast_to(node: onnx.NodeProto) -> int | None:
    return next((a.i for a in node.attribute if a.name == "to"), None) if node.op_type == "Cast" else None


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and the graphs of the loops in it."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g)
