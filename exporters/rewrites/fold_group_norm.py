"""The scale and shift of a group norm are each channel's own, so the convolutions that read it can carry them.

    conv(g n(x) + b; W)  ->  conv(n(x); W g) + sum W b          n(x): x normalised; where nothing is padded, or b = 0

Every reader has to be able to take it; a norm that also feeds something else keeps its affine, and is no near miss.
"""

from __future__ import annotations

import torch
from torch.fx import GraphModule

from edgesmith.exporters.costs import Costs
from edgesmith.exporters.graph.edit import arguments, aten, constant, operators, site
from edgesmith.exporters.rewrites.fold_batchnorm import fold_forwards
from edgesmith.exporters.rewrites.rewrite import RewriteReport


class FoldGroupNorm:
    """See the formula above."""

    name = "fold_group_norm"

    def apply(self, module: GraphModule, costs: Costs) -> RewriteReport:
        """Fold in place."""
        applied = []
        for norm in operators(module):
            if norm.target is not aten.group_norm.default:
                continue
            x, groups, gamma, beta, eps, _ = arguments(norm)
            scale, shift = constant(module, gamma), constant(module, beta)
            if scale is None or (beta is not None and shift is None):
                continue
            scale = scale.double()
            shift = torch.zeros_like(scale) if shift is None else shift.double()
            readers = [site(reader) for reader in norm.users]
            if fold_forwards(module, norm, scale, shift) is not None:
                continue
            norm.args = (x, groups, None, None, eps)
            norm.meta["equals"] = ""  # its value is no longer the captured one
            applied.append((site(norm), f"scale and shift into {', '.join(readers)}"))
        return RewriteReport(self.name, tuple(applied))
