"""The selective scan (S6): a diagonal recurrence whose decay, input and read-out follow from the input. Causal.

    h_t = exp(Delta_t A) * h_{t-1} + (Delta_t x_t) B_t^T,  y_t = C_t h_t,  h_{-1} = 0        [N, D], [D]

    recurrent   step by step; the state is [N, D], so that C_t h_t is a row vector's product
    blocked     chunks of Q steps side by side: their own ends, then T / Q carries, then the steps again from these

Each channel and state has a decay of its own, so there is no product of matrices over time, as `ssd` has. Closed forms
by cumulative sums, exp(S_t) sum_r exp(-S_r) b_r, overflow float32 once |S| passes 88, after 255 steps of Mamba's own
initial values; both forms here multiply decays and never exponentiate a positive number.
Source: Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", arXiv 2312.00752, algorithm 2,
with B discretised by Euler's rule as in its code. Letters: B batch, T time, D channels, N state, Q steps of a chunk.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from edgesmith.kernels.loops import coreml_loop, onnx_filled, onnx_scan, torch_loop
from edgesmith.kernels.op import Forms, FusedOp, Recurrence, RecurrentState, define

FORMS = ("recurrent", "blocked")

CHUNK = 16
"""Steps of a chunk: 16 or 32 is the best or equal to it at every size that was measured; it sets how many operators."""


def reference(x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, form: str = "recurrent") -> Tensor:
    """The scan of x [B, T, D], without the skip and the gate around it. [B, T, D]

    Args:
        x: [B, T, D].
        delta: step sizes, [B, T, D], not negative.
        a: rates, [D, N], not positive.
        b, c: [B, T, N], the same for all channels.
        form: how a target computes it; the numbers are the same but for rounding.
    """
    if form == "blocked":
        return _blocked(x, delta, a, b, c)
    rates, driven = a.t(), delta * x
    h = torch.zeros_like(driven[:, :1] * b[:, 0].unsqueeze(-1))  # [B, N, D]
    outputs = []
    for t in range(x.shape[1]):
        h = (delta[:, t : t + 1] * rates).exp() * h + driven[:, t : t + 1] * b[:, t].unsqueeze(-1)
        outputs.append(c[:, t : t + 1] @ h)
    return torch.cat(outputs, dim=1)


def _blocked(x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """See the table above. Steps that fill the last chunk have a decay of 1 and no input, which changes nothing."""
    length = x.shape[1]
    count = -(-length // CHUNK) if length > CHUNK else 1
    size = CHUNK if length > CHUNK else length
    driven = delta * x

    def cut(value: Tensor) -> Tensor:
        padded = F.pad(value, (0, 0, 0, count * size - length)) if count * size > length else value
        return padded.reshape(-1, count, size, value.shape[-1])

    rates = a.t()  # [N, D]
    delta, driven, b, c = cut(delta), cut(driven), cut(b), cut(c)
    decays = [(delta[:, :, q : q + 1] * rates).exp() for q in range(size)]  # [B, K, N, D] each
    added = [driven[:, :, q : q + 1] * b[:, :, q].unsqueeze(-1) for q in range(size)]
    h = _carries(delta, rates, decays, added) if count > 1 else None
    outputs = []
    for q in range(size):
        h = added[q] if h is None else decays[q] * h + added[q]
        outputs.append(c[:, :, q : q + 1] @ h)  # [B, K, 1, D]
    y = torch.cat(outputs, dim=2).reshape(-1, count * size, x.shape[-1])
    return y[:, :length].contiguous() if count * size > length else y


def _carries(delta: Tensor, rates: Tensor, decays: list[Tensor], added: list[Tensor]) -> Tensor:
    """Return the state before each chunk. [B, K, N, D]"""
    end = added[0]
    for decay, more in zip(decays[1:], added[1:], strict=True):
        end = decay * end + more
    through = (delta.sum(2, keepdim=True) * rates).exp()
    carry = torch.zeros_like(end[:, :1])
    carries = [carry]
    for k in range(end.shape[1] - 1):
        carry = through[:, k : k + 1] * carry + end[:, k : k + 1]
        carries.append(carry)
    return torch.cat(carries, dim=1)


def shape(x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, form: str = "recurrent") -> tuple[int, ...]:
    """[B, T, D] from x [B, T, D]. Raises ValueError where the arguments do not fit together."""
    if x.dim() != 3:
        raise ValueError(f"selective_scan: x must be [B, T, D], got {list(x.shape)}")
    batch, length, width = x.shape
    if tuple(delta.shape) != (batch, length, width):
        raise ValueError(f"selective_scan: delta must be {[batch, length, width]}, got {list(delta.shape)}")
    if a.dim() != 2 or a.shape[0] != width:
        raise ValueError(f"selective_scan: a must be [{width}, N], got {list(a.shape)}")
    for name, given in (("b", b), ("c", c)):
        if tuple(given.shape) != (batch, length, a.shape[1]):
            raise ValueError(f"selective_scan: {name} must be {[batch, length, a.shape[1]]}, got {list(given.shape)}")
    if form not in FORMS:
        raise ValueError(f"selective_scan: form must be {', '.join(FORMS)}, got {form!r}")
    return batch, length, width


def example(width: int = 6, states: int = 4, length: int = 37, batch: int = 2) -> tuple[Tensor, ...]:
    """Random arguments; step sizes from 1e-3 to 5."""
    generator = torch.Generator().manual_seed(0)

    def normal(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator)

    delta = (8.5 * torch.rand(batch, length, width, generator=generator) - 6.9).exp()
    a = -torch.arange(1.0, states + 1).expand(width, states) * (0.1 * normal(width, states)).exp()
    return normal(batch, length, width), delta, a, normal(batch, length, states), normal(batch, length, states)


def times(x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, costs: Any) -> dict[str, float]:
    """Return microseconds by form.

    A step of the loop keeps its state [N, D] near; the blocked form reads and writes [T, N, D] several times.
    """
    (batch, length, width), states = x.shape, a.shape[1]
    state, near = batch * width * states, costs.read_gb_s if costs.read_gb_s < 1e6 else costs.stream_gb_s
    count = -(-length // CHUNK)
    found = {"blocked": (10 * min(CHUNK, length) + 2 * count) * costs.launch_us}
    found["blocked"] += 1e-3 * PASSES * 8 * state * length / costs.stream_gb_s
    if costs.loop_us > 0:
        found["recurrent"] = 2 * costs.launch_us + length * (6 * costs.loop_us + 1e-3 * LOOP_PASSES * 8 * state / near)
    return found


PASSES, LOOP_PASSES = 13.0, 8.0
"""The time of one step's state, exponentials included, in passes over it: 4.2 and 0.87 ns an element, as they were
measured on ONNX Runtime's CPU from [196, 192, 16] to [4096, 768, 64], within 25 and 11 per cent."""


def lower_onnx(x: Any, delta: Any, a: Any, b: Any, c: Any, form: str = "recurrent") -> Any:
    """ONNX: a Scan of six nodes a step."""
    from onnxscript import ir, opset20

    op: Any = opset20
    (batch, length, width), states = x.shape, a.shape[1]

    def ints(*values: int) -> Any:
        return op.Constant(value_ints=list(values))

    def sized(value: Any, *sizes: Any) -> Any:
        value.shape, value.dtype = ir.Shape(sizes), x.dtype
        return value

    rates = op.Transpose(a, perm=[1, 0])
    row = ints(2)
    sequences = [
        sized(op.Unsqueeze(delta, row), batch, length, 1, width),
        sized(op.Unsqueeze(op.Mul(delta, x), row), batch, length, 1, width),
        sized(op.Unsqueeze(b, ints(3)), batch, length, states, 1),
        sized(op.Unsqueeze(c, row), batch, length, 1, states),
    ]

    def step(make: Any, h: Any, delta: Any, driven: Any, b: Any, c: Any) -> tuple[Any, Any]:
        decay = make("Exp", make("Mul", delta, rates))
        h = make("Add", make("Mul", decay, h), make("Mul", driven, b))
        return h, make("MatMul", c, h)

    start = onnx_filled(x, [0], more=[states, width])
    return op.Squeeze(onnx_scan([start], sequences, 1, step)[1], row)


def lower_coreml(x: Any, delta: Any, a: Any, b: Any, c: Any, form: str = "recurrent", half: bool = False) -> Any:
    """Core ML: a while_loop over x, delta, b and c side by side, typed fp16 with `half` as for `lif`."""
    import numpy as np
    from coremltools.converters.mil import Builder as mb

    real = np.float16 if half else np.float32
    (batch, length, width), states = x.shape, a.shape[1]
    joined = mb.concat(values=[mb.mul(x=delta, y=x), delta, b, c], axis=-1)
    if half:
        joined = mb.cast(x=joined, dtype="fp16")
    joined = mb.transpose(x=joined, perm=[1, 0, 2])  # [T, B, 2 D + 2 N]
    rates = a.val.T.astype(real) if a.val is not None else mb.transpose(x=a, perm=[1, 0])

    def step(h: Any, frame: Any) -> tuple[Any, Any]:
        frame = mb.transpose(x=frame, perm=[1, 0, 2])  # [B, 1, 2 D + 2 N]
        driven, size, b_t, c_t = mb.split(x=frame, split_sizes=[width, width, states, states], axis=-1)
        decay = mb.exp(x=mb.mul(x=size, y=rates))
        h = mb.add(x=mb.mul(x=decay, y=h), y=mb.mul(x=driven, y=mb.transpose(x=b_t, perm=[0, 2, 1])))
        return h, mb.transpose(x=mb.matmul(x=c_t, y=h), perm=[1, 0, 2])

    start = mb.fill(shape=[batch, states, width], value=real(0))
    y = coreml_loop(start, joined, step, (length, batch, width))
    return mb.cast(x=mb.transpose(x=y, perm=[1, 0, 2]), dtype="fp32")


def for_coreai(x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, form: str = "recurrent") -> Tensor:
    """Core AI: a loop over x, delta, b and c side by side."""
    (batch, length, width), states = x.shape, a.shape[1]
    joined = torch.cat((delta * x, delta, b, c), dim=-1).transpose(0, 1)  # [T, B, 2 D + 2 N]

    def step(h: Tensor, frame: Tensor, rates: Tensor) -> tuple[Tensor, Tensor]:
        driven, size, b_t, c_t = frame.unsqueeze(1).split((width, width, states, states), dim=-1)
        h = (size * rates).exp() * h + driven * b_t.transpose(1, 2)
        return h, (c_t @ h).squeeze(1)

    start, result = x.new_zeros(batch, states, width), x.new_zeros(length, batch, width)
    return torch_loop(start, joined, step, result, (a.t().contiguous(),)).transpose(0, 1)


def _one_step(
    states: tuple[Tensor], x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, form: str
) -> tuple[Tensor, tuple[Tensor]]:
    """One frame: x and delta [B, D], b and c [B, N]. The state is [B, N, D]."""
    (h,) = states
    h = (delta.unsqueeze(1) * a.t()).exp() * h + (delta * x).unsqueeze(1) * b.unsqueeze(2)
    return (c.unsqueeze(1) @ h).squeeze(1), (h,)


def _state(x: Tensor, _: Tensor, a: Tensor, *__: Any) -> tuple[int, ...]:
    return x.shape[0], a.shape[1], a.shape[0]


OP = define(
    FusedOp(
        name="selective_scan",
        reference=reference,
        shape=shape,
        example=example,
        lowerings={"onnx": lower_onnx, "coreml": lower_coreml},
        inlined={"coreai": for_coreai},
        tolerance=2e-6,
        forms=({}, {"form": "blocked"}),
        is_pattern=False,
        recurrence=Recurrence(
            step=_one_step,
            states=(RecurrentState("state", "state", _state),),
            axes=lambda *_: (1, 1),
            sequences=(1, 3, 4),
        ),
        stays_float="a state adds up its own rounding, frame by frame",
        choice=Forms(FORMS, ("recurrent",), times),
    )
)
