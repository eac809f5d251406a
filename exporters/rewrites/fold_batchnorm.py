"""Batch norms in inference are one scale and one shift a channel, which a neighbouring convolution can carry.

    BN(x) = a x + c,   a = gamma / sqrt(var + eps),   c = beta - mean a          per channel, in float64
    backwards   BN(conv(x; W, b))        ->  conv(x; a W, a b + c)               whatever the padding
                BN(memory(u; H, A, b))  ->  memory(u; a H, diag(a) A diag(1 / a), a b) + c     a Legendre memory
    forwards    conv(BN(x); W, b)        ->  conv(x; W a, b + sum W c)           where nothing is padded, or c = 0
                linear(mean_HW(BN(x)))   ->  linear'(mean_HW(x))                 the mean of a x + c is a mean(x) + c

Forwards needs every reader of the batch norm to be able to take it. What stays is reported with its reason.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from edgesmith.exporters.costs import Costs
from edgesmith.exporters.graph.edit import (
    CONVOLUTIONS,
    Emitter,
    arguments,
    aten,
    changed,
    constant,
    operator_name,
    rank,
    readers,
    replace,
    set_constant,
    site,
    val,
)
from edgesmith.exporters.graph.linear import LAYERS, Linear, as_layer, channel_axis
from edgesmith.exporters.rewrites.rewrite import Reject, rewrites
from edgesmith.kernels.op import LinearRecurrence, find


@rewrites(
    aten.batch_norm.default,
    rule="BN(conv(x)) -> conv'(x);  conv(BN(x)) -> conv'(x);  linear(mean(BN(x))) -> linear'(mean(x))",
)
def fold_batchnorm(module: GraphModule, norm: Node, costs: Costs) -> str:
    """Fold backwards where possible, else forwards."""
    affine = _affine(module, norm)
    if affine is None:
        raise Reject("it normalises by the batch, or its statistics are computed")
    x = norm.args[0]
    assert isinstance(x, Node)
    try:
        _fold_backwards(module, norm, x, *affine)
        return f"backwards into {site(x)}"
    except Reject as declined:
        backwards = declined.reason
    targets = [site(reader) for reader, _ in _readers_through_mean(norm)]
    try:
        fold_forwards(module, norm, *affine)
    except Reject as forwards:
        raise Reject(f"{backwards}; {forwards.reason}") from None
    norm.replace_all_uses_with(x)
    return f"forwards into {', '.join(targets)}"


def fold_forwards(module: GraphModule, value: Node, scale: Tensor, shift: Tensor, but: Node | None = None) -> None:
    """Let the readers of `value` take `scale * value + shift` (per channel, axis 1) while reading `value` itself.

    Args:
        but: a reader that is left as it is.

    Raises:
        Reject: one of them cannot, and nothing is changed.
    """
    for reader, through in find_takers(module, value, shift, but):
        while through is not value:  # means are now those of other values than in the captured graph
            changed(through)
            (through, *_) = through.all_input_nodes
        reader.scale_input(scale, shift)


def find_takers(module: GraphModule, value: Node, shift: Tensor, but: Node | None = None) -> list[tuple[Linear, Node]]:
    """The layers that read `value`, each with what of it it reads, where all of them can take a scale and `shift`.

    Raises:
        Reject: nothing reads it, or something that cannot take them.
    """
    takers = _readers_through_mean(value, but)
    if not takers:
        raise Reject("nothing reads it")
    return [(_as_taker(module, reader, through, shift), through) for reader, through in takers]


def _affine(module: GraphModule, norm: Node) -> tuple[Tensor, Tensor] | None:
    _, gamma, beta, mean, variance, training, _, eps, _ = arguments(norm)
    mu, var = constant(module, mean), constant(module, variance)
    if training or mu is None or var is None:
        return None
    scale = 1 / torch.sqrt(var.double() + eps)
    if gamma is not None:
        weight = constant(module, gamma)
        if weight is None:
            return None
        scale = scale * weight.double()
    shift = -mu.double() * scale
    if beta is not None:
        bias = constant(module, beta)
        if bias is None:
            return None
        shift = shift + bias.double()
    return scale, shift


def _fold_backwards(module: GraphModule, norm: Node, x: Node, scale: Tensor, shift: Tensor) -> None:
    op = find(x.target)
    if op is not None and op.linear is not None:
        _fold_into_memory(module, norm, x, op.linear, (scale, shift))
        return
    if x.target not in CONVOLUTIONS and not (x.target is aten.linear.default and rank(x) == 2):
        what = operator_name(x) if x.op == "call_function" else "an input"
        raise Reject(f"what it reads is {what}, not a convolution")
    if len(x.users) > 1:
        raise Reject(f"the convolution before it is also read by {readers(x)}")
    if constant(module, x.args[1]) is not None and channel_axis(x) != 1:
        raise Reject("the convolution before it has no batch axis, so its channels are not what is normalised")
    layer = as_layer(module, x)
    if layer is None:
        raise Reject("the weights of the convolution before it are computed")
    layer.scale_output(scale, shift)
    replace(norm, x)


def _fold_into_memory(
    module: GraphModule, norm: Node, memory: Node, linear: LinearRecurrence, affine: tuple[Tensor, Tensor]
) -> None:
    """Scale a memory's coordinates: a change of basis for its recurrence. The shift stays, as one addition."""
    if len(memory.users) > 1:
        raise Reject(f"the memory before it is also read by {readers(memory)}")
    scale, shift = affine
    given = {i: constant(module, x) for i, x in enumerate(arguments(memory)[:4]) if i > 0 and x is not None}
    impulse = given.get(1)
    if impulse is None or any(value is None for value in given.values()):
        raise Reject("the impulse response of the memory before it is computed")
    if bool((scale == 0).any()):
        raise Reject("a scale of 0 leaves nothing of the memory before it")
    scaled = linear.scaled(scale, impulse, given.get(2), given.get(3))
    for i, name, value in zip((1, 2, 3), ("impulse", "a", "b"), scaled, strict=True):
        if value is not None:
            set_constant(module, memory, i, f"{site(memory)}.{name}", value)
    changed(memory)
    result = memory
    if bool(shift.any()):
        emit = Emitter(module, before=norm)
        offset = emit.constant(f"{site(norm)}.shift", shift.unsqueeze(1).to(val(norm).dtype))
        result = emit(aten.add.Tensor, memory, offset)
    replace(norm, result)


def _readers_through_mean(value: Node, but: Node | None = None) -> list[tuple[Node, Node]]:
    """The readers of `value`, each with what it reads: `value`, or a mean over all its axes after the channels.

    Such a mean may be flattened to [B, C] on the way.
    """
    takers = []
    for reader in value.users:
        if reader is but:
            continue
        if _is_spatial_mean(reader) or _is_flattened_mean(reader):
            takers += _readers_through_mean(reader)
        else:
            takers.append((reader, value))
    return takers


def _is_spatial_mean(node: Node) -> bool:
    if node.target is not aten.mean.dim:
        return False
    x, axes, _, dtype = arguments(node)
    return bool(axes) and list(axes) == list(range(2, rank(x))) and dtype is None


def _is_flattened_mean(node: Node) -> bool:
    """[B, C, 1, 1] -> [B, C]"""
    if node.target is not aten.flatten.using_ints:
        return False
    x, start, end = arguments(node)
    return start == 1 and end in (-1, rank(x) - 1) and all(n == 1 for n in val(x).shape[2:]) and _is_spatial_mean(x)


def _as_taker(module: GraphModule, reader: Node, value: Node, shift: Tensor) -> Linear:
    """A layer that reads `value` and can take a scale and a shift of its channels."""
    if reader.target is aten.linear.default and rank(value) != 2:
        raise Reject(f"{reader.name} (aten.linear) does not mix the normalised axis")
    if reader.target not in LAYERS:
        name = operator_name(reader) if reader.op == "call_function" else "the output"
        raise Reject(f"{name} reads it, which cannot carry a scale and a shift")
    if arguments(reader)[0] is not value:
        raise Reject(f"{reader.name} uses it as a weight")
    layer = as_layer(module, reader)
    if layer is None:
        raise Reject(f"the weights of {site(reader)} are computed")
    if layer.own_weight.dim() != rank(value):
        raise Reject(f"{reader.name} ({operator_name(reader)}) takes another axis for the channels")
    if layer.pads and bool((shift != 0).any()):
        raise Reject(f"{site(reader)} pads with zeros, which the shift would turn into something else")
    return layer
