"""timm's and transformers' own modules become the operators that the models here become. Skipped without the packages.

pip install --no-deps timm transformers huggingface_hub tokenizers regex tqdm pyyaml filelock httpx ...
"""

from __future__ import annotations

import importlib.machinery
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import edgesmith
from edgesmith.exporters.graph.capture import run
from edgesmith.exporters.graph.edit import count_operators
from edgesmith.models import registry

SIZE = (64, 64)


class WithoutImages:
    """Stands for timm.data and torchvision, which load images; no model needs them."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> importlib.machinery.ModuleSpec | None:
        if name == "timm.data" or name.startswith(("timm.data.", "torchvision")):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)  # type: ignore[arg-type]  # as a loader
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        module = ModuleType(spec.name)
        module.__getattr__ = self.anything  # type: ignore[method-assign]  # of this module alone
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__path__ = []

    @staticmethod
    def anything(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return (0.5, 0.5, 0.5) if name.isupper() else type(name, (), {})


@pytest.fixture
def timm() -> Iterator[ModuleType]:
    before = dict(sys.modules)
    finder = WithoutImages()
    sys.meta_path.insert(0, finder)  # type: ignore[arg-type]  # as far as imports ask
    try:
        yield pytest.importorskip("timm", reason="timm is not installed")
    finally:
        sys.meta_path.remove(finder)  # type: ignore[arg-type]  # as above
        for name in sys.modules.keys() - before.keys():
            if name.split(".")[0] in ("timm", "torchvision"):
                del sys.modules[name]


def operators_of(model: nn.Module) -> dict[str, int]:
    """What a module becomes, with numbers that a wrong fold would show; the numbers hold."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() <= 1:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    x = torch.randn(1, 3, *SIZE, generator=generator)
    captured, after, _ = edgesmith.explain(model, "onnx", inputs=(x,))
    wanted = run(captured, (x,))[0]
    assert (run(after, (x,))[0] - wanted).abs().max() <= 5e-6 * wanted.abs().max()
    return count_operators(after.module)


def ours(name: str) -> dict[str, int]:
    _, after, _ = edgesmith.explain(name, "onnx", input_size=SIZE)
    return count_operators(after.module)


@pytest.mark.parametrize("name", ["caformer_s18", "convformer_s18", "poolformerv2_s12"])
def test_timms_module_becomes_the_same_operators(name: str, timm: ModuleType) -> None:
    theirs = operators_of(timm.create_model(name).eval())
    expected = ours(name)
    theirs.pop("aten.flatten")  # of the pooled map in front of the head
    if name.startswith("poolformer"):  # without scales in the last two stages; and its norms' scales fold
        expected["aten.mul"], theirs["aten.mul"] = 0, 0
    assert theirs == expected


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_transformers_module_becomes_the_same_operators(attention: str) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")

    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            config = transformers.SegformerConfig(num_labels=registry.get("segformer_b0").classes)
            config._attn_implementation = attention
            self.model = transformers.SegformerForSemanticSegmentation(config)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.model(x).logits
            return logits

    model = Logits().eval()
    model(torch.zeros(1, 3, *SIZE))  # its hooks are made by the first call
    assert operators_of(model) == ours("segformer_b0")
