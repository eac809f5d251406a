"""The table of operators by target, as `make conformance` made it: operators.json, read without torch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

TABLE = Path(__file__).with_name("operators.json")

ORDER = ("right", "mended", "refused", "leaks", "silently wrong", "crash")
"""Verdicts from the best to the worst."""


@dataclass(frozen=True)
class Entry:
    """An operator on a target at a precision.

    Attributes:
        counts: how many of its cases have which verdict.
        reasons: the sentence of each refusal and failure, by the labels of its cases.
    """

    operator: str
    target: str
    precision: str
    counts: Mapping[str, int]
    reasons: Mapping[str, str]

    @property
    def verdict(self) -> str:
        """The worst of its cases."""
        return worst(self.counts)


def worst(kinds: Iterable[str]) -> str:
    """Return the worst of some verdicts."""
    return max(kinds, key=ORDER.index)


@cache
def table() -> tuple[Entry, ...]:
    """Return the entries, by operator, then by target and precision."""
    content = json.loads(TABLE.read_text())
    return tuple(
        Entry(name, *column.split(":"), one["counts"], one.get("reasons", {}))
        for name, columns in content.items()
        for column, one in columns.items()
    )


def write(rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the table of a sweep's rows."""
    found: dict[str, dict[str, Any]] = {}
    for row in sorted(rows, key=lambda row: (row["operator"], row["column"])):
        if not row["cases"]:
            continue
        counts = {kind: sum(one == kind for _, one, _ in row["cases"]) for kind in ORDER}
        entry: dict[str, Any] = {"counts": {kind: count for kind, count in counts.items() if count}}
        reasons: dict[str, str] = {label: why for label, _, why in row["cases"] if why}
        if reasons:
            entry["reasons"] = reasons
        found.setdefault(row["operator"], {})[row["column"]] = entry
    TABLE.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
