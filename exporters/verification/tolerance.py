"""The distance that a file's value may have from PyTorch's: so many units of what one rounding can do to it.

A result y = f(x) is computed from inputs that carry a rounding each, and is rounded itself. With the unit roundoff u
(2^-24 in fp32, 2^-11 in fp16) one rounding moves it by

    u (|y| + |f'(x) x|)        f'(x) x by forward differentiation in float64, over inputs of random signs

where x are the inputs, and a layer's own weights and statistics, so that a sum that cancels, a logarithm at 1 and a
sine of a large angle are allowed what they magnify, and a rounding or a comparison, whose derivative is 0, is allowed
nothing. A case is allowed `ulps` of these units: 16 by default, for the order of summation and the three or four
roundings that transcendental functions have inside. Beside these:

    mixes   of a case whose derivative does not show what is inside, as of a transform and its inverse: the largest
            magnitude of the output counts as |f'(x) x| everywhere
    activations     the magnitude of x counts too, between 1 and 10: exp(x) - 1 and 1 + erf(x) are rounded as numbers of
            order one, in PyTorch as well, before they are multiplied by x; beyond 10 all of them are saturated
    images  64 units, as if mixed: a position is computed in fp32, up to 16 times as large as a weight, and shifts all
            weights of a pixel together, so that nothing cancels
    fp16    16 x 2^-24, and two roundings of a value of order one: a composite operator rounds between its own, and half
            precision cannot have log(1 + x) to more digits than 1 + x. Values beyond 65504 may be infinite
    floor   of a case, see `Case.floor`

The value that counts is the nearer one of PyTorch's in fp32 and in float64: no file has to repeat PyTorch's rounding.
NaN and infinities must be where PyTorch has them. Integers and booleans are equal or wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from edgesmith.exporters.verification.cases import Case

ROUNDOFF = {"float32": 2.0**-24, "float16": 2.0**-11}
SMALLEST = {"float32": 2.0**-126, "float16": 2.0**-24}
LARGEST_HALF = 65504.0
DRAWS = 4
"""Draws of signs; the largest of the results counts."""


@dataclass(frozen=True)
class Expected:
    """PyTorch's value of one output of one call, and the distance that a file may have from it.

    Attributes:
        value: in the output's own type.
        exact: in float64; the same as `value` where that cannot be computed.
        allowed: the distance, elementwise; None for integers and booleans.
        dtype: of most of the file's arithmetic.
    """

    value: np.ndarray
    exact: np.ndarray
    allowed: np.ndarray | None
    dtype: str

    def differs(self, found: np.ndarray) -> str | None:
        """Return how a file's value differs from the expected one, in words, or None."""
        if found.shape != self.value.shape:
            return f"shape {list(found.shape)} where PyTorch has {list(self.value.shape)}"
        if not self.value.size:
            return None
        wrong = self._wrong(np.asarray(found, dtype=np.float64))
        if not wrong.any():
            return None
        place = tuple(int(k) for k in np.argwhere(wrong)[0])
        where = f"at {list(place)} " if place else ""
        others = f", and {int(wrong.sum()) - 1} others" if wrong.sum() > 1 else ""
        return f"{where}{float(found[place]):.9g} where PyTorch has {float(self.value[place]):.9g}{others}"

    def _wrong(self, found: np.ndarray) -> np.ndarray:
        if self.allowed is None:
            return np.asarray(found != self.value)
        near = np.broadcast_to(np.isinf(self.allowed), found.shape).copy()  # anything, and NaN, which has no distance
        for wanted in (self.value.astype(np.float64), self.exact):
            with np.errstate(invalid="ignore", over="ignore"):
                near |= (found == wanted) | (np.isnan(found) & np.isnan(wanted))
                near |= np.abs(found - wanted) <= self.allowed
                if self.dtype == "float16":  # infinite, the largest number, or the value itself
                    beyond = np.abs(wanted) > LARGEST_HALF
                    near |= beyond & (np.abs(found) >= LARGEST_HALF) & (np.sign(found) == np.sign(wanted))
        return np.asarray(~near)


def expect(case: Case, given: Sequence[Tensor], dtype: str) -> list[Expected]:
    """Return what a case's outputs must be for one call's inputs.

    Args:
        case: with inputs that `dtype` has.
        given: the inputs of the call.
        dtype: `float32` or `float16`.
    """
    with torch.no_grad():
        values = [y.detach() for y in case.call([x.clone() for x in given])]
    exact, spread = _exact(case.wide(), given, len(values))
    finite = (x[x.isfinite()].abs() for x in given if x.is_floating_point())
    peak = max((float(x.max()) for x in finite if x.numel()), default=0.0)
    expected = []
    for k, value in enumerate(values):
        array = value.numpy()
        if not value.is_floating_point():
            expected.append(Expected(array, array, None, dtype))
            continue
        wide = array.astype(np.float64) if exact is None else exact[k]
        moved = np.abs(wide) if spread is None else np.abs(wide) + spread[k]
        if case.activation and given[0].shape == value.shape:
            moved = moved + np.clip(np.abs(given[0].numpy().astype(np.float64)), 1.0, 10.0)
        expected.append(Expected(array, wide, _allowed(case, wide, moved, peak, dtype), dtype))
    return expected


def _allowed(case: Case, exact: np.ndarray, moved: np.ndarray, peak: float, dtype: str) -> np.ndarray:
    """Return the distance that a value may have: see the module's docstring."""
    unit = ROUNDOFF[dtype]
    finite = np.nan_to_num(moved, nan=0.0, posinf=0.0, neginf=0.0)
    allowed = case.ulps * (unit * finite + SMALLEST[dtype]) + case.floor * (case.ulps * unit * peak) ** 2
    if dtype == "float16":
        largest = np.abs(exact[np.isfinite(exact)]).max(initial=0.0)
        allowed = allowed + 2 * unit * min(1.0, float(largest))
    return np.asarray(allowed)


def _exact(case: Case, given: Sequence[Tensor], count: int) -> tuple[list[np.ndarray] | None, list[np.ndarray] | None]:
    """Return the outputs in float64 and what one relative change of the inputs moves them by; None where unknown."""
    wide = [x.double() if x.is_floating_point() else x for x in given]
    try:
        with torch.no_grad():
            outputs = case.call([x.clone() for x in wide])
    except (RuntimeError, NotImplementedError, TypeError, ValueError):
        return None, None
    if len(outputs) != count:
        return None, None
    exact = [y.numpy().astype(np.float64) for y in outputs]
    return exact, _peaks(outputs) if case.mixes else _spread(case, wide, outputs)


def _spread(case: Case, wide: Sequence[Tensor], outputs: Sequence[Tensor]) -> list[np.ndarray] | None:
    real = [k for k, x in enumerate(wide) if x.is_floating_point()]
    weights = _weights(case.function)

    def of_floats(*floats: Tensor) -> tuple[Tensor, ...]:
        mixed = list(wide)
        for k, x in zip(real, floats[: len(real)], strict=True):
            mixed[k] = x
        own = dict(zip(weights, floats[len(real) :], strict=True))
        return tuple(y for y in _with_weights(case, own).call(mixed) if y.is_floating_point())

    generator = torch.Generator().manual_seed(0)
    largest: list[np.ndarray] = [np.zeros(tuple(y.shape)) for y in outputs]
    places = [k for k, y in enumerate(outputs) if y.is_floating_point()]
    if not real or not places:
        return largest
    primals = tuple(x.detach().clone() for x in (*(wide[k] for k in real), *weights.values()))
    for _ in range(DRAWS):
        signs = [torch.randint(0, 2, x.shape, generator=generator).double() * 2 - 1 for x in primals]
        try:
            _, tangents, *_ = torch.func.jvp(
                of_floats, primals, tuple(x * s for x, s in zip(primals, signs, strict=True))
            )
        except (RuntimeError, NotImplementedError, TypeError, ValueError):
            return _peaks(outputs)
        for k, tangent in zip(places, tangents, strict=True):
            moved = np.nan_to_num(tangent.detach().abs().numpy(), nan=0.0, posinf=0.0)
            largest[k] = np.maximum(largest[k], moved)
    return largest


def _weights(function: object) -> dict[str, Tensor]:
    """Return the weights and statistics of a layer, by name."""
    if not isinstance(function, nn.Module):
        return {}
    own = (*function.named_parameters(), *function.named_buffers())
    return {name: x for name, x in own if x.is_floating_point()}


def _with_weights(case: Case, own: dict[str, Tensor]) -> Case:
    """Return a case whose layer has other weights."""
    layer = case.function
    if not isinstance(layer, nn.Module):
        return case
    return replace(case, function=lambda *given: torch.func.functional_call(layer, own, given))


def _peaks(outputs: Sequence[Tensor]) -> list[np.ndarray]:
    """Return the largest magnitude of each output everywhere, for operators that mix, or cannot be differentiated."""
    found = []
    for y in outputs:
        magnitudes = np.abs(y.numpy().astype(np.float64))
        finite = magnitudes[np.isfinite(magnitudes)]
        found.append(np.full(magnitudes.shape, finite.max(initial=0.0)))
    return found
