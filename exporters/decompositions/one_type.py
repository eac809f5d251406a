"""Operators of two numbers for TVM, which gives a result the first one's type, and drops factors that come by name.

x + alpha y, x == y, ...    both in the type that PyTorch promotes them to
x == x, x != x              whether x is a number: TVM simplifies them
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from edgesmith.exporters.decompositions import LEAVE, decomposes
from edgesmith.exporters.decompositions.elementwise import div_of_whole_numbers

aten = torch.ops.aten
_TARGETS = ("tvm",)
_FIRST = "TVM gives the result the first one's type"


def promoted(x: Tensor, other: Tensor | float) -> tuple[Tensor, Tensor | float] | None:
    """Return both in one type; None where they have it already."""
    wanted = torch.result_type(x, other)
    if not isinstance(x, Tensor):
        return None
    if x.dtype == wanted and not (isinstance(other, Tensor) and other.dtype != wanted):
        return None
    return x.to(wanted), other.to(wanted) if isinstance(other, Tensor) else other


# Sums and products


@decomposes(
    *(aten.add.Tensor, aten.add.Scalar), targets=_TARGETS, why=f"TVM drops alpha, and adds no booleans; {_FIRST}"
)
def add(x: Tensor, other: Tensor | float, alpha: float = 1) -> Tensor:
    """Return x + alpha other; of booleans whether one is true."""
    if alpha != 1:
        return torch.add(x, other * alpha)
    if torch.result_type(x, other) == torch.bool and isinstance(other, Tensor):
        return torch.bitwise_or(x, other)
    return _of_one_type(torch.add, x, other)


@decomposes(*(aten.sub.Tensor, aten.sub.Scalar), targets=_TARGETS, why=f"TVM drops alpha; {_FIRST}")
def sub(x: Tensor, other: Tensor | float, alpha: float = 1) -> Tensor:
    """Return x - alpha other."""
    return _of_one_type(torch.sub, x, other) if alpha == 1 else torch.sub(x, other * alpha)


@decomposes(*(aten.mul.Tensor, aten.mul.Scalar), targets=_TARGETS, why=f"TVM multiplies no booleans; {_FIRST}")
def mul(x: Tensor, other: Tensor | float) -> Tensor:
    """Return the product; of booleans whether both are true."""
    if torch.result_type(x, other) == torch.bool and isinstance(other, Tensor):
        return torch.bitwise_and(x, other)
    return _of_one_type(torch.mul, x, other)


@decomposes(*(aten.div.Tensor, aten.div.Scalar), targets=_TARGETS, why=f"TVM divides whole numbers as C does; {_FIRST}")
def true_divide(x: Tensor, divisor: Tensor | float) -> Tensor:
    """Return the quotient, which is a float."""
    wanted = torch.result_type(x, divisor)
    if wanted.is_complex:
        return LEAVE
    if not wanted.is_floating_point:
        wanted = torch.float32
        return x.to(wanted) / (divisor.to(wanted) if isinstance(divisor, Tensor) else float(divisor))
    return _of_one_type(torch.div, x, divisor)


@decomposes(aten.div.Tensor_mode, targets=_TARGETS, why="a quotient of whole numbers is rounded in float, with 24 bits")
def div_of_one_type(x: Tensor, divisor: Tensor | float, *, rounding_mode: str | None = None) -> Tensor:
    """Return a quotient of tensors of one type, rounded as is asked for."""
    if rounding_mode is None:
        return torch.div(x, divisor)
    wanted = torch.result_type(x, divisor)
    if isinstance(divisor, Tensor) and x.dtype == divisor.dtype:
        return div_of_whole_numbers(x, divisor, rounding_mode=rounding_mode)
    other = divisor.to(wanted) if isinstance(divisor, Tensor) else torch.full_like(x, divisor, dtype=wanted)
    return torch.div(x.to(wanted), other, rounding_mode=rounding_mode)


def _of_one_type(function: Callable[..., Tensor], x: Tensor, other: Tensor | float) -> Tensor:
    both = promoted(x, other)
    return LEAVE if both is None else function(*both)


# Comparisons


def _compare(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return the spelling of a comparison that a number need not pass with itself."""

    def compare(x: Tensor, other: Tensor | float) -> Tensor:
        return _of_one_type(function, x, other)

    return compare


def _compare_with_itself(function: Callable[..., Tensor], of_itself: bool) -> Callable[..., Tensor]:
    """Return the spelling of a comparison whose result for a number and itself is known, but for NaN."""

    def compare(x: Tensor, other: Tensor | float) -> Tensor:
        if x is not other or not isinstance(x, Tensor) or not x.is_floating_point():
            return _of_one_type(function, x, other)
        is_nan = torch.isnan(x)
        return torch.logical_not(is_nan) if of_itself else is_nan

    return compare


_COMPARED = f"{_FIRST}, and simplifies a comparison of a number with itself, which is otherwise for NaN"

for _function, _of_itself in ((torch.eq, True), (torch.le, True), (torch.ge, True), (torch.ne, False)):
    _packet: Any = getattr(aten, _function.__name__)
    decomposes(*(_packet.Tensor, _packet.Scalar), targets=_TARGETS, why=_COMPARED)(
        _compare_with_itself(_function, _of_itself)
    )
for _function in (torch.lt, torch.gt):
    _packet = getattr(aten, _function.__name__)
    decomposes(*(_packet.Tensor, _packet.Scalar), targets=_TARGETS, why=_FIRST)(_compare(_function))


@decomposes(
    aten.clamp.default, targets=_TARGETS, why="TVM has the lower bound last, and gives whole numbers' infinite ones"
)
def clamp(x: Tensor, least: float | None = None, most: float | None = None) -> Tensor:
    """Return numbers moved between two numbers: the upper one throughout where they cross."""
    bounds = [bound for bound in (least, most) if bound is not None]
    wanted = x.dtype
    for bound in bounds:
        wanted = torch.promote_types(wanted, torch.result_type(x, bound))
    if least is not None and most is not None and least > most:
        return torch.full_like(x, most, dtype=wanted)
    if x.is_floating_point():
        return LEAVE
    x = x.to(wanted)
    x = x if least is None else torch.maximum(x, torch.full_like(x, least))
    return x if most is None else torch.minimum(x, torch.full_like(x, most))


@decomposes(aten.cat.default, targets=_TARGETS, why="TVM joins tensors of one type only, and none without numbers")
def cat(tensors: list[Tensor], dim: int = 0) -> Tensor:
    """Return tensors one after the other, in the type that holds all; those without numbers are left out."""
    wanted = tensors[0].dtype
    for one in tensors:
        wanted = torch.promote_types(wanted, one.dtype)
    kept = [one for one in tensors if one.numel()]
    if not kept or (len(kept) == len(tensors) and all(one.dtype == wanted for one in tensors)):
        return LEAVE
    return torch.cat([one.to(wanted) for one in kept], dim) if kept[1:] else kept[0].to(wanted, copy=True)
