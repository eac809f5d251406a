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
    transform = choose_tile(instructions, max(h, w) // 2 + 1, c)
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
    size = _padded(instructions.lanes, 2 * _squares(w) + _squares(h)) + op.blocks * panels
    arguments = (
        Argument("input", "x", (op.batch, h, w, c)),
        Argument("packed", "weights", (size,)),
        Argument("output", "y", (op.batch, h, w, c)),
    )
    scratch = 4 * 2 * op.batch * f * 2 * h * row
    transforms = 2 * h * _squares(w) * c + 2 * f * 2 * _squares(h) * c
    return Unit(symbol, source, arguments, scratch, 2 * op.batch * (transforms + h * f * 8 * c * hidden))


def pack(op: FftFilter, target: CpuTarget, weights: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the packed parameters, from those of the fused op by name: w1, b1, w2 and b2."""
    import numpy as np

    down = _along_column(op.height)
    transforms = np.concatenate((_along_row(op.width), down, _back_along_row(op.width)))
    parts = [np.pad(transforms, (0, _padded(target.instructions.lanes, transforms.size) - transforms.size))]
    width = op.channels // op.blocks
    vectors = choose_tile(target.instructions, op.height, 2 * width).vectors
    for block in range(op.blocks):
        for number in (1, 2):
            re, im = weights[f"w{number}"][:, block]
            matrix = np.block([[re, im], [-im, re]])
            bias = weights[f"b{number}"][:, block].ravel()
            parts.append(pack_panels(target.instructions, vectors, matrix, bias))
    return np.concatenate(parts).astype(np.float32)


def _squares(size: int) -> int:
    """Return the numbers in the cosines and sines of a folded transform."""
    return (size // 2 + 1) ** 2 + ((size - 1) // 2) ** 2


def _padded(lanes: int, count: int) -> int:
    return ceil_div(count, lanes) * lanes


def _waves(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the angles of sums and of differences, by where they stand (fft_filter.h), and of columns 1, 2 ..."""
    import numpy as np

    evens, odds = np.arange(size // 2 + 1), np.arange(1, (size + 1) // 2)
    unit = 2 * math.pi / size
    return (
        unit * (np.outer(evens, evens) % size),
        unit * (np.outer(odds[::-1], odds[::-1]) % size),
        unit * (np.outer(odds, odds[::-1]) % size),
    )


def _along_row(width: int) -> np.ndarray:
    """Return the cosines [F, F], and the sines, with their sign, from differences to columns."""
    import numpy as np

    evens, _, columns = _waves(width)
    return np.concatenate((np.cos(evens).ravel(), -np.sin(columns).ravel())) / math.sqrt(width)


def _back_along_row(width: int) -> np.ndarray:
    """Return the cosines [F, F] and sines of the way back, columns that have a conjugate twice."""
    import numpy as np

    evens, _, columns = _waves(width)
    twice = np.full(width // 2 + 1, 2.0)
    twice[0] = 1.0
    twice[width // 2 :] = 1.0 if width % 2 == 0 else twice[-1]
    return np.concatenate(((np.cos(evens) * twice).ravel(), 2 * np.sin(columns).T.ravel())) / math.sqrt(width)


def _along_column(height: int) -> np.ndarray:
    """Return the cosines and sines along H, there and back."""
    import numpy as np

    evens, odds, _ = _waves(height)
    return np.concatenate((np.cos(evens).ravel(), np.sin(odds).ravel())) / math.sqrt(height)
