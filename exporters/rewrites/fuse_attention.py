"""Softmax attention in any spelling becomes one operator, with its scale in the layer that makes the queries.

    softmax(s (q @ k') + bias) @ v                 by matmul or bmm, the scale on q, k or the scores
    v' @ softmax(k @ q', over the keys)            the same with positions last
    scaled_dot_product_attention(q, k, v, bias)    ->  edgesmith.attention(q, k, v, bias)

Transpositions of the last two axes around it become its layout: heads of maps [B, h, d, N] need none. The scale goes
into rows of the layer before q wherever only rearrangements lie between them, such as a split of q, k and v, by
whichever axes: it is found by running them on the numbers of the channels.

Left alone: masks, which are boolean, computed, or beyond what half precision can add; causal attention; heads that
share keys; a softmax that is read elsewhere.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from edgesmith.exporters.costs import Costs
from edgesmith.exporters.graph.edit import (
    Emitter,
    arguments,
    aten,
    changed,
    constant,
    example_sizes,
    rank,
    readers,
    replace,
    same_shape,
    sweep,
    val,
)
from edgesmith.exporters.graph.linear import Linear, as_layer
from edgesmith.exporters.rewrites.rewrite import Reject, rewrites
from edgesmith.kernels import attention

LARGEST_BIAS = 1e4
"""Beyond it an additive constant is a mask, which is treated as one elsewhere."""

_PRODUCTS = (aten.matmul.default, aten.bmm.default)


@dataclass(frozen=True)
class _Found:
    """An attention in the graph.

    Attributes:
        end: the node that has its value.
        q, k, v: as they stand before and behind the products.
        flips: for each of q, k and v and for the result, whether positions come last in it.
        bias: of the scores [..., N, M].
        scale: of the scores.
        inside: nodes that nothing else may read.
    """

    end: Node
    q: Node
    k: Node
    v: Node
    flips: tuple[bool, bool, bool, bool]
    bias: Node | None
    scale: float
    inside: tuple[Node, ...]


@rewrites(
    aten.softmax.int,
    aten.scaled_dot_product_attention.default,
    rule="softmax(s q k' + bias) v -> edgesmith.attention, s in the layer before q",
)
def fuse_attention(module: GraphModule, node: Node, costs: Costs) -> str | None:
    """See above. A near miss is a softmax between two products that cannot be the op."""
    found = _from_torch(module, node) if node.target is not aten.softmax.int else _from_softmax(module, node)
    if found is None:
        return None
    for one in found.inside:
        if len(one.users) > 1:
            raise Reject(f"{one.name} is read by {readers(one)}")
    _check_shapes(found)
    new = _put(module, found)
    return f"-> edgesmith.attention{_fold_scale(module, new)}"


def _from_torch(module: GraphModule, node: Node) -> _Found | None:
    """PyTorch's own operator, where it has no mask."""
    q, k, v, mask, dropout, is_causal, scale, shares_keys = arguments(node)
    if dropout or is_causal:
        return None
    if shares_keys and not same_shape(val(q).shape[:-2], val(k).shape[:-2]):
        return None
    if mask is not None and not _is_bias(module, mask):
        return None
    width = val(q).shape[-1]
    if not isinstance(width, int):
        return None
    given = 1 / math.sqrt(width) if scale is None else float(scale)
    return _Found(node, q, k, v, (False,) * 4, mask, given, ())


def _from_softmax(module: GraphModule, softmax: Node) -> _Found | None:
    """A softmax of scores, products of two values, whose only reader is a product."""
    scores, axis, dtype = arguments(softmax)
    if rank(softmax) < 3:
        return None
    positions_last = axis % rank(softmax) == rank(softmax) - 2
    if axis % rank(softmax) < rank(softmax) - 2 or dtype not in (None, val(scores).dtype):
        return None
    end = next(iter(softmax.users), None)
    if end is None or end.target not in _PRODUCTS or end.args[1 if positions_last else 0] is not softmax:
        return None
    bias, scale, inside = None, 1.0, [softmax]
    step = scores
    if step.target is aten.add.Tensor and arguments(step)[2] == 1:
        bias = next((one for one in step.args[:2] if isinstance(one, Node) and _is_bias(module, one)), None)
        if bias is None:
            raise Reject("what is added to the scores is computed, or a mask")
        inside.append(step)
        step = step.args[1] if step.args[0] is bias else step.args[0]
    factor, product = _scaled(module, step)
    inside += [] if product is step else [step]
    if product.target not in _PRODUCTS:
        return None
    inside.append(product)
    (a, left), (b, right) = (_scaled(module, side) for side in product.args)
    scale = factor * a * b
    v = end.args[0 if positions_last else 1]
    assert isinstance(v, Node)
    if positions_last:  # left k [M, d], right q' [d, N], v' [e, M]
        if bias is not None:
            raise Reject("its bias has the keys first")
        return _Found(end, right, left, v, (True, False, True, True), None, scale, tuple(inside))
    return _Found(end, left, right, v, (False, True, False, False), bias, scale, tuple(inside))


def _scaled(module: GraphModule, node: Any) -> tuple[float, Node]:
    """Return a value as a number times another value; 1 times itself where it is none."""
    if node.target in (aten.mul.Tensor, aten.div.Tensor):
        for value, other in (node.args, node.args[::-1])[: 2 if node.target is aten.mul.Tensor else 1]:
            number = _number(module, other)
            if number and isinstance(value, Node) and same_shape(val(value), val(node)):
                return (number if node.target is aten.mul.Tensor else 1 / number), value
    return 1.0, node


def _number(module: GraphModule, value: object) -> float | None:
    """A finite number that is known, or None."""
    held = constant(module, value)
    if held is not None and held.numel() == 1:
        value = held.item()
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_number else None  # type: ignore[arg-type]  # a number


def _is_bias(module: GraphModule, node: object) -> bool:
    """Return whether a value is a constant that is no mask."""
    held = constant(module, node)
    return held is not None and held.is_floating_point() and bool((held.abs() <= LARGEST_BIAS).all())


def _check_shapes(found: _Found) -> None:
    """Raise Reject where q, k and v do not have the op's shapes."""
    dims = rank(found.q)
    leading = val(found.q).shape[:-2]
    for value in (found.k, found.v):
        if rank(value) != dims or not same_shape(val(value).shape[:-2], leading):
            raise Reject(f"{value.name} is broadcast over heads")
    if dims < 3:
        raise Reject("it has no heads and no batch")
    if not all(val(value).is_floating_point() for value in (found.q, found.k, found.v)):
        raise Reject("its values are not of floating-point numbers")
    if found.bias is not None and rank(found.bias) > dims:
        raise Reject("its bias has more axes than the scores")


def _put(module: GraphModule, found: _Found) -> Node:
    """Emit the op in the layout that needs fewer transpositions."""
    emit = Emitter(module, found.end)
    values = [_plain(value) for value in (found.q, found.k, found.v)]
    readers_flip = bool(found.end.users) and all(_swapped(user) is not None for user in found.end.users)
    flipped = [flip != (_swapped(value) is not None) for flip, value in zip(found.flips, values, strict=False)]
    flipped.append(found.flips[3] != readers_flip)
    channels_first = sum(flipped) > 2
    operands = [
        value if flip == channels_first else _swap(emit, value)
        for flip, value in zip(found.flips, values, strict=False)
    ]
    bias = [found.bias] if found.bias is not None else [None]
    new = emit(attention.OP.overload, *operands, *bias, found.scale, channels_first)
    if found.flips[3] == channels_first:
        replace(found.end, new)
    else:
        changed(new)
        for user in [user for user in found.end.users if _swapped(user) is not None]:
            replace(user, new)
            module.graph.erase_node(user)
        if found.end.users:
            replace(found.end, _swap(emit, new))
    module.graph.erase_node(found.end)  # for torch, what may drop out is random and never dead
    sweep(module)
    return new


def _plain(node: Node) -> Node:
    """Return a value without transpositions that undo each other."""
    while (before := _swapped(node)) is not None and (twice := _swapped(before)) is not None:
        node = twice
    return node


def _swapped(node: Node) -> Node | None:
    """Return what a transposition of the last two axes reads; None for anything else."""
    dims = rank(node) if isinstance(node.meta.get("val"), Tensor) else 0
    if node.target is aten.transpose.int:
        x, a, b = arguments(node)
        return x if {a % dims, b % dims} == {dims - 2, dims - 1} else None
    if node.target is aten.permute.default:
        x, order = arguments(node)
        return x if [axis % dims for axis in order] == [*range(dims - 2), dims - 1, dims - 2] else None
    return None


def _swap(emit: Emitter, node: Node) -> Node:
    """Return a value with its last two axes exchanged."""
    before = _swapped(node)
    return before if before is not None else emit(aten.transpose.int, node, rank(node) - 2, rank(node) - 1)


# the scale


_MOVES = frozenset(
    {
        *(aten.transpose.int, aten.permute.default, aten.reshape.default, aten.view.default, aten.unsqueeze.default),
        *(aten.squeeze.dim, aten.flatten.using_ints, aten.unflatten.int, aten.select.int, aten.slice.Tensor),
        *(aten.split_with_sizes.default, aten.split.Tensor, aten.chunk.default, aten.unbind.int, operator.getitem),
        *(aten.contiguous.default, aten.clone.default, aten.movedim.int, aten.movedim.intlist, aten.squeeze.dims),
    }
)
"""Operators that rearrange what they read, and compute nothing."""


def _fold_scale(module: GraphModule, op: Node) -> str:
    """Scale the rows of the layer that makes the queries instead of the scores. Return a note of it."""
    q, *rest = arguments(op)
    scale = rest[3]
    if scale == 1:
        return ""
    way = list(_way_back(q))
    layer = as_layer(module, way[-1]) if way else None
    if layer is None or len(q.users) > 1 or q in rest:
        return ", scaled"
    rows = _own_rows(layer, way)
    if rows is None:
        return ", scaled"
    factors = torch.ones(layer.channels, dtype=torch.float64)
    factors[rows] = scale
    layer.scale_output(factors)
    for node in way:
        changed(node)
    op.update_arg(4, 1.0)
    return ", its scale in the layer before it"


def _way_back(value: Node) -> Iterator[Node]:
    """Yield the nodes from a value back to the first one that does more than rearrange."""
    yield value
    while value.target in _MOVES:
        value = value.all_input_nodes[0]
        yield value


def _own_rows(layer: Linear, way: list[Node]) -> Tensor | None:
    """The rows of a layer that come to the first node of a way, where they come to nothing else."""
    sizes = example_sizes(val(layer.node).shape)
    shape = [-1 if i == layer.axis else 1 for i in range(len(sizes))]
    marks: dict[Node, Any] = {layer.node: torch.arange(layer.channels).reshape(shape).expand(sizes)}
    for node in reversed(way[:-1]):
        marks[node] = _moved(node, marks)
    own: Tensor = marks[way[0]].unique()
    on_way = set(way)
    for node in way[1:]:
        for user in node.users:
            if user not in on_way and _reads(user, node, marks, own):
                return None
    return own


def _moved(node: Node, marks: dict[Node, Any]) -> Any:
    """The channels' numbers behind a rearrangement."""

    def known(source: Node) -> Any:
        return marks[source] if source in marks else int(source.meta["val"].node.hint)

    args, kwargs = torch.fx.map_arg((node.args, node.kwargs), known)
    return node.target(*args, **kwargs)  # type: ignore[operator]  # an overload, or getitem


def _reads(user: Node, source: Node, marks: dict[Node, Any], own: Tensor) -> bool:
    """Return whether a reader of a value, or what reads that, computes with one of the rows."""
    if user.target not in _MOVES:
        values = marks[source] if isinstance(marks[source], list | tuple) else [marks[source]]
        return any(bool(torch.isin(one, own).any()) for one in values)
    marks[user] = _moved(user, marks)
    if isinstance(marks[user], Tensor) and not bool(torch.isin(marks[user], own).any()):
        return False
    return any(_reads(one, user, marks, own) for one in user.users)
