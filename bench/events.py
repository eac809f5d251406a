"""The lines that a runner writes, each an event in JSON, read as what somebody else's machine says.

start  about  lacks  failed  open  warm  slot  energy  operators  end        see runner.py
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from edgesmith.bench.measurement import LONGEST_MS, SHORTEST_MS
from edgesmith.errors import DeviceFailed, Unreadable
from edgesmith.readers.documents import read_json
from edgesmith.readers.typed import as_dataclass


@dataclass(frozen=True)
class Start:
    """A launch begins. environment: what the system shows; meters: of energy, by name."""

    event: str
    runtimes: Mapping[str, str]
    environment: Mapping[str, Any]
    meters: Any = None


@dataclass(frozen=True)
class Machine:
    """The device, as a record has it."""

    system: str
    cpu: str
    machine: str
    power_mode: str | None = None  # an iPhone has none


@dataclass(frozen=True)
class About:
    """The device, the cores that processes may use there, and how many are in use, where that is known."""

    event: str
    machine: Machine
    cores: tuple[int, ...]
    busy: float | None = None


@dataclass(frozen=True)
class Lacks:
    """A runtime is missing, or does not work."""

    event: str
    runtime: str
    why: str
    can_import: bool


@dataclass(frozen=True)
class Failed:
    """The runner cannot do what it is asked."""

    event: str
    why: str


@dataclass(frozen=True)
class Open:
    """A file was opened alone."""

    event: str
    model: int
    load_ms: float
    first_ms: float
    memory_mib: float | None


@dataclass(frozen=True)
class Warm:
    """A model has been warmed up."""

    event: str
    model: int
    calls: int
    ms: float
    is_steady: bool


@dataclass(frozen=True)
class Slot:
    """Calls of one model in a row, or of one of its copies."""

    event: str
    model: int
    round: int
    at_s: float
    samples_ms: tuple[float, ...]
    copy: int = 0  # an iPhone's app opens one


@dataclass(frozen=True)
class Energy:
    """The energy of calls of one model that a meter covers; no joules where it could not be read throughout."""

    event: str
    model: int
    calls: int
    seconds: float
    joules: float | None


@dataclass(frozen=True)
class OfOperator:
    """The time of one operator in a call."""

    name: str
    type: str
    ms: float


@dataclass(frozen=True)
class Operators:
    """The time of each operator of one model in a call, and of the call."""

    event: str
    model: int
    calls: int
    call_ms: float
    operators: tuple[OfOperator, ...]


@dataclass(frozen=True)
class End:
    """A launch ends."""

    event: str
    environment: Mapping[str, Any]


KINDS: dict[str, type] = {
    "start": Start,
    "about": About,
    "lacks": Lacks,
    "failed": Failed,
    "end": End,
    "open": Open,
    "warm": Warm,
    "slot": Slot,
    "energy": Energy,
    "operators": Operators,
}
"""The form of each event."""


def read_event(line: str, device: str, models: int) -> dict[str, Any]:
    """Return the event of a line.

    Args:
        device: what wrote it, for the sentence.
        models: how many the plan has.

    Raises:
        DeviceFailed: it is none.
    """
    try:
        event = read_json(line, "event", name=f"what {device} answered", advice="look at what runs there")
        kind = event.get("event") if isinstance(event, dict) else None
        if not isinstance(kind, str) or kind not in KINDS:
            raise Unreadable(f"{device} answered {line[:80]!r}, which is no event of a runner's")
        as_dataclass(KINDS[kind], event, f"the event {kind} of {device}")
    except Unreadable as error:
        raise DeviceFailed(str(error)) from error
    is_of_one = "model" not in event or event["model"] in range(models)
    is_timed = kind != "slot" or (
        event["samples_ms"] and all(map(_is_time, event["samples_ms"])) and event.get("copy", 0) >= 0
    )
    if not (is_of_one and is_timed):
        raise DeviceFailed(f"{device} answered with an event {kind} of a model or a time that there is not")
    return dict(event)


def in_order(events: Iterable[dict[str, Any]], device: str) -> Iterator[dict[str, Any]]:
    """Yield the events of a launch, which begins with `start` and closes with `end`.

    Raises:
        DeviceFailed: it does not, as where something else answers, or the runner is ended from outside.
    """
    kind = None
    for event in events:
        if kind is None and event["event"] != "start":
            raise DeviceFailed(f"{device} began with an event {event['event']}, not start; look at what runs there")
        kind = event["event"]
        yield event
    if kind != "end":
        said = f"fell silent after an event {kind}" if kind else "answered nothing"
        raise DeviceFailed(f"{device} {said}, where a launch closes with end; look at what ends programs there")


def event_of(kind: str, events: Iterable[dict[str, Any]], device: str) -> dict[str, Any]:
    """Return the first event of a kind.

    Raises:
        DeviceFailed: there is none.
    """
    for event in events:
        if event["event"] == kind:
            return event
    raise DeviceFailed(f"{device} ended a launch without an event {kind}; look at what runs there")


def _is_time(ms: float) -> bool:
    return SHORTEST_MS <= ms <= LONGEST_MS
