"""Linear layers that are only added and scaled are one linear layer.

    (x W1 + b1) + (x W2 + b2)  ->  x (W1 + W2) + (b1 + b2)
    (x W + b) * s              ->  x (s W) + s b                   also / s; s a number, or a tensor of one

Two classification heads that inference averages become one. Sums are formed in float64 and rounded once.
"""

from __future__ import annotations

from torch.fx import GraphModule, Node

from edgesmith.exporters.costs import Costs
from edgesmith.exporters.graph.edit import aten, constant, rank, readers, replace, site, val
from edgesmith.exporters.graph.linear import Linear, add_biases, as_layer
from edgesmith.exporters.graph.pattern import any_of, find, hole, named, op
from edgesmith.exporters.rewrites.rewrite import Fired, Reject, rewrites

_SUM = op(
    aten.add.Tensor,
    named("first", op(aten.linear.default, hole("x"), ...)),
    named("second", op(aten.linear.default, hole("x"), ...)),
)
_SCALED = any_of(
    op(aten.mul.Tensor, named("linear", op(aten.linear.default, ...)), hole("factor")),
    op(aten.div.Tensor, named("linear", op(aten.linear.default, ...)), hole("factor")),
)


@rewrites(aten.add.Tensor, aten.mul.Tensor, aten.div.Tensor, rule="(L1(x) + L2(x)) * s  ->  L(x)")
def merge_linears(module: GraphModule, node: Node, costs: Costs) -> str | Fired | None:
    """In program order, so that a merged pair is scaled in the same pass.

    A near miss is a sum of two linear layers of one input that something else reads too.
    """
    return _merge_sum(module, node) if node.target is aten.add.Tensor else fold_factor(module, node)


def _merge_sum(module: GraphModule, node: Node) -> Fired | None:
    found = find(_SUM, node)
    if found is None or found["first"] is found["second"]:
        return None
    first, second = found["first"], found["second"]
    where = f"{site(first)} + {site(second)}"
    for linear in (first, second):
        _check_reader(linear, "the sum", where)
    one, two = (_matrix(module, linear, where) for linear in (first, second))
    if one.weight.shape != two.weight.shape:
        return None
    one.write(one.weight + two.weight, add_biases(one.bias, two.bias))
    _stand_in(module, node, first)
    return Fired(where, "the sum of two linear layers -> one")


def fold_factor(module: GraphModule, node: Node) -> Fired | None:
    """A linear layer times a number -> that layer with its weights times the number."""
    found = find(_SCALED, node)
    if found is None:
        return None
    linear, factor = found["linear"], found["factor"]
    held = constant(module, factor)
    if held is not None and held.numel() == 1 and held.is_floating_point() and held.dim() <= rank(linear):
        factor = float(held)
    if not isinstance(factor, int | float) or isinstance(factor, bool) or factor == 0:
        return None
    if val(node).dtype != val(linear).dtype:
        return None  # the factor also changes the type
    _check_reader(linear, "the scaling", site(linear))
    layer = _matrix(module, linear, site(linear))
    scale = 1 / factor if node.target is aten.div.Tensor else factor
    layer.write(layer.weight * scale, None if layer.bias is None else layer.bias * scale)
    _stand_in(module, node, linear)
    return Fired(site(linear), f"factor {scale:g} folded into the weights")


def _check_reader(linear: Node, reader: str, where: str) -> None:
    if len(linear.users) > 1:
        raise Reject(f"{linear.name} is read by {readers(linear)}, not by {reader} alone", where)


def _matrix(module: GraphModule, linear: Node, where: str) -> Linear:
    """A linear layer with its constant matrix."""
    layer = as_layer(module, linear)
    if layer is None:
        raise Reject("a weight is computed in the graph, or no floating-point matrix", where)
    return layer


def _stand_in(module: GraphModule, node: Node, linear: Node) -> None:
    """Let `linear`, moved to where `node` was, yield what `node` did."""
    replace(node, linear)
    node.append(linear)
    module.graph.erase_node(node)
    for argument in linear.args[1:]:
        if isinstance(argument, Node):
            linear.prepend(argument)
