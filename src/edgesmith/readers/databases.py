"""SQLite files: nothing in them runs, a query ends, and rows have the types that their columns promise.

A database can carry views and triggers that call functions, and pages that loop. The schema is not trusted, pages are
checked as they are read, and a query stops after STEPS of SQLite's machine. Whoever keeps a database opens it; what it
reads goes through `harden` and `check_rows`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgesmith.errors import Unreadable

STEPS = 200_000_000
"""Some seconds; a million rows take a twentieth."""

_EVERY = 1_000_000
_LONGEST_VALUE = 2**20


def harden(connection: sqlite3.Connection) -> None:
    """Have a connection that only reads trust nothing that is stored, and end."""
    for pragma in ("query_only = ON", "trusted_schema = OFF", "cell_size_check = ON", "mmap_size = 0"):
        connection.execute(f"PRAGMA {pragma}")
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _LONGEST_VALUE)
    left = iter(range(STEPS // _EVERY))
    connection.set_progress_handler(lambda: next(left, None) is None, _EVERY)


def check_rows(rows: Sequence[Sequence[Any]], kinds: Sequence[tuple[type, ...]], path: Path, what: str) -> None:
    """Raise Unreadable where a value of a row has another type than its column promises; SQLite enforces none."""
    for row in rows:
        if len(row) != len(kinds):
            raise Unreadable(f"{path} is no {what}: a row has {len(row)} columns, wanted {len(kinds)}")
        for value, kind in zip(row, kinds, strict=True):
            if not isinstance(value, kind):
                has, wanted = type(value).__name__, kind[0].__name__
                raise Unreadable(f"{path} is no sound {what}: a row has {has}, wanted {wanted}")
