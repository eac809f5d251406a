"""The zoo against the authors' own form, and a step against its sequence: ONNX Runtime, one thread, interleaved.

affnet_et            against the same model exported by torch alone: DFT and Einsum
efficientvim_m1      against the same model exported by torch alone
lmuformer            against eager PyTorch with the authors' FFT memory, which no exporter takes
spiking_lmuformer    against eager PyTorch with the FFT memory and neurons in a plain loop; and the time to load
a step               of both, against the whole sequence of 128 and of 1,000 frames: among others, and the first one

Both run in turn in one process, and one process after the other does that: where a process finds its memory changes an
inference by several percent for as long as it lives. A ratio is the median of each process's rounds, and of those the
median and quartiles.

python -m edgesmith.bench.experiments.zoo [rounds] [launches]
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import MethodType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import edgesmith
from edgesmith.bench.experiments.command import Table, read_arguments
from edgesmith.bench.experiments.forms import input_of, model_of, write_plain
from edgesmith.bench.experiments.interleave import (
    Samples,
    in_a_process,
    interleaved,
    medians,
    onnx_call,
    over_processes,
)
from edgesmith.exporters.session import StreamingSession
from edgesmith.kernels import lif
from edgesmith.models.affnet import FrequencyFilter
from edgesmith.models.lmuformer import LIF, LegendreMemory, LMUFormer

FRAMES = (128, 1000)

PLAIN = "plain.onnx"
"""The file of torch's exporter alone."""

STEPS = 50
"""Steps in a row, whose mean is a sample."""


def exported(name: str, folder: Path, frames: int | None = None, streaming: bool = False) -> Path:
    """Export a model with random weights. Returns our ONNX file."""
    return edgesmith.export(name, "onnx", frames=frames, streaming=streaming, out=folder).file


# Models as their authors run them, the same numbers: what our spelling already makes easier is undone. AFFNet's
# block-diagonal complex layers are four real matmuls each, on real and imaginary parts; LMUFormer's memory is an FFT,
# and its neurons are a loop over time.


def filter_frequencies(self: FrequencyFilter, x: Tensor) -> Tensor:
    """AFFNet's filter, in place of its `forward`."""

    def layer(re: Tensor, im: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        offset = bias[..., None, None]
        real = _blockwise(re, weight[0]) - _blockwise(im, weight[1]) + offset[0]
        return real, _blockwise(im, weight[0]) + _blockwise(re, weight[1]) + offset[1]

    spectrum = torch.fft.rfft2(x, norm="ortho")
    blocks = spectrum.unflatten(1, (self.w1.shape[1], -1))  # [B, k, C/k, H, F]
    re, im = layer(blocks.real, blocks.imag, self.w1, self.b1)
    re, im = layer(F.silu(re), F.silu(im), self.w2, self.b2)
    mask = torch.view_as_complex(F.softshrink(torch.stack((re, im), dim=-1), self.threshold))
    filtered: Tensor = torch.fft.irfft2(mask.flatten(1, 2) * spectrum, s=x.shape[-2:], norm="ortho")
    return filtered + x


def _blockwise(part: Tensor, weight: Tensor) -> Tensor:
    return torch.einsum("bkihf,kio->bkohf", part, weight)


def remember(self: Any, x: Tensor) -> Tensor:
    """LMUFormer's memory, in place of its `forward`: frames before channels inside."""
    x = x.permute(0, 2, 1)
    length = x.shape[1]
    u = self.f_u(self.bn_u(self.W_u(x).permute(0, 2, 1)))  # [B, 1, T]
    spectrum = torch.fft.rfft(u, n=2 * length, dim=-1) * self.fft_H.unsqueeze(0)
    m = self.f_m(self.bn_m(torch.fft.irfft(spectrum, n=2 * length, dim=-1)[:, :, :length]))
    h = self.W_h(torch.cat((m.permute(0, 2, 1), x), dim=-1))
    y: Tensor = self.f_h(self.bn_h(h.permute(0, 2, 1)))
    return y


def classify(self: Any, x: Tensor) -> Tensor:
    """LMUFormer, in place of its `forward`: the head at every frame."""
    x = self.block(self.patch_embed(x.permute(0, 2, 1)))
    if self.spiking:
        x = self.head_lif(self.head_bn(x))
    y: Tensor = self.head(x.permute(0, 2, 1)).mean(1)
    return y


def fire(self: LIF, x: Tensor) -> Tensor:
    """Neurons, in place of their `forward`."""
    return lif.reference(x, 2.0, self.threshold)


AUTHORS: dict[type[nn.Module], Callable[..., Tensor]] = {
    FrequencyFilter: filter_frequencies,
    LegendreMemory: remember,
    LMUFormer: classify,
    LIF: fire,
}


def authors_form(model: nn.Module) -> nn.Module:
    """Return a model as its authors run it; the one given is changed."""
    for module in model.modules():
        if isinstance(module, LegendreMemory):
            module.fft_H = torch.fft.rfft(module.H, n=2 * module.H.shape[1])
        form = next((form for kind, form in AUTHORS.items() if isinstance(module, kind)), None)
        if form is not None:
            module.forward = MethodType(form, module)  # of this instance alone
    return model


def same_numbers(model: nn.Module, x: Tensor) -> nn.Module:
    """Return the authors' form of a model. Raises RuntimeError where its outputs are others."""
    with torch.no_grad():
        expected = model(x)
        model = authors_form(model)
        error = float((model(x) - expected).abs().max() / expected.abs().max())
    if error > 1e-4:
        raise RuntimeError(f"the authors' form is another model: its outputs differ by {error:.1e} of their peak")
    return model


@dataclass(frozen=True)
class Comparison:
    """Two things that are timed against each other.

    Attributes:
        slow, fast: of the samples, whose ratio is asked for.
        prepare: writes the files into a folder.
        measure: times them, in so many rounds, in a process that did not write them.
    """

    slow: str
    fast: str
    prepare: Callable[[Path], None]
    measure: Callable[[Path, int], Samples]


def _file(folder: Path) -> Path:
    """The one ONNX file of an artifact somewhere below a folder."""
    (found,) = folder.rglob("*.onnx")
    return found


def against_plain_export(name: str) -> Comparison:
    """An image model: ours, and torch's own export of the authors' form."""

    def prepare(folder: Path) -> None:
        x = input_of(name)
        write_plain(same_numbers(model_of(name), x), x, folder / PLAIN)
        exported(name, folder / "ours")

    def measure(folder: Path, rounds: int) -> Samples:
        x = input_of(name)
        theirs = onnx_call(folder / PLAIN, {"x": x.numpy()})
        return interleaved({"theirs": theirs, "ours": onnx_call(_file(folder / "ours"), {"image": x.numpy()})}, rounds)

    return Comparison("theirs", "ours", prepare, measure)


def against_eager(name: str) -> Comparison:
    """A sequence model: ours, the authors' form in eager PyTorch; and, afterwards, loading our file."""

    def prepare(folder: Path) -> None:
        exported(name, folder)

    def measure(folder: Path, rounds: int) -> Samples:
        x = input_of(name)
        model, file, feeds = same_numbers(model_of(name), x), _file(folder), {"frames": x.numpy()}

        def eager() -> object:
            with torch.no_grad():
                return model(x)

        samples = interleaved({"theirs": eager, "ours": onnx_call(file, feeds)}, rounds)
        return samples | interleaved({"load": lambda: onnx_call(file, feeds)}, min(rounds, 10))

    return Comparison("theirs", "ours", prepare, measure)


def step_against_sequence(name: str, frames: int) -> Comparison:
    """One step of the streaming artifact against the whole sequence.

    `first` is the step right after the sequence, which finds the weights wherever that has left them; `step` is one of
    the `STEPS` after it.
    """

    def prepare(folder: Path) -> None:
        exported(name, folder / "step", streaming=True)
        exported(name, folder / "sequence", frames)

    def measure(folder: Path, rounds: int) -> Samples:
        session = StreamingSession(_file(folder / "step"))
        x = np.random.default_rng(0).standard_normal((1, frames, 128), dtype=np.float32)
        whole = onnx_call(_file(folder / "sequence"), {"frames": x})

        def step() -> object:
            return session.step(x[0, 0])

        def steps() -> None:
            for _ in range(STEPS):
                step()

        samples = interleaved({"sequence": whole, "first": step, "step": steps}, rounds)
        return samples | {"step": [time / STEPS for time in samples["step"]]}

    return Comparison("sequence", "step", prepare, measure)


COMPARISONS = {
    "affnet_et": against_plain_export("affnet_et"),
    "efficientvim_m1": against_plain_export("efficientvim_m1"),
    "lmuformer": against_eager("lmuformer"),
    "spiking_lmuformer": against_eager("spiking_lmuformer"),
} | {
    f"{name}, {frames} frames": step_against_sequence(name, frames)
    for name in ("lmuformer", "spiking_lmuformer")
    for frames in FRAMES
}


def launch(title: str, folder: str, rounds: str) -> Samples:
    """Time one comparison in this process."""
    torch.set_num_threads(1)
    return COMPARISONS[title].measure(Path(folder), int(rounds))


def main() -> None:
    """Print one line for each comparison."""
    given = read_arguments(__doc__, rounds=25, launches=12)
    torch.set_num_threads(1)
    print(f"medians, and the first over the second, median and quartiles of {given.launches} processes")
    table = Table(("comparison", 32), ("ms", 46), "first over second")
    for title, comparison in COMPARISONS.items():
        with tempfile.TemporaryDirectory() as name:
            comparison.prepare(Path(name))
            runs = [in_a_process(__spec__.name, title, name, given.rounds) for _ in range(given.launches)]
        figures = ", ".join(f"{key} {median:.2f}" for key, median in medians(runs).items())
        table.add(title, figures, over_processes(runs, comparison.slow, comparison.fast))


if __name__ == "__main__":
    main()
