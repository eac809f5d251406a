"""The parts of the page: sections of blocks, which `page.html` writes with everything escaped."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from edgesmith.bench.statistics import Interval, with_ends

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
    """A drawing, and its data as a table that unfolds.

    Attributes:
        legend: what its numbers stand for.
        badge: as a table's.
        data: all values behind it, where the table sums them up; text cells only.
    """

    name: str
    title: str
    summary: str
    svg: Markup
    table: Table
    legend: tuple[str, ...] = ()
    badge: str = ""
    data: Table | None = None
    kind: str = "figure"

    def files(self) -> tuple[tuple[str, str], ...]:
        """Return all that the figure shows as CSV and JSON: a kind of file, and an address that holds the file."""
        table = self.data or self.table
        rows = [[cell for cell in row if isinstance(cell, str)] for row in table.rows]
        lines = io.StringIO()
        csv.writer(lines, lineterminator="\n").writerows([table.columns, *rows])
        text = json.dumps([dict(zip(table.columns, row, strict=True)) for row in rows], ensure_ascii=False, indent=1)
        return (("csv", _address("text/csv", lines.getvalue())), ("json", _address("application/json", text)))


@dataclass(frozen=True)
class Answer:
    """A question that the page answers first.

    Attributes:
        word: the answer.
        words: what it rests on.
        is_bad: whether something is to be done about it.
    """

    question: str
    word: str
    words: str
    is_bad: bool = False


@dataclass(frozen=True)
class Answers:
    """The answers that the page begins with."""

    answers: tuple[Answer, ...]
    kind: str = "answers"


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
    """Tables and figures under a line that unfolds them."""

    summary: str
    tables: tuple[Table, ...] = ()
    figures: tuple[Figure, ...] = ()
    kind: str = "folded"


@dataclass(frozen=True)
class Saved:
    """A file in JSON that is saved from the page, a sentence about it, and links that end the line.

    Attributes:
        name: of the file.
        programs: names and addresses of programs that show it, or what it is about.
    """

    name: str
    content: Mapping[str, Any]
    about: str
    programs: Mapping[str, str] = field(default_factory=dict)
    kind: str = "saved"

    @property
    def address(self) -> str:
        """The address that holds the file."""
        return _address("application/json", json.dumps(self.content, ensure_ascii=False, indent=1))


Block = Table | Figures | Text | Pair | Folded | Answers | Saved


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        name: its anchor.
        badge: as a table's.
        is_detail: whether a printed page leaves it out.
    """

    name: str
    title: str
    blocks: tuple[Block, ...] = ()
    badge: str = ""
    is_detail: bool = False


def interval(found: Interval) -> str:
    """A value and, where there is one, its interval."""
    return with_ends(found.value, found.low, found.high)


def _address(kind: str, content: str) -> str:
    """Return an address that holds a file: it is saved without network and script."""
    return f"data:{kind};charset=utf-8;base64,{base64.b64encode(content.encode()).decode()}"


def drawing(svg: ElementTree.Element) -> Markup:
    """A figure's SVG as markup."""
    return markup(ElementTree.tostring(svg, encoding="unicode"))


def markup(text: str) -> Markup:
    """Text that is markup already: our style sheet, or what ElementTree wrote and escaped."""
    from markupsafe import Markup

    return Markup(text)  # noqa: S704  # see above
