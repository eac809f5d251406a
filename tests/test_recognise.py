"""Fused ops in other spellings are recognised by numbers, copies are dropped, and missed centres are explained."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from authors.affnet import AFNO2DChannelFirst
from authors.casvit import AdditiveTokenMixer
from authors.efficientvim import HSMSSD
from support.formula import Formula
from support.rewriting import apply, reasons
from torch import Tensor, nn

from edgesmith.exporters.graph.capture import run
from edgesmith.exporters.rewrites.fuse import centre_of
from edgesmith.exporters.rewrites.order import KEEPING, ORDER
from edgesmith.kernels.op import all_ops

X = torch.randn(1, 16, 6, 8, generator=torch.Generator().manual_seed(0))


def filter_of(**changes: Callable[[Tensor], Tensor] | float) -> nn.Module:
    torch.manual_seed(0)
    model = AFNO2DChannelFirst(16, num_blocks=2, **{k: v for k, v in changes.items() if k == "threshold"})  # type: ignore[arg-type]  # a float
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.4)
    if "act" in changes:
        model.act = Formula(changes["act"])  # type: ignore[assignment, arg-type]  # a module of it
    return model


class Halves(nn.Module):
    """The filter with complex weights, its real and imaginary biases apart, and a product of complex numbers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.w1 = nn.Parameter(0.4 * torch.randn(2, 8, 8, dtype=torch.complex64))
        self.b1 = nn.Parameter(0.4 * torch.randn(2, 8, dtype=torch.complex64))
        self.w2 = nn.Parameter(0.4 * torch.randn(2, 8, 8, dtype=torch.complex64))
        self.b2 = nn.Parameter(0.4 * torch.randn(2, 8, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft2(x, norm="ortho")
        value = spectrum.unflatten(1, (2, 8)).permute(0, 3, 4, 1, 2).unsqueeze(-2)  # [B, H, F, k, 1, I]
        value = (value @ self.w1).squeeze(-2) + self.b1
        value = torch.complex(F.silu(value.real), F.silu(value.imag))
        value = (value.unsqueeze(-2) @ self.w2).squeeze(-2) + self.b2
        value = torch.complex(F.softshrink(value.real, 0.25), F.softshrink(value.imag, 0.25))
        mask = value.flatten(3).permute(0, 3, 1, 2)
        return torch.fft.irfft2(spectrum * mask, s=x.shape[-2:], norm="ortho")


class OverAxes(Halves):
    """The same with transforms over two of any axes."""

    def forward(self, x: Tensor) -> Tensor:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.fft, "rfft2", lambda x, norm: torch.fft.rfftn(x, dim=(2, 3), norm=norm))
            inverse = torch.fft.irfftn
            patch.setattr(torch.fft, "irfft2", lambda x, s, norm: inverse(x, s=s, dim=(2, 3), norm=norm))
            return super().forward(x)


@pytest.mark.parametrize(
    "model", [filter_of(), filter_of(threshold=0.3), Halves(), OverAxes()], ids=["plain", "shrinks", "complex", "axes"]
)
def test_a_filter_in_another_spelling_becomes_the_op(model: nn.Module) -> None:
    program, reports, counts = apply(model, X, tolerance=2e-6)
    assert counts.get("edgesmith.fft_filter") == 1, reasons(reports["recognise"])
    assert not {"aten.fft_rfft2", "aten.einsum", "aten.matmul"} & set(counts)
    assert run(program, (X,))[0].shape == X.shape


def test_a_filter_with_a_free_batch_becomes_the_op() -> None:
    program, _, counts = apply(filter_of(), X.repeat(2, 1, 1, 1), tolerance=2e-6, dynamic_batch=True)
    assert counts["edgesmith.fft_filter"] == 1
    assert run(program, (X.repeat(3, 1, 1, 1),))[0].shape[0] == 3


@pytest.mark.parametrize(
    "act", [F.gelu, lambda x: F.silu(x.clamp(max=40)), lambda x: F.silu(x) + 1e-6], ids=["gelu", "clamped", "shifted"]
)
def test_a_filter_with_other_numbers_is_left_and_says_so(act: Callable[[Tensor], Tensor]) -> None:
    _, reports, counts = apply(filter_of(act=act), X)
    assert "edgesmith.fft_filter" not in counts
    assert "computes other numbers with them" in reasons(reports["recognise"])
    assert reports["fuse_fft_filter"].rejected


def test_a_filter_of_which_a_value_is_read_elsewhere_is_left() -> None:
    class Shared(Halves):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]  # one output more
            spectrum = torch.fft.rfft2(x, norm="ortho")
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(torch.fft, "rfft2", lambda *_, **__: spectrum)
                return super().forward(x), spectrum.abs()

    _, reports, counts = apply(Shared(), X)
    assert "edgesmith.fft_filter" not in counts
    assert "is also read by abs_1, outside the site" in reasons(reports["recognise"])


# centres


def test_every_pattern_has_a_centre_and_its_own_graph_has_it() -> None:
    for op in all_ops().values():
        if op.is_pattern and op.name != "channel_norm":  # whose parts every graph has; its rewrite has near misses
            assert centre_of(op), op.name


def _unlike(x: Tensor) -> Tensor:
    spectrum = torch.fft.rfft2(x)
    parts = torch.cat((spectrum.real, spectrum.imag), dim=1).relu()
    return torch.fft.irfft2(torch.complex(*parts.chunk(2, dim=1)), s=x.shape[-2:])


class Minus(AdditiveTokenMixer):
    """Additive attention that subtracts."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=1)
        return F.relu(self.proj(F.relu(self.dwc(self.oper_q(q) + self.oper_k(k) + x)) * v))


class Bounded(HSMSSD):
    """A hidden state that is bounded, and no gate."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]  # one output
        b, c, dt = self.dw(self.BCdt_proj(x).view(1, -1, 4, 4)).flatten(2).chunk(3, 1)
        h = x @ (dt.softmax(-1) * b).transpose(1, 2)
        return torch.tanh(self.out_proj(h)) @ c


@pytest.mark.parametrize(
    ("name", "model", "x"),
    [
        ("fft_filter", Formula(_unlike), X),
        ("additive_attention", Minus(8), torch.randn(1, 8, 6, 6)),
        ("hidden_state_mixer", Bounded(8, 4), torch.randn(1, 8, 16)),
    ],
    ids=["fft_filter", "additive_attention", "hidden_state_mixer"],
)
def test_a_centre_that_is_no_site_is_one_near_miss_with_the_first_difference(
    name: str, model: nn.Module, x: Tensor
) -> None:
    _, reports, counts = apply(model, x)
    assert f"edgesmith.{name}" not in counts
    (rejection,) = reports[f"fuse_{name}"].rejected
    assert "the reference has" in rejection.reason
    assert "where the graph has" in rejection.reason


def test_graphs_without_a_centre_have_no_near_miss() -> None:
    class SqueezeExcite(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.gate, self.last = nn.Conv2d(8, 8, 3, 1, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.last(self.first(x).relu())
            return (x + y * torch.sigmoid(self.gate(y.mean((2, 3), keepdim=True)))).relu()

    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, activation=F.silu)
    for model, x in (
        (nn.Sequential(SqueezeExcite(), SqueezeExcite()), torch.randn(1, 8, 6, 6)),
        (layer, torch.randn(1, 5, 16)),
        (Formula(lambda x: torch.fft.rfft2(x).abs()), X),
    ):
        _, reports, _ = apply(model, x)
        assert not [r for name, report in reports.items() if name.startswith("fuse_a") for r in report.rejected]
        assert not [r for name, report in reports.items() if name.startswith("fuse_f") for r in report.rejected]


def test_a_memory_with_a_computed_spectrum_says_so() -> None:
    model = Formula(lambda x: torch.fft.irfft(torch.fft.rfft(x) * torch.sigmoid(x.mean()), n=x.shape[-1]))
    _, reports, _ = apply(model, X)
    assert "more than a multiply by a constant spectrum" in reasons(reports["find_memory"])


# copies


def test_copies_are_dropped_and_a_copied_input_that_is_returned_is_not() -> None:
    def copies(x: Tensor) -> tuple[Tensor, Tensor]:
        y = x.relu().detach().clone().float().contiguous().expand(1, 16, 6, 8).reshape(1, 16, 6, 8)
        return y + 1, x.clone()

    _, reports, counts = apply(Formula(copies), X)  # type: ignore[arg-type]  # two outputs
    assert counts == {"aten.relu": 1, "aten.add": 1, "aten.clone": 1}
    assert len(reports["drop_copies"].applied) >= 4


def test_what_changes_type_or_shape_is_no_copy() -> None:
    program, reports, _ = apply(Formula(lambda x: x.half().float() + x.expand(2, 16, 6, 8)), X)
    assert not reports["drop_copies"].applied
    assert not torch.equal(run(program, (X,))[0], 2 * X.expand(2, 16, 6, 8))


def test_find_memory_runs_before_any_constant_is_dropped() -> None:
    first = [rule.name for rule in ORDER].index("find_memory")
    assert {rule.name for rule in ORDER[:first]} == KEEPING
