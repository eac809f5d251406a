"""The quasiseparable mixer (Hydra): a state space scan in each direction and a free diagonal. Not causal.

    y_t = o^f_{t-1} + o^b_{t+1} + d_t x_t              o^f, o^b: `ssd` forwards and backwards, o^f_{-1} = o^b_T = 0

    matrix    y = M x, M_ij = C^f_{i-1} B^f_j Delta^f_j exp(sum of Delta^f_r a over j < r < i)        i > j
                              d_i                                                                    i = j
                              C^b_{i+1} B^b_j Delta^b_j exp(sum of Delta^b_r a over i < r < j)        i < j
    chunked   two scans in chunks, on one batch: the backward one of the reversed sequence

C has the index of the neighbour, since no step sees itself through a scan. The two triangles share one matrix of
exponents; nothing is reversed, rolled or looped over. Exponents are sums of one sign, as in `ssd`.
Source: Hwang et al., "Hydra: Bidirectional State Space Models Through Generalized Matrix Mixers", NeurIPS 2024, arXiv
2407.09941. Letters: as in `ssd`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from edgesmith.kernels import ssd
from edgesmith.kernels.op import Forms, FusedOp, define

FORMS = ("matrix", "chunked")


def reference(x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, form: str = "matrix") -> Tensor:
    """The mixed sequence, [B, T, H, P].

    Args:
        x: [B, T, H, P].
        delta: step sizes forwards and backwards, [B, T, 2, H], not negative.
        a: rates of both directions, [H], not positive.
        b, c: forwards and backwards, [B, T, 2, G, N]; head i has those of group i // (H / G).
        d: the diagonal, [B, T, H].
        form: how a target computes it; the numbers are the same but for rounding.
    """
    if form == "chunked":
        return _chunked(x, delta, a, b, c) + d.unsqueeze(-1) * x
    (b_f, b_b), (c_f, c_b) = b.unbind(2), c.unbind(2)
    delta_f, delta_b = delta.permute(2, 0, 3, 1).unbind(0)  # [B, H, T]
    rates = a.unsqueeze(-1)
    ones = torch.ones(x.shape[1], x.shape[1], dtype=x.dtype)
    earlier = _scores(c_f, b_f, x.shape[2], 1) * ones.tril(-1) * delta_f.unsqueeze(2)
    later = _scores(c_b, b_b, x.shape[2], -1) * ones.triu(1) * delta_b.unsqueeze(2)
    matrix = _decays(delta_f * rates, delta_b * rates) * (earlier + later)
    return ((matrix @ x.transpose(1, 2)).transpose(1, 2) + d.unsqueeze(-1) * x).contiguous()


def _scores(c: Tensor, b: Tensor, heads: int, by: int) -> Tensor:
    """Return C_{i-by} B_j, 0 where there is no such row. [B, 1 or H, T, T]"""
    c, b = ssd.spread(c, heads).transpose(1, 2), ssd.spread(b, heads).permute(0, 2, 3, 1)
    return _shift(c, by) @ b


def _shift(value: Tensor, by: int) -> Tensor:
    """Return a sequence [B, H, T, ...] one step later (1) or earlier (-1), with zeros at the end that is free."""
    zeros = torch.zeros_like(value[:, :, :1])
    return torch.cat((zeros, value[:, :, :-1]) if by == 1 else (value[:, :, 1:], zeros), dim=2)


def _decays(forward: Tensor, backward: Tensor) -> Tensor:
    """Return exp of the sums of steps strictly between i and j, of each direction in its triangle. [B, H, T, T]

    Both run along rows and the upper triangle is turned: runtimes add along the last axis number after number.
    """
    mask = torch.ones(forward.shape[-1], forward.shape[-1], dtype=forward.dtype).tril(-2)
    lower, upper = ((_shift(steps, 1).unsqueeze(-1) * mask).cumsum(2) for steps in (forward, backward))
    return (lower + upper.transpose(2, 3)).exp()


def _chunked(x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Return both directions without the diagonal."""

    def stacked(value: Tensor) -> Tensor:
        """[B, T, 2, ...] -> [2 B, T, ...], the backward half reversed"""
        forward, backward = value.unbind(2)
        return torch.cat((forward, backward.flip(1)), dim=0)

    y = ssd.chunked(torch.cat((x, x.flip(1)), dim=0), stacked(delta), a, stacked(b), stacked(c))
    zeros = torch.zeros_like(x[:, :1])
    forward, backward = y.chunk(2, dim=0)
    forward = torch.cat((zeros, forward[:, :-1]), dim=1)
    return forward + torch.cat((zeros, backward[:, :-1]), dim=1).flip(1)


def shape(
    x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, form: str = "matrix"
) -> tuple[int, ...]:
    """[B, T, H, P] from x [B, T, H, P]. Raises ValueError where the arguments do not fit together."""
    if x.dim() != 4:
        raise ValueError(f"quasiseparable: x must be [B, T, H, P], got {list(x.shape)}")
    batch, length, heads, _ = x.shape
    groups, states = (b.shape[3], b.shape[4]) if b.dim() == 5 else (1, 1)
    expected = {
        "delta": (delta, [batch, length, 2, heads]),
        "a": (a, [heads]),
        "b": (b, [batch, length, 2, groups, states]),
        "c": (c, [batch, length, 2, groups, states]),
        "d": (d, [batch, length, heads]),
    }
    for name, (given, sizes) in expected.items():
        if list(given.shape) != sizes:
            raise ValueError(f"quasiseparable: {name} must be {sizes}, got {list(given.shape)}")
    if heads % groups:
        raise ValueError(f"quasiseparable: b must be of groups that divide {heads} heads, got {groups}")
    if form not in FORMS:
        raise ValueError(f"quasiseparable: form must be {', '.join(FORMS)}, got {form!r}")
    return tuple(x.shape)


def example(
    heads: int = 4, width: int = 3, states: int = 5, groups: int = 2, length: int = 37, batch: int = 2
) -> tuple[Tensor, ...]:
    """Random arguments; step sizes from 1e-3 to 5."""
    x, delta, a, b, c = ssd.example(heads, width, states, groups, length, batch)

    def both(value: Tensor, axis: int) -> Tensor:
        return torch.stack((value, value.flip(1, axis)), dim=2)

    return x, both(delta, 2), a, both(b, 3), both(c, 3), x.mean(3)


def times(x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, costs: Any) -> dict[str, float]:
    """Return microseconds by form."""
    one = ssd.times(x, delta[:, :, 0], a, b[:, :, 0], c[:, :, 0], costs)
    found = {"matrix": 2 * one["quadratic"]}
    if "chunked" in one:
        moved = 4e-3 * 10 * d.numel() * x.shape[3] / costs.stream_gb_s
        found["chunked"] = 2 * one["chunked"] + 16 * costs.launch_us + moved
    return found


OP = define(
    FusedOp(
        name="quasiseparable",
        reference=reference,
        shape=shape,
        example=example,
        tolerance=2e-6,
        forms=({}, {"form": "chunked"}),
        is_pattern=False,
        stays_float="its decays are exponentials of sums",
        choice=Forms(FORMS, (), times),
        no_step="scans its sequence backwards too, so that the first frame waits for the last",
    )
)
