"""A linear recurrence, such as a Legendre memory, that is spelled with Fourier transforms becomes the op for it.

    irfft(rfft(u, n) * fft_H, n)[..., :T]  ->  op(u; H, a, b),  H = irfft(fft_H)[:, :T]

for a signal u [B, 1, T] and a constant fft_H [M, n / 2 + 1]. The multiply is a circular convolution of period n. For it
to be a causal one, H must vanish from n - T + 1 on, or the end of the signal would act on its beginning. A and b are
looked for among the model's constants, by their numbers: H[:, j] = A^j b. This rewrite runs first, while constants that
the forward pass does not read are still there. Source: Chilkuri and Eliasmith, ICML 2021, eq. 24-26.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from edgesmith.exporters.costs import Costs
from edgesmith.exporters.graph.edit import Emitter, arguments, aten, constant, rank, replace, site, val
from edgesmith.exporters.rewrites.drop_copies import is_copy
from edgesmith.exporters.rewrites.rewrite import Fired, Reject, rewrites
from edgesmith.exporters.rewrites.unrolled import ancestors
from edgesmith.kernels.op import FusedOp, linear_recurrence

SAME = 1e-5
"""Largest difference between two impulse responses that are the same but for rounding, relative to the peak."""


@rewrites(aten.fft_irfft.default, rule="irfft(rfft(u) * H) -> a linear recurrence")
def find_memory(module: GraphModule, inverse: Node, costs: Costs) -> Fired | None:
    """See above. A near miss is any other filter by Fourier transforms."""
    product, op = inverse.args[0], linear_recurrence()
    if op is None or not isinstance(product, Node):
        return None
    while is_copy(product):
        product = product.all_input_nodes[0]
    transformed, spectrum = _operands(module, product) if product.target is aten.mul.Tensor else (None, None)
    if transformed is None or spectrum is None:
        if any(node.target is aten.fft_rfft.default for node in ancestors(inverse)):
            raise Reject("between its transforms is more than a multiply by a constant spectrum")
        return None
    where = site(_unsqueezed(transformed), inverse)
    try:
        period = _period(inverse, transformed, spectrum)
        u = _signal(inverse, transformed, spectrum)
        length = int(val(u).shape[-1])
        result = _kept(inverse, length)
        impulse = _response(spectrum, period, length).to(val(u).dtype)
    except Reject as declined:
        raise Reject(declined.reason, at=where) from None
    recurrence = _recurrence(module, op, impulse)
    emit = Emitter(module, before=inverse)
    signal = u if rank(u) == 2 else emit(aten.squeeze.dim, u, 1)
    named = [("impulse", impulse), *zip("ab", recurrence or (), strict=False)]
    constants = [emit.constant(f"{where}.{name}", value) for name, value in named]
    replace(result, emit(op.overload, signal, *constants))
    known = "its A and b were found" if recurrence is not None else "its A and b are not among the constants"
    note = f"a filter of {len(impulse)} responses by Fourier transforms -> edgesmith.{op.name}; {known}"
    return Fired(where, note)


def _period(inverse: Node, transformed: Node, spectrum: Tensor) -> int:
    """The length n of both transforms. Raises Reject where they differ, or are not along the last axis."""
    forward = _unsqueezed(transformed)
    _, period, axis, norm = arguments(inverse)
    u, n, own_axis, own_norm = arguments(forward)
    period = 2 * (spectrum.shape[-1] - 1) if period is None else period
    n = val(u).shape[-1] if n is None else n
    if axis % rank(inverse) != rank(inverse) - 1 or own_axis % rank(u) != rank(u) - 1:
        raise Reject("it is no transform along the last axis")
    if n != period or {norm, own_norm} - {None, "backward"}:
        raise Reject(f"its two transforms differ: n = {n} and {period}, norm {own_norm} and {norm}")
    return int(period)


def _signal(inverse: Node, transformed: Node, spectrum: Tensor) -> Node:
    """The one signal that is filtered, [B, T] or [B, 1, T]. Raises Reject for other shapes."""
    u: Node = arguments(_unsqueezed(transformed))[0]
    if rank(inverse) != 3 or spectrum.dim() < 2 or val(inverse).shape[1] != spectrum.shape[-2]:
        raise Reject(f"its value is {list(val(inverse).shape)}, not [B, M, T]")
    if rank(u) not in (2, 3) or rank(transformed) != 3:
        raise Reject(f"its signal is {list(val(u).shape)}, not [B, T] or [B, 1, T]")
    if val(transformed).shape[1] != 1:
        raise Reject(f"it filters {val(transformed).shape[1]} signals, not one")
    return u


def _response(spectrum: Tensor, period: int, length: int) -> Tensor:
    """The impulse response [M, T] of a spectrum, in float64. Raises Reject where the filter is not causal."""
    if spectrum.shape[-2:].numel() != spectrum.numel() or spectrum.shape[-1] != period // 2 + 1:
        raise Reject(f"its spectrum is {list(spectrum.shape)}, wanted [M, {period // 2 + 1}]")
    response = torch.fft.irfft(spectrum.reshape(spectrum.shape[-2:]).to(torch.complex128), n=period)
    peak = response.abs().max()
    tail = response[:, max(period - length + 1, 0) :].abs().max() if length > 1 else peak * 0
    if period < length or float(tail) > SAME * float(peak):
        raise Reject("it is a circular filter: the end of the signal acts on its beginning")
    kept: Tensor = response[:, :length]
    return kept


def _operands(module: GraphModule, product: Node) -> tuple[Node | None, Tensor | None]:
    """Return the forward transform, as it stands in a multiply with axes added, and the constant spectrum."""
    transformed, spectrum = None, None
    for operand in product.args[:2]:
        value = _folded(module, operand)
        if value is not None and value.is_complex():
            spectrum = value
        if isinstance(operand, Node) and _unsqueezed(operand).target is aten.fft_rfft.default:
            transformed = operand
    return transformed, spectrum


def _unsqueezed(node: Node) -> Node:
    """Return the value before axes were added to it, or it was copied."""
    while (node.target is aten.unsqueeze.default or is_copy(node)) and isinstance(node.args[0], Node):
        node = node.args[0]
    return node


def _folded(module: GraphModule, node: Any) -> Tensor | None:
    """A constant, also one reshaped on the way by operators of one argument; constants are folded only later."""
    if not isinstance(node, Node) or node.op == "get_attr":
        return constant(module, node)
    if not isinstance(node.target, torch._ops.OpOverload) or len(node.all_input_nodes) != 1:
        return None
    (x,) = node.all_input_nodes
    value = _folded(module, x)
    if value is None:
        return None
    args, kwargs = torch.fx.map_arg((node.args, node.kwargs), lambda _: value)
    result: Tensor = node.target(*args, **kwargs)
    return result


def _kept(inverse: Node, length: int) -> Node:
    """Return the slice of the first `length` steps of a filtered signal, or all of it where it has no more.

    Raises:
        Reject: something else is read.
    """
    node, shape = inverse, val(inverse).shape
    while len(node.users) == 1:
        (user,) = node.users
        if is_copy(user):
            node = user
            continue
        if user.target is not aten.slice.Tensor:
            break
        _, axis, start, _, step = arguments(user)
        is_first_steps = axis % 3 == 2 and start in (0, None) and step == 1
        if not is_first_steps and val(user).shape != shape:
            break
        node, shape = user, val(user).shape
    if (node is inverse and not node.users) or shape[2] != length:
        raise Reject(f"not just the first {length} steps of it are read")
    return node


def _recurrence(module: GraphModule, op: FusedOp, impulse: Tensor) -> tuple[Tensor, Tensor] | None:
    """A [M, M] and b [M] among a model's constants that have this impulse response."""
    assert op.linear is not None
    order, length = impulse.shape
    constants = {str(node.target): constant(module, node) for node in module.graph.nodes if node.op == "get_attr"}
    values = [x for x in constants.values() if x is not None and x.dtype == impulse.dtype]
    columns = [x.reshape(-1) for x in values if tuple(x.shape) in ((order,), (order, 1))]
    matrices = [x for x in values if tuple(x.shape) == (order, order)]
    close = SAME * float(impulse.abs().max())
    for b in columns:
        if float((b - impulse[:, 0]).abs().max()) > close:
            continue
        for a in matrices:
            if float((op.linear.impulse_response(a, b, length) - impulse).abs().max()) <= close:
                return a, b
    return None
