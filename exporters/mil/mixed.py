"""Which operators of a half-precision package have to stay fp32: what it is seen to do, for precision/policy.py.

coremltools types the program, so the package is read after it did. Its casts are operators like others there. None is
kept itself: a value beyond the range, or a loss, belongs to what it reads from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgesmith.exporters.mil.program import MlProgram, Operation, TensorType, references
from edgesmith.exporters.mil.report import Cost, compare
from edgesmith.exporters.precision.policy import HALF_MAX, Seen, choose

_SUFFIX = "_cast_fp16"
"""What coremltools appends to an operator's name when it makes it one of half precision."""


def lossy_operators(program: MlProgram, inputs: Sequence[dict[str, Any]], snr_db: float) -> dict[str, str]:
    """Return the names of operators to keep in fp32, as they are before coremltools casts, with the reason in words.

    Args:
        program: of half or mixed precision.
        inputs: as for `report.compare`.
        snr_db: what every output has to reach against the same program in fp32.

    Returns:
        Nothing where all values stay in range and all outputs reach the SNR.

    Raises:
        BadInput, Unsupported: as `report.compare`.
    """
    report = compare(program, inputs)
    ratios = [output.rounding.snr_db for output in report.outputs]
    reached = all(ratio is None or ratio >= snr_db for ratio in ratios)
    return choose(_seen(program, {cost.met.output: cost for cost in report.operators}, snr_db), reached)


def _seen(program: MlProgram, costs: dict[str, Cost], snr_db: float) -> list[Seen]:
    """Return what was seen of every operator: once for each result that was compared, or once where none was."""
    found: list[Seen] = []
    makers: dict[str, Seen] = {}
    peaks = {output: cost.exact.peak for output, cost in costs.items()}
    for operation in program.operations():
        read = [name for _, name in references(operation.inputs)]
        reads = max((peaks.get(name, 0.0) for name in read), default=0.0)
        makes = max((peaks.get(one.name, 0.0) for one in operation.outputs), default=0.0)
        is_cast = operation.type == "cast"
        if is_cast and reads > HALF_MAX:
            peaks.update({one.name: reads for one in operation.outputs})
        operands = tuple(makers[name] for name in read if name in makers)
        compared: list[Cost | None] = [costs[one.name] for one in operation.outputs if one.name in costs]
        ones = [
            Seen(
                name=operation.name.removesuffix(_SUFFIX),
                makes=0.0 if is_cast else makes,
                reads=0.0 if is_cast else reads,
                loss_db=0.0 if cost is None else cost.loss_db,
                misses=cost is not None and cost.snr_db is not None and cost.snr_db < snr_db,
                is_half=not is_cast and _makes_half(operation),
                overflows=cost is not None and cost.leaves_half,
                operands=operands,
            )
            for cost in compared or [None]
        ]
        found += ones
        makers |= {one.name: ones[0] for one in operation.outputs}
    return found


def _makes_half(operation: Operation) -> bool:
    return any(isinstance(one.type, TensorType) and one.type.dtype == "fp16" for one in operation.outputs)
