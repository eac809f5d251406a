"""A constant in front of a convolution that pads with zeros is a constant map behind it.

    conv(x + c)              ->  conv(x) + m        m = conv of the constant image c, padded with zeros as well
    conv1x1(conv(x) + m)     ->  conv1x1(conv(x)) + m'

Inside the map m is one number a channel, as for a convolution that pads nothing; at its border fewer taps see c. StarReLU
in front of a depthwise 7x7 leaves such a constant. Moved only where the map has no more numbers than what was added to.
In float64, rounded once.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from edgesmith.exporters.costs import Costs
from edgesmith.exporters.graph.edit import Emitter, arguments, aten, changed, numbers, rank, site, stand_for, val
from edgesmith.exporters.graph.linear import Linear, as_layer, channel_axis
from edgesmith.exporters.rewrites.fold_affine import as_shifted
from edgesmith.exporters.rewrites.rewrite import Reject, rewrites


@rewrites(aten.add.Tensor, aten.sub.Tensor, rule="conv(x + c), padded with zeros -> conv(x) + a constant map")
def fold_borders(module: GraphModule, node: Node, costs: Costs) -> str | None:
    """See above. A near miss is such a sum whose map would be larger than what the sum reads."""
    layer = _only_layer(module, node)
    if layer is None or not layer.pads or rank(node) != 4:
        return None
    found = as_shifted(module, node, axis=1)
    sizes = val(node).shape[1:]
    if found is None or not all(isinstance(n, int) for n in sizes):
        return None
    value, shift = found
    image = shift.expand(sizes[0]).reshape(1, -1, 1, 1).expand(1, *sizes)
    layers, image = _through(module, layer, image)
    if image.numel() > (numbers(sizes) or 0):
        raise Reject(f"the map behind {site(layers[-1].node)} has {image.numel()} numbers, more than what is added to")
    last = layers[-1].node
    emit = Emitter(module, last.next)
    emit.source = last
    total = emit(aten.add.Tensor, last, emit.constant(f"{site(node)}.border", image.to(val(last).dtype)))
    last.replace_all_uses_with(total, delete_user_cb=lambda user: user is not total)
    stand_for(total, last)
    for one in layers:
        changed(one.node)
    layers[0].node.replace_input_with(node, value)
    return f"a constant map behind {site(last)}"


def _only_layer(module: GraphModule, node: Node) -> Linear | None:
    """The convolution of a batch that alone reads a value, as data."""
    (reader, *others) = node.users or (None,)
    if others or reader is None or reader.args[0] is not node:
        return None
    layer = as_layer(module, reader)
    return layer if layer is not None and reader.target is aten.conv2d.default and channel_axis(reader) == 1 else None


def _through(module: GraphModule, layer: Linear, image: Tensor) -> tuple[list[Linear], Tensor]:
    """The layers that a constant image passes, the first and then pointwise ones that make it no larger."""
    layers, image = [layer], _convolved(layer, image)
    while True:
        reader = _only_layer(module, layers[-1].node)
        if reader is None or reader.pads or reader.own_weight.shape[2:] != (1, 1) or reader.channels > image.shape[1]:
            return layers, image
        if any(step != 1 for step in arguments(reader.node)[3]):
            return layers, image
        layers.append(reader)
        image = _convolved(reader, image)


def _convolved(layer: Linear, image: Tensor) -> Tensor:
    """The convolution of an image in float64, without the layer's bias."""
    _, _, _, stride, padding, dilation, groups = arguments(layer.node)
    return torch.nn.functional.conv2d(image, layer.weight, None, stride, padding, dilation, groups)
