"""Operators that treat each number by itself, and two numbers at the same place."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from edgesmith.exporters.decompositions import LEAVE, decomposes
from edgesmith.exporters.decompositions.products import are_integers

aten = torch.ops.aten

HALFWAY = 0.5


@decomposes(aten.where.ScalarOther, targets=("coreml",), why="coremltools 9.0 translates where of two tensors only")
def where_scalar_other(condition: Tensor, x: Tensor, other: float) -> Tensor:
    """Return x where the condition holds, else the number. Shapes broadcast."""
    wanted = torch.result_type(x, other)
    return torch.where(condition, x.to(wanted), torch.scalar_tensor(other, dtype=wanted))


@decomposes(aten.where.ScalarSelf, targets=("coreml",), why="coremltools 9.0 does not promote the number's type")
def where_scalar_self(condition: Tensor, number: float, other: Tensor) -> Tensor:
    """Return the number where the condition holds, else the tensor. Shapes broadcast."""
    wanted = torch.result_type(other, number)
    return torch.where(condition, torch.scalar_tensor(number, dtype=wanted), other.to(wanted))


@decomposes(aten.where.Scalar, targets=("coreml",), why="coremltools 9.0 does not promote the numbers' types")
def where_scalar(condition: Tensor, number: float, other: float) -> Tensor:
    """Return one of two numbers for each place of the condition."""
    wanted = torch.result_type(torch.scalar_tensor(number, dtype=_own_type(number)), other)
    first, second = (torch.scalar_tensor(x, dtype=wanted) for x in (number, other))
    return torch.where(condition, first, second)


def _own_type(number: float) -> torch.dtype:
    """Return the type that a number has as a tensor."""
    return torch.get_default_dtype() if isinstance(number, float) else torch.int64


@decomposes(
    aten.where.self, targets=("coreml", "coreai", "tvm"), why="they want one type on both sides, and coremltools axes"
)
def where(condition: Tensor, x: Tensor, other: Tensor) -> Tensor:
    """Return x where the condition holds, else the other, in the type that holds both; of single numbers as vectors."""
    if not condition.dim() and not x.dim() and not other.dim():
        return torch.where(condition.reshape(1), x.reshape(1), other.reshape(1)).squeeze(0)
    if x.dtype == other.dtype:
        return LEAVE
    wanted = torch.result_type(x, other)
    return torch.where(condition, x.to(wanted), other.to(wanted))


@decomposes(
    aten.add.Tensor,
    aten.add.Scalar,
    targets=("coreml", "coreai"),
    why="coremltools 9.0 and Core AI drop alpha where it comes by name",
)
def add(x: Tensor, other: Tensor | float, alpha: float = 1) -> Tensor:
    """Return x + alpha other."""
    return add_truth_values(x, other) if alpha == 1 else torch.add(x, _times(other, alpha))


@decomposes(aten.add.Tensor, targets=("onnx",), why="ONNX adds no booleans, nor does Core AI")
def add_truth_values(x: Tensor, other: Tensor | float, alpha: float = 1) -> Tensor:
    """Return the sum of booleans, which is true where one is."""
    return torch.bitwise_or(x, other) if alpha == 1 and _are_truth_values(x, other) else LEAVE


@decomposes(aten.mul.Tensor, targets=("coreai",), why="Core AI's runtime multiplies no booleans")
def multiply_truth_values(x: Tensor, other: Tensor | float) -> Tensor:
    """Return the product of booleans, which is true where both are."""
    return torch.bitwise_and(x, other) if _are_truth_values(x, other) else LEAVE


@decomposes(aten.maximum.default, targets=("coreml", "coreai"), why="neither compares booleans by size")
def maximum_of_truth_values(x: Tensor, other: Tensor) -> Tensor:
    """Return the larger of booleans, which is true where one is."""
    return torch.bitwise_or(x, other) if _are_truth_values(x, other) else LEAVE


@decomposes(aten.minimum.default, targets=("coreml", "coreai"), why="neither compares booleans by size")
def minimum_of_truth_values(x: Tensor, other: Tensor) -> Tensor:
    """Return the smaller of booleans, which is true where both are."""
    return torch.bitwise_and(x, other) if _are_truth_values(x, other) else LEAVE


def _are_truth_values(x: Tensor, other: Tensor | float) -> bool:
    return isinstance(other, Tensor) and x.dtype == other.dtype == torch.bool


@decomposes(
    aten.sub.Tensor,
    aten.sub.Scalar,
    targets=("coreml", "coreai"),
    why="coremltools 9.0 and Core AI drop alpha where it comes by name",
)
def sub(x: Tensor, other: Tensor | float, alpha: float = 1) -> Tensor:
    """Return x - alpha other."""
    return LEAVE if alpha == 1 else torch.sub(x, _times(other, alpha))


@decomposes(
    aten.rsub.Tensor,
    aten.rsub.Scalar,
    targets=("coreml", "coreai"),
    why="coremltools 9.0 and Core AI drop alpha where it comes by name",
)
def rsub(x: Tensor, other: Tensor | float, alpha: float = 1) -> Tensor:
    """Return other - alpha x."""
    return LEAVE if alpha == 1 else torch.rsub(x * alpha, other)


def _times(other: Tensor | float, alpha: float) -> Tensor | float:
    """Return alpha other, in the floats' type where other is one: a float constant, as coremltools promotes none."""
    if isinstance(other, Tensor):
        return other * (float(alpha) if other.is_floating_point() else alpha)
    return other * alpha


@decomposes(
    aten.atan2.default,
    targets=("coreml", "coreai", "onnx"),
    why="at y = 0 and beside x = 0 its translations leave the quadrant (coremltools#2769, pytorch#162570)",
)
def atan2(y: Tensor, x: Tensor) -> Tensor:
    """Return the angle of (x, y) from the x axis, in (-pi, pi], or -pi for y = -0 and negative x.

    With q = min(|x|, |y|) / max(|x|, |y|) <= 1 no quotient overflows:

        a = atan q, or pi / 2 - atan q where |y| > |x|;  pi - a where x < 0;  with y's sign

    The sign of a zero is that of its reciprocal.
    """
    if not y.is_floating_point() or not x.is_floating_point():
        y, x = y.to(torch.get_default_dtype()), x.to(torch.get_default_dtype())
    height, width = y.abs(), x.abs()
    large, small = torch.maximum(height, width), torch.minimum(height, width)
    one = torch.ones_like(large)
    ratio = small / torch.where(large > 0, large, one)
    ratio = torch.where((small == large) & (large > 0), one, ratio)  # of two infinities too
    angle = torch.atan(ratio)
    angle = torch.where(height > width, math.pi / 2 - angle, angle)
    angle = torch.where(is_negative(x), math.pi - angle, angle)
    return torch.where(is_negative(y), -angle, angle)


def is_negative(x: Tensor) -> Tensor:
    """Return where a number has a minus sign, of a zero too."""
    return (x < 0) | ((x == 0) & (torch.ones_like(x) / x < 0))


@decomposes(aten.signbit.default, targets=("coreml", "coreai", "onnx"), why="no converter has a translation that works")
def signbit(x: Tensor) -> Tensor:
    """Return where a number has a minus sign, of a zero too."""
    return is_negative(x) if x.is_floating_point() else x < 0


@decomposes(
    aten.copysign.Tensor,
    aten.copysign.Scalar,
    targets=("coreml", "onnx"),
    why="neither converter has a translation",
)
def copysign(x: Tensor, sign: Tensor | float) -> Tensor:
    """Return the magnitude of one number with the sign of another."""
    if not isinstance(sign, Tensor):
        return x.abs() if math.copysign(1, sign) > 0 else -x.abs()
    return torch.where(is_negative(sign), -x.abs(), x.abs())


@decomposes(
    *(aten.trunc.default, aten.fix.default),
    targets=("coreml", "coreai"),
    why="coremltools 9.0 has no translation, and Core AI's converter makes NaN of an infinity",
)
def trunc(x: Tensor) -> Tensor:
    """Return x without its fraction."""
    return torch.where(x < 0, torch.ceil(x), torch.floor(x)) if x.is_floating_point() else x.clone()


@decomposes(aten.frac.default, targets=("coreml",), why="coremltools 9.0 has no translation")
def frac(x: Tensor) -> Tensor:
    """Return the fraction of x, which has the sign of x."""
    return x - trunc(x)


@decomposes(aten.fmod.Tensor, aten.fmod.Scalar, targets=("coreml",), why="coremltools 9.0 has no translation")
def fmod(x: Tensor, divisor: Tensor | float) -> Tensor:
    """Return the remainder of x that has the sign of x."""
    rest = torch.remainder(x.abs(), abs(divisor) if not isinstance(divisor, Tensor) else divisor.abs())
    return torch.where(x < 0, -rest, rest)


@decomposes(aten.sgn.default, targets=("coreml",), why="coremltools 9.0 has no translation")
def sgn(x: Tensor) -> Tensor:
    """Return the sign of a real number: -1, 0 or 1."""
    return torch.sign(x)


@decomposes(aten.isinf.default, targets=("coreml", "coreai"), why="neither converter has a translation that works")
def isinf(x: Tensor) -> Tensor:
    """Return where a number is infinite."""
    return x.abs() == math.inf if x.is_floating_point() else torch.zeros_like(x, dtype=torch.bool)


@decomposes(aten.isfinite.default, targets=("coreml", "coreai"), why="neither converter has a translation that works")
def isfinite(x: Tensor) -> Tensor:
    """Return where a number is finite; NaN is not."""
    return x.abs() < math.inf if x.is_floating_point() else torch.ones_like(x, dtype=torch.bool)


@decomposes(aten.deg2rad.default, targets=("coreml",), why="coremltools 9.0 has no translation")
def deg2rad(x: Tensor) -> Tensor:
    """Return degrees as radians."""
    return x * (math.pi / 180)


@decomposes(aten.rad2deg.default, targets=("coreml",), why="coremltools 9.0 has no translation")
def rad2deg(x: Tensor) -> Tensor:
    """Return radians as degrees."""
    return x * (180 / math.pi)


@decomposes(aten.angle.default, targets=("coreml", "coreai", "tvm"), why="no converter but ONNX's has a translation")
def angle(x: Tensor) -> Tensor:
    """Return the angle of a real number in the plane of complex ones: pi below 0, NaN of NaN, else 0."""
    kind = x.dtype if x.is_floating_point() else torch.get_default_dtype()
    turned = torch.where(x < 0, torch.full_like(x, math.pi, dtype=kind), torch.zeros_like(x, dtype=kind))
    return torch.where(x != x, x, turned) if x.is_floating_point() else turned


@decomposes(aten.hypot.default, targets=("coreml", "onnx"), why="neither converter has a translation")
def hypot(x: Tensor, y: Tensor) -> Tensor:
    """Return sqrt(x x + y y) by the quotient of the smaller, whose square does not overflow."""
    x, y = x.abs(), y.abs()
    large, small = torch.maximum(x, y), torch.minimum(x, y)
    ratio = small / torch.where(large > 0, large, torch.ones_like(large))
    return large * torch.sqrt(ratio * ratio + 1.0)


@decomposes(
    aten.fmax.default, targets=("coreml", "coreai", "onnx", "tvm"), why="no converter has a translation that works"
)
def fmax(x: Tensor, y: Tensor) -> Tensor:
    """Return the larger number, where one is NaN the other."""
    largest = torch.maximum(x, y)
    return torch.where(x != x, y, torch.where(y != y, x, largest))


@decomposes(
    aten.fmin.default, targets=("coreml", "coreai", "onnx", "tvm"), why="no converter has a translation that works"
)
def fmin(x: Tensor, y: Tensor) -> Tensor:
    """Return the smaller number, where one is NaN the other."""
    smallest = torch.minimum(x, y)
    return torch.where(x != x, y, torch.where(y != y, x, smallest))


@decomposes(aten.heaviside.default, targets=("coreml", "coreai"), why="neither converter has a translation that works")
def heaviside(x: Tensor, at_zero: Tensor) -> Tensor:
    """Return 0 below 0, 1 above it, and the other value at it."""
    return torch.where(x == 0, at_zero, (x > 0).to(at_zero.dtype))


@decomposes(
    *(aten.lerp.Tensor, aten.lerp.Scalar),
    targets=("coreml", "coreai", "onnx", "tvm"),
    why="coremltools 9.0 has no translation, and the others' are otherwise where an end is infinite",
)
def lerp(start: Tensor, end: Tensor, weight: Tensor | float) -> Tensor:
    """Return start + weight (end - start), from the nearer end, as PyTorch does."""
    way = end - start
    if not isinstance(weight, Tensor):
        if weight in (0, 1):  # TVM and others make 0 of a product with it, which is NaN of an infinity
            return (end if weight else start) + torch.where(torch.isfinite(way), torch.zeros_like(way), math.nan)
        return start + way * weight if abs(weight) < HALFWAY else end - way * (1 - weight)
    return torch.where(weight.abs() < HALFWAY, start + way * weight, end - way * (1 - weight))


@decomposes(aten.addcdiv.default, targets=("coreml",), why="coremltools 9.0 has no translation")
def addcdiv(x: Tensor, a: Tensor, b: Tensor, value: float = 1) -> Tensor:
    """Return x + value a / b."""
    return x + (a / b) * float(value)


_INT32 = torch.iinfo(torch.int32)


@decomposes(
    *(aten.clamp.default, aten.clip.default),
    targets=("coreml",),
    why="Core ML's clip wants its bounds in order, and coremltools has a float for one that is missing, of any numbers",
)
def clamp(x: Tensor, low: float | None = None, high: float | None = None) -> Tensor:
    """Return min(max(x, low), high), which is high throughout where the bounds cross."""
    if low is not None and high is not None:
        return LEAVE if low <= high else torch.full_like(x, high)
    if x.is_floating_point() or x.dtype == torch.bool or not isinstance(high if low is None else low, int):
        return LEAVE
    return torch.clamp(x, _INT32.min if low is None else low, _INT32.max if high is None else high)


_IN_FLOATS = "Core AI's converter has the bounds of integers in float32"


@decomposes(*(aten.clamp.default, aten.clip.default), targets=("coreai",), why=_IN_FLOATS)
def clamp_of_integers(x: Tensor, low: float | None = None, high: float | None = None) -> Tensor:
    """Return min(max(x, low), high), of integers between integers."""
    if not are_integers(x) or not all(isinstance(k, int | None) for k in (low, high)):
        return LEAVE
    x = x if low is None else torch.maximum(x, torch.scalar_tensor(low, dtype=x.dtype))
    return x if high is None else torch.minimum(x, torch.scalar_tensor(high, dtype=x.dtype))


@decomposes(aten.clamp_min.default, targets=("coreai",), why=_IN_FLOATS)
def clamp_min_of_integers(x: Tensor, low: float) -> Tensor:
    """Return max(x, low), of integers."""
    return clamp_of_integers(x, low)


@decomposes(aten.clamp_max.default, targets=("coreai",), why=_IN_FLOATS)
def clamp_max_of_integers(x: Tensor, high: float) -> Tensor:
    """Return min(x, high), of integers."""
    return clamp_of_integers(x, None, high)


@decomposes(
    aten.clamp.Tensor,
    targets=("coreml", "tvm"),
    why="coremltools 9.0 drops bounds that are tensors where they cross, and TVM takes numbers only",
)
def clamp_by_tensors(x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    """Return min(max(x, low), high). Shapes broadcast."""
    x = x if low is None else torch.maximum(x, low)
    return x if high is None else torch.minimum(x, high)


@decomposes(aten.isnan.default, targets=("coreai",), why="Core AI's converter has no translation")
def isnan(x: Tensor) -> Tensor:
    """Return where a number is NaN."""
    return x != x if x.is_floating_point() else torch.zeros_like(x, dtype=torch.bool)


_NOT_BEYOND = "Core AI's converter takes x <= y for not x > y, which NaN fulfils"


@decomposes(*(aten.le.Tensor, aten.le.Scalar), targets=("coreai",), why=_NOT_BEYOND)
def less_or_equal(x: Tensor, y: Tensor | float) -> Tensor:
    """Return where x is below y or equal, which NaN is not; of whole numbers it is left."""
    return _or_equal(x, y, torch.lt)


@decomposes(*(aten.ge.Tensor, aten.ge.Scalar), targets=("coreai",), why=_NOT_BEYOND)
def greater_or_equal(x: Tensor, y: Tensor | float) -> Tensor:
    """Return where x is above y or equal, which NaN is not; of whole numbers it is left."""
    return _or_equal(x, y, torch.gt)


def _or_equal(x: Tensor, y: Tensor | float, compare: Callable[..., Tensor]) -> Tensor:
    if not torch.result_type(x, y).is_floating_point:
        return LEAVE
    return torch.eq(x, x) if x is y else torch.logical_or(compare(x, y), torch.eq(x, y))


_INFINITE = "Core AI's converter divides by 1 for it, which makes NaN of an infinity"


@decomposes(aten.floor.default, targets=("coreai",), why=_INFINITE)
def floor(x: Tensor) -> Tensor:
    """Return the nearest whole number, one less where it is above x."""
    if not x.is_floating_point():
        return x.clone()
    nearest = torch.round(x)
    return nearest - (nearest > x).to(x.dtype)


@decomposes(aten.ceil.default, targets=("coreai",), why=_INFINITE)
def ceil(x: Tensor) -> Tensor:
    """Return the nearest whole number, one more where it is below x."""
    if not x.is_floating_point():
        return x.clone()
    nearest = torch.round(x)
    return nearest + (nearest < x).to(x.dtype)


@decomposes(aten.nan_to_num.default, targets=("coreai",), why="Core AI's converter has no translation of isnan")
def nan_to_num(x: Tensor, nan: float | None = None, posinf: float | None = None, neginf: float | None = None) -> Tensor:
    """Return x with finite numbers for NaN and infinities: 0 and the type's own limits by default, and at most."""
    if not x.is_floating_point():
        return x.clone()
    limits = torch.finfo(x.dtype)
    nan, posinf, neginf = (
        None if one is None else min(max(one, limits.min), limits.max) for one in (nan, posinf, neginf)
    )
    x = torch.where(isnan(x), torch.full_like(x, nan or 0.0), x)
    x = torch.where(x == math.inf, torch.full_like(x, limits.max if posinf is None else posinf), x)
    return torch.where(x == -math.inf, torch.full_like(x, limits.min if neginf is None else neginf), x)


@decomposes(aten.remainder.Scalar, targets=("coreai",), why="Core AI's converter takes a tensor for the divisor only")
def remainder(x: Tensor, divisor: float) -> Tensor:
    """Return the remainder that has the divisor's sign."""
    wanted = torch.result_type(x, divisor)
    return torch.remainder(x.to(wanted), torch.full_like(x, divisor, dtype=wanted))


@decomposes(
    aten.remainder.Tensor,
    targets=("coreai",),
    why="Core AI's converter takes x - floor(x / d) d, which loses the digits of large quotients; its fmod is exact",
)
def remainder_of_floats(x: Tensor, divisor: Tensor) -> Tensor:
    """Return the remainder that has the divisor's sign, by the one that has the sign of x; whole numbers are left."""
    wanted = torch.result_type(x, divisor)
    if not wanted.is_floating_point:
        return LEAVE
    divisor = divisor.to(wanted)
    rest = torch.fmod(x.to(wanted), divisor)
    is_opposite = torch.logical_and(rest != 0, torch.logical_xor(rest < 0, divisor < 0))
    return torch.where(is_opposite, rest + divisor, rest)


@decomposes(aten.threshold.default, targets=("coreai",), why="Core AI's converter rounds the number to 16 bits")
def threshold(x: Tensor, threshold: float, value: float) -> Tensor:
    """Return x where it is above a threshold, and a number elsewhere; a NaN stays."""
    return torch.where(x <= torch.full_like(x, threshold), torch.full_like(x, value), x)


@decomposes(aten.remainder.Scalar_Tensor, targets=("coreml", "coreai"), why="neither converter takes a number for it")
def remainder_of_number(x: float, divisor: Tensor) -> Tensor:
    """Return the remainder of a number that has the divisor's sign."""
    wanted = torch.result_type(divisor, x)
    return torch.remainder(torch.full_like(divisor, x, dtype=wanted), divisor.to(wanted))


_FLOOR = "Core AI rounds the quotient first, up to an integer too, where PyTorch's remainder is exact"


_WHOLE = "a quotient of whole numbers is rounded in float, which has 24 bits"


@decomposes(aten.div.Tensor_mode, targets=("coreai",), why=f"{_FLOOR}; {_WHOLE}")
def div(x: Tensor, divisor: Tensor | float, *, rounding_mode: str | None = None) -> Tensor:
    """Return the floor of a quotient of floats, or the whole part of one of whole numbers; others are left."""
    if rounding_mode == "floor":
        return floor_divide(x, divisor)
    return div_of_whole_numbers(x, divisor, rounding_mode=rounding_mode)


@decomposes(aten.div.Tensor_mode, targets=("onnx", "coreml"), why=_WHOLE)
def div_of_whole_numbers(x: Tensor, divisor: Tensor | float, *, rounding_mode: str | None = None) -> Tensor:
    """Return the whole part of a quotient of whole numbers: its floor, one more where that is below a negative one."""
    if rounding_mode != "trunc" or torch.result_type(x, divisor).is_floating_point:
        return LEAVE
    floor = torch.floor_divide(x, divisor)
    is_below = (floor < 0) & (floor * divisor != x)
    return torch.where(is_below, floor + 1, floor)


@decomposes(
    *(aten.floor_divide.default, aten.floor_divide.Scalar),
    targets=("onnx", "coreml", "tvm"),
    why="no translation takes a number that is divided, nor ONNX's one that divides",
)
def floor_divide_of_number(x: Tensor | float, divisor: Tensor | float) -> Tensor:
    """Return the floor of a number by a tensor, or of a tensor by a number."""
    if isinstance(x, Tensor):
        if isinstance(divisor, Tensor):
            return LEAVE
        wanted = torch.result_type(x, divisor)
        if wanted.is_floating_point:
            return torch.div(x, divisor, rounding_mode="floor")
        return torch.floor_divide(x.to(wanted), torch.full_like(x, divisor, dtype=wanted))
    assert isinstance(divisor, Tensor)  # one of them is
    wanted = torch.result_type(x, divisor)
    return torch.floor_divide(torch.full_like(divisor, x, dtype=wanted), divisor.to(wanted))


@decomposes(aten.floor_divide.default, targets=("coreai",), why=_FLOOR)
def floor_divide(x: Tensor | float, divisor: Tensor | float) -> Tensor:
    """Return the floor of a quotient of floats, one less where q d is more than x: by Dekker's exact product q d."""
    if not isinstance(x, Tensor):
        assert isinstance(divisor, Tensor)  # one of them is
        return floor_divide_of_number(x, divisor)
    wanted = torch.result_type(x, divisor)
    if not wanted.is_floating_point:
        return LEAVE
    x = x.to(wanted)
    divisor = divisor.to(wanted) if isinstance(divisor, Tensor) else torch.full_like(x, divisor)
    quotient = torch.floor(x / divisor)
    product = quotient * divisor
    (q1, q2), (d1, d2) = _halves(quotient), _halves(divisor)
    error = ((q1 * d1 - product) + q1 * d2 + q2 * d1) + q2 * d2
    rest = (x - product) - error
    beyond = torch.where(divisor > 0, rest < 0, rest > 0)
    return torch.where(beyond, quotient - 1.0, quotient)


def _halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return two numbers of half the digits whose sum is x. (Veltkamp; fp32 has 24 bits)"""
    scaled = x * 4097.0
    high = scaled - (scaled - x)
    return high, x - high


@decomposes(aten.clamp_min.default, targets=("tvm",), why="as clamp, of which TVM's translation is right")
def clamp_min(x: Tensor, least: float) -> Tensor:
    """Return the larger one of each number and a bound."""
    return torch.clamp(x, min=least)


@decomposes(aten.clamp_max.default, targets=("tvm",), why="TVM's importer looks for the bound in another place: none")
def clamp_max(x: Tensor, most: float) -> Tensor:
    """Return the smaller one of each number and a bound."""
    return torch.clamp(x, max=most)


@decomposes(
    aten.relu.default,
    targets=("coreml", "onnx"),
    why="Core ML's relu takes floats only, as does TensorRT's, ONNX's no uint8",
)
def relu(x: Tensor) -> Tensor:
    """Return whole numbers, 0 for those below."""
    return LEAVE if x.is_floating_point() else torch.clamp(x, min=0)


@decomposes(aten.addcmul.default, targets=("coreml",), why="our own translation takes floats only")
def addcmul(x: Tensor, a: Tensor, b: Tensor, value: float = 1) -> Tensor:
    """Return x + value a b of whole numbers."""
    return LEAVE if x.is_floating_point() else x + a * b * value


_POWERS = (
    "Core AI's runtime ends the process over a power that int32 has not, ONNX Runtime and Core ML compute in floats,"
    " and TVM's do not compile"
)
_LARGEST_POWER = 2**9 - 1
"""The largest exponent that is taken as it is: beyond it 64 bits hold powers of even numbers, 1 and -1 alone."""


@decomposes(aten.pow.Scalar, targets=("coreml", "coreai", "onnx", "tvm"), why=_POWERS)
def power_of_number(base: float, exponent: Tensor) -> Tensor:
    """Return powers of a whole number with whole exponents; others are left."""
    wanted = torch.result_type(base, exponent)
    if wanted.is_floating_point or wanted.is_complex or wanted == torch.bool:
        return LEAVE
    return _whole_power(torch.full_like(exponent, base, dtype=wanted), exponent.to(wanted))


@decomposes(aten.pow.Tensor_Tensor, targets=("coreml", "coreai", "onnx", "tvm"), why=_POWERS)
def power(base: Tensor, exponent: Tensor) -> Tensor:
    """Return powers of whole numbers with whole exponents; others are left."""
    wanted = torch.result_type(base, exponent)
    if wanted.is_floating_point or wanted.is_complex or wanted == torch.bool:
        return LEAVE
    return _whole_power(base.to(wanted), exponent.to(wanted))


@decomposes(aten.pow.Tensor_Scalar, targets=("coreml", "coreai", "onnx", "tvm"), why=_POWERS)
def power_by_number(base: Tensor, exponent: float) -> Tensor:
    """Return powers of whole numbers with one whole exponent, and square roots; others are left."""
    if exponent == 0.5 and base.is_floating_point():
        return torch.sqrt(base)  # as PyTorch does: minus infinity has none
    wanted = torch.result_type(base, exponent)
    if wanted.is_floating_point or wanted.is_complex or wanted == torch.bool or exponent < 0:
        return LEAVE
    made, square, rest = torch.ones_like(base, dtype=wanted), base.to(wanted), int(exponent)
    while rest:
        made = made * square if rest % 2 else made
        rest //= 2
        square = square * square if rest else square
    return made


def _whole_power(base: Tensor, exponent: Tensor) -> Tensor:
    """Return b^e by the squares of b, for each bit of e; where e is below 0, the whole part of 1 / b^-e."""
    parity = torch.remainder(exponent, 2)
    least = _LARGEST_POWER - 1 + parity
    rest = torch.where(exponent > _LARGEST_POWER, least, torch.where(exponent < 0, parity, exponent))
    made, square = torch.ones_like(base), base
    for k in range(_LARGEST_POWER.bit_length()):
        square = square * square if k else square
        bit = torch.remainder(torch.div(rest, 2**k, rounding_mode="floor"), 2)
        made = made * torch.where(bit == 1, square, torch.ones_like(square))
    is_unit = (base == 1) | (base == -1)
    return torch.where((exponent < 0) & torch.logical_not(is_unit), torch.zeros_like(made), made)
