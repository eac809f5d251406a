"""Latency against error or accuracy: a figure of numbered points, and the front of those that no other beats."""

from __future__ import annotations

from collections.abc import Sequence

from edgesmith.bench.report import figures
from edgesmith.bench.report.blocks import Figure, Table, drawing, interval
from edgesmith.bench.report.figures import Mark, axis, number
from edgesmith.bench.statistics import Interval

LEAST_ERROR = 1e-9
"""Where equal files stand on an axis of powers of ten."""

Point = tuple[str, Interval, float]
"""What has a latency, its p50, and its error or accuracy."""


def draw_tradeoff(name: str, where: str, kind: str, points: Sequence[Point], is_estimated: bool = False) -> Figure:
    """Points of one device and task, all measured or all estimated. kind: `error`, least is best, or `accuracy`."""
    best = min if kind == "error" else max
    sign = 1 if kind == "error" else -1

    def is_beaten(one: Point) -> bool:
        sides = one[1].value, sign * one[2]
        others = ((p50.value, sign * value) for _, p50, value in points)
        return any(a <= sides[0] and b <= sides[1] and (a, b) != sides for a, b in others)

    marks = [
        Mark(
            i,
            p50.value,
            y,
            not is_beaten((word, p50, y)),
            (p50.low, p50.high) if is_estimated and p50.low is not None and p50.high is not None else None,
        )
        for i, (word, p50, y) in enumerate(points, 1)
    ]
    told = "estimated" if is_estimated else "measured"
    ends = [ms for mark in marks for ms in (mark.x, *(mark.span or ()))]
    x = axis(f"{told} p50, milliseconds", ends, is_log=True)
    words = "error, relative to the peak" if kind == "error" else "top-1, published, per cent"
    y = axis(words, [mark.y for mark in marks], is_log=kind == "error")
    form = number if kind == "error" else (lambda value: f"{value:.1f}")
    front = sum(mark.in_front for mark in marks)
    extreme = best(points, key=lambda one: one[2])
    fastest = min(points, key=lambda one: one[1].value)
    title = f"{'Estimated latency' if is_estimated else 'Latency'} against {kind}: {where}"
    summary = (
        f"{'ESTIMATED, nothing was run; a bar is an interval. ' if is_estimated else ''}"
        f"{len(points)} point{'s' * (len(points) != 1)}, {front} in front."
        f" Fastest: {fastest[0]} with {fastest[1].value:.2f} ms."
        f" {'Least error' if kind == 'error' else 'Most accurate'}: {extreme[0]} with {form(extreme[2])}."
    )
    rows = tuple(
        (f"{mark.number}", word, interval(p50), form(value), "yes" if mark.in_front else "no")
        for mark, (word, p50, value) in zip(marks, points, strict=True)
    )
    columns = ("point", told, f"{told} p50, ms", words, "in front")
    badge = "ESTIMATED" if is_estimated else ""
    table = Table(title, columns, rows, figures=(2, 3), badge=badge)
    svg = figures.draw_scatter(name, title, summary, x, y, marks)
    return Figure(name, title, summary, drawing(svg), table, tuple(word for word, _, _ in points), badge)
