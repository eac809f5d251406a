"""Is the compiled EfficientViM faster in ONNX Runtime than what torch's exporter makes of it?

Our file and that of `torch.onnx.export(dynamo=True)` of the same model in eager mode run in one process, in turn, one
thread. A ratio is plain over ours, of each round; its median and quartiles over the rounds; above 1 ours is faster.

    python -m edgesmith.bench.experiments.state_mixer [rounds] [model ...]
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

import onnx

from edgesmith.bench.experiments.command import Table, read_arguments
from edgesmith.bench.experiments.forms import COSTS, input_of, model_of, program_of, write, write_plain
from edgesmith.bench.experiments.interleave import Samples, interleaved, onnx_call, ratio
from edgesmith.exporters.rewrites.order import rewrite

MODELS = ("efficientvim_m1",)


def measure(name: str, rounds: int) -> tuple[Samples, dict[str, int]]:
    """Time the plain export and ours. Returns milliseconds, and the number of nodes of each."""
    model, x = model_of(name), input_of(name)
    with tempfile.TemporaryDirectory() as folder:
        program, _ = rewrite(program_of(model, x), COSTS)
        files = {
            "plain": write_plain(model, x, Path(folder) / "plain.onnx", "x0"),
            "ours": write(program, Path(folder) / "ours.onnx"),
        }
        nodes = {form: len(onnx.load(str(path)).graph.node) for form, path in files.items()}
        return interleaved({form: onnx_call(path, {"x0": x.numpy()}) for form, path in files.items()}, rounds), nodes


def main() -> None:
    """Print one line for each model."""
    given = read_arguments(__doc__, rounds=100, listed="model")
    table = Table(("model", 16), "nodes plain", "ours", "plain ms", "ours ms", "plain over ours")
    for name in given.model or MODELS:
        samples, nodes = measure(name, given.rounds)
        times = [statistics.median(samples[form]) for form in ("plain", "ours")]
        table.add(name, nodes["plain"], nodes["ours"], *times, ratio(samples, "plain", "ours"))


if __name__ == "__main__":
    main()
