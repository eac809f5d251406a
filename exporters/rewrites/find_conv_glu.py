"""The gate of a convolutional GLU, on maps or on tokens, in any spelling, becomes edgesmith.conv_glu.

    gelu(dw3x3(a)) * v,  (a, v) the two halves of what a layer makes  ->  conv_glu(u, w, b)

What lies between the layer and the multiply, such as tokens becoming a map and back, is compared by its numbers.
Near misses: GELU's tanh approximation, halves in the other order, a value that is read elsewhere.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from edgesmith.exporters.costs import Costs
from edgesmith.exporters.graph.edit import Emitter, arguments, aten, example_sizes, rank, replace, site, val
from edgesmith.exporters.graph.linear import Linear, as_layer, channel_axis
from edgesmith.exporters.rewrites.regions import (
    Region,
    as_made,
    in_place_of,
    is_layer,
    region,
    same,
    with_channels_first,
)
from edgesmith.exporters.rewrites.rewrite import Reject, declining_at, rewrites
from edgesmith.kernels import conv_glu


@rewrites(aten.mul.Tensor, rule="gelu(dw3x3(a)) * v -> edgesmith.conv_glu")
def find_conv_glu(module: GraphModule, node: Node, costs: Costs) -> str | None:
    """See above."""
    found = region(module, node, lambda other: is_layer(other) and not _is_local(other))
    if found is None or len(found.sources) != 1 or not is_layer(found.sources[0]):
        return None
    local = [other for other in found.nodes if _is_local(other)]
    gates = [other for other in found.nodes if other.target is aten.gelu.default]
    if len(local) != 1 or len(gates) != 1 or found.nodes[-1] is not node:
        return None
    layer = as_layer(module, local[0])
    if layer is None:
        return None
    with declining_at(site(*found.nodes)):
        return _fuse(found, layer, gates[0])


def _is_local(node: Node) -> bool:
    """Return whether a node is a depthwise 3x3 convolution that keeps its map."""
    if node.target is not aten.conv2d.default:
        return False
    x, weight, *_, groups = arguments(node)
    keeps = list(val(node).shape) == list(val(x).shape)
    return bool(keeps and groups == val(x).shape[1] and list(val(weight).shape[1:]) == [1, 3, 3])


def _fuse(found: Region, layer: Linear, gate: Node) -> str:
    """Put the op in a region's place. Raises `Reject` where it computes something else."""
    (source,), node = found.sources, found.last
    if arguments(gate)[1] != "none":
        raise Reject("its GELU is the tanh approximation")
    if val(source).dtype != torch.float32 or val(node).dtype != torch.float32:
        raise Reject("it is not of float32 throughout")
    found.check_alone()
    channels, height, width = example_sizes(val(layer.node).shape)[1:]
    batch = example_sizes(val(source).shape)[0]
    bias = torch.zeros(channels, dtype=torch.float64) if layer.bias is None else layer.bias
    u = torch.randn(batch, 2 * channels, height * width, generator=torch.Generator().manual_seed(0)).double()
    if val(source).numel() != u.numel() or val(node).numel() != u.numel() // 2:
        raise Reject("the layer before it does not make two halves of the convolution's channels")
    maps = torch.unflatten(u, 2, (height, width))
    swapped = torch.cat(maps.chunk(2, dim=1)[::-1], dim=1)
    output = found.run(as_made(source, u))[node]
    if not _is_op(output, source, conv_glu.reference(maps, layer.weight, bias)):
        if _is_op(output, source, conv_glu.reference(swapped, layer.weight, bias)):
            raise Reject("its second half is convolved, not its first")
        raise Reject("it has the layers of a convolutional GLU, and computes other numbers")
    emit = Emitter(found.module, node)
    given = with_channels_first(emit, source)
    if rank(given) == 3:
        given = emit(aten.unflatten.int, given, 2, [height, width])
    where = site(*found.nodes)
    weight, offset = arguments(layer.node)[1:3]
    if offset is None:
        offset = emit.constant(f"{where}.bias", bias.float())
    y = emit(conv_glu.OP.overload, given, weight, offset)
    replace(node, in_place_of(emit, y, node, channels_last=channel_axis(source) != 1))
    return f"{len(found.nodes)} operators -> edgesmith.conv_glu"


def _is_op(output: Tensor, source: Node, expected: Tensor) -> bool:
    """Return whether a result, laid out as its source is, has the op's numbers."""
    flat = expected.flatten(2)
    if channel_axis(source) != 1:
        flat = flat.transpose(1, 2)
    return output.numel() == flat.numel() and same(output.reshape(flat.shape), flat)
