"""Reports on packages: what was met, what precision costs, and which operator is named for it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.lowering import lower
from support.mil_packages import save
from torch import Tensor, nn

from edgesmith.errors import BadInput
from edgesmith.exporters.mil.evaluate import Evaluator
from edgesmith.exporters.mil.program import load
from edgesmith.exporters.mil.report import ROUNDING_DB, compare, ranges

ct = pytest.importorskip("coremltools")

F16, F32 = np.float16, np.float32


@pytest.fixture
def mb() -> Any:
    from coremltools.converters.mil import Builder

    return Builder


@pytest.fixture
def types() -> Any:
    from coremltools.converters.mil.mil import types

    return types


class Hot(nn.Module):
    """Activations of 70,000 behind the second layer, and small ones again behind the third."""

    def __init__(self, first: float, second: float) -> None:
        super().__init__()
        self.calm, self.hot, self.cool = (nn.Conv2d(4, 4, 1) for _ in range(3))
        with torch.no_grad():
            for layer, factor in ((self.calm, first), (self.hot, second), (self.cool, 1e-4)):
                layer.weight.copy_(factor * torch.eye(4)[:, :, None, None])
                layer.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.cool(torch.relu(self.hot(torch.relu(self.calm(x)))))


def written(model: nn.Module, path: Path) -> Path:
    from edgesmith.exporters.graph.capture import capture

    program = capture(model.eval(), (torch.ones(1, 4, 2, 2),), ("x",), ("y",))
    return lower("coreml", program, path, "fp16").path


@pytest.fixture(scope="module")
def hot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(Hot(280, 250), tmp_path_factory.mktemp("hot") / "hot.mlpackage")


def test_a_network_that_overflows_is_diagnosed_to_its_layer(hot: Path) -> None:
    x = torch.ones(1, 4, 2, 2)
    report = compare(hot, [{"x": x / 4}, {"x": x}], [[7.0 * x.numpy() / 4], [7.0 * x.numpy()]])
    first = report.first_overflow
    assert first is not None
    assert first.met.source == "hot"
    assert (first.met.type, first.met.dtype) == ("conv", "fp16")
    assert first.met.site == f"{first.met.name} (conv, in hot)"
    assert first.overflowed == first.met.non_finite == 16
    assert first.exact.peak == pytest.approx(70000)
    assert first.exact.beyond_half
    assert first.error == math.inf
    assert first.snr_db == -math.inf
    assert report.first_loss is first
    assert report.inputs == 2
    assert [cost.met.source for cost in report.operators[:2]] == ["calm", ""] or report.operators[
        0
    ].met.source == "calm"
    assert report.operators[0].snr_db is None
    assert report.operators[0].loss_db == 0
    (output,) = report.outputs
    assert output.name == "y"
    assert output.rounding.relative_error == math.inf
    assert output.against_reference is not None
    assert output.against_reference.relative_error == math.inf
    assert {cost.met.source for cost in report.below(0)} >= {"hot", "cool"}


def test_a_cast_that_the_converter_added_belongs_to_what_it_reads(tmp_path: Path) -> None:
    """coremltools leaves a layer in fp32 whose weights fp16 cannot hold, and rounds behind it."""
    report = compare(written(Hot(1, 70000), tmp_path / "hot.mlpackage"), [{"x": torch.ones(1, 4, 2, 2)}])
    assert report.first_overflow is not None
    assert (report.first_overflow.met.type, report.first_overflow.met.source) == ("cast", "hot")


def test_a_network_in_range_has_nothing_to_report(hot: Path) -> None:
    x = torch.rand(1, 4, 2, 2, generator=torch.Generator().manual_seed(0)) / 2
    report = compare(hot, [{"x": x}], against="fp64")
    assert report.first_overflow is None
    assert report.first_loss is None
    assert report.outputs[0].against_reference is None
    assert report.outputs[0].rounding.snr_db is not None
    assert report.outputs[0].rounding.snr_db > 60


def test_sums_in_half_cost_more(mb: Any, types: Any, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    weight = generator.normal(size=(4, 256)).astype(F16)

    def main(x: Any) -> Any:
        return mb.cast(x=mb.linear(x=x, weight=weight), dtype="fp32", name="y")

    path = save(main, [mb.TensorSpec((1, 256), dtype=types.fp16)], tmp_path / "p.mlpackage")
    inputs = [{"x": generator.normal(size=(1, 256))} for _ in range(4)]
    costs = [compare(path, inputs, accumulate=kind).operators[0] for kind in ("fp32", "fp16")]
    assert costs[0].snr_db is not None
    assert costs[1].snr_db is not None
    assert costs[1].snr_db < costs[0].snr_db - 6
    assert costs[0].snr_db == pytest.approx(ROUNDING_DB, abs=6)
    assert costs[1].loss_db > costs[0].loss_db


def test_a_difference_of_nearly_equal_values_is_the_first_loss(mb: Any, types: Any, tmp_path: Path) -> None:
    def main(x: Any) -> Any:
        third = mb.mul(x=x, y=F16(1 / 3), name="third")
        more = mb.add(x=third, y=F16(1000), name="more")
        rest = mb.sub(x=more, y=F16(1000), name="rest")
        return mb.cast(x=mb.mul(x=rest, y=F16(2), name="doubled"), dtype="fp32", name="y")

    path = save(main, [mb.TensorSpec((64,), dtype=types.fp16)], tmp_path / "p.mlpackage")
    report = compare(path, [{"x": torch.rand(64, generator=torch.Generator().manual_seed(0))}])
    by_name = {cost.met.name: cost for cost in report.operators}
    first = report.first_loss
    assert first is not None
    assert first.met.name == "rest"
    assert first.loss_db > 40
    assert by_name["third"].loss_db < 5
    assert by_name["doubled"].loss_db < 1
    assert by_name["third"].met.maximum == pytest.approx(1 / 3, rel=0.1)
    assert by_name["third"].met.minimum >= 0
    assert compare(path, [{"x": torch.ones(64)}], limit_db=200).first_loss is None


def test_masks_count_for_nothing_and_vanished_values_are_counted(mb: Any, types: Any, tmp_path: Path) -> None:
    mask = np.array([0, -np.inf, 0, 0], F16)

    def main(x: Any) -> Any:
        masked = mb.add(x=x, y=mask, name="masked")
        tiny = mb.mul(x=mb.mul(x=x, y=F16(1e-4)), y=F16(1e-4), name="tiny")
        return mb.cast(x=masked, dtype="fp32", name="y"), mb.cast(x=tiny, dtype="fp32", name="z")

    path = save(main, [mb.TensorSpec((4,), dtype=types.fp16)], tmp_path / "p.mlpackage")
    report = compare(path, [{"x": torch.ones(4)}])
    by_name = {cost.met.name: cost for cost in report.operators}
    assert by_name["masked"].snr_db is None
    assert by_name["masked"].overflowed == 0
    assert by_name["masked"].met.non_finite == 1
    assert by_name["masked"].met.elements == 4
    assert report.first_overflow is None
    assert by_name["tiny"].vanished == 4
    assert by_name["tiny"].snr_db == 0
    assert by_name["tiny"].error == 1


def test_loops_that_part_are_compared_by_their_results(mb: Any, types: Any, tmp_path: Path) -> None:
    """2048 + 1 is 2048 in half: the sum stands still there, and the loop is left by its counter instead."""

    def main(x: Any) -> Any:
        def going(i: Any, y: Any) -> Any:
            low = mb.less_equal(x=mb.reduce_sum(x=y), y=F16(2048))
            return mb.logical_and(x=mb.less(x=i, y=np.int32(9)), y=low)

        def turn(i: Any, y: Any) -> Any:
            return mb.add(x=i, y=np.int32(1)), mb.add(x=y, y=F16(1), name="step")

        _, y = mb.while_loop(_cond=going, _body=turn, loop_vars=(np.int32(0), x))
        return mb.cast(x=y, dtype="fp32", name="y")

    path = save(main, [mb.TensorSpec((1,), dtype=types.fp16)], tmp_path / "p.mlpackage")
    report = compare(path, [{"x": torch.tensor([2047.0])}])
    kinds = [cost.met.type for cost in report.operators]
    assert kinds == ["while_loop", "while_loop", "cast"]
    assert report.operators[0].exact.maximum == 2
    assert report.operators[0].met.maximum == 9
    same = compare(path, [{"x": torch.tensor([5.0])}])
    assert [cost.met.name for cost in same.operators if cost.met.type == "add"] != []


def test_ranges_over_several_inputs(mb: Any, types: Any, tmp_path: Path) -> None:
    def main(x: Any, s: Any) -> Any:
        total = mb.coreml_update_state(state=s, value=mb.add(x=mb.read_state(input=s), y=x, name="sum"))
        empty = mb.slice_by_size(x=total, begin=[0], size=[0], name="empty")
        positive = mb.greater(x=total, y=F16(0), name="positive")
        inverse = mb.real_div(x=np.float16(1), y=total, name="inverse")
        return tuple(mb.cast(x=v, dtype="fp32") for v in (total, empty, positive, inverse))

    specs = [mb.TensorSpec((2,), dtype=types.fp16), mb.StateTensorSpec((2,), dtype=types.fp16)]
    program = load(save(main, specs, tmp_path / "p.mlpackage"))
    inputs = [{"x": torch.tensor(v)} for v in ([1.0, -1.0], [2.0, -2.0], [3.0, 3.0])]
    met = {one.name: one for one in ranges(program, inputs)}
    assert (met["sum"].minimum, met["sum"].maximum, met["sum"].elements) == (-3, 6, 6)  # the state is carried
    assert met["sum"].peak == 6
    assert not met["sum"].beyond_half
    assert (met["inverse"].non_finite, met["inverse"].maximum) == (1, 1)
    assert math.isnan(met["empty"].minimum)
    assert met["empty"].peak == 0
    assert (met["positive"].minimum, met["positive"].maximum) == (0, 1)
    declared = {cost.met.name: cost.met for cost in compare(program, inputs).operators}
    assert declared["sum"] == met["sum"]


def test_a_classifiers_probabilities_are_an_output(mb: Any, tmp_path: Path) -> None:
    def main(x: Any) -> Any:
        return mb.softmax(x=x, axis=-1)

    config = ct.ClassifierConfig(["a", "b"])
    path = save(main, [mb.TensorSpec((1, 2))], tmp_path / "p.mlpackage", classifier_config=config)
    x = torch.tensor([[0.0, 1.0]])
    report = compare(path, [{"x": x}], [[x.softmax(-1).numpy()]])
    (output,) = report.outputs
    assert output.name == Evaluator(path).interface.probabilities
    assert output.against_reference is not None
    assert output.against_reference.agreeing == 1


@pytest.mark.parametrize(
    ("inputs", "references", "options", "words"),
    [
        ([], None, {}, "takes one input at least"),
        (
            [{"x": torch.ones(1, 4, 2, 2)}],
            None,
            {"against": "declared"},
            "compared with fp32 or fp64, not with 'declared'",
        ),
        ([{"x": torch.ones(1, 4, 2, 2)}], [[]], {}, "do not fit the output y"),
        ([{"x": torch.ones(1, 4, 2, 2)}], [[np.ones(3)]], {}, "do not fit the output y: an output has shape"),
    ],
)
def test_what_cannot_be_compared(hot: Path, inputs: Any, references: Any, options: Any, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        compare(hot, inputs, references, **options)


def test_ranges_take_an_input(hot: Path) -> None:
    with pytest.raises(BadInput, match="takes one input at least"):
        ranges(hot, [])
