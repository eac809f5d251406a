"""Flattening waits until something needs a sequence: what works position by position works on maps as well.

    conv1d(flatten(x, 2); W [C', C, 1])      ->  flatten(conv2d(x; W [C', C, 1, 1]), 2)
    channel_norm(flatten(x, 2))              ->  flatten(channel_norm(x), 2)
    relu, silu, gelu, sigmoid ... the same
    unflatten(flatten(x, 2), 2, [H, W])      ->  x                        where x is [B, C, H, W]

A chain that flattened maps and made maps of them again stays a chain of maps, which is what convolutions next to it,
patterns and targets want. Exact: nothing is computed otherwise than before.
"""

from __future__ import annotations

from typing import Any

from torch.fx import GraphModule, Node

from edgesmith.exporters.costs import Costs
from edgesmith.exporters.graph.edit import (
    arguments,
    aten,
    changed,
    constant,
    operator_name,
    rank,
    replace,
    set_constant,
    site,
    val,
)
from edgesmith.exporters.rewrites.rewrite import rewrites
from edgesmith.kernels import channel_norm

_ELEMENTWISE = frozenset({aten.relu.default, aten.silu.default, aten.gelu.default, aten.sigmoid.default})


@rewrites(rule="conv1d(flatten(x)) -> flatten(conv2d(x)): chains of maps stay maps")
def lift_flatten(module: GraphModule, node: Node, costs: Costs) -> str | None:
    """In program order, so that a flattening moves down its whole chain.

    A reader of another kind is no near miss: it may well need the sequence.
    """
    flat = node.args[0] if node.args else None
    if not isinstance(flat, Node) or flat.target is not aten.flatten.using_ints:
        return None
    x, start, end = arguments(flat)
    if start != 2 or end not in (-1, rank(x) - 1) or rank(x) != 4:
        return None
    if node.target is aten.unflatten.int and _restores(node, x):
        node.replace_all_uses_with(x)
        return "a flattening undone -> nothing"
    if not _is_pointwise(module, node):
        return None
    _lift(module, node, x)
    return f"{operator_name(node)} on the map, flattened after it"


def _restores(node: Node, x: Node) -> bool:
    _, axis, sizes = arguments(node)
    return axis in (2, -1) and list(sizes) == list(val(x).shape[2:])


def _is_pointwise(module: GraphModule, node: Node) -> bool:
    if node.target in _ELEMENTWISE or node.target is channel_norm.OP.overload:
        return True
    if node.target is not aten.conv1d.default:
        return False
    _, w, _, stride, padding, _, _ = arguments(node)
    weight = constant(module, w)
    return weight is not None and weight.shape[2:] == (1,) and list(stride) == [1] and list(padding) == [0]


def _lift(module: GraphModule, node: Node, x: Node) -> None:
    graph = module.graph
    sizes = list(val(x).shape[2:])
    with graph.inserting_before(node):
        target: Any = node.target
        if target is aten.conv1d.default:
            _, w, b, _, _, _, groups = arguments(node)
            lifted = graph.call_function(aten.conv2d.default, (x, w, b, [1, 1], [0, 0], [1, 1], groups))
        else:
            lifted = graph.call_function(target, (x, *node.args[1:]), node.kwargs)
        flat = graph.call_function(aten.flatten.using_ints, (lifted, 2))
    for new in (lifted, flat):
        new.meta.update(node.meta)
    changed(lifted)
    lifted.meta["val"] = val(node).reshape(*val(node).shape[:2], *sizes)
    replace(node, flat)
    graph.erase_node(node)
    if lifted.target is aten.conv2d.default:
        weight = constant(module, lifted.args[1])
        assert weight is not None
        set_constant(module, lifted, 1, f"{site(lifted)}.weight", weight.unsqueeze(-1))
