"""What TVM's importer is told about PyTorch's operators: which stay whole, and ours where its own are wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.fx import Node

    from edgesmith.kernels.op import FusedOp

KEPT = (
    *("conv1d.default", "conv2d.default", "conv3d.default", "linear.default", "matmul.default", "softmax.int"),
    *("silu.default", "hardswish.default", "hardsigmoid.default", "group_norm.default", "layer_norm.default"),
    *("leaky_relu.default", "softplus.default", "flatten.using_ints", "adaptive_avg_pool2d.default"),
)
"""Operators that the importer takes whole, though PyTorch would decompose them."""


def decompositions(lowerings: str) -> dict[Any, Callable[..., Any]]:
    """Return the spellings of operators in others that come before the importer: PyTorch's, and ours first."""
    import torch

    from edgesmith.exporters import decompositions as ours

    table = dict(torch.export.default_decompositions().items())
    for name in KEPT:
        packet, overload = name.split(".")
        table.pop(getattr(getattr(torch.ops.aten, packet), overload), None)
    return table | dict(ours.for_target(lowerings))


def translations(lowerings: str) -> Mapping[str, Callable[..., Any]]:
    """Return our translations, by the importer's names of operators: those of fused ops."""
    from edgesmith.kernels.op import all_ops

    return {
        f"{op.name}.default": partial(_lowered, op, lowerings)
        for op in all_ops().values()
        if lowerings in op.lowerings
    }


def _lowered(op: FusedOp, lowerings: str, node: Node, importer: Any) -> Any:
    """Return what a fused op's own lowering makes of a node: a function of TVM's builder, then of the op's arguments."""
    import torch

    from edgesmith.exporters.graph.edit import arguments

    given = [importer.env[one] if isinstance(one, torch.fx.Node) else one for one in arguments(node)]
    return op.lowerings[lowerings](importer.block_builder, *given)
