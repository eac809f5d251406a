"""Cases at the boundaries of each class of operators, where normal draws never come.

Zeros of both signs, ties, tiny and huge magnitudes, saturation, constant rows, axes of one element, negative and last
axes, negative indices, and every overload and default. A function of this file holds the cases of one class; each
yields them by `of`, which names the operator as PyTorch's database does where it is in there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgesmith.exporters.verification.cases import Case
from edgesmith.exporters.verification.samples import Maker

Values = Tensor | tuple[Tensor, ...]


def of(operator: str, label: str, function: Callable[..., Any], *values: Values, **more: Any) -> Case:
    """Return a case; values are the inputs of a call each."""
    calls = tuple(one if isinstance(one, tuple) else (one,) for one in values)
    return Case(operator, label, function, calls, **more)


activation = partial(of, activation=True)
image = partial(of, ulps=64.0, mixes=True)
transform = partial(of, mixes=True)


def row(*numbers: float) -> Tensor:
    """Return numbers as a vector of float32."""
    return torch.tensor(numbers, dtype=torch.float32)


def drawn(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    """Return normal numbers, the same ones every time."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


REAL = row(0.0, -0.0, 1e-30, -1e-30, 1e-7, -1e-7, 1e-3, -1e-3, 0.3, -0.3, 0.5, -0.5, 1, -1, 1.5, -1.5, 2.5, -2.5, 3, -3)
LOUD = row(3.7, -3.7, 8, -8, 17, -17, 50, -50, 88, -88, 104, -104, 1e4, -1e4, 1e9, -1e9, 1e30, -1e30, 3e38, -3e38)
POSITIVE = row(1e-38, 1e-30, 1e-7, 1e-3, 0.3, 0.5, 0.999, 1, 1.001, 2, 2.5, 3.7, 10, 100, 1e4, 1e9, 1e30, 3e38, 7, 12)
UNIT = row(
    0.0, -0.0, 1e-7, -1e-7, 1e-3, -1e-3, 0.25, -0.25, 0.5, -0.5, 0.75, -0.75, 0.9, -0.9, 0.999, -0.999, 1, -1, 0.1, -0.1
)
ODD_NUMBERS = row(0.0, 1.0, float("inf"), -float("inf"), float("nan"), -2.0)


def _elementwise() -> Iterator[Case]:
    both: tuple[str, ...] = (
        "sin",
        "cos",
        "tan",
        "tanh",
        "sigmoid",
        "abs",
        "neg",
        "sign",
        "sgn",
        "square",
        "floor",
        "ceil",
        "round",
        "trunc",
    )
    both += ("frac", "erf", "erfc", "asinh", "atan", "expm1", "exp", "exp2", "sinh", "cosh", "signbit", "logical_not")
    both += ("positive", "deg2rad", "rad2deg", "isfinite", "sinc", "reciprocal", "angle")
    for name in both:
        curve = name in ("sigmoid", "tanh")  # of order one, as activations are
        yield of(name, "from tiny to huge", getattr(torch, name), REAL, LOUD, activation=curve)
    for name in ("log", "log2", "log10", "log1p", "sqrt", "rsqrt", "lgamma", "digamma"):
        yield of(name, "positive, from tiny to huge", getattr(torch, name), POSITIVE)
    yield of("log1p", "near 0 and to -1", torch.log1p, UNIT)
    yield of("sqrt", "zero and negative", torch.sqrt, row(0.0, -0.0, -1.0))
    yield of("log", "zero and negative", torch.log, row(0.0, -0.0, -1.0))
    yield of("rsqrt", "zero and negative", torch.rsqrt, row(0.0, -1.0))
    yield of("reciprocal", "of zeros", torch.reciprocal, row(0.0, -0.0))
    yield of("lgamma", "negative", torch.lgamma, row(-0.5, -1.5, -2.25, -3.7))
    yield of("digamma", "negative", torch.digamma, row(-0.5, -1.5, -2.25, -3.7))
    for name in ("asin", "acos", "atanh", "erfinv"):
        yield of(name, "to both ends", getattr(torch, name), UNIT)
    yield of("acosh", "from 1 on", torch.acosh, row(1, 1.0001, 1.5, 10, 1e4, 1e30))
    yield of("logit", "with eps", partial(torch.logit, eps=1e-6), row(0, 1e-3, 0.5, 0.9, 1))
    ties = row(0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 3.4999998, 8388609.0, 0.49999997)
    yield of("round", "half to even", torch.round, ties)
    yield of("round", "to decimals", partial(torch.round, decimals=1), row(0.25, 0.35, -0.25, 1.449, 12.05))
    yield of("round", "to tens", partial(torch.round, decimals=-1), row(4.0, 5.0, 15.0, 25.0, -15.0))
    for name in ("isnan", "isinf", "isposinf", "isneginf", "isfinite", "nan_to_num"):
        yield of(name, "of what is no number", getattr(torch, name), ODD_NUMBERS)
    yield of(
        "nan_to_num", "by its arguments", lambda x: torch.nan_to_num(x, nan=1.0, posinf=2.0, neginf=-2.0), ODD_NUMBERS
    )
    yield of("abs", "of integers", torch.abs, torch.tensor([-3, 0, 4]))
    yield of("neg", "of integers", torch.neg, torch.tensor([-3, 0, 4]))
    yield of("bitwise_not", "of booleans", torch.bitwise_not, torch.tensor([True, False]))
    yield activation("sigmoid", "saturation", torch.sigmoid, row(-104, -88, -30, 30, 88, 104))


def _pairs() -> Iterator[Case]:
    axes = row(0.0, -0.0, 1.0, -1.0, 3.0, -3.0, 1e-20, -1e-20)
    y, x = (grid.flatten() for grid in torch.meshgrid(axes, axes, indexing="ij"))
    keep = ~((y == 0) & (x == 0))
    yield of("atan2", "all quadrants and the axes", torch.atan2, (y[keep], x[keep]))
    yield of("atan2", "zeros of both signs", torch.atan2, (row(0, 0, -0.0, -0.0), row(-1, 1, -1, 1)))
    yield of("atan2", "broadcast", torch.atan2, (drawn(3, 1), drawn(4)))
    dividend, divisor = row(7, -7, 7, -7, 5.5, -5.5, 0, 6, -6, 1e-3), row(3, 3, -3, -3, 2, 2, 3, 3, 3, 5)
    for name in ("remainder", "fmod", "floor_divide"):
        function = getattr(torch, name)
        yield of(name, "of negative numbers", function, (dividend, divisor))
        yield of(name, "by a number", lambda x, f=function: f(x, 3.0), dividend)
        yield of(name, "by a negative number", lambda x, f=function: f(x, -3.0), dividend)
        whole = (torch.tensor([7, -7, 7, -7, 6]), torch.tensor([3, 3, -3, -3, 3]))
        yield of(name, "of integers", function, whole)
    yield of("__rmod__", "of a number", lambda x: 7.0 % x, divisor)
    for mode in (None, "floor", "trunc"):
        divide = partial(torch.div, rounding_mode=mode)
        yield of("div", f"rounding_mode {mode}", divide, (dividend, divisor))
        yield of(
            "div",
            f"integers, rounding_mode {mode}",
            divide,
            (torch.tensor([7, -7, 7, -7]), torch.tensor([2, 2, -2, -2])),
        )
    yield of("div", "by zeros", torch.div, (row(1, -1, 1), row(0, 0, -0.0)))
    bases = row(-2, -2, -1.5, 0, 0, 2, 2, 1, 4, 9)
    yield of("pow", "negative bases", torch.pow, (bases, row(2, 3, -1, 0, 2, -3, 0.5, 100, 0.5, -0.5)))
    for exponent in (0, 1, 2, 3, -1, -2, 0.5, -0.5, 2.5):
        base = row(0.5, 1, 2, 9) if isinstance(exponent, float) else row(-3, -1, 0.5, 2)
        yield of("pow", f"to the power of {exponent}", lambda x, e=exponent: x**e, base)
    yield of("pow", "of a number", lambda x: 2.0**x, row(-3, 0, 0.5, 10))
    yield of("pow", "integers", lambda x: x**3, torch.tensor([-3, 0, 2]))
    yield of("pow", "integers beyond 24 bits", lambda x: x**19 % 1000, torch.tensor([-3, 0, 2, 3]))
    whole = (torch.tensor([0, -1, 3, 2, 1, -1, 2, -1, 0]), torch.tensor([0, 1, 19, 30, 300, 301, -1, -3, 64]))
    yield of("pow", "integers by integers", lambda x, e: torch.pow(x, e) % 1000, whole)
    yield of("pow", "a number by integers", lambda e: torch.pow(2, e), torch.tensor([0, 1, 30, -1, 64, 300]))


def _comparisons() -> Iterator[Case]:
    for name in ("maximum", "minimum", "fmax", "fmin"):
        yield of(name, "ties and signs", getattr(torch, name), (row(1, -1, 0, 2, 5), row(1, 1, 0, -2, 5)))
    yield of(
        "logaddexp", "huge and equal", torch.logaddexp, (row(100, -200, 1e4, 0, -1e4), row(100, -200, -1e4, 0, -1e4))
    )
    yield of("logaddexp2", "huge and equal", torch.logaddexp2, (row(200, -300, 1e4, 0), row(200, -300, -1e4, 0)))
    yield of("xlogy", "zeros", torch.xlogy, (row(0, 0, 2, -1), row(0, 3, 3, 0.5)))
    yield of("hypot", "huge and tiny", torch.hypot, (row(3, 1e25, 1e-25, 0), row(4, 1e25, 1e-25, 0)))
    yield of("copysign", "zeros", torch.copysign, (row(1, -1, 2, 0), row(-1, 1, -0.0, -3)))
    yield of("heaviside", "at zero", torch.heaviside, (row(-1, 0, 2, -0.0), row(0.5, 0.5, 0.5, 0.25)))
    yield of("lerp", "by a number", lambda x, y: torch.lerp(x, y, 0.3), (drawn(4), drawn(4, seed=1)))
    yield of("lerp", "beyond the ends", torch.lerp, (row(1, 2), row(3, 5), row(-1, 2)))


def _sums() -> Iterator[Case]:
    for name in ("add", "sub"):
        function = getattr(torch, name)
        yield of(name, "with alpha", lambda x, y, f=function: f(x, y, alpha=2.5), (drawn(3, 4), drawn(4)))
        yield of(
            name,
            "integers with alpha",
            lambda x, y, f=function: f(x, y, alpha=3),
            (torch.arange(4), torch.arange(4) * 2),
        )
        yield of(name, "integer and float", function, (torch.arange(4), drawn(4)))
    yield of("add", "a number near 0", lambda x: x + 1e-8, row(0, 1e-8, -1e-8, 1e-7))
    yield of("sub", "a number near 0", lambda x: x - 1e-8, row(0, 1e-8, -1e-8, 1e-7))
    yield of("mul", "a number near 1", lambda x: x * 1.000005, row(1, 3, 1000), ulps=2.0)
    yield of("div", "a number near 1", lambda x: x / 1.000005, row(1, 3, 1000), ulps=2.0)
    yield of("div", "by a norm with a small eps", lambda x: x / (x.abs().sum(-1, keepdim=True) + 1e-8), _rows())
    yield of("rsub", "with alpha", lambda x: torch.rsub(x, 3.0, alpha=2.0), drawn(4))
    yield of(
        "addcmul",
        "with value",
        lambda x, a, b: torch.addcmul(x, a, b, value=-0.5),
        (drawn(3, 4), drawn(4), drawn(3, 1)),
    )
    yield of(
        "addcdiv",
        "with value",
        lambda x, a, b: torch.addcdiv(x, a, b, value=-0.5),
        (drawn(3, 4), drawn(4), drawn(3, 1) + 5),
    )
    for name in ("eq", "ne", "lt", "le", "gt", "ge"):
        function = getattr(torch, name)
        yield of(name, "ties", function, (row(0, -0.0, 1, 2, -1), row(-0.0, 0, 1, 3, -2)))
        yield of(name, "with a number", lambda x, f=function: f(x, 1.0), row(0, 1, 2))
        yield of(name, "integers with a fraction", lambda x, f=function: f(x, 1.5), torch.tensor([1, 2, 3]))
    for name in ("logical_and", "logical_or", "logical_xor"):
        bits = (torch.tensor([True, True, False, False]), torch.tensor([True, False, True, False]))
        yield of(name, "of booleans", getattr(torch, name), bits)
        yield of(name, "of numbers", getattr(torch, name), (row(0, 1, 2, -0.0), row(1, 0, 3, 0)))
    for name in ("bitwise_and", "bitwise_or", "bitwise_xor"):
        bits = (torch.tensor([True, True, False, False]), torch.tensor([True, False, True, False]))
        yield of(name, "of booleans", getattr(torch, name), bits)
        yield of(name, "of integers", getattr(torch, name), (torch.tensor([5, 6, -1]), torch.tensor([3, 3, 12])))
    yield of("isclose", "defaults", torch.isclose, (row(1, 1, 0), row(1, 1.1, 1e-9)))


def _choices() -> Iterator[Case]:
    mask = torch.tensor([True, False, True, False])
    x, y = drawn(4), drawn(4, seed=1)
    yield of("where", "two tensors", torch.where, (mask, x, y))
    yield of("where", "a tensor and a number", lambda m, a: torch.where(m, a, 0.0), (mask, x))
    yield of("where", "a number and a tensor", lambda m, a: torch.where(m, -1.0, a), (mask, x))
    yield of("where", "two numbers", lambda m: torch.where(m, 1.0, -2.0), (mask,))
    yield of("where", "broadcast", torch.where, (mask, drawn(3, 1), drawn(1, 4, seed=1)))
    yield of("where", "integers", torch.where, (mask, torch.arange(4), torch.arange(4) * 3))
    yield of(
        "where",
        "the minimum of the type",
        lambda m, a: torch.where(m, a, torch.finfo(a.dtype).min).softmax(-1),
        (mask, x),
    )
    yield of("masked_fill", "by a number", lambda a, m: a.masked_fill(m, -1e4), (x, mask))
    yield of(
        "masked_fill", "by minus infinity, softmax", lambda a, m: a.masked_fill(m, float("-inf")).softmax(-1), (x, mask)
    )
    yield of("masked_fill", "by a tensor", lambda a, m, v: a.masked_fill(m, v), (drawn(2, 4), mask, torch.tensor(2.5)))
    yield of("masked_fill", "of integers", lambda a, m: a.masked_fill(m, 7), (torch.arange(4), mask))
    for low, high in ((-1.0, 1.0), (None, 0.5), (0.0, None), (1.0, -1.0)):
        yield of("clamp", f"between {low} and {high}", partial(torch.clamp, min=low, max=high), REAL, LOUD)
    yield of("clamp", "of integers", lambda a: a.clamp(-1, 2), torch.tensor([-3, 0, 5]))
    yield of("clamp", "of integers by fractions", lambda a: a.clamp(0.5, 2.5), torch.tensor([-3, 0, 5]))
    yield of("clamp", "between tensors", lambda a, b, c: a.clamp(b, c), (drawn(2, 4), drawn(4) - 1, drawn(2, 1) + 1))
    yield of("clamp_min", "by a number", lambda a: a.clamp_min(0.0), REAL)
    yield of("clamp_max", "by a tensor", lambda a, b: a.clamp_max(b), (drawn(3, 4), drawn(4)))


def _activations() -> Iterator[Case]:
    names = (
        "relu",
        "relu6",
        "silu",
        "mish",
        "softsign",
        "tanhshrink",
        "logsigmoid",
        "hardswish",
        "hardsigmoid",
        "selu",
    )
    for name in names:
        yield activation(f"nn.functional.{name}", "from tiny to huge", getattr(F, name), REAL, LOUD.clamp(-1e9, 1e9))
    yield activation(
        "nn.functional.logsigmoid", "saturation", F.logsigmoid, row(-1e4, -100, -88, -30, 30, 88, 100, 1e4)
    )
    forms: dict[str, dict[str, Callable[..., Any]]] = {
        "gelu": {"exact": F.gelu, "tanh": partial(F.gelu, approximate="tanh")},
        "elu": {"default": F.elu, "alpha": partial(F.elu, alpha=0.3)},
        "celu": {"default": F.celu, "alpha": partial(F.celu, alpha=0.3)},
        "leaky_relu": {
            "default": F.leaky_relu,
            "slope": partial(F.leaky_relu, negative_slope=0.3),
            "negative slope": partial(F.leaky_relu, negative_slope=-0.5),
        },
        "hardtanh": {"default": F.hardtanh, "limits": partial(F.hardtanh, min_val=-0.5, max_val=2.5)},
        "threshold": {"default": lambda x: F.threshold(x, 0.5, 20.0), "negative": lambda x: F.threshold(x, -0.5, -1.0)},
        "softplus": {"default": F.softplus, "beta and threshold": partial(F.softplus, beta=2.0, threshold=3.0)},
        "softshrink": {"default": F.softshrink, "lambda": lambda x: F.softshrink(x, 0.3)},
        "hardshrink": {"default": F.hardshrink, "lambda": lambda x: F.hardshrink(x, 0.3)},
    }
    for name, functions in forms.items():
        for label, function in functions.items():
            yield activation(f"nn.functional.{name}", label, function, REAL, LOUD.clamp(-1e9, 1e9))
    yield activation("nn.functional.softplus", "saturation", F.softplus, row(-104, -88, -30, 19.9, 20.1, 88, 104))
    yield activation("nn.functional.prelu", "one slope", lambda x: F.prelu(x, row(0.25)), drawn(2, 3, 4))
    yield activation(
        "nn.functional.prelu", "a slope a channel", lambda x: F.prelu(x, row(0.25, -0.5, 2)), drawn(2, 3, 4)
    )
    yield activation("nn.functional.prelu", "computed slopes", F.prelu, (drawn(2, 3, 4), drawn(3)))


def _softmaxes() -> Iterator[Case]:
    for dim in (0, 1, -1):
        yield of("nn.functional.glu", f"axis {dim}", partial(F.glu, dim=dim), drawn(4, 6, 8))
    rows = (
        torch.stack(
            [
                torch.zeros(5),
                torch.full((5,), 3.7),
                row(1e4, -1e4, 0, 1e4, 3),
                row(-300, -300.5, -301, -302, -300),
                drawn(5),
            ]
        ),
    )
    for name in ("softmax", "log_softmax", "nn.functional.softmin"):
        function = getattr(F, name.split(".")[-1])
        for dim in (0, -1):
            yield of(name, f"equal and huge rows, axis {dim}", partial(function, dim=dim), rows)
    yield of("softmax", "an axis of one", lambda x: x.softmax(1), drawn(3, 1, 4))
    yield of("softmax", "one row", lambda x: x.softmax(0), drawn(7))
    yield of("logsumexp", "equal and huge rows", lambda x: torch.logsumexp(x, -1), rows)
    yield of("logsumexp", "two axes, kept", lambda x: torch.logsumexp(x, (0, -1), keepdim=True), drawn(3, 4, 5))
    for dim in (0, 1):
        yield of(
            "logcumsumexp", f"axis {dim}", partial(torch.logcumsumexp, dim=dim), drawn(4, 5), drawn(4, 5, scale=100)
        )


def _rows() -> Tensor:
    """Return rows of 8: zeros, constants, a quiet, a loud, one far from 0, and a drawn one."""
    far = 100 + drawn(8, seed=3)
    return torch.stack(
        [
            torch.zeros(8),
            torch.full((8,), 3.0),
            drawn(8, scale=1e-3),
            drawn(8, seed=1, scale=1e3),
            far,
            drawn(8, seed=2),
        ]
    )


def _norms() -> Iterator[Case]:
    rows = _rows()
    for eps in (1e-6, 1e-3):
        yield of("nn.functional.rms_norm", f"eps {eps}", lambda x, e=eps: F.rms_norm(x, (8,), eps=e), rows)
        yield of("nn.functional.layer_norm", f"eps {eps}", lambda x, e=eps: F.layer_norm(x, (8,), eps=e), rows)
    yield of("nn.functional.rms_norm", "default eps, weight", nn.RMSNorm(8), rows)
    yield of("nn.functional.rms_norm", "two axes", lambda x: F.rms_norm(x, (3, 8), eps=1e-5), rows.reshape(2, 3, 8))
    yield of("nn.functional.rms_norm", "computed weight", lambda x, w: F.rms_norm(x, (8,), w, 1e-5), (rows, drawn(8)))
    yield of("nn.functional.layer_norm", "two axes", lambda x: F.layer_norm(x, (3, 8)), rows.reshape(2, 3, 8))
    yield of("nn.functional.layer_norm", "three axes with weights", nn.LayerNorm((2, 3, 8)), rows.reshape(1, 2, 3, 8))
    yield of("nn.functional.layer_norm", "weights", _shaken(nn.LayerNorm(8)), rows)
    yield of("nn.functional.layer_norm", "weight without bias", _shaken(nn.LayerNorm(8, bias=False)), rows)
    yield of(
        "nn.functional.layer_norm",
        "computed weights",
        lambda x, w, b: F.layer_norm(x, (8,), w, b),
        (rows, drawn(8), drawn(8)),
    )
    planes = torch.cat([rows, drawn(6, 8, seed=5)]).reshape(2, 6, 8)
    for groups in (1, 2, 3, 6):
        yield of(
            "nn.functional.group_norm", f"{groups} groups", lambda x, g=groups: F.group_norm(x, g, eps=1e-3), planes
        )
    yield of("nn.functional.group_norm", "with weights", _shaken(nn.GroupNorm(3, 6)), planes.reshape(2, 6, 2, 4))
    yield of("nn.functional.instance_norm", "default", F.instance_norm, planes)
    yield of(
        "nn.functional.instance_norm",
        "with weights",
        _shaken(nn.InstanceNorm2d(6, affine=True)),
        planes.reshape(2, 6, 2, 4),
    )
    yield of(
        "nn.functional.instance_norm",
        "running statistics",
        _shaken(nn.InstanceNorm1d(6, track_running_stats=True)),
        planes,
    )
    yield of("nn.functional.batch_norm", "no affine", _shaken(nn.BatchNorm1d(6, affine=False)), planes)
    yield of("nn.functional.batch_norm", "eps", _shaken(nn.BatchNorm2d(6, eps=0.1)), planes.reshape(2, 6, 2, 4))
    yield of("nn.functional.batch_norm", "of a matrix", _shaken(nn.BatchNorm1d(8)), rows)
    yield of("nn.functional.batch_norm", "of volumes", _shaken(nn.BatchNorm3d(6)), planes.reshape(2, 6, 2, 2, 2))
    yield of("nn.functional.local_response_norm", "default", lambda x: F.local_response_norm(x, 3), planes)


def _distances() -> Iterator[Case]:
    rows = _rows()
    yield of("nn.functional.normalize", "default", F.normalize, rows)
    yield of("nn.functional.normalize", "last axis", lambda x: F.normalize(x, dim=-1, eps=1e-2), rows)
    yield of("nn.functional.normalize", "p = 1", lambda x: F.normalize(x, p=1.0, dim=0), rows)
    yield of("nn.functional.cosine_similarity", "default", F.cosine_similarity, (rows, rows.roll(1, 0)))
    yield of(
        "nn.functional.cosine_similarity",
        "last axis, eps",
        lambda x, y: F.cosine_similarity(x, y, dim=-1, eps=1e-2),
        (rows, drawn(8)),
    )
    yield of("nn.functional.pairwise_distance", "default", F.pairwise_distance, (rows, drawn(6, 8)))
    for p in (0.0, 1.0, 2.0, 3.0, float("inf"), float("-inf")):
        yield of("linalg.vector_norm", f"order {p}", lambda x, p=p: torch.linalg.vector_norm(x, p, dim=-1), rows)
    yield of("linalg.vector_norm", "all axes", torch.linalg.vector_norm, rows)
    yield of("norm", "kept axis", lambda x: x.norm(dim=1, keepdim=True), rows)
    yield of("linalg.matrix_norm", "default", torch.linalg.matrix_norm, drawn(2, 3, 4))
    for p in (1.0, 2.0, float("inf")):
        yield of("cdist", f"p = {p}", lambda x, y, p=p: torch.cdist(x, y, p), (drawn(2, 3, 5), drawn(2, 4, 5, seed=1)))
        yield of("nn.functional.pdist", f"p = {p}", lambda x, p=p: F.pdist(x, p), drawn(5, 3))
    yield of("nn.functional.pdist", "p = 0", lambda x: F.pdist(x, 0.0), row(1, 2, 1, 3).reshape(4, 1))
    yield of("dist", "p = 0", lambda x, y: torch.dist(x, y, 0), (row(1, 2, 3), row(1, 2, 4)))
    yield of("cdist", "to itself", lambda x: torch.cdist(x, x), drawn(3, 5), floor=1e7)
    given = (drawn(3, 4), drawn(3, 4, seed=1), drawn(3, 4, seed=2).abs())
    loss = "nn.functional.gaussian_nll_loss"
    yield of(loss, "each, in full", lambda x, t, v: F.gaussian_nll_loss(x, t, v, full=True, reduction="none"), given)
    yield of(loss, "a variance of each row", lambda x, t, v: F.gaussian_nll_loss(x, t, v[:, 0]), given)


def _shaken(layer: nn.Module) -> nn.Module:
    """Return a layer with weights and statistics that are none of the defaults."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for tensor in (*layer.parameters(), *layer.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return layer.eval()


def _reductions() -> Iterator[Case]:
    x = drawn(3, 4, 5)
    for name in ("sum", "mean", "amax", "amin", "std", "var", "prod", "logsumexp"):
        function = getattr(torch, name)
        for dim in (0, -1, (0, 2)):
            if name == "prod" and isinstance(dim, tuple):
                continue
            for keepdim in (False, True):
                yield of(
                    name,
                    f"axis {dim}, keepdim {keepdim}",
                    lambda x, f=function, d=dim, k=keepdim: f(x, dim=d, keepdim=k),
                    x,
                )
    for name in (
        "sum",
        "mean",
        "std",
        "var",
        "prod",
        "max",
        "min",
        "any",
        "all",
        "argmax",
        "argmin",
        "median",
        "nansum",
        "count_nonzero",
    ):
        yield of(name, "all axes", getattr(torch, name), x)
    rows = _rows()
    yield of("std", "of constant and far rows", lambda x: x.std(-1), rows, floor=1.0)
    for correction in (0, 1, 2):
        yield of("var", f"correction {correction}", lambda x, c=correction: x.var(-1, correction=c), rows, floor=1.0)
        yield of("std", f"correction {correction}, all axes", lambda x, c=correction: torch.std(x, correction=c), x)
    yield of("var_mean", "default", lambda x: torch.var_mean(x, -1), rows, floor=1.0)
    yield of("var", "unbiased as a flag", lambda x: x.var(1, unbiased=False), x)


def _extremes() -> Iterator[Case]:
    x = drawn(3, 4, 5)
    ties = torch.tensor([[1.0, 3, 3, 2, 3], [0, -0.0, 0, -1, 0], [2, 2, 2, 2, 2]])
    for name in ("argmax", "argmin"):
        function = getattr(torch, name)
        yield of(name, "ties", lambda x, f=function: f(x, -1), ties)
        yield of(name, "kept axis", lambda x, f=function: f(x, 0, keepdim=True), ties)
        yield of(name, "of integers", lambda x, f=function: f(x, 1), torch.tensor([[3, 1, 3], [0, -2, -2]]))
    for name in ("max", "min"):
        function = getattr(torch, name)
        yield of(name, "values and places, ties", lambda x, f=function: tuple(f(x, 1)), ties)
        yield of(name, "last axis, kept", lambda x, f=function: f(x, -1, keepdim=True).values, x)
    often = torch.tensor([[1.0, 3, 3, 2, 2], [0, -1, -1, 0, -1], [torch.nan, torch.nan, 5, 4, 7], [torch.nan] * 5])
    yield of("mode", "ties", lambda x: tuple(torch.mode(x, 1)), often[:2])
    yield of("mode", "first axis, kept", lambda x: torch.mode(x, 0, keepdim=True).values, ties)
    yield of("nanmedian", "an axis", lambda x: torch.nanmedian(x, 1).values, often)
    yield of("nanmedian", "all", torch.nanmedian, often)
    yield of("median", "of one number", lambda x: tuple(torch.median(x, 0, keepdim=True)), torch.tensor(3.0))
    yield of("histc", "edges", lambda x: torch.histc(x, 4, -1, 1), row(-1.5, -1, -0.5, -0.1, 0, 0.5, 1, 1.1, torch.nan))
    yield of("histc", "those of the data", lambda x: torch.histc(x, 8), row(0, 1, 2, 3, 4, 5, 6, 8))
    yield of("histc", "one number", lambda x: torch.histc(x, 4), row(3, 3, 3))
    yield of("aminmax", "an axis", lambda x: tuple(torch.aminmax(x, dim=1)), x)


def _running() -> Iterator[Case]:
    x = drawn(3, 4, 5)
    for name in ("cumsum", "cumprod"):
        function = getattr(torch, name)
        for dim in (0, 1, -1):
            yield of(name, f"axis {dim}", lambda x, f=function, d=dim: f(x, d), x)
    yield of("cumsum", "of integers", lambda x: x.cumsum(1), torch.arange(6).reshape(2, 3))
    yield of("cumsum", "of booleans", lambda x: x.cumsum(0), torch.tensor([True, False, True]))
    for name in ("cummax", "cummin"):
        function = getattr(torch, name)
        yield of(name, "values", lambda x, f=function: f(x, 1).values, x)
    for name in ("any", "all"):
        function = getattr(torch, name)
        yield of(
            name,
            "an axis of booleans",
            lambda x, f=function: f(x, -1),
            torch.tensor([[True, False], [True, True], [False, False]]),
        )
        yield of(
            name,
            "kept axis of numbers",
            lambda x, f=function: f(x, 0, keepdim=True),
            row(0, 1, 2).reshape(1, 3),
        )
    yield of("sum", "of booleans", lambda x: x.sum(-1), torch.tensor([[True, False], [True, True]]))
    yield of("sum", "of integers", lambda x: x.sum(0), torch.arange(6).reshape(2, 3))
    yield of("sum", "no axes", lambda x: x.sum(()), x)
    yield of("mean", "of a constant, huge", lambda x: x.mean(-1), torch.full((2, 8), 1e30))
    yield of("diff", "last axis", torch.diff, x)
    yield of("trapezoid", "default", torch.trapezoid, x)


_ARRANGED: dict[str, dict[str, Callable[..., Any]]] = {
    "flip": {"first and last": lambda x: x.flip(0, -1), "middle": lambda x: x.flip(1)},
    "roll": {
        "flat": lambda x: x.roll(3),
        "negative": lambda x: x.roll(-1, -1),
        "two axes": lambda x: x.roll((1, -2), (0, 2)),
    },
    "rot90": {f"k = {k}": lambda x, k=k: torch.rot90(x, k, (1, 2)) for k in (-1, 1, 2, 3)},
    "tril": {f"diagonal {k}": lambda x, k=k: x.tril(k) for k in (-1, 0, 2)},
    "triu": {f"diagonal {k}": lambda x, k=k: x.triu(k) for k in (-1, 0, 2)},
    "diagonal": {"offset": lambda x: x.diagonal(1, -2, -1), "default": torch.diagonal},
    "diag_embed": {"default": torch.diag_embed, "offset": lambda x: torch.diag_embed(x, -1, 0, 2)},
    "repeat": {"more axes": lambda x: x.repeat(2, 1, 3, 1), "once": lambda x: x.repeat(1, 1, 1)},
    "repeat_interleave": {"an axis": lambda x: x.repeat_interleave(2, 1), "flat": lambda x: x.repeat_interleave(3)},
    "tile": {"fewer axes": lambda x: x.tile(2), "more axes": lambda x: x.tile(2, 1, 1, 2)},
    "expand": {"minus one": lambda x: x[:, :1].expand(-1, 5, -1), "more axes": lambda x: x.expand(2, 2, 3, 4)},
    "permute": {"negative": lambda x: x.permute(-1, 0, 1)},
    "transpose": {"negative": lambda x: x.transpose(-1, 0)},
    "movedim": {"two": lambda x: x.movedim((0, 1), (2, 0))},
    "reshape": {
        "to a vector": lambda x: x.reshape(-1),
        "more axes": lambda x: x.reshape(2, 1, 3, 2, 2),
        "to no axes": lambda x: x[:1, :1, :1].reshape([]),
    },
    "flatten": {"from 1": lambda x: x.flatten(1), "all": torch.flatten},
    "unflatten": {"negative": lambda x: x.unflatten(-1, (2, -1))},
    "squeeze": {
        "all": lambda x: x[:1, :, :1].squeeze(),
        "one that is larger": lambda x: x.squeeze(0),
        "several": lambda x: x[:1, :, :1].squeeze((0, 2)),
    },
    "unsqueeze": {"negative": lambda x: x.unsqueeze(-2)},
    "split": {"uneven": lambda x: x.split(3, -1), "sizes": lambda x: x.split([1, 2], 1)},
    "chunk": {"uneven": lambda x: x.chunk(3, -1)},
    "tensor_split": {"uneven": lambda x: x.tensor_split(3, -1), "places": lambda x: x.tensor_split((1, 3), -1)},
    "unbind": {"last": lambda x: x.unbind(-1)},
    "narrow": {"negative start": lambda x: x.narrow(-1, -2, 2)},
    "select": {"negative": lambda x: x.select(-1, -1)},
    "slice": {
        "negative": lambda x: x[:, -2:, :-1],
        "steps": lambda x: x[..., ::2],
        "beyond": lambda x: x[:, 1:100],
    },
    "unfold": {"overlapping": lambda x: x.unfold(-1, 2, 1), "gaps": lambda x: x.unfold(1, 1, 2)},
    "stack": {"last": lambda x: torch.stack([x, 2 * x], -1)},
    "cat": {
        "negative": lambda x: torch.cat([x, x + 1], -2),
        "integer and float": lambda x: torch.cat([x, torch.ones(2, 3, 1, dtype=torch.int64)], -1),
    },
    "select_scatter": {"negative": lambda x: x.select_scatter(torch.zeros(2, 3), -1, -1)},
    "slice_scatter": {"steps": lambda x: x.slice_scatter(torch.zeros(2, 3, 2), 2, 0, 4, 2)},
    "nn.functional.pixel_shuffle": {"2": lambda x: F.pixel_shuffle(x.reshape(1, 12, 1, 2), 2)},
    "nn.functional.pixel_unshuffle": {"2": lambda x: F.pixel_unshuffle(x.reshape(1, 1, 6, 4), 2)},
    "nn.functional.channel_shuffle": {"2": lambda x: F.channel_shuffle(x.reshape(1, 6, 2, 2), 3)},
    "__getitem__": {
        "mixed": lambda x: x[..., None, 1, :2],
        "reversed by a step": lambda x: x[:, torch.arange(2, -1, -1)],
    },
}
"""How tensors are arranged, by operator and case."""


def _shapes() -> Iterator[Case]:
    x = drawn(2, 3, 4)
    for name, functions in _ARRANGED.items():
        for label, function in functions.items():
            yield of(name, label, function, x)


def _ranks_and_types() -> Iterator[Case]:
    x = drawn(2, 3, 4)
    deep = drawn(2, 1, 3, 2, 2, 1, 2)
    yield of("add", "rank 7", lambda x: x + x.mean((1, -1), keepdim=True), deep)
    yield of("permute", "rank 7", lambda x: x.permute(6, 0, 4, 2, 5, 1, 3) * 2.0, deep)
    yield of(
        "reshape", "through rank 6", lambda x: x.reshape(2, 1, 3, 2, 2, 1).permute(0, 3, 1, 4, 2, 5).reshape(4, 6), x
    )
    yield of("sum", "rank 6", lambda x: x.reshape(2, 3, 2, 2, 1, 2).sum((1, 3)), drawn(2, 3, 2, 4))
    integers = torch.arange(6).reshape(2, 3)
    for name, function in {
        "flip": lambda x: x.flip(-1),
        "cat": lambda x: torch.cat([x, x]),
        "transpose": torch.t,
    }.items():
        yield of(name, "of integers", function, integers)
    bits = torch.tensor([[True, False, True], [False, False, True]])
    for name, function in {
        "flip": lambda x: x.flip(-1),
        "cat": lambda x: torch.cat([x, x]),
        "reshape": lambda x: x.reshape(3, 2),
    }.items():
        yield of(name, "of booleans", function, bits)
    bytes_ = torch.tensor([[0, 128, 255], [1, 2, 3]], dtype=torch.uint8)
    yield of("float", "of bytes", lambda x: x.float() / 255, bytes_)
    yield of("float", "of booleans", lambda x: x.float(), bits)
    yield of("int", "truncates", lambda x: x.int(), row(-2.7, -0.5, 0.5, 2.7))
    yield of("bool", "of numbers", lambda x: x.bool(), row(0, -0.0, 1e-30, 2))
    yield of("flip", "an axis without elements", lambda x: x.flip(0), torch.zeros(0, 3))
    yield of("cat", "with nothing", lambda x: torch.cat([x, x.new_zeros(2, 0)], 1), drawn(2, 3))
    yield of("sum", "over nothing", lambda x: x[:, :0].sum(1), drawn(2, 3))


def _indices() -> Iterator[Case]:
    x = drawn(4, 5)
    picks = torch.tensor([0, 3, 2])
    back = torch.tensor([-1, 0, -3])
    yield of("index_select", "an axis", lambda x, i: x.index_select(1, i), (x, picks))
    yield of("__getitem__", "rows by a tensor", lambda x, i: x[i], (x, picks))
    yield of("__getitem__", "rows by negative indices", lambda x, i: x[i], (x, back))
    yield of("__getitem__", "columns by negative indices", lambda x, i: x[:, i], (x, back))
    yield of("__getitem__", "pairs of indices", lambda x, i, j: x[i, j], (x, picks, back))
    yield of("__getitem__", "a matrix of indices", lambda x, i: x[i.reshape(3, 1), i], (x, picks))
    yield of("__getitem__", "separated indices", lambda x, i, j: x[i, :, j], (drawn(4, 2, 5), picks, back))
    yield of("__getitem__", "by a computed index", lambda x: x[x[:, 0].argmax()], x)
    yield of("gather", "last axis", lambda x, i: x.gather(-1, i), (x, torch.tensor([[0, 4], [1, 1], [2, 0], [3, 3]])))
    yield of("take_along_dim", "by sorting", lambda x: x.take_along_dim(x.argsort(-1), -1), x)


def _writing() -> Iterator[Case]:
    x = drawn(4, 5)
    picks = torch.tensor([0, 3, 2])
    back = torch.tensor([-1, 0, -3])
    yield of("index_put", "rows", lambda x, i, v: x.index_put((i,), v), (x, picks, drawn(3, 5, seed=1)))
    yield of("index_put", "negative indices", lambda x, i, v: x.index_put((i,), v), (x, back, drawn(3, 5, seed=1)))
    yield of(
        "index_put",
        "added up",
        lambda x, i, v: x.index_put((i,), v, accumulate=True),
        (x, torch.tensor([1, 1, -1]), drawn(3, 5, seed=1)),
    )
    yield of("index_put", "pairs", lambda x, i, j: x.index_put((i, j), torch.tensor(9.0)), (x, picks, back))
    yield of(
        "index_put", "a second axis", lambda x, i: torch.ops.aten.index_put(x, (None, i), torch.tensor(9.0)), (x, back)
    )
    yield of("index_put", "by a mask", lambda x: x.index_put((x > 0,), torch.tensor(0.0)), x)
    yield of(
        "index_add",
        "with alpha",
        lambda x, i, v: x.index_add(0, i, v, alpha=2),
        (x, torch.tensor([1, 1, 3]), drawn(3, 5)),
    )
    yield of("index_copy", "rows", lambda x, i, v: x.index_copy(0, i, v), (x, picks, drawn(3, 5)))
    yield of("index_fill", "columns", lambda x, i: x.index_fill(1, i, 2.0), (x, picks))
    places = torch.tensor([[0, 1, 2, 0, 0], [2, 0, 0, 1, 2]])
    yield of(
        "scatter",
        "a source",
        lambda x, i, v: x.scatter(0, i, v),
        (x, torch.tensor([[0, 1, 2, 0, 3], [2, 0, 1, 1, 2]]), drawn(2, 5, seed=1)),
    )
    yield of("scatter", "a number", lambda x, i: x.scatter(0, i, 3.0), (x, places))
    yield of("scatter_add", "collisions", lambda x, i, v: x.scatter_add(0, i, v), (x, places, drawn(2, 5, seed=1)))
    for mode in ("sum", "prod", "amax", "amin", "mean"):
        for own in (True, False):
            yield of(
                "scatter_reduce",
                f"{mode}, include_self {own}",
                lambda x, i, v, m=mode, s=own: x.scatter_reduce(0, i, v, m, include_self=s),
                (x, places, drawn(2, 5, seed=1)),
            )
    yield from _in_parts()


def _in_parts() -> Iterator[Case]:
    """Yield what an index that has less of the other axes than the tensor sends to it, or to a single number."""
    x, places, sent = drawn(4, 5), torch.tensor([[0, 1], [2, 2], [4, 0]]), drawn(3, 3, seed=1)
    yield of(
        "scatter", "in part", lambda x, i, v: x.scatter(1, i, v), (x, torch.tensor([[0, 1], [2, 3], [4, 0]]), sent)
    )
    yield of("scatter", "a number in part", lambda x, i: x.scatter(1, i, 3.0), (x, places))
    yield of("scatter_add", "in part", lambda x, i, v: x.scatter_add(1, i, v), (x, places, sent))
    whole = (torch.arange(20).reshape(4, 5), places, torch.arange(6).reshape(3, 2))
    yield of("scatter_add", "of integers", lambda x, i, v: x.scatter_add(1, i, v), whole)
    single = (torch.tensor(1.5), torch.tensor(0), torch.tensor(2.0))
    yield of("scatter_add", "to one number", lambda x, i, v: x.scatter_add(0, i, v), single)
    for mode in ("add", "multiply"):
        yield of("scatter", f"reduce {mode}", lambda x, i, v, m=mode: x.scatter(1, i, v, reduce=m), (x, places, sent))
        yield of(
            "scatter", f"a number, reduce {mode}", lambda x, i, m=mode: x.scatter(1, i, 0.3, reduce=m), (x, places)
        )
    for mode in ("prod", "amax", "amin", "mean"):
        yield of(
            f"index_reduce.{mode}",
            "collisions",
            lambda x, i, v, m=mode: x.index_reduce(1, i, v, m, include_self=False),
            (x, torch.tensor([1, 1, 4]), drawn(4, 3, seed=1)),
        )


def _sorting() -> Iterator[Case]:
    x = drawn(4, 5)
    for largest in (True, False):
        yield of("topk", f"largest {largest}", lambda x, k=largest: tuple(x.topk(3, largest=k)), x)
    yield of("topk", "first axis", lambda x: x.topk(2, 0).values, x)
    for descending in (False, True):
        yield of("sort", f"descending {descending}", lambda x, d=descending: tuple(x.sort(-1, descending=d)), x)
    yield of(
        "sort",
        "stable, ties",
        lambda x: tuple(torch.sort(x, dim=1, stable=True)),
        torch.tensor([[1.0, 0, 1, 0, 2], [3, 3, 1, 1, 3]]),
    )
    yield of("argsort", "first axis", lambda x: x.argsort(0), x)
    table = drawn(6, 4)
    yield of("nn.functional.embedding", "plain", F.embedding, (torch.tensor([[0, 5], [2, 2]]), table))
    yield of(
        "nn.functional.embedding", "padding_idx", nn.Embedding(6, 4, padding_idx=0), torch.tensor([[0, 5], [2, 0]])
    )
    yield of("nn.functional.embedding", "int32", nn.Embedding(6, 4), torch.tensor([0, 5], dtype=torch.int32))
    yield of("nn.functional.embedding_bag", "mean", nn.EmbeddingBag(6, 4), torch.tensor([[0, 5, 1], [2, 0, 2]]))
    yield of("nn.functional.one_hot", "classes", lambda i: F.one_hot(i, 5), torch.tensor([0, 4, 2]))
    yield of(
        "nn.functional.one_hot",
        "as numbers",
        lambda i: F.one_hot(i, 5).float() @ table[:5],
        torch.tensor([[0, 4], [2, 2]]),
    )
    yield of(
        "bucketize",
        "right and left",
        lambda x: (torch.bucketize(x, row(-1, 0, 1)), torch.bucketize(x, row(-1, 0, 1), right=True)),
        row(-2, -1, 0, 0.5, 1, 2),
    )
    yield of("searchsorted", "default", torch.searchsorted, (row(-1, 0, 1, 2), row(-2, -1, 0.5, 3)))
    yield of(
        "masked_scatter",
        "a constant mask",
        lambda x: torch.masked_scatter(x, torch.tensor([True, False, True, False, True]), torch.zeros(20)),
        x,
    )
    yield of("isin", "a constant", lambda x: torch.isin(x, torch.tensor([1, 3])), torch.tensor([0, 1, 2, 3]))


def _products() -> Iterator[Case]:
    a, b = drawn(3, 4), drawn(4, 5, seed=1)
    yield of("matmul", "matrix and vector", torch.matmul, (a, drawn(4)))
    yield of("matmul", "vector and matrix", torch.matmul, (drawn(4), b))
    yield of("matmul", "vectors", torch.matmul, (drawn(4), drawn(4, seed=1)))
    yield of("matmul", "batch and matrix", torch.matmul, (drawn(2, 3, 4), b))
    yield of("matmul", "broadcast batches", torch.matmul, (drawn(2, 1, 3, 4), drawn(5, 4, 2)))
    yield of("matmul", "vector and batch", torch.matmul, (drawn(3), drawn(2, 3, 4)))
    yield of("matmul", "batch and vector", torch.matmul, (drawn(2, 3, 4), drawn(4)))
    yield of("matmul", "integers", torch.matmul, (torch.arange(6).reshape(2, 3), torch.arange(6).reshape(3, 2)))
    yield of("addmm", "alpha and beta", lambda c, a, b: torch.addmm(c, a, b, beta=0.5, alpha=2.0), (drawn(5), a, b))
    yield of(
        "baddbmm",
        "alpha and beta",
        lambda c, a, b: torch.baddbmm(c, a, b, beta=0.5, alpha=2.0),
        (drawn(2, 3, 5), drawn(2, 3, 4), drawn(2, 4, 5)),
    )
    yield of(
        "baddbmm",
        "beta 0 drops infinity",
        lambda c, a, b: torch.baddbmm(c / 0, a, b, beta=0),
        (drawn(2, 3, 5), drawn(2, 3, 4), drawn(2, 4, 5)),
    )
    equations: dict[str, tuple[Tensor, ...]] = {
        "ij,jk->ik": (a, b),
        "bij,bjk->bik": (drawn(2, 3, 4), drawn(2, 4, 5)),
        "bhid,bhjd->bhij": (drawn(2, 2, 3, 4), drawn(2, 2, 5, 4)),
    }
    equations |= {
        "ij->ji": (a,),
        "ij->": (a,),
        "ii->i": (drawn(3, 3),),
        "ii": (drawn(3, 3),),
        "i,j->ij": (drawn(3), drawn(4)),
        "...ij,...jk->...ik": (drawn(2, 3, 4), drawn(2, 4, 5)),
    }
    equations |= {
        "bnd,de->bne": (drawn(2, 3, 4), b),
        "bij,bij->b": (drawn(2, 3, 4), drawn(2, 3, 4, seed=2)),
        "bchw,oc->bohw": (drawn(1, 4, 2, 3), drawn(5, 4)),
        "abc,cd,de->abe": (drawn(2, 3, 4), b, drawn(5, 2)),
    }
    for equation, given in equations.items():
        yield of("einsum", equation, lambda *xs, e=equation: torch.einsum(e, *xs), given)
    yield of("nn.functional.linear", "a vector", _shaken(nn.Linear(4, 3)), drawn(4))
    yield of("nn.functional.linear", "rank 4", _shaken(nn.Linear(4, 3, bias=False)), drawn(2, 2, 3, 4))
    yield of("nn.functional.linear", "computed weights", F.linear, (drawn(2, 4), drawn(3, 4), drawn(3)))
    yield of("nn.functional.bilinear", "default", _shaken(nn.Bilinear(3, 4, 5)), (drawn(2, 3), drawn(2, 4)))


def _attention() -> Iterator[Case]:
    q, k, v = drawn(2, 2, 5, 4), drawn(2, 2, 6, 4, seed=1), drawn(2, 2, 6, 4, seed=2)
    attend = F.scaled_dot_product_attention
    name = "nn.functional.scaled_dot_product_attention"
    yield of(name, "default", attend, (q, k, v))
    yield of(name, "causal", partial(attend, is_causal=True), (q, k, v))
    yield of(name, "scale", partial(attend, scale=0.3), (q, k, v))
    yield of(name, "boolean mask", lambda q, k, v: attend(q, k, v, torch.ones(5, 6).tril(1).bool()), (q, k, v))
    yield of(name, "float mask", lambda q, k, v, m: attend(q, k, v, m), (q, k, v, drawn(5, 6)))
    yield of(name, "grouped queries", partial(attend, enable_gqa=True), (drawn(2, 4, 5, 4), k, v))
    yield of(name, "loud", attend, (q * 100, k, v))
    yield of("nn.functional.multi_head_attention_forward", "module", _Attention(), drawn(2, 5, 8))


def _vectors() -> Iterator[Case]:
    yield of("kron", "matrices", torch.kron, (drawn(2, 2), drawn(2, 3)))
    yield of("cross", "default", torch.linalg.cross, (drawn(4, 3), drawn(4, 3, seed=1)))
    yield of("outer", "vectors", torch.outer, (drawn(3), drawn(4)))
    yield of("tensordot", "two axes", lambda a, b: torch.tensordot(a, b, 2), (drawn(2, 3, 4), drawn(3, 4, 5)))


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x, x, x, need_weights=False)[0]
        return y


class _Recurrent(nn.Module):
    """A recurrent layer with its outputs flat."""

    def __init__(self, kind: type[nn.RNNBase], **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        made: Callable[..., nn.RNNBase] = kind  # the base wants its kind's name first
        self.layer = made(3, 4, **options)

    def forward(self, x: Tensor, *state: Tensor) -> list[Tensor]:
        given = (tuple(state) if len(state) == 2 else state[0]) if state else None
        y, last = self.layer(x, given)
        return [y, *(last if isinstance(last, tuple) else (last,))]


def _recurrent() -> Iterator[Case]:
    for kind in (nn.LSTM, nn.GRU, nn.RNN):
        name = f"nn.{kind.__name__}"
        yield of(name, "default", _Recurrent(kind), drawn(5, 2, 3))
        yield of(name, "batch first", _Recurrent(kind, batch_first=True), drawn(2, 5, 3))
        yield of(
            name,
            "two layers, both directions",
            _Recurrent(kind, num_layers=2, bidirectional=True, batch_first=True),
            drawn(2, 5, 3),
        )
        yield of(name, "no bias", _Recurrent(kind, bias=False, batch_first=True), drawn(2, 5, 3))
        states = (drawn(1, 2, 4), drawn(1, 2, 4, seed=1))[: 2 if kind is nn.LSTM else 1]
        yield of(name, "initial state", _Recurrent(kind, batch_first=True), (drawn(2, 5, 3), *states))
        yield of(name, "no batch", _Recurrent(kind), drawn(5, 3))
    yield of("nn.RNN", "relu", _Recurrent(nn.RNN, nonlinearity="relu"), drawn(5, 2, 3))
    yield of("nn.LSTM", "projection", _Recurrent(nn.LSTM, proj_size=2), drawn(5, 2, 3))
    torch.manual_seed(0)
    yield of("nn.GRUCell", "default", nn.GRUCell(3, 4), (drawn(2, 3), drawn(2, 4)))
    yield of("nn.LSTMCell", "default", nn.LSTMCell(3, 4), drawn(2, 3))


def _convolutions() -> Iterator[Case]:
    torch.manual_seed(0)
    x1, x2, x3 = drawn(2, 4, 9), drawn(2, 4, 7, 6), drawn(1, 4, 4, 5, 3)
    forms: dict[str, dict[str, Any]] = {
        "default": {},
        "stride and padding": {"stride": 2, "padding": 1},
        "dilation": {"dilation": 2, "padding": 2},
        "groups": {"groups": 2},
        "depthwise": {"groups": 4, "padding": 1},
        "padding same": {"padding": "same"},
        "padding same, dilated": {"padding": "same", "dilation": 2},
        "padding valid": {"padding": "valid"},
        "no bias": {"bias": False},
        "circular": {"padding": 1, "padding_mode": "circular"},
        "reflect": {"padding": 1, "padding_mode": "reflect"},
        "replicate": {"padding": 2, "padding_mode": "replicate"},
    }
    for label, options in forms.items():
        yield of("nn.functional.conv1d", label, nn.Conv1d(4, 8, 3, **options), x1)
        yield of("nn.functional.conv2d", label, nn.Conv2d(4, 8, 3, **options), x2)
    yield of("nn.functional.conv2d", "even kernel, same", nn.Conv2d(4, 8, (2, 4), padding="same"), x2)
    yield of(
        "nn.functional.conv2d", "by axis", nn.Conv2d(4, 8, (3, 1), stride=(1, 2), padding=(0, 1), dilation=(2, 1)), x2
    )
    yield of("nn.functional.conv2d", "no batch", nn.Conv2d(4, 8, 3), x2[0])
    yield of("nn.functional.conv2d", "computed weights", lambda x, w: F.conv2d(x, w), (x2, drawn(3, 4, 2, 2)))
    yield of("nn.functional.conv3d", "stride and padding", nn.Conv3d(4, 2, 3, stride=2, padding=1), x3)
    yield of("nn.functional.conv3d", "groups", nn.Conv3d(4, 4, 2, groups=2), x3)
    turned: dict[str, dict[str, Any]] = {
        "default": {},
        "stride": {"stride": 2},
        "stride, padding, output_padding": {"stride": 2, "padding": 1, "output_padding": 1},
        "groups": {"groups": 2, "stride": 2},
        "depthwise": {"groups": 4},
        "dilation": {"dilation": 2},
        "no bias": {"bias": False, "padding": 1},
    }
    for label, options in turned.items():
        out = 4 if "groups" in options else 6
        yield of("nn.functional.conv_transpose1d", label, nn.ConvTranspose1d(4, out, 3, **options), x1)
        yield of("nn.functional.conv_transpose2d", label, nn.ConvTranspose2d(4, out, 3, **options), x2)
    yield of("nn.functional.conv_transpose3d", "stride", nn.ConvTranspose3d(4, 2, 2, stride=2), x3)


def _pooling() -> Iterator[Case]:
    for sizes in ((5, 2, 3), (1, None, 2)):
        label = f"windows of several sizes, to {sizes}"
        pool = partial(F.adaptive_avg_pool3d, output_size=sizes)
        yield of("nn.functional.adaptive_avg_pool3d", label, pool, drawn(2, 3, 8, 4, 7))
        yield of("nn.functional.adaptive_avg_pool3d", f"{label}, without a batch", pool, drawn(3, 8, 4, 7))
    x1, x2, x3 = drawn(2, 3, 9) - 3, drawn(2, 3, 7, 6) - 3, drawn(1, 2, 5, 4, 6) - 3
    for ceil in (False, True):
        for counted in (False, True):
            options = {"ceil_mode": ceil, "count_include_pad": counted}
            label = f"ceil_mode {ceil}, count_include_pad {counted}"
            yield of("nn.functional.avg_pool1d", label, lambda x, o=options: F.avg_pool1d(x, 3, 2, 1, **o), x1)
            yield of("nn.functional.avg_pool2d", label, lambda x, o=options: F.avg_pool2d(x, 3, 2, 1, **o), x2)
            yield of("nn.functional.avg_pool3d", label, lambda x, o=options: F.avg_pool3d(x, 3, 2, 1, **o), x3)
        for dilation in (1, 2):
            dilated = {"ceil_mode": ceil, "dilation": dilation}
            label = f"ceil_mode {ceil}, dilation {dilation}"
            yield of("nn.functional.max_pool1d", label, lambda x, o=dilated: F.max_pool1d(x, 3, 2, 1, **o), x1)
            yield of("nn.functional.max_pool2d", label, lambda x, o=dilated: F.max_pool2d(x, 3, 2, 1, **o), x2)
            yield of("nn.functional.max_pool3d", label, lambda x, o=dilated: F.max_pool3d(x, 2, 2, 1, **o), x3)
    yield of("nn.functional.avg_pool2d", "divisor", lambda x: F.avg_pool2d(x, 2, divisor_override=3), x2)
    yield of("nn.functional.avg_pool2d", "by axis", lambda x: F.avg_pool2d(x, (3, 2), (1, 2), (1, 0)), x2)
    yield of(
        "nn.functional.avg_pool2d", "ceil beyond the edge", lambda x: F.avg_pool2d(x, 2, 2, ceil_mode=True), x2[..., :5]
    )
    yield of("nn.functional.max_pool2d", "by axis, no batch", lambda x: F.max_pool2d(x, (3, 2)), x2[0])
    yield of("nn.functional.max_pool2d", "with places", lambda x: F.max_pool2d(x, 2, return_indices=True), x2)
    for size in (1, 2, 3, 5):
        yield of("nn.functional.adaptive_avg_pool1d", f"to {size}", lambda x, s=size: F.adaptive_avg_pool1d(x, s), x1)
        yield of("nn.functional.adaptive_avg_pool2d", f"to {size}", lambda x, s=size: F.adaptive_avg_pool2d(x, s), x2)
        yield of("nn.functional.adaptive_max_pool2d", f"to {size}", lambda x, s=size: F.adaptive_max_pool2d(x, s), x2)
    yield of("nn.functional.adaptive_avg_pool2d", "one axis kept", lambda x: F.adaptive_avg_pool2d(x, (None, 1)), x2)
    yield of("nn.functional.adaptive_avg_pool3d", "to 2", lambda x: F.adaptive_avg_pool3d(x, 2), x3)
    for p in (1.0, 2.0, 3.0):
        yield of("nn.functional.lp_pool2d", f"p = {p}", lambda x, p=p: F.lp_pool2d(x, p, 2), x2.abs())
    kernels: list[tuple[Any, dict[str, Any]]] = [(2, {}), (3, {"padding": 1}), ((2, 3), {"stride": (2, 1)})]
    for kernel, more in (*kernels, (2, {"dilation": 2})):
        yield of(
            "nn.functional.unfold",
            f"kernel {kernel}, {more}",
            lambda x, k=kernel, o=more: F.unfold(x, k, **o),
            x2,
        )
    yield of("nn.functional.fold", "overlapping", lambda x: F.fold(x, (4, 5), 2), drawn(1, 8, 12))
    yield of(
        "nn.functional.fold", "stride and padding", lambda x: F.fold(x, (4, 4), 2, stride=2, padding=1), drawn(1, 8, 9)
    )
    yield of(
        "nn.functional.max_unpool2d",
        "of a max pool",
        lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), [2, 2]),
        x2[..., :6, :6],
    )


def _pads() -> Iterator[Case]:
    x1, x2, x3 = drawn(2, 3, 5), drawn(2, 3, 4, 5), drawn(1, 2, 3, 4, 5)
    for mode in ("constant", "reflect", "replicate", "circular"):
        name = f"nn.functional.pad.{mode}"
        yield of(name, "one axis", lambda x, m=mode: F.pad(x, (2, 1), m), x1)
        yield of(name, "two axes", lambda x, m=mode: F.pad(x, (1, 2, 3, 0), m), x2)
        yield of(name, "three axes", lambda x, m=mode: F.pad(x, (1, 1, 2, 0, 0, 1), m), x3)
        if mode != "reflect":
            yield of(name, "negative", lambda x, m=mode: F.pad(x, (-1, 2), m), x1)
    yield of("nn.functional.pad.constant", "a value", lambda x: F.pad(x, (1, 0, 2, 1), value=-3.5), x2)
    yield of("nn.functional.pad.constant", "first axis", lambda x: F.pad(x, (0, 0, 0, 0, 1, 1)), x1)
    yield of("nn.functional.pad.constant", "infinity", lambda x: F.pad(x, (1, 1), value=float("-inf")).amax(-1), x1)
    yield of(
        "nn.functional.pad.constant", "integers", lambda x: F.pad(x, (1, 1), value=7), torch.arange(6).reshape(2, 3)
    )
    yield of(
        "nn.functional.pad.constant", "booleans", lambda x: F.pad(x, (1, 1), value=True), torch.tensor([[True, False]])
    )


def _images() -> Iterator[Case]:
    x1, x2, x3 = drawn(1, 2, 5), drawn(1, 2, 5, 4), drawn(1, 1, 3, 4, 2)
    sizes: dict[str, dict[str, Any]] = {
        "up": {"size": (9, 7)},
        "down": {"size": (3, 2)},
        "twice": {"scale_factor": 2.0},
        "1.5 times": {"scale_factor": 1.5},
        "recomputed": {"scale_factor": 1.6, "recompute_scale_factor": True},
    }
    for label, options in sizes.items():
        for mode in ("nearest", "nearest-exact", "bilinear", "bicubic", "area"):
            corners = (None, False, True) if mode in ("bilinear", "bicubic") else (None,)
            for align in corners:
                more = options | {"mode": mode} | ({} if align is None else {"align_corners": align})
                yield image(
                    f"nn.functional.interpolate.{mode}",
                    f"{label}, align_corners {align}",
                    lambda x, o=more: F.interpolate(x, **o),
                    x2,
                )
    yield image("nn.functional.interpolate.linear", "up", lambda x: F.interpolate(x, size=8, mode="linear"), x1)
    yield image(
        "nn.functional.interpolate.linear",
        "aligned",
        lambda x: F.interpolate(x, size=8, mode="linear", align_corners=True),
        x1,
    )
    yield image(
        "nn.functional.interpolate.trilinear", "up", lambda x: F.interpolate(x, size=(4, 6, 3), mode="trilinear"), x3
    )
    yield image("nn.functional.interpolate.nearest", "one axis", lambda x: F.interpolate(x, size=7), x1)
    for mode in ("bilinear", "bicubic"):
        yield image(
            f"nn.functional.interpolate.{mode}",
            "antialias",
            lambda x, m=mode: F.interpolate(x, size=(3, 2), mode=m, antialias=True),
            x2,
        )
        yield image(
            f"nn.functional.interpolate.{mode}",
            "to one",
            lambda x, m=mode: F.interpolate(x, size=(1, 1), mode=m, align_corners=True),
            x2,
        )


def _grids() -> Iterator[Case]:
    x2 = drawn(1, 2, 5, 4)
    grid = torch.cat([drawn(1, 3, 4, 2, scale=0.7), row(-1, -1, 1, 1, 0, 0, -1.4, 1.9).reshape(1, 1, 4, 2)], 1)
    for mode in ("bilinear", "nearest", "bicubic"):
        for padding in ("zeros", "border", "reflection"):
            for align in (False, True):
                label = f"{mode}, {padding}, align_corners {align}"
                yield image(
                    "nn.functional.grid_sample",
                    label,
                    lambda x, g, m=mode, p=padding, a=align: F.grid_sample(x, g, m, p, a),
                    (x2, grid),
                )
    yield image(
        "nn.functional.affine_grid",
        "default",
        lambda t: F.affine_grid(t, [1, 1, 3, 4], align_corners=False),
        drawn(1, 2, 3),
    )


def _transforms() -> Iterator[Case]:
    x, window, mel = drawn(2, 64), torch.hann_window(16), drawn(6, 9).abs()
    forms: dict[str, dict[str, Any]] = {
        "window": {"window": window},
        "not centred": {"window": window, "center": False},
        "hop": {"window": window, "hop_length": 5},
        "normalized": {"window": window, "normalized": True},
        "constant padding": {"window": window, "pad_mode": "constant"},
        "short window": {"window": torch.hann_window(12), "win_length": 12},
        "two-sided": {"window": window, "onesided": False},
    }
    for label, options in forms.items():
        yield transform("stft", label, lambda x, o=options: torch.stft(x, 16, return_complex=True, **o), x)
    yield transform("stft", "power", lambda x: torch.stft(x, 16, window=window, return_complex=True).abs() ** 2, x)
    yield transform(
        "stft",
        "mel",
        lambda x: torch.log(mel @ torch.stft(x, 16, window=window, return_complex=True).abs() ** 2 + 1e-6),
        x,
    )
    yield transform(
        "istft",
        "of an stft",
        lambda x: torch.istft(torch.stft(x, 16, window=window, return_complex=True), 16, window=window),
        x,
    )
    yield transform(
        "istft",
        "a length",
        lambda x: torch.istft(torch.stft(x, 16, window=window, return_complex=True), 16, window=window, length=50),
        x,
    )
    y = drawn(2, 6, 8)
    for name in ("rfft", "fft"):
        function = getattr(torch.fft, name)
        for norm in (None, "ortho", "forward"):
            yield transform(f"fft.{name}", f"norm {norm}", lambda x, f=function, n=norm: f(x, norm=n), y)
    yield transform("fft.rfft", "magnitude", lambda x: torch.fft.rfft(x).abs(), y, torch.zeros(2, 6, 8))
    yield transform("fft.rfft", "longer", lambda x: torch.fft.rfft(x, n=12, dim=1), y)
    yield transform("fft.rfft", "phase", lambda x: torch.fft.rfft(x).angle(), y)
    yield transform("fft.irfft", "odd", lambda x: torch.fft.irfft(torch.fft.rfft(x, n=7), n=7), y)
    yield transform("fft.irfft2", "filter", lambda x: torch.fft.irfft2(torch.fft.rfft2(x) * 0.5, s=(6, 8)), y)
    yield transform("fft.fftshift", "even and odd", lambda x: torch.fft.fftshift(x, (0, 1)), drawn(3, 4))


CLASSES = (
    _elementwise, _pairs, _comparisons, _sums, _choices, _activations, _softmaxes, _norms, _distances, _reductions,
    _extremes, _running, _shapes, _ranks_and_types, _indices, _writing, _sorting, _products, _attention, _vectors,
    _recurrent, _convolutions, _pooling, _pads, _images, _grids, _transforms,
)  # fmt: skip


@cache
def _by_operator() -> dict[str, list[Case]]:
    found: dict[str, list[Case]] = {}
    state = torch.random.get_rng_state()
    for cases in CLASSES:
        torch.manual_seed(0)
        for case in cases():
            found.setdefault(case.operator, []).append(case)
    torch.random.set_rng_state(state)
    return found


def all_operators() -> Iterator[tuple[str, Maker]]:
    """Return operators by name, each with what makes its cases."""
    for name, cases in _by_operator().items():
        yield name, lambda cases=cases: list(cases)  # type: ignore[misc]  # bound at once
