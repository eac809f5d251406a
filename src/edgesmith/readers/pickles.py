"""PyTorch's `.pth` and `.pt`: checksums and declared sizes first, then its restricted unpickler.

The unpickler builds tensors and plain containers only. `argparse.Namespace` and numpy scalars, which training scripts
leave beside the weights, are let through: they hold data and run nothing. PyTorch compares no checksum of the zip
archive that it writes, so that a flipped bit would load as another weight; here every member is compared, and PyTorch
reads a copy of them that has nothing else.
"""

from __future__ import annotations

import argparse
import re
import tempfile
import zipfile
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import torch

from edgesmith.errors import OutputError, Unreadable
from edgesmith.readers.archives import DAMAGED, Budget, copy_plainly, open_archive
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
    if not zipfile.is_zipfile(path) and not _begins_as_archive(path):
        return _load(path, path)
    with open_archive(path, "PyTorch checkpoint", Budget(stored=LARGEST, inflated=INFLATED), ADVICE) as archive:
        copy = _copy(archive, path)
    with copy:
        return _load(copy, path)


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
        with torch.serialization.safe_globals(_inert()):
            return torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises whatever a damaged pickle makes its constructors raise
        found = re.search(r"(?:GLOBAL|global:?|class|type) ['\"`]?([\w.]+\.[\w.]+)", str(error))
        unsafe = "weights_only" in str(error).lower() or "weights only" in str(error).lower()
        if unsafe and found and "zip" not in str(error).lower():
            raise Unreadable(
                f"{path.name} is refused: its pickle asks for {found[1]}, which could run code."
                " Ask its author for a plain state dict or a .safetensors file"
            ) from error
        raise Unreadable(
            f"{path.name} is truncated, or no PyTorch checkpoint that holds only tensors; {ADVICE}"
        ) from error


def _inert() -> list[Any]:
    """Return what pickles may name beside what PyTorch's own unpickler lets through."""
    inert: list[Any] = [argparse.Namespace, np.dtype, np.ndarray]
    inert += [type(np.dtype(kind)) for kind in ("f8", "f4", "i8", "i4", "?")]
    scalar = np.float64(0).__reduce__()[0]  # the function that pickles of numpy scalars name
    return [*inert, scalar, (scalar, "numpy.core.multiarray.scalar")]
