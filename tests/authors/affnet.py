"""AFFNet in its authors' manner: the filter in an autocast region that is switched off, complex numbers throughout."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _divisible(value: float, divisor: int = 8) -> int:
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


class ConvLayer(nn.Module):
    def __init__(
        self, in_dim: int, dim: int, kernel: int, stride: int = 1, groups: int = 1, use_act: bool = True
    ) -> None:
        super().__init__()
        self.block = nn.Sequential()
        self.block.add_module(
            "conv", nn.Conv2d(in_dim, dim, kernel, stride, int((kernel - 1) / 2), groups=groups, bias=False)
        )
        self.block.add_module("norm", nn.BatchNorm2d(dim, momentum=0.1))
        if use_act:
            self.block.add_module("act", nn.SiLU(inplace=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class InvertedResidual(nn.Module):
    def __init__(self, in_dim: int, dim: int, stride: int, expand: float) -> None:
        super().__init__()
        hidden = _divisible(round(in_dim * expand))
        self.block = nn.Sequential()
        if expand != 1:
            self.block.add_module("exp_1x1", ConvLayer(in_dim, hidden, 1))
        self.block.add_module("conv_3x3", ConvLayer(hidden, hidden, 3, stride, groups=hidden))
        self.block.add_module("red_1x1", ConvLayer(hidden, dim, 1, use_act=False))
        self.use_res_connect = stride == 1 and in_dim == dim

    def forward(self, x: Tensor, *args: object) -> Tensor:
        if self.use_res_connect:
            return x + self.block(x)
        return self.block(x)


class AFNO2DChannelFirst(nn.Module):
    def __init__(self, dim: int, num_blocks: int = 8, threshold: float = 0.01) -> None:
        super().__init__()
        self.num_blocks, self.block_size, self.threshold = num_blocks, dim // num_blocks, threshold
        self.w1 = nn.Parameter(0.02 * torch.randn(2, num_blocks, self.block_size, self.block_size))
        self.b1 = nn.Parameter(0.02 * torch.randn(2, num_blocks, self.block_size))
        self.w2 = nn.Parameter(0.02 * torch.randn(2, num_blocks, self.block_size, self.block_size))
        self.b2 = nn.Parameter(0.02 * torch.randn(2, num_blocks, self.block_size))
        self.act = nn.SiLU()

    def multiply(self, x: Tensor, weight: Tensor) -> Tensor:
        return torch.einsum("bkihf,kio->bkohf", x, weight)

    @torch.amp.autocast("cuda", enabled=False)
    def forward(self, x: Tensor) -> Tensor:
        residual, dtype = x, x.dtype
        x = x.float()
        batch, channels, height, width = x.shape
        x = torch.fft.rfft2(x, dim=(2, 3), norm="ortho")
        spectrum = x
        x = x.reshape(batch, self.num_blocks, self.block_size, x.shape[2], x.shape[3])
        b1, b2 = self.b1[..., None, None], self.b2[..., None, None]
        real = self.act(self.multiply(x.real, self.w1[0]) - self.multiply(x.imag, self.w1[1]) + b1[0])
        imag = self.act(self.multiply(x.imag, self.w1[0]) + self.multiply(x.real, self.w1[1]) + b1[1])
        real, imag = (
            self.multiply(real, self.w2[0]) - self.multiply(imag, self.w2[1]) + b2[0],
            self.multiply(imag, self.w2[0]) + self.multiply(real, self.w2[1]) + b2[1],
        )
        x = torch.view_as_complex(F.softshrink(torch.stack([real, imag], dim=-1), lambd=self.threshold))
        x = x.reshape(batch, channels, x.shape[3], x.shape[4])
        x = torch.fft.irfft2(x * spectrum, s=(height, width), dim=(2, 3), norm="ortho")
        return x.type(dtype) + residual


class Block(nn.Module):
    def __init__(self, dim: int, ffn_dim: int, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(1, dim, eps=1e-5)
        self.filter = AFNO2DChannelFirst(dim)
        self.norm2 = nn.GroupNorm(1, dim, eps=1e-5)
        self.mlp = InvertedResidual(dim, dim, 1, ffn_dim / dim)
        self.drop_path = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        residual = x
        x = self.mlp(self.norm1(x))
        x = self.drop_path(self.filter(self.norm2(x)))
        return x + residual


class AFFBlock(nn.Module):
    def __init__(self, dim: int, ffn_dim: int, depth: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [Block(dim, ffn_dim) for _ in range(depth)]
        layers.append(nn.GroupNorm(1, dim))
        self.global_rep = nn.Sequential(*layers)
        self.conv_proj = ConvLayer(dim, dim, 1, use_act=False)
        self.fusion = ConvLayer(2 * dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        residual = x
        for layer in self.global_rep:
            x = layer(x)
        x = self.conv_proj(x)
        return self.fusion(torch.cat((residual, x), dim=1))


class AFFNet(nn.Module):
    """[B, 3, H, W] to logits [B, num_classes]."""

    def __init__(
        self,
        dims: Sequence[int],
        ffn_dims: Sequence[int],
        depths: Sequence[int],
        expand: float,
        num_classes: int = 1000,
    ) -> None:
        super().__init__()
        stem, narrow, wide, *deep = dims
        self.conv_1 = ConvLayer(3, stem, 3, 2)
        self.layer_1 = nn.Sequential(InvertedResidual(stem, narrow, 1, expand))
        self.layer_2 = nn.Sequential(
            InvertedResidual(narrow, wide, 2, expand),
            InvertedResidual(wide, wide, 1, expand),
            InvertedResidual(wide, wide, 1, expand),
        )
        before = (wide, *deep)
        self.layer_3, self.layer_4, self.layer_5 = (
            nn.Sequential(InvertedResidual(before[i], deep[i], 2, expand), AFFBlock(deep[i], ffn_dims[i], depths[i]))
            for i in range(3)
        )
        width = min(4 * deep[-1], 960)
        self.conv_1x1_exp = ConvLayer(deep[-1], width, 1)
        self.classifier = nn.Sequential()
        self.classifier.add_module("fc", nn.Linear(width, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.conv_1, self.layer_1, self.layer_2, self.layer_3, self.layer_4, self.layer_5):
            x = layer(x)
        x = torch.mean(self.conv_1x1_exp(x), dim=[-2, -1], keepdim=False)
        return self.classifier(x)
