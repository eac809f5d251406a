"""Two layers with nothing between them are one layer, where that multiplies no more.

    conv(conv(x; W1, b1); W2, b2)            ->  conv(x; W2 W1, W2 b1 + b2)         one of the two with a kernel of 1
    conv([x | conv1x1(y; W1, b1)]; W2, b2)   ->  conv([x | y]; [W2x | W2y W1], W2y b1 + b2)
    linear(linear(x; W1, b1); W2, b2)        ->  linear(x; W2 W1, W2 b1 + b2)

A projection whose only reader is the next expansion, or a fusion by concatenation, is gone; one that narrows much on
the way stays, because two thin products cost less than a wide one. So does one in front of a concatenation that would
copy more for it than it saves. Where the second convolution pads, it pads zeros, which a bias of the first would have
to fill: then both stay. Weights are formed in float64 and rounded once.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from edgesmith.exporters.costs import Costs
from edgesmith.exporters.graph.edit import (
    CONVOLUTIONS,
    Emitter,
    arguments,
    aten,
    constant,
    numbers,
    operators,
    rank,
    readers,
    set_constant,
    site,
    val,
)
from edgesmith.exporters.rewrites.rewrite import Rejection, RewriteReport


class ComposeLayers:
    """See the table above. A near miss is a pair that would be cheaper as one, but whose layers cannot be joined."""

    name = "compose_layers"

    def apply(self, module: GraphModule, costs: Costs) -> RewriteReport:
        """Compose in place, in program order, each layer with those before it until none is left to take."""
        applied, rejected = [], []
        for second in operators(module):
            found = True
            while found:
                found, missed = False, []
                for first, start in _layers_before(module, second):
                    where = f"{site(first)}, {site(second)}"
                    before, after = _products(first, second)
                    if after > before or _saved_us(first, second, before - after, costs) <= 0:
                        continue
                    reason = _cannot_compose(module, first, second) or _compose(module, first, second, start)
                    if reason is not None:
                        missed.append(Rejection(where, reason))
                        continue
                    applied.append((where, f"one layer: {after / 1e6:.3g} M products for {before / 1e6:.3g} M"))
                    found = True
                    break
            rejected += missed
        return RewriteReport(self.name, tuple(applied), tuple(rejected))


def _layers_before(module: GraphModule, second: Node) -> list[tuple[Node, int]]:
    """The layers that a layer reads, itself or in a concatenation of channels, each with its first column there.

    Only pairs of which one has a kernel of 1: others would grow the kernel.
    """
    if not _is_layer(module, second):
        return []
    x = second.args[0]
    assert isinstance(x, Node)
    parts: Sequence[Node] = [x]
    if x.target is aten.cat.default and second.target in CONVOLUTIONS and _is_over_channels(x):
        parts = x.args[0]  # type: ignore[assignment]  # a cat reads a list of nodes
        if any(rank(part) != rank(x) for part in parts):  # torch lets an empty vector stand anywhere
            return []
    found, start = [], 0
    for part in parts:
        is_like = part.target is second.target and rank(part) == rank(second) and _is_layer(module, part)
        if is_like and (_is_pointwise(part) or (part is x and _is_pointwise(second))):
            found.append((part, start))
        start += int(val(part).shape[1]) if part is not x else 0
    return found


def _is_layer(module: GraphModule, node: Node) -> bool:
    """A linear layer or a dense convolution of a batch, with constant weights, at places whose number is known."""
    if node.target is not aten.linear.default and node.target not in CONVOLUTIONS:
        return False
    if numbers(val(node).shape) is None:
        return False
    _, w, b, *rest = arguments(node)
    weight = constant(module, w)
    if weight is None or not weight.is_floating_point() or (b is not None and constant(module, b) is None):
        return False
    if node.target is aten.linear.default:
        return weight.dim() == 2
    return weight.dim() == rank(node) and rest[3] == 1 and not isinstance(rest[1], str)


def _is_pointwise(layer: Node) -> bool:
    """Whether each place is computed of that place alone."""
    if layer.target is aten.linear.default:
        return True
    _, w, _, stride, padding, *_ = arguments(layer)
    return all(k == 1 for k in val(w).shape[2:]) and all(s == 1 for s in stride) and not any(padding)


def _is_over_channels(cat: Node) -> bool:
    axis: int = arguments(cat)[1]
    return axis % rank(cat) == 1


def _products(first: Node, second: Node) -> tuple[int, int]:
    """Multiplications of one sample, of both layers and of the one that they make, without what it reads beside."""
    rows, columns = val(first.args[1]).shape[:2]
    kernel = prod(val(first.args[1]).shape[2:])
    out, size = int(val(second.args[1]).shape[0]), prod(val(second.args[1]).shape[2:])
    apart = rows * columns * kernel * _places(first) + out * rows * size * _places(second)
    return apart, out * columns * kernel * size * _places(second)  # one of the two kernels is 1


def _places(layer: Node) -> int:
    shape = val(layer).shape
    return numbers(shape[1:-1] if layer.target is aten.linear.default else shape[2:]) or 0


def _saved_us(first: Node, second: Node, products: int, costs: Costs) -> float:
    """Microseconds: of products and a launch; a concatenation between copies other channels then."""
    saved = products / (costs.gmac_s * 1e3) + costs.launch_us
    if second.args[0] is first:
        return saved
    rows, columns = val(first.args[1]).shape[:2]
    more = (columns - rows) * _places(first) * val(first).element_size()
    return saved - 2 * more / (costs.copy_gb_s * 1e3)  # read and written


def _cannot_compose(module: GraphModule, first: Node, second: Node) -> str | None:
    for value in dict.fromkeys((first, second.args[0])):
        assert isinstance(value, Node)
        if len(value.users) > 1:
            return f"{value.name} is read by {readers(value)}, not by {second.name} alone"
    read = second.args[0]
    if read is not first and list(read.args[0]).count(first) > 1:  # type: ignore[union-attr, arg-type]  # a cat
        return f"{first.name} is in the concatenation twice"
    bias = constant(module, arguments(first)[2])
    if second.target in CONVOLUTIONS and any(arguments(second)[4]) and bias is not None and bool(bias.any()):
        return f"{site(second)} pads with zeros, which the bias of {site(first)} would have to fill"
    return None


def _compose(module: GraphModule, first: Node, second: Node, start: int) -> str | None:
    """Let `second` do what both did. Returns the reason why not, or None when done."""
    x, _, bias, *settings = arguments(first)
    read, offset, dtype = second.args[0], arguments(second)[2], val(second).dtype
    assert isinstance(read, Node)
    inner, outer = _double(module, first.args[1]), _double(module, second.args[1])
    own = outer[:, start : start + len(inner)]
    weight = torch.einsum("om...,mi...->oi...", own, inner)  # a kernel of 1 broadcasts over the other
    if read is not first:
        weight = torch.cat((outer[:, :start], weight, outer[:, start + len(inner) :]), dim=1)
    shift = None if offset is None else _double(module, offset)
    if bias is not None:
        through = own.flatten(2).sum(2) if own.dim() > 2 else own
        shift = (0 if shift is None else shift) + through @ _double(module, bias)
    made = [value.to(dtype) for value in (weight, shift) if value is not None]
    if not all(bool(value.isfinite().all()) for value in made):
        return f"their product leaves the range of {dtype}"
    if read is first:
        if _is_pointwise(second):
            second.args = (*second.args[:2], offset, *settings)
        second.update_arg(0, x)
    else:
        parts = [x if part is first else part for part in read.args[0]]  # type: ignore[union-attr]  # a cat's list
        emit = Emitter(module, before=second)
        emit.source = read
        second.update_arg(0, emit(aten.cat.default, parts, 1))
        module.graph.erase_node(read)
    for index, (name, value) in enumerate(zip(("weight", "bias"), made, strict=False), start=1):
        set_constant(module, second, index, f"{site(second)}.{name}", value)
    module.graph.erase_node(first)
    return None


def _double(module: GraphModule, node: Any) -> Tensor:
    value = constant(module, node)
    assert value is not None
    return value.double()
