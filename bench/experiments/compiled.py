"""Every model compiled for this machine's processor: how far is it from PyTorch?

One line for each model, at one size of images, which models for one size alone do not take, and one batch. Printed are
the least SNR and the largest error relative to the output's peak of the natural inputs, as an export verifies them, and
whether that is within 2e-6; the megabytes of the library and the seconds of the export; or why there is no file.
Without names: all models of the registry.

    python -m edgesmith.bench.experiments.compiled 64 4
    python -m edgesmith.bench.experiments.compiled 96 1 casvit_xs lmuformer
"""

from __future__ import annotations

import tempfile
import time
import warnings

import torch

import edgesmith
from edgesmith.bench.experiments.command import Table, read_arguments
from edgesmith.bench.experiments.exports import describe, names, options_of
from edgesmith.errors import EdgesmithError

BAR = 2e-6
"""Of the output's peak: between two programs in fp32 that are both right."""


def export(name: str, side: int, batch: int) -> tuple[object, ...]:
    """Return the figures of one model, or why there is no file."""
    start = time.perf_counter()
    try:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            artifact = edgesmith.export(target="tvm", batch=batch, out=folder, **options_of(name, side))
            size = artifact.file.stat().st_size / 1e6
    except EdgesmithError as error:
        return "none", "", "", round(time.perf_counter() - start), str(error)
    snr, distance = describe(artifact.manifest["verification"]["steps"])
    remark = "" if float(str(distance)) <= BAR else f"beyond {BAR:g}"
    return snr, distance, f"{size:.1f}", round(time.perf_counter() - start), remark


def main() -> None:
    """Print one line for each model."""
    given = read_arguments(__doc__, listed="models", side=64, batch=4)
    torch.set_num_threads(1)
    table = Table(("model", 28), ("SNR dB", 8), ("error", 8), ("MB", 6), "seconds", "remark")
    for name in given.models or names():
        table.add(name, *export(name, given.side, given.batch))


if __name__ == "__main__":
    main()
