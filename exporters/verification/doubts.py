"""Outputs that no check can fail on: nothing is said to be verified of them.

empty               there is no value to compare
not finite          the rest is compared for being the same infinity or NaN, and for nothing else
does not vary       a file that does not look at its inputs gives the right output, to within fp32's threshold
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgesmith.exporters.precision.table import FP32
from edgesmith.exporters.verification.check import Evidence


def find_doubts(names: Sequence[str], evidence: Evidence) -> dict[str, str]:
    """Return the outputs that no check can fail on, each with the reason.

    Args:
        names: of the outputs.
    """
    natural = evidence.chosen(lambda call: call.is_natural)
    found = {}
    for j, name in enumerate(names):
        reason = _doubt([outs[j] for outs in natural.reference], [outs[j] for outs in evidence.reference])
        if reason is not None:
            found[name] = reason
    return found


def _doubt(natural: Sequence[np.ndarray], every: Sequence[np.ndarray]) -> str | None:
    """Return why one output says nothing; None where it does.

    Args:
        natural: its values on natural inputs.
        every: those on all inputs.
    """
    total = sum(y.size for y in natural)
    if total == 0:
        return "it is empty on every input"
    finite = sum(int(np.isfinite(y).sum()) for y in natural)
    if finite == 0:
        return "none of its values is finite in PyTorch"
    if finite < total:
        share = f"{finite / total:.3g}" if finite / total < 0.01 else f"{100 * finite / total:.3g} %"
        return f"{share} of its values are finite in PyTorch; the others are held to be the same NaN or infinity alone"
    if len(every) == 1:
        return "there is one input alone, since the example's values are all the same; give one whose values differ"
    if not _varies(every):
        what = "zeros" if not every[0].any() else "the same"
        return f"PyTorch gives {what} on all {len(every)} inputs"
    return None


def _varies(values: Sequence[np.ndarray]) -> bool:
    """Return whether an output differs between inputs; of batches of other sizes, whether its first rows do."""
    first, allowed = values[0], FP32.limits().relative_error
    for other in values[1:]:
        if first.shape == other.shape:
            is_same = _is_near(first, other, allowed)
        else:
            rows = min(len(first), len(other)) if first.ndim and other.ndim else 0
            is_same = _is_near(first[:rows], other[:rows], allowed)
        if not is_same:
            return True
    return False


def _is_near(a: np.ndarray, b: np.ndarray, allowed: float) -> bool:
    return np.allclose(a, b, rtol=0, atol=allowed * float(np.abs(a).max(initial=0.0)), equal_nan=True)
