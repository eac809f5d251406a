"""The fused op additive_attention of `kernels/additive_attention.py`, channels last (additive_attention.h)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgesmith.kernels.native.depthwise import pack_taps
from edgesmith.kernels.native.epilogue import NOTHING, Epilogue
from edgesmith.kernels.native.packing import pack_panels, panels_size
from edgesmith.kernels.native.tiles import choose_tile, strip_lanes, strip_length
from edgesmith.kernels.native.toolchain import CpuTarget
from edgesmith.kernels.native.unit import Argument, Unit, make_symbol, render

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class AdditiveAttention:
    """y [B, H, W, C] of q, k and v side by side in each pixel, [B, H, W, 3C]."""

    batch: int
    height: int
    width: int
    channels: int
    epilogue: Epilogue = NOTHING


def emit(op: AdditiveAttention, target: CpuTarget) -> Unit:
    """Return the kernel. Arguments: qkv [B, H, W, 3C], gate, residual, packed, y [B, H, W, C], scratch."""
    instructions = target.instructions
    symbol = make_symbol("additive_attention", f"{op.batch}x{op.height}x{op.width}x{op.channels}", op.epilogue.words)
    constants = {
        "BATCH": op.batch,
        "H": op.height,
        "W": op.width,
        "C": op.channels,
        "T": strip_length(instructions, op.width),
        "MOST_LANES": strip_lanes(instructions, 3),
        "V": choose_tile(instructions, 1, op.channels).vectors,
    }
    source = render(
        "additive_attention",
        "AdditiveAttention",
        symbol,
        instructions.lanes,
        constants,
        f"using Epilogue = {op.epilogue.type};",
    )
    pixels = op.batch * op.height * op.width
    channels = op.channels
    arguments = (
        Argument("input", "qkv", (op.batch, op.height, op.width, 3 * channels)),
        *op.epilogue.arguments(pixels, channels),
        Argument("packed", "weights", (42 * channels + 2 * panels_size(instructions, channels, channels),)),
        Argument("output", "y", (op.batch, op.height, op.width, channels)),
    )
    scratch = 2 * pixels * channels + 2 * pixels + 2 * op.batch * channels * (op.height + 2)
    flops = 2 * pixels * channels * (4 * 9 + 2) + 4 * op.batch * channels * channels
    return Unit(symbol, source, arguments, 4 * scratch, flops)


def pack(op: AdditiveAttention, target: CpuTarget, weights: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the packed parameters, from those of the fused op by name: q_spatial_weight, q_spatial_bias, q_mix ..."""
    import numpy as np

    parts = []
    for part in ("q", "k"):
        parts += [pack_taps(weights[f"{part}_spatial_weight"], weights[f"{part}_spatial_bias"])]
        parts += [weights[f"{part}_mix"].ravel()]
    parts += [pack_taps(weights[f"{name}_weight"], weights[f"{name}_bias"]) for name in ("dwc", "proj")]
    vectors = choose_tile(target.instructions, 1, op.channels).vectors
    for part in ("q", "k"):
        matrix = weights[f"{part}_channel"].reshape(op.channels, op.channels).T
        parts += [pack_panels(target.instructions, vectors, matrix, None)]
    return np.concatenate(parts).astype(np.float32)
