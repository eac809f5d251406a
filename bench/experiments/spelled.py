"""Ours against torch's own export of the authors' spelling, with the same weights, in ONNX Runtime on one thread.

Both run in turn in one process, one process after the other. A spelling is MODEL=MODULE:FUNCTION, where the function
makes the authors' form of a model of the zoo; those of the tests are in tests/authors. Printed are the median
milliseconds of both, the ratio of plain to ours, median and quartiles over processes, and the nodes of either file.

    export PYTHONPATH=tests
    python -m edgesmith.bench.experiments.spelled 25 12 transnext_micro=authors.transnext:micro
    python -m edgesmith.bench.experiments.spelled 25 12 iformer_small=authors.iformer:small
"""

from __future__ import annotations

import importlib
import tempfile
from pathlib import Path

import torch

import edgesmith
from edgesmith.bench.experiments.command import Table, read_arguments
from edgesmith.bench.experiments.forms import input_of, model_of, write_plain
from edgesmith.bench.experiments.interleave import (
    Samples,
    in_a_process,
    interleaved,
    medians,
    onnx_call,
    over_processes,
)
from edgesmith.errors import Unsupported

PLAIN, OURS = "plain.onnx", "ours"
SAME = 1e-4


def prepare(spelling: str, folder: Path) -> None:
    """Write both files into a folder. Raises Unsupported where the spelling has other numbers than the zoo's model."""
    name, _, made_by = spelling.partition("=")
    module, _, function = made_by.partition(":")
    zoo, x = model_of(name), input_of(name)
    theirs = getattr(importlib.import_module(module), function)().eval()
    theirs.load_state_dict(zoo.state_dict())
    with torch.no_grad():
        expected = zoo(x)
        error = float((theirs(x) - expected).abs().max() / expected.abs().max())
    if error > SAME:
        raise Unsupported(f"{made_by} is another model than {name}: its outputs differ by {error:.1e} of their peak")
    write_plain(theirs, x, folder / PLAIN)
    edgesmith.export(name, "onnx", out=folder / OURS)


def ours_in(folder: Path) -> Path:
    """Return the file of ours in a folder that `prepare` filled."""
    (found,) = (folder / OURS).rglob("*.onnx")
    return found


def nodes_of(file: Path) -> int:
    """Return the number of nodes of an ONNX file."""
    import onnx

    return len(onnx.load(file, load_external_data=False).graph.node)


def launch(name: str, folder: str, rounds: str) -> Samples:
    """Time one comparison in this process."""
    torch.set_num_threads(1)
    x = input_of(name).numpy()
    ours = onnx_call(ours_in(Path(folder)), {"image": x})
    return interleaved({"plain": onnx_call(Path(folder) / PLAIN, {"x": x}), "ours": ours}, int(rounds))


def main() -> None:
    """Print one line for each spelling."""
    given = read_arguments(__doc__, listed="spellings", rounds=25, launches=12)
    torch.set_num_threads(1)
    table = Table(("model", 20), ("ms", 32), ("nodes, plain and ours", 22), "plain over ours")
    for spelling in given.spellings:
        name = spelling.partition("=")[0]
        with tempfile.TemporaryDirectory() as folder:
            prepare(spelling, Path(folder))
            runs = [in_a_process(__spec__.name, name, folder, given.rounds) for _ in range(given.launches)]
            nodes = f"{nodes_of(Path(folder) / PLAIN)}, {nodes_of(ours_in(Path(folder)))}"
        figures = ", ".join(f"{key} {median:.2f}" for key, median in medians(runs).items())
        table.add(name, figures, nodes, over_processes(runs, "plain", "ours"))


if __name__ == "__main__":
    main()
