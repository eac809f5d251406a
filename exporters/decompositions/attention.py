"""Attention as people call it: shared keys, and tensors of another rank than four."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from edgesmith.exporters.decompositions import LEAVE, decomposes

aten = torch.ops.aten


@decomposes(
    aten.scaled_dot_product_attention.default,
    targets=("onnx", "tvm"),
    why="torch's ONNX exporter takes a mask at rank 4 only; coremltools 9.0 and TVM have no keys that heads share",
)
def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Return the attention of tensors of rank 4 whose heads have keys of their own."""
    rank, masks = query.dim(), attn_mask is not None and attn_mask.dim() > 2
    shares = enable_gqa and query.shape[-3] != key.shape[-3]
    if (rank == 4 and not shares) or (rank > 4 and masks):
        return LEAVE
    if shares:
        times = query.shape[-3] // key.shape[-3]
        key, value = _repeated(key, times), _repeated(value, times)
    shape = [*query.shape[:-1], value.shape[-1]]
    if rank != 4:
        query, key, value = (_of_rank_4(one) for one in (query, key, value))
    mixed = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask, dropout_p, is_causal, scale=scale
    )
    return mixed.reshape(shape) if rank != 4 else mixed


@decomposes(
    aten.scaled_dot_product_attention.default,
    targets=("coreml", "coreai"),
    why="coremltools 9.0 masks by -3e4, and Core AI by a finite number too, which loud logits exceed",
)
def attention_with_infinite_mask(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Return the attention with minus infinity where it is masked, of rank 4 and with keys of each head's own."""
    if not is_causal and (attn_mask is None or attn_mask.dtype != torch.bool):
        return attention(query, key, value, attn_mask, dropout_p, False, scale=scale, enable_gqa=enable_gqa)
    seen = attn_mask
    if seen is None:
        shape = [query.shape[-2], key.shape[-2]]
        seen = torch.arange(shape[0]).unsqueeze(1) >= torch.arange(shape[1]).unsqueeze(0)
    mask = torch.where(seen, torch.zeros([], dtype=query.dtype), torch.full([], -math.inf, dtype=query.dtype))
    return torch.nn.functional.scaled_dot_product_attention(
        query, key, value, mask, dropout_p, scale=scale, enable_gqa=enable_gqa
    )


def _repeated(x: Tensor, times: int) -> Tensor:
    """Return each head `times` times: [..., H, N, D] to [..., H times, N, D]."""
    *batch, heads, length, width = x.shape
    spread = x.unsqueeze(-3).expand([*batch, heads, times, length, width])
    return spread.reshape([*batch, heads * times, length, width])


def _of_rank_4(x: Tensor) -> Tensor:
    *batch, length, width = x.shape
    return x.reshape([-1, *([1, *batch][-1:]), length, width])
