"""The cheapest form of an op that has several, for its sizes and the target: a loop, chunks, a square, one matrix.

Each op says itself what its forms cost (`FusedOp.choice`). One whose form was chosen already is left, and so is a call
where the default is the cheapest: that is a near miss, with what the other forms would cost.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from edgesmith.exporters.costs import Costs
from edgesmith.exporters.graph.edit import arguments, example_sizes, val
from edgesmith.exporters.rewrites.rewrite import Reject, rewrites
from edgesmith.kernels.op import find


@rewrites(rule="a scan -> its cheapest form", for_sequences=True)
def choose_scan_form(module: GraphModule, node: Node, costs: Costs) -> str | None:
    """Choose for each op with several forms by the target's costs."""
    op = find(node.target)
    if op is None or op.choice is None:
        return None
    *given, form = arguments(node)
    if len(node.args) > len(given) or "form" in node.kwargs:
        return None
    times = op.choice.times(*(_sized(one) for one in given), costs)
    best = min(times, key=times.__getitem__)
    note = "estimated " + ", ".join(f"{name} {time:.0f} us" for name, time in sorted(times.items()))
    if best == form:
        raise Reject(f"{note}: it stays {form}")
    node.args = (*given, best)
    return f"{note} -> {best}"


def _sized(node: object) -> Tensor:
    """Return a tensor without values of a node's shape, with an example's size for a free one."""
    return torch.empty(example_sizes(val(node).shape), device="meta")
