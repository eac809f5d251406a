"""The whole table: every operator on every target, in a process that may crash, resumed where it was left.

    python -m edgesmith.exporters.verification.sweep [--columns onnx:fp32,coreml:fp16] [--only REGEX] [--write]

Rows are appended to a file as they are made, so that a sweep that was interrupted goes on; `--again` begins anew. A
process that dies, or that takes longer than `LIMIT_S` for an operator, is a crash of that operator on that target.
`--write` puts the columns of the rows into the table that is shipped, operators.json, in place of its own: make them
whole. Exit code 3 where a row is a failure.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypedDict

from edgesmith.board.common import end_with_parent
from edgesmith.errors import Unreadable, VerificationFailed
from edgesmith.exporters import targets
from edgesmith.exporters.verification import boundaries, conformance, samples, verdicts
from edgesmith.exporters.verification.conformance import CRASH, FAILURES, Column
from edgesmith.readers.documents import read_lines
from edgesmith.writing import write_whole

ROWS = Path("build") / "conformance.jsonl"
"""The rows of a sweep, one JSON object a line."""

COLUMNS = ("onnx:fp32", "coreml:fp32", "coreai:fp32", "tvm:fp32", "coreml:fp16", "tensorrt:fp32", "onnx:fp16")
"""Targets and precisions, in the order of a sweep."""

LIMIT_S = 300.0
"""Time that an operator may take on a target."""


class Row(TypedDict):
    """An operator on a target.

    Attributes:
        cases: label, verdict and reason of each.
    """

    operator: str
    column: str
    cases: list[tuple[str, str, str]]
    seconds: float


def column(name: str) -> Column:
    """Return the column of `TARGET:PRECISION`."""
    target, _, precision = name.partition(":")
    return Column(targets.get(target), precision)


def cases_by_operator() -> dict[str, list[samples.Maker]]:
    """Return what makes each operator's cases: of OpInfo, and of our own boundaries."""
    found: dict[str, list[samples.Maker]] = {}
    for name, make in (*samples.all_operators(), *boundaries.all_operators()):
        found.setdefault(name, []).append(make)
    return dict(sorted(found.items()))


Work = Callable[[Sequence[tuple[str, str]], Path], None]
"""Appends the row of each name and column to a file."""


def sweep(columns: Sequence[str], names: Sequence[str], path: Path, work: Work | None = None) -> list[Row]:
    """Make the rows that `path` does not have yet, in a process of their own. Returns all that were asked for.

    Args:
        columns: each `TARGET:PRECISION`.
        names: of operators, or of whatever `work` knows.
        path: of the rows.
        work: what makes them; default: operators' rows.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    wanted = [(name, one) for one in columns for name in names]
    while True:
        have = {(row["operator"], row["column"]): row for row in read(path)}
        todo = [key for key in wanted if key not in have]
        if not todo:
            return [have[key] for key in wanted]
        _advance(todo, path, work or _work)


def _advance(todo: Sequence[tuple[str, str]], path: Path, work: Work) -> None:
    """Make rows until none is left or one crashes, which is then its row."""
    context = multiprocessing.get_context("spawn")
    worker = context.Process(target=_work_for_parent, args=(work, list(todo), path))
    worker.start()
    size, since = _size(path), time.monotonic()
    why = ""
    while worker.is_alive():
        worker.join(1.0)
        if (now := _size(path)) != size:  # its rows are not read while the worker may be writing one
            size, since = now, time.monotonic()
        elif time.monotonic() - since > LIMIT_S:
            worker.kill()
            worker.join()
            why = f"took longer than {LIMIT_S:.0f} s"
    if worker.exitcode:
        have = {(row["operator"], row["column"]) for row in read(path)}
        name, one = next(key for key in todo if key not in have)
        why = why or f"the process died with code {worker.exitcode}"
        append(path, {"operator": name, "column": one, "cases": [("all", CRASH, why)], "seconds": 0.0})


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _work_for_parent(work: Work, todo: Sequence[tuple[str, str]], path: Path) -> None:
    end_with_parent()
    work(todo, path)


def _work(todo: Sequence[tuple[str, str]], path: Path) -> None:
    warnings.simplefilter("ignore")
    makers = cases_by_operator()
    known: dict[str, Column] = {}
    start = time.monotonic()
    for k, (name, one) in enumerate(todo):
        began = time.monotonic()
        cases = [case for make in makers[name] for case in make()]
        if one not in known:
            known[one] = column(one)
        verdicts = conformance.judge(cases, known[one])
        told = [(case.label, verdict.kind, verdict.why) for case, verdict in zip(cases, verdicts, strict=True)]
        append(path, {"operator": name, "column": one, "cases": told, "seconds": round(time.monotonic() - began, 2)})
        counts = Counter(verdict.kind for verdict in verdicts)
        said = ", ".join(f"{count} {kind}" for kind, count in counts.items())
        spent = time.monotonic() - start
        print(f"{k + 1}/{len(todo)} {spent:5.0f} s  {one:14} {name}: {said}", file=sys.stderr, flush=True)


def append(path: Path, row: Row) -> None:
    """Append a row to a file."""
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def read(path: Path) -> list[Row]:
    """Return the rows of a file; a line that was cut off is none. Raises Unreadable where it has others."""
    rows = list(read_lines(path, "log of a sweep", advice="remove it")) if path.is_file() else []
    for number, row in enumerate(rows, 1):
        if not _is_row(row):
            raise Unreadable(f"{path} is no log of a sweep: line {number} is no row of one; remove it")
    return rows


def _is_row(row: object) -> bool:
    if not isinstance(row, dict) or row.keys() != Row.__annotations__.keys():
        return False
    is_named = isinstance(row["operator"], str) and isinstance(row["column"], str)
    is_timed = isinstance(row["seconds"], int | float) and not isinstance(row["seconds"], bool)
    cases = row["cases"]
    return is_named and is_timed and isinstance(cases, list) and all(map(_is_case, cases))


def _is_case(case: object) -> bool:
    if not isinstance(case, list) or len(case) != 3 or not all(isinstance(word, str) for word in case):
        return False
    return case[1] in verdicts.ORDER


def forget(path: Path, columns: Sequence[str], names: Sequence[str]) -> None:
    """Remove the rows of some names on some columns, so that they are made anew."""
    kept = [row for row in read(path) if row["operator"] not in names or row["column"] not in columns]
    if path.is_file():
        write_whole(path, "".join(json.dumps(row) + "\n" for row in kept), "rows")


def summarise(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the failures, then the totals of each column."""
    for row in rows:
        for label, kind, why in row["cases"]:
            if kind in FAILURES:
                yield f"{kind}: {row['operator']} ({label}) on {row['column']}: {why}"
    for one in dict.fromkeys(row["column"] for row in rows):
        of_column = [row for row in rows if row["column"] == one]
        counts = Counter(kind for row in of_column for _, kind, _ in row["cases"])
        worst = Counter(verdicts.worst(kind for _, kind, _ in row["cases"]) for row in of_column if row["cases"])
        seconds = sum(row["seconds"] for row in of_column)
        yield f"{one}: cases {dict(counts)}; operators by their worst case {dict(worst)}; {seconds:.0f} s"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the sweep that is asked for. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--columns", default=",".join(COLUMNS))
    parser.add_argument("--only", default=".*", help="operators whose whole name matches")
    parser.add_argument("--rows", type=Path, default=ROWS)
    parser.add_argument("--again", action="store_true", help="make the rows that are asked for anew")
    parser.add_argument("--write", action="store_true", help=f"write {verdicts.TABLE.name}")
    given = parser.parse_args(arguments)
    names = [name for name in cases_by_operator() if re.fullmatch(given.only, name)]
    columns = given.columns.split(",")
    if given.again:
        forget(given.rows, columns, names)
    rows = sweep(columns, names, given.rows)
    print("\n".join(summarise(rows)))
    if given.write:
        verdicts.write(read(given.rows))
    failed = any(kind in FAILURES for row in rows for _, kind, _ in row["cases"])
    return VerificationFailed.exit_code if failed else 0


if __name__ == "__main__":
    sys.exit(main())
