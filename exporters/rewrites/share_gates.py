"""Additive attention with the gates of q and k in common grouped convolutions, where that is cheaper.

Shared, a mixer starts fewer operators (one in ONNX, two in Core ML) and its convolutions are twice as wide; it pays by
splitting [q | k] once more, which moves 2 C H W numbers. On ONNX Runtime's CPU a split copies, and sharing loses at
seven of the eight map sizes that `bench/experiments/gates.py` measures. The model misses the eighth (C = 56 at 28 x 28,
where the width of 112 suits the vector kernels). Where a split of channels is a view, sharing wins.
"""

from __future__ import annotations

from math import prod

from torch.fx import GraphModule, Node

from edgesmith.exporters.costs import Costs
from edgesmith.exporters.graph.edit import example_sizes, val
from edgesmith.exporters.rewrites.rewrite import Reject, rewrites
from edgesmith.kernels import additive_attention

SAVED_LAUNCHES = 1


@rewrites(
    additive_attention.OP.overload,
    rule="additive attention with q's and k's gates in common convolutions, where the target says cheaper",
    for_sequences=True,
)
def share_gates(module: GraphModule, node: Node, costs: Costs) -> str | None:
    """Set `share_gates` where the target's costs say so, by the cost model above."""
    if len(node.args) > len(additive_attention.example()):
        return None
    out = val(node)
    numbers = 2 * prod(example_sizes(out.shape))
    moved_us = 2 * numbers * out.element_size() / (costs.copy_gb_s * 1e3)  # read and written
    saved_us = SAVED_LAUNCHES * costs.launch_us
    figures = f"saves {saved_us:.1f} us of launches, moves {moved_us:.1f} us worth of data"
    if saved_us <= moved_us:
        raise Reject(figures)
    node.args = (*node.args, True)
    return figures
