"""What do recurrences cost on ONNX Runtime's CPU? Behind the lowerings of lif and lmu_memory, and their costs.

Variants run in one process, in turn, one thread; figures are medians over rounds, in milliseconds.

    neurons   a LIF neuron for each channel, [1, C, T]: PyTorch's loop, the loop unrolled into ONNX, and the Scan
    memories  a Legendre memory with its readout, [1, N, T] from u [1, T] and x [1, C, T]: each form, and folded; what
              the cost model of `choose_memory_form` estimates for it, and what it picks

    python -m edgesmith.bench.experiments.recurrences [rounds]
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from time import perf_counter_ns
from typing import Any

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


def medians(variants: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Milliseconds of each variant, called in turn."""
    samples: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, call in variants.items():
            start = perf_counter_ns()
            call()
            samples[name].append((perf_counter_ns() - start) / 1e6)
    return {name: statistics.median(times[1:]) for name, times in samples.items()}


def neurons(channels: int, length: int, rounds: int) -> dict[str, float]:
    """Milliseconds of a LIF neuron in a loop, unrolled and as a Scan, and how long each file takes to load."""
    import torch
    from torch import Tensor, nn

    from edgesmith.kernels import lif

    class Op(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return lif.OP.overload(x)

    class Unrolled(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return lif.reference(x)

    x = 1.5 * torch.randn(1, channels, length, generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as folder:
        sessions, loads = {}, {}
        for name, model in (("unrolled", Unrolled()), ("scan", Op())):
            path = _file(model, (x,), Path(folder) / f"{name}.onnx")
            start = perf_counter_ns()
            sessions[name] = _session(path, (x,))
            loads[f"load {name}"] = (perf_counter_ns() - start) / 1e6
        return medians({"loop": lambda: lif.reference(x), **sessions}, rounds) | loads


def memories(length: int, order: int, width: int, others: int, rounds: int) -> tuple[dict[str, float], str]:
    """Milliseconds of a memory with its readout in each form, and what the cost model says."""
    import torch
    import torch.nn.functional as F
    from torch import Tensor, nn

    from edgesmith.exporters.costs import Costs
    from edgesmith.exporters.graph.capture import capture
    from edgesmith.exporters.rewrites.choose_memory_form import choose_memory_form
    from edgesmith.exporters.rewrites.order import rewrite
    from edgesmith.exporters.targets import Request, onnx
    from edgesmith.kernels import lmu_memory
    from edgesmith.models.lmuformer import legendre

    class Model(nn.Module):
        def __init__(self, form: str | None) -> None:
            super().__init__()
            a, b = legendre(order, length)
            self.a, self.b = nn.Parameter(a), nn.Parameter(b[:, 0].clone())
            self.impulse = nn.Parameter(lmu_memory.impulse_response(a, b[:, 0], length))
            self.weight = nn.Parameter(
                torch.randn(width, order + others, 1, generator=torch.Generator().manual_seed(0))
            )
            self.form = () if form is None else (form,)

        def forward(self, u: Tensor, x: Tensor) -> Tensor:
            m = lmu_memory.OP.overload(u, self.impulse, self.a, self.b, *self.form)
            return F.conv1d(torch.cat((m, x), 1), self.weight)

    inputs = (torch.randn(1, length), torch.randn(1, others, length))
    with tempfile.TemporaryDirectory() as folder:
        sessions = {}
        for form in lmu_memory.FORMS:
            path = _file(Model(form), inputs, Path(folder) / f"{form}.onnx")
            sessions[form] = _session(path, inputs)
        program = capture(Model(None).eval(), inputs)
        always = Costs(launch_us=0.0, gmac_s=5e8, copy_gb_s=1e-6)  # copying [m; x] dear: folded
        folded, _ = rewrite(program, always, (choose_memory_form,))
        path = Path(folder) / "folded.onnx"
        onnx.lower(folded, path, Request("folded", "fp32"))
        sessions["folded"] = _session(path, inputs)
        _, (report,) = rewrite(program, onnx.costs, (choose_memory_form,))
        verdict = [note for _, note in report.applied] + [rejection.reason for rejection in report.rejected]
        return medians(sessions, rounds), verdict[0]


def _file(model: Any, inputs: tuple[Any, ...], path: Path) -> Path:
    from edgesmith.exporters.graph.capture import capture
    from edgesmith.exporters.targets import Request, onnx

    onnx.lower(capture(model.eval(), inputs), path, Request("model", "fp32"))
    return path


def _session(path: Path, inputs: tuple[Any, ...]) -> Callable[[], Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options)
    feeds = {value.name: x.numpy() for value, x in zip(session.get_inputs(), inputs, strict=True)}
    return lambda: session.run(None, feeds)


def main() -> None:
    """Print one line for each size."""
    import torch

    torch.set_num_threads(1)
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 30
    print("neurons, ms")
    for channels, length in NEURONS:
        times = neurons(channels, length, rounds)
        print(f"C {channels:4}  T {length:4}  " + "  ".join(f"{name} {time:.2f}" for name, time in times.items()))
    print("memories, ms")
    for length, order, width, others in MEMORIES:
        times, verdict = memories(length, order, width, others, rounds)
        figures = "  ".join(f"{name} {time:.2f}" for name, time in times.items())
        print(f"T {length:4}  M {order:3}  N {width:3}  {figures}\n    {verdict}")


if __name__ == "__main__":
    main()
