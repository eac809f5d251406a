"""Norms of rows, and what divides by them.

A square leaves fp32 below 1e-23 and above 1e19, fp16 below 2.4e-4 and above 256. So rows are divided by their peak
before they are squared, by a peak of at least sqrt(eps) where an eps is added, which keeps quiet rows and zeros:

    p = max(max |x|, sqrt(eps)),  u = x / p        x / sqrt(mean(x x) + eps) = u / sqrt(mean(u u) + (sqrt(eps) / p)^2)

The bracket is between 1 / n and 2, whatever the row is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from edgesmith.exporters.decompositions import LEAVE, decomposes, sums

aten = torch.ops.aten

_QUIETEST = 1e-7
"""The smallest peak of a row in a norm without eps: above the smallest number of fp16, and harmless in fp32."""


_MOST = 2**22
"""Differences that all pairs of rows may have together."""


@decomposes(
    aten.rms_norm.default,
    targets=("coreml",),
    why="coremltools 9.0 divides by the peak and not eps: a zero row is NaN, quiet rows are off (coremltools#2821)",
)
def rms_norm(
    x: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """Return x / sqrt(mean(x x) + eps) over the last axes, times the weight.

    An eps of None is the type's own; an eps of 0 leaves NaN of a row of zeros, as in PyTorch.
    """
    axes = list(range(x.dim() - len(normalized_shape), x.dim()))
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    if eps < 0:  # which no peak keeps from being subtracted
        y = x / torch.sqrt((x * x).mean(axes, keepdim=True) + eps)
        return y if weight is None else y * weight
    root = math.sqrt(eps)
    peak = x.abs().amax(axes, keepdim=True)
    peak = peak.clamp(min=root) if root else peak
    u = x / peak
    bracket = (u * u).mean(axes, keepdim=True)
    if root:
        rest = root / peak
        bracket = bracket + rest * rest
    y = u / torch.sqrt(bracket)
    return y if weight is None else y * weight


@decomposes(
    aten.cosine_similarity.default,
    targets=("coreml", "coreai"),
    why="coremltools 9.0 refuses its defaults, and of a zero row Core AI makes NaN",
)
def cosine_similarity(x: Tensor, y: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    """Return x y / (max(|x|, eps) max(|y|, eps)) along an axis. Shapes broadcast."""
    x, y = torch.broadcast_tensors(x, y)  # type: ignore[no-untyped-call]  # torch declares no types
    product = _unit(x, dim, eps) * _unit(y, dim, eps)
    return product.sum(dim)


def _unit(x: Tensor, dim: int, eps: float) -> Tensor:
    """Return x / max(|x|, eps)."""
    peak = x.abs().amax([dim], keepdim=True).clamp(min=max(eps, _QUIETEST))
    u = x / peak
    size = torch.sqrt((u * u).sum([dim], keepdim=True))
    unit: Tensor = u / torch.maximum(size, eps / peak)
    return unit


@decomposes(aten.pairwise_distance.default, targets=("coreml",), why="coremltools 9.0 has no translation")
def pairwise_distance(x: Tensor, y: Tensor, p: float = 2.0, eps: float = 1e-6, keepdim: bool = False) -> Tensor:
    """Return the p-norm of x - y + eps along the last axis."""
    size: Tensor = torch.linalg.vector_norm(x - y + eps, p, dim=-1, keepdim=keepdim)
    return size


@decomposes(
    aten.cdist.default,
    aten._cdist_forward.default,
    targets=("coreml", "coreai", "onnx"),
    why="neither converter has a translation",
)
def cdist(x: Tensor, y: Tensor, p: float = 2.0, compute_mode: int | None = None) -> Tensor:
    """Return the p-norms of the differences of all rows: [..., N, D] and [..., M, D] to [..., N, M]."""
    size: Tensor = torch.linalg.vector_norm(x.unsqueeze(-2) - y.unsqueeze(-3), p, dim=-1)
    return size


@decomposes(
    aten.pdist.default,
    aten._pdist_forward.default,
    targets=("coreml", "coreai", "onnx", "tvm"),
    why="no converter has it",
)
def pdist(x: Tensor, p: float = 2.0) -> Tensor:
    """Return the p-norms of the differences of every two rows, [N, D] to [N (N - 1) / 2]; between few rows only."""
    rows = x.shape[0]
    if rows < 2 or rows * rows * x.shape[1] > _MOST:
        return LEAVE
    apart = torch.cat([x.narrow(0, i, 1) - x.narrow(0, i + 1, rows - 1 - i) for i in range(rows - 1)])
    size: Tensor = torch.linalg.vector_norm(apart, p, dim=-1)
    return size


@decomposes(aten.dist.default, targets=("coreml", "coreai"), why="neither converter has a translation")
def dist(x: Tensor, y: Tensor, p: float = 2.0) -> Tensor:
    """Return the p-norm of the difference of all numbers. Shapes broadcast."""
    size: Tensor = torch.linalg.vector_norm(x - y, p)
    return size


def _norm(is_left: Callable[[Tensor, float], bool], in_stages: bool) -> Callable[..., Tensor]:
    """Return the spelling of norms over axes, but for those that are left to a target; of long ones where sums are."""

    def vector_norm(
        x: Tensor,
        order: float = 2,
        dim: Sequence[int] | None = None,
        keepdim: bool = False,
        *,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Return the p-th root of the sum of |x|^p over some axes; of order 0 how many numbers are not 0."""
        if is_left(x, order) and not (in_stages and order in (1, 2) and sums.is_long(x, dim)):
            return LEAVE
        x = x if dtype is None else x.to(dtype)
        axes = list(dim) if dim and x.dim() else list(range(x.dim()))
        if order == 0 or not axes:
            sizes = (x != 0).to(x.dtype) if order == 0 else x.abs()
            return sizes.sum(axes, keepdim=keepdim) if axes else sizes
        return _root_of_powers(x.abs(), float(order), axes, keepdim)

    return vector_norm


def _is_of_sizes(x: Tensor, order: float) -> bool:
    return order != 0


def _is_plain(x: Tensor, order: float) -> bool:
    return bool(x.dim()) and (order in (0, 1, 2) or math.isinf(order))


decomposes(aten.linalg_vector_norm.default, targets=("tvm",), why="TVM's importer has no order of 0")(
    _norm(_is_of_sizes, in_stages=False)
)
decomposes(
    aten.linalg_vector_norm.default, targets=("coreai",), why="Core AI's converter fails on most orders, and no axes"
)(_norm(_is_plain, in_stages=True))
decomposes(
    aten.linalg_vector_norm.default, targets=("coreml",), why="coremltools' powers leave the range of half precision"
)(_norm(_is_plain, in_stages=False))


def _root_of_powers(size: Tensor, order: float, axes: list[int], keepdim: bool) -> Tensor:
    """Return the root of the sum of powers, which are 1 at most: sizes are divided by the one that has the largest."""
    peak = size.amax(axes, keepdim=True) if order > 0 else size.amin(axes, keepdim=True)
    peak = torch.where((peak == 0) | (peak == math.inf), 1.0, peak)
    root = torch.pow(torch.pow(size / peak, order).sum(axes, keepdim=True), 1 / order) * peak
    return root if keepdim else root.squeeze(axes)


@decomposes(
    aten._native_batch_norm_legit_no_training.default,
    targets=("coreai",),
    why="Core AI's converter fails without a weight and a bias",
)
def batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (x - mean) / sqrt(variance + eps) over channels, for a norm without an affine, and two empty tensors."""
    if weight is not None and bias is not None:
        return LEAVE
    planes = [1, -1, *[1] * (x.dim() - 2)]
    y = (x - mean.reshape(planes)) / torch.sqrt(variance.reshape(planes) + eps)
    y = y if weight is None else y * weight.reshape(planes)
    y = y if bias is None else y + bias.reshape(planes)
    return y, x.new_empty([0]), x.new_empty([0])


@decomposes(
    aten.instance_norm.default,
    targets=("coreml", "coreai", "tvm"),
    why="they take an image's own statistics for the stored ones",
)
def instance_norm(  # noqa: PLR0913 - the operator's own arguments
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    variance: Tensor | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Tensor:
    """Return an instance norm with stored statistics, which is a batch norm; others are left."""
    if use_input_stats or mean is None or variance is None:
        return LEAVE
    return torch.batch_norm(x, weight, bias, mean, variance, False, momentum, eps, cudnn_enabled)


_ALONE = "TVM's importer returns the norm alone, without its mean and factor"


@decomposes(aten.native_layer_norm.default, targets=("tvm",), why=_ALONE)
def native_layer_norm(
    x: Tensor, normalized_shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return a layer norm, the means, and the factors 1 / sqrt(var + eps)."""
    axes = list(range(x.dim() - len(normalized_shape), x.dim()))
    mean, scale = _statistics(x, axes, eps)
    return torch.nn.functional.layer_norm(x, list(normalized_shape), weight, bias, eps), mean, scale


@decomposes(aten.native_group_norm.default, targets=("tvm",), why=_ALONE)
def native_group_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, batch: int, channels: int, size: int, groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return a group norm, and the means and the factors 1 / sqrt(var + eps) of groups, [batch, groups]."""
    mean, scale = _statistics(x.reshape([batch, groups, -1]), [2], eps)
    y = torch.nn.functional.group_norm(x, groups, weight, bias, eps)
    return y, mean.reshape([batch, groups]), scale.reshape([batch, groups])


def _statistics(x: Tensor, axes: list[int], eps: float) -> tuple[Tensor, Tensor]:
    mean = x.mean(axes, keepdim=True)
    centred = x - mean
    return mean, torch.rsqrt((centred * centred).mean(axes, keepdim=True) + eps)
