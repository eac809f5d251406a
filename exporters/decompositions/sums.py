"""Sums and means of many numbers in stages for Core AI, and of one number.

    mean(x) = mean_a(mean_b(x[.., a, b]))                   sum likewise
    cumsum(x) = cumsum_b(x[.., a, b]) + what came before

A runtime that adds n float32 numbers one after another is off by about sqrt(n) / 2 ulp, and by n / 2 where they are
equal; PyTorch adds in blocks, whose sums it adds again. Of a tensor without axes a sum is its number: Core AI's
converter ends the process there, coremltools 9.0 fails where an axis is named, and TVM reduces none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import guard_or_false

from edgesmith.exporters import stages
from edgesmith.exporters.decompositions import LEAVE, decomposes

aten = torch.ops.aten

_WHY = "Core AI's runtime adds one number after another, and its converter ends the process where there are no axes"


@decomposes(aten.mean.default, targets=("coreai",), why=_WHY)
def mean_of_all(x: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
    """Return the mean of one number, or of many; of fewer it is left."""
    return mean_over(x, None, dtype=dtype)


@decomposes(aten.mean.dim, targets=("coreai",), why=_WHY)
def mean_over(
    x: Tensor, dim: Sequence[int] | None, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> Tensor:
    """Return the mean of one number, or of many over some axes; of fewer it is left."""
    return _in_stages(torch.mean, x, dim, keepdim, dtype) if x.dim() else x.to(dtype or x.dtype)


@decomposes(aten.sum.default, targets=("coreai",), why=_WHY)
def sum_of_all(x: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
    """Return the sum of one number, of none or of many; of fewer it is left."""
    return sum_over(x, None, dtype=dtype)


@decomposes(aten.sum.dim_IntList, targets=("coreai",), why=_WHY)
def sum_over(
    x: Tensor, dim: Sequence[int] | None, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> Tensor:
    """Return the sum of one number, of none, or of many over some axes; of fewer it is left."""
    made = sum_of_none(x, dim, keepdim, dtype=dtype)
    return _in_stages(torch.sum, x, dim, keepdim, dtype) if made is LEAVE else made


@decomposes(aten.cumsum.default, targets=("coreai",), why=_WHY)
def running_sums(x: Tensor, dim: int, *, dtype: torch.dtype | None = None) -> Tensor:
    """Return the running sums of one number, or of many along an axis; of fewer they are left."""
    if not x.dim():
        return x.to(dtype or (x.dtype if x.is_floating_point() else torch.int64))
    length = _length(x, [dim], dtype)
    if length < stages.LONG:
        return LEAVE
    axis, inner = dim % x.dim(), math.isqrt(length)
    outer = -(-length // inner)
    filled = torch.nn.functional.pad(x.movedim(axis, -1), [0, outer * inner - length])
    within = _split(filled, filled.dim() - 1, [outer, inner]).cumsum(-1)
    before = torch.nn.functional.pad(within[..., :-1, -1].cumsum(-1), [1, 0])
    whole = (within + before.unsqueeze(-1)).flatten(-2)
    return whole[..., :length].movedim(-1, axis)


@decomposes(aten.sum.dim_IntList, targets=("tvm",), why="TVM reduces no tensor without axes")
@decomposes(aten.sum.default, aten.sum.dim_IntList, targets=("coreml",), why="coremltools 9.0 fails on no axes")
def sum_of_none(
    x: Tensor, dim: Sequence[int] | None = None, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> Tensor:
    """Return the sum of one number, or of none; others are left."""
    dtype = dtype or (x.dtype if x.is_floating_point() else torch.int64)
    if not x.dim():
        return x.to(dtype, copy=True)
    if not guard_or_false(x.numel() == 0):  # a size may be known at run time only
        return LEAVE
    axes = _axes(x, dim)
    shape = [1 if i in axes else size for i, size in enumerate(x.shape) if keepdim or i not in axes]
    return torch.zeros(shape, dtype=dtype, device=x.device)


def _axes(x: Tensor, dim: Sequence[int] | None) -> list[int]:
    return sorted(axis % x.dim() for axis in dim) if dim else list(range(x.dim()))


def is_long(x: Tensor, dim: Sequence[int] | None) -> bool:
    """Return whether a sum over some axes, all by default, is one of sums."""
    return bool(x.dim()) and _length(x, _axes(x, dim), None) >= stages.LONG


def _length(x: Tensor, axes: Sequence[int], dtype: torch.dtype | None) -> int:
    """Return how many float32 numbers are added over some axes; 0 of other types, and where it is not known."""
    sizes = [x.shape[axis] for axis in axes]
    is_known = x.dtype is torch.float32 and dtype in (None, torch.float32)
    return math.prod(sizes) if is_known and all(isinstance(size, int) for size in sizes) else 0


def _in_stages(
    reduce: Callable[..., Tensor], x: Tensor, dim: Sequence[int] | None, keepdim: bool, dtype: torch.dtype | None
) -> Tensor:
    """Return a sum, or a mean, over some axes by one over each axis, the last one last, and over blocks of long ones.

    What lies beside each other along the last axis is added as vectors until then.
    """
    axes = _axes(x, dim)
    if _length(x, axes, dtype) < stages.LONG:
        return LEAVE
    for axis in (*reversed(axes[:-1]), axes[-1]):
        x = _along(reduce, x, axis)
    return x if keepdim else x.squeeze(axes)


def _along(reduce: Callable[..., Tensor], x: Tensor, axis: int) -> Tensor:
    """Return a sum, or a mean, along one axis, which stays."""
    length = x.shape[axis]
    factors = stages.of(length)
    if len(factors) > 1:
        x = _split(x, axis, factors)
        for outer in range(axis + len(factors) - 2, axis - 1, -1):
            x = _along(reduce, x, outer).squeeze(outer)
    elif length > stages.LONG:  # without such factors: whole blocks, and the rest
        most = length // stages.BLOCK * stages.BLOCK
        parts = _along(reduce, x.narrow(axis, 0, most), axis), _along(reduce, x.narrow(axis, most, length - most), axis)
        if reduce is torch.sum:
            return parts[0] + parts[1]
        return parts[0] * (most / length) + parts[1] * (1 - most / length)
    return reduce(x, [axis], keepdim=True)


def _split(x: Tensor, axis: int, sizes: Sequence[int]) -> Tensor:
    """Return a tensor with an axis as several. One size at most is free: that of the batch."""
    given = [size if isinstance(size, int) else -1 for size in x.shape]
    return x.reshape([*given[:axis], *sizes, *given[axis + 1 :]])
