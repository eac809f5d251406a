"""Does the gate call a file slower or faster than itself, and does it see a known slowdown; and how often?

One file is timed in turn against itself and against copies of it that a busy loop makes 2 %, 3 % and 7.5 % slower, in
many launches of alternating order. Launches are processes that know nothing of each other, so comparisons as `edgesmith
compare` makes them, looks included, are drawn from them with replacement, as many of one order as of the other; the
longer the recording, the less they resemble each other.

A call that follows a busy loop may find the processor in another state than one that follows a call. So a pilot first
measures what the loops cost, and they are made as much longer or shorter as it says; its launches are not drawn from.

    python -m edgesmith.bench.false_alarms ARTIFACT [launches] [comparisons] [record.json] [--busy 2]

--busy starts so many processes that do nothing but compute: a loaded machine. With a record that exists nothing is
measured: its launches are drawn from. A launch lasts about five seconds for a model of 20 ms, three for one of 0.2 ms:
144 of them, with the pilot's, are 6 to 12 minutes, and the drawn comparisons two more.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from edgesmith.bench import measurement as measurements
from edgesmith.bench.measure import MOST_LAUNCHES, Plan, Reports, carry_out
from edgesmith.bench.measurement import Measurement
from edgesmith.bench.statistics import log_ratios
from edgesmith.bench.subjects import subjects_of
from edgesmith.bench.verdict import FASTER, SLOWER, Criterion, Verdict, compare
from edgesmith.exporters import artifact as artifacts

SLOWED = (0.0, 0.0, 0.02, 0.03, 0.075)
"""Shares by which subjects are slowed; the first is base."""

THRESHOLDS = (0.05, 0.02)

LAUNCH_S = 2.5
"""Rounds of a launch, of five subjects; two of them in a comparison of 60 s have as many."""

PILOT = 24
"""Launches that the loops are calibrated with."""


@contextlib.contextmanager
def busy(processes: int) -> Iterator[None]:
    """So many processes that compute while the block lasts."""
    started = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]  # Python
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def calibrated(path: Path, kept: Path) -> tuple[float, ...]:
    """Return what loops have to add for the copies to be slower by `SLOWED`.

    Raises:
        RuntimeError: one is not slower.
    """
    pilot = record(path, PILOT, kept.with_suffix(".pilot.json"))
    shares = []
    for subject, share in enumerate(SLOWED):
        ratio = compare(pilot, pilot, 0, subject).ratio if share else None
        if ratio is not None and ratio.value <= 1:
            raise RuntimeError(
                f"a copy slowed by {share:.0%} took {ratio.value:.3f} of the time: measure on a quiet machine"
            )
        shares.append(share**2 / (ratio.value - 1) if ratio is not None else share)
    return tuple(shares)


def record(path: Path, launches: int, kept: Path, shares: Sequence[float] = SLOWED) -> Measurement:
    """Time a file against itself and copies that a loop slows by so much."""
    artifact = artifacts.read(path)
    subjects = subjects_of([artifact] * len(SLOWED))
    names = [f"{artifact.path.name} + {share:.1%}" for share in SLOWED]
    models = [
        {"file": str(artifact.file.resolve()), "runtime": subject.runtime, "slowed": share}
        for subject, share in zip(subjects, shares, strict=True)
    ]
    named = [
        replace(subject, name=f"{name} ({i})") for i, (subject, name) in enumerate(zip(subjects, names, strict=True))
    ]
    reports = Reports(kept, lambda done, of: print(f"\r{done}/{of}", end="", flush=True))
    return carry_out(Plan(models, LAUNCH_S, launches), named, reports=reports)


def drawn_launches(measurement: Measurement, draw: np.random.Generator, count: int, subject: int = 1) -> Measurement:
    """Return a measurement of drawn launches in which base and a subject come first by turns."""
    sides: dict[bool, list[int]] = {True: [], False: []}
    for i, launch in enumerate(measurement.launches):
        order = launch.order or range(len(measurement.subjects))
        sides[list(order).index(0) < list(order).index(subject)].append(i)
    if not all(sides.values()):  # a record of before launches alternated
        sides = {first: list(range(len(measurement.launches))) for first in sides}
    chosen = [draw.choice(sides[i % 4 in (0, 3)]) for i in range(count)]
    return replace(measurement, launches=tuple(measurement.launches[i] for i in chosen))


def conclude(measurement: Measurement, criterion: Criterion, subject: int) -> tuple[Verdict, int]:
    """Judge a measurement as if it were being made. Returns the verdict, and after how many launches it stood."""
    looks = Plan([], 1.0, len(measurement.launches), until=criterion).looks
    for n in looks:
        so_far = replace(measurement, launches=measurement.launches[:n], looks=looks)
        verdict = criterion.judge(so_far, so_far, subject)
        if criterion.stands(verdict):
            break
    return verdict, n


def drawn(measurement: Measurement, comparisons: int, subject: int, criterion: Criterion) -> tuple[Counter[str], float]:
    """Return the verdicts of comparisons whose launches are drawn, and how many launches they took on average."""
    draw = np.random.default_rng(subject)
    ends = [
        conclude(drawn_launches(measurement, draw, MOST_LAUNCHES, subject), criterion, subject)
        for _ in range(comparisons)
    ]
    return Counter(verdict.verdict for verdict, _ in ends), sum(n for _, n in ends) / comparisons


def main() -> None:
    """Record, draw, and print a line for each slowdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("launches", type=int, nargs="?", default=120)
    parser.add_argument("comparisons", type=int, nargs="?", default=1000)
    parser.add_argument("kept", type=Path, nargs="?", default=Path("false_alarms.json"))
    parser.add_argument("--busy", type=int, default=0, metavar="PROCESSES")
    given = parser.parse_args()
    kept, comparisons = given.kept, given.comparisons
    if kept.exists():
        measurement = measurements.read(kept)
    else:
        with busy(given.busy):
            loops = calibrated(given.artifact, kept)
            measurement = record(given.artifact, given.launches, kept, loops)
    print(f"\n{len(measurement.launches)} launches; {measurements.environment_line(measurement.launches)}")
    ratios = log_ratios(measurement.rounds(0), measurement.rounds(1))
    print(f"head of one file against itself below base in {np.mean(ratios < 0):.1%}, mean {ratios.mean():+.2%}")
    for subject, share in list(enumerate(SLOWED))[1:]:
        print(f"slowed by {share:.1%}: all launches {compare(measurement, measurement, 0, subject).reason}")
        for threshold in THRESHOLDS:
            verdicts, launches = drawn(measurement, comparisons, subject, Criterion(threshold))
            shares = ", ".join(f"{name} {count / comparisons:.1%}" for name, count in verdicts.most_common())
            wrong = verdicts[FASTER] + (verdicts[SLOWER] if share == 0 else 0)
            said = f"{shares}; wrong {wrong / comparisons:.1%}; {launches:.1f} launches"
            print(f"    threshold {threshold:.0%}, {comparisons} comparisons: {said}", flush=True)


if __name__ == "__main__":
    main()
