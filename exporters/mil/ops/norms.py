"""Normalisations. Means and variances are computed in fp32 whatever `accumulate` says, as torch does for half."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from edgesmith.exporters.mil.ops import ints, number, op, wide


def _epsilon(value: Tensor | float, like: Tensor) -> Tensor:
    """A small constant as it is stored (half may have rounded it), in the type of the computation."""
    return wide(value).to(like.dtype) if isinstance(value, Tensor) else torch.tensor(value, dtype=like.dtype)


def _scaled(y: Tensor, gamma: Tensor | None, beta: Tensor | None, shape: list[int]) -> Tensor:
    if gamma is not None:
        y = y * wide(gamma).reshape(shape)
    return y if beta is None else y + wide(beta).reshape(shape)


def _normalised(x: Tensor, axes: list[int], epsilon: Tensor | float) -> Tensor:
    """(x - mean) / sqrt(variance + epsilon) over the axes, the variance being the biased one."""
    centred = x - x.mean(axes, keepdim=True)
    variance = centred.square().mean(axes, keepdim=True)
    return centred / torch.sqrt(variance + _epsilon(epsilon, x))


@op("layer_norm")
def layer_norm(
    *,
    x: Tensor,
    axes: Tensor | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: Tensor | float = 1e-5,
) -> Tensor:
    """Over `axes`, all of them by default; gamma and beta have the sizes of those axes, in the order of x."""
    y = wide(x)
    over = sorted(axis % x.dim() for axis in ints(axes)) if axes is not None else list(range(x.dim()))
    return _scaled(_normalised(y, over, epsilon), gamma, beta, [n if i in over else 1 for i, n in enumerate(x.shape)])


@op("batch_norm")
def batch_norm(
    *,
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: Tensor | float = 1e-5,
) -> Tensor:
    """By stored statistics, each [C], along axis 1 of x [B, C, *D]."""
    shape = [1, -1, *[1] * (x.dim() - 2)]
    y = wide(x)
    deviation = torch.sqrt(wide(variance) + _epsilon(epsilon, y))
    return _scaled((y - wide(mean).reshape(shape)) / deviation.reshape(shape), gamma, beta, shape)


@op("instance_norm")
def instance_norm(
    *, x: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None, epsilon: Tensor | float = 1e-5
) -> Tensor:
    """Over the positions of each channel of each image of x [B, C, *D]; gamma and beta are [C]."""
    shape = [1, -1, *[1] * (x.dim() - 2)]
    return _scaled(_normalised(wide(x), list(range(2, x.dim())), epsilon), gamma, beta, shape)


@op("l2_norm")
def l2_norm(*, x: Tensor, epsilon: Tensor | float = 1e-6) -> Tensor:
    """Divide: x / sqrt(sum of squares + epsilon), the sum being over the last three axes, whatever the rank."""
    y = wide(x)
    return y / torch.sqrt(y.square().sum([-3, -2, -1], keepdim=True) + _epsilon(epsilon, y))


@op("local_response_norm")
def local_response_norm(
    *,
    x: Tensor,
    size: Tensor | int,
    alpha: Tensor | float = 1e-4,
    beta: Tensor | float = 0.75,
    k: Tensor | float = 1.0,
) -> Tensor:
    """Divide: x / (k + alpha / size * sum of squares of `size` neighbouring channels) ** beta, zeros beyond.

    For an even `size` the documentation does not say on which side the odd neighbour is: it is the one before, as in
    torch.
    """
    y, width = wide(x), int(number(size))
    squares = y.square().transpose(1, -1)  # the channels last, where the window goes along
    padded = F.pad(squares, [width // 2, (width - 1) // 2])
    total = padded.unfold(-1, width, 1).sum(-1).transpose(1, -1)
    return y / (_epsilon(k, y) + _epsilon(alpha, y) / width * total) ** _epsilon(beta, y)
