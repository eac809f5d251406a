"""SQLite files, opened to be read: nothing in them runs, and a query ends.

A database can carry views and triggers that call functions, and pages that loop. The schema is not trusted, pages are
checked as they are read, and a query stops after STEPS of SQLite's machine.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from edgesmith.errors import Unreadable
from edgesmith.readers.budget import GIBIBYTE, check_file

LARGEST = GIBIBYTE
STEPS = 200_000_000
"""Some seconds; a million rows take a twentieth."""

_EVERY = 1_000_000
_LONGEST_VALUE = 2**20


@contextlib.contextmanager
def open_database(path: Path, what: str) -> Iterator[sqlite3.Connection]:
    """Open a database to read it. Raises Unreadable for what is wrong with it, in the block as well."""
    check_file(path, what, LARGEST)
    connection = None
    try:
        connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
        harden(connection)
        yield connection
    except (sqlite3.Error, UnicodeDecodeError, OverflowError) as error:
        raise Unreadable(f"{path} is damaged or no {what}: {error}") from error
    finally:
        if connection is not None:
            connection.close()


def harden(connection: sqlite3.Connection) -> None:
    """Have a connection trust nothing that is stored, and end."""
    for pragma in ("trusted_schema = OFF", "cell_size_check = ON", "mmap_size = 0"):
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
