"""The zoo against the authors' own form, and a step against its sequence: ONNX Runtime, one thread, interleaved.

affnet_et            against the same model exported by torch alone: DFT and Einsum
efficientvim_m1      against the same model exported by torch alone
lmuformer            against eager PyTorch with the authors' FFT memory, which no exporter takes
spiking_lmuformer    against eager PyTorch with the FFT memory and neurons in a plain loop; and the time to load
a step               of both, against the whole sequence of 128 and of 1,000 frames: among others, and the first one

python -m edgesmith.bench.zoo [rounds]
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import MethodType
from typing import TYPE_CHECKING, Any

from edgesmith.bench.interleave import Samples, interleaved, onnx_call, ratio

if TYPE_CHECKING:
    from torch import Tensor, nn

FRAMES = (128, 1000)

STEPS = 50
"""Steps in a row, of which one is timed."""


def exported(name: str, folder: Path, frames: int | None = None, streaming: bool = False) -> Path:
    """Our ONNX file of a model with random weights."""
    import edgesmith

    return edgesmith.export(name, "onnx", frames=frames, streaming=streaming, out=folder).file


def plain_export(model: nn.Module, x: Tensor, folder: Path) -> Path:
    """What torch's exporter alone makes of a model."""
    import torch

    path = folder / "plain.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (x,), str(path), dynamo=True, verbose=False, external_data=False)
    return path


def authors_form(model: nn.Module) -> nn.Module:
    """A model as its authors run it, the same numbers: what our spelling of it already makes easier is undone.

    AFFNet's block-diagonal complex layers are four real products each, on real and imaginary parts; LMUFormer's memory
    is an FFT and its neurons are a loop over time.
    """
    import torch
    import torch.nn.functional as F

    from edgesmith.kernels import lif
    from edgesmith.models.affnet import FrequencyFilter
    from edgesmith.models.lmuformer import LIF, LegendreMemory, LMUFormer

    def frequencies(self: FrequencyFilter, x: Tensor) -> Tensor:
        def product(part: Tensor, weight: Tensor) -> Tensor:
            return torch.einsum("bkihf,kio->bkohf", part, weight)

        def layer(re: Tensor, im: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
            offset = bias[..., None, None]
            real = product(re, weight[0]) - product(im, weight[1]) + offset[0]
            return real, product(im, weight[0]) + product(re, weight[1]) + offset[1]

        spectrum = torch.fft.rfft2(x, norm="ortho")
        blocks = spectrum.unflatten(1, (self.w1.shape[1], -1))  # [B, k, C/k, H, F]
        re, im = layer(blocks.real, blocks.imag, self.w1, self.b1)
        re, im = layer(F.silu(re), F.silu(im), self.w2, self.b2)
        mask = torch.view_as_complex(F.softshrink(torch.stack((re, im), dim=-1), self.threshold))
        filtered: Tensor = torch.fft.irfft2(mask.flatten(1, 2) * spectrum, s=x.shape[-2:], norm="ortho")
        return filtered + x

    def memory(self: Any, x: Tensor) -> Tensor:  # frames before channels inside
        x = x.permute(0, 2, 1)
        length = x.shape[1]
        u = self.f_u(self.bn_u(self.W_u(x).permute(0, 2, 1)))  # [B, 1, T]
        spectrum = torch.fft.rfft(u, n=2 * length, dim=-1) * self.fft_H.unsqueeze(0)
        m = self.f_m(self.bn_m(torch.fft.irfft(spectrum, n=2 * length, dim=-1)[:, :, :length]))
        h = self.W_h(torch.cat((m.permute(0, 2, 1), x), dim=-1))
        y: Tensor = self.f_h(self.bn_h(h.permute(0, 2, 1)))
        return y

    def logits(self: Any, x: Tensor) -> Tensor:  # the head at every frame
        x = self.block(self.patch_embed(x.permute(0, 2, 1)))
        if self.spiking:
            x = self.head_lif(self.head_bn(x))
        y: Tensor = self.head(x.permute(0, 2, 1)).mean(1)
        return y

    def neurons(self: LIF, x: Tensor) -> Tensor:
        return lif.reference(x, 2.0, self.threshold)

    for module in model.modules():
        if isinstance(module, LegendreMemory):
            module.fft_H = torch.fft.rfft(module.H, n=2 * module.H.shape[1])
            module.forward = MethodType(memory, module)  # type: ignore[method-assign]
        elif isinstance(module, LMUFormer):
            module.forward = MethodType(logits, module)  # type: ignore[method-assign]
        elif isinstance(module, LIF):
            module.forward = MethodType(neurons, module)  # type: ignore[method-assign]
        elif isinstance(module, FrequencyFilter):
            module.forward = MethodType(frequencies, module)  # type: ignore[method-assign]
    return model


def same_numbers(model: nn.Module, x: Tensor) -> nn.Module:
    """The authors' form of a model. Raises RuntimeError where its outputs are others."""
    import torch

    with torch.no_grad():
        expected = model(x)
        model = authors_form(model)
        error = float((model(x) - expected).abs().max() / expected.abs().max())
    if error > 1e-4:
        raise RuntimeError(f"the authors' form is another model: its outputs differ by {error:.1e} of their peak")
    return model


def against_plain_export(name: str, rounds: int, folder: Path) -> Samples:
    """An image model: ours, and torch's own export of the authors' form."""
    import torch

    from edgesmith.models import registry
    from edgesmith.models.checkpoint import load

    spec = registry.get(name)
    model, _ = load(spec, None)
    x = torch.randn(1, *spec.input.shape)
    plain = plain_export(same_numbers(model, x), x, folder)
    calls = {
        "theirs": onnx_call(plain, {"x": x.numpy()}),
        "ours": onnx_call(exported(name, folder), {"image": x.numpy()}),
    }
    return interleaved(calls, rounds)


def against_eager(name: str, rounds: int, folder: Path) -> Samples:
    """A sequence model: ours, the authors' form in eager PyTorch; and, afterwards, loading our file."""
    import torch

    from edgesmith.models import registry
    from edgesmith.models.checkpoint import load

    spec = registry.get(name)
    model, _ = load(spec, None)
    x = torch.randn(1, *spec.input.shape)
    model = same_numbers(model, x)
    file = exported(name, folder)

    def eager() -> object:
        with torch.no_grad():
            return model(x)

    feeds = {"frames": x.numpy()}
    samples = interleaved({"theirs": eager, "ours": onnx_call(file, feeds)}, rounds)
    return samples | interleaved({"load": lambda: onnx_call(file, feeds)}, min(rounds, 10))


def step_against_sequence(name: str, frames: int, rounds: int, folder: Path) -> Samples:
    """One step of the streaming artifact against the whole sequence.

    `first` is the step right after the sequence, which finds the weights wherever that has left them; `step` is one of
    the `STEPS` after it.
    """
    import numpy as np

    from edgesmith.exporters.session import StreamingSession

    session = StreamingSession(exported(name, folder, streaming=True))
    x = np.random.default_rng(0).standard_normal((1, frames, 128), dtype=np.float32)
    whole = onnx_call(exported(name, folder, frames), {"frames": x})

    def step() -> object:
        return session.step(x[0, 0])

    def steps() -> None:
        for _ in range(STEPS):
            step()

    samples = interleaved({"sequence": whole, "first": step, "step": steps}, rounds)
    return samples | {"step": [time / STEPS for time in samples["step"]]}


def main(arguments: Sequence[str] = tuple(sys.argv[1:])) -> None:
    """Print one line for each comparison."""
    import torch

    torch.set_num_threads(1)
    rounds = int(arguments[0]) if arguments else 60
    comparisons: list[tuple[str, str, str, Callable[[Path], Samples]]] = [
        (name, "theirs", "ours", partial(against, name, rounds))
        for against, names in (
            (against_plain_export, ("affnet_et", "efficientvim_m1")),
            (against_eager, ("lmuformer", "spiking_lmuformer")),
        )
        for name in names
    ]
    comparisons += [
        (f"{name}, {frames} frames", "sequence", "step", partial(step_against_sequence, name, frames, rounds))
        for name in ("lmuformer", "spiking_lmuformer")
        for frames in FRAMES
    ]
    print("median ms, and the first over the second, median and quartiles over rounds")
    for title, slow, fast, run in comparisons:
        with tempfile.TemporaryDirectory() as folder:
            samples = run(Path(folder))
        low, middle, high = ratio(samples, slow, fast)
        medians = ", ".join(f"{name} {sorted(values)[len(values) // 2]:.2f}" for name, values in samples.items())
        print(f"{title:<32} {medians:<46} {middle:6.2f} x   ({low:.2f} to {high:.2f})", flush=True)


if __name__ == "__main__":
    main()
