"""Outputs as they are compared, and how far they are from each other."""

from __future__ import annotations

import numpy as np

Outputs = list[list[np.ndarray]]
"""One list of outputs for each input, each as `as_compared` gives it."""


def as_compared(values: np.ndarray) -> np.ndarray:
    """Return an output as it is compared: integers as int64, which has all their digits, and others as float32."""
    if values.dtype.kind in "iu":
        return values.astype(np.int64, copy=False)
    return values.astype(np.float32, copy=False)


def distances(y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Return |y - z| in float64; of integers it is never 0 where they differ, however large they are."""
    if y.dtype.kind == "i" and z.dtype.kind == "i":
        unsigned: np.ndarray = np.maximum(y, z).astype(np.uint64) - np.minimum(y, z).astype(np.uint64)
        return unsigned.astype(np.float64)
    between: np.ndarray = np.abs(y.astype(np.float64) - z.astype(np.float64))
    return between
