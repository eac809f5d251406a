"""Programs without a construct of the book have no finding: ONNX's own test models here, others in the experiment."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from edgesmith.bench.experiments import clean_programs
from edgesmith.exporters.departures import detectors, lint
from edgesmith.exporters.departures.graph import Graph


def test_onnxs_own_models_have_no_false_finding() -> None:
    census = clean_programs.take(clean_programs.shipped_models())
    assert census.programs >= 140
    assert census.clean >= 100
    assert census.known
    assert census.false == []


def test_a_detector_that_cries_wrongly_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def cries(graph: Graph) -> Iterator[tuple[Any, str]]:
        yield graph.nodes[0], "wolf"

    found = {**detectors.all_detectors(), "pad_of_rank_3": cries}
    monkeypatch.setattr(lint, "all_detectors", lambda: found)
    paths = clean_programs.shipped_models()[:8]
    assert [(rule, fact) for _, rule, fact in clean_programs.take(paths).false] == [("LR4", "wolf")] * 8


def test_a_program_with_a_construct_is_none_of_the_clean_ones(tmp_path: Path) -> None:
    x, z = (helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", (2, 3, 4)), ("z", (1, 2, 3, 4))))
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([helper.make_node("Add", ["x", "z"], ["y"])], "g", [x, z], [y])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), tmp_path / "ranks.onnx")
    census = clean_programs.take([tmp_path / "ranks.onnx"])
    assert (census.known, census.false, census.clean) == ({"ranks.onnx": {"LR2"}}, [], 0)
