"""The parts of the page: sections of blocks, which `page.html` writes with everything escaped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from edgesmith.bench.statistics import Interval

if TYPE_CHECKING:
    from markupsafe import Markup


@dataclass(frozen=True)
class Share:
    """A table's cell that is a bar. value: of the whole; of_longest: of the table's longest bar."""

    value: float
    of_longest: float
    kind: str = "share"


@dataclass(frozen=True)
class Reason:
    """The reason for which a row has no figures: it takes the place of all cells behind the first."""

    text: str
    kind: str = "reason"


Cell = str | Share | Reason


@dataclass(frozen=True)
class Table:
    """Rows under columns; the first cell of a row names it.

    Attributes:
        figures: columns, from 0, that stand to the right.
        badge: a word before the caption, for what must not be taken for something else.
    """

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    figures: tuple[int, ...] = ()
    badge: str = ""
    kind: str = "table"


@dataclass(frozen=True)
class Figure:
    """A drawing, and its data as a table that unfolds. legend: what its numbers stand for. badge: as a table's."""

    name: str
    title: str
    summary: str
    svg: Markup
    table: Table
    legend: tuple[str, ...] = ()
    badge: str = ""
    kind: str = "figure"


@dataclass(frozen=True)
class Figures:
    """Figures side by side, where there is room."""

    figures: tuple[Figure, ...]
    kind: str = "figures"


@dataclass(frozen=True)
class Text:
    """A paragraph, or a heading where `level` is a heading's."""

    text: str
    level: int = 0
    kind: str = "text"


@dataclass(frozen=True)
class Pair:
    """Two tables side by side, where there is room."""

    tables: tuple[Table, Table]
    kind: str = "pair"


@dataclass(frozen=True)
class Folded:
    """Tables under a line that unfolds them."""

    summary: str
    tables: tuple[Table, ...]
    kind: str = "folded"


Block = Table | Figures | Text | Pair | Folded


@dataclass(frozen=True)
class Section:
    """A part of the page. name: its anchor. badge: as a table's."""

    name: str
    title: str
    blocks: tuple[Block, ...] = ()
    badge: str = ""


def interval(found: Interval) -> str:
    """A value and, where there is one, its interval."""
    ends = "" if found.low is None else f" ({found.low:.3f} to {found.high:.3f})"
    return f"{found.value:.3f}{ends}"


def drawing(svg: ElementTree.Element) -> Markup:
    """A figure's SVG as markup."""
    return markup(ElementTree.tostring(svg, encoding="unicode"))


def markup(text: str) -> Markup:
    """Text that is markup already: our style sheet, or what ElementTree wrote and escaped."""
    from markupsafe import Markup

    return Markup(text)  # noqa: S704  # see above
