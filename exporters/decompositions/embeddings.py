"""Embeddings that are summed over bags, or renormalised while they are looked up."""

from __future__ import annotations

import torch
from torch import Tensor

from edgesmith.exporters.decompositions import decomposes

aten = torch.ops.aten

_SUM, _MEAN, _MAX = range(3)


@decomposes(
    *(aten._embedding_bag.default, aten._embedding_bag_forward_only.default),
    why="no converter has one for all modes; torch's ONNX exporter makes a loop of sequences",
)
def embedding_bag(  # noqa: PLR0913 - the operator's own arguments
    weight: Tensor,
    indices: Tensor,
    offsets: Tensor,
    scale_grad_by_freq: bool = False,
    mode: int = _SUM,
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int = -1,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the sum, mean or maximum of the rows of each bag, [B, D]; an empty bag is 0.

    Bag b holds the positions from offsets[b] to the next offset. What PyTorch keeps for gradients is returned empty.
    """
    count = indices.shape[0]
    rows = weight.index_select(0, indices)  # [N, D]
    if per_sample_weights is not None:
        rows = rows * per_sample_weights.unsqueeze(1)
    first = offsets[:-1] if include_last_offset else offsets
    last = offsets[1:] if include_last_offset else torch.cat([offsets[1:], torch.full_like(offsets[:1], count)])
    places = torch.arange(count, device=indices.device)
    holds = (places >= first.unsqueeze(1)) & (places < last.unsqueeze(1))  # [B, N]
    if padding_idx >= 0:
        holds = holds & (indices != padding_idx)
    members = holds.to(rows.dtype)
    if mode == _MAX:
        least = torch.where(holds.unsqueeze(2), rows, torch.finfo(rows.dtype).min).amax(1)
        bags = torch.where(members.sum(1, keepdim=True) > 0, least, torch.zeros_like(least))
    else:
        bags = torch.matmul(members, rows)
        bags = bags / members.sum(1, keepdim=True).clamp(min=1.0) if mode == _MEAN else bags
    empty = torch.zeros_like(offsets)
    return bags, torch.zeros_like(indices), empty, empty


@decomposes(aten.embedding_renorm.default, why="no converter has it")
def embedding_renorm(weight: Tensor, indices: Tensor, max_norm: float, norm_type: float) -> Tensor:
    """Return a table in which no row is longer than `max_norm`: those that are looked up are shortened so."""
    size = torch.linalg.vector_norm(weight, norm_type, dim=1, keepdim=True)
    shorter = weight * (max_norm / (size + 1e-7))
    return torch.where(size > max_norm, shorter, weight)
