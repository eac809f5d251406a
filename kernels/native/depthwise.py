"""Depthwise convolution: every channel by itself, with an epilogue (depthwise.h has the maths)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgesmith.kernels.native.epilogue import NOTHING, Epilogue
from edgesmith.kernels.native.tiles import strip_lanes, strip_length, tasks_of
from edgesmith.kernels.native.toolchain import CpuTarget
from edgesmith.kernels.native.unit import Argument, Unit, make_symbol, render

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Depthwise:
    """y [B, OH, OW, C] of x [B, H, W, C].

    Attributes:
        kernel: KH, KW.
        padding: zeros above, left of, below and right of the map.
    """

    batch: int
    height: int
    width: int
    channels: int
    kernel: tuple[int, int] = (3, 3)
    stride: int = 1
    padding: tuple[int, int, int, int] = (1, 1, 1, 1)
    epilogue: Epilogue = NOTHING
    dilation: int = 1

    @property
    def out(self) -> tuple[int, int]:
        """OH, OW"""
        top, left, bottom, right = self.padding
        tall, wide = ((size - 1) * self.dilation + 1 for size in self.kernel)
        height = (self.height + top + bottom - tall) // self.stride + 1
        return height, (self.width + left + right - wide) // self.stride + 1


def emit(op: Depthwise, target: CpuTarget) -> Unit:
    """Return the kernel. Arguments: x [B, H, W, C], gate, residual, packed, y [B, OH, OW, C]."""
    out_height, out_width = op.out
    top, left, bottom, right = op.padding
    symbol = make_symbol(
        "depthwise",
        f"{op.batch}x{op.height}x{op.width}x{op.channels}",
        f"k{op.kernel[0]}x{op.kernel[1]}",
        f"s{op.stride}",
        f"p{top}x{left}x{bottom}x{right}",
        f"d{op.dilation}" if op.dilation > 1 else "",
        op.epilogue.words,
    )
    constants = {
        "BATCH": op.batch,
        "H": op.height,
        "W": op.width,
        "C": op.channels,
        "KH": op.kernel[0],
        "KW": op.kernel[1],
        "STRIDE": op.stride,
        "DILATION": op.dilation,
        "TOP": top,
        "LEFT": left,
        "OH": out_height,
        "OW": out_width,
        "T": strip_length(target.instructions, out_width, op.kernel[1]),
        "TASKS": tasks_of(op.batch * out_height),
        "PITCH": op.channels,
        "MOST_LANES": strip_lanes(target.instructions, op.kernel[1]),
    }
    source = render(
        "depthwise",
        "Depthwise",
        symbol,
        target.instructions.lanes,
        constants,
        f"using Epilogue = {op.epilogue.type};",
    )
    pixels = op.batch * out_height * out_width
    arguments = (
        Argument("input", "x", (op.batch, op.height, op.width, op.channels)),
        *op.epilogue.arguments(pixels, op.channels),
        Argument("packed", "weights", ((op.kernel[0] * op.kernel[1] + 1) * op.channels,)),
        Argument("output", "y", (op.batch, out_height, out_width, op.channels)),
    )
    return Unit(symbol, source, arguments, 0, 2 * pixels * op.channels * op.kernel[0] * op.kernel[1])


def pack(op: Depthwise, target: CpuTarget, weight: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    """Return bias [C], then w [KH, KW, C], of a weight [C, 1, KH, KW], as PyTorch has it, and a bias [C] or none."""
    return pack_taps(weight, bias)


def pack_taps(weight: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    """Return a depthwise weight [C, 1, KH, KW] and its bias as one float32 array, channels last."""
    import numpy as np

    channels = weight.shape[0]
    first = np.zeros(channels) if bias is None else bias
    return np.concatenate((first, weight.reshape(channels, -1).T.ravel())).astype(np.float32)
