"""One spelling for what is done to maps and parts: rules of `canonicalise`, see there for the table."""

from __future__ import annotations

import math
import operator
from typing import Any

from torch.fx import GraphModule, Node

from edgesmith.exporters.graph.edit import Emitter, arguments, aten, constant, rank, replace, sweep, val
from edgesmith.exporters.rewrites.einsum import as_matmul
from edgesmith.exporters.rewrites.rewrite import Reject


def layer_by_einsum(module: GraphModule, node: Node) -> str | None:
    """Spell an einsum with a constant matrix over channels, at axis 1 or the last one, as a layer."""
    equation, operands = arguments(node)[:2]
    terms, arrow, made = str(equation).replace(" ", "").partition("->")
    letters = terms.split(",")
    if not arrow or len(letters) != 2 or "." in terms:
        return None
    for at in (0, 1):
        weight, x, of_weight, of_x = constant(module, operands[at]), operands[1 - at], letters[at], letters[1 - at]
        if weight is None or len(of_weight) != 2 or len(set(of_x)) != len(of_x) or constant(module, x) is not None:
            continue
        inner = next((one for one in of_weight if one in of_x), "")
        outer = of_weight.replace(inner, "")
        if not inner or not outer or outer in of_x or made != of_x.replace(inner, outer):
            continue
        if weight.dtype != val(node).dtype or weight.is_complex():  # spectra have rules of their own
            continue
        matrix = weight if of_weight == outer + inner else weight.t()
        return _layer(module, node, x, matrix, of_x.index(inner))
    return product_by_einsum(module, node)


def _layer(module: GraphModule, node: Node, x: Node, matrix: Any, axis: int) -> str | None:
    """Put a layer [C', C] over an axis of a value in a node's place."""
    emit = Emitter(module, node)
    name = f"{node.name}.weight"
    if axis == rank(x) - 1 and rank(x) > 1:
        y = emit(aten.linear.default, x, emit.constant(name, matrix.contiguous()))
    elif axis == 1 and rank(x) in _CONVOLUTIONS:
        kernel = matrix.reshape(*matrix.shape, *[1] * (rank(x) - 2)).contiguous()
        y = emit(_CONVOLUTIONS[rank(x)], x, emit.constant(name, kernel))
    else:
        return None
    replace(node, y)
    return "einsum with a matrix -> a layer"


def parts_of_axis(module: GraphModule, node: Node) -> str | None:
    """Split an axis that is made several only to take the first of these apart."""
    moved, axis = arguments(node)
    axis %= rank(moved)
    order = axes_order(moved) or list(range(rank(moved)))
    shaped = moved.args[0] if axes_order(moved) else moved
    if shaped.target not in _SHAPED or len(shaped.users) > 1 or len(moved.users) > 1 or order[axis] != axis:
        return None
    if any(user.target is not operator.getitem for user in node.users):
        return None
    x, sizes = shaped.args[0], list(val(shaped).shape)
    before = list(val(x).shape)
    own = sizes[axis : axis + 1 + len(sizes) - len(before)]
    if len(own) < 2 or not all(isinstance(n, int) for n in (*own, *before[axis : axis + 1])):
        return None
    if sizes[:axis] != before[:axis] or sizes[axis + len(own) :] != before[axis + 1 :]:
        return None
    emit = Emitter(module, node)
    split = emit(aten.split_with_sizes.default, x, [math.prod(own[1:])] * own[0], axis)
    rest = [one - (one > axis) for i, one in enumerate(order) if i != axis]
    for user in list(node.users):
        part = emit(operator.getitem, split, user.args[1])
        if len(own) > 2:
            part = emit(aten.unflatten.int, part, axis, own[1:])
        replace(user, part if rest == sorted(rest) else emit(aten.permute.default, part, rest))
    return "unbind of an axis taken apart -> split_with_sizes"


def selected(module: GraphModule, node: Node) -> str | None:
    """Spell the entries of an axis, one by one, as its parts."""
    x, axis, _ = arguments(node)
    axis %= rank(x)
    shaped = x.args[0] if axes_order(x) else x
    if not isinstance(shaped, Node) or shaped.target not in _SHAPED:
        return None
    count, users = val(x).shape[axis], list(x.users)
    if any(user.target is not aten.select.int or arguments(user)[1] % rank(x) != axis for user in users):
        return None
    if sorted(arguments(user)[2] % count for user in users) != list(range(count)):
        return None
    first = min(users, key=list(module.graph.nodes).index)
    emit = Emitter(module, first)
    unbound = emit(aten.unbind.int, x, axis)
    for user in users:
        replace(user, emit(operator.getitem, unbound, arguments(user)[2] % count))
    sweep(module)
    parts_of_axis(module, unbound)
    return "entries of an axis -> unbind"


def product_by_einsum(module: GraphModule, node: Node) -> str | None:
    """Spell an einsum of the heads of two values, neither of them constant, as a matmul of permutations."""
    equation, operands = arguments(node)[:2]
    if "." in str(equation) or len(operands) != 2 or any(rank(x) != 4 for x in (node, *operands)):
        return None
    if any(constant(module, x) is not None or not val(x).is_floating_point() for x in operands):
        return None
    try:
        return as_matmul(module, node)
    except Reject:
        return None  # which is reported later


def axes_order(node: object) -> list[int]:
    """The order of axes behind a permutation or transposition; nothing for other operators."""
    if not isinstance(node, Node) or node.target not in (aten.permute.default, aten.transpose.int):
        return []
    dims = rank(node)
    if node.target is aten.permute.default:
        return [axis % dims for axis in arguments(node)[1]]
    _, a, b = arguments(node)
    order = list(range(dims))
    order[a % dims], order[b % dims] = b % dims, a % dims
    return order


def cells(module: GraphModule, node: Node) -> str | None:
    """Spell means over the cells of a map, [B, C, h, s, w, t] over s and t, as a pool."""
    shaped, axes, keepdim, dtype = arguments(node)
    x = shaped.args[0] if shaped.target in _SHAPED else None
    while isinstance(x, Node) and x.target in _SHAPED and rank(x) > 4:
        x = x.args[0]
    if (
        not isinstance(x, Node)
        or keepdim
        or dtype is not None
        or sorted(axis % rank(shaped) for axis in axes) != [3, 5]
    ):
        return None
    sizes = list(val(shaped).shape)
    if rank(x) != 4 or len(sizes) != 6 or not all(isinstance(n, int) for n in (*sizes[1:], *val(x).shape[1:])):
        return None
    _, channels, height, own_height, width, own_width = sizes
    if list(val(x).shape[1:]) != [channels, height * own_height, width * own_width]:
        return None
    cell = [own_height, own_width]
    replace(node, Emitter(module, node)(aten.avg_pool2d.default, x, cell, cell))
    return "means over cells -> avg_pool2d"


def repeated(module: GraphModule, node: Node) -> str | None:
    """Spell rows and columns of a map that are repeated as a resize to the nearest."""
    x, columns, axis, *_ = arguments(node)
    if x.target is not aten.repeat_interleave.self_int or len(x.users) > 1 or rank(node) != 4 or axis is None:
        return None
    before, rows, other, *_ = arguments(x)
    if other is None or sorted(one % 4 for one in (axis, other)) != [2, 3] or rank(before) != 4:
        return None
    if not all(isinstance(n, int) for n in (columns, rows, *val(before).shape[2:])):
        return None
    by = {axis % 4: columns, other % 4: rows}
    size = [int(n) * by[i] for i, n in enumerate(val(before).shape[2:], start=2)]
    replace(node, Emitter(module, node)(aten.upsample_nearest2d.vec, before, size, None))
    return "repeated rows and columns -> upsample_nearest2d"


def padded_pool(module: GraphModule, node: Node) -> str | None:
    """Let a max pool pad by itself, where what is put around it is minus infinity and not too wide."""
    pad, kernel, stride, padding, dilation, ceil = arguments(node)
    if pad.target not in _PADS or any(padding) or any(one != 1 for one in dilation) or rank(pad) != 4:
        return None
    x, widths, *rest = arguments(pad)
    value = rest[1] if pad.target is aten.pad.default else rest[0]
    if pad.target is aten.pad.default and rest[0] != "constant":
        return None
    if len(widths) != 4 or widths[0] != widths[1] or widths[2] != widths[3] or value is None:
        return None
    around = [widths[2], widths[0]]
    sides = list(kernel) * (2 if len(kernel) == 1 else 1)
    if not math.isinf(value) or value > 0 or any(not 0 <= 2 * p <= k for p, k in zip(around, sides, strict=True)):
        return None
    replace(node, Emitter(module, node)(aten.max_pool2d.default, x, kernel, stride, around, dilation, ceil))
    return "a pad and a max pool -> a max pool that pads"


_CONVOLUTIONS = {3: aten.conv1d.default, 4: aten.conv2d.default}
_SHAPED = (aten.reshape.default, aten.view.default, aten._unsafe_view.default, aten.unflatten.int)
_PADS = (aten.pad.default, aten.constant_pad_nd.default)

RULES = {
    aten.einsum.default: layer_by_einsum,
    aten.repeat_interleave.self_int: repeated,
    aten.max_pool2d.default: padded_pool,
    aten.unbind.int: parts_of_axis,
    aten.select.int: selected,
}
