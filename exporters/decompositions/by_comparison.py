"""Sorting and scattering by comparing everything with everything.

    rank of i   how many are before it: those that are larger, or equal and earlier; so that a place k takes the i of
                rank k, and no order of steps depends on numbers
    scatter     position j takes from all k with index[k] = j

They need n x k comparisons, and are left to the target beyond `_MOST` of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import zip_longest

import torch
from torch import Tensor

from edgesmith.exporters.decompositions import LEAVE, decomposes
from edgesmith.exporters.decompositions.arranging import PICKED, _put_by_mask, put

aten = torch.ops.aten

_MOST = 2**22
_CALLS = "TVM sorts and selects by calls into its own runtime, which a library by itself has not"
_NONE = "Core AI's converter has an order of the largest or smallest ones alone"
_SCATTERS = "TVM's loops for it do not compile ahead, or it has none"


# Order


def _places(count: int, like: Tensor) -> Tensor:
    return torch.arange(count, device=like.device)


def _sorted(x: Tensor, count: int, dim: int, descending: bool) -> tuple[Tensor, Tensor]:
    """Return the first numbers in order along an axis, and their places; equal ones stay in order."""
    y = x.movedim(dim, -1)
    n = y.shape[-1]
    this, other = y.unsqueeze(-1), y.unsqueeze(-2)  # [..., i, 1] and [..., 1, j]
    i = _places(n, x)
    before = (other > this) if descending else (other < this)
    same = other == this
    if x.is_floating_point():  # NaN is the largest
        is_nan, other_is = torch.isnan(this), torch.isnan(other)
        before = before | (other_is & ~is_nan if descending else is_nan & ~other_is)
        same = same | (is_nan & other_is)
    earlier = same & (i.unsqueeze(0) < i.unsqueeze(1))
    rank = (before | earlier).to(torch.int64).sum(-1)
    takes = rank.unsqueeze(-2) == i[:count].unsqueeze(1)  # [..., k, i]
    values = torch.where(takes, y.unsqueeze(-2), torch.zeros_like(y.unsqueeze(-2))).sum(-1).to(x.dtype)
    places = torch.where(takes, i, torch.zeros_like(i)).sum(-1)
    return values.movedim(-1, dim), places.movedim(-1, dim)


def _is_large(x: Tensor, dim: int) -> bool:
    return not x.dim() or x.dtype == torch.bool or x.numel() * x.shape[dim] > _MOST


@decomposes(aten.topk.default, targets=("tvm",), why=_CALLS)
def topk(x: Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> tuple[Tensor, Tensor]:  # noqa: A002 - PyTorch's name
    """Return the largest, or smallest, numbers of an axis in order, and their places."""
    return LEAVE if _is_large(x, dim) else _sorted(x, k, dim, largest)


@decomposes(aten.sort.default, targets=("tvm",), why=_CALLS)
def sort(x: Tensor, dim: int = -1, descending: bool = False) -> tuple[Tensor, Tensor]:
    """Return the numbers of an axis in order, and their places."""
    if not x.dim():
        return x.clone(), torch.zeros_like(x, dtype=torch.int64)
    return LEAVE if _is_large(x, dim) else _sorted(x, x.shape[dim], dim, descending)


@decomposes(aten.sort.stable, targets=("tvm",), why=_CALLS)
def sort_stable(
    x: Tensor, *, stable: bool | None = None, dim: int = -1, descending: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the numbers of an axis in order, equal ones as they were, and their places."""
    return LEAVE if _is_large(x, dim) else _sorted(x, x.shape[dim], dim, descending)


def _by_topk(x: Tensor, dim: int, descending: bool) -> tuple[Tensor, Tensor]:
    """Return the numbers of an axis in order, and their places, by an order of as many as there are."""
    if not x.dim():
        return x.clone(), torch.zeros_like(x, dtype=torch.int64)
    if not _is_large(x, dim):
        return _sorted(x, x.shape[dim], dim, descending)
    values, places = torch.topk(x, x.shape[dim], dim, descending)
    return values, places


@decomposes(aten.sort.default, targets=("coreai",), why=_NONE)
def sort_by_topk(x: Tensor, dim: int = -1, descending: bool = False) -> tuple[Tensor, Tensor]:
    """Return the numbers of an axis in order, and their places."""
    return _by_topk(x, dim, descending)


@decomposes(aten.sort.stable, targets=("coreai",), why=_NONE)
def sort_stable_by_topk(
    x: Tensor, *, stable: bool | None = None, dim: int = -1, descending: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the numbers of an axis in order, equal ones as they were, and their places."""
    return _by_topk(x, dim, descending)


@decomposes(aten.argsort.default, targets=("tvm",), why=_CALLS)
def argsort(x: Tensor, dim: int = -1, descending: bool = False) -> Tensor:
    """Return the places of the numbers of an axis in order."""
    if not x.dim():
        return torch.zeros_like(x, dtype=torch.int64)
    return LEAVE if _is_large(x, dim) else sort(x, dim, descending)[1]


@decomposes(aten.argsort.stable, targets=("tvm",), why=_CALLS)
def argsort_stable(x: Tensor, *, stable: bool, dim: int = -1, descending: bool = False) -> Tensor:
    """Return the places of the numbers of an axis in order, equal ones as they were."""
    return argsort(x, dim, descending)


@decomposes(aten.msort.default, targets=("tvm",), why=_CALLS)
def msort(x: Tensor) -> Tensor:
    """Return the numbers of the first axis in order."""
    if not x.dim():
        return x.clone()
    return LEAVE if _is_large(x, 0) else sort(x, 0)[0]


@decomposes(aten.kthvalue.default, targets=("tvm",), why=_CALLS)
def kthvalue(x: Tensor, k: int, dim: int = -1, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    """Return the k-th smallest number of an axis, and its place."""
    if _is_large(x, dim):
        return LEAVE
    values, places = (one.narrow(dim, k - 1, 1) for one in _sorted(x, k, dim, False))
    return (values, places) if keepdim else (values.squeeze(dim), places.squeeze(dim))


@decomposes(aten.median.dim, targets=("tvm",), why=_CALLS)
def median(x: Tensor, dim: int, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    """Return the median of an axis, the lower one of two, and its place."""
    if not x.dim():
        return x.clone(), torch.zeros_like(x, dtype=torch.int64)
    return LEAVE if _is_large(x, dim) else kthvalue(x, (x.shape[dim] + 1) // 2, dim, keepdim)


@decomposes(aten.max.dim, targets=("tvm",), why=_CALLS)
def max_along(x: Tensor, dim: int, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    """Return the largest number along an axis, and its place."""
    if not x.dim():
        return x.clone(), torch.zeros_like(x, dtype=torch.int64)
    return torch.amax(x, [dim], keepdim), torch.argmax(x, dim, keepdim)


@decomposes(aten.min.dim, targets=("tvm",), why="TVM's importer has none")
def min_along(x: Tensor, dim: int, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    """Return the smallest number along an axis, and its place."""
    if not x.dim():
        return x.clone(), torch.zeros_like(x, dtype=torch.int64)
    return torch.amin(x, [dim], keepdim), torch.argmin(x, dim, keepdim)


def _running(x: Tensor, dim: int, reduce: Callable[..., Tensor], neutral: float) -> tuple[Tensor, Tensor]:
    """Return the extreme of the first 1, 2, 3 ... numbers of an axis, and the last place that has it."""
    y = x.movedim(dim, -1)
    i = _places(y.shape[-1], x)
    seen = i.unsqueeze(0) <= i.unsqueeze(1)  # [i, j]: j is among the first of i
    rows = torch.where(seen, y.unsqueeze(-2), torch.full_like(y.unsqueeze(-2), neutral))
    values = reduce(rows, [-1])
    holds = seen & (y.unsqueeze(-2) == values.unsqueeze(-1))
    places = torch.where(holds, i, torch.zeros_like(i)).amax(-1)
    return values.movedim(-1, dim), places.movedim(-1, dim)


@decomposes(aten.cummax.default, targets=("tvm",), why="TVM's importer has none")
def cummax(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Return running maxima along an axis, and their places."""
    least = -math.inf if x.is_floating_point() else torch.iinfo(x.dtype).min
    return LEAVE if _is_large(x, dim) else _running(x, dim, torch.amax, least)


@decomposes(aten.cummin.default, targets=("tvm",), why="TVM's importer has none")
def cummin(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Return running minima along an axis, and their places."""
    most = math.inf if x.is_floating_point() else torch.iinfo(x.dtype).max
    return LEAVE if _is_large(x, dim) else _running(x, dim, torch.amin, most)


@decomposes(aten.one_hot.default, targets=("tvm",), why="TVM keeps a call into its own runtime")
def one_hot(x: Tensor, num_classes: int = -1) -> Tensor:
    """Return 1 at the position that a number says, of as many as there are classes."""
    if num_classes < 0:
        return LEAVE
    return (x.unsqueeze(-1) == _places(num_classes, x)).to(torch.int64)


# Positions


Scatter = Callable[..., Tensor]
"""Of numbers, an axis, an index, and what goes to its positions."""


def _whole(scatter: Scatter, x: Tensor, dim: int, index: Tensor, src: Tensor | float) -> Tensor | None:
    """Return a scatter by those of whole indices; None where an index has all of the other axes, and some.

    Args:
        scatter: what is called with an index that has all of the other axes.
    """
    if not x.dim():
        flat = src.reshape([1]) if isinstance(src, Tensor) else src
        return scatter(x.reshape([1]), 0, index.reshape([1]), flat).reshape([])
    for axis, (size, less) in enumerate(zip(x.shape, index.shape, strict=True)):
        if axis != dim % x.dim() and less < size:
            head = scatter(x.narrow(axis, 0, less), dim, index, src)
            return torch.cat([head, x.narrow(axis, less, size - less)], axis)
    return None


def _holds(x: Tensor, dim: int, index: Tensor) -> Tensor | None:
    """Return [..., j, k] where index k along the axis, as the last one, is j; None where that is left alone."""
    if index.numel() * x.shape[dim] > _MOST:
        return None
    return index.movedim(dim, -1).unsqueeze(-2) == _places(x.shape[dim], x).unsqueeze(1)


def _given(source: Tensor, dim: int, index: Tensor) -> Tensor:
    """Return what an index scatters, with the axis last: [..., 1, k]."""
    for axis, size in enumerate(index.shape):
        source = source.narrow(axis, 0, size) if source.shape[axis] != size else source
    return source.movedim(dim, -1).unsqueeze(-2)


@decomposes(aten.scatter.src, targets=("tvm",), why=_SCATTERS)
def scatter(x: Tensor, dim: int, index: Tensor, src: Tensor) -> Tensor:
    """Return x with numbers at the positions of an index along an axis; the last one stays where several go."""
    if (partly := _whole(scatter, x, dim, index, src)) is not None:
        return partly
    holds = _holds(x, dim, index)
    if holds is None:
        return LEAVE
    last = torch.where(holds, _places(index.shape[dim], x), -1).amax(-1).unsqueeze(-1)  # [..., j, 1]
    chosen = holds & (_places(index.shape[dim], x) == last)
    values = torch.where(chosen, _given(src, dim, index), torch.zeros([], dtype=x.dtype)).sum(-1).to(x.dtype)
    return torch.where(last.squeeze(-1) >= 0, values, x.movedim(dim, -1)).movedim(-1, dim)


@decomposes(aten.scatter.value, targets=("tvm",), why=_SCATTERS)
def scatter_number(x: Tensor, dim: int, index: Tensor, value: float) -> Tensor:
    """Return x with a number at the positions of an index along an axis."""
    if (partly := _whole(scatter_number, x, dim, index, value)) is not None:
        return partly
    holds = _holds(x, dim, index)
    if holds is None:
        return LEAVE
    hit = holds.to(torch.int64).amax(-1).movedim(-1, dim) > 0
    return torch.where(hit, torch.full_like(x, value), x)


_PARTLY = "Core AI's converter and coremltools fail on an index that has less of the other axes, or of the source"


def _as_index(source: Tensor, index: Tensor) -> Tensor:
    """Return the part of a source that an index is for."""
    return source[tuple(slice(0, size) for size in index.shape)]


@decomposes(aten.scatter.src, targets=("onnx",), why="ONNX wants a source as large as the index")
def scatter_as_index(x: Tensor, dim: int, index: Tensor, src: Tensor) -> Tensor:
    """Return x with the part of a source that an index is for; others are left."""
    return LEAVE if src.shape == index.shape else torch.scatter(x, dim, index, _as_index(src, index))


@decomposes(aten.scatter.src, targets=("coreai", "coreml"), why=_PARTLY)
def scatter_partly(x: Tensor, dim: int, index: Tensor, src: Tensor) -> Tensor:
    """Return x with numbers at the positions of an index that has less of the axes or the source; others are left."""
    partly = _whole(torch.scatter, x, dim, index, src)
    if partly is None and src.shape != index.shape:
        return torch.scatter(x, dim, index, _as_index(src, index))
    return LEAVE if partly is None else partly


@decomposes(aten.scatter.value, targets=("coreai", "coreml"), why=_PARTLY)
def scatter_number_partly(x: Tensor, dim: int, index: Tensor, value: float) -> Tensor:
    """Return x with a number at the positions of an index that has less of the other axes; others are left."""
    partly = _whole(torch.scatter, x, dim, index, value)
    return LEAVE if partly is None else partly


_REDUCES = "TVM's importer and torch's exporter have none, and the others' take an index of the whole only"
_MEANS = {"add": "sum", "multiply": "prod"}


@decomposes(aten.scatter.reduce, targets=("tvm", "onnx", "coreai", "coreml"), why=_REDUCES)
def scatter_by(x: Tensor, dim: int, index: Tensor, src: Tensor, *, reduce: str) -> Tensor:
    """Return x with numbers added to, or multiplied with, those at the positions of an index."""
    return torch.scatter_reduce(x, dim, index, src, _MEANS[reduce])


@decomposes(aten.scatter.value_reduce, targets=("tvm", "onnx", "coreai", "coreml"), why=_REDUCES)
def scatter_number_by(x: Tensor, dim: int, index: Tensor, value: float, *, reduce: str) -> Tensor:
    """Return x with a number added to, or multiplied with, those at the positions of an index."""
    return torch.scatter_reduce(x, dim, index, torch.full_like(index, value, dtype=x.dtype), _MEANS[reduce])


@decomposes(
    aten.scatter_add.default,
    targets=("tvm", "coreai", "coreml"),
    why=f"{_SCATTERS}; Core AI's converter has none, and coremltools wants a whole index",
)
def scatter_add(x: Tensor, dim: int, index: Tensor, src: Tensor) -> Tensor:
    """Return x with numbers added at the positions of an index along an axis."""
    return scatter_reduce(x, dim, index, src, "sum")


@decomposes(
    aten.scatter_reduce.two,
    targets=("tvm", "coreml", "coreai"),
    why="TVM's importer and Core AI's converter have none, coremltools few of its modes",
)
def scatter_reduce(
    x: Tensor, dim: int, index: Tensor, src: Tensor, reduce: str, *, include_self: bool = True
) -> Tensor:
    """Return x with the sum, product, mean or extreme of what an index sends to each position, of x too by default."""
    of_whole = partial(scatter_reduce, reduce=reduce, include_self=include_self)
    if not x.is_floating_point() and reduce != "sum":
        return LEAVE
    if (partly := _whole(of_whole, x, dim, index, src)) is not None:
        return partly
    holds = _holds(x, dim, index)
    neutral = {"sum": 0, "mean": 0, "prod": 1, "amax": -math.inf, "amin": math.inf}[reduce]
    if holds is None:
        return LEAVE
    own = x.movedim(dim, -1)
    sent = torch.where(holds, _given(src, dim, index), torch.full([], neutral, dtype=x.dtype))
    if include_self:
        sent = torch.cat([own.unsqueeze(-1), sent.expand([*own.shape, index.shape[dim]])], -1)
    count = holds.to(torch.float32).sum(-1)
    if reduce == "prod":
        made = sent.prod(-1)
    elif reduce in ("amax", "amin"):
        made = sent.amax(-1) if reduce == "amax" else sent.amin(-1)
    else:
        made = sent.sum(-1).to(x.dtype)
        made = made / (count + float(include_self)).clamp(min=1.0).to(x.dtype) if reduce == "mean" else made
    return (made if include_self else torch.where(count > 0, made, own)).movedim(-1, dim)


@decomposes(
    aten.index_reduce.default, targets=("coreml", "coreai", "onnx", "tvm"), why="no converter has a translation"
)
def index_reduce(
    x: Tensor, dim: int, index: Tensor, source: Tensor, reduce: str, *, include_self: bool = True
) -> Tensor:
    """Return x with the product, mean or extreme of slices that an index of one axis sends to each position."""
    if not x.dim():
        x, source = x.reshape([1]), source.reshape([1])
        return torch.scatter_reduce(x, 0, index.reshape([1]), source, reduce, include_self=include_self).reshape([])
    spread = index.reshape([-1 if axis == dim % x.dim() else 1 for axis in range(x.dim())]).expand(source.shape)
    return torch.scatter_reduce(x, dim, spread, source, reduce, include_self=include_self)


@decomposes(aten.index_add.default, targets=("tvm",), why=_SCATTERS)
def index_add(x: Tensor, dim: int, index: Tensor, source: Tensor, *, alpha: float = 1) -> Tensor:
    """Return x with slices added at the positions of an index of one axis, by a product with zeros and ones."""
    if not x.dim() or not x.is_floating_point() or index.numel() * x.shape[dim] > _MOST:
        return LEAVE
    y, added = x.movedim(dim, 0), source.movedim(dim, 0)
    sends = (_places(y.shape[0], x).unsqueeze(1) == index.reshape([1, -1])).to(x.dtype)
    total = torch.matmul(sends, added.reshape([added.shape[0], -1])).reshape(y.shape)
    return (y + (total if alpha == 1 else total * alpha)).movedim(0, dim)


def _flat(x: Tensor, indices: Sequence[Tensor | None]) -> tuple[list[int], Tensor, list[int]] | None:
    """Return the axes that have an index, their positions as one number, [*common], and the common shape."""
    given = [(axis, index) for axis, index in enumerate(indices) if index is not None]
    if not given or any(index.dtype == torch.bool for _, index in given):
        return None
    common = list(torch.broadcast_shapes(*(index.shape for _, index in given)))  # type: ignore[no-untyped-call]  # of torch
    at = torch.zeros(common, dtype=torch.int64, device=x.device)
    for axis, index in given:
        size = x.shape[axis]
        at = at * size + torch.where(index < 0, index + size, index).to(torch.int64)
    return [axis for axis, _ in given], at, common


@decomposes(aten.index.Tensor, targets=("tvm",), why="TVM's importer takes several indices for the first axes")
def index(x: Tensor, indices: Sequence[Tensor | None]) -> Tensor:
    """Return the numbers at indices of some axes, which are brought to the front and read as one axis."""
    found = _flat(x, indices)
    if found is None:
        return LEAVE
    axes, at, common = found
    rest = [size for axis, size in enumerate(x.shape) if axis not in axes]
    front = x.movedim(axes, list(range(len(axes)))).reshape([-1, *rest])
    made = front.index_select(0, at.reshape([-1])).reshape([*common, *rest])
    start = axes[0] if axes[-1] - axes[0] + 1 == len(axes) else 0
    count = len(common)
    return made.movedim(list(range(count)), list(range(start, start + count))) if start and count else made


@decomposes(*(aten.index_put.default, aten._unsafe_index_put.default), targets=("tvm",), why=_SCATTERS)
def index_put(x: Tensor, indices: Sequence[Tensor | None], values: Tensor, accumulate: bool = False) -> Tensor:
    """Return x with values at indices, or by a mask of its leading axes, where it holds."""
    if len(indices) == 1 and indices[0] is not None and indices[0].dtype == torch.bool:
        return _put_by_mask(x, indices[0], values, accumulate)
    found = _flat(x, indices)
    if found is None or (accumulate and not x.is_floating_point()):
        return LEAVE
    axes, at, common = found
    rest = [size for axis, size in enumerate(x.shape) if axis not in axes]
    positions = math.prod(x.shape[axis] for axis in axes)
    if at.numel() * positions > _MOST:
        return LEAVE
    start = axes[0] if axes[-1] - axes[0] + 1 == len(axes) else 0
    count = len(common)
    values = values.to(x.dtype).expand([*rest[:start], *common, *rest[start:]])
    values = values.movedim(list(range(start, start + count)), list(range(count))).reshape([at.numel(), -1])
    front = list(range(len(axes)))
    y = x.movedim(axes, front)
    made = _put_rows(y.reshape([positions, -1]), at.reshape([-1]), values, accumulate)
    return made.reshape(y.shape).movedim(front, axes)


@decomposes(
    aten.index_put.default,
    targets=("coreai",),
    why=f"{PICKED}; Core AI's converter adds nothing up, and spreads values over the wrong axes",
)
def put_or_add(x: Tensor, indices: Sequence[Tensor | None], values: Tensor, accumulate: bool = False) -> Tensor:
    """Return x with values at indices, or with values added there."""
    made = index_put(x, indices, values, accumulate) if accumulate else LEAVE
    if made is not NotImplemented:
        return made
    made = put(x, indices, values, accumulate)
    given = [index for index in indices if index is not None]
    if made is not NotImplemented or any(index.dtype == torch.bool for index in given):
        return made
    common = torch.broadcast_shapes(*(index.shape for index in given))  # type: ignore[no-untyped-call]  # of torch
    rest = [size for size, index in zip_longest(x.shape, indices) if index is None]
    if [*values.shape] == [*common, *rest]:
        return LEAVE
    spread: Tensor = aten.index_put.default(x, indices, values.expand([*common, *rest]), accumulate)
    return spread


def _put_rows(x: Tensor, at: Tensor, values: Tensor, accumulate: bool) -> Tensor:
    """Return x [P, R] with rows [K, R] at positions [K], the last one where several go; or with them added."""
    holds = _places(x.shape[0], x).unsqueeze(1) == at.unsqueeze(0)  # [P, K]
    if accumulate:
        return x + torch.matmul(holds.to(x.dtype), values)
    last = torch.where(holds, _places(at.shape[0], x), -1).amax(1)  # [P]
    rows = values.index_select(0, last.clamp(min=0))
    return torch.where((last >= 0).unsqueeze(1), rows, x)
