"""A query that its mask lets see no key has an attention of 0, in PyTorch alone.

    sdpa(q, k, v, mask)  ->  where(any(visible, -1), sdpa(q, k, v, mask), 0)   mask with such rows, or computed

PyTorch's softmax of a row of -inf is 0 there (`aten::_safe_softmax`); runtimes make NaN of it, an average over all
values, or attention as if there were no mask. Padding in a batch makes such rows. A boolean mask says itself what is
visible. One of numbers is -inf where nothing is; `nn.MultiheadAttention` makes such of boolean ones:

    zeros.masked_fill(pad, -inf)      not pad
    a + b                             where it is visible in both
    view(a), expand(a)                the same of what is visible in a
    an input, of numbers              mask != -inf
    what else is computed             everywhere: scores and biases are finite
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from edgesmith.exporters.costs import Costs
from edgesmith.exporters.graph.edit import Emitter, arguments, aten, changed, constant, operator_name, stand_for, val
from edgesmith.exporters.rewrites.rewrite import rewrites

_MOVING = frozenset(
    f"aten.{name}"
    for name in (
        *("clone", "contiguous", "expand", "permute", "reshape", "slice", "squeeze", "transpose", "unsqueeze", "view"),
        *("_unsafe_view", "expand_as", "flatten", "narrow", "repeat", "select", "unflatten", "view_as"),
    )
)
"""Operators that put numbers elsewhere, with the number's tensor as the first argument."""

_KEEPING_TYPE = frozenset({"aten._to_copy", "aten.to", "aten.alias", "aten.detach", "aten.type_as"})


@rewrites(aten.scaled_dot_product_attention.default, rule="sdpa(q, k, v, mask) -> 0 where a query sees no key")
def zero_masked_rows(module: GraphModule, node: Node, costs: Costs) -> str | None:
    """See above. A constant mask whose every row lets something through needs nothing, and is no near miss."""
    mask = arguments(node)[3]
    if not isinstance(mask, Node):
        return None
    known = constant(module, mask)
    if known is not None and bool(_visible_in(known).any(-1).all()):
        return None
    emit = Emitter(module, node.next)
    emit.source = node
    if known is not None:
        sees = emit.constant(f"{node.name}.sees", _visible_in(known).any(-1, keepdim=True))
    else:
        visible = mask if val(mask).dtype == torch.bool else _visible(emit, mask)
        if visible is True:
            return None
        if visible is False:
            visible = emit(aten.zeros_like.default, mask, dtype=torch.bool)
        sees = emit(aten.any.dim, visible, -1, True)
    attention = emit(aten.where.ScalarOther, sees, node, 0.0)
    node.replace_all_uses_with(attention, delete_user_cb=lambda user: user is not attention)
    stand_for(attention, node)
    changed(node)
    return f"{node.name}: 0 for queries that see no key"


def _visible_in(mask: Tensor) -> Tensor:
    return mask if mask.dtype == torch.bool else mask != -math.inf


def _visible(emit: Emitter, mask: object) -> Node | bool:
    """Return where a mask of numbers is not -inf, as a boolean node; True for everywhere, False for nowhere."""
    if not isinstance(mask, Node):
        return mask != -math.inf
    if not val(mask).is_floating_point():
        return True
    if (known := constant(emit.module, mask)) is not None:
        seen = _visible_in(known)
        return bool(seen.all()) or (bool(seen.any()) and emit.constant(f"{mask.name}.visible", seen))
    if mask.op == "placeholder":
        return emit(aten.ne.Scalar, mask, -math.inf)
    return _visible_in_result(emit, mask, operator_name(mask), arguments(mask))


def _visible_in_result(emit: Emitter, mask: Node, name: str, given: Sequence[Any]) -> Node | bool:
    """Return the same of what an operator computes."""
    if name in _KEEPING_TYPE:
        return _visible(emit, given[0])
    if name in _MOVING:
        inner = _visible(emit, given[0])
        return emit(mask.target, inner, *mask.args[1:], **mask.kwargs) if isinstance(inner, Node) else inner
    if name == "aten.add":
        return _both(emit, _visible(emit, given[0]), _visible(emit, given[1]))
    if name in ("aten.masked_fill", "aten.where"):
        rest, where, filled = given[:3] if name == "aten.masked_fill" else (given[2], given[0], given[1])
        here, elsewhere = _visible(emit, filled), _visible(emit, rest)
        if here is True and elsewhere is True:
            return True
        inside = _both(emit, where, here)
        outside = elsewhere and _both(emit, emit(aten.logical_not.default, where), elsewhere)
        return outside if inside is False else inside if outside is False else _either(emit, inside, outside)
    return True


def _both(emit: Emitter, one: Node | bool, other: Node | bool) -> Node | bool:
    if isinstance(one, Node) and isinstance(other, Node):
        return emit(aten.logical_and.default, one, other)
    return (one and other) if isinstance(one, bool) else (other and one)


def _either(emit: Emitter, one: Node | bool, other: Node | bool) -> Node | bool:
    if isinstance(one, Node) and isinstance(other, Node):
        return emit(aten.logical_or.default, one, other)
    return (one or other) if isinstance(one, bool) else (other or one)
