"""LongVQ-like classifiers of long sequences: gated attention over quantised keys, in export-friendly PyTorch.

    m = ema(norm(x))                                    damped averages of each channel, causal         [B, T, D]
    z = SiLU(W_z m);  q = kappa_q z + mu_q;  k = kappa_k z + mu_k;  v = SiLU(W_v norm(x))
    o = softmax(q c(k)' + bias) v                       c(k) the nearest codeword of k                  [B, T, V]
    h = SiLU(W_h m + U_h (SiLU(W_g m) * o));  g = sigmoid(W_f m)
    y = x + g (h - x),  then y + MLP(norm(y))

Keys that share a codeword share their scores, so attention costs T S of S codewords instead of T^2: tokens of other
blocks are seen through how often each codeword occurs there, c_s, and the mean of its values, u_s; those of the own
block and both beside it one by one, with a learned bias for each distance. All of it is one softmax:

    softmax([q C' + ln c | q c(k)' + bias]) [u | v]

The paper (Liu et al., "LongVQ: Long Sequence Modeling with Vector Quantization on Structured Memory", IJCAI 2024, arXiv
2404.11163) has no published code, and its equations were not to be had; only its abstract, its introduction and
summaries were. So this is LongVQ-like: the block is Mega's (arXiv 2209.10655), the codebook Transformer-VQ's (arXiv
2309.16354), joined as those texts say. Chosen here, since nothing says it: LayerNorm before each part; keys and queries
128 wide; 512 codewords, a codebook of each layer, frozen; blocks of 128 with a bias by distance |i - j| < 256; depths,
widths and the MLP of Mega's Long Range Arena models; a LayerNorm, the mean over time and one layer as head.
Letters: B batch, T time, D channels, V width of values, K of keys, S codewords, E averages of a channel, l block, N
blocks.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgesmith.kernels import damped_ema, vector_quantise

ABSENT = -1e4
"""A score of what is not there: exp of it is 0, and half precision holds it."""


class DampedEma(nn.Module):
    """Damped averages of each channel: h_t = alpha beta x_t + (1 - alpha delta) h_{t-1}, y = eta h. [B, T, D]

    Args:
        dim: channels D.
        averages: E.
    """

    def __init__(self, dim: int, averages: int = 16) -> None:
        super().__init__()
        self.alpha, self.delta = (nn.Parameter(torch.randn(dim, averages) * 0.2) for _ in range(2))
        self.beta = nn.Parameter(torch.randn(dim, averages) * 0.02 + 1)
        self.eta = nn.Parameter(torch.randn(dim, averages) / averages**0.5)

    def forward(self, x: Tensor) -> Tensor:
        alpha = self.alpha.sigmoid()
        decay, weight = 1 - alpha * self.delta.sigmoid(), self.eta * alpha * self.beta
        y: Tensor = damped_ema.OP.overload(x, *damped_ema.tables(decay, weight, x.shape[1]))
        return y


class CodeAttention(nn.Module):
    """softmax(q c(k)' + bias) v, every token of every other, bias only near by. [B, T, K] x 2, [B, T, V] -> [B, T, V]

    Args:
        width: K.
        codewords: S.
        block: l, tokens of a block.
    """

    def __init__(self, width: int = 128, codewords: int = 512, block: int = 128) -> None:
        super().__init__()
        self.block = block
        self.bias = nn.Parameter(torch.randn(2 * block) * 0.02)
        self.register_buffer("codebook", torch.randn(codewords, width) * width**-0.5)
        self.codebook: Tensor

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        (batch, length, _), block = q.shape, self.block
        count = -(-length // block)
        codes = vector_quantise.OP.overload(k, self.codebook)  # [B, T]
        is_code = (codes.unsqueeze(-1) == torch.arange(len(self.codebook))).to(q.dtype)  # [B, T, S]
        keys = F.embedding(codes, self.codebook)
        q, keys, v, is_code = (self.cut(value, count) for value in (q, keys, v, is_code))  # [B, N, l, ...]

        far, near = self.reach(count, length)
        counts = (far @ is_code.sum(2)).unsqueeze(2)  # [B, N, 1, S]
        sums = (is_code.transpose(2, 3) @ v).flatten(2)  # [B, N, S V]
        means = (far @ sums).reshape(batch, count, -1, v.shape[-1]) / counts.clamp(min=1).transpose(2, 3)
        seen = torch.where(counts > 0, counts.clamp(min=1).log(), torch.full_like(counts, ABSENT))
        through_codes = q @ self.codebook.t() + seen  # [B, N, l, S]
        one_by_one = q @ self.beside(keys).transpose(2, 3) + self.bias_of_distance() + near  # [B, N, l, 3 l]
        weights = torch.cat((through_codes, one_by_one), dim=-1).softmax(-1)
        of_codes, of_tokens = weights.split_with_sizes([len(self.codebook), 3 * block], dim=-1)
        y = of_codes @ means + of_tokens @ self.beside(v)
        return y.reshape(batch, count * block, -1)[:, :length]

    def cut(self, value: Tensor, count: int) -> Tensor:
        """Return a sequence in blocks, with zeros after its end. [B, T, *] -> [B, N, l, *]"""
        missing = count * self.block - value.shape[1]
        padded = F.pad(value, (0, 0, 0, missing)) if missing else value
        return padded.reshape(value.shape[0], count, self.block, value.shape[2])

    def beside(self, blocks: Tensor) -> Tensor:
        """Return each block between those beside it, zeros where there is none. [B, N, l, *] -> [B, N, 3 l, *]"""
        none = torch.zeros_like(blocks[:, :1])
        before, after = torch.cat((none, blocks[:, :-1]), 1), torch.cat((blocks[:, 1:], none), 1)
        return torch.cat((before, blocks, after), dim=2)

    def reach(self, count: int, length: int) -> tuple[Tensor, Tensor]:
        """Return which blocks are far from which, 1 or 0 [N, N], and scores of what is beside none [N, 1, 3 l]."""
        blocks = torch.arange(count)
        far = ((blocks.unsqueeze(1) - blocks).abs() > 1).to(self.bias.dtype)
        positions = ((blocks - 1) * self.block).unsqueeze(1) + torch.arange(3 * self.block)
        is_there = (positions >= 0) & (positions < length)
        return far, ((~is_there).to(self.bias.dtype) * ABSENT).unsqueeze(1)

    def bias_of_distance(self) -> Tensor:
        """Return the bias of each token of a block and each one near by, 2 l apart or less. [l, 3 l]"""
        own = torch.arange(self.block, 2 * self.block)
        apart = (own.unsqueeze(1) - torch.arange(3 * self.block)).abs()  # 0 to 2 l - 1
        return self.bias[apart]


class Block(nn.Module):
    """A gated unit of averages and attention, and an MLP. [B, T, D] -> [B, T, D]

    Args:
        dim, hidden: D and V; V is also the MLP's width.
        key_width, codewords, block: of `CodeAttention`.
        averages: of `DampedEma`.
    """

    def __init__(self, dim: int, hidden: int, key_width: int, codewords: int, block: int, averages: int = 16) -> None:
        super().__init__()
        self.norm, self.ema = nn.LayerNorm(dim), DampedEma(dim, averages)
        self.sizes = (key_width, hidden, dim, dim)
        self.context_proj = nn.Linear(dim, sum(self.sizes))  # z, the gate of o, g and what h adds to it
        self.v_proj, self.h_proj = nn.Linear(dim, hidden), nn.Linear(hidden, dim, bias=False)
        self.kappa = nn.Parameter(1 + 0.1 * torch.randn(2, key_width))
        self.mu = nn.Parameter(0.1 * torch.randn(2, key_width))
        self.attention = CodeAttention(key_width, codewords, block)
        self.mlp_norm = nn.LayerNorm(dim)
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        z, gate, update, added = self.context_proj(self.ema(normed)).split_with_sizes(self.sizes, dim=-1)
        z = F.silu(z)
        q, k = z * self.kappa[0] + self.mu[0], z * self.kappa[1] + self.mu[1]
        o = self.attention(q, k, F.silu(self.v_proj(normed)))
        h = F.silu(added + self.h_proj(F.silu(gate) * o))
        x = x + update.sigmoid() * (h - x)
        y: Tensor = x + self.fc2(F.silu(self.fc1(self.mlp_norm(x))))
        return y


class LongVq(nn.Module):
    """A classifier of long sequences, of tokens int64 [B, T] or of frames [B, T, C]. -> [B, classes]

    Args:
        depth, dim, hidden: layers, D and V.
        num_classes: of the head.
        vocabulary: how many tokens there are; None for frames.
        channels: C of frames.
        options: of `Block`.
    """

    def __init__(
        self,
        depth: int,
        dim: int,
        hidden: int,
        num_classes: int,
        vocabulary: int | None = None,
        channels: int = 1,
        **options: int,
    ) -> None:
        super().__init__()
        given = {"key_width": 128, "codewords": 512, "block": 128} | options
        self.vocabulary = vocabulary
        self.embed: nn.Module = nn.Linear(channels, dim) if vocabulary is None else nn.Embedding(vocabulary, dim)
        self.blocks = nn.Sequential(*(Block(dim, hidden, **given) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.blocks(self.embed(x)))
        y: Tensor = self.head(x.mean(1))
        return y


def longvq_text(frames: int | None = None, num_classes: int = 2, **options: Any) -> LongVq:
    """LongVQ-like classifier of bytes, as in the Long Range Arena's reviews. Options of `LongVq`."""
    return LongVq(**{"depth": 4, "dim": 128, "hidden": 256, "vocabulary": 256} | options, num_classes=num_classes)


def longvq_image(frames: int | None = None, num_classes: int = 10, **options: Any) -> LongVq:
    """LongVQ-like classifier of pixels one by one, as in the Long Range Arena's CIFAR-10. Options of `LongVq`."""
    return LongVq(**{"depth": 8, "dim": 160, "hidden": 320} | options, num_classes=num_classes)


def from_checkpoint(
    state: dict[str, Tensor], frames: int | None = None, **_: Any
) -> tuple[dict[str, Any], dict[str, Tensor], list[str]]:
    """Return what a checkpoint says about a LongVQ-like model, the tensors to load, and no notes."""
    head, words = state.get("head.weight"), state.get("embed.weight")
    options: dict[str, Any] = {"num_classes": head.shape[0]} if head is not None and head.dim() == 2 else {}
    if words is not None and words.dim() == 2 and words.shape[1] > 1 and "embed.bias" not in state:
        options["vocabulary"] = words.shape[0]
    return options, state, []
