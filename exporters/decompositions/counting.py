"""Modes, histograms and medians, by comparing numbers with each other, or with the edges of bins.

They need n x n comparisons of an axis, and are left to the target beyond `_MOST` of them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgesmith.exporters.decompositions import LEAVE, decomposes
from edgesmith.exporters.decompositions.by_comparison import _MOST, _is_large, _places, _sorted

aten = torch.ops.aten

_EVERYWHERE = ("coreml", "coreai", "onnx", "tvm")
_NO_ONE = "no converter has a translation"


@decomposes(aten.mode.default, targets=_EVERYWHERE, why=_NO_ONE)
def mode(x: Tensor, dim: int = -1, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    """Return the number that an axis has most often, the smallest of several, and its last place."""
    if not x.dim():
        return x.clone(), torch.zeros_like(x, dtype=torch.int64)
    if _is_large(x, dim):
        return LEAVE
    y = x.movedim(dim, -1)
    same = (y.unsqueeze(-1) == y.unsqueeze(-2)).to(torch.float32).sum(-1)  # of each, how many are its equals
    is_most = same == same.amax([-1], keepdim=True)
    ranks = _sorted_ranks(y)
    count = y.shape[-1]
    first = torch.where(is_most, ranks, torch.full_like(ranks, count)).amin([-1], keepdim=True)
    value = torch.where(ranks == first, y, torch.zeros_like(y)).sum(-1, keepdim=True).to(x.dtype)
    is_it = is_most & ((y == value) | (ranks == first))
    place = torch.where(is_it, _places(count, x).to(torch.float32), torch.zeros_like(ranks)).amax([-1], keepdim=True)
    return _along(value, dim, keepdim), _along(place.to(torch.int64), dim, keepdim)


def _sorted_ranks(y: Tensor) -> Tensor:
    """Return how many numbers of the last axis are before each, in float32, of which Core AI has extremes."""
    this, other = y.unsqueeze(-1), y.unsqueeze(-2)
    i = _places(y.shape[-1], y)
    before, same = other < this, other == this
    if y.is_floating_point():  # NaN is the largest
        is_nan, other_is = torch.isnan(this), torch.isnan(other)
        before, same = before | (is_nan & ~other_is), same | (is_nan & other_is)
    earlier = same & (i.unsqueeze(0) < i.unsqueeze(1))
    return (before | earlier).to(torch.float32).sum(-1)


def _along(x: Tensor, dim: int, keepdim: bool) -> Tensor:
    """Return a last axis of one where it was, or without it."""
    return x.movedim(-1, dim) if keepdim else x.squeeze(-1)


@decomposes(aten.nanmedian.dim, targets=_EVERYWHERE, why=_NO_ONE)
def nanmedian(x: Tensor, dim: int, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    """Return the median of the numbers of an axis that are any, the lower one of two, and its place."""
    if not x.dim():
        return x.clone(), torch.zeros_like(x, dtype=torch.int64)
    if _is_large(x, dim):
        return LEAVE
    values, places = (one.movedim(dim, -1) for one in _sorted(x, x.shape[dim], dim, False))  # NaN at the end
    known = (values == values).to(torch.int64).sum(-1, keepdim=True)
    counted = torch.where(known > 0, known, torch.full_like(known, x.shape[dim]))
    middle = _places(x.shape[dim], x) == torch.div(counted - 1, 2, rounding_mode="floor")
    value, place = (torch.where(middle, one, torch.zeros_like(one)).sum(-1, keepdim=True) for one in (values, places))
    return _along(value.to(x.dtype), dim, keepdim), _along(place, dim, keepdim)


@decomposes(aten.nanmedian.default, targets=_EVERYWHERE, why=_NO_ONE)
def nanmedian_of_all(x: Tensor) -> Tensor:
    """Return the median of all numbers that are any."""
    flat = x.reshape([-1])
    return LEAVE if _is_large(flat, 0) else nanmedian(flat, 0)[0]


@decomposes(aten.histc.default, targets=_EVERYWHERE, why="torch's exporter takes rows only, and no other has one")
def histc(x: Tensor, bins: int = 100, min: float = 0, max: float = 0) -> Tensor:  # noqa: A002 - PyTorch's names
    """Return how many numbers each of so many bins has; the last one has its upper edge too."""
    if x.numel() * bins > _MOST:
        return LEAVE
    flat = x.reshape([-1])
    low, high = (torch.full([], float(edge), dtype=x.dtype) for edge in (min, max))
    if min == max:  # then those of the data, or one about a number that is all of it
        low, high = flat.amin([0]), flat.amax([0])
        is_one = low == high
        low, high = torch.where(is_one, low - 1, low), torch.where(is_one, high + 1, high)
    place = torch.floor((flat - low) * float(bins) / (high - low)).clamp(max=bins - 1.0)
    is_in = ((flat >= low) & (flat <= high)).unsqueeze(-1)
    numbers = torch.arange(bins, device=x.device).to(x.dtype)
    return torch.where(is_in & (place.unsqueeze(-1) == numbers), 1.0, 0.0).to(x.dtype).sum(0)
