"""Hydra: bidirectional state space mixers for sequences, in export-friendly PyTorch.

    z, x, B, C, Delta = in_proj(u)                  x, B, C through one depthwise convolution over time, and SiLU
    y   = quasiseparable(x, Delta, A, B, C, D)      scans in both directions and a diagonal, fc_D(x) + D
    out = out_proj(rms(y) * SiLU(z))                                                              [B, T, C] -> [B, T, C]

The convolution looks ahead as far as it looks back, so none of it is causal.
Hydra-BERT is layers of x = norm(x + mixer(x)) without MLPs, under BERT's embeddings and heads.

Source: Hwang et al., "Hydra: Bidirectional State Space Models Through Generalized Matrix Mixers", NeurIPS 2024, arXiv
2407.09941. Module names follow the authors' state dicts, so their checkpoints load as they are.
Letters: B batch, T time, C channels, D width inside, H heads, P their width, G groups, N state.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgesmith.kernels import quasiseparable


class GatedNorm(nn.Module):
    """x / rms(x) * weight * SiLU(z), over the last axis."""

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        scale = (x.square().mean(-1, keepdim=True) + self.eps).rsqrt()
        return x * scale * self.weight * F.silu(z)


class Hydra(nn.Module):
    """The Hydra mixer. [B, T, C] -> [B, T, C]

    Args:
        dim: channels C.
        state: N.
        kernel: of the convolution, odd.
        expand: D / C.
        head_dim: P; D must be divisible by it.
        groups: G, which share B and C; the heads must be divisible by it.
    """

    def __init__(
        self, dim: int, state: int = 64, kernel: int = 7, expand: int = 2, head_dim: int = 64, groups: int = 1
    ) -> None:
        super().__init__()
        inner = expand * dim
        self.heads, self.groups, self.state = inner // head_dim, groups, state
        mixed = inner + 4 * groups * state
        self.sizes = (inner, mixed, 2 * self.heads)
        self.dt_bias = nn.Parameter(torch.log(torch.expm1(torch.exp(torch.empty(self.heads).uniform_(-6.9, -2.3)))))
        self.A_log = nn.Parameter(torch.zeros(self.heads))
        self.D = nn.Parameter(torch.ones(self.heads))
        self.in_proj = nn.Linear(dim, sum(self.sizes), bias=False)
        self.conv1d = nn.Conv1d(mixed, mixed, kernel, padding=kernel // 2, groups=mixed)
        self.fc_D = nn.Linear(inner, self.heads, bias=False)
        self.norm = GatedNorm(inner)
        self.out_proj = nn.Linear(inner, dim, bias=False)

    def forward(self, u: Tensor) -> Tensor:
        projected: Tensor = self.in_proj(u)
        z, mixed, steps = torch.split(projected, self.sizes, dim=-1)
        mixed = F.silu(self.conv1d(mixed.transpose(1, 2))).transpose(1, 2)
        rows = self.groups * self.state
        x, rows = torch.split(mixed, (self.sizes[0], mixed.shape[-1] - self.sizes[0]), dim=-1)
        b, c = rows.reshape(*rows.shape[:2], 2, 2, self.groups, self.state).unbind(3)  # [B, T, 2, G, N]
        y: Tensor = quasiseparable.OP.overload(
            x.reshape(*x.shape[:2], self.heads, -1),
            F.softplus(steps.reshape(*steps.shape[:2], 2, -1) + self.dt_bias),
            -self.A_log.exp(),
            b,
            c,
            F.linear(x, self.fc_D.weight, self.D),
        )
        out: Tensor = self.out_proj(self.norm(y.flatten(2), z))
        return out


def hydra_block_d128(**_: Any) -> Hydra:
    """The Hydra mixer of 128 channels."""
    return Hydra(128)


def hydra_block_d768(**_: Any) -> Hydra:
    """The Hydra mixer of 768 channels, as in Hydra-BERT."""
    return Hydra(768)


def from_checkpoint(state: dict[str, Tensor], **_: Any) -> tuple[dict[str, Any], dict[str, Tensor], list[str]]:
    """Return builder options (none), the tensors to load, and no notes."""
    return {}, state, []
