"""The Mamba mixer: a selective scan between projections, causal, in export-friendly PyTorch.

    x, z = in_proj(u);  x = SiLU(causal depthwise convolution of x)
    Delta, B, C = x_proj(x);  Delta = softplus(dt_proj(Delta))
    out = out_proj((scan(x, Delta, A, B, C) + D x) * SiLU(z))                                 [B, T, C] -> [B, T, C]

Source: Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", arXiv 2312.00752. Module names
follow transformers' MambaMixer, which are the authors'. Letters: B batch, T time, C channels, D width inside, N state.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgesmith.kernels import selective_scan


class Mamba(nn.Module):
    """The Mamba mixer. [B, T, C] -> [B, T, C]

    Args:
        dim: channels C.
        state: N.
        kernel: of the causal convolution.
        expand: D / C.
    """

    def __init__(self, dim: int, state: int = 16, kernel: int = 4, expand: int = 2) -> None:
        super().__init__()
        inner, rank = expand * dim, math.ceil(dim / 16)
        self.sizes = (rank, state, state)
        self.A_log = nn.Parameter(torch.arange(1.0, state + 1).log().repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.conv1d = nn.Conv1d(inner, inner, kernel, groups=inner)
        self.in_proj = nn.Linear(dim, 2 * inner, bias=False)
        self.x_proj = nn.Linear(inner, sum(self.sizes), bias=False)
        self.dt_proj = nn.Linear(rank, inner)
        self.out_proj = nn.Linear(inner, dim, bias=False)
        sizes = torch.exp(torch.empty(inner).uniform_(math.log(1e-3), math.log(0.1)))
        self.dt_proj.bias = nn.Parameter(torch.log(torch.expm1(sizes)))

    def forward(self, u: Tensor) -> Tensor:
        x, z = self.in_proj(u).chunk(2, dim=-1)
        before = self.conv1d.kernel_size[0] - 1
        x = F.silu(self.conv1d(F.pad(x.transpose(1, 2), (before, 0)))).transpose(1, 2)
        delta, b, c = self.x_proj(x).split(self.sizes, dim=-1)
        y = selective_scan.OP.overload(x, F.softplus(self.dt_proj(delta)), -self.A_log.exp(), b, c)
        out: Tensor = self.out_proj((y + self.D * x) * F.silu(z))
        return out


def mamba_block_d192(**_: Any) -> Mamba:
    """The Mamba mixer of 192 channels."""
    return Mamba(192)


def from_checkpoint(state: dict[str, Tensor], **_: Any) -> tuple[dict[str, Any], dict[str, Tensor], list[str]]:
    """Return builder options (none), the tensors to load, and no notes."""
    return {}, state, []
