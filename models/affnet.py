"""AFFNet: adaptive frequency filters as global token mixers, in plain PyTorch.

    stem       conv3x3 s2                                                       H, W  ->  H/2
    layer 1    inverted residual at full width                                  H/2
    layer 2    three inverted residuals, the first s2                           H/4
    layer 3-5  inverted residual s2, then one AFF block                         H/8, H/16, H/32
    AFF block  n x [x + filter(norm(mix(norm(x))))], norm, conv1x1, fused with the block's input by conv1x1
    filter     y = irfft2(M * X) + x,   X = rfft2(x),   M = mlp(X)              a mask learnt for each spectrum
    head       conv1x1, mean over H, W, one linear layer

Source: Huang et al., "Adaptive Frequency Filters As Efficient Global Token Mixers", arXiv 2307.14008, eq. 4-6.
Module names follow the authors' state dicts, so released checkpoints load as they are. Norms are over C, H and W
together. There is no positional parameter, and no map has to be even: every H and W works, a map at /2^i has
ceil(H / 2^i) rows. Letters: B batch, C channels, H W, as everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from edgesmith.kernels import fft_filter

BLOCKS = 8
"""Blocks of channels in the filter's MLP."""


class ConvLayer(nn.Module):
    """Convolution without bias, BN, SiLU unless `act` is off. [B, C, H, W] -> [B, C', ceil(H/s), ceil(W/s)]"""

    def __init__(
        self, in_dim: int, dim: int, kernel: int = 1, stride: int = 1, groups: int = 1, act: bool = True
    ) -> None:
        super().__init__()
        self.block = nn.Sequential()
        self.block.add_module(
            "conv", nn.Conv2d(in_dim, dim, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
        )
        self.block.add_module("norm", nn.BatchNorm2d(dim))
        if act:
            self.block.add_module("act", nn.SiLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class InvertedResidual(nn.Module):
    """conv1x1 C -> eC, dw3x3, conv1x1 -> C'; plus x where the shapes agree. [B, C, H, W] -> [B, C', H/s, W/s], up"""

    def __init__(self, in_dim: int, dim: int, expand: int, stride: int = 1) -> None:
        super().__init__()
        hidden = _divisible(in_dim * expand)
        self.block = nn.Sequential()
        self.block.add_module("exp_1x1", ConvLayer(in_dim, hidden))
        self.block.add_module("conv_3x3", ConvLayer(hidden, hidden, 3, stride, groups=hidden))
        self.block.add_module("red_1x1", ConvLayer(hidden, dim, act=False))
        self.residual = stride == 1 and in_dim == dim

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x) if self.residual else self.block(x)


class FrequencyFilter(nn.Module):
    """The adaptive frequency filter and its residual: irfft2(M * X) + x, see `kernels/fft_filter.py`."""

    def __init__(self, dim: int, threshold: float = 0.01) -> None:
        super().__init__()
        width = dim // BLOCKS
        self.w1 = nn.Parameter(0.02 * torch.randn(2, BLOCKS, width, width))
        self.b1 = nn.Parameter(0.02 * torch.randn(2, BLOCKS, width))
        self.w2 = nn.Parameter(0.02 * torch.randn(2, BLOCKS, width, width))
        self.b2 = nn.Parameter(0.02 * torch.randn(2, BLOCKS, width))
        self.threshold = threshold

    def forward(self, x: Tensor) -> Tensor:
        return fft_filter.reference(x, self.w1, self.b1, self.w2, self.b2, self.threshold) + x


class Block(nn.Module):
    """x + filter(norm2(mlp(norm1(x)))): channels are mixed before tokens, under one residual. [B, C, H, W] -> same"""

    def __init__(self, dim: int, ffn_dim: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(1, dim)
        self.mlp = InvertedResidual(dim, dim, ffn_dim // dim)
        self.norm2 = nn.GroupNorm(1, dim)
        self.filter = FrequencyFilter(dim)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.filter(self.norm2(self.mlp(self.norm1(x))))


class AFFBlock(nn.Module):
    """n blocks, a norm and a projection, fused with the block's input. [B, C, H, W] -> same"""

    def __init__(self, dim: int, ffn_dim: int, depth: int) -> None:
        super().__init__()
        self.global_rep = nn.Sequential(*(Block(dim, ffn_dim) for _ in range(depth)), nn.GroupNorm(1, dim))
        self.conv_proj = ConvLayer(dim, dim, act=False)
        self.fusion = ConvLayer(2 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fusion(torch.cat((x, self.conv_proj(self.global_rep(x))), dim=1))


class AFFNet(nn.Module):
    """AFFNet for classification, or, with `features`, for dense prediction.

    Args:
        dims: channels after the stem and after each of the five layers.
        ffn_dims: hidden width of the channel mixers in the AFF blocks of layers 3 to 5.
        depths: blocks in each of them.
        expand: hidden width of the inverted residuals outside the AFF blocks, over their input's.
        num_classes: width of the head.
        features: return the outputs of layers 2 to 5 instead of logits.

    Shapes: [B, 3, H, W] to logits [B, num_classes], or to four maps [B, C_i, ceil(H / 2^i), ceil(W / 2^i)], i = 2 to 5.
    """

    def __init__(
        self,
        dims: Sequence[int],
        ffn_dims: Sequence[int],
        depths: Sequence[int],
        expand: int,
        num_classes: int = 1000,
        features: bool = False,
    ) -> None:
        super().__init__()
        self.features = features
        stem, narrow, wide, *deep = dims
        self.conv_1 = ConvLayer(3, stem, 3, stride=2)
        self.layer_1 = nn.Sequential(InvertedResidual(stem, narrow, expand))
        self.layer_2 = nn.Sequential(
            InvertedResidual(narrow, wide, expand, stride=2),
            InvertedResidual(wide, wide, expand),
            InvertedResidual(wide, wide, expand),
        )
        in_dim = wide
        for i, (dim, ffn_dim, depth) in enumerate(zip(deep, ffn_dims, depths, strict=True), start=3):
            down = InvertedResidual(in_dim, dim, expand, stride=2)
            self.add_module(f"layer_{i}", nn.Sequential(down, AFFBlock(dim, ffn_dim, depth)))
            in_dim = dim
        if features:
            return
        width = min(4 * in_dim, 960)
        self.conv_1x1_exp = ConvLayer(in_dim, width)
        self.classifier = nn.Sequential()
        head = nn.Linear(width, num_classes)
        nn.init.trunc_normal_(head.weight, std=0.02)
        nn.init.zeros_(head.bias)
        self.classifier.add_module("fc", head)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        x = self.layer_1(self.conv_1(x))
        maps = []
        for i in range(2, 6):
            x = getattr(self, f"layer_{i}")(x)
            maps.append(x)
        if self.features:
            return tuple(maps)
        return self.classifier(self.conv_1x1_exp(x).mean((2, 3)))


def _divisible(channels: int) -> int:
    """The nearest multiple of 8, and no less than nine tenths of `channels`."""
    rounded = max(8, (channels + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels else rounded + 8


def affnet_et(**options: Any) -> AFFNet:
    """AFFNet-ET, 1.4 M parameters. Options: `num_classes`, `features` of `AFFNet`."""
    return AFFNet((16, 32, 48, 64, 104, 144), (128, 208, 288), (2, 4, 3), expand=2, **options)


def affnet_t(**options: Any) -> AFFNet:
    """AFFNet-T, 2.7 M parameters. Options as for `affnet_et`."""
    return AFFNet((16, 32, 48, 96, 160, 192), (192, 320, 384), (2, 4, 3), expand=4, **options)


def affnet(**options: Any) -> AFFNet:
    """AFFNet, 5.6 M parameters. Options as for `affnet_et`."""
    return AFFNet((16, 32, 64, 128, 256, 320), (256, 512, 640), (2, 4, 3), expand=4, **options)


def settle(model: nn.Module) -> None:
    """Give a model with random weights filters that pass something, and norms statistics and scales that do something.

    Of initial weights the soft shrinkage leaves masks of almost nothing, group norms scale by one, and activations that
    no statistics keep at unit scale fade from layer to layer: an export could be wrong in all of it and look right.
    """
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, FrequencyFilter | nn.GroupNorm):
                for name, parameter in module.named_parameters():
                    parameter.normal_(float(name == "weight"), 0.1)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    model.train()
    with torch.no_grad():
        model(torch.randn(4, 3, 96, 96))
    model.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def from_checkpoint(
    state: dict[str, Tensor], features: bool = False
) -> tuple[dict[str, Any], dict[str, Tensor], list[str]]:
    """Return what a checkpoint says about the variant: builder options, the tensors to load, and notes for the user."""
    if features:
        return {}, {k: v for k, v in state.items() if k.split(".")[0] not in ("conv_1x1_exp", "classifier")}, []
    options: dict[str, Any] = {}
    weight = state.get("classifier.fc.weight")
    if weight is not None and weight.dim() == 2:
        options["num_classes"] = weight.shape[0]
    return options, state, []
