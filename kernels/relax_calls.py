"""Fused ops in TVM's terms: a call by the op's name, which the target replaces by the compiled kernel of native/."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def call_kernel(
    make: Any,
    name: str,
    x: Any,
    weights: Sequence[Any],
    shapes: Sequence[Sequence[int]],
    literals: Sequence[float] = (),
) -> Any:
    """Return what a kernel makes of one tensor: a tensor, or several.

    Args:
        make: TVM's BlockBuilder.
        name: of the op.
        weights: constants that the kernel packs.
        shapes: of the results.
        literals: numbers that are part of the kernel; NaN stands for None.
    """
    import numpy as np
    from tvm import relax

    types = [relax.TensorType(list(shape), "float32") for shape in shapes]
    given = relax.Tuple([x, *weights, *([relax.const(np.array(literals))] if literals else [])])
    return make.emit(relax.call_dps_packed(f"edgesmith.{name}", given, types))


def channels_last(make: Any, x: Any) -> Any:
    """Return maps [B, C, H, W] as [B, H, W, C]."""
    from tvm import relax

    return make.emit(relax.op.permute_dims(x, [0, 2, 3, 1]))


def channels_first(make: Any, x: Any) -> Any:
    """Return maps [B, H, W, C] as [B, C, H, W]."""
    from tvm import relax

    return make.emit(relax.op.permute_dims(x, [0, 3, 1, 2]))


def sizes(x: Any) -> list[int]:
    """Return the shape of a tensor of Relax."""
    return [int(n) for n in x.ty.shape]
