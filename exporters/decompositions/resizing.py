"""Resizing of maps, by a matrix for each axis, or by the nearest index.

A matrix [to, from] has the weights of what is read for each new position, at PyTorch's coordinates (ATen's UpSample.h):

    s = from / to, or 1 / the factor that is given         c = (i + 1/2) s - 1/2, or i (from - 1) / (to - 1) by corners
    linear        max(1 - |j - c|, 0), c inside the map
    cubic         Keys' kernel with a = -3/4 at j - c, beyond an edge the edge
    antialiased   the kernel (cubic: a = -1/2) at (j + 1/2 - (i + 1/2) s) / max(s, 1), each row divided by its sum

The operators that compute a matrix read nothing of the model, so that converters fold them into a constant.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from edgesmith.exporters.decompositions import LEAVE, decomposes

aten = torch.ops.aten

_ALL_BUT_ONNX = ("coreml", "coreai", "tvm")


def _sizes(x: Tensor, size: Sequence[int] | None, factors: Sequence[float] | None) -> list[int]:
    """Return the new sizes of the axes behind the first two."""
    if size is not None:
        return list(size)
    assert factors is not None
    return [int(n * factor) for n, factor in zip(x.shape[2:], factors, strict=True)]


def _scale(before: int, after: int, factor: float | None) -> float:
    return 1 / factor if factor is not None and factor > 0 else before / after


def _type(like: Tensor) -> torch.dtype:
    """Return the type that PyTorch computes coordinates and weights in: float32, but for doubles."""
    return torch.float64 if like.dtype == torch.float64 else torch.float32


def _centres(like: Tensor, before: int, after: int, scale: float, by_corners: bool) -> Tensor:
    """Return the coordinate in the old map of every new position, [to, 1]."""
    i = torch.arange(after, dtype=_type(like), device=like.device).unsqueeze(1)
    if by_corners:
        return i * ((before - 1) / (after - 1) if after > 1 else 0.0)
    return (i + 0.5) * scale - 0.5


def _positions(like: Tensor, count: int) -> Tensor:
    return torch.arange(count, dtype=_type(like), device=like.device).unsqueeze(0)


def _linear(like: Tensor, before: int, after: int, scale: float, by_corners: bool) -> Tensor:
    centres = _centres(like, before, after, scale, by_corners).clamp(0.0, float(before - 1))
    return (1.0 - (_positions(like, before) - centres).abs()).clamp(min=0.0)


def _near(d: Tensor, a: float) -> Tensor:
    """Return Keys' cubic kernel at distances up to 1. (IEEE TASSP 29, 1981; the order of operators is ATen's)"""
    return ((a + 2.0) * d - (a + 3.0)) * d * d + 1.0


def _far(d: Tensor, a: float) -> Tensor:
    """Return Keys' cubic kernel at distances from 1 to 2."""
    return ((a * d - 5.0 * a) * d + 8.0 * a) * d - 4.0 * a


def _keys(distance: Tensor, a: float) -> Tensor:
    """Return Keys' cubic kernel."""
    d = distance.abs()
    return torch.where(d < 1, _near(d, a), torch.where(d < 2, _far(d, a), torch.zeros_like(d)))


def _cubic(like: Tensor, before: int, after: int, scale: float, by_corners: bool) -> Tensor:
    centres = _centres(like, before, after, scale, by_corners)
    first = torch.floor(centres)
    t, a = centres - first, -0.75
    taps = ((-1.0, _far(t + 1.0, a)), (0.0, _near(t, a)), (1.0, _near(1.0 - t, a)), (2.0, _far(2.0 - t, a)))
    weights = torch.zeros([after, before], dtype=_type(like), device=like.device)
    for tap, weight in taps:
        at = (first + tap).clamp(0.0, float(before - 1))
        weights = weights + (_positions(like, before) == at).to(weight.dtype) * weight
    return weights


def _antialiased(kernel: Callable[[Tensor], Tensor], reach: float) -> Callable[..., Tensor]:
    """Return a matrix's function for a kernel that is stretched over what becomes one position."""

    def matrix(like: Tensor, before: int, after: int, scale: float, by_corners: bool) -> Tensor:
        if by_corners:
            scale = (before - 1) / (after - 1) if after > 1 else 0.0
        stretched = max(scale, 1.0)
        centres = (torch.arange(after, dtype=_type(like), device=like.device).unsqueeze(1) + 0.5) * scale
        j = _positions(like, before)
        first = torch.floor(centres - reach * stretched + 0.5).clamp(min=0.0)
        end = torch.floor(centres + reach * stretched + 0.5).clamp(max=float(before))
        weights = kernel((j - centres + 0.5) * (1 / stretched)) * ((j >= first) & (j < end)).to(j.dtype)
        return weights / weights.sum(1, keepdim=True)

    return matrix


_antialiased_linear = _antialiased(lambda d: (1.0 - d.abs()).clamp(min=0.0), 1.0)
_antialiased_cubic = _antialiased(lambda d: _keys(d, -0.5), 2.0)


def _resized(
    x: Tensor, sizes: Sequence[int], by_corners: bool, factors: Sequence[float | None], matrix: Callable[..., Tensor]
) -> Tensor:
    """Return x with each axis behind the first two multiplied by a matrix."""
    for axis, (after, factor) in enumerate(zip(sizes, factors, strict=True), 2):
        before = x.shape[axis]
        weights = matrix(x, before, after, _scale(before, after, factor), by_corners).to(x.dtype)
        if axis == x.dim() - 1:
            x = torch.matmul(x, weights.transpose(0, 1))
        else:
            shape = list(x.shape)
            x = torch.matmul(weights, x.reshape([*shape[:axis], before, -1]))
            x = x.reshape([*shape[:axis], after, *shape[axis + 1 :]])
    return x


def _by_sizes_or_factors(matrix: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return a resizing with the arguments of overloads `vec`."""

    def resize(x: Tensor, size: Sequence[int] | None, by_corners: bool, factors: Sequence[float] | None) -> Tensor:
        return _resized(x, _sizes(x, size, factors), by_corners, factors or [None] * (x.dim() - 2), matrix)

    return resize


_LACKS = "no converter but ONNX's has a translation that works"

upsample_bicubic2d = decomposes(aten.upsample_bicubic2d.vec, targets=_ALL_BUT_ONNX, why=_LACKS)(
    _by_sizes_or_factors(_cubic)
)
upsample_trilinear3d = decomposes(aten.upsample_trilinear3d.vec, targets=_ALL_BUT_ONNX, why=_LACKS)(
    _by_sizes_or_factors(_linear)
)
upsample_bilinear2d_aa = decomposes(
    aten._upsample_bilinear2d_aa.vec, targets=_ALL_BUT_ONNX, why="coremltools 9.0 and TVM do not smooth"
)(_by_sizes_or_factors(_antialiased_linear))
upsample_bicubic2d_aa = decomposes(aten._upsample_bicubic2d_aa.vec, targets=_ALL_BUT_ONNX, why=_LACKS)(
    _by_sizes_or_factors(_antialiased_cubic)
)


@decomposes(aten.upsample_linear1d.vec, targets=("coreml",), why="coremltools 9.0 takes whole factors only")
@decomposes(
    *(aten.upsample_bilinear2d.vec, aten.upsample_linear1d.vec),
    targets=("tvm",),
    why="TVM takes the quotient of the sizes for the factor, and divides by 0 for one position by corners",
)
def upsample_linear_by_factors(
    x: Tensor, size: Sequence[int] | None, by_corners: bool, factors: Sequence[float] | None
) -> Tensor:
    """Return a map resized between its numbers, by factors that are not the quotients of its sizes, or to one."""
    if by_corners and 1 in (found := _sizes(x, size, factors)):
        return _resized(x, found, by_corners, factors or [None] * len(found), _linear)
    if factors is None or by_corners:
        return LEAVE
    sizes = _sizes(x, size, factors)
    quotients = [_scale(before, after, None) for before, after in zip(x.shape[2:], sizes, strict=True)]
    if quotients == [_scale(0, 1, factor) for factor in factors]:
        return LEAVE
    return _resized(x, sizes, by_corners, factors, _linear)


@decomposes(
    *(aten.upsample_bilinear2d.vec, aten.upsample_linear1d.vec),
    targets=("coreai",),
    why="Core AI's runtime ends the process for an axis of one position, before or after",
)
def upsample_linear(x: Tensor, size: Sequence[int] | None, by_corners: bool, factors: Sequence[float] | None) -> Tensor:
    """Return a map resized between its numbers, where an axis has one position."""
    sizes = _sizes(x, size, factors)
    if 1 not in (*sizes, *x.shape[2:]):
        return LEAVE
    return _resized(x, sizes, by_corners, factors or [None] * len(sizes), _linear)


_DOUBLE = "ONNX Runtime resizes no doubles, and a float of one is another number to a comparison"


def _of_doubles(matrix: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return a resizing of doubles with the arguments of overloads `vec`; others are left."""
    by_matrices = _by_sizes_or_factors(matrix)

    def resize(x: Tensor, size: Sequence[int] | None, by_corners: bool, factors: Sequence[float] | None) -> Tensor:
        return by_matrices(x, size, by_corners, factors) if x.dtype == torch.float64 else LEAVE

    return resize


decomposes(
    *(aten.upsample_linear1d.vec, aten.upsample_bilinear2d.vec, aten.upsample_trilinear3d.vec),
    targets=("onnx",),
    why=_DOUBLE,
)(_of_doubles(_linear))
decomposes(aten.upsample_bicubic2d.vec, targets=("onnx",), why=_DOUBLE)(_of_doubles(_cubic))
decomposes(aten._upsample_bilinear2d_aa.vec, targets=("onnx",), why=_DOUBLE)(_of_doubles(_antialiased_linear))
decomposes(aten._upsample_bicubic2d_aa.vec, targets=("onnx",), why=_DOUBLE)(_of_doubles(_antialiased_cubic))


@decomposes(
    aten._upsample_nearest_exact1d.vec,
    aten._upsample_nearest_exact2d.vec,
    aten._upsample_nearest_exact3d.vec,
    targets=("coreml",),
    why="coremltools 9.0 has no translation",
)
def upsample_nearest_exact(x: Tensor, size: Sequence[int] | None, factors: Sequence[float] | None) -> Tensor:
    """Return the number whose place holds the centre of each new one."""
    return _nearest(x, _sizes(x, size, factors), factors, 0.5)


@decomposes(
    aten.upsample_nearest1d.vec,
    aten.upsample_nearest2d.vec,
    aten.upsample_nearest3d.vec,
    targets=_ALL_BUT_ONNX,
    why="they read other numbers where the factor is not whole",
)
def upsample_nearest(x: Tensor, size: Sequence[int] | None, factors: Sequence[float] | None) -> Tensor:
    """Return the number at or before the place of each new one."""
    sizes = _sizes(x, size, factors)
    if all(after % before == 0 for before, after in zip(x.shape[2:], sizes, strict=True)):
        return LEAVE
    return _nearest(x, sizes, factors, 0.0)


def _nearest(x: Tensor, sizes: Sequence[int], factors: Sequence[float] | None, offset: float) -> Tensor:
    """Return x at floor((i + offset) s) for every new position i of each axis."""
    given: Sequence[float | None] = factors or [None] * len(sizes)
    for axis, (after, factor) in enumerate(zip(sizes, given, strict=True), 2):
        before = x.shape[axis]
        i = torch.arange(after, dtype=torch.float32, device=x.device)
        at = torch.floor((i + offset) * _scale(before, after, factor)).clamp(max=float(before - 1))
        x = torch.index_select(x, axis, at.to(torch.int32))
    return x


@decomposes(
    aten.adaptive_avg_pool2d.default,
    aten._adaptive_avg_pool2d.default,
    targets=("coreai",),
    why="Core AI's converter refuses maps that grow",
)
def adaptive_avg_pool2d(x: Tensor, size: Sequence[int]) -> Tensor:
    """Return means over windows from floor(i from / to) to ceil((i + 1) from / to), where a map grows."""
    if all(after <= before for before, after in zip(x.shape[-2:], size, strict=True)):
        return LEAVE
    rank = x.dim()
    x = x.unsqueeze(0) if rank == 3 else x
    y = _resized(x, size, False, (None, None), _windows)
    return y.squeeze(0) if rank == 3 else y


def _windows(like: Tensor, before: int, after: int, scale: float, by_corners: bool) -> Tensor:
    """Return the matrix of means over windows; halves keep quotients that are whole off the edge."""
    i = torch.arange(after, dtype=torch.float32, device=like.device).unsqueeze(1)
    first = torch.floor((i * before + 0.5) / after)
    end = torch.floor(((i + 1.0) * before - 0.5) / after) + 1.0
    j = _positions(like, before)
    inside = ((j >= first) & (j < end)).to(torch.float32)
    return inside / inside.sum(1, keepdim=True)
