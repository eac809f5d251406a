"""Timing artifacts on this machine: one process after the other, in each the artifacts in turn.

    cold      every artifact alone in a fresh process: loading, the first call, memory
    profile   every artifact alone in another, where time per operator is asked for
    launch    a fresh process with all of them: warm up until steady, then rounds with one slot for each (runner.py)

Launches are what statistics count, as a process keeps its luck: the same file measured twice in one process differs by
what its memory happened to be given. The record is written after each of them.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import platform
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgesmith import __version__
from edgesmith.bench import measurement as measurements
from edgesmith.bench.measurement import Cold, Device, Launch, Measurement, Operator, Profile, Slot, Subject, WarmUp
from edgesmith.bench.operators import place_operators
from edgesmith.errors import BackendMissing, BadInput, Unsupported
from edgesmith.exporters import artifact as artifacts
from edgesmith.exporters import targets
from edgesmith.exporters.artifact import Artifact

RUNNER = Path(__file__).with_name("runner.py")
RUNTIMES = {"onnx": "onnxruntime"}
"""The runner's name of what runs a target's files."""

LAUNCHES = 12
SLOT_MS = 30.0
PROFILE_S = 1.0
LAUNCH_COST_S = 1.5
"""What starting a process and warming up take, about, of the time that a measurement may last."""

Told = Callable[[int, int], None]
"""Hears how many launches are done, of how many."""


def measure(
    paths: Sequence[str | Path],
    *,
    seconds: float = 30.0,
    launches: int = LAUNCHES,
    threads: int = 1,
    cores: Sequence[int] | None = None,
    operators: bool = False,
    record: Path | None = None,
    told: Told | None = None,
) -> Measurement:
    """Time artifacts in turn on this machine.

    Args:
        paths: artifacts' folders or files; the same one may be given twice.
        seconds: how long it may last, about; each launch gets its share.
        launches: processes.
        threads: of the runtime.
        cores: pin the processes to these.
        operators: also the time per operator, in a process of its own for each artifact.
        record: write the measurement here after each launch.

    Returns:
        The measurement; after Ctrl-C what was measured until then, with `complete` False.

    Raises:
        BadInput: no artifact, one that cannot be timed here, or an option out of range.
        BackendMissing: the runtime is not installed.
        Unsupported: the runtime does not load or run a file.
    """
    if not paths:
        raise BadInput("there is nothing to measure: give one or more artifacts")
    for name, value in (("seconds", seconds), ("launches", launches), ("threads", threads)):
        if not value > 0:
            raise BadInput(f"{name} must be more than 0, got {value}")
    present = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    missing = sorted(set(cores or ()) - set(present))
    if missing:
        raise BadInput(f"there is no core {missing[0]} to pin to; this process may use {present or 'what it is given'}")
    found = [artifacts.read(path) for path in paths]
    subjects = subjects_of(found)
    plan = {
        "models": [
            {"file": str(one.file.resolve()), "runtime": subject.runtime}
            for one, subject in zip(found, subjects, strict=True)
        ],
        "threads": threads,
        "cores": None if cores is None else list(cores),
        "slot_ms": SLOT_MS,
        "seed": 0,
        "operators": operators,
    }
    return run_plan(plan, subjects, max(seconds / launches - LAUNCH_COST_S, 0.3), launches, record, told)


def run_plan(
    plan: Mapping[str, Any],
    subjects: Sequence[Subject],
    seconds: float,
    launches: int,
    record: Path | None = None,
    told: Told | None = None,
) -> Measurement:
    """Carry out a runner's plan: cold starts, then so many launches of so many seconds of rounds each.

    With `operators` in the plan every cold start is followed by a launch for the time per operator.
    """
    plan = dict(plan)
    profiled = plan.pop("operators", False)
    total = len(subjects) + launches
    told = told or (lambda *_: None)
    result = Measurement(
        edgesmith=__version__,
        started=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        device=this_machine(),
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
            events = list(_events({**plan, "models": [model], "seconds": 0}))
            opened = next(event for event in events if event["event"] == "open")
            cold = Cold(opened["load_ms"], opened["first_ms"], opened["memory_mib"])
            runtimes = {**result.runtimes, **events[0]["runtimes"]}
            profile = _profile({**plan, "models": [model], "seconds": PROFILE_S}) if profiled else None
            changed = [replace(s, cold=cold, profile=profile) if j == i else s for j, s in enumerate(result.subjects)]
            result = replace(result, subjects=tuple(changed), runtimes=runtimes)
            told(i + 1, total)
        for number in range(launches):
            launch = _launch(list(_events({**plan, "seconds": seconds, "seed": plan["seed"] + number})))
            result = replace(result, launches=(*result.launches, launch), complete=number + 1 == launches)
            if record is not None:
                measurements.write(result, record)
            told(len(subjects) + number + 1, total)
    except KeyboardInterrupt:
        if not result.launches:
            raise
    return result


def this_machine() -> Device:
    """The machine that this runs on."""
    return Device(
        name="host",
        system=f"{platform.system()} {platform.release()}",
        cpu=_processor(),
        machine=hashlib.sha256(f"{platform.node()} {uuid.getnode():x}".encode()).hexdigest()[:12],
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith(("model name", "Model"))]
    return names[0] if names else platform.machine()


def subjects_of(found: Sequence[Artifact]) -> list[Subject]:
    """What a record says of artifacts. Raises BadInput for one that cannot be timed here, BackendMissing."""
    subjects: list[Subject] = []
    for artifact in found:
        target = targets.get(artifact.target)
        if artifact.target not in RUNTIMES:
            why = f"{target.runtime} is an interpreter, whose times say nothing" if target.is_interpreter else "no way"
            raise BadInput(f"{artifact.path.name} cannot be timed here ({why}): {' and '.join(RUNTIMES)} can")
        reason = target.cannot_run()
        if reason is not None:
            raise BackendMissing(reason)
        own = [entry for entry in artifact.manifest["files"] if entry["path"].startswith(artifact.manifest["file"])]
        names = [subject.name for subject in subjects]
        name, count = artifact.path.name, 1
        while name in names:
            count += 1
            name = f"{artifact.path.name} ({count})"
        subjects.append(
            Subject(
                name=name,
                model=artifact.model,
                target=artifact.target,
                precision=artifact.precision,
                runtime=RUNTIMES[artifact.target],
                sha256=artifact.digest,
                bytes=sum(entry["bytes"] for entry in own),
            )
        )
    return subjects


def _events(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What the runner tells of a plan, as it does. Raises Unsupported with its last line where it fails."""
    with _process([sys.executable, "-P", str(RUNNER)]) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(json.dumps(plan))
        process.stdin.close()
        for line in process.stdout:
            yield json.loads(line)
        said = process.stderr.read().strip().splitlines()
    if process.returncode != 0:
        raise Unsupported(f"the runner stopped with {process.returncode}: {said[-1] if said else 'it said nothing'}")


@contextmanager
def _process(command: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    """A process that does not outlive the block."""
    with subprocess.Popen(  # noqa: S603  # this Python, our own file
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        start_new_session=True,  # Ctrl-C is for us, and what was measured is kept
    ) as process:
        try:
            yield process
        except BaseException:
            process.kill()
            raise


def _profile(plan: dict[str, Any]) -> Profile:
    """Time per operator of a plan's one model."""
    told = next(event for event in _events({**plan, "operators": True}) if event["event"] == "operators")
    found = [Operator(one["name"], one["type"], None, None, one["ms"]) for one in told["operators"]]
    return Profile(told["calls"], told["call_ms"], place_operators(found, Path(plan["models"][0]["file"])))


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
