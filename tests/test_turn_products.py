"""Runs of products with their matrix on the left: turned where the target adds their bias apart, and left elsewhere."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.rewriting import apply
from torch import Tensor, nn

from edgesmith.exporters import targets
from edgesmith.exporters.costs import Costs
from edgesmith.exporters.rewrites.turn_products import turn_products

COSTS = Costs(launch_us=3.0, copy_gb_s=10.0, stream_gb_s=25.0, matmul_us=0.15, adds_left_bias=True)


class Mixer(nn.Module):
    """An MLP and a gate along the second last axis, and a residual."""

    def __init__(self, size: int = 8, axis: int = -2, bias: bool = True) -> None:
        super().__init__()
        self.axis = axis
        self.matrices = nn.ParameterList(torch.randn(*s) / 3 for s in ((24, size), (size, 24), (size, size)))
        self.biases = nn.ParameterList(torch.randn(s, 1) for s in (24, size, size)) if bias else None

    def product(self, i: int, x: Tensor) -> Tensor:
        y = self.matrices[i] @ x
        return y if self.biases is None else y + self.biases[i]

    def forward(self, x: Tensor) -> Tensor:
        y = self.product(1, nn.functional.gelu(self.product(0, x)))
        return x + y * self.product(2, y).softmax(self.axis)


class Shared(Mixer):
    """One value that two products read; the first product's sum is read outside too."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]  # two outputs
        hidden = self.product(0, x)
        return hidden, self.product(1, hidden.relu()) - self.product(2, x)


X = torch.randn(2, 7, 8, 48, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("batch", ["fixed batch", "free batch"])
@pytest.mark.parametrize(("model", "back"), [(Mixer(), 1), (Shared(), 2)])
def test_a_row_becomes_layers_between_transpositions(model: nn.Module, back: int, batch: str) -> None:
    costs = replace(COSTS, copy_gb_s=20.0)
    done = apply(model, X, costs=costs, rewrites=(turn_products,), dynamic_batch=batch == "free batch")
    assert done.counts["aten.linear"] == 3
    assert "aten.matmul" not in done.counts
    assert done.counts["aten.transpose"] == 1 + back
    (fired,) = done.reports["turn_products"].applied
    assert fired.note == "3 products with their matrix on the left -> layers, transposed once"


@pytest.mark.parametrize(
    ("model", "costs"),
    [
        (Mixer(), replace(COSTS, adds_left_bias=False)),
        (Mixer(bias=False), COSTS),  # no sums to save
        (Mixer(), replace(COSTS, copy_gb_s=1.0)),  # transpositions are too dear
    ],
    ids=["takes it in", "no bias", "dear copies"],
)
def test_a_row_is_left_where_that_saves_nothing(model: nn.Module, costs: Costs) -> None:
    done = apply(model, X, costs=costs, rewrites=(turn_products,), tolerance=0)
    assert done.counts["aten.matmul"] == 3
    assert "aten.linear" not in done.counts


def test_a_softmax_along_the_other_axis_ends_the_row() -> None:
    """The gate's layer and the MLP before it are turned, and transposed back for the softmax."""
    done = apply(Mixer(axis=-1), X, costs=replace(COSTS, copy_gb_s=20.0), rewrites=(turn_products,))
    assert done.counts["aten.linear"] == 3
    assert done.counts["aten.transpose"] == 3
    (softmax,) = (node for node in done.program.module.graph.nodes if node.target is torch.ops.aten.softmax.int)
    assert softmax.args[1] in (-1, 3)


def test_a_matrix_that_is_computed_is_left() -> None:
    class Computed(nn.Module):
        def forward(self, w: Tensor, x: Tensor) -> Tensor:
            return w @ (w @ x)

    done = apply(Computed(), torch.randn(8, 8), X, costs=COSTS, rewrites=(turn_products,), tolerance=0)
    assert done.counts["aten.matmul"] == 2


def test_onnx_runtime_adds_apart_and_tensorrt_does_not() -> None:
    assert targets.get("onnx").costs.adds_left_bias
    assert not any(targets.get(name).costs.adds_left_bias for name in ("tensorrt", "coreml", "coreai"))
