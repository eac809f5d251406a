"""The frequency filter: found at any shape, refused where it is another filter, and the same numbers in every form."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from support.lowering import lower
from torch import Tensor, nn

from edgesmith.exporters import targets
from edgesmith.exporters.costs import Costs
from edgesmith.exporters.graph.capture import capture, run
from edgesmith.exporters.graph.edit import arguments, count_operators, operators
from edgesmith.exporters.rewrites.dense_transforms import dense_transforms, macs
from edgesmith.exporters.rewrites.fuse import fuse
from edgesmith.exporters.rewrites.order import rewrite
from edgesmith.kernels import fft_filter

OP = fft_filter.OP
FUSE = (fuse(OP),)


class Filter(nn.Module):
    """A filter with weights of its own, in plain PyTorch or as one call of the op."""

    def __init__(self, channels: int, blocks: int, call: Callable[..., Tensor] = fft_filter.reference, **literals: Any):
        super().__init__()
        weights = fft_filter.example(channels, blocks)[1:]
        self.weights = nn.ParameterList(weights)
        self.call, self.literals = call, literals

    def forward(self, x: Tensor) -> Any:
        return self.call(x, *self.weights, **self.literals)


def draw(channels: int, size: tuple[int, int], batch: int = 1) -> Tensor:
    return torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(batch))


def error(found: Tensor, expected: Tensor, x: Tensor) -> float:
    """Largest error, relative to the peak of output or input: a mask may shrink the whole output to nothing."""
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / max(expected.abs().max(), x.abs().max()))


class TorchBuilder:
    """The operators of coremltools' builder that the lowering uses, computed: Core ML itself runs on macOS only."""

    class Value:
        def __init__(self, tensor: Tensor) -> None:
            self.tensor, self.shape, self.val = tensor, tuple(tensor.shape), tensor.detach().numpy()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(**given: Any) -> Any:
            given = {key: self._open(value) for key, value in given.items()}
            made = getattr(self, f"_{name}")(**given)
            return tuple(map(self.Value, made)) if isinstance(made, tuple) else self.Value(made)

        return call

    def _open(self, value: Any) -> Any:
        if isinstance(value, self.Value):
            return value.tensor
        if isinstance(value, np.ndarray):
            assert value.ndim <= 4
            return torch.from_numpy(np.ascontiguousarray(value)).float()
        return [self._open(part) for part in value] if isinstance(value, list | tuple) else value

    _conv = staticmethod(lambda x, weight, bias, groups: F.conv2d(x, weight, bias, groups=groups))
    _matmul = staticmethod(lambda x, y: x @ y)
    _reshape = staticmethod(lambda x, shape: x.reshape(shape))
    _silu = staticmethod(lambda x: F.silu(x))
    _clip = staticmethod(lambda x, alpha, beta: x.clamp(float(alpha), float(beta)))
    _add = staticmethod(lambda x, y: x + y)
    _sub = staticmethod(lambda x, y: x - y)
    _mul = staticmethod(lambda x, y: x * y)
    _split = staticmethod(lambda x, num_splits, axis: x.chunk(num_splits, axis))
    _concat = staticmethod(lambda values, axis: torch.cat(values, axis))


TOGETHER = 10
"""Filters that share one capture."""

SHAPES = {
    "blocks": st.integers(1, 8),
    "width": st.integers(1, 4),
    "size": st.tuples(st.integers(1, 12), st.integers(1, 12)),
    "batch": st.integers(1, 3),
    "threshold": st.sampled_from([0.0, 0.01, 0.02, 0.1, 0.5]) | st.floats(0, 1, width=32),
}


class Filters(nn.Module):
    """Filters beside each other, each of an input of its own."""

    def __init__(self, filters: Iterable[Filter]) -> None:
        super().__init__()
        self.filters = nn.ModuleList(filters)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(one(x) for one, x in zip(self.filters, inputs, strict=True))


@pytest.mark.slow
@given(cases=st.lists(st.fixed_dictionaries(SHAPES), min_size=TOGETHER, max_size=TOGETHER))
@settings(max_examples=300 // TOGETHER)
def test_any_filter_becomes_the_op_and_real_arithmetic_computes_it(cases: list[dict[str, Any]]) -> None:
    """300 filters, TOGETHER of them in one capture."""
    widths = [case["blocks"] * case["width"] for case in cases]
    filters = [Filter(n, c["blocks"], threshold=c["threshold"]) for n, c in zip(widths, cases, strict=True)]
    inputs = [draw(n, c["size"], c["batch"]) for n, c in zip(widths, cases, strict=True)]
    program = capture(Filters(filters), inputs)
    rewritten, (report,) = rewrite(program, Costs(0), FUSE)
    assert count_operators(rewritten.module) == {"edgesmith.fft_filter": TOGETHER}, report.rejected
    thresholds = [arguments(node)[5] for node in operators(rewritten.module)]
    assert thresholds == [case["threshold"] for case in cases]
    outputs = zip(filters, inputs, thresholds, run(program, inputs), run(rewritten, inputs), strict=True)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("coremltools", "coremltools.converters", "coremltools.converters.mil"):
            patch.setitem(sys.modules, name, SimpleNamespace(Builder=TorchBuilder()))
        for model, x, threshold, expected, found in outputs:
            assert error(found, expected, x) <= OP.tolerance
            given_ = [TorchBuilder.Value(t.detach()) for t in (x, *model.weights)]
            for dense in (False, True):
                lowered = OP.lowerings["coreml"](*given_, threshold, dense=dense)
                assert error(lowered.tensor, expected, x) <= OP.tolerance


@given(dense=st.booleans(), **SHAPES)
@settings(max_examples=8)
def test_onnx_runtime_computes_any_filter(
    blocks: int,
    width: int,
    size: tuple[int, int],
    batch: int,
    threshold: float,
    dense: bool,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    model = Filter(blocks * width, blocks, OP.overload, threshold=threshold, dense=dense)
    x = draw(blocks * width, size, batch)
    path = tmp_path_factory.mktemp("filter") / "filter.onnx"
    file = lower("onnx", capture(model, (x,)), path)
    counts = file.count_operators()
    assert not {"DFT", "Einsum", "Shrink", "Transpose"} & set(counts)
    assert sum(counts.values()) <= 23
    outputs = file.run([[x.numpy()]])
    assert isinstance(outputs, list)
    assert error(torch.from_numpy(outputs[0][0]), run(capture(model, (x,)), (x,))[0], x) <= OP.tolerance


def test_a_mask_that_is_closed_everywhere_gives_zeros_and_an_open_one_a_product() -> None:
    x, w1, b1, w2, b2 = fft_filter.example()
    assert not fft_filter.reference(x, w1, b1, w2, b2, 1e4).any()
    weights = torch.zeros_like(w1), torch.zeros_like(b1), torch.zeros_like(w2), torch.zeros_like(b2)
    weights[3][0] = 1.5  # the mask is 1.5 - 0.5 = 1, and the transforms undo each other
    assert error(fft_filter.reference(x, *weights, 0.5), x, x) <= OP.tolerance


@pytest.mark.parametrize("size", [(1, 1), (1, 8), (7, 1), (5, 6), (8, 8), (9, 7)])
def test_matrices_are_torchs_transforms_in_double_precision(size: tuple[int, int]) -> None:
    height, width = size
    x = draw(1, size)[0, 0].double()
    spectrum = torch.fft.rfft2(x, norm="ortho")
    flat = np.concatenate((spectrum.real.numpy().reshape(-1), spectrum.imag.numpy().reshape(-1)))
    forward, inverse = fft_filter.dense_matrices(height, width)
    assert np.abs(x.numpy().reshape(-1) @ forward - flat).max() <= 1e-14
    right, left, inverse_left, inverse_right = fft_filter.separable_matrices(height, width)
    rows = (x.numpy() @ right).reshape(2 * height, -1)
    assert np.abs((left @ rows).reshape(-1) - flat).max() <= 1e-14
    masked = torch.complex(*torch.randn(2, *spectrum.shape, dtype=torch.float64))  # not the spectrum of a real map
    expected = torch.fft.irfft2(masked, s=size, norm="ortho").numpy()
    flat = np.concatenate((masked.real.numpy().reshape(-1), masked.imag.numpy().reshape(-1)))
    assert np.abs(flat @ inverse - expected.reshape(-1)).max() <= 1e-14
    back = (inverse_left @ flat.reshape(2 * height, -1)).reshape(height, -1) @ inverse_right
    assert np.abs(back - expected).max() <= 1e-14


@pytest.mark.parametrize("size", [(32, 32), (16, 16), (8, 32), (14, 14), (20, 12)])
def test_the_norm_is_rounded_once_each_way(size: tuple[int, int]) -> None:
    matrices = [m.astype(np.float32).astype(np.float64) for m in fft_filter.separable_matrices(*size)]
    right, left, inverse_left, inverse_right = (m[0, 0] for m in matrices)
    once = float(np.float32(1 / np.sqrt(np.prod(size))))
    assert right * left == once
    assert inverse_left * inverse_right == once


# near misses


def spelled(
    x: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    norm: str = "ortho",
    activation: Callable[[Tensor], Tensor] = F.silu,
    longer: int = 0,
    leak: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """The reference, in which one thing at a time can be another."""
    spectrum = torch.fft.rfft2(x, norm=norm)
    parts = torch.view_as_real(spectrum).unflatten(1, (w1.shape[1], -1)).permute(0, 3, 4, 5, 1, 2)
    hidden = fft_filter._layer(parts, w1, b1)
    mask = F.softshrink(fft_filter._layer(activation(hidden), w2, b2), 0.01).flatten(-2)
    mask = torch.complex(mask[..., 0, :], mask[..., 1, :]).permute(0, 3, 1, 2)
    y = torch.fft.irfft2(mask * spectrum, s=(x.shape[-2], x.shape[-1] + longer), norm=norm)
    return (y, hidden) if leak else y


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"norm": "backward"}, "aten.fft_rfft2's norm: the reference has 'ortho' where the graph has 'backward'"),
        ({"activation": F.relu}, "the reference has aten.silu where the graph has aten.relu"),
        ({"longer": 2}, "aten.fft_irfft2's s: the reference has [5, 6] where the graph has [5, 8]"),
        ({"leak": True}, "is also read by output, outside the site"),
    ],
    ids=["same", "norm", "activation", "size", "leak"],
)
def test_another_filter_is_left_alone_and_the_reason_given(change: dict[str, Any], reason: str | None) -> None:
    program = capture(Filter(6, 2, spelled, **change), (draw(6, (5, 6)),))
    rewritten, (report,) = rewrite(program, Costs(0), FUSE)
    assert len(report.applied) == (reason is None)
    assert ("edgesmith.fft_filter" in count_operators(rewritten.module)) == (reason is None)
    if reason is not None:
        (rejection,) = report.rejected
        assert reason in rejection.reason
        assert rejection.reason.count("at ") <= 1


def test_a_negative_threshold_and_a_wrong_weight_are_one_sentence() -> None:
    x, w1, b1, w2, b2 = fft_filter.example()
    with pytest.raises(ValueError, match=r"fft_filter: threshold must be 0 or more, got -0.5"):
        OP.shape(x, w1, b1, w2, b2, -0.5)
    with pytest.raises(ValueError, match=r"fft_filter: x must be \[B, C, H, W\], got \[6, 5, 6\]"):
        OP.shape(x[0], w1, b1, w2, b2)
    with pytest.raises(ValueError, match="a number of blocks that divides C = 5, got 2"):
        OP.shape(x[:, :5], w1, b1, w2, b2)


# dense or separable


@pytest.mark.parametrize(
    ("size", "dense"), [((32, 32), False), ((16, 16), False), ((12, 12), True), ((8, 8), True), ((7, 7), True)]
)
@pytest.mark.parametrize("target", ["onnx", "coreml"])
def test_small_maps_are_transformed_densely(size: tuple[int, int], dense: bool, target: str) -> None:
    program = capture(Filter(104, 8, OP.overload), (draw(104, size),))
    rewritten, (report,) = rewrite(program, targets.get(target).costs, (dense_transforms,))
    (node,) = operators(rewritten.module)
    assert arguments(node)[8] is dense
    ((_, why),) = report.applied or [(r.site, r.reason) for r in report.rejected]
    assert why.startswith(f"{size[0]}x{size[1]}: saves ")
    _, (again,) = rewrite(rewritten, targets.get(target).costs, (dense_transforms,))
    assert not again.applied


def test_macs_of_a_transform_are_those_of_its_matrices() -> None:
    forward, _ = fft_filter.dense_matrices(5, 6)
    right, left, *_ = fft_filter.separable_matrices(5, 6)
    assert macs(5, 6, columns=1) == (forward.size, 5 * right.size + left.size * 4)
    assert macs(8, 8, columns=16) == (64 * 80, 64 * 16 + 256 * 16)


@pytest.mark.parametrize("dense", [False, True])
def test_fp16_filters_of_large_maps_stay_in_range(dense: bool, tmp_path: Path) -> None:
    x = 1 + draw(8, (32, 32))  # a mean, so that one bin holds 32 times the values
    model = Filter(8, 2, OP.overload, dense=dense)
    file = lower("onnx", capture(model, (x,)), tmp_path / "filter.onnx", "fp16")
    outputs = file.run([[x.numpy()]])
    assert isinstance(outputs, list)
    with torch.no_grad():
        assert error(torch.from_numpy(outputs[0][0]), model(x), x) <= 5e-3
