"""TransNeXt in its authors' manner: tokens, F.unfold, a table of distances that an index spreads, buffers of one size.

With `img_size`, and the tables handed from the model to every block. Names are those of the released checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

WINDOW = 3


@torch.no_grad()
def lengths_and_mask(resolution: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Neighbours of each token, [N, 1], and where a neighbour is none, [N, 9]."""
    seen = F.unfold(torch.ones([1, 1, *resolution]), WINDOW, dilation=1, padding=WINDOW // 2, stride=1)
    return seen.sum(-2).squeeze().unsqueeze(-1), seen.squeeze(0).permute(1, 0) == 0


@torch.no_grad()
def relative_table(query: tuple[int, int], key: tuple[int, int], pretrain: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The distinct pairs of distances, log-spaced, and which pair belongs to each query and key."""
    axes = []
    for q, k in zip(query, key, strict=True):
        at = torch.arange(q, dtype=torch.float32)
        axes.append((at, F.adaptive_avg_pool1d(at[None], k)[0]))
    queries = torch.stack(torch.meshgrid(axes[0][0], axes[1][0], indexing="ij")).flatten(1).T
    keys = torch.stack(torch.meshgrid(axes[0][1], axes[1][1], indexing="ij")).flatten(1).T
    apart = queries[:, None] - keys[None]  # [N, P, 2]
    apart = apart * 8 / (torch.tensor(pretrain, dtype=torch.float32) - 1)
    apart = torch.sign(apart) * torch.log2(apart.abs() + 1.0) / np.log2(8)
    distinct, index = torch.unique(apart.reshape(-1, 2), dim=0, return_inverse=True)
    return index, distinct


class DWConv(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, kernel_size=3, stride=1, padding=1, bias=True, groups=dim)

    def forward(self, x: Tensor, h: int, w: int) -> Tensor:
        b, _, c = x.shape
        x = x.transpose(1, 2).view(b, c, h, w).contiguous()
        return self.dwconv(x).flatten(2).transpose(1, 2)


class ConvolutionalGLU(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        hidden = int(2 * hidden / 3)
        self.fc1 = nn.Linear(dim, hidden * 2)
        self.dwconv = DWConv(hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, dim)
        self.drop = nn.Dropout(0.0)

    def forward(self, x: Tensor, h: int, w: int) -> Tensor:
        x, gate = self.fc1(x).chunk(2, dim=-1)
        x = self.act(self.dwconv(x, h, w)) * gate
        return self.drop(self.fc2(self.drop(x)))


class Attention(nn.Module):
    def __init__(self, dim: int, resolution: tuple[int, int], heads: int) -> None:
        super().__init__()
        self.heads, self.width = heads, dim // heads
        self.temperature = nn.Parameter(torch.log((torch.ones(heads, 1, 1) / 0.24).exp() - 1))
        length = torch.as_tensor(np.log(resolution[0] * resolution[1]))  # of float64, as it is
        self.register_buffer("seq_length_scale", length, persistent=False)
        self.qkv = nn.Linear(dim, dim * 3)
        self.query_embedding = nn.Parameter(nn.init.trunc_normal_(torch.empty(heads, 1, self.width), std=0.02))
        self.attn_drop = nn.Dropout(0.0)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(0.0)
        self.cpb_fc1 = nn.Linear(2, 512)
        self.cpb_act = nn.ReLU(inplace=True)
        self.cpb_fc2 = nn.Linear(512, heads)

    def forward(self, x: Tensor, h: int, w: int, index: Tensor, table: Tensor) -> Tensor:
        b, n, c = x.shape
        qkv = self.qkv(x).reshape(b, -1, 3 * self.heads, self.width).permute(0, 2, 1, 3)
        q, k, v = qkv.chunk(3, dim=1)
        bias = self.cpb_fc2(self.cpb_act(self.cpb_fc1(table))).transpose(0, 1)[:, index.view(-1)].view(-1, n, n)
        q = (F.normalize(q, dim=-1) + self.query_embedding) * F.softplus(self.temperature) * self.seq_length_scale
        attn = q @ F.normalize(k, dim=-1).transpose(-2, -1) + bias
        attn = self.attn_drop(attn.softmax(dim=-1))
        return self.proj_drop(self.proj((attn @ v).transpose(1, 2).reshape(b, n, c)))


class AggregatedAttention(nn.Module):
    def __init__(self, dim: int, resolution: tuple[int, int], heads: int, sr_ratio: int) -> None:
        super().__init__()
        self.heads, self.width, self.taps = heads, dim // heads, WINDOW**2
        self.pooled = (resolution[0] // sr_ratio, resolution[1] // sr_ratio)
        self.pool_len = self.pooled[0] * self.pooled[1]
        self.unfold = nn.Unfold(kernel_size=WINDOW, padding=WINDOW // 2, stride=1)
        self.temperature = nn.Parameter(torch.log((torch.ones(heads, 1, 1) / 0.24).exp() - 1))
        self.q = nn.Linear(dim, dim)
        self.query_embedding = nn.Parameter(nn.init.trunc_normal_(torch.empty(heads, 1, self.width), std=0.02))
        self.kv = nn.Linear(dim, dim * 2)
        self.attn_drop = nn.Dropout(0.0)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(0.0)
        self.pool = nn.AdaptiveAvgPool2d(self.pooled)
        self.sr = nn.Conv2d(dim, dim, kernel_size=1, stride=1, padding=0)
        self.norm = nn.LayerNorm(dim)
        self.act = nn.GELU()
        self.cpb_fc1 = nn.Linear(2, 512)
        self.cpb_act = nn.ReLU(inplace=True)
        self.cpb_fc2 = nn.Linear(512, heads)
        self.relative_pos_bias_local = nn.Parameter(0.0004 * torch.randn(heads, self.taps))
        lengths, mask = lengths_and_mask(resolution)
        scale = torch.as_tensor(np.log(lengths.numpy() + self.pool_len))
        self.register_buffer("seq_length_scale", scale, persistent=False)
        self.register_buffer("padding_mask", mask, persistent=False)
        self.learnable_tokens = nn.Parameter(0.02 * torch.randn(heads, self.width, self.taps))
        self.learnable_bias = nn.Parameter(torch.zeros(heads, 1, self.taps))

    def forward(self, x: Tensor, h: int, w: int, index: Tensor, table: Tensor) -> Tensor:
        b, n, c = x.shape
        unit = F.normalize(self.q(x).reshape(b, n, self.heads, self.width).permute(0, 2, 1, 3), dim=-1)
        query = (unit + self.query_embedding) * F.softplus(self.temperature) * self.seq_length_scale

        k, v = self.kv(x).chunk(2, dim=-1)
        k = F.normalize(k.reshape(b, n, self.heads, self.width), dim=-1).reshape(b, n, -1)
        kv = torch.cat([k, v], dim=-1).permute(0, 2, 1).reshape(b, -1, h, w)
        windows = self.unfold(kv).reshape(b, 2 * self.heads, self.width, self.taps, n).permute(0, 1, 4, 2, 3)
        k, v = windows.chunk(2, dim=1)
        local = (query.unsqueeze(-2) @ k).squeeze(-2) + self.relative_pos_bias_local.unsqueeze(1)
        local = local.masked_fill(self.padding_mask, float("-inf"))

        u = x.permute(0, 2, 1).reshape(b, -1, h, w).contiguous()
        u = self.norm(self.pool(self.act(self.sr(u))).reshape(b, -1, self.pool_len).permute(0, 2, 1))
        pooled = self.kv(u).reshape(b, self.pool_len, 2 * self.heads, self.width).permute(0, 2, 1, 3)
        pool_k, pool_v = pooled.chunk(2, dim=1)
        bias = self.cpb_fc2(self.cpb_act(self.cpb_fc1(table))).transpose(0, 1)[:, index.view(-1)]
        pool = query @ F.normalize(pool_k, dim=-1).transpose(-2, -1) + bias.view(-1, n, self.pool_len)

        attn = self.attn_drop(torch.cat([local, pool], dim=-1).softmax(dim=-1))
        local, pool = torch.split(attn, [self.taps, self.pool_len], dim=-1)
        local = unit @ self.learnable_tokens + self.learnable_bias + local
        y = (local.unsqueeze(-2) @ v.transpose(-2, -1)).squeeze(-2) + pool @ pool_v
        return self.proj_drop(self.proj(y.transpose(1, 2).reshape(b, n, c)))


class Block(nn.Module):
    def __init__(self, dim: int, resolution: tuple[int, int], heads: int, ratio: int, sr_ratio: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = (
            Attention(dim, resolution, heads)
            if sr_ratio == 1
            else AggregatedAttention(dim, resolution, heads, sr_ratio)
        )
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = ConvolutionalGLU(dim, dim * ratio)
        self.drop_path = nn.Identity()

    def forward(self, x: Tensor, h: int, w: int, index: Tensor, table: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x), h, w, index, table))
        return x + self.drop_path(self.mlp(self.norm2(x), h, w))


class OverlapPatchEmbed(nn.Module):
    def __init__(self, patch: int, stride: int, channels: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, kernel_size=patch, stride=stride, padding=(patch // 2, patch // 2))
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> tuple[Tensor, int, int]:
        x = self.proj(x)
        _, _, h, w = x.shape
        return self.norm(x.flatten(2).transpose(1, 2)), h, w


class TransNeXt(nn.Module):
    def __init__(
        self,
        dims: Sequence[int],
        depths: Sequence[int],
        mlp_ratios: Sequence[int] = (8, 8, 4, 4),
        reductions: Sequence[int] = (8, 4, 2, 1),
        num_classes: int = 1000,
        img_size: int = 224,
        pretrain_size: int = 224,
    ) -> None:
        super().__init__()
        for i, (dim, depth) in enumerate(zip(dims, depths, strict=True)):
            side = img_size // 2 ** (i + 2)
            key = side // reductions[i]
            index, table = relative_table((side,) * 2, (key,) * 2, (pretrain_size // 2 ** (i + 2),) * 2)
            self.register_buffer(f"relative_pos_index{i + 1}", index, persistent=False)
            self.register_buffer(f"relative_coords_table{i + 1}", table, persistent=False)
            embed = OverlapPatchEmbed(3, 2, dims[i - 1], dim) if i else OverlapPatchEmbed(7, 4, 3, dim)
            setattr(self, f"patch_embed{i + 1}", embed)
            blocks = [Block(dim, (side, side), dim // 24, mlp_ratios[i], reductions[i]) for _ in range(depth)]
            setattr(self, f"block{i + 1}", nn.ModuleList(blocks))
            setattr(self, f"norm{i + 1}", nn.LayerNorm(dim, eps=1e-6))
        self.head = nn.Linear(dims[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        b = x.shape[0]
        for i in range(1, 5):
            x, h, w = getattr(self, f"patch_embed{i}")(x)
            table, index = getattr(self, f"relative_coords_table{i}"), getattr(self, f"relative_pos_index{i}")
            for block in getattr(self, f"block{i}"):
                x = block(x, h, w, index, table)
            x = getattr(self, f"norm{i}")(x)
            if i < 4:
                x = x.reshape(b, h, w, -1).permute(0, 3, 1, 2).contiguous()
        return self.head(x.mean(dim=1))


def micro() -> TransNeXt:
    """TransNeXt Micro at its published size."""
    return TransNeXt(dims=(48, 96, 192, 384), depths=(2, 2, 15, 2))
