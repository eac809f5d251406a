"""Checks of a file that need no reference: a batch is its rows, and optimisation is no other program.

    rows        one row, repeated over the batch, gives equal rows
    order       the rows in another order give their results in that order
    levels      a runtime with its optimisations gives what it gives without them

TensorRT and Core ML's GPU have been seen to compute a batch otherwise than its rows, see exporters/departures (TR1,
TR2, TR3, TR5, CM12). What such a check compares is of one file and one runtime, so it holds on a device without
PyTorch's outputs; the kit's build.py has the first check for boards. All are judged as the file's numbers are.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgesmith.exporters.manifest import CheckRecord
from edgesmith.exporters.targets.target import NotHere, TargetFile
from edgesmith.exporters.verification.check import AcceptanceCriteria, check

ROWS = 3
"""Rows of a batch whose size is free."""

Arrays = Sequence[np.ndarray]


def check_consistency(
    file: TargetFile, calls: Sequence[Arrays], criteria: AcceptanceCriteria, batch: int | None
) -> list[CheckRecord]:
    """Check a file against itself in its first runtime. Nothing where that is not here.

    Args:
        calls: natural inputs, each [B, ...].
        batch: how many rows a call has, 0 where that is free; None where the first axis is no batch.

    Raises:
        VerificationFailed: the figures are beyond the thresholds, unless the criteria collect failures.
    """
    found: list[CheckRecord] = []
    if batch is not None and batch != 1:
        found += _check_rows(file, calls, criteria, batch or ROWS)
    for runtime, run in file.levels().items():
        outputs, others = file.run(calls), run(calls)
        if not isinstance(outputs, NotHere) and not isinstance(others, NotHere):
            record = check(f"{file.runtime} -> {runtime}", outputs, others, criteria)
            found.append({**record, "runtime": runtime})
    return found


def _check_rows(
    file: TargetFile, calls: Sequence[Arrays], criteria: AcceptanceCriteria, batch: int
) -> list[CheckRecord]:
    """Check equal rows, and rows in another order."""
    rows = [np.concatenate(each)[:batch] for each in zip(*calls, strict=True)]
    rows = [np.resize(x, (batch, *x.shape[1:])) for x in rows]  # from the front again, where there are too few
    equal = [np.repeat(x[:1], batch, axis=0) for x in rows]
    outputs = file.run([equal, rows, [x[::-1].copy() for x in rows]])
    if isinstance(outputs, NotHere) or any(y.shape[:1] != (batch,) for ys in outputs for y in ys):
        return []
    of_equal, of_rows, of_reversed = outputs
    first = [np.repeat(y[:1], batch, axis=0) for y in of_equal]
    turned = [y[::-1] for y in of_reversed]
    checks = [
        check("equal rows -> one row", [first], [of_equal], criteria),
        check("rows in another order -> rows", [of_rows], [turned], criteria),
    ]
    return [{**one, "runtime": file.runtime} for one in checks]
