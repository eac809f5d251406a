"""PyTorch itself, without a compiler: the module as it is written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgesmith.bench.peers.peer import MODULE, Call, Peer, Source
from edgesmith.bench.peers.subject import load_module


def version() -> str:
    """PyTorch's version."""
    import torch

    return str(torch.__version__)


def open_module(source: Source, file: Path, threads: int) -> Call:
    """A call of the module in inference mode."""
    import torch

    from edgesmith.exporters.graph.signature import read_results

    torch.set_num_threads(threads)
    module, _ = load_module(source.model)

    def call(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        with torch.inference_mode():
            outputs = module(*(torch.from_numpy(array) for array in arrays))
        return [tensor.numpy() for tensor in read_results(outputs).tensors]

    return call


PEER = Peer(
    name="eager",
    title="PyTorch eager",
    packages=("torch",),
    imports=("torch",),
    reads=(MODULE,),
    version=version,
    open=open_module,
    place=__name__,
)
