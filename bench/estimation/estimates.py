"""The errors of estimates on published latencies that they were not fitted on, and the coefficients that ship.

For each kind of device: every row's estimate from a fit without the row's family of models, on all devices and in all
papers (a model has a row in several); the median of |estimate / published - 1|, and Spearman's rank correlation. The
same with the row's device left out of the fit too. Beside them, the error of each family, and why rows are not used.

python -m edgesmith.bench.estimation.estimates [--write]       # --write: data/estimates.json anew
"""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

from edgesmith.bench.estimation.estimate import COEFFICIENTS, COVERAGE, KINDS, LeftOut
from edgesmith.bench.estimation.fit import Case, cases_of, fit, left_out
from edgesmith.bench.estimation.rows import FELL_BACK, read_rows
from edgesmith.writing import write_whole

BARS = {"iphone": (0.25, 0.9)}
"""The demands on a kind: median error at most, rank correlation at least."""

DIGITS = 5


def main() -> None:
    """Print the figures of every kind, and write the coefficients where that is asked for."""
    made = {}
    for kind in KINDS:
        cases = cases_of(kind)
        estimates = left_out(cases)
        without_family = describe(cases, estimates, "its family of models")
        without_device = describe(cases, left_out(cases, other_device=True), "its family of models and its device")
        show(kind, cases, estimates, without_family, without_device)
        show_others(kind, cases, estimates)
        made[kind] = coefficients(cases, without_family, without_device)
    if "--write" in sys.argv[1:]:
        write(made)


def describe(cases: Sequence[Case], estimates: Sequence[float], what: str) -> LeftOut:
    """Describe the errors of estimates."""
    published = [case.row.latency_ms for case in cases]
    ratios = [estimate / row for estimate, row in zip(estimates, published, strict=True)]
    return LeftOut(
        what,
        len(cases),
        len({case.row.model_of_timm for case in cases}),
        len({case.row.family for case in cases}),
        rounded(median(abs(ratio - 1) for ratio in ratios)),
        rounded(rank_correlation(estimates, published)),
        tuple(sorted(rounded(math.log(ratio)) for ratio in ratios)),
    )


def rank_correlation(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Spearman's: the correlation of ranks, where equal values share the mean of theirs."""

    def ranks(values: Sequence[float]) -> list[float]:
        counts = Counter(values)
        of, seen = {}, 0
        for value in sorted(counts):
            of[value] = seen + (counts[value] - 1) / 2
            seen += counts[value]
        return [of[value] for value in values]

    rx, ry = ranks(xs), ranks(ys)
    mean = (len(xs) - 1) / 2
    covariance = sum((a - mean) * (b - mean) for a, b in zip(rx, ry, strict=True))
    return covariance / math.sqrt(sum((a - mean) ** 2 for a in rx) * sum((b - mean) ** 2 for b in ry))


def coefficients(cases: Sequence[Case], without_family: LeftOut, without_device: LeftOut) -> dict[str, Any]:
    """Return the coefficients of a kind that ship, as estimate.py reads them."""
    found = fit(cases)
    profiles: dict[str, list[float]] = {}
    for case in cases:  # devices with one profile: their rows' mean
        profiles.setdefault(case.row.profile, []).append(math.log(found.factors[case.row.device]))
    latencies = [case.row.latency_ms for case in cases]
    return {
        "coefficients": {name: rounded(value) for name, value in sorted(found.coefficients.items())},
        "factors": {name: rounded(math.exp(sum(v) / len(v))) for name, v in sorted(profiles.items())},
        "rows": dict(sorted(Counter(case.row.profile for case in cases).items())),
        "range_ms": [min(latencies), max(latencies)],
        "left_out": {"family": asdict(without_family), "family and device": asdict(without_device)},
    }


def rounded(value: float) -> float:
    """To DIGITS significant digits: the last ones depend on the machine's linear algebra."""
    return float(f"{value:.{DIGITS}g}")


def show(
    kind: str, cases: Sequence[Case], estimates: Sequence[float], without_family: LeftOut, without_device: LeftOut
) -> None:
    """Figures of a kind, its bar, its families and devices."""
    print(f"{kind}: {KINDS[kind].runtime}, {KINDS[kind].precision}")
    for one in (without_family, without_device):
        low, high = one.span(COVERAGE)
        print(f"  {one.sentence()}; {COVERAGE:.0%} within {low:.2f} to {high:.2f} times the estimate")
    if kind in BARS:
        error, rank = BARS[kind]
        held = without_family.median_error <= error and without_family.rank_correlation >= rank
        print(f"  bar: median error <= {error:.0%}, rank correlation >= {rank}: {'held' if held else 'MISSED'}")
    for group in ("family", "device"):
        print(f"  {group:<20} rows  median error  median of estimate / published")
        for value in sorted({getattr(case.row, group) for case in cases}):
            of = [e / c.row.latency_ms for e, c in zip(estimates, cases, strict=True) if getattr(c.row, group) == value]
            print(f"  {value:<20} {len(of):4}  {median(abs(r - 1) for r in of):12.0%}  {median(of):.2f}")


def show_others(kind: str, cases: Sequence[Case], estimates: Sequence[float]) -> None:
    """The rows that are not used, and what they would do to the error."""
    fallen = cases_of(kind, FELL_BACK)
    if fallen:
        all_of = describe([*cases, *fallen], [*estimates, *left_out(cases, asked=fallen)], "its family of models")
        print(f"  with {len(fallen)} rows that are not fitted on, as {FELL_BACK}: {all_of.sentence()}")
    used = {id(case.row) for case in cases}
    rest = [row for row in read_rows() if row.fit == kind and id(row) not in used]
    reasons = Counter(row.why_not or "bench/features.py has not counted its model, or could not" for row in rest)
    for reason, count in reasons.most_common():
        print(f"  {count:4} rows not used: {reason}")
    print()


def write(made: dict[str, Any]) -> None:
    """data/estimates.json, one kind after the other."""
    text = json.dumps({"made_by": "python -m edgesmith.bench.estimation.estimates --write", "fits": made}, indent=1)
    write_whole(COEFFICIENTS, text + "\n", "coefficients")


if __name__ == "__main__":
    main()
