"""Our end of a peer's process: tasks, events, and why there are none."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from edgesmith.bench.transport.process import Errors, give, limited, started
from edgesmith.errors import Unreadable
from edgesmith.readers.documents import read_json

WORKER: Sequence[str] = (sys.executable, "-P", "-m", "edgesmith.bench.peers.worker")

State = Literal["timed", "wrong", "refused", "crashed", "missing"]


class Out(Exception):
    """A peer is out of the contest, with its state, and a sentence."""

    def __init__(self, state: State, why: str) -> None:
        super().__init__(why)
        self.state: State = state


class Process:
    """A peer's process that waits for the next line."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process, self._errors = process, Errors(process)

    def ask(self, line: str, seconds: float) -> Mapping[str, Any]:
        """Write a line and return the event that answers it. Raises Out where none does in time, or it is a refusal."""
        assert self._process.stdout is not None
        with limited(self._process, seconds) as late:
            give(self._process, f"{line}\n".encode(), close=False)
            raw = self._process.stdout.readline()
        if not raw.endswith(b"\n"):
            code = self._process.wait()
            raise Out("crashed", f"no answer in {seconds:g} s" if late.is_set() else _ended(code))
        try:
            event: Mapping[str, Any] = read_json(raw, "event of a peer")
        except Unreadable as error:
            raise Out("crashed", "its process answers nonsense") from error
        if event["event"] == "lacks":
            raise Out("missing", f"cannot be imported ({event['why']}); install it again")
        if event["event"] == "refused":
            raise Out("refused", f"refuses the model: {event['why']}")
        return event


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
        yield process, process.ask(json.dumps(task), seconds)
