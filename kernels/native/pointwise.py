"""Pointwise convolution and linear layers: a matrix product with an epilogue (pointwise.h has the maths).

The tile, the panels and the tasks follow from the shape, by the numbers of tiles.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgesmith.kernels.native.epilogue import NOTHING, Epilogue
from edgesmith.kernels.native.packing import pack_panels, panels_size
from edgesmith.kernels.native.tiles import Tile, ceil_div, choose_tile, cut, panels, stage
from edgesmith.kernels.native.toolchain import CpuTarget
from edgesmith.kernels.native.unit import Argument, Unit, make_symbol, render

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Pointwise:
    """y [M, N] = epilogue(x [M, K] W + b). M counts the pixels of all maps, B H W."""

    pixels: int
    inputs: int
    outputs: int
    epilogue: Epilogue = NOTHING

    def tile(self, target: CpuTarget) -> Tile:
        """The register tile."""
        return choose_tile(target.instructions, self.pixels, self.outputs)


def emit(op: Pointwise, target: CpuTarget) -> Unit:
    """Return the kernel. Arguments: x [M, K], gate, residual, packed, y [M, N]."""
    instructions, tile = target.instructions, op.tile(target)
    size = panels_size(instructions, op.inputs, op.outputs)
    panel_count = len(panels(instructions, tile.vectors, op.outputs))
    tasks = cut(ceil_div(op.pixels, tile.pixels), panel_count, 4 * op.pixels * op.inputs, 4 * size)
    symbol = make_symbol("pointwise", f"m{op.pixels}", f"k{op.inputs}", f"n{op.outputs}", op.epilogue.words)
    constants = {
        "M": op.pixels,
        "K": op.inputs,
        "N": op.outputs,
        "P": tile.pixels,
        "V": tile.vectors,
        "STAGE": stage(instructions, op.pixels, op.inputs),
        **tasks.constants,
    }
    source = render(
        "pointwise", "Pointwise", symbol, instructions.lanes, constants, f"using Epilogue = {op.epilogue.type};"
    )
    arguments = (
        Argument("input", "x", (op.pixels, op.inputs)),
        *op.epilogue.arguments(op.pixels, op.outputs),
        Argument("packed", "weights", (size,)),
        Argument("output", "y", (op.pixels, op.outputs)),
    )
    return Unit(symbol, source, arguments, 0, 2 * op.pixels * op.inputs * op.outputs)


def pack(op: Pointwise, target: CpuTarget, weight: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    """Return the packed parameters of a weight [N, K], as PyTorch has it (trailing 1 x 1 allowed), and a bias [N]."""
    matrix = weight.reshape(op.outputs, op.inputs).T
    return pack_panels(target.instructions, op.tile(target).vectors, matrix, bias)
