"""TransNeXt: aggregated attention and convolutional GLU, in plain export-friendly PyTorch.

    stage i    conv7x7 s4 (later conv3x3 s2), LN; L_i blocks at C_i channels; LN    H/4, H/8, H/16, H/32
    block      x + attention(LN(x));  x + convglu(LN(x))
    attention  each query sees its 3x3 neighbours and the P cells of a pooled map, under one softmax;
               where nothing is pooled (r_i = 1), all N positions
    convglu    W2 (gelu(dw3x3(a)) * v),  (a, v) = split(W1 x)
    head       mean over H, W of LN(x), then one linear layer

Source: Shi, "TransNeXt: Robust Foveal Visual Perception for Vision Transformers", arXiv 2311.17132. Parameter names
follow the authors' state dicts, so released checkpoints load as they are. No parameter depends on the input's size:
scale, mask and position bias follow from it and from the size of pretraining, and are constants of a captured graph.
Letters: B batch, C channels, H W, h heads, d head width, N = H W positions, P pooled positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from math import log
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgesmith.kernels import aggregated_attention, conv_glu

HEAD_WIDTH = 24
LOG_RANGE = 8.0
"""Distance over the pretraining grid at which the log-spaced coordinates of the position bias are 1."""


class Pointwise(nn.Linear):
    """A linear layer over the channels of a map. [B, C, H, W] -> [B, C', H, W]"""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight[:, :, None, None], self.bias)


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of a map. [B, C, H, W] -> the same"""

    def forward(self, x: Tensor) -> Tensor:
        y = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return y.permute(0, 3, 1, 2)


class Attention(nn.Module):
    """The common part of both attentions: temperature, query embedding and the MLP of the position bias."""

    def __init__(self, dim: int, pretrain_side: int) -> None:
        super().__init__()
        self.heads = dim // HEAD_WIDTH
        self.pretrain_side = pretrain_side
        initial = torch.log(torch.full((self.heads, 1, 1), 1 / 0.24).exp() - 1)  # whose softplus is 1 / 0.24
        self.temperature = nn.Parameter(initial)
        self.query_embedding = nn.Parameter(0.02 * torch.randn(self.heads, 1, HEAD_WIDTH))
        self.cpb_fc1 = nn.Linear(2, 512)
        self.cpb_fc2 = nn.Linear(512, self.heads)
        self.proj = Pointwise(dim, dim)

    def position_bias(self, queries: tuple[int, int], keys: tuple[int, int]) -> Tensor:
        """Return the bias of every key for every query, [h, keys, queries], both row by row.

        The MLP runs on the distinct distances only.
        """
        (dy, iy), (dx, ix) = (
            _distances(q, k, self.pretrain_side) for q, k in zip(queries, keys, strict=True)
        )  # distances [U], and their indices [keys, queries], of each axis
        pairs = torch.stack((dy[:, None].expand(-1, len(dx)), dx[None].expand(len(dy), -1)), -1)
        table = self.cpb_fc2(F.relu(self.cpb_fc1(pairs.to(self.temperature.dtype))))  # [Uy, Ux, h]
        bias = table.index_select(0, iy.flatten()).index_select(1, ix.flatten())
        bias = bias.reshape(*iy.shape, *ix.shape, self.heads).permute(4, 0, 2, 1, 3)
        return bias.reshape(self.heads, keys[0] * keys[1], queries[0] * queries[1])


class AggregatedAttention(Attention):
    """3x3 neighbours and a pooled map under one softmax, O(N P). [B, C, H, W] -> the same

    Args:
        reduction: side of a pooled cell.
        pool_size: side of the pooled map instead.
    """

    def __init__(self, dim: int, pretrain_side: int, reduction: int, pool_size: int | None = None) -> None:
        super().__init__(dim, pretrain_side)
        self.reduction, self.pool_size = reduction, pool_size
        self.relative_pos_bias_local = nn.Parameter(0.0004 * torch.randn(self.heads, 9))
        self.learnable_tokens = nn.Parameter(0.02 * torch.randn(self.heads, HEAD_WIDTH, 9))
        self.learnable_bias = nn.Parameter(torch.zeros(self.heads, 1, 9))
        self.q = Pointwise(dim, dim)
        self.kv = Pointwise(dim, 2 * dim)
        self.sr = nn.Conv2d(dim, dim, 1)
        self.norm = ChannelNorm(dim, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        side = self.reduction
        cells = (self.pool_size,) * 2 if self.pool_size else (max(height // side, 1), max(width // side, 1))
        u = F.gelu(self.sr(x))
        if height % cells[0] or width % cells[1]:
            u = F.adaptive_avg_pool2d(u, cells)
        else:
            u = F.avg_pool2d(u, (height // cells[0], width // cells[1]))
        pooled = self.kv(self.norm(u)).flatten(2)  # [B, 2C, P]
        seen = torch.tensor(aggregated_attention.inside(height, width))  # [9, N]
        length = (seen.sum(0, keepdim=True) + cells[0] * cells[1]).log()
        local_bias = self.relative_pos_bias_local[:, :, None] + (seen - 1) * aggregated_attention.MASKED
        y = aggregated_attention.OP.overload(
            self.q(x),
            self.kv(x),
            pooled,
            F.softplus(self.temperature) * length,
            self.query_embedding.transpose(1, 2),
            torch.cat((local_bias, self.position_bias((height, width), cells)), dim=1),
            self.learnable_tokens.transpose(1, 2),
            self.learnable_bias.transpose(1, 2),
        )
        return self.proj(y)


class CosineAttention(Attention):
    """Cosine attention of all positions, O(N^2). [B, C, H, W] -> the same"""

    def __init__(self, dim: int, pretrain_side: int) -> None:
        super().__init__(dim, pretrain_side)
        self.qkv = Pointwise(dim, 3 * dim)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        q, k, v = (t.unflatten(1, (self.heads, HEAD_WIDTH)).flatten(3) for t in self.qkv(x).chunk(3, dim=1))
        scale = F.softplus(self.temperature) * log(height * width)  # [h, 1, 1]
        q = (F.normalize(q, dim=2) + self.query_embedding.transpose(1, 2)) * scale  # [B, h, d, N]
        bias = self.position_bias((height, width), (height, width))  # [h, keys, queries]
        weights = (F.normalize(k, dim=2).transpose(2, 3) @ q + bias).softmax(2)
        y = v @ weights  # [B, h, d, N]
        return self.proj(y.flatten(1, 2).unflatten(2, (height, width)))


class DepthwiseConvolution(nn.Module):
    """The depthwise 3x3 of a convolutional GLU, under the authors' name."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)


class ConvGLU(nn.Module):
    """W2 (gelu(dw3x3(a)) * v), (a, v) = split(W1 x). [B, C, H, W] -> the same"""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Pointwise(dim, 2 * hidden)
        self.dwconv = DepthwiseConvolution(hidden)
        self.fc2 = Pointwise(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        local = self.dwconv.dwconv
        assert local.bias is not None
        return self.fc2(conv_glu.reference(self.fc1(x), local.weight, local.bias))


class Block(nn.Module):
    """Attention and convolutional GLU, each with a norm before and a residual around. [B, C, H, W] -> the same"""

    def __init__(self, dim: int, attention: Attention, hidden: int) -> None:
        super().__init__()
        self.norm1 = ChannelNorm(dim, eps=1e-6)
        self.norm2 = ChannelNorm(dim, eps=1e-6)
        self.attn = attention
        self.mlp = ConvGLU(dim, hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbedding(nn.Module):
    """Overlapping patches: a strided convolution and a norm. [B, C, H, W] -> [B, C', H/s, W/s]"""

    def __init__(self, dim: int, out_dim: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(dim, out_dim, kernel, stride, kernel // 2)
        self.norm = ChannelNorm(out_dim, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x))


class TransNeXt(nn.Module):
    """TransNeXt for classification, or, with `features`, for dense prediction.

    Args:
        dims: channels of each of the four stages, multiples of 24, the head width.
        depths: blocks of each stage.
        mlp_ratios: of each stage; a GLU's hidden width is two thirds of it, times the channels.
        reductions: side of the pooled cells of each stage; 1 for attention to all positions.
        pretrain_size: side of the images of pretraining, to which the position bias is relative at every other size.
        pool_size: side of the pooled maps instead of what `reductions` says, for large images.
        num_classes: width of the head.
        features: return the four stage outputs, each through its norm, instead of logits.

    Shapes: [B, 3, H, W], H and W divisible by 32, to logits [B, num_classes], or to four maps
    [B, C_i, H / 2^(i+2), W / 2^(i+2)].
    """

    def __init__(
        self,
        dims: Sequence[int],
        depths: Sequence[int],
        mlp_ratios: Sequence[int] = (8, 8, 4, 4),
        reductions: Sequence[int] = (8, 4, 2, 1),
        pretrain_size: int = 224,
        pool_size: int | None = None,
        num_classes: int = 1000,
        features: bool = False,
    ) -> None:
        super().__init__()
        self.features = features
        before = 3
        for i, (dim, depth, ratio, reduction) in enumerate(zip(dims, depths, mlp_ratios, reductions, strict=True)):
            side = pretrain_size // 2 ** (i + 2)
            embedding = PatchEmbedding(before, dim, 3, 2) if i else PatchEmbedding(before, dim, 7, 4)
            self.add_module(f"patch_embed{i + 1}", embedding)
            blocks = nn.ModuleList()
            for _ in range(depth):
                attention = (
                    CosineAttention(dim, side)
                    if reduction == 1
                    else AggregatedAttention(dim, side, reduction, pool_size)
                )
                blocks.append(Block(dim, attention, int(2 * dim * ratio / 3)))
            self.add_module(f"block{i + 1}", blocks)
            self.add_module(f"norm{i + 1}", ChannelNorm(dim, eps=1e-6))
            before = dim
        if not features:
            self.head = nn.Linear(before, num_classes)
            nn.init.trunc_normal_(self.head.weight, std=0.02)
            nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        maps = []
        for i in range(1, 5):
            x = self.get_submodule(f"patch_embed{i}")(x)
            for block in self.get_submodule(f"block{i}").children():
                x = block(x)
            x = self.get_submodule(f"norm{i}")(x)
            maps.append(x)
        return tuple(maps) if self.features else self.head(x.mean((2, 3)))


def transnext_micro(**options: Any) -> TransNeXt:
    """TransNeXt Micro, 12.8 M parameters. Options: `num_classes`, `features`, `pool_size` of `TransNeXt`."""
    return TransNeXt(dims=(48, 96, 192, 384), depths=(2, 2, 15, 2), **options)


def transnext_micro_AAAA(**options: Any) -> TransNeXt:  # noqa: N802  # the authors' name of it
    """TransNeXt Micro with aggregated attention in all stages, 13.1 M parameters. Options as for `transnext_micro`."""
    options = {"pretrain_size": 256, **options}
    return TransNeXt(dims=(48, 96, 192, 384), depths=(2, 2, 15, 2), reductions=(16, 8, 4, 2), **options)


def transnext_tiny(**options: Any) -> TransNeXt:
    """TransNeXt Tiny, 28.2 M parameters. Options as for `transnext_micro`."""
    return TransNeXt(dims=(72, 144, 288, 576), depths=(2, 2, 15, 2), **options)


def transnext_small(**options: Any) -> TransNeXt:
    """TransNeXt Small, 49.7 M parameters. Options as for `transnext_micro`."""
    return TransNeXt(dims=(72, 144, 288, 576), depths=(5, 5, 22, 5), **options)


def transnext_base(**options: Any) -> TransNeXt:
    """TransNeXt Base, 89.7 M parameters. Options as for `transnext_micro`."""
    return TransNeXt(dims=(96, 192, 384, 768), depths=(5, 5, 23, 5), **options)


def from_checkpoint(
    state: dict[str, Tensor], features: bool = False
) -> tuple[dict[str, Any], dict[str, Tensor], list[str]]:
    """Return what a checkpoint says about the variant: builder options, the tensors to load, and notes for the user.

    Checkpoints come with any number of classes. Those of dense prediction have no head, and the same keys otherwise.
    """
    if features:
        return {}, {key: value for key, value in state.items() if not key.startswith("head.")}, []
    options: dict[str, Any] = {}
    if "head.weight" in state and state["head.weight"].dim() == 2:
        options["num_classes"] = state["head.weight"].shape[0]
    return options, state, []


@cache
def _distance_table(queries: int, keys: int, side: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return the distinct log-spaced distances along one axis, and the index of each key's from each query.

    A key is at the mean of the positions that its cell of an adaptive pool covers. The distance z, in eighths of the
    pretraining grid, is sign(z) log2(|z| + 1) / log2(8).
    """
    bounds = [(i * queries // keys, -(-(i + 1) * queries // keys)) for i in range(keys)]
    at = np.array([(start + stop - 1) / 2 for start, stop in bounds])
    z = (np.arange(queries) - at[:, None]) * LOG_RANGE / max(side - 1, 1)  # [keys, queries]
    distances, index = np.unique(z.round(9), return_inverse=True)
    scaled = np.sign(distances) * np.log2(np.abs(distances) + 1) / np.log2(LOG_RANGE)
    return scaled.astype(np.float32), index.reshape(z.shape)


def _distances(queries: int, keys: int, side: int) -> tuple[Tensor, Tensor]:
    distances, index = _distance_table(queries, keys, side)
    return torch.tensor(distances), torch.tensor(index)
