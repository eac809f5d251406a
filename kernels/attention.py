"""Softmax attention of every query over every key, however its heads are laid out.

    A = softmax(s Q K^T + bias)             over the keys                       [B, h, N, M]
    Y = A V                                                                     [B, h, N, e]

    attention(q [B, h, N, d], k [B, h, M, d], v [B, h, M, e], bias=None, scale=1.0)                   -> [B, h, N, e]
    attention(q [B, h, d, N], k [B, h, d, M], v [B, h, e, M], bias=None, scale=1.0, channels_first)   -> [B, h, e, N]

bias is [B or 1, h or 1, N or 1, M or 1], the same in both layouts, and finite: masks of -inf are no biases. `scale` is
1 where it is folded into the queries. Cosine attention is this op of normalised queries and keys, with its temperature
and whatever else is constant in the queries; pooled or reduced keys are just M < N. The heads may be any number of
leading axes; maps [B, C, H, W] become [B, h, d, N] by a reshape alone, which is what `channels_first` is for.
exporters/rewrites/fuse_attention.py finds the spellings of models.

Source: Vaswani et al., arXiv 1706.03762, eq. 1. Letters: B batch, h heads, N queries, M keys, d e widths of a head.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from edgesmith.kernels.op import FusedOp, define


def reference(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, scale: float = 1.0, channels_first: bool = False
) -> Tensor:
    """Attend. Shapes as above.

    Args:
        q, k, v: queries, keys and values.
        bias: added to the scaled scores.
        scale: of the scores.
        channels_first: the last axis is that of positions, of all four.
    """
    if channels_first:
        q, k, v = q.transpose(-2, -1), k.transpose(-2, -1), v.transpose(-2, -1)
    scores = (q if scale == 1 else q * scale) @ k.transpose(-2, -1)
    if bias is not None:
        scores = scores + bias
    mixed = scores.softmax(-1) @ v
    return mixed.transpose(-2, -1).contiguous() if channels_first else mixed


def shape(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, scale: float = 1.0, channels_first: bool = False
) -> tuple[int, ...]:
    """[B, h, N, e], or [B, h, e, N]. Raises ValueError for arguments that do not fit together."""
    if q.dim() < 3:
        raise ValueError(f"attention: q must have heads, positions and a width, got {list(q.shape)}")
    position, width = (-1, -2) if channels_first else (-2, -1)
    leading = tuple(q.shape[:-2])
    for name, value in (("k", k), ("v", v)):
        if value.dim() != q.dim() or tuple(value.shape[:-2]) != leading:
            raise ValueError(f"attention: {name} must be {[*leading, '...', '...']}, got {list(value.shape)}")
    if k.shape[width] != q.shape[width]:
        raise ValueError(f"attention: k must be as wide as q, {q.shape[width]}, got {list(k.shape)}")
    if v.shape[position] != k.shape[position]:
        raise ValueError(f"attention: v must have {k.shape[position]} positions as k has, got {list(v.shape)}")
    queries, keys = q.shape[position], k.shape[position]
    if bias is not None and not _broadcasts(tuple(bias.shape), (*leading, queries, keys)):
        raise ValueError(f"attention: bias must be like {[*leading, queries, keys]}, got {list(bias.shape)}")
    return (*leading, v.shape[width], queries) if channels_first else (*leading, queries, v.shape[width])


def _broadcasts(shape: tuple[Any, ...], to: tuple[Any, ...]) -> bool:
    """Return whether a shape broadcasts to another without making it larger."""
    if len(shape) > len(to):
        return False
    return all(a in (1, b) for a, b in zip(shape, to[len(to) - len(shape) :], strict=True))


def example() -> tuple[Tensor, ...]:
    """Random arguments at unit scale: q, k, v, bias."""
    generator = torch.Generator().manual_seed(0)
    shapes = (2, 3, 5, 4), (2, 3, 6, 4), (2, 3, 6, 7), (1, 3, 5, 6)
    return tuple(torch.randn(one, generator=generator) for one in shapes)


def lower_onnx(q: Any, k: Any, v: Any, bias: Any = None, scale: float = 1.0, channels_first: bool = False) -> Any:
    """ONNX: MatMul, Add, Softmax, MatMul, which TensorRT fuses into one kernel, and transpositions of what they read.

    ONNX Runtime takes a transposition of the last two axes into its products. `Attention` of opset 23 and its own
    `MultiHeadAttention` mean the same; which form is fastest is to be measured, and this function is the place.
    """
    from onnxscript import opset20

    op: Any = opset20  # its stubs want numpy's types where the exporter takes values
    rank = len(q.shape)
    swapped = [*range(rank - 2), rank - 1, rank - 2]

    def swap(x: Any) -> Any:
        return op.Transpose(x, perm=swapped)

    rows, columns, values = (swap(q), k, swap(v)) if channels_first else (q, swap(k), v)
    if scale != 1:
        rows = op.Mul(rows, op.CastLike(op.Constant(value_float=float(scale)), rows))
    scores = op.MatMul(rows, columns)
    if bias is not None:
        scores = op.Add(scores, bias)
    mixed = op.MatMul(op.Softmax(scores, axis=-1), values)
    return swap(mixed) if channels_first else mixed


def lower_coreml(q: Any, k: Any, v: Any, bias: Any = None, scale: float = 1.0, channels_first: bool = False) -> Any:
    """Core ML: its own operator from iOS18 on; before, einsums head by head of [B, d, 1, N], as Apple advises.

    Source of the latter: Apple, "Deploying Transformers on the Apple Neural Engine", 2022. Without exactly one axis of
    heads, or with a bias of another rank, it is two products.
    """
    from coremltools.converters.mil._deployment_compatibility import AvailableTarget
    from coremltools.converters.mil.mil.block import is_current_opset_version_compatible_with

    scale = float(scale)
    if is_current_opset_version_compatible_with(AvailableTarget.iOS18):
        return _coreml_operator(q, k, v, bias, scale, channels_first)
    if len(q.shape) == 4 and isinstance(q.shape[1], int):
        return _coreml_by_head(q, k, v, bias, scale, channels_first)
    return _coreml_products(q, k, v, bias, scale, channels_first)


def _coreml_operator(q: Any, k: Any, v: Any, bias: Any, scale: float, channels_first: bool) -> Any:
    """Core ML's `scaled_dot_product_attention`, which divides by the root of the width itself."""
    from coremltools.converters.mil import Builder as mb

    swapped = [*range(len(q.shape) - 2), -1, -2]
    if channels_first:
        q, k, v = (mb.transpose(x=x, perm=swapped) for x in (q, k, v))
    own = scale * math.sqrt(q.shape[-1])
    q = q if math.isclose(own, 1) else mb.mul(x=q, y=own)
    given = {} if bias is None else {"attn_mask": bias}
    mixed = mb.scaled_dot_product_attention(query=q, key=k, value=v, **given)
    return mb.transpose(x=mixed, perm=swapped) if channels_first else mixed


def _coreml_by_head(q: Any, k: Any, v: Any, bias: Any, scale: float, channels_first: bool) -> Any:
    """Scores [B, M, 1, N] of each head, softmax over the second axis, and values [B, e, 1, N]; joined as channels."""
    from coremltools.converters.mil import Builder as mb

    batch, heads = q.shape[:2]
    queries, keys, width = q.shape[3 if channels_first else 2], k.shape[3 if channels_first else 2], v.shape
    width = width[2 if channels_first else 3]

    def as_channels(x: Any, positions: int) -> Any:
        first = x if channels_first else mb.transpose(x=x, perm=[0, 1, 3, 2])  # [B, h, d, N]
        return mb.reshape(x=first, shape=[batch, -1, 1, positions])

    def each(x: Any, axis: int) -> Any:
        return [x] if heads == 1 else mb.split(x=x, num_splits=heads, axis=axis)

    rows = as_channels(q, queries)
    rows = rows if scale == 1 else mb.mul(x=rows, y=scale)
    columns = mb.transpose(x=as_channels(k, keys), perm=[0, 3, 2, 1])  # [B, M, 1, h d]
    biases = None if bias is None else _coreml_biases(bias, heads)
    mixed = []
    parts = zip(each(rows, 1), each(columns, 3), each(as_channels(v, keys), 1), strict=True)
    for i, (one, key, value) in enumerate(parts):
        scores = mb.einsum(values=[key, one], equation="nchw,nwhu->nchu")
        scores = scores if biases is None else mb.add(x=scores, y=biases[i % len(biases)])
        mixed.append(mb.einsum(values=[value, mb.softmax(x=scores, axis=1)], equation="nchw,nwhu->nchu"))
    joined = mixed[0] if heads == 1 else mb.concat(values=mixed, axis=1)
    joined = mb.reshape(x=joined, shape=[batch, heads, width, queries])
    return joined if channels_first else mb.transpose(x=joined, perm=[0, 1, 3, 2])


def _coreml_biases(bias: Any, heads: int) -> list[Any]:
    """The bias of each head as it is added to scores [B, M, 1, N]; one for all where it does not differ."""
    import numpy as np
    from coremltools.converters.mil import Builder as mb

    if bias.val is not None:
        full = np.asarray(bias.val).reshape((1,) * (4 - bias.rank) + tuple(bias.shape))
        return [full[:, i].transpose(0, 2, 1)[:, :, None, :] for i in range(full.shape[1])]
    full = bias if bias.rank == 4 else mb.expand_dims(x=bias, axes=list(range(4 - bias.rank)))
    turned = mb.transpose(x=full, perm=[0, 3, 1, 2])  # [B, M, h, N]
    return [turned] if full.shape[1] == 1 else list(mb.split(x=turned, num_splits=heads, axis=2))


def _coreml_products(q: Any, k: Any, v: Any, bias: Any, scale: float, channels_first: bool) -> Any:
    """Two products; with channels first of weights [.., M, N].

    A product with a transposed softmax ends the compiler of some GPUs: CM14 of exporters/departures.
    """
    from coremltools.converters.mil import Builder as mb

    q = q if scale == 1 else mb.mul(x=q, y=scale)
    if not channels_first:
        scores = mb.matmul(x=q, y=k, transpose_y=True)
        scores = scores if bias is None else mb.add(x=scores, y=bias)
        return mb.matmul(x=mb.softmax(x=scores, axis=-1), y=v)
    scores = mb.matmul(x=k, y=q, transpose_x=True)  # [.., M, N]
    if bias is not None:
        scores = mb.add(x=scores, y=mb.transpose(x=bias, perm=[*range(len(bias.shape) - 2), -1, -2]))
    return mb.matmul(x=v, y=mb.softmax(x=scores, axis=-2))


def for_coreai(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, scale: float = 1.0, channels_first: bool = False
) -> Tensor:
    """Core AI: PyTorch's own attention, for which it has a composite, where values are as wide as queries."""
    if q.shape[-2 if channels_first else -1] != v.shape[-2 if channels_first else -1]:
        return reference(q, k, v, bias, scale, channels_first)
    if channels_first:
        q, k, v = q.transpose(-2, -1), k.transpose(-2, -1), v.transpose(-2, -1)
    mixed = F.scaled_dot_product_attention(q, k, v, bias, scale=scale)
    return mixed.transpose(-2, -1) if channels_first else mixed


OP = define(
    FusedOp(
        name="attention",
        reference=reference,
        shape=shape,
        example=example,
        lowerings={"onnx": lower_onnx, "coreml": lower_coreml},
        inlined={"coreai": for_coreai},
        tolerance=3e-6,
        literals={"scale": 0.5},
        is_pattern=False,  # too many spellings: exporters/rewrites/fuse_attention.py knows them
        stays_float="its products have no weights",
    )
)
