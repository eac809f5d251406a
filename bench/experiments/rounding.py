"""Distances from float64 of ONNX Runtime's kernels and of PyTorch's, at growing lengths.

Each operator reduces, or normalises, n normal numbers around 0.7 on the CPU, four rows of them. Printed is the largest
distance from float64 relative to the peak, of ONNX Runtime 1.31's own kernel, of PyTorch 2.13's, and of the file that
the target onnx writes, which leaves the kernel from `COARSE_FROM` on. The last column is the file's time over that of
the kernel alone. Of n equal numbers a mean one after the other is 2.4e-4 off at n = 131072, in stages 1.3e-7.

    python -m edgesmith.bench.experiments.rounding [rounds]
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor, nn

from edgesmith.bench.experiments.command import Table, read_arguments
from edgesmith.bench.experiments.forms import ONNX, program_of
from edgesmith.bench.experiments.interleave import interleaved, onnx_call, ratio
from edgesmith.exporters.precision import table as precisions
from edgesmith.exporters.targets import _typed_onnx
from edgesmith.exporters.targets.target import Request

LENGTHS = (256, 2048, 16384, 131072, 1048576)
ROWS = 4


class Reduction(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def _norm(x: Tensor) -> Tensor:
    return torch.nn.functional.group_norm(x[None], ROWS)


def _layer_norm(x: Tensor) -> Tensor:
    return torch.nn.functional.layer_norm(x, x.shape[1:])


FORMS: dict[str, tuple[Callable[[Tensor], Tensor], bool]] = {
    "mean": (lambda x: x.mean(1), False),
    "mean of the first axis": (lambda x: x.mean(0), True),
    "sum": (lambda x: x.sum(1), False),
    "L2 norm": (lambda x: torch.linalg.vector_norm(x, dim=1), False),
    "pooling": (lambda x: torch.nn.functional.adaptive_avg_pool2d(x[None, :, :, None], 1), False),
    "group norm": (_norm, False),
    "layer norm": (_layer_norm, False),
    "cumsum": (lambda x: x.cumsum(1), False),
    "softmax": (lambda x: x.softmax(1), False),
    "log softmax": (lambda x: x.log_softmax(1), False),
    "logsumexp": (lambda x: x.logsumexp(1), False),
    "matmul": (lambda x: x @ x.T, False),
}
"""Functions of [rows, n], or, of [n, rows] where that is set."""


def distance(exact: np.ndarray, found: np.ndarray) -> float:
    """Return the largest difference relative to the exact values' peak."""
    return float(np.abs(found - exact).max() / np.abs(exact).max())


def measure(model: nn.Module, x: Tensor, folder: Path, rounds: int) -> Sequence[object]:
    """Return three distances from float64, kernel, PyTorch and file, and the file's time over the kernel's."""
    program, request = program_of(model, x), Request("rounding", precisions.FP32)
    kernel, file = folder / "kernel.onnx", folder / "file.onnx"
    _typed_onnx.lower(program, kernel, request)
    ONNX.lower(program, file, request)
    calls = {path.stem: onnx_call(path, {"x0": x.numpy()}) for path in (kernel, file)}
    outputs = [np.asarray(call()[0]) for call in calls.values()]  # type: ignore[index]  # of a session
    with torch.no_grad():
        exact, eager = copy.deepcopy(model)(x.double()).numpy(), model(x).numpy()
    slower = ratio(interleaved(calls, rounds), "file", "kernel").middle
    found = [distance(exact, y) for y in (outputs[0], eager, outputs[1])]
    return [*(f"{one:.1e}" for one in found), slower]


def main() -> None:
    """Print the distances of each operator and length."""
    rounds = read_arguments(__doc__, rounds=20).rounds
    table = Table(("operator", 22), ("length", 7), ("kernel", 7), ("torch", 7), ("file", 7), "time ratio")
    with TemporaryDirectory() as folder:
        for name, (function, is_first) in FORMS.items():
            for length in LENGTHS:
                x = torch.randn(ROWS, length, generator=torch.Generator().manual_seed(0)) + 0.7
                given = x.T.contiguous() if is_first else x
                table.add(name, length, *measure(Reduction(function), given, Path(folder), rounds))


if __name__ == "__main__":
    main()
