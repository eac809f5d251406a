"""Blocks that mix by Fourier transforms: ours against torch's own export, in ONNX Runtime on one thread.

Both files of a block run in turn, round by round. Blocks are MODULE:FUNCTION, where the function returns a module and
an input; those of the tests are in tests/authors. Printed are the nodes of both files, how many of the plain one are
transforms (DFT), the median milliseconds of both and their ratio; a dash where torch has no export.

    export PYTHONPATH=tests
    python -m edgesmith.bench.experiments.spectral 25 authors.spectral:gfnet authors.spectral:s4d authors.spectral:hyena
"""

from __future__ import annotations

import importlib
import statistics
import tempfile
from pathlib import Path

import torch

import edgesmith
from edgesmith.bench.experiments.command import Table, read_arguments
from edgesmith.bench.experiments.forms import write_plain
from edgesmith.bench.experiments.interleave import interleaved, onnx_call


def operators_of(file: Path) -> list[str]:
    """Return the operator of each node of an ONNX file."""
    import onnx

    return [node.op_type for node in onnx.load(file, load_external_data=False).graph.node]


def compare(block: str, rounds: int, folder: Path) -> tuple[object, ...]:
    """Return a row of the table for one block."""
    module, _, function = block.partition(":")
    model, x = getattr(importlib.import_module(module), function)()
    model = model.eval()
    ours = edgesmith.export(model, "onnx", inputs=(x,), name=function, precision="fp32", out=folder / "ours").file
    nodes = operators_of(ours)
    plain = folder / "plain.onnx"
    try:
        write_plain(model, x, plain)
        calls = {"plain": onnx_call(plain, {"x": x.numpy()}), "ours": onnx_call(ours, {input_name(ours): x.numpy()})}
    except Exception as error:  # torch's exporter or ONNX Runtime has no such operator
        print(f"{function} has no plain export: {type(error).__name__} in {type(error).__module__.split('.')[0]}")
        return function, "-", len(nodes), "-", "-", "-"
    theirs = operators_of(plain)
    times = {name: statistics.median(values) for name, values in interleaved(calls, rounds).items()}
    ms = f"{times['plain']:.2f}, {times['ours']:.2f}"
    return function, len(theirs), len(nodes), theirs.count("DFT"), ms, times["plain"] / times["ours"]


def input_name(file: Path) -> str:
    """Return the name of a file's one input."""
    import onnx

    return str(onnx.load(file, load_external_data=False).graph.input[0].name)


def main() -> None:
    """Print one line for each block."""
    given = read_arguments(__doc__, listed="blocks", rounds=25)
    torch.set_num_threads(1)
    table = Table(
        ("block", 10), "nodes, plain", "nodes, ours", "DFT, plain", ("ms, plain and ours", 20), "plain over ours"
    )
    for block in given.blocks:
        with tempfile.TemporaryDirectory() as folder:
            table.add(*compare(block, given.rounds, Path(folder)))


if __name__ == "__main__":
    main()
