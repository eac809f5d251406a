"""A measurement: every sample of every launch, what was timed, where, and in what state the device was.

The file is JSON; `measurement.schema.json` beside this module says what is in it. It is written whole after every
launch (a temporary file, then a rename), so that what was measured before a run was killed is not lost.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

from edgesmith import records
from edgesmith.board.common import MEASUREMENT_SCHEMA
from edgesmith.errors import BadInput
from edgesmith.exporters import targets
from edgesmith.readers.documents import read_json

SCHEMA = MEASUREMENT_SCHEMA
"""2 has energy and compute units, 3 each launch's order and a comparison's looks, 4 copies; readers take all."""

UNORDERED, ALONE = 2, 3
"""The schemas of records without orders and looks, and without copies: one that is written again is as it was."""


SHORTEST_MS, LONGEST_MS = 1e-9, 1e12
"""A call takes no less than a femtosecond and no more than thirty years: beyond, sums and ratios lose their meaning."""


@dataclass(frozen=True)
class Cold:
    """Opening a file alone, in a fresh process: milliseconds to load it and for the first call, most memory held.

    What holds memory is known of processes, and not of an app on a phone: None there.
    """

    load_ms: float
    first_ms: float
    memory_mib: float | None


@dataclass(frozen=True)
class Operator:
    """One operator as the runtime runs it, which may have renamed or joined what the file holds.

    Attributes:
        name: the runtime's.
        type: the runtime's, such as Conv or FusedMatMul.
        op: what the operator is part of in the program: a fused op, or a plain one; None where that is not known.
        module: of the model; None for what the runtime put in by itself.
        ms: median over calls of what it took in one.
    """

    name: str
    type: str
    op: str | None
    module: str | None
    ms: float


@dataclass(frozen=True)
class Profile:
    """Time per operator, from a launch of its own. call_ms: a whole call of it, of which recording is a part."""

    calls: int
    call_ms: float
    operators: tuple[Operator, ...]


@dataclass(frozen=True)
class Metered:
    """Calls one after the other in a process of their own, and what a meter counted meanwhile."""

    calls: int
    seconds: float
    joules: float


@dataclass(frozen=True)
class Energy:
    """The energy of calls of a subject alone. Nothing is subtracted: idling and whatever else ran there are in it.

    Attributes:
        source: what the meter covers, and its kind.
        runs: in turn with those of the other subjects.
    """

    source: str
    runs: tuple[Metered, ...]

    @property
    def joules(self) -> float:
        """Of one inference: the median over the runs."""
        return median(run.joules / run.calls for run in self.runs)

    @property
    def watts(self) -> float:
        """Meanwhile: the median over the runs."""
        return median(run.joules / run.seconds for run in self.runs)


@dataclass(frozen=True)
class Subject:
    """One file that was timed.

    Attributes:
        name: what it is called in this measurement: its artifact's folder, numbered where two have the same.
        sha256: of the file, or of the sorted digests of the files in a package.
        bytes: of the file or package.
        profile: time per operator, where it was asked for.
        compute_units: that Core ML was allowed, by coremltools' name: `ALL`, `CPU_ONLY`, `CPU_AND_GPU`, `CPU_AND_NE`;
            None of other runtimes.
        energy: where it was asked for and the device has a meter.
    """

    name: str
    model: str
    target: str
    precision: str
    runtime: str
    sha256: str
    bytes: int
    cold: Cold | None = None
    profile: Profile | None = None
    compute_units: str | None = None
    energy: Energy | None = None

    @property
    def runs_by(self) -> str:
        """The runtime, and the compute units where it has some."""
        return self.runtime if self.compute_units is None else f"{self.runtime}, {self.compute_units}"


@dataclass(frozen=True)
class Slot:
    """Several calls of one subject in a row, in one round of a launch.

    Attributes:
        at_s: since the first round began.
        copy: of those that the launch opened of each subject; a round has the same one of all.
    """

    subject: int
    round: int
    at_s: float
    samples_ms: tuple[float, ...]
    copy: int = 0


@dataclass(frozen=True)
class WarmUp:
    """Calls that were made before the first that was kept."""

    calls: int
    ms: float
    is_steady: bool


@dataclass(frozen=True)
class Launch:
    """One process: its warm-ups, its slots, and what the system showed before and after (`runner.environment`).

    Attributes:
        warm: of each subject, in the subjects' order.
        order: subjects in the order in which they were opened, warmed up and first run; None of records before 3.
    """

    warm: tuple[WarmUp, ...]
    slots: tuple[Slot, ...]
    before: Mapping[str, Any] = field(default_factory=dict)
    after: Mapping[str, Any] = field(default_factory=dict)
    order: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Device:
    """The device of a measurement. machine: a hash that tells two machines with the same parts apart."""

    name: str
    system: str
    cpu: str
    machine: str
    power_mode: str | None = None


@dataclass(frozen=True)
class Measurement:
    """Latencies of some subjects on one device.

    Attributes:
        complete: False where the run was interrupted.
        looks: numbers of launches at which a comparison might end, where there was one while measuring.
    """

    edgesmith: str
    started: str
    device: Device
    runtimes: Mapping[str, str]
    threads: int
    cores: tuple[int, ...] | None
    seconds: float
    slot_ms: float
    seed: int
    subjects: tuple[Subject, ...]
    launches: tuple[Launch, ...] = ()
    complete: bool = False
    looks: tuple[int, ...] = ()

    def held_to(self, subject: int) -> str:
        """Return the limits of a subject's runtime in words: compute units, or threads; nothing for engines."""
        one = self.subjects[subject]
        cores = "" if self.cores is None else ", ".join(map(str, self.cores))
        return one.compute_units or in_words(one.target, self.threads, cores)

    def samples(self, subject: int) -> list[list[float]]:
        """Milliseconds of a subject's calls, launch by launch."""
        return [
            [ms for slot in launch.slots if slot.subject == subject for ms in slot.samples_ms]
            for launch in self.launches
        ]

    def rounds(self, subject: int) -> list[list[Sequence[float]]]:
        """Milliseconds of a subject's calls, launch by launch, round by round."""
        return [[slot.samples_ms for slot in launch.slots if slot.subject == subject] for launch in self.launches]

    def copies(self, subject: int) -> list[list[list[Sequence[float]]]]:
        """The same, launch by launch, copy by copy, round by round."""
        found = []
        for launch in self.launches:
            rounds: dict[int, list[Sequence[float]]] = {}
            for slot in launch.slots:
                if slot.subject == subject:
                    rounds.setdefault(slot.copy, []).append(slot.samples_ms)
            found.append([rounds[copy] for copy in sorted(rounds)])
        return found


def in_words(target: str, threads: int, cores: str) -> str:
    """Return threads, and the cores that they were pinned to, of a target that can be held to them; else nothing."""
    pinned = f" on cores {cores}" if cores else ""
    return f"{threads} thread{'s' * (threads != 1)}{pinned}" if takes_threads(target) else ""


def takes_threads(target: str) -> bool:
    """Return whether a target's runtime takes a number of threads; so does one that is not known here."""
    known = targets.all_targets().get(target)
    return known is None or not known.unthreaded


def write(measurement: Measurement, path: Path) -> None:
    """Write a measurement, whole or not at all. Raises OutputError where the folder cannot be written."""
    is_ordered = measurement.looks or any(launch.order is not None for launch in measurement.launches)
    has_copies = any(slot.copy for launch in measurement.launches for slot in launch.slots)
    schema = SCHEMA if has_copies else ALONE if is_ordered else UNORDERED
    record = {"schema": schema, **asdict(measurement)}
    for subject in record["subjects"]:
        for key in ("profile", "energy", "compute_units"):  # such a record is what it was before there were any
            if subject[key] is None:
                del subject[key]
    for launch in record["launches"]:
        if launch["order"] is None:
            del launch["order"]
        for slot in launch["slots"]:
            if slot["copy"] == 0:
                del slot["copy"]
    if not record["looks"]:
        del record["looks"]
    records.write(record, path, "measurement", indent=None)


def read(path: Path) -> Measurement:
    """Read a measurement, of this schema or an older one.

    Raises:
        BadInput: no such file, no JSON, another schema, or something in it that no measurement holds, with its place.
    """
    advice = "measure again with edgesmith bench"
    record = records.read_record(path, schema(), "measurement", advice=advice)
    found = _measurement(record)
    fault = next(_faults(found), None)
    if fault is not None:
        raise BadInput(f"{path} is no sound measurement: {fault}; {advice}")
    return found


@cache
def schema() -> dict[str, Any]:
    """The JSON Schema of a measurement."""
    loaded: dict[str, Any] = read_json(Path(__file__).with_name("measurement.schema.json"), "schema")
    return loaded


def environment_line(launches: Sequence[Launch]) -> str:
    """Return what the system showed while measuring: ranges of load, clock and temperature, time stolen."""
    states = [state for launch in launches for state in (launch.before, launch.after)]
    shown = {
        "load {:.1f} to {:.1f}": [state["load"] for state in states if "load" in state],
        "{:.0f} to {:.0f} MHz": [mhz for state in states for mhz in state.get("frequency_mhz", ())],
        "{:.0f} to {:.0f} degrees C": [c for state in states for c in state.get("temperature_c", {}).values()],
    }
    parts = [words.format(min(values), max(values)) for words, values in shown.items() if values]
    stolen = _sum_of_changes(launches, "stolen_s")
    parts += [f"{stolen:.2f} s stolen by other machines"] if stolen > 0 else []
    preempted = _sum_of_changes(launches, "preempted")
    parts += [f"preempted {preempted} times"] if preempted else []
    return ", ".join(parts)


def _sum_of_changes(launches: Sequence[Launch], counter: str) -> float:
    """Return how much a counter of the system's rose over all launches."""
    changes: list[float] = [launch.after.get(counter, 0) - launch.before.get(counter, 0) for launch in launches]
    return sum(changes)


def _measurement(record: Mapping[str, Any]) -> Measurement:
    """Return the measurement of a record that keeps to its schema."""
    plain = {key: value for key, value in record.items() if key != "schema"}
    plain["device"] = Device(**record["device"])
    plain["cores"] = None if record["cores"] is None else tuple(record["cores"])
    plain["subjects"] = tuple(map(_subject, record["subjects"]))
    plain["launches"] = tuple(map(_launch, record["launches"]))
    plain["looks"] = tuple(record.get("looks", ()))
    return Measurement(**plain)


def _subject(record: Mapping[str, Any]) -> Subject:
    cold, profile, energy = (record.get(key) for key in ("cold", "profile", "energy"))
    parts = {
        "cold": cold and Cold(**cold),
        "profile": profile
        and Profile(**{**profile, "operators": tuple(Operator(**one) for one in profile["operators"])}),
        "energy": energy and Energy(energy["source"], tuple(Metered(**run) for run in energy["runs"])),
    }
    return Subject(**{**record, **parts})


def _launch(record: Mapping[str, Any]) -> Launch:
    return Launch(
        tuple(WarmUp(**one) for one in record["warm"]),
        tuple(Slot(**{**slot, "samples_ms": tuple(slot["samples_ms"])}) for slot in record["slots"]),
        record["before"],
        record["after"],
        tuple(record["order"]) if "order" in record else None,
    )


def _faults(measurement: Measurement) -> Iterator[str]:
    """Yield what is wrong with a measurement beyond what its schema can say."""
    for subject in measurement.subjects:
        if not all(0 <= value <= LONGEST_MS for value in _figures(subject)):
            yield f"a figure of {subject.name} is beyond what is measured"
    if list(measurement.looks) != sorted(set(measurement.looks)):
        yield "its looks do not rise"
    for number, launch in enumerate(measurement.launches):
        if launch.order is not None and sorted(launch.order) != list(range(len(measurement.subjects))):
            yield f"launch {number} has an order that is none of its subjects"
        if len(launch.warm) != len(measurement.subjects):
            yield f"launch {number} has not a warm-up for each subject"
        counts = dict.fromkeys(range(len(measurement.subjects)), 0)
        copies: dict[int, set[int]] = {}
        for slot in launch.slots:
            copies.setdefault(slot.round, set()).add(slot.copy)
            if slot.subject not in counts:
                yield f"launch {number} times a subject {slot.subject}"
            elif not all(SHORTEST_MS <= ms <= LONGEST_MS for ms in slot.samples_ms):
                yield f"launch {number} holds a time that no call takes"
            else:
                counts[slot.subject] += 1
        if len(set(counts.values())) > 1:
            yield f"launch {number} has not the same rounds for each subject"
        if any(len(found) > 1 for found in copies.values()):
            yield f"launch {number} has a round of several copies"


def _figures(subject: Subject) -> Iterator[float]:
    """Yield the figures of a subject beside its launches."""
    if subject.cold is not None:
        yield from (value for value in asdict(subject.cold).values() if value is not None)
    if subject.profile is not None:
        yield subject.profile.call_ms
        yield from (one.ms for one in subject.profile.operators)
    for run in subject.energy.runs if subject.energy else ():
        yield from (run.seconds, run.joules)
