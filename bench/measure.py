"""Timing artifacts on a device (transport/): one process after the other, in each the artifacts in turn.

    cold      every artifact alone in a fresh process: loading, the first call, memory
    profile   every artifact alone in another, where time per operator is asked for
    launch    a fresh process with all of them: warm up until steady, then rounds with one slot for each (runner.py)
    energy    every artifact alone, three times in turn, where the device has a meter: sensors of boards may average
              over longer than a slot, and to read them while times are taken would be seen in those

Launches are what statistics count, as a process keeps its luck: the same file measured twice in one process differs by
what its memory happened to be given. The record is written after each of them.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgesmith._version import __version__
from edgesmith.bench import measurement as measurements
from edgesmith.bench import runner
from edgesmith.bench.events import read_event
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
from edgesmith.bench.operators import place_layers, place_operators
from edgesmith.bench.subjects import check_options, files_of, read_timed, subjects_of
from edgesmith.bench.transport import Address, CommandFailed, CutOff, Transport, connect
from edgesmith.bench.transport.local import Local
from edgesmith.board.common import SLOT_MS, machine
from edgesmith.errors import BackendMissing, BadInput, DeviceFailed, EdgesmithError, Unsupported
from edgesmith.exporters.artifact import Artifact

HERE = Address("host", "host")

INSTALL = {
    "coremltools": "coremltools pillow",
    "tensorrt": "numpy tensorrt (on a Jetson: sudo apt-get install tensorrt python3-libnvinfer)",
    "tensorrt_rtx": "numpy tensorrt-rtx",
}
"""Packages to install for a runtime, where those are not its name alone."""

LAUNCHES = 12
ONE_CALL_MS = 1e-3
"""A slot of one call: on an iPhone each takes seconds, whatever the app's own time is."""

PROFILE_S = 1.0
ENERGY_RUNS = 3
ENERGY_S = 2.0
"""Of a run: the most that the runner takes; it calls for a second before."""

LAUNCH_COST_S = 1.5
"""About what starting a process and warming up take of the time that a measurement may last."""

OnProgress = Callable[[int, int], None]
"""Hears how many steps are done, of how many."""

OnWarning = Callable[[str], None]
"""Hears a sentence about what is missing from a measurement, and why."""


@dataclass(frozen=True)
class Settings:
    """The settings by which artifacts are timed.

    Attributes:
        seconds: how long it may last, about; each launch gets its share.
        launches: processes.
        threads: of the runtime.
        cores: to pin the processes to.
        operators: also the time per operator, in a process of its own for each artifact.
        compute_units: that the runtime may use, by the target's names; all without it.
        energy: also joules per inference, in processes of its own, where the device has a meter.

    Raises:
        BadInput: a number that must be more than 0 is not.
    """

    seconds: float = 30.0
    launches: int = LAUNCHES
    threads: int = 1
    cores: Sequence[int] | None = None
    operators: bool = False
    compute_units: str | None = None
    energy: bool = False

    def __post_init__(self) -> None:
        for name, value in (("seconds", self.seconds), ("launches", self.launches), ("threads", self.threads)):
            if not value > 0:
                raise BadInput(f"{name} must be more than 0, got {value}")


@dataclass(frozen=True)
class Plan:
    """The plan that the processes of a measurement share; `for_runner` adds what differs between them.

    Attributes:
        models: `file` there, `runtime`, and its `options`.
        seconds: of rounds in each launch.
        profiled: the same files here, where the time per operator is to be taken.
        energy: whether a meter runs too, where the device has one.
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
    check_options(found, device, threads=settings.threads, operators=settings.operators, compute_units=units)
    subjects = subjects_of(found, device.is_here, units)
    if device.is_here:
        _check_cores(settings.cores, runner.usable_cores())
    with connect(device) as where:
        about = replace(this_machine(), name=device.name)
        if not device.is_here:  # what it lacks is said before anything large is copied
            about, usable = ask(where, sorted({subject.runtime for subject in subjects}))
            _check_cores(settings.cores, usable)
        plan = Plan(
            models=[_model(_put(one, where), subject) for one, subject in zip(found, subjects, strict=True)],
            seconds=max(settings.seconds / settings.launches - LAUNCH_COST_S, 0.3),
            launches=settings.launches,
            threads=settings.threads,
            cores=None if settings.cores is None else tuple(settings.cores),
            slot_ms=ONE_CALL_MS if device.kind == "iphone" else SLOT_MS,
            profiled=[one.file for one in found] if settings.operators else (),
            energy=settings.energy,
        )
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
        )
        self._meters: dict[str, str] = {}
        self._done, self._total = 0, len(subjects) + plan.launches
        reports.on_progress(0, self._total)

    def start_cold(self) -> None:
        """Open every subject alone, and take its time per operator where that is asked for."""
        for i in range(len(self.result.subjects)):
            events = list(_events(self.plan.for_runner(i, seconds=0), self.where))
            opened = next(event for event in events if event["event"] == "open")
            self._change(i, cold=Cold(opened["load_ms"], opened["first_ms"], opened["memory_mib"]))
            self.result = replace(self.result, runtimes={**self.result.runtimes, **events[0]["runtimes"]})
            self._meters |= events[0].get("meters", {}) if self.plan.energy else {}  # an iPhone has none
            if self.plan.profiled:
                told = self.plan.for_runner(i, seconds=PROFILE_S, operators=True)
                self._change(i, profile=_profile(told, self.where, self.plan.profiled[i]))
            self._step()

    def launch(self) -> None:
        """Time all subjects in turn, launch by launch."""
        seed, launches = self.plan.seed, self.plan.launches
        self._total += len(self._metered_in_turn())
        for number in range(launches):
            told = self.plan.for_runner(seconds=self.plan.seconds, seed=seed + number)
            done = (*self.result.launches, _launch(list(_events(told, self.where))))
            self.result = replace(self.result, launches=done, complete=len(done) == launches)
            self._write()
            self._step()

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


def this_machine() -> Device:
    """The machine that this runs on."""
    return Device(name="host", **machine())


def ask(where: Transport, runtimes: Sequence[str]) -> tuple[Device, list[int]]:
    """Describe a device. Returns the cores that a process may use there too.

    Raises:
        BackendMissing: it lacks a runtime.
    """
    events = list(_events({"models": [], "runtimes": list(runtimes), "seconds": 0, "seed": 0}, where))
    about = next(event for event in events if event["event"] == "about")
    return Device(name=where.name, **about["machine"]), about["cores"]


def _check_cores(cores: Sequence[int] | None, usable: Sequence[int]) -> None:
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
    """Yield the events of a plan's runner as they come. Raises Unsupported with its last line where it fails."""
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
    told = next(event for event in _events(plan, where) if event["event"] == "operators")
    found = [Operator(one["name"], one["type"], None, None, one["ms"]) for one in told["operators"]]
    place = place_layers if plan["models"][0]["runtime"] in runner.ENGINES else place_operators
    return Profile(told["calls"], told["call_ms"], place(found, file))


def _launch(events: Sequence[dict[str, Any]]) -> Launch:
    def of(kind: str) -> list[dict[str, Any]]:
        return [event for event in events if event["event"] == kind]

    return Launch(
        warm=tuple(WarmUp(event["calls"], event["ms"], event["is_steady"]) for event in of("warm")),
        slots=tuple(
            Slot(event["model"], event["round"], event["at_s"], tuple(event["samples_ms"])) for event in of("slot")
        ),
        before=events[0]["environment"],
        after=events[-1]["environment"],
    )
