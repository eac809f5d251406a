"""Layer norms that models spell out become one operator.

    (x - mean(x)) / sqrt(var(x) + eps) * w + b      over axis 1 of [B, C, *]      ->  edgesmith.channel_norm
                                                    over the last axis            ->  aten.layer_norm
    permute, layer norm over the last axis, permute back                          ->  edgesmith.channel_norm
    permute, layer norm over the last axis, mean over the others                  ->  a mean of edgesmith.channel_norm
    (x - mean(x)) / sqrt(var(x) + eps) over all axes but the batch                ->  aten.group_norm of one group
    flatten(channel_norm(x [B, C, 1, 1]), 1)                                      ->  aten.layer_norm of flatten(x, 1)

Understood spellings: division by sqrt, multiply by rsqrt, power of -0.5; the variance by `var`, as mean of a square, a
multiply or a power; scale and shift in any shape that only varies along the channels, either or both missing. Left
alone: an unbiased variance, eps outside the root, more than one normalised axis.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from edgesmith.exporters.costs import Costs
from edgesmith.exporters.graph.edit import (
    Emitter,
    arguments,
    aten,
    constant,
    rank,
    readers,
    replace,
    set_constant,
    site,
    sweep,
    val,
)
from edgesmith.exporters.graph.pattern import ANY, Match, Pattern, any_of, exactly, find, hole, named, near, op
from edgesmith.exporters.rewrites.rewrite import Fired, Reject, rewrites
from edgesmith.kernels import channel_norm


def _axis(value: object, match: Match) -> Iterator[Match]:
    """A list of one axis of `x`, bound as `axis`, counted from the front."""
    if isinstance(value, list | tuple) and len(value) == 1:
        yield from match.bind("axis", value[0] % rank(match["x"]))


def _all_axes(value: object, match: Match) -> Iterator[Match]:
    """A list of all axes of `x` but the first, bound as `axis`."""
    dims = rank(match["x"])
    if isinstance(value, list | tuple) and dims > 2 and sorted(axis % dims for axis in value) == list(range(1, dims)):
        yield from match.bind("axis", list(range(1, dims)))


_X = hole("x", Node)


def _normalised(axis: Pattern) -> Pattern:
    """(x - mean(x)) / sqrt(variance + eps)."""
    centred = op(aten.sub.Tensor, _X, op(aten.mean.dim, _X, axis, True))
    under_root = op(aten.add.Tensor, hole("variance", Node), hole("eps"))
    return any_of(
        op(aten.div.Tensor, centred, op(aten.sqrt.default, under_root)),
        op(aten.div.Tensor, centred, op(aten.pow.Tensor_Scalar, under_root, 0.5)),
        op(aten.mul.Tensor, centred, op(aten.rsqrt.default, under_root)),
        op(aten.mul.Tensor, centred, op(aten.pow.Tensor_Scalar, under_root, -0.5)),
        near(
            "eps is added outside the root",
            op(
                aten.div.Tensor,
                centred,
                op(aten.add.Tensor, op((aten.sqrt.default, aten.std.dim, aten.std.correction), ...), ...),
            ),
        ),
    )


_VAR = (aten.var.dim, aten.var.correction)  # (x, axes, unbiased or correction, keepdim)


def _biased_variance(axis: Pattern) -> Pattern:
    """The biased variance of `x` over `axis`, both of which are known."""
    centred = op(aten.sub.Tensor, _X, op(aten.mean.dim, _X, axis, True))
    squared = any_of(
        op(aten.mul.Tensor, named("centred", centred), hole("centred")),
        op(aten.mul.Tensor, centred, centred),
        op(aten.pow.Tensor_Tensor, named("centred", centred), hole("centred")),
        op(aten.pow.Tensor_Scalar, centred, 2),
        op(aten.square.default, centred),
    )
    spread = any_of(_X, centred)
    return any_of(
        op(aten.mean.dim, squared, axis, True),
        op(_VAR, spread, axis, 0, True),
        near("its variance is of another type", op(aten.mean.dim, ...), unless=op(aten.mean.dim, ANY, ANY, ANY)),
        near(
            "its mean and its variance are over different axes",
            op(aten.mean.dim, ...),
            unless=op(aten.mean.dim, ANY, axis, True),
        ),
        near("its variance is another value's", op(_VAR, ...), unless=op(_VAR, spread, ...)),
        near("its mean and its variance are over different axes", op(_VAR, ...), unless=op(_VAR, ANY, axis, ANY, True)),
        near("its variance is unbiased, over C - 1", op(_VAR, ...)),
        near("what is under the root is no variance of it", ANY),
    )


_NORMALISED, _VARIANCE = _normalised(_axis), _biased_variance(_axis)
_OF_SAMPLE, _VARIANCE_OF_SAMPLE = _normalised(_all_axes), _biased_variance(_all_axes)


@rewrites(rule="a layer norm that is spelled out -> one operator")
def fuse_channel_norm(module: GraphModule, node: Node, costs: Costs) -> str | Fired | None:
    """See the table above."""
    known = _over_sample(module, node) or _at_one_position(module, node)
    return known or _fuse(module, node) or _between_permutations(module, node) or _before_mean(module, node)


@rewrites(rule="a layer norm over the last axis that is spelled out -> aten.layer_norm")
def find_layer_norm(module: GraphModule, node: Node, costs: Costs) -> str | None:
    """Spell a norm of channels that stand behind as PyTorch's, before these become maps. Near misses come later."""
    found = find(_NORMALISED, node)
    if found is None or found.reason is not None or found["axis"] != rank(found["x"]) - 1 or rank(found["x"]) < 3:
        return None
    try:
        return _fuse(module, node)
    except Reject:
        return None


def _fuse(module: GraphModule, node: Node) -> str | None:
    found = find(_NORMALISED, node)
    if found is None:
        return None
    if found.reason is not None:
        raise Reject(found.reason)
    source, axis, eps = found["x"], found["axis"], found["eps"]
    if not isinstance(eps, int | float) or isinstance(eps, bool):
        raise Reject("eps is computed")
    variance = find(_VARIANCE, found["variance"], x=source, axis=axis)
    if variance is not None and variance.reason is not None:
        raise Reject(variance.reason)
    if axis not in (1, rank(source) - 1) or rank(source) < 2:
        raise Reject(f"it normalises axis {axis} of {rank(source)}; axis 1 and the last are known")
    channels = val(source).shape[axis]
    if not isinstance(channels, int) or not val(source).is_floating_point():
        raise Reject("the number of channels is not known")
    _put_norm(module, node, source, axis, float(eps))
    is_map = axis == 1 and rank(source) > 2
    return "a layer norm over axis 1 -> edgesmith.channel_norm" if is_map else "-> aten.layer_norm"


def _over_sample(module: GraphModule, node: Node) -> str | None:
    """All axes but the batch at once, as a group norm of one group; the scale of a map goes with it."""
    found = find(_OF_SAMPLE, node)
    if found is None or found.reason is not None:
        return None
    eps = found["eps"]
    variance = find(_VARIANCE_OF_SAMPLE, found["variance"], x=found["x"], axis=found["axis"])
    if variance is None or variance.reason is not None or not isinstance(eps, int | float) or isinstance(eps, bool):
        return None
    source = found["x"]
    channels = val(source).shape[1]
    if not isinstance(channels, int) or not val(source).is_floating_point():
        return None
    end, weight, bias = _affine(module, node, 1, channels)
    emit = Emitter(module, end)
    where = site(node)
    given = [emit.constant(f"{where}.{name}", value) for name, value in (("weight", weight), ("bias", bias))]
    if not bool(bias.any()):
        given[1:] = []
    replace(end, emit(aten.group_norm.default, source, 1, *given, *([None] * (2 - len(given))), float(eps)))
    return "a norm over all of a sample -> aten.group_norm"


def _at_one_position(module: GraphModule, node: Node) -> str | None:
    """A channel norm of [B, C, 1, 1] that is flattened to [B, C]."""
    norm = node.args[0] if node.target is aten.flatten.using_ints else None
    if not isinstance(norm, Node) or norm.target is not channel_norm.OP.overload or len(norm.users) > 1:
        return None
    if any(not isinstance(n, int) or n != 1 for n in val(norm).shape[2:]) or arguments(node)[1:] not in (
        (1, -1),
        (1, 3),
    ):
        return None
    x, weight, bias, eps = arguments(norm)
    emit = Emitter(module, node)
    flat = emit(aten.flatten.using_ints, x, 1)
    replace(node, emit(aten.layer_norm.default, flat, [int(val(x).shape[1])], weight, bias, eps))
    return "a norm at one position -> aten.layer_norm"


def _put_norm(module: GraphModule, node: Node, source: Node, axis: int, eps: float) -> None:
    """Replace a norm that is spelled out, its scale and shift included, by one operator."""
    channels = int(val(source).shape[axis])
    end, weight, bias = _affine(module, node, axis, channels)
    is_map = axis == 1 and rank(source) > 2
    target: Any = channel_norm.OP.overload if is_map else aten.layer_norm.default
    args = (source, None, None, eps) if is_map else (source, [channels], None, None, eps)
    with module.graph.inserting_before(end):
        new = module.graph.call_function(target, args)
    new.meta.update(node.meta)
    replace(end, new)
    sweep(module)  # so that the constants' own names are free
    first, where = args.index(None), site(node)
    set_constant(module, new, first, f"{where}.weight", weight)
    set_constant(module, new, first + 1, f"{where}.bias", bias)


def _affine(module: GraphModule, node: Node, axis: int, channels: int) -> tuple[Node, Tensor, Tensor]:
    """The node up to which scale and shift go, with both of them; 1 and 0 where there is none."""
    dtype = val(node).dtype
    parts = [torch.ones(channels, dtype=dtype), torch.zeros(channels, dtype=dtype)]
    for i, target in enumerate((aten.mul.Tensor, aten.add.Tensor)):
        users = list(node.users)
        found = find(op(target, exactly(node), hole("other", Node)), users[0]) if len(users) == 1 else None
        value = None if found is None else _along(constant(module, found["other"]), rank(node), axis, channels)
        if value is not None and val(users[0]).shape == val(node).shape and val(users[0]).dtype == dtype:
            parts[i], node = value.to(dtype), users[0]
    return node, parts[0], parts[1]


def _along(value: Tensor | None, dims: int, axis: int, channels: int) -> Tensor | None:
    """A constant as one number a channel, or None where it varies along another axis."""
    if value is None or value.dim() > dims:
        return None
    shape = (1,) * (dims - value.dim()) + tuple(value.shape)
    if any(n != 1 for i, n in enumerate(shape) if i != axis) or shape[axis] not in (1, channels):
        return None
    return value.reshape(-1).expand(channels).clone()


_MOVES = (aten.permute.default, aten.transpose.int)
_BETWEEN = op(_MOVES, named("norm", op(aten.layer_norm.default, named("back", op(_MOVES, ...)), ...)), ...)
_MEAN = op(aten.mean.dim, named("norm", op(aten.layer_norm.default, named("back", op(_MOVES, ...)), ...)), ...)


def _between_permutations(module: GraphModule, node: Node) -> Fired | None:
    """Channels to the back, layer norm, channels to the front again."""
    found = find(_BETWEEN, node)
    if found is None:
        return None
    norm, back, dims = found["norm"], found["back"], rank(node)
    if _order(node) != [0, dims - 1, *range(1, dims - 1)] or not _has_channels_behind(norm, back):
        return None
    replace(node, _as_channel_norm(Emitter(module, node), norm, back))
    return Fired(site(norm), "a layer norm between two permutations -> edgesmith.channel_norm")


def _before_mean(module: GraphModule, node: Node) -> Fired | None:
    """Channels to the back, layer norm, and a mean over all axes between."""
    found = find(_MEAN, node)
    if found is None:
        return None
    norm, back = found["norm"], found["back"]
    _, axes, keepdim, dtype = arguments(node)
    others = list(range(1, rank(norm) - 1))
    if sorted(axis % rank(norm) for axis in axes or ()) != others or keepdim or dtype is not None:
        return None
    if not _has_channels_behind(norm, back):
        return None
    emit = Emitter(module, node)
    replace(node, emit(aten.mean.dim, _as_channel_norm(emit, norm, back), [axis + 1 for axis in others], False))
    return Fired(site(norm), "a layer norm behind a permutation, and a mean -> a mean of edgesmith.channel_norm")


def _has_channels_behind(norm: Node, back: Node) -> bool:
    """Return whether a layer norm is over channels that a permutation has brought to the back."""
    return len(arguments(norm)[1]) == 1 and _order(back) == [0, *range(2, rank(norm)), 1]


def _as_channel_norm(emit: Emitter, norm: Node, back: Node) -> Node:
    """Emit the norm of what is permuted. Raises `Reject` where it is read elsewhere, or its weights are computed."""
    module = emit.module
    _, sizes, w, b, eps, _ = arguments(norm)
    where = site(norm)
    if len(norm.users) > 1:
        raise Reject(f"the norm with the channels behind is read by {readers(norm)}", where)
    if any(given is not None and constant(module, given) is None for given in (w, b)):
        raise Reject("its weights are computed", where)
    x, dtype = back.args[0], val(norm).dtype
    if w is None:
        w = emit.constant(f"{where}.weight", torch.ones(sizes[0], dtype=dtype))
    if b is None:
        b = emit.constant(f"{where}.bias", torch.zeros(sizes[0], dtype=dtype))
    return emit(channel_norm.OP.overload, x, w, b, eps)


def _order(node: Node) -> list[int]:
    """The axes' order after a permutation or transposition."""
    dims = rank(node)
    if node.target is aten.permute.default:
        return [axis % dims for axis in arguments(node)[1]]
    _, a, b = arguments(node)
    order = list(range(dims))
    order[a], order[b] = order[b], order[a]
    return order
