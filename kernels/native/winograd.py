"""Dense convolutions with kernels three columns wide and stride 1: two thirds of the products, or half (winograd.h)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgesmith.kernels.native import convolution
from edgesmith.kernels.native.convolution import Convolution
from edgesmith.kernels.native.packing import pack_panels, panels_size
from edgesmith.kernels.native.tiles import LEAST_TASKS, STAGE, Tile, ceil_div, choose_tile, cut, panels
from edgesmith.kernels.native.toolchain import CpuTarget
from edgesmith.kernels.native.unit import Argument, Unit, render

if TYPE_CHECKING:
    import numpy as np

FEWEST = 32
"""Inputs of a kernel column, KH C, and outputs, from which what is saved is more than what the transforms take."""


LONG_ROW = 25
"""Outputs in a row from which four are made at once: a tile has groups of one row, and fewer than seven are slow."""

MANY_INPUTS = 2 * STAGE
"""Inputs from which that rounds no more than the layer as it is: sums in stages gain what the transforms lose."""


@dataclass(frozen=True)
class Winograd:
    """A convolution."""

    layer: Convolution

    @property
    def outputs(self) -> int:
        """Neighbouring outputs of a group."""
        return 4 if self.layer.out[1] >= LONG_ROW and self.layer.inputs >= MANY_INPUTS else 2

    @property
    def groups(self) -> int:
        """Groups in a row of the output."""
        return ceil_div(self.layer.out[1], self.outputs)

    def tile(self, target: CpuTarget) -> Tile:
        """The register tile, of groups in one row of the output."""
        return choose_tile(target.instructions, self.groups, self.layer.outputs)


def suits(layer: Convolution) -> bool:
    """Return whether a layer can be computed so, and is faster for it."""
    tall, wide = layer.kernel
    is_plain = wide == 3 and layer.stride == layer.dilation == layer.groups == 1 and layer.out[1] > 3
    return is_plain and tall * layer.inputs >= FEWEST and layer.outputs >= FEWEST


def emit(op: Winograd, target: CpuTarget) -> Unit:
    """Return the kernel. Arguments: x [B, H, W, C], gate, residual, packed, y [B, OH, OW, N], scratch."""
    layer, instructions, tile = op.layer, target.instructions, op.tile(target)
    dense = convolution.emit(layer, target)
    products = op.outputs + 2
    input_rows, rows = layer.batch * layer.height, layer.batch * layer.out[0]
    size = panels_size(instructions, products * layer.kernel[0] * layer.inputs, layer.outputs)
    scratch_bytes = 4 * products * input_rows * op.groups * layer.inputs
    tasks = cut(rows, len(panels(instructions, tile.vectors, layer.outputs)), scratch_bytes, 4 * size)
    constants = convolution.geometry(layer) | {
        "OUT": op.outputs,
        "STAGE": STAGE if op.outputs > 2 else layer.inputs,
        "P": tile.pixels,
        "V": tile.vectors,
        **tasks.constants,
        "CHUNKS": min(op.groups, ceil_div(LEAST_TASKS, input_rows)),
    }
    symbol = dense.symbol.replace("convolution", "winograd", 1)
    source = render(
        "winograd", "Winograd", symbol, instructions.lanes, constants, f"using Epilogue = {layer.epilogue.type};"
    )
    arguments = tuple(Argument("packed", "weights", (size,)) if a.role == "packed" else a for a in dense.arguments)
    return Unit(symbol, source, arguments, scratch_bytes, dense.flops)


def pack(op: Winograd, target: CpuTarget, weight: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    """Return the packed parameters of a weight [N, C, KH, 3], as PyTorch has it, and a bias [N] or none."""
    import numpy as np

    w0, w1, w2 = np.moveaxis(weight.astype(np.float64), 3, 0)
    if op.outputs == 2:
        u = np.stack((w0, (w0 + w1 + w2) / 2, (w0 - w1 + w2) / 2, w2))  # [4, N, C, KH]
    else:
        ends, half, minus_two = w0 + w2, (16 * w0 + 8 * w1 + 4 * w2) / 15, (w0 - 2 * w1 + 4 * w2) / 30
        u = np.stack((w0, (ends + w1) / 6, (ends - w1) / 6, half, minus_two, w2))  # [6, N, C, KH]
    matrix = u.transpose(0, 3, 2, 1).reshape(-1, op.layer.outputs)
    return pack_panels(target.instructions, op.tile(target).vectors, matrix, bias)
