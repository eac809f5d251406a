"""Distances from float64 of whole models' ONNX files, beside those of PyTorch, on seeds of weights and on inputs.

Weights follow from a seed and their names, by the rule of the parity fixtures; inputs are normal numbers. Printed is
the largest distance over the inputs, relative to the peak of the same model in float64: of the file as ONNX Runtime
runs it on one thread, of PyTorch, and the first over the second. A model of many cancelling sums changes by half with
the way single additions round, so that one seed alone says little.

A folder given as KEPT=FOLDER keeps the artifacts, FOLDER/SEED/NAME-onnx-fp32, and takes those that are there. With
BEFORE=FOLDER, a folder that an older version has kept, the last column is the time of seed 0 over that of its file: the
two in turn, `ROUNDS` times in each of `PROCESSES`; the median of the processes, and their quartiles.

    PYTHONPATH=tests python -m edgesmith.bench.experiments.distances 3 4 affnet_et affnet_t affnet
    PYTHONPATH=tests python -m edgesmith.bench.experiments.distances 3 4 affnet_et BEFORE=build/before
"""

from __future__ import annotations

import copy
import importlib
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor, nn

import edgesmith
from edgesmith.bench.experiments.command import Table, read_arguments
from edgesmith.bench.experiments.forms import model_of
from edgesmith.bench.experiments.interleave import Samples, in_a_process, interleaved, onnx_call, over_processes
from edgesmith.bench.experiments.rounding import distance
from edgesmith.models import registry

GAIN = 1.5
"""Variance of a weight, times its fan-in, as in AFFNet's fixture."""

ROUNDS, PROCESSES = 100, 9


def weights_of(model: nn.Module, seed: int) -> Mapping[str, Tensor]:
    """Return a model's weights by the parity rule."""
    rule = importlib.import_module("fixtures.checkpoint").tensor
    return {
        name: rule(name, tuple(x.shape), str(x.dtype).removeprefix("torch."), seed, GAIN)
        for name, x in model.state_dict().items()
    }


def inputs_of(name: str, count: int) -> list[Tensor]:
    """Return normal numbers, [1, *shape] each."""
    shape = (1, *registry.get(name).input.shape)
    drawn = (np.random.default_rng(1000 + k).standard_normal(shape) for k in range(count))
    return [torch.from_numpy(x.astype(np.float32)) for x in drawn]


def file_of(name: str, seed: int, folder: Path) -> Path:
    """Return where a folder keeps the file of a model and a seed."""
    return folder / str(seed) / f"{name}-onnx-fp32" / f"{name}.onnx"


def launch(name: str, before: str, now: str) -> Samples:
    """Time two files of a model in turn, in this process."""
    feeds = {registry.get(name).input.name: inputs_of(name, 1)[0].numpy()}
    return interleaved({"before": onnx_call(Path(before), feeds), "now": onnx_call(Path(now), feeds)}, ROUNDS)


def time_over(name: str, before: Path, now: Path) -> str:
    """Return the time of a file over that of an older one."""
    files = file_of(name, 0, before), file_of(name, 0, now)
    return str(over_processes([in_a_process(__spec__.name, name, *files) for _ in range(PROCESSES)], "now", "before"))


def measure(name: str, seed: int, count: int, folder: Path) -> tuple[float, float, int]:
    """Return the largest distance of the file and of PyTorch, and the number of the file's operators."""
    model = model_of(name)
    model.load_state_dict(weights_of(model, seed))
    file = file_of(name, seed, folder)
    if not file.is_file():
        weights = folder / f"{name}-{seed}.pth"
        torch.save(model.state_dict(), weights)
        edgesmith.export(name, "onnx", weights=weights, out=file.parents[1])
        weights.unlink()
    session_input = registry.get(name).input.name
    exactly = copy.deepcopy(model).double()
    of_file, of_torch = 0.0, 0.0
    for x in inputs_of(name, count):
        with torch.no_grad():
            exact, eager = exactly(x.double()).numpy(), model(x).numpy()
        outputs = onnx_call(file, {session_input: x.numpy()})()
        of_file = max(of_file, distance(exact, np.asarray(outputs[0])))  # type: ignore[index]  # of a session
        of_torch = max(of_torch, distance(exact, eager))
    return of_file, of_torch, len(onnx.load(file, load_external_data=False).graph.node)


def main() -> None:
    """Print a line for each model and seed."""
    given = read_arguments(__doc__, listed="names", seeds=3, inputs=4)
    torch.set_num_threads(1)
    told = dict(word.split("=", 1) for word in given.names if "=" in word)
    names = [word for word in given.names if "=" not in word] or ["affnet_et"]
    columns = ("model", 20), "seed", ("file", 7), ("torch", 7), "file over torch", "operators", "time over before's"
    table = Table(*columns)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(told.get("KEPT", temporary))
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            for seed in range(given.seeds):
                file, eager, operators = measure(name, seed, given.inputs, folder)
                timed = time_over(name, Path(told["BEFORE"]), folder) if "BEFORE" in told and seed == 0 else ""
                table.add(name, seed, f"{file:.1e}", f"{eager:.1e}", file / eager, operators, timed)


if __name__ == "__main__":
    main()
