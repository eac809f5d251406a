"""Additive attention with the gates of q and k in common grouped convolutions, where that is cheaper.

Shared, a mixer starts fewer operators (one in ONNX, two in Core ML) and its convolutions are twice as wide; it pays by
splitting [q | k] once more, which moves 2 C H W numbers. On ONNX Runtime's CPU a split copies, and sharing loses at
seven of the eight map sizes that `bench/gates.py` measures; the model misses the eighth (C = 56 at 28 x 28, where the
width of 112 suits the vector kernels). Where a split of channels is a view, sharing wins.
"""

from __future__ import annotations

from math import prod

from torch.fx import GraphModule

from edgesmith.exporters.costs import Costs
from edgesmith.exporters.graph.edit import operators, site, val
from edgesmith.exporters.rewrites.rewrite import Rejection, RewriteReport
from edgesmith.kernels import additive_attention

SAVED_LAUNCHES = 1


class ShareGates:
    """Set `share_gates` on every additive attention for which the target's costs say so."""

    name = "share_gates"

    def apply(self, module: GraphModule, costs: Costs) -> RewriteReport:
        """Decide for each site by the cost model above."""
        applied, rejected = [], []
        position = len(additive_attention.example())
        for node in operators(module):
            if node.target is not additive_attention.OP.overload or len(node.args) > position:
                continue
            out = val(node)
            numbers = 2 * prod(int(getattr(getattr(n, "node", None), "hint", n)) for n in out.shape)
            moved_us = 2 * numbers * out.element_size() / (costs.copy_gb_s * 1e3)  # read and written
            saved_us = SAVED_LAUNCHES * costs.launch_us
            figures = f"saves {saved_us:.1f} us of launches, moves {moved_us:.1f} us worth of data"
            if saved_us > moved_us:
                node.args = (*node.args, True)
                applied.append((site(node), figures))
            else:
                rejected.append(Rejection(site(node), figures))
        return RewriteReport(self.name, tuple(applied), tuple(rejected))
