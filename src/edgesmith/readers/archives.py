"""Zip archives: what a file declares is checked against a budget before anything of it is inflated.

names       plain paths below the archive, each once
sizes       all members together; those that are compressed, apart, as a few kilobytes can declare gigabytes
checksums   CRC-32 of each member that is read; `copy_plainly` reads them all

Libraries that open an archive themselves may find other members in it, or others' bytes: they get a plain copy.
"""

from __future__ import annotations

import contextlib
import lzma
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from edgesmith.errors import Unreadable
from edgesmith.readers.budget import GIBIBYTE, MEBIBYTE, check_file, in_words

DAMAGED = (
    *(OSError, EOFError, zipfile.BadZipFile, zlib.error, lzma.LZMAError),
    *(NotImplementedError, RuntimeError, ValueError, KeyError, OverflowError, IndexError),
)
"""What Python's `zipfile` raises for damaged files: RuntimeError of passwords, NotImplementedError of methods."""


@dataclass(frozen=True)
class Budget:
    """The most that an archive may declare.

    Attributes:
        members: how many files are in it.
        stored: bytes of all members together.
        inflated: bytes of the members that are compressed.
    """

    members: int = 65_536
    stored: int = 16 * GIBIBYTE
    inflated: int = GIBIBYTE


def ends_as_archive(path: Path) -> bool:
    """Return whether a file has the record at an archive's end, one that is damaged included."""
    try:
        return zipfile.is_zipfile(path)
    except DAMAGED:  # whatever it says of an archive in several files, Python's raises
        return True


@contextlib.contextmanager
def open_archive(path: Path, what: str, budget: Budget, advice: str = "make it anew") -> Iterator[zipfile.ZipFile]:
    """Open an archive that keeps to a budget. What goes wrong in reading its members is Unreadable too.

    Raises:
        Unreadable: it is none, is damaged, or declares more than the budget.
    """
    check_file(path, what, budget.stored)
    try:
        with zipfile.ZipFile(path) as archive:
            _check_members(archive, path, what, budget)
            yield archive
    except Unreadable:
        raise
    except DAMAGED as error:
        if isinstance(error, RuntimeError):
            how = "is encrypted, or compressed in a way that Python's zipfile does not know"
        else:
            how = f"is no {what}"
        raise Unreadable(f"{path} {how}; {advice}") from error


def copy_plainly(archive: zipfile.ZipFile, copy: BinaryIO) -> None:
    """Write an archive's members, uncompressed and with nothing but their names, in their order, to another file.

    Every reader finds the same in it. What its entries say beside name, size and checksum is left out: PyTorch takes a
    member for a folder, and gives memory that nobody wrote, where one bit of its attributes says so.

    Raises:
        BadZipFile: a member is not what its checksum says; `open_archive` words it.
    """
    with zipfile.ZipFile(copy, "w") as made:
        for member in archive.infolist():
            entry = zipfile.ZipInfo(member.filename)
            entry.file_size = member.file_size  # a size beyond 2 GiB takes another header
            with archive.open(member) as source, made.open(entry, "w") as target:
                shutil.copyfileobj(source, target, MEBIBYTE)


def _check_members(archive: zipfile.ZipFile, path: Path, what: str, budget: Budget) -> None:
    members = archive.infolist()
    stored = sum(member.file_size for member in members)
    inflated = sum(member.file_size for member in members if member.compress_type != zipfile.ZIP_STORED)
    size = path.stat().st_size
    if len(members) > budget.members:
        raise Unreadable(f"{path} is no {what}: it has {len(members)} files in it, and {budget.members} are the most")
    if stored - inflated > size:
        raise Unreadable(f"{path} is damaged: its members take {in_words(stored)}, and the file has {in_words(size)}")
    if stored > budget.stored or inflated > budget.inflated:
        limit = budget.stored if stored > budget.stored else budget.inflated
        raise Unreadable(
            f"{path} has {in_words(size)} and declares {in_words(stored)}; {in_words(limit)} are the most of a"
            " compressed one: write it without compression, or with less in it"
        )
    if len({member.filename for member in members}) < len(members):
        raise Unreadable(f"{path} is damaged: it has two members of one name")
