"""Hydra: bidirectional state space mixers for sequences, in export-friendly PyTorch.

    z, x, B, C, Delta = in_proj(u)                  x, B, C through one depthwise convolution over time, and SiLU
    y   = quasiseparable(x, Delta, A, B, C, D)      scans in both directions and a diagonal, fc_D(x) + D
    out = out_proj(rms(y) * SiLU(z))                                                              [B, T, C] -> [B, T, C]

The convolution looks ahead as far as it looks back, so none of it is causal.
Hydra-BERT is layers of x = norm(x + mixer(x)) without MLPs, under BERT's embeddings and heads.

Source: Hwang et al., "Hydra: Bidirectional State Space Models Through Generalized Matrix Mixers", NeurIPS 2024, arXiv
2407.09941. Module names follow the authors' state dicts, so their checkpoints load as they are.
Letters: B batch, T time, C channels, D width inside, H heads, P their width, G groups, N state.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgesmith.kernels import quasiseparable


class GatedNorm(nn.Module):
    """x / rms(x) * weight * SiLU(z), over the last axis."""

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        scale = (x.square().mean(-1, keepdim=True) + self.eps).rsqrt()
        return x * scale * self.weight * F.silu(z)


class Hydra(nn.Module):
    """The Hydra mixer. [B, T, C] -> [B, T, C]

    Args:
        dim: channels C.
        state: N.
        kernel: of the convolution, odd.
        expand: D / C.
        head_dim: P; D must be divisible by it.
        groups: G, which share B and C; the heads must be divisible by it.
    """

    def __init__(
        self, dim: int, state: int = 64, kernel: int = 7, expand: int = 2, head_dim: int = 64, groups: int = 1
    ) -> None:
        super().__init__()
        inner = expand * dim
        self.heads, self.groups, self.state = inner // head_dim, groups, state
        mixed = inner + 4 * groups * state
        self.sizes = [inner, mixed, 2 * self.heads]
        self.dt_bias = nn.Parameter(torch.log(torch.expm1(torch.exp(torch.empty(self.heads).uniform_(-6.9, -2.3)))))
        self.A_log = nn.Parameter(torch.zeros(self.heads))
        self.D = nn.Parameter(torch.ones(self.heads))
        self.in_proj = nn.Linear(dim, sum(self.sizes), bias=False)
        self.conv1d = nn.Conv1d(mixed, mixed, kernel, padding=kernel // 2, groups=mixed)
        self.fc_D = nn.Linear(inner, self.heads, bias=False)
        self.norm = GatedNorm(inner)
        self.out_proj = nn.Linear(inner, dim, bias=False)

    def forward(self, u: Tensor) -> Tensor:
        projected: Tensor = self.in_proj(u)
        z, mixed, steps = projected.split_with_sizes(self.sizes, dim=-1)
        mixed = F.silu(self.conv1d(mixed.transpose(1, 2))).transpose(1, 2)
        x, rows = mixed.split_with_sizes([self.sizes[0], mixed.shape[-1] - self.sizes[0]], dim=-1)
        rows = rows.reshape(*rows.shape[:2], 4, self.groups, self.state)  # B_f, C_f, B_b, C_b; Core ML ends at 5 axes
        y: Tensor = quasiseparable.OP.overload(
            x.reshape(*x.shape[:2], self.heads, -1),
            F.softplus(steps.reshape(*steps.shape[:2], 2, -1) + self.dt_bias),
            -self.A_log.exp(),
            rows[:, :, 0::2],
            rows[:, :, 1::2],
            F.linear(x, self.fc_D.weight, self.D),
        )
        out: Tensor = self.out_proj(self.norm(y.flatten(2), z))
        return out


class _Layer(nn.Module):
    """norm(x + mixer(x)), or x + mixer(norm(x)) with `before`."""

    def __init__(self, mixer: Hydra, dim: int, before: bool) -> None:
        super().__init__()
        self.before, self.mixer, self.norm = before, mixer, nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        if self.before:
            mixed: Tensor = x + self.mixer(self.norm(x))
        else:
            mixed = self.norm(x + self.mixer(x))
        return mixed


class _Residual(nn.Module):
    """A layer under the name that the authors' state dicts have for it."""

    def __init__(self, layer: _Layer) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        return y


class _Embeddings(nn.Module):
    def __init__(self, vocabulary: int, dim: int) -> None:
        super().__init__()
        self.word_embeddings, self.token_type_embeddings = nn.Embedding(vocabulary, dim), nn.Embedding(2, dim)
        self.LayerNorm = nn.LayerNorm(dim, eps=1e-12)

    def forward(self, ids: Tensor, types: Tensor) -> Tensor:
        x: Tensor = self.LayerNorm(self.word_embeddings(ids) + self.token_type_embeddings(types))
        return x


class _Encoder(nn.Module):
    def __init__(self, depth: int, dim: int, before: bool, options: dict[str, int]) -> None:
        super().__init__()
        self.layer = nn.Sequential(*(_Residual(_Layer(Hydra(dim, **options), dim, before)) for _ in range(depth)))
        self.norm_f = nn.LayerNorm(dim) if before else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        encoded: Tensor = self.norm_f(self.layer(x))
        return encoded


class _Pooler(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dense = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.dense(x[:, 0]))


class _Bert(nn.Module):
    def __init__(self, vocabulary: int, depth: int, dim: int, before: bool, options: dict[str, int]) -> None:
        super().__init__()
        self.embeddings = _Embeddings(vocabulary, dim)
        self.encoder = _Encoder(depth, dim, before, options)

    def forward(self, ids: Tensor, types: Tensor) -> Tensor:
        x: Tensor = self.encoder(self.embeddings(ids, types))
        return x


class _Transform(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dense, self.LayerNorm = nn.Linear(dim, dim), nn.LayerNorm(dim, eps=1e-12)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.LayerNorm(F.gelu(self.dense(x)))
        return y


class _Predictions(nn.Module):
    def __init__(self, vocabulary: int, dim: int) -> None:
        super().__init__()
        self.transform, self.decoder = _Transform(dim), nn.Linear(dim, vocabulary)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.decoder(self.transform(x))
        return y


class _Heads(nn.Module):
    def __init__(self, vocabulary: int, dim: int) -> None:
        super().__init__()
        self.predictions = _Predictions(vocabulary, dim)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.predictions(x)
        return y


class HydraBert(nn.Module):
    """Hydra in BERT's place: no MLP, no attention mask, no position embedding.

    A sequence is fed whole: padding is no identity, since the convolution's bias, the step sizes and the backward scan
    run over it too. Pad as in training, or export for the length.

    Args:
        vocabulary: rows of the word embedding; the authors round BERT's up to a multiple of 8.
        depth, dim: layers, and channels C.
        before: norms before the mixers instead of after the sums, and one behind the last.
        num_classes: of a classifier on the first token; None for logits of masked tokens.
        options: of `Hydra`.

    Shapes: ids and types [B, T], int64, to [B, T, vocabulary], or [B, num_classes].
    """

    def __init__(
        self,
        vocabulary: int = 30528,
        depth: int = 23,
        dim: int = 768,
        before: bool = False,
        num_classes: int | None = None,
        **options: int,
    ) -> None:
        super().__init__()
        self.bert = _Bert(vocabulary, depth, dim, before, options)
        self.vocabulary, self.is_classifier = vocabulary, num_classes is not None
        if num_classes is not None:
            self.bert.pooler = _Pooler(dim)
            self.classifier = nn.Linear(dim, num_classes)
        else:
            self.cls = _Heads(vocabulary, dim)
            self.cls.predictions.decoder.weight = self.bert.embeddings.word_embeddings.weight

    def forward(self, input_ids: Tensor, token_type_ids: Tensor) -> Tensor:
        x = self.bert(input_ids, token_type_ids)
        y: Tensor = self.classifier(self.pool(x)) if self.is_classifier else self.cls(x)
        return y

    def pool(self, x: Tensor) -> Tensor:
        """The first token, through a layer. [B, T, C] -> [B, C]"""
        pooled: Tensor = self.bert.get_submodule("pooler")(x)
        return pooled


def hydra_bert(frames: int | None = None, **options: Any) -> HydraBert:
    """Hydra-BERT of 23 layers. Options: `num_classes`, `depth`, `dim`, `vocabulary`, `before` of `HydraBert`."""
    return HydraBert(**options)


def hydra_block_d128(**_: Any) -> Hydra:
    """The Hydra mixer of 128 channels."""
    return Hydra(128)


def hydra_block_d768(**_: Any) -> Hydra:
    """The Hydra mixer of 768 channels, as in Hydra-BERT."""
    return Hydra(768)


def from_checkpoint(state: dict[str, Tensor], **_: Any) -> tuple[dict[str, Any], dict[str, Tensor], list[str]]:
    """Return what a checkpoint says about a Hydra-BERT (nothing of a block), the tensors to load, and no notes."""
    state = {key.removeprefix("model."): value for key, value in state.items()}
    words = state.get("bert.embeddings.word_embeddings.weight")
    if words is None or words.dim() != 2:
        return {}, state, []
    layers = {key.split(".")[3] for key in state if key.startswith("bert.encoder.layer.")}
    options: dict[str, Any] = {"vocabulary": words.shape[0], "dim": words.shape[1], "depth": len(layers)}
    options["before"] = "bert.encoder.norm_f.weight" in state
    if "classifier.weight" in state:
        options["num_classes"] = state["classifier.weight"].shape[0]
    return options, state, []
