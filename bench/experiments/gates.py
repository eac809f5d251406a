"""Are shared gates cheaper on ONNX Runtime's CPU? Behind the costs in `exporters/targets/onnx.py`.

Both forms of the additive token mixer run in one process, in turn, one thread, at the map sizes of the zoo. A ratio is
shared over separate, median over rounds with its first and third quartile; below 1 sharing wins.

    python -m edgesmith.bench.experiments.gates [rounds]
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from edgesmith.bench.experiments.command import Table, read_arguments
from edgesmith.bench.experiments.forms import call_of, program_of
from edgesmith.bench.experiments.interleave import Samples, interleaved, median_us, ratio
from edgesmith.kernels import additive_attention

SIZES = ((48, 56), (56, 28), (112, 14), (220, 7), (96, 56), (128, 28), (256, 14), (512, 7))
"""Channels, and height and width, of the stages of CAS-ViT XS and T at 224."""

BATCH = 8
"""Inferences of a form in a row, whose mean is a sample."""


class Mixer(nn.Module):
    """The token mixer with shared gates, or with separate ones."""

    def __init__(self, weights: list[Tensor], share: bool) -> None:
        super().__init__()
        self.weights, self.share = nn.ParameterList(weights), share

    def forward(self, qkv: Tensor) -> Any:
        return additive_attention.OP.overload(qkv, *self.weights, share_gates=self.share)


def measure(channels: int, size: int, rounds: int) -> Samples:
    """Time both forms."""
    qkv, *weights = additive_attention.example(channels, size, size)
    with tempfile.TemporaryDirectory() as folder:
        calls = {
            name: call_of(program_of(Mixer(weights, share), qkv), Path(folder) / f"{name}.onnx")
            for name, share in (("separate", False), ("shared", True))
        }
        return interleaved(calls, rounds, batch=BATCH)


def main() -> None:
    """Print one line for each size."""
    rounds = read_arguments(__doc__, rounds=100).rounds
    table = Table("channels", "size", "separate us", "shared us", "shared over separate")
    for channels, size in SIZES:
        samples = measure(channels, size, rounds)
        table.add(channels, size, *median_us(samples).values(), ratio(samples, "shared", "separate"))


if __name__ == "__main__":
    main()
