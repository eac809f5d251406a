"""Rewrites around layers: norms that are spelled out, flattenings, shifts, residuals, scales, and sums of heads.

Each fires, leaves the nearest wrong graph alone and says why, keeps the numbers, and is idempotent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from support.lowering import lower
from support.rewriting import DEAR_COPIES, apply, reasons
from torch import Tensor, nn
from torch.fx import Node

import edgesmith
from edgesmith.exporters import targets
from edgesmith.exporters.graph.capture import capture, run
from edgesmith.exporters.graph.edit import count_operators
from edgesmith.exporters.rewrites.order import rewrite
from edgesmith.kernels import channel_norm, hidden_state_mixer
from edgesmith.models.efficientvim import ChannelNorm, EfficientViM, HiddenStateMixer


class Do(nn.Module):
    """A function of one input and of named parameters, given by position after it."""

    def __init__(self, function: Callable[..., object], **parameters: Tensor | nn.Module) -> None:
        super().__init__()
        self.function, self.names = function, list(parameters)
        for name, value in parameters.items():
            setattr(self, name, nn.Parameter(value, requires_grad=False) if isinstance(value, Tensor) else value)

    def forward(self, x: Tensor) -> object:
        return self.function(x, *(getattr(self, name) for name in self.names))


# fuse_channel_norm


def centred(x: Tensor, axis: int = 1) -> Tensor:
    return x - x.mean(axis, keepdim=True)


def by_division(x: Tensor, axis: int, eps: float) -> Tensor:
    y = centred(x, axis)
    return y / torch.sqrt((y * y).mean(axis, keepdim=True) + eps)


def by_power(x: Tensor, axis: int, eps: float) -> Tensor:
    return centred(x, axis) / ((centred(x, axis) ** 2).mean(axis, keepdim=True) + eps) ** 0.5


def by_variance(x: Tensor, axis: int, eps: float) -> Tensor:
    return (x - x.mean(dim=axis, keepdim=True)) / torch.sqrt(x.var(dim=axis, keepdim=True, unbiased=False) + eps)


def by_rsqrt(x: Tensor, axis: int, eps: float) -> Tensor:
    mean = x.mean(axis, True)
    return torch.rsqrt(torch.var(x, axis, correction=0, keepdim=True) + eps) * (x - mean)


def by_square(x: Tensor, axis: int, eps: float) -> Tensor:
    return (x - x.mean(axis, True)) * (torch.square(centred(x, axis)).mean(axis, True) + eps) ** -0.5


SPELLINGS = (by_division, by_power, by_variance, by_rsqrt, by_square)


class Norms(nn.Module):
    """One norm an entry: (spelling, shape, axis, eps, scaled, shifted), inputs in the order of the entries."""

    def __init__(self, entries: Iterable[tuple[int, tuple[int, ...], int, float, bool, bool]]) -> None:
        super().__init__()
        self.entries = list(entries)
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        for _, shape, axis, _, _, _ in self.entries:
            size = [shape[axis], *[1] * (len(shape) - 1 - axis)]
            self.weights.append(torch.randn(size))
            self.biases.append(torch.randn(size))

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        outputs = []
        for i, (spelling, _, axis, eps, scaled, shifted) in enumerate(self.entries):
            y = SPELLINGS[spelling](inputs[i], axis, eps)
            y = y * self.weights[i] if scaled else y
            outputs.append(self.biases[i] + y if shifted else y)
        return outputs


NORM = st.tuples(
    st.integers(0, len(SPELLINGS) - 1),
    st.lists(st.integers(1, 5), min_size=0, max_size=2),
    st.integers(1, 3),
    st.integers(2, 9),
    st.sampled_from([1e-6, 1e-5, 1e-3]),
    st.booleans(),
    st.booleans(),
)


@pytest.mark.slow
@given(norms=st.lists(NORM, min_size=10, max_size=10), seed=st.integers(0, 2**16))
@settings(max_examples=32)
def test_channel_norm_is_found_in_every_spelling_and_keeps_the_numbers(norms: list[tuple], seed: int) -> None:
    """Ten cases share one capture. A norm of [B, C] is over the last axis as well, and may be torch's own."""
    torch.manual_seed(seed)
    entries = [
        (spelling, (batch, channels, *places), 1, eps, scaled, shifted)
        for spelling, places, batch, channels, eps, scaled, shifted in norms
    ]
    inputs = [3 * torch.randn(entry[1]) + 1 for entry in entries]
    program = capture(Norms(entries).eval(), inputs)
    rewritten, _ = rewrite(program, DEAR_COPIES)
    counts = count_operators(rewritten.module)
    assert counts.keys() <= {"edgesmith.channel_norm", "aten.layer_norm"}
    assert sum(counts.values()) == len(entries)
    assert counts.get("aten.layer_norm", 0) <= sum(not places for _, places, *_ in norms)
    for y, z in zip(run(program, inputs), run(rewritten, inputs), strict=True):
        assert float((y - z).abs().max()) <= channel_norm.OP.tolerance * max(1.0, float(y.abs().max()))


@pytest.mark.parametrize("spelling", range(len(SPELLINGS)))
def test_a_norm_over_the_last_axis_becomes_torchs_own(spelling: int) -> None:
    _, _, counts = apply(Norms([(spelling, (2, 3, 5), 2, 1e-5, True, True)]), torch.randn(2, 3, 5))
    assert counts == {"aten.layer_norm": 1}


def test_a_layer_norm_between_permutations_becomes_a_channel_norm() -> None:
    model = Do(lambda x, norm: norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).relu(), norm=nn.LayerNorm(4, eps=1e-3))
    _, reports, counts = apply(model, torch.randn(2, 4, 3, 5))
    assert counts == {"edgesmith.channel_norm": 1, "aten.relu": 1}
    assert reports["fuse_channel_norm"].applied[0][0] == "norm"
    transposed = Do(lambda x, norm: norm(x.transpose(1, 2)).transpose(1, 2).relu(), norm=nn.LayerNorm(4))
    assert apply(transposed, torch.randn(2, 4, 3)).counts == {"edgesmith.channel_norm": 1, "aten.relu": 1}


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x: centred(x) / torch.sqrt(x.var(1, keepdim=True) + 1e-5), "unbiased"),
        (lambda x: centred(x) / (torch.sqrt((centred(x) ** 2).mean(1, True)) + 1e-5), "eps is added outside the root"),
        (lambda x: centred(x) / (x.std(1, keepdim=True) + 1e-5), "eps is added outside the root"),
        (lambda x: centred(x) / torch.sqrt((x * x).mean(1, True) + 1e-5), "no variance of it"),
        (lambda x: centred(x) / torch.sqrt((centred(x) ** 2).mean(2, True) + 1e-5), "over different axes"),
        (lambda x: by_division(x, 2, 1e-5), "it normalises axis 2 of 4"),
        (lambda x: centred(x) / torch.sqrt(centred(x.relu()).pow(2).mean(1, True) + 1e-5), "no variance of it"),
    ],
    ids=["unbiased", "outside", "std", "not centred", "axes", "axis 2", "another value"],
)
def test_what_is_nearly_a_channel_norm_stays_and_is_explained(
    function: Callable[[Tensor], Tensor], reason: str
) -> None:
    _, reports, counts = apply(Do(function), torch.randn(2, 4, 3, 5))
    assert not {"edgesmith.channel_norm", "aten.layer_norm"} & set(counts)
    assert reason in reasons(reports["fuse_channel_norm"])


def test_a_norm_whose_weight_varies_over_places_keeps_it_outside() -> None:
    model = Do(lambda x, w: by_division(x, 1, 1e-5) * w, w=torch.randn(4, 3, 5))
    _, _, counts = apply(model, torch.randn(2, 4, 3, 5))
    assert counts == {"edgesmith.channel_norm": 1, "aten.mul": 1}


def test_a_norm_whose_normalised_values_are_returned_too_keeps_its_weight_outside() -> None:
    def both(x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        y = by_division(x, 1, 1e-5)
        return y, y * w

    _, _, counts = apply(Do(both, w=torch.randn(4, 1, 1)), torch.randn(2, 4, 3, 5))
    assert counts == {"edgesmith.channel_norm": 1, "aten.mul": 1}


# lift_flatten


def test_a_chain_that_flattens_and_makes_maps_again_stays_a_chain_of_maps() -> None:
    model = Do(
        lambda x, norm, conv: F.relu(conv(norm(x.flatten(2)))).view(x.shape[0], -1, 3, 5),
        norm=ChannelNorm(4, axes=1),
        conv=nn.Conv1d(4, 6, 1, groups=2),
    )
    program, _, counts = apply(model, torch.randn(2, 4, 3, 5))
    assert counts == {"edgesmith.channel_norm": 1, "aten.conv2d": 1, "aten.relu": 1}
    assert "conv.weight" in {str(node.target) for node in program.module.graph.nodes if node.op == "get_attr"}
    program, _, dynamic = apply(model, torch.randn(2, 4, 3, 5), dynamic_batch=True)
    assert dynamic == counts
    x = torch.randn(5, 4, 3, 5)
    with torch.no_grad():
        assert torch.allclose(run(program, (x,))[0], model(x), atol=1e-5)


@pytest.mark.parametrize(
    "function",
    [
        lambda x, w: F.conv1d(x.flatten(2), w.expand(4, 4, 3)),
        lambda x, w: F.conv1d(x.flatten(2), w, padding=1),
        lambda x, w: F.conv1d(x.flatten(2), w, stride=2),
        lambda x, w: x.flatten(2).unflatten(2, (5, 3)) * w.unsqueeze(-1)[:, 0],
        lambda x, w: F.conv1d(x.flatten(2), x.flatten(2)[0, :, :4].unsqueeze(2)) + w[:, 0],
    ],
    ids=["kernel", "padding", "stride", "other sizes", "computed weight"],
)
def test_flattenings_that_matter_stay(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    _, reports, counts = apply(Do(function, w=torch.randn(4, 4, 1)), torch.randn(2, 4, 3, 5))
    assert counts["aten.flatten"] >= 1
    assert not reports["lift_flatten"].applied


# drop_shift


@pytest.mark.parametrize(
    "function",
    [
        lambda x, a: torch.softmax(x + a, 2),
        lambda x, a: torch.softmax(a + x, -1),
        lambda x, a: torch.softmax(x - a - 3, 2),
        lambda x, a: torch.softmax(2.5 + x, 1),
    ],
    ids=["sum", "swapped", "twice", "number"],
)
def test_a_shift_before_a_softmax_is_dropped(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    _, reports, counts = apply(Do(function, a=torch.randn(3, 1)), torch.randn(2, 3, 4))
    assert counts == {"aten.softmax": 1}
    assert reports["drop_shift"].applied


@pytest.mark.parametrize(
    "function",
    [
        lambda x, a: torch.softmax(x + a, 1),
        lambda x, a: torch.softmax(a - x, 2),
        lambda x, a: torch.softmax(x[:, :1] + a, 2),
        lambda x, a: torch.softmax(x + a / 0.0, 2),
    ],
    ids=["along the axis", "minus x", "grows", "infinite"],
)
def test_what_a_softmax_does_see_stays_and_is_explained(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    program = capture(Do(function, a=torch.tensor([[1.0], [2.0], [3.0]])).eval(), (torch.randn(2, 3, 4),))
    rewritten, reports = rewrite(program, DEAR_COPIES)
    assert sum(count_operators(rewritten.module).get(f"aten.{op}", 0) for op in ("add", "sub")) == 1
    (report,) = (report for report in reports if report.name == "drop_shift")
    assert not report.applied
    x = program.inputs
    assert torch.equal(run(program, x)[0].isnan(), run(rewritten, x)[0].isnan())


# fold_residual


@given(
    channels=st.integers(1, 4),
    groups=st.sampled_from(["depthwise", "dense"]),
    kernel=st.sampled_from([(1, 1), (3, 3), (3, 5)]),
    dilation=st.integers(1, 2),
    bias=st.booleans(),
    form=st.integers(0, 4),
    seed=st.integers(0, 99),
)
@settings(max_examples=40)
def test_a_residual_goes_into_any_kernel_that_keeps_places(
    channels: int, groups: str, kernel: tuple[int, int], dilation: int, bias: bool, form: int, seed: int
) -> None:
    torch.manual_seed(seed)
    padding = tuple(dilation * (k // 2) for k in kernel)
    conv = nn.Conv2d(
        channels, channels, kernel, 1, padding, dilation, channels if groups == "depthwise" else 1, bias=bias
    )
    forms: list[Callable[..., Tensor]] = [
        lambda x, conv, s, t: x + conv(x),
        lambda x, conv, s, t: conv(x) + s * x,
        lambda x, conv, s, t: s * x + t * conv(x),
        lambda x, conv, s, t: conv(x) / 4 + x * 2,
        lambda x, conv, s, t: (1 - s) * x + s * conv(x),
    ]
    scales = {"s": torch.rand(channels, 1, 1), "t": torch.randn(1, channels, 1, 1)}
    _, reports, counts = apply(Do(forms[form], conv=conv, **scales), torch.randn(2, channels, 6, 7))
    assert counts == {"aten.conv2d": 1}
    assert len(reports["fold_residual"].applied) == 1


@pytest.mark.parametrize(
    ("conv", "reason"),
    [
        (nn.Conv2d(4, 4, 2, padding=1, dilation=2, groups=4), "kernel [2, 2] have no centre"),
        (nn.Conv2d(4, 1, 1), "does not keep its input's shape"),
        (nn.Conv2d(4, 4, 3, stride=(2, 1), padding=(4, 1), groups=4), "stride [2, 1]"),  # 6 rows, but not the same ones
        (nn.Conv2d(4, 4, 3, padding=(2, 1), dilation=(2, 1), padding_mode="circular"), ""),
    ],
    ids=["even", "broadcast", "strided", "circular"],
)
def test_residuals_around_other_convolutions_stay_and_are_explained(conv: nn.Module, reason: str) -> None:
    _, reports, counts = apply(Do(lambda x, conv: x + conv(x), conv=conv), torch.randn(2, 4, 6, 6))
    assert counts["aten.add"] == 1
    assert reason in reasons(reports["fold_residual"])
    assert not reports["fold_residual"].applied


def test_a_residual_of_a_convolution_that_is_returned_too_stays() -> None:
    def both(x: Tensor, conv: nn.Module) -> tuple[Tensor, Tensor]:
        y = conv(x)
        return y, x + y

    _, reports, counts = apply(Do(both, conv=nn.Conv2d(4, 4, 1)), torch.randn(1, 4, 6, 6))
    assert counts == {"aten.conv2d": 1, "aten.add": 1}
    assert "not by the sum alone" in reasons(reports["fold_residual"])


# fold_affine


@given(
    channels=st.integers(1, 4),
    kernel=st.sampled_from([1, 3]),
    bias=st.booleans(),
    form=st.integers(0, 7),
    seed=st.integers(0, 99),
)
@settings(max_examples=40)
def test_constants_a_channel_go_into_the_layers_around_them(
    channels: int, kernel: int, bias: bool, form: int, seed: int
) -> None:
    torch.manual_seed(seed)
    conv = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, bias=bias)
    other = nn.Conv2d(channels, 3, 1, bias=bias)
    forms: list[Callable[..., Tensor]] = [
        lambda x, conv, other, s, c: s * conv(x) + c,
        lambda x, conv, other, s, c: (conv(x) - c) / s * 0.5,
        lambda x, conv, other, s, c: conv(x.relu() * s),
        lambda x, conv, other, s, c: other(s * x.relu() + c),
        lambda x, conv, other, s, c: other(c + s * (2 * x.relu())),
        lambda x, conv, other, s, c: s * (y := conv(x)) + other(y).relu().mean(1, keepdim=True),
        lambda x, conv, other, s, c: other(s * x.relu() + c * conv(x)),
        lambda x, conv, other, s, c: other((s * x.relu()).mean((2, 3), keepdim=True)),
    ]
    scales = {"s": 0.5 + torch.rand(channels, 1, 1), "c": torch.randn(1, channels, 1, 1)}
    _, reports, counts = apply(Do(forms[form], conv=conv, other=other, **scales), torch.randn(2, channels, 5, 6))
    assert "aten.mul" not in counts
    assert "aten.div" not in counts
    assert "aten.sub" not in counts
    assert counts.get("aten.add", 0) == (1 if form in (5, 6) else 0)
    assert reports["fold_affine"].applied


def test_scales_around_linear_layers_fold() -> None:
    model = Do(lambda x, a, s: (s * a(x) + s).relu(), a=nn.Linear(4, 6), s=torch.randn(6))  # the last axis of [B, N, 4]
    assert apply(model, torch.randn(2, 3, 4)).counts == {"aten.linear": 1, "aten.relu": 1}
    model = Do(lambda x, a, s: a(x * s), a=nn.Linear(4, 6), s=torch.randn(4))
    assert apply(model, torch.randn(2, 4)).counts == {"aten.linear": 1}
    model = Do(lambda x, a: a(x) * 0.125, a=nn.Linear(4, 6))
    assert apply(model, torch.randn(2, 3, 4)).counts == {"aten.linear": 1}


def test_a_scale_after_a_product_goes_into_its_left_factor() -> None:
    def product(x: Tensor, conv: nn.Module, s: Tensor) -> Tensor:
        return (s * (conv(x) @ x.transpose(1, 2)).unflatten(2, (2, 2))).relu()

    model = Do(product, conv=nn.Conv1d(4, 6, 1), s=torch.rand(6, 1, 1))
    _, _, counts = apply(model, torch.randn(2, 4, 5))
    assert "aten.mul" not in counts


def test_a_scale_moves_to_the_smaller_side_of_a_fork() -> None:
    def fork(x: Tensor, conv: nn.Module, s: Tensor) -> tuple[Tensor, Tensor]:
        h = conv(x[:, :, :2])
        return s * (h @ x[:, :2].reshape(2, 2, -1)), h.relu()

    model = Do(fork, conv=nn.Conv1d(4, 6, 1), s=0.5 + torch.rand(6, 1))
    program, _, counts = apply(model, torch.randn(2, 4, 9))
    (product,) = (n for n in program.module.graph.nodes if n.target is torch.ops.aten.mul.Tensor)
    assert tuple(product.meta["val"].shape) == (2, 6, 2)
    assert counts["aten.mul"] == 1


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x, conv, s: (conv(x) * s, conv(x).relu()), ""),
        (lambda x, conv, s: s * (y := conv(x)) + y.relu(), "is also read by"),
        (lambda x, conv, s: conv(x) * s[:, :, :1].expand(4, 6, 6), "None"),
        (lambda x, conv, s: F.conv2d(x + s, torch.cat((conv.weight, conv.weight)), padding=1), "pads with zeros"),
        (lambda x, conv, s: F.conv2d(x + s, conv.weight.repeat(2, 1, 1, 1), padding=(0, 1)), "pads with zeros"),
        (lambda x, conv, s: 1000 * (y := conv(x)) + conv(y).relu(), "leaves 0.015625 .. 64"),
        (lambda x, conv, s: conv(x) / torch.zeros(1), "None"),
    ],
    ids=["two calls", "fork", "over places", "padding", "padding across", "beyond half precision", "division by zero"],
)
def test_scales_that_cannot_be_folded_stay_and_are_explained(function: Callable[..., object], reason: str) -> None:
    torch.manual_seed(0)
    model = Do(function, conv=nn.Conv2d(4, 4, 3, padding=1), s=torch.rand(4, 1, 1))
    program = capture(model.eval(), (torch.randn(2, 4, 6, 6),))
    rewritten, reports = rewrite(program, DEAR_COPIES)
    counts = count_operators(rewritten.module)
    (report,) = (report for report in reports if report.name == "fold_affine")
    for y, z in zip(run(program, program.inputs), run(rewritten, program.inputs), strict=True):
        assert torch.allclose(y, z, rtol=1e-4, atol=1e-4, equal_nan=True)
    if reason:
        assert sum(counts.get(f"aten.{op}", 0) for op in ("mul", "div", "add")) >= 1
    if reason not in ("", "None"):
        assert reason in reasons(report)


def test_a_layer_scale_leaves_no_products() -> None:
    """x <- (1 - a) x + a f(x), three times, as EfficientViM has it, in an order that forks and joins."""

    def scaled(x: Tensor, dw: nn.Module, fc1: nn.Module, fc2: nn.Module, last: nn.Module, alpha: Tensor) -> Tensor:
        a, b = torch.sigmoid(alpha).unbind()
        x = (1 - a) * x + a * dw(x)
        x = (1 - b) * x + b * fc2(fc1(x).relu())
        return last(x)

    model = Do(
        scaled,
        dw=nn.Conv2d(4, 4, 3, padding=1, groups=4),
        fc1=nn.Conv2d(4, 8, 1),
        fc2=nn.Conv2d(8, 4, 1),
        last=nn.Conv2d(4, 2, 3),
        alpha=torch.randn(2, 4, 1, 1),
    )
    assert apply(model, torch.randn(2, 4, 6, 7)).counts == {"aten.conv2d": 4, "aten.relu": 1, "aten.add": 1}


# concat_linears


@given(
    widths=st.lists(st.integers(1, 5), min_size=2, max_size=5),
    batch=st.lists(st.integers(1, 3), min_size=1, max_size=2),
    bias=st.booleans(),
    twice=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=25)
def test_weighted_heads_of_several_inputs_are_one_layer(
    widths: list[int], batch: list[int], bias: bool, twice: bool, seed: int
) -> None:
    torch.manual_seed(seed)

    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights = nn.Parameter(torch.randn(2, len(widths)))
            self.a = nn.ModuleList(nn.Linear(w, 7, bias=bias) for w in widths)
            self.b = nn.ModuleList(nn.Linear(w, 7) for w in widths)

        def forward(self, *xs: Tensor) -> Tensor:
            first, second = self.weights.softmax(1).unbind()
            y = sum(w * head(x) for w, head, x in zip(first.unbind(), self.a, xs, strict=True))
            if not twice:
                return y
            return (y + sum(w * head(x) for w, head, x in zip(second.unbind(), self.b, xs, strict=True))) / 2

    _, _, counts = apply(Heads(), *(torch.randn(*batch, w) for w in widths))
    assert counts["aten.linear"] == 1
    assert counts["aten.cat"] == 1
    assert set(counts) == {"aten.linear", "aten.cat"}


def test_heads_that_are_returned_too_stay_and_are_explained() -> None:
    def heads(x: Tensor, a: nn.Module, b: nn.Module) -> tuple[Tensor, Tensor]:
        y = a(x)
        return y, y + b(x.relu())

    _, reports, counts = apply(Do(heads, a=nn.Linear(4, 3), b=nn.Linear(4, 3)), torch.randn(2, 4))
    assert counts["aten.linear"] == 2
    assert "not by the sum alone" in reasons(reports["concat_linears"])


def test_a_head_that_is_broadcast_stays_and_is_explained() -> None:
    model = Do(lambda x, a, b: a(x) + b(x.mean(0)), a=nn.Linear(4, 3), b=nn.Linear(4, 3))
    _, reports, counts = apply(model, torch.randn(2, 4))
    assert counts["aten.linear"] == 2
    assert "b is broadcast" in reasons(reports["concat_linears"])


# compose_layers


class Pair(nn.Module):
    """Two convolutions after each other, and beside what goes between them a wider constant map, before or after it."""

    def __init__(
        self,
        widths: tuple[int, int, int, int],
        kernels: tuple[int, int],
        stride: int,
        padding: int,
        biases: tuple[bool, bool],
        beside: str,
        axes: int,
    ) -> None:
        super().__init__()
        inside, middle, out, self.more = widths
        self.beside = beside
        conv = nn.Conv1d if axes == 1 else nn.Conv2d
        settings = [{"stride": stride, "padding": padding} if k > 1 else {} for k in kernels]
        self.first = conv(inside, middle, kernels[0], bias=biases[0], **settings[0])
        self.second = conv(middle + self.more * (beside != "nothing"), out, kernels[1], bias=biases[1], **settings[1])

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        z = x.mean() * torch.ones(2, self.more, *y.shape[2:])
        return self.second({"nothing": y, "before": torch.cat((z, y), 1), "after": torch.cat((y, z), 1)}[self.beside])


PAIR = st.fixed_dictionaries(
    {
        "widths": st.tuples(*[st.integers(1, 6)] * 4),
        "kernels": st.sampled_from([(1, 1), (1, 3), (3, 1)]),
        "stride": st.integers(1, 2),
        "padding": st.integers(0, 1),
        "biases": st.tuples(st.booleans(), st.booleans()),
        "beside": st.sampled_from(["nothing", "before", "after"]),
        "axes": st.integers(1, 2),
    }
)


class Beside(nn.Module):
    """Modules beside each other, each of an input of its own."""

    def __init__(self, parts: Iterable[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(part(x) for part, x in zip(self.parts, inputs, strict=True))


@given(cases=st.lists(PAIR, min_size=6, max_size=6), seed=st.integers(0, 99))
@settings(max_examples=50)
def test_two_convolutions_with_nothing_between_are_one_where_that_multiplies_no_more(
    cases: list[dict[str, Any]], seed: int
) -> None:
    """300 pairs, six of them in one capture."""
    torch.manual_seed(seed)
    pairs = [Pair(**case) for case in cases]
    inputs = [torch.randn(2, case["widths"][0], *[7, 6][: case["axes"]]) for case in cases]
    program, reports, _ = apply(Beside(pairs), *inputs)
    left = [len(_convolutions_before(output)) for output in program.module.graph.output_node().all_input_nodes]
    composed = {site.split(",")[0] for site, _ in reports["compose_layers"].applied}
    padded = [one.site for one in reports["compose_layers"].rejected if "pads with zeros" in one.reason]
    for i, (case, pair, x) in enumerate(zip(cases, pairs, inputs, strict=True)):
        (inside, middle, out, _), kernels, axes = case["widths"], case["kernels"], case["axes"]
        made = pair.first(x)
        maps = (made, pair.second(torch.ones(2, pair.second.in_channels, *made.shape[2:])))
        places = [y[0, 0].numel() for y in maps]
        apart = middle * (inside * kernels[0] ** axes * places[0] + out * kernels[1] ** axes * places[1])
        is_near = inside * out * max(kernels) ** axes * places[1] <= apart
        if case["beside"] != "nothing":  # copies are dear here, and a wide input would be copied
            is_near = is_near and kernels[0] == 1 and inside <= middle
        is_blocked = case["biases"][0] and case["padding"] > 0 and kernels[1] > 1
        assert left[i] == (1 if is_near and not is_blocked else 2)
        assert (f"parts.{i}.first" in composed) == (left[i] == 1)
        assert any(f"parts.{i}." in site for site in padded) == (is_near and is_blocked)


def _convolutions_before(node: Node) -> set[Node]:
    """Return the convolutions that a value depends on."""
    seen, left = set(), [node]
    while left:
        one = left.pop()
        if one not in seen:
            seen.add(one)
            left += one.all_input_nodes
    return {one for one in seen if one.op == "call_function" and "conv" in str(one.target)}


def test_chains_of_layers_are_one_layer() -> None:
    convs = nn.Sequential(nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 3, stride=2), nn.Conv2d(6, 6, 1))
    linears = nn.Sequential(nn.Linear(6, 9), nn.Linear(9, 4), nn.Linear(4, 4))
    model = Do(lambda x, convs, linears: linears(convs(x).movedim(1, -1)), convs=convs, linears=linears)
    _, reports, counts = apply(model, torch.randn(2, 6, 5, 5))
    assert (counts["aten.conv2d"], counts["aten.linear"]) == (1, 1)
    assert [site for site, _ in reports["compose_layers"].applied] == [
        "convs.0, convs.1",
        "convs.1, convs.2",
        "linears.0, linears.1",
        "linears.1, linears.2",
    ]


def test_a_fusion_takes_every_projection_that_it_concatenates() -> None:
    def fusion(x: Tensor, a: nn.Module, b: nn.Module, fuse: nn.Module) -> Tensor:
        return fuse(torch.cat((a(x), x, b(x.relu())), 1))

    layers = {"a": nn.Conv2d(3, 5, 1), "b": nn.Conv2d(3, 7, 1), "fuse": nn.Conv2d(15, 4, 3, stride=2)}
    _, _, counts = apply(Do(fusion, **layers), torch.randn(2, 3, 5, 5))
    assert counts == {"aten.conv2d": 1, "aten.cat": 1, "aten.relu": 1}


def test_a_layer_takes_those_before_it_until_none_is_left() -> None:
    model = nn.Sequential(nn.Linear(8, 2), nn.Linear(2, 8), nn.Linear(8, 1))
    assert apply(model, torch.randn(3, 8)).counts == {"aten.linear": 1}
    layers = {"a": nn.Conv2d(3, 5, 1), "b": nn.Conv2d(5, 7, 1), "fuse": nn.Conv2d(10, 1, 1)}
    model = Do(lambda x, a, b, fuse: fuse(torch.cat((b(a(x)), x), 1)), **layers)
    assert apply(model, torch.randn(2, 3, 5, 5)).counts == {"aten.conv2d": 1, "aten.cat": 1}


def test_a_projection_before_a_concatenation_stays_where_that_would_copy_more_than_is_saved() -> None:
    layers = {"a": nn.Conv2d(256, 64, 1), "fuse": nn.Conv2d(80, 85, 1)}
    model = Do(lambda x, a, fuse: fuse(torch.cat((a(x), x[:, :16]), 1)), **layers).eval()
    program = capture(model, (torch.randn(1, 256, 64, 64),))
    for costs, count in ((targets.get("onnx").costs, 2), (targets.get("coreml").costs, 1)):
        rewritten, _ = rewrite(program, costs)
        assert count_operators(rewritten.module)["aten.conv2d"] == count


def test_weights_that_would_leave_their_type_stay_apart() -> None:
    convs = [nn.Conv2d(8, 8, 1, bias=False) for _ in range(2)]
    for conv in convs:
        nn.init.constant_(conv.weight, 200)
    model = nn.Sequential(*convs).half()
    _, reports, counts = apply(model, 1e-3 * torch.randn(1, 8, 3, 3).half())
    assert counts["aten.conv2d"] == 2
    assert "leaves the range of torch.float16" in reasons(reports["compose_layers"])


def test_layers_that_narrow_on_the_way_stay() -> None:
    model = nn.Sequential(nn.Conv2d(16, 2, 1), nn.Conv2d(2, 16, 1), nn.Flatten(2), nn.Linear(16, 2), nn.Linear(2, 16))
    _, reports, counts = apply(model, torch.randn(2, 16, 4, 4))
    assert (counts["aten.conv2d"], counts["aten.linear"]) == (2, 2)
    assert (reports["compose_layers"].applied, reports["compose_layers"].rejected) == ((), ())


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x, a, b: (b(y := a(x)), y), "is read by"),
        (lambda x, a, b: (b(y := a(x)), y.relu()), "is read by"),
        (lambda x, a, b: F.conv2d(torch.cat((y := a(x), y), 1), b.weight.repeat(1, 2, 1, 1)), "twice"),
        (lambda x, a, b: F.conv2d(a(x), b.weight * x.mean()), None),  # computed weights
        (lambda x, a, b: F.conv2d(a(x), b.weight[:, :1].contiguous(), groups=4), None),
        (lambda x, a, b: b(torch.cat((a(x), a(x.relu())), 3)), None),  # another axis
        (lambda x, a, b: b(a(x[0])), None),  # no batch
        (lambda x, a, b: b(torch.cat((torch.zeros(0), a(x)), 1)), None),  # an empty vector, which torch lets pass
        (lambda x, a, b: b(a(x[:, x[0, :, 0, 0] > -9][..., x[0, 0, 0] > -9])), None),  # sizes depend on the data
    ],
    ids=["returned", "read", "read twice", "computed", "groups", "axis", "no batch", "empty", "data"],
)
def test_pairs_of_layers_that_cannot_be_one_stay_and_near_misses_are_explained(
    function: Callable[..., object], reason: str | None
) -> None:
    model = Do(function, a=nn.Conv2d(4, 4, 1), b=nn.Conv2d(4, 4, 1))
    _, reports, _ = apply(model, torch.randn(1, 4, 3, 4))
    report = reports["compose_layers"]
    assert not report.applied
    assert (reason in reasons(report)) if reason else not report.rejected


# fuse_hidden_state_mixer


class Mixers(nn.Module):
    """One mixer an entry: (width, states), on inputs in their order; with `hidden`, their hidden states as well."""

    def __init__(self, entries: Iterable[tuple[int, int]], hidden: bool) -> None:
        super().__init__()
        self.mixers = nn.ModuleList(HiddenStateMixer(width, states) for width, states in entries)
        self.hidden = hidden

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        outputs = []
        for mixer, x in zip(self.mixers, inputs, strict=True):
            y, h = mixer(x.flatten(2), x.shape[2], x.shape[3])
            outputs += [y, h] if self.hidden else [y]
        return outputs


MIXER = st.tuples(*(st.sampled_from(sizes) for sizes in ((1, 3, 8), (1, 2, 5), (1, 2), (1, 2, 5), (1, 4))))  # D S B H W


@pytest.mark.slow
@given(mixers=st.lists(MIXER, min_size=5, max_size=5), hidden=st.booleans(), seed=st.integers(0, 2**16))
@settings(max_examples=62)
def test_every_hidden_state_mixer_is_found_and_keeps_the_numbers(
    mixers: list[tuple[int, ...]], hidden: bool, seed: int
) -> None:
    """Five cases share one capture."""
    torch.manual_seed(seed)
    model = Mixers([entry[:2] for entry in mixers], hidden).eval()
    inputs = [torch.randn(batch, width, height, across) for width, _, batch, height, across in mixers]
    program = capture(model, inputs)
    rewritten, _ = rewrite(program, DEAR_COPIES)
    assert count_operators(rewritten.module) == {"edgesmith.hidden_state_mixer": len(mixers)}
    for y, z in zip(run(program, inputs), run(rewritten, inputs), strict=True):
        assert float((y - z).abs().max()) <= hidden_state_mixer.OP.tolerance * float(y.abs().max()) + 1e-7


@pytest.mark.parametrize("batch", [1, 3])
def test_mixers_and_norms_of_many_shapes_in_onnx_runtime(batch: int, tmp_path: Path) -> None:
    torch.manual_seed(batch)
    entries = [(4, 1, 3, 5), (6, 5, 1, 1), (16, 16, 2, 7), (33, 11, 4, 4), (1, 2, 1, 6)]
    mixers = Mixers([entry[:2] for entry in entries], hidden=True)
    norms = Norms([(0, (batch, d, h, w), 1, 1e-3, True, True) for d, _, h, w in entries])

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norms, self.mixers = norms, mixers

        def forward(self, *inputs: Tensor) -> list[Tensor]:
            return self.mixers(*self.norms(*inputs))

    inputs = [torch.randn(batch, d, h, w) for d, _, h, w in entries]
    program = capture(Both().eval(), inputs, [f"x{i}" for i in range(len(inputs))])
    rewritten, _ = rewrite(program, DEAR_COPIES)
    assert count_operators(rewritten.module) == {"edgesmith.hidden_state_mixer": 5, "edgesmith.channel_norm": 5}
    file = lower("onnx", rewritten, tmp_path / "both.onnx")
    file.check()
    outputs = file.run([[x.numpy() for x in inputs]])
    assert isinstance(outputs, list)
    for y, z in zip(run(program, inputs), outputs[0], strict=True):
        assert np.abs(y.numpy() - z).max() <= 1e-5 * float(y.abs().max()) + 1e-6


class NearMixer(HiddenStateMixer):
    """A mixer with one thing changed."""

    def __init__(self, change: str) -> None:
        super().__init__(6, 4)
        self.change = change
        if change == "kernel":
            self.dw.conv = nn.Conv2d(12, 12, 5, padding=2, groups=12, bias=False)
        if change == "dilation":
            self.dw.conv = nn.Conv2d(12, 12, 3, padding=2, dilation=2, groups=12, bias=False)
        if change == "bias":
            self.out_proj.conv = nn.Conv1d(6, 6, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        height, width = x.shape[2:]
        flat = x.flatten(2)
        projected = self.dw(self.BCdt_proj(flat).unflatten(2, (height, width))).flatten(2)
        b, c, dt = projected.chunk(3, dim=1)
        if self.change == "order":
            b, dt = dt, b
        if self.change == "decay":  # the axis that A is about: a real mixer would be another one
            dt = dt * self.A.unsqueeze(1)
        a = (dt + self.A.unsqueeze(1)).softmax(dim=1 if self.change == "axis" else 2)
        h = flat @ (a * b).transpose(1, 2)
        written = h
        h, z = self.hz_proj(h).chunk(2, dim=1)
        if self.change == "swap":
            h, z = z, h
        gate = F.gelu(z) if self.change == "gelu" else F.silu(z)
        h = self.out_proj(h * gate + h * self.D)
        if self.change == "shape":
            return ((h @ c).unflatten(2, (width, height)),)
        y = (h @ c).unflatten(2, (height, width))
        return (y, written) if self.change == "escape" else (y, h)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("kernel", "local must be [12, 1, 3, 3], got [12, 1, 5, 5]"),
        ("dilation", "aten.conv2d's padding: the reference has [1, 1] where the graph has [2, 2]"),
        ("bias", "aten.conv1d's bias"),
        ("order", "the reference has 2 where the graph has 0"),
        ("decay", "the reference has"),
        ("axis", "the reference has getitem where the graph has aten.add"),
        ("swap", "the reference has 0 where the graph has 1"),
        ("gelu", "the reference has aten.silu where the graph has aten.gelu"),
        ("shape", "the reference has [3, 5] where the graph has [5, 3]"),
        ("escape", "is also read by output, outside the site"),
    ],
)
def test_what_is_nearly_a_hidden_state_mixer_stays_and_is_explained(change: str, reason: str) -> None:
    _, reports, counts = apply(NearMixer(change), torch.randn(2, 6, 3, 5))
    assert "edgesmith.hidden_state_mixer" not in counts
    assert reason in reasons(reports["fuse_hidden_state_mixer"])


def test_the_unchanged_mixer_does_fuse_as_the_authors_spell_it() -> None:
    class Authors(NearMixer):
        def forward(self, x: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
            batch, _, height, width = x.shape
            flat = x.flatten(2)
            projected = self.dw(self.BCdt_proj(flat).view(batch, -1, height, width)).flatten(2)
            b, c, dt = torch.split(projected, [4, 4, 4], dim=1)
            a = (dt + self.A.view(1, -1, 1)).softmax(-1)
            h = flat @ (a * b).transpose(-2, -1)
            h, z = torch.split(self.hz_proj(h), [6, 6], dim=1)
            h = self.out_proj(h * F.silu(z) + h * self.D)
            return (h @ c).view(batch, -1, height, width).contiguous(), h

    for dynamic in (False, True):
        _, _, counts = apply(Authors(""), torch.randn(2, 6, 3, 5), dynamic_batch=dynamic)
        assert counts["edgesmith.hidden_state_mixer"] == 1


# all together


@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    distillation=st.booleans(),
    features=st.booleans(),
    seed=st.integers(0, 9),
)
@settings(max_examples=6)
def test_rewrites_keep_a_whole_networks_numbers(
    height: int,
    width: int,
    distillation: bool,
    features: bool,
    seed: int,
    randomised: Callable[[nn.Module], nn.Module],
) -> None:
    torch.manual_seed(seed)
    model = EfficientViM((1, 2), (16, 24), (5, 3), 2, num_classes=5, distillation=distillation, features=features)
    for name, value in model.named_parameters():
        if name.endswith("alpha"):
            value.data.normal_()
    _, _, counts = apply(randomised(model), torch.randn(1, 3, height, width), tolerance=3e-5)
    assert counts["edgesmith.hidden_state_mixer"] == 3
    assert "aten.batch_norm" not in counts


# found by review: what a rewrite must not touch, and what it must survive


class Reads(nn.Module):
    """A function of an input with some layers."""

    def __init__(self, function: Callable[..., Tensor], **layers: nn.Module | Tensor) -> None:
        super().__init__()
        self.function, self.names = function, list(layers)
        for name, layer in layers.items():
            setattr(self, name, nn.Parameter(layer) if isinstance(layer, Tensor) else layer)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs, *(getattr(self, name) for name in self.names))


@pytest.mark.parametrize(
    ("model", "shapes"),
    [
        (
            Reads(lambda x, f, c, g: f(x) * g + c(f(x)), f=nn.Linear(8, 8), c=nn.Conv1d(8, 8, 1), g=torch.rand(8)),
            [(2, 8, 8)],
        ),
        (Reads(lambda x, f, c: (lambda y: y * 0.5 + c(y))(f(x)), f=nn.Linear(8, 8), c=nn.Conv1d(6, 6, 1)), [(2, 6, 8)]),
        (
            Reads(lambda x, f: (lambda y: (y @ y.transpose(1, 2) * 0.35).softmax(-1) @ x)(f(x)), f=nn.Linear(8, 8)),
            [(2, 16, 8)],
        ),
        (Reads(lambda x, f, g: f(x) @ x.transpose(1, 2) * g, f=nn.Linear(16, 16), g=torch.rand(16)), [(2, 16, 16)]),
        (
            Reads(lambda x, f, g: f(x).flatten(2).unflatten(2, (3, 10)) * g, f=nn.Linear(6, 6), g=torch.rand(10)),
            [(2, 3, 5, 6)],
        ),
        (
            Reads(lambda x, e, c: e(x.mean(1, keepdim=True) * 0.5 + c(x)), e=nn.Conv2d(4, 4, 1), c=nn.Conv2d(4, 4, 1)),
            [(2, 4, 5, 5)],
        ),
        (
            Reads(lambda x, u, e, c: e(c(x) + 0.5 * u), e=nn.Conv2d(4, 4, 1), c=nn.Conv2d(4, 4, 1)),
            [(2, 4, 5, 5), (2, 1, 5, 5)],
        ),
        (
            Reads(
                lambda x, m, a, b, s: b(m * s + a(x)), a=nn.Conv2d(4, 4, 1), b=nn.Conv2d(4, 4, 1), s=torch.rand(4, 1)
            ),
            [(2, 4, 4, 5), (4, 4, 5)],
        ),
        (Reads(lambda x, c: torch.softmax(torch.add(c, x, alpha=2.0), -1), c=torch.rand(4, 1)), [(4, 5)]),
        (Reads(lambda x, a: torch.softmax(x.sum() + a, 0), a=torch.rand(())), [(4, 5)]),
        (Reads(lambda x, w: x + F.conv2d(x, w, padding=[1]), w=torch.rand(4, 4, 3, 3)), [(2, 4, 5, 5)]),
    ],
)
def test_awkward_graphs_keep_their_numbers(model: nn.Module, shapes: list[tuple[int, ...]]) -> None:
    torch.manual_seed(0)
    apply(model, *(torch.randn(shape) for shape in shapes))


def test_a_variance_of_another_type_is_no_layer_norm() -> None:
    def norm(x: Tensor) -> Tensor:
        x = x.half()
        centred = x - x.mean(1, keepdim=True)
        return centred / (centred.pow(2).mean(1, keepdim=True, dtype=torch.float32) + 1e-5).sqrt()

    _, reports, _ = apply(Reads(norm), torch.randn(2, 6, 5))
    assert not reports["fuse_channel_norm"].applied


@pytest.mark.parametrize("kind", [torch.float16, torch.int64])
def test_scale_and_shift_of_a_layer_norm_take_its_type(kind: torch.dtype, tmp_path: Path) -> None:
    def norm(x: Tensor, w: Tensor) -> Tensor:
        centred = x - x.mean(1, keepdim=True)
        return centred / (centred.pow(2).mean(1, keepdim=True) + 1e-5).sqrt() * w

    weight = torch.tensor([[1], [2], [3]]).to(kind)
    model = Reads(norm)
    model.register_buffer("w", weight)
    model.names = ["w"]
    artifact = edgesmith.export(model, "onnx", inputs=torch.randn(2, 3, 5), out=tmp_path)
    assert "LayerNormalization" in artifact.manifest["operators"]["file"]


def test_a_group_norm_of_vectors_has_an_onnx_file(tmp_path: Path) -> None:
    model = nn.Sequential(nn.GroupNorm(2, 8), nn.ReLU())
    nn.init.normal_(model[0].weight)
    edgesmith.export(model, "onnx", inputs=torch.randn(3, 8), out=tmp_path)
