"""The cost of a frequency filter on ONNX Runtime's CPU. Behind the lowering and the costs in `targets/onnx.py`.

Three forms run in one process, in turn, one thread, at the map sizes of AFFNet: what torch's exporter makes of the
plain module (DFT and Einsum), and ours, separable and dense. Microseconds are medians; a ratio is a form over the
separable one, round by round, median with first and third quartile. `experiments.zoo` compares whole models.

    python -m edgesmith.bench.experiments.filters [rounds]
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from torch import Tensor, nn

from edgesmith.bench.experiments.command import Table, read_arguments
from edgesmith.bench.experiments.forms import call_of, program_of, write_plain
from edgesmith.bench.experiments.interleave import Samples, interleaved, median_us, onnx_call, ratio
from edgesmith.kernels import fft_filter

SIZES = ((64, 32), (104, 16), (144, 8), (128, 32), (256, 16), (320, 8), (144, 7), (144, 10), (144, 12), (104, 14))
"""Channels, and height and width: the stages of AFFNet-ET and AFFNet at 256, and what lies around the crossing."""


class Filter(nn.Module):
    """A filter as its reference, or in one of its forms."""

    def __init__(self, weights: list[Tensor], dense: bool | None) -> None:
        super().__init__()
        self.dense = dense
        self.weights = nn.ParameterList(weights)

    def forward(self, x: Tensor) -> Tensor:
        if self.dense is None:
            return fft_filter.reference(x, *self.weights)
        filtered: Tensor = fft_filter.OP.overload(x, *self.weights, dense=self.dense)
        return filtered


def measure(channels: int, size: int, rounds: int) -> Samples:
    """Time the three forms."""
    x, *weights = fft_filter.example(channels, 8, size, size)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plain = write_plain(Filter(weights, None), x, folder / "plain.onnx")
        calls = {
            "separable": call_of(program_of(Filter(weights, False), x), folder / "separable.onnx"),
            "dense": call_of(program_of(Filter(weights, True), x), folder / "dense.onnx"),
            "plain": onnx_call(plain, {"x": x.numpy()}),
        }
        return interleaved(calls, rounds)


def main() -> None:
    """Print one line for each size."""
    rounds = read_arguments(__doc__, rounds=100).rounds
    table = Table("channels", "size", "separable us", "dense us", "plain us", ("dense ratio", 24), "plain ratio")
    for channels, size in SIZES:
        samples = measure(channels, size, rounds)
        ratios = [ratio(samples, name, "separable") for name in ("dense", "plain")]
        table.add(channels, size, *median_us(samples).values(), *ratios)


if __name__ == "__main__":
    main()
