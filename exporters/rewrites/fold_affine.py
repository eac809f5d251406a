"""Multiplies and sums with constants, one a channel, go into the layers around them.

    s * f(x)                ->  f'(x)                      into the rows of a convolution or linear layer f
    f(x) + c                ->  f'(x)                      into its bias
    f(s * x), f(x + c)      ->  f'(x)                      into its columns; c only where nothing is padded
    s * v, g(v)             ->  v', g'(v')                 v' = s v from its layer, which g' undoes: residuals that fork
    s * u + t * v           ->  u + (t / s) * v            where all that read the sum can take s
    t * (h C)               ->  (t h) C                    rows of a matmul are those of its left operand

These are what is left of layer scales, x <- (1 - a) x + a f(x), once a is a constant. A factor is divided by only where
it lies within 1/64 .. 64, so that half precision keeps its range. Weights are formed in float64 and rounded once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from math import prod

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
    operator_name,
    rank,
    readers,
    replace,
    same_shape,
    site,
    stand_for,
    val,
)
from edgesmith.exporters.graph.linear import Linear, add_biases, along, as_layer, channel_axis
from edgesmith.exporters.rewrites.fold_batchnorm import find_takers, fold_forwards
from edgesmith.exporters.rewrites.rewrite import Reject, rewrites

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
    """Return a node as a value times a constant that varies along `axis` at most; the plain node where it is none."""
    if not isinstance(node, Node):
        return None
    found = _multiply(module, node, axis)
    return Scaled(node, *found) if found else Scaled(node, node, None)


def as_shifted(module: GraphModule, node: Node, axis: int) -> tuple[Node, Tensor] | None:
    """Return a sum as a value and a constant, [C] along `axis` or [1], in float64; None where it is none."""
    return _sum(module, node, axis)


@rewrites(
    aten.mul.Tensor,
    aten.div.Tensor,
    aten.add.Tensor,
    aten.sub.Tensor,
    rule="s f(x) + c -> f'(x), and what is left of layer scales",
    until_stable=True,
)
def fold_affine(module: GraphModule, node: Node, costs: Costs) -> str | None:
    """Fold a multiply or a sum. Every step leaves fewer multiplies, or a smaller one.

    A near miss is a multiply or a sum with such a constant that no layer can take.
    """
    for axis in dict.fromkeys((1, rank(node) - 1)):
        if axis >= rank(node) or axis < 1:
            continue
        scaled = _multiply(module, node, axis)
        if scaled is not None:
            value, scale = scaled
            return _fold_scale(_Factor(module, node, value, scale, _axis_for(value, scale, axis)))
        total = _sum(module, node, axis)
        if total is not None:
            value, shift = total
            return _fold_shift(module, node, value, shift, _axis_for(value, shift, axis))
    return None


@dataclass(frozen=True)
class _Factor:
    """A multiply `scale * value` in the graph.

    Attributes:
        node: the multiply.
        scale: [C] or [1], in float64.
        axis: along which it varies.
    """

    module: GraphModule
    node: Node
    value: Node
    scale: Tensor
    axis: int

    @property
    def full(self) -> Tensor:
        """The scale as [C]."""
        return self.scale.expand(int(val(self.node).shape[self.axis]))


def _axis_for(value: Node, constants: Tensor, axis: int) -> int:
    """One number fits the axis that the layer before it makes, whichever that is."""
    layer = _layer(value) if constants.numel() == 1 else None
    own = None if layer is None else channel_axis(layer)
    return axis if own is None else own


def _multiply(module: GraphModule, node: Node, axis: int) -> tuple[Node, Tensor] | None:
    """Return a value and the constant that it is multiplied by."""
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
    is_like = val(value).dtype == val(node).dtype and same_shape(val(value), val(node))
    if not is_like or not val(node).is_floating_point():
        return None
    constants = _channel_constants(module, other, rank(node), axis)
    return constants if constants is not None and bool(torch.isfinite(constants).all()) else None


def _channel_constants(module: GraphModule, other: object, dims: int, axis: int) -> Tensor | None:
    """A number as [1], or a constant that varies along one axis of a value at most as [C], in float64."""
    if isinstance(other, int | float) and not isinstance(other, bool):
        return torch.tensor([other], dtype=torch.float64)
    held = constant(module, other)
    if held is None or held.dim() > dims:
        return None
    shape = (1,) * (dims - held.dim()) + tuple(held.shape)
    return held.double().reshape(-1) if all(n == 1 for i, n in enumerate(shape) if i != axis) else None


def _fold_scale(factor: _Factor) -> str | None:
    module, node, value = factor.module, factor.node, factor.value
    inner = _multiply(module, value, factor.axis)
    if inner is not None and len(value.users) == 1:
        _rescale(module, node, inner[0], factor.scale * inner[1], factor.axis)
        return "two factors -> one"
    try:
        _scale_rows(factor)
        return "into the layer before it"
    except Reject as declined:
        reason = declined.reason
    if factor.axis != 1 and rank(node) != 2:
        _decline(node, value, reason)
        return None
    try:
        _move_out_of_sum(factor)
        return "out of the sum, into what reads that"
    except Reject:  # which is no reason of its own: most multiplies are no terms
        pass
    try:
        fold_forwards(module, node, factor.full, torch.zeros_like(factor.full))
    except Reject as forwards:
        _decline(node, value, f"{reason}; {forwards.reason}")
        return None
    node.replace_all_uses_with(value)
    return "into what reads it"


def _decline(node: Node, value: Node, reason: str) -> None:
    """Reject where a layer is next to the node; where there is none, it is no near miss."""
    if _layer(value) is not None or any(channel_axis(user) is not None and user.args[0] is node for user in node.users):
        raise Reject(reason)


def _fold_shift(module: GraphModule, node: Node, value: Node, shift: Tensor, axis: int) -> str | None:
    layer = as_layer(module, value) if channel_axis(value) == axis else None
    if layer is not None and len(value.users) == 1:
        layer.write(layer.weight, add_biases(layer.bias, shift.expand(layer.channels)))
        replace(node, value)
        return "into the bias of the layer before it"
    if axis != 1:
        return None
    full = shift.expand(int(val(node).shape[axis]))
    try:
        fold_forwards(module, node, torch.ones_like(full), full)
    except Reject as forwards:
        _decline(node, value, forwards.reason)
        return None
    node.replace_all_uses_with(value)
    return "into the biases of what reads it"


def _rescale(module: GraphModule, node: Node, value: Node, scale: Tensor, axis: int) -> Node:
    """Replace a node by `scale * value`, as one multiply."""
    emit = Emitter(module, node)
    factor: Node | float = float(scale) if scale.numel() == 1 else _stored(emit, scale, axis, node)
    new = emit(aten.mul.Tensor, value, factor)
    replace(node, new)
    module.graph.erase_node(node)
    return new


def _stored(emit: Emitter, scale: Tensor, axis: int, node: Node) -> Node:
    """A constant that scales a node's value along an axis."""
    return emit.constant(f"{site(node)}.scale", along(scale, axis, rank(node)).to(val(node).dtype))


def _layer(value: Node) -> Node | None:
    """Return the convolution or linear layer whose rows are a value's channels, through what only rearranges positions.

    Positions are the axes after the first, so behind those only a layer that makes axis 1 will do.
    """
    step = value
    while step.target in (aten.flatten.using_ints, aten.unflatten.int) and arguments(step)[1] == 2:
        step = step.args[0]  # type: ignore[assignment]  # both read one node
    if step.target is aten.matmul.default and rank(step) == 3:
        left = step.args[0]
        layer = _layer(left) if isinstance(left, Node) and rank(left) == 3 else None
        return layer if layer is not None and channel_axis(layer) == 1 else None
    own = channel_axis(step)
    return step if own == 1 or (own is not None and step is value) else None


def _way(value: Node, layer: Node) -> Iterator[Node]:
    """From a value back to the layer whose rows its channels are, as `_layer` walks; both are on it."""
    while value is not layer:
        yield value
        (value, *_) = value.all_input_nodes
    yield layer


def _scale_rows(factor: _Factor) -> None:
    """Let the layer that makes `value` make `scale * value`. Raises `Reject` where that cannot be.

    Whatever else reads a value on the way there must take the inverse, or be given it for less than the multiply costs.
    """
    layer = _scalable(factor)
    full = factor.scale.expand(layer.channels)
    undo: list[Callable[[], None]] = []
    reader = factor.node
    for step in _way(factor.value, layer.node):
        if sum(argument is step for argument in reader.args) > 1:
            raise Reject(f"{reader.name} reads it twice")
        if len(step.users) > 1:
            undo.append(_compensation(factor, full, step, reader, is_first=not undo))
        reader = step
    for action in undo:
        action()
    layer.scale_output(full)
    for step in _way(factor.value, layer.node):  # another value than in the captured graph
        changed(step)
    replace(factor.node, factor.value)
    factor.module.graph.erase_node(factor.node)


def _scalable(factor: _Factor) -> Linear:
    """The layer whose rows can take a factor."""
    found = _layer(factor.value)
    if found is None:
        value = factor.value
        name = operator_name(value) if value.op == "call_function" else "an input"
        raise Reject(f"what it scales comes from {name}, no layer")
    if channel_axis(found) != factor.axis:
        raise Reject(f"{found.name} ({operator_name(found)}) makes another axis than the one that varies")
    layer = as_layer(factor.module, found)
    if layer is None:
        raise Reject(f"the weights of {site(found)} are computed")
    return layer


def _compensation(factor: _Factor, full: Tensor, step: Node, reader: Node, is_first: bool) -> Callable[[], None]:
    """Return the edit that gives a value's other readers what they read, once the value is scaled on the way back."""
    module = factor.module
    if factor.axis != 1:
        raise Reject(f"{step.name} is also read by {readers(step)}")
    if not _is_invertible(full):
        other = next(user for user in step.users if user is not reader)
        raise Reject(f"{step.name} is also read by {other.name}, and the factor leaves {1 / LARGEST} .. {LARGEST:g}")
    inverse, nothing = 1 / full, torch.zeros_like(full)
    if step is factor.value:
        with contextlib.suppress(Reject):
            find_takers(module, step, nothing, reader)
            return partial(fold_forwards, module, step, inverse, nothing, reader)
    if step.target is not aten.matmul.default and is_first and _numel(step) < _numel(factor.node):
        return partial(_multiply_others, module, step, inverse, reader)
    raise Reject(f"{step.name} is also read by {readers(step)}")


def _multiply_others(module: GraphModule, value: Node, scale: Tensor, but: Node) -> None:
    """Give every reader of `value` but one `scale * value`."""
    others = [user for user in value.users if user is not but]
    order = {node: i for i, node in enumerate(module.graph.nodes)}
    emit = Emitter(module, min(others, key=order.__getitem__))
    scaled = emit(aten.mul.Tensor, value, _stored(emit, scale, 1, value))
    stand_for(scaled, value)
    for other in others:
        other.replace_input_with(value, scaled)


def _move_out_of_sum(factor: _Factor) -> None:
    """Make s u + w u + w / s, with s in what reads the sum. Raises `Reject` where that cannot be."""
    module, node = factor.module, factor.node
    total, term = _other_term(node)
    full = factor.scale.expand(int(val(node).shape[1]))
    if not _is_invertible(full):
        raise Reject(f"the factor leaves {1 / LARGEST} .. {LARGEST:g}")
    inner = _multiply(module, term, 1)
    layer = as_layer(module, term) if inner is None and channel_axis(term) == 1 else None
    if inner is None and layer is None:
        raise Reject("the other term cannot be divided by the factor")
    fold_forwards(module, total, full, torch.zeros_like(full))
    if inner is not None:
        changed(_rescale(module, term, inner[0], inner[1].expand(full.numel()) / full, 1))
    elif layer is not None:
        layer.divide_output(full)
        changed(term)
    changed(total)
    node.replace_all_uses_with(factor.value)


def _other_term(node: Node) -> tuple[Node, Node]:
    """The sum that alone reads a node, and what it adds to it."""
    (total, *others) = node.users
    if others or total.target is not aten.add.Tensor or arguments(total)[2] != 1:
        raise Reject("it is no term of a sum")
    first, second, _ = arguments(total)
    term = second if first is node else first
    if not isinstance(term, Node) or term is node or len(term.users) > 1:
        raise Reject("the other term is read elsewhere")
    if not same_shape(val(term), val(total)):
        raise Reject("the other term is broadcast")
    if rank(node) != rank(total) or str(val(node).shape[1]) != str(val(total).shape[1]):
        raise Reject("it is broadcast over the channels")
    return total, term


def _is_invertible(scale: Tensor) -> bool:
    return bool(((scale.abs() >= 1 / LARGEST) & (scale.abs() <= LARGEST)).all())


def _numel(node: Node) -> int:
    """Numbers in one sample."""
    return prod(int(n) for n in val(node).shape[1:])
