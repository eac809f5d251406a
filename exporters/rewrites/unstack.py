"""Values that are stacked along a last axis and read back one by one need not be stacked.

    stack(a, b)[..., 0]              ->  a
    f(stack(a, b) + c)[..., 1]       ->  f(b + c[..., 1])          f elementwise, c constant

Models carry real and imaginary parts side by side through an activation; apart, they need no copy and one axis less,
of which Core ML has five.
"""

from __future__ import annotations

from typing import Any

from torch.fx import GraphModule, Node

from edgesmith.exporters.costs import Costs
from edgesmith.exporters.graph.edit import aten, constant, is_changed, rank, stand_for, val
from edgesmith.exporters.rewrites.complex_values import Arithmetic
from edgesmith.exporters.rewrites.rewrite import rewrites


@rewrites(aten.stack.default, rule="f(stack(a, b))[..., 0] -> f(a), where nothing reads the whole")
def unstack(module: GraphModule, node: Node, costs: Costs) -> str | None:
    """See the table above. A stack that something reads as a whole is left, and is no near miss."""
    if _axis(node) != rank(node) - 1 or not _is_read_apart(module, node):
        return None
    parts: list[Node] = list(node.args[0])  # type: ignore[arg-type]  # nodes, by the operator's schema
    _distribute(module, node, parts)
    return f"{len(parts)} values kept apart"


_POINTWISE = frozenset({
    aten.abs, aten.add, aten.clamp, aten.clamp_min, aten.div, aten.elu, aten.gelu, aten.hardshrink, aten.hardtanh,
    aten.leaky_relu, aten.mul, aten.neg, aten.relu, aten.sigmoid, aten.silu, aten.softshrink, aten.sub, aten.tanh,
})  # fmt: skip


def _axis(node: Node) -> int:
    """The axis that a stack makes or a selection takes, counted from the front."""
    axis = node.args[1] if len(node.args) > 1 else 0
    assert isinstance(axis, int)
    return axis % rank(node if node.target is aten.stack.default else node.args[0])


def _is_read_apart(module: GraphModule, stacked: Node) -> bool:
    """Return whether every reader, through elementwise operators, takes one of the stacked values."""
    for reader in stacked.users:
        if reader.target is aten.select.int:
            if _axis(reader) != rank(stacked) - 1:
                return False
        elif getattr(reader.target, "overloadpacket", None) in _POINTWISE:
            others = [n for n in reader.all_input_nodes if n is not stacked]
            known = all(constant(module, n) is not None and rank(n) <= rank(stacked) for n in others)
            is_alike = rank(reader) == rank(stacked) and val(reader).shape[-1] == val(stacked).shape[-1]
            if not known or reader.kwargs or not is_alike or not _is_read_apart(module, reader):
                return False
        else:
            return False
    return bool(stacked.users)


def _distribute(module: GraphModule, stacked: Node, parts: list[Node]) -> None:
    """Give every reader of `stacked` the parts instead."""
    for reader in list(stacked.users):
        if reader.target is aten.select.int:
            part = parts[reader.args[2]]  # type: ignore[index]  # an integer by the schema
            if is_changed(part):
                stand_for(part, reader)
            reader.replace_all_uses_with(part)
        else:
            emit = Arithmetic(module, reader)
            arguments = [_arguments(emit, stacked, parts, i) for i in range(len(parts))]
            _distribute(module, reader, [emit(reader.target, *own) for own in arguments])


def _arguments(emit: Arithmetic, stacked: Node, parts: list[Node], i: int) -> list[Any]:
    """The arguments of one part's operator: a constant gives its own entry for that part."""

    def own(argument: Any) -> Any:
        if argument is stacked:
            return parts[i]
        if not isinstance(argument, Node) or rank(argument) == 0:
            return argument
        last = rank(argument) - 1
        return emit(aten.select.int, argument, last, i if argument.meta["val"].shape[last] > 1 else 0)

    return [own(argument) for argument in emit.before.args]
