"""The cost of a convolution over time on ONNX Runtime's CPU, and of its Winograd forms. Behind `Costs.tile_gb_s`.

Forms run in one process, in turn, one thread: the convolution, and tiles of 4 and of 6 points. Microseconds are
medians, with the estimate of the `winograd` rewrite in brackets; a ratio is the convolution over a form, round by
round, median with first and third quartile. `edgesmith.bench.experiments.zoo` compares whole models.

    python -m edgesmith.bench.experiments.convolutions [rounds]
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import nn

from edgesmith.bench.experiments.command import Table, read_arguments
from edgesmith.bench.experiments.forms import COSTS, call_of, program_of
from edgesmith.bench.experiments.interleave import Samples, interleaved, median_us, ratio
from edgesmith.exporters.rewrites.order import rewrite
from edgesmith.exporters.rewrites.winograd import POINTS, estimate, winograd

SIZES = (
    (128, 256, 128, 3),
    (256, 256, 128, 3),
    (256, 256, 1000, 3),
    (256, 256, 16, 3),
    (64, 64, 128, 3),
    (512, 512, 128, 3),
    (256, 256, 128, 2),
    (256, 256, 128, 5),
)
"""Channels C and C', time T, kernel r: LMUFormer's first two, and what lies around them."""

LAYERS = 4
"""Layers in a row, each with weights of its own, so that they come from where a model's do."""


def measure(channels: int, width: int, length: int, kernel: int, rounds: int) -> tuple[Samples, dict[str, float]]:
    """Time the forms of a layer. Returns milliseconds of one layer, and the estimates, microseconds by form."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    first = nn.Conv1d(channels, width, kernel, padding=kernel // 2, bias=False)
    for i in range(LAYERS):  # there and back
        there = first if i == 0 else nn.Conv1d(channels, width, kernel, padding=kernel // 2, bias=False)
        layers += [there, nn.ReLU()]
        channels, width = width, channels
    x = torch.randn(1, channels, length)
    program = program_of(nn.Sequential(*layers), x)
    names = {0: "direct"} | {points: f"tiles of {points - kernel + 1}" for points in POINTS if points > kernel}
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        calls = {}
        for points, name in names.items():
            form, _ = rewrite(program, COSTS, (winograd.with_options(points=points),) if points else ())
            calls[name] = call_of(form, Path(folder) / f"{points}.onnx")
        samples = interleaved(calls, rounds)
        estimates = estimate(first(x), first.weight, COSTS)
    each = {name: [time / LAYERS for time in times] for name, times in samples.items()}
    return each, dict(zip(names.values(), estimates.values(), strict=True))


def main() -> None:
    """Print one line for each form of each size."""
    rounds = read_arguments(__doc__, rounds=100).rounds
    torch.set_num_threads(1)
    table = Table("   C", "  C'", "   T", "r", ("form", 10), "      us", "estimate", "direct over it")
    for size in SIZES:
        samples, estimates = measure(*size, rounds)
        for name, us in median_us(samples).items():
            table.add(*size, name, us, estimates[name], "" if name == "direct" else ratio(samples, "direct", name))


if __name__ == "__main__":
    main()
