"""ONNX Runtime on the CPU. Our `onnx` target's files run in it."""

from __future__ import annotations

from pathlib import Path

from edgesmith.bench.peers.peer import Call, Peer, Source
from edgesmith.bench.runner import session_onnxruntime, version_onnxruntime


def open_file(source: Source, file: Path, threads: int) -> Call:
    """A call of a session."""
    session = session_onnxruntime(str(file), threads, inter_op_num_threads=1)
    names = [value.name for value in session.get_inputs()]
    return lambda arrays: session.run(None, dict(zip(names, arrays, strict=True)))


PEER = Peer(
    name="onnxruntime",
    title="ONNX Runtime",
    packages=("onnxruntime",),
    imports=("onnxruntime",),
    reads=("onnx",),
    version=version_onnxruntime,
    open=open_file,
    place=__name__,
)
