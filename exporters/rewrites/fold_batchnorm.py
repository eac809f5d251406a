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
from edgesmith.exporters.rewrites.rewrite import Rejection, RewriteReport
from edgesmith.kernels.op import LinearRecurrence, find


class FoldBatchnorm:
    """See the table above."""

    name = "fold_batchnorm"

    def apply(self, module: GraphModule, costs: Costs) -> RewriteReport:
        """Fold in place, backwards where possible, else forwards."""
        applied, rejected = [], []
        for norm in operators(module):
            if norm.target is not aten.batch_norm.default:
                continue
            where = site(norm)
            affine = _affine(module, norm)
            if affine is None:
                rejected.append(Rejection(where, "it normalises by the batch, or its statistics are computed"))
                continue
            scale, shift = affine
            x = norm.args[0]
            assert isinstance(x, Node)
            backwards = _fold_backwards(module, norm, scale, shift)
            if backwards is None:
                applied.append((where, f"backwards into {site(x)}"))
                continue
            targets = [site(reader) for reader, _ in _readers_through_mean(norm)]
            forwards = fold_forwards(module, norm, scale, shift)
            if forwards is not None:
                rejected.append(Rejection(where, f"{backwards}; {forwards}"))
                continue
            norm.replace_all_uses_with(x)
            module.graph.erase_node(norm)
            applied.append((where, f"forwards into {', '.join(targets)}"))
        return RewriteReport(self.name, tuple(applied), tuple(rejected))


def fold_forwards(
    module: GraphModule, value: Node, scale: Tensor, shift: Tensor, but: Node | None = None, ask: bool = False
) -> str | None:
    """Let the readers of `value` take `scale * value + shift` (per channel, axis 1) while reading `value` itself.

    Args:
        but: a reader that is left as it is.
        ask: only say whether it can be done.

    Returns None when done. Otherwise the reason why not, and nothing is changed.
    """
    takers = _readers_through_mean(value, but)
    if not takers:
        return "nothing reads it"
    for reader, through in takers:
        reason = _cannot_take(module, reader, through, shift)
        if reason is not None:
            return reason
    if ask:
        return None
    for reader, through in takers:
        while through is not value:  # means are now those of other values than in the captured graph
            through.meta["equals"] = ""
            (through, *_) = through.all_input_nodes
        _take(module, reader, scale, shift)
    return None


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


def _fold_backwards(module: GraphModule, norm: Node, scale: Tensor, shift: Tensor) -> str | None:
    x = norm.args[0]
    assert isinstance(x, Node)
    op = find(x.target)
    if op is not None and op.linear is not None:
        return _fold_into_memory(module, norm, x, op.linear, scale, shift)
    is_linear = x.target is aten.linear.default and rank(x) == 2
    if x.target not in CONVOLUTIONS and not is_linear:
        return f"what it reads is {operator_name(x) if x.op == 'call_function' else 'an input'}, not a convolution"
    if len(x.users) > 1:
        return f"the convolution before it is also read by {readers(x)}"
    weight, bias = constant(module, x.args[1]), constant(module, arguments(x)[2])
    if weight is not None and rank(x) != weight.dim():
        return "the convolution before it has no batch axis, so its channels are not what is normalised"
    if weight is None or (arguments(x)[2] is not None and bias is None):
        return "the weights of the convolution before it are computed"
    folded = weight.double() * scale.reshape(-1, *[1] * (weight.dim() - 1))
    offset = shift if bias is None else shift + scale * bias.double()
    _write(module, x, folded.to(weight.dtype), offset.to(weight.dtype))
    stand_for(x, norm)
    norm.replace_all_uses_with(x)
    module.graph.erase_node(norm)
    return None


def _fold_into_memory(
    module: GraphModule, norm: Node, memory: Node, linear: LinearRecurrence, scale: Tensor, shift: Tensor
) -> str | None:
    """Scale a memory's coordinates: a change of basis for its recurrence. The shift stays, as one addition."""
    if len(memory.users) > 1:
        return f"the memory before it is also read by {readers(memory)}"
    given = {i: constant(module, x) for i, x in enumerate(arguments(memory)[:4]) if i > 0 and x is not None}
    impulse = given.get(1)
    if impulse is None or any(value is None for value in given.values()):
        return "the impulse response of the memory before it is computed"
    if bool((scale == 0).any()):
        return "a scale of 0 leaves nothing of the memory before it"
    scaled = linear.scaled(scale, impulse, given.get(2), given.get(3))
    for i, name, value in zip((1, 2, 3), ("impulse", "a", "b"), scaled, strict=True):
        if value is not None:
            set_constant(module, memory, i, f"{site(memory)}.{name}", value)
    memory.meta["equals"] = ""
    result = memory
    if bool(shift.any()):
        emit = Emitter(module, before=norm)
        offset = emit.constant(f"{site(norm)}.shift", shift.unsqueeze(1).to(val(norm).dtype))
        result = emit(aten.add.Tensor, memory, offset)
    stand_for(result, norm)
    norm.replace_all_uses_with(result)
    module.graph.erase_node(norm)
    return None


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


def _cannot_take(module: GraphModule, reader: Node, value: Node, shift: Tensor) -> str | None:
    if reader.target is aten.linear.default:
        if rank(value) != 2:
            return f"{reader.name} (aten.linear) does not mix the normalised axis"
    elif reader.target not in CONVOLUTIONS:
        name = operator_name(reader) if reader.op == "call_function" else "the output"
        return f"{name} reads it, which cannot carry a scale and a shift"
    x, w, b, *rest = arguments(reader)
    if x is not value:
        return f"{reader.name} uses it as a weight"
    weight = constant(module, w)
    if weight is None or (b is not None and constant(module, b) is None):
        return f"the weights of {site(reader)} are computed"
    if weight.dim() != rank(value):
        return f"{reader.name} ({operator_name(reader)}) takes another axis for the channels"
    if rest:
        padding = rest[1] if isinstance(rest[1], list | tuple) else [rest[1]]
        if any(p != 0 for p in padding) and bool((shift != 0).any()):
            return f"{site(reader)} pads with zeros, which the shift would turn into something else"
    return None


def _take(module: GraphModule, reader: Node, scale: Tensor, shift: Tensor) -> None:
    _, w, b, *rest = arguments(reader)
    weight, bias = constant(module, w), constant(module, b)
    assert weight is not None
    groups = rest[3] if rest else 1
    out, width = weight.shape[0], weight.shape[1]
    grouped = weight.double().reshape(groups, out // groups, width, -1)
    a = scale.reshape(groups, 1, width, 1)
    c = shift.reshape(groups, 1, width, 1)
    folded = (grouped * a).reshape(weight.shape)
    offset = (grouped * c).sum((2, 3)).reshape(out)
    if bias is not None:
        offset = offset + bias.double()
    _write(module, reader, folded.to(weight.dtype), offset.to(weight.dtype))


def _write(module: GraphModule, node: Node, weight: Tensor, bias: Tensor) -> None:
    prefix = site(node)
    set_constant(module, node, 1, f"{prefix}.weight", weight)
    if bias.any() or arguments(node)[2] is not None:
        set_constant(module, node, 2, f"{prefix}.bias", bias)
