"""The process of one peer: a task on the first line of stdin, events on stdout, one JSON object a line.

    task     {"do": "convert", "peer", "source", "folder"}         make the runtime's own file
             {"do": "time", "peer", "source", "file", "threads", "cores", "inputs", "outputs", "slot_ms"}
    done     {"file"}                                              of the first
    opened   {"version", "load_ms", "first_ms"}                    outputs for all inputs are in their file
    warm     {"calls", "is_steady"}                                after each line `warm` on stdin
    slot     {"samples_ms"}                                        after each line `slot`; its first call is not kept
    lacks    {"why"}                                               instead: the runtime cannot be imported
    refused  {"why"}                                               instead: it does not take the model

No peer may open a socket of the network; telemetry is off where a variable turns it off.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from edgesmith import telemetry
from edgesmith.bench.peers.peer import Source, find
from edgesmith.board.common import end_with_parent, keep_output_apart, timed, warm_up
from edgesmith.readers.documents import read_json
from edgesmith.readers.tensors import read_safetensors
from edgesmith.readers.typed import as_dataclass

LONGEST_REASON = 160
"""Characters of what a runtime says."""

_PATH = re.compile(r"(?:/[\w.+-]+){2,}/?")


def write_arrays(calls: list[list[np.ndarray]], file: Path) -> None:
    """Write the arrays of some calls."""
    from safetensors.numpy import save

    named = {f"{i}.{k}": np.array(x, order="C") for i, arrays in enumerate(calls) for k, x in enumerate(arrays)}
    file.write_bytes(save(named))


def read_arrays(file: Path) -> list[list[np.ndarray]]:
    """Read what `write_arrays` wrote."""
    named = read_safetensors(file, "arrays of a peer")
    calls: dict[int, dict[int, np.ndarray]] = {}
    for name, array in named.items():
        i, k = map(int, name.split("."))
        calls.setdefault(i, {})[k] = array
    return [[arrays[k] for k in sorted(arrays)] for _, arrays in sorted(calls.items())]


def describe(error: BaseException) -> str:
    """Return an exception as part of a sentence: its kind and the beginning of what it says, without paths."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = _PATH.sub("a file", lines[0]).rstrip(".") if lines else ""
    short = said if len(said) <= LONGEST_REASON else f"{said[: LONGEST_REASON - 3]}..."
    return f"{type(error).__name__}: {short}" if short else type(error).__name__


def convert(task: Mapping[str, Any], source: Source, tell: Callable[..., None]) -> None:
    """Make a runtime's own file."""
    folder = Path(task["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    tell("done", file=str(find(task["peer"]).convert(source, folder)))


def time_calls(task: Mapping[str, Any], source: Source, tell: Callable[..., None]) -> None:
    """Open a runtime's file, write its outputs, and time calls whenever that is asked for."""
    peer = find(task["peer"])
    if task["cores"] and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, task["cores"])
    version = peer.version()
    inputs = read_arrays(Path(task["inputs"]))
    start = time.perf_counter()
    call = peer.open(source, Path(task["file"]), task["threads"])
    load_ms = (time.perf_counter() - start) * 1e3
    first = timed(lambda: call(inputs[0]))
    write_arrays([[np.array(y) for y in call(arrays)] for arrays in inputs], Path(task["outputs"]))
    tell("opened", version=version, load_ms=load_ms, first_ms=first)

    def run() -> None:
        call(inputs[0])

    for line in sys.stdin:
        if line.strip() == "warm":
            calls, _, steady = warm_up(run)
            tell("warm", calls=calls, is_steady=steady)
            continue
        run()
        samples = [timed(run)]
        while sum(samples) < task["slot_ms"]:
            samples.append(timed(run))
        tell("slot", samples_ms=samples)


TASKS: dict[str, Callable[[Mapping[str, Any], Source, Callable[..., None]], None]] = {
    "convert": convert,
    "time": time_calls,
}


def main() -> None:
    """Do the task on stdin."""
    end_with_parent()
    events = keep_output_apart()  # what libraries print is no event

    def tell(event: str, **facts: Any) -> None:
        print(json.dumps({"event": event, **facts}), file=events, flush=True)

    do_task(sys.stdin, tell)


def do_task(given: TextIO, tell: Callable[..., None]) -> None:
    """Do the task on the first line; what goes wrong with it is an event."""
    task = read_json(given.readline(), "task of a peer")
    telemetry.turn_off()
    telemetry.refuse_sockets()
    try:
        TASKS[task["do"]](task, as_dataclass(Source, task["source"], "a peer's task: /source"), tell)
    except ImportError as error:
        tell("lacks", why=describe(error))
    except Exception as error:  # whatever a runtime raises is its refusal
        tell("refused", why=describe(error))


if __name__ == "__main__":
    main()
