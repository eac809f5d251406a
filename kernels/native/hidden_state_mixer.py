"""The fused op hidden_state_mixer of `kernels/hidden_state_mixer.py`, channels last (hidden_state_mixer.h)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgesmith.kernels.native.depthwise import pack_taps
from edgesmith.kernels.native.packing import pack_panels, panels_size
from edgesmith.kernels.native.tiles import (
    LEAST_TASKS,
    InstructionSet,
    Tile,
    ceil_div,
    choose_tile,
    cut,
    panels,
    strip_lanes,
    strip_length,
)
from edgesmith.kernels.native.toolchain import CpuTarget
from edgesmith.kernels.native.unit import Argument, Constant, Unit, make_symbol, render

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class HiddenStateMixer:
    """y [B, H, W, D] and the hidden state h [B, S, D] of x [B, H, W, D]."""

    batch: int
    height: int
    width: int
    channels: int
    states: int

    def tiles(self, instructions: InstructionSet) -> dict[str, Tile]:
        """The register tile of every matrix product, by its name in the constants."""
        pixels = self.height * self.width
        sizes = {
            "PROJECT": (pixels, 3 * self.states),
            "COLLECT": (self.states, self.channels),
            "GATE": (self.states, 2 * self.channels),
            "OUT": (self.states, self.channels),
            "SPREAD": (pixels, self.channels),
        }
        return {name: choose_tile(instructions, *size) for name, size in sizes.items()}


def emit(op: HiddenStateMixer, target: CpuTarget) -> Unit:
    """Return the kernel. Arguments: x [B, H, W, D], packed, y [B, H, W, D], h [B, S, D], scratch."""
    instructions = target.instructions
    pixels, d, s = op.height * op.width, op.channels, op.states
    row = ceil_div(d, instructions.lanes) * instructions.lanes
    scratch = pixels * 7 * s + s * (2 * row + 2 * d) + (2 * op.height + 1) * s + max(pixels, s) * row
    symbol = make_symbol("hidden_state_mixer", f"{op.batch}x{op.height}x{op.width}x{d}", f"s{s}")
    constants: dict[str, Constant] = {
        "BATCH": op.batch,
        "H": op.height,
        "W": op.width,
        "D": d,
        "STATES": s,
        "T": strip_length(instructions, op.width),
        "MOST_LANES": strip_lanes(instructions, 3),
        "LEAST_TASKS": LEAST_TASKS,
        "SCRATCH": scratch,
    }
    tiles = op.tiles(instructions)
    for name, tile in tiles.items():
        constants |= {f"{name}_P": tile.pixels, f"{name}_V": tile.vectors}
    for name, rows, outputs in (("PROJECT", pixels, 3 * s), ("GATE", s, 2 * d), ("OUT", s, d)):
        count = len(panels(instructions, tiles[name].vectors, outputs))
        tasks = cut(ceil_div(rows, tiles[name].pixels), count, 4 * rows * d, 4 * panels_size(instructions, d, outputs))
        constants |= {f"{name}_{key}": value for key, value in tasks.constants.items()}
    source = render("hidden_state_mixer", "HiddenStateMixer", symbol, instructions.lanes, constants)
    size = panels_size(instructions, d, 3 * s) + 30 * s + panels_size(instructions, d, 2 * d)
    arguments = (
        Argument("input", "x", (op.batch, op.height, op.width, d)),
        Argument("packed", "weights", (size + panels_size(instructions, d, d) + 1,)),
        Argument("output", "y", (op.batch, op.height, op.width, d)),
        Argument("output", "h", (op.batch, s, d)),
    )
    flops = 2 * op.batch * (pixels * s * (5 * d + 27) + 3 * s * d * d)
    return Unit(symbol, source, arguments, 4 * scratch, flops)


def pack(op: HiddenStateMixer, target: CpuTarget, weights: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the packed parameters, from those of the fused op by name: project, local, gate, out and skip."""
    import numpy as np

    instructions, d = target.instructions, op.channels
    tiles = op.tiles(instructions)

    def panels_of(name: str, outputs: int) -> np.ndarray:
        matrix = weights[name].reshape(outputs, d).T
        return pack_panels(instructions, tiles[name.upper()].vectors, matrix, None)

    parts = (
        panels_of("project", 3 * op.states),
        pack_taps(weights["local"], None),
        panels_of("gate", 2 * d),
        panels_of("out", d),
        weights["skip"].ravel(),
    )
    return np.concatenate(parts).astype(np.float32)
