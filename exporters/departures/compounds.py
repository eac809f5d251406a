"""ONNX's operators that are several others, as those: a detector of the parts finds them too.

QLinearConv, QLinearMatMul      dequantize of data and weight, the layer, quantize
ConvInteger, MatMulInteger      dequantize of both without a scale, and the layer
ReduceSumSquare, ReduceL2       square, reduce_sum, and a root
    Sum                             add, one after another
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """An operator in the place of another.

    Attributes:
        ones: operands that the file does not have, each a constant of one.
        dtype: of its result; empty for that of what it reads or makes.
        is_itself: whether it has the settings of the operator that it stands for.
    """

    kind: str
    inputs: tuple[str, ...]
    output: str
    dtype: str = ""
    ones: tuple[str, ...] = ()
    is_itself: bool = False


Parts = Callable[[Sequence[str], Sequence[str], str], list[Part]]


def _quantised(kind: str, weight: int) -> Parts:
    """Return the parts of an operator of (x, scale, zero, weight, scale, zero, result's scale, its zero)."""

    def parts(inputs: Sequence[str], outputs: Sequence[str], name: str) -> list[Part]:
        x, w, y = (f"{outputs[0]}.{one}" for one in ("data", "weight", "result"))
        return [
            Part("dequantize", tuple(inputs[:3]), x, "fp32"),
            Part("dequantize", tuple(inputs[weight : weight + 3]), w, "fp32"),
            Part(kind, (x, w), y, "fp32", is_itself=True),
            Part("quantize", (y, *inputs[6:8]), outputs[0]),
        ]

    return parts


def _integer(kind: str) -> Parts:
    """Return the parts of an operator of (x, weight, x's zero, weight's zero)."""

    def parts(inputs: Sequence[str], outputs: Sequence[str], name: str) -> list[Part]:
        made = []
        for index, role in enumerate(("data", "weight")):
            zero = tuple(inputs[index + 2 : index + 3])
            scale = f"{outputs[0]}.{role}.scale"
            read = (inputs[index], scale, *zero)
            made.append(Part("dequantize", read, f"{outputs[0]}.{role}", "fp32", ones=(scale,)))
        return [*made, Part(kind, (made[0].output, made[1].output), outputs[0], is_itself=True)]

    return parts


def _sum_of_squares(inputs: Sequence[str], outputs: Sequence[str], name: str) -> list[Part]:
    squares = f"{outputs[0]}.squares"
    return [Part("square", (inputs[0],), squares), Part("reduce_sum", (squares,), outputs[0], is_itself=True)]


def _root_of_squares(inputs: Sequence[str], outputs: Sequence[str], name: str) -> list[Part]:
    total = f"{outputs[0]}.sum"
    return [*_sum_of_squares(inputs, [total], name), Part("sqrt", (total,), outputs[0])]


def _sums(inputs: Sequence[str], outputs: Sequence[str], name: str) -> list[Part]:
    """Return a sum of several as sums of two."""
    if len(inputs) < 2:
        return [Part("identity", tuple(inputs), outputs[0])]
    made, so_far = [], inputs[0]
    for index, one in enumerate(inputs[1:], 1):
        last = index == len(inputs) - 1
        made.append(Part("add", (so_far, one), outputs[0] if last else f"{outputs[0]}.{index}"))
        so_far = made[-1].output
    return made


COMPOUNDS: dict[str, Parts] = {
    "QLinearConv": _quantised("conv", 3),
    "QLinearMatMul": _quantised("matmul", 3),
    "ConvInteger": _integer("conv"),
    "MatMulInteger": _integer("matmul"),
    "ReduceSumSquare": _sum_of_squares,
    "ReduceL2": _root_of_squares,
    "Sum": _sums,
}
