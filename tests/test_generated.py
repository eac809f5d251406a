"""Generated models: recipes are the same models everywhere, and the judge of their files sees what is wrong."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from support.formula import Formula
from torch import Tensor, nn

from edgesmith.errors import BadInput, Unsupported, VerificationFailed
from edgesmith.exporters import decompositions
from edgesmith.exporters.export import export
from edgesmith.exporters.generated import campaign, draw, recipes, trial
from edgesmith.exporters.generated.recipes import Generated, Recipe, draw_inputs
from edgesmith.exporters.graph.capture import capture, computes_in_half, run
from edgesmith.exporters.graph.plain_types import with_plain_types
from edgesmith.exporters.judge import Unverified
from edgesmith.exporters.verification import sweep
from edgesmith.exporters.verification.conformance import CRASH, LEAKS, REFUSED, RIGHT, WRONG
from edgesmith.exporters.verification.tolerance import Expected

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
    captured = capture(Formula(WHOLE[name]), given)
    plain = with_plain_types(captured)
    kinds = {
        v.dtype for n in plain.module.graph.nodes if n.op == "call_function" and isinstance(v := n.meta["val"], Tensor)
    }
    assert kinds.isdisjoint({torch.uint8, torch.int8, torch.int16})
    for a, b in zip(run(captured, given), run(plain, given), strict=True):
        assert torch.equal(a.double(), b.double())
    assert with_plain_types(captured, doubles=True) is not captured


def test_doubles_stay_unless_they_are_asked_for() -> None:
    captured = capture(Formula(lambda x: x.sin() + torch.ones(3, dtype=torch.float64)), [torch.ones(3).double()])
    assert with_plain_types(captured) is captured
    assert run(with_plain_types(captured, doubles=True), captured.inputs)[0].dtype == torch.float32


def test_a_model_computes_in_half_where_an_operator_rounds_to_it() -> None:
    given = [torch.ones(3).half()]
    assert computes_in_half(capture(Formula(torch.sin), given))
    assert not computes_in_half(capture(Formula(lambda x: x.float().sin()), given))


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


# Types and roundings that ONNX Runtime has otherwise

ONNX_COLUMNS = pytest.mark.parametrize("column", [ONNX, "tensorrt:fp32"])

OF_WHOLE_NUMBERS: list[list[Any]] = [
    *(["neg", ["x"], {}], ["relu", ["x"], {}], ["abs", ["x"], {}], ["clip", ["x"], {"min": -1, "max": 1}]),
    *([name, ["x", "y"], {}] for name in ("add", "sub", "mul", "maximum", "minimum", "eq", "gt")),
    *([name, ["x"], {"dim": 1}] for name in ("sum", "argmax", "max_along")),
    *(["tril", ["x"], {"diagonal": 0}], ["where", ["c", "x", "y"], {}], ["cat", ["x", "y"], {"dim": 1}]),
    *(["matmul", ["x", "t"], {}], ["div", ["x", "y"], {}], ["floor_div", ["x", "d"], {}]),
    ["pad", ["i"], {"pad": [1, 2], "mode": "reflect"}],
    *(
        ["pad", ["x"], {"pad": [1, side], "mode": "constant", "value": value}]
        for side in (2, -1)
        for value in (2.7, -1.6)
    ),
    *([name, ["n"], {"dim": 0}] for name in ("max_along", "min_along")),
    ["MaxPool2d", ["i"], {"kernel_size": [2, 3], "stride": 1, "padding": 1}],
    ["AvgPool2d", ["i"], {"kernel_size": [2, 3], "stride": 1, "padding": 1}],
    ["interpolate", ["i"], {"size": [5, 3], "mode": "nearest"}],
    *(["to", ["x"], {"dtype": dtype}] for dtype in ("bool", "int64", "float32")),
]


def of_type(dtype: str, steps: list[list[Any]]) -> Recipe:
    """Return a model of all steps that PyTorch takes in a type."""
    shapes: dict[str, list[int]] = {"x": [3, 4], "y": [3, 4], "i": [1, 2, 4, 4], "n": []}
    inputs = [*([name, dtype, shape] for name, shape in shapes.items()), ["c", "bool", [3, 4]]]
    first: list[list[Any]] = [
        ["d", "clip", ["y"], {"min": 1, "max": 5}],
        ["t", "transpose", ["x"], {"dim0": 0, "dim1": 1}],
    ]
    named: list[list[Any]] = [[f"o{k}", *step] for k, step in enumerate(steps)]
    taken = [one for one in named if draw._runs(model(*first, one, inputs=inputs, outputs=[one[0]]))]
    assert len(taken) > 0.7 * len(steps)
    return model(*first, *taken, inputs=inputs, outputs=[one[0] for one in taken])


@pytest.mark.parametrize(
    ("dtype", "column"),
    [
        *((dtype, column) for column in (ONNX, "tensorrt:fp32") for dtype in ("uint8", "int8", "int32", "int64")),
        *(("int32", column) for column in ("coreml:fp32", "coreai:fp32")),
    ],
)
def test_operators_take_whole_numbers_of_every_type(dtype: str, column: str) -> None:
    if (reason := sweep.column(column).target.cannot_run()) is not None:
        pytest.skip(reason)
    found = trial.judge(of_type(dtype, OF_WHOLE_NUMBERS), sweep.column(column))
    assert found.kind == RIGHT, found.why


RESIZES: dict[str, tuple[list[int], dict[str, Any]]] = {
    "linear": ([2, 3, 1], {"size": [4]}),
    "bilinear": ([2, 3, 1, 5], {"size": [4, 5]}),
    "bicubic": ([2, 3, 1, 5], {"size": [4, 5]}),
    "bilinear smoothed": ([2, 3, 1, 5], {"size": [4, 5], "antialias": True}),
    "bicubic smoothed": ([2, 3, 1, 5], {"size": [4, 5], "antialias": True}),
    "trilinear": ([2, 3, 1, 5, 2], {"size": [4, 5, 2]}),
}


def test_doubles_that_are_resized_stay_doubles() -> None:
    """A row that is repeated compares with itself as it did, which a float of it does not; others have all digits."""

    def resize(*given: Tensor) -> tuple[Tensor, ...]:
        found: list[Tensor] = []
        for x, (name, (_, how)) in zip(given, RESIZES.items(), strict=True):
            y = nn.functional.interpolate(x, mode=name.split()[0], **how)
            found += [x < y, x > y, y] if name.endswith("linear") else [y]
        return tuple(found)

    generator = torch.Generator().manual_seed(0)
    given = tuple(torch.randn(shape, generator=generator, dtype=torch.float64) for shape, _ in RESIZES.values())
    (got,) = run_file(Formula(resize), given, ONNX)
    for value, wanted in zip(got, resize(*given), strict=True):
        np.testing.assert_allclose(value, wanted.numpy(), rtol=1e-13)


THAT_DECIDE: list[list[Any]] = [
    *([name, ["s"], {}] for name in ("floor", "ceil", "round", "sin", "cos", "argmax")),
    *(["argmax", ["s"], {"dim": 0}], ["gt", ["s", "r"], {}], ["eq", ["s", "r"], {}]),
    *(["to", ["s"], {"dtype": dtype}] for dtype in ("int64", "bool", "float32")),
]


@ONNX_COLUMNS
def test_what_half_precision_rounds_is_rounded_before_it_decides(column: str) -> None:
    """Operators that decide, of 4,096 numbers behind others that round, in a model that is in half precision itself."""
    before: list[list[Any]] = [
        ["a", "sin", ["x"], {}],
        ["b", "mul", ["a", "y"], {}],
        ["r", "neg", ["b"], {}],
        ["u", "cat", ["b", "r"], {"dim": 1}],
        ["v", "slice", ["u"], {"axis": 1, "start": -64, "stop": 128, "step": 1}],
        ["s", "add", ["v", "x"], {}],
    ]
    steps: list[list[Any]] = [[f"o{k}", *step] for k, step in enumerate(THAT_DECIDE)]
    inputs = [["x", "float16", [64, 64]], ["y", "float16", [64, 64]]]
    recipe = model(*before, *steps, inputs=inputs, outputs=[one[0] for one in steps])
    built, given = Generated(recipe).eval(), draw_inputs(recipe, "normal")
    (got,) = run_file(built, given, column)
    for step, value, wanted in zip(THAT_DECIDE, got, built(*given), strict=True):
        assert np.array_equal(value, wanted.numpy()), step


OF_HALVES: dict[str, Callable[..., Any]] = {
    "log2": lambda x, y: x.abs().log2(),
    "log10": lambda x, y: x.abs().log10(),
    "reciprocal": lambda x, y: x.reciprocal(),
    "quotient": lambda x, y: x / y,
    "prelu": lambda x, y: nn.functional.prelu(x, y[0, :1]),
    "addcmul": lambda x, y: torch.addcmul(x, x, y, value=0.3),
}


@pytest.mark.parametrize("target", ["coreml", "coreai"])
def test_halves_stay_halves(target: str) -> None:
    """In a model that is in half precision itself every operator rounds to it: results are halves, and PyTorch's."""
    if (reason := sweep.column(f"{target}:fp32").target.cannot_run()) is not None:
        pytest.skip(reason)
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(16, 16, generator=generator).half() for _ in range(2))
    (got,) = run_file(Formula(lambda x, y: [one(x, y).float() for one in OF_HALVES.values()]), (x, y), f"{target}:fp32")
    for value, (name, one) in zip(got, OF_HALVES.items(), strict=True):
        wanted = one(x, y).float().numpy()
        assert np.array_equal(value, value.astype(np.float16)), name
        np.testing.assert_allclose(value, wanted, rtol=2e-3, atol=2e-3, err_msg=name)


def test_a_value_that_rounding_makes_none_may_be_none() -> None:
    """Of x / x, with an x that rounding decides to be 0 or 1, nothing is known."""
    expected = Expected(np.ones(2), np.ones(2), np.array([np.inf, 1e-6]), "float32")
    assert expected.differs(np.array([np.nan, 1.0])) is None
    assert expected.differs(np.array([1.0, np.nan])) is not None


def run_file(built: nn.Module, given: tuple[Tensor, ...], column: str) -> list[list[np.ndarray]]:
    one = sweep.column(column)
    profile = None if one.profile is None else one.profile.name
    with tempfile.TemporaryDirectory() as folder:
        artifact = export(built, one.target.name, inputs=given, precision="fp32", device=profile, out=folder)
        outputs = one.target.open(artifact.file).run([[x.numpy() for x in given]])
    assert isinstance(outputs, list), outputs
    return outputs


def test_layers_of_half_precision_stay_in_it(tmp_path: Path) -> None:
    """No product is cast for an argmax behind it; what lies between them is."""
    layers = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8), nn.Softmax(-1)).half()
    artifact = export(
        Formula(lambda x: layers(x).argmax(-1)),
        "onnx",
        inputs=[torch.randn(3, 8).half()],
        precision="fp32",
        out=tmp_path,
    )
    file = onnx.load(artifact.file)
    made_by = {name: node for node in file.graph.node for name in node.output}
    products = [node for node in file.graph.node if node.op_type in ("Gemm", "MatMul")]
    assert len(products) == 2
    assert not [node for node in products if node.input[0] in made_by and made_by[node.input[0]].op_type == "Cast"]
    (softmax,) = (node for node in file.graph.node if node.op_type == "Softmax")
    assert made_by[softmax.input[0]].op_type == "Cast"


READ_FOR_THEIR_DIGITS: dict[str, Callable[[Tensor], Tensor]] = {
    "log": lambda x: torch.sigmoid(x).log(),
    "log2 of a view": lambda x: torch.sigmoid(x).reshape(-1, 2).log2(),
    "quotient": lambda x: 1e-6 / torch.sigmoid(x),
    "root": lambda x: torch.sigmoid(x).sqrt(),
    "power": lambda x: torch.sigmoid(x) ** -0.3,
    "reciprocal": lambda x: torch.sigmoid(x).reciprocal(),
}


@ONNX_COLUMNS
@pytest.mark.parametrize("name", READ_FOR_THEIR_DIGITS)
def test_small_sigmoids_that_are_read_for_their_digits_have_them(name: str, column: str) -> None:
    given = torch.linspace(-60, 20, 64).reshape(4, 16)
    (got,) = run_file(Formula(READ_FOR_THEIR_DIGITS[name]), (given,), column)
    np.testing.assert_allclose(got[0], READ_FOR_THEIR_DIGITS[name](given).numpy(), rtol=3e-6)


def test_a_sigmoid_that_is_added_or_multiplied_stays_one(tmp_path: Path) -> None:
    def gates(x: Tensor) -> tuple[Tensor, ...]:
        gate = torch.sigmoid(x)
        return gate * x, gate + x, gate, x / (1 + gate)

    artifact = export(Formula(gates), "onnx", inputs=[torch.randn(3, 8)], precision="fp32", out=tmp_path)
    assert "Sigmoid" in {node.op_type for node in onnx.load(artifact.file).graph.node}


@pytest.mark.parametrize(
    ("steps", "kind"),
    [
        ([["v1", "sigmoid", ["v0"], {}]], RIGHT),
        ([["v1", "sigmoid", ["v0"], {}], ["v2", "log2", ["v1"], {}]], WRONG),
    ],
)
def test_the_judge_takes_a_sigmoid_as_a_number_around_one(
    steps: list[list[Any]], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One whose error is 6e-8 everywhere is right, but where its logarithm is asked for."""
    recipe = model(*steps, inputs=[["v0", "float32", [4, 16]]], outputs=[steps[-1][0]])
    built = Generated(recipe).eval()
    given = (torch.linspace(-20, 20, 64).reshape(4, 16),)
    monkeypatch.setattr(trial, "draw_inputs", lambda *_: given)
    sigmoid = (torch.sigmoid(given[0].double()) + 2.0**-24).float()
    off = sigmoid if len(steps) == 1 else sigmoid.log2()
    (expected,) = trial.expect(built, given, "float32")
    assert (expected.differs(off.numpy()) is None) == (kind == RIGHT)


def test_an_output_that_is_never_finite_says_nothing_against_the_others(tmp_path: Path) -> None:
    def some(x: Tensor) -> tuple[Tensor, Tensor]:
        return x.sin(), (x - x) / (x - x)

    with pytest.warns(Unverified, match="none of its values is finite"):
        export(Formula(some), "onnx", inputs=[torch.randn(3, 4)], precision="fp32", out=tmp_path)
    with pytest.raises(VerificationFailed, match="not finite on any"), pytest.warns(Unverified):
        export(Formula(lambda x: some(x)[1]), "onnx", inputs=[torch.randn(3, 4)], precision="fp32", out=tmp_path)


def test_an_input_of_many_axes_is_still_refused_by_core_ml(tmp_path: Path) -> None:
    pytest.importorskip("coremltools")
    with pytest.raises(Unsupported, match="Core ML takes inputs of up to 5 axes"):
        export(Formula(torch.sin), "coreml", inputs=[torch.ones(1, 1, 1, 1, 1, 2)], precision="fp32", out=tmp_path)
