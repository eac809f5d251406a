"""iFormer, the Inception Transformer: convolution, pooling and attention side by side, in export-friendly PyTorch.

    stem       conv3x3 s2, BN, GELU, conv3x3 s2, BN                                 H, W  ->  H/4, W/4
    stage i    L_i blocks at C_i channels; conv3x3 s2 + BN between stages           H/4, H/8, H/16, H/32
    block      x + g1 mixer(LN(x));  x + g2 mlp(LN(x))                              g1, g2 in the last two stages
    mixer      the first channels pass a depthwise convolution and a max pool, the last ones attention over a map that
               is half as wide in the first two stages; the later the stage, the more channels are attention's
    head       one linear layer of the mean over H, W of LN(x)

Source: Si et al., "Inception Transformer", arXiv 2205.12956. Parameter names follow the authors' state dicts, so
released checkpoints load as they are. Position embeddings are resized to other sizes. The models that others call
iFormer, of 2025, are not these. Letters: B batch, C channels, H W, N positions, d head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEAD_WIDTH = 32


class Pointwise(nn.Linear):
    """A linear layer over the channels of a map. [B, C, H, W] -> [B, C', H, W]"""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight[:, :, None, None], self.bias)


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of a map. [B, C, H, W] -> the same"""

    def forward(self, x: Tensor) -> Tensor:
        y = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return y.permute(0, 3, 1, 2)


class HighMixer(nn.Module):
    """Convolution of one half of the channels, maxima of the other. [B, 2c, H, W] -> [B, 4c, H, W]"""

    def __init__(self, dim: int) -> None:
        super().__init__()
        half = dim // 2
        self.conv1 = nn.Conv2d(half, dim, 1, bias=False)
        self.proj1 = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=False)
        self.proj2 = nn.Conv2d(half, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        local, peaks = x.chunk(2, dim=1)
        local = F.gelu(self.proj1(self.conv1(local)))
        peaks = F.gelu(self.proj2(F.max_pool2d(peaks, 3, stride=1, padding=1)))
        return torch.cat((local, peaks), dim=1)


class LowMixer(nn.Module):
    """Attention over a map of cells of `pool` x `pool`. [B, C, H, W] -> the same"""

    def __init__(self, dim: int, pool: int) -> None:
        super().__init__()
        self.heads, self.pool = dim // HEAD_WIDTH, pool
        self.qkv = Pointwise(dim, 3 * dim)

    def forward(self, x: Tensor) -> Tensor:
        if self.pool > 1:
            x = F.avg_pool2d(x, self.pool)
        size = x.shape[2:]
        q, k, v = (t.unflatten(1, (self.heads, HEAD_WIDTH)).flatten(3) for t in self.qkv(x).chunk(3, dim=1))
        weights = (k.transpose(2, 3) @ (q * HEAD_WIDTH**-0.5)).softmax(2)  # [B, h, keys, queries]
        y = v @ weights  # [B, h, d, N]
        y = y.flatten(1, 2).unflatten(2, size)
        return F.interpolate(y, scale_factor=self.pool, mode="nearest") if self.pool > 1 else y


class Mixer(nn.Module):
    """Three branches, joined and fused by a depthwise and a 1x1 convolution. [B, C, H, W] -> the same

    Args:
        dim: C.
        heads: of the attention, which has the last 32 heads channels.
        pool: side of its cells.
    """

    def __init__(self, dim: int, heads: int, pool: int) -> None:
        super().__init__()
        low = HEAD_WIDTH * heads
        high = dim - low
        joined = 2 * high + low
        self.widths = (high, low)
        self.high_mixer = HighMixer(high)
        self.low_mixer = LowMixer(low, pool)
        self.conv_fuse = nn.Conv2d(joined, joined, 3, padding=1, groups=joined, bias=False)
        self.proj = nn.Conv2d(joined, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        high, low = x.split_with_sizes(self.widths, dim=1)
        z = torch.cat((self.high_mixer(high), self.low_mixer(low)), dim=1)
        return self.proj(z + self.conv_fuse(z))


class Mlp(nn.Module):
    """conv1x1 C -> 4C, GELU, conv1x1 4C -> C. [B, C, H, W] -> [B, C, H, W]"""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = Pointwise(dim, 4 * dim)
        self.fc2 = Pointwise(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Mixer and MLP, each with a norm before and a residual around. [B, C, H, W] -> the same"""

    def __init__(self, dim: int, heads: int, pool: int, scaled: bool) -> None:
        super().__init__()
        self.norm1 = ChannelNorm(dim, eps=1e-6)
        self.attn = Mixer(dim, heads, pool)
        self.norm2 = ChannelNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim)
        self.layer_scale_1 = nn.Parameter(1e-6 * torch.ones(dim)) if scaled else None
        self.layer_scale_2 = nn.Parameter(1e-6 * torch.ones(dim)) if scaled else None

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.attn(self.norm1(x))
        x = x + (mixed if self.layer_scale_1 is None else self.layer_scale_1[:, None, None] * mixed)
        hidden = self.mlp(self.norm2(x))
        return x + (hidden if self.layer_scale_2 is None else self.layer_scale_2[:, None, None] * hidden)


class Stem(nn.Module):
    """Two strided convolutions. [B, 3, H, W] -> [B, C, H/4, W/4]"""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj1 = nn.Conv2d(3, dim // 2, 3, stride=2, padding=1)
        self.norm1 = nn.BatchNorm2d(dim // 2)
        self.proj2 = nn.Conv2d(dim // 2, dim, 3, stride=2, padding=1)
        self.norm2 = nn.BatchNorm2d(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm2(self.proj2(F.gelu(self.norm1(self.proj1(x)))))


class Embedding(nn.Module):
    """Downsampling between stages: conv3x3 s2, BN. [B, C_i, H, W] -> [B, C_i+1, H/2, W/2]"""

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(dim, out_dim, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(out_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x))


class InceptionTransformer(nn.Module):
    """iFormer for classification, or, with `features`, for dense prediction.

    Args:
        dims: channels of each of the four stages.
        heads: attention heads of each block, stage by stage.
        grid: side of the first stage's position embedding, a quarter of that of the images of training.
        num_classes: width of the head.
        features: return the four stage outputs, the last one through the norm, instead of logits.

    Shapes: [B, 3, H, W], H and W divisible by 32, to logits [B, num_classes], or to four maps
    [B, C_i, H / 2^(i+2), W / 2^(i+2)]. The first two stages attend over cells of 2 x 2, so the second one's map has
    even sides; elsewhere those of the last stage are not restricted.
    """

    def __init__(
        self,
        dims: Sequence[int],
        heads: Sequence[Sequence[int]],
        grid: int = 56,
        num_classes: int = 1000,
        features: bool = False,
    ) -> None:
        super().__init__()
        self.features = features
        for i, (dim, own) in enumerate(zip(dims, heads, strict=True)):
            self.add_module(
                f"patch_embed{i + 1}" if i else "patch_embed", Embedding(dims[i - 1], dim) if i else Stem(dim)
            )
            side = grid >> i
            self.register_parameter(f"pos_embed{i + 1}", nn.Parameter(0.02 * torch.randn(1, side, side, dim)))
            blocks = (Block(dim, count, pool=2 if i < 2 else 1, scaled=i >= 2) for count in own)
            self.add_module(f"blocks{i + 1}", nn.Sequential(*blocks))
        self.norm = ChannelNorm(dims[-1], eps=1e-6)
        if not features:
            self.head = nn.Linear(dims[-1], num_classes)
            nn.init.trunc_normal_(self.head.weight, std=0.02)
            nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        maps = []
        for i in range(1, 5):
            x = self.get_submodule(f"patch_embed{i}" if i > 1 else "patch_embed")(x)
            place = self.get_parameter(f"pos_embed{i}").permute(0, 3, 1, 2)  # [1, C, S, S]
            if place.shape[2:] != x.shape[2:]:
                place = F.interpolate(place, tuple(x.shape[2:]), mode="bilinear")
            x = self.get_submodule(f"blocks{i}")(x + place)
            maps.append(x)
        x = self.norm(x)
        return (*maps[:-1], x) if self.features else self.head(x.mean((2, 3)))


_SMALL = ((1,) * 3, (3,) * 3, (7,) * 4 + (9,) * 5, (11,) * 3)
_BASE = ((1,) * 4, (3,) * 6, (8,) * 7 + (10,) * 7, (15,) * 6)
_LARGE = ((1,) * 4, (3,) * 6, (10,) * 9 + (12,) * 9, (19,) * 8)


def iformer_small(**options: Any) -> InceptionTransformer:
    """iFormer-S, 19.9 M parameters. Options: `num_classes`, `features`, `grid` of `InceptionTransformer`."""
    return InceptionTransformer(dims=(96, 192, 320, 384), heads=_SMALL, **options)


def iformer_base(**options: Any) -> InceptionTransformer:
    """iFormer-B, 47.9 M parameters. Options as for `iformer_small`."""
    return InceptionTransformer(dims=(96, 192, 384, 512), heads=_BASE, **options)


def iformer_large(**options: Any) -> InceptionTransformer:
    """iFormer-L, 86.6 M parameters. Options as for `iformer_small`."""
    return InceptionTransformer(dims=(96, 192, 448, 640), heads=_LARGE, **options)


def iformer_small_384(**options: Any) -> InceptionTransformer:
    """iFormer-S of 384 x 384 pixels, 20.9 M parameters. Options as for `iformer_small`."""
    return iformer_small(**{"grid": 96, **options})


def iformer_base_384(**options: Any) -> InceptionTransformer:
    """iFormer-B of 384 x 384 pixels, 48.9 M parameters. Options as for `iformer_small`."""
    return iformer_base(**{"grid": 96, **options})


def iformer_large_384(**options: Any) -> InceptionTransformer:
    """iFormer-L of 384 x 384 pixels, 87.7 M parameters. Options as for `iformer_small`."""
    return iformer_large(**{"grid": 96, **options})


def settle(model: nn.Module) -> None:
    """Give layer scales, which begin at 1e-6, a size at which random weights behind them are seen."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "layer_scale" in name:
                parameter.fill_(0.5)


def from_checkpoint(
    state: dict[str, Tensor], features: bool = False
) -> tuple[dict[str, Any], dict[str, Tensor], list[str]]:
    """Return what a checkpoint says about the variant: builder options, the tensors to load, and notes for the user.

    Checkpoints come with any number of classes, and of any size of training: position embeddings are resized in use.
    """
    options: dict[str, Any] = {}
    place = state.get("pos_embed1")
    if place is not None and place.dim() == 4:
        options["grid"] = place.shape[1]
    if features:
        return options, {key: value for key, value in state.items() if not key.startswith("head.")}, []
    if "head.weight" in state and state["head.weight"].dim() == 2:
        options["num_classes"] = state["head.weight"].shape[0]
    return options, state, []
