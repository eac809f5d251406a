"""Packages of one program each become one package of several functions, which share their weights.

A program points into a blob file (program.py has its layout), so functions share a weight where they point to the
same blob. Two blobs are one where type and bytes are the same, whatever the shapes: a convolution's [N, C, K] and a
matmul's [N, C K] are. (coremltools' save_multifunction shares constants of the same shape only, and takes programs
apart and writes them anew, which this does not.)
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edgesmith.exporters.mil.program import BLOB, Block, Constant, MlProgram, Stored, quiet, walk_all
from edgesmith.readers.messages import parse_message

SPECIFICATION = Path("Data/com.apple.CoreML/model.mlmodel")
WEIGHTS = "weights/weight.bin"
_AS_NAMED = f"@model_path/{WEIGHTS}"
_ALIGNMENT = 64


def read_specification(package: Path) -> Any:
    """Return the specification of a package as coremltools saves it, a protobuf `Model`."""
    with quiet():
        from coremltools.proto import Model_pb2

    model = Model_pb2.Model()
    return parse_message(package / SPECIFICATION, model, "Core ML model")


def join(packages: Mapping[str, Path], package: Path) -> Any:
    """Join the packages' programs, as coremltools saves them.

    Args:
        packages: by the name that their function gets; the first is the default one.
        package: the weights are written into, which may be one of those.

    Returns:
        The specification that belongs to the weights, a protobuf `Model`.
    """
    with quiet():
        from coremltools.proto import Model_pb2

    joined, weights = Model_pb2.Model(), _BlobFile()
    for name, one in packages.items():
        model = read_specification(one)
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
        file = (one / SPECIFICATION).parent / WEIGHTS
        stored = file.read_bytes() if file.is_file() else b""
        for value in _blobs(function):
            value.offset = weights.add(stored, value.offset)
        joined.mlProgram.functions[name].CopyFrom(function)
    written = (package / SPECIFICATION).parent / WEIGHTS
    written.parent.mkdir(parents=True, exist_ok=True)
    written.write_bytes(weights.file())
    return joined


def shared_bytes(program: MlProgram) -> int:
    """Return the bytes of weights that a package's functions would take besides what they take together."""
    read = [set(_weights(function.block)) for function in program.functions.values()]
    return sum(one.size for weights in read for one in weights) - sum(one.size for one in set().union(*read))


def _weights(block: Block) -> Iterator[Stored]:
    """Yield the weights that a block's operators read from files."""
    for operation in walk_all(block):
        for operand in (*operation.inputs.values(), *operation.attributes.values()):
            for one in operand if isinstance(operand, tuple) else (operand,):
                if isinstance(one, Constant) and one.stored is not None:
                    yield one.stored


def _blobs(function: Any) -> Iterator[Any]:
    """Yield each pointer of a function into its blob file, inner blocks included."""

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


class _BlobFile:
    """A blob file that keeps every blob once."""

    def __init__(self) -> None:
        self._content = bytearray(_ALIGNMENT)
        self._offsets: dict[tuple[int, int, bytes], int] = {}

    def add(self, stored: bytes, offset: int) -> int:
        """Return the offset, in this file, of the blob at an offset of another file."""
        sentinel, kind, size, start, padding = BLOB.unpack_from(stored, offset)
        key = (kind, padding, stored[start : start + size])
        if key not in self._offsets:
            here = len(self._content)
            self._offsets[key] = here
            self._content += BLOB.pack(sentinel, kind, size, here + _ALIGNMENT, padding).ljust(_ALIGNMENT, b"\0")
            self._content += key[2].ljust(-(-size // _ALIGNMENT) * _ALIGNMENT, b"\0")
        return self._offsets[key]

    def file(self) -> bytes:
        """Return the whole file."""
        return struct.pack("<II", len(self._offsets), 2).ljust(_ALIGNMENT, b"\0") + self._content[_ALIGNMENT:]
