"""Layers of one example without a batch: given one, and computed as PyTorch does, whatever reads them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgesmith.exporters.costs import Costs
from edgesmith.exporters.graph.capture import capture, run
from edgesmith.exporters.rewrites.order import rewrite

LAYERS = {
    "conv1d": (lambda x: F.conv1d(x, torch.ones(5, 4, 3), padding=1), (4, 9)),
    "conv2d": (lambda x: F.conv2d(x, torch.ones(5, 4, 3, 3), stride=2), (4, 9, 8)),
    "conv3d": (lambda x: F.conv3d(x, torch.ones(5, 4, 1, 3, 3)), (4, 2, 9, 8)),
    "transposed": (lambda x: F.conv_transpose2d(x, torch.ones(4, 5, 2, 2), stride=2), (4, 5, 6)),
    "pool": (lambda x: F.avg_pool2d(x, 2), (4, 6, 6)),
    "adaptive": (lambda x: F.adaptive_avg_pool1d(x, 3), (4, 7)),
}


class Between(nn.Module):
    """A layer between others that rewrites look for: activations, a layer of one pixel behind it, a mean."""

    def __init__(self, layer: str) -> None:
        super().__init__()
        self.layer = LAYERS[layer][0]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.layer(F.gelu(x)) * 0.5 + 1.0).mean(-1)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("tiles", [0.0, 20.0])
def test_a_layer_without_a_batch_gets_one(layer: str, tiles: float) -> None:
    x = torch.randn(LAYERS[layer][1])
    model = Between(layer).eval()
    program, reports = rewrite(capture(model, (x,)), Costs(3.0, tile_gb_s=tiles))
    (found,) = (report for report in reports if report.name == "give_batch")
    assert len(found.applied) == 1
    torch.testing.assert_close(run(program, [x])[0], model(x))


def test_a_layer_with_a_batch_is_left_and_is_no_near_miss() -> None:
    x = torch.randn(1, 4, 9)
    _, reports = rewrite(capture(Between("conv1d").eval(), (x,)), Costs(3.0))
    (found,) = (report for report in reports if report.name == "give_batch")
    assert not found.applied
    assert not found.rejected
