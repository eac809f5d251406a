"""SegFormer as a user writes it from the paper: tokens [B, N, C], a map for each convolution, one wide linear head.

Names are those of transformers' module tree, which the zoo's model has too.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


def _map(x: Tensor, height: int, width: int) -> Tensor:
    return x.transpose(1, 2).reshape(x.shape[0], -1, height, width)


class Embedding(nn.Module):
    def __init__(self, channels: int, dim: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, kernel_size=kernel, stride=stride, padding=kernel // 2)
        self.layer_norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> tuple[Tensor, int, int]:
        x = self.proj(x)
        _, _, height, width = x.shape
        return self.layer_norm(_tokens(x)), height, width


class Reduction(nn.Module):
    def __init__(self, dim: int, ratio: int) -> None:
        super().__init__()
        self.sequence_reduction = nn.Conv2d(dim, dim, kernel_size=ratio, stride=ratio)
        self.layer_norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        return self.layer_norm(_tokens(self.sequence_reduction(_map(x, height, width))))


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int, ratio: int) -> None:
        super().__init__()
        self.heads, self.width, self.ratio = heads, dim // heads, ratio
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(dim, dim) for _ in range(4))
        if ratio > 1:
            self.sequence_reduction = Reduction(dim, ratio)

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], -1, self.heads, self.width).transpose(1, 2)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        reduced = self.sequence_reduction(x, height, width) if self.ratio > 1 else x
        q, k, v = self._heads(self.q_proj(x)), self._heads(self.k_proj(reduced)), self._heads(self.v_proj(reduced))
        weights = (torch.matmul(q, k.transpose(-1, -2)) / self.width**0.5).softmax(dim=-1)
        mixed = torch.matmul(weights, v).permute(0, 2, 1, 3).contiguous()
        return self.o_proj(mixed.view(*x.shape))


class Depthwise(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, 3, 1, 1, groups=dim)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        return _tokens(self.dwconv(_map(x, height, width)))


class MixFfn(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.dwconv = Depthwise(4 * dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        return self.fc2(self.act(self.dwconv(self.fc1(x), height, width)))


class Block(nn.Module):
    def __init__(self, dim: int, heads: int, ratio: int) -> None:
        super().__init__()
        self.layernorm_before = nn.LayerNorm(dim, eps=1e-6)
        self.attention = Attention(dim, heads, ratio)
        self.layernorm_after = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = MixFfn(dim)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        x = x + self.attention(self.layernorm_before(x), height, width)
        return x + self.mlp(self.layernorm_after(x), height, width)


class Stage(nn.Module):
    def __init__(self, channels: int, dim: int, depth: int, heads: int, ratio: int) -> None:
        super().__init__()
        self.patch_embeddings = Embedding(channels, dim, *((7, 4) if channels == 3 else (3, 2)))
        self.blocks = nn.ModuleList(Block(dim, heads, ratio) for _ in range(depth))
        self.layer_norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        x, height, width = self.patch_embeddings(x)
        for block in self.blocks:
            x = block(x, height, width)
        return _map(self.layer_norm(x), height, width)


class Projection(nn.Module):
    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, out_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(_tokens(x))


class DecodeHead(nn.Module):
    def __init__(self, dims: Sequence[int], width: int, num_classes: int) -> None:
        super().__init__()
        self.linear_projections = nn.ModuleList(Projection(dim, width) for dim in dims)
        self.linear_fuse = nn.Conv2d(4 * width, width, kernel_size=1, bias=False)
        self.batch_norm = nn.BatchNorm2d(width)
        self.dropout = nn.Dropout(0.1)
        self.classifier = nn.Conv2d(width, num_classes, kernel_size=1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        size, parts = maps[0].shape[2:], []
        for x, project in zip(maps, self.linear_projections, strict=True):
            part = _map(project(x), *x.shape[2:])
            parts.append(F.interpolate(part, size=size, mode="bilinear", align_corners=False))
        x = F.relu(self.batch_norm(self.linear_fuse(torch.cat(parts[::-1], dim=1))))
        return self.classifier(self.dropout(x))


class SegFormer(nn.Module):
    """[B, 3, H, W] to logits [B, classes, H/4, W/4]."""

    def __init__(self, dims: Sequence[int], width: int, num_classes: int = 19) -> None:
        super().__init__()
        before = (3, *dims)
        sizes = zip(before, dims, (1, 2, 5, 8), (8, 4, 2, 1), strict=False)
        self.stages = nn.ModuleList(Stage(*channels, 2, heads, ratio) for *channels, heads, ratio in sizes)
        self.decode_head = DecodeHead(dims, width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return self.decode_head(maps)


def b0() -> SegFormer:
    """SegFormer-B0 at its published size, 19 classes."""
    return SegFormer((32, 64, 160, 256), 256)
