"""Wide maps in tiles of channels: what is in use at once, which chains are tiled, and that the numbers stay."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from support.formula import Formula
from support.rewriting import apply
from torch import Tensor, nn

from edgesmith.exporters.costs import Costs
from edgesmith.exporters.graph.capture import Program, capture
from edgesmith.exporters.graph.edit import count_operators
from edgesmith.exporters.rewrites.rewrite import RewriteReport
from edgesmith.exporters.rewrites.tile_channels import memory, tile_channels

EAGER = Costs(launch_us=1e-6, columns=1, fetch_gb_s=1e-6)
"""Costs under which every byte less is worth a tile."""


def tiled(
    model: nn.Module, x: Tensor, costs: Costs = EAGER, dynamic_batch: bool = False
) -> tuple[Program, RewriteReport]:
    """The program in tiles."""
    made = apply(model, x, costs=costs, rewrites=(tile_channels,), dynamic_batch=dynamic_batch)
    return made.program, made.reports["tile_channels"]


def peak(program: Program) -> int:
    """Most bytes in use at once."""
    return max(memory(program.module).values())


class Bottleneck(nn.Module):
    """An expansion, whatever works on each channel, and a projection; with `residual` its input is read again."""

    def __init__(self, channels: int, hidden: int, *middle: nn.Module, residual: bool = False) -> None:
        super().__init__()
        self.expand = nn.Conv2d(channels, hidden, 1)
        self.middle = nn.Sequential(*middle)
        self.project = nn.Conv2d(hidden, 2, 1)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        x = x.relu()
        y: Tensor = self.project(self.middle(self.expand(x)))
        return y + x.mean() if self.residual else y


def depthwise(hidden: int, stride: int = 2, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=bias)


def test_what_is_in_use_is_what_an_operator_reads_and_makes_and_what_is_read_later() -> None:
    def function(x: Tensor) -> Tensor:
        a, b = x.split([1, 3], 1)  # [1, 1, 8], [1, 3, 8]: 128 bytes, and x as many
        y = F.silu(a)  # 32; a and b are one value here
        z = torch.cat((y, y), 1).unsqueeze(0).flatten(0, 1)  # 64, and two views of it
        return (b.mean() + F.silu(z).relu()).exp()  # 4 for the mean; 64 for each of the others, but for the ReLU

    program = capture(Formula(function), (torch.randn(1, 4, 8),))
    in_use = {node.name: count for node, count in memory(program.module).items() if "getitem" not in node.name}
    assert in_use == {
        "split_with_sizes": 128 + 128,
        "silu": 128 + 32,
        "cat": 128 + 32 + 64,
        "unsqueeze": 128 + 64,
        "flatten": 128 + 64,
        "mean": 128 + 64 + 4,
        "silu_1": 64 + 4 + 64,
        "relu": 64 + 4,
        "add": 64 + 4 + 64,
        "exp": 64 + 64,
    }


@given(
    channels=st.integers(1, 2),
    tiles=st.integers(2, 9),
    activations=st.lists(
        st.sampled_from([nn.ReLU(), nn.SiLU(), nn.GELU("tanh"), nn.Hardswish(), nn.LeakyReLU(0.3), nn.ReLU6()]),
        max_size=3,
    ),
    shrink=st.sampled_from(["depthwise", "depthwise without bias", "max", "mean"]),
    residual=st.booleans(),
    size=st.tuples(st.integers(4, 9), st.integers(4, 9)),
    batch=st.integers(1, 2),
    dynamic=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=60)
def test_tiles_keep_the_numbers_and_use_what_was_foreseen(
    channels: int,
    tiles: int,
    activations: list[nn.Module],
    shrink: str,
    residual: bool,
    size: tuple[int, int],
    batch: int,
    dynamic: bool,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    hidden = 4 * tiles
    end: nn.Module = {
        "depthwise": depthwise(hidden),
        "depthwise without bias": depthwise(hidden, bias=False),
        "max": nn.MaxPool2d(2),
        "mean": nn.AvgPool2d(3, stride=2, padding=1),
    }[shrink]
    model = Bottleneck(channels, hidden, *activations, end, *activations, residual=residual)
    x = torch.randn(2 if dynamic else batch, channels, *size)
    before = capture(model.eval(), (x,), dynamic_batch=dynamic)
    made, report = tiled(model, x, dynamic_batch=dynamic)
    assert peak(made) < peak(before)
    assert report.applied
    assert f"{peak(made) / 1e6:.3g} MB in" in report.applied[-1][1]


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (Bottleneck(2, 16, nn.SiLU(), depthwise(16, stride=1)), "ends as large as it begins"),
        (Bottleneck(2, 16, nn.SiLU(), nn.Conv2d(16, 16, 3, 2, 1, groups=4)), "mixes channels"),
        (Bottleneck(2, 16, nn.Conv2d(16, 32, 3, 2, 1, groups=16), nn.Conv2d(32, 16, 1)), "two rows for each channel"),
        (Bottleneck(2, 16, nn.Softmax(1), depthwise(16)), "reads all channels"),
        (Bottleneck(2, 2, nn.SiLU(), depthwise(2)), "too narrow"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_chains_that_have_no_tiles_stay(model: nn.Module, why: str) -> None:
    made, report = tiled(model, torch.randn(1, 2, 8, 8))
    assert (report.applied, report.rejected) == ((), ())
    assert "aten.cat" not in count_operators(made.module)


@pytest.mark.parametrize(
    ("read", "fires"),
    [(lambda y, z: (z, y), False), (lambda y, z: z + y.mean(), False), (lambda y, z: (z, z.relu()), True)],
    ids=["returned", "read", "only its end is"],
)
def test_a_map_that_something_else_reads_stays_whole(read: Callable[[Tensor, Tensor], object], fires: bool) -> None:
    class Forked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.expand, self.middle = nn.Conv2d(2, 16, 1), depthwise(16)

        def forward(self, x: Tensor) -> object:
            y = self.expand(x)
            return read(y, self.middle(y))

    _, report = tiled(Forked(), torch.randn(1, 2, 8, 8))
    assert bool(report.applied) == fires


def test_the_target_decides_by_what_it_pays() -> None:
    model = Bottleneck(16, 64, nn.SiLU(), depthwise(64))
    x = torch.randn(1, 16, 32, 32)
    fast = Costs(launch_us=3, columns=16, copy_gb_s=10, fetch_gb_s=50)
    made, report = tiled(model, x, fast)
    assert "aten.cat" not in count_operators(made.module)
    ((rejection,),) = (report.rejected,)
    assert rejection.reason == "0.524 MB in use, 0.328 MB in 2 tiles: saves 4 us, costs 25 us"
    _, report = tiled(model, x, replace(fast, fetch_gb_s=5))
    assert [note for _, note in report.applied] == ["0.524 MB in use, 0.328 MB in 2 tiles: saves 39 us, costs 25 us"]
    _, report = tiled(model, x, replace(fast, fetch_gb_s=float("inf")))
    assert (report.applied, report.rejected) == ((), ())


def test_tiles_name_the_layers_that_they_come_from() -> None:
    made, _ = tiled(Bottleneck(2, 8, nn.SiLU(), depthwise(8)), torch.randn(1, 2, 8, 8))
    names = [node.target for node in made.module.graph.nodes if node.op == "get_attr"]
    assert {str(name).rpartition("_")[0] for name in names if "project" not in str(name)} == {
        "expand.weight",
        "expand.bias",
        "middle.1.weight",
        "middle.1.bias",
    }


def test_what_stands_beside_a_chain_is_counted() -> None:
    def beside(x: Tensor, e: nn.Module, d: nn.Module, o: nn.Module, p: nn.Module) -> tuple[Tensor, Tensor]:
        y = e(x)
        z = o(x[:, :8].mean((2, 3), keepdim=True) + x[:, 8:16])  # while y waits
        return p(d(F.silu(y))), z

    torch.manual_seed(0)
    layers = {"e": nn.Conv2d(40, 16, 1), "d": depthwise(16), "o": nn.Conv2d(8, 40, 1), "p": nn.Conv2d(16, 2, 1)}
    model = Formula(lambda x: beside(x, **layers))
    model.layers = nn.ModuleDict(layers)
    x = torch.randn(1, 40, 16, 16)
    made, report = tiled(model, x)
    assert peak(made) <= peak(capture(model.eval(), (x,)))
    for _, note in report.applied:
        before, after = (float(part.split()[0]) for part in note.split(" in use, "))
        assert after < before


def test_sizes_that_depend_on_the_data_leave_a_program_as_it_is() -> None:
    model = nn.Sequential(Bottleneck(2, 16, nn.SiLU(), depthwise(16)), Formula(lambda y: y[y > 0]))
    _, report = tiled(model, torch.randn(1, 2, 8, 8))
    assert (report.applied, report.rejected) == ((), ())
