"""Timing things against each other: in turn, round by round, so that drift hits all alike; and in several processes."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import perf_counter_ns
from typing import Any

Samples = dict[str, list[float]]
"""Milliseconds of each round, by name."""


def interleaved(calls: Mapping[str, Callable[[], object]], rounds: int, warm_up: int = 3) -> Samples:
    """Milliseconds of each of `rounds` calls of everything, one after the other in every round."""
    samples: Samples = {name: [] for name in calls}
    for i in range(warm_up + rounds):
        for name, call in calls.items():
            start = perf_counter_ns()
            call()
            if i >= warm_up:
                samples[name].append((perf_counter_ns() - start) / 1e6)
    return samples


def ratio(samples: Samples, slow: str, fast: str) -> tuple[float, float, float]:
    """How many times slower, round by round: first quartile, median, third quartile."""
    ratios = [a / b for a, b in zip(samples[slow], samples[fast], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return low, middle, high


def in_a_process(module: str, *arguments: object) -> Samples:
    """What `python -m module --launch arguments` prints as JSON.

    Where a process finds its memory changes an inference by several percent for as long as it lives.
    """
    call = [sys.executable, "-m", module, "--launch", *map(str, arguments)]
    done = subprocess.run(call, stdout=subprocess.PIPE, text=True, check=True)  # noqa: S603  # a program of this folder
    samples: Samples = json.loads(done.stdout)
    return samples


def over_processes(runs: Sequence[Samples], slow: str, fast: str) -> tuple[float, float, float]:
    """Of each process's median ratio: first quartile, median, third quartile."""
    ratios = [ratio(run, slow, fast)[1] for run in runs]
    low, middle, high = statistics.quantiles(ratios if len(ratios) > 1 else 2 * ratios, n=4, method="inclusive")
    return low, middle, high


def medians(runs: Sequence[Samples]) -> dict[str, float]:
    """Of each process's median: the median, milliseconds by name."""
    return {name: statistics.median(statistics.median(run[name]) for run in runs) for name in runs[0]}


def onnx_call(file: Path, feeds: Mapping[str, Any]) -> Callable[[], object]:
    """One inference of an ONNX file in ONNX Runtime, one thread of the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, dict(feeds))
