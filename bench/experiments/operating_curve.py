"""The chance of each verdict of `compare` against the change that is true.

A comparison is simulated as `measure` runs it: launches in pairs of either order, looks, and an end where the verdict
stands. Each launch gives one number, the logarithm of head / base, which is the true change, what the order of the
launch adds, and noise. A shift of all numbers shifts every interval alike, so one simulated comparison serves all
changes.

    quiet    normal noise of 1.2 %, and 0.5 % for the order: what 120 launches of one file against itself showed
    loaded   Student's t of three degrees of freedom, of 5 %, and 1.7 % for the order: two processes on two cores; the
             spread is assumed

    python -m edgesmith.bench.experiments.operating_curve [comparisons] [quiet-0.json busy-2-0.json]

With records of `python -m edgesmith.bench.false_alarms`, their launches are drawn from instead. It prints a table and
writes docs/operating-curve.svg, of the threshold and the confidence that are usual.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from math import exp, log
from pathlib import Path

import numpy as np

from edgesmith.bench import measurement as measurements
from edgesmith.bench.experiments.command import Table, read_arguments
from edgesmith.bench.false_alarms import drawn_launches, pair
from edgesmith.bench.measure import MOST_LAUNCHES, Plan
from edgesmith.bench.statistics import Interval, confidence_of_a_look, paired_ratio
from edgesmith.bench.verdict import (
    FASTER,
    INCONCLUSIVE,
    SLOWER,
    UNCHANGED,
    Criterion,
    Verdict,
    Word,
    judge,
    launch_ratios,
)
from edgesmith.writing import write_whole

CHANGES = tuple(k / 200 for k in range(21))
"""True changes: 0 to 10 %."""

WORDS: tuple[Word, ...] = (UNCHANGED, INCONCLUSIVE, SLOWER, FASTER)
COLOURS = ("#2a7f62", "#8a8a8a", "#b3261e", "#2458a6")
FIGURE = Path("docs/operating-curve.svg")

Noise = Callable[[np.random.Generator], np.ndarray]
"""Draws the logarithms of head / base of a comparison's launches, of two files that are alike."""

Course = list[tuple[int, Interval]]
"""The logarithm of the ratio at each look, with its interval, and how many launches there were."""


def in_turn(lean: float, noise: Callable[[np.random.Generator, int], np.ndarray]) -> Noise:
    """Add what the order of a launch does: head second, first, first, second."""
    signs = np.array([1, -1, -1, 1] * MOST_LAUNCHES)[:MOST_LAUNCHES]
    return lambda draw: -lean * signs + noise(draw, MOST_LAUNCHES)


NOISES: dict[str, Noise] = {
    "quiet": in_turn(0.005, lambda draw, n: draw.normal(0, 0.012, n)),
    "loaded": in_turn(0.017, lambda draw, n: draw.standard_t(3, n) * 0.05 / 3**0.5),
}


def from_record(path: Path) -> Noise:
    """Draw launches of a record, of its first two subjects."""
    whole = pair(measurements.read(path))

    def draw_from(draw: np.random.Generator) -> np.ndarray:
        one = drawn_launches(whole, draw, MOST_LAUNCHES)
        return launch_ratios(one, 0, 1)

    return draw_from


def simulate(noise: Noise, criterion: Criterion, seed: int) -> Course:
    """Return what is seen at each look of one comparison of two files that are alike."""
    looks = Plan([], 1.0, MOST_LAUNCHES, until=criterion).looks
    confidence, ratios = confidence_of_a_look(criterion.confidence, looks), noise(np.random.default_rng(seed))
    course = []
    for n in looks:
        ratio = paired_ratio(ratios[:n], confidence)
        assert ratio.low is not None
        assert ratio.high is not None
        course.append((n, Interval(log(ratio.value), log(ratio.low), log(ratio.high))))
    return course


def conclude(course: Course, criterion: Criterion, change: float) -> tuple[Word, int]:
    """Return the verdict on a true change, and after how many launches."""
    by, verdict = log(1 + change), None
    for n, seen in course:
        assert seen.low is not None
        assert seen.high is not None
        ratio = Interval(exp(seen.value + by), exp(seen.low + by), exp(seen.high + by))
        verdict = Verdict(*judge(ratio, criterion.threshold, criterion.floor, n), "base", "head", ratio)
        if criterion.stands(verdict):
            break
    assert verdict is not None
    return verdict.verdict, n


def operate(
    noise: Noise, criterion: Criterion, changes: Sequence[float], comparisons: int
) -> list[tuple[Counter[Word], float]]:
    """Count the verdicts on each change, and the launches that they took on average."""
    courses = [simulate(noise, criterion, seed) for seed in range(comparisons)]
    found = []
    for change in changes:
        ends = [conclude(course, criterion, change) for course in courses]
        found.append((Counter(word for word, _ in ends), sum(n for _, n in ends) / comparisons))
    return found


def draw(panels: dict[str, list[dict[Word, float]]], threshold: float) -> str:
    """Return the figure as SVG: a panel for each state of the machine, a line for each verdict."""
    width, height, left, top = 360, 260, 46, 34

    def x(change: float) -> float:
        return left + change / CHANGES[-1] * (width - left - 22)

    def y(share: float) -> float:
        return height - 40 - share * (height - 40 - top)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width * len(panels)} {height}" role="img"'
        ' font-family="sans-serif" font-size="11"><title>Chance of each verdict against the true change</title>'
        f'<rect width="{width * len(panels)}" height="{height}" fill="#fff"/>'
    ]
    for i, (name, rows) in enumerate(panels.items()):
        parts.append(f'<g transform="translate({i * width} 0)"><text x="{left}" y="16" font-size="13">{name}</text>')
        for share in (0.0, 0.5, 1.0):
            parts.append(f'<line x1="{left}" x2="{width - 22}" y1="{y(share):.1f}" y2="{y(share):.1f}" stroke="#ddd"/>')
            parts.append(f'<text x="{left - 6}" y="{y(share) + 4:.1f}" text-anchor="end">{share:.0%}</text>')
        for change in (0.0, 0.025, 0.05, 0.075, 0.1):
            parts.append(f'<text x="{x(change):.1f}" y="{height - 24}" text-anchor="middle">{change:.1%}</text>')
        parts.append(f'<text x="{(left + width) / 2}" y="{height - 8}" text-anchor="middle">true change</text>')
        at = x(threshold)
        parts.append(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{top}" y2="{height - 40}" stroke="#999"')
        parts.append(' stroke-dasharray="4 3"/>')
        for k, (word, colour) in enumerate(zip(WORDS, COLOURS, strict=True)):
            points = " ".join(f"{x(c):.1f},{y(row[word]):.1f}" for c, row in zip(CHANGES, rows, strict=True))
            dashes = ("", "2 2", "8 2", "1 3")[k]
            parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{points}"')
            parts.append(f' stroke-dasharray="{dashes}"/>' if dashes else "/>")
            parts.append(f'<text x="{left + (58, 126, 204, 254)[k]}" y="16" fill="{colour}">{word}</text>')
        parts.append("</g>")
    return "".join(parts) + "</svg>\n"


def main() -> None:
    """Simulate, print and draw."""
    given = read_arguments(__doc__, listed="records", comparisons=1000)
    criterion, noises = Criterion(), NOISES
    if given.records:
        noises = dict(zip(NOISES, (from_record(Path(path)) for path in given.records), strict=True))
    panels = {}
    for name, noise in noises.items():
        print(f"{name}: {given.comparisons} comparisons, threshold {criterion.threshold:.0%}")
        table = Table("change", *(f"{word:>12}" for word in WORDS), "launches")
        rows = operate(noise, criterion, CHANGES, given.comparisons)
        panels[name] = [{word: counts[word] / given.comparisons for word in WORDS} for counts, _ in rows]
        for change, (counts, launches) in zip(CHANGES, rows, strict=True):
            shares = (f"{counts[word] / given.comparisons:12.1%}" for word in WORDS)
            table.add(f"{change:.1%}", *shares, f"{launches:.1f}")
    write_whole(FIGURE, draw(panels, criterion.threshold), "figure")
    print(FIGURE)


if __name__ == "__main__":
    main()
