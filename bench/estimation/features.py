"""Work of the published models' operators, counted once: data/features-TARGET.json, which latencies are fitted with.

For every row of data/published.csv that is fitted on or held against the fit (rows.py), its model is built without
weights, captured and rewritten as an export does, lowered in half precision to what such a device runs (Core ML for
phones of Apple, ONNX for the rest), and its file counted by work.py. Equal operators are one entry:

    [kind, fused, macs, weight bytes, read bytes, written bytes, times]

timm has the models, torchvision a few more; they are needed here only:

pip install --no-deps -c constraints.txt timm torchvision huggingface_hub PyYAML
python -m edgesmith.bench.estimation.features [target ...]        # adds what is missing
"""

from __future__ import annotations

import importlib
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgesmith.bench.estimation.rows import FELL_BACK, FORMATS, file_of, key, read_rows
from edgesmith.bench.estimation.work import read_work
from edgesmith.errors import Unsupported
from edgesmith.exporters import targets
from edgesmith.exporters.graph.capture import capture
from edgesmith.exporters.precision import table as precisions
from edgesmith.exporters.precision.half import half
from edgesmith.exporters.rewrites.order import rewrite
from edgesmith.exporters.targets.target import Request
from edgesmith.readers.documents import read_json
from edgesmith.writing import write_whole

BACKBONE = 512
"""Height and width of what backbones of detectors read."""


def main() -> None:
    """Count what is missing, and write a file anew after each of its models."""
    rows = [row for why_not in ("", FELL_BACK) for row in read_rows() if row.why_not == why_not]
    wanted = list(dict.fromkeys((FORMATS[row.fit], key(row)) for row in rows if row.model_of_timm and row.size))
    for target in sys.argv[1:] or sorted(set(FORMATS.values())):
        add_missing(target, [name for of, name in wanted if of == target])


def add_missing(target: str, names: Sequence[str]) -> None:
    """Count the models that a target's file lacks, and leave out those that are no longer wanted."""
    path = file_of(target)
    before = read_json(path, "table of counted models") if path.exists() else {}
    known = {name: before[name] for name in names if name in before}
    for name in names:
        if name in known:
            continue
        try:
            known[name] = count(name, target)
        except Exception as error:
            # One model must not cost the others; it is said here, and its rows are not used.
            print(f"{name}, {target}: {type(error).__name__}: {next(iter(str(error).splitlines()), '')[:150]}")
            continue
        print(f"{name}, {target}: {known[name]['macs'] / 1e6:.0f} M multiply-accumulates", flush=True)
        write(path, known)
    write(path, known)


def write(path: Path, known: dict[str, Any]) -> None:
    """One line a model, so that a change can be read."""
    lines = (f"  {json.dumps(name)}: {json.dumps(known[name], separators=(',', ':'))}" for name in sorted(known))
    write_whole(path, "{\n" + ",\n".join(lines) + "\n}\n", "features")


def count(name: str, target: str) -> dict[str, Any]:
    """Return parameters, multiply-accumulates and operators of a model, such as `resnet18@224`, lowered to a target."""
    plain, _, reads = name.partition("@")
    size = int(reads.split()[0])
    module = build(plain, size, reads.endswith("backbone"))
    params = sum(p.numel() for p in module.parameters())
    backend = targets.get(target)
    program = capture(module, (torch.randn(1, 3, size, size),))
    program, _ = rewrite(program, replace(backend.costs, tile_gb_s=0.0))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"model{backend.suffix}"
        try:
            typed = half(program, {}, torch.float16) if backend.types_programs else program
            backend.lower(typed, file, Request("model", precisions.FP16))
            wider = 1
        except Unsupported:  # code that sets types itself: the same operators, of twice the bytes
            backend.lower(program, file, Request("model", precisions.FP32))
            wider = 2
        work = read_work(file)
    alike = Counter(
        (w.kind, int(w.fused), w.macs, w.weight_bytes // wider, w.read_bytes // wider, w.written_bytes // wider)
        for w in work
    )
    return {"params": params, "macs": sum(w.macs for w in work), "operators": [[*k, n] for k, n in alike.items()]}


def build(name: str, size: int, backbone: bool) -> nn.Module:
    """A model of timm's or torchvision's without weights, branches merged as its authors deploy it."""
    _import_torchvision()
    torch.manual_seed(0)
    if name.startswith(TORCHVISION):
        from torchvision.models import get_model

        plain = name.removeprefix(TORCHVISION)
        made: nn.Module = get_model(plain, weights=None, **_HEADLESS.get(plain, {})).eval()
        return made
    import timm
    from timm.utils.model import reparameterize_model

    variant, _, setting = name.partition(":")
    sized = {"img_size": size} if variant.startswith(_SIZED) else {}
    module = _widened(variant, float(setting.partition("=")[2])) if setting else timm.create_model(variant, **sized)
    module = reparameterize_model(module.eval())
    if variant.startswith("efficientformer_"):
        _fit_attention(module, size // 32)
    return _Backbone(module) if backbone else module


TORCHVISION = "torchvision."
"""The beginning of names of torchvision's models in data/models.toml."""

_HEADLESS = {"googlenet": {"aux_logits": False, "init_weights": False}}
"""Without the heads that only training has."""

_SIZED = ("deit", "vit_", "beit", "swin", "efficientformer", "sequencer", "vit_base_mci")
"""Models that are built for one size, when theirs is not the one asked for."""


def _widened(variant: str, multiplier: float) -> nn.Module:
    from timm.models import efficientnet, mobilenetv3

    if variant.startswith("mobilenetv2"):
        made: nn.Module = efficientnet._gen_mobilenet_v2(variant, multiplier)
    else:
        made = mobilenetv3._gen_mobilenet_v3(variant, multiplier)
    return made


def _fit_attention(module: nn.Module, side: int) -> None:
    """Give EfficientFormer's attention a table of offsets for another map than timm's 7 x 7; in place."""
    from timm.models.efficientformer import Attention

    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, Attention):
                width = child.qkv.in_features
                made = Attention(width, child.key_dim, child.num_heads, child.attn_ratio, side)
                made.eval()  # which timm's returns nothing from
                setattr(parent, name, made)


def _Backbone(module: Any) -> nn.Module:  # noqa: N802 - a class that is made when torch is there
    from torch import Tensor
    from torch import nn as layers

    class Backbone(layers.Module):
        """A model up to its last feature map."""

        def __init__(self) -> None:
            super().__init__()
            module.reset_classifier(0)
            self.model = module

        def forward(self, x: Tensor) -> Tensor:
            features: Tensor = self.model.forward_features(x)
            return features

    return Backbone()


def _import_torchvision() -> None:
    """Import torchvision, whose operators are built for one build of torch, without them where they do not load.

    Two of them have to be declared all the same. No model here calls one.
    """
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor boxes, Tensor scores, float threshold) -> Tensor")
        importlib.import_module("torchvision")


if __name__ == "__main__":
    main()
