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
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgesmith._version import __version__
from edgesmith.bench import measurement as measurements
from edgesmith.bench import runner
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
from edgesmith.bench.transport import Address, CommandFailed, CutOff, Transport, connect
from edgesmith.bench.transport.local import Local
from edgesmith.board.common import SLOT_MS, Refusal, machine
from edgesmith.errors import BackendMissing, BadInput, DeviceFailed, EdgesmithError, Unsupported
from edgesmith.exporters import artifact as artifacts
from edgesmith.exporters import session, targets
from edgesmith.exporters.artifact import Artifact
from edgesmith.exporters.targets import Target
from edgesmith.exporters.tensorrt import engine as engines

HERE = Address("host", "host")
RUNTIMES = {"onnx": "onnxruntime", "coreml": "coremltools"}
"""The runner's name of what runs a target's files. Engines say themselves which TensorRT they are of."""

ENGINE_TARGET = "tensorrt"

ENGINES = {engines.RTX: "tensorrt_rtx", engines.FULL: "tensorrt"}
"""The runner's name of what runs an engine."""

INSTALL = {
    "coremltools": "coremltools pillow",
    "tensorrt": "numpy tensorrt (on a Jetson: sudo apt-get install tensorrt python3-libnvinfer)",
    "tensorrt_rtx": "numpy tensorrt-rtx",
}
"""What to install for a runtime, where that is not its name alone."""

COMPUTE_UNITS = ("ALL", "CPU_ONLY", "CPU_AND_GPU", "CPU_AND_NE")
"""What Core ML may be held to, by coremltools' names."""

LAUNCHES = 12
ONE_CALL_MS = 1e-3
"""A slot of one call: on an iPhone each takes seconds, whatever the app's own time is."""

PROFILE_S = 1.0
ENERGY_RUNS = 3
ENERGY_S = 2.0
"""Of a run: what the runner takes at the most; it calls for a second before."""

LAUNCH_COST_S = 1.5
"""What starting a process and warming up take, about, of the time that a measurement may last."""

Told = Callable[[int, int], None]
"""Hears how many launches are done, of how many."""

Noted = Callable[[str], None]
"""Hears a sentence on what is missing from a measurement, and why."""


def measure(
    paths: Sequence[str | Path],
    *,
    device: Address = HERE,
    seconds: float = 30.0,
    launches: int = LAUNCHES,
    threads: int = 1,
    cores: Sequence[int] | None = None,
    operators: bool = False,
    compute_units: str | None = None,
    energy: bool = False,
    record: Path | None = None,
    told: Told | None = None,
    noted: Noted | None = None,
) -> Measurement:
    """Time artifacts in turn on a device.

    Args:
        paths: artifacts' folders or files; the same one may be given twice.
        device: where, see `transport.parse`.
        seconds: how long it may last, about; each launch gets its share.
        launches: processes.
        threads: of the runtime.
        cores: pin the processes to these.
        operators: also the time per operator, in a process of its own for each artifact.
        compute_units: that Core ML may use, one of `COMPUTE_UNITS`; all without it.
        energy: also joules per inference, in processes of its own, where the device has a meter.
        record: write the measurement here after each launch.
        told, noted: hear how far it is, and what is missing from it.

    Returns:
        The measurement; after Ctrl-C what was measured until then, with `complete` False.

    Raises:
        BadInput: no artifact, one that cannot be timed here, or an option out of range.
        BackendMissing: the runtime is not installed.
        Unsupported: the runtime does not load or run a file.
        DeviceFailed: there is no way to the device, or it was cut off; launches that were complete are in `record`.
        OutputError: there is no room on the device.
    """
    if not paths:
        raise BadInput("there is nothing to measure: give one or more artifacts")
    for name, value in (("seconds", seconds), ("launches", launches), ("threads", threads)):
        if not value > 0:
            raise BadInput(f"{name} must be more than 0, got {value}")
    found = [_with_engine(artifacts.read(path)) for path in paths]
    subjects = subjects_of(found, device.is_here, compute_units)
    _check_options(found, subjects, device, threads, operators)
    if device.is_here:
        _check_cores(cores, runner.usable_cores())
    with connect(device) as where:
        about = replace(this_machine(), name=device.name)
        if not device.is_here:  # what it lacks is said before anything large is copied
            about, usable = ask(where, sorted({subject.runtime for subject in subjects}))
            _check_cores(cores, usable)
        plan = {
            "models": [
                {"file": _put(one, where), "runtime": subject.runtime, **_options(subject)}
                for one, subject in zip(found, subjects, strict=True)
            ],
            "threads": threads,
            "cores": None if cores is None else list(cores),
            "slot_ms": ONE_CALL_MS if device.kind == "iphone" else SLOT_MS,
            "seed": 0,
        }
        each_s = max(seconds / launches - LAUNCH_COST_S, 0.3)
        profiled = [one.file for one in found] if operators else ()
        return run_plan(
            plan, subjects, each_s, launches, record, told, where, about, profiled, energy=energy, noted=noted
        )


def run_plan(
    plan: Mapping[str, Any],
    subjects: Sequence[Subject],
    seconds: float,
    launches: int,
    record: Path | None = None,
    told: Told | None = None,
    where: Transport | None = None,
    device: Device | None = None,
    profiled: Sequence[Path] = (),
    *,
    energy: bool = False,
    noted: Noted | None = None,
) -> Measurement:
    """Carry out a runner's plan: cold starts, then so many launches of so many seconds of rounds each.

    The plan's files lie on the device `where`, which `device` describes; without them both are this machine.
    `profiled`: the same files here, where each cold start is to be followed by a launch for the time per operator.
    `energy`: runs of a meter follow, where the device shows one.
    """
    where = where or Local()
    total = len(subjects) + launches
    meters: dict[str, str] = {}
    told, noted = told or (lambda *_: None), noted or (lambda _: None)
    result = Measurement(
        edgesmith=__version__,
        started=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        device=device or this_machine(),
        runtimes={},
        threads=plan["threads"],
        cores=None if plan["cores"] is None else tuple(plan["cores"]),
        seconds=seconds,
        slot_ms=plan["slot_ms"],
        seed=plan["seed"],
        subjects=tuple(subjects),
    )
    told(0, total)
    try:
        for i, model in enumerate(plan["models"]):
            events = list(_events({**plan, "models": [model], "seconds": 0}, where))
            opened = next(event for event in events if event["event"] == "open")
            cold = Cold(opened["load_ms"], opened["first_ms"], opened["memory_mib"])
            runtimes = {**result.runtimes, **events[0]["runtimes"]}
            meters |= events[0].get("meters", {}) if energy else {}  # an iPhone has none
            alone = {**plan, "models": [model], "seconds": PROFILE_S}
            profile = _profile(alone, where, profiled[i]) if profiled else None
            changed = [replace(s, cold=cold, profile=profile) if j == i else s for j, s in enumerate(result.subjects)]
            result = replace(result, subjects=tuple(changed), runtimes=runtimes)
            told(i + 1, total)
        turns = [i for _ in range(ENERGY_RUNS) for i, subject in enumerate(subjects) if subject.runtime in meters]
        total += len(turns)
        for number in range(launches):
            launch = _launch(list(_events({**plan, "seconds": seconds, "seed": plan["seed"] + number}, where)))
            result = replace(result, launches=(*result.launches, launch), complete=number + 1 == launches)
            if record is not None:
                measurements.write(result, record)
            told(len(subjects) + number + 1, total)
        for number, i in enumerate(turns):
            alone = {**plan, "models": [plan["models"][i]], "seconds": ENERGY_S, "energy": True}
            try:
                runs = _metered(list(_events(alone, where)))
                told(len(subjects) + launches + number + 1, total)
            except (KeyboardInterrupt, EdgesmithError) as error:  # times are all there, and energy is an addition
                noted(f"no energy: {str(error) or 'interrupted'} while it was metered")
                result = replace(result, subjects=tuple(replace(one, energy=None) for one in result.subjects))
                break
            changed = [_with_energy(s, meters[s.runtime], runs) if j == i else s for j, s in enumerate(result.subjects)]
            result = replace(result, subjects=tuple(changed))
        if turns and record is not None:
            measurements.write(result, record)
    except KeyboardInterrupt:
        if not result.launches:
            raise
    except CutOff as error:
        done = len(result.launches)
        kept = f"; {done} of {launches} launches are in {record}" if done and record is not None else ""
        raise DeviceFailed(f"{error} while measuring{kept}") from error
    return result


def this_machine() -> Device:
    """The machine that this runs on."""
    return Device(name="host", **machine())


def ask(where: Transport, runtimes: Sequence[str]) -> tuple[Device, list[int]]:
    """What a device is, and the cores that a process may use there. Raises BackendMissing where it lacks a runtime."""
    events = list(_events({"models": [], "runtimes": list(runtimes), "seconds": 0, "seed": 0}, where))
    about = next(event for event in events if event["event"] == "about")
    return Device(name=where.name, **about["machine"]), about["cores"]


def _check_cores(cores: Sequence[int] | None, usable: Sequence[int]) -> None:
    missing = sorted(set(cores or ()) - set(usable))
    if missing:
        raise BadInput(f"there is no core {missing[0]} to pin to; a process may use {usable or 'what it is given'}")


def _put(artifact: Artifact, where: Transport) -> str:
    """Have an artifact's file on the device, and those that belong to it beside it. Returns its path there."""
    folder = hashlib.sha256("".join(entry["sha256"] for entry in _own(artifact)).encode()).hexdigest()[:12]
    paths = {
        entry["path"]: where.put(artifact.path / entry["path"], f"{folder}/{entry['path']}") for entry in _own(artifact)
    }
    file: str = artifact.manifest["file"]
    if file in paths:
        return paths[file]
    name, there = next(iter(paths.items()))  # a package is a folder of those
    return there.removesuffix(name) + file


def _options(subject: Subject) -> dict[str, Any]:
    """What its runtime is told beside the file."""
    return {} if subject.compute_units is None else {"options": {"compute_units": subject.compute_units}}


def _check_options(
    found: Sequence[Artifact], subjects: Sequence[Subject], device: Address, threads: int, operators: bool
) -> None:
    """Refuse what a runtime, or the device, has no use for."""
    for artifact, subject in zip(found, subjects, strict=True):
        if device.kind == "iphone" and subject.target != "coreml":
            raise BadInput(f"{subject.name} is for {subject.target}, and an iPhone takes coreml: export it for that")
        if device.kind == "iphone":  # what coremltools' app takes and gives
            given = artifact.manifest["target"]["options"]
            for option, what in (("image_input", "takes an image"), ("labels", "answers with labels")):
                if given.get(option):
                    raise BadInput(
                        f"{subject.name} {what}, and coremltools has an iPhone take and give arrays alone: export it"
                        f" without --{option.replace('_', '-')}"
                    )
        if operators and subject.runtime not in runner.PROFILES:
            raise BadInput(f"--ops: {subject.runtime} does not time operators; {' and '.join(runner.PROFILES)} does")
        if device.kind == "iphone" and artifact.manifest.get("streaming", {}).get("kept_by") == session.RUNTIME:
            raise BadInput(f"{subject.name} keeps states, which coremltools has an iPhone forget: time it on a Mac")
        if threads != 1 and subject.target == ENGINE_TARGET:
            raise BadInput(f"--threads: an engine runs on the GPU, and has none, got {threads}")
        if threads != 1 and subject.target == "coreml":
            raise BadInput(f"--threads: Core ML starts as many as it likes, got {threads}; --compute-units holds it")


def _own(artifact: Artifact) -> list[dict[str, Any]]:
    """The entries of an artifact's manifest that are its file or package."""
    own = [entry for entry in artifact.manifest["files"] if entry["path"].startswith(artifact.manifest["file"])]
    return sorted(own, key=lambda entry: str(entry["path"]))


def cannot_time(target: Target) -> str | None:
    """Why a target's files cannot be timed on this machine, or None."""
    if target.name == ENGINE_TARGET:
        return _cannot_time_engines()
    if target.name not in RUNTIMES:
        why = f"{target.runtime} is an interpreter, whose times say nothing"
        return why if target.is_interpreter else "bench has nothing that runs such files"
    reason: str | None = getattr(target, "cannot_time", target.cannot_run)()
    return reason


def _cannot_time_engines() -> str | None:
    """Why neither TensorRT runs engines on this machine, or None: what the one says that can be imported."""
    why = "neither tensorrt nor tensorrt_rtx is installed"
    for module in ENGINES.values():
        try:
            runner.version_engine(module)
        except ImportError:
            continue
        except Exception as error:  # a broken installation can raise anything at import
            why = str(error) if isinstance(error, Refusal) else f"{type(error).__name__}: {error}"
            continue
        return None
    return why


def _with_engine(artifact: Artifact) -> Artifact:
    """What can be timed of an artifact: of a kit, the engine built of it here. Raises BadInput where there is none."""
    if artifact.target != ENGINE_TARGET or artifact.file.suffix == targets.get(ENGINE_TARGET).suffix:
        return artifact
    built = artifact.path / engines.BUILT
    if not built.is_dir():
        raise BadInput(
            f"{artifact.path.name} is a kit, and there is no engine in it to time: build it on its board with edgesmith"
            f" build-on ssh://user@board {artifact.path}, and time what comes back"
        )
    return artifacts.read(built)


def runtime_of(artifact: Artifact) -> str:
    """The runner's name of what runs an artifact's file. Raises BadInput where nothing does, Unsupported: no engine."""
    if artifact.target == ENGINE_TARGET:
        return ENGINES[engines.read_header(artifact.file).made_by]
    if artifact.target not in RUNTIMES:
        why, known = cannot_time(targets.get(artifact.target)), ", ".join((*RUNTIMES, ENGINE_TARGET))
        raise BadInput(f"{artifact.path.name} cannot be timed here ({why}); what can: {known}")
    return RUNTIMES[artifact.target]


def subjects_of(found: Sequence[Artifact], is_here: bool = True, compute_units: str | None = None) -> list[Subject]:
    """What a record says of artifacts. Raises BadInput for one that cannot be timed here, BackendMissing."""
    subjects: list[Subject] = []
    if compute_units is not None and compute_units not in COMPUTE_UNITS:
        raise BadInput(f"--compute-units must be one of {', '.join(COMPUTE_UNITS)}, got {compute_units!r}")
    if compute_units is not None and (other := next((one for one in found if one.target != "coreml"), None)):
        raise BadInput(f"--compute-units is for Core ML, and {other.path.name} is for {other.target}")
    for artifact in found:
        runtime = runtime_of(artifact)
        is_engine = runtime in ENGINES.values()  # the runner says what it lacks for those
        reason = cannot_time(targets.get(artifact.target)) if is_here and not is_engine else None
        if reason is not None:
            raise BackendMissing(reason)
        own = _own(artifact)
        names = [subject.name for subject in subjects]
        of_kit = artifact.path.name == engines.BUILT and (artifact.path.parent / artifacts.MANIFEST).is_file()
        title = artifact.path.parent.name if of_kit else artifact.path.name
        name, count = title, 1
        while name in names:
            count += 1
            name = f"{title} ({count})"
        subjects.append(
            Subject(
                name=name,
                model=artifact.model,
                target=artifact.target,
                precision=artifact.precision,
                runtime=runtime,
                sha256=artifact.digest,
                bytes=sum(entry["bytes"] for entry in own),
                compute_units=(compute_units or COMPUTE_UNITS[0]) if artifact.target == "coreml" else None,
            )
        )
    return subjects


def _events(plan: dict[str, Any], where: Transport) -> Iterator[dict[str, Any]]:
    """What the runner tells of a plan, as it does. Raises Unsupported with its last line where it fails."""
    on = "" if where.is_here else f" on {where.name}"
    try:
        with tempfile.TemporaryDirectory(prefix="edgesmith-") as folder:
            file = where.write_runner(Path(folder))
            script = where.put(file, file.name)
            for line in where.run([*where.python, script], json.dumps(plan)):
                event = json.loads(line)
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


def _metered(events: Sequence[Mapping[str, Any]]) -> tuple[Metered, ...]:
    """What a meter counted in a process; nothing where it could not be read throughout."""
    told = (event for event in events if event["event"] == "energy" and event["joules"] is not None)
    return tuple(Metered(event["calls"], event["seconds"], event["joules"]) for event in told)


def _with_energy(subject: Subject, source: str, runs: tuple[Metered, ...]) -> Subject:
    known = (*(subject.energy.runs if subject.energy else ()), *runs)
    return replace(subject, energy=Energy(source, known) if known else None)


def _profile(plan: dict[str, Any], where: Transport, file: Path) -> Profile:
    """Time per operator of a plan's one model, which lies in `file` here too."""
    told = next(event for event in _events({**plan, "operators": True}, where) if event["event"] == "operators")
    found = [Operator(one["name"], one["type"], None, None, one["ms"]) for one in told["operators"]]
    place = place_layers if plan["models"][0]["runtime"] in ENGINES.values() else place_operators
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
