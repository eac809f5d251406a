"""Damped exponential moving averages: of each channel several decays that do not depend on the input. Causal.

    h_t = p h_{t-1} + x_t,  y_t = sum over E of w h_t,  h_{-1} = 0                         p, w [D, E] of each channel

    chunked      chunks of Q steps: y = W u in each, W the averages within a chunk as a matrix [Q, Q] of each channel;
                 their ends enter states, which are carried over K = T / Q chunks in log2 K rounds, and leave again
    convolution  a causal depthwise convolution with the impulse response, where T <= Q

It is a linear recurrence, unlike `selective_scan`: p^t are constants, so all is products with constant matrices. These
are the op's arguments, made by `tables` from p and w, in float32 or float64 once: p^64 of a p that was rounded to half
precision is off by 3 per cent. No power of p is ever divided by, so that nothing overflows.
Source: Ma et al., "Mega: Moving Average Equipped Gated Attention", arXiv 2209.10655, eq. 2-3, with p = 1 - alpha delta
and w = eta alpha beta. Letters: B batch, T time, D channels, E averages of a channel, Q steps of a chunk, K chunks.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from edgesmith.kernels.op import Forms, FusedOp, Recurrence, RecurrentState, define

FORMS = ("chunked", "convolution")

CHUNK = 32
"""Steps of a chunk: its matrices grow with the square, and the rounds with the logarithm of T / Q."""


def tables(decay: Tensor, weight: Tensor, length: int) -> tuple[Tensor, ...]:
    """Return the arguments of the op after x: p, w, and W [D, Q, Q], enter [D, E, Q], leave [D, Q, E], p^(Q 2^r).

    Args:
        decay: p, [D, E], in 0..1.
        weight: w, [D, E].
        length: T, which says how long a chunk is and how many rounds there are.
    """
    size = min(length, CHUNK)
    steps = torch.arange(size, dtype=decay.dtype)
    powers = decay.unsqueeze(-1) ** steps  # [D, E, Q]
    response = (weight.unsqueeze(-1) * powers).sum(1)  # [D, Q]
    apart = torch.arange(size).unsqueeze(1) - torch.arange(size)  # [Q, Q]
    within = response[:, apart.clamp(min=0)] * (apart >= 0).to(decay.dtype)
    leave = (weight.unsqueeze(-1) * powers * decay.unsqueeze(-1)).transpose(1, 2)
    through = torch.stack([decay ** (size * 2**r) for r in range(max(_rounds(length), 1))])
    return decay, weight, within, powers.flip(-1), leave, through


def _rounds(length: int) -> int:
    """Return how many rounds carry states over all chunks but the last."""
    count = -(-length // CHUNK)
    return (count - 2).bit_length() if count > 2 else 0


def reference(
    x: Tensor,
    decay: Tensor,
    weight: Tensor,
    within: Tensor,
    enter: Tensor,
    leave: Tensor,
    through: Tensor,
    form: str = "chunked",
) -> Tensor:
    """The averages of x [B, T, D]. [B, T, D]

    Args:
        x: [B, T, D].
        decay, weight: p and w, [D, E].
        within, enter, leave, through: what `tables` makes of them.
        form: how a target computes it; the numbers are the same but for rounding.
    """
    (batch, length, width), size = x.shape, within.shape[1]
    if form == "convolution" and length <= size:
        kernel = within[:, -1:]  # the response, its end first, as a convolution has it
        padded = F.pad(x.transpose(1, 2), (size - 1, 0))
        return F.conv1d(padded, kernel, groups=width).transpose(1, 2).contiguous()
    count = -(-length // size)
    padded = F.pad(x, (0, 0, 0, count * size - length)) if count * size > length else x
    u = padded.reshape(batch, count, size, width).permute(3, 2, 0, 1).reshape(width, size, batch * count)
    y = within @ u  # [D, Q, B K]
    if count > 1:
        ends = (enter @ u).reshape(width, -1, batch, count)[..., :-1]  # [D, E, B, K - 1]
        carried = _carry(ends, through, count - 1)
        before = torch.cat((torch.zeros_like(carried[..., :1]), carried), dim=-1)
        y = y + leave @ before.reshape(width, -1, batch * count)
    y = y.reshape(width, size, batch, count).permute(2, 3, 1, 0).reshape(batch, count * size, width)
    return y[:, :length].contiguous() if count * size > length else y


def _carry(ends: Tensor, through: Tensor, count: int) -> Tensor:
    """Return the states after each chunk from what each adds to them, in rounds of twice as many chunks."""
    state, reach, r = ends, 1, 0
    while reach < count:
        earlier = F.pad(state[..., : count - reach], (reach, 0))
        state = state + through[r][..., None, None] * earlier
        reach, r = 2 * reach, r + 1
    return state


def shape(
    x: Tensor,
    decay: Tensor,
    weight: Tensor,
    within: Tensor,
    enter: Tensor,
    leave: Tensor,
    through: Tensor,
    form: str = "chunked",
) -> tuple[int, ...]:
    """[B, T, D] from x [B, T, D]. Raises ValueError where the arguments do not fit together."""
    if x.dim() != 3:
        raise ValueError(f"damped_ema: x must be [B, T, D], got {list(x.shape)}")
    batch, length, width = x.shape
    if decay.dim() != 2 or decay.shape[0] != width:
        raise ValueError(f"damped_ema: decay must be [{width}, E], got {list(decay.shape)}")
    averages = decay.shape[1]
    size = within.shape[1] if within.dim() == 3 else CHUNK
    expected = {
        "weight": (weight, [width, averages]),
        "within": (within, [width, size, size]),
        "enter": (enter, [width, averages, size]),
        "leave": (leave, [width, size, averages]),
        "through": (through, [through.shape[0] if through.dim() == 3 else 1, width, averages]),
    }
    for name, (given, sizes) in expected.items():
        if list(given.shape) != sizes:
            raise ValueError(f"damped_ema: {name} must be {sizes}, got {list(given.shape)}")
    if form not in FORMS:
        raise ValueError(f"damped_ema: form must be {', '.join(FORMS)}, got {form!r}")
    return batch, length, width


def example(width: int = 6, averages: int = 4, length: int = 300, batch: int = 2) -> tuple[Tensor, ...]:
    """Random arguments; decays from 0.1 to 0.9999."""
    generator = torch.Generator().manual_seed(0)
    decay = 1 - 10 ** (-4 + 3.95 * torch.rand(width, averages, generator=generator))
    weight = torch.randn(width, averages, generator=generator)
    return torch.randn(batch, length, width, generator=generator), *tables(decay, weight, length)


def times(
    x: Tensor,
    decay: Tensor,
    weight: Tensor,
    within: Tensor,
    enter: Tensor,
    leave: Tensor,
    through: Tensor,
    costs: Any,
) -> dict[str, float]:
    """Return microseconds by form."""
    (batch, length, width), size, averages = x.shape, within.shape[1], decay.shape[1]
    numbers, count = batch * length * width, -(-length // size)
    states = batch * count * width * averages
    moved = 8e-3 * (6 * numbers + 3 * states * (1 + (count - 1).bit_length())) / costs.stream_gb_s
    macs = numbers * (size + (2 * averages if count > 1 else 0))
    found = {"chunked": (8 + 5 * count.bit_length()) * costs.launch_us + moved + 1e-3 * macs / costs.gmac_s}
    if count == 1:
        found["convolution"] = 4 * costs.launch_us + 8e-3 * size * numbers / costs.stream_gb_s
    return found


def _one_step(states: tuple[Tensor], x: Tensor, decay: Tensor, weight: Tensor, *_: Any) -> tuple[Tensor, tuple[Tensor]]:
    """One frame x [B, D]. The state is [B, D, E]."""
    (h,) = states
    h = decay * h + x.unsqueeze(-1)
    return (weight * h).sum(-1), (h,)


def _state(x: Tensor, decay: Tensor, *_: Any) -> tuple[int, ...]:
    return x.shape[0], *decay.shape


OP = define(
    FusedOp(
        name="damped_ema",
        reference=reference,
        shape=shape,
        example=example,
        tolerance=2e-6,
        is_pattern=False,
        recurrence=Recurrence(
            step=_one_step,
            states=(RecurrentState("averages", "moving averages", _state),),
            axes=lambda *_: (1, 1),
        ),
        stays_float="an average adds up its own rounding",
        choice=Forms(FORMS, (), times),
    )
)
