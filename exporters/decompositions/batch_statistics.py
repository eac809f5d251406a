"""Batch norm by the statistics of the batch, which a model may ask for in eval mode."""

from __future__ import annotations

import torch
from torch import Tensor

from edgesmith.exporters.decompositions import LEAVE, decomposes

aten = torch.ops.aten


@decomposes(
    aten._native_batch_norm_legit.no_stats,
    targets=("coreai", "tvm"),
    why="coreai-torch has running statistics only, and TVM takes the mean of squares less the square of the mean",
)
def batch_norm_of_batch(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, training: bool, momentum: float, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (x - mean) / sqrt(var + eps) w + b over all axes but the second, the mean, and the factor. [B, C, ...]"""
    axes = [axis for axis in range(x.dim()) if axis != 1]
    mean = x.mean(axes, keepdim=True)
    centred = x - mean
    scale = torch.rsqrt((centred * centred).mean(axes, keepdim=True) + eps)
    y, shape = centred * scale, mean.shape
    if weight is not None:
        y = y * weight.reshape(shape)
    if bias is not None:
        y = y + bias.reshape(shape)
    return y, mean.flatten(), scale.flatten()


@decomposes(
    aten._native_batch_norm_legit_functional.default,
    targets=("tvm",),
    why="TVM's importer takes the stored statistics, whatever training says",
)
def batch_norm_with_statistics(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[Tensor, ...]:
    """Return the norm by the batch's own statistics, those, and the stored ones moved towards them."""
    if not training:
        return LEAVE
    y, own, factor = batch_norm_of_batch(x, weight, bias, training, momentum, eps)
    axes = [axis for axis in range(x.dim()) if axis != 1]
    centred = x - x.mean(axes, keepdim=True)
    count = x.numel() // x.shape[1]
    unbiased = (centred * centred).sum(axes) * (1 / max(count - 1, 1))
    kept = 1.0 - momentum
    return y, own, factor, mean * kept + own * momentum, variance * kept + unbiased * momentum
