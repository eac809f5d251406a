"""Does the gate call a file slower or faster than itself, and does it see a known slowdown; and how often?

One file is timed in turn against itself and against copies of it that a busy loop makes 2 % and 5 % slower, in many
launches. Launches are processes that know nothing of each other, so that comparisons of as many launches as `edgesmith
compare` takes are drawn from them with replacement; the longer the recording, the less these resemble each other.

A call that follows a busy loop may find the processor in another state than one that follows a call. So a pilot first
measures what the loops cost, and they are made as much longer or shorter as it says; its launches are not drawn from.

    python -m edgesmith.bench.experiments.false_alarms ARTIFACT [launches] [comparisons] [record.json]

With a record that exists nothing is measured: its launches are drawn from.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from edgesmith.bench import measurement as measurements
from edgesmith.bench.measure import LAUNCHES, Plan, Reports, carry_out
from edgesmith.bench.measurement import Measurement
from edgesmith.bench.subjects import subjects_of
from edgesmith.bench.verdict import FASTER, SLOWER, compare
from edgesmith.exporters import artifact as artifacts

SLOWED = (0.0, 0.0, 0.02, 0.05)
"""Shares by which subjects are slowed; the first is base."""

LAUNCH_S = 2.0
"""Rounds of a launch, of four subjects; two of them in a comparison of 30 s have as many."""

PILOT = 24
"""Launches that the loops are calibrated with."""

THRESHOLD = 0.05


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
    names = [f"{artifact.path.name} + {share:.0%}" for share in SLOWED]
    models = [
        {"file": str(artifact.file.resolve()), "runtime": subject.runtime, "slowed": share}
        for subject, share in zip(subjects, shares, strict=True)
    ]
    named = [
        replace(subject, name=f"{name} ({i})") for i, (subject, name) in enumerate(zip(subjects, names, strict=True))
    ]
    reports = Reports(kept, lambda done, of: print(f"\r{done}/{of}", end="", flush=True))
    return carry_out(Plan(models, LAUNCH_S, launches), named, reports=reports)


def drawn(measurement: Measurement, comparisons: int, subject: int) -> Counter[str]:
    """Verdicts of comparisons of the first subject with another, each of launches drawn anew."""
    draw = np.random.default_rng(subject)
    verdicts: Counter[str] = Counter()
    for _ in range(comparisons):
        chosen = draw.integers(0, len(measurement.launches), LAUNCHES)
        one = replace(measurement, launches=tuple(measurement.launches[i] for i in chosen))
        verdicts[compare(one, one, 0, subject, threshold=THRESHOLD).verdict] += 1
    return verdicts


def main() -> None:
    """Record, draw, and print a line for each slowdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("launches", type=int, nargs="?", default=120)
    parser.add_argument("comparisons", type=int, nargs="?", default=1000)
    parser.add_argument("kept", type=Path, nargs="?", default=Path("false_alarms.json"))
    given = parser.parse_args()
    kept, comparisons = given.kept, given.comparisons
    if kept.exists():
        measurement = measurements.read(kept)
    else:
        loops = calibrated(given.artifact, kept)
        measurement = record(given.artifact, given.launches, kept, loops)
    print(f"\n{len(measurement.launches)} launches; {measurements.environment_line(measurement.launches)}")
    for subject, share in list(enumerate(SLOWED))[1:]:
        whole = compare(measurement, measurement, 0, subject, threshold=THRESHOLD)
        verdicts = drawn(measurement, comparisons, subject)
        shares = ", ".join(f"{name} {count / comparisons:.1%}" for name, count in verdicts.most_common())
        wrong = verdicts[FASTER] + (verdicts[SLOWER] if share == 0 else 0)
        print(f"slowed by {share:.0%}: all launches {whole.reason}")
        print(f"    {comparisons} comparisons of {LAUNCHES}: {shares}; wrong {wrong / comparisons:.1%}", flush=True)


if __name__ == "__main__":
    main()
