"""What does a frequency filter cost on ONNX Runtime's CPU? Behind the lowering and the costs in `targets/onnx.py`.

Three forms run in one process, in turn, one thread, at the map sizes of AFFNet: what torch's exporter makes of the
plain module (DFT and Einsum), and ours, separable and dense. Microseconds are medians; a ratio is a form over the
separable one, round by round, median with first and third quartile. `experiments.zoo` compares whole models.

    python -m edgesmith.bench.experiments.filters [rounds]
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path

from edgesmith.bench.experiments.interleave import Samples, interleaved, onnx_call, ratio

SIZES = ((64, 32), (104, 16), (144, 8), (128, 32), (256, 16), (320, 8), (144, 7), (144, 10), (144, 12), (104, 14))
"""Channels, and height and width: the stages of AFFNet-ET and AFFNet at 256, and what lies around the crossing."""


def measure(channels: int, size: int, rounds: int) -> Samples:
    """Milliseconds a run, round by round, of each form."""
    from torch import Tensor, nn

    from edgesmith.bench.experiments.zoo import plain_export
    from edgesmith.exporters.graph.capture import capture
    from edgesmith.exporters.targets import Request, onnx
    from edgesmith.kernels import fft_filter

    x, *weights = fft_filter.example(channels, 8, size, size)

    class Filter(nn.Module):
        def __init__(self, dense: bool | None) -> None:
            super().__init__()
            self.dense = dense
            self.weights = nn.ParameterList(weights)

        def forward(self, x: Tensor) -> Tensor:
            if self.dense is None:
                return fft_filter.reference(x, *self.weights)
            filtered: Tensor = fft_filter.OP.overload(x, *self.weights, dense=self.dense)
            return filtered

    with tempfile.TemporaryDirectory() as folder:
        files = {"plain": plain_export(Filter(None), x, Path(folder))}
        for name, dense in (("separable", False), ("dense", True)):
            files[name] = Path(folder) / f"{name}.onnx"
            onnx.lower(capture(Filter(dense), (x,), ("x",)), files[name], Request("filter", "fp32"))
        return interleaved({name: onnx_call(file, {"x": x.numpy()}) for name, file in files.items()}, rounds)


def main() -> None:
    """Print one line for each size."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    print("channels  size  separable us  dense us  plain us  dense ratio            plain ratio")
    for channels, size in SIZES:
        samples = measure(channels, size, rounds)
        medians = [1e3 * statistics.median(samples[name]) for name in ("separable", "dense", "plain")]
        ratios = []
        for name in ("dense", "plain"):
            low, middle, high = ratio(samples, name, "separable")
            ratios.append(f"{middle:5.2f} ({low:.2f} to {high:.2f})")
        print(
            f"{channels:8}  {size:4}  {medians[0]:12.0f}  {medians[1]:8.0f}  {medians[2]:8.0f}  {'   '.join(ratios)}",
            flush=True,
        )


if __name__ == "__main__":
    main()
