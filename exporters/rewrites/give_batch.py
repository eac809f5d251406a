"""A layer of one example without a batch is that of a batch of one.

    conv2d(x) of x [C, H, W]  ->  conv2d(x [1, C, H, W]) [0]          convolutions and average pools

Converters take the channels for a batch, or refuse, and patterns know layers with a batch only.
"""

from __future__ import annotations

from typing import Any

from torch.fx import GraphModule, Node

from edgesmith.exporters.costs import Costs
from edgesmith.exporters.graph.edit import Emitter, aten, rank, replace
from edgesmith.exporters.rewrites.rewrite import rewrites

AXES: dict[Any, int] = {
    aten.conv1d.default: 1,
    aten.conv2d.default: 2,
    aten.conv3d.default: 3,
    aten.conv_transpose1d.default: 1,
    aten.conv_transpose2d.input: 2,
    aten.avg_pool1d.default: 1,
    aten.avg_pool2d.default: 2,
    aten.avg_pool3d.default: 3,
    aten.adaptive_avg_pool1d.default: 1,
    aten.adaptive_avg_pool2d.default: 2,
}
"""Layers, and the axes of their windows."""


@rewrites(*AXES, rule="a layer of one example without a batch -> that of a batch of one")
def give_batch(module: GraphModule, node: Node, costs: Costs) -> str | None:
    """See above. A layer with a batch is no near miss."""
    if rank(node.args[0]) != AXES[node.target] + 1:
        return None
    emit = Emitter(module, node)
    batch = emit(aten.unsqueeze.default, node.args[0], 0)
    layer = emit(node.target, batch, *node.args[1:], **node.kwargs)
    made = emit(aten.squeeze.dim, layer, 0)
    replace(node, made)
    return f"{node.name}: a batch of one"
