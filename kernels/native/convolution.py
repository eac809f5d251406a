"""Convolution of any kernel, stride, padding, dilation and groups (convolution.h has the maths)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgesmith.kernels.native.epilogue import NOTHING, Epilogue
from edgesmith.kernels.native.packing import pack_panels, panels_size
from edgesmith.kernels.native.tiles import LEAST_TASKS, Tile, ceil_div, choose_tile, cut, panels
from edgesmith.kernels.native.toolchain import CpuTarget
from edgesmith.kernels.native.unit import Argument, Constant, Unit, make_symbol, render

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Convolution:
    """y [B, OH, OW, N] of x [B, H, W, C].

    Attributes:
        kernel: KH, KW.
        padding: zeros above, left of, below and right of the map.
        groups: of channels; they divide inputs and outputs.
    """

    batch: int
    height: int
    width: int
    inputs: int
    outputs: int
    kernel: tuple[int, int] = (3, 3)
    stride: int = 1
    padding: tuple[int, int, int, int] = (1, 1, 1, 1)
    dilation: int = 1
    epilogue: Epilogue = NOTHING
    groups: int = 1

    @property
    def out(self) -> tuple[int, int]:
        """OH, OW"""
        top, left, bottom, right = self.padding
        tall, wide = ((size - 1) * self.dilation + 1 for size in self.kernel)
        height = (self.height + top + bottom - tall) // self.stride + 1
        return height, (self.width + left + right - wide) // self.stride + 1

    @property
    def taps(self) -> int:
        """K, the inputs of one output: KH KW C."""
        return self.kernel[0] * self.kernel[1] * self.inputs // self.groups

    def tile(self, target: CpuTarget) -> Tile:
        """The register tile, of pixels in one row of the output."""
        return choose_tile(target.instructions, self.out[1], self.outputs // self.groups)


def emit(op: Convolution, target: CpuTarget) -> Unit:
    """Return the kernel. Arguments: x [B, H, W, C], gate, residual, packed, y [B, OH, OW, N]."""
    instructions, tile = target.instructions, op.tile(target)
    out_height, out_width = op.out
    rows, symbol, each = op.batch * out_height, _name(op), op.outputs // op.groups
    size, panel_count = panels_size(instructions, op.taps, each), len(panels(instructions, tile.vectors, each))
    input_bytes = 4 * op.batch * op.height * op.width * op.inputs // op.groups
    tasks = cut(rows, panel_count, input_bytes, 4 * size, ceil_div(LEAST_TASKS, op.groups))
    constants = geometry(op) | {
        "P": tile.pixels,
        "V": tile.vectors,
        **tasks.constants,
    }
    source = render(
        "convolution", "Convolution", symbol, instructions.lanes, constants, f"using Epilogue = {op.epilogue.type};"
    )
    pixels = rows * out_width
    arguments = (
        Argument("input", "x", (op.batch, op.height, op.width, op.inputs)),
        *op.epilogue.arguments(pixels, op.outputs),
        Argument("packed", "weights", (op.groups * size,)),
        Argument("output", "y", (op.batch, out_height, out_width, op.outputs)),
    )
    return Unit(symbol, source, arguments, 0, 2 * pixels * op.taps * op.outputs)


def geometry(op: Convolution) -> dict[str, Constant]:
    """Return the constants that say what a layer computes."""
    out_height, out_width = op.out
    return {
        "BATCH": op.batch,
        "H": op.height,
        "W": op.width,
        "C": op.inputs // op.groups,
        "GROUPS": op.groups,
        "KH": op.kernel[0],
        "KW": op.kernel[1],
        "STRIDE": op.stride,
        "DILATION": op.dilation,
        "TOP": op.padding[0],
        "LEFT": op.padding[1],
        "OH": out_height,
        "OW": out_width,
        "N": op.outputs // op.groups,
    }


def _name(op: Convolution) -> str:
    return make_symbol(
        "convolution",
        f"{op.batch}x{op.height}x{op.width}x{op.inputs}",
        f"n{op.outputs}",
        f"k{op.kernel[0]}x{op.kernel[1]}",
        f"s{op.stride}",
        f"p{'x'.join(map(str, op.padding))}",
        f"d{op.dilation}",
        f"g{op.groups}" if op.groups > 1 else "",
        op.epilogue.words,
    )


def pack(op: Convolution, target: CpuTarget, weight: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    """Return the packed parameters of a weight [G N, C, KH, KW], as PyTorch has it, and a bias [G N] or none."""
    import numpy as np

    each, vectors = op.outputs // op.groups, op.tile(target).vectors
    parts = []
    for first in range(0, op.outputs, each):
        matrix = weight[first : first + each].transpose(2, 3, 1, 0).reshape(op.taps, each)
        given = None if bias is None else bias[first : first + each]
        parts.append(pack_panels(target.instructions, vectors, matrix, given))
    return np.concatenate(parts)
