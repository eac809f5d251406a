"""Layers of 8-bit integers in Relax: how rounding is spelled in the graph, and how it is found again.

    rounded     clip(round(x (1/s)), -128, 127)     in float, of operators that layouts pass through
    scaled      s rounded(x)
    weights     s_n w[n, ...] in float, constants

A kernel takes what a layer reads before it is rounded, and its weights as integers. These are found from the numbers:
of every output channel the largest is some integer of 1 to 127 times the scale, and with the right one all others are
integers too, to float's last bits. So nothing has to be remembered while a graph is turned around, and a weight that is
taken for integers is one: the kernel computes what the program says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgesmith.exporters.targets._tvm_arrange import PERMUTES, RESHAPES, operator
from edgesmith.kernels.native.integer_layer import LARGEST_WEIGHT, LEAST, MOST, Rounded

if TYPE_CHECKING:
    import numpy as np

    from edgesmith.exporters.graph.capture import Program

ROUNDING = 4
"""Operators of a rounding: two products, with a rounding to whole numbers and a limit between them."""

TOLERANCE = 2.0**-22
"""Error of an integer times its scale, rounded to float32, and that of the scale as it is found."""


@dataclass(frozen=True)
class Source:
    """A value before it is rounded to int8.

    Attributes:
        scale: that its integers have.
        turn: the permutation of what is rounded; None where there is none.
    """

    x: Any
    scale: float
    turn: Any = None


@dataclass(frozen=True)
class Integers:
    """The operands of a layer of integers.

    Attributes:
        source: of the value that it reads.
        weight: int8, of the shape of the layer's own.
        scales: of the weight, by output channel.
    """

    source: Source
    weight: np.ndarray
    scales: np.ndarray

    def parameters(self, bias: np.ndarray | None) -> Rounded:
        """Return the parameters of the layer's kernel."""
        import numpy as np

        shape = (*self.weight.shape, 1, 1)[:4]
        scale = self.source.scale
        return Rounded(self.weight.reshape(shape), (self.scales * scale).astype(np.float32), bias, scale)


def find(x: Any, weight: np.ndarray, values: Mapping[Any, Any]) -> Integers | None:
    """Return a layer's operands as integers; None where one of them is none."""
    before = source(x, values)
    held = None if before is None else integers(weight)
    return None if before is None or held is None else Integers(before, *held)


def has_rounding(program: Program) -> bool:
    """Return whether a program rounds values to integers."""
    nodes = program.module.graph.nodes
    return any(node.op == "call_function" and "quantized_decomposed" in str(node.target) for node in nodes)


def with_float_weights(program: Program) -> Program:
    """Return a program whose weights of integers are written as the floats that they stand for."""
    from edgesmith.exporters.graph.capture import with_module
    from edgesmith.exporters.graph.edit import add_constant, constant, fork, operator_name, tidy

    module = fork(program.module)
    for node in list(module.graph.nodes):
        if node.op != "call_function" or operator_name(node) != "quantized_decomposed.dequantize_per_channel":
            continue
        numbers, scales, zeros = (constant(module, one) for one in node.args[:3])
        if numbers is None or scales is None or zeros is None:
            continue
        axis = node.args[3]
        shape = [-1 if i == axis else 1 for i in range(numbers.dim())]
        weight = (numbers.float() - zeros.float().reshape(shape)) * scales.float().reshape(shape)
        node.replace_all_uses_with(add_constant(module, f"{node.meta.get('weight', node.name)}_float", weight, node))
    return with_module(program, tidy(module))


def rounded(x: Any, scale: float, zero: int, least: int, most: int) -> Any:
    """Return the integers of a value, in float."""
    from tvm import relax

    op = relax.op
    numbers = op.round(op.multiply(x, relax.const(1.0 / scale, "float32")))
    if zero:
        numbers = op.add(numbers, relax.const(float(zero), "float32"))
    return op.clip(numbers, least, most)


def scaled(x: Any, scale: float, zero: int) -> Any:
    """Return the value of integers in float."""
    from tvm import relax

    op = relax.op
    shifted = op.subtract(x, relax.const(float(zero), "float32")) if zero else x
    return op.multiply(shifted, relax.const(scale, "float32"))


def source(x: Any, values: Mapping[Any, Any]) -> Source | None:
    """Return what a value is the rounding of, reshaped or not, since numbers stay in order; None where it is none.

    Args:
        values: of variables.
    """
    while operator(values.get(x)) in RESHAPES:
        x = values[x].args[0]
    turn = values[x] if operator(values.get(x)) == PERMUTES else None
    x = x if turn is None else turn.args[0]
    made: Any = values.get(x)
    scale = _factor(made)
    clipped: Any = None if scale is None else values.get(made.args[0])
    if operator(clipped) != "relax.clip" or [_number(one) for one in clipped.args[1:]] != [LEAST, MOST]:
        return None
    whole: Any = values.get(clipped.args[0])
    inner: Any = values.get(whole.args[0]) if operator(whole) == "relax.round" else None
    inverse = _factor(inner)
    if scale is None or inverse is None or abs(inverse * scale - 1) > 1e-6:
        return None
    return Source(inner.args[0], scale, turn)


def _factor(value: Any) -> float | None:
    """Return what a value is multiplied by, a single number; None where it is not."""
    import tvm

    if operator(value) != "relax.multiply" or not isinstance(value.args[1], tvm.ir.GenericConst):
        return None
    factor = value.args[1].value.numpy()
    return float(factor) if factor.size == 1 else None


def _number(value: Any) -> float:
    """Return a number that is part of an operator."""
    return float(value.value.value if hasattr(value.value, "value") else value.value)


def integers(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Return a weight [N, ...] as int8 and scales [N]; None where it is not integers times a scale for each channel."""
    import numpy as np

    flat = weight.reshape(len(weight), -1).astype(np.float64)
    peaks = np.abs(flat).max(1, initial=0.0)
    found, scales = np.zeros(flat.shape, np.int8), np.ones(len(flat))
    left = np.flatnonzero(peaks > 0)
    for largest in range(LARGEST_WEIGHT, 0, -1):
        if not left.size:
            break
        tried = peaks[left] / largest
        numbers = np.rint(flat[left] / tried[:, None])
        wrong = np.abs(numbers * tried[:, None] - flat[left]) > TOLERANCE * np.abs(flat[left])
        right = ~wrong.any(1)
        found[left[right]], scales[left[right]] = numbers[right], tried[right]
        left = left[~right]
    return None if left.size else (found.reshape(weight.shape), scales)
