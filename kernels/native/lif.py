"""The fused op lif of `kernels/lif.py`, over a time axis anywhere (lif.h has the maths)."""

from __future__ import annotations

from dataclasses import dataclass

from edgesmith.kernels.native.toolchain import CpuTarget
from edgesmith.kernels.native.unit import Argument, Constant, Unit, make_symbol, render

NEURONS_A_TASK = 256
"""Whole vectors on every instruction set, and enough of them to be worth a task."""


@dataclass(frozen=True)
class Lif:
    """Spikes y of currents x, both [outer, T, inner]: the axes before the time, the time, and those behind it.

    Attributes:
        tau, threshold, reset, decay_input, beta, late, drop: as of the fused op.
    """

    outer: int
    time: int
    inner: int
    tau: float = 2.0
    threshold: float = 1.0
    reset: float | None = 0.0
    decay_input: bool = True
    beta: float | None = None
    late: bool = False
    drop: float | None = None


def emit(op: Lif, target: CpuTarget) -> Unit:
    """Return the kernel. Arguments: x [outer, T, inner], y."""
    beta = 0.0 if op.beta is None else op.beta
    constants: dict[str, Constant] = {
        "OUTER": op.outer,
        "T": op.time,
        "INNER": op.inner,
        "NEURONS_A_TASK": NEURONS_A_TASK,
        "TAU": float(op.tau),
        "THRESHOLD": float(op.threshold),
        "RESET": float(op.reset or 0.0),
        "DROP": float(op.threshold if op.drop is None else op.drop),
        "IS_SOFT": int(op.reset is None),
        "IS_LATE": int(op.late),
        "DECAYS_INPUT": int(op.decay_input),
        "HAS_BETA": int(op.beta is not None),
        "BETA": float(beta),
        "REST": 1.0 - beta,
    }
    settings = (op.tau, op.threshold, "soft" if op.reset is None else op.reset, int(op.decay_input), op.beta)
    resets = (*(["late"] if op.late else []), *(["drop", op.drop] if op.drop is not None else []))
    symbol = make_symbol("lif", f"{op.outer}x{op.time}x{op.inner}", *settings, *resets)
    source = render("lif", "Lif", symbol, target.instructions.lanes, constants)
    shape = (op.outer, op.time, op.inner)
    arguments = (Argument("input", "x", shape), Argument("output", "y", shape))
    return Unit(symbol, source, arguments, 0, 5 * op.outer * op.time * op.inner)
