"""Arguments that PyTorch leaves out because they are the defaults, and a converter asks for."""

from __future__ import annotations

import torch
from torch import Tensor

from edgesmith.exporters.decompositions import decomposes

aten = torch.ops.aten


@decomposes(aten.hardtanh.default, targets=("coreml", "coreai"), why="the converters ask for both limits")
def hardtanh(x: Tensor, min_val: float = -1, max_val: float = 1) -> Tensor:
    """Return x between two limits."""
    return torch.clamp(x, min_val, max_val)
