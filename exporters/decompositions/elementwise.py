"""Operators that treat each number by itself."""

from __future__ import annotations

import torch
from torch import Tensor

from edgesmith.exporters.decompositions import decomposes

aten = torch.ops.aten


@decomposes(aten.where.ScalarOther, targets=("coreml",), why="coremltools 9.0 translates where of two tensors only")
def where_scalar_other(condition: Tensor, x: Tensor, other: float) -> Tensor:
    """Return x where the condition holds, else the number. Shapes broadcast."""
    return torch.where(condition, x, torch.scalar_tensor(other, dtype=torch.result_type(x, other)))
