"""Latency against error or accuracy: a figure of numbered points, and the front of those that no other beats."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edgesmith.bench.report import figures
from edgesmith.bench.report.blocks import Figure, Table, drawing, interval
from edgesmith.bench.report.figures import Mark, axis, number
from edgesmith.bench.statistics import Interval

LEAST_ERROR = 1e-9
"""The position of equal files on an axis of powers of ten."""

Point = tuple[str, Interval, float]
"""A name, its p50, and its error or accuracy."""


@dataclass(frozen=True)
class Measure:
    """A measure that latency is weighed against.

    Attributes:
        words: of its axis; extreme: of the best point.
        sign: 1 where less is better, -1 where more is.
        is_log: powers of ten are even on its axis.
        form: a value in words.
    """

    words: str
    extreme: str
    sign: int
    is_log: bool
    form: Callable[[float], str]


MEASURES = {
    "error": Measure("error, relative to the peak", "Least error", 1, True, number),
    "accuracy": Measure("top-1, published, per cent", "Most accurate", -1, False, "{:.1f}".format),
}


def draw_tradeoff(name: str, where: str, kind: str, points: Sequence[Point], is_estimated: bool = False) -> Figure:
    """Draw points of one device and task, all measured or all estimated.

    Args:
        name: of the figure in the page.
        kind: of `MEASURES`.
    """
    measure = MEASURES[kind]
    told = "estimated" if is_estimated else "measured"
    marks = _marks(points, measure, is_estimated)
    ends = [ms for mark in marks for ms in (mark.x, *(mark.span or ()))]
    x = axis(f"{told} p50, milliseconds", ends, is_log=True)
    y = axis(measure.words, [mark.y for mark in marks], is_log=measure.is_log)
    title = f"{'Estimated latency' if is_estimated else 'Latency'} against {kind}: {where}"
    badge = "ESTIMATED" if is_estimated else ""
    summary = _summary(points, measure, sum(mark.in_front for mark in marks), badge)
    rows = tuple(
        (f"{mark.number}", word, interval(p50), measure.form(value), "yes" if mark.in_front else "no")
        for mark, (word, p50, value) in zip(marks, points, strict=True)
    )
    columns = ("point", told, f"{told} p50, ms", measure.words, "in front")
    table = Table(title, columns, rows, figures=(2, 3), badge=badge)
    svg = figures.draw_scatter(name, title, summary, x, y, marks)
    return Figure(name, title, summary, drawing(svg), table, tuple(word for word, _, _ in points), badge)


def _marks(points: Sequence[Point], measure: Measure, is_estimated: bool) -> list[Mark]:
    """The points with their numbers, and whether each is in front: no other is at least as good on both axes."""
    sides = [(p50.value, measure.sign * value) for _, p50, value in points]
    marks = []
    for i, (own, (_, p50, value)) in enumerate(zip(sides, points, strict=True), 1):
        is_beaten = any(a <= own[0] and b <= own[1] and (a, b) != own for a, b in sides)
        is_known = is_estimated and p50.low is not None and p50.high is not None
        span = (p50.low, p50.high) if is_known else None
        marks.append(Mark(i, p50.value, value, not is_beaten, span))  # type: ignore[arg-type]  # is_known says so
    return marks


def _summary(points: Sequence[Point], measure: Measure, in_front: int, badge: str) -> str:
    """The figure in a sentence, for those who do not see it."""
    best = min(points, key=lambda one: measure.sign * one[2])
    fastest = min(points, key=lambda one: one[1].value)
    return (
        f"{f'{badge}, nothing was run; a bar is an interval. ' if badge else ''}"
        f"{len(points)} point{'s' * (len(points) != 1)}, {in_front} in front."
        f" Fastest: {fastest[0]} with {fastest[1].value:.2f} ms."
        f" {measure.extreme}: {best[0]} with {measure.form(best[2])}."
    )
