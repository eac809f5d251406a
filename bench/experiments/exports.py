"""Every model to every target: does it export, and how far is the file from PyTorch?

One line for each model and target, at one size of images, which models for one size alone do not take: ONNX in fp32,
Core ML, Core AI and a TensorRT engine in fp16, each verified as any export is. Printed are the least SNR of the natural
inputs, the largest error relative to the peak, the file's operators and the seconds it took; or why there is no file.
For a model with a head give MODEL:HEAD, such as casvit_xs:fpn. PAGE=FILE keeps the rows as a page, which is written
after each: those that are on it are not made again, unless their models are named with it. Several may write to it.

    python -m edgesmith.bench.experiments.exports 224
    python -m edgesmith.bench.experiments.exports 64 transnext_micro iformer_small casvit_xs:fpn
    python -m edgesmith.bench.experiments.exports 64 PAGE=docs/exports.md
"""

from __future__ import annotations

import itertools
import re
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import edgesmith
from edgesmith.bench.experiments.command import Table, read_arguments
from edgesmith.errors import EdgesmithError
from edgesmith.models import registry
from edgesmith.writing import write_whole

TARGETS: Mapping[str, dict[str, Any]] = {
    "onnx": {"precision": "fp32"},
    "coreml": {"precision": "fp16"},
    "coreai": {"precision": "fp16"},
    "tensorrt": {"precision": "fp16", "device": "rtx4070"},
}
"""Options of each target."""


def names() -> list[str]:
    """Return the models of the registry."""
    return list(registry.all_models())


def options_of(name: str, side: int) -> dict[str, Any]:
    """Return the options of a model, or of one with a head, for images of one size."""
    model, _, head = name.partition(":")
    reads = registry.get(model).input
    options: dict[str, Any] = {"model": model}
    if isinstance(reads, registry.ImageInput) and not reads.is_fixed:
        options["input_size"] = (side, side)
    return {**options, "segmentation": head} if head else options


def describe(steps: Sequence[Mapping[str, Any]]) -> tuple[object, object]:
    """Return the SNR and the error of a file, of the first runtime that executed it."""
    for step in steps:
        if step["step"] == "eager -> file" and "relative_error" in step:
            snr = step["snr_db"]
            return "exact" if snr is None else float(snr), f"{step['relative_error']:.1e}"
    return "not run", ""


def export(name: str, target: str, side: int, folder: str) -> tuple[object, ...]:
    """Return the figures of one export, or why there is none."""
    start = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            artifact = edgesmith.export(target=target, out=folder, **TARGETS[target], **options_of(name, side))
    except EdgesmithError as error:
        return "none", "", "", round(time.perf_counter() - start), str(error)
    manifest = artifact.manifest
    snr, error_of_peak = describe(manifest["verification"]["steps"])
    count = sum(manifest["operators"]["file"].values())
    kept = len(manifest.get("keep_fp32") or ())
    return snr, error_of_peak, count, round(time.perf_counter() - start), f"{kept} kept in fp32" if kept else ""


Figures = Sequence[Any]
"""SNR (`exact`, `not run`, or `none` where there is no file), error, operators, seconds, remark."""

_ROW = re.compile(r"\| (\S+) \| (\d+) \| (.*) \|")
_REFUSAL = re.compile(r"- (\S+), (\w+): (.*)")


def kept_rows(file: Path | None) -> dict[tuple[str, str, int], Figures]:
    """Return the figures on a page, by model, target and size; the seconds are not on it."""
    text = file.read_text(encoding="utf-8") if file is not None and file.exists() else ""
    whys = {(name, target): why for name, target, why in _REFUSAL.findall(text)}
    rows: dict[tuple[str, str, int], Figures] = {}
    for name, side, cells in _ROW.findall(text):
        for target, cell in zip(TARGETS, cells.split(" | "), strict=True):
            if cell == "refused":
                rows[name, target, int(side)] = ("none", "", "", "", whys[name, target])
            elif cell != "-":
                snr, error, count = cell.split(", ")
                rows[name, target, int(side)] = (snr.removesuffix(" dB"), error, int(count), "", "")
    return rows


def page(rows: Mapping[tuple[str, str, int], Figures], wanted: Sequence[str] = ()) -> str:
    """Return kept rows as Markdown: a line for each model and size, with the SNR and the error of each target.

    Args:
        rows: figures by model, target and size, as `kept_rows` returns them.
        wanted: models that should have rows; those that lack one are named.
    """
    pairs = list(dict.fromkeys((name, side) for name, _, side in rows))
    made = [pair for pair in pairs if all((pair[0], target, pair[1]) in rows for target in TARGETS)]
    refused = [key for key, figures in rows.items() if figures[0] == "none"]
    lines = [
        "# Every model on every target",
        "",
        "Written by `bench/experiments/exports.py`, which exports each and verifies the file. A cell has the least SNR",
        "of the natural inputs, the largest error relative to the output's peak, and the operators of the file.",
        "Weights are random. The size is that of images; models of series and tokens have their own. Rows are kept",
        "from run to run, so some are of earlier code.",
        "",
        f"With a file for every target: {len(made)} of {len(pairs)} rows, {len(refused)} exports refused.",
        "",
        "| model | size | " + " | ".join(f"{name} {options['precision']}" for name, options in TARGETS.items()) + " |",
        "|---|---:|" + "---:|" * len(TARGETS),
    ]
    for name, side in pairs:
        cells = [_cell(rows.get((name, target, side))) for target in TARGETS]
        lines.append(f"| {name} | {side} | " + " | ".join(cells) + " |")
    lines += ["", *(f"- {name}, {target}: {rows[name, target, side][4]}" for name, target, side in refused)]
    missing = [name for name in wanted if name not in {one for one, _ in pairs}]
    if missing:
        lines += ["", f"Not run yet: {', '.join(missing)}."]
    return "\n".join(lines).rstrip() + "\n"


def _cell(figures: Figures | None) -> str:
    """Return the figures of one export as a cell of the page."""
    if figures is None:
        return "-"
    snr, error, count, *_ = figures
    if snr == "none":
        return "refused"
    shown = f"{float(snr):.0f} dB" if snr not in ("exact", "not run") else snr
    return f"{shown}, {error}, {count}"


def main() -> None:
    """Print one line for each model and target."""
    given = read_arguments(__doc__, listed="models", side=224)
    torch.set_num_threads(1)
    file = next((Path(word.partition("=")[2]) for word in given.models if word.startswith("PAGE=")), None)
    named = [word for word in given.models if not word.startswith("PAGE=")]
    made: dict[tuple[str, str, int], Figures] = {}
    table = Table(("model", 28), ("target", 9), ("SNR dB", 8), ("error", 8), "operators", "seconds", "remark")
    for name, target in itertools.product(named or names(), TARGETS):
        key = name, target, given.side
        if not named and key in kept_rows(file):
            continue
        with tempfile.TemporaryDirectory() as folder:
            made[key] = export(name, target, given.side, folder)
        table.add(name, target, *made[key])
        if file is not None:  # another process may have written to it
            write_whole(file, page({**kept_rows(file), **made}, names()), "the page")


if __name__ == "__main__":
    main()
