"""Batch norm by the statistics of the batch, which a model may ask for in eval mode."""

from __future__ import annotations

import torch
from torch import Tensor

from edgesmith.exporters.decompositions import decomposes

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
