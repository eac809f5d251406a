"""Integers of 16 bits where they hold every value, as a conversion to half precision writes them.

coremltools shortens what `gather`, `gather_along_axis`, `gather_nd`, `squeeze` and `topk` read and make. It looks
whether constants fit, and the indices of two of them; not whether other data do, so that 70001 became 4465, nor the
places that `topk` finds, which had 16 bits on any axis. What is computed is shortened to the type of whatever constant
came before: it is int16 here, and places, which are never negative, are uint16.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np

_LARGEST = np.iinfo(np.int16).max
_LARGEST_UNSIGNED = np.iinfo(np.uint16).max


@contextlib.contextmanager
def short_integers_that_fit() -> Iterator[None]:
    """Have coremltools shorten no integers that may not fit."""
    from coremltools.converters.mil.mil.passes.defs.quantization import add_int16_cast

    general = add_int16_cast.should_cast_parameter

    def should_cast_parameter(self: Any, op: Any, param_name: str) -> bool:
        # coremltools remembers the type of the constant before, in whose uint16 an index of -1 is 65535.
        self._target_dtype = "uint16" if param_name == "output_indices_dtype" else "int16"
        return _fits(op, param_name) and bool(general(self, op, param_name))

    add_int16_cast.should_cast_parameter = should_cast_parameter
    try:
        yield
    finally:
        add_int16_cast.should_cast_parameter = general


def _fits(op: Any, name: str) -> bool:
    """Return whether no value of a parameter is too large for 16 bits, as far as coremltools does not look itself."""
    if name == "output_indices_dtype":
        return _size(op.x, _axis(op)) <= _LARGEST_UNSIGNED + 1
    if name == "x":
        return op.x.val is not None or not op.x.is_tensor_or_scalar_of("int32")
    if name == "indices" and op.op_type == "gather_nd" and op.indices.val is None:
        first = int(op.batch_dims.val) if op.batch_dims is not None else 0
        return all(_size(op.x, first + k) <= _LARGEST for k in range(int(op.indices.shape[-1])))
    return True


def _axis(op: Any) -> int:
    return -1 if op.axis is None else int(op.axis.val)


def _size(value: Any, axis: int) -> float:
    """Return the size of an axis; infinite where a run decides it."""
    size = value.shape[axis]
    return int(size) if isinstance(size, int | np.integer) else np.inf
