"""Reductions of many numbers are as near to float64 as PyTorch's on runtimes that add one number after another.

Rows of equal numbers are those of test_equal_rows.py.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from support.formula import Formula
from support.lowering import lower
from torch import Tensor, nn

import edgesmith
from edgesmith.exporters import stages, targets
from edgesmith.exporters.graph import equal_rows
from edgesmith.exporters.graph.capture import capture


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)) + 0.7


def behind_a_layer(*norms: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *norms)


CASES: dict[str, tuple[nn.Module, Tensor]] = {
    "instance norm": (nn.InstanceNorm2d(3, affine=True), normal(1, 3, 256, 256)),
    "instance norm behind a layer": (behind_a_layer(nn.InstanceNorm2d(8)), normal(1, 3, 112, 112)),
    "instance norm of a picture": (behind_a_layer(nn.InstanceNorm2d(8), nn.ReLU()), normal(1, 3, 256, 256)),
    "instance norm of a signal": (nn.InstanceNorm1d(2), normal(1, 2, 16000)),
    "group norm of one group": (nn.GroupNorm(1, 64), normal(1, 64, 64, 64)),
    "group norm behind a layer": (behind_a_layer(nn.GroupNorm(2, 8)), normal(1, 3, 96, 96)),
    "layer norm": (nn.LayerNorm(12288), normal(2, 12288)),
    "layer norm of pictures": (nn.LayerNorm([3, 96, 96]), normal(2, 3, 96, 96)),
    "layer norm of an awkward length": (nn.LayerNorm(12289), normal(2, 12289)),
    "root mean square norm": (nn.RMSNorm(16384), normal(2, 16384)),
    "mean": (Formula(lambda x: x.mean(1)), normal(2, 65536)),
    "mean of an awkward length": (Formula(lambda x: x.mean(-1, keepdim=True)), normal(2, 65537)),
    "mean of a prime number of blocks": (Formula(lambda x: x.mean(-1)), normal(1, 256 * 1031)),
    "sum of a prime number of blocks": (Formula(lambda x: x.sum(-1)), normal(1, 256 * 1031)),
    "mean of all": (Formula(lambda x: x.mean()), normal(3, 96, 97)),
    "mean of channels": (Formula(lambda x: x.mean(1)), normal(1, 8192, 7)),
    "mean of pixels": (Formula(lambda x: x.mean((2, 3))), normal(1, 2, 256, 256)),
    "sum": (Formula(lambda x: x.sum(1)), normal(2, 65536)),
    "sum of pixels": (Formula(lambda x: x.sum((-2, -1), keepdim=True)), normal(1, 2, 256, 250)),
    "variance": (Formula(lambda x: x.var(1)), normal(2, 65536)),
    "standard deviation": (Formula(lambda x: x.std((2, 3), correction=0)), normal(1, 2, 256, 256)),
    "variance and mean": (Formula(lambda x: torch.cat(torch.var_mean(x, 1))), normal(2, 65536)),
    "length": (Formula(lambda x: torch.linalg.vector_norm(x, dim=1)), normal(2, 65536)),
    "sum of magnitudes": (Formula(lambda x: torch.linalg.vector_norm(x, 1, dim=1)), normal(2, 65536)),
    "running sum": (Formula(lambda x: x.cumsum(1)), normal(2, 5000)),
    "running sum of channels": (Formula(lambda x: x.cumsum(1)), normal(1, 4096, 3)),
}

_OF_BOTH = {"instance norm", "instance norm of a picture", "mean", "mean of pixels", "sum", "variance", "length"}
WRONG = {"coreai": {*_OF_BOTH, "layer norm of pictures"}, "tvm": {*_OF_BOTH, "group norm of one group"}}
"""Some of what is beyond the bound on runtimes that add one number after another, where it comes as it is."""

TARGETS = ("onnx", "coreai", "tvm")

KINDS: dict[str, Callable[[Tensor], Tensor]] = {
    "as they come": lambda x: x,
    "quiet": lambda x: 1e-3 * x,
    "beside a large number": lambda x: 0.1 * x + 3,
}

OF_EAGER, OF_PEAK = 4.0, 2e-6
"""What is allowed: so many times PyTorch's own distance from float64, and so much of the peak."""


def beyond(name: str, target: str, folder: Path) -> dict[str, float]:
    """The kinds of inputs on which a file is further from float64 than is allowed, and how many times."""
    opened = targets.get(target)
    if (why := opened.cannot_run()) is not None:
        pytest.skip(why)
    model, x = CASES[name]
    folder.mkdir(exist_ok=True)
    path = folder / f"rows{opened.suffix}"
    file, found = lower(opened, capture(model.eval(), (x,), ("x",)), path), {}
    for kind, of in KINDS.items():
        given = of(x)
        with torch.no_grad():
            exact = copy.deepcopy(model).double()(given.double()).numpy()
            eager = model(given).numpy()
        outputs = file.run([[given.numpy()]])
        assert isinstance(outputs, list)
        peak = float(np.abs(exact).max())
        allowed = OF_EAGER * float(np.abs(eager - exact).max()) + OF_PEAK * peak
        if (times := float(np.abs(outputs[0][0] - exact).max()) / allowed) > 1:
            found[kind] = times
    return found


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", CASES)
def test_many_numbers_are_added_as_pytorch_adds_them(name: str, target: str, tmp_path: Path) -> None:
    assert beyond(name, target, tmp_path) == {}


@pytest.mark.parametrize("target", WRONG)
def test_they_are_not_where_sums_have_no_stages(target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "LONG", 10**9)
    monkeypatch.setattr(equal_rows, "FEWEST", {})
    assert {name for name in WRONG[target] if beyond(name, target, tmp_path / name)} == WRONG[target]


@pytest.mark.parametrize("n", [1, 1023, 1024, 3136, 12288, 12289, 65536, 65537, 131072, 10007 * 9])
def test_stages_have_the_length(n: int) -> None:
    found = stages.of(n)
    assert math.prod(found) == n
    assert found == [n] if n < stages.LONG else all(1 < factor <= stages.BLOCK for factor in found[1:])


def test_a_style_network_s_norms_are_not_refused(tmp_path: Path) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.InstanceNorm2d(8, affine=True), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1)
    )
    x = torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(1))
    for target in TARGETS:
        if targets.get(target).cannot_run() is None:
            made = edgesmith.export(model.eval(), target, inputs=x, out=tmp_path, name="style")
            assert "missed" not in made.manifest["verification"]
