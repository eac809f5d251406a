"""The compute plan, which only a Mac can make: where Core ML would run each operator, and at what share of the time.

Only `plan` touches Apple's system; `read` turns what it returns into rows, and is what tests can reach elsewhere.
Source: Apple's MLComputePlan (macOS 14.4 and later), as coremltools wraps it.
"""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

_DEVICES = {
    "MLNeuralEngineComputeDevice": "neural engine",
    "MLGPUComputeDevice": "gpu",
    "MLCPUComputeDevice": "cpu",
}


@dataclass(frozen=True)
class Placement:
    """One operator in a compute plan.

    Attributes:
        output: the name of its first result, which `report.Met.output` has too.
        type: of the operator.
        device: `neural engine`, `gpu` or `cpu`, where Core ML would run it; None where the plan does not say.
        supported: devices that could.
        cost: its estimated share of the whole time, 0 to 1; None where the plan does not say.
    """

    output: str
    type: str
    device: str | None
    supported: tuple[str, ...]
    cost: float | None


class Plan(Protocol):
    """The part of coremltools' `MLComputePlan` that is used here."""

    @property
    def model_structure(self) -> Any:
        """The program, function by function."""
        ...

    def get_compute_device_usage_for_mlprogram_operation(self, operation: Any) -> Any:
        """Preferred and supported devices, or None."""
        ...

    def get_estimated_cost_for_mlprogram_operation(self, operation: Any) -> Any:
        """An object with `weight`, or None."""
        ...


def read(plan: Plan, function: str = "main") -> list[Placement]:
    """The operators of a plan in order, those of inner blocks before the one that has them, constants left out."""
    found = []
    for operation in _operations(plan.model_structure.program.functions[function].block):
        kind = str(operation.operator_name).rpartition(".")[2]  # ios17.conv
        if kind == "const":
            continue
        usage = plan.get_compute_device_usage_for_mlprogram_operation(operation)
        cost = plan.get_estimated_cost_for_mlprogram_operation(operation)
        found.append(
            Placement(
                output=operation.outputs[0].name if operation.outputs else "",
                type=kind,
                device=None if usage is None else _device(usage.preferred_compute_device),
                supported=() if usage is None else tuple(_device(one) for one in usage.supported_compute_devices),
                cost=None if cost is None else float(cost.weight),
            )
        )
    return found


def cannot_plan() -> str | None:
    """Return why there is no compute plan on this machine, or None."""
    if platform.system() == "Darwin":
        return None
    return f"a compute plan is made by Core ML, on macOS only, and this is {platform.system()}"


def plan(path: Path, function: str = "main") -> list[Placement]:  # pragma: no cover - macOS
    """Return the compute plan of a package's function for all of this Mac's devices. See `cannot_plan`."""
    import coremltools as ct
    from coremltools.models.compute_plan import MLComputePlan

    with tempfile.TemporaryDirectory() as folder:
        compiled = ct.models.utils.compile_model(str(path), str(Path(folder) / "compiled.mlmodelc"))
        return read(MLComputePlan.load_from_path(compiled, ct.ComputeUnit.ALL), function)


def _operations(block: Any) -> Iterator[Any]:
    for operation in block.operations:
        for inner in operation.blocks:
            yield from _operations(inner)
        yield operation


def _device(device: Any) -> str:
    kind = type(device).__name__
    return _DEVICES.get(kind, kind)
