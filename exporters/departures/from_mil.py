"""The graph of one function of a Core ML package."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from torch import Tensor

from edgesmith.errors import BadInput
from edgesmith.exporters.departures.graph import Graph, Node, Shape, Value, same_pads, whole_numbers
from edgesmith.exporters.mil.program import (
    Constant,
    Function,
    Operand,
    Operation,
    Ref,
    StateType,
    TensorType,
    Type,
    walk_all,
)

_KINDS = {
    "real_div": "div",
    "maximum": "max",
    "minimum": "min",
    "reduce_log_sum_exp": "log_sum_exp",
    "reduce_argmax": "argmax",
    "scaled_dot_product_attention": "attention",
    "coreml_update_state": "update_state",
    "slice_by_index": "slice",
    "slice_by_size": "slice",
    "sigmoid_hard": "hardsigmoid",
    "logical_or": "or",
    "while_loop": "loop",
    "cond": "if",
    "resample": "grid_sample",
    "constexpr_lut_to_dense": "lut_weights",
    "constexpr_blockwise_shift_scale": "blockwise_weights",
    "constexpr_affine_dequantize": "affine_weights",
    "inverse": "reciprocal",
}
"""Kinds of operators that are not MIL's names."""

_PLAIN = ("x", "y")
_OPERANDS = {
    **dict.fromkeys(("conv", "conv_transpose", "linear"), ("x", "weight", "bias")),
    **dict.fromkeys(("gather", "gather_nd", "gather_along_axis"), ("x", "indices")),
    "select": ("cond", "a", "b"),
    "layer_norm": ("x", "gamma", "beta"),
    "batch_norm": ("x", "mean", "variance", "gamma", "beta"),
    "scaled_dot_product_attention": ("query", "key", "value", "attn_mask"),
    "read_state": ("input",),
    "coreml_update_state": ("state", "value"),
    "slice_update": ("x", "update", "begin"),
    "concat": ("values",),
    "stack": ("values",),
    "einsum": ("values",),
    "constexpr_lut_to_dense": ("indices", "lut"),
    "constexpr_blockwise_shift_scale": ("data", "scale", "offset"),
    "constexpr_affine_dequantize": ("quantized_data", "scale", "zero_point"),
    "quantize": ("input", "scale", "zero_point"),
    "dequantize": ("input", "scale", "zero_point"),
    "resample": ("x", "coordinates"),
    "while_loop": ("loop_vars",),
    "cond": ("pred",),
    "lstm": ("x", "initial_h", "initial_c"),
    "gru": ("x", "initial_h"),
}
"""Parameters that are data, in this package's order; of others x and y."""

_PADDED = frozenset({"conv", "conv_transpose", "max_pool", "avg_pool", "l2_pool"})
_VECTORS = ("pad", "strides", "dilations", "kernel_sizes", "begin", "begin_mask")
"""Parameters that have a number for each axis."""

_RENAMED = {"kernel_sizes": "kernel", "ceil_mode": "ceil", "beta": "max"}


def graph_of_mil(function: Function) -> Graph:
    """Return the graph of a function; what is in loops and branches stands before them."""
    reader = _Reader()
    states = [one.name for one in function.inputs if isinstance(one.type, StateType)]
    for one in function.inputs:
        reader.value(one.name, one.type)
    for operation in walk_all(function.block):
        reader.operation(operation)
    inputs = [one.name for one in function.inputs if one.name not in states]
    return Graph(
        reader.nodes, reader.values, inputs, function.block.outputs, states, {"name": function.name, "opset": 0}
    )


class _Reader:
    """A graph while it is read."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.values: dict[str, Value] = {}

    def value(self, name: str, kind: Type, numbers: Callable[[], np.ndarray] | None = None) -> None:
        kind = kind.wrapped if isinstance(kind, StateType) else kind
        if isinstance(kind, TensorType):
            self.values[name] = Value(name, kind.dtype, kind.shape, numbers)
        else:
            self.values[name] = Value(name, "", None)

    def operation(self, operation: Operation) -> None:
        for block in operation.blocks:
            for one in block.inputs:
                self.value(one.name, one.type)
        if operation.type == "const":
            constant = operation.inputs.get("val")
            numbers = _reader(constant) if isinstance(constant, Constant) else None
            for one in operation.outputs:
                self.value(one.name, one.type, numbers)
            return
        for one in operation.outputs:
            self.value(one.name, one.type)
        names = tuple(self.names(operation))
        self.nodes.append(
            Node(
                _KINDS.get(operation.type, operation.type),
                operation.name,
                names,
                tuple(one.name for one in operation.outputs) or (operation.name,),
                self.settings(operation),
                operation.type,
                operation.source,
            )
        )

    def names(self, operation: Operation) -> Iterator[str]:
        """Yield the names of the data operands, "" for one that is absent."""
        wanted = _OPERANDS.get(operation.type, _PLAIN)
        given = [parameter for parameter in wanted if parameter in operation.inputs]
        last = max((wanted.index(one) for one in given), default=-1)
        for parameter in wanted[: last + 1]:
            operand = operation.inputs.get(parameter)
            for number, one in enumerate(operand if isinstance(operand, tuple) else (operand,)):
                yield self.name(one, f"{operation.name}.{parameter}.{number}")

    def name(self, operand: Operand | None, fallback: str) -> str:
        if isinstance(operand, Ref):
            return operand.name
        if isinstance(operand, Constant):
            self.value(fallback, operand.type, _reader(operand))
            return fallback
        return ""

    def settings(self, operation: Operation) -> dict[str, Any]:
        """Return the settings of an operator under this package's names."""
        data = _OPERANDS.get(operation.type, _PLAIN)
        found: dict[str, Any] = {}
        for parameter, operand in operation.inputs.items():
            if parameter not in data:
                known = self.setting(operand)
                if known is not None and parameter in _VECTORS:
                    known = self.vector(known, operation, parameter)
                if known is not None:
                    found[_RENAMED.get(parameter, parameter)] = known
        if operation.type in _PADDED:
            found["pads"] = self.borders(operation, found)
            found["count_padding"] = not found.get("exclude_padding_from_average", False)
            found["given_shape"] = operation.type == "conv_transpose" and "output_shape" in found
        elif operation.type == "pad":
            found["pads"] = self.all_pads(operation, found.get("pad", []))
        elif operation.type in ("slice_by_index", "slice_by_size"):
            found |= _sliced(found)
        elif operation.type == "while_loop":
            found["computed_condition"] = True
        return found

    def vector(self, known: Any, operation: Operation, parameter: str) -> list[int]:
        """Return a setting that has a whole number or a switch for each axis. Raises BadInput."""
        what = f"{parameter} of {operation.name} ({operation.type})"
        if not isinstance(known, list):
            raise BadInput(f"{what} must have a number for each axis, got {known!r:.80}; the file is damaged")
        return whole_numbers(known, what)

    def borders(self, operation: Operation, found: dict[str, Any]) -> list[int]:
        """Return the borders of a convolution or a pool, also of those that are asked to keep the size."""
        how = str(found.get("pad_type", "valid"))
        if how == "custom":
            return _begins_and_ends(found.get("pad", []))
        if not how.startswith("same"):
            return []
        sizes, weight = self.sizes(operation, "x"), self.sizes(operation, "weight")
        kernel = list(found.get("kernel") or weight)
        ones = [1] * len(kernel)
        strides, dilations = found.get("strides") or ones, found.get("dilations") or ones
        of = None if operation.type == "conv_transpose" else sizes
        return same_pads(of, kernel, strides, dilations, how == "same_lower")

    def sizes(self, operation: Operation, parameter: str) -> Shape:
        """Return the sizes of an operand but the first two."""
        operand = operation.inputs.get(parameter)
        kind = operand.type if isinstance(operand, Constant) else None
        known = self.values.get(operand.name) if isinstance(operand, Ref) else None
        shape = known.shape if known is not None else kind.shape if isinstance(kind, TensorType) else None
        return tuple(shape or ())[2:]

    def setting(self, operand: Operand) -> Any:
        """Return a constant parameter's value in Python's types; None for what is computed, or large."""
        if isinstance(operand, Ref):
            known = self.values.get(operand.name)
            if known is None or known.numbers is None or (known.rank or 0) > 1:
                return None
            value: Any = known.numbers()
        elif isinstance(operand, Constant):
            if isinstance(operand.type, TensorType) and len(operand.type.shape or ()) > 1:
                return None
            value = operand.read()
        else:
            return None
        if isinstance(value, Tensor | np.ndarray):
            return value.tolist()
        return value

    def all_pads(self, operation: Operation, pad: list[int]) -> list[int]:
        """Return a pad's borders of all axes; MIL gives those of the last ones."""
        operand = operation.inputs.get("x")
        known = self.values.get(operand.name) if isinstance(operand, Ref) else None
        missing = 2 * (known.rank or 0) - len(pad) if known is not None else 0
        return _begins_and_ends([0] * max(missing, 0) + list(pad))


def _begins_and_ends(pairs: list[int]) -> list[int]:
    """Return all begins and then all ends of pairs."""
    return [*pairs[::2], *pairs[1::2]]


def _sliced(given: dict[str, Any]) -> dict[str, Any]:
    """Return begin and axes of a slice; a masked begin is 0."""
    begin = list(given.get("begin") or [])
    masks = list(given.get("begin_mask") or [False] * len(begin))
    begin = [0 if masked else one for one, masked in zip(begin, masks, strict=False)]
    return {"begin": begin, "axes": list(range(len(begin)))}


def _reader(constant: Constant) -> Callable[[], Any]:
    """Return what reads a constant as an array; a text stays one."""

    def read() -> Any:
        value = constant.read()
        if not isinstance(value, Tensor):
            return value
        return value.float().numpy() if value.is_floating_point() else value.numpy()

    return read
