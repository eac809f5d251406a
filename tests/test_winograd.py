"""Winograd's forms: the matrices, where they are chosen and where not, and that numbers stay."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import rewriting
from support.lowering import lower
from torch import Tensor, nn

import edgesmith
from edgesmith.exporters import targets
from edgesmith.exporters.costs import Costs
from edgesmith.exporters.graph.capture import Program, capture, run
from edgesmith.exporters.graph.edit import count_operators
from edgesmith.exporters.rewrites.order import rewrite
from edgesmith.exporters.rewrites.rewrite import RewriteReport
from edgesmith.exporters.rewrites.winograd import POINTS, estimate, matrices, winograd
from edgesmith.kernels import lif

CHEAP_TILES = Costs(launch_us=0, gmac_s=1, tile_gb_s=1e6)
TOLERANCE = 2e-6
"""Of the peak of a layer; the convolution itself is within 4e-7 of float64 at these sizes."""


def apply(model: nn.Module, *inputs: Tensor, costs: Costs = CHEAP_TILES) -> tuple[Program, RewriteReport]:
    """Rewrite by the target's costs; a second run finds nothing to do."""
    made = rewriting.apply(model, *inputs, costs=costs, rewrites=(winograd,))
    return made.program, made.reports["winograd"]


@pytest.mark.parametrize("points", POINTS)
def test_the_matrices_are_an_exact_correlation(points: int) -> None:
    generator = torch.Generator().manual_seed(0)
    for kernel in range(2, points):
        tile = points - kernel + 1
        a, g, b = matrices(tile, kernel)
        assert torch.equal(a, a.float().double())
        assert torch.equal(b, b.float().double())
        x, w = (torch.randn(size, dtype=torch.float64, generator=generator) for size in (points, kernel))
        expected = torch.stack([w @ x[i : i + kernel] for i in range(tile)])
        assert torch.allclose(a @ ((g @ w) * (b @ x)), expected, rtol=0, atol=1e-12)


def test_a_long_and_wide_convolution_becomes_tiles_of_four() -> None:
    x = torch.randn(1, 32, 64)
    model = nn.Conv1d(32, 48, 3, padding=1)
    rewritten, report = apply(model, x)
    ((place, note),) = report.applied
    assert place == "conv1d"
    assert note.endswith("-> tiles of 4")
    counts = count_operators(rewritten.module)
    assert "aten.conv1d" not in counts
    assert (counts["aten.conv2d"], counts["aten.matmul"], counts["aten.transpose"]) == (1, 2, 1)
    (y,) = run(rewritten, (x,))
    exact = model.double()(x.double()).detach()
    assert float((y - exact).abs().max()) <= TOLERANCE * float(exact.abs().max())


@pytest.mark.parametrize(
    ("options", "length"),
    [
        ({"stride": 2}, 64),
        ({"dilation": 2}, 64),
        ({"groups": 2}, 64),
        ({"kernel_size": 1}, 64),
        ({"kernel_size": 6}, 64),
    ],
)
def test_a_convolution_without_such_a_form_is_left(options: dict[str, int], length: int) -> None:
    model = nn.Conv1d(32, 32, **({"kernel_size": 3} | options))
    rewritten, report = apply(model, torch.randn(1, 32, length))
    assert (report.applied, report.rejected) == ((), ())
    assert count_operators(rewritten.module) == {"aten.conv1d": 1}


def test_a_computed_weight_is_left() -> None:
    class Computed(nn.Module):
        def forward(self, x: Tensor, w: Tensor) -> Tensor:
            return torch.conv1d(x, w)

    _, report = apply(Computed(), torch.randn(1, 32, 64), torch.randn(32, 32, 3))
    assert not report.applied


def test_neurons_keep_the_convolution_before_them() -> None:
    class Spiking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(32, 32, 3)

        def forward(self, x: Tensor) -> Tensor:
            spikes: Tensor = lif.OP.overload(self.conv(x), 2.0, 1.0)
            return spikes

    _, report = apply(Spiking(), torch.randn(1, 32, 64))
    assert not report.applied
    assert "neurons" in report.rejected[0].reason


def test_a_short_sequence_stays_a_convolution_and_says_why() -> None:
    _, report = apply(nn.Conv1d(256, 256, 3), torch.randn(1, 256, 10), costs=targets.get("onnx").costs)
    assert not report.applied
    assert report.rejected[0].reason.endswith("it stays a convolution")


def test_half_precision_and_other_targets_keep_the_convolution() -> None:
    program = capture(nn.Conv1d(256, 256, 3).eval(), (torch.randn(1, 256, 400),))
    for name, target in targets.all_targets().items():
        _, (report,) = rewrite(program, target.costs, (winograd,))
        assert bool(report.applied) == (name == "onnx"), name
    halves = capture(nn.Conv1d(256, 256, 3).half().eval(), (torch.randn(1, 256, 400).half(),))
    _, (report,) = rewrite(halves, targets.get("onnx").costs, (winograd,))
    assert not report.applied


def test_the_estimate_counts_products_weights_tiles_and_launches() -> None:
    costs = Costs(launch_us=10, gmac_s=2, stream_gb_s=4, columns=16, tile_gb_s=8)
    times = estimate(torch.empty(1, 48, 64), torch.empty(48, 32, 3), costs)
    products, moved = 32 * 48 * 1e-3, 4e-3 * (32 + 48)
    assert times == pytest.approx(
        {
            1: 10 + 3 * products * (64 / 2 + 4 / 4),
            2: 70 + 4 * products * (32 / 2 + 4 / 4) + moved * (64 + 4 * 32) / 8,
            4: 70 + 6 * products * (16 / 2 + 4 / 4) + moved * (64 + 6 * 16) / 8,
        }
    )


class Layers(nn.Module):
    """One convolution an entry: (C, C', T, r, padding, with a bias), inputs in the order of the entries."""

    def __init__(self, entries: Sequence[tuple[int, int, int, int, int, bool]]) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv1d(channels, width, kernel, padding=padding, bias=bias)
            for channels, width, _, kernel, padding, bias in entries
        )

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        return [conv(x) for conv, x in zip(self.convs, inputs, strict=True)]


LAYER = st.tuples(
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(5, 40),
    st.integers(2, 5),
    st.integers(0, 4),
    st.booleans(),
)


def test_the_estimate_rounds_tiles_up_and_columns_to_whole_vectors() -> None:
    costs = Costs(launch_us=10, gmac_s=2, stream_gb_s=4, columns=16, tile_gb_s=8)
    times = estimate(torch.empty(1, 48, 70), torch.empty(48, 32, 3), costs)
    macs, moved = 32 * 48 * 1e-3, 4e-3 * (32 + 48)
    columns = {1: 80, 2: 48, 4: 32}  # of 70 outputs, 35 tiles of two, and 18 tiles of four
    assert times == pytest.approx(
        {
            1: 10 + 3 * macs * (columns[1] / 2 + 4 / 4),
            2: 70 + 4 * macs * (columns[2] / 2 + 4 / 4) + moved * (70 + 4 * 35) / 8,
            4: 70 + 6 * macs * (columns[4] / 2 + 4 / 4) + moved * (70 + 6 * 18) / 8,
        }
    )


@pytest.mark.slow
@given(
    entries=st.lists(LAYER, min_size=14, max_size=14),
    batch=st.integers(1, 3),
    points=st.sampled_from(sorted(POINTS)),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=24)
def test_numbers_stay_for_every_shape(
    entries: list[tuple[int, int, int, int, int, bool]], batch: int, points: int, seed: int
) -> None:
    """336 convolutions, fourteen in a capture."""
    torch.manual_seed(seed)
    model = Layers(entries).eval()
    inputs = tuple(torch.randn(batch, channels, length) for channels, _, length, *_ in entries)
    rewritten, (report,) = rewrite(capture(model, inputs), Costs(0), (winograd.with_options(points=points),))
    assert len(report.applied) == sum(kernel < points for *_, kernel, _, _ in entries)
    outputs = run(rewritten, inputs)
    with torch.no_grad():
        exact = model.double()(*(x.double() for x in inputs))
    for y, z in zip(outputs, exact, strict=True):
        assert y.shape == z.shape
        assert float((y - z).abs().max()) <= TOLERANCE * max(float(z.abs().max()), 1.0)


@pytest.mark.parametrize("length", [9, 10, 11, 12])
def test_onnx_runtime_computes_the_same_at_every_remainder(length: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 8, length)
    model = nn.Sequential(nn.Conv1d(8, 12, 3, padding=1), nn.ReLU(), nn.Conv1d(12, 8, 5)).eval()
    rewritten, _ = rewrite(capture(model, (x,), ("x",), ("y",)), Costs(0), (winograd.with_options(points=6),))
    outputs = lower("onnx", rewritten, tmp_path / "layers.onnx").run([[x.numpy()]])
    assert isinstance(outputs, list)
    exact = model.double()(x.double()).detach().numpy()
    assert outputs[0][0].shape == exact.shape
    assert np.abs(outputs[0][0] - exact).max() <= TOLERANCE


def test_lmuformer_has_the_form_for_onnx_in_fp32_alone(tmp_path: Path) -> None:
    for precision, is_expected in (("fp32", True), ("fp16", False)):
        artifact = edgesmith.export("lmuformer", "onnx", precision=precision, out=tmp_path)
        (report,) = (entry for entry in artifact.manifest["rewrites"] if entry["name"] == "winograd")
        assert bool(report["applied"]) == is_expected
        assert ("MatMul" in artifact.manifest["operators"]["file"]) == is_expected
    _, _, reports = edgesmith.explain("spiking_lmuformer", "onnx")
    assert not next(report for report in reports if report.name == "winograd").applied


def test_a_free_batch_stays_free(tmp_path: Path) -> None:
    artifact = edgesmith.export("lmuformer", "onnx", dynamic_batch=True, out=tmp_path)
    assert artifact.manifest["operators"]["file"]["MatMul"] == 8
    outputs = targets.get("onnx").open(artifact.file).run([[np.zeros((5, 128, 128), np.float32)]])
    assert isinstance(outputs, list)
    assert outputs[0][0].shape == (5, 35)
