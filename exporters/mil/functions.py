"""Packages of one program each become one package of several functions, which share their weights.

A program points into a blob file (program.py has its layout), so functions share a weight where they point to the
same blob. Two blobs are one where type and bytes are the same, whatever the shapes: a convolution's [N, C, K] and a
product's [N, C K] are. (coremltools' save_multifunction shares constants of the same shape only, and takes programs
apart and writes them anew, which this does not.)
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edgesmith.exporters.mil.program import BLOB, quiet

SPECIFICATION = Path("Data/com.apple.CoreML/model.mlmodel")
WEIGHTS = "weights/weight.bin"
_AS_NAMED = f"@model_path/{WEIGHTS}"
_ALIGNMENT = 64


def join(packages: Mapping[str, Path], path: Path) -> None:
    """Write the packages' programs, as coremltools saves them, into one package.

    Args:
        packages: by the name that their function gets; the first is the default one.
        path: of the package's specification, `model.mlmodel`; its weights go beside it.
    """
    with quiet():
        from coremltools.proto import Model_pb2

    joined, weights = Model_pb2.Model(), _Weights()
    for name, package in packages.items():
        model = Model_pb2.Model()
        model.ParseFromString((package / SPECIFICATION).read_bytes())
        if not joined.description.functions:
            joined.mlProgram.CopyFrom(model.mlProgram)
            joined.mlProgram.functions.clear()
            joined.description.metadata.CopyFrom(model.description.metadata)
            joined.description.defaultFunctionName = name
        joined.specificationVersion = max(joined.specificationVersion, model.specificationVersion)
        described = joined.description.functions.add(name=name)
        for kind in ("input", "output", "state"):
            getattr(described, kind).extend(getattr(model.description, kind))
        (function,) = model.mlProgram.functions.values()
        file = (package / SPECIFICATION).parent / WEIGHTS
        stored = file.read_bytes() if file.is_file() else b""
        for value in _blobs(function):
            value.offset = weights.place(stored, value.offset)
        joined.mlProgram.functions[name].CopyFrom(function)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(joined.SerializeToString(deterministic=True))
    (path.parent / WEIGHTS).parent.mkdir(exist_ok=True)
    (path.parent / WEIGHTS).write_bytes(weights.file())


def shared_bytes(path: Path) -> int:
    """Bytes of weights that a package's functions would take besides what they take together."""
    with quiet():
        from coremltools.proto import Model_pb2

    model = Model_pb2.Model()
    model.ParseFromString((path / SPECIFICATION).read_bytes())
    stored = ((path / SPECIFICATION).parent / WEIGHTS).read_bytes()
    read = [{value.offset for value in _blobs(function)} for function in model.mlProgram.functions.values()]
    sizes: dict[int, int] = {offset: BLOB.unpack_from(stored, offset)[2] for offset in set().union(*read)}
    return sum(sizes[offset] for offsets in read for offset in offsets) - sum(sizes.values())


def _blobs(function: Any) -> Iterator[Any]:
    """Where a function points into its blob file, inner blocks included."""

    def within(block: Any) -> Iterator[Any]:
        for operation in block.operations:
            given = [argument.value for one in operation.inputs.values() for argument in one.arguments]
            for value in (*given, *operation.attributes.values()):
                if value.WhichOneof("value") == "blobFileValue":
                    assert value.blobFileValue.fileName == _AS_NAMED
                    yield value.blobFileValue
            for inner in operation.blocks:
                yield from within(inner)

    for block in function.block_specializations.values():
        yield from within(block)


class _Weights:
    """A blob file that keeps every blob once."""

    def __init__(self) -> None:
        self._content = bytearray(_ALIGNMENT)
        self._offsets: dict[tuple[int, int, bytes], int] = {}

    def place(self, stored: bytes, offset: int) -> int:
        """Where the blob at an offset of another file is in this one."""
        sentinel, kind, size, start, padding = BLOB.unpack_from(stored, offset)
        key = (kind, padding, stored[start : start + size])
        if key not in self._offsets:
            place = len(self._content)
            self._offsets[key] = place
            self._content += BLOB.pack(sentinel, kind, size, place + _ALIGNMENT, padding).ljust(_ALIGNMENT, b"\0")
            self._content += key[2].ljust(-(-size // _ALIGNMENT) * _ALIGNMENT, b"\0")
        return self._offsets[key]

    def file(self) -> bytes:
        """The whole file."""
        return struct.pack("<II", len(self._offsets), 2).ljust(_ALIGNMENT, b"\0") + self._content[_ALIGNMENT:]
