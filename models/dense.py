"""Heads of semantic segmentation on the dense features of a backbone, in plain export-friendly PyTorch.

    Semantic FPN    P_i = conv3x3(L_i),  L_i = conv1x1 F_i + nearest(L_{i+1}); one more P of every second position
                    y = conv1x1 sum_i S_i,  S_i = conv3x3 BN ReLU of P_i and x 2, as often as it is halved
    UPerNet         L_4 = f3x3 [F_4 | resize f1x1 pool_k F_4, k = 1, 2, 3, 6],  L_i = f1x1 F_i + resize L_{i+1}
                    y = conv1x1 f3x3 [f3x3 L_1 | resize f3x3 L_2 | resize f3x3 L_3 | resize L_4]

f is a convolution without bias, BN and ReLU; resizes are bilinear, their corners not aligned. The logits have the size
of the backbone's first map. Sources: Kirillov et al., "Panoptic Feature Pyramid Networks", arXiv 1901.02446; Xiao et
al., "Unified Perceptual Parsing", arXiv 1807.10221. Names follow the state dicts of mmsegmentation, with which CAS-ViT,
EfficientViM and TransNeXt publish such models. Letters: B, C, H W, F_i map i of the backbone, finest first.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgesmith.errors import CheckpointError
from edgesmith.models import registry
from edgesmith.models.registry import ModelSpec

Maps = Sequence[Tensor]

POOLS = (1, 2, 3, 6)
"""Sides of UPerNet's pooled maps."""

LEVELS = 4
"""Maps of a Semantic FPN; a backbone with fewer gets coarser ones of its last."""


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Return a map at another size, bilinear. [B, C, h, w] -> [B, C, *size]"""
    return x if list(x.shape[2:]) == list(size) else F.interpolate(x, list(size), mode="bilinear")


class ConvNorm(nn.Module):
    """Convolution with "same" padding and without bias, BN, ReLU. [B, C, H, W] -> [B, C', H, W]"""

    def __init__(self, dim: int, out_dim: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, out_dim, kernel, padding=kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(out_dim)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class Conv(nn.Module):
    """Convolution with "same" padding, under the name `conv`. [B, C, H, W] -> [B, C', H, W]"""

    def __init__(self, dim: int, out_dim: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, out_dim, kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class FeaturePyramid(nn.Module):
    """The maps at one width, each with the coarser ones in it. Maps [B, C_i, h, w] -> `LEVELS` maps [B, width, h, w]"""

    def __init__(self, dims: Sequence[int], width: int) -> None:
        super().__init__()
        self.lateral_convs = nn.ModuleList(Conv(dim, width, 1) for dim in dims)
        self.fpn_convs = nn.ModuleList(Conv(width, width, 3) for _ in dims)

    def forward(self, maps: Maps) -> list[Tensor]:
        laterals = [layer(x) for layer, x in zip(self.lateral_convs, maps, strict=True)]
        for i in range(len(laterals) - 1, 0, -1):
            laterals[i - 1] = laterals[i - 1] + F.interpolate(laterals[i], list(laterals[i - 1].shape[2:]))
        found = [layer(x) for layer, x in zip(self.fpn_convs, laterals, strict=True)]
        while len(found) < LEVELS:
            found.append(F.max_pool2d(found[-1], 1, stride=2))
        return found


class Doubling(nn.Module):
    """Twice the size, bilinear. [B, C, H, W] -> [B, C, 2 H, 2 W]"""

    def forward(self, x: Tensor) -> Tensor:
        return resize(x, [2 * n for n in x.shape[2:]])


class FpnHead(nn.Module):
    """Semantic FPN's head. `LEVELS` maps [B, width, h, w] -> [B, classes, H, W], the first one's size"""

    def __init__(self, width: int, channels: int, num_classes: int) -> None:
        super().__init__()
        self.scale_heads = nn.ModuleList()
        for i in range(LEVELS):
            layers: list[nn.Module] = []
            for k in range(max(i, 1)):
                layers.append(ConvNorm(channels if k else width, channels, 3))
                if i:
                    layers.append(Doubling())
            self.scale_heads.append(nn.Sequential(*layers))
        self.conv_seg = nn.Conv2d(channels, num_classes, 1)

    def forward(self, maps: Maps) -> Tensor:
        first, *others = (head(x) for head, x in zip(self.scale_heads, maps, strict=True))
        for other in others:
            first = first + resize(other, first.shape[2:])
        return self.conv_seg(first)


class UperHead(nn.Module):
    """UPerNet's head. Maps [B, C_i, h, w] -> [B, classes, H, W], the first one's size"""

    def __init__(self, dims: Sequence[int], channels: int, num_classes: int) -> None:
        super().__init__()
        last = dims[-1]
        self.psp_modules = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(side), ConvNorm(last, channels, 1)) for side in POOLS
        )
        self.bottleneck = ConvNorm(last + len(POOLS) * channels, channels, 3)
        self.lateral_convs = nn.ModuleList(ConvNorm(dim, channels, 1) for dim in dims[:-1])
        self.fpn_convs = nn.ModuleList(ConvNorm(channels, channels, 3) for _ in dims[:-1])
        self.fpn_bottleneck = ConvNorm(len(dims) * channels, channels, 3)
        self.conv_seg = nn.Conv2d(channels, num_classes, 1)

    def forward(self, maps: Maps) -> Tensor:
        *finer, last = maps
        pooled = [resize(pool(last), last.shape[2:]) for pool in self.psp_modules]
        laterals = [layer(x) for layer, x in zip(self.lateral_convs, finer, strict=True)]
        laterals.append(self.bottleneck(torch.cat([last, *pooled], dim=1)))
        for i in range(len(laterals) - 1, 0, -1):
            laterals[i - 1] = laterals[i - 1] + resize(laterals[i], laterals[i - 1].shape[2:])
        found = [layer(x) for layer, x in zip(self.fpn_convs, laterals[:-1], strict=True)]
        size = laterals[0].shape[2:]
        joined = torch.cat([resize(x, size) for x in (*found, laterals[-1])], dim=1)
        return self.conv_seg(self.fpn_bottleneck(joined))


class Segmenter(nn.Module):
    """A backbone's dense features and a head. [B, 3, H, W] -> logits [B, classes, h, w], the size of its first map"""

    def __init__(self, backbone: nn.Module, neck: nn.Module | None, decode_head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        if neck is not None:
            self.neck = neck
        self.decode_head = decode_head

    def forward(self, x: Tensor) -> Tensor:
        maps = self.backbone(x)
        neck = self._modules.get("neck")
        return self.decode_head(maps if neck is None else neck(maps))


def _semantic_fpn(
    backbone: nn.Module, dims: Sequence[int], num_classes: int, channels: int = 128, width: int = 256
) -> Segmenter:
    return Segmenter(backbone, FeaturePyramid(dims, width), FpnHead(width, channels, num_classes))


def _upernet(backbone: nn.Module, dims: Sequence[int], num_classes: int, channels: int = 512) -> Segmenter:
    return Segmenter(backbone, None, UperHead(dims, channels, num_classes))


HEADS: dict[str, Callable[..., Segmenter]] = {"fpn": _semantic_fpn, "upernet": _upernet}
"""From the names of `registry.HEADS` to what puts one on a backbone, from its channels and the classes."""


def build(spec: ModelSpec, head: str, options: dict[str, Any] | None = None, **of_backbone: Any) -> Segmenter:
    """Return a backbone with a head, in eval mode, weights as PyTorch's random state makes them.

    Args:
        head: one of `registry.HEADS`.
        options: of the head: `num_classes`, `channels` and, of Semantic FPN, `width`.
        of_backbone: options of the backbone's builder.
    """
    backbone = registry.build(spec, features=True, **of_backbone)
    chosen = {"num_classes": registry.CLASSES_OF_HEADS, **(options or {})}
    return HEADS[head](backbone, feature_dims(spec), **chosen).eval()


def feature_dims(spec: ModelSpec) -> list[int]:
    """Return the channels of a backbone's dense features, finest first."""
    with torch.device("meta"), torch.no_grad():
        maps = registry.build(spec, features=True)(torch.empty(1, *spec.input.shape))
    return [x.shape[1] for x in maps]


def settle(model: Segmenter) -> None:
    """Give a head with random weights norms that do something, and classes that depend on the image."""
    with torch.no_grad():
        for part in (model._modules.get("neck"), model.decode_head):
            for module in () if part is None else part.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.weight.normal_(1, 0.1)
                    module.bias.normal_(0, 0.1)
                    assert module.running_mean is not None
                    module.running_mean.normal_(0, 0.1)
        last = model.decode_head.get_submodule("conv_seg")
        assert isinstance(last, nn.Conv2d)
        last.weight.normal_(0, 0.5)


def from_checkpoint(
    spec: ModelSpec, head: str, state: dict[str, Tensor], blame: str
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Tensor], list[str]]:
    """Return what a checkpoint of mmsegmentation says: options of the backbone and of the head, tensors, and notes.

    The backbone's part lies under `backbone.` and is read as its family reads dense features; the head's under `neck.`
    and `decode_head.`. A head of training only, `auxiliary_head.`, is left out.

    Args:
        blame: the beginning of a sentence about a file that has no such head.

    Raises:
        CheckpointError: the file has no head, or another one.
    """
    found = _head_of(state)
    if found != head:
        has = "no head, only a backbone" if found is None else f"a head of {found}; use --segmentation {found}"
        raise CheckpointError(f"{blame}: it has {has}")
    parts: dict[str, dict[str, Tensor]] = {"backbone": {}, "neck": {}, "decode_head": {}}
    left = []
    for key, value in state.items():
        part, _, rest = key.partition(".")
        if part in parts:
            parts[part][rest] = value
        else:
            left.append(key)
    of_backbone, backbone, notes = registry.family(spec).from_checkpoint(parts["backbone"], features=True)
    notes = [*notes, *([f"{len(left)} tensors of no use in inference were left out, first {left[0]}"] if left else [])]
    own = {**_prefixed("neck", parts["neck"]), **_prefixed("decode_head", parts["decode_head"])}
    return of_backbone, _options_of_head(own), {**_prefixed("backbone", backbone), **own}, list(notes)


def _head_of(state: dict[str, Tensor]) -> str | None:
    """Return the name of a checkpoint's head; None where it has none that is known here."""
    if any(key.startswith("decode_head.psp_modules.") for key in state):
        return "upernet"
    return "fpn" if any(re.match(r"decode_head\.scale_heads\.", key) for key in state) else None


def _options_of_head(state: dict[str, Tensor]) -> dict[str, Any]:
    """Return the widths that a head's tensors have."""
    options: dict[str, Any] = {}
    last, lateral = state.get("decode_head.conv_seg.weight"), state.get("neck.lateral_convs.0.conv.weight")
    if last is not None and last.dim() == 4:
        options |= {"num_classes": last.shape[0], "channels": last.shape[1]}
    if lateral is not None:
        options["width"] = lateral.shape[0]
    return options


def _prefixed(part: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{part}.{key}": value for key, value in state.items()}
