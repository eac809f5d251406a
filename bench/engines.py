"""Does TensorRT-RTX build an engine of every model, with no GPU? Sizes, layers and seconds, and what does not build.

    every model x fp32, fp16 x SM 8.6, 12.0      from one typed ONNX for both capabilities
    AFFNet and LMUFormer as their authors run them, by torch's own exporter

python -m edgesmith.bench.engines [model ...]
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

CAPABILITIES = ("8.6", "12.0")
PRECISIONS = ("fp32", "fp16")
AUTHORS = ("affnet_et", "lmuformer")


@dataclass(frozen=True)
class Row:
    """One engine, or why there is none.

    Attributes:
        form: `edgesmith` or `authors`.
        islands: nodes that stay fp32 in fp16.
        casts: in the typed ONNX.
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
    layers: tuple[int, int] = (0, 0)
    bytes: int = 0
    seconds: float = 0.0
    failure: str = ""


def build_model(name: str, folder: Path, precisions: Sequence[str] = PRECISIONS) -> Iterator[Row]:
    """Engines of a model of the zoo, with random weights."""
    from edgesmith.exporters import verify
    from edgesmith.exporters.islands import find_wide
    from edgesmith.exporters.pipeline import MIXED_INPUTS, explain
    from edgesmith.exporters.targets import Request, _typed_onnx

    _, program, _ = explain(name, "tensorrt")
    for precision in precisions:
        wide = {}
        if precision == "fp16":
            given = verify.seeded_inputs(program.inputs, None, False)[:MIXED_INPUTS]
            wide = find_wide(program, given, verify.THRESHOLDS["fp16"].snr_db)
        path = folder / f"{name}.{precision}.onnx"
        _typed_onnx.lower(program, path, Request(name, precision, wide=wide))
        casts = _typed_onnx.count_operators(path).get("Cast", 0)
        for capability in CAPABILITIES:
            yield _build(path, name, "edgesmith", precision, capability, len(wide), casts)


def build_authors_form(name: str, folder: Path) -> Iterator[Row]:
    """What becomes of a model as its authors run it, exported by torch alone."""
    import torch

    from edgesmith.bench.zoo import plain_export, same_numbers
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


def _build(path: Path, name: str, form: str, precision: str, capability: str, islands: int = 0, casts: int = 0) -> Row:
    from edgesmith.errors import Unsupported
    from edgesmith.exporters import engine
    from edgesmith.exporters.targets import tensorrt

    start = time.perf_counter()
    try:
        content, report = tensorrt.build(path, capability)
    except Unsupported as error:
        return Row(name, form, precision, capability, failure=str(error))
    seconds = time.perf_counter() - start
    layers = engine.summarise(report)["layers"]
    both = layers["network"], layers["engine"]
    return Row(name, form, precision, capability, islands, casts, both, len(content), seconds)


def main() -> None:
    """Print a line for each engine as it is built."""
    from edgesmith.models import registry

    names = sys.argv[1:] or list(registry.all_models())
    print("| model | form | precision | SM | fp32 islands | casts | layers, fused | MB | s | |", flush=True)
    print("|---|---|---|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        rows = (row for name in names for row in build_model(name, Path(scratch)))
        authors = (row for name in AUTHORS if name in names for row in build_authors_form(name, Path(scratch)))
        for row in chain(rows, authors):
            cells = [row.model, row.form, row.precision, row.compute_capability]
            if row.failure:
                cells += ["", "", "", "", "", f"not built: {row.failure}"]
            else:
                before, after = row.layers
                counts = [str(row.islands), str(row.casts), f"{before} -> {after}"]
                cells += [*counts, f"{row.bytes / 1e6:.2f}", f"{row.seconds:.1f}", ""]
            print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
