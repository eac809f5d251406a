"""A measurement: every sample of every launch, what was timed, where, and in what state the device was.

The file is JSON; `measurement.schema.json` beside this module says what is in it. It is written whole after every
launch (a temporary file, then a rename), so that what was measured before a run was killed is not lost.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

from edgesmith.bench import checked
from edgesmith.board.common import MEASUREMENT_SCHEMA
from edgesmith.errors import BadInput, OutputError

UNTHREADED = ("coreml", "tensorrt")
"""Targets whose runtimes start what threads they like, or none."""

SCHEMA = MEASUREMENT_SCHEMA
"""2 has energy and compute units, which readers of 1 refuse. A record with neither reads the same in both."""


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
    """What calls of a subject alone cost. Nothing is subtracted: idling and whatever else ran there are in it.

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
    """Several calls of one subject in a row, in one round of a launch. at_s: since the first round began."""

    subject: int
    round: int
    at_s: float
    samples_ms: tuple[float, ...]


@dataclass(frozen=True)
class WarmUp:
    """Calls that were made before the first that was kept."""

    calls: int
    ms: float
    is_steady: bool


@dataclass(frozen=True)
class Launch:
    """One process: its warm-ups, its slots, and what the system showed before and after (`runner.environment`)."""

    warm: tuple[WarmUp, ...]
    slots: tuple[Slot, ...]
    before: Mapping[str, Any] = field(default_factory=dict)
    after: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Device:
    """Where it was measured. machine: a hash that tells two machines with the same parts apart."""

    name: str
    system: str
    cpu: str
    machine: str
    power_mode: str | None = None


@dataclass(frozen=True)
class Measurement:
    """Latencies of some subjects on one device; `complete` is False where the run was interrupted."""

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

    def held_to(self, subject: int) -> str:
        """What the runtime of a subject was held to, in words: compute units, or threads; nothing for engines."""
        one = self.subjects[subject]
        cores = "" if self.cores is None else ", ".join(map(str, self.cores))
        return one.compute_units or in_words(one.target, self.threads, cores)

    def samples(self, subject: int) -> list[list[float]]:
        """Milliseconds of a subject's calls, launch by launch."""
        return [
            [ms for slot in launch.slots if slot.subject == subject for ms in slot.samples_ms]
            for launch in self.launches
        ]

    def rounds(self, subject: int) -> list[list[float]]:
        """Median milliseconds of a subject's slots, launch by launch, round by round."""
        return [
            [median(slot.samples_ms) for slot in launch.slots if slot.subject == subject] for launch in self.launches
        ]


def in_words(target: str, threads: int, cores: str) -> str:
    """Threads, and the cores that they were pinned to, of a target that can be held to them; else nothing."""
    pinned = f" on cores {cores}" if cores else ""
    return "" if target in UNTHREADED else f"{threads} thread{'s' * (threads != 1)}{pinned}"


def write(measurement: Measurement, path: Path) -> None:
    """Write a measurement, whole or not at all. Raises OutputError where the folder cannot be written."""
    record = {"schema": SCHEMA, **asdict(measurement)}
    for subject in record["subjects"]:
        for key in ("profile", "energy", "compute_units"):  # such a record is what it was before there were any
            if subject[key] is None:
                del subject[key]
    text = json.dumps(record, ensure_ascii=False, allow_nan=False)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}.", delete=False
        ) as file:
            temporary = Path(file.name)
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)  # others may read it, as what is no secret
        temporary.replace(path)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise OutputError(f"cannot write the measurement {path}: {error.strerror or error}") from error


def read(path: Path) -> Measurement:
    """Read a measurement.

    Raises:
        BadInput: no such file, no JSON, another schema, or something in it that no measurement holds, with its place.
    """
    record = checked.load(path, "measurement")
    version = record.get("schema") if isinstance(record, dict) else None
    if not isinstance(version, int):
        raise BadInput(f"{path} is no measurement of edgesmith: it names no schema. Make one: edgesmith bench")
    if version > SCHEMA:
        raise BadInput(
            f"{path} has schema {version}, and this edgesmith reads 1 to {SCHEMA}: read it with the edgesmith that"
            f" wrote it, {record.get('edgesmith', 'a newer one')}, or update this one"
        )
    checked.check(record, schema(), path, "measurement")
    return _measurement(record, path)


@cache
def schema() -> dict[str, Any]:
    """The JSON Schema of a measurement."""
    loaded: dict[str, Any] = json.loads(Path(__file__).with_name("measurement.schema.json").read_text(encoding="utf-8"))
    return loaded


def environment_line(launches: Sequence[Launch]) -> str:
    """What the system showed while measuring, in a sentence: ranges of load, clock and temperature, time stolen."""
    states = [state for launch in launches for state in (launch.before, launch.after)]
    parts = []
    loads = [state["load"] for state in states if "load" in state]
    if loads:
        parts.append(f"load {min(loads):.1f} to {max(loads):.1f}")
    clocks = [mhz for state in states for mhz in state.get("frequency_mhz", ())]
    if clocks:
        parts.append(f"{min(clocks):.0f} to {max(clocks):.0f} MHz")
    degrees = [value for state in states for value in state.get("temperature_c", {}).values()]
    if degrees:
        parts.append(f"{min(degrees):.0f} to {max(degrees):.0f} degrees C")
    stolen = sum(launch.after.get("stolen_s", 0) - launch.before.get("stolen_s", 0) for launch in launches)
    if stolen > 0:
        parts.append(f"{stolen:.2f} s stolen by other machines")
    preempted = sum(launch.after.get("preempted", 0) - launch.before.get("preempted", 0) for launch in launches)
    if preempted:
        parts.append(f"preempted {preempted} times")
    return ", ".join(parts)


def _measurement(record: dict[str, Any], path: Path) -> Measurement:
    subjects = tuple(
        Subject(
            **{
                **subject,
                "cold": None if subject["cold"] is None else Cold(**subject["cold"]),
                "profile": _profile(subject.get("profile")),
                "energy": _energy(subject.get("energy")),
            }
        )
        for subject in record["subjects"]
    )
    for subject in subjects:
        known = (*(asdict(subject.cold).values() if subject.cold else ()), *_times(subject.profile))
        known += tuple(
            value for run in (subject.energy.runs if subject.energy else ()) for value in asdict(run).values()
        )
        if not all(math.isfinite(value) for value in known if value is not None):
            raise BadInput(f"{path} is no sound measurement: a figure of {subject.name} is not finite")
    launches = tuple(
        Launch(
            tuple(WarmUp(**one) for one in launch["warm"]),
            tuple(Slot(**{**slot, "samples_ms": tuple(slot["samples_ms"])}) for slot in launch["slots"]),
            launch["before"],
            launch["after"],
        )
        for launch in record["launches"]
    )
    for number, launch in enumerate(launches):
        if len(launch.warm) != len(subjects):
            raise BadInput(f"{path} is no sound measurement: launch {number} has not a warm-up for each subject")
        counts = dict.fromkeys(range(len(subjects)), 0)
        for slot in launch.slots:
            if slot.subject not in counts:
                raise BadInput(f"{path} is no sound measurement: launch {number} times a subject {slot.subject}")
            if not all(map(math.isfinite, slot.samples_ms)):  # 1e999 is JSON
                raise BadInput(f"{path} is no sound measurement: launch {number} holds a time that is not finite")
            counts[slot.subject] += 1
        if len(set(counts.values())) > 1:
            raise BadInput(f"{path} is no sound measurement: launch {number} has not the same rounds for each subject")
    rest = {key: value for key, value in record.items() if key != "schema"}
    cores = None if record["cores"] is None else tuple(record["cores"])
    plain = {**rest, "device": Device(**record["device"]), "subjects": (), "launches": (), "cores": cores}
    return replace(Measurement(**plain), subjects=subjects, launches=launches)


def _times(profile: Profile | None) -> tuple[float, ...]:
    return () if profile is None else (profile.call_ms, *(one.ms for one in profile.operators))


def _profile(record: dict[str, Any] | None) -> Profile | None:
    if record is None:
        return None
    operators = tuple(Operator(**one) for one in record["operators"])
    return Profile(record["calls"], record["call_ms"], operators)


def _energy(record: dict[str, Any] | None) -> Energy | None:
    return None if record is None else Energy(record["source"], tuple(Metered(**run) for run in record["runs"]))
