"""State space scans in the spellings of others: chunks, squares, loops and both directions, and the nearest others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgesmith.exporters.costs import Costs
from edgesmith.exporters.graph.capture import capture
from edgesmith.exporters.graph.edit import count_operators
from edgesmith.exporters.rewrites.find_state_space import find_quasiseparable, find_state_space
from edgesmith.exporters.rewrites.order import rewrite

COSTS = Costs(3.0, loop_us=0.8, read_gb_s=75)
SSD, BOTH = "edgesmith.ssd", "edgesmith.quasiseparable"
HEADS, WIDTH, GROUPS, STATES, CHUNK = 4, 3, 2, 5, 4
INNER = HEADS * WIDTH


class Mixer(nn.Module):
    """What Mamba-2 has around its scan: projections, a convolution, a diagonal and a gated norm."""

    directions = 1

    def __init__(self) -> None:
        super().__init__()
        self.sizes = [INNER, INNER + 2 * self.directions * GROUPS * STATES, self.directions * HEADS]
        self.in_proj = nn.Linear(6, sum(self.sizes), bias=False)
        self.conv1d = nn.Conv1d(self.sizes[1], self.sizes[1], 4, padding=3, groups=self.sizes[1])
        self.A_log = nn.Parameter(torch.linspace(0.2, 3, HEADS).log())
        self.D, self.dt_bias = nn.Parameter(torch.rand(HEADS)), nn.Parameter(torch.randn(HEADS))
        self.out_proj = nn.Linear(INNER, 6, bias=False)

    def project(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """z, the convolved x, B and C, and the raw step sizes."""
        z, mixed, dt = self.in_proj(u).split(self.sizes, dim=-1)
        mixed = self.conv1d(mixed.transpose(1, 2))[..., : u.shape[1]].transpose(1, 2)
        return z, F.silu(mixed), dt

    def scan(self, x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, u: Tensor) -> Tensor:
        z, mixed, dt = self.project(u)
        x, b, c = mixed.split([INNER, GROUPS * STATES, GROUPS * STATES], dim=-1)
        dt = F.softplus(dt + self.dt_bias).clamp(0.0, 100.0)
        y = self.scan(x, dt, -torch.exp(self.A_log.float()), b, c)
        out: Tensor = self.out_proj(y * F.silu(z))
        return out

    def in_heads(self, x: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = x.reshape(*x.shape[:2], -1, WIDTH)
        b, c = (rows.reshape(*rows.shape[:2], -1, STATES) for rows in (b, c))
        b, c = (rows.repeat_interleave(HEADS // GROUPS, dim=2, output_size=HEADS) for rows in (b, c))
        return x, b, c


def segment_sum(steps: Tensor) -> Tensor:
    """Sums over j < r <= i, -inf above the diagonal, as a masked cumulative sum."""
    size = steps.shape[-1]
    steps = steps[..., None].expand(*steps.shape, size)
    steps = steps.masked_fill(~torch.tril(torch.ones(size, size, dtype=torch.bool), diagonal=-1), 0)
    sums = torch.cumsum(steps, dim=-2)
    return sums.masked_fill(~torch.tril(torch.ones(size, size, dtype=torch.bool)), -torch.inf)


class Chunked(Mixer):
    """Chunks and segment sums by products and sums, padded to whole chunks, as transformers' slow path has it."""

    def scan(self, x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        length = x.shape[1]
        x, b, c = self.in_heads(x, b, c)
        missing = (CHUNK - length % CHUNK) % CHUNK

        def cut(value: Tensor) -> Tensor:
            padded = F.pad(value, (*[0] * (2 * value.dim() - 4), 0, missing))
            return padded.reshape(value.shape[0], -1, CHUNK, *value.shape[2:])

        skip = self.D[:, None] * F.pad(x, (0, 0, 0, 0, 0, missing))
        x, steps, b, c = (cut(value) for value in (x * dt[..., None], a * dt, b, c))
        steps = steps.permute(0, 3, 1, 2)
        sums = torch.cumsum(steps, dim=-1)
        between = torch.exp(segment_sum(steps))
        scores = (c[:, :, :, None] * b[:, :, None]).sum(-1)
        weights = (scores[..., None] * between.permute(0, 2, 3, 4, 1)[..., None]).sum(-1)
        own = (weights[..., None] * x[:, :, None]).sum(dim=3)
        decays = torch.exp(sums[:, :, :, -1:] - sums)
        ends = ((b * decays.permute(0, 2, 3, 1)[..., None])[..., None, :] * x[..., None]).sum(dim=2)
        ends = torch.cat([torch.zeros_like(ends[:, :1]), ends], dim=1)
        across = torch.exp(segment_sum(F.pad(sums[:, :, :, -1], (1, 0)))).transpose(1, 3)
        states = (across[..., None, None] * ends[:, :, None, ...]).sum(dim=1)[:, :-1]
        read = (c[..., None, :] * states[:, :, None, ...]).sum(-1) * torch.exp(sums).permute(0, 2, 3, 1)[..., None]
        y = (own + read).reshape(x.shape[0], -1, HEADS, WIDTH) + skip
        return y[:, :length].reshape(x.shape[0], length, -1)


class Quadratic(Mixer):
    """One square of differences of cumulative sums, by einsums, heads first."""

    def scan(self, x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        skip = self.D[:, None] * x.reshape(*x.shape[:2], -1, WIDTH)
        return self.square(x, dt, a, b, c) + skip.flatten(2)

    def square(self, x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        x, b, c = self.in_heads(x, b, c)
        sums = (dt * a).cumsum(1).transpose(1, 2)  # [B, H, T]
        between = (sums.unsqueeze(-1) - sums.unsqueeze(-2)).tril().exp().tril()
        weights = torch.einsum("bihn,bjhn->bhij", c, b) * between
        return torch.einsum("bhij,bjhp->bihp", weights, x * dt.unsqueeze(-1)).flatten(2)


class Loop(Mixer):
    """A Python loop over the states [B, H, P, N]."""

    def scan(self, x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        x, b, c = self.in_heads(x, b, c)
        h = torch.zeros(x.shape[0], HEADS, WIDTH, STATES)
        outputs = []
        for t in range(x.shape[1]):
            decay = torch.exp(dt[:, t] * a)[..., None, None]
            h = decay * h + (dt[:, t, :, None] * x[:, t]).unsqueeze(-1) * b[:, t].unsqueeze(-2)
            outputs.append((h * c[:, t].unsqueeze(-2)).sum(-1))
        return (torch.stack(outputs, dim=1) + self.D[:, None] * x).flatten(2)


SPELLINGS = (Chunked, Quadratic, Loop)


@pytest.mark.parametrize("length", [8, 11])
@pytest.mark.parametrize("spelling", SPELLINGS, ids=lambda one: str(one.__name__))
def test_a_foreign_scan_becomes_the_op_with_the_same_numbers(spelling: Any, length: int) -> None:
    torch.manual_seed(0)
    model, u = spelling().eval(), torch.randn(2, length, 6)
    program, reports = rewrite(capture(model, (u,)), COSTS)
    counts = count_operators(program.module)
    assert counts[SSD] == 1
    assert not {"aten.cumsum", "aten.exp", "aten.stack"} & counts.keys()
    assert sum(counts.values()) < 30
    with torch.no_grad():
        expected = model(u)
        assert float((program.module(u) - expected).abs().max()) <= 1e-5 * float(expected.abs().max())
    _, reports = rewrite(program, COSTS, (find_state_space,))
    assert not any(one.applied or one.rejected for one in reports)


@pytest.mark.parametrize("spelling", [Chunked], ids=lambda one: str(one.__name__))
def test_a_free_batch_stays_free(spelling: Any) -> None:
    torch.manual_seed(0)
    model, u = spelling().eval(), torch.randn(2, 6, 6)
    program, _ = rewrite(capture(model, (u,), dynamic_batch=True), COSTS)
    assert count_operators(program.module)[SSD] == 1
    with torch.no_grad():
        for given in (u, torch.randn(3, 6, 6)):
            assert torch.allclose(program.module(given), model(given), atol=1e-5)


class Leaky(Quadratic):
    """Every step sees its own decay too."""

    def scan(self, x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        x, b, c = self.in_heads(x, b, c)
        sums = (dt * a).cumsum(1).transpose(1, 2)
        before = sums - (dt * a).transpose(1, 2)
        between = (sums.unsqueeze(-1) - before.unsqueeze(-2)).tril().exp().tril()
        weights = torch.einsum("bihn,bjhn->bhij", c, b) * between
        return torch.einsum("bhij,bjhp->bihp", weights, x * dt.unsqueeze(-1)).flatten(2)


class LastState(Loop):
    """The state after the last step is returned too."""

    def forward(self, u: Tensor) -> Any:
        _, mixed, dt = self.project(u)
        x, b, c = mixed.split([INNER, GROUPS * STATES, GROUPS * STATES], dim=-1)
        x, b, c = self.in_heads(x, b, c)
        dt, a = F.softplus(dt), -torch.exp(self.A_log)
        h, outputs = torch.zeros(x.shape[0], HEADS, WIDTH, STATES), []
        for t in range(x.shape[1]):
            h = torch.exp(dt[:, t] * a)[..., None, None] * h
            h = h + (dt[:, t, :, None] * x[:, t]).unsqueeze(-1) * b[:, t].unsqueeze(-2)
            outputs.append((h * c[:, t].unsqueeze(-2)).sum(-1))
        return torch.stack(outputs, dim=1), h


@pytest.mark.parametrize(
    ("spelling", "reason"),
    [
        (Leaky, "it has the parts of a state space scan, and computes other numbers"),
        (LastState, "a state in it is also read by"),
    ],
)
def test_the_nearest_wrong_scan_is_left_and_says_why(spelling: Any, reason: str) -> None:
    torch.manual_seed(0)
    program, reports = rewrite(capture(spelling().eval(), (torch.randn(2, 8, 6),)), COSTS)
    assert SSD not in count_operators(program.module)
    report = next(one for one in reports if one.name == "find_state_space")
    assert [one.reason[: len(reason)] for one in report.rejected] == [reason]


class BothDirections(Quadratic):
    """Hydra as its authors have it: a batch of both directions, rolled by a step, its first step zeroed in place."""

    directions = 2

    def __init__(self) -> None:
        super().__init__()
        self.fc_D = nn.Linear(INNER, HEADS, bias=False)

    def diagonal(self, x: Tensor) -> Tensor:
        return F.linear(x, self.fc_D.weight, self.dt_bias).unsqueeze(-1).expand(-1, -1, -1, WIDTH).flatten(2) * x

    def forward(self, u: Tensor) -> Tensor:
        rows = GROUPS * STATES
        z, mixed, dt = self.project(u)
        dt = torch.cat((dt[:, :, :HEADS], torch.flip(dt[:, :, HEADS:], (1,))), dim=0)
        dt = F.softplus(dt + self.dt_bias)
        x, both = mixed.split([INNER, 4 * rows], dim=-1)
        own = x
        x = torch.cat((x, torch.flip(x, (1,))), dim=0)
        both = torch.cat((both[:, :, : 2 * rows], torch.flip(both[:, :, 2 * rows :], (1,))), dim=0)
        b, c = both.split([rows, rows], dim=-1)
        y = self.square(x, dt, -torch.exp(self.A_log), b, c)
        y = torch.roll(y, shifts=1, dims=1)
        y[:, 0, :] = 0.0
        forward, backward = y[: len(u)], torch.flip(y[len(u) :], (1,))
        y = forward + backward + self.diagonal(own)
        out: Tensor = self.out_proj(y * F.silu(z))
        return out


class TwoScans(BothDirections):
    """A scan of each direction, each shifted by a concatenation."""

    def forward(self, u: Tensor) -> Tensor:
        rows = GROUPS * STATES
        z, mixed, dt = self.project(u)
        dt = F.softplus(dt + torch.cat((self.dt_bias, self.dt_bias)))
        delta_f, delta_b = dt.split([HEADS, HEADS], -1)
        x, b_f, c_f, b_b, c_b = mixed.split([INNER, *[rows] * 4], dim=-1)
        a = -torch.exp(self.A_log)
        forward = self.square(x, delta_f, a, b_f, c_f)
        backward = self.square(x.flip(1), delta_b.flip(1), a, b_b.flip(1), c_b.flip(1))
        none = torch.zeros_like(forward[:, :1])
        forward, backward = (torch.cat((none, one[:, :-1]), dim=1) for one in (forward, backward))
        out: Tensor = self.out_proj((forward + backward.flip(1) + self.diagonal(x)) * F.silu(z))
        return out


@pytest.mark.parametrize("spelling", [BothDirections, TwoScans], ids=lambda one: str(one.__name__))
def test_scans_in_both_directions_become_one_mixer(spelling: Any) -> None:
    torch.manual_seed(0)
    model, u = spelling().eval(), torch.randn(2, 9, 6)
    program, _ = rewrite(capture(model, (u,)), COSTS)
    counts = count_operators(program.module)
    assert counts.get(BOTH) == 1
    assert not {SSD, "aten.cumsum", "aten.roll", "aten.exp"} & counts.keys()
    with torch.no_grad():
        expected = model(u)
        assert float((program.module(u) - expected).abs().max()) <= 1e-5 * float(expected.abs().max())
    _, reports = rewrite(program, COSTS, (find_state_space, find_quasiseparable))
    assert not any(one.applied or one.rejected for one in reports)


class NotShifted(TwoScans):
    """Both scans see the present step."""

    def forward(self, u: Tensor) -> Tensor:
        rows = GROUPS * STATES
        _, mixed, dt = self.project(u)
        delta_f, delta_b = F.softplus(dt).split([HEADS, HEADS], -1)
        x, b_f, c_f, b_b, c_b = mixed.split([INNER, *[rows] * 4], dim=-1)
        a = -torch.exp(self.A_log)
        backward = self.square(x.flip(1), delta_b.flip(1), a, b_b.flip(1), c_b.flip(1))
        out: Tensor = self.out_proj(self.square(x, delta_f, a, b_f, c_f) + backward.flip(1))
        return out


def test_both_directions_with_the_present_are_two_scans_and_say_why() -> None:
    torch.manual_seed(0)
    model, u = NotShifted().eval(), torch.randn(2, 9, 6)
    program, reports = rewrite(capture(model, (u,)), COSTS)
    counts = count_operators(program.module)
    assert (counts[SSD], counts.get(BOTH, 0)) == (2, 0)
    (report,) = [one for one in reports if one.name == "find_quasiseparable"]
    assert "adds the outputs up in another way" in report.rejected[0].reason
    with torch.no_grad():
        assert torch.allclose(program.module(u), model(u), atol=1e-5)


@pytest.mark.parametrize("name", ["Mamba2", "Mamba"])
def test_transformers_slow_paths_get_the_ops(name: str) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(0)
    common = {"hidden_size": 16, "num_hidden_layers": 2, "vocab_size": 32, "state_size": 4, "use_cache": False}
    own = {"num_heads": 4, "head_dim": 8, "n_groups": 2, "chunk_size": 4} if name == "Mamba2" else {}
    model = getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**common, **own)).eval()
    ids = torch.randint(0, 32, (1, 10))
    program, _ = rewrite(capture(Hidden(model), (ids,)), COSTS)
    counts = count_operators(program.module)
    assert counts[SSD if name == "Mamba2" else "edgesmith.selective_scan"] == 2
    assert not {"aten.cumsum", "aten.exp"} & counts.keys()
    with torch.no_grad():
        expected = model(ids, use_cache=False).last_hidden_state
        assert float((program.module(ids) - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


class Hidden(nn.Module):
    """The last hidden state of a model that returns several things."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        states: Tensor = self.model(ids, use_cache=False).last_hidden_state
        return states
