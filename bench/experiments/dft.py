"""How fast are the forms of Fourier transforms and filters on ONNX Runtime's CPU? Behind the costs in targets/onnx.py.

Every form of a transform runs in one process, in turn, one thread; beside each its estimate. A line ends with the form
that was fastest and the one that the cost model takes. `rates` measures what the model is made of: a large matrix
product, a number-by-number pass, and a depthwise convolution with a kernel as large as its map.

    python -m edgesmith.bench.experiments.dft [rounds]
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from time import perf_counter_ns
from typing import Any

TRANSFORMS: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...] = (
    ("rfftn", (1, 64, 8, 8), (2, 3)),
    ("rfftn", (1, 64, 14, 14), (2, 3)),
    ("rfftn", (1, 64, 16, 16), (2, 3)),
    ("rfftn", (1, 64, 32, 32), (2, 3)),
    ("rfftn", (1, 64, 64, 64), (2, 3)),
    ("rfftn", (1, 16, 16, 384), (1, 2)),
    ("rfftn", (64, 128), (1,)),
    ("rfftn", (64, 512), (1,)),
    ("rfftn", (64, 2048), (1,)),
    ("rfftn", (1, 512, 64), (1,)),
    ("rfftn", (1, 2048, 64), (1,)),
)
"""Transform, input shape and axes: maps of mixers in both layouts, and sequences."""

FILTERS: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = (
    ((1, 64, 4, 4), (2, 3)),
    ((1, 64, 7, 7), (2, 3)),
    ((1, 64, 14, 14), (2, 3)),
    ((1, 14, 14, 384), (1, 2)),
    ((1, 64, 32), (2,)),
    ((1, 64, 128), (2,)),
)
"""Input shape and axes of constant filters, a coefficient for each channel; GFNet's is the fourth."""

BATCH_OF_RUNS = 8


def measure(sessions: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median microseconds of each, run in turn."""
    samples: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(rounds):
        for name, run in sessions.items():
            start = perf_counter_ns()
            for _ in range(BATCH_OF_RUNS):
                run()
            samples[name].append((perf_counter_ns() - start) / 1e3 / BATCH_OF_RUNS)
    return {name: statistics.median(values) for name, values in samples.items()}


def session(model: Any, x: Any, rewrites: tuple[Any, ...] = ()) -> tuple[Callable[[], Any], Any]:
    """A run of the model in ONNX Runtime, and the reports of its rewrites."""
    import onnxruntime

    from edgesmith.exporters.graph.capture import capture
    from edgesmith.exporters.rewrites.fold_constants import fold_constants
    from edgesmith.exporters.rewrites.order import rewrite
    from edgesmith.exporters.targets import Request, onnx

    program, reports = rewrite(capture(model.eval(), (x,), ("x",)), onnx.costs, (fold_constants, *rewrites))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.lower(program, path, Request("model", "fp32"))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        runtime = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    feeds = {"x": x.numpy()}
    return lambda: runtime.run(None, feeds), reports[1:]


def rates(rounds: int) -> None:
    """Print what the cost model is made of."""
    import torch
    from torch import nn

    class Pass(nn.Module):
        def forward(self, x: Any) -> Any:
            for _ in range(8):
                x = (x * 1.5).transpose(0, 1)
            return x

    size, channels, side = 1024, 64, 14
    product, _ = session(nn.Linear(size, size, bias=False), torch.randn(size, size))
    passing, _ = session(Pass(), torch.randn(size, size))
    depthwise = nn.Conv2d(channels, channels, side, groups=channels, bias=False)
    convolution, _ = session(depthwise, torch.randn(1, channels, 2 * side - 1, 2 * side - 1))
    us = measure({"product": product, "pass": passing, "convolution": convolution}, rounds)
    print(f"matrix product       {size**3 / us['product'] / 1e3:6.1f} GMAC/s")
    print(f"passes over numbers  {16 * 8 * size**2 / us['pass'] / 1e3:6.1f} GB/s, read and written")
    print(f"depthwise, {side} x {side}   {channels * side**4 / us['convolution'] / 1e3:6.1f} GMAC/s")


def transforms(rounds: int) -> None:
    """Print one line for each transform."""
    import torch
    from torch import Tensor, nn

    from edgesmith.exporters.rewrites import fourier
    from edgesmith.exporters.rewrites.dft import dft
    from edgesmith.exporters.targets import onnx

    class Transform(nn.Module):
        def __init__(self, name: str, axes: tuple[int, ...]) -> None:
            super().__init__()
            self.name, self.axes = name, axes

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = getattr(torch.fft, self.name)(x, dim=self.axes)
            return y.real, y.imag

    print("\ntransform         shape                axes      form: measured us, estimated us")
    for name, shape, over in TRANSFORMS:
        last = over[-1]
        axes = [
            fourier.Axis(i, shape[i], shape[i] // 2 + 1 if i == last else shape[i], shape[i], -1, 1.0) for i in over
        ]
        found = fourier.plan(axes, shape, True, False, onnx.costs)
        estimates = {plan.form.split()[0]: plan.price.us for plan in (found, *found.others)}
        model, x = Transform(name, over), torch.randn(shape)
        us = measure({form: session(model, x, (dft.with_options(form=form),))[0] for form in estimates}, rounds)
        _line(f"{name:16}  {shape!s:20} {over!s:8}", us, estimates, found.form.split()[0])


def filters(rounds: int) -> None:
    """Print one line for each filter."""
    import torch
    from torch import Tensor, nn

    from edgesmith.exporters.rewrites.dft import dft
    from edgesmith.exporters.rewrites.fold_filters import FORMS, fold_filters

    class Filter(nn.Module):
        def __init__(self, shape: tuple[int, ...], axes: tuple[int, ...]) -> None:
            super().__init__()
            bins = [*shape[1:]]
            bins[axes[-1] - 1] = bins[axes[-1] - 1] // 2 + 1
            self.weight, self.axes = nn.Parameter(torch.randn(*bins, 2)), axes

        def forward(self, x: Tensor) -> Tensor:
            size = [x.shape[i] for i in self.axes]
            y = torch.fft.rfftn(x, dim=self.axes, norm="ortho") * torch.view_as_complex(self.weight)
            z: Tensor = torch.fft.irfftn(y, s=size, dim=self.axes, norm="ortho")
            return z

    print("\nfilter            shape                axes      form: measured us")
    for shape, over in FILTERS:
        model, x = Filter(shape, over), torch.randn(shape)
        us = measure(
            {form: session(model, x, (fold_filters.with_options(form=form), dft))[0] for form in FORMS}, rounds
        )
        report, _ = session(model, x, (fold_filters, dft))[1]
        note = report.applied[0][1] if report.applied else report.rejected[0].reason
        taken = next((form for form in FORMS if note.startswith(form)), FORMS[0])
        _line(f"{'':16}  {shape!s:20} {over!s:8}", us, {}, taken)


def _line(label: str, us: Mapping[str, float], estimates: Mapping[str, float], taken: str) -> None:
    forms = "; ".join(f"{form} {us[form]:.0f}" + (f", {estimates[form]:.0f}" if estimates else "") for form in us)
    fastest = min(us, key=us.__getitem__)
    verdict = "right" if fastest == taken else f"{taken} taken, {us[taken] / us[fastest]:.2f} of {fastest}"
    print(f"{label}  {forms}: {verdict}")


def main() -> None:
    """Print rates, transforms and filters."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 30
    rates(rounds)
    transforms(rounds)
    filters(rounds)


if __name__ == "__main__":
    main()
