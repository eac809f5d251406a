"""Figures as SVG that stands in the page: no script, no font and no colour of its own.

Colours are the style sheet's, by class, so that a figure is light or dark as the page is. A figure is 360 units wide:
on a phone a unit is about a pixel, and text as large as the page's. Marks differ in number or shape, never in colour
alone. Each has a title and a sentence for those who do not see it; its data stand in a table beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import numpy as np

from edgesmith.show import in_xml

WIDTH, HEIGHT = 360.0, 230.0
LEFT, RIGHT, TOP, BOTTOM = 62.0, 14.0, 16.0, 44.0
BINS = 40

EM = 11.0
"""Size of text, as the style sheet has it."""

ASCENT, DESCENT = 1.15 * EM, 0.4 * EM
"""Room for text above and below its line, in any font: Noto Sans has 1.07 and 0.3 of its size."""

DISC = 9.0
"""Radius of a numbered mark."""


@dataclass(frozen=True)
class Axis:
    """One side of a figure: its words, its ends, and where it has ticks. is_log: powers of ten are even."""

    label: str
    low: float
    high: float
    is_log: bool = False

    def share(self, value: float) -> float:
        """Return the share of the axis that lies before a value, from 0 to 1."""
        if self.is_log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    @property
    def ticks(self) -> list[float]:
        """Round numbers between the ends, about five."""
        if self.is_log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            for steps in ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0)):
                found = [s * 10.0**p for p in powers for s in steps if self.low <= s * 10.0**p <= self.high]
                if len(found) >= 3:
                    return found[:: math.ceil(len(found) / 6)]
        span = self.high - self.low
        size = 10.0 ** math.floor(math.log10(span / 4))
        step = next(step for step in (size, 2 * size, 5 * size, 10 * size) if span / step <= 5)
        first = math.ceil(self.low / step - 1e-9)
        return [i * step for i in range(first, first + 7) if i * step <= self.high + step * 1e-9]


def axis(label: str, values: Sequence[float], is_log: bool = False) -> Axis:
    """An axis that holds some numbers with a margin on either side."""
    low, high = min(values), max(values)
    if is_log:
        margin = max((high / low) ** 0.08, 1.1)
        return Axis(label, low / margin, high * margin, is_log=True)
    margin = max((high - low) * 0.08, abs(high) * 0.01, 1e-9)
    return Axis(label, low - margin, high + margin)


def number(value: float) -> str:
    """A number of about three digits, without a power of ten where it reads well."""
    return (
        f"{value:.3g}"
        if value == 0 or 1e-3 <= abs(value) < 1e4
        else f"{value:.1e}".replace(".0e", "e").replace("e-0", "e-").replace("e+0", "e")
    )


@dataclass(frozen=True)
class Mark:
    """One numbered point of a scatter plot. span: along x where it is only an estimate; None where it was measured."""

    number: int
    x: float
    y: float
    in_front: bool
    span: tuple[float, float] | None = None


def draw_scatter(name: str, title: str, summary: str, x: Axis, y: Axis, marks: Sequence[Mark]) -> Element:
    """Numbered points, and a line along the front of those that no other beats on both axes.

    What was measured is a disc; an estimate is a square on a bar as long as its span.
    """
    svg, at = _frame(name, title, summary, x, y)
    front = sorted((mark for mark in marks if mark.in_front), key=lambda mark: mark.x)
    if len(front) > 1:
        _add(svg, "polyline", {"class": "front", "points": " ".join(_pair(*at(mark.x, mark.y)) for mark in front)})
    spots = spread([at(mark.x, mark.y) for mark in marks])
    for mark, (px, py) in zip(marks, spots, strict=True):
        own = at(mark.x, mark.y)
        if (px, py) != own:  # a line from where it is to where there is room for its number
            _add(svg, "line", {"class": "lead", "x1": _n(own[0]), "y1": _n(own[1]), "x2": _n(px), "y2": _n(py)})
            _add(svg, "circle", {"class": "spot", "cx": _n(own[0]), "cy": _n(own[1]), "r": "2.5"})
        kind = "mark" if mark.in_front else "mark beaten"
        if mark.span is None:
            _add(svg, "circle", {"class": kind, "cx": _n(px), "cy": _n(py), "r": "9"})
        else:
            kind += " guess"
            (x1, _), (x2, _) = (at(end, mark.y) for end in mark.span)
            _add(svg, "line", {"class": "interval", "x1": _n(x1), "x2": _n(x2), "y1": _n(py), "y2": _n(py)})
            _add(svg, "rect", {"class": kind, "x": _n(px - 8), "y": _n(py - 8), "width": "16", "height": "16"})
        _write(svg, f"on-{kind}", px, py + 4, str(mark.number), 1.6 * DISC)
    return svg


def spread(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return a place for each point's disc: the point itself, or the nearest where the disc hides no other.

    Of more points than there is room for, the last stay where they are.
    """
    placed: list[tuple[float, float]] = []
    apart = 2 * DISC + 2
    for x, y in points:
        rings = ((apart * ring * 0.75, 8 * ring) for ring in range(1, 6))
        turns = ((far, 2 * math.pi * i / count) for far, count in rings for i in range(count))
        tried = [(x, y), *((x + far * math.cos(turn), y - far * math.sin(turn)) for far, turn in turns)]
        inside = [(a, b) for a, b in tried if _is_inside(a, b)]
        free = (one for one in inside if all(math.dist(one, other) >= apart for other in placed))
        placed.append(next(free, (x, y)))
    return placed


def _is_inside(x: float, y: float) -> bool:
    """Return whether a disc lies between the axes and the edges."""
    return LEFT + DISC <= x <= WIDTH - DISC - 1 and DISC + 1 <= y <= HEIGHT - BOTTOM - DISC


def draw_histogram(
    name: str, title: str, summary: str, samples_ms: Sequence[float], quantiles: Sequence[tuple[str, float]]
) -> Element:
    """Draw how often calls took how long; the slowest half per cent is not drawn, lest the rest be one bar."""
    low, high = min(samples_ms), float(np.quantile(samples_ms, 0.995))
    high = max(high, low * 1.01)
    counts, edges = np.histogram([ms for ms in samples_ms if ms <= high], bins=BINS, range=(low, high))
    x = axis("milliseconds of a call", [low, high])
    y = Axis("calls", 0.0, float(counts.max()) * 1.12)
    svg, at = _frame(name, title, summary, x, y)
    for count, left, right in zip(counts, edges, edges[1:], strict=False):
        (x0, y0), (x1, _) = at(float(left), float(count)), at(float(right), 0.0)
        size = {"x": _n(x0), "y": _n(y0), "width": _n(max(x1 - x0 - 0.5, 0.5)), "height": _n(at(left, 0.0)[1] - y0)}
        _add(svg, "rect", {"class": "fill", **size})
    ends = [-math.inf] * 4  # of the words in each row, which must not touch
    for word, value in quantiles:
        if value > high:
            continue
        px = at(value, 0.0)[0]
        wide = text_width(word)
        left = min(px + 3, WIDTH - RIGHT - wide)
        row = next((i for i, end in enumerate(ends) if left > end + 2), len(ends) - 1)
        ends[row] = left + wide
        _add(svg, "line", {"class": "limit", "x1": _n(px), "x2": _n(px), "y1": _n(TOP), "y2": _n(HEIGHT - BOTTOM)})
        _write(svg, "note", left, TOP + ASCENT + (ASCENT + DESCENT) * row, word, wide)
    return svg


def draw_launches(name: str, title: str, summary: str, launches: Sequence[Sequence[float]]) -> Element:
    """Every round of every launch in turn, and each launch's median; launches are told apart by their background."""
    values = [ms for launch in launches for ms in launch]
    x = Axis("rounds, launch after launch", 0.0, float(max(len(values), 1)))
    y = axis("milliseconds", [*np.quantile(values, [0.0, 0.99]), *(median(launch) for launch in launches)])
    svg, at = _frame(name, title, summary, x, y, ticks=False)
    start = 0
    for i, launch in enumerate(launches):
        (x0, top), (x1, bottom) = at(start, y.high), at(start + len(launch), y.low)
        if i % 2:
            size = {"x": _n(x0), "y": _n(top), "width": _n(x1 - x0), "height": _n(bottom - top)}
            _add(svg, "rect", {"class": "band", **size})
        places = [at(start + r + 0.5, min(ms, y.high)) for r, ms in enumerate(launch)]
        kind = "dots many" if len(values) > 200 else "dots"
        _add(svg, "path", {"class": kind, "d": "".join(f"M{_n(px)} {_n(py)}h0" for px, py in places)})
        py = at(0.0, median(launch))[1]
        _add(svg, "line", {"class": "level", "x1": _n(x0), "x2": _n(x1), "y1": _n(py), "y2": _n(py)})
        if len(launches) <= 20:
            _write(svg, "tick middle", (x0 + x1) / 2, HEIGHT - BOTTOM + 14, str(i + 1), max(x1 - x0 - 1, 1.0))
        start += len(launch)
    return svg


def draw_history(
    name: str,
    title: str,
    summary: str,
    values: Sequence[tuple[float, float | None, float | None]],
    starts: Sequence[int],
    words: Sequence[str],
    dates: Sequence[str] = (),
) -> Element:
    """A point with its interval for each run, the median of each stretch, and a line where a new one begins."""
    ends = [ms for value in values for ms in value if ms is not None]
    x, y = Axis("runs, oldest first", -0.5, len(values) - 0.5), axis("p50, milliseconds", ends)
    svg, at = _frame(name, title, summary, x, y, ticks=False)
    for i, (value, low, high) in enumerate(values):
        if low is not None and high is not None:
            px = at(i, value)[0]
            line = {"x1": _n(px), "x2": _n(px), "y1": _n(at(i, low)[1]), "y2": _n(at(i, high)[1])}
            _add(svg, "line", {"class": "interval", **line})
    borders = [0, *starts, len(values)]
    for a, b in pairwise(borders):
        py = at(0, median(value for value, _, _ in values[a:b]))[1]
        line = {"x1": _n(at(a - 0.5, y.low)[0]), "x2": _n(at(b - 0.5, y.low)[0]), "y1": _n(py), "y2": _n(py)}
        _add(svg, "line", {"class": "level", **line})
    for i, (value, _, _) in enumerate(values):
        px, py = at(i, value)
        _add(svg, "circle", {"class": "mark", "cx": _n(px), "cy": _n(py), "r": "3"})
    end, row = math.inf, 0
    for start, word in sorted(zip(starts, words, strict=True), reverse=True):
        px, size = at(start - 0.5, y.low)[0], text_width(word)
        row = (row + 1) % 3 if px - 3 > end else 0  # words side by side must not touch
        end = px - 3 - size
        _add(svg, "line", {"class": "limit", "x1": _n(px), "x2": _n(px), "y1": _n(TOP), "y2": _n(HEIGHT - BOTTOM)})
        _write(svg, "note end", max(px - 3, LEFT + size), TOP + ASCENT + (ASCENT + DESCENT) * row, word, size)
    _write_dates(svg, dates, [at(i, y.low)[0] for i in range(len(values))])
    return svg


def _write_dates(svg: Element, dates: Sequence[str], places: Sequence[float]) -> None:
    """Write the dates of runs under the axis, as many as there is room for, the first and the last among them."""
    if not dates:
        return
    size = max(map(text_width, dates))
    most = max(int((places[-1] - places[0]) // (size + 8)) + 1, 1)
    last = len(dates) - 1
    count = min(most, 4, len(dates))
    for i in sorted({round(i * last / (count - 1)) for i in range(count)}) if count > 1 else [last]:
        half = size / 2
        middle = min(max(places[i], half + 1), WIDTH - half - 1)
        _write(svg, "tick middle", middle, HEIGHT - BOTTOM + 14, dates[i], text_width(dates[i]))


def text_width(text: str) -> float:
    """Return the width that a text is given, in units, whatever font there is: about that of common sans-serifs."""
    return EM * sum(_NARROW if one in _NARROW_ONES else _WIDE if one in _WIDE_ONES else _USUAL for one in text)


_NARROW, _USUAL, _WIDE = 0.33, 0.58, 0.88
_NARROW_ONES, _WIDE_ONES = frozenset(" ijlt.,:;|()[]'!"), frozenset("mwMW%@")


def _length(size: float) -> dict[str, str]:
    """Return what has a browser draw a text exactly so wide: widths of fonts differ by a fifth."""
    return {"textLength": _n(size), "lengthAdjust": "spacingAndGlyphs"}


def _write(svg: Element, kind: str, x: float, y: float, text: str, size: float) -> None:
    """Write a text that is at most `size` wide."""
    if text:
        _add(svg, "text", {"class": kind, "x": _n(x), "y": _n(y), **_length(min(size, text_width(text)))}, text)


Place = Callable[[float, float], tuple[float, float]]


def _figure(name: str, title: str, summary: str, height: float) -> Element:
    """Return an empty figure, with words for those who do not see it."""
    view = f"0 0 {_n(WIDTH)} {_n(height)}"
    svg = Element("svg", {"viewBox": view, "role": "img", "aria-labelledby": f"{name}-title {name}-desc"})
    _add(svg, "title", {"id": f"{name}-title"}, title)
    _add(svg, "desc", {"id": f"{name}-desc"}, summary)
    return svg


def _frame(name: str, title: str, summary: str, x: Axis, y: Axis, ticks: bool = True) -> tuple[Element, Place]:
    """An empty figure with its axes, and what finds a point's place in it."""
    svg = _figure(name, title, summary, HEIGHT)

    def at(x_value: float, y_value: float) -> tuple[float, float]:
        across, up = x.share(x_value), y.share(y_value)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    for tick in y.ticks:
        py = at(x.low, tick)[1]
        _add(svg, "line", {"class": "grid", "x1": _n(LEFT), "x2": _n(WIDTH - RIGHT), "y1": _n(py), "y2": _n(py)})
        _write(
            svg,
            "tick end",
            LEFT - 5,
            py + 4,
            number(tick),
            min(text_width(number(tick)), LEFT - 5 - ASCENT - DESCENT - 2),
        )
    for tick in x.ticks if ticks else []:
        px = at(tick, y.low)[0]
        _add(svg, "line", {"class": "grid", "x1": _n(px), "x2": _n(px), "y1": _n(TOP), "y2": _n(HEIGHT - BOTTOM)})
        size = text_width(number(tick))
        middle = min(max(px, size / 2 + 1), WIDTH - size / 2 - 1)
        _write(svg, "tick middle", middle, HEIGHT - BOTTOM + 14, number(tick), size)
    size = min(text_width(x.label), WIDTH - LEFT - RIGHT)
    _write(svg, "label middle", (LEFT + WIDTH - RIGHT) / 2, HEIGHT - DESCENT - 3, x.label, size)
    turned = f"translate({_n(ASCENT + 1)} {_n((TOP + HEIGHT - BOTTOM) / 2)}) rotate(-90)"
    size = min(text_width(y.label), HEIGHT - TOP - BOTTOM)
    _add(svg, "text", {"class": "label middle", "transform": turned, **_length(size)}, y.label)
    return svg, at


def _add(parent: Element, tag: str, attributes: dict[str, str], text: str | None = None) -> None:
    shown = {name: in_xml(value) for name, value in attributes.items()}
    ElementTree.SubElement(parent, tag, shown).text = None if text is None else in_xml(text)


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _pair(x: float, y: float) -> str:
    return f"{_n(x)},{_n(y)}"


ROW = 38.0
"""Height of a row of a strip."""


def draw_strip(name: str, title: str, summary: str, rows: Sequence[tuple[str, float, float, float]]) -> Element:
    """Draw a row for each artifact: its name, a dot at p50, a bar to p90 and a line to p99, on one axis."""
    margin, height = 10.0, ROW * len(rows) + TOP / 2 + BOTTOM
    x = axis("milliseconds", [value for _, *found in rows for value in found])
    svg = _figure(name, title, summary, height)

    def place(value: float) -> float:
        return margin + x.share(value) * (WIDTH - 2 * margin)

    bottom = height - BOTTOM
    for tick in x.ticks:
        px, size = place(tick), text_width(number(tick))
        _add(svg, "line", {"class": "grid", "x1": _n(px), "x2": _n(px), "y1": _n(TOP / 2), "y2": _n(bottom)})
        middle = min(max(px, size / 2 + 1), WIDTH - size / 2 - 1)
        _write(svg, "tick middle", middle, bottom + 14, number(tick), size)
    _write(svg, "label middle", WIDTH / 2, height - DESCENT - 3, x.label, text_width(x.label))
    for i, (label, p50, p90, p99) in enumerate(rows):
        top = TOP / 2 + ROW * i
        py = top + ROW - 11
        _write(svg, "row", margin, top + ASCENT, shortened(label, WIDTH - 2 * margin), WIDTH - 2 * margin)
        _add(svg, "line", {"class": "tail", "x1": _n(place(p50)), "x2": _n(place(p99)), "y1": _n(py), "y2": _n(py)})
        _add(svg, "line", {"class": "reach", "x1": _n(place(p50)), "x2": _n(place(p90)), "y1": _n(py), "y2": _n(py)})
        _add(svg, "circle", {"class": "mark", "cx": _n(place(p50)), "cy": _n(py), "r": "4.5"})
    return svg


def shortened(text: str, size: float) -> str:
    """Return a text without its middle where it is wider than `size` units."""
    kept = len(text)
    while kept > 2 and text_width(_without_middle(text, kept)) > size:
        kept -= 1
    return _without_middle(text, kept)


def _without_middle(text: str, kept: int) -> str:
    return (
        text
        if kept >= len(text)
        else f"{text[: kept // 2]}\N{HORIZONTAL ELLIPSIS}{text[len(text) - (kept - kept // 2) :]}"
    )
