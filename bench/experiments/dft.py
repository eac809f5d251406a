"""The speed of the forms of Fourier transforms and filters on ONNX Runtime's CPU. Behind the costs in targets/onnx.py.

Every form of a transform runs in one process, in turn, one thread; beside each its estimate. A line ends with the form
that was fastest and the one that the cost model takes. `rates` measures what the model is made of: a large matmul,
an elementwise pass, and a depthwise convolution with a kernel as large as its map.

    python -m edgesmith.bench.experiments.dft [rounds]
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from edgesmith.bench.experiments.command import read_arguments
from edgesmith.bench.experiments.forms import COSTS, call_of, program_of
from edgesmith.bench.experiments.interleave import interleaved, median_us
from edgesmith.exporters.rewrites import fourier
from edgesmith.exporters.rewrites.dft import dft
from edgesmith.exporters.rewrites.fold_constants import fold_constants
from edgesmith.exporters.rewrites.fold_filters import FORMS, fold_filters
from edgesmith.exporters.rewrites.order import rewrite
from edgesmith.exporters.rewrites.rewrite import Rewrite, RewriteReport

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

BATCH = 8
"""Inferences of a form in a row, whose mean is a sample."""


class Pass(nn.Module):
    """Eight passes over numbers that no runtime joins."""

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(8):
            x = (x * 1.5).transpose(0, 1)
        return x


class Transform(nn.Module):
    """A transform of torch.fft over some axes."""

    def __init__(self, name: str, axes: tuple[int, ...]) -> None:
        super().__init__()
        self.transform, self.axes = vars(torch.fft)[name], axes

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.transform(x, dim=self.axes)
        return y.real, y.imag


class Filter(nn.Module):
    """A filter with a coefficient for each channel and frequency."""

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


def prepare(
    model: nn.Module, x: Tensor, rewrites: Sequence[Rewrite] = ()
) -> tuple[Callable[[], object], list[RewriteReport]]:
    """Return a call of a model in ONNX Runtime, and the reports of its rewrites."""
    program, reports = rewrite(program_of(model, x), COSTS, (fold_constants, *rewrites))
    with tempfile.TemporaryDirectory() as folder:
        return call_of(program, Path(folder) / "model.onnx"), reports[1:]


def measure(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the median microseconds of each, run in turn."""
    return median_us(interleaved(calls, rounds, batch=BATCH))


def rates(rounds: int) -> None:
    """Print the rates that the cost model is made of."""
    size, channels, side = 1024, 64, 14
    depthwise = nn.Conv2d(channels, channels, side, groups=channels, bias=False)
    calls = {
        "matmul": prepare(nn.Linear(size, size, bias=False), torch.randn(size, size))[0],
        "pass": prepare(Pass(), torch.randn(size, size))[0],
        "convolution": prepare(depthwise, torch.randn(1, channels, 2 * side - 1, 2 * side - 1))[0],
    }
    us = measure(calls, rounds)
    print(f"matmul               {size**3 / us['matmul'] / 1e3:6.1f} GMAC/s")
    print(f"passes over numbers  {16 * 8 * size**2 / us['pass'] / 1e3:6.1f} GB/s, read and written")
    print(f"depthwise, {side} x {side}   {channels * side**4 / us['convolution'] / 1e3:6.1f} GMAC/s")


def transforms(rounds: int) -> None:
    """Print one line for each transform."""
    print("\ntransform         shape                axes      form: measured us, estimated us")
    for name, shape, over in TRANSFORMS:
        last = over[-1]
        axes = [
            fourier.Axis(i, shape[i], shape[i] // 2 + 1 if i == last else shape[i], shape[i], -1, 1.0) for i in over
        ]
        found = fourier.plan(axes, shape, True, False, COSTS)
        estimates = {plan.form.split()[0]: plan.price.us for plan in (found, *found.others)}
        model, x = Transform(name, over), torch.randn(shape)
        us = measure({form: prepare(model, x, (dft.with_options(form=form),))[0] for form in estimates}, rounds)
        _line(f"{name:16}  {shape!s:20} {over!s:8}", us, estimates, found.form.split()[0])


def filters(rounds: int) -> None:
    """Print one line for each filter."""
    print("\nfilter            shape                axes      form: measured us")
    for shape, over in FILTERS:
        model, x = Filter(shape, over), torch.randn(shape)
        calls = {form: prepare(model, x, (fold_filters.with_options(form=form), dft))[0] for form in FORMS}
        report, _ = prepare(model, x, (fold_filters, dft))[1]
        note = report.applied[0][1] if report.applied else report.rejected[0].reason
        taken = next((form for form in FORMS if note.startswith(form)), FORMS[0])
        _line(f"{'':16}  {shape!s:20} {over!s:8}", measure(calls, rounds), {}, taken)


def _line(label: str, us: Mapping[str, float], estimates: Mapping[str, float], taken: str) -> None:
    forms = "; ".join(f"{form} {us[form]:.0f}" + (f", {estimates[form]:.0f}" if estimates else "") for form in us)
    fastest = min(us, key=us.__getitem__)
    verdict = "right" if fastest == taken else f"{taken} taken, {us[taken] / us[fastest]:.2f} of {fastest}"
    print(f"{label}  {forms}: {verdict}", flush=True)


def main() -> None:
    """Print rates, transforms and filters."""
    rounds = read_arguments(__doc__, rounds=30).rounds
    rates(rounds)
    transforms(rounds)
    filters(rounds)


if __name__ == "__main__":
    main()
