"""Which operators of a half-precision program have to stay in fp32.

Two kinds. Where a value leaves fp16's range, the operator that makes it and those that read it must both be wide: a cast
between them would overflow as well. And where an output misses an SNR, the operators that lose most of it: first those
that lose 20 dB, then, as long as it does not suffice, those that lose less.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgesmith.exporters.mil.program import MlProgram, load, references
from edgesmith.exporters.mil.report import HALF_MAX, Cost, Report, compare

LIMITS_DB = (20.0, 12.0, 6.0, 3.0, 1.0)
"""Losses that an operator may have, one after the other until the outputs are good enough."""

_SUFFIX = "_cast_fp16"
"""What coremltools appends to an operator's name when it makes it one of half precision."""


def wide_operators(path: Path, inputs: Sequence[dict[str, Any]], snr_db: float) -> dict[str, str]:
    """The names of operators to keep in fp32, as they are before coremltools casts, with the reason in words.

    Args:
        path: a package of half or mixed precision.
        inputs: as for `report.compare`.
        snr_db: what every output has to reach against the same program in fp32.

    Returns:
        Nothing where all values stay in range and all outputs reach the SNR.

    Raises:
        BadInput, Unsupported: as `report.compare`.
    """
    program = load(path)
    report = compare(program, inputs)
    found = _out_of_range(program, report)
    if found:
        return found
    if all(output.rounding.snr_db is None or output.rounding.snr_db >= snr_db for output in report.outputs):
        return {}
    halves = [cost for cost in report.operators if cost.met.dtype == "fp16" and cost.met.type != "cast"]
    for limit in LIMITS_DB:
        losers = {_name(cost.met.name): _lost(cost) for cost in halves if cost.loss_db > limit}
        if losers:
            return losers
    return {_name(cost.met.name): _lost(cost) for cost in halves if cost.snr_db is not None and cost.snr_db < snr_db}


def _out_of_range(program: MlProgram, report: Report) -> dict[str, str]:
    peaks = {cost.wide.output: cost.wide.peak for cost in report.operators if cost.wide.beyond_half}
    needed = [cost for cost in report.operators if cost.leaves_half]
    if not needed:
        return {}
    found = {}
    for operation in program.operations():
        read = [peaks[name] for _, name in references(operation.inputs) if name in peaks]
        made = [peaks[one.name] for one in operation.outputs if one.name in peaks]
        if operation.type == "cast":
            peaks.update({one.name: max(read) for one in operation.outputs if read})
        elif made:
            found[_name(operation.name)] = f"makes {max(made):.3g}, and half precision ends at {HALF_MAX:.0f}"
        elif read:
            found[_name(operation.name)] = f"reads {max(read):.3g}, and half precision ends at {HALF_MAX:.0f}"
    return found


def _lost(cost: Cost) -> str:
    return f"loses {cost.loss_db:.1f} dB"


def _name(name: str) -> str:
    return name.removesuffix(_SUFFIX)
