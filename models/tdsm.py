"""TDSM: RelaCtrl's two-dimensional shuffle mixer, a block of a diffusion transformer, with fixed permutations.

    z = LN(c) (1 + scale) + shift                                       shift, scale, gate: rows of table + t
    u = P z                                                             one permutation of all L D numbers
    group g of u, cut into 4 parts of [L/4, D_g]  ->  self-attention of D_g channels, the same for all parts
    y = c + gate * P^-1 u'                                              [B, L, D]

P draws channels for each group first, and then permutes the L D_g numbers of a group, one by one: a token afterwards
mixes channels and positions. The authors draw P anew at every call, so that their output is a random variable; a file
holds one draw. Here P follows from a seed, or comes with the weights, as `perm_channel` and `perm_token_0` on.

Source: Cao et al., "RelaCtrl: Relevance-Guided Efficient Control for Diffusion Transformers", arXiv 2502.14377. Names
follow the authors' state dicts. Letters: B batch, L tokens, D channels, D_g of a group.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEADS = 4
PARTS = 4
GRAIN = 8 * HEADS
"""Groups are multiples of it wide."""

SEED = 0
"""Of the permutations, where the weights bring none."""

NOTES = (f"the permutations are drawn from seed {SEED}; the authors draw them anew at every call",)


class SelfAttention(nn.Module):
    """Multi-head self-attention. [B, N, D] -> the same"""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(2, (HEADS, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, dim=2))
        y = F.scaled_dot_product_attention(q, k, v)  # [B, h, N, d]
        return self.proj(y.transpose(1, 2).flatten(2))


class Expert(nn.Module):
    """A group's attention, under the authors' name."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.attn = SelfAttention(dim)


class TDSM(nn.Module):
    """One block. c [B, L, D] and t [B, 6 D] to [B, L, D].

    Args:
        dim: D.
        groups: of channels, each with an attention of its own.
        frames: L, a multiple of 4.
        permutations: the source of each channel, [D], and of each number of a group, [L D_g]; default: from `SEED`.
    """

    index: Tensor
    inverse: Tensor

    def __init__(self, dim: int, groups: int, frames: int = 64, permutations: Sequence[Tensor] | None = None) -> None:
        super().__init__()
        if frames % PARTS:
            raise ValueError(f"tdsm: the tokens must be a multiple of {PARTS}, got {frames}")
        self.dim, self.frames = dim, frames
        self.widths = group_widths(dim, groups)
        self.scale_shift_table = nn.Parameter(torch.randn(6, dim) / dim**0.5)
        self.experts_attn = nn.ModuleList(Expert(width) for width in self.widths)
        channels, *tokens = permutations or draw_permutations(self.widths, frames)
        index = _one_permutation(channels, tokens, self.widths, frames)
        self.register_buffer("index", index, persistent=False)
        self.register_buffer("inverse", torch.argsort(index), persistent=False)

    def forward(self, c: Tensor, t: Tensor) -> Tensor:
        rows = self.scale_shift_table + torch.unflatten(t, 1, (6, self.dim))  # [B, 6, D], of which three are used
        shift, scale, gate, *_ = rows.chunk(6, dim=1)
        z = F.layer_norm(c, (self.dim,), eps=1e-6) * (1 + scale) + shift
        u = z.flatten(1).index_select(1, self.index)  # [B, L D], group by group
        mixed = []
        parts = u.split_with_sizes([self.frames * width for width in self.widths], dim=1)
        for part, width, expert in zip(parts, self.widths, self.experts_attn, strict=True):
            assert isinstance(expert, Expert)
            tokens = part.reshape(-1, self.frames // PARTS, width)  # [4 B, L/4, D_g]
            mixed.append(expert.attn(tokens).reshape(-1, self.frames * width))
        y = torch.unflatten(torch.cat(mixed, dim=1).index_select(1, self.inverse), 1, (self.frames, self.dim))
        return c + gate * y


def group_widths(dim: int, groups: int) -> list[int]:
    """Return the channels of each group: equal shares, rounded up to multiples of 32, then less until they fit.

    Raises:
        ValueError: D is no multiple of 32, or has fewer of them than there are groups.
    """
    if dim % GRAIN or dim < groups * GRAIN:
        raise ValueError(f"tdsm: {groups} groups need a multiple of {GRAIN} channels, {groups * GRAIN} at least")
    share, wider = divmod(dim, groups)
    widths = [-(-(share + (i < wider)) // GRAIN) * GRAIN for i in range(groups)]
    i = 0
    while sum(widths) != dim:
        if widths[i % groups] > GRAIN:
            widths[i % groups] -= GRAIN
        i += 1
    return widths


def draw_permutations(widths: Sequence[int], frames: int, seed: int = SEED) -> list[Tensor]:
    """Return the permutation of the channels and that of each group's numbers, in the order of the authors' draws."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randperm(n, generator=generator) for n in (sum(widths), *(frames * width for width in widths))]


def _one_permutation(channels: Tensor, tokens: Sequence[Tensor], widths: Sequence[int], frames: int) -> Tensor:
    """The source of each of the L D numbers, group by group."""
    dim = sum(widths)
    found, start = [], 0
    for order, width in zip(tokens, widths, strict=True):
        position, channel = order.long() // width, order.long() % width
        found.append(position * dim + channels.long()[start + channel])
        start += width
    return torch.cat(found)


def tdsm_d192_n6(**options: Any) -> TDSM:
    """TDSM of 192 channels in 6 groups. Options: `frames` and `permutations` of `TDSM`."""
    return TDSM(192, 6, **options)


def tdsm_d1152_n6(**options: Any) -> TDSM:
    """TDSM of PixArt's 1152 channels in 6 groups, of the least relevant blocks. Options as for `tdsm_d192_n6`."""
    return TDSM(1152, 6, **options)


def tdsm_d1152_n4(**options: Any) -> TDSM:
    """TDSM of PixArt's 1152 channels in 4 groups. Options as for `tdsm_d192_n6`."""
    return TDSM(1152, 4, **options)


def tdsm_d1152_n2(**options: Any) -> TDSM:
    """TDSM of PixArt's 1152 channels in 2 groups, of the most relevant blocks. Options as for `tdsm_d192_n6`."""
    return TDSM(1152, 2, **options)


def from_checkpoint(state: dict[str, Tensor], frames: int = 64) -> tuple[dict[str, Any], dict[str, Tensor], list[str]]:
    """Return what a checkpoint says about the block: builder options, the tensors to load, and notes for the user.

    The authors' have no permutations; one that has brings `perm_channel` and a `perm_token_0`, `perm_token_1` ... for
    each group. A block in their files is called `process.`, and may have `controlnet.N.` in front.
    """
    state = {key.rsplit("process.", 1)[-1]: value for key, value in state.items()}
    given = {key: state.pop(key) for key in list(state) if key.startswith("perm_")}
    if "perm_channel" not in given:
        return {}, state, list(NOTES)
    tokens = [given[f"perm_token_{i}"] for i in range(len(given) - 1) if f"perm_token_{i}" in given]
    return {"permutations": [given["perm_channel"], *tokens]}, state, ["the permutations are the checkpoint's"]
