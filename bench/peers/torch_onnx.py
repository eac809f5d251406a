"""PyTorch's own ONNX exporter, which writes the form as written for runtimes that take no modules."""

from __future__ import annotations

from pathlib import Path

from edgesmith.bench.peers.peer import MODULE, Call, Peer, Refused, Source
from edgesmith.bench.peers.subject import load_module


def version() -> str:
    """PyTorch's version."""
    import torch

    return str(torch.__version__)


def convert(source: Source, folder: Path) -> Path:
    """Write a module as ONNX: by way of torch.export, else by the older exporter's tracing."""
    import torch

    module, inputs = load_module(source.model)
    file = folder / "as_written.onnx"
    with torch.no_grad():
        try:
            torch.onnx.export(module, inputs, str(file), dynamo=True, external_data=False, verbose=False)
        except Exception:
            torch.onnx.export(module, inputs, str(file), dynamo=False, opset_version=17)
    return file


def run_nothing(source: Source, file: Path, threads: int) -> Call:
    """Refuse: it writes files and runs none."""
    raise Refused("it runs no files")


PEER = Peer(
    name="torch_onnx",
    title="PyTorch's ONNX exporter",
    packages=("torch",),
    imports=("torch",),
    reads=(MODULE,),
    version=version,
    open=run_nothing,
    convert=convert,
    place=__name__,
)
