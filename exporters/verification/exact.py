"""The distance of a file in fp32 from float64, beside PyTorch's own.

    distance = max |y - y64| / max |y64|        y64: the model's outputs in float64; the worst output of the worst call

Both results are rounded, so that neither is the measure of the other: a file may be further from PyTorch's outputs than
it is from the exact ones. A few calls show it; they are the first, which are natural.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
from torch import Tensor, nn

from edgesmith.errors import BadInput
from edgesmith.exporters.graph.capture import run_eager
from edgesmith.exporters.manifest import DistanceRecord
from edgesmith.exporters.outputs import Outputs

CALLS = 2
"""Calls that are run in float64."""


def run_in_float64(model: nn.Module, inputs: Sequence[Sequence[Tensor]]) -> Outputs:
    """Return a model's outputs in float64 for the first CALLS; none where it sets types itself."""
    try:
        exact = copy.deepcopy(model).double()
        return [
            [y.double().numpy() for y in run_eager(exact, [x.double() if x.is_floating_point() else x for x in given])]
            for given in inputs[:CALLS]
        ]
    except (BadInput, RuntimeError, TypeError):
        return []


def measure_distances(exact: Outputs, reference: Outputs, outputs: Outputs) -> DistanceRecord | None:
    """Return how far a file's outputs and PyTorch's are from those in float64; None where nothing can be said."""
    file, pytorch = _distance(exact, outputs), _distance(exact, reference)
    return None if file is None or pytorch is None else {"file": file, "pytorch": pytorch}


def _distance(exact: Outputs, outputs: Outputs) -> float | None:
    """Return the largest distance relative to the peak, two digits; None where a value is not finite."""
    worst = 0.0
    for ys, zs in zip(exact, outputs, strict=False):
        for y, z in zip(ys, zs, strict=True):
            peak = float(np.abs(y).max(initial=0.0))
            gap = float(np.abs(y - z).max(initial=0.0))
            if not np.isfinite(gap):
                return None
            worst = max(worst, gap / peak if peak else float(gap > 0))
    return float(f"{worst:.1e}")
