"""One spelling for layers and gates: each rule fires, holds its numbers, and leaves the nearest graph that is none."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from support.rewriting import apply
from torch import Tensor, nn

from edgesmith.exporters.rewrites.canonicalise import canonicalise
from edgesmith.exporters.rewrites.drop_copies import drop_copies
from edgesmith.exporters.rewrites.fold_constants import fold_constants
from edgesmith.exporters.rewrites.fuse_channel_norm import fuse_channel_norm


class Function(nn.Module):
    """A function of an input and of a few weights."""

    def __init__(self, function: Callable[[Tensor, Function], Tensor]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.square = nn.Parameter(torch.randn(6, 6, generator=generator))
        self.vector = nn.Parameter(torch.randn(6, generator=generator))
        self.share = nn.Parameter(torch.rand(6, 1, 1, generator=generator))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self)


MAP = torch.randn(2, 6, 4, 4, generator=torch.Generator().manual_seed(1))
ROWS = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(2))
RULES = (drop_copies, fold_constants, canonicalise, fuse_channel_norm)


def _written(x: Tensor, w: Function) -> Tensor:
    y = torch.zeros_like(x)
    y[:, 0:6] = x * 2
    return y


CASES: dict[str, tuple[Callable[[Tensor, Function], Tensor], Tensor, dict[str, int]]] = {
    "interpolation": (lambda x, w: x + w.share * (x.relu() - x), MAP, {"aten.mul": 2, "aten.add": 1, "aten.relu": 1}),
    "lerp": (lambda x, w: torch.lerp(x, x.relu(), w.share), MAP, {"aten.mul": 2, "aten.add": 1, "aten.relu": 1}),
    "lerp by a number": (
        lambda x, w: torch.lerp(x, x.relu(), 0.25),
        MAP,
        {"aten.mul": 2, "aten.add": 1, "aten.relu": 1},
    ),
    "addcmul": (lambda x, w: torch.addcmul(w.vector, x, w.vector), ROWS, {"aten.mul": 1, "aten.add": 1}),
    "baddbmm": (lambda x, w: torch.baddbmm(x, x, w.square.expand(2, 6, 6)), ROWS, {"aten.add": 1, "aten.matmul": 1}),
    "bmm": (
        lambda x, w: torch.bmm(x, x.relu().transpose(1, 2)),
        ROWS,
        {"aten.matmul": 1, "aten.relu": 1, "aten.transpose": 1},
    ),
    "product and bias": (lambda x, w: x @ w.square + w.vector, ROWS, {"aten.linear": 1}),
    "silu": (lambda x, w: x.sigmoid() * x, MAP, {"aten.silu": 1}),
    "sum of a stack": (
        lambda x, w: torch.stack([x, x.relu(), x.abs()]).sum(0),
        MAP,
        {"aten.add": 2, "aten.relu": 1, "aten.abs": 1},
    ),
    "mean of a stack": (
        lambda x, w: torch.stack([x, x.relu()], -1).mean(-1),
        MAP,
        {"aten.add": 1, "aten.relu": 1, "aten.div": 1},
    ),
    "parts": (
        lambda x, w: torch.sub(*x.unflatten(1, (2, 3)).unbind(1)),
        MAP,
        {"aten.split_with_sizes": 1, "aten.sub": 1},
    ),
    "uneven parts": (
        lambda x, w: x.tensor_split(4, 1)[1] + 1,
        MAP,
        {"aten.split_with_sizes": 1, "aten.add": 1},
    ),
    "gate": (
        lambda x, w: x * F.linear(x.mean((2, 3)), w.square, w.vector).relu().sigmoid()[:, :, None, None],
        MAP,
        {"aten.mean": 1, "aten.conv2d": 1, "aten.relu": 1, "aten.sigmoid": 1, "aten.mul": 1},
    ),
    "gate by a view": (
        lambda x, w: x * F.linear(x.flatten(2).mean(2), w.square).sigmoid().view(2, 6, 1, 1),
        MAP,
        {"aten.mean": 1, "aten.conv2d": 1, "aten.sigmoid": 1, "aten.mul": 1},
    ),
    "norm and mean": (
        lambda x, w: F.layer_norm(x.permute(0, 2, 3, 1), (6,), w.vector).mean((1, 2)),
        MAP,
        {"edgesmith.channel_norm": 1, "aten.mean": 1},
    ),
    "written whole": (_written, MAP, {"aten.mul": 1}),
}


@pytest.mark.parametrize("name", CASES)
def test_a_spelling_becomes_the_one(name: str) -> None:
    function, x, wanted = CASES[name]
    assert apply(Function(function), x, rewrites=RULES).counts == wanted


def _part(x: Tensor, w: Function) -> Tensor:
    y = torch.zeros_like(x)
    y[:, 0:5] = x[:, 0:5] * 2
    return y


LEFT: dict[str, tuple[Callable[[Tensor, Function], Tensor], Tensor, str]] = {
    "a share of the input": (lambda x, w: x + x.sigmoid() * (x.relu() - x), MAP, "aten.sub"),
    "a difference from another": (lambda x, w: x + w.share * (x.relu() - x.abs()), MAP, "aten.sub"),
    "a factor": (lambda x, w: torch.addcmul(w.vector, x, w.vector, value=2), ROWS, "aten.addcmul"),
    "a bias for rows": (lambda x, w: x @ w.square + w.vector[:5, None], ROWS, "aten.matmul"),
    "another's gate": (lambda x, w: x.relu().sigmoid() * x, MAP, "aten.sigmoid"),
    "a stack that is read": (lambda x, w: (lambda s: s.sum(0) + s[0])(torch.stack([x, x.relu()])), MAP, "aten.stack"),
    "a sum along another axis": (lambda x, w: torch.stack([x, x.relu()]).sum(1), MAP, "aten.stack"),
    "interleaved parts": (lambda x, w: torch.sub(*x.unflatten(1, (3, 2)).unbind(2)), MAP, "aten.unbind"),
    "a mean over rows": (lambda x, w: F.linear(x.mean(2).mean(2), w.square)[:, :, None, None] * x, MAP, "aten.linear"),
    "a mean over channels": (
        lambda x, w: F.layer_norm(x.permute(0, 2, 3, 1), (6,)).mean((1, 3)),
        MAP,
        "aten.layer_norm",
    ),
    "written in part": (_part, MAP, "aten.slice_scatter"),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_is_another_graph_is_left(name: str) -> None:
    function, x, kept = LEFT[name]
    assert kept in apply(Function(function), x, rewrites=RULES).counts
