"""Does TensorRT-RTX build an engine of every model, with no GPU? Sizes, layers and seconds, and what does not build.

    every model x fp32, fp16, bf16 x SM 8.6, 12.0      from one typed ONNX for both capabilities, and its SNR
    AFFNet and LMUFormer as their authors run them, by torch's own exporter

python -m edgesmith.bench.experiments.engines [model ...]
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

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


def build_model(name: str, folder: Path, precisions: Sequence[str] = PRECISIONS) -> Iterator[Row]:
    """Engines of a model of the zoo, with random weights."""
    from edgesmith.exporters.export import MIXED_INPUTS, explain
    from edgesmith.exporters.graph.capture import run
    from edgesmith.exporters.precision.half import KINDS
    from edgesmith.exporters.precision.islands import find_islands
    from edgesmith.exporters.targets import Request, _typed_onnx
    from edgesmith.exporters.verification import check as verify

    _, program, _ = explain(name, "tensorrt")
    given = verify.seeded_inputs(program.inputs, None, False)
    reference = [[y.numpy() for y in run(program, x)] for x in given]
    for precision in precisions:
        wide, snr = {}, None
        if precision in KINDS:
            wide = find_islands(program, given[:MIXED_INPUTS], verify.THRESHOLDS[precision].snr_db, KINDS[precision])
        path = folder / f"{name}.{precision}.onnx"
        _typed_onnx.lower(program, path, Request(name, precision, wide=wide))
        if precision in KINDS:
            outputs = _typed_onnx.run(path, [[t.numpy() for t in x] for x in given])
            assert isinstance(outputs, list)  # ONNX Runtime is always here
            snr = verify.measure(reference, outputs, 0.0).snr_db
        casts = _typed_onnx.count_operators(path).get("Cast", 0)
        for capability in CAPABILITIES:
            row = _build(path, name, "edgesmith", precision, capability)
            yield replace(row, islands=len(wide), casts=casts, snr_db=snr)


def build_authors_form(name: str, folder: Path) -> Iterator[Row]:
    """What becomes of a model as its authors run it, exported by torch alone."""
    import torch

    from edgesmith.bench.experiments.zoo import plain_export, same_numbers
    from edgesmith.models import registry
    from edgesmith.models.checkpoint import load

    spec = registry.get(name)
    model, _ = load(spec, None)
    x = torch.randn(1, *spec.input.shape)
    try:
        path = plain_export(same_numbers(model, x), x, folder)
    except torch.onnx.OnnxExporterError as error:
        lines = str(error.__cause__ or error).strip().splitlines()
        for capability in CAPABILITIES:
            yield Row(name, "authors", "fp32", capability, failure=f"torch's exporter: {lines[0]}")
        return
    for capability in CAPABILITIES:
        yield _build(path, name, "authors", "fp32", capability)


def _build(path: Path, name: str, form: str, precision: str, capability: str) -> Row:
    from edgesmith.errors import Unsupported
    from edgesmith.exporters.targets import tensorrt
    from edgesmith.exporters.tensorrt import engine

    start = time.perf_counter()
    try:
        content, report = tensorrt.build(path, capability)
    except Unsupported as error:
        return Row(name, form, precision, capability, failure=str(error))
    seconds = time.perf_counter() - start
    layers = engine.summarise(report)["layers"]
    both = layers["network"], layers["engine"]
    return Row(name, form, precision, capability, layers=both, bytes=len(content), seconds=seconds)


def main() -> None:
    """Print a line for each engine as it is built."""
    from edgesmith.models import registry

    names = sys.argv[1:] or list(registry.all_models())
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
