"""The cost of recurrences on ONNX Runtime's CPU. Behind the lowerings of lif and lmu_memory, and their costs.

Variants run in one process, in turn, one thread; figures are medians over rounds, in milliseconds.

    neurons   a LIF neuron for each channel, [1, C, T]: PyTorch's loop, the loop unrolled into ONNX, and the Scan
    memories  a Legendre memory with its readout, [1, N, T] from u [1, T] and x [1, C, T]: each form, and folded; what
              the cost model of `choose_memory_form` estimates for it, and what it picks

    python -m edgesmith.bench.experiments.recurrences [rounds]
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgesmith.bench.experiments.command import read_arguments
from edgesmith.bench.experiments.forms import COSTS, call_of, program_of, write
from edgesmith.bench.experiments.interleave import Samples, interleaved, once, onnx_call
from edgesmith.exporters.costs import Costs
from edgesmith.exporters.rewrites.choose_memory_form import choose_memory_form
from edgesmith.exporters.rewrites.order import rewrite
from edgesmith.kernels import lif, lmu_memory
from edgesmith.models.lmuformer import legendre

NEURONS = ((256, 128), (1024, 128))
"""Channels and steps: the two widths of spiking LMUFormer. Unrolled, psMNIST's 784 steps take minutes to write."""

MEMORIES = (
    (128, 256, 256, 256),
    (128, 512, 256, 256),
    (784, 468, 346, 3),
    (1000, 512, 346, 3),
    (1000, 32, 64, 3),
    (4000, 32, 64, 3),
)
"""Steps T, order M, readout N and other channels C: LMUFormer's, its spiking form's, psMNIST's, and others."""

ALWAYS = Costs(launch_us=0.0, gmac_s=5e8, copy_gb_s=1e-6)
"""Copying [m; x] is dear, so that a memory is folded into its readout."""


class Scanned(nn.Module):
    """Neurons as the fused op."""

    def forward(self, x: Tensor) -> Any:
        return lif.OP.overload(x)


class Unrolled(nn.Module):
    """Neurons as their reference, whose loop tracing unrolls."""

    def forward(self, x: Tensor) -> Any:
        return lif.reference(x)


class Memory(nn.Module):
    """A memory with its readout, in one form, or in whichever the compiler picks."""

    def __init__(self, length: int, order: int, width: int, others: int, form: str | None = None) -> None:
        super().__init__()
        a, b = legendre(order, length)
        self.a, self.b = nn.Parameter(a), nn.Parameter(b[:, 0].clone())
        self.impulse = nn.Parameter(lmu_memory.impulse_response(a, b[:, 0], length))
        draw = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(width, order + others, 1, generator=draw))
        self.form = () if form is None else (form,)

    def forward(self, u: Tensor, x: Tensor) -> Tensor:
        m = lmu_memory.OP.overload(u, self.impulse, self.a, self.b, *self.form)
        return F.conv1d(torch.cat((m, x), 1), self.weight)


def neurons(channels: int, length: int, rounds: int) -> Samples:
    """Time a LIF neuron in a loop, unrolled and as a Scan, and how long each file takes to load."""
    x = 1.5 * torch.randn(1, channels, length, generator=torch.Generator().manual_seed(0))
    calls: dict[str, Callable[[], object]] = {"loop": lambda: lif.reference(x)}
    loads = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, model in (("unrolled", Unrolled()), ("scan", Scanned())):
            path = write(program_of(model, x), Path(folder) / f"{name}.onnx")
            calls[name], ms = once(partial(onnx_call, path, {"x0": x.numpy()}))
            loads[f"load {name}"] = [ms]
        return interleaved(calls, rounds) | loads


def memories(length: int, order: int, width: int, others: int, rounds: int) -> tuple[Samples, str]:
    """Time a memory with its readout in each form. Returns milliseconds, and what the cost model says."""
    inputs = (torch.randn(1, length), torch.randn(1, others, length))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        calls = {
            form: call_of(program_of(Memory(length, order, width, others, form), *inputs), folder / f"{form}.onnx")
            for form in lmu_memory.FORMS
        }
        program = program_of(Memory(length, order, width, others), *inputs)
        folded, _ = rewrite(program, ALWAYS, (choose_memory_form,))
        calls["folded"] = call_of(folded, folder / "folded.onnx")
        _, (report,) = rewrite(program, COSTS, (choose_memory_form,))
        verdict = [note for _, note in report.applied] + [rejection.reason for rejection in report.rejected]
        return interleaved(calls, rounds), verdict[0]


def _in_words(samples: Samples) -> str:
    return "  ".join(f"{name} {statistics.median(times):.2f}" for name, times in samples.items())


def main() -> None:
    """Print one line for each size."""
    rounds = read_arguments(__doc__, rounds=30).rounds
    torch.set_num_threads(1)
    print("neurons, ms")
    for channels, length in NEURONS:
        print(f"C {channels:4}  T {length:4}  {_in_words(neurons(channels, length, rounds))}", flush=True)
    print("memories, ms")
    for length, order, width, others in MEMORIES:
        samples, verdict = memories(length, order, width, others, rounds)
        print(f"T {length:4}  M {order:3}  N {width:3}  {_in_words(samples)}\n    {verdict}", flush=True)


if __name__ == "__main__":
    main()
