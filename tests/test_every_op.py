"""Every fused op: its op, its shape rule, its pattern and each of its lowerings agree with its reference."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.lowering import lower
from torch import Tensor, nn

from edgesmith.exporters import targets
from edgesmith.exporters.graph.capture import Program, capture
from edgesmith.exporters.graph.edit import count_operators
from edgesmith.kernels.op import FusedOp, all_ops, find, spikes_in

pytestmark = pytest.mark.wheel

OPS = list(all_ops().values())


class Call(nn.Module):
    """One call of an op, its first tensor as input and the others as parameters."""

    def __init__(self, op: FusedOp, flags: Mapping[str, Any]) -> None:
        super().__init__()
        self.op, self.flags = op, flags
        self.weights = nn.ParameterList(op.example()[1:])

    def forward(self, x: Tensor) -> Any:
        return self.op.overload(x, *self.weights, **self.flags)


def forms() -> list[tuple[FusedOp, Mapping[str, Any]]]:
    """Each op in each of its forms."""
    return [(op, form) for op in OPS for form in op.forms]


def is_plain(op: FusedOp) -> bool:
    """Return whether an op has no form that loops: every target inlines its reference."""
    return op.choice is not None and not op.choice.looped


PROGRAMS: dict[tuple[object, ...], Program] = {}


def program_of(op: FusedOp, flags: Mapping[str, Any]) -> Program:
    """A program of one call, captured once for all targets and precisions."""
    key = op.name, *sorted(flags.items())
    if key not in PROGRAMS:
        PROGRAMS[key] = capture(Call(op, flags), op.example()[:1])
    return PROGRAMS[key]


def label(value: object) -> str:
    if isinstance(value, FusedOp):
        return value.name
    return (
        "+".join(f"{name}={is_}" for name, is_ in value.items()) or "plain" if isinstance(value, dict) else str(value)
    )


def several(outputs: Any) -> list[Any]:
    """Outputs in a list, one or more."""
    return list(outputs) if isinstance(outputs, list | tuple) else [outputs]


def furthest(found: Any, expected: Any) -> float:
    """The largest relative error of all outputs."""
    return max(relative(a, b) for a, b in zip(several(found), several(expected), strict=True))


def relative(a: Tensor | np.ndarray, b: Tensor | np.ndarray) -> float:
    a, b = torch.as_tensor(a), torch.as_tensor(b)
    assert a.shape == b.shape
    return float((a - b).abs().max() / b.abs().max())


def test_there_are_ops_and_each_is_found_by_its_name_and_its_overload() -> None:
    assert "additive_attention" in all_ops()
    for name, op in all_ops().items():
        assert op.name == name
        assert find(op.overload) is op
    assert find(torch.ops.aten.relu.default) is None


@pytest.mark.parametrize(("op", "flags"), forms(), ids=label)
def test_op_equals_its_reference_in_every_form(op: FusedOp, flags: Mapping[str, Any]) -> None:
    arguments = op.example()
    expected = op.reference(*arguments)
    assert furthest(op.overload(*arguments, **flags), expected) <= op.tolerance


@pytest.mark.parametrize("op", OPS, ids=label)
def test_op_passes_torchs_own_checks(op: FusedOp) -> None:
    torch.library.opcheck(op.overload, op.example(), test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("op", OPS, ids=label)
def test_shape_rule_gives_the_references_shape(op: FusedOp) -> None:
    arguments = op.example()
    shape = tuple(op.shape(*arguments))
    expected = [tuple(output.shape) for output in several(op.reference(*arguments))]
    assert (list(shape) if isinstance(shape[0], tuple) else [shape]) == expected


@pytest.mark.parametrize("op", OPS, ids=label)
def test_shape_rule_names_the_argument_that_does_not_fit(op: FusedOp) -> None:
    arguments = list(op.example())
    names = list(inspect.signature(op.reference).parameters)
    for i in range(1, len(arguments)):
        wrong = [*arguments[:i], torch.zeros(*arguments[i].shape, 2), *arguments[i + 1 :]]
        with pytest.raises(ValueError, match=f"{op.name}: {names[i]} must be"):
            op.shape(*wrong)


@pytest.mark.parametrize("op", [op for op in OPS if op.recurrence is not None], ids=label)
def test_recurrence_gives_the_reference_frame_by_frame(op: FusedOp) -> None:
    assert op.recurrence is not None
    bound = inspect.signature(op.reference).bind(*op.example())
    bound.apply_defaults()
    x, *others = bound.args
    axis, axis_after = op.recurrence.axes(x, *others)
    states = tuple(torch.full(state.shape(x, *others), state.initial(x, *others)) for state in op.recurrence.states)
    assert op.recurrence.cannot_step(x, *others) is None
    outputs = []
    for t, frame in enumerate(x.unbind(axis)):
        now = [one.select(axis, t) if i in op.recurrence.sequences else one for i, one in enumerate(others, 1)]
        output, after = op.recurrence.step(states, frame, *now)
        assert [state.shape for state in after] == [state.shape for state in states]
        outputs.append(output)
        states = after
    assert furthest(torch.stack(outputs, axis_after), op.reference(*bound.args)) <= op.tolerance


@pytest.mark.parametrize("op", [op for op in OPS if op.linear is not None], ids=label)
def test_linear_recurrence_has_its_impulse_response_and_can_be_scaled(op: FusedOp) -> None:
    assert op.linear is not None
    u, impulse, a, b = op.example()
    order, length = impulse.shape
    assert relative(op.linear.impulse_response(a, b, length), impulse) <= op.tolerance
    scale = torch.linspace(0.5, 3, order) * (-1) ** torch.arange(order)  # a change of basis: nowhere 0
    expected = scale[:, None] * op.reference(u, impulse, a, b)
    for form in op.linear.forms:
        assert relative(op.overload(u, *op.linear.scaled(scale, impulse, a, b), form), expected) <= op.tolerance
    alone, *unknown = op.linear.scaled(scale, impulse, None, None)
    assert unknown == [None, None]
    assert relative(op.overload(u, alone), expected) <= op.tolerance
    size, count = op.linear.chunks(length)
    assert (count - 1) * size < length <= count * size


@pytest.mark.parametrize("op", OPS, ids=label)
def test_spikes_are_0_or_1_and_are_counted_as_such(op: FusedOp) -> None:
    outputs = several(op.reference(*op.example()))
    is_binary = all(bool(((output == 0) | (output == 1)).all()) for output in outputs)
    assert op.spikes == is_binary
    assert spikes_in(["aten.relu", f"edgesmith.{op.name}"]) == op.spikes
    assert not spikes_in(["aten.relu", op.name])


@pytest.mark.parametrize(("op", "flags"), forms(), ids=label)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_onnx_lowering_equals_the_reference(
    op: FusedOp, flags: Mapping[str, Any], precision: str, tmp_path: Path
) -> None:
    assert "onnx" in op.lowerings or is_plain(op)
    x, *_ = op.example()
    outputs = lower("onnx", program_of(op, flags), tmp_path / "op.onnx", precision).run([[x.numpy()]])
    assert isinstance(outputs, list)
    allowed = op.tolerance if precision == "fp32" else 5e-3
    assert furthest(outputs[0], op.reference(*op.example())) <= allowed


@pytest.mark.parametrize(("op", "flags"), forms(), ids=label)
def test_coreml_lowering_converts_without_a_high_rank(op: FusedOp, flags: Mapping[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("coremltools", reason="coremltools is not installed")
    from edgesmith.exporters.targets._coreml_file import CoreMlFile

    assert "coreml" in op.lowerings or is_plain(op)
    file = lower("coreml", program_of(op, flags), tmp_path / "op.mlpackage", "fp16")
    assert isinstance(file, CoreMlFile)
    assert file.largest_rank <= 4


@pytest.mark.parametrize(("op", "flags"), forms(), ids=label)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_coreai_form_equals_the_reference(
    op: FusedOp, flags: Mapping[str, Any], precision: str, tmp_path: Path
) -> None:
    target = targets.get("coreai")
    if target.cannot_run():
        pytest.skip(str(target.cannot_run()))
    x, *_ = op.example()
    file = lower(target, program_of(op, flags), tmp_path / "op.aimodel", precision)
    outputs = file.run([[x.numpy()]])
    assert isinstance(outputs, list)
    allowed = op.tolerance if precision == "fp32" else 5e-3
    assert furthest(outputs[0], op.reference(*op.example())) <= allowed


@pytest.mark.parametrize("length", [5, 50])
@pytest.mark.parametrize("name", ["lif", "lmu_memory"])
def test_coreai_files_do_not_grow_with_the_sequence(name: str, length: int, tmp_path: Path) -> None:
    target = targets.get("coreai")
    if target.cannot_run():
        pytest.skip(str(target.cannot_run()))
    op = all_ops()[name]
    flags: dict[str, Any] = {"form": "recurrent"} if name == "lmu_memory" else {}
    call = Call(op, flags)
    arguments = importlib.import_module(op.reference.__module__).example(length=length)
    call.weights = nn.ParameterList(arguments[1:])
    counts = lower(target, capture(call, arguments[:1]), tmp_path / "op.aimodel").count_operators()
    assert counts["while"] == 1
    assert sum(counts.values()) <= 25


@pytest.mark.parametrize("target", ["onnx", "coreml"])
def test_a_target_without_a_lowering_gets_the_reference(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = targets.get(target)
    if backend.missing_packages():
        pytest.skip(f"{target}: not installed")
    op = all_ops()["additive_attention"]
    monkeypatch.delitem(op.lowerings, target)  # type: ignore[arg-type]
    x, *_ = op.example()
    program = capture(Call(op, {}), (x,))
    assert count_operators(program.module) == {"edgesmith.additive_attention": 1}
    file = lower(backend, program, tmp_path / f"op{backend.suffix}")
    assert sum(file.count_operators().values()) > 20
    outputs = file.run([[x.numpy()]])
    if isinstance(outputs, list):
        assert relative(outputs[0][0], op.reference(*op.example())) <= op.tolerance
