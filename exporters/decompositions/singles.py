"""Reductions of a tensor without axes, on which Core AI ends the process: of one number the number, or its size."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from edgesmith.exporters.decompositions import LEAVE, decomposes

aten = torch.ops.aten
_ENDS = "Core AI's converter ends the process where the input has no axes; coremltools 9.0 fails where one is named"


@decomposes(aten.max.default, aten.min.default, targets=("coreai",), why=_ENDS)
def extreme(x: Tensor) -> Tensor:
    """Return the largest, or smallest, of one number."""
    return LEAVE if x.dim() else x.clone()


@decomposes(aten.mean.default, targets=("coreai",), why=_ENDS)
def mean(x: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
    """Return the mean of one number."""
    return LEAVE if x.dim() else x.to(dtype or x.dtype)


@decomposes(aten.mean.dim, aten.logsumexp.default, targets=("coreml", "coreai", "tvm"), why=_ENDS)
def mean_over(
    x: Tensor, dim: Sequence[int] | None, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> Tensor:
    """Return the mean, or log(sum(exp)), of one number."""
    return LEAVE if x.dim() else x.to(dtype or x.dtype)


@decomposes(aten.linalg_vector_norm.default, targets=("coreai",), why=_ENDS)
def vector_norm(
    x: Tensor,
    order: float = 2,
    dim: Sequence[int] | None = None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Return the norm of one number: its size; of order 0 whether it is not 0. Of more by a whole order as a power."""
    if x.dim():
        if order in (0, 1, 2) or not isinstance(order, int | float) or not math.isfinite(order):
            return LEAVE
        powers = torch.pow(x.to(dtype or x.dtype).abs(), float(order))
        return torch.pow(torch.sum(powers, list(dim or range(x.dim())), keepdim), 1 / order)
    x = x.to(dtype or x.dtype)
    return (x != 0).to(x.dtype) if order == 0 else x.abs()


@decomposes(aten.sum.dim_IntList, targets=("tvm",), why="TVM reduces no tensor without axes")
def sum_over(
    x: Tensor, dim: Sequence[int] | None, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> Tensor:
    """Return the sum of one number."""
    if x.dim():
        return LEAVE
    return x.to(dtype or (x.dtype if x.is_floating_point() else torch.int64), copy=True)
