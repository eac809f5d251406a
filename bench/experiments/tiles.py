"""What do tiles of channels save on ONNX Runtime's CPU? Behind `Costs.fetch_gb_s`.

Each model is exported whole and in tiles, as the rewrite `tile_channels` chooses. Both run in turn in one process, one
thread: call after call of the same file, and each call after something else went through 64 MiB, as other work of an
application does. Several processes do that one after the other. A ratio is the whole over the tiles, median and
quartiles of the processes' medians.

python -m edgesmith.bench.experiments.tiles [rounds] [launches]
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from edgesmith.bench.experiments.interleave import (
    Samples,
    in_a_process,
    interleaved,
    medians,
    onnx_call,
    over_processes,
)

MODELS = (("affnet_et", 256), ("affnet_et", 384), ("affnet_t", 256), ("affnet", 256))
"""Models with maps so wide, and the sides of their images."""

CALLS = 5
"""Calls of a file in a row, of which one is timed."""

ELSEWHERE = 64 << 20
"""Bytes that something else goes through."""


def prepare(name: str, size: int, folder: Path) -> str:
    """Write both files. Returns what the rewrite says."""
    import torch

    from edgesmith.exporters.graph.capture import capture
    from edgesmith.exporters.rewrites.order import all_rewrites, rewrite
    from edgesmith.exporters.rewrites.tile_channels import tile_channels
    from edgesmith.exporters.targets import Request, onnx
    from edgesmith.models import registry
    from edgesmith.models.checkpoint import load

    spec = registry.get(name)
    model, _ = load(spec, None)
    program = capture(model, (torch.randn(1, 3, size, size),), ("image",))
    whole, _ = rewrite(program, replace(onnx.costs, fetch_gb_s=float("inf")), all_rewrites())
    tiled, (report,) = rewrite(whole, onnx.costs, (tile_channels,))
    for stem, form in (("whole", whole), ("tiles", tiled)):
        onnx.lower(form, folder / f"{stem}.onnx", Request(name, "fp32"))
    return ", ".join(note for _, note in report.applied) or "not tiled"


def measure(folder: Path, size: int, rounds: int) -> Samples:
    """Milliseconds of both, round by round: in a row, and after something else."""
    import numpy as np

    x = np.random.default_rng(0).standard_normal((1, 3, size, size), dtype=np.float32)
    elsewhere = np.zeros(ELSEWHERE, np.uint8)
    calls = {stem: onnx_call(folder / f"{stem}.onnx", {"image": x}) for stem in ("whole", "tiles")}

    def in_a_row(stem: str) -> None:
        for _ in range(CALLS):
            calls[stem]()

    def something_else() -> None:
        elsewhere[:] += 1

    row = interleaved({stem: lambda stem=stem: in_a_row(stem) for stem in calls}, rounds)  # type: ignore[misc]
    after = interleaved(
        {
            "other work": something_else,
            "whole, after other work": calls["whole"],
            "more of it": something_else,
            "tiles, after other work": calls["tiles"],
        },
        rounds,
    )
    return {stem: [time / CALLS for time in times] for stem, times in row.items()} | after


def main(arguments: Sequence[str] = tuple(sys.argv[1:])) -> None:
    """Print two lines for each model."""
    if "--launch" in arguments[:1]:
        _, where, side, count = arguments
        print(json.dumps(measure(Path(where), int(side), int(count))))
        return
    rounds, launches = (int(given) for given in (*arguments, *("20", "12")[len(arguments) :]))
    print(f"median ms, and the whole over the tiles, median and quartiles of {launches} processes")
    for name, size in MODELS:
        with tempfile.TemporaryDirectory() as folder:
            print(f"{name} at {size}: {prepare(name, size, Path(folder))}", flush=True)
            runs = [in_a_process("edgesmith.bench.experiments.tiles", folder, size, rounds) for _ in range(launches)]
        times = medians(runs)
        for when, suffix in (("in a row", ""), ("after other work", ", after other work")):
            whole, tiles = f"whole{suffix}", f"tiles{suffix}"
            low, middle, high = over_processes(runs, whole, tiles)
            figures = f"whole {times[whole]:.2f}, tiles {times[tiles]:.2f}"
            print(f"  {when:<18} {figures:<28} {middle:.3f} x   ({low:.3f} to {high:.3f})", flush=True)


if __name__ == "__main__":
    main()
