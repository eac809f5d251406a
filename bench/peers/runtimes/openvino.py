"""OpenVINO's plugin for CPUs, which reads ONNX files itself.

Its Python reports every import to Google Analytics, unless the package that does so cannot be imported.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgesmith.bench.peers.peer import Call, Peer, Source


def import_quietly() -> Any:
    """Import the package without what reports that."""
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # so Python says that it is not there
    import openvino

    return openvino


def version() -> str:
    """The runtime's version."""
    return str(import_quietly().get_version())


def open_file(source: Source, file: Path, threads: int) -> Call:
    """A call of an inference request, in fp32: on CPUs with bf16 it would compute in that by itself."""
    openvino = import_quietly()
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    model = openvino.Core().compile_model(str(file), "CPU", settings)
    request = model.create_infer_request()

    def call(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        found = request.infer(dict(enumerate(arrays)))
        return [found[i] for i in range(len(model.outputs))]

    return call


PEER = Peer(
    name="openvino",
    title="OpenVINO",
    packages=("openvino",),
    imports=("openvino",),
    reads=("onnx",),
    version=version,
    open=open_file,
    place=__name__,
)
