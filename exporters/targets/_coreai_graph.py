"""Spellings of what Core AI's converter takes for something else, in the graph that it is given.

sin(1: int64)       sin(1.0)                    it has no sine of whole numbers
1: int64 + 0.3      1.0 + 0.3                   it rounds the fraction to 16 bits
A @ reshape(Y)      (reshape(Y)^T @ A^T)^T      it takes reshape(A @ Y) for it, wherever that has a shape
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

aten = torch.ops.aten


def make_whole_numbers_floats(graph: Graph) -> None:
    """Convert whole numbers where an operator makes floats of them, or compares them with a fraction."""
    for node in list(graph.nodes):
        if not _computes_floats(node):
            continue
        made = node.meta["val"].dtype if node.meta["val"].is_floating_point() else torch.float32
        for source in node.all_input_nodes:
            with graph.inserting_before(node):
                cast = _emit(graph, node, aten._to_copy.default, source, dtype=made)
            node.replace_input_with(source, cast)


def _computes_floats(node: Node) -> bool:
    """Return whether an operator of whole numbers or truth values alone computes with floats."""
    made = node.meta.get("val")
    given = [source.meta.get("val") for source in node.all_input_nodes]
    if node.op != "call_function" or node.target is aten._to_copy.default or not isinstance(made, Tensor) or not given:
        return False
    if not all(isinstance(one, Tensor) and not (one.is_floating_point() or one.is_complex()) for one in given):
        return False
    return made.is_floating_point() or (made.dtype == torch.bool and any(isinstance(one, float) for one in node.args))


_PRODUCTS = (aten.mm.default, aten.bmm.default, aten.addmm.default)
_VIEWS = (aten.view.default, aten.reshape.default, aten._unsafe_view.default)


def turn_products(graph: Graph) -> None:
    """Spell products A B as (B^T A^T)^T where B is a tensor in another shape that A fits as well."""
    for node in list(graph.nodes):
        if node.op != "call_function" or node.target not in _PRODUCTS:
            continue
        first, second = node.args[-2:]
        rows, columns = second.meta["val"].shape[-2:]
        if not any(len(shape) > 1 and shape[-2] == rows and shape[-1] != columns for shape in _shapes(second)):
            continue
        with graph.inserting_before(node):  # which keeps its name, by which outputs are known
            product = aten.mm.default if second.meta["val"].dim() == 2 else aten.bmm.default
            swapped = _emit(graph, node, product, _transpose(graph, node, second), _transpose(graph, node, first))
            if node.target is aten.addmm.default:
                node.args = _addends(graph, node, _transpose(graph, node, swapped))
                node.target = aten.add.Tensor
            else:
                node.args = (swapped, _last_two_swapped(swapped))
                node.target = aten.permute.default
        node.kwargs = {}


def _shapes(node: Node) -> Iterator[tuple[int, ...]]:
    """Yield the shapes of the tensors that a value is made of number by number, in their order."""
    count = math.prod(node.meta["val"].shape)
    todo: list[tuple[Node, tuple[int, ...]]] = [(node, ())]
    seen = set()
    while todo:
        one, turned = todo.pop()
        if (one, turned) in seen or not isinstance(one.meta.get("val"), Tensor):
            continue
        seen.add((one, turned))
        shape = tuple(one.meta["val"].shape)
        if math.prod(shape) != count or (turned and len(turned) != len(shape)):
            continue
        if not turned:
            yield shape
        if one.op != "call_function":
            continue
        if one.target is aten.permute.default:
            order = tuple(int(axis) % len(shape) for axis in one.args[1])  # type: ignore[union-attr, arg-type]  # fx's own
            ahead = tuple(order[axis] for axis in turned) if turned else order
            turned = () if ahead == tuple(range(len(shape))) else ahead
        elif turned and one.target in _VIEWS:
            continue
        todo += [(source, turned) for source in one.all_input_nodes]


def _addends(graph: Graph, node: Node, product: Node) -> tuple[Node, Node]:
    """Emit beta bias and alpha product of an addmm."""
    bias = node.args[0]
    assert isinstance(bias, Node)
    if node.kwargs.get("alpha", 1) != 1:
        product = _emit(graph, node, aten.mul.Scalar, product, node.kwargs["alpha"])
    if node.kwargs.get("beta", 1) != 1:
        bias = _emit(graph, node, aten.mul.Scalar, bias, node.kwargs["beta"])
    return product, bias


def _last_two_swapped(x: Node) -> list[int]:
    axes = [*range(x.meta["val"].dim())]
    return [*axes[:-2], axes[-1], axes[-2]]


def _transpose(graph: Graph, node: Node, x: Node) -> Node:
    """Emit the transpose of the last two axes."""
    return _emit(graph, node, aten.permute.default, x, _last_two_swapped(x))


def _emit(graph: Graph, like: Node, target: Any, *args: Any, **kwargs: Any) -> Node:
    """Emit an operator with the meta data of another."""
    new = graph.call_function(target, args, kwargs)
    values = torch.fx.map_arg((args, kwargs), lambda one: one.meta["val"])
    new.meta = {**like.meta, "val": target(*values[0], **values[1])}
    return new
