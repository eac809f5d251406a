"""One spelling for what PyTorch can say in several, so that a pattern needs only one.

dropout(x), not training               ->  x
adaptive_avg_pool2d(x, 1)              ->  mean(x, [2, 3], keepdim)
mean(x, [-1, -2])                      ->  mean(x, [2, 3])
mean(flatten(x, 2), [2])               ->  mean(x, [2, 3])
chunk, split, tensor_split(x, n, d)     ->  split_with_sizes(x, [n, ...], d)
    softmax(x, -1), transpose(x, -1, -2)   ->  axes counted from the front, the lower one first
    reshape, view: [B, C, *] -> [B, C, N]  ->  flatten(x, 2)
    reshape, view: [B, C, N] -> [B, C, *]  ->  unflatten(x, 2, [*])
    x ** 2, square(x)                      ->  x * x
    addcmul(x, a, b), lerp(x, y, w)        ->  x + a * b,  x + (y - x) * w
    baddbmm(x, a, b), addmm(x, a, b)       ->  x + a @ b
    x + a * (y - x), a constant            ->  (1 - a) * x + a * y
    unbind(unflatten(x, d, [n, c]), d)     ->  split_with_sizes(x, [c, ...], d)
    x[:, 0], x[:, 1], all of a taken axis  ->  unbind(x, 1)
    einsum(q, k), heads of two values      ->  matmul of permutations
    bmm(a, b)                              ->  matmul(a, b)
    einsum(x, W), W a constant matrix      ->  linear(x, W^T), conv1x1(x)
    mean of cells [B, C, h, s, w, s]       ->  avg_pool2d(x, s)
    repeat_interleave of rows and columns  ->  upsample_nearest2d(x)
    max_pool2d(pad(x, -inf))               ->  max_pool2d(x) that pads
    x * sigmoid(x), x W + b                ->  silu(x), linear(x, W^T, b)
    unsqueeze(f(mean(x, [2, 3])), ...)     ->  f(mean(x, [2, 3], keepdim)), layers in f as convolutions
    sum(stack(x, y, ...)), mean(stack ...) ->  x + y + ...,  (x + y + ...) / n
    upsample(x) to its own size            ->  x
    _native_batch_norm_legit_no_training   ->  batch_norm, which is what functionalising made it from
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.fx import GraphModule, Node

from edgesmith.exporters.costs import Costs
from edgesmith.exporters.graph.edit import arguments, aten, rank, val
from edgesmith.exporters.rewrites.canonicalise_layers import RULES, gate_of_means, put, reshaping, sum_of_stack
from edgesmith.exporters.rewrites.canonicalise_maps import RULES as OF_MAPS
from edgesmith.exporters.rewrites.canonicalise_maps import cells
from edgesmith.exporters.rewrites.drop_aliases import drop_aliases
from edgesmith.exporters.rewrites.rewrite import rewrites


def pattern_form(module: GraphModule) -> GraphModule:
    """The same respelling for a pattern's graph."""
    drop_aliases.apply(module, Costs(0))
    canonicalise.apply(module, Costs(0))
    return module


def _dropout(module: GraphModule, node: Node) -> str | None:
    x, _, training = arguments(node)
    if training:
        return None
    node.replace_all_uses_with(x)
    module.graph.erase_node(node)  # for torch, what is random has a side effect, and is not dead
    return "dropout -> nothing"


def _pool(module: GraphModule, node: Node) -> str | None:
    x, size = arguments(node)
    if list(size) != [1] * len(size):
        return None
    axes = list(range(rank(x) - len(size), rank(x)))
    put(module, node, aten.mean.dim, (x, axes, True))
    return "adaptive_avg_pool -> mean"


def _mean(module: GraphModule, node: Node) -> str | None:
    x, axes, keepdim, dtype = arguments(node)
    if rank(x) == 0:
        return None
    if x.target is aten.stack.default and (note := sum_of_stack(module, node)) is not None:
        return note
    if axes and rank(x) == 6 and (note := cells(module, node)) is not None:
        return note
    axes = axes or None  # an empty list means every axis
    wanted = sorted(axis % rank(x) for axis in (range(rank(x)) if axes is None else axes))
    if _is_map_flattened(x) and wanted == [2] and not keepdim and dtype is None:
        put(module, node, aten.mean.dim, (x.args[0], [2, 3], False))
        return "mean of a flattened map -> mean over its axes"
    if dtype is not None or (list(axes or []) == wanted and len(node.args) == 3):
        return None
    put(module, node, aten.mean.dim, (x, wanted, keepdim))
    return "mean: axes counted from the front"


def _is_map_flattened(x: Node) -> bool:
    """Return whether a value [B, C, H W] is a map [B, C, H, W] flattened."""
    is_flatten = x.target is aten.flatten.using_ints and reshaping(val(x.args[0]).shape, val(x).shape)[1:] == (2,)
    return is_flatten and rank(x.args[0]) == 4


def _split(module: GraphModule, node: Node) -> str | None:
    x, amount, axis = arguments(node)
    axis = axis % rank(x)
    length = val(x).shape[axis]
    if not isinstance(length, int) or length == 0:  # a dynamic or empty axis keeps its spelling
        return None
    if node.target is aten.split_with_sizes.default:
        if node.args[1:] == (amount, axis):
            return None
        sizes = list(amount)
    elif node.target is aten.tensor_split.sections:
        sizes = [length // amount + (i < length % amount) for i in range(amount)]
    else:
        step = -(-length // amount) if node.target is aten.chunk.default else amount
        sizes = [min(step, length - start) for start in range(0, length, step)]
    put(module, node, aten.split_with_sizes.default, (x, sizes, axis))
    return "chunk, split -> split_with_sizes"


def _axes(module: GraphModule, node: Node) -> str | None:
    """Axes of a softmax or a transposition."""
    x, *rest = arguments(node)
    count = 1 if node.target is aten.softmax.int else 2
    axes = sorted(axis % rank(x) for axis in rest[:count]) if rank(x) else rest[:count]
    if axes == list(rest[:count]):
        return None
    put(module, node, node.target, (x, *axes, *(value for value in rest[count:] if value is not None)))
    return "axes counted from the front"


def _reshape(module: GraphModule, node: Node) -> str | None:
    """Spell a reshape that only joins, or only separates, the axes after the first two."""
    if (note := gate_of_means(module, node)) is not None:
        return note
    x = node.args[0]
    target, *rest = reshaping(val(x).shape, val(node).shape)
    if target is aten.reshape.default:
        if node.target not in _VIEWS:
            return None
        put(module, node, target, (x, node.args[1]))
        return "view -> reshape"  # a value that was copied for it may be another's view by now
    if node.target is target and list(node.args) == [x, *rest]:
        return None
    put(module, node, target, (x, *rest))
    return "reshape -> flatten" if target is aten.flatten.using_ints else "reshape -> unflatten"


def _native_norm(module: GraphModule, node: Node) -> str | None:
    if any(user.args[1] != 0 for user in node.users):
        return None  # somebody reads the statistics
    x, weight, bias, mean, variance, momentum, eps = arguments(node)
    for user in list(node.users):
        args = (x, weight, bias, mean, variance, False, momentum, eps, False)
        put(module, user, aten.batch_norm.default, args)
    return "native batch norm -> batch_norm"


def _square(module: GraphModule, node: Node) -> str | None:
    if node.target is aten.pow.Tensor_Scalar and node.args[1] != 2:
        return None
    x = node.args[0]
    if not val(x).is_floating_point():
        return None
    put(module, node, aten.mul.Tensor, (x, x))
    return "a square -> a multiply"


def _resize(module: GraphModule, node: Node) -> str | None:
    x, *_, scales = arguments(node)
    if any(scale != 1 for scale in scales or ()) or not all(isinstance(n, int) for n in val(node).shape[2:]):
        return None
    if tuple(val(x).shape[2:]) != tuple(val(node).shape[2:]):
        return None
    node.replace_all_uses_with(x)
    return "a resize to the same size -> nothing"


_VIEWS = (aten.view.default, aten._unsafe_view.default)

_RULES: dict[Any, Callable[[GraphModule, Node], str | None]] = {
    aten.dropout.default: _dropout,
    aten.adaptive_avg_pool1d.default: _pool,
    aten.adaptive_avg_pool2d.default: _pool,
    aten.mean.dim: _mean,
    aten._native_batch_norm_legit_no_training.default: _native_norm,
    aten.chunk.default: _split,
    aten.split.Tensor: _split,
    aten.tensor_split.sections: _split,
    aten.split_with_sizes.default: _split,
    aten.softmax.int: _axes,
    aten.transpose.int: _axes,
    aten.flatten.using_ints: _reshape,
    aten.unflatten.int: _reshape,
    aten.reshape.default: _reshape,
    aten.pow.Tensor_Scalar: _square,
    aten.square.default: _square,
    **RULES,
    **OF_MAPS,
    aten.upsample_bilinear2d.vec: _resize,
    aten.upsample_nearest2d.vec: _resize,
    **dict.fromkeys(_VIEWS, _reshape),
}


@rewrites(*_RULES, rule="one spelling for pools, splits, gates and sums, so that patterns need only one")
def canonicalise(module: GraphModule, node: Node, costs: Costs) -> str | None:
    """See the table above. A spelling that no rule knows is left, and is no near miss."""
    return _RULES[node.target](module, node)
