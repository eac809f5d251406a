"""What a target answers that shows no operators, has no mixed precision, and leaves states to its caller."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgesmith.exporters.targets import Run

if TYPE_CHECKING:
    import numpy as np


def wide_operators(path: Path, inputs: Sequence[Sequence[np.ndarray]], snr_db: float) -> dict[str, str]:
    """None: there is no mixed precision."""
    return {}


def diagnose(path: Path, inputs: Sequence[np.ndarray]) -> str | None:
    """Nobody can say: the runtime shows no operator's own precision."""
    return None


def layers(path: Path, inputs: Sequence[Sequence[np.ndarray]]) -> list[dict[str, Any]]:
    """Nothing."""
    return []


def traced(path: Path, inputs: Sequence[np.ndarray]) -> dict[str, tuple[float, float]]:
    """Nothing: what parts is found by the graph's names, see `intermediate`."""
    return {}


def other_runtimes() -> dict[str, Run]:
    """None."""
    return {}


def keeps_states(deployment_target: str | None) -> bool:
    """Never: states are inputs and outputs."""
    return False
