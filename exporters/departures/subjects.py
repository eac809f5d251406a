"""Whom a file is read for: who computes, in which version, on which device."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from edgesmith.errors import BadInput, unknown
from edgesmith.exporters.departures.book import TARGETS, Departure, of_target
from edgesmith.profiles import device as devices

_AT = re.compile(r"(?P<target>[a-z]+)(?:@(?P<version>[0-9]+(\.[0-9]+)*))?")


@dataclass(frozen=True)
class Subject:
    """One who computes a file.

    Attributes:
        target: a key of `book.TARGETS`.
        version: of it; None where the reader did not say.
        soc, capability: of the device, where one was named.
    """

    target: str
    version: str | None = None
    soc: str | None = None
    capability: str | None = None

    @property
    def label(self) -> str:
        """The subject in words: `TensorRT 10.3`."""
        return TARGETS[self.target].title + (f" {self.version}" if self.version else "")

    @property
    def is_chip_known(self) -> bool:
        """True where a device was named."""
        return self.soc is not None or self.capability is not None

    def rows(self) -> tuple[Departure, ...]:
        """Return the rows of the book that may hold."""
        return tuple(row for row in of_target(self.target) if row.concerns(self.version, self.soc, self.capability))


def parse_subject(text: str) -> Subject:
    """Return the subject that `tensorrt@10.3` or `ort` names. Raises BadInput."""
    found = _AT.fullmatch(text.strip().lower())
    if found is None:
        raise BadInput(f"--for is like tensorrt@10.3, got {text!r}; there are {', '.join(TARGETS)}")
    if found["target"] not in TARGETS:
        raise unknown("reader of a file", found["target"], TARGETS, "edgesmith lint --help")
    return Subject(found["target"], found["version"])


def on_device(subjects: Sequence[Subject], name: str | None) -> tuple[Subject, ...]:
    """Return subjects on a device, with the version of TensorRT that its system brings. Raises BadInput."""
    if name is None:
        return tuple(subjects)
    profile = devices.get(name)
    cuda = profile.cuda
    capability = cuda.compute_capability if cuda is not None and cuda.compute_capability else None
    brings = cuda.tensorrt if cuda is not None else None
    return tuple(
        Subject(
            one.target,
            one.version or (brings if TARGETS[one.target].comes_with_system else None),
            profile.soc,
            capability,
        )
        for one in subjects
    )
