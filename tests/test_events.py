"""Events of a launch: each kind's form, their order, and a device that says too little."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from support.fuzzing import EVENTS

from edgesmith.bench import measure
from edgesmith.bench.events import KINDS, event_of, in_order, read_event
from edgesmith.bench.transport import Transport
from edgesmith.errors import DeviceFailed

BY_KIND = {str(event["event"]): event for event in EVENTS}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind in BY_KIND])
def test_an_event_lacks_nothing_and_has_nothing_else(kind: str) -> None:
    event = BY_KIND[kind]
    assert read_event(json.dumps(event), "board", 1) == event
    for name in event:
        optional = {"meters", "event", "power_mode", "busy"}
        if name not in optional:
            with pytest.raises(DeviceFailed):
                read_event(json.dumps({key: value for key, value in event.items() if key != name}), "board", 1)
    for name, wrong in [*((name, "six") for name in event if name != "event"), ("more", 1)]:
        if name != "meters":
            with pytest.raises(DeviceFailed):
                read_event(json.dumps({**event, name: wrong}), "board", 1)


def test_what_a_library_prints_is_no_event(tmp_path: Path) -> None:
    """Libraries print as they are imported, in Python and below it; Core ML's and TensorRT's both do."""
    says = "import os, sys\nprint('in Python')\nos.write(1, b'below it\\n')\nraise ImportError('none of it')\n"
    (tmp_path / "onnxruntime.py").write_text(says)
    plan = {"models": [], "runtimes": ["onnxruntime"], "seconds": 0}
    done = subprocess.run(
        [sys.executable, "-c", "from edgesmith.bench import runner; runner.main()"],
        input=json.dumps(plan),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])},
    )
    (line,) = done.stdout.splitlines()
    assert json.loads(line) == {"event": "lacks", "runtime": "onnxruntime", "why": "none of it", "can_import": False}
    assert sorted(done.stderr.splitlines()) == ["below it", "in Python"]


def test_every_kind_that_a_runner_tells_has_an_example() -> None:
    assert set(KINDS) - set(BY_KIND) == {"lacks", "failed"}  # these end a launch: tests/test_transport.py


def test_a_launch_that_is_whole_is_passed_on() -> None:
    assert tuple(in_order(iter(EVENTS), "board")) == EVENTS


@pytest.mark.parametrize("until", range(len(EVENTS)))
def test_a_launch_that_is_cut_is_told(until: int) -> None:
    with pytest.raises(DeviceFailed, match="answered nothing" if until == 0 else f"event {EVENTS[until - 1]['event']}"):
        list(in_order(iter(EVENTS[:until]), "board"))


def test_a_launch_begins_with_its_start() -> None:
    with pytest.raises(DeviceFailed, match="began with an event about"):
        list(in_order(iter(EVENTS[1:]), "board"))


@pytest.mark.parametrize("kind", ["about", "open", "operators"])
def test_an_event_that_is_needed_is_missed(kind: str) -> None:
    assert event_of(kind, EVENTS, "board") == BY_KIND[kind]
    with pytest.raises(DeviceFailed, match=f"board .* without an event {kind}"):
        event_of(kind, [event for event in EVENTS if event["event"] != kind], "board")


class Silent:
    """A device whose program says some of what a runner says."""

    name, is_here, runs_there, python = "board", False, True, ("python3",)

    def __init__(self, *said: str) -> None:
        self.said = said

    def write_runner(self, folder: Path) -> Path:
        return folder / "runner.py"

    def put(self, file: Path, name: str) -> str:
        return name

    def run(self, command: list[str], told: str) -> Iterator[str]:
        yield from (json.dumps(BY_KIND[kind]) for kind in self.said)


@pytest.mark.parametrize("said", [(), ("start",), ("start", "end"), ("about",), ("start", "about")])
def test_a_device_that_says_too_little_is_a_sentence(said: tuple[str, ...]) -> None:
    with pytest.raises(DeviceFailed, match=r"^board .*; look at what"):
        measure.ask(cast("Transport", Silent(*said)), ())


def test_a_device_that_says_enough_is_described() -> None:
    device, cores, busy = measure.ask(cast("Transport", Silent("start", "about", "end")), ())
    about: Any = BY_KIND["about"]
    assert replace(device, name="") == replace(device, name="", **about["machine"])
    assert (cores, busy) == ([0], None)
