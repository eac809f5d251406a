"""Selective scans in the spellings of others: loops and closed forms become the op, the nearest wrong graphs do not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgesmith.exporters.costs import Costs
from edgesmith.exporters.graph.capture import capture
from edgesmith.exporters.graph.edit import count_operators
from edgesmith.exporters.rewrites.find_selective_scan import find_closed_scan, find_loop_scan
from edgesmith.exporters.rewrites.fold_constants import fold_constants
from edgesmith.exporters.rewrites.order import rewrite

COSTS = Costs(3.0, loop_us=0.8, read_gb_s=75)
OP = "edgesmith.selective_scan"
WIDTH, STATES = 6, 4


class Projections(nn.Module):
    """Delta, A, B and C of a sequence [B, T, 6]."""

    def __init__(self) -> None:
        super().__init__()
        self.A_log = nn.Parameter(torch.arange(1.0, STATES + 1).log().repeat(WIDTH, 1))
        self.rows, self.steps = nn.Linear(WIDTH, 2 * STATES), nn.Linear(WIDTH, WIDTH)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        b, c = self.rows(x).split(STATES, -1)
        return nn.functional.softplus(self.steps(x)), -self.A_log.exp(), b, c


class ChannelsFirst(Projections):
    """A loop over [B, D, T, N], read by a matmul, as transformers' Mamba has it."""

    def forward(self, x: Tensor) -> Tensor:
        delta, a, b, c = self.project(x)
        delta, x = delta.transpose(1, 2), x.transpose(1, 2)
        decays = torch.exp(a[None, :, None, :] * delta[:, :, :, None])
        added = (delta[:, :, :, None] * b[:, None, :, :].float()) * x[:, :, :, None].float()
        h, outputs = torch.zeros(x.shape[0], WIDTH, STATES), []
        for t in range(x.shape[2]):
            h = decays[:, :, t, :] * h + added[:, :, t, :]
            outputs.append(torch.matmul(h, c[:, t, :].unsqueeze(-1))[:, :, 0])
        return torch.stack(outputs, dim=-1).transpose(1, 2)


class TimeFirst(Projections):
    """A loop over [B, T, D, N] of einsums, read by a sum."""

    def forward(self, x: Tensor) -> Tensor:
        delta, a, b, c = self.project(x)
        decays = torch.exp(torch.einsum("b l d, d n -> b l d n", delta, a))
        added = torch.einsum("b l d, b l n, b l d -> b l d n", delta, b, x)
        h, outputs = torch.zeros(x.shape[0], WIDTH, STATES), []
        for t in range(x.shape[1]):
            h = decays[:, t] * h + added[:, t]
            outputs.append((h * c[:, t].unsqueeze(1)).sum(-1))
        return torch.stack(outputs, dim=1)


class Closed(Projections):
    """All at once: exp(S) cumsum(U exp(-S))."""

    def forward(self, x: Tensor) -> Tensor:
        delta, a, b, c = self.project(x)
        sums = (delta.unsqueeze(-1) * a).cumsum(1)
        h = torch.exp(sums) * torch.cumsum((delta * x).unsqueeze(-1) * b.unsqueeze(2) * torch.exp(-sums), 1)
        return (h * c.unsqueeze(2)).sum(-1)


class Quotient(Projections):
    """All at once: cumsum(U / exp(S)) exp(S), of einsums."""

    def forward(self, x: Tensor) -> Tensor:
        delta, a, b, c = self.project(x)
        grown = torch.einsum("bld,dn->bldn", delta, a).cumsum(1).exp()
        h = (torch.einsum("bld,bln,bld->bldn", delta, b, x) / grown).cumsum(1) * grown
        return torch.einsum("bldn,bln->bld", h, c)


SPELLINGS = (ChannelsFirst, TimeFirst, Closed, Quotient)


@pytest.mark.parametrize("spelling", SPELLINGS, ids=lambda one: str(one.__name__))
def test_a_foreign_spelling_becomes_the_op_with_the_same_numbers(spelling: Any) -> None:
    torch.manual_seed(0)
    model, x = spelling().eval(), torch.randn(2, 9, WIDTH)
    program, reports = rewrite(capture(model, (x,)), COSTS)
    counts = count_operators(program.module)
    assert counts[OP] == 1
    assert "aten.cumsum" not in counts
    assert sum(counts.values()) < 12
    with torch.no_grad():
        assert torch.allclose(program.module(x), model(x), atol=1e-6)
    notes = [note for one in reports if one.name in ("find_closed_scan", "find_loop_scan") for _, note in one.applied]
    assert len(notes) == 1
    assert ("overflows float32" in notes[0]) == (spelling in (Closed, Quotient))
    _, reports = rewrite(program, COSTS, (find_closed_scan, find_loop_scan))
    assert not any(one.applied or one.rejected for one in reports)


def test_what_overflows_in_pytorch_does_not_after_the_rewrite() -> None:
    torch.manual_seed(0)
    model, x = Closed().eval(), torch.randn(1, 400, WIDTH)
    program, _ = rewrite(capture(model, (x,)), COSTS, (fold_constants, find_closed_scan))
    with torch.no_grad():
        assert not torch.isfinite(model(x)).all()
        assert torch.isfinite(program.module(x)).all()


class Mean(Closed):
    """The states are averaged, which is no product with C."""

    def forward(self, x: Tensor) -> Tensor:
        delta, a, b, c = self.project(x)
        sums = (delta.unsqueeze(-1) * a).cumsum(1)
        h = torch.exp(sums) * torch.cumsum((delta * x).unsqueeze(-1) * b.unsqueeze(2) * torch.exp(-sums), 1)
        return (h * c.unsqueeze(2)).mean(-1)


class OtherSums(Projections):
    """The decays that come back are not those that went in."""

    def forward(self, x: Tensor) -> Tensor:
        delta, a, b, c = self.project(x)
        sums = (delta.unsqueeze(-1) * a).cumsum(1)
        other = (delta.unsqueeze(-1) * a).cumsum(0)
        h = torch.exp(other) * torch.cumsum((delta * x).unsqueeze(-1) * b.unsqueeze(2) * torch.exp(-sums), 1)
        return (h * c.unsqueeze(2)).sum(-1)


class OtherSteps(Projections):
    """The input is not scaled by the step sizes."""

    def forward(self, x: Tensor) -> Tensor:
        delta, a, b, c = self.project(x)
        sums = (delta.unsqueeze(-1) * a).cumsum(1)
        h = torch.exp(sums) * torch.cumsum((x * x).unsqueeze(-1) * b.unsqueeze(2) * torch.exp(-sums), 1)
        return (h * c.unsqueeze(2)).sum(-1)


class Backwards(TimeFirst):
    """A loop that reads its rows of C in another order."""

    def forward(self, x: Tensor) -> Tensor:
        delta, a, b, c = self.project(x)
        decays = torch.exp(torch.einsum("b l d, d n -> b l d n", delta, a))
        added = torch.einsum("b l d, b l n, b l d -> b l d n", delta, b, x)
        h, outputs = torch.zeros(x.shape[0], WIDTH, STATES), []
        for t in range(x.shape[1]):
            h = decays[:, t] * h + added[:, t]
            outputs.append((h * c[:, x.shape[1] - 1 - t].unsqueeze(1)).sum(-1))
        return torch.stack(outputs, dim=1)


class Warm(TimeFirst):
    """A loop whose first state is not 0."""

    def forward(self, x: Tensor) -> Tensor:
        delta, a, b, c = self.project(x)
        decays = torch.exp(torch.einsum("b l d, d n -> b l d n", delta, a))
        added = torch.einsum("b l d, b l n, b l d -> b l d n", delta, b, x)
        h, outputs = torch.ones(x.shape[0], WIDTH, STATES), []
        for t in range(x.shape[1]):
            h = decays[:, t] * h + added[:, t]
            outputs.append((h * c[:, t].unsqueeze(1)).sum(-1))
        return torch.stack(outputs, dim=1)


@pytest.mark.parametrize("spelling", [Mean, OtherSums, OtherSteps, Backwards, Warm], ids=lambda one: str(one.__name__))
def test_the_nearest_wrong_graph_is_left_with_the_same_numbers(spelling: Any) -> None:
    torch.manual_seed(0)
    model, x = spelling().eval(), torch.randn(2, 9, WIDTH)
    program, reports = rewrite(capture(model, (x,)), COSTS, (fold_constants, find_closed_scan, find_loop_scan))
    assert OP not in count_operators(program.module)
    with torch.no_grad():
        assert torch.allclose(program.module(x), model(x), atol=1e-6)
    reasons = [one.reason for report in reports for one in report.rejected]
    assert len(reasons) == {Mean: 1, OtherSteps: 1, Backwards: 1}.get(spelling, 0)
