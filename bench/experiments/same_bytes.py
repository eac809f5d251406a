"""Do two commits write the same artifacts? Every file's sha256, for the zoo on each target, before and after.

    python -m edgesmith.bench.experiments.same_bytes write before.json --root OTHER_CHECKOUT
    python -m edgesmith.bench.experiments.same_bytes write after.json
    python -m edgesmith.bench.experiments.same_bytes compare before.json after.json

`write` exports VARIANTS with the edgesmith of a checkout (`make links` has to have run there), one process for each
model, and notes the digest of every file that is published, or the sentence of a refusal. A refactoring is proven by an
empty comparison; what it changes on purpose has to be listed with its reason.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MODELS = (
    *("affnet_et", "affnet_t", "affnet"),
    *("casvit_xs", "casvit_s", "casvit_m", "casvit_t"),
    *("efficientvim_m1", "efficientvim_m2", "efficientvim_m3", "efficientvim_m4"),
    *("lmuformer", "spiking_lmuformer", "lmuformer_psmnist", "spiking_lmuformer_psmnist"),
)
BOARD = "jetson-orin-nano"
FORMATS: tuple[dict[str, Any], ...] = (
    {"target": "onnx", "precision": "fp32"},
    {"target": "onnx", "precision": "fp16"},
    {"target": "coreml", "precision": "fp16"},
    {"target": "tensorrt", "precision": "fp16", "device": BOARD},
)
STREAMING: dict[str, tuple[dict[str, Any], ...]] = {
    "lmuformer": (
        {"target": "onnx", "streaming": True},
        {"target": "coreml", "streaming": True, "with_sequence": True, "deployment_target": "iOS18"},
        {"target": "tensorrt", "precision": "fp16", "device": BOARD, "streaming": True},
    ),
    "spiking_lmuformer": ({"target": "onnx", "streaming": True},),
}
OTHERS: dict[str, tuple[dict[str, Any], ...]] = {
    "casvit_xs": (
        {"target": "onnx", "precision": "int8"},
        {"target": "onnx", "dynamic_batch": True},
        {"target": "onnx", "features": True},
        {"target": "coreml", "precision": "mixed"},
        {"target": "coreml", "image_input": True, "labels": [f"class {i}" for i in range(1000)]},
        {"target": "coreai", "precision": "fp16"},
        {"target": "tensorrt", "precision": "bf16", "device": BOARD},
        {"target": "tensorrt", "precision": "fp16", "device": "rtx3080"},
    ),
    "efficientvim_m1": ({"target": "onnx", "input_size": (256, 192)}, {"target": "coreml", "precision": "fp32"}),
    "lmuformer": ({"target": "coreml", "precision": "fp16", "streaming": True}, {"target": "coreai"}),
    "affnet_et": ({"target": "tensorrt", "precision": "int8", "device": BOARD},),
}
"""More than the zoo on each target: every precision, product and option once. Left out with --zoo-only."""


def variants(model: str, zoo_only: bool) -> list[dict[str, Any]]:
    """Return the options of each export of a model."""
    return [*FORMATS, *STREAMING.get(model, ()), *(() if zoo_only else OTHERS.get(model, ()))]


def label(model: str, options: dict[str, Any]) -> str:
    """Return a name for a variant, stable over commits."""
    words = {key: len(value) if key == "labels" else value for key, value in options.items()}
    return " ".join([model, *(f"{key}={value}" for key, value in words.items())])


RENAMED = {"wide": "keep_fp32", "mended": "legalized"}
"""Keys of records that a newer schema calls otherwise."""

ASIDE = frozenset({"schema", "files"})
"""Keys that are left out of a record's second digest: schema numbers, and digests of files compared themselves."""


def digests(folder: Path) -> dict[str, str]:
    """Return the sha256 of every file below a folder by its path; of records a second one, but for their schema."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name, content = path.relative_to(folder).as_posix(), path.read_bytes()
        found[name] = hashlib.sha256(content).hexdigest()
        if path.parent == folder and path.suffix == ".json":
            text = json.dumps(without_schema(json.loads(content)))
            found[f"{name}, but for its schema"] = hashlib.sha256(text.encode()).hexdigest()
    return found


def without_schema(value: Any) -> Any:
    """Return a record's content, in its order, as far as another schema number does not change it."""
    if isinstance(value, dict):
        return {RENAMED.get(key, key): without_schema(one) for key, one in value.items() if key not in ASIDE}
    return [without_schema(one) for one in value] if isinstance(value, list) else value


def export_model(model: str, zoo_only: bool, keep: Path | None) -> dict[str, Any]:
    """Return, for each variant of a model, the digests of its files or the sentence of its refusal."""
    import warnings

    import edgesmith
    from edgesmith.errors import EdgesmithError

    found: dict[str, Any] = {}
    for options in variants(model, zoo_only):
        name = label(model, options)
        with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            out = Path(scratch) if keep is None else keep / name.replace(" ", "_").replace("/", "-")
            try:
                # Half precision flips spikes: such a file is compared too, and its kit is refused.
                artifact = edgesmith.export(model, out=out, allow_inaccurate=True, **options)
                found[name] = digests(artifact.path)
            except EdgesmithError as error:
                found[name] = {"refused": f"{type(error).__name__}: {str(error).partition(';')[0]}"}
        print(f"{name}: {len(found[name])} files", file=sys.stderr, flush=True)
    return found


def write(out: Path, root: Path | None, zoo_only: bool, models: Sequence[str], keep: Path | None) -> None:
    """Export every variant in processes of their own and write the digests as JSON."""
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    if root is not None:
        environment["PYTHONPATH"] = str(root.resolve() / ".links")
    found: dict[str, Any] = {}
    for model in models:
        call = [sys.executable, str(Path(__file__).resolve()), "one", model]
        call += ["--zoo-only"] if zoo_only else []
        call += ["--keep", str(keep)] if keep else []
        done = subprocess.run(call, env=environment, stdout=subprocess.PIPE, text=True, check=True)  # noqa: S603
        found |= json.loads(done.stdout)
        out.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Return a line for each file that differs between two digests."""
    lines = []
    for name in sorted({*before, *after}):
        old, new = before.get(name, {}), after.get(name, {})
        for path in sorted({*old, *new}):
            if old.get(path) != new.get(path):
                verb = "added" if path not in old else "missing" if path not in new else "differs"
                lines.append(f"{name}: {path} {verb}")
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Write or compare digests. Returns the exit code: 1 where something differs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    writes = commands.add_parser("write", help="export everything and note the digests")
    writes.add_argument("out", type=Path)
    writes.add_argument("--root", type=Path, help="a checkout whose edgesmith is used instead of the installed one")
    writes.add_argument("--models", nargs="+", default=list(MODELS))
    compares = commands.add_parser("compare", help="list the files that differ")
    compares.add_argument("before", type=Path)
    compares.add_argument("after", type=Path)
    one = commands.add_parser("one")
    one.add_argument("model")
    for command in (writes, one):
        command.add_argument("--zoo-only", action="store_true")
        command.add_argument("--keep", type=Path, help="keep the artifacts in this folder")
    given = parser.parse_args(arguments)
    if given.command == "one":
        print(json.dumps(export_model(given.model, given.zoo_only, given.keep)))
        return 0
    if given.command == "write":
        write(given.out, given.root, given.zoo_only, given.models, given.keep)
        return 0
    old, new = (json.loads(path.read_text(encoding="utf-8")) for path in (given.before, given.after))
    both = [name for name in old if name in new]
    lines = differences({name: old[name] for name in both}, {name: new[name] for name in both})
    print("\n".join(lines) or f"{sum(len(new[name]) for name in both)} files of {len(both)} variants are the same")
    if alone := sorted({*old} ^ {*new}):
        print(f"only in one of the two: {', '.join(alone)}", file=sys.stderr)
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
