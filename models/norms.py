"""Layer norms of maps [B, C, H, W] with weights [C], in plain export-friendly PyTorch.

    over C        (x - mean_C) / sqrt(var_C + eps) * w + b           at each position
    over C, H, W  (x - mean_CHW) / sqrt(var_CHW + eps) * w           of each sample: a group norm of one group

Variances are biased. Source: layer normalisation, arXiv 1607.06450.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ChannelNorm(nn.Module):
    """Layer norm over the channels at each position. [B, C, *] -> [B, C, *]"""

    def __init__(self, dim: int, eps: float, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim)) if bias else None
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        broadcast = (-1, *[1] * (x.dim() - 2))
        centred = x - x.mean(1, keepdim=True)
        variance = (centred * centred).mean(1, keepdim=True)
        y = centred / torch.sqrt(variance + self.eps) * self.weight.reshape(broadcast)
        return y if self.bias is None else y + self.bias.reshape(broadcast)


class SampleNorm(nn.Module):
    """Norm over all of a sample, with a scale for each channel and no shift. [B, C, H, W] -> [B, C, H, W]"""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.group_norm(x, 1, self.weight, None, self.eps)
