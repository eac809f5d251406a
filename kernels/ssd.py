"""State space duality (Mamba-2): a selective scan whose decay is one number a head and step. Causal.

    h_t = exp(Delta_t a) h_{t-1} + B_t (Delta_t x_t)^T,  y_t = C_t h_t,  h_{-1} = 0           [N, P], [P] of each head

    recurrent   step by step; the state is [N, P], so that C_t h_t is a row vector's product
    quadratic   y = (E * C B^T) (Delta x),  E_ij = exp(sum of Delta_r a over j < r <= i), 0 above the diagonal
    chunked     the same in chunks of Q steps, and T / Q carries between them

E's exponents are sums of a column's own steps, never differences of cumulative sums: those cancel, to an error of 2e-4
at 1024 steps of a large Delta a, and are worthless in half precision. Sums of one sign lose nothing in either.
Source: Dao and Gu, "Transformers are SSMs: Generalized Models and Efficient Algorithms Through Structured State Space
Duality", arXiv 2405.21060, listing 1. Letters: B batch, T time, H heads, P their width, G groups of heads, N state,
Q steps of a chunk.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from edgesmith.kernels.loops import coreml_loop, onnx_filled, onnx_scan, torch_loop
from edgesmith.kernels.op import Forms, FusedOp, Recurrence, RecurrentState, define

FORMS = ("recurrent", "quadratic", "chunked")

CHUNK = 32
"""Steps of a chunk: 32 and 64 were the best at every size from 196 to 4096 steps; sums are shorter in 32."""


def reference(x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, form: str = "recurrent") -> Tensor:
    """The scan of x [B, T, H, P], without the skip and the gate around it. [B, T, H, P]

    Args:
        x: [B, T, H, P].
        delta: step sizes, [B, T, H], not negative.
        a: rates, [H], not positive.
        b, c: [B, T, G, N]; head i has those of group i // (H / G).
        form: how a target computes it; the numbers are the same but for rounding.
    """
    if form == "quadratic":
        return quadratic(x, delta, a, b, c)
    if form == "chunked":
        return chunked(x, delta, a, b, c)
    heads = x.shape[2]
    decays, driven = (delta * a).exp()[..., None, None], delta.unsqueeze(-1) * x
    b, c = spread(b, heads), spread(c, heads)
    h = torch.zeros_like(b[:, 0].unsqueeze(-1) * driven[:, 0].unsqueeze(-2))  # [B, H, N, P]
    outputs = []
    for t in range(x.shape[1]):
        h = decays[:, t] * h + b[:, t].unsqueeze(-1) * driven[:, t].unsqueeze(-2)
        outputs.append((c[:, t].unsqueeze(-2) @ h).squeeze(-2))
    return torch.stack(outputs, dim=1)


def spread(b: Tensor, heads: int) -> Tensor:
    """Return each group's rows for all of its heads; one group's as they are. [B, T, G, N] -> [B, T, 1 or H, N]"""
    groups = b.shape[2]
    return b if groups in (1, heads) else b.repeat_interleave(heads // groups, dim=2)


def decays_between(steps: Tensor) -> Tensor:
    """Return exp of the sums of steps over j < r <= i, 0 for j > i. [..., Q] -> [..., Q, Q]"""
    size = steps.shape[-1]
    ones = torch.ones(size, size, dtype=steps.dtype)
    exponents = (steps.unsqueeze(-1) * ones.tril(-1)).cumsum(steps.dim() - 1)
    return exponents.exp() * ones.tril()


def quadratic(x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """See the table above."""
    heads = x.shape[2]
    between = decays_between((delta * a).transpose(1, 2))  # [B, H, T, T]
    scores = spread(c, heads).transpose(1, 2) @ spread(b, heads).permute(0, 2, 3, 1)
    driven = (delta.unsqueeze(-1) * x).transpose(1, 2)  # [B, H, T, P]
    return ((between * scores) @ driven).transpose(1, 2).contiguous()


def chunked(x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """See the table above. Steps that fill the last chunk have a decay of 1 and no input, which changes nothing."""
    (_, length, heads, width), states = x.shape, b.shape[3]
    if length <= CHUNK:
        return quadratic(x, delta, a, b, c)
    count = -(-length // CHUNK)
    missing = count * CHUNK - length

    def cut(value: Tensor) -> Tensor:
        """[B, T, H, P] -> [B K, H, Q, P]"""
        padded = F.pad(value, (0, 0, 0, 0, 0, missing)) if missing else value
        return padded.reshape(-1, CHUNK, *value.shape[2:]).transpose(1, 2)

    steps = cut((delta * a).unsqueeze(-1)).squeeze(-1)  # [B K, H, Q]
    driven, b, c = cut(delta.unsqueeze(-1) * x), cut(spread(b, heads)), cut(spread(c, heads))
    between = decays_between(steps)
    own = (between * (c @ b.transpose(2, 3))) @ driven  # [B K, H, Q, P]
    since = steps.cumsum(2).exp().unsqueeze(-1)  # the decay from the chunk's beginning, [B K, H, Q, 1]
    ends = b.transpose(2, 3) @ (between[:, :, -1].unsqueeze(-1) * driven)  # [B K, H, N, P]
    ends = ends.reshape(-1, count, heads, states * width)
    through = since[:, :, -1].reshape(-1, count, heads, 1)
    carry = torch.zeros_like(ends[:, :1])
    carries = [carry]
    for k in range(count - 1):
        carry = through[:, k : k + 1] * carry + ends[:, k : k + 1]
        carries.append(carry)
    before = torch.cat(carries, dim=1).reshape(-1, heads, states, width)
    y = own + since * (c @ before)
    y = y.transpose(1, 2).reshape(-1, count * CHUNK, heads, width)
    return y[:, :length].contiguous() if missing else y


def shape(x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, form: str = "recurrent") -> tuple[int, ...]:
    """[B, T, H, P] from x [B, T, H, P]. Raises ValueError where the arguments do not fit together."""
    if x.dim() != 4:
        raise ValueError(f"ssd: x must be [B, T, H, P], got {list(x.shape)}")
    batch, length, heads, width = x.shape
    groups, states = (b.shape[2], b.shape[3]) if b.dim() == 4 else (1, 1)
    expected = {
        "delta": (delta, [batch, length, heads]),
        "a": (a, [heads]),
        "b": (b, [batch, length, groups, states]),
        "c": (c, [batch, length, groups, states]),
    }
    for name, (given, sizes) in expected.items():
        if list(given.shape) != sizes:
            raise ValueError(f"ssd: {name} must be {sizes}, got {list(given.shape)}")
    if heads % groups:
        raise ValueError(f"ssd: b must be of groups that divide {heads} heads, got {groups}")
    if form not in FORMS:
        raise ValueError(f"ssd: form must be {', '.join(FORMS)}, got {form!r}")
    return batch, length, heads, width


def example(
    heads: int = 4, width: int = 3, states: int = 5, groups: int = 2, length: int = 37, batch: int = 2
) -> tuple[Tensor, ...]:
    """Random arguments; step sizes from 1e-3 to 5."""
    generator = torch.Generator().manual_seed(0)

    def normal(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator)

    delta = (8.5 * torch.rand(batch, length, heads, generator=generator) - 6.9).exp()
    a = -(0.3 * normal(heads)).exp()
    b, c = normal(batch, length, groups, states), normal(batch, length, groups, states)
    return normal(batch, length, heads, width), delta, a, b, c


def times(x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, costs: Any) -> dict[str, float]:
    """Return microseconds by form."""
    (batch, length, heads, width), (groups, states) = x.shape, b.shape[2:]
    rows = batch * heads
    near = costs.read_gb_s if costs.read_gb_s < 1e6 else costs.stream_gb_s

    def square(size: int, count: int) -> float:
        """E, the scores and their product with the input, of `count` squares a head."""
        passes = 1e-3 * PASSES * 8 * rows * count * size**2 / costs.stream_gb_s
        macs = count * size**2 * (batch * groups * states + rows * width)
        starts = 8 * costs.launch_us + rows * count * costs.matmul_us
        return float(starts + passes + 1e-3 * macs / costs.gmac_s)

    found = {"quadratic": square(length, 1)}
    if length > CHUNK:
        count = -(-length // CHUNK)
        state = rows * states * width
        between = 12 * costs.launch_us + 2 * count * costs.launch_us
        between += 1e-3 * 4 * 8 * state * count / costs.stream_gb_s + 2e-3 * state * length / costs.gmac_s
        found["chunked"] = square(CHUNK, count) + between
    if costs.loop_us > 0:
        step = 5 * costs.loop_us + 1e-3 * LOOP_PASSES * 8 * rows * states * width / near
        found["recurrent"] = 2 * costs.launch_us + length * step
    return found


PASSES, LOOP_PASSES = 6.0, 6.0
"""Times that the squares, and the state of one step, are read and written; the cumulative sum counts twice."""


def lower_onnx(x: Any, delta: Any, a: Any, b: Any, c: Any, form: str = "recurrent") -> Any:
    """ONNX: a Scan of four nodes a step."""
    from onnxscript import ir, opset20

    op: Any = opset20
    (batch, length, heads, width), (groups, states) = x.shape, b.shape[2:]

    def ints(*values: int) -> Any:
        return op.Constant(value_ints=list(values))

    def sized(value: Any, *sizes: Any) -> Any:
        value.shape, value.dtype = ir.Shape(sizes), x.dtype
        return value

    def all_heads(value: Any) -> tuple[Any, int]:
        if groups in (1, heads):
            return value, groups
        of_head = [i // (heads // groups) for i in range(heads)]
        return op.Gather(value, ints(*of_head), axis=2), heads

    (b, rows), (c, _) = all_heads(b), all_heads(c)
    decays = op.Unsqueeze(op.Exp(op.Mul(delta, a)), ints(3, 4))
    driven = op.Unsqueeze(op.Mul(op.Unsqueeze(delta, ints(3)), x), ints(3))
    sequences = [
        sized(decays, batch, length, heads, 1, 1),
        sized(driven, batch, length, heads, 1, width),
        sized(op.Unsqueeze(b, ints(4)), batch, length, rows, states, 1),
        sized(op.Unsqueeze(c, ints(3)), batch, length, rows, 1, states),
    ]

    def step(make: Any, h: Any, decay: Any, driven: Any, b: Any, c: Any) -> tuple[Any, Any]:
        h = make("Add", make("Mul", decay, h), make("Mul", b, driven))
        return h, make("MatMul", c, h)

    start = onnx_filled(x, [0], more=[heads, states, width])
    return op.Squeeze(onnx_scan([start], sequences, 1, step)[1], ints(3))


def lower_coreml(x: Any, delta: Any, a: Any, b: Any, c: Any, form: str = "recurrent", half: bool = False) -> Any:
    """Core ML: a while_loop over decays, inputs, b and c side by side, typed fp16 with `half` as for `lif`."""
    import numpy as np
    from coremltools.converters.mil import Builder as mb

    real = np.float16 if half else np.float32
    (batch, length, heads, width), (groups, states) = x.shape, b.shape[2:]
    each = heads // groups
    decays = mb.expand_dims(x=mb.exp(x=mb.mul(x=delta, y=a)), axes=[3])
    driven = mb.mul(x=mb.expand_dims(x=delta, axes=[3]), y=x)

    def all_heads(value: Any) -> Any:
        return mb.gather(x=value, indices=np.arange(heads, dtype=np.int32) // each, axis=2)

    joined = mb.concat(values=[decays, driven, all_heads(b), all_heads(c)], axis=-1)
    if half:
        joined = mb.cast(x=joined, dtype="fp16")
    joined = mb.transpose(x=joined, perm=[1, 0, 2, 3])
    joined = mb.reshape(x=joined, shape=[length, batch * heads, 1 + width + 2 * states])

    def step(h: Any, frame: Any) -> tuple[Any, Any]:
        frame = mb.transpose(x=frame, perm=[1, 0, 2])  # [B H, 1, 1 + P + 2 N]
        decay, driven, b_t, c_t = mb.split(x=frame, split_sizes=[1, width, states, states], axis=-1)
        h = mb.add(x=mb.mul(x=decay, y=h), y=mb.mul(x=mb.transpose(x=b_t, perm=[0, 2, 1]), y=driven))
        return h, mb.transpose(x=mb.matmul(x=c_t, y=h), perm=[1, 0, 2])

    start = mb.fill(shape=[batch * heads, states, width], value=real(0))
    y = coreml_loop(start, joined, step, (length, batch * heads, width))
    y = mb.reshape(x=y, shape=[length, batch, heads, width])
    return mb.cast(x=mb.transpose(x=y, perm=[1, 0, 2, 3]), dtype="fp32")


def for_coreai(x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, form: str = "recurrent") -> Tensor:
    """Core AI: a loop over decays, inputs, b and c side by side."""
    (batch, length, heads, width), states = x.shape, b.shape[3]
    each = heads // b.shape[2]
    b, c = (value.repeat_interleave(each, dim=2) if each > 1 else value for value in (b, c))
    joined = torch.cat(((delta * a).exp().unsqueeze(-1), delta.unsqueeze(-1) * x, b, c), dim=-1)
    joined = joined.transpose(0, 1).flatten(1, 2)  # [T, B H, 1 + P + 2 N]

    def step(h: Tensor, frame: Tensor) -> tuple[Tensor, Tensor]:
        decay, driven, b_t, c_t = frame.unsqueeze(1).split((1, width, states, states), dim=-1)
        h = decay * h + b_t.transpose(1, 2) * driven
        return h, (c_t @ h).squeeze(1)

    start, result = x.new_zeros(batch * heads, states, width), x.new_zeros(length, batch * heads, width)
    y = torch_loop(start, joined, step, result)
    return y.reshape(length, batch, heads, width).transpose(0, 1)


def _one_step(
    states: tuple[Tensor], x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, form: str
) -> tuple[Tensor, tuple[Tensor]]:
    """One frame: x [B, H, P], delta [B, H], b and c [B, G, N]. The state is [B, H, N, P]."""
    (h,) = states
    heads = x.shape[1]
    b, c = (spread(value.unsqueeze(1), heads).squeeze(1) for value in (b, c))
    driven = (delta.unsqueeze(-1) * x).unsqueeze(-2)
    h = (delta * a).exp()[..., None, None] * h + b.unsqueeze(-1) * driven
    return (c.unsqueeze(-2) @ h).squeeze(-2), (h,)


def _state(x: Tensor, delta: Tensor, a: Tensor, b: Tensor, *_: Any) -> tuple[int, ...]:
    return x.shape[0], x.shape[2], b.shape[3], x.shape[3]


OP = define(
    FusedOp(
        name="ssd",
        reference=reference,
        shape=shape,
        example=example,
        lowerings={"onnx": lower_onnx, "coreml": lower_coreml},
        inlined={"coreai": for_coreai},
        tolerance=2e-6,
        forms=({}, {"form": "quadratic"}, {"form": "chunked"}),
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
