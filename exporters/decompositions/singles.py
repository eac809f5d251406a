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


@decomposes(aten.sum.dim_IntList, targets=("tvm",), why="TVM reduces no tensor without axes")
def sum_over(
    x: Tensor, dim: Sequence[int] | None, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> Tensor:
    """Return the sum of one number."""
    if x.dim():
        return LEAVE
    return x.to(dtype or (x.dtype if x.is_floating_point() else torch.int64), copy=True)
