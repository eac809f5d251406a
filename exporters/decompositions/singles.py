"""Reductions of a tensor without axes, on which Core AI ends the process: of one number the number, or its size."""

from __future__ import annotations

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


@decomposes(aten.logsumexp.default, targets=("coreml", "coreai", "tvm"), why=_ENDS)
@decomposes(aten.mean.dim, targets=("coreml", "tvm"), why=_ENDS)
def mean_over(
    x: Tensor, dim: Sequence[int] | None, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> Tensor:
    """Return the mean, or log(sum(exp)), of one number."""
    return LEAVE if x.dim() else x.to(dtype or x.dtype)


@decomposes(aten._softmax.default, targets=("coreai",), why=_ENDS)
def softmax(x: Tensor, dim: int, half_to_float: bool) -> Tensor:
    """Return the softmax of one number: 1, or NaN of what is not finite."""
    return LEAVE if x.dim() else torch.exp(x - x)


@decomposes(aten._log_softmax.default, targets=("coreai",), why=_ENDS)
def log_softmax(x: Tensor, dim: int, half_to_float: bool) -> Tensor:
    """Return the logarithm of the softmax of one number: 0, or NaN of what is not finite."""
    return LEAVE if x.dim() else x - x


@decomposes(aten.prod.default, targets=("coreai",), why=_ENDS)
def product(x: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
    """Return the product of one number."""
    return LEAVE if x.dim() else _summable(x, dtype)


@decomposes(aten.prod.dim_int, targets=("coreai",), why=_ENDS)
def product_along(x: Tensor, dim: int, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Tensor:
    """Return the product of one number."""
    return LEAVE if x.dim() else _summable(x, dtype)


def _summable(x: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Return a number in the type that sums of its type have."""
    return x.to(dtype or (x.dtype if x.is_floating_point() else torch.int64))


@decomposes(aten.flip.default, targets=("coreai",), why=_ENDS)
def flip(x: Tensor, dims: Sequence[int]) -> Tensor:
    """Return one number, and any tensor that is reversed along no axis."""
    return LEAVE if x.dim() and dims else x.clone()


@decomposes(aten.topk.default, targets=("coreai",), why=_ENDS)
def topk(x: Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> tuple[Tensor, Tensor]:  # noqa: A002 - PyTorch's name
    """Return one number, and its position: 0."""
    return LEAVE if x.dim() else (x.clone(), torch.zeros_like(x, dtype=torch.int64))
