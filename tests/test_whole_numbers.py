"""Numbers that half precision rounds, and what is exact in PyTorch all the same: whole ones, bounds, places, powers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgesmith.errors import Unsupported
from edgesmith.exporters import targets
from edgesmith.exporters.graph.capture import capture
from edgesmith.exporters.graph.long_numbers import refuse_long_numbers
from edgesmith.exporters.mil.safe_forms import _next_half
from edgesmith.exporters.precision import table as precisions
from edgesmith.exporters.precision.whole_numbers import find_whole_numbers
from edgesmith.exporters.targets.target import Request
from edgesmith.exporters.verification import sweep
from edgesmith.exporters.verification.boundaries import drawn, of, row
from edgesmith.exporters.verification.cases import Case, in_half
from edgesmith.exporters.verification.conformance import MENDED, RIGHT, judge

I = torch.tensor([4097, 4096, 50257, 50256, -70001, 2049, 3, 0])  # noqa: E741 - whole numbers
J = torch.tensor([4096, 4096, 50256, 50256, -70000, 2050, 3, 0])
PAIR, ENDS = torch.arange(10.0).reshape(2, 5), torch.tensor([0, 3])
LARGE = torch.tensor([2**24 + 1, 2**24 - 1, 2**24 + 3, 2**24])
ONE_BOUND: dict[str, Callable[[Tensor], Tensor]] = {
    "at least": lambda i: i.clamp(min=-7),
    "at least 0": lambda i: i.clamp(min=0),
    "at most": lambda i: i.clamp(max=2**24 + 3),
    "rectified": lambda i: i.relu(),
    "clipped": lambda i: torch.clip(i, 1),
}
AT_BOUNDS = row(0.3, 0.1, 0.2998, 4096, 5000, 70000, -0.3, 65504, 1e-7, 0, -0.0, math.nan, math.inf)


def whole(label: str, function: Callable[..., object], *given: Tensor) -> Case:
    return of("whole numbers", label, function, given)


WHOLE = [
    whole("equal to a float", lambda i: i.float() == 50257.0, I),
    whole("above a fraction", lambda i: i > 50256.5, I),
    whole("compared as floats", lambda i, j: i.float() == j.float(), I, J),
    whole("and back", lambda i: (i.float() * 2 + 1).long(), I),
    whole("a mean", lambda i: i.float().mean(), I),
    whole("counted", lambda m: m.float().cumsum(0).long(), torch.ones(2500, dtype=torch.bool)),
    whole("counts compared", lambda m: m.float().sum(-1) == 2048.0, torch.arange(4096)[None] < torch.tensor([[2049]])),
    whole("of a constant row", lambda n: torch.arange(5000.0)[None] < n[:, None], torch.tensor([4097, 4098])),
    whole("a time step", lambda t: (t.float()[:, None] * torch.exp(-torch.arange(8.0))).sin(), torch.tensor([999, 7])),
    *(whole(f"beyond 2^24, {name}", lambda i, f=one: f(i) - 2**24, LARGE) for name, one in ONE_BOUND.items()),
    whole("an index at most", lambda i: torch.arange(9)[torch.arange(4).clamp(max=2)] + i[:4], LARGE % 7),
]
SHORT = [
    whole("sorted", lambda i: i.sort().values, I),
    whole("the largest", lambda i: tuple(i.topk(3)), I),
    whole("gathered", lambda i, j: i.gather(0, j), I, torch.tensor([4, 2])),
    whole("indexed", lambda i, j: i[j], I, torch.tensor([4, 2])),
    whole("behind constants, from the end", lambda x, i: x[:, [2, 0]].sum() + x[torch.arange(2), i - 2], PAIR, ENDS),
    whole("gathered from the end", lambda x, i: x[:, [2, 0]].sum() + x.gather(1, (i[:, None] - 2) % 5), PAIR, ENDS),
    whole("rows from the end", lambda x, i: x[:, [2, 0]].sum() + x.mT[i - 2], PAIR, ENDS),
    whole("by two indices", lambda x, i, j: x[i, j], drawn(2, 40000), torch.tensor([1, 0]), torch.tensor([39999, 3])),
    whole("squeezed", lambda i: i[:, None].squeeze(1) + 1, I),
    whole("a far place", lambda x: x.topk(1)[1], (torch.arange(70000) == 69999).float()),
]
BOUNDS = [
    of("bounds", f"{name} {bound}", lambda x, n=name, c=bound: getattr(torch, n)(x, c), AT_BOUNDS)
    for name in ("gt", "ge", "lt", "le", "eq", "ne")
    for bound in (0.3, -0.3, 4097.0, 1e-9, 1e5)
] + [
    of("bounds", "bins", lambda x: torch.bucketize(x, torch.arange(500.0) / 37), row(0.3, 1.7, 5.25, 13)),
    of("bounds", "shrunk", lambda x: F.hardshrink(x, 0.3), AT_BOUNDS.nan_to_num(0)),
]
SPELLED = [
    of("powers", f"order {order}", lambda x, p=order: torch.linalg.vector_norm(x, p, dim=-1), rows)
    for order in (3.0, 0.5, -1.0)
    for rows in (drawn(4, 8, scale=100), drawn(4, 8, scale=1e-2))
] + [
    of("logit", "of 1, by an eps", lambda x: torch.logit(x, eps=1e-6), row(0, 1e-3, 0.5, 1)),
    of("soft_margin_loss", "loud", F.soft_margin_loss, (drawn(8, scale=15), drawn(8, seed=1))),
    of("var", "loud", lambda x: x.var(-1), drawn(4, 8, scale=150)),
    of("group_norm", "loud", lambda x: F.group_norm(x, 3), drawn(2, 6, 8, scale=240)),
]


@pytest.mark.no_cover
@pytest.mark.parametrize("column", ["coreml:fp16", "onnx:fp16", "coreai:fp16"])
@pytest.mark.parametrize("cases", [WHOLE + SHORT, SPELLED], ids=["whole", "spelled"])
def test_what_is_exact_in_pytorch_is_exact_in_half_precision(cases: Sequence[Case], column: str) -> None:
    hold(cases, column)


@pytest.mark.no_cover
def test_a_number_of_half_precision_stays_on_its_side_of_a_bound() -> None:
    hold(BOUNDS, "coreml:fp16")


def hold(cases: Sequence[Case], column: str) -> None:
    tried = sweep.column(column)
    if missing := tried.target.missing_packages():
        pytest.skip(f"{column}: {', '.join(missing)} not installed")
    found = judge(cases, tried, together=32)
    assert {str(c): v for c, v in zip(cases, found, strict=True) if v.kind not in (RIGHT, MENDED)} == {}


@pytest.mark.parametrize("below", [True, False])
def test_no_number_of_half_precision_is_between_a_bound_and_what_it_is_rounded_to(below: bool) -> None:
    numbers = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)
    held = np.sort(numbers[np.isfinite(numbers)])
    bounds = np.concatenate([np.random.default_rng(0).normal(size=500).astype(np.float32) * 100, held[::97]])
    for bound, rounded in zip(bounds, _next_half(bounds, below), strict=True):
        assert ((held > bound) == (held > rounded)).all() if below else ((held < bound) == (held < rounded)).all()
        assert ((held <= bound) == (held <= rounded)).all() if below else ((held >= bound) == (held >= rounded)).all()


class Ordinary(nn.Module):
    """What has whole numbers in it and stays in half precision: features, short counts, masks, ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        keep = mask.float()[..., None]
        pooled = (self.layer(x) * keep).sum(1) / keep.sum(1)
        short: Tensor = (x > 0).float().sum(1)
        short = torch.where(x[:, 0].abs() > 0.3, short, 0.0)
        y: Tensor = self.layer(pooled + short + x.argmax(1).float())
        return y


def lowered(model: nn.Module, inputs: tuple[Tensor, ...], folder: Path, target: str = "coreml") -> list[dict[str, str]]:
    path = folder / f"model{targets.get(target).suffix}"
    request = Request("model", precisions.get("fp16"), keep_fp32={})
    targets.get(target).lower(capture(model.eval(), inputs), path, request)
    return targets.get(target).open(path).legalizations()


def test_what_goes_into_a_layer_stays_in_half_precision(tmp_path: Path) -> None:
    inputs = (torch.randn(2, 16, 8), torch.ones(2, 16, dtype=torch.int32))
    done = lowered(Ordinary(), inputs, tmp_path)
    assert [one for one in done if one["rule"] == "whole-numbers"] == []
    assert find_whole_numbers(capture(Ordinary().eval(), inputs), torch.float16) == {}


class Factorised(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.cholesky(x)


class Deep(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, 3, 2, 2, 1, 2).sum((1, 3))


@pytest.mark.parametrize(
    ("model", "given", "sentence"),
    [
        (Factorised(), torch.eye(3), r"does not take aten\.linalg_cholesky_ex\(float32 \[3, 3\]\) at .*\(test_whole_"),
        (
            Deep(),
            torch.randn(2, 3, 2, 4),
            r"holds values of up to 5 axes, and aten\.\w+\(.*\) at .*\(test_whole_numbers\.py:\d+\) makes one of 6;",
        ),
    ],
)
def test_a_refusal_names_the_operator_and_its_line(
    model: nn.Module, given: Tensor, sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(Unsupported, match=sentence):
        lowered(model, (given,), tmp_path)


def test_half_precision_keeps_order_and_what_is_no_number() -> None:
    """The order of equal numbers is nobody's, so a case has none where it had none."""
    loud = torch.randperm(8000, generator=torch.Generator().manual_seed(0)).float() - 20
    odd = row(math.inf, -math.inf, math.nan, 1e30, 3e38, -1e9, 0.1)
    half = in_half(of("any", "any", torch.argsort, loud, odd))
    ((ordered,), (kept,)) = half.values
    assert torch.equal(ordered.argsort(), loud.argsort())
    assert torch.equal(ordered, ordered.half().float())
    assert float(ordered.abs().max()) <= 240
    assert kept.tolist()[:2] == [math.inf, -math.inf]
    assert math.isnan(kept[2])
    assert kept[3:].tolist() == [239.875, 240, -239.75, float(torch.tensor(0.1).half())]


def test_floats_stay_in_half_precision(tmp_path: Path) -> None:
    """The file casts its own Float16 inputs, before anything is one of half precision."""
    model = of_one(lambda x: (x.abs() > 0.3, x + 1.0, x.cumsum(0)))
    assert [one for one in lowered(model, (torch.randn(4000),), tmp_path) if one["rule"] == "whole-numbers"] == []


def of_one(function: Callable[..., object]) -> nn.Module:
    """Return a function as a module."""

    class Module(nn.Module):
        def forward(self, x: Tensor) -> object:
            return function(x)

    return Module()


LONG = torch.tensor([[2**30, 2**30, 2**30, 5]])


@pytest.mark.parametrize(("target", "name"), [("coreai", "Core AI"), ("coreml", "Core ML")])
@pytest.mark.parametrize(
    ("function", "given", "sentence"),
    [
        (lambda i: i.sum(1), LONG, r"aten\.sum at .* makes 3221225477 of the example"),
        (lambda i: i.cumsum(1), LONG, r"aten\.cumsum at .* makes 3221225477 of the example"),
        (lambda i: i * i, LONG, r"aten\.mul at .* makes 1152921504606846976 of the example"),
        (lambda i: i + 2**40, LONG, r"aten\.add at .* makes 1100585369600 of the example"),
        (lambda x: (x.double() * 1e12).long() // 1000, torch.ones(4), r"makes 1000000000000 of the example"),
        (lambda i: i // 2, torch.tensor([-(2**35), 7]), r"the example has -34359738368; hand in smaller ones"),
    ],
)
def test_whole_numbers_beyond_32_bits_are_refused(
    function: Callable[..., object], given: Tensor, sentence: str, target: str, name: str, tmp_path: Path
) -> None:
    if missing := targets.get(target).missing_packages():
        pytest.skip(f"{target}: {', '.join(missing)} not installed")
    with pytest.raises(Unsupported, match=f"^{name} has whole numbers of 32 bits, and .*{sentence}"):
        targets.get(target).lower(
            capture(of_one(function), (given,)), tmp_path / "a.file", Request("a", precisions.get("fp32"))
        )


def test_a_bound_beyond_32_bits_is_no_number_on_core_ai() -> None:
    program = capture(of_one(lambda i: torch.where(i > 2, i, torch.iinfo(torch.int64).max).amin(1) % 7), (LONG // 9,))
    refuse_long_numbers(program.module, program.inputs, "Core AI")
