"""Generated models: recipes are the same models everywhere, and the judge of their files sees what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgesmith.errors import BadInput, Unsupported
from edgesmith.exporters import decompositions
from edgesmith.exporters.export import export
from edgesmith.exporters.generated import campaign, draw, recipes, trial
from edgesmith.exporters.generated.recipes import Generated, Recipe, draw_inputs
from edgesmith.exporters.graph.capture import capture, computes_in_half, run
from edgesmith.exporters.graph.plain_types import with_plain_types
from edgesmith.exporters.verification import sweep
from edgesmith.exporters.verification.conformance import CRASH, LEAKS, REFUSED, RIGHT, WRONG

aten = torch.ops.aten
ONNX = "onnx:fp32"


@pytest.fixture(scope="module")
def known() -> dict[str, Recipe]:
    return recipes.read()


def model(*steps: list[Any], inputs: list[list[Any]], outputs: list[str]) -> Recipe:
    return recipes.parse({"name": "own", "inputs": inputs, "constants": [], "steps": list(steps), "outputs": outputs})


# Recipes


def test_there_are_three_hundred_models_of_all_types_and_sizes(known: dict[str, Recipe]) -> None:
    assert len(known) == 300
    assert {len(one.steps) for one in known.values()} >= {*draw.SIZES}
    assert {dtype for one in known.values() for _, dtype, _ in one.inputs} >= {*draw.DTYPES}
    assert len({name for one in known.values() for _, name, _, _ in one.steps}) > 45


def test_a_recipe_is_the_same_model_every_time(known: dict[str, Recipe]) -> None:
    some = [one for one in known.values() if any(name in recipes.LAYERS for _, name, _, _ in one.steps)][:4]
    for one in some:
        given = draw_inputs(one, "normal")
        first, again = (Generated(one).eval()(*given) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        assert recipes.parse(json.loads(one.dump())) == one


def test_a_recipe_that_calls_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="own calls 'system', which"):
        model(["v1", "system", ["v0"], {}], inputs=[["v0", "float32", [1]]], outputs=["v1"])
    with pytest.raises(BadInput, match="make recipes"):
        recipes.read(tmp_path / "none.jsonl")


# The judge

SMALL = ("nnsmith-8", "nnsmith-19", "nnsmith-39", "nnsmith-46")


@pytest.mark.no_cover
@pytest.mark.parametrize("name", SMALL)
def test_a_generated_model_is_right_on_onnx(name: str, known: dict[str, Recipe]) -> None:
    assert trial.judge(known[name], sweep.column(ONNX)).kind == RIGHT


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Generated, Recipe, Any]:
    recipe = model(
        ["v1", "mul", ["v0", "v0"], {}],
        ["v2", "tan", ["v1"], {}],
        ["v3", "argmax", ["v0"], {"dim": 1}],
        inputs=[["v0", "float32", [3, 7]]],
        outputs=["v1", "v2", "v3"],
    )
    built = Generated(recipe).eval()
    folder = tmp_path_factory.mktemp("made")
    return built, recipe, export(built, "onnx", inputs=draw_inputs(recipe, "normal"), precision="fp32", out=folder)


def _off(factor: float) -> Callable[[list[np.ndarray]], list[np.ndarray]]:
    return lambda ys: [ys[0] * np.float32(factor), *ys[1:]]


@pytest.mark.parametrize(
    ("plant", "says"),
    [
        (_off(1), None),
        (_off(1 + 2e-6), None),  # 16 units of rounding
        (_off(1 + 2e-5), "output 0 of normal inputs: at [0, 0]"),
        (lambda ys: [ys[0], ys[1], (ys[2] + 1) % 7], "output 2 of normal inputs"),
        (lambda ys: [ys[0][:1], *ys[1:]], "shape [1, 7] where PyTorch has [3, 7]"),
        (lambda ys: [np.where(ys[0] == ys[0].max(), np.nan, ys[0]), *ys[1:]], "nan where PyTorch has"),
    ],
)
def test_the_judge_sees_an_error_of_its_size(
    plant: Callable[..., Any], says: str | None, made: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    built, recipe, artifact = made
    opened = type(sweep.column(ONNX).target.open(artifact.file))
    whole = opened.run
    monkeypatch.setattr(opened, "run", lambda self, calls: [plant(ys) for ys in whole(self, calls)])
    found = trial.compare(built, recipe, artifact)
    assert found is None if says is None else says in (found or "")


@pytest.mark.parametrize(
    ("lowering", "kind"),
    [
        (lambda x: torch.sin(x) / torch.cos(x) * (1 + 1e-3 * (x > 20)), WRONG),  # beyond what an export looks at
        (lambda x: torch.sin(x), REFUSED),  # which the export sees itself
        (lambda x: 1 / 0, CRASH),
    ],
)
def test_a_wrong_lowering_is_caught(
    lowering: Callable[[Tensor], Tensor], kind: str, made: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = decompositions.for_target
    monkeypatch.setattr(decompositions, "for_target", lambda target: {**ours(target), aten.tan.default: lowering})
    assert trial.judge(made[1], sweep.column(ONNX)).kind == kind


def test_a_campaign_groups_refusals_by_cause_and_fails_on_what_is_wrong() -> None:
    def row(name: str, kind: str, why: str) -> sweep.Row:
        return {"operator": name, "column": ONNX, "cases": [("model", kind, why)], "seconds": 1.0}

    refused = "Core ML cannot express this model: it does not take aten.foo(float32 [{n}]) at layer_{n} (m.py:{n}); x"
    rows = [
        row("a", REFUSED, refused.format(n=3)),
        row("b", REFUSED, refused.format(n=4)),
        row("c", RIGHT, ""),
        row("d", LEAKS, "KeyError: 3"),
    ]
    failure, totals, *causes = campaign.summarise(rows)
    assert failure == "leaks: d on onnx:fp32: KeyError: 3"
    assert totals.startswith("onnx:fp32: 1 of 4 right")
    assert causes == ["    2 Core ML cannot express this model: it does not take aten.foo"]


# What the generated models showed


class Plain(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *given: Tensor) -> Any:
        return self.function(*given)


WHOLE = {
    "wraps": lambda x, y: (x + y, x * y, -x),
    "clips by numbers of its own type": lambda x, y: (x.clip(-1, 1), x == -1),
    "hands on": lambda x, y: (torch.cat([x, y]), torch.maximum(x, y).relu(), x.amin(0)),
    "sums": lambda x, y: (x.sum(0), (x.float().mean() + y).to(x.dtype)),
}


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16])
def test_small_whole_numbers_in_int32_are_the_same(name: str, dtype: torch.dtype) -> None:
    info = torch.iinfo(dtype)
    given = [torch.randint(info.min, info.max, (5, 4), generator=torch.manual_seed(k)).to(dtype) for k in range(2)]
    captured = capture(Plain(WHOLE[name]), given)
    plain = with_plain_types(captured)
    kinds = {
        v.dtype for n in plain.module.graph.nodes if n.op == "call_function" and isinstance(v := n.meta["val"], Tensor)
    }
    assert kinds.isdisjoint({torch.uint8, torch.int8, torch.int16})
    for a, b in zip(run(captured, given), run(plain, given), strict=True):
        assert torch.equal(a.double(), b.double())
    assert with_plain_types(captured, doubles=True) is not captured


def test_doubles_stay_unless_they_are_asked_for() -> None:
    captured = capture(Plain(lambda x: x.sin() + torch.ones(3, dtype=torch.float64)), [torch.ones(3).double()])
    assert with_plain_types(captured) is captured
    assert run(with_plain_types(captured, doubles=True), captured.inputs)[0].dtype == torch.float32


def test_a_model_computes_in_half_where_an_operator_rounds_to_it() -> None:
    given = [torch.ones(3).half()]
    assert computes_in_half(capture(Plain(torch.sin), given))
    assert not computes_in_half(capture(Plain(lambda x: x.float().sin()), given))


FORMS: dict[str, tuple[Callable[..., Any], list[Tensor]]] = {
    "two clamps of one value": (lambda x: (x.clip(-1, 1), x.clip(-1, 1).amax(-1)), [torch.randn(3, 4)]),
    "a relu of a clip below zero": (lambda x: torch.relu(x.clip(-2, -1)) + x, [torch.randn(3, 4)]),
    "bounds the wrong way round": (lambda x: x.clip(2, 1) + x, [torch.randn(3, 4)]),
    "doubles without kernels": (
        lambda x: (x.atan(), nn.functional.gelu(x), nn.functional.interpolate(x, size=[5, 3], mode="bilinear")),
        [torch.randn(1, 1, 4, 4).double()],
    ),
    "a resize of half precision": (
        lambda x: nn.functional.interpolate(x, size=[5, 3], mode="nearest"),
        [torch.randn(1, 1, 4, 4).half()],
    ),
    "products of small integers": (lambda x: x @ x.T, [torch.arange(12, dtype=torch.uint8).reshape(3, 4)]),
    "the largest of a vector": (lambda x: (x.argmax(0), x.topk(2).values), [torch.randn(7)]),
}


class All(nn.Module):
    """Several functions as one model, each with inputs of its own: one export is cheaper than one for each."""

    def __init__(self, forms: dict[str, tuple[Callable[..., Any], list[Tensor]]]) -> None:
        super().__init__()
        self.forms = list(forms.values())
        self.given = [x for _, given in self.forms for x in given]

    def forward(self, *given: Tensor) -> list[Any]:
        rest = iter(given)
        return [function(*(next(rest) for _ in own)) for function, own in self.forms]


def test_forms_that_generated_models_had(tmp_path: Path) -> None:
    whole = All(FORMS)
    export(whole, "onnx", inputs=whole.given, precision="fp32", out=tmp_path)


ON_CORE_ML: dict[str, tuple[Callable[..., Any], list[Tensor]]] = {
    "single numbers": (lambda c, x: torch.where(c, x, -x), [torch.tensor(True), torch.tensor(2.0)]),
    "a slope for a single number": (
        lambda x: nn.functional.prelu(x.sum(), torch.tensor([0.25])),
        [torch.randn(3)],
    ),
    "outputs that change nothing": (lambda x: (x.expand(3), x.flatten(), x.sin()), [torch.randn(3)]),
    "doubles": (lambda x: x.sin() + x.mean(), [torch.randn(3).double()]),
    "reflections that take away": (lambda x: nn.functional.pad(x, [2, -1], mode="reflect"), [torch.randn(1, 2, 6)]),
}


def test_forms_that_generated_models_had_on_core_ml(tmp_path: Path) -> None:
    pytest.importorskip("coremltools")
    whole = All(ON_CORE_ML)
    export(whole, "coreml", inputs=whole.given, precision="fp32", out=tmp_path)


def test_an_input_of_many_axes_is_still_refused_by_core_ml(tmp_path: Path) -> None:
    pytest.importorskip("coremltools")
    with pytest.raises(Unsupported, match="Core ML takes inputs of up to 5 axes"):
        export(Plain(torch.sin), "coreml", inputs=[torch.ones(1, 1, 1, 1, 1, 2)], precision="fp32", out=tmp_path)
