"""A graph in a line of text, as the book shows its constructs and tests build theirs.

    model(opset=18); x = input fp16[1,8]; s = state fp16[1,8]; c = const fp16[2] 1 0.5
    y = conv(x, c, strides=[2,2]); a: fp16[1,4], b: fp16[1,4] = split(y, axis=1); return a, b

A result has the type of its first operand, unless one is written. A constant without numbers is of ones.
"""

from __future__ import annotations

import ast
import re
from typing import Any

import numpy as np

from edgesmith.errors import BadInput
from edgesmith.exporters.departures.graph import Graph, Node, Shape, Value

_TYPE = re.compile(r"(?P<dtype>\w+)\[(?P<sizes>[\d,?\s]*)\]")
_DECLARED = re.compile(r"(?P<name>\w+) = (?P<how>input|state|const) (?P<type>\w+\[[^\]]*\])(?P<numbers>.*)")
_CALL = re.compile(r"(?P<results>.+?) = (?P<kind>\w+)\((?P<arguments>.*)\)")
_RESULT = re.compile(r"(\w+)(?:: (\w+\[[^\]]*\]))?(?:, |$)")
_NUMPY = {"fp16": "float16", "fp32": "float32", "uint4": "uint8", "int4": "int8"}


class _Reader:
    """A graph while it is read."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.values: dict[str, Value] = {}
        self.inputs: list[str] = []
        self.states: list[str] = []
        self.outputs: list[str] = []
        self.settings: dict[str, Any] = {}

    def statement(self, text: str) -> None:
        if text.startswith("return "):
            self.outputs = [name.strip() for name in text.removeprefix("return ").split(",")]
        elif text.startswith("model("):
            self.settings = _settings(text.removeprefix("model(").removesuffix(")"))[1]
        elif (declared := _DECLARED.fullmatch(text)) is not None:
            self.declare(declared)
        elif (call := _CALL.fullmatch(text)) is not None:
            self.call(call)
        else:
            raise BadInput(f"a graph has no statement {text!r}; wanted `y = kind(x, setting=1)`, or an input or return")

    def declare(self, found: re.Match[str]) -> None:
        name, how = found["name"], found["how"]
        dtype, shape = _type(found["type"])
        if how == "const":
            array = _numbers(found["numbers"], dtype, shape)
            self.values[name] = Value(name, dtype, shape, lambda: array)
            return
        self.values[name] = Value(name, dtype, shape)
        (self.states if how == "state" else self.inputs).append(name)

    def call(self, found: re.Match[str]) -> None:
        operands, settings = _settings(found["arguments"])
        for name in operands:
            if name not in self.values:
                raise BadInput(f"{name} of {found['kind']} is read before it is there")
        results = _RESULT.findall(found["results"])
        first = self.values[operands[0]] if operands else Value("", "fp32", ())
        for name, written in results:
            dtype, shape = _type(written) if written else (first.dtype, first.shape)
            self.values[name] = Value(name, dtype, shape)
        names = tuple(name for name, _ in results)
        self.nodes.append(Node(found["kind"], names[0], tuple(operands), names, settings, found["kind"]))


def read_graph(text: str) -> Graph:
    """Return the graph that a line says. Raises BadInput for a statement that it does not know."""
    reader = _Reader()
    for statement in text.split(";"):
        if statement.strip():
            reader.statement(statement.strip())
    return Graph(reader.nodes, reader.values, reader.inputs, reader.outputs, reader.states, reader.settings)


def _type(text: str) -> tuple[str, Shape]:
    found = _TYPE.fullmatch(text)
    if found is None:
        raise BadInput(f"a tensor's type is like fp16[1,8,?], got {text!r}")
    sizes = [one.strip() for one in found["sizes"].split(",") if one.strip()]
    return found["dtype"], tuple(None if one == "?" else int(one) for one in sizes)


def _numbers(text: str, dtype: str, shape: Shape) -> np.ndarray:
    kind = np.dtype(_NUMPY.get(dtype, dtype))
    sizes = [size or 0 for size in shape]
    written = [float(one) for one in text.split()]
    return np.array(written).astype(kind).reshape(sizes) if written else np.ones(sizes, kind)


def _settings(text: str) -> tuple[list[str], dict[str, Any]]:
    """Return the operands and the settings of a call's arguments."""
    call = ast.parse(f"f({text})", mode="eval").body
    assert isinstance(call, ast.Call)
    operands = [one.id for one in call.args if isinstance(one, ast.Name)]
    return operands, {one.arg: ast.literal_eval(one.value) for one in call.keywords if one.arg}
