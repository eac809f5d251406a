"""Models of timm and transformers that nobody here wrote: exported to ONNX and Core ML, and verified, a row each.

timm's models have random weights at a small input; those of transformers are made from small configurations. Rows are
kept in build/foreign.jsonl with a fingerprint of the compiler's code, where a run is resumed; the latest row of each
model counts, and --stale runs those again whose code is not today's. The table is written from them whole to
docs/foreign-models.md: the operators of PyTorch's graph, those that are left of it, those of the files, the largest
error of a file relative to its output's peak, and the seconds of a core that each export took.

    pip install --no-deps -c constraints.txt timm torchvision huggingface_hub PyYAML transformers tokenizers
    python -m edgesmith.bench.experiments.foreign [--stale] [models]
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import edgesmith
from edgesmith.bench.estimation.features import _import_torchvision
from edgesmith.errors import EdgesmithError
from edgesmith.readers.documents import read_lines
from edgesmith.writing import write_whole

ROWS = Path("build/foreign.jsonl")
TABLE = Path("docs/foreign-models.md")
TARGETS = ("onnx", "coreml")

TIMM: dict[str, int] = {
    "resnet18": 64,
    "mobilenetv3_small_050": 64,
    "efficientvim_m1": 128,
    "efficientnet_lite0": 64,
    "regnetx_002": 64,
    "ghostnet_050": 64,
    "repvgg_a0": 64,
    "mobileone_s0": 64,
    "fastvit_t8": 128,
    "mobilevit_xxs": 64,
    "edgenext_xx_small": 64,
    "convnext_atto": 64,
    "poolformerv2_s12": 64,
    "vit_tiny_patch16_224": 224,
    "deit_tiny_patch16_224": 224,
    "levit_128s": 224,
    "efficientformerv2_s0": 224,
    "repvit_m0_9": 64,
    "starnet_s050": 64,
    "tiny_vit_5m_224": 224,
    "mixnet_s": 64,
    "hardcorenas_a": 64,
    "lcnet_035": 64,
    "tinynet_e": 64,
    "shvit_s1": 128,
    "mambaout_femto": 64,
    "caformer_s18": 64,
    "xcit_nano_12_p16_224": 224,
    "pvt_v2_b0": 64,
    "gmixer_12_224": 224,
    "mnasnet_small": 64,
    "semnasnet_050": 64,
    "fbnetc_100": 64,
}
"""timm's models, and the height and width of the example."""

_SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
TRANSFORMERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("BertConfig", "BertModel", _SMALL),
    "distilbert": ("DistilBertConfig", "DistilBertModel", {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64}),
    "roberta": ("RobertaConfig", "RobertaModel", _SMALL),
    "albert": ("AlbertConfig", "AlbertModel", {**_SMALL, "embedding_size": 16}),
    "electra": ("ElectraConfig", "ElectraModel", {**_SMALL, "embedding_size": 16}),
    "mobilebert": ("MobileBertConfig", "MobileBertModel", {"num_hidden_layers": 2}),
    "squeezebert": ("SqueezeBertConfig", "SqueezeBertModel", {**_SMALL, "embedding_size": 32}),
    "fnet": ("FNetConfig", "FNetModel", {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64}),
    "vit": ("ViTConfig", "ViTModel", {**_SMALL, "image_size": 32, "patch_size": 8}),
    "deit": ("DeiTConfig", "DeiTModel", {**_SMALL, "image_size": 32, "patch_size": 8}),
    "segformer": ("SegformerConfig", "SegformerModel", {"hidden_sizes": [8, 16, 24, 32]}),
    "poolformer": ("PoolFormerConfig", "PoolFormerModel", {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}),
    "mobilevit": ("MobileViTConfig", "MobileViTModel", {"image_size": 64}),
    "convnext": ("ConvNextConfig", "ConvNextModel", {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}),
}
"""transformers' models: configuration, class, and what differs from its default."""


def of_timm(name: str, size: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A model of timm's, and an image."""
    _import_torchvision()
    import timm

    return timm.create_model(name), (torch.randn(1, 3, size, size),)


def of_transformers(config: str, model: str, options: dict[str, Any]) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A model of transformers', and an image or eight words."""
    _import_torchvision()
    import transformers

    settings = getattr(transformers, config)(**options)
    made: nn.Module = getattr(transformers, model)(settings)
    if hasattr(settings, "vocab_size"):
        return made, (torch.arange(1, 9)[None],)
    size = getattr(settings, "image_size", 64)
    return made, (torch.randn(1, 3, size, size),)


def enliven(model: nn.Module, inputs: tuple[Tensor, ...]) -> nn.Module:
    """Give batch norms the statistics of four random images, in place, and layers of zeros numbers. Returns the model.

    Untrained ones have mean 0 and variance 1, under which a deep model's output fades to numbers below 1e-38, where
    nothing can be compared.
    """
    norms = [one for one in model.modules() if isinstance(one, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # of one pass alone
    if norms and inputs[0].is_floating_point():
        model.train()
        with torch.no_grad():
            model(torch.randn(4, *inputs[0].shape[1:]))
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1 and not weight.any():  # a head that training begins with: its output shows nothing
                weight.normal_(std=0.02)
    return model.eval()


def sources() -> dict[str, Callable[[], tuple[nn.Module, tuple[Tensor, ...]]]]:
    """Every model by its name in the table, as a function that makes it."""
    others = {f"transformers {name}": lambda made=made: of_transformers(*made) for name, made in TRANSFORMERS.items()}
    timms = {f"timm {name}": lambda n=name, s=size: of_timm(n, s) for name, size in TIMM.items()}
    return {**others, **timms}


def row_of(name: str, make: Callable[[], tuple[nn.Module, tuple[Tensor, ...]]]) -> dict[str, Any]:
    """Export a model to all targets, and return its row; where one refuses it, with its sentence."""
    torch.manual_seed(0)
    model, inputs = make()
    model = enliven(model, inputs)
    row: dict[str, Any] = {"model": name, "code": fingerprint()}
    for target in TARGETS:
        started = time.process_time()
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                made = edgesmith.export(model, target, inputs=inputs, precision="fp32", out=Path(folder), name="model")
            except EdgesmithError as error:
                row[f"{target} refuses"] = str(error)
                continue
            except Exception as error:  # a fault of edgesmith's, which is a row and not the end of the run
                row[f"{target} refuses"] = f"a fault: {type(error).__name__}: {str(error).splitlines()[:1]}"
                continue
            operators = made.manifest["operators"]
            steps = made.manifest["verification"]["steps"]
        row["captured"], row["rewritten"] = sum(operators["captured"].values()), sum(operators["rewritten"].values())
        row[target], row[f"{target} core s"] = sum(operators["file"].values()), time.process_time() - started
        row[f"{target} error"] = max((step.get("relative_error") or 0.0 for step in steps), default=0.0)
    return row


@cache
def fingerprint() -> str:
    """Twelve digits that say which code of the compiler a row is of."""
    digest = hashlib.sha256()
    for room in ("exporters", "kernels"):
        for file in sorted(Path(room).rglob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def kept_rows() -> dict[str, dict[str, Any]]:
    """The latest row of each model of earlier runs."""
    rows = read_lines(ROWS, "the rows of earlier runs") if ROWS.exists() else []
    return {row["model"]: row for row in rows}


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """The table as Markdown, with what is missing from it."""
    known = [rows[name] for name in sources() if name in rows]
    current = sum(row.get("code") == fingerprint() for row in known)
    verified = [row for row in known if not any(f"{target} refuses" in row for target in TARGETS)]
    families = {row["model"].split()[1].split("_")[0] for row in verified if row["model"].startswith("timm")}
    lines = [
        "# Models that nobody here wrote",
        "",
        "Written by `make foreign` (`bench/experiments/foreign.py`), which exports each and verifies the file.",
        "Columns: operators of PyTorch's graph, what the rewrites leave of them, nodes of both files, the largest",
        "relative error of a verification, and seconds of a core for an export, on a machine with other work.",
        "Weights are random and images small, so that a row says what is exported and not how good it is.",
        "",
        f"Exported to both targets and verified: {len(verified)} of {len(known)} rows,"
        f" {sum(row['model'].startswith('timm') for row in verified)} of them timm's, of {len(families)} families."
        f" Of the code of this commit: {current} rows; the others are of earlier code.",
        "",
        "| model | captured | rewritten | ONNX nodes | error | s | Core ML operators | error | s |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in known:
        cells = [row["model"], row.get("captured", "-"), row.get("rewritten", "-")]
        for target in TARGETS:
            error, seconds = row.get(f"{target} error"), row.get(f"{target} core s")
            cells += [row.get(target, "refused"), "-" if error is None else f"{error:.0e}"]
            cells.append("-" if seconds is None else f"{seconds:.0f}")
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    lines += ["", *(f"- {r['model']}: {t}: {r[f'{t} refuses']}" for r in known for t in TARGETS if f"{t} refuses" in r)]
    missing = [name for name in sources() if name not in rows]
    if missing:
        lines += ["", f"Not run yet, of {len(sources())}: {', '.join(missing)}."]
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    """Run what has no row yet, and write the table."""
    given = sys.argv[1:]
    runs_stale, wanted = "--stale" in given, [one for one in given if one != "--stale"]
    rows = kept_rows()
    for name, make in sources().items():
        is_known = name in rows and not (runs_stale and rows[name].get("code") != fingerprint())
        if (name.split()[1] not in wanted) if wanted else is_known:
            continue
        rows[name] = row_of(name, make)
        ROWS.parent.mkdir(exist_ok=True)
        with ROWS.open("a", encoding="utf-8") as kept:
            kept.write(json.dumps(rows[name]) + "\n")
        print(rows[name], flush=True)
        write_whole(TABLE, table(rows), "the table")
    write_whole(TABLE, table(rows), "the table")


if __name__ == "__main__":
    main()
