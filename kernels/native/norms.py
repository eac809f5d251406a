"""Layer and group norm, softmax, and the mean over pixels, of maps with their channels last (norms.h has the maths)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgesmith.kernels.native.tiles import tasks_of
from edgesmith.kernels.native.toolchain import CpuTarget
from edgesmith.kernels.native.unit import Argument, Unit, make_symbol, render

if TYPE_CHECKING:
    import numpy as np

MOST_CHUNKS = 16
"""Parts of a map that group norm sums over by themselves."""


@dataclass(frozen=True)
class LayerNorm:
    """Over the C channels of each of M pixels."""

    pixels: int
    channels: int
    epsilon: float = 1e-5


@dataclass(frozen=True)
class Softmax:
    """Over the C channels of each of M pixels."""

    pixels: int
    channels: int


@dataclass(frozen=True)
class GroupNorm:
    """Over N pixels and C / G channels, for each of G groups of each of B maps."""

    batch: int
    pixels: int
    channels: int
    groups: int
    epsilon: float = 1e-5


@dataclass(frozen=True)
class Mean:
    """Over the N pixels of each of B maps: [B, N, C] to [B, C]."""

    batch: int
    pixels: int
    channels: int


def emit_layer_norm(op: LayerNorm, target: CpuTarget) -> Unit:
    """Return the kernel. Arguments: x [M, C], packed, y [M, C]."""
    symbol = make_symbol("layer_norm", f"m{op.pixels}", f"c{op.channels}", f"e{op.epsilon}")
    constants = {
        "M": op.pixels,
        "C": op.channels,
        "EPSILON": float(op.epsilon),
        "TASKS": tasks_of(op.pixels),
    }
    source = render("norms", "LayerNorm", symbol, target.instructions.lanes, constants)
    shape = (op.pixels, op.channels)
    return Unit(symbol, source, _arguments(shape, op.channels), 0, 8 * op.pixels * op.channels)


def emit_softmax(op: Softmax, target: CpuTarget) -> Unit:
    """Return the kernel. Arguments: x [M, C], y [M, C]."""
    symbol = make_symbol("softmax", f"m{op.pixels}", f"c{op.channels}")
    constants = {"M": op.pixels, "C": op.channels, "TASKS": tasks_of(op.pixels)}
    source = render("norms", "Softmax", symbol, target.instructions.lanes, constants)
    shape = (op.pixels, op.channels)
    return Unit(symbol, source, (Argument("input", "x", shape), Argument("output", "y", shape)), 0, 8 * op.pixels)


def emit_group_norm(op: GroupNorm, target: CpuTarget) -> Unit:
    """Return the kernel. Arguments: x [B, N, C], packed, y [B, N, C], scratch."""
    chunks = min(op.pixels, MOST_CHUNKS)
    symbol = make_symbol(
        "group_norm", f"b{op.batch}", f"n{op.pixels}", f"c{op.channels}", f"g{op.groups}", f"e{op.epsilon}"
    )
    constants = {
        "BATCH": op.batch,
        "N": op.pixels,
        "C": op.channels,
        "G": op.groups,
        "EPSILON": float(op.epsilon),
        "CHUNKS": chunks,
    }
    source = render("norms", "GroupNorm", symbol, target.instructions.lanes, constants)
    shape = (op.batch, op.pixels, op.channels)
    scratch = 4 * op.batch * op.groups * (2 * chunks + 1)
    return Unit(symbol, source, _arguments(shape, op.channels), scratch, 8 * op.batch * op.pixels * op.channels)


def emit_mean(op: Mean, target: CpuTarget) -> Unit:
    """Return the kernel. Arguments: x [B, N, C], y [B, C]."""
    symbol = make_symbol("mean", f"b{op.batch}", f"n{op.pixels}", f"c{op.channels}")
    constants = {"BATCH": op.batch, "N": op.pixels, "C": op.channels}
    source = render("norms", "Mean", symbol, target.instructions.lanes, constants)
    arguments = (
        Argument("input", "x", (op.batch, op.pixels, op.channels)),
        Argument("output", "y", (op.batch, op.channels)),
    )
    return Unit(symbol, source, arguments, 0, op.batch * op.pixels * op.channels)


def _arguments(shape: tuple[int, ...], channels: int) -> tuple[Argument, ...]:
    return (
        Argument("input", "x", shape),
        Argument("packed", "weights", (2 * channels,)),
        Argument("output", "y", shape),
    )


def pack(channels: int, weight: np.ndarray | None, bias: np.ndarray | None) -> np.ndarray:
    """Return w [C], then b [C], of layer norms and group norms; ones and zeros where there is none."""
    import numpy as np

    first = np.ones(channels) if weight is None else weight
    return np.concatenate((first, np.zeros(channels) if bias is None else bias)).astype(np.float32)
