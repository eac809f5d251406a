"""Dense convolutions, and linear layers, of spikes: inputs are 0 or 1, and most of them 0 (spikes.h has the maths)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgesmith.kernels.native import convolution
from edgesmith.kernels.native.convolution import Convolution
from edgesmith.kernels.native.packing import pack_panels, panels_size
from edgesmith.kernels.native.tiles import row_vectors, tasks_of
from edgesmith.kernels.native.toolchain import CpuTarget
from edgesmith.kernels.native.unit import Argument, Unit, render

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Spikes:
    """A convolution of spikes; of 1 x 1, pixels in one row, it is a linear layer."""

    layer: Convolution


def emit(op: Spikes, target: CpuTarget) -> Unit:
    """Return the kernel. Arguments: x [B, H, W, C], gate, residual, packed, y [B, OH, OW, N], scratch."""
    layer, instructions = op.layer, target.instructions
    dense = convolution.emit(layer, target)
    inputs = layer.batch * layer.height * layer.width
    constants = convolution.geometry(layer) | {
        "V": row_vectors(instructions, layer.outputs),
        "TASKS": tasks_of(layer.batch * layer.out[0] * layer.out[1]),
    }
    symbol = dense.symbol.replace("convolution", "spikes", 1)
    source = render(
        "spikes", "Spikes", symbol, instructions.lanes, constants, f"using Epilogue = {layer.epilogue.type};"
    )
    size = panels_size(instructions, layer.taps, layer.outputs)
    arguments = tuple(Argument("packed", "weights", (size,)) if a.role == "packed" else a for a in dense.arguments)
    return Unit(symbol, source, arguments, 4 * inputs * (layer.inputs + 1), dense.flops)


def pack(op: Spikes, target: CpuTarget, weight: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    """Return the packed parameters of a weight [N, C, KH, KW], as PyTorch has it, and a bias [N] or none."""
    layer = op.layer
    shaped = weight.reshape(layer.outputs, layer.inputs, *layer.kernel)
    matrix = shaped.transpose(2, 3, 1, 0).reshape(layer.taps, layer.outputs)
    return pack_panels(target.instructions, row_vectors(target.instructions, layer.outputs), matrix, bias)
