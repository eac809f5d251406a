"""ncnn, whose files pnnx makes: of a traced module, or of an ONNX file. It takes one sample, without a batch."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgesmith.bench.peers.peer import MODULE, Call, Peer, Refused, Source
from edgesmith.bench.peers.subject import load_module

LONGEST_S = 300

TYPES = {"float32": "f32", "float16": "f16", "float64": "f64", "int64": "i64", "int32": "i32", "bool": "i8"}
"""Pnnx's words for the types of inputs."""

HALF = ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_storage")


def version() -> str:
    """The runtime's version."""
    import ncnn

    return str(ncnn.__version__)


def convert(source: Source, folder: Path) -> Path:
    """Have pnnx write the two files. Raises Refused where it does not."""
    import torch

    module, inputs = load_module(source.model)
    if source.file is None:
        read = folder / "model.pt"
        with torch.no_grad():
            traced = torch.jit.trace(module, inputs, check_trace=False)  # type: ignore[no-untyped-call]  # torch's
            torch.jit.save(traced, str(read))
    else:
        read = folder / "model.onnx"
        read.write_bytes(Path(source.file).read_bytes())
    shapes = ",".join(f"[{','.join(map(str, x.shape))}]{TYPES[str(x.dtype).removeprefix('torch.')]}" for x in inputs)
    command = [str(_converter()), read.name, f"inputshape={shapes}", "fp16=0"]
    done = subprocess.run(command, cwd=folder, capture_output=True, timeout=LONGEST_S, check=False)  # noqa: S603  # pnnx's own
    written = folder / "model.ncnn.param"
    if done.returncode != 0 or not written.is_file():
        ended = f"signal {-done.returncode}" if done.returncode < 0 else f"code {done.returncode}"
        raise Refused(f"pnnx writes no file of it and ends with {ended}")
    return written


def _converter() -> Path:
    """Return the program in pnnx's package. Raises Refused where it is not in it."""
    found = importlib.util.find_spec("pnnx")
    places = [Path(sys.executable).parent / "pnnx"]
    if found is not None and found.origin is not None:
        places = [Path(found.origin).parent / "bin" / "pnnx", *places]
    for place in places:
        if place.is_file():
            return place
    raise Refused("pnnx's package has no program for this machine")


def open_net(source: Source, file: Path, threads: int) -> Call:
    """A call that extracts every output of a net."""
    import ncnn

    net = ncnn.Net()
    net.opt.num_threads = threads
    net.opt.use_vulkan_compute = False
    for name in HALF:
        setattr(net.opt, name, False)
    if net.load_param(str(file)) != 0 or net.load_model(str(file.with_suffix(".bin"))) != 0:
        raise Refused("it does not load the file that pnnx has written")

    def call(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        extractor = net.create_extractor()
        for i, array in enumerate(arrays):
            if array.ndim < 2 or array.shape[0] != 1:
                raise Refused(f"it takes one sample, and input {i} is {list(array.shape)}")
            extractor.input(f"in{i}", ncnn.Mat(np.ascontiguousarray(array[0])))
        found = [extractor.extract(f"out{i}") for i in range(source.outputs)]
        if any(code != 0 for code, _ in found):
            raise Refused("it stops with an error while it computes")
        return [np.array(value)[None] for _, value in found]

    return call


PEER = Peer(
    name="ncnn",
    title="ncnn",
    packages=("ncnn", "pnnx"),
    imports=("ncnn", "pnnx"),
    reads=(MODULE, "onnx"),
    version=version,
    open=open_net,
    convert=convert,
    place=__name__,
)
