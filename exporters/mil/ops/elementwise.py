"""Elementwise MIL operators: one result an element, with numpy's broadcasting for two operands.

Meanings are those of coremltools' operator documentation (iOS15 to iOS18). What it says that a reader might not expect:

    round                  halves go to the even neighbour, as in numpy and torch
    mod, floor_div         Python's: the remainder has the divisor's sign, the quotient goes towards minus infinity
    real_div, pow of int32 the result is declared int32 too: the fraction is dropped
    log, inverse, rsqrt    `epsilon` is added to x first; its default has x's type, so it is 0 for rsqrt and log in fp16
    threshold              a lower bound: max(x, alpha); nothing is replaced as in torch's function of that name
    cast                   float to integer drops the fraction; to bool it asks for x != 0
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from edgesmith.exporters.mil.carriers import BITS
from edgesmith.exporters.mil.ops import Context, number, op, wide


def _unary(function: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """A MIL operator of one operand that is this function of torch, at fp32 for half-precision operands."""

    def apply(*, x: Tensor) -> Tensor:
        return function(wide(x))

    return apply


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """A MIL operator of two operands that is this function of torch, at fp32 for half-precision operands."""

    def apply(*, x: Tensor, y: Tensor) -> Tensor:
        return function(wide(x), wide(y))

    return apply


UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "abs": torch.abs,
    "acos": torch.acos,
    "asin": torch.asin,
    "atan": torch.atan,
    "atanh": torch.atanh,
    "ceil": torch.ceil,
    "cos": torch.cos,
    "cosh": torch.cosh,
    "erf": torch.erf,
    "exp": torch.exp,
    "floor": torch.floor,
    "logical_not": torch.logical_not,
    "round": torch.round,
    "sign": torch.sign,
    "sin": torch.sin,
    "sinh": torch.sinh,
    "sqrt": torch.sqrt,
    "square": torch.square,
    "tan": torch.tan,
    "tanh": torch.tanh,
}
"""Operators of one operand that are a function of torch as it stands."""

BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "equal": torch.eq,
    "floor_div": torch.floor_divide,
    "greater": torch.gt,
    "greater_equal": torch.ge,
    "less": torch.lt,
    "less_equal": torch.le,
    "logical_and": torch.logical_and,
    "logical_or": torch.logical_or,
    "logical_xor": torch.logical_xor,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "mod": torch.remainder,
    "mul": torch.mul,
    "not_equal": torch.ne,
    "sub": torch.sub,
}
"""Operators of two operands that are a function of torch as it stands."""

for _name, _one in UNARY.items():
    op(_name)(_unary(_one))
for _name, _two in BINARY.items():
    op(_name)(_binary(_two))


@op("real_div")
def real_div(*, x: Tensor, y: Tensor) -> Tensor:
    """The quotient x / y; for integers the quotient without its fraction."""
    if x.is_floating_point():
        return wide(x) / wide(y)
    return torch.div(x, y, rounding_mode="trunc")


@op("exp2")
def exp2(*, x: Tensor) -> Tensor:
    """The power 2 ** x; for integers without the fraction that a negative exponent leaves."""
    return torch.exp2(wide(x)) if x.is_floating_point() else torch.exp2(x.double()).to(x.dtype)


@op("pow")
def power(*, x: Tensor, y: Tensor) -> Tensor:
    """The power x ** y; for integers without the fraction that a negative exponent leaves."""
    if x.is_floating_point():
        return torch.pow(wide(x), wide(y))
    return torch.pow(x.double(), y.double()).to(x.dtype)


@op("cast", context=True)
def cast(context: Context, *, x: Tensor, dtype: str) -> Tensor:
    """The values of x in the type that the string names, for example "fp16" or "int32"."""
    wanted = context.dtype(dtype)
    if wanted == torch.bool:
        return x != 0
    if wanted.is_floating_point:
        return x.to(wanted)
    whole = x.long()
    return (whole & BITS[dtype] if dtype in BITS else whole).to(wanted)


@op("clip")
def clip(*, x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """The values of x, limited to [alpha, beta]."""
    return wide(x).clamp(number(alpha), number(beta))


@op("threshold")
def threshold(*, x: Tensor, alpha: Tensor) -> Tensor:
    """max(x, alpha)."""
    return wide(x).clamp(min=number(alpha))


def _shifted(x: Tensor, epsilon: Tensor | None, default: float) -> Tensor:
    """The sum x + epsilon, where the default has the type of x, as coremltools writes it."""
    added: Tensor = torch.tensor(default, dtype=x.dtype) if epsilon is None else epsilon
    return torch.add(wide(x), number(added))


@op("inverse")
def inverse(*, x: Tensor, epsilon: Tensor | None = None) -> Tensor:
    """1 / (x + epsilon), with 1e-4 where the program names no epsilon."""
    return _shifted(x, epsilon, 1e-4).reciprocal()


@op("log")
def log(*, x: Tensor, epsilon: Tensor | None = None) -> Tensor:
    """The natural logarithm of x + epsilon, with 1e-45 where the program names none.

    So the logarithm of 0 is -103.28 in fp32, and minus infinity in fp16, where the default rounds to 0.
    """
    return _shifted(x, epsilon, 1e-45).log()


@op("rsqrt")
def rsqrt(*, x: Tensor, epsilon: Tensor | None = None) -> Tensor:
    """1 / sqrt(x + epsilon), with 1e-12 where the program names no epsilon."""
    return _shifted(x, epsilon, 1e-12).rsqrt()


@op("select")
def select(*, cond: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """The value a where the condition holds, else b; the three are broadcast."""
    return torch.where(cond, a, b)
