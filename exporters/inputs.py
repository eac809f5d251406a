"""The inputs that numbers are compared on: drawn like the examples, the same ones every time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from edgesmith.models.registry import ImageInput

COUNT = 8
"""Inputs, each a whole batch."""


def seeded_inputs(
    examples: Sequence[Tensor], image: ImageInput | None = None, dynamic_batch: bool = False, count: int = COUNT
) -> list[list[Tensor]]:
    """Return `count` inputs like the examples, the same ones every time. `describe_inputs` says it in words.

    Floating point: standard normal, or, with `image`, random RGB bytes normalised as the model expects. Integers and
    booleans: the example first, then uniform between its smallest and largest value. With `dynamic_batch` the batch
    goes round from 1 to the examples'.
    """
    return [
        [_draw(example, seed, k, image, dynamic_batch) for k, example in enumerate(examples)] for seed in range(count)
    ]


def _draw(example: Tensor, seed: int, position: int, image: ImageInput | None, dynamic_batch: bool) -> Tensor:
    generator = torch.Generator().manual_seed(1000 * position + seed)
    if dynamic_batch and example.dim():
        example = example[: 1 + seed % example.shape[0]]
    shape = example.shape
    if image is not None:
        rgb = torch.randint(0, 256, shape, generator=generator).to(example.dtype) / 255
        mean, std = (torch.tensor(value).reshape(1, -1, 1, 1) for value in (image.mean, image.std))
        return (rgb - mean) / std
    if example.is_floating_point():
        return torch.randn(shape, generator=generator).to(example.dtype)
    if seed == 0 or example.numel() == 0:
        return example
    if example.dtype == torch.bool:
        return torch.randint(0, 2, shape, generator=generator).bool()
    low, high = int(example.min()), int(example.max())
    return torch.randint(low, high + 1, shape, generator=generator).to(example.dtype)


def describe_inputs(examples: Sequence[Tensor], image: ImageInput | None = None) -> list[str]:
    """Return what `seeded_inputs` draws for each input, in words."""
    words = []
    for example in examples:
        if image is not None:
            words.append("random RGB bytes, normalised")
        elif example.is_floating_point():
            words.append("standard normal")
        elif example.dtype == torch.bool:
            words.append("the example, then random booleans")
        else:
            low, high = (int(example.min()), int(example.max())) if example.numel() else (0, 0)
            words.append(f"the example, then integers from {low} to {high}")
    return words
