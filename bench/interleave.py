"""Timing things against each other in one process: in turn, round by round, so that drift hits all alike."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
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


def onnx_call(file: Path, feeds: Mapping[str, Any]) -> Callable[[], object]:
    """One inference of an ONNX file in ONNX Runtime, one thread of the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, dict(feeds))
