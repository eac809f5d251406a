"""Inputs that a program asks for: where its operators step, ask for what is missing, read a table, or read a mask.

    levels      comparisons, rounding, extremes and bounds: nothing that is drawn lies on a step, or beside it
    missing     `isnan`, `nan_to_num` and their like: nothing that is drawn is NaN
    rows        look-ups by whole numbers that are given: an example has few of them, and seldom the first and the last
    masks       an example's mask is often nothing but 1, and a row that is masked throughout is seldom among them

A program that has none of these is asked nothing further.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils._pytree import tree_leaves

from edgesmith.exporters.graph.capture import Program
from edgesmith.exporters.graph.interpret import held
from edgesmith.exporters.inputs import OF_MASKS, Call, changeable, masks, whole_inputs

LEVELS = 2
"""Inputs of levels: a third of the elements of a small one has few of them."""

SMALL = 24
"""Elements of a constant that are levels at most; a table of weights is none."""

MOST = 32
"""Numbers of a program that become levels at most."""

FARTHEST = 10.0
"""How much larger than the example's peak a level may be."""

TABLES = 8
"""Inputs of rows at most, for each input that looks rows up."""

_STEPS = frozenset(
    [
        "gt",
        "ge",
        "lt",
        "le",
        "eq",
        "ne",
        "round",
        "floor",
        "ceil",
        "trunc",
        "fix",
        "frac",
        "sign",
        "sgn",
        "heaviside",
        "floor_divide",
        "remainder",
        "fmod",
        "argmax",
        "argmin",
        "max",
        "min",
        "bucketize",
        "searchsorted",
        "clamp",
        "clamp_min",
        "clamp_max",
        "hardtanh",
        "threshold",
        "relu6",
        "logical_not",
    ]
)
_CONVERTS = frozenset(["_to_copy", "to"])
_MISSING = frozenset(
    ["isnan", "isfinite", "isinf", "nan_to_num", "isposinf", "isneginf", "nanmean", "nansum", "nanmedian"]
)
_NAN_ALONE = frozenset(["isnan", "nanmean", "nansum", "nanmedian"])
_TABLES = frozenset(["embedding", "index", "index_select", "gather"])


def corners(program: Program) -> Iterator[list[Call]]:
    """Yield the inputs that a program asks for, each as the calls that it may be, the best first."""
    nodes = [node for node in program.module.graph.nodes if node.op == "call_function"]
    names = {_name(node) for node in nodes}
    floating = changeable(program.inputs)
    if floating and _steps_on(program, floating):
        values = tuple(_levels(program, nodes, [program.inputs[k] for k in floating]))
        for seed in range(LEVELS if values else 1):
            yield [Call("levels", seed=seed, values=values)]
    if floating and (names & _MISSING or any(map(_asks_for_nan, nodes))):
        yield from ([Call(kind, only=only) for only in (None, *floating)] for kind in _missing(names))
    yield from _rows(program, nodes)
    if masks(program.inputs):
        yield from ([Call(kind)] for kind in OF_MASKS)


def _name(node: Node) -> str:
    """Return the name of a node's operator without its overload."""
    schema = getattr(node.target, "_schema", None)
    return "" if schema is None else str(schema.name).rpartition("::")[2]


def _steps_on(program: Program, positions: Sequence[int]) -> bool:
    """Return whether an operator steps where some inputs take it."""
    inputs = [node for node in program.module.graph.nodes if node.op == "placeholder"]
    reached = {inputs[k] for k in positions}
    for node in program.module.graph.nodes:
        if node.op == "call_function" and reached.intersection(node.all_input_nodes):
            reached.add(node)
            if _name(node) in _STEPS or _steps_in_division(node) or _becomes_whole(node):
                return True
    return False


def _steps_in_division(node: Node) -> bool:
    return _name(node) == "div" and node.kwargs.get("rounding_mode") is not None


def _becomes_whole(node: Node) -> bool:
    """Return whether a node converts floats to whole numbers."""
    if _name(node) not in _CONVERTS:
        return False
    made, given = (_value(one) for one in (node, node.args[0]))
    if made is None or given is None:
        return False
    return bool(given.is_floating_point() and not made.is_floating_point())


def _asks_for_nan(node: Node) -> bool:
    """Return whether a node compares a value with itself, as `isnan` is spelled."""
    return _name(node) in ("ne", "eq") and len(node.args) > 1 and node.args[0] is node.args[1]


def _missing(names: set[str]) -> tuple[str, ...]:
    return ("missing", "infinite") if names & (_MISSING - _NAN_ALONE) else ("missing",)


def _value(node: Any) -> Any:
    value = node.meta.get("val") if isinstance(node, Node) else None
    return value if isinstance(value, Tensor) else None


def _levels(program: Program, nodes: Sequence[Node], inputs: Sequence[Tensor]) -> list[float]:
    """Return the numbers that a program is written with and that its inputs may come to, those of steps first."""
    peak = max((float(x[x.isfinite()].abs().max()) for x in inputs if x.isfinite().any()), default=0.0)
    is_signed = any(bool((x < 0).any()) for x in inputs)
    found: dict[float, None] = {}
    for is_step in (True, False):
        for node in nodes:
            if (_name(node) in _STEPS) == is_step:
                found |= dict.fromkeys(_numbers(program, node))
    numbers = [v for v in found if math.isfinite(v) and abs(v) <= FARTHEST * peak and (is_signed or v >= 0)]
    return numbers[:MOST]


def _numbers(program: Program, node: Node) -> Iterator[float]:
    """Yield the floats that an operator is given, and those of small constants."""
    for given in tree_leaves((node.args, node.kwargs)):
        if isinstance(given, float):
            yield given
        elif isinstance(given, int) and not isinstance(given, bool) and _name(node) in _STEPS | {"sub", "add"}:
            yield float(given)
        elif isinstance(given, Node) and given.op == "get_attr" and _name(node) in _STEPS:
            yield from _constants(program, given)


def _constants(program: Program, node: Node) -> Iterator[float]:
    """Yield the elements of a small constant that is no weight."""
    if node.target in dict(program.module.named_parameters()):
        return
    value = held(program.module, node)
    if isinstance(value, Tensor) and value.numel() <= SMALL and value.dtype != torch.bool and not value.is_complex():
        yield from (float(v) for v in value.flatten())


def _rows(program: Program, nodes: Sequence[Node]) -> Iterator[list[Call]]:
    """Yield inputs of whole numbers that go through the rows of the program's tables, the largest that fits."""
    sizes = sorted({size for node in nodes for size in _sizes(node)}, reverse=True)
    for position in whole_inputs(program.inputs) if sizes else ():
        count = program.inputs[position].numel()
        calls = min(TABLES, -(-sizes[0] // count))
        for seed in range(calls):
            yield [Call("rows", seed=seed, only=position, values=(float(size), float(calls))) for size in sizes]


def _sizes(node: Node) -> list[int]:
    """Return how many rows an operator looks up among."""
    if _name(node) not in _TABLES or (table := _value(node.args[0])) is None:
        return []
    axis = node.args[1] if _name(node) in ("gather", "index_select") and len(node.args) > 1 else 0
    axes = range(table.dim()) if _name(node) == "index" else [axis if isinstance(axis, int) else 0]
    return [int(table.shape[k]) for k in axes if table.dim() and isinstance(table.shape[k], int)]
