"""Discrete Fourier transforms as real matmuls: the matrices, the ways to arrange them, and what each costs.

    X[k] = f sum_j x[j] e^{s 2 pi i j k / n}          s = -1 forwards, +1 inverse; f from the norm

A transform works axis by axis; each axis is one complex matrix M [given, made], into which cropping, zero padding and
the norm are folded. A complex value is a pair of real ones, so a complex matmul is a real one of twice the width:

    re = [x_re | x_im] [ Re M ; -Im M ]               im = [x_re | x_im] [ Im M ; Re M ]

and a real input or output halves it. Two matmuls rather than one with [Re M | Im M] and a split: the one whose half
nobody reads vanishes. A real signal has a Hermitian spectrum: n // 2 + 1 bins hold all of it. On the way back each
counts twice, but for those that are their own mirror image, 0 and n / 2, of which only the real part counts: that is
how PyTorch reads them.

There are three arrangements, and `plan` takes the cheapest for a target:

    separable   one axis after the other, in the order that costs least
    dense       neighbouring axes as one, M their Kronecker product: few launches, for small maps
    split       n = n1 n2 (Cooley and Tukey, 1965), j = n2 j1 + j2, k = k1 + n1 k2, for long lengths: two short
                transforms with one factor for each number in between,

                X[k1 + n1 k2] = sum_j2 w(n2)^{j2 k2} w(n)^{j2 k1} sum_j1 w(n1)^{j1 k1} x[j]      w(n) = e^{s 2 pi i / n}

Every matrix carries about its own part of the norm, so values in between are no larger than the input or the result may
be: half precision overflows nowhere that the result itself does not. All parts but the last are powers of two, so that
the norm is rounded once: of the mean, which every bin f = 0 has, each rounding stays to the end, and adds to the next.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

from edgesmith.exporters.costs import Costs

LARGEST_CONSTANTS = 2**22
"""Numbers in a plan's matrices up to which it is taken where there is another way: 16 MiB of file save no launch."""

_SHORTEST_SPLIT = 64
_ORDERS_OF = 4
"""Axes up to which every order is tried."""


@dataclass(frozen=True)
class Axis:
    """One axis of a transform.

    Attributes:
        position: of the axis in the tensor.
        given: entries that the input has there. Those beyond what the transform reads are ignored, missing ones zero.
        made: entries that the output has there, the first ones of all.
        length: n, the length of the signal.
        sign: s, of the exponent.
        scale: f, the norm's factor for this axis.
        hermitian: the input is the half spectrum of a real signal, and the output is that signal.
    """

    position: int
    given: int
    made: int
    length: int
    sign: int
    scale: float
    hermitian: bool = False

    @property
    def read(self) -> int:
        """Entries of the input that count."""
        return min(self.given, self.length // 2 + 1 if self.hermitian else self.length)


@dataclass(frozen=True)
class Stage:
    """One step of a plan: neighbouring axes, in order of position, at once; or one axis, split in two."""

    axes: tuple[Axis, ...]
    radix: tuple[int, int] | None = None


@dataclass(frozen=True)
class Price:
    """The price of a form: multiplications, and an estimate of the time on a target in microseconds."""

    macs: int = 0
    us: float = 0.0

    def __add__(self, other: Price) -> Price:
        return Price(self.macs + other.macs, self.us + other.us)


@dataclass(frozen=True)
class Plan:
    """Stages in the order in which they run.

    Attributes:
        form: `separable`, `dense` or `split 32x64`.
        price: of all stages.
        others: the best plan of each other form that there is.
    """

    stages: tuple[Stage, ...]
    form: str
    price: Price
    others: tuple[Plan, ...] = ()

    def describe(self, signals: int) -> str:
        """`separable, 0.104 MMAC a channel against 1.11 dense`, for `signals` channels side by side."""

        def work(plan: Plan) -> str:
            return f"{plan.price.macs / signals / 1e6:.3g}"

        text = f"{self.form}, {work(self)} MMAC a channel"
        if self.others:
            times = ", ".join(f"{other.price.us:.0f}" for other in self.others)
            text += f" against {', '.join(f'{work(other)} {other.form}' for other in self.others)}"
            text += f"; estimated {self.price.us:.0f} us against {times}"
        return text


def norm_scale(norm: str | None, length: int, inverse: bool) -> float:
    """The factor that PyTorch's `norm` means for one axis of `length`."""
    if norm == "ortho":
        return 1 / math.sqrt(length)
    return 1 / length if (norm == "forward") != inverse else 1.0


def shares(factors: Sequence[float]) -> list[float]:
    """Return factors with the same product and about the same sizes, of which all but the last are powers of two."""
    exact = [2.0 ** round(math.log2(factor)) for factor in factors[:-1]]
    return [*exact, prod(factors) / prod(exact)]


def _rounded_once(stages: Sequence[Stage]) -> Iterator[Stage]:
    """Yield the stages with the norm shared out among their matrices."""
    for stage, scale in zip(stages, shares([prod(a.scale for a in s.axes) for s in stages]), strict=True):
        rest = [replace(axis, scale=1.0) for axis in stage.axes[1:]]
        yield replace(stage, axes=(replace(stage.axes[0], scale=scale), *rest))


def circle(turns: Tensor, length: int, sign: int) -> Tensor:
    """e^{sign 2 pi i turns / length} in complex128 for integer `turns`, reduced before the sine; exact at quarters."""
    turns = turns % length
    angle = 2 * math.pi * turns.double() / length
    cosine, sine = angle.cos(), angle.sin()
    cosine[(4 * turns == length) | (4 * turns == 3 * length)] = 0
    sine[(turns == 0) | (2 * turns == length)] = 0
    return torch.complex(cosine, sign * sine)


def matrix(stage: Stage) -> Tensor:
    """M of a stage that is not split: complex128 [given, made], the Kronecker product over the stage's axes."""
    whole = torch.ones(1, 1, dtype=torch.complex128)
    for axis in stage.axes:
        j, k = torch.arange(axis.read), torch.arange(axis.made)
        m = axis.scale * circle(torch.outer(j, k), axis.length, axis.sign)
        if axis.hermitian:
            m = m * mirror_weights(axis).unsqueeze(1)
        whole = torch.kron(whole, torch.cat([m, m.new_zeros(axis.given - axis.read, axis.made)]))
    return whole


def mirror_weights(axis: Axis) -> Tensor:
    """Return how often each bin of a half spectrum counts, float64 [read]: once if its own mirror image, else twice."""
    k = torch.arange(axis.read)
    return torch.where(2 * k % axis.length == 0, 1.0, 2.0).double()


def twiddles(axis: Axis, radix: tuple[int, int]) -> Tensor:
    """The factors between a split axis' two transforms, complex128 [n1, n2]: e^{s 2 pi i k1 j2 / n}."""
    n1, n2 = radix
    return circle(torch.outer(torch.arange(n1), torch.arange(n2)), axis.length, axis.sign)


def short_transforms(axis: Axis, radix: tuple[int, int]) -> tuple[Axis, Axis]:
    """The transforms of length n1 and n2 that a split axis consists of, at position 0 each.

    From a half spectrum they run the other way round, n2 first, so that k is what is read and j what is made.
    """
    n1, n2 = radix
    scales = shares([axis.scale ** (math.log(n) / math.log(axis.length)) for n in radix])
    if axis.hermitian:
        bins = -(-axis.read // n1)
        return Axis(0, n1, n1, n1, axis.sign, scales[0]), Axis(0, bins, n2, n2, axis.sign, scales[1])
    rows, bins = -(-axis.read // n2), -(-axis.made // n1)
    return Axis(0, rows, n1, n1, axis.sign, scales[0]), Axis(0, n2, bins, n2, axis.sign, scales[1])


def plan(
    axes: Sequence[Axis],
    shape: Sequence[int],
    real_in: bool,
    real_out: bool,
    costs: Costs,
    itemsize: int = 4,
    form: str | None = None,
) -> Plan:
    """The cheapest arrangement for a target.

    Args:
        axes: in any order: matrices on different axes commute, and the real part is taken at the very end.
        shape: of the input, a size for a dynamic batch too.
        real_in, real_out: whether the input is real, and whether only the result's real part is wanted.
        itemsize: bytes of a real number.
        form: take `separable`, `dense` or `split` where there is one, whatever it costs.
    """
    best: dict[str, Plan] = {}
    for stages in _arrangements(axes):
        price = _price(stages, shape, real_in, real_out, costs, itemsize)
        splits = [f"{stage.radix[0]}x{stage.radix[1]}" for stage in stages if stage.radix]
        kind = "split" if splits else "dense" if len(stages) == 1 else "separable"
        if kind not in best or price.us < best[kind].price.us:
            best[kind] = Plan(tuple(stages), " ".join([kind, ", ".join(splits)]).strip(), price)

    def rank(found: Plan) -> tuple[bool, bool, float]:
        return found.form.split()[0] != form, _constants(found) > LARGEST_CONSTANTS, found.price.us

    first, *others = sorted(best.values(), key=rank)
    return replace(first, stages=tuple(_rounded_once(first.stages)), others=tuple(others))


def _arrangements(axes: Sequence[Axis]) -> Iterator[list[Stage]]:
    for order in itertools.permutations(axes) if len(axes) <= _ORDERS_OF else [tuple(axes)]:
        for radices in itertools.product(*(_radices(axis) for axis in order)):
            yield [Stage((axis,), radix) for axis, radix in zip(order, radices, strict=True)]
    if len(axes) > 1:
        together = sorted(axes, key=lambda axis: axis.position)
        neighbours = together[-1].position - together[0].position == len(together) - 1
        if neighbours:
            yield [Stage(tuple(together))]


def _radices(axis: Axis) -> list[tuple[int, int] | None]:
    """One matrix, and the splits nearest to the square root, which is where the work is least."""
    n = axis.length
    divisors = [d for d in range(2, math.isqrt(n) + 1) if n % d == 0] if n >= _SHORTEST_SPLIT else []
    splits = sorted({pair for d in divisors[-2:] for pair in ((d, n // d), (n // d, d))})
    return [None, *splits]


def _constants(found: Plan) -> int:
    """Numbers in a plan's complex matrices."""
    total = 0
    for stage in found.stages:
        axes = short_transforms(stage.axes[0], stage.radix) if stage.radix else stage.axes
        sizes = [axis.given * axis.made for axis in axes]
        total += 2 * (sum(sizes) if stage.radix else prod(sizes))
    return total


def _price(
    stages: Sequence[Stage], shape: Sequence[int], real_in: bool, real_out: bool, costs: Costs, itemsize: int
) -> Price:
    sizes = list(shape)
    total = Price()
    for i, stage in enumerate(stages):
        sides = (1 if real_in and i == 0 else 2, 1 if real_out and i == len(stages) - 1 else 2)
        first, last = stage.axes[0].position, stage.axes[-1].position
        before, after = prod(sizes[:first]), prod(sizes[last + 1 :])
        if stage.radix is None:
            given, made = prod(axis.given for axis in stage.axes), prod(axis.made for axis in stage.axes)
            total += matmul_price(before, given, made, after, sides, costs, itemsize)
            if len(stage.axes) > 1:
                total += Price(0, costs.launch_us)  # reshapes move nothing
        else:
            total += _split_price(stage.axes[0], stage.radix, before, after, sides, costs, itemsize)
        for axis in stage.axes:
            sizes[axis.position] = axis.made
    return total


def matmul_price(
    before: int, given: int, made: int, after: int, sides: tuple[int, int], costs: Costs, itemsize: int
) -> Price:
    """A matrix [given, made] on the middle axis of [before, given, after]; sides: 1 where real, 2 where complex."""
    inner, matmuls = given * sides[0], sides[1]
    if after == 1:  # one matmul from the right
        macs, padded = before * inner * made, before * inner * _padded(made, costs)
    else:  # from the left, one for each `before`
        macs, padded = before * made * inner * after, before * made * inner * _padded(after, costs)
    us = matmuls * (costs.launch_us + padded / costs.gmac_s / 1e3)
    us += matmuls * inner * made * itemsize / costs.stream_gb_s / 1e3
    if sides[0] == 2:
        us += costs.launch_us + 2 * before * inner * after * itemsize / costs.copy_gb_s / 1e3
    return Price(matmuls * macs, us)


def _padded(columns: int, costs: Costs) -> int:
    return -(-columns // costs.columns) * costs.columns


def _split_price(
    axis: Axis, radix: tuple[int, int], before: int, after: int, sides: tuple[int, int], costs: Costs, itemsize: int
) -> Price:
    n1, n2 = radix
    one, two = short_transforms(axis, radix)
    numbers = before * axis.length * after

    def pass_over(operators: int, numbers: int) -> Price:  # elementwise, and moving about: read and written
        return Price(0, operators * (costs.launch_us + 2 * numbers * itemsize / costs.stream_gb_s / 1e3))

    first = (sides[0], 2)
    second = (2, sides[1])
    if axis.hermitian:
        price = matmul_price(before * n1, two.given, n2, after, first, costs, itemsize)
        price += matmul_price(before, n1, n1, n2 * after, second, costs, itemsize)
        price += pass_over(3 * sides[0], numbers // 2)  # weights, padding, transposition
    else:
        price = matmul_price(before, one.given, n1, n2 * after, first, costs, itemsize)
        price += matmul_price(before * n1, n2, two.made, after, second, costs, itemsize)
        price += pass_over(sides[1], n1 * two.made * before * after)  # transposition
        price += pass_over(sides[0], numbers) if one.given * n2 != axis.given else Price()
        price += pass_over(sides[1], numbers) if n1 * two.made != axis.made else Price()
    return price + pass_over(6, numbers) + Price(4 * numbers)  # the factors in between
