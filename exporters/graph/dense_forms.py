"""Sparse matrices in a model, as dense ones of the same numbers: no file has others.

    a sparse constant                           ->  its dense values
    to_sparse(x), to_dense(x), coalesce(x)      ->  x
    sparse_coo_tensor(places, v, [n, m])        ->  zeros(n, m), and v added at its places
    sparse.mm(s, x), s @ x                      ->  x's dense product

What else is sparse is refused with its line.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from edgesmith.errors import Unsupported
from edgesmith.exporters.graph.blame import line_of_node
from edgesmith.exporters.graph.edit import Emitter, aten, constant, operator_name, tidy

_SAME = frozenset({"to_sparse", "_to_sparse", "to_dense", "_to_dense", "coalesce", "_coalesce", "to_sparse_csr"})
"""Operators that leave the numbers where they are."""

_MADE = frozenset({"sparse_coo_tensor", "_sparse_coo_tensor_unsafe", "_sparse_coo_tensor_with_dims_and_tensors"})

_PRODUCTS = {"_sparse_mm": aten.mm.default, "mm": aten.mm.default, "matmul": aten.matmul.default}


def make_dense(graph: GraphModule) -> GraphModule:
    """Return a graph with dense matrices in the place of sparse ones, in place.

    Raises:
        Unsupported: another operator makes or takes a sparse tensor.
    """
    nodes = list(graph.graph.nodes)
    if not any(_is_sparse(node) for node in nodes):
        return graph
    made: dict[Node, Node] = {}
    for node in nodes:
        if _is_sparse(node) or any(_is_sparse(one) for one in node.all_input_nodes):
            made[node] = _dense(graph, node, made)
    for node, new in made.items():
        if not _is_sparse(node):
            node.replace_all_uses_with(new)
    return tidy(graph)


def _dense(graph: GraphModule, node: Node, made: dict[Node, Node]) -> Node:
    """Return the node that has the numbers of a sparse one, or of one that reads such."""
    emit = Emitter(graph, node)
    if node.op == "get_attr":
        value = constant(graph, node)
        assert value is not None  # it is sparse
        return emit.constant(f"{node.name}_dense", value.to_dense())
    args: tuple[Any, ...] = torch.fx.map_arg(node.args, lambda one: made.get(one, one))
    name = operator_name(node).removeprefix("aten.").partition(".")[0]
    if name in _SAME and isinstance(args[0], Node):
        return args[0]
    if name in _PRODUCTS and not _is_sparse(node):
        return emit(_PRODUCTS[name], *args[:2])
    places = [one for one in args if isinstance(one, Node) and not one.meta["val"].is_floating_point()]
    values = [one for one in args if isinstance(one, Node) and one.meta["val"].is_floating_point()]
    if name in _MADE and len(places) == len(values) == 1 and values[0].meta["val"].dim() == 1:
        size, kind = list(node.meta["val"].shape), values[0].meta["val"].dtype
        zeros = emit(aten.zeros.default, size, dtype=kind)
        axes = [emit(aten.select.int, places[0], 0, axis) for axis in range(len(size))]
        return emit(aten.index_put.default, zeros, axes, values[0], True)
    line = line_of_node(node)
    raise Unsupported(
        f"{operator_name(node)}{f' at {line}' if line else ''} works on sparse tensors, which no file has; work on the"
        " dense ones, with .to_dense()"
    )


def _is_sparse(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.layout != torch.strided
