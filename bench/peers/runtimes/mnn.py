"""MNN, by its converter's library and a session of its interpreter.

The converter's command line reports its use to a server of Alibaba's, and has pip install a package for that; the
function below it does neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgesmith.bench.peers.peer import Call, Peer, Refused, Source


def version() -> str:
    """The runtime's version."""
    import MNN

    return str(MNN.version())


def convert(source: Source, folder: Path) -> Path:
    """Have the converter write its file, and the names of inputs and outputs in order. Raises Refused."""
    import _tools  # MNN's own, beside its package
    from MNN import version as _  # noqa: F401  # its libraries, which _tools needs

    written = folder / "model.mnn"
    words = ("mnnconvert", "-f", "ONNX", "--modelFile", str(source.file), "--MNNModel", str(written), "--bizCode", "-")
    _tools.mnnconvert(list(words))
    if not written.is_file():
        raise Refused("its converter writes no file of it")
    return written


def open_file(source: Source, file: Path, threads: int) -> Call:
    """A call of a session in fp32."""
    import MNN

    interpreter = MNN.Interpreter(str(file))
    session = interpreter.createSession({"numThread": threads, "backend": "CPU", "precision": "high"})
    names = graph_names(Path(str(source.file)))
    inputs = [interpreter.getSessionInput(session, name) for name in names[0]]
    outputs = [interpreter.getSessionOutput(session, name) for name in names[1]]
    kinds = {"float32": MNN.Halide_Type_Float, "int32": MNN.Halide_Type_Int, "int64": MNN.Halide_Type_Int}

    def given(array: np.ndarray) -> Any:
        kind = kinds.get(str(array.dtype))
        if kind is None:
            raise Refused(f"its Python has no inputs of {array.dtype}")
        values = array.astype(np.int32) if array.dtype == np.int64 else np.ascontiguousarray(array)
        return MNN.Tensor(array.shape, kind, values, MNN.Tensor_DimensionType_Caffe)

    def call(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        for tensor, array in zip(inputs, arrays, strict=True):
            tensor.copyFrom(given(array))
        if interpreter.runSession(session) != 0:
            raise Refused("its session stops with an error")
        found = []
        for tensor in outputs:
            shape = tensor.getShape()
            host = MNN.Tensor(shape, MNN.Halide_Type_Float, np.zeros(shape, np.float32), MNN.Tensor_DimensionType_Caffe)
            tensor.copyToHostTensor(host)
            found.append(np.array(host.getNumpyData()).reshape(shape))
        return found

    return call


def graph_names(file: Path) -> tuple[list[str], list[str]]:
    """Return the names of an ONNX file's inputs and outputs, in order."""
    from edgesmith.readers.messages import read_onnx

    graph = read_onnx(file).graph
    constants = {one.name for one in graph.initializer}
    return [one.name for one in graph.input if one.name not in constants], [one.name for one in graph.output]


PEER = Peer(
    name="mnn",
    title="MNN",
    packages=("MNN",),
    imports=("MNN",),
    reads=("onnx",),
    version=version,
    open=open_file,
    convert=convert,
    place=__name__,
)
