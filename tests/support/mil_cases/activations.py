"""Cases of activations."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from support.mil_sites import Draw, Site, Table, floats, one, scalar

CASES = Table()


CASES.row("relu", one(F.relu, half=True, x=floats(-8, 8)))
CASES.row("relu6", one(F.relu6, half=True, x=floats(-8, 8)))
CASES.row("sigmoid", one(torch.sigmoid, half=True, x=floats(-8, 8)))
CASES.row("silu", one(F.silu, half=True, x=floats(-8, 8)))
CASES.row("softplus", one(F.softplus, half=True, x=floats(-8, 8)))
CASES.row("softsign", one(F.softsign, x=floats(-8, 8)))

ALPHA = {"alpha": scalar(0.01, 1.5)}
CASES.row("leaky_relu", one(lambda x, alpha: F.leaky_relu(x, float(alpha)), ALPHA, half=True, x=floats()))
CASES.row("elu", one(lambda x, alpha: F.elu(x, float(alpha)), ALPHA, half=True, x=floats()))


def thresholded_relu(x: Tensor, alpha: Any) -> Tensor:
    if x.dtype == torch.float64:
        return F.threshold(x, math.nextafter(float(alpha), -math.inf), 0.0)
    return torch.where(x >= float(alpha), x, 0)


CASES.row("thresholded_relu", one(thresholded_relu, ALPHA, half=True, x=floats()))

BOTH = {"alpha": scalar(0.1, 1.5), "beta": scalar(0.1, 1.5)}


def clamped_relu(x: Tensor, alpha: Any, beta: Any) -> Tensor:
    return torch.minimum(torch.where(x >= 0, x, float(alpha) * x), torch.full_like(x, float(beta)))


def linear_activation(x: Tensor, alpha: Any, beta: Any) -> Tensor:
    return torch.addcmul(torch.full_like(x, float(beta)), x, torch.full_like(x, float(alpha)))


def sigmoid_hard(x: Tensor, alpha: Any, beta: Any) -> Tensor:
    return torch.maximum(torch.minimum(float(alpha) * x + float(beta), torch.ones_like(x)), torch.zeros_like(x))


CASES.row("clamped_relu", one(clamped_relu, BOTH, x=floats()))
CASES.row("linear_activation", one(linear_activation, BOTH, x=floats(0, 3)))
CASES.row("scaled_tanh", one(lambda x, alpha, beta: float(alpha) * torch.tanh(float(beta) * x), BOTH, x=floats()))
CASES.row("sigmoid_hard", one(sigmoid_hard, BOTH, x=floats()))

NEAR = floats(-3.5, 5)  # beyond, torch's half-precision gelu is off itself; see test_gelu_is_right_for_every_half
CASES.row(
    "gelu",
    one(F.gelu, half=True, x=NEAR),
    one(lambda x, mode: F.gelu(x), {"mode": lambda draw: "EXACT"}, half=True, x=NEAR),
    one(
        lambda x, mode: F.gelu(x, approximate="tanh"),
        {"mode": lambda draw: "TANH_APPROXIMATION"},
        half=True,
        x=NEAR,
    ),
    one(lambda x, mode: x / (1 + torch.exp(-1.702 * x)), {"mode": lambda draw: "SIGMOID_APPROXIMATION"}, x=NEAR),
)


@CASES.drawn("prelu")
def prelu(draw: Draw) -> Site:
    shape = draw.shape(3, 5, 4)
    alpha = draw.vector(shape[1], 0.1, 1)
    if len(shape) != 4:  # coremltools wants equal ones there
        alpha = np.full_like(alpha, alpha[0])
    slope = torch.from_numpy(alpha)
    return Site({"x": draw.floats(shape)}, {"alpha": alpha}, lambda x: F.prelu(x, slope.to(x.dtype)), half=True)


@CASES.drawn("softplus_parametric")
def softplus_parametric(draw: Draw) -> Site:
    shape = draw.shape(3, 4, 4)
    alpha, beta = draw.vector(shape[1], 0.1, 2), draw.vector(shape[1], 0.1, 2)

    def reference(x: Tensor) -> Tensor:
        parts = [a * F.softplus(one * b) for one, a, b in zip(x.unbind(1), alpha.tolist(), beta.tolist(), strict=True)]
        return torch.stack(parts, 1)

    return Site({"x": draw.floats(shape)}, {"alpha": alpha, "beta": beta}, reference)


@CASES.drawn("softmax")
def softmax(draw: Draw) -> Site:
    shape = draw.shape()
    axis = draw.axis(len(shape))
    attributes = {} if axis == -1 and draw.flag() else {"axis": axis}
    return Site({"x": draw.floats(shape, -8, 8)}, attributes, lambda x: F.softmax(x, axis), half=True)
