"""A softmax does not see what is added to all of a row alike.

    softmax_d(x + c)  ->  softmax_d(x)       c a constant with one number for the whole of axis d; x - c the same

Exact but for rounding: softmax subtracts the row's largest value anyway. EfficientViM's parameter A is such a c.
"""

from __future__ import annotations

import math

import torch
from torch.fx import GraphModule, Node

from edgesmith.exporters.costs import Costs
from edgesmith.exporters.graph.edit import arguments, aten, constant, operator_name, rank, site, val
from edgesmith.exporters.rewrites.rewrite import Reject, rewrites


@rewrites(aten.softmax.int, aten._softmax.default, rule="softmax(x + c) -> softmax(x)", again=True)
def drop_shift(module: GraphModule, node: Node, costs: Costs) -> str | None:
    """See above. A near miss is a sum with a constant that varies along the axis, or is not finite."""
    total, axis = arguments(node)[:2]
    if total.target not in (aten.add.Tensor, aten.sub.Tensor):
        return None
    first, second, alpha = arguments(total)
    is_sum = total.target is aten.add.Tensor and alpha == 1
    orders = ((first, second), (second, first)) if is_sum else ((first, second),)
    kept = next((x for x, c in orders if _is_shift(module, c, x, node, axis)), None)
    if kept is not None:
        node.update_arg(0, kept)
        return f"{operator_name(total)} before the softmax -> nothing"
    if any(constant(module, c) is not None for _, c in orders):
        raise Reject(f"what {total.name} adds varies along axis {axis}, or is not finite", at=site(total))
    return None


def _is_shift(module: GraphModule, c: object, x: object, softmax: Node, axis: int) -> bool:
    """Return whether x + c adds one number along the whole axis, and x keeps its shape and type."""
    if not isinstance(x, Node) or x.op == "get_attr" or not rank(x) or val(x).dtype != val(softmax).dtype:
        return False
    if rank(x) != rank(softmax) or any(str(a) != str(b) for a, b in zip(val(x).shape, val(softmax).shape, strict=True)):
        return False
    if isinstance(c, int | float):
        return math.isfinite(c)
    shift = constant(module, c)
    if shift is None or not bool(torch.isfinite(shift).all()):
        return False
    behind = rank(x) - axis % rank(x)  # the axis counted from the end, where broadcasting aligns
    return shift.dim() < behind or shift.shape[-behind] == 1
