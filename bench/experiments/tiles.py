"""Savings by tiles of channels on ONNX Runtime's CPU. Behind `Costs.fetch_gb_s`.

Each model is exported whole and in tiles, as the rewrite `tile_channels` chooses. Both run in turn in one process, one
thread: call after call of the same file, and each call after something else went through 64 MiB, as other work of an
application does. Several processes do that one after the other. A ratio is the whole over the tiles, median and
quartiles of the processes' medians.

python -m edgesmith.bench.experiments.tiles [rounds] [launches]
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from edgesmith.bench.experiments.command import read_arguments
from edgesmith.bench.experiments.forms import COSTS, input_of, model_of, program_of, write
from edgesmith.bench.experiments.interleave import (
    Samples,
    in_a_process,
    interleaved,
    medians,
    onnx_call,
    over_processes,
)
from edgesmith.exporters.rewrites.order import rewrite
from edgesmith.exporters.rewrites.tile_channels import tile_channels

MODELS = (("affnet_et", 256), ("affnet_et", 384), ("affnet_t", 256), ("affnet", 256))
"""Models with maps so wide, and the sides of their images."""

CALLS = 5
"""Calls of a file in a row, whose mean is a sample."""

ELSEWHERE = 64 << 20
"""Bytes that something else goes through."""


def prepare(name: str, size: int, folder: Path) -> str:
    """Write both files. Returns what the rewrite says."""
    program = program_of(model_of(name), input_of(name, (3, size, size)))
    whole, _ = rewrite(program, replace(COSTS, fetch_gb_s=float("inf")))
    tiled, (report,) = rewrite(whole, COSTS, (tile_channels,))
    write(whole, folder / "whole.onnx")
    write(tiled, folder / "tiles.onnx")
    return ", ".join(note for _, note in report.applied) or "not tiled"


def launch(where: str, side: str, rounds: str) -> Samples:
    """Time both files in this process: in a row, and after something else."""
    size, folder = int(side), Path(where)
    x = np.random.default_rng(0).standard_normal((1, 3, size, size), dtype=np.float32)
    elsewhere = np.zeros(ELSEWHERE, np.uint8)
    calls = {stem: onnx_call(folder / f"{stem}.onnx", {"x0": x}) for stem in ("whole", "tiles")}

    def something_else() -> None:
        elsewhere[:] += 1

    row = interleaved(calls, int(rounds), batch=CALLS)
    after = interleaved(
        {
            "other work": something_else,
            "whole, after other work": calls["whole"],
            "more of it": something_else,
            "tiles, after other work": calls["tiles"],
        },
        int(rounds),
    )
    return row | after


def main() -> None:
    """Print two lines for each model."""
    given = read_arguments(__doc__, rounds=20, launches=12)
    print(f"median ms, and the whole over the tiles, median and quartiles of {given.launches} processes")
    for name, size in MODELS:
        with tempfile.TemporaryDirectory() as folder:
            print(f"{name} at {size}: {prepare(name, size, Path(folder))}", flush=True)
            runs = [in_a_process(__spec__.name, folder, size, given.rounds) for _ in range(given.launches)]
        times = medians(runs)
        for when, suffix in (("in a row", ""), ("after other work", ", after other work")):
            whole, tiles = f"whole{suffix}", f"tiles{suffix}"
            figures = f"whole {times[whole]:.2f}, tiles {times[tiles]:.2f}"
            print(f"  {when:<18} {figures:<28} {over_processes(runs, whole, tiles)}", flush=True)


if __name__ == "__main__":
    main()
