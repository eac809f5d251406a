"""Which operators of a half-precision program have to stay in fp32.

Two kinds. Where a value leaves fp16's range, the operator that makes it and those that read it must both be wide: a
cast between them would overflow as well. And where an output misses an SNR, the operators that lose most of it: first
those that lose 20 dB, then, as long as it does not suffice, those that lose less. What an operator loses is often what
its operands had rounded away, as in a difference of large values: so of one that is wide already, the operators that
make its operands are next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgesmith.exporters.mil.program import MlProgram, Operation, TensorType, load, references
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
    makers = {one.name: operation for operation in program.operations() for one in operation.outputs}
    for limit in LIMITS_DB:
        losers = [cost for cost in report.operators if cost.loss_db > limit]
        found = {name: _lost(cost) for cost in losers for name in _narrow(makers[cost.met.output], makers)}
        if found:
            return found
    poor = [cost for cost in report.operators if cost.snr_db is not None and cost.snr_db < snr_db]
    return {name: _lost(cost) for cost in poor for name in _narrow(makers[cost.met.output], makers)}


def _narrow(operation: Operation, makers: Mapping[str, Operation]) -> set[str]:
    """An operator of half precision itself; of a wide one or a cast, the nearest ones that it reads from."""
    found, seen, waiting = set(), set(), [operation]
    while waiting:
        one = waiting.pop()
        if one.name in seen:
            continue
        seen.add(one.name)
        kinds = {output.type.dtype for output in one.outputs if isinstance(output.type, TensorType)}
        if one.type != "cast" and "fp16" in kinds:
            found.add(_name(one.name))
        else:
            waiting += [makers[name] for _, name in references(one.inputs) if name in makers]
    return found


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
