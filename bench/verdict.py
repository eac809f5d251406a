"""Verdicts on whether something became slower, from measurements.

    slower         the whole interval of head / base lies above 1 and the noise floor, and either the whole interval
                   lies above half of the threshold, or the estimate reaches the threshold and the interval reaches no
                   further from it than four fifths of the threshold
    faster         the same, the other way round
    unchanged      the whole interval lies inside the threshold, on either side of 1
    inconclusive   none of these: the interval is too wide, or there are too few launches for one
    not comparable the two were measured on different devices, or otherwise

Noise alone makes an interval wider, and so makes none of the first three likelier: an estimate that noise has moved is
not near enough to its interval's ends. An interval of half the threshold to
either side of its estimate tells no change from one by the threshold, and one of a quarter is always one of the three.
The noise floor is what two measurements of the same file were seen to differ by.

Two that are timed in turn are judged while that goes on: `Criterion.is_met` says when launches need not be added.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Literal, TypedDict

from edgesmith.bench.measurement import Measurement
from edgesmith.bench.statistics import (
    Interval,
    confidence_of_a_look,
    log_ratios_of_copies,
    paired_ratio,
    unpaired_ratio,
)
from edgesmith.errors import INCONCLUSIVE_CODE, NOT_COMPARABLE_CODE, SLOWER_CODE, BadInput

if TYPE_CHECKING:
    import numpy as np

THRESHOLD = 0.05
CONFIDENCE = 0.995

CLOSE = 0.8
"""How far an interval may reach from an estimate at the threshold, as a share of the threshold.

So the estimate is 2.5 standard errors from a change by two fifths of the threshold, and calls it one by the threshold
in 0.6 % of comparisons at most; without that, where an interval just excludes 1, in 4 %.
"""

Word = Literal["slower", "faster", "unchanged", "inconclusive", "not comparable"]
SLOWER: Word = "slower"
FASTER: Word = "faster"
UNCHANGED: Word = "unchanged"
INCONCLUSIVE: Word = "inconclusive"
NOT_COMPARABLE: Word = "not comparable"
ExitCode = Literal[0, 8, 9, 10]
EXIT_CODES: Mapping[Word, ExitCode] = {
    SLOWER: SLOWER_CODE,
    FASTER: 0,
    UNCHANGED: 0,
    INCONCLUSIVE: INCONCLUSIVE_CODE,
    NOT_COMPARABLE: NOT_COMPARABLE_CODE,
}


class RatioRecord(TypedDict):
    """Head over base, and the ends of the ratio's interval; null where there were too few launches for one."""

    value: float
    low: float | None
    high: float | None


class VerdictRecord(TypedDict):
    """The result of one comparison.

    Attributes:
        reason: in a sentence.
        base, head: names of the two.
        ratio: null where they are not comparable, or nothing was measured.
        base_ms, head_ms: medians over launches of each launch's median, milliseconds; null with the ratio.
        paired: the two were timed in turn.
        exit_code: 0 where nothing became slower, 8 where it did, 9 where that is not known, 10 where it cannot be.
    """

    verdict: Word
    reason: str
    base: str
    head: str
    ratio: RatioRecord | None
    base_ms: float | None
    head_ms: float | None
    paired: bool
    exit_code: ExitCode


class Comparison(TypedDict):
    """The output of `edgesmith compare --json`: a verdict for each file that was compared with the first.

    Attributes:
        schema: 2 since slower, inconclusive and not comparable have exit codes of their own.
    """

    schema: Literal[2]
    verdicts: list[VerdictRecord]


@dataclass(frozen=True)
class Verdict:
    """The result of a comparison.

    Attributes:
        verdict: one of the five words above.
        reason: in a sentence.
        ratio: of head to base, with its interval; None where they are not comparable.
        base_ms, head_ms: medians over launches of each launch's median.
        paired: whether the two were timed in turn.
    """

    verdict: Word
    reason: str
    base: str
    head: str
    ratio: Interval | None = None
    base_ms: float | None = None
    head_ms: float | None = None
    paired: bool = False

    @property
    def exit_code(self) -> ExitCode:
        """0 where nothing became slower, 8 where it did, 9 where that is not known, 10 where it cannot be."""
        return EXIT_CODES[self.verdict]


@dataclass(frozen=True)
class Criterion:
    """The criterion by which a head is slower than its base: the options of `compare`, which says what they mean.

    Raises:
        BadInput: threshold, confidence or floor are out of range.
    """

    threshold: float = THRESHOLD
    confidence: float = CONFIDENCE
    floor: float = 0.0
    despite: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        check_options(self.threshold, self.confidence, self.floor)

    def judge(self, base: Measurement, head: Measurement, of_head: int = 0) -> Verdict:
        """Compare the first subject of `base` with one of `head`."""
        return compare(
            base,
            head,
            0,
            of_head,
            threshold=self.threshold,
            confidence=self.confidence,
            floor=self.floor,
            despite=self.despite,
        )

    def judge_all(self, measurement: Measurement) -> list[Verdict]:
        """Compare the first subject of a measurement with each of the others."""
        return [self.judge(measurement, measurement, i) for i in range(1, len(measurement.subjects))]

    def is_met(self, measurement: Measurement) -> bool:
        """Return whether every verdict stands, so that no launch need be added."""
        return all(map(self.stands, self.judge_all(measurement)))

    def stands(self, one: Verdict) -> bool:
        """A verdict stands whose interval is narrow enough, or lies beyond half the threshold; so does not comparable.

        Narrow enough is half the threshold to either side of the estimate.
        """
        if one.verdict == NOT_COMPARABLE:
            return True
        if one.verdict == INCONCLUSIVE or one.ratio is None or one.ratio.low is None or one.ratio.high is None:
            return False
        half = 1 + self.threshold / 2
        return reach(one.ratio) <= math.log(half) or one.ratio.low > half or one.ratio.high < 1 / half


def worst_code(verdicts: Sequence[Verdict]) -> ExitCode:
    """Return the exit code of several verdicts: slower, else not comparable, else inconclusive, else 0."""
    codes = {one.exit_code for one in verdicts}
    return SLOWER_CODE if SLOWER_CODE in codes else max(codes, default=0)


def describe(one: Verdict) -> VerdictRecord:
    """Return a verdict as a record."""
    ratio: RatioRecord | None = None
    if one.ratio is not None:
        ratio = {"value": one.ratio.value, "low": one.ratio.low, "high": one.ratio.high}
    return {
        "verdict": one.verdict,
        "reason": one.reason,
        "base": one.base,
        "head": one.head,
        "ratio": ratio,
        "base_ms": one.base_ms,
        "head_ms": one.head_ms,
        "paired": one.paired,
        "exit_code": one.exit_code,
    }


def describe_all(verdicts: Sequence[Verdict]) -> Comparison:
    """Return verdicts as the record that `edgesmith compare --json` prints."""
    return {"schema": 2, "verdicts": [describe(one) for one in verdicts]}


def compare(
    base: Measurement,
    head: Measurement,
    base_subject: int = 0,
    head_subject: int = 0,
    *,
    threshold: float = THRESHOLD,
    confidence: float = CONFIDENCE,
    floor: float = 0.0,
    despite: frozenset[str] = frozenset(),
) -> Verdict:
    """Compare two subjects; they may be of one measurement, where they were timed in turn.

    Args:
        threshold: the smallest change that matters, as a share: 0.05 for 5 %.
        confidence: of the interval; where launches were added until the comparison was decided, that of the intervals
            at all looks together.
        floor: noise floor of the device, as a share, see `noise_floor`.
        despite: names of differences, from `differences`, that are not to stand in the way.

    Raises BadInput where threshold, confidence or floor are out of range.
    """
    check_options(threshold, confidence, floor)
    names = base.subjects[base_subject].name, head.subjects[head_subject].name
    apart = differences(base, head, base_subject, head_subject)
    blocking = {name: values for name, values in apart.items() if name not in despite}
    if blocking:
        name, (one, other) = next(iter(blocking.items()))
        others = f" (and {', '.join(list(blocking)[1:])})" if len(blocking) > 1 else ""
        return Verdict(NOT_COMPARABLE, f"{name} differs: {one} and {other}{others}", *names)
    samples = base.samples(base_subject), head.samples(head_subject)
    if not samples[0] or not samples[1]:
        return Verdict(INCONCLUSIVE, "nothing was measured before the run was interrupted", *names)
    medians = [[median(launch) for launch in side] for side in samples]
    is_paired = base is head
    if is_paired:
        surer = confidence_of_a_look(confidence, base.looks)
        ratio = paired_ratio(launch_ratios(base, base_subject, head_subject), surer)
    else:
        ratio = unpaired_ratio(medians[0], medians[1], confidence)
    verdict, reason = judge(ratio, threshold, floor, min(map(len, medians)))
    return Verdict(verdict, reason, *names, ratio, median(medians[0]), median(medians[1]), is_paired)


def launch_ratios(measurement: Measurement, base: int, head: int) -> np.ndarray:
    """One number for each launch in which two subjects were timed in turn: log(head / base), see statistics.py."""
    return log_ratios_of_copies(measurement.copies(base), measurement.copies(head))


def check_options(threshold: float, confidence: float, floor: float) -> None:
    """Raise BadInput for what `compare` cannot take, before anything is measured for it."""
    if not 0 < threshold < 1:
        raise BadInput(f"the threshold must lie between 0 and 1 (0.05 is 5 %), got {threshold}")
    if not 0.5 <= confidence < 1:
        raise BadInput(f"the confidence must be at least 0.5 and less than 1, got {confidence}")
    if not 0 <= floor < math.inf:
        raise BadInput(f"the noise floor must be at least 0 and finite, got {floor}")


def differences(
    base: Measurement, head: Measurement, base_subject: int, head_subject: int
) -> dict[str, tuple[str, str]]:
    """Return the facts that make two measurements not comparable, by name, as they are on either side."""
    a, b = base.subjects[base_subject], head.subjects[head_subject]
    sides = {
        "device": (f"{base.device.name}, {base.device.cpu}", f"{head.device.name}, {head.device.cpu}"),
        "machine": (base.device.machine, head.device.machine),
        "system": (base.device.system, head.device.system),
        "power mode": (base.device.power_mode or "not known", head.device.power_mode or "not known"),
        "threads": (base.threads, head.threads),
        "cores": (base.cores, head.cores),
        "runtime": (_runtime(base, base_subject), _runtime(head, head_subject)),
        "compute units": (a.compute_units, b.compute_units),
        "precision": (a.precision, b.precision),
    }
    return {name: (str(one), str(other)) for name, (one, other) in sides.items() if one != other}


def noise_floor(measurement: Measurement, confidence: float = CONFIDENCE) -> float:
    """Return the share by which two subjects of one file differ: the farther end of their ratio's interval from 1.

    Raises BadInput where the measurement is not of one file twice, or has too few launches.
    """
    digests = {subject.sha256 for subject in measurement.subjects}
    if len(measurement.subjects) != 2 or len(digests) != 1:
        raise BadInput(
            "a noise floor takes a measurement of one artifact against itself: edgesmith bench A --against A"
        )
    ratio = paired_ratio(launch_ratios(measurement, 0, 1), confidence)
    if ratio.low is None or ratio.high is None:
        raise BadInput(f"a noise floor takes more launches than the {len(measurement.launches)} of this measurement")
    return math.exp(max(abs(math.log(ratio.low)), abs(math.log(ratio.high)))) - 1


def _runtime(measurement: Measurement, subject: int) -> str:
    name = measurement.subjects[subject].runtime
    return f"{name} {measurement.runtimes.get(name, '')}".strip()


def reach(ratio: Interval) -> float:
    """Return how far an interval reaches from its middle, as a logarithm; infinite where there is none."""
    return math.inf if ratio.low is None or ratio.high is None else math.log(ratio.high / ratio.low) / 2


def judge(ratio: Interval, threshold: float, floor: float, launches: int) -> tuple[Word, str]:
    """Return the verdict on a ratio by the rule at the top of this file, and the reason in a sentence."""
    if ratio.low is None or ratio.high is None:
        return INCONCLUSIVE, f"{launches} launches are too few for an interval: measure longer"
    bounds = f"head takes {ratio.value:.3f} of base's time, {ratio.low:.3f} to {ratio.high:.3f}"
    whole, half, change = 1 + threshold, 1 + threshold / 2, f"{100 * threshold:g}%"
    is_close = reach(ratio) <= math.log(1 + CLOSE * threshold)
    if ratio.low > 1 + floor and (ratio.low > half or (ratio.value >= whole and is_close)):
        return SLOWER, bounds
    if ratio.high < 1 / (1 + floor) and (ratio.high < 1 / half or (ratio.value <= 1 / whole and is_close)):
        return FASTER, bounds
    if 1 / whole < ratio.low and ratio.high < whole:
        return UNCHANGED, f"{bounds}: no change by {change}"
    if 1 / (1 + floor) <= ratio.high and ratio.low <= 1 + floor:
        inside = "on both sides of 1" if ratio.low <= 1 <= ratio.high else "within the noise floor"
        return INCONCLUSIVE, f"{bounds}, {inside}, and a change by {change} is not ruled out: measure longer"
    return INCONCLUSIVE, f"{bounds}: a change, which may or may not be one by {change}: measure longer"
