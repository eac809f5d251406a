"""The mixer of an Inception Transformer, on maps or on tokens, in any spelling, becomes edgesmith.inception_mixer.

    convolution, max pool and attention of a map's channels, joined and fused  ->  inception_mixer(x, ...)

Its layers are known by where they stand: behind the max pool, before a depthwise convolution, before the attention. The
average pool before the attention becomes a strided convolution with qkv, the residual around the depthwise convolution
the centre of its kernels, the scale of the scores a factor of q's rows. Numbers decide whether it is the op.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from edgesmith.exporters.costs import Costs
from edgesmith.exporters.graph.edit import Emitter, arguments, aten, example_sizes, rank, replace, site, val
from edgesmith.exporters.graph.linear import Linear, as_layer
from edgesmith.exporters.rewrites.regions import Region, dominated, is_layer, same
from edgesmith.exporters.rewrites.rewrite import Reject, declining_at, rewrites
from edgesmith.kernels import attention, inception_mixer

_WEIGHERS = (aten.softmax.int, aten.scaled_dot_product_attention.default, attention.OP.overload)


@rewrites(aten.conv2d.default, rule="convolution, max pool and attention, joined -> edgesmith.inception_mixer")
def find_inception(module: GraphModule, node: Node, costs: Costs) -> str | None:
    """See above."""
    if not _ends_mixer(node):
        return None
    found = dominated(module, node, (aten.max_pool2d.default,), _WEIGHERS)
    if found is None:
        return None
    layers = _layers(found)
    if layers is None:
        return None
    with declining_at(site(*found.nodes)):
        return _fuse(found, layers)


def _ends_mixer(node: Node) -> bool:
    """Return whether a convolution is 1x1 and reads a depthwise one of a concatenation, with its residual or not."""
    weight, before = val(node.args[1]), node.args[0]
    if list(weight.shape[2:]) != [1, 1] or not isinstance(before, Node):
        return False
    if before.target is aten.add.Tensor:
        before = next((one for one in before.all_input_nodes if _is_depthwise(one)), before)
    return _is_depthwise(before) and isinstance(before.args[0], Node) and before.args[0].target is aten.cat.default


def _is_depthwise(node: Node) -> bool:
    if node.target is not aten.conv2d.default:
        return False
    weight, groups = val(node.args[1]), arguments(node)[6]
    return list(weight.shape[1:]) == [1, 3, 3] and groups == weight.shape[0]


@dataclass(frozen=True)
class _Layers:
    """The six layers of a mixer, the heads of its attention and the side of its cells."""

    conv: Linear
    local: Linear
    peak: Linear
    qkv: Linear
    fuse: Linear
    proj: Linear
    heads: int
    cell: int


def _layers(found: Region) -> _Layers | None:
    """The layers of a region, by where they stand; None where they are others."""
    layers = [layer for node in found.nodes if is_layer(node) and (layer := as_layer(found.module, node)) is not None]
    proj = next((layer for layer in layers if layer.node is found.last), None)
    spatial = [layer for layer in layers if _is_depthwise(layer.node)]
    fuse = next((layer for layer in spatial if found.last.args[0] in (layer.node, *layer.node.users)), None)
    local = next((layer for layer in spatial if layer is not fuse), None)
    conv = next((layer for layer in layers if local is not None and layer.node is local.read), None)
    peak = next((layer for layer in layers if layer.read.target is aten.max_pool2d.default), None)
    known = (conv, local, peak, fuse, proj)
    others = [layer for layer in layers if layer not in known]
    if len(layers) != 6 or len(others) != 1:
        return None
    if conv is None or local is None or peak is None or fuse is None or proj is None:
        return None
    (qkv,) = others
    weigher = next(node for node in found.nodes if node.target in _WEIGHERS)
    shape = example_sizes(val(weigher).shape)
    pools = [node for node in found.nodes if node.target is aten.avg_pool2d.default]
    stride = arguments(qkv.node)[3] if qkv.node.target is aten.conv2d.default else [1]
    cell = int(arguments(pools[0])[1][0]) if pools else int(stride[0])
    return _Layers(conv, local, peak, qkv, fuse, proj, shape[1] if len(shape) == 4 else 1, cell)


def _fuse(found: Region, layers: _Layers) -> str:
    """Put the op in a region's place. Raises `Reject` where it computes something else."""
    (x,) = found.sources
    if val(x).dtype != torch.float32 or rank(x) != 4:
        raise Reject("it is not of float32 throughout, or reads no map")
    found.check_alone()
    weights, first = _known_weights(found, layers)
    emit, where = Emitter(found.module, found.last), site(*found.nodes)
    names = list(inception_mixer.reference.__annotations__)[1:]
    constants = [emit.constant(f"{where}.{name}", weight.float()) for name, weight in zip(names, weights, strict=False)]
    given = x if first else emit(aten.permute.default, x, [0, 3, 1, 2])
    replace(found.last, emit(inception_mixer.OP.overload, given, *constants, layers.heads))
    return f"{len(found.nodes)} operators -> edgesmith.inception_mixer"


def _known_weights(found: Region, layers: _Layers) -> tuple[list[Tensor], bool]:
    """The op's weights in float64, and whether the map that it reads has its channels first."""
    (source,) = found.sources
    x = torch.randn(example_sizes(val(source).shape), generator=torch.Generator().manual_seed(0)).double()
    expected = found.run(x)[found.last]
    for weights, first in product(_weights(layers), (True, False)):
        given = x if first else x.permute(0, 3, 1, 2)
        try:
            inception_mixer.OP.shape(given, *weights, layers.heads)
        except ValueError:
            continue
        made = inception_mixer.OP.reference(given, *weights, layers.heads)
        if isinstance(made, Tensor) and same(made, expected):
            return weights, first
    raise Reject("it has the layers of an inception mixer, and computes other numbers")


def _weights(layers: _Layers) -> Iterator[list[Tensor]]:
    """The weights that the op may have: the residual inside the kernels or not yet, and so the scale of the scores."""
    qkv, side = layers.qkv.weight, layers.cell
    low = qkv.shape[1]
    qkv = qkv.reshape(*qkv.shape[:2], *(qkv.shape[2:] or (1, 1)))
    if qkv.shape[2] != side:
        qkv = qkv.expand(-1, -1, side, side) / side**2
    offset = _bias(layers.qkv)
    rows = torch.ones(3 * low, dtype=torch.float64)
    rows[:low] = (low // layers.heads) ** -0.5
    centre = torch.zeros_like(layers.fuse.weight)
    centre[:, :, 1, 1] = 1
    for scale, residual in product((torch.ones_like(rows), rows), (0, 1)):
        yield [
            layers.conv.weight,
            layers.local.weight,
            layers.peak.weight,
            _bias(layers.peak),
            qkv * scale[:, None, None, None],
            offset * scale,
            layers.fuse.weight + residual * centre,
            layers.proj.weight,
            _bias(layers.proj),
        ]


def _bias(layer: Linear) -> Tensor:
    return torch.zeros(layer.channels, dtype=torch.float64) if layer.bias is None else layer.bias
