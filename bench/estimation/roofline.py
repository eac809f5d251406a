"""The time of a call as a sum over operators: what starts it, and what it computes or moves, whichever takes longer.

    t = s (call + sum over operators of (launch[g] + max(compute[k] M / P, weights W / B + moved[g] A / B)))

M      multiply-accumulates of the operator, of kind k      P   the device's peak, multiply-accumulates a second
W, A   bytes of weights, and of activations read or written B   its memory's bandwidth, bytes a second
call   what a call costs by itself, ms                      s   how far the device is from what its figures say; about 1
launch ms an operator of group g                            compute, weights, moved   how often the time at full speed

A fused operator has no launch of its own and moves only its other operand. The letters in square brackets are fitted
(bench/fit.py) and kept in data/estimates.json; P and B are the profile's. Nothing here imports more than Python.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

GROUPS: Mapping[str, str] = {
    "conv": "products",
    "pointwise": "products",
    "depthwise": "products",
    "grouped": "products",
    "linear": "products",
    "matmul": "attention",
    "softmax": "attention",
    "norm": "norms",
    "pool": "windows",
    "reduce": "windows",
    "unary": "numbers",
    "binary": "numbers",
    "move": "moves",
    "view": "views",
}
"""Groups of kinds (exporters/work.py) that share what a launch and a byte cost."""

PRODUCTS = ("conv", "pointwise", "depthwise", "grouped", "linear", "matmul")
"""Kinds that have multiply-accumulates."""


@dataclass(frozen=True)
class Operator:
    """The part of an operator's work that counts; `times` equal ones at once."""

    kind: str
    fused: bool
    macs: float
    weight_bytes: float
    moved_bytes: float
    times: int = 1


@dataclass(frozen=True)
class Rates:
    """A device's figures: peak in 10^9 multiply-accumulates a second, bandwidth in 10^9 bytes a second, and `s`."""

    gmac_s: float
    gb_s: float
    factor: float = 1.0


Coefficients = Mapping[str, float]
"""By name: `call`, `launch.GROUP`, `compute.KIND`, `weights`, `moved.GROUP`. One that is missing is 0."""


def parts(operator: Operator, rates: Rates, found: Coefficients) -> tuple[float, float, float]:
    """Of one operator, ms, without `s`: its launch, its computing, and its moving."""
    group = GROUPS[operator.kind]
    launch = 0.0 if operator.fused else found.get(f"launch.{group}", 0.0)
    compute = found.get(f"compute.{operator.kind}", 0.0) * operator.macs / rates.gmac_s / 1e6
    bytes_ = found.get("weights", 0.0) * operator.weight_bytes
    bytes_ += found.get(f"moved.{group}", 0.0) * operator.moved_bytes
    return launch, compute, bytes_ / rates.gb_s / 1e6


def predict(operators: Sequence[Operator], rates: Rates, found: Coefficients) -> float:
    """The time of a call, ms."""
    total = found.get("call", 0.0)
    for operator in operators:
        launch, compute, move = parts(operator, rates, found)
        total += operator.times * (launch + max(compute, move))
    return rates.factor * total


def terms(operators: Sequence[Operator], rates: Rates, found: Coefficients | None) -> dict[str, float]:
    """Return the factor of each coefficient in `predict`, for operators that are on the side where `found` has them.

    Without `found`, both sides count: a sum, which a first fit starts from.
    """
    total = {"call": 1.0}

    def add(name: str, value: float) -> None:
        total[name] = total.get(name, 0.0) + value

    for operator in operators:
        group = GROUPS[operator.kind]
        if not operator.fused:
            add(f"launch.{group}", operator.times)
        _, compute, move = (0.0, 0.0, 0.0) if found is None else parts(operator, rates, found)
        if operator.macs and (found is None or compute >= move):
            add(f"compute.{operator.kind}", operator.times * operator.macs / rates.gmac_s / 1e6)
        if found is None or move >= compute:
            for name, moved in (("weights", operator.weight_bytes), (f"moved.{group}", operator.moved_bytes)):
                if moved:
                    add(name, operator.times * moved / rates.gb_s / 1e6)
    return total
