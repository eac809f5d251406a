"""Latencies over time: one SQLite file, and where in it something changed for good.

    point    one subject of one record: its p50 with interval, p90, p99, and what made it
    series   the points of one model, target, precision, thread count, runtime and device, in order of time
    change   a point from which on a series lies elsewhere

Changes are looked for in the logarithms of p50 by kernel change-point detection (Celisse et al., "New efficient
algorithms for multiple change-point detection with reproducing kernels", 2018), by the whole dynamic program: series
have hundreds of points. The kernel is Gaussian and two spreads wide, so that single slow runs count little; the spread
is what neighbours differ by. Of 400
series of 20 points without a change, with outliers or heavy tails or without, less than one in a hundred show one; a
step by five spreads shows after three further points, by two and a half after about eight.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import asdict, astuple, dataclass, fields
from itertools import groupby, pairwise
from pathlib import Path
from statistics import median
from typing import Literal, TypedDict, cast

import numpy as np

from edgesmith.bench import measurement as measurements
from edgesmith.bench.measurement import LONGEST_MS, SHORTEST_MS, in_words
from edgesmith.bench.statistics import quantile
from edgesmith.ending import put_in_place
from edgesmith.errors import BadInput, OutputError
from edgesmith.locks import locked
from edgesmith.readers.databases import check_rows, harden
from edgesmith.writing import removed_if_empty

APART = sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN
"""Of errors of a connection that may only read, where a killed writer's journal has to be rolled back first."""

MIGRATIONS = (
    (
        "CREATE TABLE points (device TEXT NOT NULL, cpu TEXT NOT NULL, power_mode TEXT NOT NULL, "
        "name TEXT NOT NULL, model TEXT NOT NULL, target TEXT NOT NULL, precision TEXT NOT NULL, "
        "threads INTEGER NOT NULL, cores TEXT NOT NULL, runtime TEXT NOT NULL, started TEXT NOT NULL, "
        "p50_ms REAL NOT NULL, low_ms REAL, high_ms REAL, p90_ms REAL NOT NULL, p99_ms REAL NOT NULL, "
        "launches INTEGER NOT NULL, edgesmith TEXT NOT NULL, version TEXT NOT NULL, sha256 TEXT NOT NULL, "
        "record TEXT NOT NULL, UNIQUE (record, sha256))"
    ),
)
"""The statement that makes schema n + 1 of schema n, of an empty file at first: a new one is added at the end.

A column for each field of a key and a point, each subject of a record once. It stays as it is: files have its text.
"""

SCHEMA = len(MIGRATIONS)
"""Of the SQLite file: its user_version."""

Cause = Literal["file", "edgesmith", "runtime"]

FEWEST = 3
"""Points on either side of a change."""

PENALTY = 0.8
"""Of each change, times the logarithm of the number of points."""

WIDTH = 2.0
"""Of the kernel, in spreads."""

LEAST_SPREAD = 0.005
"""Runs that differ by less than half a per cent are equal, however often they do."""


KINDS: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (float,),
    "float | None": (float, type(None)),
}
"""Of a field's values in Python as SQLite gives them; it enforces none of its columns' types."""


class KeyRecord(TypedDict):
    """The facts that the points of one series share.

    Attributes:
        name: the artifact's folder.
        cores: that processes were pinned to, such as `0,1`; empty where they were not.
        runtime: with its compute units, where it has some.
    """

    device: str
    cpu: str
    power_mode: str
    name: str
    model: str
    target: str
    precision: str
    threads: int
    cores: str
    runtime: str


class PointRecord(TypedDict):
    """One subject of one record of `edgesmith bench`.

    Attributes:
        started: UTC, ISO 8601.
        low_ms, high_ms: the 95 % interval of the median; null where there were too few launches.
        edgesmith, version: of edgesmith and of the runtime.
        sha256, record: of the file that was timed, and of the record.
    """

    started: str
    p50_ms: float
    low_ms: float | None
    high_ms: float | None
    p90_ms: float
    p99_ms: float
    launches: int
    edgesmith: str
    version: str
    sha256: str
    record: str


class ChangeRecord(TypedDict):
    """A point from which on p50 lies elsewhere.

    Attributes:
        at: its number in the series, from 0.
        before_ms, after_ms: medians up to the changes on either side.
        cause: what else is new at that point.
    """

    at: int
    before_ms: float
    after_ms: float
    cause: list[Cause]


class SeriesRecord(TypedDict):
    """Points of one key, oldest first, and the changes among them."""

    key: KeyRecord
    points: list[PointRecord]
    changes: list[ChangeRecord]


class History(TypedDict):
    """The output of `edgesmith history --json`: every series, by key."""

    schema: Literal[1]
    series: list[SeriesRecord]


@dataclass(frozen=True)
class Key:
    """The facts that the points of one series share. name: the artifact's folder, which tells its options."""

    device: str
    cpu: str
    power_mode: str
    name: str
    model: str
    target: str
    precision: str
    threads: int
    cores: str
    runtime: str

    @property
    def words(self) -> str:
        """The series in words: the artifact, the device and the threads; usual ones are left out."""
        threads = in_words(self.target, self.threads, self.cores)
        where = (self.device, self.cpu, self.power_mode, self.runtime, threads)
        return ", ".join((self.name, *filter(None, where)))


@dataclass(frozen=True)
class Point:
    """One subject of one record.

    Attributes:
        started: UTC, ISO 8601.
        p50_ms: with `low_ms` and `high_ms` the median and its interval of 95 %, None where there were too few launches.
        edgesmith, version: of edgesmith and of the runtime.
        sha256: of the file that was timed.
        record: sha256 of the record.
    """

    started: str
    p50_ms: float
    low_ms: float | None
    high_ms: float | None
    p90_ms: float
    p99_ms: float
    launches: int
    edgesmith: str
    version: str
    sha256: str
    record: str


@dataclass(frozen=True)
class Change:
    """From point `at` on, p50 is `after_ms` where it was `before_ms`: medians up to the changes on either side.

    cause: what else is new at that point: "file", "edgesmith" and "runtime", those that are.
    """

    at: int
    before_ms: float
    after_ms: float
    cause: tuple[Cause, ...]


@dataclass(frozen=True)
class Series:
    """Points of one key, oldest first, and the changes among them."""

    key: Key
    points: tuple[Point, ...]
    changes: tuple[Change, ...]


def add(file: Path, record: Path) -> int:
    """Add every subject of a record to a history, which is made where there is none. Returns how many were new.

    Raises:
        BadInput: the record is none, or without launches; the file is no history, or a later version's.
        OutputError: the file cannot be written.
    """
    measurement = measurements.read(record)
    if not measurement.launches:
        raise BadInput(f"{record} holds no launch: it was interrupted before anything was timed. Measure again")
    digest = hashlib.sha256(record.read_bytes()).hexdigest()
    rows, known = [], set()
    for i, subject in enumerate(measurement.subjects):
        if subject.sha256 in known:  # a file against itself
            continue
        known.add(subject.sha256)
        samples = measurement.samples(i)
        p50 = quantile(samples, 0.5)
        key = Key(
            device=measurement.device.name,
            cpu=measurement.device.cpu,
            power_mode=measurement.device.power_mode or "",
            name=subject.name,
            model=subject.model,
            target=subject.target,
            precision=subject.precision,
            threads=measurement.threads,
            cores="" if measurement.cores is None else ",".join(map(str, measurement.cores)),
            runtime=subject.runs_by,
        )
        point = Point(
            started=measurement.started,
            p50_ms=p50.value,
            low_ms=p50.low,
            high_ms=p50.high,
            p90_ms=quantile(samples, 0.9).value,
            p99_ms=quantile(samples, 0.99).value,
            launches=len(samples),
            edgesmith=measurement.edgesmith,
            version=measurement.runtimes.get(subject.runtime, ""),
            sha256=subject.sha256,
            record=digest,
        )
        rows.append((*astuple(key), *astuple(point)))
    with _opened(file, create=True) as history:
        before = history.total_changes
        marks = ", ".join("?" * len(rows[0]))
        history.executemany(f"INSERT OR IGNORE INTO points VALUES ({marks})", rows)  # noqa: S608  # question marks
        return history.total_changes - before


def read(file: Path) -> list[Series]:
    """Every series of a history, by key. Raises BadInput where there is none."""
    columns = len(fields(Key))
    with _opened(file, create=False) as history:
        harden(history)
        order = ", ".join(str(i + 1) for i in range(columns))
        rows = history.execute(f"SELECT * FROM points ORDER BY {order}, started, rowid").fetchall()  # noqa: S608
    check_rows(rows, [KINDS[str(field.type)] for kind in (Key, Point) for field in fields(kind)], file, "history")
    found = []
    for key, own in groupby(rows, key=lambda row: row[:columns]):
        points = tuple(Point(*row[columns:]) for row in own)
        if not all(SHORTEST_MS <= ms <= LONGEST_MS for one in points for ms in (one.p50_ms, one.p90_ms, one.p99_ms)):
            raise BadInput(f"{file} is no sound history: it holds a time that no call takes")
        found.append(Series(Key(*key), points, find_changes(points)))
    return found


def find_changes(points: Sequence[Point]) -> tuple[Change, ...]:
    """Find the points from which on p50 lies elsewhere, and the medians on either side."""
    starts = change_points([point.p50_ms for point in points])
    ends = [0, *starts, len(points)]
    medians = [median(point.p50_ms for point in points[a:b]) for a, b in pairwise(ends)]
    return tuple(
        Change(at, medians[i], medians[i + 1], _differences(points[at - 1], points[at])) for i, at in enumerate(starts)
    )


def change_points(values_ms: Sequence[float]) -> list[int]:
    """Indices at which another level begins; see the top of this file."""
    if len(values_ms) < 2 * FEWEST:
        return []
    levels = np.log(np.asarray(values_ms, dtype=float))
    spread = max(float(np.median(np.abs(np.diff(levels)))) / (0.6745 * math.sqrt(2)), LEAST_SPREAD)
    distances = (levels[:, None] - levels[None, :]) ** 2 / (2 * (WIDTH * spread) ** 2)
    # Within these bounds every exponential is a normal number, and equal points are near, not one.
    return _segment(np.exp(-np.clip(distances, 1e-2, 1e2)), PENALTY * math.log(len(levels)))


def _segment(gram: np.ndarray, penalty: float) -> list[int]:
    """Return the starts of all segments but the first that cost least together.

    A segment [a, b) costs sum_i k(i, i) - sum_ij k(i, j) / (b - a), how much it scatters in the kernel's space, and
    `penalty`. Optimal partitioning (Jackson et al., 2005): the best way to an end begins with the best way to a start.

    Args:
        gram: k(i, j) of every pair of points, [N, N].
    """
    count = len(gram)
    sums = np.zeros((count + 1, count + 1))
    sums[1:, 1:] = gram.cumsum(0).cumsum(1)
    own = np.concatenate([[0.0], np.diagonal(gram).cumsum()])
    best, begins = np.full(count + 1, math.inf), np.zeros(count + 1, int)
    best[0] = -penalty
    for end in range(FEWEST, count + 1):
        starts = np.arange(end - FEWEST + 1)
        inner = sums[end, end] - sums[starts, end] - sums[end, starts] + sums[starts, starts]
        costs = best[starts] + own[end] - own[starts] - inner / (end - starts) + penalty
        begins[end] = costs.argmin()
        best[end] = costs[begins[end]]
    found = [int(begins[count])]
    while found[-1]:
        found.append(int(begins[found[-1]]))
    return found[-2::-1]


def _differences(before: Point, after: Point) -> tuple[Cause, ...]:
    sides: dict[Cause, tuple[str, str]] = {
        "file": (before.sha256, after.sha256),
        "edgesmith": (before.edgesmith, after.edgesmith),
        "runtime": (before.version, after.version),
    }
    return tuple(name for name, (one, other) in sides.items() if one != other)


def describe(found: Sequence[Series]) -> History:
    """Return series as the record that `edgesmith history --json` prints."""
    return {"schema": 1, "series": [_describe(one) for one in found]}


def _describe(series: Series) -> SeriesRecord:
    changes: list[ChangeRecord] = [
        {"at": one.at, "before_ms": one.before_ms, "after_ms": one.after_ms, "cause": list(one.cause)}
        for one in series.changes
    ]
    return {
        "key": cast("KeyRecord", asdict(series.key)),  # the same fields
        "points": [cast("PointRecord", asdict(one)) for one in series.points],
        "changes": changes,
    }


@contextlib.contextmanager
def _opened(file: Path, create: bool) -> Iterator[sqlite3.Connection]:
    """A history in one transaction, whose changes are kept, all of them, where the block ends well."""
    if not create and not file.is_file():
        raise BadInput(f"there is no history at {file}: start one with edgesmith history add RECORD")
    try:
        with _begun(file) if create else contextlib.nullcontext(), contextlib.closing(_connect(file, create)) as one:
            _migrate(one, file)
            yield one
            with put_in_place(file) if create else contextlib.nullcontext():
                one.execute("COMMIT")  # what is not committed is rolled back
    except sqlite3.OperationalError as error:
        raise OutputError(f"cannot use the history {file}: {error}") from error
    except sqlite3.Error as error:
        raise BadInput(f"{file} is damaged or no history of edgesmith: {error}") from error
    except UnicodeDecodeError as error:  # SQLite's message quotes the file
        raise BadInput(f"{file} is damaged or no history of edgesmith: text in it is no text") from error
    except OSError as error:
        raise OutputError(f"cannot write the history {file}: {error.strerror or error}") from error


@contextlib.contextmanager
def _begun(file: Path) -> Iterator[None]:
    """Remove a new file, and its new folders, in which nothing was written by the end of the block.

    Whoever finds none, or one without content, waits for the process that has begun it: nobody writes to what is
    removed.
    """
    with removed_if_empty(file.parent):
        file.parent.mkdir(parents=True, exist_ok=True)
        if _has_content(file):
            yield
            return
        with locked(file.parent) as handle:
            is_new = handle is not None and not file.exists() and os.path.samestat(os.fstat(handle), file.parent.stat())
            try:
                yield
            finally:
                if is_new and not _has_content(file):
                    for left in (file, file.with_name(f"{file.name}-journal")):  # SQLite's own is not always closed
                        left.unlink(missing_ok=True)


def _has_content(file: Path) -> bool:
    return file.exists() and file.stat().st_size > 0


def _connect(file: Path, create: bool) -> sqlite3.Connection:
    """A connection in a transaction: to the file, or, to read an older schema, to a copy of it in memory."""
    if create:
        connection = sqlite3.connect(file, isolation_level=None)
        connection.execute("PRAGMA synchronous = FULL")  # a commit is on the disk before it is said to be there
        connection.execute("BEGIN IMMEDIATE")
        return connection
    address = file.resolve().as_uri()
    connection = sqlite3.connect(f"{address}?mode=ro", uri=True, isolation_level=None)
    try:
        version = _version(connection)
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF not in APART:
            raise
        connection.close()
        connection = sqlite3.connect(f"{address}?mode=rw", uri=True, isolation_level=None)
        version = _version(connection)
    if 0 <= version < SCHEMA:
        copy = sqlite3.connect(":memory:", isolation_level=None)
        connection.backup(copy)
        connection.close()
        connection = copy
    connection.execute("BEGIN")
    return connection


def _version(connection: sqlite3.Connection) -> int:
    """Return the schema that a file says it has; 0 of a new file."""
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    return version


def _migrate(connection: sqlite3.Connection, file: Path) -> None:
    """Bring a history to `SCHEMA`, step by step, in the transaction of its block.

    Raises:
        BadInput: it is another program's file, or a later version's.
    """
    version = _version(connection)
    if version > SCHEMA:
        raise BadInput(f"{file} has schema {version}, and this edgesmith reads {SCHEMA}: update edgesmith")
    tables = dict(connection.execute("SELECT name, sql FROM sqlite_master WHERE type IN ('table', 'view')"))
    if version == 0 and tables == {"points": MIGRATIONS[0]}:
        version = 1  # by an edgesmith that was killed before it gave the file its number
    if version < 0 or (version == 0 and tables) or (version > 0 and "points" not in tables):
        raise BadInput(f"{file} is no history of edgesmith: it is another program's database")
    for statement in MIGRATIONS[version:]:
        connection.execute(statement)
    if _version(connection) < SCHEMA:
        connection.execute(f"PRAGMA user_version = {SCHEMA}")
    columns = [row[1] for row in connection.execute("PRAGMA table_info(points)")]
    if columns != [field.name for kind in (Key, Point) for field in fields(kind)]:
        raise BadInput(f"{file} is damaged or no history of edgesmith: its columns are others")
