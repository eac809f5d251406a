"""What works place by place works on maps as well: flattening waits until something needs a sequence.

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
    constant,
    operator_name,
    operators,
    rank,
    set_constant,
    site,
    stand_for,
    val,
)
from edgesmith.exporters.rewrites.rewrite import RewriteReport
from edgesmith.kernels import channel_norm

_ELEMENTWISE = frozenset({aten.relu.default, aten.silu.default, aten.gelu.default, aten.sigmoid.default})


class LiftFlatten:
    """See the table above. A reader of another kind is no near miss: it may well need the sequence."""

    name = "lift_flatten"

    def apply(self, module: GraphModule, costs: Costs) -> RewriteReport:
        """Lift in place, in program order, so that a flattening moves down its whole chain."""
        applied = []
        for node in operators(module):
            flat = node.args[0] if node.args else None
            if not isinstance(flat, Node) or flat.target is not aten.flatten.using_ints:
                continue
            x, start, end = arguments(flat)
            if start != 2 or end not in (-1, rank(x) - 1) or rank(x) != 4:
                continue
            where = site(node)
            if node.target is aten.unflatten.int and _restores(node, x):
                node.replace_all_uses_with(x)
                module.graph.erase_node(node)
                applied.append((where, "a flattening undone -> nothing"))
            elif _is_pointwise(module, node):
                applied.append((where, f"{operator_name(node)} on the map, flattened after it"))
                _lift(module, node, x)
        module.graph.eliminate_dead_code()
        return RewriteReport(self.name, tuple(applied))


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
    stand_for(flat, node)
    lifted.meta["equals"] = ""
    lifted.meta["val"] = val(node).reshape(*val(node).shape[:2], *sizes)
    node.replace_all_uses_with(flat)
    graph.erase_node(node)
    if lifted.target is aten.conv2d.default:
        weight = constant(module, lifted.args[1])
        assert weight is not None
        set_constant(module, lifted, 1, f"{site(lifted)}.weight", weight.unsqueeze(-1))
