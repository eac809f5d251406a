"""Cases of elementwise operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from support.mil_sites import Draw, Site, Table, Variant, bools, floats, halves, one, scalar, wholes

CASES = Table()


def whole(function: Callable[..., Tensor], low: int = -9, high: int = 9) -> Variant:
    """The function of integers, which torch has for floats only."""
    return one(lambda x: function(x.double()).int(), x=wholes(low, high))


CASES.row("abs", one(torch.abs, x=floats(), half=True), whole(torch.abs))
CASES.row("acos", one(torch.acos, x=floats(-1, 1), half=True))
CASES.row("asin", one(torch.asin, x=floats(-1, 1), half=True))
CASES.row("atan", one(torch.atan, x=floats(), half=True))
CASES.row("atanh", one(torch.atanh, x=floats(-0.9, 0.9), half=True))
CASES.row("ceil", one(torch.ceil, x=halves(-7, 7), half=True))  # halves and zeros among them
CASES.row("cos", one(torch.cos, x=floats(), half=True))
CASES.row("cosh", one(torch.cosh, x=floats(-4, 4), half=True))
CASES.row("erf", one(torch.erf, x=floats(), half=True))
CASES.row("exp", one(torch.exp, x=floats(-4, 4), half=True))
CASES.row("exp2", one(torch.exp2, x=floats(-6, 6), half=True), whole(torch.exp2, 0, 9))
CASES.row("floor", one(torch.floor, x=halves(-7, 7), half=True))
CASES.row("round", one(torch.round, x=halves(-7, 7), half=True))
CASES.row("sign", one(torch.sign, x=halves(-7, 7), half=True), whole(torch.sign))
CASES.row("sin", one(torch.sin, x=floats(), half=True))
CASES.row("sinh", one(torch.sinh, x=floats(-4, 4), half=True))
CASES.row("sqrt", one(torch.sqrt, x=floats(0, 9), half=True))
CASES.row("square", one(torch.square, x=floats(), half=True), whole(torch.square))
CASES.row("tan", one(torch.tan, x=floats(-1.4, 1.4), half=True))
CASES.row("tanh", one(torch.tanh, x=floats(), half=True))


def divisors(draw: Draw, shape: Any) -> Tensor:
    """Floats of either sign, not near zero."""
    y = draw.floats(shape, 0.5, 3)
    return y * torch.where(draw.bools(shape), 1, -1).to(y.dtype)


def whole_divisors(draw: Draw, shape: Any) -> Tensor:
    y = draw.wholes(shape)
    return torch.where(y == 0, 7, y).int()


ANY_WHOLE = wholes()


def pair(function: Callable[..., Tensor], y: Any = ANY_WHOLE, whole: Callable[..., Tensor] | None = None) -> Any:
    """The function of two tensors that broadcast, of floats and of integers, whose second one is `y`."""
    return (
        one(function, broadcast=True, half=True, x=floats(-20, 20), y=divisors),
        one(whole or function, broadcast=True, x=ANY_WHOLE, y=y),
    )


CASES.row("add", *pair(torch.add))
CASES.row("sub", *pair(torch.sub))
CASES.row("mul", *pair(torch.mul))
CASES.row("maximum", *pair(torch.maximum))
CASES.row("minimum", *pair(torch.minimum))
CASES.row("floor_div", *pair(torch.floor_divide, whole_divisors))
CASES.row("mod", *pair(torch.remainder, whole_divisors))
CASES.row("real_div", *pair(torch.div, whole_divisors, lambda x, y: torch.div(x, y, rounding_mode="trunc")))
CASES.row(
    "pow",
    one(torch.pow, broadcast=True, x=floats(0.1, 4), y=divisors),
    one(torch.pow, broadcast=True, x=wholes(-4, 4), y=wholes(0, 5)),
)


def few(draw: Draw, shape: Any) -> Tensor:
    """Floats of which many are equal."""
    return draw.wholes(shape, -2, 2).to(draw.float_type)


def comparison(function: Callable[..., Tensor]) -> Any:
    return (
        one(function, broadcast=True, half=True, x=few, y=few),
        one(function, broadcast=True, half=True, x=wholes(-2, 2), y=wholes(-2, 2)),
    )


CASES.row("equal", *comparison(torch.eq))
CASES.row("not_equal", *comparison(torch.ne))
CASES.row("greater", *comparison(torch.gt))
CASES.row("greater_equal", *comparison(torch.ge))
CASES.row("less", *comparison(torch.lt))
CASES.row("less_equal", *comparison(torch.le))

CASES.row("logical_and", one(torch.logical_and, broadcast=True, x=bools, y=bools))
CASES.row("logical_or", one(torch.logical_or, broadcast=True, x=bools, y=bools))
CASES.row("logical_xor", one(torch.logical_xor, broadcast=True, x=bools, y=bools))
CASES.row("logical_not", one(torch.logical_not, x=bools))


def some(draw: Draw, shape: Any) -> Tensor:
    """Booleans for some of the axes, which broadcast along the others."""
    return draw.bools([1 if draw.flag() else size for size in shape])


CASES.row("select", one(torch.where, half=True, cond=some, a=floats(), b=floats()))
CASES.row(
    "clip",
    one(
        lambda x, alpha, beta: torch.clip(x, float(alpha), float(beta)),
        {"alpha": scalar(-2, 0), "beta": scalar(0.1, 2)},
        half=True,
        x=floats(),
    ),
)
CASES.row(
    "threshold",
    one(lambda x, alpha: torch.clamp_min(x, float(alpha)), {"alpha": scalar(-2, 2)}, half=True, x=floats()),
    one(
        lambda x, alpha: torch.clamp_min(x, int(alpha)),
        {"alpha": lambda draw: np.int32(draw.whole(-5, 5))},
        x=wholes(),
    ),
)


@CASES.drawn("cast")
def cast(draw: Draw) -> Site:
    x = draw.data_of(draw.shape())
    if x.is_floating_point():
        x = x * 30
    names = {"fp16": torch.float16, "fp32": torch.float32, "int32": torch.int32, "bool": torch.bool}
    if draw.opset >= 17:
        names |= {name: getattr(torch, name) for name in ("int8", "uint8", "int16", "uint16")}
    wanted = draw.choose(names)

    def reference(x: Tensor) -> Tensor:
        if names[wanted].is_floating_point or wanted == "bool":
            return x.to(names[wanted])
        bits = x.double().trunc().to(torch.int64)
        size, signed = int(wanted.lstrip("uint")), not wanted.startswith("u")
        wrapped = bits % 2**size
        return torch.where(wrapped >= 2 ** (size - 1), wrapped - 2**size, wrapped) if signed else wrapped

    return Site({"x": x}, {"dtype": wanted}, reference)


@CASES.drawn("inverse", "log", "rsqrt")
def shifted(draw: Draw, name: str) -> Site:
    default = {"inverse": 1e-4, "log": 1e-45, "rsqrt": 1e-12}[name]
    kind = np.float16 if draw.kind == "fp16" else np.float32
    epsilon = kind(default)
    attributes = {}
    if draw.flag():
        epsilon = (np.float32 if draw.opset >= 17 and draw.flag() else kind)(draw.whole(1, 500) / 1000)
        attributes["epsilon"] = epsilon
    function = {"inverse": torch.reciprocal, "log": torch.log, "rsqrt": torch.rsqrt}[name]
    low = 1.2 if name == "log" else 0.05
    return Site({"x": draw.floats(draw.shape(), low, 6)}, attributes, lambda x: function(x + float(epsilon)))
