"""This machine's two peaks, measured: multiply-adds a second in registers, and bytes a second from memory (roofline.h).

A kernel's share of the first says how much of the processor it uses. Both are medians of several calls, and mean
nothing on a machine that is doing something else.

    python -m edgesmith.kernels.native.roofline
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgesmith.kernels.native.callable import Library
from edgesmith.kernels.native.toolchain import CpuTarget, compile_units, host
from edgesmith.kernels.native.unit import Argument, Unit, make_symbol, render

SUMS = {"avx512": 24, "avx2": 12, "neon": 24}
"""Vectors in registers: more than the multiply-adds that are under way, and few enough to leave two for the factors."""

REPEATS = 100_000
COUNT = 1 << 24
"""Numbers that are read: 64 MiB, beyond every cache of a machine at the edge."""


@dataclass(frozen=True)
class Roofline:
    """The peaks with a number of threads.

    Attributes:
        gflops: 10^9 additions and multiplications a second in fp32.
        gb_s: 10^9 bytes a second, read from memory.
    """

    threads: int
    gflops: float
    gb_s: float


def emit_multiply_adds(target: CpuTarget, threads: int) -> Unit:
    """Return the kernel that only multiplies and adds. Arguments: two factors, y [TASKS]."""
    instructions = target.instructions
    sums = SUMS[instructions.name]
    symbol = make_symbol("multiply_adds", f"t{threads}")
    source = render(
        "roofline", "MultiplyAdds", symbol, instructions.lanes, {"SUMS": sums, "REPEATS": REPEATS, "TASKS": threads}
    )
    arguments = (Argument("input", "factors", (2,)), Argument("output", "y", (threads,)))
    return Unit(symbol, source, arguments, 0, 2 * sums * instructions.lanes * REPEATS * threads)


def emit_bandwidth(target: CpuTarget, threads: int) -> Unit:
    """Return the kernel that only reads. Arguments: x [TASKS, COUNT], y [TASKS]."""
    count = COUNT // threads // 256 * 256
    symbol = make_symbol("bandwidth", f"t{threads}")
    source = render("roofline", "Bandwidth", symbol, target.instructions.lanes, {"COUNT": count, "TASKS": threads})
    arguments = (Argument("input", "x", (threads, count)), Argument("output", "y", (threads,)))
    return Unit(symbol, source, arguments, 0, threads * count)


def measure(threads: int = 1, calls: int = 9) -> Roofline:
    """Return this machine's peaks.

    Raises:
        BackendMissing: there is no compiler.
    """
    target = host()
    units = emit_multiply_adds(target, threads), emit_bandwidth(target, threads)
    with tempfile.TemporaryDirectory() as folder:
        library = Library(compile_units(units, Path(folder) / "roofline.so", target))
        library.set_threads(threads)
        factors = np.array([0.5, 1.0], np.float32)
        numbers = np.ones(units[1].arguments[0].shape, np.float32)
        adding = time_calls(library.prepare(units[0], factors), calls)
        reading = time_calls(library.prepare(units[1], numbers), calls)
        library.set_threads(1)
    return Roofline(threads, units[0].flops / adding / 1e9, numbers.nbytes / reading / 1e9)


def time_calls(call: Callable[[], object], calls: int) -> float:
    """Return the median of a call's times, in seconds, after a first one that is not counted."""
    call()
    times = []
    for _ in range(calls):
        start = time.perf_counter_ns()
        call()
        times.append(time.perf_counter_ns() - start)
    return statistics.median(times) / 1e9


def main() -> None:
    """Print the peaks with one thread and with two."""
    for threads in (1, 2):
        found = measure(threads)
        print(f"{threads} threads: {found.gflops:.1f} GFLOP/s, {found.gb_s:.1f} GB/s")


if __name__ == "__main__":
    main()
