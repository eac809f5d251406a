"""Reductions over axes, scans and orders along one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from edgesmith.exporters.decompositions import LEAVE, decomposes

aten = torch.ops.aten


def _axes(x: Tensor, dim: int | Sequence[int] | None) -> list[int]:
    """Return axes counted from the front, all of them for None or none named."""
    named = [dim] if isinstance(dim, int) else list(dim or [])
    return sorted(axis % max(x.dim(), 1) for axis in named) if named else list(range(x.dim()))


def _squares(x: Tensor, axes: list[int], correction: float) -> tuple[Tensor, Tensor, float]:
    """Return the mean, the deviations from it, and what makes the mean of their squares the variance; axes are kept."""
    count = math.prod(x.shape[axis] for axis in axes)
    mean = x.mean(axes, keepdim=True)
    degrees = max(count - correction, 0)
    return mean, x - mean, count / degrees if degrees else math.inf


def _without(x: Tensor, axes: list[int], keepdim: bool) -> Tensor:
    return x if keepdim or not axes else x.squeeze(axes)


def _variance(x: Tensor, axes: list[int], correction: float) -> Tensor:
    peak, mean, factor = _relative_squares(x, axes, correction)
    return peak * (peak * (mean * factor))


def _deviation(x: Tensor, axes: list[int], correction: float) -> Tensor:
    peak, mean, factor = _relative_squares(x, axes, correction)
    return peak * torch.sqrt(mean) * math.sqrt(factor)


def _relative_squares(x: Tensor, axes: list[int], correction: float) -> tuple[Tensor, Tensor, float]:
    """Return the peak of deviations, the mean of squares relative to it, as squares leave fp16, and the factor."""
    _, deviation, factor = _squares(x, axes, correction)
    peak = deviation.abs().amax(axes, keepdim=True)
    u = deviation / torch.where(peak > 0, peak, torch.ones_like(peak))
    return peak, (u * u).mean(axes, keepdim=True), factor


_WHY = "coremltools 9.0 loses the correction where it is the default, and Core AI has no variance"


@decomposes(aten.var.correction, targets=("coreml", "coreai"), why=_WHY)
def var_correction(
    x: Tensor, dim: Sequence[int] | None = None, *, correction: float | None = None, keepdim: bool = False
) -> Tensor:
    """Return the variance over some axes; `correction` degrees of freedom less, 1 by default."""
    axes = _axes(x, dim)
    return _without(_variance(x, axes, 1 if correction is None else correction), axes, keepdim)


@decomposes(aten.std.correction, targets=("coreml", "coreai"), why=_WHY)
def std_correction(
    x: Tensor, dim: Sequence[int] | None = None, *, correction: float | None = None, keepdim: bool = False
) -> Tensor:
    """Return the standard deviation over some axes; `correction` degrees of freedom less, 1 by default."""
    axes = _axes(x, dim)
    return _without(_deviation(x, axes, 1 if correction is None else correction), axes, keepdim)


@decomposes(aten.var.dim, targets=("coreml", "coreai"), why=_WHY)
def var_dim(x: Tensor, dim: Sequence[int] | None, unbiased: bool = True, keepdim: bool = False) -> Tensor:
    """Return the variance over some axes."""
    return var_correction(x, dim, correction=int(unbiased), keepdim=keepdim)


@decomposes(aten.std.dim, targets=("coreml", "coreai"), why=_WHY)
def std_dim(x: Tensor, dim: Sequence[int] | None, unbiased: bool = True, keepdim: bool = False) -> Tensor:
    """Return the standard deviation over some axes."""
    return std_correction(x, dim, correction=int(unbiased), keepdim=keepdim)


@decomposes(aten.var.default, targets=("coreml", "coreai"), why=_WHY)
def var_all(x: Tensor, unbiased: bool = True) -> Tensor:
    """Return the variance of all numbers."""
    return var_correction(x, correction=int(unbiased))


@decomposes(aten.std.default, targets=("coreml", "coreai"), why=_WHY)
def std_all(x: Tensor, unbiased: bool = True) -> Tensor:
    """Return the standard deviation of all numbers."""
    return std_correction(x, correction=int(unbiased))


@decomposes(aten.var_mean.correction, targets=("coreml", "coreai"), why="coremltools 9.0 has no translation")
def var_mean(
    x: Tensor, dim: Sequence[int] | None = None, *, correction: float | None = None, keepdim: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the variance and the mean over some axes."""
    return var_correction(x, dim, correction=correction, keepdim=keepdim), x.mean(_axes(x, dim), keepdim=keepdim)


@decomposes(aten.std_mean.correction, targets=("coreml", "coreai"), why="coremltools 9.0 has no translation")
def std_mean(
    x: Tensor, dim: Sequence[int] | None = None, *, correction: float | None = None, keepdim: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the standard deviation and the mean over some axes."""
    return std_correction(x, dim, correction=correction, keepdim=keepdim), x.mean(_axes(x, dim), keepdim=keepdim)


@decomposes(aten.var_mean.dim, targets=("coreml", "coreai"), why="coremltools 9.0 has no translation")
def var_mean_dim(
    x: Tensor, dim: Sequence[int] | None, unbiased: bool = True, keepdim: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the variance and the mean over some axes."""
    return var_mean(x, dim, correction=int(unbiased), keepdim=keepdim)


@decomposes(aten.std_mean.dim, targets=("coreml", "coreai"), why="coremltools 9.0 has no translation")
def std_mean_dim(
    x: Tensor, dim: Sequence[int] | None, unbiased: bool = True, keepdim: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the standard deviation and the mean over some axes."""
    return std_mean(x, dim, correction=int(unbiased), keepdim=keepdim)


@decomposes(aten.var_mean.default, targets=("coreml", "coreai"), why="coremltools 9.0 has no translation")
def var_mean_all(x: Tensor, unbiased: bool = True) -> tuple[Tensor, Tensor]:
    """Return the variance and the mean of all numbers."""
    return var_mean(x, correction=int(unbiased))


@decomposes(aten.std_mean.default, targets=("coreml", "coreai"), why="coremltools 9.0 has no translation")
def std_mean_all(x: Tensor, unbiased: bool = True) -> tuple[Tensor, Tensor]:
    """Return the standard deviation and the mean of all numbers."""
    return std_mean(x, correction=int(unbiased))


_LOG = "coremltools 9.0 takes the logarithm of a softmax, which underflows below -103"


@decomposes(aten.log_softmax.int, targets=("coreml",), why=_LOG)
def log_softmax(x: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    """Return x - log(sum(exp(x))) along an axis, by x without its peak."""
    x = x if dtype is None else x.to(dtype)
    x = x - x.amax([dim], keepdim=True)
    return x - torch.log(torch.exp(x).sum([dim], keepdim=True))


@decomposes(aten._log_softmax.default, targets=("coreml",), why=_LOG)
def log_softmax_core(x: Tensor, dim: int, half_to_float: bool) -> Tensor:
    """Return what `log_softmax` does."""
    return log_softmax(x, dim, torch.float32 if half_to_float else None)


_TRUTH = (
    "coremltools 9.0 takes numbers for truth values as they are: negative ones are not true; Core AI's converter ends"
    " the process where the input has no axes"
)


def _some(x: Tensor, axes: list[int], keepdim: bool) -> Tensor:
    """Return where any number over some axes is not 0, by a maximum of floats: Core AI has none of integers."""
    found = x != 0
    return found.to(torch.float32).amax(axes, keepdim=keepdim) != 0 if axes and x.dim() else found


_NO_AXES = "the converters fail on an input without axes, and Core AI's where no axes are named"


@decomposes(aten.amax.default, targets=("coreml", "coreai", "tvm"), why=_NO_AXES)
def largest(x: Tensor, dim: Sequence[int] = (), keepdim: bool = False) -> Tensor:
    """Return the largest number over all axes where none is named, or of one number."""
    return _extreme(torch.amax, x, dim, keepdim)


@decomposes(aten.amin.default, targets=("coreml", "coreai", "tvm"), why=_NO_AXES)
def smallest(x: Tensor, dim: Sequence[int] = (), keepdim: bool = False) -> Tensor:
    """Return the smallest number over all axes where none is named, or of one number."""
    return _extreme(torch.amin, x, dim, keepdim)


def _extreme(extreme: Callable[..., Tensor], x: Tensor, dim: Sequence[int], keepdim: bool) -> Tensor:
    if not x.dim():
        return x.clone()
    return LEAVE if dim else extreme(x, list(range(x.dim())), keepdim=keepdim)


@decomposes(
    *(aten.max.dim, aten.min.dim),
    targets=("coreai", "coreml"),
    why="Core AI's converter fails on an input without axes, and coremltools takes none of whole numbers",
)
def extreme_and_place_of_one(x: Tensor, dim: int, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    """Return the largest, or smallest, of one number, and its position: 0."""
    return LEAVE if x.dim() else (x.clone(), torch.zeros_like(x, dtype=torch.int64))


@decomposes(aten.any.default, targets=("coreml", "coreai", "tvm"), why=_TRUTH)
def any_of_all(x: Tensor) -> Tensor:
    """Return whether any number is not 0."""
    return _some(x, _axes(x, None), False)


@decomposes(aten.any.dim, aten.any.dims, targets=("coreml", "coreai", "tvm"), why=_TRUTH)
def any_of(x: Tensor, dim: int | Sequence[int] | None, keepdim: bool = False) -> Tensor:
    """Return where any number over some axes is not 0."""
    return _some(x, _axes(x, dim), keepdim)


@decomposes(aten.all.default, targets=("coreml", "coreai", "tvm"), why=_TRUTH)
def all_of_all(x: Tensor) -> Tensor:
    """Return whether no number is 0."""
    return torch.logical_not(_some(x == 0, _axes(x, None), False))


@decomposes(aten.all.dim, aten.all.dims, targets=("coreml", "coreai", "tvm"), why=_TRUTH)
def all_of(x: Tensor, dim: int | Sequence[int] | None, keepdim: bool = False) -> Tensor:
    """Return where no number over some axes is 0."""
    return torch.logical_not(_some(x == 0, _axes(x, dim), keepdim))


_NO_COUNT = "coremltools 9.0 has no translation; Core AI's converter ends the process"


@decomposes(aten.count_nonzero.dim_IntList, targets=("coreml", "coreai", "tvm"), why=_NO_COUNT)
def count_nonzero_over(x: Tensor, dim: Sequence[int]) -> Tensor:
    """Return how many numbers over some axes are not 0."""
    return (x != 0).to(torch.int64).sum(list(dim))


@decomposes(aten.count_nonzero.default, targets=("coreml", "coreai", "tvm"), why=_NO_COUNT)
def count_nonzero(x: Tensor, dim: int | None = None) -> Tensor:
    """Return how many numbers are not 0, along an axis or of all."""
    found = (x != 0).to(torch.int64)
    return found.sum(_axes(x, dim)) if x.dim() else found


def _flat(x: Tensor, found: Tensor, keepdim: bool) -> Tensor:
    return found.reshape([1] * x.dim()) if keepdim else found.reshape([])


@decomposes(aten.argmax.default, targets=("coreml",), why="coremltools 9.0 takes no axis for the last one")
def argmax(x: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor:
    """Return the position of the largest number; without an axis that in the flat tensor."""
    if not x.dim():
        return position_of_one(x)
    return LEAVE if dim is not None else _flat(x, torch.argmax(x.reshape([-1]), 0), keepdim)


@decomposes(aten.argmin.default, targets=("coreml",), why="coremltools 9.0 takes no axis for the last one")
def argmin(x: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor:
    """Return the position of the smallest number; without an axis that in the flat tensor."""
    if not x.dim():
        return position_of_one(x)
    return LEAVE if dim is not None else _flat(x, torch.argmin(x.reshape([-1]), 0), keepdim)


@decomposes(aten.argmin.default, targets=("tvm",), why=_NO_AXES)
@decomposes(aten.argmax.default, targets=("tvm", "coreai"), why=_NO_AXES)
def position_of_one(x: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor:
    """Return the position of a single number: 0."""
    return LEAVE if x.dim() else torch.zeros_like(x, dtype=torch.int64)


@decomposes(aten.argmin.default, targets=("coreai",), why="Core AI has no argmin")
def argmin_by_argmax(x: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor:
    """Return the position of the smallest number as that of the largest of -x; without an axis in the flat tensor."""
    if not x.dim():
        return position_of_one(x)
    opposite = -x if x.is_floating_point() else -1 - x  # the smallest integer has no opposite
    return torch.argmax(opposite, dim, keepdim)


@decomposes(aten.aminmax.default, targets=("coreml", "onnx"), why="neither converter has a translation")
def aminmax(x: Tensor, *, dim: int | None = None, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    """Return the smallest and the largest number, along an axis or of all."""
    return x.amin(_axes(x, dim), keepdim=keepdim), x.amax(_axes(x, dim), keepdim=keepdim)


@decomposes(aten.kthvalue.default, targets=("coreml", "onnx"), why="neither converter has a translation")
def kthvalue(x: Tensor, k: int, dim: int = -1, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    """Return the k-th smallest number along an axis, and its index."""
    if not x.dim():
        return x.clone(), torch.zeros_like(x, dtype=torch.int64)
    values, indices = torch.sort(x, dim)
    if keepdim:
        return values.narrow(dim, k - 1, 1), indices.narrow(dim, k - 1, 1)
    return values.select(dim, k - 1), indices.select(dim, k - 1)


@decomposes(aten.median.dim, targets=("coreml", "onnx"), why="neither converter has a translation")
def median(x: Tensor, dim: int, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    """Return the lower median along an axis, and its index."""
    return kthvalue(x, (x.shape[dim] + 1) // 2 if x.dim() else 1, dim, keepdim)


@decomposes(aten.median.default, targets=("coreml", "onnx", "tvm"), why="neither converter has a translation")
def median_of_all(x: Tensor) -> Tensor:
    """Return the lower median of all numbers."""
    return kthvalue(x.reshape([-1]), (x.numel() + 1) // 2, 0)[0]


_LONGEST_SCAN = 512
"""The longest axis whose running extremes are taken over all pairs of positions; longer ones are left to the target."""


@decomposes(aten.cummax.default, targets=("coreml", "coreai", "onnx"), why="no converter has a translation")
def cummax(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Return the largest number up to each position along an axis, and the index of its last occurrence."""
    return _running(x, dim, torch.amax, -math.inf)


@decomposes(aten.cummin.default, targets=("coreml", "coreai", "onnx"), why="no converter has a translation")
def cummin(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Return the smallest number up to each position along an axis, and the index of its last occurrence."""
    return _running(x, dim, torch.amin, math.inf)


@decomposes(
    aten.logcumsumexp.default,
    targets=("coreml", "coreai"),
    why="coremltools 9.0 takes the logarithm of a sum of exponentials that overflow; Core AI has no translation",
)
def logcumsumexp(x: Tensor, dim: int) -> Tensor:
    """Return log(sum(exp)) of the numbers up to each position along an axis."""
    if not x.dim():
        return x.clone()
    if x.shape[dim] > _LONGEST_SCAN:
        return LEAVE
    return torch.logsumexp(_up_to(x, dim, -math.inf), [-1]).movedim(-1, dim)


def _up_to(x: Tensor, dim: int, beyond: float | Tensor) -> Tensor:
    """Return for every position i of an axis, now the last but one, the numbers up to it, and others behind it."""
    rows = x.movedim(dim, -1).unsqueeze(-2)
    return torch.where(_seen(rows), rows, beyond if isinstance(beyond, Tensor) else torch.full_like(rows, beyond))


def _seen(rows: Tensor) -> Tensor:
    """Return [i, j], true up to the diagonal."""
    j = torch.arange(rows.shape[-1], device=rows.device)
    return j.unsqueeze(0) <= j.unsqueeze(1)


def _running(x: Tensor, dim: int, extreme: Callable[..., Tensor], beyond: float) -> tuple[Tensor, Tensor]:
    """Return an extreme of the first i numbers for every i: of a plane [i, j] with what is behind i left out."""
    if not x.dim():
        return x.clone(), torch.zeros_like(x, dtype=torch.int64)
    length = x.shape[dim]
    if length > _LONGEST_SCAN or x.dtype == torch.bool:
        return LEAVE
    others: float | Tensor = beyond
    if not x.is_floating_point():  # which have no infinity
        others = x.amin() if beyond < 0 else x.amax()
    rows, j = x.movedim(dim, -1).unsqueeze(-2), torch.arange(length, device=x.device)
    values = extreme(_up_to(x, dim, others), [-1])
    is_it = (rows == values.unsqueeze(-1)) & _seen(rows)
    indices = torch.where(is_it, j, torch.zeros_like(j)).amax([-1])
    return values.movedim(-1, dim), indices.movedim(-1, dim)


@decomposes(aten.bucketize.Tensor, targets=("coreml", "coreai"), why="neither converter has a translation")
def bucketize(x: Tensor, boundaries: Tensor, *, out_int32: bool = False, right: bool = False) -> Tensor:
    """Return how many boundaries lie below each number, or up to it with `right`."""
    return _counted(x.unsqueeze(-1), boundaries, out_int32, right)


@decomposes(aten.searchsorted.Tensor, why="no converter has a translation")
def searchsorted(
    ordered: Tensor,
    x: Tensor,
    *,
    out_int32: bool = False,
    right: bool = False,
    side: str | None = None,
    sorter: Tensor | None = None,
) -> Tensor:
    """Return where each number goes in rows in ascending order: [..., N] and [..., M] to [..., M]."""
    ordered = ordered if sorter is None else torch.gather(ordered, -1, sorter)
    rows = ordered if ordered.dim() == 1 else ordered.unsqueeze(-2)
    return _counted(x.unsqueeze(-1), rows, out_int32, right or side == "right")


def _counted(x: Tensor, boundaries: Tensor, out_int32: bool, right: bool) -> Tensor:
    below = boundaries <= x if right else boundaries < x
    return below.to(torch.int32).sum([-1]).to(torch.int32 if out_int32 else torch.int64)
