"""Frequency filters that transform a whole map by one matrix, where that is cheaper than rows first and columns then.

A separable transform and its inverse start four operators more: two matmuls and two reshapes. They also start two small
matmuls for each map of each channel, and they multiply less. A matmul with few columns takes as long as one that fills
the runtime's vectors, so columns count rounded up. On ONNX Runtime's CPU this chooses as `bench/experiments/filters.py`
measures: maps up to 12 x 12 are transformed densely, those of 16 x 16 and more are not.
"""

from __future__ import annotations

from torch.fx import GraphModule, Node

from edgesmith.exporters.costs import Costs
from edgesmith.exporters.graph.edit import arguments, example_sizes, val
from edgesmith.exporters.rewrites.rewrite import Reject, rewrites
from edgesmith.kernels import fft_filter

SAVED_LAUNCHES = 4


@rewrites(
    fft_filter.OP.overload,
    rule="frequency filters that transform a map by one matrix, where the target says cheaper",
    for_sequences=True,
)
def dense_transforms(module: GraphModule, node: Node, costs: Costs) -> str | None:
    """Set `dense` where the target's costs say so, by the cost model above."""
    *others, is_dense = arguments(node)
    if is_dense:
        return None
    batch, channels, height, width = example_sizes(val(node).shape)
    dense, separable = macs(height, width, costs.columns)
    more_us = 2 * batch * channels * (dense - separable) / (costs.gmac_s * 1e3)
    saved_us = SAVED_LAUNCHES * costs.launch_us + 2 * batch * channels * costs.matmul_us
    figures = f"{height}x{width}: saves {saved_us:.1f} us of launches, multiplies {more_us:.1f} us more"
    if saved_us <= more_us:
        raise Reject(figures)
    node.args = (*others, True)
    return figures


def macs(height: int, width: int, columns: int) -> tuple[int, int]:
    """Multiply-accumulates of one channel's transform, dense and separable, widths rounded up to `columns`."""

    def full(n: int) -> int:
        return -(-n // columns) * columns

    bins = width // 2 + 1
    rows = height * width * full(2 * bins) + 4 * height * height * full(bins)
    return height * width * full(2 * height * bins), rows
