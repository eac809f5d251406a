"""Does the gate call a file slower or faster than itself, and does it see a known slowdown; and how often?

One file is timed in turn against itself, and a copy of it against copies that a busy loop makes 2 %, 3 % and 7.5 %
slower: two in a launch, for as long and in orders that alternate, as `edgesmith compare` does, on the machine as it is
and then beside processes that do nothing but compute. Launches are processes that know nothing of each other, so
comparisons, looks and all, are drawn from them with replacement, as many of one order as of the other; the longer the
recording, the less they resemble each other.

    python -m edgesmith.bench.false_alarms ARTIFACT [launches] [comparisons] [folder] [--busy 0 2]

    pilot-1.json ...     what the copies' loops cost, until that is settled
    compare-5.json ...   comparisons as they are made, at 5 % and 2 %: do they end in 90 s, and after how many launches?
    quiet-3.json ...     launches beside a copy that is 3 % slower; busy-2-3.json those beside two busy processes
    verdicts.json        what came of it, and which bars are met

What is in the folder is not measured again: its launches are drawn from. Of the file against itself there are three
times as many. 720 launches in all are 42 minutes for a model of 15 ms, and up to twice as long on two cores with two
busy processes; pilots and comparisons are five to ten more, and drawing is one or two for each state. It says when it
will be done. Exit code 3 where a bar is not met.

A call that follows a busy loop finds the processor in another state than one that follows a call: a step of 0.15 ms is
2 % slower then, however short the loop. So copies that are slowed are compared with one that is slowed by nothing, and
after each call all of them go on with the loop to the same length, which is not counted (`runner.slowed`). What the
loop costs is measured by a pilot in which the copies are one opened model, so that no luck with memory is between them:
it goes on, with loops that are made longer or shorter, until each copy's interval lies within 0.2 % of its share.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import math
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from edgesmith import records
from edgesmith.bench import measurement as measurements
from edgesmith.bench.measure import MOST_LAUNCHES, MOST_SECONDS, Plan, Reports, Settings, carry_out, copies_of, measure
from edgesmith.bench.measurement import Launch, Measurement, Subject
from edgesmith.bench.statistics import FEWEST_LAUNCHES, Interval, paired_ratio
from edgesmith.bench.subjects import subjects_of
from edgesmith.bench.verdict import FASTER, SLOWER, Criterion, Verdict, Word, compare, launch_ratios
from edgesmith.errors import VerificationFailed
from edgesmith.exporters import artifact as artifacts

SHARES = (0.0, 0.02, 0.03, 0.075)
"""By which copies with a loop are slowed; the first is what the others are compared with."""

LOOP = 0.1
"""The whole loop after each call of a copy, as a share of the call."""

TIMES_OF_ITSELF = 3
"""As many launches of the file against itself: of 120, those with head below base are counted to 9 % only."""

THRESHOLDS = (0.05, 0.02)

PILOT_S = 3.0
"""Rounds of a pilot's launch, which four copies share."""

PILOT = 8
"""Launches that a pilot is, or that are added to it."""

PILOTS = 16
TOLERANCE = 0.002
"""How far the interval of a copy's ratio may reach from its share."""

SURE, SURER = 0.95, 0.99
"""Of the interval that settles a loop, and of the one that has it changed: a change begins pilots anew."""

QUIET = "quiet"
"""The state of a machine on which nothing else runs."""

WRONG = 0.01
SEEN = {(0.075, 0.05): 0.99, (0.03, 0.02): 0.95}
"""Of comparisons: the most that are wrong, and the fewest that see a share at a threshold."""

Record = Callable[[Sequence[float], int], Measurement]
"""Times copies of one opened model whose loops have these shares, in launches counted from the first; adds a pilot."""


@dataclass(frozen=True)
class Bar:
    """A bar that is met where the counted share lies in its range."""

    what: str
    value: float
    low: float
    high: float

    @property
    def is_met(self) -> bool:
        """Return whether the share lies in the range."""
        return self.low <= self.value <= self.high


# Calibration


def settle(
    shares: Sequence[float], record: Record, tell: Callable[[str], None] = print
) -> tuple[tuple[float, ...], float]:
    """Return the loops' shares with which copies are slower than the first by `shares`, and how surely.

    A pilot whose intervals are too wide is added to. Where one lies surely beside its share, or is narrow and still
    reaches too far, its loop is changed by the difference, and pilots begin anew: `PILOTS` of them at most.

    Returns:
        The loops, and how far the interval of a copy's ratio reaches from its share; `TOLERANCE` at most, if settled.
    """
    loops, kept, reach = list(shares), list[Measurement](), math.inf
    for number in range(PILOTS):
        kept.append(record(loops, number))
        found = [(_ratio(kept, i, SURE), _ratio(kept, i, SURER), share) for i, share in enumerate(shares[1:], 1)]
        tell(f"pilot {number + 1}: " + ", ".join(_in_words(share, one) for one, _, share in found))
        reach = max(_reach(one, share) for one, _, share in found)
        if reach <= TOLERANCE or number == PILOTS - 1:
            break
        wrong = [
            _is_beside(surer, share) or (_is_narrow(one) and _reach(one, share) > TOLERANCE)
            for one, surer, share in found
        ]
        if any(wrong):
            kept.clear()
        for i, (one, _, share) in enumerate(found):
            loops[i + 1] = max(loops[i + 1] - wrong[i] * (one.value - 1 - share), 0.0)
    return tuple(loops), reach


def _ratio(pilots: Sequence[Measurement], subject: int, confidence: float) -> Interval:
    ratios = [launch_ratios(one, 0, subject) for one in pilots]
    return paired_ratio(np.concatenate(ratios), confidence)


def _ends(one: Interval) -> tuple[float, float]:
    """The ends of an interval; of too few launches for one, no number lies outside."""
    return (0.0 if one.low is None else one.low), (math.inf if one.high is None else one.high)


def _reach(one: Interval, share: float) -> float:
    low, high = _ends(one)
    return max(1 + share - low, high - 1 - share)


def _is_narrow(one: Interval) -> bool:
    low, high = _ends(one)
    return high - low <= TOLERANCE


def _is_beside(one: Interval, share: float) -> bool:
    low, high = _ends(one)
    return high < 1 + share - TOLERANCE / 2 or low > 1 + share + TOLERANCE / 2


def _in_words(share: float, one: Interval) -> str:
    low, high = _ends(one)
    return f"{share:.1%} is {one.value - 1:.2%} ({low - 1:.2%} to {high - 1:.2%})"


# Recording


COMPUTE = "import os, sys\nwhile os.getppid() == int(sys.argv[1]):\n  for _ in range(10**6): pass"
"""A program that does nothing but compute, while the process whose number it is given is its parent."""


@contextlib.contextmanager
def busy(processes: int) -> Iterator[None]:
    """So many processes that compute while the block lasts."""
    command = [sys.executable, "-c", COMPUTE, str(os.getpid())]
    started = [subprocess.Popen(command) for _ in range(processes)]  # noqa: S603  # ours
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def copies(path: Path, loops: Sequence[float | None], is_shared: bool) -> tuple[list[Mapping[str, Any]], list[Subject]]:
    """Return the models of a plan, and its subjects: a copy for each loop, without one where that is None.

    Args:
        is_shared: they are one opened model, so that nothing but the loops differs between them.
    """
    artifact = artifacts.read(path)
    subjects = [
        replace(subject, name=f"{artifact.path.name} {'as it is' if loop is None else f'+ {loop:.2%}'} ({i})")
        for i, (subject, loop) in enumerate(zip(subjects_of([artifact] * len(loops)), loops, strict=True))
    ]
    models: list[Mapping[str, Any]] = []
    for subject, loop in zip(subjects, loops, strict=True):
        looped = {} if loop is None else {"slowed": loop, "loop": LOOP}
        shared = {"same": 0} if is_shared else {}
        models.append({"file": str(artifact.file.resolve()), "runtime": subject.runtime, **looped, **shared})
    return models, subjects


def progress(done: int, of: int) -> None:
    """Show how far a recording is, on a terminal."""
    if sys.stdout.isatty():
        print(f"\r{done}/{of}", end="\r", flush=True)


def calibrate(path: Path, folder: Path) -> tuple[tuple[float, ...], float]:
    """Return what `settle` does, from the pilots in a folder and from as many more as it takes."""

    def record(loops: Sequence[float], number: int) -> Measurement:
        kept = folder / f"pilot-{number + 1}.json"
        if (found := whole(kept)) is not None:
            return found
        models, subjects = copies(path, loops, is_shared=True)
        plan = Plan(models, PILOT_S, PILOT, seed=1000 * number)
        return carry_out(plan, subjects, reports=Reports(kept, progress))

    return settle(SHARES, record)


def whole(kept: Path) -> Measurement | None:
    """Return a measurement that is there and was not interrupted."""
    found = measurements.read(kept) if kept.exists() else None
    return found if found is not None and found.complete else None


def recorded(path: Path, loop: float, launches: int, kept: Path) -> Measurement:
    """Return launches as `compare` makes them, of the file and itself or of two copies, the second with a loop.

    They are recorded where there is no such record, or where it was interrupted.
    """
    if (found := whole(kept)) is not None:
        return found
    models, subjects = copies(path, (0.0, loop) if loop else (None, None), is_shared=False)
    plan = Plan(models, Settings(until=Criterion()).launch_s, launches, copies=copies_of(subjects))
    return carry_out(plan, subjects, reports=Reports(kept, progress))


def time_comparisons(path: Path, folder: Path, state: str) -> tuple[list[Bar], float]:
    """Compare the file with itself as `edgesmith compare` does.

    Returns:
        The bars of their time, where nothing else runs; and the seconds that a launch takes in this state.
    """
    bars, slowest = [], 0.0
    for threshold in THRESHOLDS:
        name = f"compare-{100 * threshold:g}" + ("" if state == QUIET else f"-{state}")
        kept, until = folder / f"{name}.json", Criterion(threshold)
        if (found := whole(kept)) is None:
            found = measure([path, path], Settings(until=until), reports=Reports(kept, progress))
        (verdict,) = until.judge_all(found)
        spent = found.launches[-1].after["time_s"] - found.launches[0].before["time_s"]
        said = f"{state}: compare at {threshold:.0%}: {verdict.verdict} after {len(found.launches)} launches, seconds"
        print(f"{said}: {spent:.1f}")
        if state == QUIET:
            bars.append(Bar(said, spent, 0.0, MOST_SECONDS))
        slowest = max(slowest, spent / len(found.launches))
    return bars, slowest


def launches_in_time(each_s: float) -> int:
    """Return how many launches of so many seconds a comparison makes: pairs, as many as fit, with an interval."""
    return min(max(2 * int(MOST_SECONDS / each_s / 2), FEWEST_LAUNCHES), MOST_LAUNCHES)


# Drawing


def pair(measurement: Measurement) -> Measurement:
    """Return the measurement of the first two subjects alone, each launch as one round that has its ratio."""

    def one(launch: Launch, ratio: float) -> Launch:
        order = list(launch.order or range(len(measurement.subjects)))
        first = next(slot for slot in launch.slots if slot.subject == 0)
        ms = median(first.samples_ms)
        slots = [replace(first, samples_ms=(ms,)), replace(first, subject=1, samples_ms=(ms * math.exp(ratio),))]
        turn = (0, 1) if order.index(0) < order.index(1) else (1, 0)
        return replace(launch, slots=tuple(slots), warm=launch.warm[:2], order=turn)

    launches = tuple(map(one, measurement.launches, launch_ratios(measurement, 0, 1).tolist()))
    return replace(measurement, subjects=measurement.subjects[:2], launches=launches)


def drawn_launches(measurement: Measurement, draw: np.random.Generator, count: int) -> Measurement:
    """Return a measurement of drawn launches in which the first two subjects come first by turns."""
    sides: dict[bool, list[int]] = {True: [], False: []}
    for i, launch in enumerate(measurement.launches):
        order = list(launch.order or range(len(measurement.subjects)))
        sides[order.index(0) < order.index(1)].append(i)
    if not all(sides.values()):  # a record of before launches alternated
        sides = {first: list(range(len(measurement.launches))) for first in sides}
    chosen = [draw.choice(sides[i % 4 in (0, 3)]) for i in range(count)]
    return replace(measurement, launches=tuple(measurement.launches[i] for i in chosen))


def conclude(measurement: Measurement, criterion: Criterion) -> tuple[Verdict, int]:
    """Judge a measurement as if it were being made. Returns the verdict, and after how many launches it stood.

    Its last launch is the last that there is time for.
    """
    looks = Plan([], 1.0, MOST_LAUNCHES, until=criterion).looks
    most = len(measurement.launches)
    for n in (*(n for n in looks if n < most), most):
        so_far = replace(measurement, launches=measurement.launches[:n], looks=looks)
        verdict = criterion.judge(so_far, so_far, 1)
        if criterion.stands(verdict):
            break
    return verdict, n


def drawn(
    measurement: Measurement, comparisons: int, criterion: Criterion, most: int = MOST_LAUNCHES
) -> tuple[Counter[Word], float]:
    """Return the verdicts of comparisons whose launches are drawn, and how many launches they took on average.

    Args:
        most: launches that there is time for.
    """
    draw = np.random.default_rng(0)
    ends = [conclude(drawn_launches(measurement, draw, most), criterion) for _ in range(comparisons)]
    return Counter(verdict.verdict for verdict, _ in ends), sum(n for _, n in ends) / comparisons


def judge_state(name: str, recordings: Mapping[float, Measurement], comparisons: int, most: int) -> list[Bar]:
    """Draw comparisons of `most` launches from recordings, by share, and print what came of them. Returns the bars."""
    print(f"\n{name}: a comparison has time for {most} launches")
    bars = []
    for share, found in recordings.items():
        two, ratios = pair(found), launch_ratios(found, 0, 1)
        print(f"slowed by {share:.1%}: {len(ratios)} launches; {measurements.environment_line(found.launches)}")
        print(f"    all of them {compare(two, two, 0, 1).reason}; they scatter by {ratios.std(ddof=1):.2%}")
        if not share:
            below, error = float(np.mean(ratios < 0)), 1.96 * (0.25 / len(ratios)) ** 0.5
            print(f"    head below base in {below:.1%} (+- {error:.1%}), mean {ratios.mean():+.2%}")
            bars.append(Bar(f"{name}: launches with head below base", below, 0.45, 0.55))
        for threshold in THRESHOLDS:
            verdicts, launches = drawn(two, comparisons, Criterion(threshold), most)
            said = ", ".join(f"{word} {count / comparisons:.1%}" for word, count in verdicts.most_common())
            print(
                f"    threshold {threshold:.0%}, {comparisons} comparisons: {said}; {launches:.1f} launches", flush=True
            )
            of = {word: count / comparisons for word, count in verdicts.items()}
            bars += bars_of(f"{name}: slowed by {share:.1%}, threshold {threshold:.0%}", share, threshold, of)
    return bars


def bars_of(name: str, share: float, threshold: float, of: Mapping[Word, float]) -> list[Bar]:
    """Return the bars of one pair at one threshold.

    A slowdown beyond the threshold has to be seen where nothing else runs; on a loaded machine it may be inconclusive.
    """
    slower, faster = of.get(SLOWER, 0.0), of.get(FASTER, 0.0)
    if share == 0:
        return [Bar(f"{name}: slower or faster", slower + faster, 0.0, WRONG)]
    bars = [Bar(f"{name}: faster", faster, 0.0, 0.0)]
    if share < threshold / 2:
        bars.append(Bar(f"{name}: slower", slower, 0.0, WRONG))
    elif name.startswith(QUIET) and (share, threshold) in SEEN:
        bars.append(Bar(f"{name}: slower", slower, SEEN[share, threshold], 1.0))
    return bars


def name_of(processes: int) -> str:
    """The name of a state of the machine, and of its recording."""
    return f"busy-{processes}" if processes else QUIET


def main() -> int:
    """Calibrate, record, draw, and print a line for each slowdown and each bar."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("launches", type=int, nargs="?", default=120)
    parser.add_argument("comparisons", type=int, nargs="?", default=1000)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("false_alarms"))
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 2], metavar="PROCESSES")
    given = parser.parse_args()
    folder: Path = given.folder
    folder.mkdir(parents=True, exist_ok=True)
    loops, reach = calibrate(given.artifact, folder)
    print(f"loops of {', '.join(f'{loop:.2%}' for loop in loops[1:])} of a call")
    bars = [Bar("a slowed copy's interval reaches from its share", reach, 0.0, TOLERANCE)]
    for processes in given.busy:
        name = name_of(processes)
        with busy(processes):
            times, each_s = time_comparisons(given.artifact, folder, name)
            counts = [given.launches * (1 if share else TIMES_OF_ITSELF) for share in SHARES]
            until = datetime.datetime.now() + datetime.timedelta(seconds=sum(counts) * each_s)
            print(f"{name}: {sum(counts)} launches, until about {until:%H:%M}", flush=True)
            recordings = {
                share: recorded(given.artifact, loop, count, folder / f"{name}-{100 * share:g}.json")
                for share, loop, count in zip(SHARES, loops, counts, strict=True)
            }
        bars += times + judge_state(name, recordings, given.comparisons, launches_in_time(each_s))
    told = [{"bar": b.what, "value": b.value, "low": b.low, "high": b.high, "met": b.is_met} for b in bars]
    records.write(
        {"artifact": str(given.artifact), "loops": list(loops), "bars": told}, folder / "verdicts.json", "bars"
    )
    print("\n" + "\n".join(f"{'met' if b.is_met else 'NOT MET':<8}{b.what}: {b.value:.3g}" for b in bars))
    return 0 if all(bar.is_met for bar in bars) else VerificationFailed.exit_code


if __name__ == "__main__":
    sys.exit(main())
