"""MIL's random operators.

The distributions are MIL's; the numbers are not Apple's, which no document gives. A `seed` from 0 on gives the same
numbers at each evaluation. Otherwise they come from the evaluator's generator, so that a whole run is reproducible too.
No figure that compares these values with another runtime's means anything; shapes, types and statistics do.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from edgesmith.errors import Unsupported
from edgesmith.exporters.mil.ops import Context, ints, number, op, wide


def _generator(context: Context, seed: Tensor | int) -> torch.Generator:
    """One of its own for a seed from 0 on, else the evaluation's."""
    value = int(number(seed))
    return context.generator if value < 0 else torch.Generator().manual_seed(value)


@op("random_uniform", context=True)
def random_uniform(
    context: Context,
    *,
    shape: Tensor,
    low: Tensor | float = 0.0,
    high: Tensor | float = 1.0,
    seed: Tensor | int = -1,
) -> Tensor:
    """Uniform in [low, high)."""
    values = torch.rand(ints(shape), generator=_generator(context, seed))
    return torch.add(values * (number(high) - number(low)), number(low))


@op("random_normal", context=True)
def random_normal(
    context: Context,
    *,
    shape: Tensor,
    mean: Tensor | float = 0.0,
    stddev: Tensor | float = 1.0,
    seed: Tensor | int = -1,
) -> Tensor:
    """Normal with this mean and standard deviation."""
    values = torch.randn(ints(shape), generator=_generator(context, seed))
    return torch.add(values * number(stddev), number(mean))


@op("random_bernoulli", context=True)
def random_bernoulli(context: Context, *, shape: Tensor, prob: Tensor | float = 0.5, seed: Tensor | int = -1) -> Tensor:
    """One with this probability, else 0."""
    values = torch.rand(ints(shape), generator=_generator(context, seed))
    return torch.lt(values, number(prob)).float()


@op("random_categorical", context=True)
def random_categorical(
    context: Context, *, x: Tensor, mode: str = "logits", size: Tensor | int = 1, seed: Tensor | int = -1
) -> Tensor:
    """`size` class indices drawn with replacement for each distribution in the last axis, as floats.

    Raises:
        Unsupported: a mode other than logits and probs.
    """
    if mode not in ("logits", "probs"):
        raise Unsupported(f"random_categorical has the modes logits and probs, not {mode!r}")
    weights = torch.softmax(wide(x), -1) if mode == "logits" else wide(x)
    rows = weights.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    drawn = torch.multinomial(rows, int(number(size)), replacement=True, generator=_generator(context, seed))
    return drawn.reshape(*x.shape[:-1], -1).to(x.dtype)
