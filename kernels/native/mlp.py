"""Two pointwise layers with a function between them, whose hidden numbers stay in the cache (mlp.h has the maths)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgesmith.kernels.native import tiles
from edgesmith.kernels.native.epilogue import NOTHING, Epilogue, Function
from edgesmith.kernels.native.packing import pack_panels, panels_size
from edgesmith.kernels.native.tiles import Tile, ceil_div, choose_tile
from edgesmith.kernels.native.toolchain import CpuTarget
from edgesmith.kernels.native.unit import Argument, Unit, make_symbol, render

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Mlp:
    """y [M, N] = epilogue(W2 f(W1 x [M, K] + b1) + b2)."""

    pixels: int
    inputs: int
    hidden: int
    outputs: int
    function: Function = "gelu"
    epilogue: Epilogue = NOTHING

    def group(self, target: CpuTarget) -> int:
        """Pixels that go through both layers at once: whole tiles, about as many in each group."""
        tile = choose_tile(target.instructions, self.pixels, self.hidden).pixels
        fitting = max(1, tiles.HIDDEN_BYTES // (4 * self.hidden * tile)) * tile
        count = max(ceil_div(self.pixels, fitting), min(tiles.LEAST_TASKS, ceil_div(self.pixels, 4 * tile)))
        return min(self.pixels, ceil_div(ceil_div(self.pixels, count), tile) * tile)

    def tiles(self, target: CpuTarget) -> tuple[Tile, Tile]:
        """The register tiles of both layers."""
        instructions, group = target.instructions, self.group(target)
        return choose_tile(instructions, group, self.hidden), choose_tile(instructions, group, self.outputs)

    def fits(self, target: CpuTarget) -> bool:
        """Return whether a tile's hidden numbers fit where they are kept; otherwise the layers are kernels each."""
        return self.group(target) * self.hidden <= tiles.HIDDEN_BYTES // 2


def emit(op: Mlp, target: CpuTarget) -> Unit:
    """Return the kernel. Arguments: x [M, K], gate, residual, packed, y [M, N]."""
    instructions = target.instructions
    first, second = op.tiles(target)
    symbol = make_symbol(
        "mlp", f"m{op.pixels}", f"k{op.inputs}", f"h{op.hidden}", f"n{op.outputs}", op.function, op.epilogue.words
    )
    constants = {
        "M": op.pixels,
        "K": op.inputs,
        "HIDDEN": op.hidden,
        "N": op.outputs,
        "R": op.group(target),
        "P1": first.pixels,
        "V1": first.vectors,
        "P2": second.pixels,
        "V2": second.vectors,
    }
    types = f"using Epilogue = {op.epilogue.type};\nusing Between = {Epilogue(op.function).type};"
    source = render("mlp", "Mlp", symbol, instructions.lanes, constants, types)
    size = panels_size(instructions, op.inputs, op.hidden) + panels_size(instructions, op.hidden, op.outputs)
    arguments = (
        Argument("input", "x", (op.pixels, op.inputs)),
        *op.epilogue.arguments(op.pixels, op.outputs),
        Argument("packed", "weights", (size,)),
        Argument("output", "y", (op.pixels, op.outputs)),
    )
    return Unit(symbol, source, arguments, 0, 2 * op.pixels * op.hidden * (op.inputs + op.outputs))


def pack(
    op: Mlp,
    target: CpuTarget,
    first: tuple[np.ndarray, np.ndarray | None],
    second: tuple[np.ndarray, np.ndarray | None],
) -> np.ndarray:
    """Return the packed parameters of both layers, each a weight [out, in], as PyTorch has it, and a bias or none."""
    import numpy as np

    packed = [
        pack_panels(target.instructions, tile.vectors, weight.reshape(weight.shape[0], -1).T, bias)
        for tile, (weight, bias) in zip(op.tiles(target), (first, second), strict=True)
    ]
    return np.concatenate(packed)
