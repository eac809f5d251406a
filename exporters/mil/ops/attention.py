"""Attention as one operator (iOS 18)."""

from __future__ import annotations

import torch
from torch import Tensor

from edgesmith.exporters.mil.ops import Context, op, wide
from edgesmith.exporters.mil.ops.linear import multiply_matrices


@op("scaled_dot_product_attention", context=True)
def scaled_dot_product_attention(
    context: Context, *, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None
) -> Tensor:
    """softmax(Q K^T / sqrt(E) + mask) V of query [B, ..., L, E], key [B, ..., S, E] and value [B, ..., S, V].

    A boolean mask has true where a key takes part. Scores and weights are not rounded in between, as no type is
    declared for them. A row without any key is NaN, as the formula has it, and as in torch before 2.5.
    """
    scores = multiply_matrices(context, query, key.transpose(-1, -2)) / query.shape[-1] ** 0.5
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, float("-inf"))
    elif attn_mask is not None:
        scores = scores + wide(attn_mask)
    return multiply_matrices(context, torch.softmax(scores, -1), value)
