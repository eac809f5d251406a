"""Arguments that PyTorch leaves out because they are the defaults, and a converter asks for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from edgesmith.exporters.decompositions import decomposes

aten = torch.ops.aten


@decomposes(aten.hardtanh.default, targets=("coreml", "coreai"), why="the converters ask for both limits")
def hardtanh(x: Tensor, min_val: float = -1, max_val: float = 1) -> Tensor:
    """Return x between two limits."""
    return torch.clamp(x, min_val, max_val)


@decomposes(aten.max_pool2d.default, targets=("coreml",), why="coremltools 9.0 asks for a stride")
def max_pool2d(
    x: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    ceil_mode: bool = False,
) -> Tensor:
    """Return a max pool whose stride is its window where none is given."""
    if stride:
        return NotImplemented
    pooled: Tensor = aten.max_pool2d.default(x, kernel_size, kernel_size, padding, dilation, ceil_mode)
    return pooled
