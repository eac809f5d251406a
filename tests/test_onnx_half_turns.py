"""Transposes in half precision in front of a product, of which ONNX Runtime dies: each export runs in a process."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.lowering import lower
from torch import Tensor, nn

from edgesmith.exporters.graph.capture import capture
from edgesmith.exporters.targets._onnx_types import turn_in_single

SHAPES = {(1, 0, 2): (5, 2, 3), (1, 2, 0): (3, 5, 2), (1, 2, 0, 3): (5, 1, 2, 3), (0, 2, 1): (5, 3, 2)}


class Turned(nn.Module):
    """A product of what was turned, whether rounded just before, reshaped, or computed; or something done after."""

    def __init__(self, order: tuple[int, ...], before: str) -> None:
        super().__init__()
        self.order, self.before = order, before
        self.linear = nn.Linear(3, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.before == "reshaped":
            x = x.reshape(SHAPES[self.order])
        elif self.before == "computed":
            x = x.tanh()
        x = x.permute(self.order)
        if self.before == "scaled after":
            x = x * 0.5
        elif self.before == "widened after":
            x = x.double().float()
        return self.linear(x).tanh()


@pytest.mark.parametrize("before", ["rounded", "reshaped", "computed", "scaled after", "widened after"])
@pytest.mark.parametrize("order", SHAPES)
def test_a_product_of_what_was_turned_loads(order: tuple[int, ...], before: str, tmp_path: Path) -> None:
    model, x = Turned(order, before).eval(), torch.randn(SHAPES[order], generator=torch.Generator().manual_seed(0))
    if before == "reshaped":
        x = x.flatten()
    lower("onnx", capture(model, (x,)), tmp_path / "turned.onnx", "fp16")
    code = "import onnxruntime as o, sys; o.InferenceSession(sys.argv[1], providers=['CPUExecutionProvider'])"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "turned.onnx")], capture_output=True, text=True)
    assert done.returncode == 0, f"the process ended with {done.returncode}"
    (found,) = lower("onnx", capture(model, (x,)), tmp_path / "again.onnx", "fp16").run([[x.numpy()]])[0]
    torch.testing.assert_close(torch.from_numpy(found), model(x).detach(), rtol=2e-2, atol=2e-3)


# What ONNX Runtime takes away, or moves, between the two

Step = tuple[str, list[Any], dict[str, Any]]

ONE, NONE = np.float16(1), np.float16(0)
SAME = np.array([2, 5, 3])
BETWEEN: dict[str, list[Step]] = {
    "a reshape": [("Reshape", [SAME], {})],
    "a reshape by what comes": [("Reshape", [np.array([0, -1, 3])], {})],
    "there and back": [("Reshape", [np.array([1, 2, 5, 3])], {}), ("Reshape", [SAME], {})],
    "an identity": [("Identity", [], {})],
    "a dropout": [("Dropout", [], {})],
    "a type, the same": [("Cast", [], {"to": 10})],
    "a wider type": [("Cast", [], {"to": 1}), ("Cast", [], {"to": 10})],
    "a far wider type": [("Cast", [], {"to": 11}), ("Cast", [], {"to": 10})],
    "an axis": [("Unsqueeze", [np.array([0])], {})],
    "an axis, again": [("Unsqueeze", [np.array([1])], {}), ("Squeeze", [np.array([1])], {})],
    "rows": [("Flatten", [], {"axis": 2})],
    "an expand": [("Expand", [SAME], {})],
    "a factor": [("Mul", [np.float16(0.5)], {})],
    "a factor of 1": [("Mul", [ONE], {})],
    "a divisor": [("Div", [np.float16(2)], {})],
    "nothing added": [("Add", [NONE], {})],
    "nothing taken": [("Sub", [NONE], {})],
    "an order that is none": [("Transpose", [], {"perm": [0, 1, 2]})],
    "two orders": [("Reshape", [SAME], {}), ("Transpose", [], {"perm": [0, 2, 1]})],
    "what is moved over": [("Abs", [], {}), ("Transpose", [], {"perm": [0, 1, 2]})],
}


def between(steps: list[Step], before: str) -> Any:
    """Return an ONNX model: numbers of half precision, a Transpose of the first axis, some steps and a product."""
    import onnx
    from onnx import helper, numpy_helper

    made = [helper.make_node("Cast", ["x"], ["v0"], to=10)]
    weights = []
    for k, (kind, given, named) in enumerate([(before, [], {}), ("Transpose", [], {"perm": [1, 0, 2]}), *steps]):
        constants = [numpy_helper.from_array(np.asarray(one), f"c{k}_{i}") for i, one in enumerate(given)]
        names = [f"v{k}", *(one.name for one in constants)]
        made.append(helper.make_node(kind, names, [f"v{k + 1}"], name=f"n{k}", **named))
        weights += constants
    rows = 5 if steps and steps[-1][2].get("perm") == [0, 2, 1] else 3
    weight = np.random.default_rng(0).normal(size=(rows, 4)).astype(np.float16)
    made.append(helper.make_node("MatMul", [made[-1].output[0], "w"], ["y"]))
    made.append(helper.make_node("Cast", ["y"], ["out"], to=1))
    kinds = {one.op_type for one in made}
    axes = ["a", "b"] if "Flatten" in kinds else ["a", "b", "c"]
    graph = helper.make_graph(
        made,
        "turned",
        [helper.make_tensor_value_info("x", 1, [5, 2, 3])],
        [helper.make_tensor_value_info("out", 1, [*axes, "d"] if steps == BETWEEN["an axis"] else axes)],
        [numpy_helper.from_array(weight, "w"), *weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return model


RUN = """
import sys, numpy, onnxruntime
x = numpy.random.default_rng(1).normal(size=(5, 2, 3)).astype("float32")
def run(path, level):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
for path in sys.argv[1:]:
    print(path, flush=True)
    levels = onnxruntime.GraphOptimizationLevel
    plain, made = run(path, levels.ORT_DISABLE_ALL), run(path + ".turned", levels.ORT_ENABLE_ALL)
    numpy.testing.assert_allclose(made, plain, rtol=2e-3, atol=2e-3)
"""


def written(folder: Path) -> Iterator[str]:
    for k, (steps, before) in enumerate(itertools.product(BETWEEN.values(), ["Identity", "Tanh"])):
        model, path = between(steps, before), folder / f"{k}.onnx"
        path.write_bytes(model.SerializeToString())
        turn_in_single(model)
        path.with_name(f"{path.name}.turned").write_bytes(model.SerializeToString())
        yield str(path)


def test_a_product_of_what_was_turned_and_passed_on_loads(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", RUN, *written(tmp_path)], capture_output=True, text=True)
    names = [f"{name} after {before}" for name in BETWEEN for before in ("Identity", "Tanh")]
    assert done.returncode == 0, f"{names[len(done.stdout.split()) - 1]}: {done.returncode}, {done.stderr[-300:]}"
