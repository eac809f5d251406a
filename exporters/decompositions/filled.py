"""Tensors of one number, made in the shape of another."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from edgesmith.exporters.decompositions import LEAVE, decomposes

aten = torch.ops.aten

_TYPE = "coremltools 9.0 takes the other tensor's type for the one that is asked for"


@decomposes(aten.full_like.default, targets=("coreml",), why=f"{_TYPE}, and does not cut 3.7 to an integer")
def full_like(x: Tensor, number: float, *, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
    """Return a number everywhere, as its type holds it."""
    wanted = dtype or x.dtype
    if wanted == torch.bool:
        number = bool(number)
    elif not wanted.is_floating_point:
        number = int(number)
    return torch.full(x.shape, number, dtype=wanted)


@decomposes(aten.zeros_like.default, aten.empty_like.default, targets=("coreml",), why=_TYPE)
def zeros_like(x: Tensor, *, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
    """Return zeros."""
    return torch.full(x.shape, 0, dtype=dtype or x.dtype)


@decomposes(aten.ones_like.default, targets=("coreml",), why=_TYPE)
def ones_like(x: Tensor, *, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
    """Return ones."""
    return torch.full(x.shape, 1, dtype=dtype or x.dtype)


@decomposes(aten.empty_permuted.default, targets=("coreai",), why="Core AI's converter does not take it")
def empty_permuted(
    size: list[int], physical_layout: list[int], *, dtype: torch.dtype | None = None, **_: Any
) -> Tensor:
    """Return what memory has, of which nothing is known: zeros."""
    return torch.full(size, 0, dtype=dtype or torch.get_default_dtype())


_SIXTEEN = "Core AI's converter rounds the number to 16 bits"


@decomposes(aten.scalar_tensor.default, targets=("coreai",), why=_SIXTEEN)
def scalar_tensor(number: float, *, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
    """Return a single number."""
    return torch.full([], number, dtype=dtype or torch.get_default_dtype())


@decomposes(torch.ops.prims.scalar_tensor.default, targets=("coreml", "coreai"), why="neither converter has it")
def primitive_scalar_tensor(number: float, *, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
    """Return a single number."""
    return torch.full([], number, dtype=dtype or torch.get_default_dtype())


@decomposes(aten.arange.start_step, targets=("coreai",), why=_SIXTEEN)
def arange(start: float, end: float, step: float = 1, *, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
    """Return start, start + step, ... below the end; whole numbers are left."""
    whole = all(isinstance(one, int) for one in (start, end, step))
    wanted = dtype or (torch.int64 if whole else torch.get_default_dtype())
    if whole or not wanted.is_floating_point:
        return LEAVE
    count = math.ceil((end - start) / step)
    return torch.arange(count).to(wanted) * step + start
