"""Special functions, and forms of elementary ones that keep their digits.

log1p x     log(u) x / (u - 1) with u = 1 + x as rounded, x where u is 1                 (Kahan; HP-15C handbook)
expm1 x     (u - 1) x / log(u) with u = exp(x) as rounded, x where u is 1                (the same)
erfc x      t exp(-x x + P(t)) with t = 1 / (1 + |x| / 2), relative error 1.2e-7         (Numerical Recipes, 6.2)
lgamma x    Lanczos' series with g = 5 for |x| + 1, one step down, or reflected          (Numerical Recipes, 6.1);
            of |x| < 2, where its terms cancel, a polynomial with the zeros of log gamma taken out
digamma x   recurrence up to 6, then the asymptotic series, reflected below 0            (Abramowitz & Stegun, 6.3)
erfinv x    polynomials in log(1 - x x)                                                  (Giles 2010, table 5)
i0 x        polynomials in (x / 3.75)^2 and 3.75 / |x|                                   (Abramowitz & Stegun, 9.8)
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from edgesmith.exporters.decompositions import decomposes

aten = torch.ops.aten


def _polynomial(x: Tensor, coefficients: Sequence[float]) -> Tensor:
    """Return a polynomial by Horner's rule, the constant term first."""
    value = torch.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        value = value * x + coefficient
    return value


def _real(x: Tensor) -> Tensor:
    return x if x.is_floating_point() else x.to(torch.get_default_dtype())


@decomposes(
    aten.log1p.default,
    aten.special_log1p.default,
    targets=("coreml", "onnx"),
    why="the converters take log(1 + x), without the digits of small x",
)
def log1p(x: Tensor) -> Tensor:
    """Return log(1 + x), exact for small x; NaN below -1."""
    x = _real(x)
    u = x + 1.0
    same = u == 1
    quotient = torch.log(u) * (x / torch.where(same, torch.ones_like(u), u - 1.0))
    return torch.where(same, x, torch.where(u == math.inf, u, quotient))


@decomposes(
    aten.log1p.default,
    aten.special_log1p.default,
    targets=("coreai", "tvm"),
    why="both take log(1 + x), without the digits of small x, and Core AI x for (1 + x) - 1, which log1p above needs",
)
def log1p_by_series(x: Tensor) -> Tensor:
    """Return log(1 + x), below 1/2 as 2 artanh(s) with s = x / (2 + x): 2 s (1 + s^2/3 + s^4/5 + ...)."""
    x = _real(x)
    near = x.abs() < 0.5
    s = torch.where(near, x, torch.zeros_like(x))
    s = s / (s + 2.0)
    square, series = s * s, torch.full_like(s, 1 / 17)
    for k in (15, 13, 11, 9, 7, 5, 3, 1):
        series = series * square + 1 / k
    return torch.where(near, 2.0 * s * series, torch.log(x + 1.0))


@decomposes(
    aten.expm1.default,
    aten.special_expm1.default,
    targets=("coreml", "coreai", "onnx", "tvm"),
    why="the converters take exp(x) - 1, without the digits of small x",
)
def expm1(x: Tensor) -> Tensor:
    """Return exp(x) - 1, exact for small x."""
    x = _real(x)
    u = torch.exp(x)
    near = (x.abs() < 0.5) & (u != 1)
    logarithm = torch.where(near, torch.log(torch.where(near, u, torch.full_like(u, 2.0))), torch.ones_like(u))
    return torch.where(u == 1, x, torch.where(near, (u - 1.0) * (x / logarithm), u - 1.0))


_TVMS = "TVM knows the name, and no code for it"


@decomposes(aten.sinh.default, targets=("tvm",), why=_TVMS)
def sinh(x: Tensor) -> Tensor:
    """Return (e^x - e^-x) / 2, by e^x - 1 = m as (m + m / (m + 1)) / 2; of large x as e^(|x| / 2) squared, halved."""
    size = _real(x).abs()
    m = expm1(size.clamp(max=40.0))
    half = torch.exp(size * 0.5)
    value = torch.where(size < 20.0, (m + m / (m + 1.0)) * 0.5, half * 0.5 * half)  # which NaN is of
    return torch.where(x < 0, -value, value)


@decomposes(aten.cosh.default, targets=("tvm",), why=_TVMS)
def cosh(x: Tensor) -> Tensor:
    """Return (e^x + e^-x) / 2; e^x as the square of e^(x / 2), which does not overflow before the result does."""
    half = torch.exp(_real(x).abs() * 0.5)
    return half * 0.5 * half + 0.5 / (half * half)


@decomposes(aten.exp2.default, aten.special_exp2.default, targets=("tvm",), why="TVM's importer does not take it")
def exp2(x: Tensor) -> Tensor:
    """Return 2^x = 2^n e^(f log 2) with n the nearest whole number, so that the product loses no digits."""
    x = _real(x)
    n = torch.round(x)
    rest = torch.where(x.abs() == math.inf, torch.zeros_like(x), x - n)
    return torch.pow(torch.full_like(x, 2.0), n) * torch.exp(rest * math.log(2))


@decomposes(aten.ldexp.Tensor, targets=("tvm",), why="TVM's importer does not take it")
def ldexp(x: Tensor, exponent: Tensor) -> Tensor:
    """Return x 2^e."""
    wanted = torch.promote_types(x.dtype, torch.result_type(exponent, 1.0))
    return x.to(wanted) * torch.pow(torch.full_like(exponent, 2.0, dtype=wanted), exponent.to(wanted))


@decomposes(aten.atanh.default, targets=("tvm",), why="TVM takes log((1 + x) / (1 - x)), without the digits of small x")
def atanh(x: Tensor) -> Tensor:
    """Return log1p(2 x / (1 - x)) / 2, of |x| with its sign; infinite at 1, NaN beyond."""
    size = _real(x).abs()
    below = size < 1
    inside = torch.where(below, size, torch.zeros_like(size))
    value = 0.5 * log1p_by_series(2.0 * inside / (1.0 - inside))
    ends = torch.where(size == 1, torch.full_like(size, math.inf), torch.full_like(size, math.nan))
    value = torch.where(below, value, ends)
    return torch.where(x < 0, -value, value)


@decomposes(aten.asinh.default, targets=("coreml",), why="coremltools 9.0 has no translation that works")
def asinh(x: Tensor) -> Tensor:
    """Return log(|x| + sqrt(x x + 1)) with the sign of x; of large x by log(2 |x|), whose square overflows."""
    x = _real(x)
    size = x.abs()
    large = size > _SQUARABLE
    small = torch.where(large, torch.ones_like(size), size)
    square = small * small
    y = log1p(small + square / (1.0 + torch.sqrt(square + 1.0)))
    return torch.sign(x) * torch.where(large, torch.log(size) + math.log(2), y)


@decomposes(aten.acosh.default, targets=("coreml",), why="coremltools 9.0 has no translation that works")
def acosh(x: Tensor) -> Tensor:
    """Return log(x + sqrt(x x - 1)); of large x log(2 x), whose square overflows. NaN below 1."""
    x = _real(x)
    large = x > _SQUARABLE
    above = torch.where(large, torch.ones_like(x), x) - 1.0
    y = log1p(above + torch.sqrt(above * (above + 2.0)))
    return torch.where(large, torch.log(x) + math.log(2), y)


_SQUARABLE = 200.0
"""The largest number whose square fp16 holds, with room; beyond it x x + 1 is x x up to 1.2e-5 of a logarithm of 6."""


@decomposes(
    aten.logit.default,
    targets=("coreml", "coreai", "onnx"),
    why="coremltools 9.0 has no translation; that of Core AI rounds eps to 16 bits, torch's exporter 1 - eps",
)
def logit(x: Tensor, eps: float | None = None) -> Tensor:
    """Return log(x / (1 - x)), of x in [eps, 1 - eps] where there is one.

    The result is clamped, not x: half precision has no 1 - 1e-6.
    """
    x = _real(x)
    if eps is None or eps < 0:
        return torch.log(x / (1.0 - x))
    high = float(np.float32(1) - np.float32(eps))  # fp32's, whatever x is
    if eps > high:  # PyTorch looks at the lower end first
        return torch.where(x.isnan(), x, torch.where(x < eps, _log_odds(eps), _log_odds(high)))
    x = x.clamp(0.0, 1.0)
    return torch.log(x / (1.0 - x)).clamp(_log_odds(eps), _log_odds(high))


def _log_odds(x: float) -> float:
    """Return log(x / (1 - x)) of a number in [0, 1]."""
    if x in (0.0, 1.0):
        return math.inf if x else -math.inf
    return math.log(x) - math.log1p(-x)


@decomposes(aten.sinc.default, targets=("coreml",), why="coremltools 9.0 has no translation")
def sinc(x: Tensor) -> Tensor:
    """Return sin(pi x) / (pi x), and 1 at 0."""
    angle = _real(x) * math.pi
    zero = angle == 0
    one = torch.ones_like(angle)
    return torch.where(zero, one, torch.sin(angle) / torch.where(zero, one, angle))


@decomposes(aten.xlogy.Tensor, targets=("coreml", "coreai"), why="neither converter has a translation that works")
def xlogy(x: Tensor, y: Tensor) -> Tensor:
    """Return x log(y), and 0 where x is 0."""
    zero = x == 0
    return torch.where(zero, torch.zeros_like(y), x * torch.log(torch.where(zero, torch.ones_like(y), y)))


@decomposes(
    aten.logaddexp.default,
    targets=("coreml", "coreai", "onnx"),
    why="no converter has a translation that works: the sum of two exponentials overflows",
)
def logaddexp(x: Tensor, y: Tensor) -> Tensor:
    """Return log(exp(x) + exp(y)) by the larger one."""
    large, small = torch.maximum(x, y), torch.minimum(x, y)
    gap = torch.where(large == small, torch.zeros_like(large), small - large)
    return large + torch.log1p(torch.exp(gap))


@decomposes(aten.logaddexp2.default, targets=("onnx",), why="torch's exporter adds two powers, which overflow")
def logaddexp2(x: Tensor, y: Tensor) -> Tensor:
    """Return log2(2^x + 2^y) by the larger one."""
    large, small = torch.maximum(x, y), torch.minimum(x, y)
    gap = torch.where(large == small, torch.zeros_like(large), small - large)
    return large + torch.log1p(torch.exp2(gap)) * (1 / math.log(2))


_ERFC = (
    *(-1.26551223, 1.00002368, 0.37409196, 0.09678418, -0.18628806, 0.27886807, -1.13520398, 1.48851587, -0.82215223),
    *(0.17087277,),
)


@decomposes(
    aten.erfc.default,
    aten.special_erfc.default,
    why="no converter has a translation that works",
)
def erfc(x: Tensor) -> Tensor:
    """Return 1 - erf(x), with its digits where it is small."""
    x = _real(x)
    size = x.abs()
    t = 1.0 / (size * 0.5 + 1.0)
    y = t * torch.exp(_polynomial(t, _ERFC) - size * size)
    return torch.where(size < 0.5, 1.0 - torch.erf(x), torch.where(x < 0, 2.0 - y, y))


@decomposes(aten.special_erfcx.default, targets=("onnx",), why="torch's exporter multiplies exp(x x) by an erfc of 0")
def erfcx(x: Tensor) -> Tensor:
    """Return exp(x x) erfc(x), which falls as 1 / x."""
    x = _real(x)
    size = x.abs()
    t = 1.0 / (size * 0.5 + 1.0)
    y = t * torch.exp(_polynomial(t, _ERFC))
    return torch.where(x < 0, 2.0 * torch.exp(size * size) - y, y)


@decomposes(aten.special_log_ndtr.default, targets=("onnx",), why="torch's exporter takes the logarithm of 1 - erf(x)")
def log_ndtr(x: Tensor) -> Tensor:
    """Return the logarithm of the normal distribution, log(erfc(-x / sqrt 2) / 2), by the logarithm of erfc's form."""
    z = _real(x) * math.sqrt(0.5)
    size = torch.where(z < 0, -z, torch.zeros_like(z))
    t = 1.0 / (size * 0.5 + 1.0)
    low = torch.log(t) + _polynomial(t, _ERFC) - size * size - math.log(2)
    return torch.where(z < -0.7, low, torch.log1p(erfc(torch.where(z < -0.7, torch.zeros_like(z), z)) * -0.5))


_LANCZOS = (
    *(76.18009172947146, -86.50532032941677, 24.01409824083091, -1.231739572450155, 0.1208650973866179e-2),
    *(-0.5395239384953e-5,),
)


_NEAR_TWO = (
    *(0.422784328, -0.100317307, 0.0329649486, -0.0123841157, 0.00499948021, -0.00210893946, 0.000910506758),
    *(-0.000401990488, 0.000195798479, -9.17206999e-05, 2.02503506e-05, -7.29338217e-06, 1.93083961e-05),
    -9.67404685e-06,
)
"""log gamma(z + 1) / (z (z - 1)) in powers of z - 1, for z from 0 to 2: Chebyshev's, fitted in float64."""


@decomposes(
    aten.lgamma.default,
    aten.special_gammaln.default,
    why="no converter has a translation that works",
)
def lgamma(x: Tensor) -> Tensor:
    """Return log |gamma(x)|, infinite at 0 and at negative integers."""
    x = _real(x)
    z = torch.where(x < 0, -x, x)  # of z + 1, with the digits of small x
    near, t = z < 2, torch.where(z < 2, z, torch.zeros_like(z)) - 1.0
    small = (t + 1.0) * t * _polynomial(t, _NEAR_TWO)
    series = torch.full_like(z, 1.000000000190015)
    for i, coefficient in enumerate(_LANCZOS):
        series = series + coefficient / (z + float(i + 1))
    shifted = z + 5.5
    y = torch.log(series * math.sqrt(2 * math.pi)) + (z + 0.5) * torch.log(shifted) - shifted
    y = torch.where(near, small, y)
    sine = torch.sin((x - torch.round(x)) * math.pi).abs()
    return torch.where(x < 0, math.log(math.pi) - torch.log(sine) - y, y - torch.log(x.abs()))


@decomposes(
    aten.digamma.default,
    aten.special_psi.default,
    why="no converter has a translation that works",
)
def digamma(x: Tensor) -> Tensor:
    """Return the derivative of log gamma(x): minus infinity at 0, NaN at negative integers."""
    x = _real(x)
    low = x < 0
    z = torch.where(low, 1.0 - x, x)
    y = torch.zeros_like(z)
    for _ in range(6):
        small = z < 6
        y = torch.where(small, y - 1.0 / z, y)
        z = torch.where(small, z + 1.0, z)
    inverse = 1.0 / (z * z)
    y = y + torch.log(z) - 0.5 / z - inverse * (1 / 12 - inverse * (1 / 120 - inverse * (1 / 252 - inverse / 240)))
    fraction = x - torch.round(x)
    reflected = y - math.pi / torch.tan(fraction * math.pi)
    return torch.where(low, torch.where(fraction == 0, torch.full_like(x, math.nan), reflected), y)


_CENTRE = (
    *(1.50140941, 0.246640727, -0.00417768164, -0.00125372503, 0.00021858087, -4.39150654e-06, -3.5233877e-06),
    *(
        3.43273939e-07,
        2.81022636e-08,
    ),
)
_TAIL = (
    *(2.83297682, 1.00167406, 0.00943887047, -0.0076224613, 0.00573950773, -0.00367342844, 0.00134934322),
    *(
        0.000100950558,
        -0.000200214257,
    ),
)


@decomposes(
    aten.erfinv.default,
    aten.special_erfinv.default,
    why="no converter has a translation that works",
)
def erfinv(x: Tensor) -> Tensor:
    """Return what erf takes to x: infinite at -1 and 1, NaN beyond."""
    x = _real(x)
    w = -torch.log((1.0 - x) * (1.0 + x))
    near = w < 5
    centre = _polynomial(torch.where(near, w, torch.zeros_like(w)) - 2.5, _CENTRE)
    tail = _polynomial(torch.sqrt(torch.where(near, torch.full_like(w, 9.0), w)) - 3.0, _TAIL)
    y = x * torch.where(near, centre, tail)
    return torch.where(x.abs() == 1, x * math.inf, y)


_SMALL_I0 = (1.0, 3.5156229, 3.0899424, 1.2067492, 0.2659732, 0.360768e-1, 0.45813e-2)
_LARGE_I0 = (
    *(0.39894228, 0.1328592e-1, 0.225319e-2, -0.157565e-2, 0.916281e-2, -0.2057706e-1, 0.2635537e-1),
    *(
        -0.1647633e-1,
        0.392377e-2,
    ),
)


@decomposes(
    aten.i0.default,
    aten.special_i0.default,
    why="no converter has a translation that works",
)
def i0(x: Tensor) -> Tensor:
    """Return the modified Bessel function of order 0."""
    size = _real(x).abs()
    near = size < 3.75
    ratio = torch.where(near, size, torch.zeros_like(size)) / 3.75
    far = torch.where(near, torch.full_like(size, 3.75), size)
    large = torch.exp(far) / torch.sqrt(far) * _polynomial(3.75 / far, _LARGE_I0)
    return torch.where(near, _polynomial(ratio * ratio, _SMALL_I0), large)
