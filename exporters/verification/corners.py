"""Inputs that a program asks for: where its operators step, ask for what is missing, read a table, or read a mask.

    levels      comparisons, rounding, extremes and bounds: nothing that is drawn lies on a step, or beside it
    missing     `isnan`, `nan_to_num` and their like: nothing that is drawn is NaN
    rows        whole numbers, above all those that index a table: an example has few of them, seldom the first and last
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

BESIDE = (2.0**-7, 2.0**-12)
"""How far beside a number of the program, relative to it, levels lie, an input each; half precision holds the first."""

SMALL = 24
"""Elements of a constant that are levels at most; a table of weights is none."""

MOST = 32
"""Numbers of a program that become levels at most."""

FARTHEST = 10.0
"""How much larger than the example's peak a level may be."""

TABLES = 16
"""Inputs of rows that a table, or a range, may take; of a larger one there is one alone, from its first to its last."""

_STEPS = frozenset(
    (
        *("gt", "ge", "lt", "le", "eq", "ne", "round", "floor", "ceil", "trunc", "fix", "frac", "sign", "sgn"),
        *("heaviside", "floor_divide", "remainder", "fmod", "argmax", "argmin", "max", "min", "bucketize"),
        *("searchsorted", "clamp", "clamp_min", "clamp_max", "hardtanh", "threshold", "relu6", "logical_not"),
    )
)
_CONVERTS = frozenset(["_to_copy", "to"])
_MISSING = frozenset(
    ["isnan", "isfinite", "isinf", "nan_to_num", "isposinf", "isneginf", "nanmean", "nansum", "nanmedian"]
)
_NAN_ALONE = frozenset(["isnan", "nanmean", "nansum", "nanmedian"])
_KEEPS = frozenset(
    (
        *("view", "reshape", "_unsafe_view", "unsqueeze", "squeeze", "expand", "permute", "transpose", "t", "slice"),
        *("select", "clone", "_to_copy", "to", "contiguous", "flatten", "alias", "repeat", "lift_fresh_copy"),
    )
)


def corners(program: Program, dtype: torch.dtype = torch.float32) -> Iterator[list[Call]]:
    """Yield the inputs that a program asks for, each as the calls that it may be, the best first.

    Args:
        dtype: that a file computes in.
    """
    nodes = [node for node in program.module.graph.nodes if node.op == "call_function"]
    names = {_name(node) for node in nodes}
    floating = changeable(program.inputs)
    if floating and _steps_on(program, floating):
        numbers = _levels(program, nodes, [program.inputs[k] for k in floating])
        for seed, beside in enumerate(BESIDE if numbers else BESIDE[:1]):
            beside = beside if dtype == torch.float32 else BESIDE[0]
            values = tuple(v * factor for factor in (1, 1 + beside, 1 - beside) for v in numbers)
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
        elif isinstance(given, Node) and _name(node) in _STEPS:
            yield from _constants(program, given)


def _constants(program: Program, node: Node) -> Iterator[float]:
    """Yield the elements of a small constant that is no weight."""
    while node.op == "call_function" and _name(node) in _KEEPS and isinstance(node.args[0], Node):
        node = node.args[0]
    if node.op != "get_attr" or node.target in dict(program.module.named_parameters()):
        return
    value = held(program.module, node)
    if isinstance(value, Tensor) and value.numel() <= SMALL and value.dtype != torch.bool and not value.is_complex():
        yield from (float(v) for v in value.flatten())


def _rows(program: Program, nodes: Sequence[Node]) -> Iterator[list[Call]]:
    """Yield inputs of whole numbers that go through the rows of the table that they index, or through their range."""
    placeholders = [node for node in program.module.graph.nodes if node.op == "placeholder"]
    for position in whole_inputs(program.inputs):
        x, sizes = program.inputs[position], _sizes(placeholders[position], nodes)
        if not sizes and position in masks(program.inputs):
            continue
        first, last = (0, min(sizes) - 1) if sizes else (int(x.min()), int(x.max()))
        calls = -(-(last - first + 1) // x.numel())
        calls = calls if calls <= TABLES else 1
        for seed in range(calls if first < last else 0):
            yield [Call("rows", seed=seed, only=position, values=(float(first), float(last), float(calls)))]


def _sizes(given: Node, nodes: Sequence[Node]) -> list[int]:
    """Return how many rows there are wherever an input is an index."""
    reached, found = {given}, []
    for node in nodes:
        if _name(node) in _KEEPS and reached.intersection(node.all_input_nodes):
            reached.add(node)
        table = _value(node.args[0]) if node.args else None
        if table is None or not table.dim():
            continue
        shape = table.shape
        found += [int(shape[axis]) for axis in _indexed(node, reached) if isinstance(shape[axis], int)]
    return found


def _indexed(node: Node, reached: set[Node]) -> list[int]:
    """Return the axes of an operator's first operand in which it is indexed by what an input reaches."""
    name, args = _name(node), node.args
    if name == "embedding" and args[1] in reached:
        return [0]
    if name == "index":
        assert isinstance(args[1], list | tuple)
        return [k for k, index in enumerate(args[1]) if index in reached]
    if name in ("index_select", "gather") and args[2] in reached:
        assert isinstance(args[1], int)
        return [args[1]]
    return []
