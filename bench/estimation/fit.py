"""Fits the roofline's coefficients (roofline.py) on published latencies, and finds how far it is off on others.

The coefficients minimise the sum over rows of |log(estimate / published)|, none below 0: weighted non-negative least
squares, again and again with weights of the last errors, each operator on that side of its roofline where the last
coefficients have it. A device's factor is the median of its rows' ratios, drawn towards 1 where it has few rows.
Coefficients that the rows do not settle stay near PRIOR, a plain roofline: being off by all of it costs as much as a
row that is off by DOUBT.

A row is left out with its whole family, from every device and paper: `left_out` fits once for each family without it.
With `other_device`, the device's rows are left out too, and its factor is 1: the error for a device nobody measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from statistics import median
from typing import Any

import numpy as np

from edgesmith.bench.estimation.estimate import KINDS, rates_of
from edgesmith.bench.estimation.roofline import GROUPS, PRODUCTS, Coefficients, Operator, Rates, predict, terms
from edgesmith.bench.estimation.rows import FORMATS, Row, file_of, key, read_rows
from edgesmith.profiles.device import get as get_device
from edgesmith.readers.documents import read_json

ROUNDS = 8
PRIOR: Coefficients = {"call": 0.3, "launch": 0.002, "compute": 2.0, "weights": 1.0, "moved": 1.0}
"""A call 0.3 ms, a launch 2 us, half of the peak, all of the bandwidth."""
DOUBT = 0.3
FEW = 2.0
"""Rows that pull a device's factor towards 1 as strongly as its own rows pull it away."""


@dataclass(frozen=True)
class Case:
    """A published row with its model's operators and its device's figures."""

    row: Row
    operators: tuple[Operator, ...]
    rates: Rates


@dataclass(frozen=True)
class Fit:
    """The result of a fit: coefficients, and each device's factor by the name that the rows have for it."""

    coefficients: Coefficients
    factors: Mapping[str, float]

    def predict(self, case: Case) -> float:
        """The time of a call, ms."""
        rates = replace(case.rates, factor=self.factors.get(case.row.device, 1.0))
        return predict(case.operators, rates, self.coefficients)


def fit(cases: Sequence[Case]) -> Fit:
    """Coefficients and factors for some cases."""
    from scipy.optimize import nnls

    published = np.array([case.row.latency_ms for case in cases])
    factors = dict.fromkeys((case.row.device for case in cases), 1.0)
    found: dict[str, float] | None = None
    weights = np.ones(len(cases))
    for _ in range(ROUNDS):
        rows = [terms(case.operators, case.rates, found) for case in cases]
        names = sorted({name for row in rows for name in row})
        scale = np.array([factors[case.row.device] for case in cases]) / published
        matrix = np.array([[row.get(name, 0.0) for name in names] for row in rows]) * scale[:, None]
        doubts = np.diag([DOUBT / PRIOR[name.split(".")[0]] for name in names])
        root = np.sqrt(weights)
        solution, _ = nnls(
            np.vstack([matrix * root[:, None], doubts]), np.concatenate([root, np.full(len(names), DOUBT)])
        )
        found = prior_of_all() | dict(zip(names, map(float, solution), strict=True))
        plain = np.array([predict(case.operators, case.rates, found) for case in cases])
        factors = _factors(cases, published / plain)
        ratio = np.array([factors[case.row.device] for case in cases]) * plain / published
        weights = 1 / np.maximum(np.abs(np.log(ratio)), 0.05) / np.maximum(ratio, 0.3)
        weights /= weights.mean()
    assert found is not None
    return Fit(found, factors)


def prior_of_all() -> dict[str, float]:
    """PRIOR for every coefficient that an operator can have: what no row has must not come for free."""
    groups = sorted(set(GROUPS.values()))
    names = ["call", "weights", *(f"compute.{kind}" for kind in PRODUCTS)]
    names += [f"{part}.{group}" for part in ("launch", "moved") for group in groups]
    return {name: PRIOR[name.split(".")[0]] for name in names}


def _factors(cases: Sequence[Case], ratios: Any) -> dict[str, float]:
    """Each device's median ratio; their mean, over devices, is 1."""
    of: dict[str, list[float]] = {}
    for case, ratio in zip(cases, ratios, strict=True):
        of.setdefault(case.row.device, []).append(math.log(ratio))
    logs = {device: median(values) * len(values) / (len(values) + FEW) for device, values in of.items()}
    mean = sum(logs.values()) / len(logs)
    return {device: math.exp(value - mean) for device, value in logs.items()}


def left_out(cases: Sequence[Case], other_device: bool = False, asked: Sequence[Case] | None = None) -> list[float]:
    """An estimate for each case, from a fit without its family, and without its device where that is called for.

    Args:
        asked: estimate these instead of `cases`, which alone are fitted on.
    """
    asked = cases if asked is None else asked
    groups = dict.fromkeys((case.row.family, case.row.device if other_device else "") for case in asked)
    made: dict[tuple[str, str], Fit] = {}
    for family, device in groups:
        made[family, device] = fit([c for c in cases if c.row.family != family and c.row.device != device])
    return [made[c.row.family, c.row.device if other_device else ""].predict(c) for c in asked]


def cases_of(kind: str, why_not: str = "") -> list[Case]:
    """The rows of a kind that are fitted on, or that are not for one reason, with what they computed and on what.

    A model that was not counted in the kind's own format is taken as it is in another: they have the same work, but for
    a few moves and views.
    """
    of = KINDS[kind]
    others = [target for target in sorted(set(FORMATS.values())) if target != of.target]
    counted = {name: found for target in (*others, of.target) for name, found in _counted(target).items()}
    return [
        Case(row, _in(of.precision, counted[key(row)]), rates_of(get_device(row.profile), of))
        for row in read_rows()
        if row.fit == kind and row.why_not == why_not and key(row) in counted
    ]


def _in(precision: str, operators: tuple[Operator, ...]) -> tuple[Operator, ...]:
    """Operators as they are in a precision; they were counted in fp16."""
    wider = {"fp16": 1, "fp32": 2}[precision]
    return tuple(
        replace(one, weight_bytes=wider * one.weight_bytes, moved_bytes=wider * one.moved_bytes) for one in operators
    )


@cache
def _counted(target: str) -> dict[str, tuple[Operator, ...]]:
    path = file_of(target)
    known = read_json(path, "table of counted models")
    return {
        name: tuple(
            Operator(kind, bool(fused), macs, weight, read + written, times)
            for kind, fused, macs, weight, read, written, times in entry["operators"]
        )
        for name, entry in known.items()
    }
