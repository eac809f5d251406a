"""Timing artifacts on a device (transport/): one process after the other, in each the artifacts in turn.

    cold      every artifact alone in a fresh process: loading, the first call, memory
    profile   every artifact alone in another, where time per operator is asked for
    launch    a fresh process with all of them: warm up until steady, then rounds with one slot for each (runner.py)
    look      where artifacts are compared: after some launches, whether the verdicts stand; else launches are added
    energy    every artifact alone, three times in turn, where the device has a meter: sensors of boards may average
              over longer than a slot, and to read them while times are taken would be seen in those

Launches are what statistics count, as a process keeps its luck: the same file measured twice in one process differs by
what its memory happened to be given. The record is written after each of them.

A process favours what it opens, warms up and runs later: of one file against itself, the second was faster in 80 of 120
launches, by 0.5 %. So launches come in pairs, the second in the reverse order of the first, and of any two artifacts
each comes first in half of them.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgesmith._version import __version__
from edgesmith.bench import measurement as measurements
from edgesmith.bench import runner
from edgesmith.bench.events import event_of, in_order, read_event
from edgesmith.bench.measurement import (
    Cold,
    Device,
    Energy,
    Launch,
    Measurement,
    Metered,
    Operator,
    Profile,
    Slot,
    Subject,
    WarmUp,
)
from edgesmith.bench.operators import place_calls, place_layers, place_operators
from edgesmith.bench.statistics import FEWEST_LAUNCHES
from edgesmith.bench.subjects import check_options, files_of, read_timed, subjects_of
from edgesmith.bench.transport import Address, CommandFailed, CutOff, Transport, connect
from edgesmith.bench.transport.local import Local
from edgesmith.bench.verdict import Criterion
from edgesmith.board.common import SLOT_MS, busy_cores, machine
from edgesmith.errors import BackendMissing, BadInput, DeviceFailed, EdgesmithError, Unsupported
from edgesmith.exporters.artifact import Artifact

HERE = Address("host", "host")

INSTALL = {
    "coremltools": "coremltools pillow",
    "tensorrt": "numpy tensorrt (on a Jetson: sudo apt-get install tensorrt python3-libnvinfer)",
    "tensorrt_rtx": "numpy tensorrt-rtx",
}
"""Packages to install for a runtime, where those are not its name alone."""

SECONDS, LAUNCHES = 30.0, 12
"""How long a measurement lasts, about, and its processes."""

MOST_SECONDS, MOST_LAUNCHES = 90.0, 36
"""The most of a comparison, which ends where it is decided."""

SURE_LAUNCHES = 22
"""Launches that fit into a comparison's seconds even where starting one takes `LAUNCH_COST_S`.

Fewer would have wider intervals by their number alone, more would spend most of their time on starting.
"""

LOOKS = 6
"""How often a comparison may end, at about even distances. Each look that is not made leaves the others narrower."""

ONE_CALL_MS = 1e-3
"""A slot of one call: on an iPhone each takes seconds, whatever the app's own time is."""

PROFILE_S = 1.0
ENERGY_RUNS = 3
ENERGY_S = 2.0
"""Of a run: the most that the runner takes; it calls for a second before."""

LAUNCH_COST_S = 1.5
"""About what starting a process and warming up take of the time that a measurement may last."""

COPIES, COPIES_BYTES = 6, 256 << 20
"""Of each file that a comparison's launch opens, at most, and the bytes of all their files, about half of their memory.

A copy of casvit_xs keeps 1 to 2 % of luck with its memory for as long as it lives, about what 40 calls scatter by.
"""

COPIED = frozenset({"onnxruntime", "compiled"})
"""Runtimes whose files are opened several times: on a processor, where opening is cheap."""

SHORTEST_S = 0.3
"""Of a launch's rounds."""

OnProgress = Callable[[int, int], None]
"""Hears how many steps are done, of how many."""

OnWarning = Callable[[str], None]
"""Hears a sentence about what is missing from a measurement, and why."""


@dataclass(frozen=True)
class Settings:
    """The settings by which artifacts are timed.

    Attributes:
        seconds: how long it may last, about; each launch gets its share. 30 without it, 90 at most with `until`.
        launches: processes; 12 without it, 36 at most with `until`, as many as its seconds allow.
        until: the criterion by which the first artifact is compared with the others while they are measured: launches
            are added until it is met.
        threads: of the runtime.
        cores: to pin the processes to.
        operators: also the time per operator, in a process of its own for each artifact.
        compute_units: that the runtime may use, by the target's names; all without it.
        energy: also joules per inference, in processes of its own, where the device has a meter.

    Raises:
        BadInput: a number that must be above 0 is not, or is infinite.
    """

    seconds: float | None = None
    launches: int | None = None
    threads: int = 1
    cores: Sequence[int] | None = None
    operators: bool = False
    compute_units: str | None = None
    energy: bool = False
    until: Criterion | None = None

    def __post_init__(self) -> None:
        for name, value in (("seconds", self.seconds), ("launches", self.launches), ("threads", self.threads)):
            if value is not None and not 0 < value < math.inf:
                raise BadInput(f"{name} must be more than 0 and finite, got {value}")

    @property
    def most(self) -> tuple[float, int]:
        """Seconds and launches, at most."""
        usual = (SECONDS, LAUNCHES) if self.until is None else (MOST_SECONDS, MOST_LAUNCHES)
        return self.seconds or usual[0], self.launches or usual[1]

    @property
    def launch_s(self) -> float:
        """Seconds of rounds in each launch. A comparison's are no shorter than where fewer launches fit its time."""
        seconds, launches = self.most
        shares = launches if self.until is None else min(launches, SURE_LAUNCHES)
        return max(seconds / shares - LAUNCH_COST_S, SHORTEST_S)


@dataclass(frozen=True)
class Plan:
    """The plan that the processes of a measurement share; `for_runner` adds what differs between them.

    Attributes:
        models: `file` there, `runtime`, and its `options`.
        seconds: of rounds in each launch.
        profiled: the same files here, where the time per operator is to be taken.
        energy: whether a meter runs too, where the device has one.
        until: the criterion that may end it before `launches`, at a look.
        whole_s: how long launches may be added; without a limit all are made.
        copies: of each model, in a launch.
    """

    models: Sequence[Mapping[str, Any]]
    seconds: float
    launches: int
    threads: int = 1
    cores: tuple[int, ...] | None = None
    slot_ms: float = SLOT_MS
    seed: int = 0
    profiled: Sequence[Path] = ()
    energy: bool = False
    until: Criterion | None = None
    whole_s: float = math.inf
    copies: int = 1

    @property
    def looks(self) -> tuple[int, ...]:
        """Numbers of launches at which a comparison may end: even ones, so that orders are balanced, and the last."""
        if self.until is None:
            return ()
        even = {max(2 * round(self.launches * k / LOOKS / 2), FEWEST_LAUNCHES) for k in range(1, LOOKS)}
        return (*sorted(n for n in even if n < self.launches), self.launches)

    def order(self, launch: int) -> list[int]:
        """Return the order of the models in a launch: each pair of launches begins one model further on."""
        count = len(self.models)
        order = [(launch // 2 + i) % count for i in range(count)]
        return order[::-1] if launch % 2 else order

    def for_runner(self, model: int | None = None, **changed: Any) -> dict[str, Any]:
        """Return the JSON for a process: of all models or of one alone, with what differs from the other processes."""
        plan = {
            "models": list(self.models) if model is None else [self.models[model]],
            "threads": self.threads,
            "cores": None if self.cores is None else list(self.cores),
            "slot_ms": self.slot_ms,
            "seed": self.seed,
        }
        return {**plan, **changed}


@dataclass(frozen=True)
class Reports:
    """The listeners of a measurement that goes on.

    Attributes:
        record: written after each launch.
        on_progress, on_warning: hear how far it is, and what is missing from it.
    """

    record: Path | None = None
    on_progress: OnProgress = lambda *_: None
    on_warning: OnWarning = lambda _: None


USUAL, SILENT = Settings(), Reports()


def measure(
    paths: Sequence[str | Path],
    settings: Settings = USUAL,
    device: Address = HERE,
    reports: Reports = SILENT,
) -> Measurement:
    """Time artifacts in turn on a device.

    Args:
        paths: artifacts' folders or files; the same one may be given twice.
        device: see `transport.parse`.

    Returns:
        The measurement; after Ctrl-C the part that was measured until then, with `complete` False.

    Raises:
        BadInput: no artifact, one that cannot be timed here, or an option out of range.
        BackendMissing: the runtime is not installed.
        Unsupported: the runtime does not load or run a file.
        DeviceFailed: there is no way to the device, or it was cut off; launches that were complete are in the record.
        OutputError: there is no room on the device.
    """
    if not paths:
        raise BadInput("there is nothing to measure: give one or more artifacts")
    units = settings.compute_units
    found = [read_timed(path) for path in paths]
    seconds, launches = settings.most
    check_options(found, device, threads=settings.threads, operators=settings.operators, compute_units=units)
    subjects = subjects_of(found, device.is_here, units)
    if device.is_here:
        check_cores(settings.cores, runner.usable_cores())
    with connect(device) as where:
        about = replace(this_machine(), name=device.name)
        busy, usable = None, runner.usable_cores()
        if device.is_here:
            busy = busy_cores()
        else:  # what it lacks is said before anything large is copied
            about, usable, busy = ask(where, sorted({subject.runtime for subject in subjects}))
            check_cores(settings.cores, usable)
        loaded = describe_load(where.name, busy, len(usable), settings.threads)
        plan = Plan(
            models=[_model(_put(one, where), subject) for one, subject in zip(found, subjects, strict=True)],
            seconds=settings.launch_s,
            launches=launches,
            threads=settings.threads,
            cores=None if settings.cores is None else tuple(settings.cores),
            slot_ms=ONE_CALL_MS if device.kind == "iphone" else SLOT_MS,
            profiled=[one.file for one in found] if settings.operators else (),
            energy=settings.energy,
            until=settings.until,
            whole_s=math.inf if settings.until is None else seconds,
            copies=1 if settings.until is None else copies_of(subjects),
        )
        if loaded is not None:
            reports.on_warning(loaded)
        return carry_out(plan, subjects, where, about, reports)


def carry_out(
    plan: Plan,
    subjects: Sequence[Subject],
    where: Transport | None = None,
    device: Device | None = None,
    reports: Reports = SILENT,
) -> Measurement:
    """Carry out a plan whose files lie on the device `where`, which `device` describes; by default, on this machine.

    Returns, raises: as `measure`.
    """
    run = _Run(plan, subjects, where or Local(), device or this_machine(), reports)
    try:
        run.start_cold()
        run.launch()
        run.meter()
    except KeyboardInterrupt:
        if not run.result.launches:
            raise
    except CutOff as error:
        done = len(run.result.launches)
        is_kept = done and reports.record is not None
        kept = f"; {done} of {plan.launches} launches are in {reports.record}" if is_kept else ""
        raise DeviceFailed(f"{error} while measuring{kept}") from error
    return run.result


class _Run:
    """A measurement under way: its stages, and the result so far."""

    def __init__(
        self, plan: Plan, subjects: Sequence[Subject], where: Transport, device: Device, reports: Reports
    ) -> None:
        self.plan, self.where, self.reports = plan, where, reports
        self.result = Measurement(
            edgesmith=__version__,
            started=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            device=device,
            runtimes={},
            threads=plan.threads,
            cores=plan.cores,
            seconds=plan.seconds,
            slot_ms=plan.slot_ms,
            seed=plan.seed,
            subjects=tuple(subjects),
            looks=plan.looks,
        )
        self._meters: dict[str, str] = {}
        self._done, self._total = 0, len(subjects) + plan.launches
        reports.on_progress(0, self._total)

    def start_cold(self) -> None:
        """Open every subject alone, and take its time per operator where that is asked for."""
        for i in range(len(self.result.subjects)):
            events = list(_events(self.plan.for_runner(i, seconds=0), self.where))
            opened = event_of("open", events, self.where.name)
            self._change(i, cold=Cold(opened["load_ms"], opened["first_ms"], opened["memory_mib"]))
            self.result = replace(self.result, runtimes={**self.result.runtimes, **events[0]["runtimes"]})
            self._meters |= events[0].get("meters", {}) if self.plan.energy else {}  # an iPhone has none
            if self.plan.profiled:
                told = self.plan.for_runner(i, seconds=PROFILE_S, operators=True)
                self._change(i, profile=_profile(told, self.where, self.plan.profiled[i]))
            self._step()

    def launch(self) -> None:
        """Time all subjects in turn, launch by launch, until a comparison is decided or all launches are made."""
        plan = self.plan
        self._total += len(self._metered_in_turn())
        start = time.monotonic()
        for number in range(plan.launches):
            order = plan.order(number)
            told = plan.for_runner(seconds=plan.seconds, seed=plan.seed + number, order=order, copies=plan.copies)
            done = (*self.result.launches, _launch(list(_events(told, self.where)), order))
            self.result = replace(self.result, launches=done)
            self.result = replace(self.result, complete=self._is_over(time.monotonic() - start))
            self._write()
            self._step()
            if self.result.complete:
                break
        self._total -= plan.launches - len(self.result.launches)

    def _is_over(self, passed_s: float) -> bool:
        """Return whether no launch is to follow. A comparison without time for a pair ends where it has an interval."""
        count, until = len(self.result.launches), self.plan.until
        if count >= self.plan.launches:
            return True
        if count % 2 or count < FEWEST_LAUNCHES:
            return False
        if passed_s * (count + 2) / count > self.plan.whole_s:
            return True
        return until is not None and count in self.plan.looks and until.is_met(self.result)

    def meter(self) -> None:
        """Meter every subject alone. Without a meter's answer there is no energy, and times stay as they are."""
        turns = self._metered_in_turn()
        for i in turns:
            subject = self.result.subjects[i]
            told = self.plan.for_runner(i, seconds=ENERGY_S, energy=True)
            try:
                runs = (*(subject.energy.runs if subject.energy else ()), *_metered(_events(told, self.where)))
                self._step()
            except (KeyboardInterrupt, EdgesmithError) as error:  # times are all there, and energy is an addition
                self.reports.on_warning(f"no energy: {str(error) or 'interrupted'} while it was metered")
                without = tuple(replace(one, energy=None) for one in self.result.subjects)
                self.result = replace(self.result, subjects=without)
                break
            self._change(i, energy=Energy(self._meters[subject.runtime], runs) if runs else None)
        if turns:
            self._write()

    def _metered_in_turn(self) -> list[int]:
        """The subjects whose runtime has a meter there, several times."""
        return [
            i for _ in range(ENERGY_RUNS) for i, one in enumerate(self.result.subjects) if one.runtime in self._meters
        ]

    def _change(self, index: int, **changed: Any) -> None:
        """Put what is known of one subject into the result."""
        subjects = (replace(one, **changed) if i == index else one for i, one in enumerate(self.result.subjects))
        self.result = replace(self.result, subjects=tuple(subjects))

    def _write(self) -> None:
        if self.reports.record is not None:
            measurements.write(self.result, self.reports.record)

    def _step(self) -> None:
        self._done += 1
        self.reports.on_progress(self._done, self._total)


def copies_of(subjects: Sequence[Subject]) -> int:
    """Return how many copies of each subject a comparison's launch opens."""
    if any(one.runtime not in COPIED for one in subjects):
        return 1
    return max(1, min(COPIES, COPIES_BYTES // max(1, sum(one.bytes for one in subjects))))


def this_machine() -> Device:
    """The machine that this runs on."""
    return Device(name="host", **machine())


def describe_load(name: str, busy: float | None, cores: int, threads: int) -> str | None:
    """Return a sentence about a machine on which so much else runs that it shows in times; None where it does not.

    A quarter of the cores may be busy, as long as half a core more than the threads is free.

    Args:
        busy: cores in use, of `cores`; None where that is not known.
    """
    if busy is None or cores < 1 or busy <= max(0.25, min(cores / 4, cores - threads - 0.5)):
        return None
    return (
        f"{name} is busy before the measurement, {busy:.1f} of {cores} core{'s' * (cores != 1)} in use: times are"
        " longer, and verdicts take longer or stay inconclusive; end what runs there"
    )


def ask(where: Transport, runtimes: Sequence[str]) -> tuple[Device, list[int], float | None]:
    """Describe a device. Returns the cores that a process may use there, and how many of all are in use, too.

    Raises:
        BackendMissing: it lacks a runtime.
    """
    events = list(_events({"models": [], "runtimes": list(runtimes), "seconds": 0, "seed": 0}, where))
    about = event_of("about", events, where.name)
    return Device(name=where.name, **about["machine"]), about["cores"], about.get("busy")


def check_cores(cores: Sequence[int] | None, usable: Sequence[int]) -> None:
    """Raise BadInput where a core is not among those that a process may use."""
    missing = sorted(set(cores or ()) - set(usable))
    if missing:
        raise BadInput(f"there is no core {missing[0]} to pin to; a process may use {usable or 'what it is given'}")


def _put(artifact: Artifact, where: Transport) -> str:
    """Have an artifact's file on the device, and those that belong to it beside it. Returns its path there."""
    folder = hashlib.sha256("".join(entry["sha256"] for entry in files_of(artifact)).encode()).hexdigest()[:12]
    paths = {
        entry["path"]: where.put(artifact.path / entry["path"], f"{folder}/{entry['path']}")
        for entry in files_of(artifact)
    }
    file: str = artifact.manifest["file"]
    if file in paths:
        return paths[file]
    name, there = next(iter(paths.items()))  # a package is a folder of those
    return there.removesuffix(name) + file


def _model(file: str, subject: Subject) -> dict[str, Any]:
    """The entry of a runner's plan for a file there."""
    options = {} if subject.compute_units is None else {"options": {"compute_units": subject.compute_units}}
    return {"file": file, "runtime": subject.runtime, **options}


def _events(plan: dict[str, Any], where: Transport) -> Iterator[dict[str, Any]]:
    """Yield the events of a plan's runner as they come, from `start` to `end`.

    Raises:
        DeviceFailed: what answers is no runner, or it stops before the end.
        Unsupported: it fails, with its last line.
    """
    yield from in_order(_answers(plan, where), where.name)


def _answers(plan: dict[str, Any], where: Transport) -> Iterator[dict[str, Any]]:
    on = "" if where.is_here else f" on {where.name}"
    try:
        with tempfile.TemporaryDirectory(prefix="edgesmith-") as folder:
            file = where.write_runner(Path(folder))
            script = where.put(file, file.name)
            for line in where.run([*where.python, script], json.dumps(plan)):
                event = read_event(line, where.name, len(plan["models"]))
                if event["event"] == "failed":
                    raise CutOff(f"{where.name} does not do what coremltools asks of it ({event['why']})")
                if event["event"] == "lacks":
                    raise BackendMissing(_lack(event, where.python[0], on if where.runs_there else ""))
                yield event
    except CommandFailed as error:
        raise Unsupported(f"the runner stopped{on} with {error.code}: {error.last_line}") from error


def _lack(event: Mapping[str, Any], python: str, on: str) -> str:
    """A sentence for what the runner says a runtime lacks."""
    runtime = event["runtime"]
    if event["can_import"]:
        return f"{runtime} cannot work{on or ' here'}: {event['why']}"
    other = ", or name another interpreter with --python" if on else ""
    return (
        f"{python}{on} cannot import {runtime} ({event['why']}): install it there with"
        f" {python} -m pip install {INSTALL.get(runtime, runtime)}{other}"
    )


def _metered(events: Iterator[Mapping[str, Any]]) -> tuple[Metered, ...]:
    """Return the runs of a meter in a process; none where it could not be read throughout."""
    told = (event for event in events if event["event"] == "energy" and event["joules"] is not None)
    return tuple(Metered(event["calls"], event["seconds"], event["joules"]) for event in told)


def _profile(plan: dict[str, Any], where: Transport, file: Path) -> Profile:
    """Time per operator of a plan's one model, which lies in `file` here too."""
    told = event_of("operators", _events(plan, where), where.name)
    found = [Operator(one["name"], one["type"], None, None, one["ms"]) for one in told["operators"]]
    place = PLACES.get(plan["models"][0]["runtime"], place_layers)
    return Profile(told["calls"], told["call_ms"], place(found, file))


PLACES = {"onnxruntime": place_operators, "compiled": place_calls}
"""How operators of a runtime's are found in the model; layers of engines are not here."""


def _launch(events: Sequence[dict[str, Any]], order: Sequence[int]) -> Launch:
    """The launch of a runner's events, which tell of its models in an order; warm-ups are put into the models' own."""

    def of(kind: str) -> list[dict[str, Any]]:
        return [event for event in events if event["event"] == kind]

    return Launch(
        warm=tuple(
            WarmUp(event["calls"], event["ms"], event["is_steady"])
            for event in sorted(of("warm"), key=lambda event: int(event["model"]))
        ),
        slots=tuple(
            Slot(event["model"], event["round"], event["at_s"], tuple(event["samples_ms"]), event.get("copy", 0))
            for event in of("slot")
        ),
        before=events[0]["environment"],
        after=events[-1]["environment"],
        order=tuple(order),
    )
