"""The graph of a Core AI asset, as far as Apple's packages show it: its operators are MLIR's, of the dialect coreai."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from edgesmith.exporters.departures.graph import Graph, Node, Shape, Value
from edgesmith.exporters.targets import _coreai_adapter as adapter

_KINDS = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), "conv"),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), "conv_transpose"),
    "batch_matmul": "matmul",
    "divide": "div",
    "maximum": "max",
    "minimum": "min",
    "hard_sigmoid": "hardsigmoid",
    "scaled_dot_product_attention": "attention",
    "write_handle": "update_state",
    "read_handle": "read_state",
    "constexpr_lut_to_dense": "lut_weights",
    "lut_to_dense": "lut_weights",
    "constexpr_blockwise_shift_scale": "blockwise_weights",
    "blockwise_shift_scale": "blockwise_weights",
}
_SETTINGS: dict[str, dict[int, str]] = {
    "conv": {2: "strides", 3: "dilations", 4: "groups"},
    "conv_transpose": {2: "strides"},
    **{kind: {1: "axis"} for kind in ("softmax", "argmax", "cumsum")},
    **{kind: {1: "axes"} for kind in ("reduce_mean", "reduce_sum", "reduce_max")},
    "transpose": {1: "perm"},
}
"""Operands that are settings, by position."""

_TYPE = re.compile(r"(?:tensor|handle)<(?:!?[\w.]*<)?(?P<sizes>(?:[\d?]+x)*)(?P<dtype>[a-z]+\d*)")
_SIGNED = {"si": "int", "ui": "uint", "i": "int", "f": "fp", "bf": "bf"}
_LONGEST = 256
"""Characters of a constant that are read as numbers; longer ones are weights."""


def graph_of_coreai(folder: Path) -> Graph:
    """Return the graph of an asset. Raises Unsupported and BackendMissing as `_coreai_adapter.read_operators`."""
    found, inputs, outputs = adapter.read_operators(folder)
    values: dict[str, Value] = {}
    for one in found:
        for name, kind in one.types.items():
            values.setdefault(name, _value(name, kind))
        if one.constant is not None:
            (name,) = one.results
            values[name] = _constant(values[name], one.constant)
    states = [name for name in inputs if name in values and "handle" in _kind_of(found, name)]
    nodes = [_node(one, number, values) for number, one in enumerate(found) if one.constant is None]
    plain = [name for name in inputs if name not in states]
    return Graph(nodes, values, plain, outputs, states, {"name": adapter.ENTRY})


def _kind_of(found: list[adapter.ReadOperator], name: str) -> str:
    return next((one.types[name] for one in found if name in one.types), "")


def _value(name: str, kind: str) -> Value:
    matched = _TYPE.search(kind)
    if matched is None:
        return Value(name, "", None)
    shape: Shape = tuple(None if one == "?" else int(one) for one in matched["sizes"].split("x")[:-1])
    letters = matched["dtype"].rstrip("0123456789")
    bits = matched["dtype"][len(letters) :]
    dtype = "bool" if matched["dtype"] == "i1" else _SIGNED.get(letters, letters) + bits
    return Value(name, dtype, shape)


def _constant(value: Value, written: str) -> Value:
    """Return a constant with its numbers, where MLIR writes them out."""
    text = written.partition("dense<")[2].rpartition("> :")[0]
    array = np.zeros(0)
    if text and len(text) <= _LONGEST and '"' not in text:
        numbers = [float(one) for one in re.findall(r"-?[\d.]+(?:e[+-]?\d+)?", text)]
        sizes = [size or 0 for size in value.shape or ()]
        size = int(np.prod(sizes))
        array = np.full(sizes, numbers[0]) if len(numbers) == 1 else np.array(numbers)
        array = array.reshape(sizes) if array.size == size else np.zeros(0)
    return Value(value.name, value.dtype, value.shape, lambda: array)


def _node(found: adapter.ReadOperator, number: int, values: dict[str, Value]) -> Node:
    kind = _KINDS.get(found.name, found.name)
    positions = _SETTINGS.get(kind, {})
    settings: dict[str, Any] = {}
    for position, name in positions.items():
        known = values.get(found.operands[position]) if position < len(found.operands) else None
        if known is not None and known.numbers is not None:
            settings[name] = [int(one) for one in known.numbers().reshape(-1)]
    operands = tuple(name for position, name in enumerate(found.operands) if position not in positions)
    if "groups" in settings:
        settings["groups"] = (settings["groups"] or [1])[0]
    return Node(
        kind, f"{found.name}_{number}", operands, found.results or (f"{found.name}_{number}",), settings, found.name
    )
