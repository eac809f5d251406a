"""Activations: functions of one number each, named after who uses them."""

from __future__ import annotations

import torch
from torch import Tensor

from edgesmith.exporters.decompositions import LEAVE, decomposes

aten = torch.ops.aten


@decomposes(
    aten.log_sigmoid.default,
    targets=("coreml", "coreai", "onnx"),
    why="log(sigmoid(x)) is minus infinity where the sigmoid underflows",
)
def log_sigmoid(x: Tensor) -> Tensor:
    """Return min(x, 0) - log(1 + exp(-|x|))."""
    return x.clamp(max=0.0) - torch.log1p(torch.exp(-x.abs()))


@decomposes(aten.celu.default, targets=("coreml",), why="coremltools 9.0 has no translation")
def celu(x: Tensor, alpha: float = 1.0) -> Tensor:
    """Return x above 0, and alpha (exp(x / alpha) - 1) below."""
    return x.clamp(min=0.0) + float(alpha) * torch.nn.functional.elu(x.clamp(max=0.0) * (1 / alpha))


@decomposes(aten.hardshrink.default, targets=("coreml",), why="coremltools 9.0 chooses between two types")
def hardshrink(x: Tensor, lambd: float = 0.5) -> Tensor:
    """Return 0 for magnitudes up to lambda, else x."""
    return torch.where(x.abs() > float(lambd), x, torch.zeros_like(x))


@decomposes(aten.elu.default, targets=("coreai", "tvm"), why="Core AI's converter has no translation, TVM no scale")
def elu(x: Tensor, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Tensor:
    """Return scale x above 0, and scale alpha (exp(input_scale x) - 1) below."""
    below = torch.expm1(x.clamp(max=0.0) * float(input_scale)) * float(alpha * scale)
    return torch.where(x > 0, x * float(scale), below)


@decomposes(aten.rrelu.default, why="no converter has a translation that works")
def rrelu(
    x: Tensor, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False, generator: None = None
) -> Tensor:
    """Return x above 0, and x times the mean of the bounds below, as in evaluation."""
    return LEAVE if training else torch.where(x > 0, x, x * ((lower + upper) / 2))


_STEEP = 15.0
"""From here on a softplus is x in fp32, so that a threshold beyond changes no number."""


@decomposes(aten.softplus.default, targets=("coreml", "coreai"), why="Core ML's softplus has no threshold")
def softplus(x: Tensor, beta: float = 1, threshold: float = 20) -> Tensor:
    """Return log(1 + exp(beta x)) / beta, and x where beta x is above the threshold."""
    if threshold >= _STEEP and beta == 1:
        return LEAVE
    scaled = x * float(beta)
    smooth = scaled.clamp(min=0.0) + torch.log1p(torch.exp(-scaled.abs()))
    return torch.where(scaled > float(threshold), x, smooth * (1 / beta))
