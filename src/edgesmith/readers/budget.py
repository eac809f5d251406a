"""Files of foreign origin as bytes: regular, of a bounded size, read once."""

from __future__ import annotations

import stat
from pathlib import Path

from edgesmith.errors import Unreadable

MEBIBYTE = 2**20
GIBIBYTE = 2**30


def read_bytes(path: Path, what: str, limit: int) -> bytes:
    """Return a file's bytes.

    Args:
        what: the word for the file, such as `manifest`.
        limit: bytes that such a file has at most.

    Raises:
        Unreadable: it is not there, cannot be read, is no regular file, or is larger than that.
    """
    size = check_file(path, what, limit)
    try:
        with path.open("rb") as file:
            content = file.read(size + 1)  # Python allocates what it is asked for
    except (OSError, ValueError) as error:
        raise Unreadable(f"cannot read the {what} {path}: {_reason(error)}") from error
    if len(content) > size:
        raise Unreadable(f"cannot read the {what} {path}: it grew while it was read")
    return content


def check_file(path: Path, what: str, limit: int) -> int:
    """Return a file's size in bytes. Raises Unreadable where it is not there, is no regular file, or is too large."""
    try:
        found = path.stat()
    except (OSError, ValueError) as error:  # ValueError: of a NUL in the path
        raise Unreadable(f"cannot read the {what} {path}: {_reason(error)}") from error
    if not stat.S_ISREG(found.st_mode):
        raise Unreadable(f"cannot read the {what} {path}: Is a directory" if path.is_dir() else f"{path} is no file")
    if found.st_size > limit:
        raise _too_large(path, what, found.st_size, limit)
    return found.st_size


def in_words(size: int) -> str:
    """Return a number of bytes in words: `6.6 GB`."""
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}"
    return f"{size} bytes"


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _too_large(path: Path, what: str, size: int, limit: int) -> Unreadable:
    return Unreadable(f"{path} is no {what}: it has {in_words(size)}, and such a file has {in_words(limit)} at most")
