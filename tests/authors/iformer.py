"""iFormer in its authors' manner: tokens as [B, H, W, C], flipped for every mixer, and sides as roots of a count."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, dim)
        self.drop = nn.Dropout(0.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))


class PatchEmbed(nn.Module):
    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, kernel_size=3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x)).permute(0, 2, 3, 1)


class FirstPatchEmbed(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj1 = nn.Conv2d(3, dim // 2, kernel_size=3, stride=2, padding=1)
        self.norm1 = nn.BatchNorm2d(dim // 2)
        self.gelu1 = nn.GELU()
        self.proj2 = nn.Conv2d(dim // 2, dim, kernel_size=3, stride=2, padding=1)
        self.norm2 = nn.BatchNorm2d(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm2(self.proj2(self.gelu1(self.norm1(self.proj1(x))))).permute(0, 2, 3, 1)


class HighMixer(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.cnn_in = dim // 2
        self.conv1 = nn.Conv2d(dim // 2, dim, kernel_size=1, stride=1, padding=0, bias=False)
        self.proj1 = nn.Conv2d(dim, dim, kernel_size=3, stride=1, padding=1, bias=False, groups=dim)
        self.mid_gelu1 = nn.GELU()
        self.Maxpool = nn.MaxPool2d(3, stride=1, padding=1)
        self.proj2 = nn.Conv2d(dim // 2, dim, kernel_size=1, stride=1, padding=0)
        self.mid_gelu2 = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        local = self.mid_gelu1(self.proj1(self.conv1(x[:, : self.cnn_in, :, :].contiguous())))
        peaks = self.mid_gelu2(self.proj2(self.Maxpool(x[:, self.cnn_in :, :, :].contiguous())))
        return torch.cat((local, peaks), dim=1)


class LowMixer(nn.Module):
    def __init__(self, dim: int, heads: int, pool: int) -> None:
        super().__init__()
        self.heads, self.dim = heads, dim
        self.scale = (dim // heads) ** -0.5
        self.qkv = nn.Linear(dim, dim * 3)
        self.attn_drop = nn.Dropout(0.0)
        pooled = nn.AvgPool2d(pool, stride=pool, padding=0, count_include_pad=False)
        self.pool = pooled if pool > 1 else nn.Identity()
        self.uppool = nn.Upsample(scale_factor=pool) if pool > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        b = x.shape[0]
        x = self.pool(x).permute(0, 2, 3, 1).reshape(b, -1, self.dim)
        _, n, c = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        attn = self.attn_drop(((q @ k.transpose(-2, -1)) * self.scale).softmax(dim=-1))
        x = (attn @ v).transpose(2, 3).reshape(b, c, n)
        return self.uppool(x.view(b, c, int(n**0.5), int(n**0.5)))


class Mixer(nn.Module):
    def __init__(self, dim: int, heads: int, pool: int) -> None:
        super().__init__()
        low = 32 * heads
        self.high_dim = high = dim - low
        self.high_mixer = HighMixer(high)
        self.low_mixer = LowMixer(low, heads, pool)
        joined = low + high * 2
        self.conv_fuse = nn.Conv2d(joined, joined, kernel_size=3, stride=1, padding=1, bias=False, groups=joined)
        self.proj = nn.Conv2d(joined, dim, kernel_size=1, stride=1, padding=0)
        self.proj_drop = nn.Dropout(0.0)

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 3, 1, 2)
        high = self.high_mixer(x[:, : self.high_dim, :, :].contiguous())
        low = self.low_mixer(x[:, self.high_dim :, :, :].contiguous())
        x = torch.cat((high, low), dim=1)
        x = self.proj_drop(self.proj(x + self.conv_fuse(x)))
        return x.permute(0, 2, 3, 1).contiguous()


class Block(nn.Module):
    def __init__(self, dim: int, heads: int, pool: int, use_layer_scale: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Mixer(dim, heads, pool)
        self.drop_path = nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, dim * 4)
        self.use_layer_scale = use_layer_scale
        if use_layer_scale:
            self.layer_scale_1 = nn.Parameter(1e-6 * torch.ones(dim))
            self.layer_scale_2 = nn.Parameter(1e-6 * torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        if self.use_layer_scale:
            x = x + self.drop_path(self.layer_scale_1 * self.attn(self.norm1(x)))
            return x + self.drop_path(self.layer_scale_2 * self.mlp(self.norm2(x)))
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class InceptionTransformer(nn.Module):
    def __init__(
        self, dims: Sequence[int], heads: Sequence[Sequence[int]], grid: int = 56, num_classes: int = 1000
    ) -> None:
        super().__init__()
        self.sides = [grid >> i for i in range(4)]
        for i, dim in enumerate(dims):
            embed = PatchEmbed(dims[i - 1], dim) if i else FirstPatchEmbed(dim)
            setattr(self, f"patch_embed{i + 1}" if i else "patch_embed", embed)
            side = self.sides[i]
            setattr(self, f"pos_embed{i + 1}", nn.Parameter(torch.zeros(1, side, side, dim)))
            blocks = [Block(dim, count, 2 if i < 2 else 1, use_layer_scale=i >= 2) for count in heads[i]]
            setattr(self, f"blocks{i + 1}", nn.Sequential(*blocks))
        self.norm = nn.LayerNorm(dims[-1], eps=1e-6)
        self.head = nn.Linear(dims[-1], num_classes)

    def _placed(self, place: Tensor, side: int, h: int, w: int) -> Tensor:
        if h * w == side * side:
            return place
        return F.interpolate(place.permute(0, 3, 1, 2), size=(h, w), mode="bilinear").permute(0, 2, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        for i, side in enumerate(self.sides):
            x = getattr(self, f"patch_embed{i + 1}" if i else "patch_embed")(x)
            _, h, w, _ = x.shape
            x = x + self._placed(getattr(self, f"pos_embed{i + 1}"), side, h, w)
            x = getattr(self, f"blocks{i + 1}")(x)
            if i < 3:
                x = x.permute(0, 3, 1, 2)
        return self.head(self.norm(x.flatten(1, 2)).mean(1))


def small() -> InceptionTransformer:
    """iFormer-S at its published size."""
    heads = ((1,) * 3, (3,) * 3, (7,) * 4 + (9,) * 5, (11,) * 3)
    return InceptionTransformer(dims=(96, 192, 320, 384), heads=heads)
