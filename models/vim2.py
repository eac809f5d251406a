"""ViM2: images mixed by selective scans over positions and over channels, in export-friendly PyTorch.

    stem     4x4 convolution of stride 4, a norm                                           [B, 3, H, W] -> [B, h, w, C]
    token    z, u = in(norm(x));  u = SiLU(dw3x3(u));  y = out(norm(sum of 4 scans of u) * SiLU(z))
    channel  u = SiLU(in(norm(x)));  y = out(scan(u) + backwards scan(u)), over the W channels of each position
    block    two token mixers, then one channel mixer; each reads a weighted average of all earlier outputs of its stage
    stage    blocks, at h w, and between stages 2x2 patches merged
    head     norm, mean over positions, linear

The four scans go row by row, column by column, and both backwards, and their outputs are added. Step sizes, B and C are
projected once, before the positions are put in the four orders, since a projection is the same in each.

Source: Behrouz et al., "MambaMixer: Efficient Selective State Space Models with Dual Token and Channel Selection",
arXiv 2403.19888 v1, sections 4.1 to 4.3 and table 6. No code was published, and the paper leaves open, or contradicts
itself in, what is chosen here:

- B, C and step sizes are of the convolved and activated u, as in Mamba's code and the paper's figure, and not of x; B
  is discretised as step size times B; the gate is SiLU of half of in_proj.
- Norms, which the equations lack: a LayerNorm before each mixer and on the sum of the scans, as in VMamba, and one in
  the stem and before the head.
- The channel mixer's linear layers run along the channels. Along positions, as the text has it, they would tie weights
  to the resolution, and T would have 63 M parameters. W is the table's: 2 C, and C in the last stage. No convolution
  and no gate, which the table does not list. `group` channels are one step's features, 1 by default; both directions
  have projections of their own, shared by all positions.
- Step sizes have rank C / 16, rounded up; 16 states; token mixers are 2 C wide inside; 2x2 patches are merged as in
  VMamba.
- The scalars of the averages are free, see weighted_averages.py.

Parameters: printed are 20, 43 and 74 M; these have 22.4, 40.3 and 69.7 M. No reading of the paper has all three within
2 %: without the gate T has 19.3 M, S 33.7 and B 57.8; with it and W = 2 C throughout 23.6, 41.5 and 71.8.
Letters: B batch, C channels, D width inside, H W image, h w map, L = h w, R rank, N state, W width of a channel mixer.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgesmith.kernels import selective_scan
from edgesmith.models.weighted_averages import WeightedAverage

ORDERS = 4
"""Rows, columns, and both backwards."""


def _rates(width: int, state: int) -> Tensor:
    return torch.arange(1.0, state + 1).log().repeat(width, 1)


def _step_bias(*sizes: int) -> Tensor:
    """Return biases for which softplus gives step sizes from 1e-3 to 0.1, log-uniform."""
    steps = torch.exp(torch.empty(*sizes).uniform_(math.log(1e-3), math.log(0.1)))
    return torch.log(torch.expm1(steps))


class CrossScan(nn.Module):
    """Selective scans in four orders, added. [B, D, h, w] -> [B, L, D], row by row

    Args:
        width: D.
        rank, state: R and N.
    """

    def __init__(self, width: int, rank: int, state: int) -> None:
        super().__init__()
        self.sizes = [rank, state, state]
        self.x_proj_weight = nn.Parameter(torch.randn(ORDERS, sum(self.sizes), width) * width**-0.5)
        self.dt_projs_weight = nn.Parameter(torch.empty(ORDERS, width, rank).uniform_(-(rank**-0.5), rank**-0.5))
        self.dt_projs_bias = nn.Parameter(_step_bias(ORDERS, width))
        self.A_logs = nn.Parameter(_rates(ORDERS * width, state))
        self.Ds = nn.Parameter(torch.ones(ORDERS * width))

    def forward(self, x: Tensor) -> Tensor:
        size = (int(x.shape[2]), int(x.shape[3]))
        rows = x.flatten(2).transpose(1, 2)  # [B, L, D]
        projected = F.linear(rows, self.x_proj_weight.flatten(0, 1)).chunk(ORDERS, dim=-1)
        rates, width = -self.A_logs.exp(), rows.shape[-1]
        columns = by_columns(rows, size)
        y = self.Ds.reshape(ORDERS, width).sum(0) * rows
        for k, given in enumerate(projected):
            is_column, is_backwards = k % 2 == 1, k >= 2
            u, given = (columns, by_columns(given, size)) if is_column else (rows, given)
            if is_backwards:
                u, given = u.flip(1), given.flip(1)
            steps, b, c = given.split_with_sizes(self.sizes, dim=-1)
            delta = F.softplus(F.linear(steps, self.dt_projs_weight[k], self.dt_projs_bias[k]))
            one = selective_scan.OP.overload(u, delta, rates[k * width : (k + 1) * width], b, c)
            one = one.flip(1) if is_backwards else one
            y = y + (by_columns(one, size[::-1]) if is_column else one)
        return y


def by_columns(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Return positions of a map, given row by row, column by column. [B, h w, D] -> [B, w h, D]"""
    return torch.unflatten(x, 1, size).transpose(1, 2).flatten(1, 2)


class TokenMixer(nn.Module):
    """Gated scans over positions. [B, h, w, C] -> [B, h, w, C]"""

    def __init__(self, dim: int, state: int = 16, expand: int = 2) -> None:
        super().__init__()
        width = expand * dim
        self.norm = nn.LayerNorm(dim)
        self.in_proj = nn.Linear(dim, 2 * width, bias=False)
        self.conv2d = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.scan = CrossScan(width, math.ceil(dim / 16), state)
        self.out_norm, self.out_proj = nn.LayerNorm(width), nn.Linear(width, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        u, z = self.in_proj(self.norm(x)).chunk(2, dim=-1)
        u = F.silu(self.conv2d(u.permute(0, 3, 1, 2)))
        y = self.out_norm(self.scan(u)).unflatten(1, (u.shape[2], u.shape[3]))
        out: Tensor = self.out_proj(y * F.silu(z))
        return out


class ChannelScan(nn.Module):
    """A selective scan over channels, `group` of them a step. [M, W / group, group] -> the same"""

    def __init__(self, group: int, state: int) -> None:
        super().__init__()
        self.sizes = (math.ceil(group / 16), state, state)
        self.A_log, self.D = nn.Parameter(_rates(group, state)), nn.Parameter(torch.ones(group))
        self.x_proj = nn.Linear(group, sum(self.sizes), bias=False)
        self.dt_proj = nn.Linear(self.sizes[0], group)
        self.dt_proj.bias = nn.Parameter(_step_bias(group))

    def forward(self, x: Tensor) -> Tensor:
        steps, b, c = self.x_proj(x).split(self.sizes, dim=-1)
        y: Tensor = selective_scan.OP.overload(x, F.softplus(self.dt_proj(steps)), -self.A_log.exp(), b, c)
        return y + self.D * x


class ChannelMixer(nn.Module):
    """Scans in both directions over the channels of each position. [B, h, w, C] -> [B, h, w, C]"""

    def __init__(self, dim: int, width: int, group: int = 1, state: int = 16) -> None:
        super().__init__()
        self.group, self.norm = group, nn.LayerNorm(dim)
        self.in_proj, self.out_proj = nn.Linear(dim, width, bias=False), nn.Linear(width, dim, bias=False)
        self.forwards, self.backwards = ChannelScan(group, state), ChannelScan(group, state)

    def forward(self, x: Tensor) -> Tensor:
        u = F.silu(self.in_proj(self.norm(x)))
        steps = u.reshape(-1, u.shape[-1] // self.group, self.group)  # [B h w, W / group, group]
        y = self.forwards(steps) + self.backwards(steps.flip(1)).flip(1)
        out: Tensor = self.out_proj(y.reshape(u.shape))
        return out


class Block(nn.Module):
    """Two token mixers and a channel mixer, each of a weighted average of what came before it in the stage.

    Args:
        before: how many blocks of the stage come before this one.
    """

    def __init__(self, dim: int, width: int, before: int, group: int) -> None:
        super().__init__()
        tokens, channels = 1 + 2 * before, 1 + before
        first = tokens + channels - 1 if before else None  # the channel mixer before it
        self.averages = nn.ModuleList(
            (
                WeightedAverage(tokens, channels, first),
                WeightedAverage(tokens + 1, channels),
                WeightedAverage(tokens + 2, channels),
            )
        )
        self.token_mixers = nn.ModuleList((TokenMixer(dim), TokenMixer(dim)))
        self.channel_mixer = ChannelMixer(dim, width, group)

    def forward(self, tokens: list[Tensor], channels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        for average, mixer in zip(self.averages, self.token_mixers, strict=False):
            tokens = [*tokens, mixer(average(tokens, channels))]
        return tokens, [*channels, self.channel_mixer(self.averages[2](tokens, channels))]


class Stage(nn.Module):
    """Blocks at one size. [B, h, w, C] -> [B, h, w, C]"""

    def __init__(self, depth: int, dim: int, width: int, group: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(dim, width, i, group) for i in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        tokens, channels = [x], [x]
        for block in self.blocks:
            tokens, channels = block(tokens, channels)
        return channels[-1]


class PatchMerging(nn.Module):
    """2x2 patches as one position, odd sizes with zeros after their end. [B, h, w, C] -> [B, h/2, w/2, 2 C]"""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm, self.reduction = nn.LayerNorm(4 * dim), nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        height, width = int(x.shape[1]), int(x.shape[2])
        if height % 2 or width % 2:
            x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
        upper, lower = x[:, 0::2], x[:, 1::2]
        parts = (upper[:, :, 0::2], lower[:, :, 0::2], upper[:, :, 1::2], lower[:, :, 1::2])
        merged: Tensor = self.reduction(self.norm(torch.cat(parts, dim=-1)))
        return merged


class ViM2(nn.Module):
    """ViM2. [B, 3, H, W] -> [B, classes], or with `features` the map of each stage, [B, C, h, w].

    Args:
        dim: C of the first stage; each later one has twice as many.
        depths: blocks of each stage.
        widths: W of each stage's channel mixers.
        num_classes: of the head.
        group: channels that are one step of a channel mixer.
        features: maps instead of logits, without norm and head.
    """

    def __init__(
        self,
        dim: int,
        depths: tuple[int, ...],
        widths: tuple[int, ...],
        num_classes: int = 1000,
        group: int = 1,
        features: bool = False,
    ) -> None:
        super().__init__()
        self.features = features
        dims = [dim * 2**i for i in range(len(depths))]
        self.stem, self.stem_norm = nn.Conv2d(3, dim, 4, stride=4), nn.LayerNorm(dim)
        self.merges = nn.ModuleList(PatchMerging(one) for one in dims[:-1])
        self.stages = nn.ModuleList(
            Stage(depth, one, width, group) for depth, one, width in zip(depths, dims, widths, strict=True)
        )
        self.norm, self.head = nn.LayerNorm(dims[-1]), nn.Linear(dims[-1], num_classes)

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        x = self.stem_norm(self.stem(image).permute(0, 2, 3, 1))
        maps = []
        for i, stage in enumerate(self.stages):
            x = stage(self.merges[i - 1](x) if i else x)
            maps.append(x.permute(0, 3, 1, 2))
        if self.features:
            return maps
        logits: Tensor = self.head(self.norm(x).mean((1, 2)))
        return logits


def vim2_tiny(**options: Any) -> ViM2:
    """ViM2-T. Options: `num_classes`, `features`, `group` of `ViM2`."""
    return ViM2(96, (1, 1, 3, 1), (192, 384, 768, 768), **options)


def vim2_small(**options: Any) -> ViM2:
    """ViM2-S. Options as for `vim2_tiny`."""
    return ViM2(96, (1, 1, 9, 1), (192, 384, 768, 768), **options)


def vim2_base(**options: Any) -> ViM2:
    """ViM2-B. Options as for `vim2_tiny`."""
    return ViM2(128, (1, 1, 9, 1), (256, 512, 1024, 1024), **options)


def from_checkpoint(state: dict[str, Tensor], **_: Any) -> tuple[dict[str, Any], dict[str, Tensor], list[str]]:
    """Return what a checkpoint says about a ViM2, the tensors to load, and no notes."""
    head = state.get("head.weight")
    return {"num_classes": head.shape[0]} if head is not None and head.dim() == 2 else {}, state, []
