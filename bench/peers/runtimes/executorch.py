"""ExecuTorch with the delegate to XNNPACK; what XNNPACK lacks runs in its portable kernels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgesmith.bench.peers.peer import MODULE, Call, Peer, Source
from edgesmith.bench.peers.subject import load_module


def version() -> str:
    """The package's version."""
    from importlib.metadata import version as of

    import executorch.runtime  # noqa: F401  # what opens programs; it may be broken

    return of("executorch")


def convert(source: Source, folder: Path) -> Path:
    """Export the module as it is written and lower it."""
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    module, inputs = load_module(source.model)
    with torch.no_grad():
        exported = torch.export.export(module, inputs)
    program = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()]).to_executorch()
    file = folder / "model.pte"
    file.write_bytes(program.buffer)
    return file


def open_program(source: Source, file: Path, threads: int) -> Call:
    """A call of the method `forward`."""
    import torch
    from executorch.extension.pybindings import portable_lib
    from executorch.runtime import Runtime

    # The pool has a thread for every core unless it is made anew; the function's name changed in 2025.
    for name in ("_threadpool_reset", "_unsafe_reset_threadpool"):
        if (reset := getattr(portable_lib, name, None)) is not None:
            reset(threads)
            break
    method = Runtime.get().load_program(str(file)).load_method("forward")

    def call(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [tensor.numpy() for tensor in method.execute([torch.from_numpy(array) for array in arrays])]

    return call


PEER = Peer(
    name="executorch",
    title="ExecuTorch, XNNPACK",
    packages=("executorch",),
    imports=("executorch",),
    reads=(MODULE,),
    version=version,
    open=open_program,
    convert=convert,
    place=__name__,
)
