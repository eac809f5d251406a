"""Our end of a peer's process: tasks, events, and why there are none."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from edgesmith.bench.transport.process import Errors, give, limited, started
from edgesmith.errors import Unreadable
from edgesmith.readers.documents import read_json
from edgesmith.readers.typed import as_dataclass

WORKER: Sequence[str] = (sys.executable, "-P", "-m", "edgesmith.bench.peers.worker")

State = Literal["timed", "wrong", "refused", "crashed", "missing"]


LONGEST_ANSWER = 2**24
"""Bytes of an event; one with the samples of a slot has some thousands."""


@dataclass(frozen=True)
class Done:
    """The runtime's own file is made."""

    event: str
    file: str


@dataclass(frozen=True)
class Opened:
    """The file is open, and its outputs are written."""

    event: str
    version: str
    load_ms: float
    first_ms: float


@dataclass(frozen=True)
class Warm:
    """Calls take the same time again."""

    event: str
    calls: int
    is_steady: bool


@dataclass(frozen=True)
class Slot:
    """Calls were timed."""

    event: str
    samples_ms: tuple[float, ...]


@dataclass(frozen=True)
class Lacks:
    """A package cannot be imported."""

    event: str
    why: str


@dataclass(frozen=True)
class Refused:
    """The runtime raised."""

    event: str
    why: str


KINDS: Mapping[str, type] = {
    "done": Done,
    "opened": Opened,
    "warm": Warm,
    "slot": Slot,
    "lacks": Lacks,
    "refused": Refused,
}
"""The form of each event."""

ANSWERS = {"convert": "done", "time": "opened", "warm": "warm", "slot": "slot"}
"""The event that answers a task or a word, where nothing goes wrong."""


class Out(Exception):
    """A peer is out of the contest, with its state, and a sentence."""

    def __init__(self, state: State, why: str) -> None:
        super().__init__(why)
        self.state: State = state


class Process:
    """A peer's process that waits for the next line."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process, self._errors = process, Errors(process)

    def ask(self, line: str, seconds: float, asked: str = "") -> Mapping[str, Any]:
        """Write a line and return the event that answers it.

        Args:
            asked: a key of ANSWERS; the line itself, where it is one.

        Raises:
            Out: none answers in time, or it is a refusal, or another's answer.
        """
        assert self._process.stdout is not None
        with limited(self._process, seconds) as late:
            give(self._process, f"{line}\n".encode(), close=False)
            raw = self._process.stdout.readline(LONGEST_ANSWER)
        if not raw.endswith(b"\n"):
            if len(raw) == LONGEST_ANSWER:
                self._process.kill()
            code = self._process.wait()
            raise Out("crashed", f"no answer in {seconds:g} s" if late.is_set() else _ended(code))
        try:
            event = read_event(raw)
        except Unreadable as error:
            raise Out("crashed", "its process answers nonsense") from error
        if event["event"] == "lacks":
            raise Out("missing", f"cannot be imported ({event['why']}); install it again")
        if event["event"] == "refused":
            raise Out("refused", f"refuses the model: {event['why']}")
        if event["event"] != ANSWERS[asked or line]:
            raise Out("crashed", "its process answers nonsense")
        return event


def read_event(raw: bytes) -> dict[str, Any]:
    """Return the event of a line that a peer's process wrote. Raises Unreadable where it is none."""
    event = read_json(raw, "event of a peer")
    kind = event.get("event") if isinstance(event, dict) else None
    if not isinstance(kind, str) or kind not in KINDS:
        raise Unreadable("the event of a peer is of no kind that there is")
    as_dataclass(KINDS[kind], event, f"the event {kind} of a peer")
    samples = event.get("samples_ms", [1.0])
    if not samples or not all(math.isfinite(one) and one > 0 for one in samples):
        raise Unreadable("the event slot of a peer has times that there are not")
    return dict(event)


def _ended(code: int) -> str:
    if code >= 0:
        return f"its process ended with code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"its process was ended by {name}"


@contextmanager
def process_of(task: Mapping[str, Any], threads: int, seconds: float) -> Iterator[tuple[Process, Mapping[str, Any]]]:
    """Start a process with a task. Yields it and its first event; it ends with the block. Raises Out."""
    count = str(threads)
    pools = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), count)
    with started(WORKER, **pools) as popen:
        process = Process(popen)
        yield process, process.ask(json.dumps(task), seconds, task["do"])
