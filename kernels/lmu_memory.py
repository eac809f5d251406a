"""The Legendre memory: a linear time-invariant recurrence, driven by one scalar signal, over a whole sequence.

    m_t = A m_{t-1} + b u_t,  m_{-1} = 0          recurrent
    m_t = sum_{j <= t} H[:, j] u_{t-j}            convolution, causal, with the impulse response H[:, j] = A^j b
    m_{cL+l} = A m_{cL+l-1} + b u_{cL+l}          chunked: T / L chunks of L steps at once, each from the memory
                                                  before it, which a convolution of stride L gives

H says all about a sequence of its length. A and b are given where they are known: then the recurrence itself can run,
one step at a time and without end.
Source: Voelker et al., "Legendre Memory Units", NeurIPS 2019, eq. 1-2; the parallel form is Chilkuri and Eliasmith,
"Parallelizing Legendre Memory Unit Training", ICML 2021, eq. 24-26. Letters: B batch, T time, M memory.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from edgesmith.kernels.loops import coreml_loop, onnx_filled, onnx_scan, torch_loop
from edgesmith.kernels.op import FusedOp, LinearRecurrence, Recurrence, RecurrentState, define
from edgesmith.kernels.relax_calls import call_kernel, sizes

FORMS = ("convolution", "chunked", "recurrent")


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
    if form == "convolution" or a is None or b is None:
        return F.conv1d(F.pad(u.unsqueeze(1), (length - 1, 0)), impulse.flip(1).unsqueeze(1))
    if form == "recurrent":
        return _steps(u, torch.zeros_like(u[:, :1] * b), a, b).transpose(1, 2)
    size, count = chunks(length)
    before = (count - 1) * size
    kernel = impulse[:, :before].flip(1).unsqueeze(1)
    starts = F.conv1d(F.pad(u[:, :before].unsqueeze(1), (before, 0)), kernel, stride=size)  # [B, M, T / L]
    signal = F.pad(u, (0, count * size - length)).unflatten(1, (count, size))
    memory = _steps(signal, starts.transpose(1, 2), a, b)  # [B, T / L, L, M]
    return memory.flatten(1, 2)[:, :length].transpose(1, 2)


def _steps(u: Tensor, m: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """The recurrence over the last axis of a signal [..., L], from memories [..., M]. Returns [..., L, M]"""
    memory = []
    for signal in u.unbind(-1):
        m = m @ a.T + signal.unsqueeze(-1) * b
        memory.append(m)
    return torch.stack(memory, dim=-2)


def chunks(length: int) -> tuple[int, int]:
    """Steps in a chunk and chunks in a sequence, both near the root of its length; at least two chunks."""
    size = max(1, min(math.isqrt(length), length // 2))
    return size, -(-length // size)


def impulse_response(a: Tensor, b: Tensor, length: int) -> Tensor:
    """H[:, j] = A^j b for j < `length`, [M, T]: in float64, rounded once to the type of `a`. a [M, M], b [M]."""
    step, column = a.double(), b.double()
    columns = []
    for _ in range(length):
        columns.append(column)
        column = step @ column
    return torch.stack(columns, dim=1).to(a.dtype)


def scaled(
    scale: Tensor, impulse: Tensor, a: Tensor | None, b: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """H, A and b of diag(scale) m, a change of basis: in float64, each rounded once to its type. scale [M], not 0."""
    rows = scale.double().unsqueeze(1)
    return (
        (impulse.double() * rows).to(impulse.dtype),
        None if a is None else (a.double() * (rows / scale.double())).to(a.dtype),
        None if b is None else (b.double() * scale.double()).to(b.dtype),
    )


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
    if form not in FORMS:
        raise ValueError(f"lmu_memory: form must be {', '.join(FORMS)}, got {form!r}")
    if form != "convolution" and (a is None or b is None):
        raise ValueError(f"lmu_memory: the {form} form needs a and b, and there is only the impulse response")
    if form == "chunked" and length < 2:
        raise ValueError("lmu_memory: the chunked form needs two time steps, got 1")
    return batch, order, length


def example(order: int = 6, length: int = 9, batch: int = 2) -> tuple[Tensor, ...]:
    """A random signal, and a stable random system with its impulse response."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(order, order, generator=generator)
    a = 0.9 * a / torch.linalg.matrix_norm(a, 2)
    b = torch.randn(order, generator=generator)
    return torch.randn(batch, length, generator=generator), impulse_response(a, b, length), a, b


def lower_onnx(u: Any, impulse: Any, a: Any = None, b: Any = None, form: str = "convolution") -> Any:
    """ONNX: a Conv, or a Scan of two nodes a step; what depends on weights alone is folded when the file is written."""
    from onnxscript import opset20

    op: Any = opset20
    length, order = impulse.shape[1], impulse.shape[0]

    def ints(*values: int) -> Any:
        return op.Constant(value_ints=list(values))

    def kernel(steps: int) -> Any:
        """The first columns of H in reverse, [M, 1, steps]"""
        flipped = op.Slice(impulse, ints(steps - 1), ints(-length - 1), ints(1), ints(-1))
        return op.Unsqueeze(flipped, ints(1))

    if form == "convolution":
        return op.Conv(op.Unsqueeze(u, ints(1)), kernel(length), kernel_shape=[length], pads=[length - 1, 0])
    joint = op.Transpose(op.Concat(a, op.Unsqueeze(b, ints(1)), axis=1), perm=[1, 0])  # [M + 1, M]

    def step(make: Any, m: Any, signal: Any) -> tuple[Any, Any]:
        m = make("MatMul", make("Concat", m, signal, axis=-1), joint)
        return m, m

    if form == "recurrent":
        signal = op.Unsqueeze(u, ints(2))
        signal.shape, signal.dtype = _sized(u.shape[0], length, 1), u.dtype
        return onnx_scan([onnx_filled(u, [0], more=[order])], signal, 1, step, stacked_axis=2)[1]
    size, count = chunks(length)
    before = (count - 1) * size
    past = op.Unsqueeze(op.Slice(u, ints(0), ints(before), ints(1)), ints(1))
    starts = op.Conv(past, kernel(before), kernel_shape=[before], pads=[before, 0], strides=[size])
    starts = op.Transpose(starts, perm=[0, 2, 1])
    starts.shape, starts.dtype = _sized(u.shape[0], count, order), u.dtype
    padded = op.Pad(u, ints(0, 0, 0, count * size - length)) if count * size > length else u
    signal = op.Reshape(padded, ints(0, count, size, 1))
    signal.shape, signal.dtype = _sized(u.shape[0], count, size, 1), u.dtype
    _, memory = onnx_scan([starts], signal, 2, step)  # [B, T / L, L, M]
    memory = op.Transpose(op.Reshape(memory, ints(0, -1, order)), perm=[0, 2, 1])
    return op.Slice(memory, ints(0), ints(length), ints(2)) if count * size > length else memory


def _sized(*sizes: Any) -> Any:
    from onnxscript import ir

    return ir.Shape(sizes)


def lower_coreml(
    u: Any, impulse: Any, a: Any = None, b: Any = None, form: str = "convolution", half: bool = False
) -> Any:
    """Core ML: a convolution, or a while_loop of one matmul a step, typed fp16 with `half` as for `lif`."""
    import numpy as np
    from coremltools.converters.mil import Builder as mb

    real = np.float16 if half else np.float32
    response = impulse.val.astype(real)
    order, length = response.shape
    batch = u.shape[0]

    def convolved(x: Any, steps: int, pad: int, stride: int) -> Any:
        kernel = np.ascontiguousarray(response[:, None, steps - 1 :: -1])
        x = mb.expand_dims(x=x, axes=[1])
        return mb.conv(x=x, weight=kernel, pad_type="custom", pad=[pad, 0], strides=[stride])

    if half:
        u = mb.cast(x=u, dtype="fp16")
    if form == "convolution":
        return mb.cast(x=convolved(u, length, length - 1, 1), dtype="fp32")
    joint = np.concatenate((a.val, b.val[:, None]), axis=1).T.astype(real)

    def step(m: Any, signal: Any) -> tuple[Any, Any]:
        m = mb.matmul(x=mb.concat(values=[m, signal], axis=-1), y=joint)
        return m, m

    if form == "recurrent":
        signal = mb.expand_dims(x=mb.transpose(x=u, perm=[1, 0]), axes=[2])  # [T, B, 1]
        start = mb.fill(shape=[1, batch, order], value=real(0))
        memory = coreml_loop(start, signal, step, (length, batch, order))
        return mb.cast(x=mb.transpose(x=memory, perm=[1, 2, 0]), dtype="fp32")
    size, count = chunks(length)
    before = (count - 1) * size
    starts = convolved(mb.slice_by_size(x=u, begin=[0, 0], size=[batch, before]), before, before, size)
    starts = mb.reshape(x=mb.transpose(x=starts, perm=[0, 2, 1]), shape=[1, batch * count, order])
    if count * size > length:
        u = mb.concat(values=[u, np.zeros((batch, count * size - length), real)], axis=1)
    signal = mb.transpose(x=mb.reshape(x=u, shape=[batch * count, size]), perm=[1, 0])
    signal = mb.expand_dims(x=signal, axes=[2])  # [L, B T / L, 1]
    memory = coreml_loop(starts, signal, step, (size, batch * count, order))
    memory = mb.reshape(x=mb.transpose(x=memory, perm=[1, 0, 2]), shape=[batch, count * size, order])
    memory = mb.slice_by_size(x=memory, begin=[0, 0, 0], size=[batch, length, order])
    return mb.cast(x=mb.transpose(x=memory, perm=[0, 2, 1]), dtype="fp32")


def for_coreai(
    u: Tensor, impulse: Tensor, a: Tensor | None = None, b: Tensor | None = None, form: str = "convolution"
) -> Tensor:
    """Core AI: a convolution, or a loop of one matmul a step."""
    if form == "convolution" or a is None or b is None:
        return reference(u, impulse)

    def step(m: Tensor, signal: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        m = m @ a.T + signal.unsqueeze(-1) * b
        return m, m

    (batch, length), order = u.shape, impulse.shape[0]
    if form == "recurrent":
        start = u.new_zeros(batch, order)
        return torch_loop(start, u.T, step, u.new_zeros(length, batch, order), (a, b)).permute(1, 2, 0)
    size, count = chunks(length)
    before = (count - 1) * size
    kernel = impulse[:, :before].flip(1).unsqueeze(1)
    starts = F.conv1d(F.pad(u[:, :before].unsqueeze(1), (before, 0)), kernel, stride=size)  # [B, M, T / L]
    starts = starts.transpose(1, 2).reshape(batch * count, order)
    signal = F.pad(u, (0, count * size - length)).reshape(batch * count, size).T  # [L, B T / L]
    memory = torch_loop(starts, signal, step, u.new_zeros(size, batch * count, order), (a, b))
    memory = memory.transpose(0, 1).reshape(batch, count * size, order)
    return memory[:, :length].transpose(1, 2)


def _one_step(
    states: tuple[Tensor], signal: Tensor, impulse: Tensor, a: Tensor, b: Tensor, form: str
) -> tuple[Tensor, tuple[Tensor]]:
    """One frame [B] of the signal; the memory [B, M] is what comes out and what the next step has."""
    (m,) = states
    m = F.linear(m, a) + signal.unsqueeze(1) * b
    return m, (m,)


def _cannot_step(u: Tensor, impulse: Tensor, a: Tensor | None, b: Tensor | None, form: str) -> str | None:
    if a is None or b is None:
        return "knows only its impulse response; give a and b, the recurrence that it is the response of"
    return None


def lower_tvm(make: Any, u: Any, impulse: Any, a: Any = None, b: Any = None, form: str = "convolution") -> Any:
    """TVM: one kernel, native/lmu_memory.h, of the impulse response, whatever form is asked for."""
    from tvm import relax

    order, length = sizes(impulse)
    memory = call_kernel(make, OP.name, u, (impulse,), [[sizes(u)[0], length, order]])
    return make.emit(relax.op.permute_dims(memory, [0, 2, 1]))


OP = define(
    FusedOp(
        name="lmu_memory",
        reference=reference,
        shape=shape,
        example=example,
        lowerings={"onnx": lower_onnx, "coreml": lower_coreml, "tvm": lower_tvm},
        inlined={"coreai": for_coreai},
        tolerance=2e-6,
        forms=tuple({"form": form} if form != FORMS[0] else {} for form in FORMS),
        is_pattern=False,
        recurrence=Recurrence(
            step=_one_step,
            states=(RecurrentState("memory", "memory", lambda u, impulse, *_: (u.shape[0], impulse.shape[0])),),
            axes=lambda *_: (1, 2),
            cannot_step=_cannot_step,
        ),
        linear=LinearRecurrence(impulse_response, scaled, FORMS, chunks),
        stays_float="a memory adds up its own rounding, frame by frame",
    )
)
