"""MetaFormer baselines: one skeleton with token mixers of every kind, in plain export-friendly PyTorch.

    downsample 0   conv7x7 s4 p2, N                                              H, W -> H/4, W/4
    downsample i   N, conv3x3 s2 p1                                              H/4, H/8, H/16, H/32
    block          x <- r1 x + mixer(M(x));  x <- r2 x + mlp(M(x))               r = 1 in the first two stages
    mlp            W2 a(W1 x), a(x) = s relu(x)^2 + b                            StarReLU, s and b scalars
    head           N' of the mean over H, W, then a linear layer, or W2 N''(relu(W1 x)^2)

    family          M               mixers of the four stages
    identityformer  over C, H, W    x
    randformer      over C, H, W    x, x, R x, R x        R frozen [N, N], rows sum to 1, N = 196, 49
    poolformerv2    over C, H, W    mean3x3(x) - x        without the padding in the mean
    convformer      over C          W2 dw7x7(a(W1 x))
    caformer        over C          the same twice, then softmax attention twice, heads of 32

N normalises over C at each position, without a shift; N' and N'' have one. All eps 1e-6, but 1e-5 in N''.
Source: Yu et al., "MetaFormer Baselines for Vision", arXiv 2210.13452. Names are those of the authors' state dicts;
linear layers are 1x1 convolutions, as maps keep their channels in front. Letters: B, C, H W, N tokens.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgesmith.models.norms import ChannelNorm, SampleNorm

HEAD_WIDTH = 32
TOKENS = {2: 196, 3: 49}
"""Positions of the maps of the last two stages at 224 x 224, which random mixers are made for."""


class StarReLU(nn.Module):
    """s relu(x)^2 + b, with two numbers s and b. Any shape."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        positive = F.relu(x)
        return self.scale * (positive * positive) + self.bias


class Scale(nn.Module):
    """One factor for each channel. [B, C, H, W] -> [B, C, H, W]"""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale.reshape(-1, 1, 1)


class Pooling(nn.Module):
    """Mean over the 3 x 3 neighbours inside the map, less the position itself. [B, C, H, W] -> [B, C, H, W]"""

    def __init__(self, dim: int, stage: int) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False) - x


class RandomMixing(nn.Module):
    """One frozen matrix over the tokens, each row a softmax of random numbers. [B, C, H, W] -> [B, C, H, W]"""

    def __init__(self, dim: int, stage: int) -> None:
        super().__init__()
        random = torch.rand(TOKENS[stage], TOKENS[stage]).softmax(-1)
        self.random_matrix = nn.Parameter(random, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return (x.flatten(2) @ self.random_matrix.t()).reshape(x.shape)


class SepConv(nn.Module):
    """conv1x1 C -> 2C, StarReLU, dw7x7, conv1x1 2C -> C. [B, C, H, W] -> [B, C, H, W]"""

    def __init__(self, dim: int, stage: int) -> None:
        super().__init__()
        self.pwconv1 = nn.Conv2d(dim, 2 * dim, 1, bias=False)
        self.act1 = StarReLU()
        self.dwconv = nn.Conv2d(2 * dim, 2 * dim, 7, padding=3, groups=2 * dim, bias=False)
        self.pwconv2 = nn.Conv2d(2 * dim, dim, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.pwconv2(self.dwconv(self.act1(self.pwconv1(x))))


class Attention(nn.Module):
    """Softmax attention over all positions, heads of 32 channels. [B, C, H, W] -> [B, C, H, W]"""

    def __init__(self, dim: int, stage: int) -> None:
        super().__init__()
        self.heads = dim // HEAD_WIDTH
        self.qkv = nn.Conv2d(dim, 3 * dim, 1, bias=False)
        self.proj = nn.Conv2d(dim, dim, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=1)
        each = (x.shape[0], self.heads, HEAD_WIDTH, -1)
        q, k, v = (part.reshape(each).transpose(2, 3) for part in (q, k, v))  # [B, heads, N, 32]
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.proj(mixed.transpose(2, 3).reshape(x.shape))


class Mlp(nn.Module):
    """conv1x1 C -> 4C, StarReLU, conv1x1 4C -> C. [B, C, H, W] -> [B, C, H, W]"""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(dim, 4 * dim, 1, bias=False)
        self.act = StarReLU()
        self.fc2 = nn.Conv2d(4 * dim, dim, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    """A token mixer and an MLP, each on a normalised map and added to a scaled one. [B, C, H, W] -> [B, C, H, W]"""

    def __init__(self, dim: int, mixer: nn.Module, norm: Callable[[int], nn.Module], scaled: bool) -> None:
        super().__init__()
        self.norm1 = norm(dim)
        self.token_mixer = mixer
        self.res_scale1 = Scale(dim) if scaled else nn.Identity()
        self.norm2 = norm(dim)
        self.mlp = Mlp(dim)
        self.res_scale2 = Scale(dim) if scaled else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.res_scale1(x) + self.token_mixer(self.norm1(x))
        return self.res_scale2(x) + self.mlp(self.norm2(x))


class Downsampling(nn.Module):
    """A strided convolution with a norm behind it (the first one) or before it. [B, C, H, W] -> [B, C', H/s, W/s]"""

    def __init__(self, dim: int, out_dim: int, is_first: bool) -> None:
        super().__init__()
        kernel, stride, padding = (7, 4, 2) if is_first else (3, 2, 1)
        self.pre_norm = nn.Identity() if is_first else ChannelNorm(dim, 1e-6, bias=False)
        self.conv = nn.Conv2d(dim, out_dim, kernel, stride, padding)
        self.post_norm = ChannelNorm(out_dim, 1e-6, bias=False) if is_first else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.post_norm(self.conv(self.pre_norm(x)))


class MlpHead(nn.Module):
    """Linear C -> 4C, relu^2, layer norm, linear 4C -> classes. [B, C] -> [B, classes]"""

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.norm = nn.LayerNorm(4 * dim, eps=1e-5)
        self.fc2 = nn.Linear(4 * dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        positive = F.relu(self.fc1(x))
        return self.fc2(self.norm(positive * positive))


class MetaFormer(nn.Module):
    """A MetaFormer for classification, or, with `features`, for dense prediction.

    Args:
        depths, dims: blocks and channels of each of the four stages.
        mixers: a token mixer's class for each stage, called with its channels and its number.
        norm: of the blocks, called with the channels.
        head: from the channels and the classes to the head.
        num_classes: width of the head.
        features: return the four stages' outputs instead of logits.

    Shapes: [B, 3, H, W], H and W divisible by 32, to logits [B, num_classes], or to four maps
    [B, C_i, H / 2^(i+2), W / 2^(i+2)]. Random mixers take 224 x 224 only.
    """

    def __init__(
        self,
        depths: Sequence[int],
        dims: Sequence[int],
        mixers: Sequence[Callable[[int, int], nn.Module]],
        norm: Callable[[int], nn.Module],
        head: Callable[[int, int], nn.Module],
        num_classes: int = 1000,
        features: bool = False,
    ) -> None:
        super().__init__()
        self.features = features
        before = (3, *dims)
        self.downsample_layers = nn.ModuleList(Downsampling(before[i], dim, i == 0) for i, dim in enumerate(dims))
        self.stages = nn.ModuleList(
            nn.Sequential(*(Block(dim, mixers[i](dim, i), norm, scaled=i >= 2) for _ in range(depths[i])))
            for i, dim in enumerate(dims)
        )
        if not features:
            self.norm = nn.LayerNorm(dims[-1], eps=1e-6)
            self.head = head(dims[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        maps = []
        for downsample, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = stage(downsample(x))
            maps.append(x)
        if self.features:
            return tuple(maps)
        return self.head(self.norm(x.mean((2, 3))))


def _no_mixer(dim: int, stage: int) -> nn.Module:
    return nn.Identity()


_PLAIN_SIZES = {
    "s12": ((2, 2, 6, 2), (64, 128, 320, 512)),
    "s24": ((4, 4, 12, 4), (64, 128, 320, 512)),
    "s36": ((6, 6, 18, 6), (64, 128, 320, 512)),
    "m36": ((6, 6, 18, 6), (96, 192, 384, 768)),
    "m48": ((8, 8, 24, 8), (96, 192, 384, 768)),
}
_SIZES = {
    "s18": ((3, 3, 9, 3), (64, 128, 320, 512)),
    "s36": ((3, 12, 18, 3), (64, 128, 320, 512)),
    "m36": ((3, 12, 18, 3), (96, 192, 384, 576)),
    "b36": ((3, 12, 18, 3), (128, 256, 512, 768)),
}
"""Depths and channels of a size."""

_over_all = partial(SampleNorm, eps=1e-6)
_over_channels = partial(ChannelNorm, eps=1e-6, bias=False)

_FAMILIES: dict[str, tuple[dict[str, Any], tuple[Any, ...], Any, Any]] = {
    "identityformer": (_PLAIN_SIZES, (_no_mixer,) * 4, _over_all, nn.Linear),
    "randformer": (_PLAIN_SIZES, (_no_mixer, _no_mixer, RandomMixing, RandomMixing), _over_all, nn.Linear),
    "poolformerv2": (_PLAIN_SIZES, (Pooling,) * 4, _over_all, nn.Linear),
    "convformer": (_SIZES, (SepConv,) * 4, _over_channels, MlpHead),
    "caformer": (_SIZES, (SepConv, SepConv, Attention, Attention), _over_channels, MlpHead),
}
"""Sizes, mixers, norm and head of a family."""


def __getattr__(name: str) -> Callable[..., MetaFormer]:
    """Return a model's builder: `caformer_s18(**options)`, options `num_classes` and `features` of `MetaFormer`.

    Suffixes say with which weights a model was published, `_384` and `_in21k`; the latter has 21,841 classes.
    """
    found = re.fullmatch(r"([a-z]+(?:v2)?)_([a-z]\d+)((?:_384)?)((?:_in21k)?)", name)
    family = _FAMILIES.get(found[1]) if found else None
    if found is None or family is None or found[2] not in family[0]:
        raise AttributeError(f"module {__name__} has no {name}")
    sizes, mixers, norm, head = family
    depths, dims = sizes[found[2]]
    classes = {"num_classes": 21841} if found[4] else {}
    return partial(MetaFormer, depths=depths, dims=dims, mixers=mixers, norm=norm, head=head, **classes)


def settle(model: nn.Module) -> None:
    """Give a model with random weights activations and scales that do something.

    Initial ones scale by 1 and shift by 0: an export could leave them out and look right. 0.8944 and -0.4472 are the
    paper's, which bring the activation of a standard normal variable to mean 0 and variance 1.
    """
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, StarReLU):
                module.scale.normal_(0.8944, 0.1)
                module.bias.normal_(-0.4472, 0.1)
            elif isinstance(module, Scale | ChannelNorm | SampleNorm | nn.LayerNorm):
                for name, parameter in module.named_parameters():
                    parameter.normal_(float(name != "bias"), 0.1)


_OF_TIMM = (
    (r"stem\.norm\.", "downsample_layers.0.post_norm."),
    (r"stem\.", "downsample_layers.0."),
    (r"stages\.(\d+)\.downsample\.norm\.", r"downsample_layers.\1.pre_norm."),
    (r"stages\.(\d+)\.downsample\.", r"downsample_layers.\1."),
    (r"stages\.(\d+)\.blocks\.", r"stages.\1."),
    (r"head\.norm\.", "norm."),
    (r"head\.fc\.", "head."),
)
"""The beginnings of timm's keys, and of the authors'; of those that fit the first one counts."""


def from_checkpoint(
    state: dict[str, Tensor], features: bool = False
) -> tuple[dict[str, Any], dict[str, Tensor], list[str]]:
    """Return what a checkpoint says about the variant: builder options, the tensors to load, and notes for the user.

    The keys are the authors', or timm's, which begin with `stem.`. Linear layers may be [C', C] or [C', C, 1, 1].
    """
    notes = []
    if any(key.startswith("stem.") for key in state):
        state = {_of_the_authors(key): value for key, value in state.items()}
        notes.append("the checkpoint has timm's keys")
    state = {key: _as_layer(key, value) for key, value in state.items()}
    if features:
        return {}, {key: value for key, value in state.items() if key.split(".")[0] not in ("norm", "head")}, notes
    last = next((state[key] for key in ("head.fc2.weight", "head.weight") if key in state), None)
    return {} if last is None else {"num_classes": last.shape[0]}, state, notes


def _of_the_authors(key: str) -> str:
    for pattern, name in _OF_TIMM:
        renamed, count = re.subn(f"^{pattern}", name, key)
        if count:
            return renamed
    return key


def _as_layer(key: str, value: Tensor) -> Tensor:
    """Return a weight as the layer here has it: 1x1 convolutions in the stages, linear layers in the head."""
    if value.dim() == 2 and key.startswith("stages.") and not key.endswith("random_matrix"):
        return value[:, :, None, None]
    return value.flatten(1) if value.dim() == 4 and key.startswith("head.") else value
