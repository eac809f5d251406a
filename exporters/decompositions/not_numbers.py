"""Operators whose NaN and infinities a target loses, with what keeps them around the target's own.

    max, amax, max_pool ...       NaN where one of the numbers is NaN                  runtimes return the larger number
    argmax, median ...            the place of the first NaN
    sort, topk, kthvalue ...      NaN is the largest: an order of x with infinity for NaN, then one of what is NaN
    clamp, relu, log_sigmoid ...  NaN and infinities stay what they are
    sign, heaviside ...           PyTorch's own values of NaN

These cost up to three passes more each. So a graph takes them where its example shows that they are needed, see
graph/not_numbers.py; no model pays for a NaN that it never meets.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from edgesmith.exporters.decompositions import keeps_nan

aten = torch.ops.aten

_BOTH = ("onnx", "tvm")


def _axes(x: Tensor, dim: int | Sequence[int] | None) -> list[int]:
    named = [dim] if isinstance(dim, int) else list(dim or [])
    return named or list(range(x.dim()))


def _flags(x: Tensor) -> Tensor:
    """Return 1 where a number is NaN, else 0; in float32, in which targets reduce."""
    return torch.isnan(x).to(torch.float32)


def _some(x: Tensor, dim: int | Sequence[int] | None, keepdim: bool) -> Tensor:
    """Return where any number over some axes is NaN."""
    return (_flags(x).amax(_axes(x, dim), keepdim) if x.dim() else _flags(x)) > 0


def _or_nan(has: Tensor, value: Tensor) -> Tensor:
    return torch.where(has, torch.full_like(value, math.nan), value)


def _ranked(x: Tensor, beyond: float = -math.inf) -> Tensor:
    """Return 2 for NaN, 0 for what no extreme is beyond, and 1 for all others: the largest says what comes out."""
    return torch.where(torch.isnan(x), 2.0, (x != beyond).to(torch.float32))


def _by_rank(rank: Tensor, value: Tensor, beyond: float = -math.inf) -> Tensor:
    """Return NaN where there is one, and an infinity of nothing else, of which runtimes make -3.4e38 or 3.4e38."""
    return _or_nan(rank == 2, torch.where(rank == 0, torch.full_like(value, beyond), value))


def _extreme(reduce: Callable[..., Tensor], x: Tensor, dim: int | Sequence[int] | None, keepdim: bool) -> Tensor:
    """Return the largest, or smallest, number over axes, or NaN."""
    if not x.dim():
        return x.clone()
    axes, beyond = _axes(x, dim), (-math.inf if reduce is torch.amax else math.inf)
    return _by_rank(torch.amax(_ranked(x, beyond), axes, keepdim), reduce(x, axes, keepdim), beyond)


# Reductions


@keeps_nan(aten.amax.default, targets=_BOTH)
def amax(x: Tensor, dim: Sequence[int] = (), keepdim: bool = False) -> Tensor:
    """Return the largest number over axes, or NaN."""
    return _extreme(torch.amax, x, dim, keepdim)


@keeps_nan(aten.amin.default, targets=_BOTH)
def amin(x: Tensor, dim: Sequence[int] = (), keepdim: bool = False) -> Tensor:
    """Return the smallest number over axes, or NaN."""
    return _extreme(torch.amin, x, dim, keepdim)


@keeps_nan(aten.max.default, targets=_BOTH)
def largest(x: Tensor) -> Tensor:
    """Return the largest of all numbers, or NaN."""
    return _extreme(torch.amax, x, None, False)


@keeps_nan(aten.min.default, targets=_BOTH)
def smallest(x: Tensor) -> Tensor:
    """Return the smallest of all numbers, or NaN."""
    return _extreme(torch.amin, x, None, False)


@keeps_nan(aten.aminmax.default, targets=_BOTH)
def aminmax(x: Tensor, *, dim: int | None = None, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    """Return the smallest and the largest number, or NaN."""
    return _extreme(torch.amin, x, dim, keepdim), _extreme(torch.amax, x, dim, keepdim)


@keeps_nan(aten.linalg_vector_norm.default, targets=_BOTH)
def vector_norm(
    x: Tensor,
    ord: float = 2,  # noqa: A002 - PyTorch's name
    dim: Sequence[int] | None = None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Return a norm over axes, or NaN where it is an extreme, of infinite order."""
    if abs(ord) != math.inf:
        return torch.linalg.vector_norm(x, ord, dim, keepdim, dtype=dtype)
    size = (x if dtype is None else x.to(dtype)).abs()
    return _extreme(torch.amax if ord > 0 else torch.amin, size, dim, keepdim)


def _sent(scatter: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def around(x: Tensor, dim: int, index: Tensor, source: Tensor, reduce: str, *, include_self: bool = True) -> Tensor:
        """Return the extremes of what an index sends to each place, or NaN; sums and means are the target's."""
        value = scatter(x, dim, index, source, reduce, include_self=include_self)
        if reduce not in ("amax", "amin"):
            return value
        beyond = -math.inf if reduce == "amax" else math.inf
        ranks = _ranked(x, beyond), dim, index, _ranked(source, beyond)
        return _by_rank(scatter(*ranks, "amax", include_self=include_self), value, beyond)

    return around


for _scatter in (aten.scatter_reduce.two, aten.index_reduce.default):
    keeps_nan(_scatter, targets=_BOTH)(_sent(_scatter))


# Places


def _place(select: Callable[..., Tensor], x: Tensor, dim: int | None, keepdim: bool) -> Tensor:
    """Return the place that an operator selects, or that of the first NaN; the first of nothing but an infinity."""
    if not x.dim():
        return torch.zeros_like(x, dtype=torch.int64)
    rank = torch.amax(_ranked(x, -math.inf if select is torch.argmax else math.inf), _axes(x, dim), keepdim)
    found = select(x, dim, keepdim)
    found = torch.where(rank == 0, torch.zeros_like(found), found)
    return torch.where(rank == 2, torch.argmax(_flags(x), dim, keepdim), found)


@keeps_nan(aten.argmax.default, targets=_BOTH)
def argmax(x: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor:
    """Return the place of the largest number, or of the first NaN."""
    return _place(torch.argmax, x, dim, keepdim)


@keeps_nan(aten.argmin.default, targets=_BOTH)
def argmin(x: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor:
    """Return the place of the smallest number, or of the first NaN."""
    return _place(torch.argmin, x, dim, keepdim)


@keeps_nan(aten.max.dim, targets=_BOTH)
def largest_along(x: Tensor, dim: int, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    """Return the largest number along an axis and its place, or the first NaN."""
    return amax(x, [dim], keepdim), argmax(x, dim, keepdim)


@keeps_nan(aten.min.dim, targets=_BOTH)
def smallest_along(x: Tensor, dim: int, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    """Return the smallest number along an axis and its place, or the first NaN."""
    return amin(x, [dim], keepdim), argmin(x, dim, keepdim)


def _running(scan: Callable[..., Any], x: Tensor, dim: int, neutral: float) -> tuple[Tensor, Tensor]:
    """Return running extremes along an axis and their places; NaN from the first one on, at the place of the last."""
    values, places = scan(torch.where(torch.isnan(x), torch.full_like(x, neutral), x), dim)
    rank, last = torch.cummax(_ranked(x, neutral), dim)
    return _by_rank(rank, values, neutral), torch.where(rank == 1, places, last)


@keeps_nan(aten.cummax.default, targets=_BOTH)
def cummax(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Return running maxima along an axis and their places, or NaN."""
    return _running(torch.cummax, x, dim, -math.inf)


@keeps_nan(aten.cummin.default, targets=_BOTH)
def cummin(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Return running minima along an axis and their places, or NaN."""
    return _running(torch.cummin, x, dim, math.inf)


# Orders


def _ordered(x: Tensor, dim: int, descending: bool) -> tuple[Tensor, Tensor]:
    """Return the numbers of an axis in order, NaN as the largest, and their places; equal ones stay in order.

    Infinities are in one order with NaN first; an order of what is NaN puts those behind, or before, all others.
    """
    if not x.dim():
        return x.clone(), torch.zeros_like(x, dtype=torch.int64)
    is_nan = torch.isnan(x)
    finite = torch.where(is_nan, torch.full_like(x, math.inf), x)
    some = torch.sort(finite, stable=True, dim=dim, descending=descending)[1]
    flags = torch.gather(_flags(x), dim, some)
    places = torch.gather(some, dim, torch.sort(flags, stable=True, dim=dim, descending=descending)[1])
    return torch.gather(x, dim, places), places


@keeps_nan(aten.sort.default, targets=("onnx",))
def sort(x: Tensor, dim: int = -1, descending: bool = False) -> tuple[Tensor, Tensor]:
    """Return the numbers of an axis in order, and their places."""
    return _ordered(x, dim, descending)


@keeps_nan(aten.sort.stable, targets=("onnx",))
def sort_stable(
    x: Tensor, *, stable: bool | None = None, dim: int = -1, descending: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the numbers of an axis in order, equal ones as they were, and their places."""
    return _ordered(x, dim, descending)


@keeps_nan(aten.argsort.default, targets=("onnx",))
def argsort(x: Tensor, dim: int = -1, descending: bool = False) -> Tensor:
    """Return the places of the numbers of an axis in order."""
    return _ordered(x, dim, descending)[1]


@keeps_nan(aten.argsort.stable, targets=("onnx",))
def argsort_stable(x: Tensor, *, stable: bool, dim: int = -1, descending: bool = False) -> Tensor:
    """Return the places of the numbers of an axis in order, equal ones as they were."""
    return _ordered(x, dim, descending)[1]


@keeps_nan(aten.msort.default, targets=("onnx",))
def msort(x: Tensor) -> Tensor:
    """Return the numbers of the first axis in order."""
    return _ordered(x, 0, False)[0]


@keeps_nan(aten.topk.default, targets=("onnx",))
def topk(x: Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> tuple[Tensor, Tensor]:  # noqa: A002 - PyTorch's name
    """Return the largest, or smallest, numbers of an axis in order, and their places."""
    values, places = _ordered(x, dim, largest)
    return (values.narrow(dim, 0, k), places.narrow(dim, 0, k)) if x.dim() else (values, places)


@keeps_nan(aten.kthvalue.default, targets=("onnx",))
def kthvalue(x: Tensor, k: int, dim: int = -1, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    """Return the k-th smallest number of an axis, and its place."""
    values, places = _ordered(x, dim, False)
    if not x.dim():
        return values, places
    if keepdim:
        return values.narrow(dim, k - 1, 1), places.narrow(dim, k - 1, 1)
    return values.select(dim, k - 1), places.select(dim, k - 1)


@keeps_nan(aten.median.dim, targets=_BOTH)
def median(x: Tensor, dim: int, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    """Return the median of an axis, the lower one of two, and its place; or the first NaN."""
    if not x.dim():
        return x.clone(), torch.zeros_like(x, dtype=torch.int64)
    known = torch.where(torch.isnan(x), torch.zeros_like(x), x)
    values, places = torch.median(known, dim, keepdim)
    has = _some(x, dim, keepdim)
    return _or_nan(has, values), torch.where(has, torch.argmax(_flags(x), dim, keepdim), places)


@keeps_nan(aten.median.default, targets=_BOTH)
def median_of_all(x: Tensor) -> Tensor:
    """Return the lower median of all numbers, or NaN."""
    return _or_nan(_some(x, None, False), torch.median(torch.where(torch.isnan(x), torch.zeros_like(x), x)))


@keeps_nan(aten.bucketize.Tensor, targets=_BOTH)
def bucketize(x: Tensor, boundaries: Tensor, *, out_int32: bool = False, right: bool = False) -> Tensor:
    """Return how many boundaries are below each number: all are below NaN."""
    found = torch.bucketize(x, boundaries, out_int32=out_int32, right=right)
    return torch.where(torch.isnan(x), torch.full_like(found, boundaries.shape[-1]), found)


@keeps_nan(aten.searchsorted.Tensor, targets=_BOTH)
def searchsorted(ordered: Tensor, x: Tensor, **given: Any) -> Tensor:
    """Return where each number goes in rows in ascending order: NaN goes behind all."""
    found = torch.searchsorted(ordered, x, **given)
    return torch.where(torch.isnan(x), torch.full_like(found, ordered.shape[-1]), found)


# Pools


def _pool(pool: Callable[..., Any]) -> Callable[..., Tensor]:
    def around(x: Tensor, *given: Any, **named: Any) -> Tensor:
        """Return the largest numbers of windows, or NaN."""
        return _by_rank(pool(_ranked(x), *given, **named), pool(x, *given, **named))

    return around


def _pool_with_places(pool: Callable[..., Any]) -> Callable[..., tuple[Tensor, Tensor]]:
    def around(x: Tensor, *given: Any, **named: Any) -> tuple[Tensor, Tensor]:
        """Return the largest numbers of windows and their places in the map; of NaN the last one's."""
        values, places = pool(x, *given, **named)
        sizes = x.shape[-len(given[0]) :]
        at = torch.arange(1, math.prod(sizes) + 1, dtype=torch.float32).reshape(sizes)
        last = pool(_flags(x) * at, *given, **named)[0]  # float32 has places up to 2^24
        rank = pool(_ranked(x), *given, **named)[0]
        return _by_rank(rank, values), torch.where(last > 0, last.to(torch.int64) - 1, places)

    return around


for _alone, _indexed in (
    (aten.max_pool1d, aten.max_pool1d_with_indices),
    (aten.max_pool2d, aten.max_pool2d_with_indices),
    (aten.max_pool3d, aten.max_pool3d_with_indices),
):
    keeps_nan(_alone.default, targets=_BOTH)(_pool(_alone.default))
    keeps_nan(_indexed.default, targets=_BOTH)(_pool_with_places(_indexed.default))


# Each number by itself


def _stays(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def around(x: Tensor, *given: Any, **named: Any) -> Tensor:
        """Return what the operator does, and NaN of NaN."""
        return torch.where(torch.isnan(x), x, function(x, *given, **named))

    return around


keeps_nan(aten.angle.default, targets=("onnx",))(_stays(aten.angle.default))

for _overload in (
    *(aten.relu.default, aten.relu6.default, aten.hardtanh.default, aten.hardsigmoid.default, aten.elu.default),
    *(aten.selu.default, aten.softshrink.default, aten.clip.default, aten.clamp.Tensor),
):
    keeps_nan(_overload, targets=("tvm",))(_stays(_overload))


def _isnan(x: Tensor | float) -> Tensor:
    return torch.isnan(x) if isinstance(x, Tensor) and x.is_floating_point() else torch.zeros([], dtype=torch.bool)


@keeps_nan(aten.ne.Scalar, aten.ne.Tensor, targets=("tvm",))
def differ(x: Tensor, y: Tensor | float) -> Tensor:
    """Return where two numbers differ, as NaN does from all."""
    return torch.ne(x, y) | _isnan(x) | _isnan(y)


@keeps_nan(aten.maximum.default, targets=("tvm",))
def maximum(x: Tensor, y: Tensor) -> Tensor:
    """Return the larger number, or NaN."""
    return _or_nan(_isnan(x) | _isnan(y), torch.maximum(x, y))


@keeps_nan(aten.minimum.default, targets=("tvm",))
def minimum(x: Tensor, y: Tensor) -> Tensor:
    """Return the smaller number, or NaN."""
    return _or_nan(_isnan(x) | _isnan(y), torch.minimum(x, y))


def _clamp(x: Tensor, low: float | None = None, high: float | None = None) -> Tensor:
    """Return x between two bounds: one that is left out is infinite, and not the largest number."""
    return torch.clamp(x, -math.inf if low is None else low, math.inf if high is None else high)


keeps_nan(aten.clamp.default, aten.clamp_min.default, targets=("onnx",))(_clamp)
keeps_nan(aten.clamp.default, aten.clamp_min.default, targets=("tvm",))(_stays(_clamp))


@keeps_nan(aten.clamp_max.default, targets=_BOTH)
def clamp_max(x: Tensor, high: float) -> Tensor:
    """Return x up to a bound; NaN stays, and so does what is infinite."""
    return torch.where(torch.isnan(x), x, _clamp(x, None, high))


@keeps_nan(aten.log_sigmoid.default, targets=_BOTH)
def log_sigmoid(x: Tensor) -> Tensor:
    """Return the logarithm of the sigmoid, which is x itself of minus infinity."""
    return torch.where(x == -math.inf, x, torch.nn.functional.logsigmoid(x))


@keeps_nan(aten.pow.Tensor_Scalar, targets=("tvm",))
def power(x: Tensor, exponent: float) -> Tensor:
    """Return a power; the square root is NaN of minus infinity."""
    return torch.sqrt(x) if exponent == 0.5 else torch.pow(x, exponent)


@keeps_nan(aten.hypot.default, targets=_BOTH)
def hypot(x: Tensor, y: Tensor) -> Tensor:
    """Return sqrt(x x + y y), infinite where one of the two is."""
    length = torch.hypot(x, y)
    is_infinite = (x.abs() == math.inf) | (y.abs() == math.inf)
    length = _or_nan(torch.isnan(x) | torch.isnan(y), length)
    return torch.where(is_infinite, torch.full_like(length, math.inf), length)


@keeps_nan(aten.sign.default, aten.sgn.default, targets=("onnx",))
def sign(x: Tensor) -> Tensor:
    """Return the sign of a number: -1, 0 or 1; 0 of NaN."""
    return torch.where(torch.isnan(x), torch.zeros_like(x), torch.sign(x))


@keeps_nan(aten.heaviside.default, targets=("onnx",))
def heaviside(x: Tensor, at_zero: Tensor) -> Tensor:
    """Return 0 below 0, 1 above it, and the other value at it; 0 of NaN."""
    return torch.where(x == 0, at_zero, (x > 0).to(at_zero.dtype))


@keeps_nan(aten.xlogy.Tensor, targets=("onnx",))
def xlogy(x: Tensor, y: Tensor) -> Tensor:
    """Return x log(y), 0 where x is 0, and NaN where y is NaN."""
    product = torch.where(x == 0, torch.zeros_like(y), x * torch.log(y))
    return torch.where(torch.isnan(y), y, product)


@keeps_nan(aten.lgamma.default, aten.special_gammaln.default, targets=_BOTH)
def lgamma(x: Tensor) -> Tensor:
    """Return log |gamma(x)|, infinite at both infinities."""
    return torch.where(x.abs() == math.inf, x.abs(), torch.lgamma(x))


@keeps_nan(aten.floor_divide.default, targets=("onnx",))
def floor_divide(x: Tensor, divisor: Tensor | float) -> Tensor:
    """Return the floor of x / d; NaN of what is infinite, unless d is 0."""
    d = divisor if isinstance(divisor, Tensor) else torch.full_like(x, divisor)
    divided = torch.floor_divide(x, d)
    is_infinite = x.abs() == math.inf
    below = (d.abs() == math.inf) & ((x < 0) != (d < 0)) & (x != 0)
    divided = torch.where(below, torch.full_like(divided, -1.0), divided)
    return _or_nan((is_infinite & (d != 0)) | torch.isnan(x), divided)


@keeps_nan(aten.remainder.Tensor, targets=("onnx",))
def remainder(x: Tensor, divisor: Tensor) -> Tensor:
    """Return x - d floor(x / d), which has the sign of d: of a number and an infinite d, x or d."""
    rest = torch.where((x == 0) | ((x < 0) == (divisor < 0)), x, divisor)
    is_finite = x.abs() < math.inf
    return torch.where((divisor.abs() == math.inf) & is_finite, rest, torch.remainder(x, divisor))
