"""PyTorch's `.pth` and `.pt`: checksums and declared sizes first, then its restricted unpickler.

The unpickler builds tensors and plain containers only. `argparse.Namespace` and numpy scalars, which training scripts
leave beside the weights, are let through: they hold data and run nothing. What it would call is read first, see
calls.py: what it lets through can still ask for memory and time without end. PyTorch compares no checksum of the zip
archive that it writes, so that a flipped bit would load as another weight; here every member is compared, and PyTorch
reads a copy of them that has nothing else.
"""

from __future__ import annotations

import argparse
import io
import re
import tempfile
import warnings
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import torch

from edgesmith.errors import OutputError, Unreadable
from edgesmith.readers import calls
from edgesmith.readers.archives import DAMAGED, Budget, copy_plainly, ends_as_archive, open_archive
from edgesmith.readers.budget import GIBIBYTE, MEBIBYTE, check_file
from edgesmith.writing import FULL

LARGEST = 16 * GIBIBYTE
INFLATED = 256 * MEBIBYTE
"""PyTorch stores its members and compresses none; other tools compress small ones."""

ADVICE = "download it again, or ask for .safetensors"


def read_pickle(path: Path) -> Any:
    """Return what a PyTorch file holds, without running code from it.

    Raises:
        Unreadable: it is damaged, would run code, or declares more than the budget.
    """
    check_file(path, "PyTorch checkpoint", LARGEST)
    if not ends_as_archive(path) and not _begins_as_archive(path):
        with path.open("rb") as file:
            _check_calls([file] * _OLD_PICKLES, path)
        return _load(path, path)
    budget = Budget(stored=LARGEST, inflated=INFLATED)
    with open_archive(path, "PyTorch checkpoint", budget, ADVICE) as archive, _copy(archive, path) as copy:
        for member in archive.namelist():
            if member.rpartition("/")[2] == "data.pkl":
                _check_calls([io.BytesIO(archive.read(member))], path)
        return _load(copy, path)


_OLD_PICKLES = 5
"""In a file from before archives: a mark, a version, facts of the machine, the content, and keys of the storages that
follow. PyTorch makes the content's storages before it reads these keys, and leaves those that are not among them as
their memory was."""


def _check_calls(pickled: Iterable[BinaryIO], path: Path) -> None:
    """Raise Unreadable where a file's pickles, in their order, ask for what no checkpoint needs."""
    try:
        found = [calls.check(one) for one in pickled]
    except calls.Refused as error:
        if error.name:
            raise _refused(path, error.name) from error
        raise Unreadable(
            f"{path.name} is refused: its pickle would take far more time or memory than it has bytes; {ADVICE}"
        ) from error
    except (ValueError, EOFError, OverflowError) as error:
        raise _damaged(path) from error
    if len(found) == _OLD_PICKLES and not found[3].stored <= found[4].texts:
        raise Unreadable(f"{path.name} is damaged: it names weights that are not in it; {ADVICE}")


def _refused(path: Path, name: str) -> Unreadable:
    return Unreadable(
        f"{path.name} is refused: its pickle asks for {name}, which could run code or take memory without end."
        " Ask its author for a plain state dict or a .safetensors file"
    )


def _damaged(path: Path) -> Unreadable:
    return Unreadable(f"{path.name} is truncated, or no PyTorch checkpoint that holds only tensors; {ADVICE}")


def _begins_as_archive(path: Path) -> bool:
    """Return whether PyTorch would take a file for an archive."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\3\4"


def _copy(archive: zipfile.ZipFile, path: Path) -> BinaryIO:
    """Return a copy of an archive, on the disk, all of whose members have been compared with their checksums."""
    try:
        copy = tempfile.TemporaryFile(prefix="checkpoint-")  # noqa: SIM115  # whoever calls closes it
    except OSError as error:
        raise OutputError(f"cannot copy {path.name} to check it: {error.strerror or error}") from error
    try:
        copy_plainly(archive, copy)
    except DAMAGED as error:
        copy.close()
        if isinstance(error, OSError) and error.errno in FULL:
            raise OutputError(f"cannot copy {path.name} to check it: {error.strerror}") from error
        raise Unreadable(
            f"{path.name} is damaged: a part of it is not as it was written, by the archive's own checksum; {ADVICE}"
        ) from error
    copy.seek(0)
    return cast("BinaryIO", copy)


def _load(source: Path | BinaryIO, path: Path) -> Any:
    try:
        with torch.serialization.safe_globals(_inert()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of types that PyTorch is about to leave behind
            return torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises whatever a damaged pickle makes its constructors raise
        found = re.search(r"(?:GLOBAL|global:?|class|type) ['\"`]?([\w.]+\.[\w.]+)", str(error))
        unsafe = "weights_only" in str(error).lower() or "weights only" in str(error).lower()
        if unsafe and found and "zip" not in str(error).lower():
            raise _refused(path, found[1]) from error
        raise _damaged(path) from error


class _Number:
    """The type of a numpy scalar, by its name: numpy's own would take from a pickle how its memory is to be read."""

    def __init__(self, name: str, *_: object) -> None:
        if name not in ("b1", "f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"):
            raise ValueError(name)
        self.dtype = np.dtype(f"<{name}")

    def __setstate__(self, state: tuple[object, ...]) -> None:
        if state[1] == ">":
            self.dtype = self.dtype.newbyteorder(">")


def _scalar(kind: _Number, content: bytes) -> Any:
    (value,) = np.frombuffer(content, kind.dtype)
    return value


def _inert() -> list[Any]:
    """Return what pickles may name beside what PyTorch's own unpickler lets through."""
    return [argparse.Namespace, (_Number, "numpy.dtype"), *((_scalar, name) for name in calls.SCALARS)]
