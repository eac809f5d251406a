"""The panels that gemm.h reads: for each panel its bias, then its rows w[k, :], filled up to whole vectors by zeros."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgesmith.kernels.native.tiles import InstructionSet, ceil_div, panels

if TYPE_CHECKING:
    import numpy as np


def panels_size(instructions: InstructionSet, inputs: int, outputs: int) -> int:
    """Return the numbers in the panels of a [K, N] matrix and its bias."""
    return ceil_div(outputs, instructions.lanes) * instructions.lanes * (inputs + 1)


def pack_panels(instructions: InstructionSet, vectors: int, matrix: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    """Return the panels of a matrix [K, N] and a bias [N], or zeros, as one float32 array.

    Args:
        vectors: V, of the widest panel.
    """
    import numpy as np

    inputs, outputs = matrix.shape
    padded = np.zeros((inputs + 1, ceil_div(outputs, instructions.lanes) * instructions.lanes), np.float32)
    padded[0, :outputs] = 0 if bias is None else bias
    padded[1:, :outputs] = matrix
    parts = [padded[:, first : first + width].ravel() for first, width in panels(instructions, vectors, outputs)]
    return np.concatenate(parts)
