"""The Legendre memory: a linear time-invariant recurrence, driven by one scalar signal, over a whole sequence.

    m_t = A m_{t-1} + b u_t,  m_{-1} = 0          recurrent
    m_t = sum_{j <= t} H[:, j] u_{t-j}            as a causal convolution with the impulse response H[:, j] = A^j b

H says all about a sequence of its length. A and b are given where they are known: then the recurrence itself can run,
one step at a time and without end.
Source: Voelker et al., "Legendre Memory Units", NeurIPS 2019, eq. 1-2; the parallel form is Chilkuri and Eliasmith,
"Parallelizing Legendre Memory Unit Training", ICML 2021, eq. 24-26. Letters: B batch, T time, M memory.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from edgesmith.kernels.op import FusedOp, define


def reference(
    u: Tensor, impulse: Tensor, a: Tensor | None = None, b: Tensor | None = None, form: str = "convolution"
) -> Tensor:
    """The memory at every time step, [B, M, T], of a signal u [B, T].

    Args:
        u: [B, T].
        impulse: impulse response H, [M, T].
        a, b: the recurrence that H is the response of, [M, M] and [M], where it is known.
        form: how a target computes it; the numbers are the same but for rounding.
    """
    length = impulse.shape[1]
    return F.conv1d(F.pad(u.unsqueeze(1), (length - 1, 0)), impulse.flip(1).unsqueeze(1))


def impulse_response(a: Tensor, b: Tensor, length: int) -> Tensor:
    """H[:, j] = A^j b for j < `length`, [M, T]: in float64, rounded once to the type of `a`. a [M, M], b [M]."""
    step, column = a.double(), b.double()
    columns = []
    for _ in range(length):
        columns.append(column)
        column = step @ column
    return torch.stack(columns, dim=1).to(a.dtype)


def shape(
    u: Tensor, impulse: Tensor, a: Tensor | None = None, b: Tensor | None = None, form: str = "convolution"
) -> tuple[int, ...]:
    """[B, M, T] from u [B, T]. Raises ValueError where the arguments do not fit together."""
    if u.dim() != 2:
        raise ValueError(f"lmu_memory: u must be [B, T], got {list(u.shape)}")
    batch, length = u.shape
    if impulse.dim() != 2 or impulse.shape[1] != length:
        raise ValueError(f"lmu_memory: impulse must be [M, {length}], got {list(impulse.shape)}")
    order = impulse.shape[0]
    for name, given, expected in (("a", a, (order, order)), ("b", b, (order,))):
        if given is not None and tuple(given.shape) != expected:
            raise ValueError(f"lmu_memory: {name} must be {list(expected)}, got {list(given.shape)} (M = {order})")
    return batch, order, length


def example(order: int = 6, length: int = 9, batch: int = 2) -> tuple[Tensor, ...]:
    """A random signal, and a stable random system with its impulse response."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(order, order, generator=generator)
    a = 0.9 * a / torch.linalg.matrix_norm(a, 2)
    b = torch.randn(order, generator=generator)
    return torch.randn(batch, length, generator=generator), impulse_response(a, b, length), a, b


OP = define(
    FusedOp(
        name="lmu_memory",
        reference=reference,
        shape=shape,
        example=example,
        tolerance=2e-6,
        is_pattern=False,
    )
)
