"""A sum of linear layers of different inputs is one linear layer of their concatenation.

    sum_i (x_i W_i + b_i)  ->  [x_1 | x_2 | ...] [W_1; W_2; ...] + sum_i b_i         and a number that scales the sum

Heads on several stages, weighted and summed, become one product. Layers that share an input share its block. Sums are
formed in float64 and rounded once.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from edgesmith.exporters.costs import Costs
from edgesmith.exporters.graph.edit import (
    Emitter,
    arguments,
    aten,
    constant,
    operators,
    rank,
    readers,
    site,
    stand_for,
    val,
)
from edgesmith.exporters.rewrites.merge_linears import fold_factor
from edgesmith.exporters.rewrites.rewrite import Rejection, RewriteReport


class ConcatLinears:
    """See above. A near miss is a sum of linear layers of which something else reads one."""

    name = "concat_linears"

    def apply(self, module: GraphModule, costs: Costs) -> RewriteReport:
        """Join whole sums in place, from their last addition backwards."""
        applied, rejected = [], []
        for node in reversed(list(operators(module))):
            if node._erased or not _is_sum(node):
                continue
            linears = _terms(node)
            if len(linears) < 2 or not all(linear.target is aten.linear.default for linear in linears):
                continue
            where = " + ".join(site(linear) for linear in linears)
            reason = _cannot_join(module, node, linears)
            if reason is not None:
                rejected.append(Rejection(where, reason))
                continue
            joined = _join(module, node, linears)
            applied.append((where, f"{len(linears)} linear layers -> one of their inputs' concatenation"))
            module.graph.eliminate_dead_code()
            for reader in list(joined.users):
                outcome = fold_factor(module, reader) if reader.target in (aten.mul.Tensor, aten.div.Tensor) else None
                if isinstance(outcome, tuple):
                    applied.append(outcome)
        return RewriteReport(self.name, tuple(applied), tuple(rejected))


def _is_sum(node: Node) -> bool:
    return node.target is aten.add.Tensor and all(isinstance(n, Node) for n in node.args) and arguments(node)[2] == 1


def _terms(node: Node) -> list[Node]:
    """What is added up to `node`, through sums that nothing else reads."""
    found: list[Node] = []
    for term in node.args:
        assert isinstance(term, Node)
        found += _terms(term) if _is_sum(term) and len(term.users) == 1 else [term]
    return found


def _cannot_join(module: GraphModule, node: Node, linears: list[Node]) -> str | None:
    for linear in linears:
        x, w, b = arguments(linear)
        if linears.count(linear) > 1 or len(linear.users) > 1:
            return f"{linear.name} is read by {readers(linear)}, not by the sum alone"
        weight = constant(module, w)
        if weight is None or (b is not None and constant(module, b) is None):
            return f"the weights of {site(linear)} are computed"
        if weight.dim() != 2 or not weight.is_floating_point() or val(x).dtype != val(node).dtype:
            return f"{site(linear)} is no floating-point matrix"
        if rank(linear) != rank(node) or any(
            str(a) != str(b) for a, b in zip(val(linear).shape, val(node).shape, strict=True)
        ):
            return f"{site(linear)} is broadcast"
    return None


def _join(module: GraphModule, node: Node, linears: list[Node]) -> Node:
    blocks: dict[Node, Tensor] = {}
    bias: Tensor | None = None
    for linear in linears:
        x, w, b = arguments(linear)
        weight, own = constant(module, w), constant(module, b)
        assert weight is not None
        blocks[x] = blocks[x] + weight.double() if x in blocks else weight.double()
        if own is not None:
            bias = own.double() if bias is None else bias + own.double()
    emit, dtype, where = Emitter(module, node), val(node).dtype, site(*linears)
    inputs = list(blocks)
    x = inputs[0] if len(inputs) == 1 else emit(aten.cat.default, inputs, rank(inputs[0]) - 1)
    matrix = emit.constant(f"{where}.weight", torch.cat(list(blocks.values()), dim=1).to(dtype))
    offset = None if bias is None else emit.constant(f"{where}.bias", bias.to(dtype))
    joined = emit(aten.linear.default, x, matrix, offset)
    stand_for(joined, node)
    node.replace_all_uses_with(joined)
    return joined
