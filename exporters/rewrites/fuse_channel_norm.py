"""Layer norms that models spell out become one operator.

    (x - mean(x)) / sqrt(var(x) + eps) * w + b      over axis 1 of [B, C, *]      ->  edgesmith.channel_norm
                                                    over the last axis            ->  aten.layer_norm
    permute, layer norm over the last axis, permute back                          ->  edgesmith.channel_norm

Understood spellings: division by sqrt, product with rsqrt, power of -0.5; the variance by `var`, as mean of a square, a
product or a power; scale and shift in any shape that only varies along the channels, either or both missing. Left
alone: an unbiased variance, eps outside the root, more than one normalised axis.
"""

from __future__ import annotations

from typing import Any, TypeGuard

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from edgesmith.exporters.costs import Costs
from edgesmith.exporters.graph.edit import (
    Emitter,
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
from edgesmith.kernels import channel_norm


class FuseChannelNorm:
    """See the table above."""

    name = "fuse_channel_norm"

    def apply(self, module: GraphModule, costs: Costs) -> RewriteReport:
        """Fuse in place."""
        applied, rejected = [], []
        for node in operators(module):
            if node._erased:
                continue
            outcome = _fuse(module, node) or _between_permutations(module, node)
            if isinstance(outcome, Rejection):
                rejected.append(outcome)
            elif outcome is not None:
                applied.append(outcome)
        module.graph.eliminate_dead_code()
        return RewriteReport(self.name, tuple(applied), tuple(rejected))


_Outcome = tuple[str, str] | Rejection | None


def _fuse(module: GraphModule, node: Node) -> _Outcome:
    parts = _normalised(node)
    if parts is None:
        return _outside_the_root(node)
    centred, deviation = parts
    x = _centred(centred)
    if x is None:
        return None
    source, axis = x
    inside = _variance_and_eps(deviation)
    if inside is None:
        return None
    variance, eps = inside
    where = site(node)
    if not _is_number(eps):
        return Rejection(where, "eps is computed")
    wrong = _variance_of(variance, source, axis)
    if wrong is not None:
        return Rejection(where, wrong)
    last = rank(source) - 1
    if axis not in (1, last) or rank(source) < 2:
        return Rejection(where, f"it normalises axis {axis} of {rank(source)}; axis 1 and the last are known")
    channels = val(source).shape[axis]
    args: tuple[Any, ...]
    if not isinstance(channels, int) or not val(source).is_floating_point():
        return Rejection(where, "the number of channels is not known")
    end, weight, bias = _affine(module, node, axis, channels)
    with module.graph.inserting_before(end):
        if axis == 1:
            args = (source, None, None, float(eps))
            new = module.graph.call_function(channel_norm.OP.overload, args)
        else:
            args = (source, [channels], None, None, float(eps))
            new = module.graph.call_function(aten.layer_norm.default, args)
    new.meta.update(node.meta)
    stand_for(new, end)
    end.replace_all_uses_with(new)
    module.graph.eliminate_dead_code()  # so that the constants' own names are free
    first = args.index(None)
    set_constant(module, new, first, f"{where}.weight", weight)
    set_constant(module, new, first + 1, f"{where}.bias", bias)
    return where, "a layer norm over axis 1 -> edgesmith.channel_norm" if axis == 1 else "-> aten.layer_norm"


def _normalised(node: Node) -> tuple[Node, Node] | None:
    """What is divided, and by the root of what."""
    if node.target is aten.div.Tensor:
        above, below = arguments(node)[:2]
        if _is(below, aten.sqrt.default):
            return above, arguments(below)[0]
        if _is(below, aten.pow.Tensor_Scalar) and arguments(below)[1] == 0.5:
            return above, arguments(below)[0]
    if node.target is aten.mul.Tensor:
        first, second = arguments(node)
        for above, factor in ((first, second), (second, first)):
            if _is(factor, aten.rsqrt.default) or (
                _is(factor, aten.pow.Tensor_Scalar) and arguments(factor)[1] == -0.5
            ):
                return above, arguments(factor)[0]
    return None


def _outside_the_root(node: Node) -> Rejection | None:
    """A near miss: (x - mean(x)) / (sqrt(var) + eps)."""
    if node.target is not aten.div.Tensor:
        return None
    above, below = arguments(node)[:2]
    if _centred(above) is None or not _is(below, aten.add.Tensor):
        return None
    root = arguments(below)[0]
    if not any(_is(root, kind) for kind in (aten.sqrt.default, aten.std.dim, aten.std.correction)):
        return None
    return Rejection(site(node), "eps is added outside the root")


def _centred(node: object) -> tuple[Node, int] | None:
    """What is centred, and the axis, where a node is x - mean(x) over one axis."""
    if not _is(node, aten.sub.Tensor):
        return None
    x, mean, alpha = arguments(node)
    if alpha != 1 or not _is(mean, aten.mean.dim):
        return None
    source, axes, keepdim, dtype = arguments(mean)
    if source is not x or not axes or len(axes) != 1 or dtype is not None:
        return None
    axis = axes[0] % rank(x)
    return (x, axis) if keepdim else None


def _variance_and_eps(node: object) -> tuple[Node, Any] | None:
    if not _is(node, aten.add.Tensor):
        return None
    first, second, alpha = arguments(node)
    if isinstance(first, Node) and alpha == 1:
        return first, second
    return None


def _variance_of(node: Node, x: Node, axis: int) -> str | None:
    """Why a node is not the biased variance of x over the axis, or None."""
    if node.target is aten.mean.dim:
        squared, axes, keepdim, dtype = arguments(node)
        if dtype is not None:
            return "its variance is of another type"
        if not keepdim or [a % rank(x) for a in axes] != [axis]:
            return "its mean and its variance are over different axes"
        if _is(squared, aten.mul.Tensor) or _is(squared, aten.pow.Tensor_Tensor):
            base = squared.args[0] if squared.args[0] is squared.args[1] else None
        elif _is(squared, aten.square.default) or (_is(squared, aten.pow.Tensor_Scalar) and squared.args[1] == 2):
            base = squared.args[0]
        else:
            base = None
        if base is None or _centred(base) != (x, axis):
            return "what is under the root is no variance of it"
        return None
    if node.target is aten.var.correction:
        of, axes, keepdim = node.args[0], arguments(node)[1], node.kwargs.get("keepdim", False)
        unbiased = node.kwargs.get("correction", 1) != 0
    elif node.target is aten.var.dim:
        of, axes, correction, keepdim = arguments(node)
        unbiased = bool(correction)
    else:
        return "what is under the root is no variance of it"
    if of is not x and _centred(of) != (x, axis):
        return "its variance is another value's"
    if not keepdim or not axes or [a % rank(x) for a in axes] != [axis]:
        return "its mean and its variance are over different axes"
    return "its variance is unbiased, over C - 1" if unbiased else None


def _affine(module: GraphModule, node: Node, axis: int, channels: int) -> tuple[Node, Tensor, Tensor]:
    """The node up to which scale and shift go, with both of them; 1 and 0 where there is none."""
    dtype = val(node).dtype
    weight, bias = torch.ones(channels, dtype=dtype), torch.zeros(channels, dtype=dtype)
    for target in (aten.mul.Tensor, aten.add.Tensor):
        (user, *others) = node.users or (node,)
        if (
            others
            or user.target is not target
            or len(user.all_input_nodes) != 2
            or arguments(user)[2:] not in ((), (1,))
        ):
            continue
        other = next(n for n in user.all_input_nodes if n is not node)
        value = _along(constant(module, other), rank(node), axis, channels)
        if value is None or val(user).shape != val(node).shape or val(user).dtype != dtype:
            continue
        if target is aten.mul.Tensor:
            weight = value.to(dtype)
        else:
            bias = value.to(dtype)
        node = user
    return node, weight, bias


def _along(value: Tensor | None, dims: int, axis: int, channels: int) -> Tensor | None:
    """A constant as one number a channel, or None where it varies along another axis."""
    if value is None or value.dim() > dims:
        return None
    shape = (1,) * (dims - value.dim()) + tuple(value.shape)
    if any(n != 1 for i, n in enumerate(shape) if i != axis) or shape[axis] not in (1, channels):
        return None
    return value.reshape(-1).expand(channels).clone()


def _between_permutations(module: GraphModule, node: Node) -> _Outcome:
    """Channels to the back, layer norm, channels to the front again."""
    if node.target not in (aten.permute.default, aten.transpose.int) or not _is(node.args[0], aten.layer_norm.default):
        return None
    norm = node.args[0]
    assert isinstance(norm, Node)
    back, sizes, w, b, eps, _ = arguments(norm)
    dims = rank(node)
    if not isinstance(back, Node) or back.target not in (aten.permute.default, aten.transpose.int) or len(sizes) != 1:
        return None
    if _order(back) != [0, *range(2, dims), 1] or _order(node) != [0, dims - 1, *range(1, dims - 1)]:
        return None
    where = site(norm)
    if len(norm.users) > 1:
        return Rejection(where, f"the norm with the channels behind is read by {readers(norm)}")
    weight, bias = constant(module, w), constant(module, b)
    if (w is not None and weight is None) or (b is not None and bias is None):
        return Rejection(where, "its weights are computed")
    emit, x = Emitter(module, node), back.args[0]
    dtype = val(norm).dtype
    if w is None:
        w = emit.constant(f"{where}.weight", torch.ones(sizes[0], dtype=dtype))
    if b is None:
        b = emit.constant(f"{where}.bias", torch.zeros(sizes[0], dtype=dtype))
    new = emit(channel_norm.OP.overload, x, w, b, eps)
    stand_for(new, node)
    node.replace_all_uses_with(new)
    return where, "a layer norm between two permutations -> edgesmith.channel_norm"


def _order(node: Node) -> list[int]:
    """The axes' order after a permutation or transposition."""
    dims = rank(node)
    if node.target is aten.permute.default:
        return [axis % dims for axis in arguments(node)[1]]
    _, a, b = arguments(node)
    order = list(range(dims))
    order[a], order[b] = order[b], order[a]
    return order


def _is(node: object, target: object) -> TypeGuard[Node]:
    return isinstance(node, Node) and node.target is target


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
