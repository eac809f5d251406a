"""Statistics of samples: intervals without an assumed distribution, and ratios of what was timed in turn.

Samples of one process depend on each other (where its memory lies, what else runs), so a launch is the unit: it gives
one number, and the launches are exchangeable.

    quantile   the median over launches of each launch's quantile, with the interval between two of those numbers that
               holds the true median with at least the confidence asked for (order statistics; Hahn and Meeker,
               "Statistical Intervals", 1991, section 5.2)
    ratio      head over base: in each launch the median over rounds of log(head / base), which drift cannot move as
               both sides of a round are neighbours, and of several copies in a launch the mean of theirs; over launches
               the mean, with a bootstrap-t interval (Efron and
               Tibshirani, "An Introduction to the Bootstrap", 1993, section 12.5). Of a side's calls in a round it
               is the first decile, which calls that something else held up do not reach, by the estimate that is
               right in the median however many calls there were (Hyndman and Fan, Am. Stat. 50, 1996, 361, their
               eighth); of fewer than ten calls on a side see `times_in_turn`
    looks      where launches are added until a comparison is decided, every look has an interval, and all of them hold
               the truth together with the confidence asked for (repeated confidence intervals: Jennison and Turnbull,
               J. R. Stat. Soc. B 51, 1989, 305), each at the same level (Pocock, Biometrika 64, 1977, 191)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist, median

import numpy as np

RESAMPLES = 9999
FEWEST_LAUNCHES = 6
"""With fewer a bootstrap has too few launches to draw from."""

DECILE, FEWEST_CALLS = 0.1, 10
"""What a call is taken to last, of those of a round, and the calls of a side from which there is such a one."""

HELD_UP = 1.3
"""How many times as long as the shortest of its launch a call takes that was held up, where there are few."""

WIDEST = 1000.0
"""Factor between a ratio and an end of its interval beyond which the end says nothing more.

A few launches of which some are nearly equal can have one farther away than a float reaches.
"""


@dataclass(frozen=True)
class Interval:
    """An estimate and the ends of its interval; where there were too few launches for one, those are None."""

    value: float
    low: float | None
    high: float | None


def with_ends(value: float, low: float | None, high: float | None, digits: int = 3) -> str:
    """Return an estimate with the ends of its interval, `3.120 (3.101 to 3.150)`; by itself where it has not both."""
    ends = "" if low is None or high is None else f" ({low:.{digits}f} to {high:.{digits}f})"
    return f"{value:.{digits}f}{ends}"


def quantile(launches: Sequence[Sequence[float]], share: float, confidence: float = 0.95) -> Interval:
    """The median over launches of the given quantile of each, in the samples' unit."""
    values = sorted(float(np.quantile(samples, share)) for samples in launches)
    rank = order_rank(len(values), confidence)
    ends = (None, None) if rank is None else (values[rank], values[-1 - rank])
    return Interval(float(np.median(values)), *ends)


def order_rank(count: int, confidence: float) -> int | None:
    """The largest r for which the r-th smallest and r-th largest of `count`, from 0, hold the median so surely.

    P(the median lies outside) = 2 P(Binomial(count, 1/2) <= r). None where even the extremes do not.
    """
    outside, rank = 0.0, None
    for r in range(count // 2):
        outside += 2 * math.comb(count, r) / 2**count
        if outside > 1 - confidence:
            break
        rank = r
    return rank


def log_ratios(base: Sequence[Sequence[float]], head: Sequence[Sequence[float]]) -> np.ndarray:
    """One number for each launch: the median over its rounds of log(head / base), base and head timed in turn."""
    return np.array(
        [np.median(np.log(np.asarray(b) / np.asarray(a))) for a, b in zip(base, head, strict=True)], dtype=float
    )


def times_in_turn(base: Sequence[Sequence[float]], head: Sequence[Sequence[float]]) -> tuple[list[float], list[float]]:
    """Return what a call of either side takes in each round, of the calls that other work has not held up.

    Where both sides have `FEWEST_CALLS` in a round, it is the first decile. Of fewer it is the median of those that
    took no more than `HELD_UP` times the side's shortest of the launch; a round that has none on a side does not count,
    and of a launch without such a round it is each side's shortest.

    Args:
        base, head: a launch's calls, by round.
    """
    shortest = [min(ms for calls in side for ms in calls) for side in (base, head)]
    times = []
    for sides in zip(base, head, strict=True):
        if min(map(len, sides)) >= FEWEST_CALLS:
            times.append([float(np.quantile(calls, DECILE, method="median_unbiased")) for calls in sides])
            continue
        kept = [[ms for ms in calls if ms <= HELD_UP * least] for calls, least in zip(sides, shortest, strict=True)]
        if all(kept):
            times.append([median(calls) for calls in kept])
    times = times or [shortest]
    return [one for one, _ in times], [other for _, other in times]


def log_ratios_of_copies(
    base: Sequence[Sequence[Sequence[Sequence[float]]]], head: Sequence[Sequence[Sequence[Sequence[float]]]]
) -> np.ndarray:
    """One number for each launch: the mean of its copies' `log_ratios`.

    Args:
        base, head: calls, by launch, copy and round.
    """
    launches = []
    for sides in zip(base, head, strict=True):
        copies = [times_in_turn(*rounds) for rounds in zip(*sides, strict=True)]
        launches.append(log_ratios([one for one, _ in copies], [other for _, other in copies]).mean())
    return np.array(launches, dtype=float)


def paired_ratio(ratios: np.ndarray, confidence: float, seed: int = 0) -> Interval:
    """The exponential of the mean of the launches' log ratios, and its bootstrap-t interval."""
    return _exponential(float(ratios.mean()), _bootstrap_t([ratios], confidence, seed))


def unpaired_ratio(base: Sequence[float], head: Sequence[float], confidence: float, seed: int = 0) -> Interval:
    """Head over base from medians of launches that were not timed in turn; drift between the two is in neither."""
    a, b = np.log(np.asarray(base)), np.log(np.asarray(head))
    return _exponential(float(b.mean() - a.mean()), _bootstrap_t([b, a], confidence, seed))


@cache
def confidence_of_a_look(confidence: float, looks: tuple[int, ...]) -> float:
    """The confidence of each look's interval, so that those of all looks hold the truth together with `confidence`.

    Args:
        looks: how many launches there are at each, rising.
    """
    if len(looks) < 2:
        return confidence
    low, high = 0.0, 8.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if _leaves(middle, looks) > 1 - confidence else (low, middle)
    return 2 * NormalDist().cdf(high) - 1


def _leaves(bound: float, looks: Sequence[int]) -> float:
    """P(|S_n| > bound sqrt(n) at some look n), S_n being a sum of n standard normal numbers.

    The density of sums that have stayed within so far goes from look to look by convolution with N(0, n_k - n_(k-1))
    (Armitage, McPherson and Rowe, J. R. Stat. Soc. A 132, 1969, 235), here by Gauss-Legendre quadrature.
    """
    nodes, weights = np.polynomial.legendre.leggauss(64)
    at, weight, density, before = np.zeros(1), np.ones(1), np.ones(1), 0
    for n in looks:
        sums, variance = nodes * bound * math.sqrt(n), n - before
        step = np.exp(-((sums[:, None] - at[None, :]) ** 2) / (2 * variance)) / math.sqrt(2 * math.pi * variance)
        density = step @ (density * weight)
        at, weight, before = sums, weights * bound * math.sqrt(n), n
    return 1 - float(density @ weight)


def _exponential(value: float, ends: tuple[float, float] | None) -> Interval:
    """The interval of a ratio from that of its logarithm, its ends at most a factor of `WIDEST` away."""
    if ends is None:
        return Interval(math.exp(value), None, None)
    reach = math.log(WIDEST)
    return Interval(math.exp(value), math.exp(max(ends[0], value - reach)), math.exp(min(ends[1], value + reach)))


def _bootstrap_t(groups: Sequence[np.ndarray], confidence: float, seed: int) -> tuple[float, float] | None:
    """Interval of the first group's mean, less the second's where there is one."""
    if min(map(len, groups)) < FEWEST_LAUNCHES:
        return None
    draw = np.random.default_rng(seed)
    signs = (1.0, -1.0)

    def moments(samples: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        difference = sum(sign * x.mean(axis=-1) for sign, x in zip(signs, samples, strict=False))
        variance = sum(x.var(axis=-1, ddof=1) / x.shape[-1] for x in samples)
        return np.asarray(difference), np.sqrt(np.asarray(variance))

    value, error = (float(x) for x in moments(groups))
    if error == 0:
        return value, value
    resampled = [group[draw.integers(0, len(group), (RESAMPLES, len(group)))] for group in groups]
    means, errors = moments(resampled)
    kept = errors > 1e-9 * error  # a resample of equal launches has no deviation but for the rounding of their mean
    pivots = (means[kept] - value) / errors[kept]
    tail = (1 - confidence) / 2
    low, high = np.quantile(pivots, [tail, 1 - tail])
    return value - float(high) * error, value - float(low) * error
