"""The authors' own spellings of the zoo's models get the zoo's fused ops, and the same numbers of the same weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from authors import affnet as authors_affnet
from authors import casvit as authors_casvit
from authors import efficientvim as authors_efficientvim
from authors import lmuformer as authors_lmuformer
from authors import third
from support.rewriting import reasons
from torch import Tensor, nn

import edgesmith
from edgesmith.exporters import targets
from edgesmith.exporters.graph.capture import capture, run
from edgesmith.exporters.graph.edit import count_operators
from edgesmith.exporters.rewrites.order import rewrite
from edgesmith.exporters.rewrites.rewrite import RewriteReport
from edgesmith.models import affnet, casvit, efficientvim, lmuformer


@dataclass(frozen=True)
class Pair:
    """A model as its authors spell it and as the zoo does, with options that both take, and an input's shape."""

    authors: Callable[..., nn.Module]
    zoo: Callable[..., nn.Module]
    small: dict[str, Any]
    small_shape: tuple[int, ...]
    real: dict[str, Any]
    real_shape: tuple[int, ...]
    more: dict[str, Any] = field(default_factory=dict)

    def build(self, options: dict[str, Any]) -> tuple[nn.Module, nn.Module]:
        """Both models in eval mode, with the same weights, none of them too small to matter."""
        torch.manual_seed(0)
        zoo = self.zoo(**options, **self.more).eval()
        affnet.settle(zoo) if isinstance(zoo, affnet.AFFNet) else lmuformer.settle(zoo)
        authors = self.authors(**options).eval()
        left = authors.load_state_dict(zoo.state_dict(), strict=False)
        assert not left.unexpected_keys
        assert all(key.endswith("fft_H") for key in left.missing_keys)
        return authors, zoo


_SEQUENCE = {"features": 12, "dim": 16, "order": 32, "theta": 16, "frames": 16, "num_classes": 5}
PAIRS = {
    "casvit": Pair(
        authors_casvit.RCViT,
        casvit.CasViT,
        {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32), "num_classes": 7},
        (1, 3, 64, 64),
        {"depths": (2, 2, 4, 2), "dims": (48, 56, 112, 220)},
        (1, 3, 64, 64),
    ),
    "affnet": Pair(
        authors_affnet.AFFNet,
        affnet.AFFNet,
        {"dims": (8, 8, 16, 16, 24, 32), "ffn_dims": (32, 48, 64), "depths": (1, 1, 1), "expand": 2, "num_classes": 7},
        (1, 3, 64, 64),
        {"dims": (16, 32, 48, 64, 104, 144), "ffn_dims": (128, 208, 288), "depths": (2, 4, 3), "expand": 2},
        (1, 3, 128, 128),
    ),
    "efficientvim": Pair(
        authors_efficientvim.EfficientViM,
        efficientvim.EfficientViM,
        {"depths": (1, 1, 1), "dims": (16, 24, 32), "state_dims": (9, 6, 4), "num_classes": 7, "distillation": True},
        (1, 3, 128, 128),
        {"depths": (2, 2, 2), "dims": (128, 192, 320), "state_dims": (49, 25, 9)},
        (1, 3, 128, 128),
    ),
    "lmuformer": Pair(
        authors_lmuformer.LMUFormer,
        lmuformer.LMUFormer,
        {**_SEQUENCE, "order": 8},
        (1, 16, 12),
        {},
        (1, 128, 128),
    ),
    "spiking_lmuformer": Pair(
        authors_lmuformer.SpikingLMUFormer,
        lmuformer.LMUFormer,
        {**_SEQUENCE, "frames": 8},
        (1, 8, 12),
        {"order": 512, "frames": 32},  # of 128: every frame is a turn of each loop, and takes its time
        (1, 32, 128),
        {"spiking": True},
    ),
}


def fused(model: nn.Module, x: Tensor) -> tuple[dict[str, int], Tensor, list[RewriteReport]]:
    """The fused ops of the rewritten program, what it returns, and the reports."""
    program, reports = rewrite(capture(model, (x,)), targets.get("onnx").costs)
    counts = {name: n for name, n in count_operators(program.module).items() if name.startswith("edgesmith.")}
    (output,) = run(program, (x,))
    return counts, output, reports


@pytest.mark.parametrize("name", PAIRS)
def test_a_small_model_has_the_zoos_fused_ops_and_numbers(name: str) -> None:
    pair = PAIRS[name]
    authors, zoo = pair.build(pair.small)
    x = torch.randn(pair.small_shape, generator=torch.Generator().manual_seed(0))
    counts, output, reports = fused(authors, x)
    expected, zoos_output, _ = fused(zoo, x)
    near = " | ".join(reasons(report) for report in reports if report.name.startswith(("fuse", "recognise", "reroll")))
    assert counts == expected, near
    with torch.no_grad():
        eager = authors(x)
    for other in (eager, zoos_output):
        assert float((output - other).abs().max()) <= 2e-6 * float(other.abs().max())


@pytest.mark.slow
@pytest.mark.parametrize("name", PAIRS)
def test_the_real_size_has_the_zoos_fused_ops(name: str) -> None:
    pair = PAIRS[name]
    authors, zoo = pair.build(pair.real)
    x = torch.randn(pair.real_shape, generator=torch.Generator().manual_seed(0))
    assert fused(authors, x)[0] == fused(zoo, x)[0]


@pytest.mark.parametrize("name", ["affnet", "spiking_lmuformer"])
def test_a_small_model_is_exported(name: str, tmp_path: Path) -> None:
    pair = PAIRS[name]
    authors, _ = pair.build(pair.small)
    x = torch.randn(pair.small_shape, generator=torch.Generator().manual_seed(0))
    artifact = edgesmith.export(authors, "onnx", inputs=(x,), name=name, out=tmp_path)
    operators = artifact.manifest["operators"]
    assert any(operator.startswith("edgesmith.") for operator in operators["rewritten"])
    assert not {"DFT", "Einsum"} & set(operators["file"])


THIRD = {
    "casvit": third.CasViT,
    "affnet": third.AFFNet,
    "efficientvim": third.EfficientViM,
    "lmuformer": third.LMUFormer,
    "spiking_lmuformer": third.LMUFormer,
}


@pytest.mark.parametrize("name", THIRD)
def test_a_third_spelling_has_the_zoos_fused_ops(name: str) -> None:
    """Written on the zoo's weights: other layouts, functions instead of modules, loops instead of transforms."""
    pair = PAIRS[name]
    _, zoo = pair.build(pair.small)
    model = THIRD[name](zoo).eval()
    x = torch.randn(pair.small_shape, generator=torch.Generator().manual_seed(0))
    counts, output, reports = fused(model, x)
    expected, _, _ = fused(zoo, x)
    near = " | ".join(reasons(report) for report in reports if report.name.startswith(("fuse", "recognise", "reroll")))
    assert counts == expected, near
    with torch.no_grad():
        eager = model(x)
    assert float((output - eager).abs().max()) <= 1e-5 * float(eager.abs().max())
