"""Losses by log(1 + exp(x)), where converters take the logarithm of a sigmoid, or that exponential."""

from __future__ import annotations

import torch
from torch import Tensor

from edgesmith.exporters.decompositions import decomposes

aten = torch.ops.aten


@decomposes(
    aten.binary_cross_entropy_with_logits.default,
    targets=("onnx",),
    why="torch's exporter takes the logarithm of a sigmoid",
)
def binary_cross_entropy_with_logits(
    x: Tensor, wanted: Tensor, weight: Tensor | None = None, pos_weight: Tensor | None = None, reduction: int = 1
) -> Tensor:
    """Return (1 - t) x - (1 + (p - 1) t) log sigmoid(x), weighted: all of them, their mean, or their sum."""
    factor = 1.0 if pos_weight is None else (pos_weight - 1) * wanted + 1
    loss = (1 - wanted) * x - torch.nn.functional.logsigmoid(x) * factor
    loss = loss if weight is None else loss * weight
    return loss if reduction == 0 else loss.mean() if reduction == 1 else loss.sum()


@decomposes(
    aten.soft_margin_loss.default,
    targets=("onnx", "coreml", "coreai"),
    why="the exponential leaves half precision at 11, and log(1 + x) of torch's exporter loses the digits of small x",
)
def soft_margin_loss(x: Tensor, wanted: Tensor, reduction: int = 1) -> Tensor:
    """Return log(1 + exp(-t x)), by exponentials of what is below 0: all of them, their mean, or their sum."""
    y = -wanted * x
    loss = y.clamp(min=0.0) + torch.log1p(torch.exp(-y.abs()))
    return loss if reduction == 0 else loss.mean() if reduction == 1 else loss.sum()
