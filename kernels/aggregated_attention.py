"""Aggregated attention: each query sees its 3x3 neighbours and a pooled map, under one softmax. O(N (9 + P)).

    q^ = q / |q|,  k^ = k / |k|                             each head's d channels, at each position
    q~ = (q^ + E) A                                         A = softplus(temperature) ln(number of keys), [h, 1, N]
    l  = [ q~ . k^_t | q~ . k^_p ] + b                      t the nine neighbours, p the pooled cells    [h, 9 + P, N]
    a  = softmax(l)
    y  = sum_t (a_t + q^ . T_t + c_t) v_t + sum_p a_p v_p   [h, d, N]; outside of the map v_t is 0

Source: TransNeXt, arXiv 2311.17132, eq. 3-8. Scale, mask and position bias follow from the model's size: they are
constants, the mask as a large negative number in b. The neighbours are nine shifted slices; as PyTorch's unfold they
would be a gather, or a dense convolution with one-hot kernels that is larger than the model. Lowerings shift the map as
one row of N positions, so that a slice is one piece of memory a channel. At the left and right edge that gives the
neighbour's row instead of nothing: there the mask makes the score's part of the weight 0, and another one the rest.
Letters: B batch, C = h d channels, H W, h heads, d head width, N = H W positions, P pooled cells.
"""

from __future__ import annotations

from typing import Any

import numpy as np
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
    bias: Tensor,
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
        bias: b, with the mask in its first nine rows, [h, 9 + P, N].
        tokens, token_bias: T and c, [h, 9, d] and [h, 9, 1].
    """
    height, width = q.shape[2:]
    heads, head_width = embedding.shape[:2]
    k, v = kv.unflatten(1, (2 * heads, head_width)).chunk(2, dim=1)  # each [B, h, d, H, W]
    pool_k, pool_v = pooled.unflatten(1, (2 * heads, head_width)).chunk(2, dim=1)  # each [B, h, d, P]
    unit = F.normalize(q.unflatten(1, (heads, head_width)).flatten(3), dim=2)  # [B, h, d, N]
    query = (unit + embedding) * scale
    local_k, local_v = _neighbours(F.normalize(k, dim=2)), _neighbours(v)  # each [B, h, d, 9, N]
    local = (query.unsqueeze(3) * local_k).sum(2)  # [B, h, 9, N]
    pool = F.normalize(pool_k, dim=2).transpose(2, 3) @ query  # [B, h, P, N]
    weights = (torch.cat((local, pool), dim=2) + bias).softmax(2)
    local, pool = weights.split((9, pooled.shape[2]), dim=2)
    local = local + (tokens @ unit + token_bias)
    y = (local.unsqueeze(2) * local_v).sum(3) + pool_v @ pool
    return torch.unflatten(y.flatten(1, 2), 2, (height, width))


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
    bias: Tensor,
    tokens: Tensor,
    token_bias: Tensor,
) -> tuple[int, ...]:
    """That of q. Raises ValueError where the other arguments do not fit it."""
    if q.dim() != 4:
        raise ValueError(f"aggregated_attention: q must be [B, C, H, W], got {list(q.shape)}")
    batch, channels, height, width = q.shape
    heads, cells = scale.shape[0], pooled.shape[-1]
    head_width, positions = channels // max(heads, 1), height * width
    for name, value, expected in (
        ("kv", kv, (batch, 2 * channels, height, width)),
        ("pooled", pooled, (batch, 2 * channels, cells)),
        ("scale", scale, (heads, 1, positions)),
        ("embedding", embedding, (heads, head_width, 1)),
        ("bias", bias, (heads, 9 + cells, positions)),
        ("tokens", tokens, (heads, 9, head_width)),
        ("token_bias", token_bias, (heads, 9, 1)),
    ):
        if tuple(value.shape) != expected:
            raise ValueError(
                f"aggregated_attention: {name} must be {list(expected)}, got {list(value.shape)}"
                f" (C = {channels}, h = {heads}, N = {positions}, P = {cells})"
            )
    return batch, channels, height, width


def example(heads: int = 2, head_width: int = 3, side: tuple[int, int] = (4, 6), cells: int = 6) -> tuple[Tensor, ...]:
    """Random arguments at unit scale, the mask in place."""
    generator = torch.Generator().manual_seed(0)
    channels, positions = heads * head_width, side[0] * side[1]
    sizes = (
        (1, channels, *side),
        (1, 2 * channels, *side),
        (1, 2 * channels, cells),
        (heads, 1, positions),
        (heads, head_width, 1),
        (heads, 9 + cells, positions),
        (heads, 9, head_width),
        (heads, 9, 1),
    )
    q, kv, pooled, scale, embedding, bias, tokens, token_bias = (torch.randn(s, generator=generator) for s in sizes)
    bias[:, :9] -= MASKED * (1 - torch.from_numpy(inside(*side)))
    return q, kv, pooled, 4 + scale.abs(), embedding, bias, tokens, token_bias


def inside(height: int, width: int) -> Any:
    """Return 1 where a neighbour of the 3x3 window, row by row, lies in the map, else 0: float32 [9, N] of numpy."""
    padded = np.pad(np.ones((height, width), np.float32), 1)
    return np.stack([padded[i : i + height, j : j + width].ravel() for i in range(3) for j in range(3)])


def _shifts(width: int) -> list[int]:
    """The start of each neighbour's slice in a row of positions with W + 1 zeros at either end."""
    return [i * width + j for i in range(3) for j in range(3)]


def lower_onnx(
    q: Any, kv: Any, pooled: Any, scale: Any, embedding: Any, bias: Any, tokens: Any, token_bias: Any
) -> Any:
    """ONNX: slices along one axis, a sum over d for each neighbour, matmuls for the pooled cells."""
    import onnx_ir as ir
    from onnxscript import opset20

    op: Any = opset20  # its stubs want numpy's types where the exporter takes values
    kind = q.dtype.numpy()
    height, width = map(int, q.shape[2:])
    heads, head_width = map(int, embedding.shape[:2])
    positions, cells = height * width, int(pooled.shape[2])

    def constant(value: Any) -> Any:
        return op.Constant(value=ir.tensor(np.asarray(value, dtype=kind)))

    def ints(*values: int) -> Any:
        return op.Constant(value_ints=list(values))

    def in_heads(x: Any, last: int) -> Any:
        return op.Reshape(x, ints(0, heads, head_width, last))

    def unit(x: Any) -> Any:
        return op.Div(x, op.Max(op.ReduceL2(x, ints(2)), constant(_least(kind))))

    def shifted(x: Any) -> list[Any]:
        margin = width + 1
        row = op.Pad(x, ints(0, 0, 0, margin, 0, 0, 0, margin), constant(0))
        return [op.Slice(row, ints(start), ints(start + positions), ints(3)) for start in _shifts(width)]

    k, v = op.Split(kv, axis=1, num_outputs=2)
    pool_k, pool_v = op.Split(pooled, axis=1, num_outputs=2)
    unit_q = unit(in_heads(q, positions))
    query = op.Mul(op.Add(unit_q, embedding), scale)
    scores = [op.ReduceSum(op.Mul(query, one), ints(2)) for one in shifted(unit(in_heads(k, positions)))]
    pool_k = op.Transpose(unit(in_heads(pool_k, cells)), perm=[0, 1, 3, 2])
    weights = op.Softmax(op.Add(op.Concat(*scores, op.MatMul(pool_k, query), axis=2), bias), axis=2)
    local = op.Slice(weights, ints(0), ints(9), ints(2))
    pool = op.Slice(weights, ints(9), ints(9 + cells), ints(2))
    learned = op.Add(op.MatMul(tokens, unit_q), token_bias)
    local = op.Split(op.Add(local, op.Mul(learned, constant(inside(height, width)))), axis=2, num_outputs=9)
    y = op.MatMul(in_heads(pool_v, cells), pool)
    for weight, one in zip(local, shifted(in_heads(v, positions)), strict=True):
        y = op.Add(y, op.Mul(weight, one))
    return op.Reshape(y, ints(0, heads * head_width, height, width))


def _least(kind: Any) -> float:
    """The least norm that is divided by, in a type that may not hold PyTorch's 1e-12."""
    return max(1e-12, float(np.finfo(kind).tiny)) if np.issubdtype(kind, np.floating) else 1e-12


def lower_coreml(
    q: Any, kv: Any, pooled: Any, scale: Any, embedding: Any, bias: Any, tokens: Any, token_bias: Any
) -> Any:
    """Core ML: as for ONNX, rank 4 throughout; weights and mask are constants of the value's type."""
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.mil import types

    kind = types.nptype_from_builtin(q.dtype)
    batch, channels, height, width = q.shape
    heads, head_width = embedding.shape[:2]
    positions, cells = height * width, pooled.shape[2]

    def in_heads(x: Any, last: int) -> Any:
        return mb.reshape(x=x, shape=[batch, heads, head_width, last])

    def unit(x: Any) -> Any:
        norm = mb.reduce_l2_norm(x=x, axes=[2], keep_dims=True)
        return mb.real_div(x=x, y=mb.maximum(x=norm, y=kind(_least(kind))))

    def shifted(x: Any) -> list[Any]:
        margin = width + 1
        row = mb.pad(x=x, pad=[0, 0, 0, 0, 0, 0, margin, margin], constant_val=kind(0))
        size = [batch, heads, head_width, positions]
        return [mb.slice_by_size(x=row, begin=[0, 0, 0, start], size=size) for start in _shifts(width)]

    k, v = mb.split(x=kv, num_splits=2, axis=1)
    pool_k, pool_v = mb.split(x=pooled, num_splits=2, axis=1)
    unit_q = unit(in_heads(q, positions))
    query = mb.mul(x=mb.add(x=unit_q, y=embedding), y=scale)
    keys = shifted(unit(in_heads(k, positions)))
    scores = [mb.reduce_sum(x=mb.mul(x=query, y=one), axes=[2], keep_dims=True) for one in keys]
    scores.append(mb.matmul(x=unit(in_heads(pool_k, cells)), y=query, transpose_x=True))
    weights = mb.softmax(x=mb.add(x=mb.concat(values=scores, axis=2), y=bias), axis=2)
    local, pool = mb.split(x=weights, split_sizes=[9, cells], axis=2)
    learned = mb.add(x=mb.matmul(x=tokens, y=unit_q), y=token_bias)
    local = mb.add(x=local, y=mb.mul(x=learned, y=inside(height, width).astype(kind)))
    y = mb.matmul(x=in_heads(pool_v, cells), y=pool)
    values = shifted(in_heads(v, positions))
    for weight, one in zip(mb.split(x=local, num_splits=9, axis=2), values, strict=True):
        y = mb.add(x=y, y=mb.mul(x=weight, y=one))
    return mb.reshape(x=y, shape=[batch, channels, height, width])


def for_coreai(
    q: Tensor,
    kv: Tensor,
    pooled: Tensor,
    scale: Tensor,
    embedding: Tensor,
    bias: Tensor,
    tokens: Tensor,
    token_bias: Tensor,
) -> Tensor:
    """Core AI: as for ONNX, in PyTorch, rank 4 throughout."""
    height, width = q.shape[2:]
    heads, head_width = embedding.shape[:2]
    margin, positions = width + 1, height * width

    def in_heads(x: Tensor) -> Tensor:
        return torch.unflatten(x, 1, (heads, head_width)).flatten(3)

    def shifted(x: Tensor) -> list[Tensor]:
        row = F.pad(x, (margin, margin))
        return [row[..., start : start + positions] for start in _shifts(width)]

    def unit(x: Tensor) -> Tensor:
        return x * torch.rsqrt((x * x).sum(2, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny))

    k, v = kv.chunk(2, dim=1)
    pool_k, pool_v = pooled.chunk(2, dim=1)
    unit_q = unit(in_heads(q))
    query = (unit_q + embedding) * scale
    scores = [(query * one).sum(2, keepdim=True) for one in shifted(unit(in_heads(k)))]
    scores.append(unit(in_heads(pool_k)).transpose(2, 3) @ query)
    weights = (torch.cat(scores, dim=2) + bias).softmax(2)
    local, pool = weights.split((9, pooled.shape[2]), dim=2)
    mask = torch.tensor(inside(height, width)).to(q.dtype)
    local = local + (tokens @ unit_q + token_bias) * mask
    y = in_heads(pool_v) @ pool
    for weight, one in zip(local.split(1, dim=2), shifted(in_heads(v)), strict=True):
        y = y + weight * one
    return torch.unflatten(y.flatten(1, 2), 2, (height, width))


OP = define(
    FusedOp(
        name="aggregated_attention",
        reference=reference,
        shape=shape,
        example=example,
        lowerings={"onnx": lower_onnx, "coreml": lower_coreml},
        inlined={"coreai": for_coreai},
        tolerance=1e-5,
        is_pattern=False,  # one op in our models; exporters/rewrites/find_aggregated.py knows other spellings
        stays_float="its scores go into an exponent, and it has hardly a weight",
    )
)
