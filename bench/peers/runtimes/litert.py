"""LiteRT's interpreter, whose kernels for floats are XNNPACK's; litert-torch makes its files of modules."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgesmith.bench.peers.peer import MODULE, Call, Peer, Source
from edgesmith.bench.peers.subject import load_module


def version() -> str:
    """The package's version."""
    from importlib.metadata import version as of

    import ai_edge_litert.interpreter  # noqa: F401  # it may be broken

    return of("ai-edge-litert")


def convert(source: Source, folder: Path) -> Path:
    """Have litert-torch write the module as it is written."""
    import litert_torch

    module, inputs = load_module(source.model)
    file = folder / "model.tflite"
    litert_torch.convert(module, inputs).export(str(file))
    return file


def in_order(names: Sequence[str]) -> list[str]:
    """Return names such as `args_10` and `output_2` by their numbers."""
    return sorted(names, key=lambda name: [int(number) for number in re.findall(r"\d+", name)])


def open_file(source: Source, file: Path, threads: int) -> Call:
    """A call of the file's only signature."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter: Any = Interpreter(model_path=str(file), num_threads=threads)
    runner = interpreter.get_signature_runner()
    names = in_order(list(runner.get_input_details()))
    outputs = in_order(list(runner.get_output_details()))

    def call(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        found = runner(**dict(zip(names, arrays, strict=True)))
        return [found[name] for name in outputs]

    return call


PEER = Peer(
    name="litert",
    title="LiteRT",
    packages=("ai-edge-litert", "litert-torch"),
    imports=("ai_edge_litert", "litert_torch"),
    reads=(MODULE,),
    version=version,
    open=open_file,
    convert=convert,
    place=__name__,
    needs="litert-torch 0.9 takes torch below 2.13, and edgesmith 2.13: they have no environment in common yet",
)
