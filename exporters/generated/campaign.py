"""Every generated model on every target, in a process that may crash, resumed where it was left.

    python -m edgesmith.exporters.generated.campaign [--columns onnx:fp32,coreml:fp32] [--only REGEX] [--again]

It goes as the sweep of the operators does, see verification/sweep.py. At the end come the failures, the share of the
models that each target takes, and the refusals by their cause. Exit code 3 where a model is a failure.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from edgesmith.errors import VerificationFailed
from edgesmith.exporters.generated import recipes, trial
from edgesmith.exporters.verification import sweep
from edgesmith.exporters.verification.conformance import FAILURES, REFUSED, RIGHT, Column
from edgesmith.exporters.verification.sweep import Row

ROWS = Path("build") / "generated.jsonl"
"""The rows of a campaign, one JSON object a line."""

COLUMNS = ("onnx:fp32", "tensorrt:fp32", "coreml:fp32", "coreai:fp32")
"""Targets and precisions, in the order of a campaign."""


def work(todo: Sequence[tuple[str, str]], path: Path, models: Path = recipes.MODELS) -> None:
    """Append the row of each model on each target to `path`."""
    warnings.simplefilter("ignore")
    known = recipes.read(models)
    columns: dict[str, Column] = {}
    start = time.monotonic()
    for k, (name, one) in enumerate(todo):
        began = time.monotonic()
        if one not in columns:
            columns[one] = sweep.column(one)
        found = trial.judge(known[name], columns[one])
        took = round(time.monotonic() - began, 2)
        sweep.append(
            path, {"operator": name, "column": one, "cases": [("model", found.kind, found.why)], "seconds": took}
        )
        spent = time.monotonic() - start
        print(f"{k + 1}/{len(todo)} {spent:5.0f} s  {one:14} {name}: {found.kind}", file=sys.stderr, flush=True)


def cause(why: str) -> str:
    """Return a refusal without what belongs to one model alone: names, shapes, places and numbers."""
    operator = re.search(r"does not take (aten\.\w+)", why)
    if operator is not None:
        return re.sub(r"does not take .*", f"does not take {operator[1]}", why)
    return re.sub(r"[\w./]*\d[\w./]*", "N", re.sub(r"\[[^]]*\]|\([^)]*\)", "[]", why))


def summarise(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the failures, then for each target the share that it takes and its refusals by cause."""
    for one in dict.fromkeys(row["column"] for row in rows):
        found = [(row["operator"], *row["cases"][0][1:]) for row in rows if row["column"] == one]
        for name, kind, why in found:
            if kind in FAILURES:
                yield f"{kind}: {name} on {one}: {why}"
        counts = Counter(kind for _, kind, _ in found)
        seconds = sum(row["seconds"] for row in rows if row["column"] == one)
        yield f"{one}: {counts[RIGHT]} of {len(found)} right, {dict(counts)}; {seconds:.0f} s"
        causes = Counter(cause(why) for _, kind, why in found if kind == REFUSED)
        for said, count in causes.most_common():
            yield f"    {count} {said}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the campaign that is asked for. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--columns", default=",".join(COLUMNS))
    parser.add_argument("--only", default=".*", help="models whose whole name matches")
    parser.add_argument("--first", type=int, default=None, help="so many models and no more")
    parser.add_argument("--models", type=Path, default=recipes.MODELS)
    parser.add_argument("--rows", type=Path, default=ROWS)
    parser.add_argument("--again", action="store_true", help="make the rows that are asked for anew")
    given = parser.parse_args(arguments)
    names = [name for name in recipes.read(given.models) if re.fullmatch(given.only, name)][: given.first]
    columns = given.columns.split(",")
    if given.again:
        sweep.forget(given.rows, columns, names)
    rows = sweep.sweep(columns, names, given.rows, partial(work, models=given.models))
    print("\n".join(summarise(rows)))
    failed = any(kind in FAILURES for row in rows for _, kind, _ in row["cases"])
    return VerificationFailed.exit_code if failed else 0


if __name__ == "__main__":
    sys.exit(main())
