"""Matrix products of two values, as attention has them, many at once (matmul.h has the maths)."""

from __future__ import annotations

from dataclasses import dataclass

from edgesmith.kernels.native.tiles import LEAST_TASKS, ceil_div, choose_tile
from edgesmith.kernels.native.toolchain import CpuTarget
from edgesmith.kernels.native.unit import Argument, Unit, make_symbol, render


@dataclass(frozen=True)
class Matmul:
    """y [B, M, N] = x [B, M, K] w [B, K, N]."""

    batch: int
    rows: int
    inputs: int
    columns: int


def emit(op: Matmul, target: CpuTarget) -> Unit:
    """Return the kernel. Arguments: x [B, M, K], w, y [B, M, N], scratch where N is no whole vectors."""
    instructions = target.instructions
    tile = choose_tile(instructions, op.rows, op.columns)
    row = ceil_div(op.columns, instructions.lanes) * instructions.lanes
    sizes = f"b{op.batch}", f"m{op.rows}", f"k{op.inputs}", f"n{op.columns}"
    symbol = make_symbol("matmul", *sizes)
    constants = {
        "BATCH": op.batch,
        "M": op.rows,
        "K": op.inputs,
        "N": op.columns,
        "P": tile.pixels,
        "V": tile.vectors,
        "LEAST_TASKS": ceil_div(LEAST_TASKS, op.batch),
    }
    arguments = (
        Argument("input", "x", (op.batch, op.rows, op.inputs)),
        Argument("input", "w", (op.batch, op.inputs, op.columns)),
        Argument("output", "y", (op.batch, op.rows, op.columns)),
    )
    scratch = 0 if row == op.columns else 4 * op.batch * op.inputs * row
    source = render("matmul", "Matmul", symbol, instructions.lanes, constants)
    return Unit(symbol, source, arguments, scratch, 2 * op.batch * op.rows * op.inputs * op.columns)
