"""EfficientViM in its authors' manner: norms spelled out, views of a square map, timm's in-place squeeze and excite."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class LayerNorm1D(nn.Module):
    axes = 1

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(1, dim, *[1] * self.axes))
        self.bias = nn.Parameter(torch.zeros(1, dim, *[1] * self.axes))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(dim=1, keepdim=True)
        var = x.var(dim=1, keepdim=True, unbiased=False)
        x = (x - mean) / torch.sqrt(var + self.eps)
        return x * self.weight + self.bias


class LayerNorm2D(LayerNorm1D):
    axes = 2


class ConvLayer2D(nn.Module):
    conv_type, norm_type = nn.Conv2d, nn.BatchNorm2d

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        kernel: int = 3,
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
        norm: bool = True,
        act: bool = True,
    ) -> None:
        super().__init__()
        self.conv = self.conv_type(in_dim, out_dim, kernel, stride, padding, groups=groups, bias=False)
        self.norm = self.norm_type(out_dim) if norm else None
        self.act = nn.ReLU() if act else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.norm is not None:
            x = self.norm(x)
        if self.act is not None:
            x = self.act(x)
        return x


class ConvLayer1D(ConvLayer2D):
    conv_type, norm_type = nn.Conv1d, nn.BatchNorm1d  # type: ignore[assignment]  # the same, for one axis


class FFN(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = ConvLayer2D(dim, hidden, 1)
        self.fc2 = ConvLayer2D(hidden, dim, 1, act=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.fc1(x))


class SqueezeExcite(nn.Module):
    """timm's: an in-place ReLU, and a gate of its own."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.bn = nn.Identity()
        self.act = nn.ReLU(inplace=True)
        self.fc2 = nn.Conv2d(hidden, channels, 1)
        self.gate = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        squeezed = x.mean((2, 3), keepdim=True)
        squeezed = self.act(self.bn(self.fc1(squeezed)))
        squeezed = self.fc2(squeezed)
        return x * self.gate(squeezed)


class Stem(nn.Module):
    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            ConvLayer2D(in_dim, dim // 8, 3, 2, 1),
            ConvLayer2D(dim // 8, dim // 4, 3, 2, 1),
            ConvLayer2D(dim // 4, dim // 2, 3, 2, 1),
            ConvLayer2D(dim // 2, dim, 3, 2, 1, act=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class PatchMerging(nn.Module):
    def __init__(self, in_dim: int, out_dim: int, ratio: float = 4.0) -> None:
        super().__init__()
        hidden = int(out_dim * ratio)
        squeezed = max(8, int(hidden * 0.25 + 4) // 8 * 8)
        self.conv = nn.Sequential(
            ConvLayer2D(in_dim, hidden, 1),
            ConvLayer2D(hidden, hidden, 3, 2, 1, groups=hidden),
            SqueezeExcite(hidden, squeezed),
            ConvLayer2D(hidden, out_dim, 1, act=False),
        )
        self.dwconv1 = ConvLayer2D(in_dim, in_dim, 3, padding=1, groups=in_dim, act=False)
        self.dwconv2 = ConvLayer2D(out_dim, out_dim, 3, padding=1, groups=out_dim, act=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dwconv1(x)
        x = self.conv(x)
        return x + self.dwconv2(x)


class HSMSSD(nn.Module):
    def __init__(self, d_model: int, state_dim: int, ssd_expand: float = 1) -> None:
        super().__init__()
        self.d_inner, self.state_dim = int(ssd_expand * d_model), state_dim
        three = 3 * state_dim
        self.BCdt_proj = ConvLayer1D(d_model, three, 1, norm=False, act=False)
        self.dw = ConvLayer2D(three, three, 3, 1, 1, groups=three, norm=False, act=False)
        self.hz_proj = ConvLayer1D(d_model, 2 * self.d_inner, 1, norm=False, act=False)
        self.out_proj = ConvLayer1D(self.d_inner, d_model, 1, norm=False, act=False)
        self.A = nn.Parameter(torch.empty(state_dim).uniform_(1, 16))
        self.act = nn.SiLU()
        self.D = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        batch, _, length = x.shape
        side = int(math.sqrt(length))
        bcdt = self.dw(self.BCdt_proj(x).view(batch, -1, side, side)).flatten(2)
        b, c, dt = torch.split(bcdt, [self.state_dim] * 3, dim=1)
        a = (dt + self.A.view(1, -1, 1)).softmax(-1)
        h = x @ (a * b).transpose(-2, -1)
        h, z = torch.split(self.hz_proj(h), [self.d_inner, self.d_inner], dim=1)
        h = self.out_proj(h * self.act(z) + h * self.D)
        y = h @ c
        return y.view(batch, -1, side, side).contiguous(), h


class EfficientViMBlock(nn.Module):
    def __init__(self, dim: int, mlp_ratio: float, state_dim: int) -> None:
        super().__init__()
        self.mixer = HSMSSD(dim, state_dim)
        self.norm = LayerNorm1D(dim)
        self.dwconv1 = ConvLayer2D(dim, dim, 3, padding=1, groups=dim, act=False)
        self.dwconv2 = ConvLayer2D(dim, dim, 3, padding=1, groups=dim, act=False)
        self.ffn = FFN(dim, int(dim * mlp_ratio))
        self.alpha = nn.Parameter(1e-4 * torch.ones(4, dim), requires_grad=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        alpha = torch.sigmoid(self.alpha).view(4, -1, 1, 1)
        x = (1 - alpha[0]) * x + alpha[0] * self.dwconv1(x)
        before = x
        x, h = self.mixer(self.norm(x.flatten(2)))
        x = (1 - alpha[1]) * before + alpha[1] * x
        x = (1 - alpha[2]) * x + alpha[2] * self.dwconv2(x)
        x = (1 - alpha[3]) * x + alpha[3] * self.ffn(x)
        return x, h


class EfficientViMStage(nn.Module):
    def __init__(self, in_dim: int, out_dim: int | None, depth: int, mlp_ratio: float, state_dim: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([EfficientViMBlock(in_dim, mlp_ratio, state_dim) for _ in range(depth)])
        self.downsample = PatchMerging(in_dim, out_dim) if out_dim is not None else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = x
        for block in self.blocks:
            x, h = block(x)
        before = x
        if self.downsample is not None:
            x = self.downsample(x)
        return x, before, h


class EfficientViM(nn.Module):
    """[B, 3, H, H] to logits [B, num_classes]."""

    def __init__(
        self,
        depths: Sequence[int],
        dims: Sequence[int],
        state_dims: Sequence[int],
        mlp_ratio: float = 4.0,
        num_classes: int = 1000,
        distillation: bool = False,
    ) -> None:
        super().__init__()
        count = len(depths)
        self.distillation = distillation
        self.patch_embed = Stem(3, dims[0])
        self.stages = nn.ModuleList()
        for i in range(count):
            following = dims[i + 1] if i + 1 < count else None
            self.stages.append(EfficientViMStage(dims[i], following, depths[i], mlp_ratio, state_dims[i]))
        self.weights = nn.Parameter(torch.ones(count + 1))
        self.norm = nn.ModuleList([LayerNorm1D(dim) for dim in dims] + [LayerNorm2D(dims[-1])])
        widths = [*dims, dims[-1]]
        self.heads = nn.ModuleList([nn.Linear(width, num_classes) for width in widths])
        if distillation:
            self.weights_dist = nn.Parameter(torch.ones(count + 1))
            self.heads_dist = nn.ModuleList([nn.Linear(width, num_classes) for width in widths])

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        weights = torch.softmax(self.weights, -1)
        x = self.patch_embed(x)
        pooled = []
        for i, stage in enumerate(self.stages):
            x, _, h = stage(x)
            pooled.append(torch.nn.functional.adaptive_avg_pool1d(self.norm[i](h), 1).flatten(1))
        pooled.append(torch.nn.functional.adaptive_avg_pool2d(self.norm[-1](x), 1).flatten(1))
        z = sum(weights[i] * head(value) for i, (head, value) in enumerate(zip(self.heads, pooled, strict=True)))
        if not self.distillation:
            return z
        others = torch.softmax(self.weights_dist, -1)
        z_dist = sum(
            others[i] * head(value) for i, (head, value) in enumerate(zip(self.heads_dist, pooled, strict=True))
        )
        return (z, z_dist) if self.training else (z + z_dist) / 2
