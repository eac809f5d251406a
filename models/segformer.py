"""SegFormer: a hierarchical transformer without positions, and a head of linear layers, in plain PyTorch.

    stage i    conv k s + N, blocks, N                                       H/4, H/8, H/16, H/32
    block      x <- x + attention(N(x));  x <- x + W2 gelu(dw3x3(W1 N(x)))
    attention  softmax(q k' / sqrt(d)) v;  k, v of N(conv r x r stride r (x)), r = 8, 4, 2, 1
    head       W [resize(L4 F4) | ... | resize(L1 F1)], BN, ReLU, conv1x1    [B, classes, H/4, W/4]

N normalises over C at each position. Its eps is 1e-5 in the embeddings and reductions; in blocks and behind stages it is
1e-6 in the authors' code and 1e-5 in transformers', and follows from the checkpoint's layout.
Source: Xie et al., "SegFormer", arXiv 2105.15203; names follow transformers' module tree. TransKD (arXiv 2202.13393)
trains a B0 with a B2 as its teacher; what it deploys is this model. Letters: B, C, H W, N tokens, d = C / heads.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgesmith.models.norms import ChannelNorm

READS_HEADS = True
"""A checkpoint's decoding head belongs to the model."""

HEADS = (1, 2, 5, 8)
REDUCTIONS = (8, 4, 2, 1)


class Embedding(nn.Module):
    """Overlapping patches: a strided convolution and its norm. [B, C, H, W] -> [B, C', H/s, W/s]"""

    def __init__(self, dim: int, out_dim: int, is_first: bool) -> None:
        super().__init__()
        kernel, stride = (7, 4) if is_first else (3, 2)
        self.proj = nn.Conv2d(dim, out_dim, kernel, stride, kernel // 2)
        self.layer_norm = ChannelNorm(out_dim, 1e-5)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer_norm(self.proj(x))


class Reduction(nn.Module):
    """A shorter sequence for keys and values. [B, C, H, W] -> [B, C, H/r, W/r]"""

    def __init__(self, dim: int, ratio: int) -> None:
        super().__init__()
        self.sequence_reduction = nn.Conv2d(dim, dim, ratio, ratio)
        self.layer_norm = ChannelNorm(dim, 1e-5)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer_norm(self.sequence_reduction(x))


class Attention(nn.Module):
    """Softmax attention of all positions over a reduced map. [B, C, H, W] -> [B, C, H, W]"""

    def __init__(self, dim: int, heads: int, ratio: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Conv2d(dim, dim, 1)
        self.k_proj = nn.Conv2d(dim, dim, 1)
        self.v_proj = nn.Conv2d(dim, dim, 1)
        self.o_proj = nn.Conv2d(dim, dim, 1)
        self.sequence_reduction = Reduction(dim, ratio) if ratio > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        reduced = self.sequence_reduction(x)
        parts = (self.q_proj(x), self.k_proj(reduced), self.v_proj(reduced))
        each = (x.shape[0], self.heads, x.shape[1] // self.heads, -1)
        q, k, v = (part.reshape(each).transpose(2, 3) for part in parts)  # [B, heads, N, d]
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.o_proj(mixed.transpose(2, 3).reshape(x.shape))


class Depthwise(nn.Module):
    """dw3x3. [B, C, H, W] -> [B, C, H, W]"""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.dwconv(x)


class MixFfn(nn.Module):
    """conv1x1 C -> 4C, dw3x3, GELU, conv1x1 4C -> C. [B, C, H, W] -> [B, C, H, W]"""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(dim, 4 * dim, 1)
        self.dwconv = Depthwise(4 * dim)
        self.fc2 = nn.Conv2d(4 * dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.dwconv(self.fc1(x))))


class Block(nn.Module):
    """Attention and MLP, each on a normalised map and added to it. [B, C, H, W] -> [B, C, H, W]"""

    def __init__(self, dim: int, heads: int, ratio: int, eps: float) -> None:
        super().__init__()
        self.layernorm_before = ChannelNorm(dim, eps)
        self.attention = Attention(dim, heads, ratio)
        self.layernorm_after = ChannelNorm(dim, eps)
        self.mlp = MixFfn(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.layernorm_before(x))
        return x + self.mlp(self.layernorm_after(x))


class Stage(nn.Module):
    """Patches, blocks and a norm. [B, C, H, W] -> [B, C', H/s, W/s]"""

    def __init__(self, patch_embeddings: Embedding, blocks: Sequence[Block], dim: int, eps: float) -> None:
        super().__init__()
        self.patch_embeddings = patch_embeddings
        self.blocks = nn.Sequential(*blocks)
        self.layer_norm = ChannelNorm(dim, eps)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer_norm(self.blocks(self.patch_embeddings(x)))


class Projection(nn.Module):
    """conv1x1 C -> C'. [B, C, H, W] -> [B, C', H, W]"""

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(dim, out_dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


class DecodeHead(nn.Module):
    """One width for all stages, one size, the last stage first, and two layers. Four maps -> [B, classes, H/4, W/4]"""

    def __init__(self, dims: Sequence[int], width: int, num_classes: int) -> None:
        super().__init__()
        self.linear_projections = nn.ModuleList(Projection(dim, width) for dim in dims)
        self.linear_fuse = nn.Conv2d(4 * width, width, 1, bias=False)
        self.batch_norm = nn.BatchNorm2d(width)
        self.classifier = nn.Conv2d(width, num_classes, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        size = maps[0].shape[2:]
        projected = [project(x) for project, x in zip(self.linear_projections, maps, strict=True)]
        resized = [projected[0], *(F.interpolate(x, size, mode="bilinear") for x in projected[1:])]
        return self.classifier(F.relu(self.batch_norm(self.linear_fuse(torch.cat(resized[::-1], dim=1)))))


class SegFormer(nn.Module):
    """SegFormer for semantic segmentation, or, with `features`, its encoder for other heads.

    Args:
        depths, dims: blocks and channels of each of the four stages.
        width: channels of the head.
        num_classes: of the logits.
        eps: of the norms in blocks and behind stages.
        features: return the four stages' outputs instead of logits.

    Shapes: [B, 3, H, W], H and W divisible by 32, to logits [B, num_classes, H/4, W/4], or to four maps
    [B, C_i, H / 2^(i+2), W / 2^(i+2)].
    """

    def __init__(
        self,
        depths: Sequence[int],
        dims: Sequence[int],
        width: int,
        num_classes: int = 19,
        eps: float = 1e-6,
        features: bool = False,
    ) -> None:
        super().__init__()
        before = (3, *dims)
        self.stages = nn.ModuleList(
            Stage(
                Embedding(before[i], dim, i == 0),
                [Block(dim, HEADS[i], REDUCTIONS[i], eps) for _ in range(depths[i])],
                dim,
                eps,
            )
            for i, dim in enumerate(dims)
        )
        self.decode_head = None if features else DecodeHead(dims, width, num_classes)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return tuple(maps) if self.decode_head is None else self.decode_head(maps)


def segformer_b0(**options: Any) -> SegFormer:
    """SegFormer-B0, 3.7 M parameters; TransKD's student. Options: `num_classes`, `eps`, `features` of `SegFormer`."""
    return SegFormer(depths=(2, 2, 2, 2), dims=(32, 64, 160, 256), width=256, **options)


def segformer_b1(**options: Any) -> SegFormer:
    """SegFormer-B1, 13.7 M parameters. Options as for `segformer_b0`."""
    return SegFormer(depths=(2, 2, 2, 2), dims=(64, 128, 320, 512), width=256, **options)


def segformer_b2(**options: Any) -> SegFormer:
    """SegFormer-B2, 27.4 M parameters; TransKD's teacher. Options as for `segformer_b0`."""
    return SegFormer(depths=(3, 4, 6, 3), dims=(64, 128, 320, 512), width=768, **options)


def settle(model: nn.Module) -> None:
    """Give a model with random weights norms that do something: initial ones scale by 1 and shift by 0."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, ChannelNorm | nn.BatchNorm2d):
                for name, parameter in module.named_parameters():
                    parameter.normal_(float(name == "weight"), 0.1)
            if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
                module.running_mean.normal_(0, 0.1)


_RENAMED = (
    # as transformers writes it and the Hub has it
    (r"encoder\.patch_embeddings\.(\d)\.", r"stages.\1.patch_embeddings."),
    (r"encoder\.layer_norm\.(\d)\.", r"stages.\1.layer_norm."),
    (r"encoder\.block\.(\d)\.(\d+)\.", r"stages.\1.blocks.\2."),
    (r"\.layer_norm_1\.", ".layernorm_before."),
    (r"\.layer_norm_2\.", ".layernorm_after."),
    (r"\.attention\.self\.(query|key|value)\.", lambda found: f".attention.{found[1][0]}_proj."),
    (r"\.attention\.self\.sr\.", ".attention.sequence_reduction.sequence_reduction."),
    (r"\.attention\.self\.layer_norm\.", ".attention.sequence_reduction.layer_norm."),
    (r"\.attention\.output\.dense\.", ".attention.o_proj."),
    (r"\.mlp\.dense([12])\.", r".mlp.fc\1."),
    (r"decode_head\.linear_c\.(\d)\.", r"decode_head.linear_projections.\1."),
    # as the authors have it
    (r"^patch_embed(\d)\.proj\.", lambda found: f"stages.{int(found[1]) - 1}.patch_embeddings.proj."),
    (r"^patch_embed(\d)\.norm\.", lambda found: f"stages.{int(found[1]) - 1}.patch_embeddings.layer_norm."),
    (r"^norm(\d)\.", lambda found: f"stages.{int(found[1]) - 1}.layer_norm."),
    (r"^block(\d)\.", lambda found: f"stages.{int(found[1]) - 1}.blocks."),
    (r"(?<=\d)\.norm1\.", ".layernorm_before."),
    (r"(?<=\d)\.norm2\.", ".layernorm_after."),
    (r"\.attn\.q\.", ".attention.q_proj."),
    (r"\.attn\.sr\.", ".attention.sequence_reduction.sequence_reduction."),
    (r"\.attn\.norm\.", ".attention.sequence_reduction.layer_norm."),
    (r"\.attn\.proj\.", ".attention.o_proj."),
    (r"^(?:decode_head\.)?linear_c(\d)\.", lambda found: f"decode_head.linear_projections.{int(found[1]) - 1}."),
    (r"^(?:decode_head\.)?linear_fuse\.conv\.", "decode_head.linear_fuse."),
    (r"^(?:decode_head\.)?linear_fuse\.bn\.", "decode_head.batch_norm."),
    (r"^(?:decode_head\.)?linear_pred\.", "decode_head.classifier."),
)
"""From the parts of other layouts' keys to those of the names here, applied one after the other."""

_ANOTHER_HEAD = ("head.", "classifier.", "decode_head.conv_seg.")
"""Beginnings of keys that no segmentation reads: heads for ImageNet, and one that mmseg makes and leaves unused."""


def from_checkpoint(
    state: dict[str, Tensor], features: bool = False
) -> tuple[dict[str, Any], dict[str, Tensor], list[str]]:
    """Return what a checkpoint says about the variant: builder options, the tensors to load, and notes for the user.

    Layouts, told apart by their keys: the authors' with `backbone.` and `decode_head.`; TransKD's student, alone or in
    the wrapper that trains it, where it lies under `student.`; transformers' as it writes files, and as its modules
    are called. The encoder alone is one of them without a head. Options are `num_classes` and `eps`.
    """
    notes = []
    students = {key.removeprefix("student."): value for key, value in state.items() if key.startswith("student.")}
    if students:
        notes.append(f"TransKD's student; {len(state) - len(students)} tensors of its training were left out")
        state = students
    is_bare = any(key.startswith("linear_c1.") for key in state)
    if is_bare:
        notes.append("TransKD trains on RGB values in 0..1 without mean and deviation: give the file such values")
    state = {re.sub(r"^(?:backbone|segformer)\.", "", key): value for key, value in state.items()}
    is_of_authors = any(key.startswith("patch_embed1.") for key in state)
    dropped = _ANOTHER_HEAD + (("decode_head.",) if features else ())
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        name = _rename(key)
        if not name.startswith(dropped):
            renamed |= _split_keys_and_values(name, value)
    options: dict[str, Any] = {"eps": 1e-6 if is_of_authors else 1e-5}
    classifier = renamed.get("decode_head.classifier.weight")
    if classifier is not None:
        options["num_classes"] = classifier.shape[0]
    return options, {key: _as_convolution(value) for key, value in renamed.items()}, notes


def _rename(key: str) -> str:
    for pattern, name in _RENAMED:
        key = re.sub(pattern, name, key)
    return key


def _split_keys_and_values(name: str, value: Tensor) -> dict[str, Tensor]:
    """Return one tensor by its name here, or the two that the authors keep in one, keys first."""
    if ".attn.kv." not in name or value.shape[0] % 2:
        return {name: value}
    k, v = value.chunk(2)
    return {name.replace(".attn.kv.", f".attention.{which}_proj."): part for which, part in (("k", k), ("v", v))}


def _as_convolution(value: Tensor) -> Tensor:
    return value[:, :, None, None] if value.dim() == 2 else value
