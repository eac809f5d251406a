"""Locks on folders between processes. One ends with the process that holds it, however that ends."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


def lock(folder: Path, wait: bool = True) -> int | None:
    """Lock a folder. Returns the handle whose closing ends that; None where there are no locks.

    Raises:
        BlockingIOError: with `wait` false, another process holds it.
        OSError: the folder is not there, or may not be read.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException as error:
        os.close(handle)
        if isinstance(error, OSError) and not isinstance(error, BlockingIOError):  # a file system without locks
            return None
        raise
    return handle


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[int | None]:
    """One process at a time changes what lies in a folder. Where locks are not to be had: None, and nobody waits."""
    handle = lock(folder)
    try:
        yield handle
    finally:
        if handle is not None:
            os.close(handle)
