"""Quantisation that training pretends: numbers on a grid of integers, as float32."""

from __future__ import annotations

import torch
from torch import Tensor

from edgesmith.exporters.decompositions import decomposes

aten = torch.ops.aten
_WHY = "no converter takes it; what it computes are roundings"


def _on_grid(x: Tensor, scale: Tensor | float, zero: Tensor | float, least: int, most: int) -> Tensor:
    """Return s (clamp(round(x / s) + z, least, most) - z)."""
    inverse = 1.0 / scale
    return (torch.clamp(torch.round(x * inverse) + zero, float(least), float(most)) - zero) * scale


@decomposes(aten.fake_quantize_per_tensor_affine.default, why=_WHY)
def fake_quantise(x: Tensor, scale: float, zero_point: int, quant_min: int, quant_max: int) -> Tensor:
    """Return x on one grid."""
    return _on_grid(x, scale, float(zero_point), quant_min, quant_max)


@decomposes(aten.fake_quantize_per_tensor_affine_cachemask.default, why=_WHY)
def fake_quantise_with_mask(
    x: Tensor, scale: float, zero_point: int, quant_min: int, quant_max: int
) -> tuple[Tensor, Tensor]:
    """Return x on one grid, and where it lies within."""
    made = _on_grid(x, scale, float(zero_point), quant_min, quant_max)
    return made, (made - x).abs() <= scale


@decomposes(aten.fake_quantize_per_tensor_affine.tensor_qparams, why=_WHY)
def fake_quantise_by_tensors(x: Tensor, scale: Tensor, zero_point: Tensor, quant_min: int, quant_max: int) -> Tensor:
    """Return x on a grid that tensors describe."""
    return _on_grid(x, scale, zero_point.to(x.dtype), quant_min, quant_max)


@decomposes(aten._fake_quantize_per_tensor_affine_cachemask_tensor_qparams.default, why=_WHY)
def fake_quantise_by_tensors_with_mask(
    x: Tensor, scale: Tensor, zero_point: Tensor, fake_quant_enabled: Tensor, quant_min: int, quant_max: int
) -> tuple[Tensor, Tensor]:
    """Return x on a grid that tensors describe where that is enabled, and where it lies within."""
    made = _on_grid(x, scale, zero_point.to(x.dtype), quant_min, quant_max)
    return torch.where(fake_quant_enabled != 0, made, x), (made - x).abs() <= scale


@decomposes(aten.fake_quantize_per_channel_affine.default, why=_WHY)
def fake_quantise_channels(
    x: Tensor, scale: Tensor, zero_point: Tensor, axis: int, quant_min: int, quant_max: int
) -> Tensor:
    """Return x on a grid for each position of an axis."""
    shape = [-1 if i == axis % x.dim() else 1 for i in range(x.dim())]
    return _on_grid(x, scale.reshape(shape), zero_point.reshape(shape).to(x.dtype), quant_min, quant_max)


@decomposes(aten.fake_quantize_per_channel_affine_cachemask.default, why=_WHY)
def fake_quantise_channels_with_mask(
    x: Tensor, scale: Tensor, zero_point: Tensor, axis: int, quant_min: int, quant_max: int
) -> tuple[Tensor, Tensor]:
    """Return x on a grid for each position of an axis, and where it lies within."""
    made = fake_quantise_channels(x, scale, zero_point, axis, quant_min, quant_max)
    shape = [-1 if i == axis % x.dim() else 1 for i in range(x.dim())]
    return made, (made - x).abs() <= scale.reshape(shape)
