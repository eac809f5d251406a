"""Which operators of a half-precision package have to stay fp32: what it is seen to do, for precision/policy.py.

coremltools types the program, so the package is read after it did. Its casts are operators like others there. None is
kept itself: a value beyond the range, or a loss, belongs to what it reads from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from edgesmith.exporters.mil.engine_model import PRODUCT_LIMIT, PRODUCTS
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
        Nothing where all values stay in range, products in the Neural Engine's, and all outputs reach the SNR.

    Raises:
        BadInput, Unsupported: as `report.compare`.
    """
    report = compare(program, inputs)
    numbers = {one.name for operation in program.operations() for one in operation.outputs if _is_whole(one.type)}
    ratios = [output.rounding.snr_db for output in report.outputs if output.name not in numbers]
    reached = all(ratio is None or ratio >= snr_db for ratio in ratios)
    costs = {cost.met.output: cost for cost in report.operators}
    return _products(program, costs) | choose(_seen(program, costs, snr_db), reached)


def _products(program: MlProgram, costs: Mapping[str, Cost]) -> dict[str, str]:
    """Return half-precision products beyond the Neural Engine's range for them, which is half of fp16's (CM7)."""
    found = {}
    for operation in program.operations():
        peak = max((costs[one.name].exact.peak for one in operation.outputs if one.name in costs), default=0.0)
        if operation.type in PRODUCTS and _makes_half(operation) and peak > PRODUCT_LIMIT:
            found[name_before_casts(operation)] = (
                f"makes {peak:.3g}, and a product in half precision ends at {PRODUCT_LIMIT:.0f} on the Neural Engine"
            )
    return found


def name_before_casts(operation: Operation) -> str:
    """Return an operator's name as coremltools has it when it asks which of them stay fp32."""
    return operation.name.removesuffix(_SUFFIX)


def _is_whole(kind: Any) -> bool:
    """Return whether a value is of whole numbers, such as classes, of which a ratio to an error says nothing."""
    return isinstance(kind, TensorType) and kind.dtype.startswith(("int", "uint"))


def _seen(program: MlProgram, costs: Mapping[str, Cost], snr_db: float) -> list[Seen]:
    """Return what was seen of every operator: once for each result that was compared, or once where none was."""
    peaks = _peaks(program, costs)
    makers: dict[str, Seen] = {}
    found: list[Seen] = []
    for operation in program.operations():
        makes, reads = _range(operation, peaks)
        plain = Seen(
            name=name_before_casts(operation),
            makes=makes,
            reads=reads,
            is_half=operation.type != "cast" and _makes_half(operation),
            operands=tuple(makers[name] for name in _read(operation) if name in makers),
        )
        compared = [costs[one.name] for one in operation.outputs if one.name in costs]
        ones = [_with_cost(plain, cost, snr_db) for cost in compared] or [plain]
        makers |= {one.name: ones[0] for one in operation.outputs}
        found += ones
    return found


def _with_cost(seen: Seen, cost: Cost, snr_db: float) -> Seen:
    misses = cost.snr_db is not None and cost.snr_db < snr_db
    return replace(seen, loss_db=cost.loss_db, misses=misses, overflows=cost.leaves_half)


def _peaks(program: MlProgram, costs: Mapping[str, Cost]) -> dict[str, float]:
    """Return the largest magnitude of every value in fp32; a cast's result has that of its operand."""
    peaks = {output: cost.exact.peak for output, cost in costs.items()}
    for operation in program.operations():
        reads = max((peaks.get(name, 0.0) for name in _read(operation)), default=0.0)
        if operation.type == "cast" and reads > HALF_MAX:
            peaks |= {one.name: reads for one in operation.outputs}
    return peaks


def _range(operation: Operation, peaks: Mapping[str, float]) -> tuple[float, float]:
    """Return the largest magnitude that an operator makes, and that it reads. 0 for casts, which are not kept."""
    if operation.type == "cast":
        return 0.0, 0.0
    makes = (peaks.get(one.name, 0.0) for one in operation.outputs)
    reads = (peaks.get(name, 0.0) for name in _read(operation))
    return max(makes, default=0.0), max(reads, default=0.0)


def _read(operation: Operation) -> list[str]:
    return [name for _, name in references(operation.inputs)]


def _makes_half(operation: Operation) -> bool:
    return any(isinstance(one.type, TensorType) and one.type.dtype == "fp16" for one in operation.outputs)
