"""Safe forms for the Neural Engine: they fire, leave the nearest program, keep the numbers, and hold as the engine."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import edgesmith
from edgesmith.errors import BadInput
from edgesmith.exporters.departures.book import all_departures
from edgesmith.exporters.mil.evaluate import Evaluator
from edgesmith.exporters.mil.legalize import legalizing
from edgesmith.exporters.mil.program import MlProgram, load
from edgesmith.exporters.mil.safe_forms import write_safe_forms

ct = pytest.importorskip("coremltools")
from coremltools.converters.mil import Builder as mb  # noqa: E402
from coremltools.converters.mil.mil import types  # noqa: E402


def convert(build: Callable[..., Any], *shapes: tuple[int, ...], path: Path, safe: bool, kept: set[str]) -> MlProgram:
    """A program in half precision, with safe forms or without."""
    program = traced(build, *shapes)
    with legalizing(kept) as legalization:
        model = ct.convert(
            program,
            convert_to="mlprogram",
            pass_pipeline=legalization.pipeline if safe else ct.PassPipeline(),
            minimum_deployment_target=ct.target.iOS17,
            compute_precision=ct.transform.FP16ComputePrecision(op_selector=lambda op: op.name not in kept),
            skip_model_load=True,
        )
        found = [one.rule for one in legalization.done]
    model.save(str(path))
    loaded = load(path)
    assert bool(found) == safe or not found
    loaded.metadata["test.found"] = ",".join(found)  # type: ignore[index]  # a plain dict here
    return loaded


def snr(wanted: np.ndarray, got: np.ndarray) -> float:
    if not np.isfinite(got).all():
        return -math.inf
    noise = float(np.square(wanted - got).sum())
    return math.inf if noise == 0 else 10 * math.log10(float(np.square(wanted).sum()) / noise)


def run(program: MlProgram, inputs: list[np.ndarray], device: str | None) -> np.ndarray:
    evaluator = Evaluator(program, device=device)
    names = [feature.name for feature in evaluator.interface.inputs]
    (result,) = evaluator.run(dict(zip(names, inputs, strict=True))).values()
    return np.asarray(result.double().numpy())


def log_sum_exp(x: np.ndarray) -> np.ndarray:
    peak = x.max(-1, keepdims=True)
    return np.asarray((peak + np.log(np.exp(x - peak).sum(-1, keepdims=True)))[..., 0])


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True))


N = 256
ANGLES = 2 * np.pi * np.outer(np.arange(N), np.arange(N // 2 + 1)) / N
COS, SIN = np.cos(ANGLES).astype(np.float32), np.sin(ANGLES).astype(np.float32)


def power(x: Any, scale: float = 1 / N**2) -> Any:
    """The power spectrum of a row, divided by the square of its length at the end."""
    squares = [mb.square(x=mb.matmul(x=x, y=matrix)) for matrix in (COS, SIN)]
    return mb.mul(x=mb.add(x=squares[0], y=squares[1]), y=np.float32(scale))


def attention(x: Any, z: Any) -> Any:
    scores = mb.mul(x=mb.matmul(x=x, y=z, transpose_y=True), y=np.float32(1 / 16))
    return mb.matmul(x=mb.softmax(x=scores, axis=-1), y=z)


WEIGHTS = np.random.default_rng(5).standard_normal((2, 64, 64)).astype(np.float32) / 2


def projected(x: Any, z: Any) -> Any:
    """Attention's weights of projected queries and keys, whose scale can go into a projection."""
    query, key = (mb.linear(x=one, weight=weight) for one, weight in zip((x, z), WEIGHTS, strict=True))
    scores = mb.mul(x=mb.matmul(x=query, y=key, transpose_y=True), y=np.float32(1 / 8))
    return mb.matmul(x=mb.softmax(x=scores, axis=-1), y=z)


def mish(x: Any) -> Any:
    return mb.mul(x=x, y=mb.tanh(x=mb.softplus(x=x)))


@dataclass
class Case:
    """A construct: its program, its inputs, what it means in float64, and the departure."""

    build: Callable[..., Any]
    inputs: list[np.ndarray]
    means: Callable[..., np.ndarray]
    id: str
    fails: bool = True


def drawn(*shape: int, scale: float = 1.0, shift: float = 0.0) -> np.ndarray:
    random = np.random.default_rng(3).standard_normal(shape)
    return (scale * random + shift).astype(np.float16).astype(np.float32)


CASES = {
    "softplus": Case(
        lambda x: mb.softplus(x=x), [drawn(4, 64, scale=12)], lambda x: np.logaddexp(0, x.astype(np.float64)), "CM1"
    ),
    "Mish": Case(mish, [drawn(4, 64, scale=12)], lambda x: x * np.tanh(np.logaddexp(0, x.astype(np.float64))), "CM1"),
    "log-sum-exp": Case(
        lambda x: mb.reduce_log_sum_exp(x=x, axes=[-1]), [drawn(4, 64, scale=3, shift=9)], log_sum_exp, "CM3"
    ),
    "log-sum-exp, kept": Case(
        lambda x: mb.reduce_log_sum_exp(x=x, axes=[-1], keep_dims=True),
        [drawn(4, 64, scale=3, shift=9)],
        lambda x: log_sum_exp(x)[..., None],
        "CM3",
    ),
    "log-softmax": Case(
        lambda x: mb.log(x=mb.softmax(x=x, axis=-1)),
        [drawn(4, 64, scale=20)],
        lambda x: x - log_sum_exp(x)[..., None],
        "CM4",
    ),
    "attention scale": Case(
        attention,
        [drawn(2, 16, 256, scale=13), drawn(2, 16, 256, scale=13)],
        lambda q, k: softmax(q.astype(np.float64) @ k.transpose(0, 2, 1) / 16) @ k,
        "CM7",
    ),
    "projected attention": Case(
        projected,
        [drawn(2, 16, 64, scale=20), drawn(2, 16, 64, scale=20)],
        lambda q, k: softmax((q @ WEIGHTS[0].T.astype(np.float64)) @ (k @ WEIGHTS[1].T).transpose(0, 2, 1) / 8) @ k,
        "CM7",
    ),
    "power spectrum": Case(
        power,
        [drawn(4, N, scale=1.0, shift=200)],
        lambda x: np.square(np.abs(np.fft.rfft(x.astype(np.float64)))) / N**2,
        "CM7",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_safe_form_holds_as_the_engine_where_the_original_does_not(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    shapes = [x.shape for x in case.inputs]
    wanted = case.means(*case.inputs)
    plain = convert(case.build, *shapes, path=tmp_path / "plain.mlpackage", safe=False, kept=set())
    safe = convert(case.build, *shapes, path=tmp_path / "safe.mlpackage", safe=True, kept=set())
    assert case.id in safe.metadata["test.found"].split(",")
    assert case.id in all_departures()
    assert snr(wanted, run(safe, case.inputs, "ane")) >= 40
    assert snr(wanted, run(safe, case.inputs, None)) >= 40
    assert snr(wanted, run(plain, case.inputs, "ane")) < 40


def traced(build: Callable[..., Any], *shapes: tuple[int, ...]) -> Any:
    """A program of MIL as it is built, before any pass."""
    specs = [mb.TensorSpec(shape, types.fp32) for shape in shapes]
    names = ["x", "z"][: len(shapes)]
    function = eval(f"lambda f: lambda {', '.join(names)}: f({', '.join(names)})")(build)
    return mb.program(input_specs=specs, opset_version=ct.target.iOS17)(function)


@pytest.mark.parametrize("name", CASES)
def test_a_safe_form_is_left_as_it_is(name: str) -> None:
    case = CASES[name]
    block = traced(case.build, *(x.shape for x in case.inputs)).functions["main"]
    assert [one[0] for one in write_safe_forms(block, set())] == [case.id]
    before = [op.op_type for op in block.operations]
    assert list(write_safe_forms(block, set())) == []
    assert [op.op_type for op in block.operations] == before


@pytest.mark.parametrize("name", CASES)
def test_a_safe_form_has_the_numbers_of_the_original(name: str, tmp_path: Path) -> None:
    """Where neither leaves a range, at small inputs, they are equal within fp16's rounding, and so to PyTorch's."""
    case = CASES[name]
    inputs = [x / np.abs(x).max() for x in case.inputs]
    shapes = [x.shape for x in inputs]
    plain = convert(case.build, *shapes, path=tmp_path / "plain.mlpackage", safe=False, kept=set())
    safe = convert(case.build, *shapes, path=tmp_path / "safe.mlpackage", safe=True, kept=set())
    wanted = case.means(*inputs)
    before, after = run(plain, inputs, None), run(safe, inputs, None)
    assert snr(before, after) >= 50
    assert snr(wanted, after) >= min(60, snr(wanted, before) - 3)


def test_a_scale_goes_into_a_projection_and_costs_no_operator() -> None:
    block = traced(projected, (2, 16, 64), (2, 16, 64)).functions["main"]
    before = sum(op.op_type != "const" for op in block.operations)
    assert [one[0] for one in write_safe_forms(block, set())] == ["CM7"]
    assert sum(op.op_type != "const" for op in block.operations) == before - 1


def flipped(x: Any) -> Any:
    return mb.transpose(x=x, perm=[0, 2, 1])


TURNED: dict[str, Callable[..., Any]] = {
    "a transpose": lambda x, z: mb.matmul(x=x, y=flipped(mb.softmax(x=z, axis=-1))),
    "a flag": lambda x, z: mb.matmul(x=x, y=mb.softmax(x=z, axis=-1), transpose_y=True),
    "both sides": lambda x, z: mb.matmul(x=flipped(x), y=mb.softmax(x=z, axis=-1), transpose_x=True, transpose_y=True),
}


@pytest.mark.parametrize("name", TURNED)
def test_transposed_attention_is_turned(name: str, tmp_path: Path) -> None:
    """CM14, a crash: the sums are the same, so numbers are equal."""
    x, z = drawn(2, 5, 8), drawn(2, 8, 8)
    block = traced(TURNED[name], x.shape, z.shape).functions["main"]
    assert [one[0] for one in write_safe_forms(block, set())] == ["CM14"]
    assert list(write_safe_forms(block, set())) == []
    plain = convert(TURNED[name], x.shape, z.shape, path=tmp_path / "a.mlpackage", safe=False, kept=set())
    safe = convert(TURNED[name], x.shape, z.shape, path=tmp_path / "b.mlpackage", safe=True, kept=set())
    np.testing.assert_array_equal(run(plain, [x, z], None), run(safe, [x, z], None))
    assert "CM14" not in {one.rule for one in edgesmith.lint(safe).findings}
    assert "CM14" in {one.rule for one in edgesmith.lint(plain).findings}


class Hot(nn.Module):
    """Products of 30,000 to 60,000, which fp16 has and the Neural Engine's products have not; nothing scales them."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.full((8, 64), 60000.0 / 64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.log(nn.functional.linear(0.75 + 0.25 * torch.tanh(x), self.weight))


def test_products_beyond_the_engines_range_stay_fp32_in_mixed(tmp_path: Path) -> None:
    from edgesmith.exporters.verify import verify_as

    x = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))
    found = {}
    for precision in ("fp16", "mixed"):
        artifact = edgesmith.export(
            Hot().eval(), "coreml", inputs=(x,), name="hot", precision=precision, out=tmp_path / precision
        )
        found[precision] = verify_as(artifact.path, "ane")["holds"], artifact.manifest.get("keep_fp32", {})
    assert found["fp16"][0] is False
    assert found["mixed"][0] is True
    assert any("ends at 32752 on the Neural Engine" in reason for reason in found["mixed"][1].values())


LEFT: dict[str, tuple[Callable[..., Any], list[tuple[int, ...]]]] = {
    "a bounded softplus": (lambda x: mb.softplus(x=mb.minimum(x=x, y=np.float32(9))), [(4, 8)]),
    "a shifted log-sum-exp": (
        lambda x: mb.reduce_log_sum_exp(x=mb.sub(x=x, y=mb.reduce_max(x=x, axes=[-1], keep_dims=True)), axes=[-1]),
        [(4, 8)],
    ),
    "a log of a sum": (lambda x: mb.log(x=mb.add(x=mb.softmax(x=x, axis=-1), y=np.float32(0.01))), [(4, 8)]),
    "a log with an epsilon": (lambda x: mb.log(x=mb.softmax(x=x, axis=-1), epsilon=np.float32(1e-3)), [(4, 8)]),
    "a scale above 1": (lambda x, z: mb.mul(x=mb.matmul(x=x, y=z), y=np.float32(2)), [(2, 4, 4), (2, 4, 4)]),
    "a tiny scale": (lambda x, z: mb.mul(x=mb.matmul(x=x, y=z), y=np.float32(1e-6)), [(2, 4, 4), (2, 4, 4)]),
    "a product that is read twice": (
        lambda x, z: (lambda p: mb.add(x=mb.mul(x=p, y=np.float32(0.5)), y=mb.relu(x=p)))(mb.matmul(x=x, y=z)),
        [(2, 4, 4), (2, 4, 4)],
    ),
    "a sum with what is no product": (
        lambda x, z: mb.mul(x=mb.add(x=mb.matmul(x=x, y=z), y=mb.relu(x=x)), y=np.float32(0.5)),
        [(2, 4, 4), (2, 4, 4)],
    ),
    "a quotient": (lambda x, z: mb.real_div(x=np.float32(0.5), y=mb.matmul(x=x, y=z)), [(2, 4, 4), (2, 4, 4)]),
    "attention's weights on the left": (
        lambda x, z: mb.matmul(x=mb.softmax(x=x, axis=-1), y=z, transpose_y=True),
        [(2, 4, 4), (2, 4, 4)],
    ),
    "attention's weights on the right as they are": (
        lambda x, z: mb.matmul(x=x, y=mb.softmax(x=z, axis=-1)),
        [(2, 4, 4), (2, 4, 4)],
    ),
    "a transpose of what is no attention": (
        lambda x, z: mb.matmul(x=x, y=mb.relu(x=z), transpose_y=True),
        [(2, 4, 4), (2, 4, 4)],
    ),
    "a scale per column": (
        lambda x, z: mb.mul(x=mb.matmul(x=x, y=z), y=np.array([0.5, 1, 1, 1], np.float32)),
        [(2, 4, 4), (2, 4, 4)],
    ),
}


@pytest.mark.parametrize("name", LEFT)
def test_the_nearest_programs_are_left(name: str, tmp_path: Path) -> None:
    build, shapes = LEFT[name]
    safe = convert(build, *shapes, path=tmp_path / "safe.mlpackage", safe=True, kept=set())
    assert safe.metadata["test.found"] == ""


TABLE = np.random.default_rng(0).standard_normal((10, 4)).astype(np.float32)
LOOKUPS: dict[str, tuple[Callable[[Any], Any], tuple[int, ...], bool]] = {
    "words": (lambda x: mb.gather(x=TABLE, indices=x, axis=0), (2, 3), True),
    "one row of indices": (lambda x: mb.gather(x=TABLE, indices=x, axis=0), (3,), False),
    "columns": (lambda x: mb.gather(x=TABLE.T, indices=x, axis=1), (2, 3), False),
    "a table of rank 3": (lambda x: mb.gather(x=TABLE[:, None], indices=x, axis=0), (2, 3), False),
}


@pytest.mark.parametrize("name", LOOKUPS)
def test_a_table_of_words_has_a_middle_axis_and_the_same_rows(name: str) -> None:
    build, shape, fires = LOOKUPS[name]
    program = mb.program(input_specs=[mb.TensorSpec(shape, types.int32)])(build)
    block = program.functions["main"]
    before = tuple(block.outputs[0].shape)
    found = [one[0] for one in write_safe_forms(block, ())]
    assert found == ["table-lookup"] * fires
    assert tuple(block.outputs[0].shape) == before
    (lookup,) = block.find_ops(op_type="gather")
    assert (lookup.x.rank == 3) == (fires or "rank 3" in name)
    assert np.array_equal(lookup.x.val.reshape(-1), (TABLE.T if name == "columns" else TABLE).reshape(-1))
    assert not list(write_safe_forms(block, ()))


def test_a_table_that_is_a_layers_weight_too_stays_one() -> None:
    def tied(x: Any) -> Any:
        weight = mb.const(val=TABLE)
        return mb.linear(x=mb.gather(x=weight, indices=x, axis=0), weight=weight)

    program = mb.program(input_specs=[mb.TensorSpec((2, 3), types.int32)])(tied)
    block = program.functions["main"]
    ((rule, _, change),) = write_safe_forms(block, ())
    assert (rule, change) == ("table-lookup", "indices into the table [10, 4] are in one row")
    (lookup,) = block.find_ops(op_type="gather")
    (layer,) = block.find_ops(op_type="linear")
    assert lookup.x is layer.weight
    assert (tuple(lookup.outputs[0].shape), tuple(layer.x.shape)) == ((6, 4), (2, 3, 4))
    assert not list(write_safe_forms(block, ()))


def test_operators_that_stay_fp32_are_left(tmp_path: Path) -> None:
    def build(x: Any) -> Any:
        return mb.softplus(x=x, name="wide")

    left = convert(build, (4, 8), path=tmp_path / "left.mlpackage", safe=True, kept={"wide"})
    assert left.metadata["test.found"] == ""


def test_safe_forms_are_exact_in_half_precision(tmp_path: Path) -> None:
    """Every fp16 number has the same softplus, rounded once, as the form without a bound."""
    every = np.arange(65536, dtype=np.uint16).view(np.float16)
    x = every[np.isfinite(every)].astype(np.float32).reshape(2, -1)
    plain = convert(lambda x: mb.softplus(x=x), x.shape, path=tmp_path / "a.mlpackage", safe=False, kept=set())
    safe = convert(lambda x: mb.softplus(x=x), x.shape, path=tmp_path / "b.mlpackage", safe=True, kept=set())
    np.testing.assert_array_equal(run(plain, [x], None), run(safe, [x], None))


def test_rows_that_are_masked_throughout_keep_their_log_sum_exp(tmp_path: Path) -> None:
    x = np.array([[-np.inf, -np.inf], [1.0, -np.inf], [60000.0, 60000.0]], np.float32)
    safe = convert(
        lambda x: mb.reduce_log_sum_exp(x=x, axes=[-1]), x.shape, path=tmp_path / "a.mlpackage", safe=True, kept=set()
    )
    np.testing.assert_allclose(run(safe, [x], "ane"), [-np.inf, 1.0, 60000.0], rtol=1e-3)


# ------------------------------------------------------------------------------------------------------- whole exports


class Constructs(nn.Module):
    """A head that has each construct once."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        steps = nn.functional.softplus(self.layer(x)) + nn.functional.mish(x)
        energy = torch.logsumexp(steps, -1, keepdim=True)
        return torch.log(torch.softmax(steps, -1)) + energy


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Any:
    x = torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
    return edgesmith.export(
        Constructs().eval(), "coreml", inputs=(x,), name="constructs", out=tmp_path_factory.mktemp("safe")
    )


def test_the_manifest_lists_each_safe_form_with_its_id(artifact: Any) -> None:
    counts = Counter(one["rule"] for one in artifact.manifest["legalized"])
    assert counts == {"CM1": 2, "CM3": 1, "CM4": 1}
    report = edgesmith.lint(artifact.path)
    assert not {"CM1", "CM2", "CM3", "CM4", "CM5", "CM7"} & {one.rule for one in report.findings}
    assert {one.rule for one in report.legalized} == counts.keys()


def test_verify_shows_what_the_engine_would_do(artifact: Any) -> None:
    from edgesmith.exporters.verify import verify_as

    found = verify_as(artifact.path, "ane")
    assert found["holds"]
    assert found["model"] == "of documented departures, not measured"
    with pytest.raises(BadInput, match="ane for coreml"):
        verify_as(artifact.path, "tpu")


def test_an_evaluator_knows_its_devices(tmp_path: Path) -> None:
    program = convert(lambda x: mb.softplus(x=x), (1, 4), path=tmp_path / "a.mlpackage", safe=False, kept=set())
    x = np.array([[1, 10, 10.5, 100]], np.float32)
    assert run(program, [x], "ane")[0, 2:].tolist() == [0, 0]
    assert run(program, [x], None)[0, 2:].tolist() == [10.5, 100]
    with pytest.raises(BadInput, match="there are ane"):
        Evaluator(program, device="gpu")
    with pytest.raises(BadInput, match="at declared precision"):
        Evaluator(program, device="ane", precision="fp32")
