"""Aggregated attention: each query sees its 3x3 neighbours and a pooled map, under one softmax. O(N (9 + P)).

    q^ = q / |q|,  k^ = k / |k|                             each head's d channels, at each position
    q~ = (q^ + E) A                                         A = softplus(temperature) ln(number of keys), [h, 1, N]
    l  = [ q~ . k^_t + b_t | q~ . k^_p + b_p ]              t the nine neighbours, p the pooled cells    [h, 9 + P, N]
    a  = softmax(l)
    y  = sum_t (a_t + q^ . T_t + c_t) v_t + sum_p a_p v_p   [h, d, N]; outside of the map v_t is 0

Source: TransNeXt, arXiv 2311.17132, eq. 3-8. Scale, mask and position bias follow from the model's size: they are
constants, the mask as a large negative number in b_t. The neighbours are nine shifted slices of the map, row by row;
as PyTorch's unfold they would be a gather, or a dense convolution with one-hot kernels that is larger than the model.
Letters: B batch, C = h d channels, H W, h heads, d head width, N = H W positions, P pooled cells.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from edgesmith.kernels.op import FusedOp, define

MASKED = 1e4
"""The bias of a neighbour outside of the map is minus this: exp of it is 0, and half precision holds it."""


def reference(
    q: Tensor,
    kv: Tensor,
    pooled: Tensor,
    scale: Tensor,
    embedding: Tensor,
    local_bias: Tensor,
    pool_bias: Tensor,
    tokens: Tensor,
    token_bias: Tensor,
) -> Tensor:
    """Attend to neighbours and pooled cells. Returns [B, C, H, W].

    Args:
        q: queries, [B, C, H, W].
        kv: keys and values, [B, 2C, H, W].
        pooled: keys and values of the pooled cells, [B, 2C, P].
        scale: A, [h, 1, N].
        embedding: E, [h, d, 1].
        local_bias: b_t, with the mask, [h, 9, N].
        pool_bias: b_p, [h, P, N].
        tokens, token_bias: T and c, [h, 9, d] and [h, 9, 1].
    """
    height, width = q.shape[2:]
    heads, head_width = embedding.shape[:2]
    k, v = kv.unflatten(1, (2 * heads, head_width)).chunk(2, dim=1)  # each [B, h, d, H, W]
    pool_k, pool_v = pooled.unflatten(1, (2 * heads, head_width)).chunk(2, dim=1)  # each [B, h, d, P]
    unit = F.normalize(q.unflatten(1, (heads, head_width)).flatten(3), dim=2)  # [B, h, d, N]
    query = (unit + embedding) * scale
    local_k, local_v = _neighbours(F.normalize(k, dim=2)), _neighbours(v)  # each [B, h, d, 9, N]
    local = (query.unsqueeze(3) * local_k).sum(2) + local_bias
    pool = F.normalize(pool_k, dim=2).transpose(2, 3) @ query + pool_bias
    weights = torch.cat((local, pool), dim=2).softmax(2)  # [B, h, 9 + P, N]
    local, pool = weights.split((9, pooled.shape[2]), dim=2)
    local = local + (tokens @ unit + token_bias)
    y = (local.unsqueeze(2) * local_v).sum(3) + pool_v @ pool
    return y.flatten(1, 2).unflatten(2, (height, width))


def _neighbours(x: Tensor) -> Tensor:
    """The 3x3 neighbours of each position, row by row, 0 outside of the map. [B, h, d, H, W] -> [B, h, d, 9, N]"""
    height, width = x.shape[3:]
    padded = F.pad(x, (1, 1, 1, 1))
    shifted = [padded[:, :, :, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    return torch.stack(shifted, dim=3).flatten(4)


def shape(
    q: Tensor,
    kv: Tensor,
    pooled: Tensor,
    scale: Tensor,
    embedding: Tensor,
    local_bias: Tensor,
    pool_bias: Tensor,
    tokens: Tensor,
    token_bias: Tensor,
) -> tuple[int, ...]:
    """That of q. Raises ValueError where the other arguments do not fit it."""
    if q.dim() != 4 or embedding.dim() != 3 or pooled.dim() != 3:
        raise ValueError(
            "aggregated_attention: q must be [B, C, H, W], pooled [B, 2C, P] and embedding [h, d, 1],"
            f" got {list(q.shape)}, {list(pooled.shape)} and {list(embedding.shape)}"
        )
    batch, channels, height, width = q.shape
    heads, head_width = embedding.shape[:2]
    positions, cells = height * width, pooled.shape[2]
    for name, value, expected in (
        ("kv", kv, (batch, 2 * channels, height, width)),
        ("pooled", pooled, (batch, 2 * channels, cells)),
        ("scale", scale, (heads, 1, positions)),
        ("embedding", embedding, (heads, channels // heads, 1)),
        ("local_bias", local_bias, (heads, 9, positions)),
        ("pool_bias", pool_bias, (heads, cells, positions)),
        ("tokens", tokens, (heads, 9, head_width)),
        ("token_bias", token_bias, (heads, 9, 1)),
    ):
        if tuple(value.shape) != expected:
            raise ValueError(
                f"aggregated_attention: {name} must be {list(expected)}, got {list(value.shape)}"
                f" (C = {channels}, h = {heads}, N = {positions}, P = {cells})"
            )
    return batch, channels, height, width


def example(heads: int = 2, width: int = 3, side: tuple[int, int] = (4, 6), cells: int = 6) -> tuple[Tensor, ...]:
    """Random arguments at unit scale, the mask in place."""
    generator = torch.Generator().manual_seed(0)
    channels, positions = heads * width, side[0] * side[1]
    inside = _neighbours(torch.ones(1, 1, 1, *side)).reshape(1, 9, positions)
    sizes = {
        "q": (1, channels, *side),
        "kv": (1, 2 * channels, *side),
        "pooled": (1, 2 * channels, cells),
        "scale": (heads, 1, positions),
        "embedding": (heads, width, 1),
        "local_bias": (heads, 9, positions),
        "pool_bias": (heads, cells, positions),
        "tokens": (heads, 9, width),
        "token_bias": (heads, 9, 1),
    }
    drawn = {name: torch.randn(size, generator=generator) for name, size in sizes.items()}
    drawn["scale"] = 4 + drawn["scale"].abs()
    drawn["local_bias"] = drawn["local_bias"] - MASKED * (1 - inside)
    return tuple(drawn.values())


OP = define(
    FusedOp(
        name="aggregated_attention",
        reference=reference,
        shape=shape,
        example=example,
        tolerance=1e-5,
        is_pattern=False,  # one op in our models; exporters/rewrites/find_aggregated.py knows other spellings
    )
)
