"""Are shared gates cheaper on ONNX Runtime's CPU? Behind the costs in `exporters/targets/onnx.py`.

Both forms of the additive token mixer run in one process, in turn, one thread, at the map sizes of the zoo. A ratio is
shared over separate, median over rounds with its first and third quartile; below 1 sharing wins.

    python -m edgesmith.bench.experiments.gates [rounds]
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path
from time import perf_counter_ns
from typing import Any

SIZES = ((48, 56), (56, 28), (112, 14), (220, 7), (96, 56), (128, 28), (256, 14), (512, 7))
"""Channels, and height and width, of the stages of CAS-ViT XS and T at 224."""

BATCH_OF_RUNS = 8


def measure(channels: int, size: int, rounds: int) -> dict[bool, list[float]]:
    """Microseconds a run, round by round, of the separate (False) and the shared (True) form."""
    from edgesmith.kernels import additive_attention

    qkv, *weights = additive_attention.example(channels, size, size)
    samples: dict[bool, list[float]] = {False: [], True: []}
    with tempfile.TemporaryDirectory() as folder:
        sessions = {share: _session(qkv, weights, share, Path(folder)) for share in samples}
        for _ in range(rounds):
            for share, (session, feeds) in sessions.items():
                start = perf_counter_ns()
                for _ in range(BATCH_OF_RUNS):
                    session.run(None, feeds)
                samples[share].append((perf_counter_ns() - start) / 1e3 / BATCH_OF_RUNS)
    return samples


def _session(qkv: Any, weights: Any, share: bool, folder: Path) -> tuple[Any, dict[str, Any]]:
    import onnxruntime
    from torch import Tensor, nn

    from edgesmith.exporters.graph.capture import capture
    from edgesmith.exporters.targets import Request, onnx
    from edgesmith.kernels import additive_attention

    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights = nn.ParameterList(weights)

        def forward(self, qkv: Tensor) -> Any:
            return additive_attention.OP.overload(qkv, *self.weights, share_gates=share)

    path = folder / f"{share}.onnx"
    onnx.lower(capture(Mixer(), (qkv,), ("qkv",)), path, Request("mixer", "fp32"))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options), {"qkv": qkv.numpy()}


def main() -> None:
    """Print one line for each size."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    print("channels  size  separate us  shared us  ratio  quartiles")
    for channels, size in SIZES:
        samples = measure(channels, size, rounds)
        ratios = [shared / separate for separate, shared in zip(samples[False], samples[True], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        medians = [statistics.median(samples[share]) for share in (False, True)]
        print(f"{channels:8}  {size:4}  {medians[0]:11.0f}  {medians[1]:9.0f}  {middle:5.3f}  {low:.3f} to {high:.3f}")


if __name__ == "__main__":
    main()
