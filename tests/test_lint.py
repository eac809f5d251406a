"""The Neural Engine lint: for each rule a saved program that breaks it and one that keeps it; the command; the zoo."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.lowering import lower
from support.small_models import FAMILIES
from support.zoo import FIRST_ZOO
from torch import nn

import edgesmith
from edgesmith import records
from edgesmith.errors import BadInput, Unsupported
from edgesmith.exporters import targets
from edgesmith.exporters.departures.book import all_departures
from edgesmith.exporters.graph.capture import capture
from edgesmith.exporters.mil import lint as lints
from edgesmith.exporters.mil.legalize import LEGALIZED
from edgesmith.exporters.mil.program import load
from edgesmith.exporters.mil.rules import MASK, RULES, SEVERITIES
from edgesmith.exporters.rewrites.order import rewrite

ct = pytest.importorskip("coremltools")
from coremltools.converters.mil import Builder as mb  # noqa: E402
from coremltools.converters.mil.mil import types  # noqa: E402

HALF = np.float16
WIDE = (1, 8, 32, 64)
"""A shape that keeps every rule."""


@dataclass
class Sample:
    """A program: its input's shape, what it computes, and how its package is changed after that."""

    build: Callable[..., Any]
    shape: tuple[Any, ...] = WIDE
    dtype: Any = types.fp16
    opset: str = "iOS17"
    state: tuple[int, ...] | None = None
    input: Any = None
    edit: Callable[[Any], None] | None = None
    others: set[str] = field(default_factory=set)


def weight(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(HALF)


def conv(*kernel: int, **settings: Any) -> Callable[..., Any]:
    def build(x: Any) -> Any:
        channels = x.shape[1]
        padding = {"pad_type": "same"} if "dilations" not in settings else {"pad_type": "valid"}
        return mb.conv(x=x, weight=weight(8, channels, *kernel), **padding, **settings)

    return build


def save(sample: Sample, path: Path) -> Path:
    """Build a program as it is, without passes that would mend it, and save it."""
    specs = [mb.TensorSpec(sample.shape, sample.dtype)]
    if sample.state is not None:
        specs.append(mb.StateTensorSpec(sample.state, types.fp16))

    def function(*inputs: Any) -> Any:
        return sample.build(*inputs)

    arguments = ["x", "s"][: len(specs)]
    named = eval(f"lambda f: lambda {', '.join(arguments)}: f({', '.join(arguments)})")(function)
    opset = getattr(ct.target, sample.opset)
    program = mb.program(input_specs=specs, opset_version=opset)(named)
    model = ct.convert(
        program,
        inputs=None if sample.input is None else [sample.input],
        convert_to="mlprogram",
        minimum_deployment_target=opset,
        pass_pipeline=ct.PassPipeline.EMPTY,
        skip_model_load=True,
    )
    model.save(str(path))
    if sample.edit is not None:
        file = next(path.rglob("*.mlmodel"))
        spec = ct.proto.Model_pb2.Model()
        spec.ParseFromString(file.read_bytes())
        sample.edit(spec)
        file.write_bytes(spec.SerializeToString())
    return path


def six_axes(spec: Any) -> None:
    """Give every tensor one more axis; coremltools itself refuses to write such programs."""
    function = spec.mlProgram.functions["main"]
    values = [*function.inputs]
    for operation in function.block_specializations[function.opset].operations:
        values += operation.outputs if operation.type != "const" else []
    for value in values:
        kind = value.type.tensorType
        kind.dimensions.insert(0, type(kind.dimensions[0])(constant={"size": 1}))
        kind.rank += 1


def fp32_state(spec: Any) -> None:
    """Make the state single precision, which coremltools' own states are not."""
    (state,) = (one for one in spec.mlProgram.functions["main"].inputs if one.name == "s")
    state.type.stateType.wrappedType.tensorType.dataType = ct.proto.MIL_pb2.FLOAT32


def norm(x: Any, square: str = "mul", epsilon: bool = True) -> Any:
    """A layer norm over the channels, in primitives."""
    centred = mb.sub(x=x, y=mb.reduce_mean(x=x, axes=[1], keep_dims=True), name="centred")
    squares = {
        "mul": lambda: mb.mul(x=centred, y=centred),
        "square": lambda: mb.square(x=centred),
        "pow": lambda: mb.pow(x=centred, y=HALF(2)),
    }[square]()
    variance = mb.reduce_mean(x=squares, axes=[1], keep_dims=True)
    if not epsilon:
        return mb.mul(x=centred, y=mb.rsqrt(x=variance, epsilon=HALF(1e-3)))
    return mb.real_div(x=centred, y=mb.sqrt(x=mb.add(x=variance, y=HALF(1e-3))))


def rms_norm(x: Any) -> Any:
    mean = mb.reduce_mean(x=mb.mul(x=x, y=x), axes=[1], keep_dims=True)
    return mb.mul(x=x, y=mb.rsqrt(x=mean, epsilon=HALF(1e-3)))


def looped(x: Any) -> Any:
    result = mb.while_loop(
        _cond=lambda i, y: mb.less(x=i, y=np.int32(3)),
        _body=lambda i, y: (mb.add(x=i, y=np.int32(1)), mb.relu(x=y)),
        loop_vars=(mb.fill(shape=np.array([], dtype=np.int32), value=np.int32(0)), x),
    )
    return result[1]


def palettised(stride: int) -> Callable[..., Any]:
    def build(x: Any) -> Any:
        shape = np.array([8, 8, 3, 3], dtype=np.uint32)
        indices = np.arange(576 // 8, dtype=np.uint8)
        kernel = mb.constexpr_lut_to_dense(indices=indices, lut=weight(2), shape=shape)
        return mb.conv(x=x, weight=kernel, strides=[stride, stride], pad_type="same")

    return build


def lstm(x: Any) -> Any:
    zero = np.zeros((1, 32), HALF)
    arguments = {"weight_ih": weight(128, 32), "weight_hh": weight(128, 32), "bias": weight(128)}
    return mb.lstm(x=x, initial_h=zero, initial_c=zero, output_sequence=True, **arguments)[0]


def cast32(x: Any) -> Any:
    return mb.cast(x=x, dtype="fp32")


def stay_half(build: Callable[..., Any]) -> Callable[..., Any]:
    """With so many half-precision operators that the program is one of half precision."""

    def longer(x: Any) -> Any:
        for _ in range(6):
            x = mb.relu(x=x)
        return build(x)

    return longer


def relu(x: Any, *_: Any) -> Any:
    return mb.relu(x=x)


def stateful(x: Any, s: Any) -> Any:
    return mb.add(x=x, y=mb.read_state(input=s))


RANGE = ct.TensorType(name="x", shape=(1, 8, 32, ct.RangeDim(32, 64)), dtype=np.float16)


def restored(last: Callable[[Any], Any] = lambda y: y, adds: bool = True) -> Callable[[Any], Any]:
    """A forecaster of one layer in half precision: it takes the mean off, and adds it again, or another number."""

    def build(x: Any) -> Any:
        wide = cast32(x)
        level = mb.reduce_mean(x=wide, axes=[2], keep_dims=True)
        shape = mb.cast(x=mb.sub(x=wide, y=level), dtype="fp16")
        y = cast32(mb.relu(x=mb.conv(x=shape, weight=weight(8, x.shape[1], 1, 1))))
        return last(mb.add(x=y, y=level if adds else y))

    return build


def classes(half: str = "fp16", last: Callable[[Any], Any] | None = None) -> Callable[[Any], Any]:
    """Classes of pixels by three layers: the first and the last in fp32, the middle one in another type."""

    def layer(x: Any, dtype: str = "fp32") -> Any:
        number = HALF if dtype == "fp16" else np.float32
        return mb.conv(x=mb.cast(x=x, dtype=dtype), weight=weight(8, x.shape[1], 1, 1).astype(number))

    def build(x: Any) -> Any:
        scores = layer(mb.relu(x=layer(mb.relu(x=layer(x)), half)))
        return mb.reduce_argmax(x=scores, axis=1, keep_dims=False) if last is None else last(scores)

    return build


LISTED = ct.TensorType(name="x", shape=ct.EnumeratedShapes([(1, 8, 32, 64), (1, 8, 32, 32)]), dtype=np.float16)
OPEN = (1, 8, 32, ct.RangeDim(32, 64).symbol)

CASES: dict[str, tuple[list[Sample], list[Sample]]] = {
    "rank": ([Sample(relu, (1, 1, 8, 32, 64), edit=six_axes)], [Sample(relu, (1, 1, 8, 32, 64))]),
    "fp32-computation": (
        [
            Sample(relu, dtype=types.fp32),
            Sample(lambda x: mb.cast(x=mb.exp(x=cast32(x)), dtype="fp16")),
            Sample(lambda x: mb.cast(x=mb.greater(x=cast32(x), y=np.float32(0)), dtype="fp16")),
        ],
        [Sample(relu), Sample(lambda x: cast32(mb.relu(x=x)))],
    ),
    "fp32-constant": (
        [Sample(stay_half(lambda x: mb.mul(x=cast32(x), y=np.float32(2))))],
        [Sample(stay_half(lambda x: mb.mul(x=x, y=HALF(2)))), Sample(lambda x: mb.mul(x=x, y=HALF(2)))],
    ),
    "dynamic-shape": (
        [
            Sample(relu, OPEN, input=RANGE),
            Sample(lambda x: mb.cast(x=mb.non_zero(x=mb.relu(x=x)), dtype="fp16")),
        ],
        [Sample(relu)],
    ),
    "enumerated-shapes": ([Sample(relu, OPEN, input=LISTED)], [Sample(relu), Sample(relu, OPEN, input=RANGE)]),
    "infinite-constant": (
        [
            Sample(lambda x: mb.softmax(x=mb.add(x=x, y=HALF(-np.inf)), axis=1)),
            Sample(lambda x: mb.mul(x=x, y=np.full(64, np.inf, HALF))),
            Sample(lambda x: mb.add(x=x, y=HALF(np.nan))),
        ],
        [
            Sample(lambda x: mb.softmax(x=mb.add(x=x, y=HALF(MASK)), axis=1)),
            Sample(lambda x: mb.clip(x=x, alpha=HALF(0), beta=HALF(np.inf))),
        ],
    ),
    "fp16-overflow": (
        [Sample(stay_half(lambda x: mb.cast(x=mb.add(x=cast32(x), y=np.float32(-1e9)), dtype="fp16")))],
        [
            Sample(stay_half(lambda x: mb.cast(x=mb.add(x=cast32(x), y=np.float32(-4e4)), dtype="fp16"))),
            Sample(lambda x: mb.add(x=x, y=np.float32(-1e9)), dtype=types.fp32),
        ],
    ),
    "recurrent-operator": ([Sample(lstm, (4, 1, 32))], [Sample(relu)]),
    "table-lookup": (
        [Sample(lambda x: mb.gather(x=weight(10, 32), indices=x, axis=0), (1, 8), types.int32)],
        [Sample(lambda x: mb.gather(x=weight(10, 1, 32), indices=x, axis=0), (1, 8), types.int32)],
    ),
    "fp32-level": (
        [Sample(restored()), Sample(restored(lambda y: mb.transpose(x=y, perm=[0, 1, 3, 2])))],
        [Sample(restored(adds=False)), Sample(lambda x: mb.cast(x=mb.exp(x=cast32(x)), dtype="fp16"))],
    ),
    "fp32-near-ties": (
        [Sample(classes())],
        [
            Sample(classes("fp32")),
            Sample(classes(last=lambda y: mb.reduce_max(x=y, axes=[1]))),
            Sample(classes(last=lambda y: mb.reduce_argmax(x=mb.reduce_mean(x=y, axes=[2, 3]), axis=1))),
        ],
    ),
    "singleton-last-axis": (
        [Sample(lambda x: mb.reduce_mean(x=x, axes=[3], keep_dims=True)), Sample(relu, (1, 8, 64, 1))],
        [Sample(lambda x: mb.reduce_mean(x=x, axes=[2], keep_dims=True))],
    ),
    "short-last-axis": ([Sample(relu, (1, 8, 32, 31))], [Sample(relu, (1, 8, 32, 32)), Sample(relu, (1, 8, 32, 1))]),
    "unaligned-last-axis": ([Sample(relu, (1, 8, 32, 33))], [Sample(relu), Sample(relu, (1, 8, 32, 7))]),
    "padding": (
        [Sample(relu, (1, 64, 1024, 15)), Sample(relu, (1, 1 << 15, 1, 1))],
        [Sample(relu, (1, 64, 1024, 17)), Sample(relu, (1, 64, 64, 1))],  # less than twice; less than a MiB
    ),
    "linear": (
        [
            Sample(lambda x: mb.linear(x=x, weight=weight(32, 64))),
            Sample(lambda x: mb.matmul(x=x, y=weight(64, 32))),
            Sample(lambda x: mb.matmul(x=weight(32, 32), y=x)),
        ],
        [Sample(conv(1, 1)), Sample(lambda x: mb.matmul(x=x, y=x, transpose_y=True))],
    ),
    "not-4d": ([Sample(conv(3), (1, 8, 64))], [Sample(conv(1, 3), (1, 8, 1, 64))]),
    "copy-of-last-axis": (
        [
            Sample(lambda x: mb.transpose(x=x, perm=[0, 1, 3, 2])),
            Sample(lambda x: mb.transpose(x=x, perm=[0, -1, 2, 1])),
            Sample(lambda x: mb.reshape(x=x, shape=(1, 8, 64, 32))),
        ],
        [
            Sample(lambda x: mb.transpose(x=x, perm=[0, 2, 1, 3])),
            Sample(lambda x: mb.transpose(x=x, perm=[0, 3, 1, 2]), (1, 8, 64, 1)),
            Sample(lambda x: mb.reshape(x=x, shape=(1, 256, 64))),
        ],
    ),
    "softmax-axis": (
        [Sample(lambda x: mb.softmax(x=x, axis=-1)), Sample(lambda x: mb.softmax(x=x, axis=2))],
        [Sample(lambda x: mb.softmax(x=x, axis=1)), Sample(lambda x: mb.softmax(x=x, axis=-1), (1, 64))],
    ),
    "fused-attention": (
        [Sample(lambda x: mb.scaled_dot_product_attention(query=x, key=x, value=x), opset="iOS18")],
        [Sample(relu, opset="iOS18")],
    ),
    "stride": (
        [Sample(conv(3, 3, strides=s), (1, 8, 64, 64)) for s in ([11, 11], [7, 5], [5, 1], [2, 5], [3, 4], [36, 36])],
        [Sample(conv(3, 3, strides=s), (1, 8, 64, 64)) for s in ([1, 1], [2, 1], [2, 4], [8, 8], [3, 3])],
    ),
    "palettised-stride": (
        [Sample(palettised(4), opset="iOS16")],
        [Sample(palettised(2), opset="iOS16"), Sample(conv(3, 3, strides=[4, 4]))],
    ),
    "large-kernel": ([Sample(conv(1, 9)), Sample(conv(31), (1, 8, 64))], [Sample(conv(5, 5)), Sample(conv(7, 7))]),
    "dilation": ([Sample(conv(3, 3, dilations=[8, 8]))], [Sample(conv(3, 3, dilations=[2, 3])), Sample(conv(3, 3))]),
    "pooling-stride": (
        [
            Sample(lambda x: mb.max_pool(x=x, kernel_sizes=[3, 3], strides=[3, 3], pad_type="valid")),
            Sample(lambda x: mb.avg_pool(x=x, kernel_sizes=[5, 5], strides=[1, 5], pad_type="valid")),
        ],
        [
            Sample(lambda x: mb.max_pool(x=x, kernel_sizes=[3, 3], strides=[2, 4], pad_type="same")),
            Sample(lambda x: mb.avg_pool(x=x, kernel_sizes=[3, 3], pad_type="same")),
        ],
    ),
    "spelled-layer-norm": (
        [
            Sample(norm),
            Sample(lambda x: norm(x, "square", epsilon=False)),
            Sample(lambda x: norm(x, "pow")),
        ],
        [
            Sample(lambda x: mb.layer_norm(x=x, axes=[1], epsilon=HALF(1e-3))),
            Sample(rms_norm),
            Sample(lambda x: mb.sqrt(x=x)),
            Sample(lambda x: mb.sqrt(x=mb.reduce_mean(x=mb.pow(x=x, y=HALF(3)), axes=[1]))),
        ],
    ),
    "state-size": (
        [Sample(stateful, (1, 270), state=(1, 270), opset="iOS18")],
        [Sample(stateful, (1, 256), state=(1, 256), opset="iOS18")],
    ),
    "state-type": (
        [Sample(stateful, (1, 256), state=(1, 256), opset="iOS18", edit=fp32_state)],
        [Sample(stateful, (1, 256), state=(1, 256), opset="iOS18")],
    ),
    "control-flow": ([Sample(looped)], [Sample(relu)]),
    "other-types": (
        [
            Sample(lambda x: mb.cast(x=x, dtype="int32")),
            Sample(lambda x: mb.add(x=x, y=np.int32(1)), dtype=types.int32),
        ],
        [Sample(relu)],
    ),
    "indexing": (
        [
            Sample(lambda x: mb.topk(x=x, k=32, axis=-1)[0]),
            Sample(lambda x: mb.gather(x=x, indices=mb.reduce_argmax(x=x, axis=1), axis=1), (2, 32)),
        ],
        [Sample(lambda x: mb.gather(x=x, indices=np.arange(4, dtype=np.int32), axis=1))],
    ),
    "overflowing-function": (
        [Sample(lambda x: mb.softplus(x=x)), Sample(lambda x: mb.reduce_log_sum_exp(x=x, axes=[1]))],
        [Sample(lambda x: mb.softplus(x=x), dtype=types.fp32), Sample(relu)],
    ),
    "long-axis": ([Sample(relu, (1, 1, 1, 16416))], [Sample(relu, (1, 1, 1, 16384))]),
    "fp32-interface": (
        [
            Sample(lambda x: cast32(mb.relu(x=mb.relu(x=x)))),
            Sample(lambda x: mb.relu(x=mb.relu(x=mb.cast(x=x, dtype="fp16"))), dtype=types.fp32),
        ],
        [Sample(relu), Sample(relu, dtype=types.fp32)],
    ),
    "silu-or-tanh": (
        [Sample(lambda x: mb.silu(x=x)), Sample(lambda x: mb.tanh(x=x))],
        [Sample(lambda x: mb.sub(x=mb.mul(x=HALF(2), y=mb.sigmoid(x=mb.mul(x=x, y=HALF(2)))), y=HALF(1)))],
    ),
}


def found(report: lints.Report) -> set[str]:
    return {finding.rule for finding in report.findings}


def test_every_rule_has_programs_a_source_and_a_severity() -> None:
    assert set(CASES) == set(RULES)
    order = [SEVERITIES.index(rule.severity) for rule in RULES.values()]
    assert order == sorted(order)
    for rule in RULES.values():
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", rule.name)
        assert rule.sources
        assert all(source.startswith("https://") for source in rule.sources)
        assert rule.why.endswith((".", ".)"))
        assert rule.do.endswith(".")


@pytest.mark.parametrize("rule", CASES)
def test_a_rule_finds_what_breaks_it_and_nothing_else(rule: str, tmp_path: Path) -> None:
    broken, kept = CASES[rule]
    for number, sample in enumerate(broken):
        report = edgesmith.lint(save(sample, tmp_path / f"broken{number}.mlpackage"))
        assert rule in found(report), f"broken program {number}"
        finding = next(one for one in report.findings if one.rule == rule)
        assert finding.severity == RULES[rule].severity
        assert finding.fact
    for number, sample in enumerate(kept):
        report = edgesmith.lint(save(sample, tmp_path / f"kept{number}.mlpackage"))
        assert rule not in found(report), f"kept program {number}: {[one.fact for one in report.findings]}"


def test_both_ends_of_a_forecaster_are_a_cost_and_what_else_is_fp32_an_error(tmp_path: Path) -> None:
    report = edgesmith.lint(save(Sample(restored()), tmp_path / "restored.mlpackage"))
    assert not report.counts["error"]
    ends = [one.operator for one in report.findings if one.rule == "fp32-level"]
    assert ends == ["cast", "reduce_mean", "sub", "cast", "add"]
    inside = Sample(restored(lambda y: mb.exp(x=y)))  # nothing is given back to an exponential
    found_ = edgesmith.lint(save(inside, tmp_path / "inside.mlpackage")).findings
    assert {one.rule for one in found_ if one.severity == "error"} == {"fp32-computation"}


class Prefixed(nn.Module):
    """A level that is taken off and given back, and a vector that a token looks up."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.mix = nn.Embedding(5, 32), nn.Linear(32, 32)

    def forward(self, x: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
        level = x.mean(1, keepdim=True)
        y: torch.Tensor = self.mix(x - level + self.table(token).unsqueeze(1)) + level
        return y


def test_a_vector_that_a_token_looks_up_is_no_end_of_a_forecaster(tmp_path: Path) -> None:
    inputs = (torch.randn(1, 32, 32), torch.tensor([3]))
    program, _ = rewrite(capture(Prefixed().eval(), inputs), targets.get("coreml").costs)
    lower("coreml", program, tmp_path / "prefixed.mlpackage", "fp16")
    report = edgesmith.lint(tmp_path / "prefixed.mlpackage")
    assert not report.counts["error"], [one for one in report.findings if one.severity == "error"]
    ends = {one.operator for one in report.findings if one.rule == "fp32-level"}
    assert {"reduce_mean", "sub", "add"} <= ends
    levels = {one.name.partition("_")[0] for one in report.legalized if one.rule == "level"}
    assert levels <= {"mean", "sub", "add", "cast"}


class Turned(nn.Module):
    """Two layers with a view between them that passes give another name, or drop."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = nn.Conv2d(8, 32, 1), nn.Conv2d(32, 32, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.after(self.before(x).transpose(2, 3)).relu()
        return y


def test_a_view_between_two_layers_of_fp32_is_none_of_half_precision(tmp_path: Path) -> None:
    program = capture(Turned().eval(), (torch.randn(1, 8, 32, 32),))
    kept = dict.fromkeys(("conv2d", "conv2d_1"), "a test")
    types_ = {}
    for name, stays in {"both": kept, "one": {"conv2d": "a test"}}.items():
        lower("coreml", program, tmp_path / f"{name}.mlpackage", "fp16", keep_fp32=stays)
        operations = load(tmp_path / f"{name}.mlpackage").operations()
        types_[name] = {one.type: one.outputs[0].type.dtype for one in operations if one.type in ("transpose", "relu")}
    assert types_ == {"both": {"transpose": "fp32", "relu": "fp16"}, "one": {"transpose": "fp16", "relu": "fp16"}}


def test_both_ends_of_a_map_of_classes_are_a_warning_and_what_else_is_fp32_an_error(tmp_path: Path) -> None:
    report = edgesmith.lint(save(Sample(classes()), tmp_path / "classes.mlpackage"))
    assert not report.counts["error"]
    ends = [one.operator for one in report.findings if one.rule == "fp32-near-ties"]
    assert ends == ["cast", "conv", "relu", "cast", "conv", "reduce_argmax"]
    for number, sample in enumerate(CASES["fp32-near-ties"][1]):
        findings = edgesmith.lint(save(sample, tmp_path / f"no_map{number}.mlpackage")).findings
        assert "fp32-computation" in {one.rule for one in findings}, number
    inside = Sample(lambda x: classes()(mb.relu(x=mb.cast(x=mb.exp(x=cast32(mb.relu(x=x))), dtype="fp16"))))
    findings = edgesmith.lint(save(inside, tmp_path / "inside.mlpackage")).findings
    assert "exp" in {one.operator for one in findings if one.severity == "error"}


def test_a_program_can_keep_every_rule(tmp_path: Path) -> None:
    sample = Sample(lambda x: mb.softmax(x=mb.add(x=conv(3, 3, strides=[1, 2])(x), y=HALF(MASK)), axis=1))
    report = edgesmith.lint(save(sample, tmp_path / "good.mlpackage"))
    assert report.findings == ()
    assert report.passes
    assert report.rules == ()
    assert report.bytes == report.padded_bytes == 2 * (8 * 32 * 64 + 3 * 8 * 32 * 32)


def test_a_finding_says_where_and_what(tmp_path: Path) -> None:
    report = edgesmith.lint(save(Sample(relu, (1, 64, 56, 1)), tmp_path / "one.mlpackage"))
    first, second = (one for one in report.findings if one.rule == "singleton-last-axis")
    assert (first.operator, first.name, first.position) == ("input", "x", "x")
    assert (second.operator, second.function, second.module) == ("relu", "main", None)
    assert second.fact == "last axis 1 of [1, 64, 56, 1], padded to 32: 224.0 KiB for 7.0 KiB, 32.00 times"
    assert report.padded_bytes == 32 * report.bytes == 2 * 224 * 1024
    norm_ = next(
        one
        for one in edgesmith.lint(save(Sample(norm), tmp_path / "norm.mlpackage")).findings
        if one.rule == "spelled-layer-norm"
    )
    assert (norm_.name, norm_.fact) == ("centred", "a norm of [1, 8, 32, 64] over [1]")


def test_operators_in_a_loop_are_looked_at(tmp_path: Path) -> None:
    report = edgesmith.lint(save(Sample(looped, (1, 8, 32, 3)), tmp_path / "loop.mlpackage"))
    assert "relu" in {one.operator for one in report.findings if one.rule == "short-last-axis"}
    (loop,) = (one for one in report.findings if one.rule == "control-flow")
    assert loop.fact == "while_loop of 3 operators"


def test_every_function_of_a_package_is_checked(tmp_path: Path) -> None:
    parts = ct.utils.MultiFunctionDescriptor()
    for name, sample in {
        "step": Sample(relu, (1, 8, 32, 5), opset="iOS18"),
        "whole": Sample(relu, opset="iOS18"),
    }.items():
        parts.add_function(str(save(sample, tmp_path / f"{name}.mlpackage")), "main", name)
    parts.default_function_name = "whole"
    ct.utils.save_multifunction(parts, str(tmp_path / "both.mlpackage"))
    report = edgesmith.lint(tmp_path / "both.mlpackage")
    positions = {one.position for one in report.findings}
    assert positions
    assert all(position.startswith("step: ") for position in positions)


# ---------------------------------------------------------------------------------------------------------- the command


class Masked(nn.Module):
    """Attention with a mask that half precision does not have."""

    def __init__(self, fill: float, how: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.query, self.key = nn.Linear(16, 16), nn.Linear(16, 16)
        self.fill, self.how = fill, how
        self.register_buffer("late", torch.ones(8, 8).triu(1).bool())
        self.register_buffer("mask", torch.zeros(8, 8).masked_fill(self.late, fill))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key = self.query(x), self.key(x)
        if self.how == "attention":
            return nn.functional.scaled_dot_product_attention(query[:, None], key[:, None], x[:, None], self.mask)
        scores = query @ key.transpose(1, 2) / 4
        if self.how == "sum":
            scores = scores + self.mask
        elif self.how == "choice":
            scores = scores.masked_fill(self.late, self.fill)[:, None][:, 0]
        elif self.how == "no softmax":
            return (scores + self.mask).clamp(min=-1) @ x
        elif self.how == "also returned":
            scores = scores + self.mask
            return scores.softmax(-1) @ x + scores.clamp(min=-1) @ x
        return scores.softmax(-1) @ x


X = torch.randn(1, 8, 16, generator=torch.Generator().manual_seed(1))


def export(model: nn.Module, out: Path, **options: Any) -> Any:
    return edgesmith.export(model.eval(), "coreml", inputs=(X,), name="masked", out=out, **options)


SCALE = "CM7"
"""The departure by which the scores' scale moves into the product before them."""


def masks_of(report: lints.Report) -> list[Any]:
    """What was legalized but for the scores' scale, which test_safe_forms.py is about."""
    return [one for one in report.legalized if one.rule != SCALE]


@pytest.mark.parametrize("fill", [-math.inf, -1e9])
@pytest.mark.parametrize("how", ["sum", "choice", "attention"])
def test_masks_are_legalized_while_lowering_and_no_number_changes(how: str, fill: float, tmp_path: Path) -> None:
    from edgesmith.exporters.mil.evaluate import Evaluator

    model = Masked(fill, how)
    artifact = export(model, tmp_path, deployment_target="iOS18")
    report = edgesmith.lint(artifact.path)
    assert report.counts["error"] == 0, [one.fact for one in report.findings]
    (legalized,) = masks_of(report)
    assert legalized.rule == ("infinite-constant" if math.isinf(fill) else "fp16-overflow")
    assert "became -40000" in legalized.change
    assert artifact.manifest["legalized"] == [asdict(one) for one in report.legalized]
    program = load(artifact.file)
    (name,) = (feature.name for feature in program.interfaces["main"].inputs)
    (result,) = Evaluator(program).run({name: X}).values()
    with torch.no_grad():
        wanted = model(X)
    assert (result.reshape(wanted.shape) - wanted).abs().max() <= 4e-3 * wanted.abs().max()


@pytest.mark.parametrize("how", ["no softmax", "also returned"])
def test_what_does_not_only_mask_a_softmax_stays(how: str, tmp_path: Path) -> None:
    artifact = export(Masked(-math.inf, how), tmp_path)
    report = edgesmith.lint(artifact.path)
    assert masks_of(report) == []
    assert {one["rule"] for one in artifact.manifest.get("legalized", [])} <= {SCALE}
    assert "infinite-constant" in found(report)


def test_single_precision_keeps_its_masks(tmp_path: Path) -> None:
    artifact = export(Masked(-math.inf, "sum"), tmp_path, precision="fp32")
    report = edgesmith.lint(artifact.path)
    assert report.legalized == ()
    assert {"infinite-constant", "fp32-computation"} <= found(report)


def test_an_entry_of_somebody_elses_is_not_taken_for_ours(tmp_path: Path) -> None:
    def edit(spec: Any) -> None:
        spec.description.metadata.userDefined[LEGALIZED] = '{"no": "list"}'

    assert edgesmith.lint(save(Sample(relu, edit=edit), tmp_path / "x.mlpackage")).legalized == ()


def test_the_command_prints_tables_and_is_strict_when_asked(edgesmith: Any, tmp_path: Path) -> None:
    artifact = export(Masked(-math.inf, "sum"), tmp_path)
    shown = edgesmith("lint", str(artifact.path))
    assert shown.returncode == 0, shown.stderr
    parts = ("costs: ", "softmax-axis", "legalized while lowering", "apple/coreai-models", "0 errors", "notes: ")
    for part in parts:
        assert part in shown.stdout
    assert "errors: " not in shown.stdout
    assert edgesmith("lint", str(artifact.file), "--strict").returncode == 0  # costs and notes
    longer = edgesmith("lint", str(artifact.file), "--all").stdout
    assert longer.count("short-last-axis") > shown.stdout.count("short-last-axis")
    shown = edgesmith("lint", str(artifact.path), "--json")
    told = records.read_record(shown.stdout.encode(), records.schema_of(lints.LintRecord), "lint's record")
    assert told["counts"]["error"] == 0
    assert told["legalized"][0]["rule"] == "infinite-constant"
    assert {one["name"] for one in told["rules"]} == {one["rule"] for one in told["findings"]}
    assert all(set(one) >= {"rule", "severity", "operator", "name", "module", "fact"} for one in told["findings"])
    assert "query" in {one["module"] for one in told["findings"]}
    for build, code in ((lambda x: mb.silu(x=x), 0), (lambda x: mb.softplus(x=x), 3)):
        file = save(Sample(build), tmp_path / f"{code}.mlpackage")
        assert edgesmith("lint", str(file), "--strict").returncode == code
    assert "--strict" in edgesmith("lint", "--help").stdout


def test_a_classifier_of_pictures_passes_strictly_until_a_fault_is_planted(
    edgesmith: Any, tmp_path: Path, one_block_a_stage: Callable[[], None]
) -> None:
    from edgesmith import export as export_
    from edgesmith import lint

    one_block_a_stage()
    labels = [f"class {number}" for number in range(1000)]
    artifact = export_("casvit_xs", "coreml", image_input=True, labels=labels, out=tmp_path)
    report = lint(artifact.path)
    assert report.passes
    assert report.counts["cost"] > 0, "what the architecture costs is told all the same"
    assert edgesmith("lint", str(artifact.path), "--strict").returncode == 0
    file = next(artifact.file.rglob("*.mlmodel"))
    spec = ct.proto.Model_pb2.Model()
    spec.ParseFromString(file.read_bytes())
    function = spec.mlProgram.functions["main"]
    gelu = next(op for op in function.block_specializations[function.opset].operations if op.type == "gelu")
    gelu.type = "softplus"  # 0 above 10.39 on the Neural Engine
    del gelu.inputs["mode"]
    file.write_bytes(spec.SerializeToString())
    shown = edgesmith("lint", str(artifact.file), "--strict")
    assert shown.returncode == 3, shown.stderr
    assert "overflowing-function" in shown.stdout


def test_other_files_are_refused_in_a_sentence(edgesmith: Any, small: nn.Module, tmp_path: Path) -> None:
    from edgesmith import export as export_

    artifact = export_(small, "onnx", inputs=torch.randn(1, 3, 32, 32), name="small", out=tmp_path)
    for path in (artifact.path, artifact.file):
        assert edgesmith("lint", str(path)).returncode == 0
        result = edgesmith("lint", str(path), "--for", "coreml")
        assert result.returncode == 2
        assert "does not take" in result.stderr
        assert "Traceback" not in result.stderr
    (tmp_path / "words.txt").write_text("no graph")
    for path in (tmp_path / "nothing", tmp_path / "nothing.mlpackage", tmp_path / "words.txt"):
        assert edgesmith("lint", str(path)).returncode == 2


def test_lint_of_the_python_interface_raises(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="export with --target coreml"):
        lints.lint(tmp_path / "model.onnx")
    spec = ct.proto.Model_pb2.Model(specificationVersion=7)
    spec.neuralNetwork.SetInParent()
    (tmp_path / "old.mlmodel").write_bytes(spec.SerializeToString())
    with pytest.raises(Unsupported, match="no ML Program"):
        lints.lint(tmp_path / "old.mlmodel")


def test_sources_have_short_labels() -> None:
    assert lints.label("https://github.com/apple/coremltools/pull/2725") == "apple/coremltools#2725"
    assert lints.label(RULES["rank"].sources[0]) == "apple/coreai-models neural_engine_rules.md"
    assert lints.label("https://machinelearning.apple.com/research/x") == "machinelearning.apple.com/research/x"


# -------------------------------------------------------------------------------------------------------------- the zoo

TABLE = re.compile(r"^\| `(?P<rule>[A-Za-z0-9-]+)` \| (?P<rest>.*) \|$", re.MULTILINE)


@pytest.fixture(scope="module")
def page() -> str:
    path = Path(__file__).parent.parent / "docs" / "lint.md"
    if not path.is_file():
        pytest.skip("docs/ lies in the checkout, and these tests run from an installed package")
    return path.read_text(encoding="utf-8")


def test_the_page_lists_every_rule_as_it_is(page: str) -> None:
    rules, _, zoo = page.partition("### What remains")
    rules = rules.partition("## The zoo")[0]
    rows = {match["rule"]: match["rest"] for match in TABLE.finditer(rules)}
    assert list(rows) == list(RULES)
    for name, rest in rows.items():
        rule = RULES[name]
        links = ", ".join(f"[{lints.label(source)}]({source})" for source in rule.sources)
        assert rest == f"{rule.severity} | {rule.why} | {rule.do} | {links}", name
    explained = {match["rule"] for match in TABLE.finditer(zoo)}
    assert explained
    assert explained <= {*RULES, *all_departures()}


FAST = ("casvit_xs", "affnet_et", "efficientvim_m1", "lmuformer")
NAMES = [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in FIRST_ZOO]


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_programs_of_the_second_zoo_have_no_error(family: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, inputs = FAMILIES[family]()
    program, _ = rewrite(capture(model.eval(), inputs), targets.get("coreml").costs)
    lower("coreml", program, tmp_path / "small.mlpackage", "fp16")
    report = edgesmith.lint(tmp_path / "small.mlpackage")
    assert report.counts["error"] == 0, [one for one in report.findings if one.severity == "error"]


@pytest.mark.parametrize("name", NAMES)
def test_the_zoos_programs_have_no_error_and_each_other_finding_is_explained(
    name: str, page: str, one_block_a_stage: Callable[[], None], tmp_path: Path
) -> None:
    """One of each kind as it is, the others' widths and sizes with one block a stage, if they have stages."""
    if name not in FAST:
        one_block_a_stage()
    _, program, _ = edgesmith.explain(name, "coreml")
    path = tmp_path / f"{name}.mlpackage"
    lower("coreml", program, path, "fp16")  # spiking ones too, which are fp32 by default
    report = edgesmith.lint(path)
    assert report.counts["error"] == 0, [one for one in report.findings if one.severity == "error"]
    explained = {match["rule"] for match in TABLE.finditer(page.partition("### What remains")[2])}
    assert found(report) <= explained
    assert any(finding.module for finding in report.findings)
