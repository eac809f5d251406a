"""A leaky sum over time: the synaptic current of a spiking neuron, or an exponential average of a signal.

    y_t = decay y_{t-1} + x_t,    y_{-1} = 0

What drives a threshold must be rounded as the model rounds it, so it stays a loop: one multiply and one sum a step, in
this order. Source: Eshraghian et al., Proc. IEEE 2023, eq. 7 (the synaptic conductance model). Letters: T time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from edgesmith.kernels.loops import coreml_loop, onnx_filled, onnx_scan, torch_loop
from edgesmith.kernels.op import FusedOp, Recognition, Recurrence, RecurrentState, define


def step(x: Tensor, y: Tensor, decay: float = 0.5) -> Tensor:
    """The next value of a sum."""
    return y * decay + x


def reference(x: Tensor, decay: float = 0.5, dim: int = -1) -> Tensor:
    """Leaky sums of `x` with time along `dim`, of its shape.

    Args:
        x: a signal, any shape.
        decay: what is left of a sum after a step, -1 to 1.
        dim: the time axis.
    """
    y = torch.zeros_like(x.select(dim, 0))
    sums = []
    for frame in x.unbind(dim):
        y = step(frame, y, decay)
        sums.append(y)
    return torch.stack(sums, dim)


def shape(x: Tensor, decay: float = 0.5, dim: int = -1) -> tuple[int, ...]:
    """The input's shape. Raises ValueError for a sum that grows, or over no time."""
    if not -x.dim() <= dim < x.dim():
        raise ValueError(f"leaky_sum: dim must be an axis of {list(x.shape)}, got {dim}")
    if not -1 <= decay <= 1:
        raise ValueError(f"leaky_sum: decay must be between -1 and 1, got {decay}")
    if x.shape[dim] == 0:
        raise ValueError(f"leaky_sum: there must be a time step, got {list(x.shape)} with time along {dim}")
    return tuple(x.shape)


def example(batch: int = 2, channels: int = 3, length: int = 7) -> tuple[Tensor, ...]:
    """A random signal [B, C, T]."""
    return (torch.randn(batch, channels, length, generator=torch.Generator().manual_seed(0)),)


def lower_onnx(x: Any, decay: float = 0.5, dim: int = -1) -> Any:
    """ONNX: a Scan of a multiply and a sum."""
    import numpy as np
    from onnxscript import ir, opset20

    op: Any = opset20
    dim = dim % len(x.shape)
    factor = op.Constant(value=ir.tensor(np.array(decay, x.dtype.numpy().type)))

    def one(make: Any, y: Any, frame: Any) -> tuple[Any, Any]:
        after = make("Add", make("Mul", y, factor), frame)
        return after, make("Identity", after)

    start = onnx_filled(x, [i for i in range(len(x.shape)) if i != dim])
    _, sums = onnx_scan([start], x, dim, one)
    return sums


def lower_coreml(x: Any, decay: Any = 0.5, dim: Any = -1) -> Any:
    """Core ML: a while_loop of the same."""
    import numpy as np
    from coremltools.converters.mil import Builder as mb

    dim = int(dim) % len(x.shape)
    order = [dim, *(i for i in range(len(x.shape)) if i != dim)]

    def one(y: Any, frame: Any) -> tuple[Any, Any]:
        after = mb.add(x=mb.mul(x=y, y=np.float32(decay)), y=frame)
        return after, after

    sequence = mb.transpose(x=x, perm=order)
    sizes = [int(n) for n in sequence.shape]
    sums = coreml_loop(mb.fill(shape=[1, *sizes[1:]], value=np.float32(0)), sequence, one, sizes)
    return mb.transpose(x=sums, perm=[order.index(i) for i in range(len(order))])


def for_coreai(x: Tensor, decay: float = 0.5, dim: int = -1) -> Tensor:
    """Core AI: a loop of the same."""

    def one(y: Tensor, frame: Tensor) -> tuple[Tensor, Tensor]:
        after = step(frame, y, decay)
        return after, after.clone()

    frames = x.movedim(dim, 0)
    return torch_loop(torch.zeros_like(frames[0]), frames, one, torch.zeros_like(frames)).movedim(0, dim)


def _decays(numbers: Sequence[float]) -> Iterator[tuple[float]]:
    """The decays of a sum in whose step some numbers stand."""
    yield from ((decay,) for decay in dict.fromkeys(d for n in numbers for d in (n, 1 - n)) if 0 < abs(decay) <= 1)


def _axes(x: Tensor, *literals: Any) -> tuple[int, int]:
    axis = (literals[1] if len(literals) > 1 else -1) % x.dim()
    return axis, axis


def _sum_shape(x: Tensor, *literals: Any) -> tuple[int, ...]:
    axis, _ = _axes(x, *literals)
    return (*x.shape[:axis], *x.shape[axis + 1 :])


def _one_step(states: tuple[Tensor], x: Tensor, *literals: Any) -> tuple[Tensor, tuple[Tensor]]:
    y = step(x, *states, literals[0])
    return y, (y,)


OP = define(
    FusedOp(
        name="leaky_sum",
        reference=reference,
        shape=shape,
        example=example,
        lowerings={"onnx": lower_onnx, "coreml": lower_coreml},
        inlined={"coreai": for_coreai},
        tolerance=1e-6,
        is_pattern=False,
        recurrence=Recurrence(
            step=_one_step,
            states=(RecurrentState("sum", "leaky sum", _sum_shape),),
            axes=_axes,
            runs="adds up",
            recognition=Recognition(
                advance=lambda y, x, decay: step(x, y, decay), settle=lambda y, *_: (y, y), settings=_decays
            ),
        ),
        stays_float="a sum adds up its own rounding, frame by frame",
    )
)
