"""Does TensorRT-RTX build an engine of every model, with no GPU? Sizes, layers and seconds, and what does not build.

    every model x fp32, fp16, bf16 x SM 8.6, 12.0      from one typed ONNX for both capabilities, and its SNR
    AFFNet and LMUFormer as their authors run them, by torch's own exporter

python -m edgesmith.bench.experiments.engines [model ...]
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path

import torch

import edgesmith
from edgesmith.bench.experiments.command import read_arguments
from edgesmith.bench.experiments.forms import input_of, model_of, write_plain
from edgesmith.bench.experiments.interleave import once
from edgesmith.bench.experiments.zoo import same_numbers
from edgesmith.errors import Unsupported
from edgesmith.exporters import targets
from edgesmith.exporters.figures import measure
from edgesmith.exporters.graph.capture import run
from edgesmith.exporters.inputs import seeded_inputs
from edgesmith.exporters.precision import table as precisions
from edgesmith.exporters.precision.policy import INPUTS
from edgesmith.exporters.precision.task import TypingTask
from edgesmith.exporters.targets import tensorrt
from edgesmith.exporters.targets.target import Request
from edgesmith.exporters.tensorrt import engine
from edgesmith.models import registry

TARGET = targets.get("tensorrt")
CAPABILITIES = ("8.6", "12.0")
PRECISIONS = ("fp32", "fp16", "bf16")
AUTHORS = ("affnet_et", "lmuformer")


@dataclass(frozen=True)
class Row:
    """One engine, or why there is none.

    Attributes:
        form: `edgesmith` or `authors`.
        islands: nodes that stay fp32 in fp16 or bf16.
        casts: in the typed ONNX.
        snr_db: of the typed ONNX in ONNX Runtime against the program in fp32; None in fp32.
        layers: of the network and of the engine.
        bytes: of the engine.
        seconds: to parse and build.
        failure: a sentence, empty where the engine was built.
    """

    model: str
    form: str
    precision: str
    compute_capability: str
    islands: int = 0
    casts: int = 0
    snr_db: float | None = None
    layers: tuple[int, int] = (0, 0)
    bytes: int = 0
    seconds: float = 0.0
    failure: str = ""


def build_model(
    name: str, folder: Path, chosen: Sequence[str] = PRECISIONS, input_size: tuple[int, int] | None = None
) -> Iterator[Row]:
    """Yield the engines of a model of the zoo, with random weights.

    Args:
        chosen: precisions.
        input_size: height and width of images; default: the published size.
    """
    _, program, _ = edgesmith.explain(name, TARGET.name, input_size=input_size)
    given = seeded_inputs(program.inputs)
    reference = [[y.numpy() for y in run(program, x)] for x in given]
    for precision in map(precisions.get, chosen):
        task = TypingTask(
            inputs=given[:INPUTS],
            calibration=None,
            thresholds=precision.limits(),
            is_step=False,
            types_programs=TARGET.types_programs,
            finds_islands=TARGET.finds_islands,
            largest_int8_weight=TARGET.largest_int8_weight,
            int8_is_dense=TARGET.int8_is_dense,
            lossy_operators=lambda _: {},
        )
        typed = precision.type(program, task)
        kept, path = typed.keep_fp32 or {}, folder / f"{name}.{precision.name}.onnx"
        TARGET.lower(typed.program, path, Request(name, precision, keep_fp32=kept))
        file, snr = TARGET.open(path), None
        if precision.is_half:
            outputs = file.run([[t.numpy() for t in x] for x in given])
            assert isinstance(outputs, list)  # ONNX Runtime is always here
            snr = measure(reference, outputs, 0.0).snr_db
        casts = file.count_operators().get("Cast", 0)
        for capability in CAPABILITIES:
            row = _build(path, name, "edgesmith", precision.name, capability)
            yield replace(row, islands=len(kept), casts=casts, snr_db=snr)


def build_authors_form(name: str, folder: Path) -> Iterator[Row]:
    """Yield what becomes of a model as its authors run it, exported by torch alone."""
    model, x = model_of(name), input_of(name)
    try:
        path = write_plain(same_numbers(model, x), x, folder / "plain.onnx")
    except torch.onnx.OnnxExporterError as error:
        lines = str(error.__cause__ or error).strip().splitlines()
        for capability in CAPABILITIES:
            yield Row(name, "authors", "fp32", capability, failure=f"torch's exporter: {lines[0]}")
        return
    for capability in CAPABILITIES:
        yield _build(path, name, "authors", "fp32", capability)


def _build(path: Path, name: str, form: str, precision: str, capability: str) -> Row:
    try:
        (content, report), ms = once(partial(tensorrt.build, path, capability))
    except Unsupported as error:
        return Row(name, form, precision, capability, failure=str(error))
    layers = engine.summarise(report)["layers"]
    both = layers["network"], layers["engine"]
    return Row(name, form, precision, capability, layers=both, bytes=len(content), seconds=ms / 1e3)


def main() -> None:
    """Print a line for each engine as it is built."""
    names = read_arguments(__doc__, listed="model").model or list(registry.all_models())
    print("| model | form | precision | SM | fp32 islands | casts | SNR, dB | layers, fused | MB | s | |", flush=True)
    print("|---|---|---|---|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        rows = (row for name in names for row in build_model(name, Path(scratch)))
        authors = (row for name in AUTHORS if name in names for row in build_authors_form(name, Path(scratch)))
        for row in chain(rows, authors):
            cells = [row.model, row.form, row.precision, row.compute_capability]
            if row.failure:
                cells += ["", "", "", "", "", "", f"not built: {row.failure}"]
            else:
                before, after = row.layers
                snr = "" if row.snr_db is None else f"{row.snr_db:.1f}"
                counts = [str(row.islands), str(row.casts), snr, f"{before} -> {after}"]
                cells += [*counts, f"{row.bytes / 1e6:.2f}", f"{row.seconds:.1f}", ""]
            print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
