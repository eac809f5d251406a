"""Tables as lines that are whole at any width: no word and no number is broken.

    wide enough     a row is a line, or several, where cells are broken between words
    narrower        a row is a block: its first cell, and below it a line for each other cell

A column is at least as wide as its longest word. Numbers keep their units, and cells that are numbers, such as
`3.120 (3.101 to 3.150)`, are not broken at all. A word that is longer than a line stands on one of its own, whole, so
that it can be copied.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence

Rows = Sequence[Sequence[str]]

MOST_LINES, FEWEST_TALL = 5, 3
"""Lines of a row, and columns from which on more of them make a block of it."""

_GAP = "  "
"""Between two columns."""

_KEPT = "\x00"
"""In the place of a space at which no line ends."""

LONGEST_NUMBER = 40
"""Characters of what counts as a number with its interval."""

_IS_NUMBER = re.compile(r"(?=.*\d)[\d.,:%+\-()/xe >]+( to [\d.,e+-]+\)?)?( ?[A-Za-zµ%]{1,3})?", re.ASCII)
_BEFORE_UNIT = re.compile(r"(?<=\d) (?=(?:[kMGT]i?B|[munµ]?s|dB|[mkµ]?W|[mkµ]?J|[kMG]?Hz|MACs|[kMG])\b|%)")


def draw(columns: Sequence[str], rows: Rows, *, width: int, has_names: bool = False, rule: str = "-") -> Iterator[str]:
    """Yield the lines of a table.

    Args:
        columns: titles, all empty for a table without them.
        width: of a line.
        has_names: whether cells of the first column are not broken.
        rule: the character under the titles.
    """
    widths = column_widths(columns, rows, width, has_names)
    if widths is None or _is_tall(rows, widths):
        yield from _blocks(columns, rows, width)
        return
    if any(columns):
        yield from _line(columns, widths)
        yield " " + rule * (sum(widths) + len(_GAP) * (len(widths) - 1) + 2)
    for row in rows:
        yield from _line(row, widths)


def column_widths(columns: Sequence[str], rows: Rows, width: int, has_names: bool) -> list[int] | None:
    """Return the width of each column, or None where there is no room for the longest words of all of them."""
    least, most = [1] * len(columns), [1] * len(columns)
    for row in (columns, *rows):
        for i, cell in enumerate(row):
            lines = cell.split("\n")
            is_whole = row is not columns and i == 0 and has_names
            most[i] = max(most[i], *map(len, lines))
            least[i] = max(least[i], *(max(map(len, [line] if is_whole else _words(line))) for line in lines))
    left = width - len(_GAP) * len(columns) - sum(least)
    if left < 0:
        return None
    widths = list(least)
    by_want = sorted(range(len(columns)), key=lambda i: most[i] - least[i])
    for waiting, i in zip(range(len(columns), 0, -1), by_want, strict=True):  # who wants little gets all of it
        widths[i] += min(most[i] - least[i], left // waiting)
        left -= widths[i] - least[i]
    return widths


def _is_tall(rows: Rows, widths: Sequence[int]) -> bool:
    """Return whether a row of several short columns takes more lines than anybody reads across."""
    if len(widths) < FEWEST_TALL:
        return False
    cells = (break_lines(cell, width) for row in rows for cell, width in zip(row, widths, strict=True))
    return any(cell.count("\n") >= MOST_LINES for cell in cells)


def break_lines(text: str, width: int) -> str:
    """Return a text with its lines broken between words where they are too long."""
    return "\n".join(one for line in text.split("\n") for one in _broken(line, width))


def _line(cells: Sequence[str], widths: Sequence[int]) -> Iterator[str]:
    """Yield the lines of a row."""
    broken = [break_lines(cell, width).split("\n") for cell, width in zip(cells, widths, strict=True)]
    for i in range(max(map(len, broken))):
        parts = [(one[i] if i < len(one) else "").ljust(width) for one, width in zip(broken, widths, strict=True)]
        yield f"{_GAP}{_GAP.join(parts)}".rstrip()


def _blocks(columns: Sequence[str], rows: Rows, width: int) -> Iterator[str]:
    """Yield rows as blocks, with an empty line between two where they have titles."""
    is_titled = any(columns)
    indent = 2 * len(_GAP) + max(map(len, columns[1:]), default=0) if is_titled else 2 * len(_GAP)
    for i, row in enumerate(rows):
        if i and is_titled:
            yield ""
        yield from _indented(break_lines(row[0], width - len(_GAP)), _GAP, _GAP)
        for title, cell in zip(columns[1:], row[1:], strict=True):
            if cell:
                text = break_lines(cell, max(width - indent - len(_GAP), 1))
                yield from _indented(text, f"{2 * _GAP}{title}".ljust(indent + len(_GAP)), " " * (indent + len(_GAP)))


def _indented(text: str, first: str, others: str) -> Iterator[str]:
    for i, line in enumerate(text.split("\n")):
        yield f"{others if i else first}{line}".rstrip()


def _broken(line: str, width: int) -> list[str]:
    """Return a line as several that are no longer, but for words that are."""
    if len(line) <= width:
        return [line]
    start = line[: len(line) - len(line.lstrip())]
    wrapped = textwrap.wrap(
        _kept(line.strip()),
        max(width, 1),
        initial_indent=start,
        subsequent_indent=start,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [one.replace(_KEPT, " ") for one in wrapped] or [""]


def _kept(line: str) -> str:
    """Return a line with what no line ends at in the place of its spaces: those in numbers, and before units."""
    if len(line) <= LONGEST_NUMBER and _IS_NUMBER.fullmatch(line):
        return line.replace(" ", _KEPT)
    return _BEFORE_UNIT.sub(_KEPT, line)


def _words(line: str) -> list[str]:
    start = len(line) - len(line.lstrip())
    words = [one for one in _kept(line.strip()).split(" ") if one] or [""]
    return [words[0].rjust(len(words[0]) + start), *words[1:]]
