"""Tensors: `.safetensors` and `.npz`.

A safetensors file begins with eight bytes, the length of a JSON header, and the header's offsets cover the rest without
a gap; all of that is checked by its own library. What that cannot know is here: the budget, and a NumPy type for each.
"""

from __future__ import annotations

import math
import tokenize
import zipfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgesmith.errors import Unreadable
from edgesmith.readers.archives import Budget, open_archive
from edgesmith.readers.budget import GIBIBYTE, in_words, read_bytes

if TYPE_CHECKING:
    from torch import Tensor

LARGEST = 16 * GIBIBYTE
LARGEST_INFLATED = GIBIBYTE
NPY = b"\x93NUMPY"
_OF_HEADERS = (ValueError, TypeError, KeyError, OverflowError, SyntaxError, EOFError, tokenize.TokenError, MemoryError)
"""What NumPy raises for a header that is no Python literal, or declares what it has not."""


def read_safetensors(path: Path, what: str, advice: str = "make it anew") -> dict[str, np.ndarray]:
    """Return the arrays of a safetensors file by name. Raises Unreadable."""
    from safetensors.numpy import load

    return _tensors(path, what, advice, load)


def read_safetensors_as_torch(path: Path, what: str, advice: str = "make it anew") -> dict[str, Tensor]:
    """Return the tensors of a safetensors file by name. Raises Unreadable."""
    from safetensors.torch import load

    return _tensors(path, what, advice, load)


def _tensors(path: Path, what: str, advice: str, load: Callable[[bytes], Mapping[str, Any]]) -> dict[str, Any]:
    from safetensors import SafetensorError

    content = read_bytes(path, what, LARGEST)
    try:
        return dict(load(content))
    except (SafetensorError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, OverflowError) as error:
        raise Unreadable(f"{path} is damaged or no {what}: it is no sound safetensors file; {advice}") from error


def read_npz(path: Path, names: Collection[str], what: str, advice: str) -> tuple[list[str], dict[str, np.ndarray]]:
    """Return the names of all arrays in an `.npz`, and those arrays that are named and there. No pickle is opened.

    Raises:
        Unreadable: it is none, a single array, or declares more than the budget; see archives.py.
    """
    with open_archive(path, what, Budget(inflated=LARGEST_INFLATED), advice) as archive:
        listed = {name.removesuffix(".npy"): name for name in archive.namelist()}
        found = {name: _array(archive, listed[name], path, advice) for name in names if name in listed}
    return list(listed), found


def _array(archive: zipfile.ZipFile, member: str, path: Path, advice: str) -> np.ndarray:
    """Return one array, whose header declares as many bytes as its member has."""
    has = archive.getinfo(member).file_size
    with archive.open(member) as file:
        try:
            if file.read(len(NPY)) != NPY:
                raise Unreadable(f"{member.removesuffix('.npy')} in {path} is a file that holds no array; {advice}")
            version = (file.read(1)[0], file.read(1)[0])
            shape, is_fortran, dtype = _header(file, version)
            count = math.prod(shape)
            size = count * dtype.itemsize
            if dtype.hasobject or min(shape, default=0) < 0 or file.tell() + size != has:
                declared = f"{member} declares {in_words(size)} in a file of {in_words(has)}"
                raise Unreadable(f"{path} is no .npz of plain arrays: {declared}; {advice}")
            flat = np.frombuffer(file.read(), dtype)
        except (*_OF_HEADERS, IndexError) as error:
            raise Unreadable(f"{path} is no .npz of plain arrays; {advice}") from error
    return flat.reshape(shape[::-1]).T if is_fortran else flat.reshape(shape)


def _header(file: Any, version: tuple[int, int]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    from numpy.lib import format as npy

    read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    if version not in read:
        raise ValueError(f"version {version}")
    return read[version](file)
