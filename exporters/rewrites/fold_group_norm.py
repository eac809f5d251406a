"""The scale and shift of a group norm are each channel's own, so the convolutions that read it can carry them.

    conv(g n(x) + b; W)  ->  conv(n(x); W g) + sum W b          n(x): x normalised; where nothing is padded, or b = 0

Every reader has to be able to take it; a norm that also feeds something else keeps its affine, and is no near miss.
"""

from __future__ import annotations

import torch
from torch.fx import GraphModule, Node

from edgesmith.exporters.costs import Costs
from edgesmith.exporters.graph.edit import arguments, aten, changed, constant, site
from edgesmith.exporters.rewrites.fold_batchnorm import fold_forwards
from edgesmith.exporters.rewrites.rewrite import Reject, rewrites


@rewrites(
    aten.group_norm.default,
    rule="conv(g n(x) + b) -> conv'(n(x)), n the normalisation of a group norm without its affine",
)
def fold_group_norm(module: GraphModule, norm: Node, costs: Costs) -> str | None:
    """See the formula above."""
    x, groups, gamma, beta, eps, _ = arguments(norm)
    scale, shift = constant(module, gamma), constant(module, beta)
    if scale is None or (beta is not None and shift is None):
        return None
    scale = scale.double()
    shift = torch.zeros_like(scale) if shift is None else shift.double()
    readers = [site(reader) for reader in norm.users]
    try:
        fold_forwards(module, norm, scale, shift)
    except Reject:
        return None
    norm.args = (x, groups, None, None, eps)
    changed(norm)
    return f"scale and shift into {', '.join(readers)}"
