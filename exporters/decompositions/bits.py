"""Operators of the bits of whole numbers, for targets that have none: Core ML and Core AI.

    bit k of x      floor(x / 2 ** k) mod 2, which holds below zero too (two's complement); the sign is bit 31
    x & c           sum over the bits of c of  bit k of x  2 ** k;  for c below zero  x - (x & ~c)
    x | y           x - (x & y) + y
    x ^ y           x - (x & y) + y - (x & y)

Whole numbers have 32 bits there, and no step leaves their range.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from edgesmith.exporters.decompositions import decomposes

aten = torch.ops.aten

_SIGN = 31
"""Bits beside the sign's."""

_APPLES = ("coreml", "coreai")
_NONE = "neither has operators of bits"
_SHIFTS = "the converters have no shifts of bits"


@decomposes(*(aten.__lshift__.Scalar, aten.bitwise_left_shift.Tensor_Scalar), targets=(*_APPLES, "tvm"), why=_SHIFTS)
def left_shift(x: Tensor, bits: int) -> Tensor:
    """Return whole numbers times 2 ** bits."""
    return x * 2**bits


@decomposes(*(aten.__rshift__.Scalar, aten.bitwise_right_shift.Tensor_Scalar), targets=(*_APPLES, "tvm"), why=_SHIFTS)
def right_shift(x: Tensor, bits: int) -> Tensor:
    """Return whole numbers divided by 2 ** bits, rounded down."""
    return torch.div(x, 2**bits, rounding_mode="floor")


@decomposes(aten.bitwise_not.default, targets=("coreai",), why="Core AI's converter takes bits from floats")
def bitwise_not(x: Tensor) -> Tensor:
    """Return integers with each bit turned, -1 - x; of truth values the others."""
    return torch.logical_not(x) if x.dtype == torch.bool else -1 - x


@decomposes(
    *(aten.bitwise_and.Tensor, aten.__and__.Tensor, aten.bitwise_and.Scalar, aten.__and__.Scalar),
    targets=_APPLES,
    why=_NONE,
)
def bitwise_and(x: Tensor, y: Tensor | int) -> Tensor:
    """Return the bits that both have, and of truth values both."""
    return _of_either(x, y, torch.logical_and, _common)


@decomposes(
    *(aten.bitwise_or.Tensor, aten.__or__.Tensor, aten.bitwise_or.Scalar, aten.__or__.Scalar),
    targets=_APPLES,
    why=_NONE,
)
def bitwise_or(x: Tensor, y: Tensor | int) -> Tensor:
    """Return the bits that either has, and of truth values either."""
    return _of_either(x, y, torch.logical_or, lambda x, y: x - _common(x, y) + y)


@decomposes(
    *(aten.bitwise_xor.Tensor, aten.__xor__.Tensor, aten.bitwise_xor.Scalar, aten.__xor__.Scalar),
    targets=_APPLES,
    why=_NONE,
)
def bitwise_xor(x: Tensor, y: Tensor | int) -> Tensor:
    """Return the bits that exactly one has, and of truth values exactly one."""

    def different(x: Tensor, y: Tensor | int) -> Tensor:
        both = _common(x, y)
        return (x - both) + (y - both)

    return _of_either(x, y, torch.logical_xor, different)


Combine = Callable[..., Tensor]


def _of_either(x: Tensor, y: Tensor | int, of_truth_values: Combine, of_whole_numbers: Combine) -> Tensor:
    """Combine two tensors, or one and a number, by their type."""
    wanted = torch.result_type(x, y)
    if wanted == torch.bool:
        other = y if isinstance(y, Tensor) else torch.full_like(x, y)
        return of_truth_values(x, other)
    kind = wanted if wanted == torch.int64 else torch.int32  # narrower ones do not hold the powers
    return of_whole_numbers(x.to(kind), y.to(kind) if isinstance(y, Tensor) else int(y)).to(wanted)


def _common(x: Tensor, y: Tensor | int) -> Tensor:
    """Return the bits that both have."""
    if not isinstance(y, Tensor):
        return x - _taken(x, ~y) if y < 0 else _taken(x, y)
    bits = range(_SIGN)
    both = (_bits(x, bits) * _bits(y, bits) * _powers(x, bits)).sum(-1).to(x.dtype)
    return torch.where((x < 0) & (y < 0), both - 2**30 - 2**30, both)


def _taken(x: Tensor, number: int) -> Tensor:
    """Return the bits of x that a number of 0 or more has."""
    bits = [k for k in range(_SIGN) if number >> k & 1]
    if not bits:
        return torch.zeros_like(x)
    if bits == [*range(len(bits))] and len(bits) < _SIGN:  # the lowest ones
        return torch.remainder(x, 2 ** len(bits))
    return (_bits(x, bits) * _powers(x, bits)).sum(-1).to(x.dtype)


def _bits(x: Tensor, bits: Sequence[int]) -> Tensor:
    """Return some bits of x on a last axis, 0 or 1."""
    return torch.remainder(torch.div(x.unsqueeze(-1), _powers(x, bits), rounding_mode="floor"), 2)


def _powers(x: Tensor, bits: Sequence[int]) -> Tensor:
    return torch.cat([torch.full([1], 2**k, dtype=x.dtype, device=x.device) for k in bits])
