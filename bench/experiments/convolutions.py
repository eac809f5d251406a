"""What does a convolution over time cost on ONNX Runtime's CPU, and its Winograd forms? Behind `Costs.tile_gb_s`.

Forms run in one process, in turn, one thread: the convolution, and tiles of 4 and of 6 points. Microseconds are
medians, with the estimate of the `winograd` rewrite in brackets; a ratio is the convolution over a form, round by
round, median with first and third quartile. `edgesmith.bench.experiments.zoo` compares whole models.

    python -m edgesmith.bench.experiments.convolutions [rounds]
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path

from edgesmith.bench.experiments.interleave import Samples, interleaved, onnx_call, ratio

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


def measure(channels: int, width: int, length: int, kernel: int, rounds: int) -> tuple[Samples, dict[int, float]]:
    """Milliseconds of a layer, round by round, by name of the form, and the estimates, microseconds by tile."""
    import torch
    from torch import nn

    from edgesmith.exporters.graph.capture import capture
    from edgesmith.exporters.rewrites.order import rewrite
    from edgesmith.exporters.rewrites.winograd import POINTS, estimate, winograd
    from edgesmith.exporters.targets import Request, onnx

    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(LAYERS):
        layers += [nn.Conv1d(channels, width, kernel, padding=kernel // 2, bias=False), nn.ReLU()]
        channels, width = width, channels  # there and back
    x = torch.randn(1, channels, length)
    program = capture(nn.Sequential(*layers).eval(), (x,), ("x",))
    first = layers[0]
    assert isinstance(first, nn.Conv1d)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        calls = {}
        for points in (0, *(points for points in POINTS if points > kernel)):
            form, _ = rewrite(program, onnx.costs, (winograd.with_options(points=points),) if points else ())
            name = f"tiles of {points - kernel + 1}" if points else "direct"
            file = Path(folder) / f"{points}.onnx"
            onnx.lower(form, file, Request("layers", "fp32"))
            calls[name] = onnx_call(file, {"x": x.numpy()})
        samples = interleaved(calls, rounds)
        return (
            {name: [time / LAYERS for time in times] for name, times in samples.items()},
            estimate(first(x), first.weight, onnx.costs),
        )


def main() -> None:
    """Print one line for each size."""
    import torch

    torch.set_num_threads(1)
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    for channels, width, length, kernel in SIZES:
        samples, estimates = measure(channels, width, length, kernel, rounds)
        parts = []
        for (name, times), estimated in zip(samples.items(), estimates.values(), strict=True):
            part = f"{name} {1e3 * statistics.median(times):.0f} us [{estimated:.0f}]"
            if name != "direct":
                low, middle, high = ratio(samples, "direct", name)
                part += f" {middle:.2f} x ({low:.2f} to {high:.2f})"
            parts.append(part)
        print(f"C {channels:3} C' {width:3} T {length:4} r {kernel}  " + "   ".join(parts), flush=True)


if __name__ == "__main__":
    main()
