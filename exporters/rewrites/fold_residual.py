"""A convolution's own input, added to its output, is a number more in the middle of each kernel.

    s x + t conv(x; W, b)  ->  conv(x; t W + s delta, t b)        s, t constants, one a channel, or 1

where the convolution keeps every size: stride 1, an odd kernel, the padding that goes with it, as many channels out as
in. delta is 1 where a channel reads itself at the kernel's centre. In float64, rounded once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from edgesmith.exporters.costs import Costs
from edgesmith.exporters.graph.edit import CONVOLUTIONS, arguments, aten, readers, replace, site, val
from edgesmith.exporters.graph.linear import Linear, as_layer, channel_axis
from edgesmith.exporters.graph.pattern import Match, Pattern, find, hole, op
from edgesmith.exporters.rewrites.fold_affine import Scaled, as_scaled
from edgesmith.exporters.rewrites.rewrite import Fired, Reject, declining_at, rewrites


def _scaled(name: str, value: Pattern) -> Pattern:
    """Return a pattern of `value`, by itself or times a constant for each channel, bound as `Scaled`."""

    def matches(node: object, match: Match) -> Iterator[Match]:
        found = as_scaled(match["module"], node, axis=1)
        if found is not None:
            for inner in value(found.value, match):
                yield from inner.bind(name, found)

    return matches


_RESIDUAL = op(aten.add.Tensor, _scaled("skip", hole("x")), _scaled("branch", op(CONVOLUTIONS, hole("x"), ...)))


@rewrites(aten.add.Tensor, rule="s x + t conv(x) -> conv'(x)")
def fold_residual(module: GraphModule, node: Node, costs: Costs) -> Fired | None:
    """See above. A near miss is such a sum of a convolution that does not keep positions, or that is read elsewhere."""
    found = find(_RESIDUAL, node, module=module)
    if found is None:
        return None
    skip, branch = found["skip"], found["branch"]
    where = site(branch.value)
    with declining_at(where):
        layer = _centred(module, node, branch)
    weight, bias = _folded(layer, skip, branch)
    layer.write(weight, bias)
    replace(node, layer.node)
    return Fired(where, "takes the residual around it into its kernel")


def _centred(module: GraphModule, node: Node, branch: Scaled) -> Linear:
    """Return the convolution of a residual: the sum alone reads it, and its kernel has its centre at each position."""
    conv = branch.value
    for value in (conv, branch.node):
        if len(value.users) > 1:
            raise Reject(f"{value.name} is read by {readers(value)}, not by the sum alone")
    layer = as_layer(module, conv)
    if layer is None:
        raise Reject("its weights are computed")
    x, _, _, stride, padding, dilation, _ = arguments(conv)
    sizes = layer.own_weight.shape[2:]
    if channel_axis(conv) != 1 or val(node).shape != val(conv).shape or val(conv).shape != val(x).shape:
        raise Reject("it does not keep its input's shape")
    if any(n != 1 for n in stride) or any(k % 2 == 0 for k in sizes):
        raise Reject(f"stride {list(stride)} and kernel {list(sizes)} have no centre at each place")
    around = zip(_for_each(padding, sizes), _for_each(dilation, sizes), sizes, strict=True)
    if any(p != d * (k - 1) // 2 for p, d, k in around):
        raise Reject(f"padding {padding} does not centre the kernel")
    return layer


def _for_each(values: Sequence[int], axes: Sequence[int]) -> list[int]:
    """One value for each axis: ATen takes one for all."""
    return list(values) * len(axes) if len(values) == 1 else list(values)


def _folded(layer: Linear, skip: Scaled, branch: Scaled) -> tuple[Tensor, Tensor | None]:
    """The weight and bias of a convolution that adds its own input."""
    channels = layer.channels
    scale = branch.factor(channels)
    weight = (layer.weight * layer.of_rows(scale)).contiguous()
    kernels = weight.reshape(channels, weight.shape[1], -1)  # of odd sizes: the centre is the middle of a flat kernel
    own = torch.arange(channels)
    kernels[own, own % weight.shape[1], kernels.shape[2] // 2] += skip.factor(channels)
    return weight, None if layer.bias is None else layer.bias * scale
