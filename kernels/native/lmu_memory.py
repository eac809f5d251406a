"""The fused op lmu_memory of `kernels/lmu_memory.py`, by its impulse response (lmu_memory.h has the maths)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgesmith.kernels.native.packing import pack_panels, panels_size
from edgesmith.kernels.native.tiles import Tile, choose_tile
from edgesmith.kernels.native.toolchain import CpuTarget
from edgesmith.kernels.native.unit import Argument, Unit, make_symbol, render

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class LmuMemory:
    """m [B, T, M], channels last, of a signal u [B, T]."""

    batch: int
    time: int
    order: int

    def tile(self, target: CpuTarget) -> Tile:
        """The register tile, of neighbouring steps."""
        return choose_tile(target.instructions, self.time, self.order)


def emit(op: LmuMemory, target: CpuTarget) -> Unit:
    """Return the kernel. Arguments: u [B, T], packed, m [B, T, M], scratch."""
    instructions, tile = target.instructions, op.tile(target)
    symbol = make_symbol("lmu_memory", f"b{op.batch}", f"t{op.time}", f"m{op.order}")
    constants = {"BATCH": op.batch, "T": op.time, "M": op.order, "P": tile.pixels, "V": tile.vectors}
    source = render("lmu_memory", "LmuMemory", symbol, instructions.lanes, constants)
    arguments = (
        Argument("input", "u", (op.batch, op.time)),
        Argument("packed", "weights", (panels_size(instructions, op.time, op.order),)),
        Argument("output", "m", (op.batch, op.time, op.order)),
    )
    scratch = 4 * op.batch * (op.time + tile.pixels)
    return Unit(symbol, source, arguments, scratch, op.batch * op.time * (op.time + 1) * op.order)


def pack(op: LmuMemory, target: CpuTarget, impulse: np.ndarray) -> np.ndarray:
    """Return the packed parameters of an impulse response [M, T]."""
    return pack_panels(target.instructions, op.tile(target).vectors, impulse.T, None)
