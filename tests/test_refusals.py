"""A refusal is about the model at hand, also where that is exported in the handler of another one's refusal."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.fx import Node

import edgesmith
from edgesmith.errors import Unsupported
from edgesmith.exporters.graph.blame import line_of_error
from edgesmith.exporters.targets._refusal import refuse


class Two(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cos(torch.sin(x))


def convert(node: Node) -> None:
    raise ValueError("a converter's own words")


def refuse_each(nodes: list[Node], answer: Callable[[Exception], Any]) -> Any:
    """Refuse one node after another, each in the handler of the last one's refusal. Returns the last answer."""
    try:
        convert(nodes[0])
    except ValueError as error:
        said = answer(error)
        if len(nodes) == 1:
            return said
        try:
            raise Unsupported(str(said)) from error
        except Unsupported:
            return refuse_each(nodes[1:], answer)


def test_the_operator_of_an_earlier_refusal_is_not_blamed() -> None:
    graph = torch.export.export(Two(), (torch.ones(2),)).graph
    nodes = [node for node in graph.nodes if node.op == "call_function"]
    last = refuse_each(nodes, lambda error: refuse(error, graph.nodes, "Core ML"))
    assert "does not take aten.cos" in str(last)


def test_the_line_of_an_earlier_refusal_is_not_blamed() -> None:
    """The first model's line is in the exception that is being handled; the second's has none."""
    namespace: dict[str, Any] = {}
    exec(compile("def own():\n    raise ValueError('first')\n", "/models/first.py", "exec"), namespace)
    lines = []
    try:
        try:
            namespace["own"]()
        except ValueError as error:
            lines.append(str(line_of_error(error)))
            raise Unsupported("the first") from error
    except Unsupported:
        try:
            convert(torch.fx.Graph().placeholder("x"))
        except ValueError as error:
            lines.append(str(line_of_error(error)))
    assert ["first.py" in line for line in lines] == [True, False]


class Inverse(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.pinv(x)


def test_a_refusal_in_half_precision_logs_nothing_of_torchs_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """In fp16 there is no such kernel, for which fake tensors log a hundred lines, each a level above a warning."""
    x = torch.eye(5) + 0.1
    with caplog.at_level(logging.DEBUG), pytest.raises(Unsupported, match="cannot be made fp16"):
        edgesmith.export(Inverse(), "onnx", precision="fp16", inputs=(x,), name="inverse", out=tmp_path)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "Traceback" not in capfd.readouterr().err
