"""The table of operators by target, as `make conformance` made it: operators.json, read without torch.

For each operator and each `target:precision` it says how many cases have which verdict, and of each verdict that is no
plain `right` or `mended` the first case with its sentence. `markdown` is docs/operators.md.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypedDict

from edgesmith.errors import BadInput, unknown
from edgesmith.readers.documents import read_json
from edgesmith.writing import write_whole

TABLE = Path(__file__).with_name("operators.json")

ORDER = ("right", "mended", "refused", "leaks", "silently wrong", "crash")
"""Verdicts from the best to the worst."""


class Example(TypedDict):
    """The first case with a verdict, and the sentence that goes with it."""

    case: str
    why: str


@dataclass(frozen=True)
class Entry:
    """An operator on a target at a precision.

    Attributes:
        counts: how many of its cases have which verdict.
        examples: of each verdict that comes with a sentence.
    """

    operator: str
    target: str
    precision: str
    counts: Mapping[str, int]
    examples: Mapping[str, Example]

    @property
    def column(self) -> str:
        """The target and precision, such as `onnx fp32`."""
        return f"{self.target} {self.precision}"

    def describe(self) -> str:
        """Return the verdicts in a few characters: `right`, or `7 right, 1 refused` where they differ."""
        if len(self.counts) == 1:
            return next(iter(self.counts))
        return ", ".join(f"{self.counts[kind]} {kind}" for kind in ORDER if kind in self.counts)


def worst(kinds: Iterable[str]) -> str:
    """Return the worst of some verdicts."""
    return max(kinds, key=ORDER.index)


NOT_TRIED = "not tried"
"""In the place of verdicts: no case of that operator has been run on that target."""


@cache
def table() -> tuple[Entry, ...]:
    """Return the entries, by operator, then by target and precision."""
    content = read_json(TABLE, "table of operators")
    found = []
    for name, columns in content.items():
        for column, one in columns.items():
            target, _, precision = column.partition(":")
            found.append(Entry(name, target, precision, one["counts"], one.get("examples", {})))
    return tuple(found)


def find(name: str | None = None, target: str | None = None) -> list[Entry]:
    """Return the entries of operators whose name contains `name`, for one target or for all.

    Raises:
        BadInput: no operator is called so, or the table has no such target.
    """
    entries = list(table())
    if target is not None:
        known = dict.fromkeys(entry.target for entry in entries)
        if target not in known:
            raise BadInput(f"the table of operators has no target {target!r}; it has {', '.join(known)}")
        entries = [entry for entry in entries if entry.target == target]
    if name is None:
        return entries
    plain = name.removeprefix("torch.").removeprefix("aten.")
    found = [entry for entry in entries if entry.operator == plain] or [e for e in entries if plain in e.operator]
    if not found and any(plain in entry.operator for entry in table()):
        raise BadInput(f"{plain} has not been tried on {target}; leave --target out to see where it has")
    if not found:
        raise unknown("operator", plain, dict.fromkeys(entry.operator for entry in entries), "edgesmith operators")
    return found


def totals(entries: Iterable[Entry]) -> dict[str, Counter[str]]:
    """Return by column how many cases have which verdict."""
    found: dict[str, Counter[str]] = {}
    for entry in entries:
        found.setdefault(entry.column, Counter()).update(entry.counts)
    return found


def tried(entries: Iterable[Entry]) -> dict[str, int]:
    """Return by column how many operators have been run there."""
    return dict(Counter(entry.column for entry in entries))


def write(rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a sweep's rows into the table: their columns replace those of the same name, the others stay."""
    swept = {row["column"] for row in rows}
    found: dict[str, dict[str, Any]] = {
        name: kept
        for name, columns in read_json(TABLE, "table of operators").items()
        if (kept := {column: one for column, one in columns.items() if column not in swept})
    }
    for row in rows:
        if not row["cases"]:
            continue
        counts = Counter(kind for _, kind, _ in row["cases"])
        examples: dict[str, Example] = {}
        for label, kind, why in row["cases"]:
            if why:
                examples.setdefault(kind, {"case": label, "why": why})
        entry: dict[str, Any] = {"counts": {kind: counts[kind] for kind in ORDER if kind in counts}}
        found.setdefault(row["operator"], {})[row["column"]] = entry | ({"examples": examples} if examples else {})
    table = {name: dict(sorted(found[name].items())) for name in sorted(found)}
    write_whole(TABLE, json.dumps(table, indent=1, ensure_ascii=False) + "\n", "table")


def markdown(entries: Sequence[Entry]) -> str:
    """Return docs/operators.md."""
    columns = sorted(dict.fromkeys(entry.column for entry in entries))
    by_operator: dict[str, dict[str, Entry]] = {}
    for entry in entries:
        by_operator.setdefault(entry.operator, {})[entry.column] = entry
    summed, run = totals(entries), tried(entries)
    lines = [
        "# Operators by target",
        "",
        "Generated from `exporters/verification/operators.json` by `make operators`; `make conformance` makes that by",
        "running. `edgesmith operators NAME` also shows why a case is refused. Numbers are cases.",
        "",
        "- right: every value within the operator's tolerance of PyTorch's",
        "- mended: the same, by a decomposition, a lowering or a rewrite of edgesmith's",
        "- refused: not exported, with one sentence that says why and what to do",
        f"- {NOT_TRIED}: no case has been run there, which says nothing about it, as of operators not listed",
        "",
        f"| | {' | '.join(columns)} |",
        f"|---|{'---|' * len(columns)}",
        f"| operators tried | {' | '.join(f'{run[column]} of {len(by_operator)}' for column in columns)} |",
        *(
            f"| {kind} | {' | '.join(str(summed[column][kind]) for column in columns)} |"
            for kind in ORDER
            if any(summed[column][kind] for column in columns)
        ),
        "",
        f"| operator | {' | '.join(columns)} |",
        f"|---|{'---|' * len(columns)}",
    ]
    for name, row in by_operator.items():
        cells = (row[column].describe() if column in row else NOT_TRIED for column in columns)
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
