"""Functions of every number by itself: exp, sigmoid, SiLU, erf-GELU ... (functions.h has the maths)."""

from __future__ import annotations

from dataclasses import dataclass

from edgesmith.kernels.native.epilogue import Function
from edgesmith.kernels.native.toolchain import CpuTarget
from edgesmith.kernels.native.unit import Argument, Constant, Unit, make_symbol, render

NUMBERS_A_TASK = 4096
"""16 KiB: reads and writes of a task fit into the first cache."""


@dataclass(frozen=True)
class Elementwise:
    """y = f(x), of a count of numbers."""

    count: int
    function: Function


def emit(op: Elementwise, target: CpuTarget) -> Unit:
    """Return the kernel. Arguments: x, y."""
    symbol = make_symbol("elementwise", op.function, op.count)
    constants: dict[str, Constant] = {
        "COUNT": op.count,
        "NUMBERS_A_TASK": min(NUMBERS_A_TASK, op.count),
        "FUNCTION": f"es::Function::{op.function}",
    }
    source = render("elementwise", "Elementwise", symbol, target.instructions.lanes, constants)
    arguments = (Argument("input", "x", (op.count,)), Argument("output", "y", (op.count,)))
    return Unit(symbol, source, arguments, 0, op.count)
