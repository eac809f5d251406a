"""Blocks that mix by Fourier transforms reach every target without one: folded, fused or as matmuls; near misses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from authors import spectral
from support.rewriting import apply, reasons
from torch import Tensor, nn

import edgesmith
from edgesmith.exporters import targets
from edgesmith.exporters.graph.capture import capture, run
from edgesmith.exporters.graph.edit import val
from edgesmith.exporters.rewrites.fold_constants import fold_constants
from edgesmith.exporters.rewrites.fold_filters import FORMS, fold_filters
from edgesmith.exporters.rewrites.order import rewrite
from edgesmith.exporters.session import StreamingSession

COSTS = targets.get("onnx").costs


@dataclass(frozen=True)
class Block:
    """A block in two spellings, an input, the layout that the second one takes it in, and what must have fired."""

    authors: Callable[[], nn.Module]
    other: Callable[[nn.Module], nn.Module]
    shape: tuple[int, ...]
    fires: str
    operators: int
    order: tuple[int, ...] | None = None

    def build(self) -> tuple[nn.Module, nn.Module, Tensor]:
        """Both with the same weights, and the input."""
        torch.manual_seed(0)
        one = self.authors().eval()
        return one, self.other(one).eval(), torch.randn(self.shape)

    def arranged(self, x: Tensor) -> Tensor:
        """A tensor as the second spelling has it."""
        return x if self.order is None else x.permute(self.order).contiguous()


BLOCKS = {
    "gfnet": Block(
        lambda: spectral.GlobalFilter(8, 4, 4), lambda m: spectral.GlobalFilterHalves(m), (1, 16, 8), "fold_filters", 8
    ),
    "afno": Block(
        lambda: spectral.AFNO2D(8), lambda m: spectral.AFNOComplex(m), (1, 6, 6, 8), "recognise", 4, (0, 3, 1, 2)
    ),
    "afno_wide": Block(
        lambda: spectral.AFNO2D(8, factor=2), spectral.AFNOComplex, (2, 5, 5, 8), "recognise", 4, (0, 3, 1, 2)
    ),
    "fnet": Block(spectral.FNetFourier, lambda _: spectral.FNetPairs(), (2, 12, 10), "dft", 8),
    "s4d": Block(lambda: spectral.S4D(6), lambda m: spectral.S4DChannelsLast(m), (2, 6, 40), "fold_filters", 13),
    "hyena": Block(lambda: spectral.Hyena(4, 32), lambda m: spectral.HyenaHeads(m), (2, 32, 4), "fold_filters", 16),
}


def left_over(counts: dict[str, int]) -> set[str]:
    return {
        name
        for name in counts
        if name in ("aten.real", "aten.einsum") or name.startswith(("aten.fft", "aten.view_as", "aten.complex"))
    }


@pytest.mark.parametrize("name", BLOCKS)
def test_both_spellings_of_a_block_are_folded_alike(name: str) -> None:
    block = BLOCKS[name]
    authors, other, x = block.build()
    with torch.no_grad():
        wanted = authors(x)
        assert torch.allclose(block.arranged(wanted), other(block.arranged(x)), atol=1e-4 * float(wanted.abs().max()))
    for model, given in ((authors, x), (other, block.arranged(x))):
        program, reports, counts = apply(model, given, costs=COSTS)
        assert reports[block.fires].applied, reasons(reports[block.fires])
        assert not left_over(counts)
        assert sum(counts.values()) <= block.operators, counts
        with torch.no_grad():
            eager = model(given)
        assert float((run(program, (given,))[0] - eager).abs().max()) <= 1e-5 * float(eager.abs().max())


@pytest.mark.parametrize("name", ["gfnet", "afno", "fnet", "s4d"])
@pytest.mark.parametrize("target", ["onnx", "coreml", "coreai"])
def test_no_file_has_a_transform(name: str, target: str, tmp_path: Path) -> None:
    model, _, x = BLOCKS[name].build()
    artifact = edgesmith.export(model, target, inputs=(x,), name=name, out=tmp_path, precision="fp32")
    assert not any(
        "fft" in op.lower() or "dft" in op.lower() or "complex" in op for op in artifact.manifest["operators"]["file"]
    )


# Filters of padded signals


class Long(nn.Module):
    """A long convolution of [B, C, L] by transforms of `size`, of which `start` to `start + kept` are read."""

    def __init__(self, kernel: Tensor, size: int, start: int = 0, kept: int | None = None) -> None:
        super().__init__()
        self.kernel = nn.Parameter(kernel)
        self.size, self.start, self.kept = size, start, kept

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(x, n=self.size) * torch.fft.rfft(self.kernel, n=self.size)
        y = torch.fft.irfft(spectrum, n=self.size)
        return y[..., self.start : self.start + (self.kept or x.shape[-1])]


def kernel(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "model",
    [
        Long(kernel(3, 12), 24),
        Long(kernel(12), 23),
        Long(kernel(3, 5), 16),  # of a kernel shorter than the signal
        Long(kernel(1, 12), 24, start=5),  # as a "same" convolution reads it
        Long(kernel(3, 12), 24, kept=23),
        Long(kernel(3, 12), 18),  # too short: the end acts on the beginning
        Long(kernel(3, 30), 42, kept=7),
    ],
)
def test_a_padded_filter_in_every_form(model: Long, form: str) -> None:
    x = torch.randn(2, 3, 12)
    fold = fold_filters.with_options(form=form)
    program, (_, report) = rewrite(capture(model, (x,), dynamic_batch=True), COSTS, (fold_constants, fold))
    assert bool(report.applied) == (form != "transforms"), reasons(report)
    x = torch.randn(4, 3, 12)
    wanted = model(x).detach()
    assert torch.allclose(run(program, (x,))[0], wanted, atol=1e-5 * float(wanted.abs().max()))


def test_a_causal_filter_reads_no_more_than_its_kernel() -> None:
    """Half of the taps of a circular one: those of the future and the end of the kernel, which are zero, are none."""
    for length in (5, 12):
        rewritten, _ = rewrite(
            capture(Long(kernel(3, length), 24), (torch.randn(1, 3, 12),)),
            COSTS,
            (fold_constants, fold_filters.with_options(form="convolution")),
        )
        (weight,) = (node.args[1] for node in rewritten.module.graph.nodes if "conv1d" in str(node.target))
        assert val(weight).shape == (3, 1, length)


def test_a_direct_path_beside_a_filter_is_one_tap() -> None:
    class Beside(Long):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + x * self.kernel[:, :1]

    model, x = Beside(kernel(3, 12), 24), torch.randn(1, 3, 12)
    _, _, counts = apply(
        model, x, costs=COSTS, rewrites=(fold_constants, fold_filters.with_options(form="convolution"))
    )
    assert not {"aten.add", "aten.mul"} & set(counts)


def _kernel_of_the_input(x: Tensor, k: Tensor) -> Tensor:
    return torch.fft.irfft(torch.fft.rfft(x, n=24) * torch.fft.rfft(x * k, n=24), n=24)[..., :12]


def _magnitude(x: Tensor, k: Tensor) -> Tensor:
    z = torch.fft.rfft(x) * torch.fft.rfft(k)
    return torch.fft.irfft(z * z.abs())


def _every_other(x: Tensor, k: Tensor) -> Tensor:
    z = torch.fft.rfft(x) * torch.fft.rfft(k)
    return torch.fft.irfft(torch.flip(z, (-1,)))


def _shifted(x: Tensor, k: Tensor) -> Tensor:
    return torch.fft.irfft(torch.fft.rfft(x) * torch.fft.rfft(k) + torch.fft.rfft(k))


def _across_channels(x: Tensor, k: Tensor) -> Tensor:
    return torch.fft.irfft(torch.einsum("bcf,cd->bdf", torch.fft.rfft(x), k[:, :3].to(torch.complex64)))


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (_kernel_of_the_input, None),
        (_magnitude, None),
        (_every_other, "does not commute with shifts"),
        (_shifted, "does not commute with shifts"),
        (_across_channels, "does not commute with shifts"),
    ],
)
def test_what_is_no_constant_filter_is_left(function: Callable[[Tensor, Tensor], Tensor], reason: str | None) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.k = nn.Parameter(kernel(3, 12))

        def forward(self, x: Tensor) -> Tensor:
            return function(x, self.k)

    _, reports, _ = apply(Model(), torch.randn(2, 3, 12), costs=COSTS)
    report = reports["fold_filters"]
    assert not report.applied
    assert [reason in rejection.reason for rejection in report.rejected] == ([True] if reason else []), reasons(report)
    assert all(rejection.line is None or "test_spectral.py" in rejection.line for rejection in report.rejected)


@pytest.mark.parametrize("change", ["fraction", "gelu"])
def test_another_mixer_than_afnos_is_matmuls(change: str) -> None:
    torch.manual_seed(0)
    model, x = (
        spectral.AFNO2D(8, hard_thresholding_fraction=0.5 if change == "fraction" else 1),
        torch.randn(1, 6, 6, 8),
    )
    if change == "gelu":
        model.act = F.gelu
    _, reports, counts = apply(model, x, costs=COSTS)
    assert not left_over(counts)
    assert "edgesmith.fft_filter" not in counts
    assert "other numbers" in reasons(reports["recognise"])


def test_a_state_space_streams(tmp_path: Path) -> None:
    class Frames(nn.Module):
        """A layer on frames [B, T, H]."""

        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layer = spectral.S4D(6)

        def forward(self, u: Tensor) -> Tensor:
            return self.layer(u.transpose(1, 2)).transpose(1, 2)

    model, x = Frames().eval(), torch.randn(1, 40, 6)
    made = edgesmith.export(model, "onnx", inputs=(x,), streaming=True, precision="fp32", out=tmp_path, name="s4d")
    frames = StreamingSession(made.path).run(x.numpy())
    wanted = model(x).detach().numpy()
    assert np.abs(np.stack(list(frames), axis=1) - wanted).max() <= 1e-5 * np.abs(wanted).max()
