"""NaN and infinities among the inputs: what PyTorch makes of them, a file does where its example has some."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import edgesmith
from edgesmith.errors import VerificationFailed
from edgesmith.exporters import decompositions, targets
from edgesmith.exporters.figures import measure_call, scales_of
from edgesmith.exporters.graph.capture import capture
from edgesmith.exporters.graph.edit import operators
from edgesmith.exporters.graph.not_numbers import with_kept_nan
from edgesmith.exporters.inputs import Call
from edgesmith.exporters.precision import table as precisions
from edgesmith.exporters.targets.target import NotHere
from edgesmith.exporters.verification import conformance, sweep, ties
from edgesmith.exporters.verification.boundaries import of
from edgesmith.exporters.verification.cases import Case, Together
from edgesmith.exporters.verification.check import AcceptanceCriteria, check
from edgesmith.exporters.verification.conformance import MENDED, RIGHT

ODD = (math.nan, math.inf, -math.inf, -0.0)
BOUNDS = torch.tensor([-1.0, 0.0, 1.0])


def odd(*shape: int, seed: int) -> Tensor:
    """Return normal numbers with two of each of `ODD` at places of their own, and a row of minus infinities."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator)
    places = torch.randperm(x.numel(), generator=generator)[: 2 * len(ODD)]
    x.view(-1)[places] = torch.tensor(ODD * 2)
    x.view(-1, shape[-1])[-1] = -math.inf
    return x


Functions = dict[str, Callable[..., object]]

REDUCED: Functions = {
    "amax": lambda x: x.amax(1),
    "amin of all": lambda x: x.amin(),
    "max": lambda x: x.max(),
    "min": lambda x: x.min(),
    "max along": lambda x: x.max(0, keepdim=True),
    "min along": lambda x: x.min(1),
    "aminmax": lambda x: torch.aminmax(x, dim=1),
    "norm": lambda x: torch.linalg.vector_norm(x, -math.inf, 1),
    "argmax": lambda x: x.argmax(1),
    "argmax of all": lambda x: x.argmax(),
    "argmin": lambda x: x.argmin(0),
    "cummax": lambda x: torch.cummax(x, 1),
    "cummin": lambda x: torch.cummin(x, 0),
}
ORDERED: Functions = {
    "sort": lambda x: torch.sort(x, dim=1, stable=True),
    "sort of few": lambda x: torch.sort(x, 0),
    "descending": lambda x: torch.sort(x, dim=1, stable=True, descending=True),
    "argsort": lambda x: torch.argsort(x, dim=1, stable=True),
    "argsort of few": lambda x: torch.argsort(x, 1),
    "msort": torch.msort,
    "topk": lambda x: torch.topk(x, 3, 1)[0],
    "topk of the smallest": lambda x: torch.topk(x, 5, 1, largest=False)[0],
    "kthvalue": lambda x: torch.kthvalue(x, 6, 1)[0],
    "median": lambda x: torch.median(x, 1)[0],
    "median of all": torch.median,
    "bucketize": lambda x: torch.bucketize(x, BOUNDS),
    "searchsorted": lambda x: torch.searchsorted(BOUNDS, x, right=True),
}
SINGLE: Functions = {
    "clamp": lambda x: x.clamp(-0.5, 0.5),
    "clip": lambda x: torch.clip(x, -1, 1),
    "clamp from": lambda x: x.clamp(min=-0.5),
    "clamp to": lambda x: x.clamp(max=0.5),
    "clamp_min": lambda x: torch.clamp_min(x, 0.1),
    "clamp_max": lambda x: torch.clamp_max(x, 0.1),
    "clamp by tensors": lambda x: torch.clamp(x, torch.tensor(-0.5), torch.tensor(0.5)),
    "relu": F.relu,
    "relu6": F.relu6,
    "hardtanh": F.hardtanh,
    "hardsigmoid": F.hardsigmoid,
    "elu": F.elu,
    "selu": F.selu,
    "softshrink": F.softshrink,
    "logsigmoid": F.logsigmoid,
    "sign": torch.sign,
    "sgn": torch.sgn,
    "angle": torch.angle,
    "lgamma": torch.lgamma,
    "log1p": torch.log1p,
    "logit": lambda x: torch.logit(x, 1e-3),
    "root": lambda x: x**0.5,
    "sinh": torch.sinh,
    "cosh": torch.cosh,
    "exp2": torch.exp2,
    "floor": torch.floor,
    "nan_to_num": torch.nan_to_num,
    "isnan": torch.isnan,
    "softmax": lambda x: x.softmax(1),
    "at least": lambda x: x >= 0,
    "not": lambda x: x != 0.5,
}
PAIRED: Functions = {
    "maximum": torch.maximum,
    "other": torch.ne,
    "minimum": torch.minimum,
    "fmax": torch.fmax,
    "where": lambda x, y: torch.where(x > y, x, y),
    "heaviside": torch.heaviside,
    "xlogy": torch.xlogy,
    "hypot": torch.hypot,
    "remainder": torch.remainder,
    "floor_divide": torch.floor_divide,
}
POOLED: Functions = {
    "max_pool1d": lambda x: F.max_pool1d(x.reshape(2, 8, 8), 2),
    "max_pool2d": lambda x: F.max_pool2d(x, 3, 2, 1),
    "max_pool2d of rows": lambda x: F.max_pool2d(x, (1, 8)),
    "max_pool2d with places": lambda x: F.max_pool2d(x, 2, return_indices=True),
    "max_pool1d with places": lambda x: F.max_pool1d(x.reshape(2, 8, 8), 2, return_indices=True),
    "max_pool3d with places": lambda x: F.max_pool3d(x.reshape(1, 1, 2, 8, 8), 2, return_indices=True),
    "max_pool3d": lambda x: F.max_pool3d(x.reshape(1, 1, 2, 8, 8), 2),
    "adaptive": lambda x: F.adaptive_max_pool2d(x, 4),
}
PLACES = torch.tensor([[0, 1, 2, 0, 2, 3, 3], [2, 0, 0, 1, 1, 3, 2]])
ROWS = torch.tensor([2, 0, 2])


def sent(reduce: str, **more: bool) -> Callable[..., object]:
    """Return what sends the leading part of a source to places: rows of it are not sent."""
    return lambda x, y: torch.scatter_reduce(x, 0, PLACES, y[:, :9], reduce, **more)


SENT: Functions = {
    **{f"scatter_reduce {reduce}": sent(reduce) for reduce in ("sum", "mean", "prod", "amax", "amin")},
    **{f"scatter_reduce {reduce} alone": sent(reduce, include_self=False) for reduce in ("mean", "amax", "amin")},
    "index_reduce amax": lambda x, y: torch.index_reduce(x, 0, ROWS, y[:3], "amax"),
    "index_reduce amin": lambda x, y: torch.index_reduce(x, 0, ROWS, y[:3], "amin"),
    "scatter": lambda x, y: torch.scatter(x, 0, torch.tensor([[0, 1, 2, 0], [2, 3, 1, 1]]), y),
    "scatter_add": lambda x, y: torch.scatter_add(x, 0, PLACES, y),
    "scatter by a product": lambda x, y: torch.scatter(x, 0, PLACES, y, reduce="multiply"),
    "lerp by tensors": lambda x, y: torch.lerp(x, y, torch.linspace(-0.5, 1.5, 10)),
    "lerp by what is missing": lambda x, y: torch.lerp(x, y, y.flip(1)),
    **{f"lerp by {share}": lambda x, y, a=share: torch.lerp(x, y, a) for share in (0.0, 0.25, 0.5, 0.75, 1.0)},
    "where, of what is fixed": lambda x, y: torch.where(torch.arange(10) % 2 > 0, x, -math.inf) * 1.0,
    "masked_fill, of what is fixed": lambda x, y: x.masked_fill(torch.arange(10) % 3 > 0, math.inf),
    "lerp by hand": lambda x, y: x + 0.25 * (y - x),
}
GROUPS = {"reduced": REDUCED, "ordered": ORDERED, "single": SINGLE, "paired": PAIRED, "pooled": POOLED, "sent": SENT}
SHAPES = {"pooled": (1, 2, 8, 8)}
NOT_ON_TVM = {"xlogy", "heaviside", "floor_divide", "remainder", "log1p", "logit", "angle"}
"""Whose values of what is not finite TVM's own are not PyTorch's, as docs/artifacts.md says."""


def cases(group: str) -> list[Case]:
    shape = SHAPES.get(group, (4, 10))
    values = [(odd(*shape, seed=k), odd(*shape, seed=k + 10)) for k in range(3)]
    count = 2 if group in ("paired", "sent") else 1
    return [of("odd", name, function, *(one[:count] for one in values)) for name, function in GROUPS[group].items()]


@pytest.mark.no_cover
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("target", ["onnx", "tvm"])
def test_a_file_keeps_what_is_not_finite(target: str, group: str) -> None:
    if (reason := targets.get(target).cannot_run()) is not None:
        pytest.skip(reason)
    tried = [case for case in cases(group) if target == "onnx" or case.label not in NOT_ON_TVM]
    found = conformance.judge(tried, sweep.column(f"{target}:fp32"), together=100)
    wrong = {case.label: one for case, one in zip(tried, found, strict=True) if one.kind not in (RIGHT, MENDED)}
    assert not wrong


@pytest.mark.no_cover
@pytest.mark.parametrize("target", ["coreml", "coreai"])
def test_a_file_keeps_what_is_not_finite_and_sent(target: str) -> None:
    if (reason := targets.get(target).cannot_run()) is not None:
        pytest.skip(reason)
    tried = cases("sent")
    found = conformance.judge(tried, sweep.column(f"{target}:fp32"), together=100)
    assert {case.label: one for case, one in zip(tried, found, strict=True) if one.kind not in (RIGHT, MENDED)} == {}


RE = torch.tensor([1, -1, 0, -0.0, 1, -1, 0, -0.0, 2, -2, 0, -3])
IM = torch.tensor([0, 0, 0, 0, -0.0, -0.0, -0.0, -0.0, 1, -1, 5, 0])
ANGLES: Functions = {
    "angle": lambda a, b: torch.complex(a, b).angle(),
    "angle of the conjugate": lambda a, b: torch.complex(a, b).conj().angle(),
    "angle of a part": lambda a, b: torch.complex(a, b).reshape(3, 4)[1:].angle(),
    "log": lambda a, b: torch.view_as_real(torch.complex(a + 0.5, b).log()),
}


@pytest.mark.no_cover
@pytest.mark.parametrize("target", ["onnx", "coreml", "coreai", "tvm"])
def test_an_angle_has_the_sign_of_a_zero_that_is_given(target: str) -> None:
    if (reason := targets.get(target).cannot_run()) is not None:
        pytest.skip(reason)
    tried = [of("odd", name, function, (RE, IM)) for name, function in ANGLES.items()]
    found = conformance.judge(tried, sweep.column(f"{target}:fp32"), together=100)
    assert {case.label: one for case, one in zip(tried, found, strict=True) if one.kind not in (RIGHT, MENDED)} == {}


def test_every_form_has_a_case() -> None:
    """Each operator that is spelled for what is not finite is in a model above, on its target."""
    met = {"onnx": set[object](), "tvm": set[object]()}
    for group in GROUPS:
        for case in cases(group):
            nodes = {node.target for node in operators(capture(Together([case]), case.values[0]).module)}
            for target in met:
                if target == "onnx" or case.label not in NOT_ON_TVM:
                    met[target] |= nodes
    second_names = {torch.ops.aten.clamp_min.default, torch.ops.aten.special_gammaln.default}
    for target, found in met.items():
        assert set(decompositions.keeping_nan(target)) - second_names <= found, target


class Maxima(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x.clamp(min=0), 2).amax(1)


def test_a_model_that_meets_none_pays_nothing() -> None:
    forms = decompositions.keeping_nan("onnx")
    plain, strange = torch.randn(1, 2, 4, 4), torch.randn(1, 2, 4, 4)
    strange[0, 0, 0, 0] = math.nan
    program = capture(Maxima(), (plain,))
    assert with_kept_nan(program.module, program.inputs, forms) is program.module
    kept = with_kept_nan(program.module, (strange,), forms)
    changed = [
        one.name
        for one, other in zip(program.module.graph.nodes, kept.graph.nodes, strict=True)
        if one.target is not other.target
    ]
    assert changed == ["clamp", "max_pool2d", "amax"]


def test_only_what_meets_one_is_spelled_otherwise() -> None:
    class Cleaned(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.nan_to_num().amax(1) + x.amax(1)

    x = torch.tensor([[1.0, math.nan, 2.0]])
    program = capture(Cleaned(), (x,))
    kept = with_kept_nan(program.module, (x,), decompositions.keeping_nan("onnx"))
    targets_of = [node.target for node in kept.graph.nodes if "amax" in node.name]
    assert targets_of[0] is torch.ops.aten.amax.default
    assert targets_of[1] is not torch.ops.aten.amax.default


# A file that loses NaN is refused


@pytest.mark.parametrize(
    ("eager", "file", "what"),
    [
        (math.nan, 1.0, "NaN or infinite"),
        (1.0, math.nan, "finite"),
        (math.inf, 3.4e38, "NaN or infinite"),
        (math.nan, math.inf, "NaN"),
    ],
)
def test_a_file_that_loses_nan_fails_its_check(eager: float, file: float, what: str) -> None:
    wanted, found = np.ones(8, np.float32), np.ones(8, np.float32)
    wanted[3], found[3] = eager, file
    for name in ("fp32", "fp16", "int8"):
        one = precisions.get(name)
        figures = measure_call([wanted], [found], scales_of([[wanted]], [0]), one.limits(), clips=one.clips)
        assert figures.failure is not None
        assert f"that are {what}" in figures.failure


def test_a_lost_nan_is_not_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With no form that keeps it, as before there were any, the export fails and leaves nothing."""
    monkeypatch.setattr(decompositions, "keeping_nan", lambda target: {})
    x = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    x[0, 3] = math.nan

    class Largest(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.amax(1)

    with pytest.raises(VerificationFailed, match="that are NaN or infinite in PyTorch are not"):
        edgesmith.export(Largest(), "onnx", inputs=(x,), precision="fp32", out=tmp_path / "made")
    assert not list(tmp_path.rglob("*.onnx"))


def test_a_lost_nan_is_no_flipped_spike() -> None:
    """A spike that fires otherwise excuses an input, and a NaN that is lost does not."""
    criteria = AcceptanceCriteria(precisions.get("fp32"), spikes=True, noise=lambda: None)
    calls = [Call("seeded", seed) for seed in range(4)]
    wanted = [[np.array([[1.0, 0.0, 1.0, 0.0]], np.float32)] for _ in calls]
    flipped = [[y.copy() for y in ys] for ys in wanted]
    flipped[3][0][0, 1] = 1.0
    assert check("eager -> file", wanted, flipped, criteria, described=calls)["spike_for_spike"]["inputs"] == 3
    wanted[3][0][0, 1] = math.nan
    with pytest.raises(VerificationFailed, match="NaN or infinite in PyTorch are not"):
        check("eager -> file", wanted, flipped, criteria, described=calls)


# Orders of equal numbers


def test_an_order_that_is_not_asked_to_be_stable_depends_on_ties() -> None:
    class Order(nn.Module):
        def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
            super().__init__()
            self.function = function

        def forward(self, x: Tensor) -> Tensor:
            return self.function(x)

    equal, different = torch.ones(1, 40), torch.randn(1, 40)
    of_places = [lambda x: x.argsort(1), lambda x: x.sort(1)[1], lambda x: x.sort(dim=1, descending=True)[1]]
    for function in of_places:
        model = Order(function)
        assert ties.picks(capture(model, (equal,)))
        assert ties.depends_on_ties(model, (equal,))
        assert not ties.depends_on_ties(model, (different,))
    stable = Order(lambda x: x.sort(dim=1, stable=True)[1])
    assert not ties.picks(capture(stable, (equal,)))
    assert not ties.depends_on_ties(stable, (equal,))
    assert not ties.depends_on_ties(Order(lambda x: x.sort(1)[0]), (equal,))


class Each(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@pytest.mark.parametrize("target", ["onnx", "tvm"])
@pytest.mark.parametrize(
    "function",
    [lambda x: x.amax(1).nan_to_num(0.0), lambda x: torch.where(x.argmax(1) > 2, 1.0, 0.0) + x.isnan().sum(1)],
    ids=["behind", "beside"],
)
def test_a_program_that_asks_for_nan_keeps_it_without_an_example_of_any(
    target: str, function: Callable[[Tensor], Tensor], tmp_path: Path
) -> None:
    if missing := targets.get(target).missing_packages():
        pytest.skip(f"{missing[0]} is not installed")
    made = edgesmith.export(Each(function), target=target, inputs=(torch.randn(4, 8),), out=tmp_path)
    kinds = {one["kind"] for one in made.manifest["verification"]["inputs"]["calls"]}
    assert "missing" in kinds


REPLACED: Functions = {
    "itself": torch.nan_to_num,
    "before a softmax": lambda x: torch.nan_to_num(x).softmax(-1),
    "before a softmax of negated": lambda x: torch.nan_to_num(-x).softmax(-1),
    "before a difference": lambda x: torch.nan_to_num(x) - torch.nan_to_num(x),
    "one by a number": lambda x: torch.nan_to_num(x, neginf=-7.0).relu(),
    "all by numbers": lambda x: torch.nan_to_num(x, 3.0, 5.0, -7.0),
    "beyond the half range": lambda x: torch.nan_to_num(x, posinf=1e5, neginf=-1e6).softmax(-1),
    "a row of filling": lambda x: x.index_fill(1, torch.arange(5), -1e9).softmax(-1),
    "a row of scattered": lambda x: x.scatter(1, torch.arange(5).expand(2, 5), -1e30).softmax(-1),
    "padding": lambda x: F.pad(torch.nan_to_num(x), (0, 4), value=-1e9).softmax(-1),
    "scattered": lambda x: torch.nan_to_num(x).scatter(1, torch.tensor([[0, 2], [1, 4]]), -1e30).softmax(-1),
    "a row filled in place": lambda x: x.clone().fill_(-1e9).softmax(-1),
    "in place": lambda x: x.clone().nan_to_num_(posinf=2.0).relu(),
    "of whole numbers": lambda x: torch.nan_to_num((x > 0).int()),
}


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("target", ["onnx", "coreml", "coreai"])
@pytest.mark.parametrize("name", REPLACED)
def test_what_is_put_for_an_infinity_is_finite_in_the_files_own_type(
    name: str, target: str, precision: str, tmp_path: Path
) -> None:
    """`finfo(float32).max` is an infinity once a file in half precision holds it."""
    if missing := targets.get(target).missing_packages():
        pytest.skip(f"{missing[0]} is not installed")

    class Replaced(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return REPLACED[name](x)

    x = (torch.randn(2, 5),)
    made = edgesmith.export(Replaced().eval(), target, inputs=x, precision=precision, name="replaced", out=tmp_path)
    given = np.array([[1.0, math.inf, -2.0, math.nan, 0.5], [-math.inf, 3.0, 0.0, math.inf, -1.0]], np.float32)
    outputs = targets.get(target).open(made.file).run([[given]])
    assert not isinstance(outputs, NotHere)
    assert all(np.isfinite(y.astype(np.float64)).all() for call in outputs for y in call)
