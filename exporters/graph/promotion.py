"""Types that PyTorch gives the operands of an operator unsaid, said: converters give the result the first one's type.

    sqrt(i), i * x, i / 2        floats of whole numbers: operands in the type of the result
    b * 3, b ** 2                whole numbers of truth values: likewise
    i < 0.5, x == i              comparisons: both in the type that PyTorch promotes them to
    mean(i, dtype=float32)       reductions in another type: of numbers in that type
    floor(i)                     i

i is a tensor of whole numbers or truth values, b one of truth values, x one of floats. PyTorch's rules are those of
`torch.result_type`.
"""

from __future__ import annotations

import torch
from torch.fx import GraphModule, Node

from edgesmith.exporters.graph.edit import Emitter, aten, fork, operator_name, tidy

_COMPARISONS = frozenset(f"aten.{name}" for name in ("eq", "ne", "lt", "le", "gt", "ge"))
_REDUCTIONS = frozenset(
    f"aten.{name}" for name in ("sum", "mean", "prod", "cumsum", "cumprod", "softmax", "log_softmax", "nansum")
)
_CONDITIONS = {"aten.where": 0, "aten.masked_fill": 1}
"""Which operand is a condition, and stays one."""

_ROUNDING = frozenset(f"aten.{name}" for name in ("floor", "ceil", "trunc", "fix", "round"))

_OWN = ("aten.fake_quantize", "aten._fake_quantize", "aten.to", "aten._to_copy", "aten.type_as")
"""Operators that convert, or whose whole numbers are no operands of arithmetic."""


def with_said_types(module: GraphModule) -> GraphModule:
    """Return a graph in which operands have the types that PyTorch computes in; the same where all have them."""
    wanted = {node.name: kind for node in module.graph.nodes if (kind := _computed_in(node)) is not None}
    whole = {node.name for node in module.graph.nodes if _is_whole_already(node)}
    if not wanted and not whole:
        return module
    module = fork(module)
    for node in list(module.graph.nodes):
        if node.name in wanted:
            _convert(Emitter(module, node), node, wanted[node.name])
        elif node.name in whole:
            node.target, node.args, node.kwargs = aten.alias.default, node.args[:1], {}
    return tidy(module)


def _is_whole_already(node: Node) -> bool:
    """Return whether an operator rounds whole numbers."""
    result = node.meta.get("val")
    is_rounding = node.op == "call_function" and operator_name(node) in _ROUNDING
    return is_rounding and isinstance(result, torch.Tensor) and not result.dtype.is_floating_point


def _computed_in(node: Node) -> torch.dtype | None:
    """Return the type that an operator computes in, where an operand is of a simpler kind."""
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return None
    name, result = operator_name(node), node.meta.get("val")
    if not isinstance(result, torch.Tensor) or name.startswith(_OWN):
        return None
    kind: torch.dtype | None = None
    if name in _COMPARISONS:
        first, second = node.args
        kind = torch.result_type(_value(first), _value(second))
    elif (name in _REDUCTIONS and result.dtype.is_floating_point) or torch.Tag.pointwise in node.target.tags:
        kind = result.dtype
    if kind is None or kind == torch.bool or kind.is_complex:
        return None
    return kind if any(_is_simpler(one, kind) for one in _operands(node)) else None


def _is_simpler(operand: Node, kind: torch.dtype) -> bool:
    """Return whether an operand is of truth values or whole numbers, and a type is of whole numbers or floats."""
    own: torch.dtype = operand.meta["val"].dtype
    return own == torch.bool if not kind.is_floating_point else not own.is_floating_point and not own.is_complex


def _value(argument: object) -> torch.Tensor | float:
    found = argument.meta["val"] if isinstance(argument, Node) else argument
    assert isinstance(found, (torch.Tensor, int, float))
    return found


def _operands(node: Node) -> list[Node]:
    """Return the tensors that an operator computes with."""
    condition = _CONDITIONS.get(operator_name(node))
    return [
        one
        for place, one in enumerate((*node.args, *node.kwargs.values()))
        if place != condition and isinstance(one, Node) and isinstance(one.meta.get("val"), torch.Tensor)
    ]


def _convert(emit: Emitter, node: Node, kind: torch.dtype) -> None:
    emit.source = node
    for one in dict.fromkeys(_operands(node)):
        if not _is_simpler(one, kind):
            continue
        converted = emit(aten._to_copy.default, one, dtype=kind)
        condition = _CONDITIONS.get(operator_name(node))
        node.args = tuple(
            converted if argument is one and place != condition else argument
            for place, argument in enumerate(node.args)
        )
        node.kwargs = {key: converted if argument is one else argument for key, argument in node.kwargs.items()}
