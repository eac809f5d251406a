"""A compiled model, opened: what it says of itself, read without running it, and its calls on this machine.

The file is a shared object of ELF, 64 bits, least byte first. A section called `.edgesmith` holds the description.
"""

from __future__ import annotations

import contextlib
import ctypes
import platform
import struct
import tempfile
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from edgesmith.errors import Unreadable, Unsupported
from edgesmith.exporters.targets._tvm_plan import ALIGNMENT, BYTES
from edgesmith.exporters.targets._tvm_source import SECTION, identifier
from edgesmith.readers.budget import GIBIBYTE, read_bytes
from edgesmith.readers.documents import read_json
from edgesmith.readers.typed import as_dataclass

if TYPE_CHECKING:
    import numpy as np

LARGEST = 4 * GIBIBYTE
MACHINES = {62: "x86_64", 183: "aarch64", 243: "riscv64"}
"""ELF's numbers of processors (System V ABI, e_machine)."""

_LARGEST_RANK = 32


@dataclass(frozen=True)
class Described:
    """An input or an output of a library."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Description:
    """The facts that a library says of itself.

    Attributes:
        edgesmith: the version that wrote it.
        facts: of the model, in words.
        triple, cpu, features: of the processor that it was compiled for.
        memory_bytes: of working memory.
        operators: how often each occurs.
        macs: multiply-accumulates by what computes them, `kernels` and `tvm`.
        integer_macs: how many of them are of 8-bit integers.
        covered: operators by what computes them.
        calls: symbol and kind of each call of compiled code, in order.
    """

    name: str
    edgesmith: str
    triple: str
    cpu: str
    features: tuple[str, ...]
    memory_bytes: int
    inputs: tuple[Described, ...]
    outputs: tuple[Described, ...]
    operators: dict[str, int]
    macs: dict[str, int]
    covered: dict[str, dict[str, int]]
    facts: dict[str, str]
    calls: tuple[tuple[str, str], ...]
    integer_macs: int = 0


@dataclass(frozen=True)
class Library:
    """A library's file: its bytes' processor, and its description."""

    path: Path
    machine: str
    description: Description

    def cannot_run(self) -> str | None:
        """Return why this machine cannot run it, or None."""
        triple = self.description.triple
        if platform.machine() != self.machine:
            return f"it is for {triple}, and this machine has {platform.machine()}"
        if platform.system() != "Linux" or "android" in triple:
            return f"it is for {triple}, and this machine has {platform.system()}"
        missing = sorted(set(self.description.features) - features_here())
        return f"it needs {', '.join(missing[:3])}, which this processor does not have" if missing else None

    def load(self) -> Session:
        """Return the library, loaded, with working memory of its own."""
        return Session(self)


def read(path: Path) -> Library:
    """Return what a library's file says, without running anything of it. Raises Unsupported where it is damaged."""
    try:
        content = read_bytes(path, "compiled model", LARGEST)
        machine, section = _section(content, SECTION)
        found = read_json(section.rstrip(b"\0"), "description of a compiled model", advice="export it again")
        description = as_dataclass(Description, found, path.name)
        _check(description)
    except (Unreadable, ValueError, struct.error, IndexError) as error:
        raise Unsupported(f"{path.name} is no compiled model of edgesmith's, or damaged; export it again") from error
    return Library(path, machine, description)


def _section(content: bytes, wanted: str) -> tuple[str, bytes]:
    """Return the processor that a shared object is for, and the bytes of one of its sections.

    Raises:
        ValueError, struct.error, IndexError: it is none, or its sections do not lie in it.
    """
    if content[:6] != b"\x7fELF\x02\x01":
        raise ValueError("no ELF of 64 bits")
    (machine,) = struct.unpack_from("<H", content, 18)
    (start,) = struct.unpack_from("<Q", content, 40)
    size, count, names = struct.unpack_from("<HHH", content, 58)
    if size != 64 or start + size * count > len(content):
        raise ValueError("its table of sections is cut off")
    sections = []
    for i in range(count):
        name, kind, _, _, offset, length = struct.unpack_from("<IIQQQQ", content, start + i * size)
        if kind != _NO_BITS and offset + length > len(content):
            raise ValueError("a section is cut off")
        sections.append((name, offset, length))
    _, strings, _ = sections[names]
    for name, offset, length in sections:
        if content.startswith(wanted.encode() + b"\0", strings + name):
            return MACHINES.get(machine, f"processor {machine}"), content[offset : offset + length]
    raise ValueError(f"no section {wanted}")


_NO_BITS = 8  # a section without bytes in the file


def _check(description: Description) -> None:
    """Raise ValueError where a description's sizes are none."""
    for one in (*description.inputs, *description.outputs):
        if one.dtype not in BYTES or len(one.shape) > _LARGEST_RANK or any(size < 0 for size in one.shape):
            raise ValueError(f"{one.name} has no shape and type of a tensor")
    if not 0 < description.memory_bytes <= 64 * GIBIBYTE:
        raise ValueError("its working memory is no size")


def features_here() -> frozenset[str]:
    """Return what the system says that this processor has, by its own names."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("flags", "Features"):
                return frozenset(value.split())
    return frozenset()


class Session:
    """A library, loaded into this process from a copy, so that its file may be replaced; and its working memory."""

    def __init__(self, library: Library) -> None:
        import numpy as np

        self.description = library.description
        with tempfile.NamedTemporaryFile(prefix="edgesmith-", suffix=".so") as copy:
            copy.write(read_bytes(library.path, "compiled model", LARGEST))
            copy.flush()
            try:
                loaded = ctypes.CDLL(copy.name)
            except OSError as error:
                raise Unsupported(f"{library.path.name} cannot be loaded; export it again") from error
        prefix = identifier(self.description.name)
        self._call = loaded[f"{prefix}_run"]
        block = np.empty(self.description.memory_bytes + ALIGNMENT, np.uint8)
        self._memory = block[-block.ctypes.data % ALIGNMENT :]
        weakref.finalize(self, _unload, loaded._handle)

    def __call__(self, values: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return the outputs of one call, of their own types."""
        import numpy as np

        given = [
            np.ascontiguousarray(value, one.dtype).reshape(one.shape)
            for value, one in zip(values, self.description.inputs, strict=True)
        ]
        made = [np.empty(one.shape, one.dtype) for one in self.description.outputs]
        code = self._call(_pointers(given), _pointers(made), ctypes.c_void_p(self._memory.ctypes.data))
        if code:
            _failed(self.description.name, code)
        return made


def _pointers(arrays: Sequence[np.ndarray]) -> Any:
    return (ctypes.c_void_p * max(1, len(arrays)))(*[array.ctypes.data for array in arrays])


def _failed(name: str, code: int) -> NoReturn:
    raise Unsupported(f"the compiled {name} returned {code} where 0 was due; export it again")


def _unload(handle: int) -> None:
    import _ctypes

    _ctypes.dlclose(handle)
