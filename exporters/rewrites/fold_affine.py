"""Products and sums with constants, one a channel, go into the layers around them.

    s * f(x)                ->  f'(x)                      into the rows of a convolution or linear layer f
    f(x) + c                ->  f'(x)                      into its bias
    f(s * x), f(x + c)      ->  f'(x)                      into its columns; c only where nothing is padded
    s * v, g(v)             ->  v', g'(v')                 v' = s v from its layer, which g' undoes: residuals that fork
    s * u + t * v           ->  u + (t / s) * v            where all that read the sum can take s
    t * (h C)               ->  (t h) C                    rows of a product are those of its left factor

These are what is left of layer scales, x <- (1 - a) x + a f(x), once a is a constant. A factor is divided by only where
it lies within 1/64 .. 64, so that half precision keeps its range. Weights are formed in float64 and rounded once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from edgesmith.exporters.costs import Costs
from edgesmith.exporters.graph.edit import (
    CONVOLUTIONS,
    Emitter,
    arguments,
    aten,
    constant,
    operator_name,
    operators,
    rank,
    readers,
    set_constant,
    site,
    stand_for,
    val,
)
from edgesmith.exporters.rewrites.fold_batchnorm import fold_forwards
from edgesmith.exporters.rewrites.rewrite import Rejection, RewriteReport

LARGEST = 64.0


@dataclass(frozen=True)
class Scaled:
    """A node read as `scale * value`; `scale` is [C] or [1], in float64, and None for a plain value."""

    node: Node
    value: Node
    scale: Tensor | None

    def factor(self, channels: int) -> Tensor:
        """The scale as [C]."""
        return (torch.ones(1, dtype=torch.float64) if self.scale is None else self.scale).expand(channels)


def as_scaled(module: GraphModule, node: object, axis: int) -> Scaled | None:
    """A node as a product with a constant that varies along `axis` at most; by itself where it is none."""
    if not isinstance(node, Node):
        return None
    found = _product(module, node, axis)
    return Scaled(node, *found) if found else Scaled(node, node, None)


class FoldAffine:
    """See the table above. A near miss is a product or a sum with such a constant that no layer can take."""

    name = "fold_affine"

    def apply(self, module: GraphModule, costs: Costs) -> RewriteReport:
        """Fold in place until nothing changes; every step leaves fewer products, or a smaller one."""
        applied: list[tuple[str, str]] = []
        rejected: list[Rejection] = []
        found = True
        while found:
            found = False
            rejected = []
            for node in operators(module):
                if node._erased or not node.users or node.target not in _AFFINE:
                    continue
                where = site(node)
                outcome = _fold(module, node)
                if isinstance(outcome, Rejection):
                    rejected.append(outcome)
                elif outcome is not None:
                    applied.append((where, outcome))
                    found = True
                    module.graph.eliminate_dead_code()  # what is dead must not count as a reader
        return RewriteReport(self.name, tuple(applied), tuple(rejected))


_AFFINE = frozenset({aten.mul.Tensor, aten.div.Tensor, aten.add.Tensor, aten.sub.Tensor})


def _fold(module: GraphModule, node: Node) -> str | Rejection | None:
    for axis in dict.fromkeys((1, rank(node) - 1)):
        if axis >= rank(node) or axis < 1:
            continue
        product = _product(module, node, axis)
        if product is not None:
            value, scale = product
            return _fold_scale(module, node, value, scale, _axis_for(value, scale, axis))
        total = _sum(module, node, axis)
        if total is not None:
            value, shift = total
            return _fold_shift(module, node, value, shift, _axis_for(value, shift, axis))
    return None


def _axis_for(value: Node, constants: Tensor, axis: int) -> int:
    """One number fits the axis that the layer before it makes, whichever that is."""
    layer = _layer(value) if constants.numel() == 1 else None
    own = None if layer is None else _own_axis(layer)
    return axis if own is None else own


def _product(module: GraphModule, node: Node, axis: int) -> tuple[Node, Tensor] | None:
    """A value and the constant that it is multiplied by."""
    if node.target is aten.mul.Tensor:
        orders = [node.args, node.args[::-1]]
    elif node.target is aten.div.Tensor:
        orders = [node.args]
    else:
        return None
    for value, other in orders:
        scale = _along(module, other, node, value, axis)
        if scale is None or not isinstance(value, Node):
            continue
        if node.target is aten.mul.Tensor:
            return value, scale
        return (value, 1 / scale) if bool((scale != 0).all()) else None
    return None


def _sum(module: GraphModule, node: Node, axis: int) -> tuple[Node, Tensor] | None:
    """A value and the constant that is added to it."""
    if node.target not in (aten.add.Tensor, aten.sub.Tensor):
        return None
    first, second, alpha = arguments(node)
    sign = alpha if node.target is aten.add.Tensor else -alpha
    shift = _along(module, second, node, first, axis)
    if shift is not None and isinstance(first, Node):
        return first, sign * shift
    shift = _along(module, first, node, second, axis)
    if shift is not None and isinstance(second, Node) and sign == 1:
        return second, shift
    return None


def _along(module: GraphModule, other: object, node: Node, value: object, axis: int) -> Tensor | None:
    """A constant as [C] or [1], where it varies along `axis` at most and the value is shaped like the node."""
    if not isinstance(value, Node) or value.op == "get_attr" or not isinstance(val(value), Tensor):
        return None
    if rank(value) != rank(node) or val(value).dtype != val(node).dtype or not val(node).is_floating_point():
        return None
    if any(str(a) != str(b) for a, b in zip(val(value).shape, val(node).shape, strict=True)):
        return None
    if isinstance(other, int | float) and not isinstance(other, bool):
        constants = torch.tensor([other], dtype=torch.float64)
    else:
        held = constant(module, other)
        if held is None or held.dim() > rank(node):
            return None
        shape = (1,) * (rank(node) - held.dim()) + tuple(held.shape)
        if any(n != 1 for i, n in enumerate(shape) if i != axis):
            return None
        constants = held.double().reshape(-1)
    return constants if bool(torch.isfinite(constants).all()) else None


def _fold_scale(module: GraphModule, node: Node, value: Node, scale: Tensor, axis: int) -> str | Rejection | None:
    inner = _product(module, value, axis)
    if inner is not None and len(value.users) == 1:
        _rescale(module, node, inner[0], scale * inner[1], axis)
        return "two factors -> one"
    backwards = _scale_rows(module, node, value, scale, axis)
    if backwards is None:
        return "into the layer before it"
    if axis != 1 and rank(node) != 2:
        return _near(node, value, backwards)
    factor = _common_factor(module, node, value, scale)
    if factor is None:
        return "out of the sum, into what reads that"
    full = scale.expand(_channels(node, axis))
    forwards = fold_forwards(module, node, full, torch.zeros_like(full))
    if forwards is None:
        node.replace_all_uses_with(value)
        module.graph.erase_node(node)
        return "into what reads it"
    return _near(node, value, f"{backwards}; {forwards}")


def _near(node: Node, value: Node, reason: str) -> Rejection | None:
    """A rejection where a layer is next to the node, else nothing: then it is no near miss."""
    reads = any(_own_axis(user) is not None and user.args[0] is node for user in node.users)
    return Rejection(site(node), reason) if reads or _layer(value) is not None else None


def _fold_shift(module: GraphModule, node: Node, value: Node, shift: Tensor, axis: int) -> str | Rejection | None:
    layer = value if _own_axis(value) == axis else None
    if layer is not None and len(value.users) == 1 and _rows(module, layer) is not None:
        weight, bias = _weights(module, layer)
        full = shift.expand(weight.shape[0])
        _write(module, layer, weight, full if bias is None else bias + full)
        stand_for(layer, node)
        node.replace_all_uses_with(layer)
        module.graph.erase_node(node)
        return "into the bias of the layer before it"
    if axis != 1:
        return None
    full = shift.expand(_channels(node, axis))
    forwards = fold_forwards(module, node, torch.ones_like(full), full)
    if forwards is None:
        node.replace_all_uses_with(value)
        module.graph.erase_node(node)
        return "into the biases of what reads it"
    return _near(node, value, forwards)


def _rescale(module: GraphModule, node: Node, value: Node, scale: Tensor, axis: int) -> Node:
    """`scale * value` as one product in the place of a node."""
    emit = Emitter(module, node)
    if scale.numel() == 1:
        new = emit(aten.mul.Tensor, value, float(scale))
    else:
        shape = [-1, *[1] * (rank(value) - 1 - axis)]
        factor = emit.constant(f"{site(node)}.scale", scale.reshape(shape).to(val(node).dtype))
        new = emit(aten.mul.Tensor, value, factor)
    stand_for(new, node)
    node.replace_all_uses_with(new)
    module.graph.erase_node(node)
    return new


def _layer(value: Node) -> Node | None:
    """The convolution or linear layer whose rows are a value's channels, through what only rearranges places.

    Places are the axes after the first, so behind those only a layer that makes axis 1 will do.
    """
    step = value
    while step.target in (aten.flatten.using_ints, aten.unflatten.int) and arguments(step)[1] == 2:
        step = step.args[0]  # type: ignore[assignment]  # both read one node
    if step.target is aten.matmul.default and rank(step) == 3:
        left = step.args[0]
        layer = _layer(left) if isinstance(left, Node) and rank(left) == 3 else None
        return layer if layer is not None and _own_axis(layer) == 1 else None
    own = _own_axis(step)
    return step if own == 1 or (own is not None and step is value) else None


def _own_axis(layer: Node) -> int | None:
    """The axis of a layer's output that its rows make, or None for what is no layer."""
    if layer.target in CONVOLUTIONS:
        return 1 if rank(layer) == rank(layer.args[1]) else None
    if layer.target is aten.linear.default:
        return rank(layer) - 1
    return None


def _scale_rows(module: GraphModule, node: Node, value: Node, scale: Tensor, axis: int) -> str | None:
    """Let the layer that makes `value` make `scale * value`. Returns the reason why not, or None when done.

    Whatever else reads a value on the way there must take the inverse, or be given it for less than the product costs.
    """
    layer = _layer(value)
    if layer is None:
        name = operator_name(value) if value.op == "call_function" else "an input"
        return f"what it scales comes from {name}, no layer"
    if _own_axis(layer) != axis:
        return f"{layer.name} ({operator_name(layer)}) makes another axis than the one that varies"
    rows = _rows(module, layer)
    if rows is None:
        return f"the weights of {site(layer)} are computed"
    full = scale.expand(rows)
    undo: list[Callable[[], None]] = []
    step, reader = value, node
    while True:
        if sum(argument is step for argument in reader.args) > 1:
            return f"{reader.name} reads it twice"
        others = [user for user in step.users if user is not reader]
        if others:
            if axis != 1:
                return f"{step.name} is also read by {readers(step)}"
            if not _is_invertible(full):
                return (
                    f"{step.name} is also read by {others[0].name}, and the factor leaves {1 / LARGEST} .. {LARGEST:g}"
                )
            if step is value and fold_forwards(module, step, 1 / full, torch.zeros_like(full), reader, True) is None:
                undo.append(lambda s=step, r=reader: _undo(module, s, full, r))  # type: ignore[misc]
            elif step.target is not aten.matmul.default and _numel(step) < _numel(node) and not undo:
                undo.append(lambda s=step, r=reader: _multiply_others(module, s, 1 / full, r))  # type: ignore[misc]
            else:
                return f"{step.name} is also read by {readers(step)}"
        if step is layer:
            break
        step, reader = step.args[0], step  # type: ignore[assignment]  # as _layer has walked
    for action in undo:
        action()
    weight, bias = _weights(module, layer)
    folded = weight * full.reshape(-1, *[1] * (weight.dim() - 1))
    _write(module, layer, folded, None if bias is None else bias * full)
    step = value
    while step is not layer:  # what lies between is now another value than in the captured graph
        step.meta["equals"] = ""
        step = step.args[0]  # type: ignore[assignment]
    layer.meta["equals"] = ""
    stand_for(value, node)
    node.replace_all_uses_with(value)
    module.graph.erase_node(node)
    return None


def _undo(module: GraphModule, value: Node, scale: Tensor, but: Node) -> None:
    reason = fold_forwards(module, value, 1 / scale, torch.zeros_like(scale), but)
    assert reason is None, reason


def _multiply_others(module: GraphModule, value: Node, scale: Tensor, but: Node) -> None:
    """Give every reader of `value` but one `scale * value`."""
    others = [user for user in value.users if user is not but]
    order = {node: i for i, node in enumerate(module.graph.nodes)}
    emit = Emitter(module, min(others, key=order.__getitem__))
    factor = emit.constant(f"{site(value)}.scale", scale.reshape(-1, *[1] * (rank(value) - 2)).to(val(value).dtype))
    product = emit(aten.mul.Tensor, value, factor)
    stand_for(product, value)
    for other in others:
        other.replace_input_with(value, product)


def _common_factor(module: GraphModule, node: Node, value: Node, scale: Tensor) -> str | None:
    """Make s u + w u + w / s, with s in what reads the sum. Returns the reason why not, or None when done."""
    (total, *others) = node.users
    if others or total.target is not aten.add.Tensor or arguments(total)[2] != 1:
        return "it is no term of a sum"
    first, second, _ = arguments(total)
    term = second if first is node else first
    if not isinstance(term, Node) or term is node or len(term.users) > 1:
        return "the other term is read elsewhere"
    if rank(term) != rank(total) or any(
        str(a) != str(b) for a, b in zip(val(term).shape, val(total).shape, strict=True)
    ):
        return "the other term is broadcast"
    if rank(node) != rank(total) or str(val(node).shape[1]) != str(val(total).shape[1]):
        return "it is broadcast over the channels"
    full = scale.expand(_channels(node, 1))
    if not _is_invertible(full):
        return f"the factor leaves {1 / LARGEST} .. {LARGEST:g}"
    inner = _product(module, term, 1)
    if inner is None and (_own_axis(term) != 1 or _rows(module, term) is None):
        return "the other term cannot be divided by the factor"
    reason = fold_forwards(module, total, full, torch.zeros_like(full))
    if reason is not None:
        return reason
    if inner is not None:
        new = _rescale(module, term, inner[0], inner[1].expand(full.numel()) / full, 1)
        new.meta["equals"] = ""
    else:
        weight, bias = _weights(module, term)
        folded = weight / full.reshape(-1, *[1] * (weight.dim() - 1))
        _write(module, term, folded, None if bias is None else bias / full)
        term.meta["equals"] = ""
    total.meta["equals"] = ""
    node.replace_all_uses_with(value)
    module.graph.erase_node(node)
    return None


def _is_invertible(scale: Tensor) -> bool:
    return bool(((scale.abs() >= 1 / LARGEST) & (scale.abs() <= LARGEST)).all())


def _channels(node: Node, axis: int) -> int:
    return int(val(node).shape[axis])


def _numel(node: Node) -> int:
    """Numbers in one sample."""
    count = 1
    for n in val(node).shape[1:]:
        count *= int(n)
    return count


def _rows(module: GraphModule, layer: Node) -> int | None:
    weight, bias = constant(module, layer.args[1]), arguments(layer)[2]
    if weight is None or not weight.is_floating_point() or (bias is not None and constant(module, bias) is None):
        return None
    return weight.shape[0] if weight.dim() > 1 else None


def _weights(module: GraphModule, layer: Node) -> tuple[Tensor, Tensor | None]:
    weight, bias = constant(module, layer.args[1]), constant(module, arguments(layer)[2])
    assert weight is not None
    return weight.double(), None if bias is None else bias.double()


def _write(module: GraphModule, layer: Node, weight: Tensor, bias: Tensor | None) -> None:
    prefix, dtype = site(layer), val(layer).dtype
    set_constant(module, layer, 1, f"{prefix}.weight", weight.to(dtype))
    if bias is not None:
        set_constant(module, layer, 2, f"{prefix}.bias", bias.to(dtype))
