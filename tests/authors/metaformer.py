"""MetaFormer baselines in their authors' manner: [B, H, W, C], norms spelled out, flips around each mixer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Downsampling(nn.Module):
    def __init__(self, channels: int, dim: int, kernel: int, stride: int, padding: int, first: bool) -> None:
        super().__init__()
        self.pre_norm = nn.Identity() if first else LayerNormGeneral((channels,), normalized_dim=(-1,))
        self.pre_permute = not first
        self.conv = nn.Conv2d(channels, dim, kernel_size=kernel, stride=stride, padding=padding)
        self.post_norm = LayerNormGeneral((dim,), normalized_dim=(-1,)) if first else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.pre_norm(x)
        if self.pre_permute:
            x = x.permute(0, 3, 1, 2)
        return self.post_norm(self.conv(x).permute(0, 2, 3, 1))


class Scale(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class StarReLU(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=False)
        self.scale = nn.Parameter(torch.ones(1))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.relu(x) ** 2 + self.bias


class LayerNormGeneral(nn.Module):
    def __init__(self, shape: Sequence[int], normalized_dim: Sequence[int], eps: float = 1e-6) -> None:
        super().__init__()
        self.normalized_dim, self.eps = tuple(normalized_dim), eps
        self.weight = nn.Parameter(torch.ones(*shape))

    def forward(self, x: Tensor) -> Tensor:
        c = x - x.mean(self.normalized_dim, keepdim=True)
        s = c.pow(2).mean(self.normalized_dim, keepdim=True)
        return c / torch.sqrt(s + self.eps) * self.weight


class LayerNormWithoutBias(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.normalized_shape = (dim,)

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, weight=self.weight, bias=None, eps=1e-6)


class Attention(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.head_dim, self.scale, self.num_heads = 32, 32**-0.5, dim // 32
        self.qkv = nn.Linear(dim, dim * 3, bias=False)
        self.attn_drop = nn.Dropout(0.0)
        self.proj = nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        b, h, w, _ = x.shape
        n = h * w
        qkv = self.qkv(x).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        attn = self.attn_drop(((q @ k.transpose(-2, -1)) * self.scale).softmax(dim=-1))
        x = (attn @ v).transpose(1, 2).reshape(b, h, w, self.num_heads * self.head_dim)
        return self.proj(x)


class SepConv(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.pwconv1 = nn.Linear(dim, 2 * dim, bias=False)
        self.act1 = StarReLU()
        self.dwconv = nn.Conv2d(2 * dim, 2 * dim, kernel_size=7, padding=3, groups=2 * dim, bias=False)
        self.pwconv2 = nn.Linear(2 * dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act1(self.pwconv1(x)).permute(0, 3, 1, 2)
        return self.pwconv2(self.dwconv(x).permute(0, 2, 3, 1))


class Pooling(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)

    def forward(self, x: Tensor) -> Tensor:
        y = x.permute(0, 3, 1, 2)
        y = self.pool(y)
        return y.permute(0, 2, 3, 1) - x


class Mlp(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim, bias=False)
        self.act = StarReLU()
        self.fc2 = nn.Linear(4 * dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class MlpHead(nn.Module):
    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.norm = nn.LayerNorm(4 * dim)
        self.fc2 = nn.Linear(4 * dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.norm(torch.square(F.relu(self.fc1(x)))))


class Block(nn.Module):
    def __init__(self, dim: int, mixer: type[nn.Module], norm: Callable[[int], nn.Module], scaled: bool) -> None:
        super().__init__()
        self.norm1 = norm(dim)
        self.token_mixer = mixer(dim)  # type: ignore[call-arg]  # each takes the width
        self.res_scale1 = Scale(dim) if scaled else nn.Identity()
        self.norm2 = norm(dim)
        self.mlp = Mlp(dim)
        self.res_scale2 = Scale(dim) if scaled else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.res_scale1(x) + self.token_mixer(self.norm1(x))
        return self.res_scale2(x) + self.mlp(self.norm2(x))


class MetaFormer(nn.Module):
    """[B, 3, H, W] to logits [B, 1000]."""

    def __init__(
        self,
        depths: Sequence[int],
        mixers: Sequence[type[nn.Module]],
        norm: Callable[[int], nn.Module],
        head: Callable[[int, int], nn.Module],
    ) -> None:
        super().__init__()
        dims = (64, 128, 320, 512)
        before = (3, *dims)
        self.downsample_layers = nn.ModuleList(
            Downsampling(before[i], dim, *((3, 2, 1) if i else (7, 4, 2)), first=i == 0) for i, dim in enumerate(dims)
        )
        self.stages = nn.ModuleList(
            nn.Sequential(*(Block(dim, mixers[i], norm, scaled=i >= 2) for _ in range(depths[i])))
            for i, dim in enumerate(dims)
        )
        self.norm = nn.LayerNorm(dims[-1], eps=1e-6)
        self.head = head(dims[-1], 1000)

    def forward(self, x: Tensor) -> Tensor:
        for downsample, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = stage(downsample(x))
        return self.head(self.norm(x.mean([1, 2])))


def poolformerv2_s12() -> MetaFormer:
    """PoolFormerV2-S12 at its published size."""
    return MetaFormer((2, 2, 6, 2), (Pooling,) * 4, over_the_sample, nn.Linear)


def over_the_sample(dim: int) -> nn.Module:
    """The norm over positions and channels of each sample."""
    return LayerNormGeneral((dim,), normalized_dim=(1, 2, 3))


def caformer_s18() -> MetaFormer:
    """CAFormer-S18 at its published size."""
    return MetaFormer((3, 3, 9, 3), (SepConv, SepConv, Attention, Attention), LayerNormWithoutBias, MlpHead)
