"""A 1x1 convolution of resized maps, side by side, is a sum of smaller ones, each at its own size.

    conv1x1([resize(a) | resize(b) | c])  ->  resize(conv1x1(a)) + resize(conv1x1(b)) + conv1x1'(c)

Resizing works channel by channel and a 1x1 convolution position by position, so the two commute, and so does a bias,
since a resize's weights sum to 1. Heads over feature pyramids are such, SegFormer's among them: what projects a map to
the common width then composes with its part. Where the target says that this is cheaper: fewer products, but a resize of
as many channels as come out. In float64, rounded once.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch.fx import GraphModule, Node

from edgesmith.exporters.costs import Costs
from edgesmith.exporters.graph.edit import Emitter, arguments, aten, numbers, rank, readers, replace, site, val
from edgesmith.exporters.graph.linear import as_layer, channel_axis
from edgesmith.exporters.rewrites.rewrite import Reject, rewrites

_RESIZES = frozenset({aten.upsample_bilinear2d.vec, aten.upsample_nearest2d.vec, aten.upsample_bicubic2d.vec})


@rewrites(aten.conv2d.default, rule="conv1x1([resize(a) | b]) -> resize(conv1x1(a)) + conv1x1(b), where that is cheaper")
def split_resized(module: GraphModule, node: Node, costs: Costs) -> str | None:
    """See above. A near miss is a resized map that is read elsewhere too."""
    cat, layer = node.args[0], as_layer(module, node)
    if layer is None or layer.groups != 1 or not isinstance(cat, Node) or not _is_pointwise(node):
        return None
    parts: Any = cat.args[0] if cat.target is aten.cat.default and _axis(cat) == 1 else [cat]
    chosen = [part for part in parts if part.target in _RESIZES and _saved_us(part, node, costs) > 0]
    if not chosen:
        return None
    shared = next((one for one in (*chosen, *([cat] if cat is not chosen[0] else [])) if len(one.users) > 1), None)
    if shared is not None:
        raise Reject(f"{shared.name} is read by {readers(shared)}")
    if len(set(parts)) < len(parts):
        raise Reject("a map is in the concatenation twice")
    weight = layer.weight.split([int(val(part).shape[1]) for part in parts], dim=1)
    others = [(part, own) for part, own in zip(parts, weight, strict=True) if part not in chosen]
    emit, bias = Emitter(module, node), node.args[2] if len(node.args) > 2 else None
    terms = []
    if others:
        read = others[0][0] if len(others) == 1 else emit(aten.cat.default, [part for part, _ in others], 1)
        terms.append(_convolution(emit, node, read, torch.cat([own for _, own in others], 1), bias))
        bias = None
    for part, own in zip(parts, weight, strict=True):
        if part in chosen:
            small = _convolution(emit, node, part.args[0], own, bias)
            terms.append(emit(part.target, small, *arguments(part)[1:]))
            bias = None
    total = terms[0]
    for term in terms[1:]:
        total = emit(aten.add.Tensor, total, term)
    replace(node, total)
    return f"{len(chosen)} resized maps, each convolved at its own size"


def _convolution(emit: Emitter, node: Node, x: Node, weight: torch.Tensor, bias: Node | None) -> Node:
    held = emit.constant(f"{site(node)}.weight", weight.to(val(node).dtype))
    return emit(aten.conv2d.default, x, held, bias)


def _axis(cat: Node) -> int:
    axis: int = arguments(cat)[1]
    return axis % rank(cat)


def _is_pointwise(node: Node) -> bool:
    _, weight, _, stride, padding, *_ = arguments(node)
    own = channel_axis(node) == 1 and rank(node) == 4 and tuple(val(weight).shape[2:]) == (1, 1)
    return own and all(n == 1 for n in stride) and not any(padding)


def _saved_us(part: Node, node: Node, costs: Costs) -> float:
    """Microseconds saved by convolving a map before it is resized, in one sample."""
    small, large, out = (numbers(val(one).shape[2:]) or 0 for one in (part.args[0], part, node))
    channels, made = int(val(part).shape[1]), int(val(node).shape[1])
    products = channels * made * (large - small) / (costs.gmac_s * 1e3)
    size = val(node).element_size()
    moved = (2 * (made - channels) + 3 * made) * out * size / (costs.copy_gb_s * 1e3)  # resized, and summed up
    return products - moved - 2 * costs.launch_us if prod((small, large)) else 0.0
