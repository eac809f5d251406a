"""Shares of this machine's peak that compiled kernels reach, at the layers of casvit_xs, efficientvim_m1 and affnet_et.

Kernels are called in turn, several times in a row, and so is the one that only multiplies and adds, which is the peak.
The best call counts: other work on the machine only adds to a time. GFLOP/s count a layer's own arithmetic.

    python -m edgesmith.bench.experiments.kernels 15 1          rounds, threads
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from edgesmith.bench.experiments.command import Table, read_arguments
from edgesmith.kernels.native import (
    additive_attention,
    convolution,
    depthwise,
    fft_filter,
    hidden_state_mixer,
    lmu_memory,
    pointwise,
)
from edgesmith.kernels.native.callable import Library
from edgesmith.kernels.native.epilogue import Epilogue
from edgesmith.kernels.native.roofline import emit_multiply_adds
from edgesmith.kernels.native.toolchain import CpuTarget, compile_units, host
from edgesmith.kernels.native.unit import Unit

STAGES = ((56, 48), (28, 56), (14, 112), (7, 220))
"""Sides and channels of casvit_xs at 224 x 224."""

CALLS = 6


def choose_units(target: CpuTarget) -> list[Unit]:
    """Return the kernels."""
    added = Epilogue(residual="after")
    units = []
    for side, channels in STAGES:
        pixels = side * side
        layers = (
            pointwise.Pointwise(pixels, channels, 3 * channels),
            pointwise.Pointwise(pixels, channels, 4 * channels, Epilogue("gelu")),
            pointwise.Pointwise(pixels, 4 * channels, channels, added),
        )
        units += [pointwise.emit(layer, target) for layer in layers]
        units.append(depthwise.emit(depthwise.Depthwise(1, side, side, channels), target))
        attention = additive_attention.AdditiveAttention(1, side, side, channels, added)
        units.append(additive_attention.emit(attention, target))
    for side, inputs, outputs in ((224, 3, 24), (112, 24, 48), (56, 48, 56), (14, 112, 220)):
        units.append(convolution.emit(convolution.Convolution(1, side, side, inputs, outputs, stride=2), target))
    for side, channels, states in ((14, 128, 49), (7, 192, 25), (4, 320, 9)):
        mixer = hidden_state_mixer.HiddenStateMixer(1, side, side, channels, states)
        units.append(hidden_state_mixer.emit(mixer, target))
    for side, channels in ((32, 64), (16, 96), (8, 128)):
        units.append(fft_filter.emit(fft_filter.FftFilter(1, side, side, channels, 8), target))
    return [*units, lmu_memory.emit(lmu_memory.LmuMemory(1, 128, 256), target)]


def best_times(calls: Sequence[Callable[[], object]], rounds: int) -> list[float]:
    """Return the shortest time of each call, in nanoseconds."""
    best = [float("inf")] * len(calls)
    for _ in range(rounds):
        for i, call in enumerate(calls):
            for _ in range(CALLS):
                start = time.perf_counter_ns()
                call()
                best[i] = min(best[i], time.perf_counter_ns() - start)
    return best


def main() -> None:
    """Measure and print."""
    given = read_arguments(__doc__, rounds=15, threads=1)
    target = host()
    units = [emit_multiply_adds(target, given.threads), *choose_units(target)]
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        library = Library(compile_units(units, Path(folder) / "kernels.so", target))
        library.set_threads(given.threads)
        calls = []
        for unit in units:
            arrays = [0.1 * random.standard_normal(one.shape) for one in unit.arguments if one.role != "output"]
            calls.append(library.prepare(unit, *(array.astype(np.float32) for array in arrays)))
        times = best_times(calls, given.rounds)
        library.set_threads(1)
    peak = units[0].flops / times[0]
    table = Table(("kernel", 70), ("us", 8), ("GFLOP/s", 8), ("share %", 8))
    for unit, best in zip(units, times, strict=True):
        table.add(unit.symbol.removeprefix("es_"), best / 1e3, unit.flops / best, 100 * unit.flops / best / peak)


if __name__ == "__main__":
    main()
