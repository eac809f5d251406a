"""The fused op fft_filter of `kernels/fft_filter.py`, channels last (fft_filter.h has the maths).

Transforms are orthonormal, and made in float64. Along W only F = floor(W / 2) + 1 columns are kept, and the way back
counts those that have a conjugate twice.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgesmith.kernels.native.packing import pack_panels, panels_size
from edgesmith.kernels.native.tiles import ceil_div, choose_tile
from edgesmith.kernels.native.toolchain import CpuTarget
from edgesmith.kernels.native.unit import Argument, Constant, Unit, make_symbol, render

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class FftFilter:
    """y [B, H, W, C] of x [B, H, W, C].

    Attributes:
        blocks: k, of channels; it divides C.
        threshold: of the soft shrinkage, 0 or more.
        hidden: D, channels of a block between the two layers; None for as many as a block has.
        activation: between the two layers, `silu` or `relu`.
        masks: the spectrum is multiplied by what the layers yield; otherwise that is the new spectrum.
    """

    batch: int
    height: int
    width: int
    channels: int
    blocks: int
    threshold: float = 0.01
    hidden: int | None = None
    activation: str = "silu"
    masks: bool = True

    @property
    def columns(self) -> int:
        """F"""
        return self.width // 2 + 1


def emit(op: FftFilter, target: CpuTarget) -> Unit:
    """Return the kernel. Arguments: x [B, H, W, C], packed, y [B, H, W, C], scratch."""
    instructions = target.instructions
    h, w, c, f = op.height, op.width, op.channels, op.columns
    width = c // op.blocks
    row = ceil_div(c, instructions.lanes) * instructions.lanes
    transform = choose_tile(instructions, 2 * h, c)
    hidden = op.hidden or width
    layer = choose_tile(instructions, h, 2 * width)
    settings = (f"k{op.blocks}", f"t{op.threshold}", f"d{hidden}", op.activation, "mask" if op.masks else "spectrum")
    symbol = make_symbol("fft_filter", f"{op.batch}x{h}x{w}x{c}", *settings)
    constants: dict[str, Constant] = {
        "BATCH": op.batch,
        "H": h,
        "W": w,
        "C": c,
        "F": f,
        "BLOCKS": op.blocks,
        "HIDDEN": hidden,
        "IS_RELU": int(op.activation == "relu"),
        "IS_MASK": int(op.masks),
        "THRESHOLD": float(op.threshold),
        "TRANSFORM_P": transform.pixels,
        "TRANSFORM_V": transform.vectors,
        "LAYER_P": layer.pixels,
        "LAYER_V": layer.vectors,
        "LEAST_TASKS": 1,
    }
    source = render("fft_filter", "FftFilter", symbol, instructions.lanes, constants)
    panels = panels_size(instructions, 2 * width, 2 * hidden) + panels_size(instructions, 2 * hidden, 2 * width)
    size = 4 * f * w + 8 * h * h + op.blocks * panels
    arguments = (
        Argument("input", "x", (op.batch, h, w, c)),
        Argument("packed", "weights", (size,)),
        Argument("output", "y", (op.batch, h, w, c)),
    )
    scratch = 4 * 2 * op.batch * f * 2 * h * row
    transforms = 2 * h * w * 2 * f * c + 2 * f * 4 * h * h * c
    return Unit(symbol, source, arguments, scratch, 2 * op.batch * (transforms + h * f * 8 * c * hidden))


def pack(op: FftFilter, target: CpuTarget, weights: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the packed parameters, from those of the fused op by name: w1, b1, w2 and b2."""
    import numpy as np

    along, back = _row_transforms(op.width)
    down = _column_transform(op.height)
    parts = [along.ravel(), down.ravel(), down.T.ravel(), back.ravel()]
    width = op.channels // op.blocks
    vectors = choose_tile(target.instructions, op.height, 2 * width).vectors
    for block in range(op.blocks):
        for number in (1, 2):
            re, im = weights[f"w{number}"][:, block]
            matrix = np.block([[re, im], [-im, re]])
            bias = weights[f"b{number}"][:, block].ravel()
            parts.append(pack_panels(target.instructions, vectors, matrix, bias))
    return np.concatenate(parts).astype(np.float32)


def _row_transforms(width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return L_w [2F, W], real and imaginary row for each f, and L_w' [W, 2F]."""
    import numpy as np

    columns = width // 2 + 1
    angles = 2 * math.pi / width * (np.outer(np.arange(columns), np.arange(width)) % width)
    both = np.stack((np.cos(angles), -np.sin(angles)), axis=1) / math.sqrt(width)  # [F, 2, W]
    once = [1.0 if f == 0 or 2 * f == width else 2.0 for f in range(columns)]
    back = both * np.array(once)[:, None, None]
    return both.reshape(2 * columns, width), back.reshape(2 * columns, width).T


def _column_transform(height: int) -> np.ndarray:
    """Return L_h [2H, 2H] on [re | im]; its transpose is its inverse."""
    import numpy as np

    angles = 2 * math.pi / height * (np.outer(np.arange(height), np.arange(height)) % height)
    cos, sin = np.cos(angles) / math.sqrt(height), np.sin(angles) / math.sqrt(height)
    return np.block([[cos, sin], [-sin, cos]])
