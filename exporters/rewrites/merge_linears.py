"""Linear layers that are only added and scaled are one linear layer.

    (x W1 + b1) + (x W2 + b2)  ->  x (W1 + W2) + (b1 + b2)
    (x W + b) * s              ->  x (s W) + s b                   also / s; s a number, or a tensor of one

Two classification heads that inference averages become one. Sums are formed in float64 and rounded once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from edgesmith.exporters.costs import Costs
from edgesmith.exporters.graph.edit import (
    arguments,
    aten,
    constant,
    operators,
    rank,
    readers,
    set_constant,
    site,
    stand_for,
    val,
)
from edgesmith.exporters.rewrites.rewrite import Rejection, RewriteReport

Outcome = tuple[str, str] | Rejection | None


class MergeLinears:
    """See the table above. A near miss is a sum of two linear layers of one input that something else reads too."""

    name = "merge_linears"

    def apply(self, module: GraphModule, costs: Costs) -> RewriteReport:
        """Merge in place, in program order, so that a merged pair is scaled in the same pass."""
        applied, rejected = [], []
        for node in operators(module):
            merge = _MERGES.get(node.target)
            if merge is None:
                continue
            outcome = merge(module, node)
            if isinstance(outcome, Rejection):
                rejected.append(outcome)
            elif outcome:
                applied.append(outcome)
        return RewriteReport(self.name, tuple(applied), tuple(rejected))


def _is_linear(node: object) -> bool:
    return isinstance(node, Node) and node.target is aten.linear.default


def _merge_sum(module: GraphModule, node: Node) -> Outcome:
    first, second, alpha = arguments(node)
    if not (_is_linear(first) and _is_linear(second)) or first is second or alpha != 1:
        return None
    where = f"{site(first)} + {site(second)}"
    (x, *_), (other, *_) = arguments(first), arguments(second)
    if x is not other:
        return None
    for linear in (first, second):
        if len(linear.users) > 1:
            return Rejection(where, f"{linear.name} is read by {readers(linear)}, not by the sum alone")
    one, two = _constants(module, first), _constants(module, second)
    if one is None or two is None:
        return Rejection(where, "a weight is computed in the graph, or no floating-point matrix")
    (w1, b1), (w2, b2) = one, two
    if w1.shape != w2.shape:
        return None
    _write(module, first, w1 + w2, b1 + b2)
    _stand_in(module, node, first)
    return where, "the sum of two linear layers -> one"


def fold_factor(module: GraphModule, node: Node) -> Outcome:
    """A linear layer times a number -> that layer with its weights times the number."""
    linear, factor = arguments(node)[:2]
    if _is_linear(factor) and node.target is aten.mul.Tensor:
        linear, factor = factor, linear
    held = constant(module, factor)
    if held is not None and held.numel() == 1 and held.is_floating_point() and held.dim() <= rank(linear):
        factor = float(held)
    if not _is_linear(linear) or not isinstance(factor, int | float) or isinstance(factor, bool) or factor == 0:
        return None
    if val(node).dtype != val(linear).dtype:
        return None  # the factor also changes the type
    if len(linear.users) > 1:
        return Rejection(site(linear), f"{linear.name} is read by {readers(linear)}, not by the scaling alone")
    constants = _constants(module, linear)
    if constants is None:
        return Rejection(site(linear), "a weight is computed in the graph, or no floating-point matrix")
    scale = 1 / factor if node.target is aten.div.Tensor else factor
    _write(module, linear, constants[0] * scale, constants[1] * scale)
    _stand_in(module, node, linear)
    return site(linear), f"factor {scale:g} folded into the weights"


def _constants(module: GraphModule, linear: Node) -> tuple[Tensor, Tensor] | None:
    _, w, b = arguments(linear)
    weight = constant(module, w)
    bias = constant(module, b)
    if weight is None or (b is not None and bias is None) or weight.dim() != 2 or not weight.is_floating_point():
        return None
    if bias is None:
        bias = torch.zeros(weight.shape[0])
    return weight.double(), bias.double()


def _write(module: GraphModule, linear: Node, weight: Tensor, bias: Tensor) -> None:
    dtype = linear.meta["val"].dtype
    prefix = site(linear)
    set_constant(module, linear, 1, f"{prefix}.weight", weight.to(dtype))
    set_constant(module, linear, 2, f"{prefix}.bias", bias.to(dtype))


def _stand_in(module: GraphModule, node: Node, linear: Node) -> None:
    """Let `linear`, moved to where `node` was, yield what `node` did."""
    node.replace_all_uses_with(linear)
    stand_for(linear, node)
    node.append(linear)
    module.graph.erase_node(node)
    for argument in linear.args[1:]:
        if isinstance(argument, Node):
            linear.prepend(argument)


_MERGES: dict[Any, Callable[[GraphModule, Node], Outcome]] = {
    aten.add.Tensor: _merge_sum,
    aten.mul.Tensor: fold_factor,
    aten.div.Tensor: fold_factor,
}
