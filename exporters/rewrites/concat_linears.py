"""A sum of linear layers of different inputs is one linear layer of their concatenation.

    sum_i (x_i W_i + b_i)  ->  [x_1 | x_2 | ...] [W_1; W_2; ...] + sum_i b_i         and a number that scales the sum

Heads on several stages, weighted and summed, become one matmul. Layers that share an input share its block. Sums are
formed in float64 and rounded once.
"""

from __future__ import annotations

from collections.abc import Iterator

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
    replace,
    same_shape,
    site,
    sweep,
    val,
)
from edgesmith.exporters.graph.linear import Linear, add_biases, as_layer
from edgesmith.exporters.rewrites.merge_linears import fold_factor
from edgesmith.exporters.rewrites.rewrite import Fired, Reject, Rejection, attempt, searches


@searches(rule="L1(x) + L2(y) -> L([x | y])")
def concat_linears(module: GraphModule, costs: Costs) -> Iterator[Fired | Rejection]:
    """Join whole sums, from their last addition backwards, and fold the number that scales one.

    A near miss is a sum of linear layers of which something else reads one.
    """
    for node in reversed(list(operators(module))):
        if node._erased or not _is_sum(node):
            continue
        linears = _terms(node)
        if len(linears) < 2 or not all(linear.target is aten.linear.default for linear in linears):
            continue
        where = " + ".join(site(linear) for linear in linears)
        try:
            joined = _join(module, node, [_joinable(module, node, linear, linears) for linear in linears])
        except Reject as declined:
            yield Rejection(where, declined.reason)
            continue
        yield Fired(where, f"{len(linears)} linear layers -> one of their inputs' concatenation")
        sweep(module)
        for reader in list(joined.users):
            scaled = attempt(reader, fold_factor, module, reader)
            if isinstance(scaled, Fired):
                yield scaled


def _is_sum(node: Node) -> bool:
    return node.target is aten.add.Tensor and all(isinstance(n, Node) for n in node.args) and arguments(node)[2] == 1


def _terms(node: Node) -> list[Node]:
    """Return the terms that are added up to `node`, through sums that nothing else reads."""
    found: list[Node] = []
    for term in node.args:
        assert isinstance(term, Node)
        found += _terms(term) if _is_sum(term) and len(term.users) == 1 else [term]
    return found


def _joinable(module: GraphModule, node: Node, linear: Node, linears: list[Node]) -> Linear:
    """One of the layers that a sum joins."""
    if linears.count(linear) > 1 or len(linear.users) > 1:
        raise Reject(f"{linear.name} is read by {readers(linear)}, not by the sum alone")
    x, w, b = arguments(linear)
    weight = constant(module, w)
    if weight is None or (b is not None and constant(module, b) is None):
        raise Reject(f"the weights of {site(linear)} are computed")
    layer = as_layer(module, linear)
    if layer is None or val(x).dtype != val(node).dtype:
        raise Reject(f"{site(linear)} is no floating-point matrix")
    if not same_shape(val(linear), val(node)):
        raise Reject(f"{site(linear)} is broadcast")
    return layer


def _join(module: GraphModule, node: Node, layers: list[Linear]) -> Node:
    """Replace a sum by one layer."""
    blocks: dict[Node, Tensor] = {}
    bias: Tensor | None = None
    for layer in layers:
        blocks[layer.read] = blocks[layer.read] + layer.weight if layer.read in blocks else layer.weight
        bias = add_biases(bias, layer.bias)
    emit, dtype, where = Emitter(module, node), val(node).dtype, site(*(layer.node for layer in layers))
    inputs = list(blocks)
    x = inputs[0] if len(inputs) == 1 else emit(aten.cat.default, inputs, rank(inputs[0]) - 1)
    matrix = emit.constant(f"{where}.weight", torch.cat(list(blocks.values()), dim=1).to(dtype))
    offset = None if bias is None else emit.constant(f"{where}.bias", bias.to(dtype))
    joined = emit(aten.linear.default, x, matrix, offset)
    replace(node, joined)
    return joined
