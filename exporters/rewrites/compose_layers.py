"""Two layers with nothing between them are one layer, where that multiplies no more.

    conv(conv(x; W1, b1); W2, b2)            ->  conv(x; W2 W1, W2 b1 + b2)         one of the two with a kernel of 1
    conv([x | conv1x1(y; W1, b1)]; W2, b2)   ->  conv([x | y]; [W2x | W2y W1], W2y b1 + b2)
    linear(linear(x; W1, b1); W2, b2)        ->  linear(x; W2 W1, W2 b1 + b2)

A projection whose only reader is the next expansion, or a fusion by concatenation, is gone; one that narrows much on
the way stays, because two thin matmuls cost less than a wide one. So does one in front of a concatenation that would
copy more for it than it saves. Where the second convolution pads, it pads zeros, which a bias of the first would have
to fill: then both stay. Weights are formed in float64 and rounded once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from edgesmith.exporters.costs import Costs
from edgesmith.exporters.graph.edit import (
    CONVOLUTIONS,
    Emitter,
    arguments,
    aten,
    numbers,
    operators,
    rank,
    readers,
    site,
    val,
)
from edgesmith.exporters.graph.linear import Linear, add_biases, as_layer, channel_axis
from edgesmith.exporters.rewrites.rewrite import Fired, Reject, Rejection, searches


@searches(rule="conv1x1(conv1x1(x)) -> conv1x1'(x), also through a concatenation, where that is no dearer")
def compose_layers(module: GraphModule, costs: Costs) -> Iterator[Fired | Rejection]:
    """In program order, each layer with those before it until none is left to take.

    A near miss is a pair that would be cheaper as one, but whose layers cannot be joined.
    """
    for second in operators(module):
        outcomes = list(_take_one(module, second, costs))
        while outcomes and isinstance(outcomes[-1], Fired):
            yield outcomes[-1]
            outcomes = list(_take_one(module, second, costs))
        yield from outcomes


def _take_one(module: GraphModule, second: Node, costs: Costs) -> Iterator[Fired | Rejection]:
    """Compose a layer with the first one before it that it can take, after those that it nearly can."""
    for first, start in _layers_before(module, second):
        where = f"{site(first.node)}, {site(second)}"
        before, after = _macs(first.node, second)
        if after > before or _saved_us(first.node, second, before - after, costs) <= 0:
            continue
        try:
            _compose(first, Linear(module, second, first.at), start)
        except Reject as declined:
            yield Rejection(where, declined.reason)
            continue
        yield Fired(where, f"one layer: {after / 1e6:.3g} M products for {before / 1e6:.3g} M")
        return


def _layers_before(module: GraphModule, second: Node) -> list[tuple[Linear, int]]:
    """The layers that a layer reads, itself or in a concatenation of channels, each with its first column there.

    Only pairs of which one has a kernel of 1: others would grow the kernel.
    """
    if _dense(module, second) is None:
        return []
    x, parts = second.args[0], _parts(second)
    found, start = [], 0
    for part in parts:
        layer = _dense(module, part) if part.target is second.target and rank(part) == rank(second) else None
        if layer is not None and (_is_pointwise(part) or (part is x and _is_pointwise(second))):
            found.append((layer, start))
        start += int(val(part).shape[1]) if part is not x else 0
    return found


def _parts(layer: Node) -> Sequence[Node]:
    """Return what a layer reads: one value, or those that a concatenation of channels joins."""
    x = layer.args[0]
    assert isinstance(x, Node)
    if x.target is not aten.cat.default or layer.target not in CONVOLUTIONS or not _is_over_channels(x):
        return [x]
    parts: Sequence[Node] = x.args[0]  # type: ignore[assignment]  # a cat reads a list of nodes
    return parts if all(rank(part) == rank(x) for part in parts) else []  # torch lets an empty vector stand anywhere


def _dense(module: GraphModule, node: Node) -> Linear | None:
    """A linear layer or a dense convolution of a batch, with constant weights, at positions whose number is known."""
    layer = as_layer(module, node)
    if layer is None or numbers(val(node).shape) is None:
        return None
    return layer if channel_axis(node) is not None and layer.groups == 1 else None


def _is_pointwise(layer: Node) -> bool:
    """Return whether each position is computed of that position alone."""
    if layer.target is aten.linear.default:
        return True
    _, w, _, stride, padding, *_ = arguments(layer)
    return all(k == 1 for k in val(w).shape[2:]) and all(s == 1 for s in stride) and not any(padding)


def _is_over_channels(cat: Node) -> bool:
    axis: int = arguments(cat)[1]
    return axis % rank(cat) == 1


def _macs(first: Node, second: Node) -> tuple[int, int]:
    """Return the MACs of one sample, of both layers and of the one that they make, without what it reads beside."""
    rows, columns = val(first.args[1]).shape[:2]
    kernel = prod(val(first.args[1]).shape[2:])
    out, size = int(val(second.args[1]).shape[0]), prod(val(second.args[1]).shape[2:])
    apart = rows * columns * kernel * _positions(first) + out * rows * size * _positions(second)
    return apart, out * columns * kernel * size * _positions(second)  # one of the two kernels is 1


def _positions(layer: Node) -> int:
    shape = val(layer).shape
    return numbers(shape[1:-1] if layer.target is aten.linear.default else shape[2:]) or 0


def _saved_us(first: Node, second: Node, macs: int, costs: Costs) -> float:
    """Return the microseconds saved: MACs, a launch, less what a concatenation between the layers copies more."""
    saved = macs / (costs.gmac_s * 1e3) + costs.launch_us
    if second.args[0] is first:
        return saved
    rows, columns = val(first.args[1]).shape[:2]
    more = (columns - rows) * _positions(first) * val(first).element_size()
    return saved - 2 * more / (costs.copy_gb_s * 1e3)  # read and written


def _check(first: Linear, second: Linear) -> None:
    read = second.read
    for value in dict.fromkeys((first.node, read)):
        if len(value.users) > 1:
            raise Reject(f"{value.name} is read by {readers(value)}, not by {second.node.name} alone")
    if read is not first.node and list(read.args[0]).count(first.node) > 1:  # type: ignore[arg-type]  # a cat
        raise Reject(f"{first.node.name} is in the concatenation twice")
    if second.pads and first.bias is not None and bool(first.bias.any()):
        raise Reject(f"{site(second.node)} pads with zeros, which the bias of {site(first.node)} would have to fill")


def _compose(first: Linear, second: Linear, start: int) -> None:
    """Let `second` do what both did. Raises `Reject` where it cannot."""
    _check(first, second)
    weight, bias = _product(first, second, start)
    dtype = val(second.node).dtype
    if not all(bool(value.to(dtype).isfinite().all()) for value in (weight, bias) if value is not None):
        raise Reject(f"their product leaves the range of {dtype}")
    module, read, node = second.module, second.read, second.node
    x, _, _, *settings = arguments(first.node)
    if read is first.node:
        if _is_pointwise(node):
            node.args = (*node.args[:2], second.bias_node, *settings)
        node.update_arg(0, x)
    else:
        parts = [x if part is first.node else part for part in read.args[0]]  # type: ignore[union-attr]  # a cat's list
        emit = Emitter(module, before=node)
        emit.source = read
        node.update_arg(0, emit(aten.cat.default, parts, 1))
        module.graph.erase_node(read)
    second.write(weight, bias)
    module.graph.erase_node(first.node)


def _product(first: Linear, second: Linear, start: int) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of both layers as one."""
    inner, outer = first.weight, second.weight
    own = outer[:, start : start + len(inner)]
    weight = torch.einsum("om...,mi...->oi...", own, inner)  # a kernel of 1 broadcasts over the other
    if second.read is not first.node:
        weight = torch.cat((outer[:, :start], weight, outer[:, start + len(inner) :]), dim=1)
    if first.bias is None:
        return weight, second.bias
    through = own.flatten(2).sum(2) if own.dim() > 2 else own
    return weight, add_biases(second.bias, through @ first.bias)
