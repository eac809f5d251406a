"""Work of the published models' operators, counted once: data/features-TARGET.json, which latencies are fitted with.

For every row of data/published.csv whose model data/models.toml knows, the model is built without weights, captured and
rewritten as an export does, lowered in half precision to what such a device runs (Core ML for phones of Apple, ONNX for
the rest), and its file counted by `exporters.work`. Equal operators are one entry:

    [kind, fused, macs, weight bytes, read bytes, written bytes, times]

timm has the models and is needed here only:

pip install --no-deps -c constraints.txt timm huggingface_hub PyYAML
python -m edgesmith.bench.features [target ...]        # adds what is missing
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import json
import sys
import tempfile
import types
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgesmith.bench.rows import FORMATS, Row, read_rows
from edgesmith.errors import Unsupported

if TYPE_CHECKING:
    from torch import nn

DATA = Path(__file__).parent / "data"
BACKBONE = 512
"""Height and width of what backbones of detectors read."""


def main() -> None:
    """Count what is missing, and write a file anew after each of its models."""
    wanted = list(dict.fromkeys((FORMATS[row.fit], key(row)) for row in read_rows() if row.model_of_timm and row.size))
    for target in sys.argv[1:] or sorted(set(FORMATS.values())):
        path = file_of(target)
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        names = [name for of, name in wanted if of == target]
        known = {name: known[name] for name in names if name in known}
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


def file_of(target: str) -> Path:
    """Where the counts of what is lowered to a target are kept."""
    return DATA / f"features-{target}.json"


def key(row: Row) -> str:
    """A model as features know it: timm's name, and what it reads."""
    return f"{row.model_of_timm}@{row.size}{' backbone' if row.backbone else ''}"


def write(path: Path, known: dict[str, Any]) -> None:
    """One line a model, so that a change can be read."""
    lines = (f"  {json.dumps(name)}: {json.dumps(known[name], separators=(',', ':'))}" for name in sorted(known))
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def count(name: str, target: str) -> dict[str, Any]:
    """Parameters, multiply-accumulates and operators of a model, such as `resnet18@224`, lowered to a target."""
    import torch

    from edgesmith.exporters import targets
    from edgesmith.exporters.capture import capture
    from edgesmith.exporters.rewrite import rewrite
    from edgesmith.exporters.work import read_work

    timms, _, reads = name.partition("@")
    size = int(reads.split()[0])
    module = build(timms, size, reads.endswith("backbone"))
    params = sum(p.numel() for p in module.parameters())
    backend = targets.get(target)
    program = capture(module, (torch.randn(1, 3, size, size),))
    program, _ = rewrite(program, replace(backend.costs, tile_gb_s=0.0))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"model{backend.suffix}"
        try:
            backend.lower(program, file, targets.Request(name="model", precision="fp16"))
            wider = 1
        except Unsupported:  # code that sets types itself: the same operators, of twice the bytes
            backend.lower(program, file, targets.Request(name="model", precision="fp32"))
            wider = 2
        work = read_work(file)
    alike = Counter(
        (w.kind, int(w.fused), w.macs, w.weight_bytes // wider, w.read_bytes // wider, w.written_bytes // wider)
        for w in work
    )
    return {"params": params, "macs": sum(w.macs for w in work), "operators": [[*k, n] for k, n in alike.items()]}


def build(name: str, size: int, backbone: bool) -> nn.Module:
    """Timm's model without weights, branches merged as its authors deploy it."""
    import torch

    with _no_torchvision():
        import timm
        from timm.utils.model import reparameterize_model

    torch.manual_seed(0)
    variant, _, setting = name.partition(":")
    sized = {"img_size": size} if variant.startswith(_SIZED) else {}
    module = _widened(variant, float(setting.partition("=")[2])) if setting else timm.create_model(variant, **sized)
    module = reparameterize_model(module.eval())
    return _Backbone(module) if backbone else module


_SIZED = ("deit", "vit_", "beit", "swin", "efficientformer", "sequencer", "vit_base_mci")
"""Models that are built for one size, when theirs is not the one asked for."""


def _widened(variant: str, multiplier: float) -> nn.Module:
    from timm.models import efficientnet, mobilenetv3

    if variant.startswith("mobilenetv2"):
        made: nn.Module = efficientnet._gen_mobilenet_v2(variant, multiplier)
    else:
        made = mobilenetv3._gen_mobilenet_v3(variant, multiplier)
    return made


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


class _no_torchvision:  # noqa: N801 - used as a function
    """timm imports torchvision for what building a model never calls; where it is missing, names stand in for it."""

    def __enter__(self) -> None:
        if importlib.util.find_spec("torchvision") is None:
            sys.meta_path.append(_StandIns())

    def __exit__(self, *error: object) -> None:
        sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _StandIns)]


class _Name(type):
    """A class whose attributes are classes of the same kind, each always the same one."""

    def __getattr__(cls, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        made = _Name(name, (), {})
        setattr(cls, name, made)
        return made


class _StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name: str, path: object = None, target: object = None) -> Any:
        if name.split(".")[0] == "torchvision":
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: Any) -> types.ModuleType:
        module = types.ModuleType(spec.name)
        names = _Name("names", (), {})
        module.__getattr__ = lambda name: getattr(names, name)  # type: ignore[method-assign]
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        """Nothing to run."""


if __name__ == "__main__":
    main()
