"""The part of docs/lint.md that the book says: python -m edgesmith.exporters.departures.page prints it."""

from __future__ import annotations

import sys

from edgesmith.exporters.departures.book import SURE, TARGETS, Departure, all_departures, of_target

BEGIN = "<!-- from exporters/departures/departures.toml, by edgesmith.exporters.departures.page -->"
END = "<!-- end of the book -->"


def book_as_markdown() -> str:
    """Return the book's rows as tables, one for each who computes, between two marks."""
    parts = [BEGIN, ""]
    for target, computer in TARGETS.items():
        rows = of_target(target)
        parts += [
            f"### {computer.title}",
            "",
            "| id | construct | what comes out | safe form | severity, and how sure | source |",
        ]
        parts += ["|---|---|---|---|---|---|", *map(_line, rows), ""]
    parts.append(END)
    return "\n".join(parts)


def _line(row: Departure) -> str:
    links = ", ".join(f"[{_label(one)}]({address})" for one, address in zip(row.source, row.sources, strict=True))
    versions = [f"from {row.since}"] if row.since else []
    versions += [f"before {row.fixed_in}"] if row.fixed_in else []
    where = "; ".join([row.where, *versions])
    severity = row.severity("0", True) if row.detector else "not found"
    sure = f"{severity}; {SURE[row.sure]}"
    if row.rule:
        sure += f"; as {row.rule}"
    if row.unseen:
        sure += f". {row.unseen}"
    cells = (row.id, row.construct, f"{row.wrong} ({where}.)", row.safe, sure, links)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _label(source: str) -> str:
    return source.removeprefix("https://").rstrip("/").rpartition("/")[2] if "://" in source else source


def replaced(page: str) -> str:
    """Return a page with the part between the marks as the book says it now."""
    before, _, rest = page.partition(BEGIN)
    return before + book_as_markdown() + rest.partition(END)[2]


if __name__ == "__main__":
    sys.stdout.write(book_as_markdown() + "\n" if all_departures() else "")
