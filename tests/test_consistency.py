"""Checks without a reference: rows of a batch, their order, levels of optimisation; and those of a kit's build.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import edgesmith
from edgesmith.exporters.precision import table as precisions
from edgesmith.exporters.targets._typed_onnx import OnnxFile
from edgesmith.exporters.targets.target import NotHere, TargetFile
from edgesmith.exporters.tensorrt.kit import build as board
from edgesmith.exporters.verification.check import AcceptanceCriteria
from edgesmith.exporters.verification.consistency import check_consistency

CRITERIA = AcceptanceCriteria(precisions.get("fp32"), False, lambda: None, collects=True)
X = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)


class Computed(TargetFile):
    """A file that computes what it is told to."""

    def __init__(self, function: Callable[[np.ndarray], np.ndarray]) -> None:
        super().__init__(Path("file"), "a runtime")
        self.function = function

    def check(self) -> None: ...

    def open_step(self, threads: int = 1) -> NotHere:
        return NotHere("it has no step")

    def count_operators(self) -> dict[str, int]:
        return {}

    def run(self, calls: Sequence[Any]) -> list[list[np.ndarray]] | NotHere:
        return [[self.function(x) for x in call] for call in calls]


def shifted(x: np.ndarray) -> np.ndarray:
    """Rows after the first one are wrong, as equal rows show."""
    return x + np.arange(len(x), dtype=np.float32)[:, None]


def of_first(x: np.ndarray) -> np.ndarray:
    """Each row is read beside the first one, which only another order shows."""
    return x + x[:1]


@pytest.mark.parametrize(
    ("function", "missed"),
    [
        (np.tanh, set()),
        (shifted, {"equal rows -> one row", "rows in another order -> rows"}),
        (of_first, {"rows in another order -> rows"}),
    ],
)
@pytest.mark.parametrize("batch", [0, 2, 4])
def test_a_batch_is_its_rows(function: Callable[[np.ndarray], np.ndarray], missed: set[str], batch: int) -> None:
    calls = [[X[: batch or 1]], [X[1:3]]]
    found = check_consistency(Computed(function), calls, CRITERIA, batch)
    assert [one["step"] for one in found] == ["equal rows -> one row", "rows in another order -> rows"]
    assert {one["step"] for one in found if "missed" in one} == missed
    assert all(one["runtime"] == "a runtime" for one in found)


def test_what_has_no_batch_is_not_asked() -> None:
    assert check_consistency(Computed(shifted), [[X]], CRITERIA, None) == []
    assert check_consistency(Computed(shifted), [[X[:1]]], CRITERIA, 1) == []
    assert check_consistency(Computed(lambda x: x.sum(0)), [[X]], CRITERIA, 4) == []


def norm(keep: int) -> onnx.ModelProto:
    """A layer norm in primitives, whose mean keeps its axis or drops it."""
    nodes = [
        helper.make_node("ReduceMean", ["x", "axes"], ["m"], keepdims=keep),
        helper.make_node("Sub", ["x", "m"], ["d"]),
        helper.make_node("Pow", ["d", "two"], ["q"]),
        helper.make_node("ReduceMean", ["q", "axes"], ["v"]),
        helper.make_node("Add", ["v", "e"], ["ve"]),
        helper.make_node("Sqrt", ["ve"], ["r"]),
        helper.make_node("Div", ["d", "r"], ["n"]),
        helper.make_node("Mul", ["n", "g"], ["h"]),
        helper.make_node("Add", ["h", "g"], ["y"]),
    ]
    held = {"axes": np.array([-1]), "two": np.float32(2), "e": np.float32(1e-5), "g": np.arange(4, dtype=np.float32)}
    constants = [numpy_helper.from_array(np.asarray(value), name) for name, value in held.items()]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, (4, 4))
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, (4, 4))
    graph = helper.make_graph(nodes, "g", [x], [y], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


@pytest.mark.parametrize(("keep", "agrees"), [(1, True), (0, False)])
def test_levels_of_optimisation_agree_or_are_told(keep: int, agrees: bool, tmp_path: Path) -> None:
    """OR2 of the book: what is fused wrongly needs no reference to be seen."""
    onnx.save(norm(keep), tmp_path / "norm.onnx")
    file = OnnxFile(tmp_path / "norm.onnx", "ONNX Runtime")
    (found,) = check_consistency(file, [[X[:, :4]]], CRITERIA, None)
    assert found["step"] == "ONNX Runtime -> ONNX Runtime, not optimised"
    assert ("missed" not in found) == agrees


def test_verify_shows_the_checks_of_a_batch(tmp_path: Path) -> None:
    artifact = edgesmith.export("patchtsmixer", "onnx", batch=2, out=tmp_path)
    _, steps = edgesmith.verify(artifact.path)
    last = [one["step"] for one in steps[-3:]]
    assert last[:2] == ["equal rows -> one row", "rows in another order -> rows"]
    assert last[2].endswith("not optimised")
    assert all(one["relative_error"] is not None and one["relative_error"] < 1e-5 for one in steps[-3:])


def kit_of(batch: Any, **more: Any) -> dict[str, Any]:
    manifest = {"model": {"features": False}, "target": {"options": {"batch": batch}}, **more}
    return {"manifest": manifest, "thresholds": {"relative_error": 1e-3, "snr_db": 60.0}, "spikes": False}


def test_a_kit_repeats_a_row_and_refuses_results_that_differ() -> None:
    repeated = board.equal_rows(kit_of(4), [X])
    assert repeated is not None
    np.testing.assert_array_equal(repeated[0], np.repeat(X[:1], 4, axis=0))
    board.check_rows(kit_of(4), [np.tanh(repeated[0])])
    with pytest.raises(board.Refusal, match="rows of a batch differ though their inputs are equal"):
        board.check_rows(kit_of(4), [shifted(repeated[0])])
    for without in (kit_of(1), kit_of(None), kit_of(4, streaming={}), {**kit_of(4), "manifest": OWN}):
        assert board.equal_rows(without, [X]) is None


OWN = {"model": {"name": "own"}, "target": {"options": {"batch": 4}}}
"""Of a module of one's own, whose first axis may be anything."""
