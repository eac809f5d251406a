"""MIL's activation functions. `alpha` and `beta` are constants; prelu and softplus_parametric have one a channel.

Formulas from coremltools' operator documentation. Half precision is computed in fp32 and rounded once. What differs
from functions of similar names in torch:

    gelu           three modes: EXACT (erf), TANH_APPROXIMATION, SIGMOID_APPROXIMATION, which is x sigmoid(1.702 x)
    sigmoid_hard   min(max(alpha x + beta, 0), 1) with any slope, where torch's hardsigmoid has 1/6 and 1/2
    clamped_relu   a leaky ReLU with a ceiling: min(beta, x) or min(beta, alpha x)
    softplus       log(1 + e^x) throughout, without torch's straight line beyond its threshold
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from edgesmith.errors import Unsupported
from edgesmith.exporters.mil.ops import number, op, wide


@op("relu")
def relu(*, x: Tensor) -> Tensor:
    """max(x, 0)."""
    return F.relu(x)


@op("relu6")
def relu6(*, x: Tensor) -> Tensor:
    """min(max(x, 0), 6)."""
    return x.clamp(0, 6)


@op("clamped_relu")
def clamped_relu(*, x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """min(beta, x) where x >= 0, else min(beta, alpha x)."""
    return F.leaky_relu(wide(x), number(alpha)).clamp(max=number(beta))


@op("leaky_relu")
def leaky_relu(*, x: Tensor, alpha: Tensor) -> Tensor:
    """The value x where x >= 0, else alpha x."""
    return F.leaky_relu(wide(x), number(alpha))


@op("thresholded_relu")
def thresholded_relu(*, x: Tensor, alpha: Tensor) -> Tensor:
    """The value x where x >= alpha, else 0."""
    return torch.where(x >= number(alpha), x, torch.zeros_like(x))


@op("prelu")
def prelu(*, x: Tensor, alpha: Tensor) -> Tensor:
    """The value x where x > 0, else alpha x with the channel's alpha."""
    wide_x = wide(x)
    return torch.where(wide_x > 0, wide_x, wide_x * _by_channel(alpha, x))


@op("elu")
def elu(*, x: Tensor, alpha: Tensor) -> Tensor:
    """The value x where x > 0, else alpha (e^x - 1)."""
    return F.elu(wide(x), number(alpha))


@op("gelu")
def gelu(*, x: Tensor, mode: str = "EXACT") -> Tensor:
    """The Gaussian error linear unit in one of MIL's three modes. Raises Unsupported for others."""
    if mode == "EXACT":  # not torch's gelu, whose 1 + erf has no digits left in the tail: 6 units of fp16 at -5
        return torch.erfc(wide(x) * -math.sqrt(0.5)) * (wide(x) / 2)
    if mode == "TANH_APPROXIMATION":
        return F.gelu(wide(x), approximate="tanh")
    if mode == "SIGMOID_APPROXIMATION":
        return wide(x) * torch.sigmoid(1.702 * wide(x))
    raise Unsupported(f"gelu has the modes EXACT, TANH_APPROXIMATION and SIGMOID_APPROXIMATION, not {mode!r}")


@op("sigmoid")
def sigmoid(*, x: Tensor) -> Tensor:
    """1 / (1 + e^-x)."""
    return torch.sigmoid(wide(x))


@op("sigmoid_hard")
def sigmoid_hard(*, x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """min(max(alpha x + beta, 0), 1)."""
    return linear_activation(x=x, alpha=alpha, beta=beta).clamp(0, 1)


@op("silu")
def silu(*, x: Tensor) -> Tensor:
    """The product x sigmoid(x)."""
    return F.silu(wide(x))


@op("softplus")
def softplus(*, x: Tensor) -> Tensor:
    """log(1 + e^x)."""
    return torch.logaddexp(wide(x), torch.zeros_like(wide(x)))


@op("softplus_parametric")
def softplus_parametric(*, x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """The product alpha log(1 + e^(beta x)) with the channel's alpha and beta."""
    return _by_channel(alpha, x) * softplus(x=wide(x) * _by_channel(beta, x))


@op("softsign")
def softsign(*, x: Tensor) -> Tensor:
    """The quotient x / (1 + |x|)."""
    return F.softsign(wide(x))


@op("scaled_tanh")
def scaled_tanh(*, x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """The product alpha tanh(beta x)."""
    return torch.mul(torch.tanh(wide(x) * number(beta)), number(alpha))


@op("linear_activation")
def linear_activation(*, x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """The line alpha x + beta."""
    return torch.add(wide(x) * number(alpha), number(beta))


@op("softmax")
def softmax(*, x: Tensor, axis: Tensor | int = -1) -> Tensor:
    """e^x over its sum along the axis."""
    return torch.softmax(wide(x), dim=number(axis))


def _by_channel(values: Tensor, x: Tensor) -> Tensor:
    """The values of shape (C,) so that they go with axis 1 of x."""
    return wide(values).reshape(-1, *[1] * (x.dim() - 2))
