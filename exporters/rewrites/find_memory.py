"""A Legendre memory spelled with Fourier transforms becomes `lmu_memory`.

    irfft(rfft(u, n) * fft_H, n)[..., :T]  ->  lmu_memory(u; H, a, b),  H = irfft(fft_H)[:, :T]

for a signal u [B, 1, T] and a constant fft_H [M, n / 2 + 1]. The product is a circular convolution of period n; for it
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
from edgesmith.exporters.graph.edit import Emitter, arguments, aten, constant, operators, rank, site, stand_for, val
from edgesmith.exporters.rewrites.rewrite import Rejection, RewriteReport
from edgesmith.kernels import lmu_memory
from edgesmith.kernels.lmu_memory import impulse_response

SAME = 1e-5
"""Largest difference between two impulse responses that are the same but for rounding, relative to the peak."""


class FindMemory:
    """See above. A near miss is a filter by Fourier transforms with a constant spectrum."""

    name = "find_memory"

    def apply(self, module: GraphModule, costs: Costs) -> RewriteReport:
        """Replace in place."""
        applied, rejected = [], []
        for node in operators(module):
            if node.target is not aten.fft_irfft.default:
                continue
            product = node.args[0]
            if not isinstance(product, Node) or product.target is not aten.mul.Tensor:
                continue
            transformed, spectrum = _operands(module, product)
            if transformed is None or spectrum is None:
                continue
            outcome = self._replace(module, node, transformed, spectrum)
            if isinstance(outcome, Rejection):
                rejected.append(outcome)
            else:
                applied.append(outcome)
        return RewriteReport(self.name, tuple(applied), tuple(rejected))

    def _replace(
        self, module: GraphModule, inverse: Node, transformed: Node, spectrum: Tensor
    ) -> Rejection | tuple[str, str]:
        forward = _unsqueezed(transformed)
        where = site(forward, inverse)
        _, period, axis, norm = arguments(inverse)
        u, n, own_axis, own_norm = arguments(forward)
        last = rank(inverse) - 1
        period = 2 * (spectrum.shape[-1] - 1) if period is None else period
        n = val(u).shape[-1] if n is None else n
        if axis % rank(inverse) != last or own_axis % rank(u) != rank(u) - 1:
            return Rejection(where, "it is no transform along the last axis")
        if n != period or {norm, own_norm} - {None, "backward"}:
            return Rejection(where, f"its two transforms differ: n = {n} and {period}, norm {own_norm} and {norm}")
        if last != 2 or spectrum.dim() < 2 or val(inverse).shape[1] != spectrum.shape[-2]:
            return Rejection(where, f"its value is {list(val(inverse).shape)}, not [B, M, T]")
        if rank(u) not in (2, 3) or rank(transformed) != 3:
            return Rejection(where, f"its signal is {list(val(u).shape)}, not [B, T] or [B, 1, T]")
        if val(transformed).shape[1] != 1:
            return Rejection(where, f"it filters {val(transformed).shape[1]} signals, not one")
        length = val(u).shape[-1]
        kept = _kept(inverse)
        if kept is None or kept[1] != length:
            return Rejection(where, f"not just the first {length} steps of it are read")
        if spectrum.shape[-2:].numel() != spectrum.numel() or spectrum.shape[-1] != period // 2 + 1:
            return Rejection(where, f"its spectrum is {list(spectrum.shape)}, wanted [M, {period // 2 + 1}]")
        response = torch.fft.irfft(spectrum.reshape(spectrum.shape[-2:]).to(torch.complex128), n=period)
        peak = response.abs().max()
        tail = response[:, max(period - length + 1, 0) :].abs().max() if length > 1 else peak * 0
        if period < length or float(tail) > SAME * float(peak):
            return Rejection(where, "it is a circular filter: the end of the signal acts on its beginning")
        impulse = response[:, :length].to(val(u).dtype)
        recurrence = _recurrence(module, impulse)
        result = kept[0]
        emit = Emitter(module, before=inverse)
        signal = u if rank(u) == 2 else emit(aten.squeeze.dim, u, 1)
        constants = [emit.constant(f"{where}.impulse", impulse)]
        if recurrence is not None:
            constants += [emit.constant(f"{where}.{name}", x) for name, x in zip("ab", recurrence, strict=True)]
        memory = emit(lmu_memory.OP.overload, signal, *constants)
        stand_for(memory, result)
        result.replace_all_uses_with(memory)
        for dead in (result, inverse):
            if not dead.users and not dead._erased:
                module.graph.erase_node(dead)
        known = "its A and b were found" if recurrence is not None else "its A and b are not among the constants"
        return where, f"a filter of {impulse.shape[0]} responses by Fourier transforms -> edgesmith.lmu_memory; {known}"


def _operands(module: GraphModule, product: Node) -> tuple[Node | None, Tensor | None]:
    """The forward transform, as it stands in a product with axes added, and the constant spectrum."""
    transformed, spectrum = None, None
    for operand in product.args[:2]:
        value = _folded(module, operand)
        if value is not None and value.is_complex():
            spectrum = value
        if isinstance(operand, Node) and _unsqueezed(operand).target is aten.fft_rfft.default:
            transformed = operand
    return transformed, spectrum


def _unsqueezed(node: Node) -> Node:
    """What a value was before axes were added to it."""
    while node.target is aten.unsqueeze.default and isinstance(node.args[0], Node):
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


def _kept(inverse: Node) -> tuple[Node, int] | None:
    """What is read of a filtered signal: the slice of its first steps, or all of it, and how many steps that is."""
    node, shape = inverse, val(inverse).shape
    while len(node.users) == 1:
        (user,) = node.users
        if user.target is not aten.slice.Tensor:
            break
        _, axis, start, _, step = arguments(user)
        is_first_steps = axis % 3 == 2 and start in (0, None) and step == 1
        if not is_first_steps and val(user).shape != shape:
            break
        node, shape = user, val(user).shape
    return (node, shape[2]) if node is not inverse or len(node.users) >= 1 else None


def _recurrence(module: GraphModule, impulse: Tensor) -> tuple[Tensor, Tensor] | None:
    """A [M, M] and b [M] among a model's constants that have this impulse response."""
    order, length = impulse.shape
    constants = {str(node.target): constant(module, node) for node in module.graph.nodes if node.op == "get_attr"}
    values = [x for x in constants.values() if x is not None and x.dtype == impulse.dtype]
    peak = float(impulse.abs().max())
    columns = [x.reshape(-1) for x in values if x.numel() == order and tuple(x.shape) in ((order,), (order, 1))]
    for b in columns:
        if float((b - impulse[:, 0]).abs().max()) > SAME * peak:
            continue
        for a in (x for x in values if tuple(x.shape) == (order, order)):
            if float((impulse_response(a, b, length) - impulse).abs().max()) <= SAME * peak:
                return a, b
    return None
