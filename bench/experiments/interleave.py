"""The timer of all experiments: things in turn, round by round, so that drift hits all alike; and in several processes.

    interleaved      milliseconds of each call in every round             Samples, by name
    ratio            of two of them, round by round                       Spread: median and quartiles
    in_a_process     the samples of `launch(*arguments)` of a module, in a process of its own
    over_processes   of each process's median ratio                       Spread

Where a process finds its memory changes an inference by several per cent for as long as it lives; rounds in one process
do not show that, so forms that are close are compared in several.
"""

from __future__ import annotations

import importlib
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import perf_counter_ns
from typing import Any, NamedTuple, TypeVar

from edgesmith.errors import Unsupported

Samples = dict[str, list[float]]
"""Milliseconds of each round, by name."""

Result = TypeVar("Result")


class Spread(NamedTuple):
    """The quartiles of some ratios."""

    low: float
    middle: float
    high: float

    def __str__(self) -> str:
        return f"{self.middle:.3f} x ({self.low:.3f} to {self.high:.3f})"


def interleaved(calls: Mapping[str, Callable[[], object]], rounds: int, warm_up: int = 3, batch: int = 1) -> Samples:
    """Time calls in turn, for so many rounds after those of the warm-up.

    Args:
        batch: calls in a row of each, whose mean is one sample.
    """
    samples: Samples = {name: [] for name in calls}
    for i in range(warm_up + rounds):
        for name, call in calls.items():
            start = perf_counter_ns()
            for _ in range(batch):
                call()
            if i >= warm_up:
                samples[name].append((perf_counter_ns() - start) / 1e6 / batch)
    return samples


def once(call: Callable[[], Result]) -> tuple[Result, float]:
    """Return the result of what can be done but once, and its milliseconds."""
    start = perf_counter_ns()
    result = call()
    return result, (perf_counter_ns() - start) / 1e6


def median_us(samples: Samples) -> dict[str, float]:
    """Return the median of each, microseconds."""
    return {name: 1e3 * statistics.median(times) for name, times in samples.items()}


def ratio(samples: Samples, slow: str, fast: str) -> Spread:
    """Return how many times slower one is than another, round by round."""
    ratios = [a / b for a, b in zip(samples[slow], samples[fast], strict=True)]
    return Spread(*statistics.quantiles(ratios, n=4))


def in_a_process(module: str, *arguments: object) -> Any:
    """Return what a module's function `launch` returns of some words, from a process of its own.

    Raises:
        Unsupported: the process fails; with its last line.
    """
    command = [sys.executable, "-P", "-m", __spec__.name, module, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  # a module of this folder
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or ["it said nothing"]
        raise Unsupported(f"a launch of {module} failed: {said[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def over_processes(runs: Sequence[Samples], slow: str, fast: str) -> Spread:
    """Return the spread of the processes' median ratios."""
    ratios = [ratio(run, slow, fast).middle for run in runs]
    return Spread(*statistics.quantiles(ratios if len(ratios) > 1 else 2 * ratios, n=4, method="inclusive"))


def medians(runs: Sequence[Samples]) -> dict[str, float]:
    """Return the median of the processes' medians, milliseconds by name."""
    return {name: statistics.median(statistics.median(run[name]) for run in runs) for name in runs[0]}


def onnx_call(file: Path, feeds: Mapping[str, Any]) -> Callable[[], object]:
    """Return a call of one inference of an ONNX file in ONNX Runtime, on one thread of the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, dict(feeds))


if __name__ == "__main__":
    print(json.dumps(importlib.import_module(sys.argv[1]).launch(*sys.argv[2:])))
