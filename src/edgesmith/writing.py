"""Files that are written whole or not at all.

    temporary file beside the final one -> fsync -> rename -> fsync of the folder

A kill, a full disk or a power cut at any moment leaves the older file or the new one. Who may read it, the umask says.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from edgesmith.ending import put_in_place
from edgesmith.errors import OutputError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a disk that has no room, of a quota that is used up, and of a file that may not become larger."""


def write_whole(path: Path, content: str | bytes, what: str) -> None:
    """Write a file in one step. A device or a pipe, such as /dev/stdout, is written to as it is.

    Args:
        what: the word for it in an error, such as `report`.

    Raises:
        OutputError: the folder cannot be made or written, or the disk is full; an older file is as it was.
    """
    data = content.encode() if isinstance(content, str) else content
    try:
        final = _final(path)  # what a link leads to is written, and the link stays
        if final.exists() and not final.is_file() and not final.is_dir():
            with final.open("wb") as file:
                file.write(data)
            return
        with removed_if_empty(final.parent):
            final.parent.mkdir(parents=True, exist_ok=True)
            with _temporary(final) as (file, temporary):
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
                with put_in_place(path):
                    temporary.replace(final)
            sync_folder(final.parent)
    except OSError as error:
        raise OutputError(f"cannot write the {what} {path}: {error.strerror or error}") from error


@contextlib.contextmanager
def removed_if_empty(folder: Path) -> Iterator[None]:
    """Remove a folder and those above it after the block, where they were not there before it and are empty."""
    new = [one for one in (folder, *folder.parents) if not _may_be_there(one)]
    try:
        yield
    finally:
        for one in new:
            with contextlib.suppress(OSError):  # something lies in it
                one.rmdir()


def _may_be_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a folder above it may not be read
        return True


def refuse_unwritable(path: Path, what: str) -> None:
    """Refuse, before something that takes long, what could not be written at its end. Nothing is made.

    Args:
        what: as of `write_whole`.

    Raises:
        OutputError: a folder or a file is in the way, or the folder is not writable.
    """
    try:
        final = _final(path)
    except OSError as error:
        raise OutputError(f"cannot write the {what} {path}: {error.strerror}") from error
    above = next(one for one in final.parents if one.exists())
    if final.is_dir():
        code = errno.EISDIR
    elif not above.is_dir():
        code = errno.ENOTDIR
    elif not os.access(final if final.exists() and not final.is_file() else above, os.W_OK):
        code = errno.EACCES
    else:
        return
    raise OutputError(f"cannot write the {what} {path}: {os.strerror(code)}")


def _final(path: Path) -> Path:
    """Return what a path leads to. Raises OSError for links in a circle, a RuntimeError up to Python 3.12."""
    try:
        return path.resolve()
    except RuntimeError as error:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path)) from error


def sync_folder(folder: Path) -> None:
    """Have the disk keep a folder's names, where the system can be asked for that."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextlib.contextmanager
def _temporary(final: Path) -> Iterator[tuple[BinaryIO, Path]]:
    """A new file beside another one; it is removed unless it took the other's place."""
    # 50 characters are 200 bytes at most, and a name may have 255.
    temporary = final.with_name(f".{final.name[:50]}.{secrets.token_hex(8)}.partial")
    try:
        # Unlike those of `tempfile`, it may be read by whom the umask lets.
        with os.fdopen(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666), "wb") as file:
            yield file, temporary
    finally:
        temporary.unlink(missing_ok=True)
