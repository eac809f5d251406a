"""A convolution's own input, added to its output, is a number more in the middle of each kernel.

    s x + t conv(x; W, b)  ->  conv(x; t W + s delta, t b)        s, t constants, one a channel, or 1

where the convolution keeps every size: stride 1, an odd kernel, the padding that goes with it, as many channels out as
in. delta is 1 where a channel reads itself at the kernel's centre. In float64, rounded once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from edgesmith.exporters.costs import Costs
from edgesmith.exporters.graph.edit import (
    CONVOLUTIONS,
    arguments,
    aten,
    constant,
    operators,
    rank,
    readers,
    set_constant,
    site,
    stand_for,
    val,
)
from edgesmith.exporters.rewrites.fold_affine import Scaled, as_scaled
from edgesmith.exporters.rewrites.rewrite import Rejection, RewriteReport


class FoldResidual:
    """See above. A near miss is such a sum of a convolution that does not keep places, or that is read elsewhere."""

    name = "fold_residual"

    def apply(self, module: GraphModule, costs: Costs) -> RewriteReport:
        """Fold in place, in program order."""
        applied, rejected = [], []
        for node in operators(module):
            if node.target is not aten.add.Tensor or arguments(node)[2] != 1:
                continue
            terms = [as_scaled(module, term, axis=1) for term in node.args]
            if None in terms:
                continue
            first, second = (term for term in terms if term is not None)
            for skip, branch in ((first, second), (second, first)):
                conv = branch.value
                if conv.target not in CONVOLUTIONS or conv.args[0] is not skip.value:
                    continue
                reason = _cannot_take(module, node, branch)
                if reason is not None:
                    rejected.append(Rejection(site(conv), reason))
                else:
                    _take(module, node, skip, branch)
                    applied.append((site(conv), "takes the residual around it into its kernel"))
                break
        module.graph.eliminate_dead_code()
        return RewriteReport(self.name, tuple(applied), tuple(rejected))


def _cannot_take(module: GraphModule, node: Node, branch: Scaled) -> str | None:
    conv = branch.value
    for value in (conv, branch.node):
        if len(value.users) > 1:
            return f"{value.name} is read by {readers(value)}, not by the sum alone"
    x, w, b, stride, padding, dilation, _ = arguments(conv)
    weight = constant(module, w)
    if weight is None or (b is not None and constant(module, b) is None):
        return "its weights are computed"
    if weight.dim() != rank(conv) or val(node).shape != val(conv).shape or val(conv).shape != val(x).shape:
        return "it does not keep its input's shape"
    if any(n != 1 for n in stride) or any(k % 2 == 0 for k in weight.shape[2:]):
        return f"stride {list(stride)} and kernel {list(weight.shape[2:])} have no centre at each place"
    sizes = weight.shape[2:]
    if isinstance(padding, str) or any(
        p != d * (k - 1) // 2
        for p, d, k in zip(_for_each(padding, sizes), _for_each(dilation, sizes), sizes, strict=True)
    ):
        return f"padding {padding} does not centre the kernel"
    return None


def _for_each(values: Sequence[int], axes: Sequence[int]) -> list[int]:
    """One value for each axis: ATen takes one for all."""
    return list(values) * len(axes) if len(values) == 1 else list(values)


def _take(module: GraphModule, node: Node, skip: Scaled, branch: Scaled) -> None:
    conv = branch.value
    weight, bias = constant(module, conv.args[1]), constant(module, arguments(conv)[2])
    assert weight is not None
    channels, width = weight.shape[:2]
    scale = branch.factor(channels)
    folded = (weight.double() * scale.reshape(-1, *[1] * (weight.dim() - 1))).contiguous()
    kernels = folded.reshape(channels, width, -1)  # of odd sizes, so the centre is also the middle of a flat kernel
    own = torch.arange(channels)
    kernels[own, own % width, kernels.shape[2] // 2] += skip.factor(channels)
    prefix = site(conv)
    set_constant(module, conv, 1, f"{prefix}.weight", folded.to(weight.dtype))
    if bias is not None:
        shifted: Tensor = bias.double() * scale
        set_constant(module, conv, 2, f"{prefix}.bias", shifted.to(bias.dtype))
    node.replace_all_uses_with(conv)
    stand_for(conv, node)
    module.graph.erase_node(node)
