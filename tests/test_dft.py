"""Transforms and complex values in real arithmetic: PyTorch's own samples, random shapes, every rule, and files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing._internal.common_methods_invocations import op_db

from edgesmith.exporters.capture import Program, capture, run
from edgesmith.exporters.graph import count_operators, operators
from edgesmith.exporters.rewrite import RewriteReport, rewrite
from edgesmith.exporters.rewrites.dft import Dft
from edgesmith.exporters.targets import Costs

DEAR_LAUNCHES, DEAR_PRODUCTS = Costs(launch_us=1e6), Costs(launch_us=1e-6, gmac_s=1e-3, stream_gb_s=1e9)


class Function(nn.Module):
    """A function as a module; complex results become real ones with an axis of 2."""

    def __init__(self, function: Callable[..., Any], **tensors: Tensor) -> None:
        super().__init__()
        self.function = function
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)

    def forward(self, *x: Tensor) -> Tensor:
        y = self.function(*x, *self.buffers())
        return torch.view_as_real(y.resolve_conj()) if y.is_complex() else y


def apply(
    function: Callable[..., Any], *inputs: Tensor, costs: Costs = DEAR_LAUNCHES, tolerance: float = 1e-5, **tensors: Tensor
) -> tuple[Program, RewriteReport]:
    """Rewrite a function's graph; assert that nothing complex is left and the numbers hold, relative to the peak."""
    model = Function(function, **tensors)
    program = capture(model, inputs)
    rewritten, reports = rewrite(program, costs)
    report = next(r for r in reports if r.name == Dft.name)
    assert not report.rejected, report.rejected
    assert not left_over(rewritten)
    (expected,), (found,) = run(program, inputs), run(rewritten, inputs)
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    assert float((found - expected).abs().max()) <= tolerance * float(expected.abs().max())
    return rewritten, report


def left_over(program: Program) -> list[str]:
    """Nodes with a complex value, and transforms."""
    return [
        node.name
        for node in program.module.graph.nodes
        if "fft" in str(node.target)
        or any(isinstance(v, Tensor) and v.is_complex() for v in torch.utils._pytree.tree_leaves(node.meta.get("val")))
    ]


# Transforms


SAMPLES = [
    (op, i, sample)
    for op in op_db
    if op.name.startswith("fft.")
    for i, sample in enumerate(op.sample_inputs("cpu", torch.float32))
]


def test_samples_are_those_that_the_figures_in_the_documents_count() -> None:
    """20 functions, 18 transforms with 7 to 9 samples each and two shifts with 5. All have static lengths: none is out."""
    counts = Counter(op.name for op, _, _ in SAMPLES)
    assert len(counts) == 20
    assert sum(counts.values()) == 154
    assert all(isinstance(n, int) for _, _, sample in SAMPLES for n in sample.input.shape)


@pytest.mark.parametrize(("op", "i", "sample"), SAMPLES, ids=[f"{op.name}-{i}" for op, i, _ in SAMPLES])
def test_torchs_own_samples(op: Any, i: int, sample: Any) -> None:
    costs = (DEAR_LAUNCHES, DEAR_PRODUCTS)[i % 2]
    apply(lambda x: op.op(x, *sample.args, **sample.kwargs), sample.input, costs=costs)


KINDS = ["fft", "ifft", "rfft", "irfft", "hfft", "ihfft"]
NORMS = [None, "forward", "backward", "ortho"]


@st.composite
def transforms(draw: st.DrawFn) -> tuple[str, Tensor, dict[str, Any]]:
    """A transform, an input that it takes, and its arguments."""
    kind = draw(st.sampled_from(KINDS))
    dims = draw(st.integers(1, 3))
    shape = draw(st.lists(st.integers(1, 9), min_size=dims, max_size=4))
    axes = draw(st.permutations(range(len(shape))))[:dims]
    axes = [axis - draw(st.sampled_from([0, len(shape)])) for axis in axes]
    kwargs: dict[str, Any] = {"norm": draw(st.sampled_from(NORMS))}
    if draw(st.booleans()) or (kind in ("irfft", "hfft") and shape[axes[-1]] == 1):
        lengths = draw(st.lists(st.integers(1, 12), min_size=dims, max_size=dims))
        kwargs["n" if dims == 1 else "s"] = lengths[0] if dims == 1 else lengths
    form = draw(st.sampled_from(["n", "2"])) if dims == 2 else "n"
    name = kind if dims == 1 else kind + form
    kwargs["dim"] = axes[0] if dims == 1 else axes
    only_real = kind in ("rfft", "ihfft")
    dtype = draw(st.sampled_from([torch.float32, torch.int64, torch.float64] + [torch.complex64] * 3 * (not only_real)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    if dtype == torch.int64:
        x = torch.randint(-9, 9, shape, generator=generator)
        x.view(-1)[0] = 1
    else:
        x = torch.randn(shape, generator=generator, dtype=dtype)
    return name, x, kwargs


@given(case=transforms(), costs=st.sampled_from([DEAR_LAUNCHES, DEAR_PRODUCTS]))
@settings(max_examples=400)
def test_any_transform_of_any_shape(case: tuple[str, Tensor, dict[str, Any]], costs: Costs) -> None:
    name, x, kwargs = case
    transform = getattr(torch.fft, name)
    if x.is_complex():
        apply(lambda r: transform(torch.view_as_complex(r), **kwargs), torch.view_as_real(x), costs=costs)
    else:
        apply(lambda r: transform(r, **kwargs), x, costs=costs)
