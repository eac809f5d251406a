"""The book of departures: its rows, read from `departures.toml` and held to their form.

A severity follows from how sure a row is, and from what a graph alone can show:

    error     wrong numbers or a crash, by the vendor's own word or seen by two parties
    warning   the same by one author's measurement; and inaccurate results of the first kind
    note      a single report; what only values decide and one author measured

It falls by one where values decide whether it happens, and by one where the fault is that of some versions or chips and
the reader did not say which he has. Costs in time are no departures: rules.py has them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from edgesmith.errors import Unreadable, unknown
from edgesmith.readers.documents import read_toml
from edgesmith.readers.typed import as_dataclass


@dataclass(frozen=True)
class Computer:
    """One who computes files: a runtime, a compiler, a library for an accelerator.

    Attributes:
        title: in words.
        suffixes: of the files that it takes.
        exported_for: the target that a model is exported for, to be computed by it.
        comes_with_system: its version is what a device's system brings.
    """

    title: str
    suffixes: tuple[str, ...] = (".onnx",)
    exported_for: str = "onnx"
    comes_with_system: bool = False


TARGETS = {
    "coreml": Computer("Core ML", (".mlpackage", ".mlmodel"), "coreml"),
    "coreai": Computer("Core AI", (".aimodel",), "coreai"),
    "ort": Computer("ONNX Runtime"),
    "tensorrt": Computer("TensorRT", comes_with_system=True),
    "qnn": Computer("Qualcomm's HTP"),
    "litert": Computer("LiteRT on GPUs"),
    "xnnpack": Computer("XNNPACK"),
    "tvm": Computer("TVM"),
}
"""Who computes, by the name that rows and `--for` have for it; of those who take a file the first is the default."""

EFFECTS = ("wrong", "crash", "inaccurate")
SURE = {
    "vendor": "the vendor's own word",
    "reproduced": "seen by two parties or more",
    "measured": "measured by one author, with a control",
    "reported": "reported once",
}
SEVERITIES = ("error", "warning", "note")

_ID = re.compile(r"[A-Z]{2}[0-9]+")
_VERSION = re.compile(r"[0-9]+(\.[0-9]+)*")
_THREAD = re.compile(r"([\w.-]+/[\w.-]+)#([0-9]+)")


@dataclass(frozen=True)
class Departure:
    """A row of the book; departures.toml says what each key is."""

    id: str
    target: str
    title: str
    where: str
    construct: str
    wrong: str
    safe: str
    effect: str
    sure: str
    source: tuple[str, ...]
    since: str | None = None
    fixed_in: str | None = None
    socs: tuple[str, ...] = ()
    capabilities: tuple[str, ...] = ()
    values: bool = False
    rule: str | None = None
    detector: str | None = None
    found: str | None = None
    left: str | None = None
    unseen: str | None = None

    @property
    def sources(self) -> tuple[str, ...]:
        """The addresses of the sources."""
        return tuple(address(one) for one in self.source)

    def severity(self, version: str | None = None, is_chip_known: bool = False) -> str:
        """Return the severity of a finding, for a reader who named a version or a chip, or neither."""
        level = 0 if self.sure in ("vendor", "reproduced") else 1 if self.sure == "measured" else 2
        of_versions = self.since is not None or self.fixed_in is not None
        of_chips = bool(self.socs or self.capabilities)
        level += self.effect == "inaccurate"
        level += self.values
        level += (of_versions and version is None) or (of_chips and not is_chip_known)
        return SEVERITIES[min(level, len(SEVERITIES) - 1)]

    def concerns(self, version: str | None, soc: str | None = None, capability: str | None = None) -> bool:
        """Return whether the row may hold of a version and a chip; of what is not named it may."""
        if version is not None:
            if self.since is not None and _parts(version) < _parts(self.since):
                return False
            if self.fixed_in is not None and _parts(version) >= _parts(self.fixed_in):
                return False
        if soc and self.socs and not any(re.search(rf"\b{re.escape(one)}\b", soc) for one in self.socs):
            return False
        return not (capability and self.capabilities and capability not in self.capabilities)


def address(source: str) -> str:
    """Return the address of a source.

    >>> address("apple/coremltools#2687")
    'https://github.com/apple/coremltools/issues/2687'
    """
    thread = _THREAD.fullmatch(source)
    return f"https://github.com/{thread[1]}/issues/{thread[2]}" if thread else source


@cache
def all_departures() -> dict[str, Departure]:
    """Return every row of the book by its id. Raises Unreadable where the book does not keep its form."""
    return read_book(Path(__file__).with_name("departures.toml"))


def read_book(path: Path) -> dict[str, Departure]:
    """Return the rows of a book by their ids. Raises Unreadable, with the row and what it lacks."""
    table = read_toml(path, "book of departures")
    if list(table) != ["departure"] or not isinstance(table["departure"], list):
        raise Unreadable(f"{path.name} must hold tables [[departure]] and nothing else")
    found: dict[str, Departure] = {}
    for number, row in enumerate(table["departure"]):
        one = as_dataclass(Departure, row, f"{path.name}: row {number}, {_id_of(row)}")
        if fault := _fault(one) or (f"stands there twice: {one.id}" if one.id in found else None):
            raise Unreadable(f"{path.name}: row {number}, {_id_of(row)}, {fault}")
        found[one.id] = one
    return found


def _id_of(row: Any) -> str:
    return str(row.get("id", "without an id"))[:20] if isinstance(row, dict) else "no table"


def _fault(row: Departure) -> str | None:
    """Return what is wrong with a row, in words."""
    choices = {"target": (row.target, TARGETS), "effect": (row.effect, EFFECTS), "sure": (row.sure, SURE)}
    for key, (value, known) in choices.items():
        if value not in known:
            return f"has {key} {value!r}, which is none of {', '.join(known)}"
    if not _ID.fullmatch(row.id):
        return "has no id of two capitals and a number"
    for key, version in (("since", row.since), ("fixed_in", row.fixed_in)):
        if version is not None and not _VERSION.fullmatch(version):
            return f"has {key} {version!r}, which is no version"
    if not row.source or not all(_THREAD.fullmatch(one) or one.startswith("https://") for one in row.source):
        return "has no source that is a thread or an address"
    for key in ("construct", "wrong", "safe", "where"):
        if not getattr(row, key).strip():
            return f"has an empty {key}"
    graphs = row.found is not None and row.left is not None
    if (row.detector is None) == (row.unseen is None) or (row.detector is not None) != graphs:
        return "has either a detector with two graphs, `found` and `left`, or `unseen` with the reason why not"
    return None


def get(name: str) -> Departure:
    """Return a row by its id, in capitals or not. Raises BadInput with the nearest ids."""
    book = all_departures()
    if name.upper() not in book:
        raise unknown("departure", name, book, "docs/lint.md")
    return book[name.upper()]


def of_target(target: str) -> tuple[Departure, ...]:
    """Return the rows of one who computes."""
    return tuple(row for row in all_departures().values() if row.target == target)


def _parts(version: str) -> tuple[int, ...]:
    """Return a version's numbers, without zeros at the end: 26 and 26.0 are one version."""
    numbers = [int(one) for one in version.split(".")]
    while numbers and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)
