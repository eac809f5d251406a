"""Images turned from channels first to channels last (turn.h)."""

from __future__ import annotations

from dataclasses import dataclass

from edgesmith.kernels.native.tiles import tasks_of
from edgesmith.kernels.native.toolchain import CpuTarget
from edgesmith.kernels.native.unit import Argument, Unit, make_symbol, render

MOST_CHANNELS = 4
"""Channels up to which a pixel is shuffled together in registers."""


@dataclass(frozen=True)
class Turn:
    """y [B, N, C] of x [B, C, N]."""

    batch: int
    channels: int
    pixels: int


def suits(op: Turn) -> bool:
    """Return whether maps have few channels, as images do."""
    return 1 < op.channels <= MOST_CHANNELS and op.pixels > op.channels


def emit(op: Turn, target: CpuTarget) -> Unit:
    """Return the kernel. Arguments: x [B, C, N], y [B, N, C]."""
    symbol = make_symbol("turn", f"b{op.batch}", f"c{op.channels}", f"n{op.pixels}")
    constants = {
        "BATCH": op.batch,
        "C": op.channels,
        "N": op.pixels,
        "CHUNKS": tasks_of(op.pixels),
    }
    source = render("turn", "Turn", symbol, target.instructions.lanes, constants)
    arguments = (
        Argument("input", "x", (op.batch, op.channels, op.pixels)),
        Argument("output", "y", (op.batch, op.pixels, op.channels)),
    )
    return Unit(symbol, source, arguments, 0, 0)
