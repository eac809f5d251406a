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


# Complex arithmetic: each rule in the smallest module that needs it. X is complex [2, 3, 4, 5], made from the input.


def complex_input(r: Tensor) -> Tensor:
    return torch.view_as_complex(r)


C = torch.complex(torch.randn(4, 5, generator=torch.Generator().manual_seed(1)), torch.linspace(-1, 1, 20).view(4, 5))

RULES: dict[str, Callable[[Tensor], Tensor]] = {
    "add": lambda z: z + z.flip(0),
    "add a real tensor": lambda z: z + z.real,
    "add a number": lambda z: 2 + z,
    "add a complex number": lambda z: z + (1 - 2j),
    "add with alpha": lambda z: torch.add(z, z.conj(), alpha=2),
    "add something wider": lambda z: z[:1] + z.imag,
    "sub": lambda z: z - z.flip(0),
    "number minus": lambda z: 1j - z,
    "rsub": lambda z: torch.rsub(z, 3),
    "mul": lambda z: z * z.flip(1),
    "mul by a real tensor": lambda z: z.real * z,
    "mul by numbers": lambda z: 2 * z * 1j * -1,
    "real times a complex number": lambda z: z.abs() * (1 + 2j),
    "in place": lambda z: (z * 1).mul_(z).add_(1),
    "div": lambda z: z / (z.flip(0) + 3),
    "div by a real tensor": lambda z: z / (z.real.abs() + 1),
    "number over": lambda z: 1 / (z + 3j),
    "real over complex": lambda z: z.real / (z + 3j),
    "reciprocal": lambda z: (z + 2).reciprocal(),
    "neg, conj": lambda z: -z.conj(),
    "conj_physical": lambda z: torch.conj_physical(z),
    "real": lambda z: z.real,
    "imag": lambda z: z.imag,
    "imag of a real value": lambda z: (z.real + 0j).imag + z.real,
    "abs": lambda z: z.abs(),
    "abs of what is real": lambda z: torch.complex(z.real, z.imag * 0).abs(),
    "angle": lambda z: z.angle(),
    "view_as_real": lambda z: torch.view_as_real(z) * torch.tensor([1.0, 2.0]),
    "view_as_real, one half": lambda z: torch.view_as_real(z)[..., 1] + torch.view_as_real(z)[..., 0],
    "stack and view_as_complex": lambda z: torch.view_as_complex(torch.stack([z.imag, z.real], -1)),
    "complex": lambda z: torch.complex(z.imag, z.real),
    "polar": lambda z: torch.polar(z.abs(), 2 * z.angle()),
    "exp": lambda z: z.exp(),
    "exp of a phase": lambda z: torch.exp(1j * z.real),
    "log": lambda z: (z + 3).log(),
    "square": lambda z: z.square(),
    "pow": lambda z: z**3 + z**2 + z**1,
    "negative pow": lambda z: (z + 3) ** -2,
    "matmul": lambda z: z @ z.transpose(-1, -2),
    "matmul with what is real": lambda z: z @ z.real.transpose(-1, -2).to(torch.complex64),
    "adjoint": lambda z: z @ z.mH,
    "mm": lambda z: torch.mm(z[0, 0], z[0, 1].t()),
    "bmm": lambda z: torch.bmm(z[0], z[1].transpose(1, 2)),
    "mv": lambda z: torch.mv(z[0, 0], z[0, 1, 0]),
    "einsum": lambda z: torch.einsum("bchw,bdhw->bcd", z, z),
    "einsum of three": lambda z: torch.einsum("bchw,bcw,h->bch", z, z[:, :, 0], z[0, 0, :, 0]),
    "linear": lambda z: F.linear(z, C, C[:, 0]),
    "conv": lambda z: F.conv2d(z, C[:3, :4].reshape(2, 3, 2, 1), C[0, :2]),
    "sum": lambda z: z.sum() + z.sum((1, 3), keepdim=True),
    "mean": lambda z: z.mean() + z.mean(1),
    "cumsum": lambda z: z.cumsum(2),
    "shapes": lambda z: z.reshape(6, 20).view(2, 3, 4, 5).permute(0, 2, 3, 1).unsqueeze(1).squeeze(1).flatten(1),
    "view of a permutation": lambda z: z.permute(0, 2, 1, 3).contiguous().view(2, 4, 15),
    "transpose, movedim": lambda z: z.transpose(1, 2).movedim(0, -1).mT,
    "unflatten": lambda z: z.unflatten(2, (2, 2)).swapaxes(1, 2),
    "slice, select": lambda z: z[:, 1:, ::2][..., 0],
    "index": lambda z: z[:, torch.tensor([2, 0])] + z.index_select(1, torch.tensor([0, 1])),
    "gather": lambda z: z.gather(3, torch.zeros(2, 3, 4, 2, dtype=torch.long)),
    "cat": lambda z: torch.cat([z, z.real + 0j, z.conj()], 1),
    "cat with what is real": lambda z: torch.cat([z, z.real], 1),
    "stack": lambda z: torch.stack([z, 1j * z], 2),
    "split": lambda z: z.split(2, dim=2)[0] * z.split([2, 2], dim=2)[1],
    "chunk": lambda z: z.chunk(2, dim=2)[1],
    "unbind": lambda z: z.unbind(1)[2],
    "roll, flip": lambda z: z.roll((1, 2), (2, 3)).flip(3),
    "expand, repeat": lambda z: z[:1].expand(4, -1, -1, -1).repeat(1, 2, 1, 1),
    "pad": lambda z: F.pad(z, (1, 2), value=1.5),
    "pad by repeating": lambda z: F.pad(z, (1, 2, 1, 1), mode="circular"),
    "tril": lambda z: z.tril(),
    "where": lambda z: torch.where(z.real > 0, z, z.conj()),
    "where with a number": lambda z: torch.where(z.real > 0, z, 0),
    "masked_fill": lambda z: z.masked_fill(z.real > 0, 1 + 1j),
    "clone, to": lambda z: z.clone().to(torch.complex128).to(torch.complex64),
    "to complex": lambda z: z.real.to(torch.complex64) * z,
    "zeros_like": lambda z: torch.zeros_like(z) + torch.ones_like(z) * torch.full_like(z, 2 - 1j),
    "assignment": lambda z: torch.cat([z[..., :1] * 0, z[..., 1:]], -1),
    "assignment in place": lambda z: assigned(z),
    "fftshift": lambda z: torch.fft.ifftshift(torch.fft.fftshift(z, dim=(2, 3)), dim=3),
    "constants": lambda z: z * C + C.conj() * C.abs() + (C * C).sum(),
    "linear map and back": lambda z: torch.fft.ifft(torch.fft.fft(z, dim=1) * C.t()[None, None, :4, :1], dim=1),
    "a purely imaginary transform": lambda z: torch.fft.fft(1j * z.real),
}


def assigned(z: Tensor) -> Tensor:
    z = z.clone()
    z[..., 0] = 0
    return z


@pytest.mark.parametrize("rule", RULES)
def test_complex_rule(rule: str) -> None:
    x = torch.randn(2, 3, 4, 5, 2, generator=torch.Generator().manual_seed(0))
    apply(lambda r: RULES[rule](complex_input(r)), x)
