"""Hydra in its authors' manner: both directions in one batch, flipped and rolled, scans in chunks with segment sums."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def segment_sum(steps: Tensor) -> Tensor:
    """Sums of steps over every segment; -inf above the diagonal. [..., Q] -> [..., Q, Q]"""
    size = steps.shape[-1]
    x = steps[..., None].expand(*steps.shape, size)
    x = x.masked_fill(~torch.ones(size, size, dtype=torch.bool).tril(-1), 0).cumsum(-2)
    return x.masked_fill(~torch.ones(size, size, dtype=torch.bool).tril(0), -torch.inf)


def chunk_scan(x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, chunk: int) -> Tensor:
    """Mamba-2's scan as it is written in PyTorch. x [B, T, H, P], dt [B, T, H], b and c [B, T, 1, N]."""
    size, heads = x.shape[1], x.shape[2]

    def cut(value: Tensor) -> Tensor:
        return value.reshape(value.shape[0], -1, chunk, *value.shape[2:])

    x, steps = cut(x * dt[..., None]), cut(dt * a).permute(0, 3, 1, 2)
    b, c = (cut(value.expand(-1, -1, heads, -1)) for value in (b, c))
    sums = steps.cumsum(-1)
    within = torch.einsum("bclhn,bcshn,bhcls,bcshp->bclhp", c, b, segment_sum(steps).exp(), x)
    states = torch.einsum("bclhn,bhcl,bclhp->bchpn", b, (sums[..., -1:] - sums).exp(), x)
    states = torch.cat([torch.zeros_like(states[:, :1]), states], dim=1)
    carried = segment_sum(F.pad(sums[..., -1], (1, 0))).exp()
    states = torch.einsum("bhzc,bchpn->bzhpn", carried, states)[:, :-1]
    across = torch.einsum("bclhn,bchpn,bhcl->bclhp", c, states, sums.exp())
    return (within + across).reshape(-1, size, heads, x.shape[-1])


class GatedNorm(nn.Module):
    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        rstd = 1 / torch.sqrt(x.square().mean(dim=-1, keepdim=True) + self.eps)
        return x * rstd * self.weight * F.silu(z)


class Hydra(nn.Module):
    """[B, T, C] -> [B, T, C], one group."""

    def __init__(self, dim: int, chunk: int = 64, state: int = 64, head_dim: int = 64) -> None:
        super().__init__()
        self.inner, self.rows, self.heads, self.chunk = 2 * dim, state, 2 * dim // head_dim, chunk
        mixed = self.inner + 4 * state
        self.in_proj = nn.Linear(dim, self.inner + mixed + 2 * self.heads, bias=False)
        self.conv1d = nn.Conv1d(mixed, mixed, 7, padding=3, groups=mixed)
        self.dt_bias, self.A_log, self.D = (nn.Parameter(torch.zeros(self.heads)) for _ in range(3))
        self.fc_D = nn.Linear(self.inner, self.heads, bias=False)
        self.norm = GatedNorm(self.inner)
        self.out_proj = nn.Linear(self.inner, dim, bias=False)

    def forward(self, u: Tensor) -> Tensor:
        batch, size, _ = u.shape
        z, mixed, dt = torch.split(self.in_proj(u), [self.inner, self.inner + 4 * self.rows, 2 * self.heads], dim=-1)
        dt = torch.cat((dt[:, :, : self.heads], torch.flip(dt[:, :, self.heads :], (1,))), dim=0)
        dt = F.softplus(dt + self.dt_bias)
        mixed = F.silu(self.conv1d(mixed.transpose(1, 2)).transpose(1, 2))
        x, both = torch.split(mixed, [self.inner, 4 * self.rows], dim=-1)
        own = x
        x = torch.cat((x, torch.flip(x, (1,))), dim=0).reshape(2 * batch, size, self.heads, -1)
        half = 2 * self.rows
        both = torch.cat((both[:, :, :half], torch.flip(both[:, :, half:], (1,))), dim=0)
        b, c = (part.unsqueeze(2) for part in torch.split(both, [self.rows, self.rows], dim=-1))
        y = chunk_scan(x, dt, -torch.exp(self.A_log), b, c, self.chunk).reshape(2 * batch, size, -1)
        y = torch.roll(y, shifts=1, dims=1)
        y[:, 0, :] = 0.0
        y = y[:batch] + torch.flip(y[batch:], (1,))
        diagonal = F.linear(own, self.fc_D.weight, bias=self.D)
        y = y + own * diagonal.repeat_interleave(own.shape[-1] // self.heads, dim=-1)
        return self.out_proj(self.norm(y, z))


def d768() -> Hydra:
    """A block of width 768."""
    return Hydra(768)
