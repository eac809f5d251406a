"""A mask of ones hides nothing: products with it go, and sums over as many as it counts are means.

    x * ones                                        ->  x
    sum(x, axes) / clamp_min(sum(ones, axes), k)    ->  mean(x, axes),  where there are k values or more
    sum(x, axes) / n, of n values                   ->  mean(x, axes)

It comes from models that take a mask and were given none, such as the scalers of forecasters. What is left of a scaler
is a mean and a biased variance, which other rewrites know as a norm. Left alone: ones that make the other operand
larger, and counts that are not those of the sum's axes, with the count that differs.
"""

from __future__ import annotations

import math

from torch.fx import GraphModule, Node

from edgesmith.exporters.costs import Costs
from edgesmith.exporters.graph.edit import Emitter, arguments, aten, constant, rank, replace, same_shape, val
from edgesmith.exporters.rewrites.rewrite import Reject, rewrites

_ONES = (aten.ones.default, aten.ones_like.default, aten.new_ones.default)
_FULL = (aten.full.default, aten.full_like.default, aten.new_full.default)
_AT_LEAST = (aten.clamp_min.default, aten.clamp.default, aten.clamp_min.Tensor, aten.maximum.default)
_CHANGED = (aten.to.dtype, aten._to_copy.default, aten.expand.default, aten.clone.default, aten.unsqueeze.default)
"""Operators that leave ones what they are."""


@rewrites(aten.mul.Tensor, rule="x * ones -> x")
def drop_ones(module: GraphModule, node: Node, costs: Costs) -> str | None:
    """Drop a factor of ones that changes neither shape nor type."""
    for x, other in (node.args[:2], node.args[1::-1]):
        if isinstance(x, Node) and _is_ones(module, other) and x is not other:
            if not same_shape(val(x), val(node)) or val(x).dtype != val(node).dtype:
                continue
            node.replace_all_uses_with(x)
            module.graph.erase_node(node)
            return f"a product with ones -> {x.name}"
    return None


@rewrites(aten.div.Tensor, rule="sum(x) / number of x -> mean(x)")
def find_mean(module: GraphModule, node: Node, costs: Costs) -> str | None:
    """Replace a sum over axes by the number of its values, where that was counted from ones. See above."""
    total, count = node.args[:2]
    if not isinstance(total, Node) or total.target is not aten.sum.dim_IntList:
        return None
    x, axes, keeps, dtype = arguments(total)
    counted = _count(module, count) if isinstance(count, Node) else _number(module, count)
    if counted is None or not axes or dtype not in (None, val(x).dtype) or not val(x).is_floating_point():
        return None
    sizes = [val(x).shape[axis % rank(x)] for axis in axes]
    if not all(isinstance(size, int) for size in sizes):
        return None
    if counted != math.prod(sizes):
        if not isinstance(count, Node):
            return None  # any other factor
        raise Reject(f"a sum of {math.prod(sizes)} values is divided by a count of {counted:g}")
    if not same_shape(val(total), val(node)):
        return None
    emit = Emitter(module, before=node)
    replace(node, emit(aten.mean.dim, x, list(axes), keeps))
    return f"a sum divided by {counted:g} ones -> a mean"


def _is_ones(module: GraphModule, value: object) -> bool:
    """Return whether a value is a tensor of ones."""
    if not isinstance(value, Node):
        return False
    held = constant(module, value)
    if held is not None:
        return held.numel() > 1 and bool((held == 1).all())
    if value.target in _CHANGED:
        return _is_ones(module, value.args[0])
    return value.target in _ONES or (value.target in _FULL and arguments(value)[1] == 1)


def _count(module: GraphModule, value: Node) -> float | None:
    """Return how many ones a value counts, everywhere the same; None where it counts none."""
    if value.target in _AT_LEAST:
        source, given, *most = arguments(value)
        least, inner = _number(module, given), _count(module, source)
        return None if least is None or inner is None or most not in ([], [None]) else max(inner, least)
    if value.target is not aten.sum.dim_IntList or not _is_ones(module, arguments(value)[0]):
        return None
    source, axes, *_ = arguments(value)
    sizes = [val(source).shape[axis % rank(source)] for axis in axes or range(rank(source))]
    return float(math.prod(sizes)) if all(isinstance(size, int) for size in sizes) else None


def _number(module: GraphModule, value: object) -> float | None:
    """Return a number, or the one that a constant holds everywhere; None for anything else."""
    if isinstance(value, int | float):
        return float(value)
    held = constant(module, value)
    if held is None or not held.numel() or bool((held != held.flatten()[0]).any()):
        return None
    return float(held.flatten()[0])
