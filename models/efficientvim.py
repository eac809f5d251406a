"""EfficientViM: vision state-space models that mix channels in the hidden state, in plain export-friendly PyTorch.

    stem       four conv3x3 s2 + BN, ReLU between them                              H, W  ->  H/16, W/16
    stage i    L_i blocks at C_i channels, then, but for the last, a merging of patches: halves H and W, rounding up
    block      x <- (1 - a) x + a f(x) for f = dw3x3, mixer . norm, dw3x3, FFN;  a = sigmoid(alpha) a channel
    mixer      B, C, dt = dw3x3(W x)                                                each [B, S, N], N = H W tokens
               h = x (softmax_N(dt + A) * B)^T                                      [B, D, S], the hidden state
               h, z = W_hz h;  h = W_out (h * silu(z) + D h);  y = h C              [B, D, N]      (eq. 8-10)
    head       the last hidden state of each stage and the last map, each through a norm, a mean and a linear layer;
               logits are their sum, weighted by a softmax; with distillation the mean of two such sums

`A` shifts all tokens of a state alike, which a softmax over the tokens does not see; it is in the authors' checkpoints.

Source: Lee et al., "EfficientViM: Efficient Vision Mamba with Hidden State Mixer based State Space Duality",
arXiv 2411.15241. Module names follow the authors' state dicts, so released checkpoints load as they are. There is no
positional parameter: every H and W works, square or not. Letters as everywhere: B batch, C channels, H W, N tokens,
D width, S state.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ChannelNorm(nn.Module):
    """Layer norm over the channels at each position. [B, C, *] -> [B, C, *]

    Args:
        dim: C.
        axes: number of axes after the channels; weight and bias are [1, C, 1, ...].
    """

    def __init__(self, dim: int, axes: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, dim, *[1] * axes))
        self.bias = nn.Parameter(torch.zeros(1, dim, *[1] * axes))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(1, keepdim=True)
        variance = (centred * centred).mean(1, keepdim=True)
        return centred / torch.sqrt(variance + self.eps) * self.weight + self.bias


class ConvNorm(nn.Module):
    """conv k x k with "same" padding and without bias, BN. [B, C, H, W] -> [B, C', H', W']"""

    def __init__(self, dim: int, out_dim: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, out_dim, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(out_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class Projection(nn.Module):
    """A convolution alone, under the name `conv` that the authors' state dicts have."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Stem(nn.Module):
    """Four conv3x3 s2 + BN, ReLU after the first three. [B, 3, H, W] -> [B, C, H/16, W/16], rounded up"""

    def __init__(self, dim: int) -> None:
        super().__init__()
        widths = (3, dim // 8, dim // 4, dim // 2, dim)
        self.conv = nn.Sequential(*(ConvNorm(a, b, 3, 2) for a, b in itertools.pairwise(widths)))

    def forward(self, x: Tensor) -> Tensor:
        *hidden, last = self.conv
        for layer in hidden:
            x = F.relu(layer(x))
        return last(x)


class HiddenStateMixer(nn.Module):
    """HSM-SSD: tokens write to S states, channels mix there, tokens read. O(N S D + S D^2).

    Args:
        dim: D.
        state_dim: S.
    """

    def __init__(self, dim: int, state_dim: int) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.empty(state_dim).uniform_(1, 16))
        self.D = nn.Parameter(torch.ones(1))
        self.BCdt_proj = Projection(nn.Conv1d(dim, 3 * state_dim, 1, bias=False))
        self.dw = Projection(nn.Conv2d(3 * state_dim, 3 * state_dim, 3, padding=1, groups=3 * state_dim, bias=False))
        self.hz_proj = Projection(nn.Conv1d(dim, 2 * dim, 1, bias=False))
        self.out_proj = Projection(nn.Conv1d(dim, dim, 1, bias=False))

    def forward(self, x: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        """[B, D, N = height * width] -> the map [B, D, height, width] and the hidden state [B, D, S]."""
        projected = self.dw(self.BCdt_proj(x).unflatten(2, (height, width))).flatten(2)
        b, c, dt = projected.chunk(3, dim=1)  # each [B, S, N]
        a = (dt + self.A.unsqueeze(1)).softmax(dim=2)
        h = x @ (a * b).transpose(1, 2)  # [B, D, S]
        h, z = self.hz_proj(h).chunk(2, dim=1)
        h = self.out_proj(h * F.silu(z) + h * self.D)
        return (h @ c).unflatten(2, (height, width)), h


class FeedForward(nn.Module):
    """conv1x1 C -> rC, BN, ReLU, conv1x1 rC -> C, BN. [B, C, H, W] -> [B, C, H, W]"""

    def __init__(self, dim: int, ratio: int) -> None:
        super().__init__()
        self.fc1 = ConvNorm(dim, ratio * dim)
        self.fc2 = ConvNorm(ratio * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(x)))


class Block(nn.Module):
    """Four scaled branches: dw3x3, mixer, dw3x3, FFN. [B, D, H, W] -> the same, and the hidden state [B, D, S]"""

    def __init__(self, dim: int, state_dim: int, mlp_ratio: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(1e-4 * torch.ones(4, dim))
        self.mixer = HiddenStateMixer(dim, state_dim)
        self.norm = ChannelNorm(dim, axes=1)
        self.dwconv1 = ConvNorm(dim, dim, 3, groups=dim)
        self.dwconv2 = ConvNorm(dim, dim, 3, groups=dim)
        self.ffn = FeedForward(dim, mlp_ratio)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a0, a1, a2, a3 = torch.sigmoid(self.alpha).reshape(4, -1, 1, 1).unbind()  # each [D, 1, 1]
        x = (1 - a0) * x + a0 * self.dwconv1(x)
        y, h = self.mixer(self.norm(x.flatten(2)), x.shape[2], x.shape[3])
        x = (1 - a1) * x + a1 * y
        x = (1 - a2) * x + a2 * self.dwconv2(x)
        return (1 - a3) * x + a3 * self.ffn(x), h


class SqueezeExcite(nn.Module):
    """x * sigmoid(W2 relu(W1 mean_HW(x))). [B, C, H, W] -> [B, C, H, W]"""

    def __init__(self, dim: int) -> None:
        super().__init__()
        hidden = _multiple_of_8(dim / 4)
        self.fc1 = nn.Conv2d(dim, hidden, 1)
        self.fc2 = nn.Conv2d(hidden, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = x.mean((2, 3), keepdim=True)
        return x * torch.sigmoid(self.fc2(F.relu(self.fc1(gate))))


class PatchMerging(nn.Module):
    """An inverted bottleneck of stride 2 between two residual dw3x3. [B, C, H, W] -> [B, C', H/2, W/2], rounded up"""

    def __init__(self, dim: int, out_dim: int, ratio: int = 4) -> None:
        super().__init__()
        hidden = ratio * out_dim
        self.conv = nn.Sequential(
            ConvNorm(dim, hidden),
            ConvNorm(hidden, hidden, 3, 2, groups=hidden),
            SqueezeExcite(hidden),
            ConvNorm(hidden, out_dim),
        )
        self.dwconv1 = ConvNorm(dim, dim, 3, groups=dim)
        self.dwconv2 = ConvNorm(out_dim, out_dim, 3, groups=out_dim)

    def forward(self, x: Tensor) -> Tensor:
        expand, halve, squeeze, project = self.conv
        x = x + self.dwconv1(x)
        x = project(squeeze(F.relu(halve(F.relu(expand(x))))))
        return x + self.dwconv2(x)


class Stage(nn.Module):
    """Blocks, then a merging of patches. Returns what goes on, the blocks' own map, and their last hidden state."""

    def __init__(self, dim: int, out_dim: int | None, depth: int, state_dim: int, mlp_ratio: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(dim, state_dim, mlp_ratio) for _ in range(depth))
        self.downsample = PatchMerging(dim, out_dim) if out_dim is not None else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = x
        for block in self.blocks:
            x, h = block(x)
        return (x if self.downsample is None else self.downsample(x)), x, h


class EfficientViM(nn.Module):
    """EfficientViM for classification, or, with `features`, for dense prediction.

    Args:
        depths: blocks of each stage.
        dims: channels of each stage.
        state_dims: S of each stage.
        mlp_ratio: hidden width of the FFN over its input width.
        num_classes: width of the heads.
        distillation: a second set of heads, `heads_dist`; in inference the two are averaged.
        features: return the stage outputs, as they are before the patches are merged, instead of logits.

    Shapes: [B, 3, H, W] to logits [B, num_classes], or to one map [B, C_i, H / 2^(i+4), W / 2^(i+4)] a stage, each
    quotient rounded up.
    """

    def __init__(
        self,
        depths: Sequence[int],
        dims: Sequence[int],
        state_dims: Sequence[int],
        mlp_ratio: int = 4,
        num_classes: int = 1000,
        distillation: bool = False,
        features: bool = False,
    ) -> None:
        super().__init__()
        self.features = features
        self.patch_embed = Stem(dims[0])
        following = (*dims[1:], None)
        self.stages = nn.ModuleList(
            Stage(dim, after, depth, state, mlp_ratio)
            for dim, after, depth, state in zip(dims, following, depths, state_dims, strict=True)
        )
        if features:
            return
        widths = (*dims, dims[-1])  # of the hidden states, and of the last map
        self.weights = nn.Parameter(torch.ones(len(widths)))
        self.norm = nn.ModuleList(ChannelNorm(dim, axes=1) for dim in dims)
        self.norm.append(ChannelNorm(dims[-1], axes=2))
        self.heads = _heads(widths, num_classes)
        self.weights_dist = nn.Parameter(torch.ones(len(widths))) if distillation else None
        self.heads_dist = _heads(widths, num_classes) if distillation else None

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        x = self.patch_embed(x)  # [B, C0, H/16, W/16]
        maps, states = [], []
        for stage in self.stages:
            x, stage_map, h = stage(x)
            maps.append(stage_map)
            states.append(h)
        if self.features:
            return tuple(maps)
        *norms, last = self.norm
        pooled = [norm(h).mean(2) for norm, h in zip(norms, states, strict=True)]  # each [B, C_i]
        pooled.append(last(x).mean((2, 3)))
        logits = _weighted(self.weights, self.heads, pooled)
        if self.weights_dist is None or self.heads_dist is None:
            return logits
        return (logits + _weighted(self.weights_dist, self.heads_dist, pooled)) / 2


def efficientvim_m1(**options: Any) -> EfficientViM:
    """EfficientViM M1, 6.7 M parameters. Options: `num_classes`, `distillation`, `features` of `EfficientViM`."""
    return EfficientViM((2, 2, 2), (128, 192, 320), (49, 25, 9), **options)


def efficientvim_m2(**options: Any) -> EfficientViM:
    """EfficientViM M2, 13.9 M parameters. Options as for `efficientvim_m1`."""
    return EfficientViM((2, 2, 2), (128, 256, 512), (49, 25, 9), **options)


def efficientvim_m3(**options: Any) -> EfficientViM:
    """EfficientViM M3, 16.6 M parameters. Options as for `efficientvim_m1`."""
    return EfficientViM((2, 2, 2), (224, 320, 512), (49, 25, 9), **options)


def efficientvim_m4(**options: Any) -> EfficientViM:
    """EfficientViM M4, 19.6 M parameters. Options as for `efficientvim_m1`."""
    return EfficientViM((3, 4, 2), (224, 320, 512), (64, 32, 16), **options)


def from_checkpoint(
    state: dict[str, Tensor], features: bool = False
) -> tuple[dict[str, Any], dict[str, Tensor], list[str]]:
    """Return what a checkpoint says about the variant: builder options, the tensors to load, and notes for the user.

    Checkpoints come with or without the distillation heads and with any number of classes. Stage outputs have no norms
    of their own, so a classification checkpoint without its heads is one for dense features.
    """
    if features:
        heads = ("weights", "norm", "heads", "weights_dist", "heads_dist")
        return {}, {key: value for key, value in state.items() if key.split(".")[0] not in heads}, []
    options: dict[str, Any] = {"distillation": "weights_dist" in state}
    if "heads.0.weight" in state and state["heads.0.weight"].dim() == 2:
        options["num_classes"] = state["heads.0.weight"].shape[0]
    return options, state, []


def _heads(widths: Sequence[int], num_classes: int) -> nn.ModuleList:
    heads = [nn.Linear(width, num_classes) for width in widths]
    for head in heads:
        nn.init.trunc_normal_(head.weight, std=0.02)
        nn.init.zeros_(head.bias)
    return nn.ModuleList(heads)


def _weighted(weights: Tensor, heads: nn.ModuleList, pooled: Sequence[Tensor]) -> Tensor:
    """sum_i softmax(weights)_i * head_i(pooled_i)"""
    shares = weights.softmax(0).unbind()
    first, *others = [share * head(x) for share, head, x in zip(shares, heads, pooled, strict=True)]
    for logits in others:
        first = first + logits
    return first


def _multiple_of_8(width: float) -> int:
    """The nearest multiple of 8, one more where that is below nine tenths of `width`."""
    nearest = max(8, int(width + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * width else nearest
