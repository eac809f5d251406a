"""MIL's pooling over one, two or three spatial axes.

Meanings from coremltools' operator documentation and its shape inference:

    pad_type   valid: none; custom: `pad` as (before, after) an axis; same: what makes ceil(size / stride) windows,
               the odd one after (`same`) or before (`same_lower`) the data
    ceil_mode  a last window may reach past the padding, unless it would start there: torch's rule, and torch's average,
               which leaves out what lies past the padding, and the padding too if `exclude_padding_from_average`
    l2_pool    the root of the sum of squares, not of their mean
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from edgesmith.errors import Unsupported
from edgesmith.exporters.mil.ops import ints, number, op, wide

Window = tuple[list[int], list[int], list[tuple[int, int]], list[int]]
"""Of each spatial axis: the window's size, its stride, the padding before and after, and the number of windows."""


def _window(
    x: Tensor,
    kernel_sizes: Tensor,
    strides: Tensor | None,
    pad_type: str,
    pad: Tensor | None,
    ceil_mode: Tensor | bool,
) -> Window:
    """Return where the windows lie. Raises Unsupported for a kind of padding that MIL does not have."""
    sizes = ints(kernel_sizes)
    steps = ints(strides) if strides is not None else [1] * len(sizes)
    given = ints(pad) if pad is not None else [0] * 2 * len(sizes)
    pads, counts = [], []
    for axis, (length, size, step) in enumerate(zip(x.shape[2:], sizes, steps, strict=True)):
        before, after = _padding(pad_type.lower(), length, size, step, (given[2 * axis], given[2 * axis + 1]))
        room = length + before + after - size
        count = room // step + 1
        if number(ceil_mode):
            count = -(-room // step) + 1
            if (count - 1) * step >= length + before and before + after > 0:
                count -= 1
        pads.append((before, after))
        counts.append(count)
    return sizes, steps, pads, counts


def _padding(kind: str, length: int, size: int, step: int, custom: tuple[int, int]) -> tuple[int, int]:
    """The padding before and after one axis."""
    if kind == "valid":
        return 0, 0
    if kind == "custom":
        return custom
    total = max((math.ceil(length / step) - 1) * step + size - length, 0)
    if kind == "same":
        return total // 2, total - total // 2
    if kind == "same_lower":
        return total - total // 2, total // 2
    raise Unsupported(f"pooling has the pad_types valid, custom, same and same_lower, not {kind!r}")


def _padded(x: Tensor, window: Window, value: float) -> Tensor:
    """The map with its padding and what the last windows reach beyond it, or without what none of them reaches."""
    amounts: list[int] = []
    for length, size, step, (before, _), count in zip(x.shape[2:], *window, strict=True):
        amounts = [before, (count - 1) * step + size - before - length, *amounts]  # torch wants the last axis first
    return F.pad(x, amounts, value=value)


def _sums(x: Tensor, window: Window) -> Tensor:
    """Sums over windows, with zeros for padding."""
    sizes, steps = window[:2]
    padded = _padded(x, window, 0.0)
    if len(sizes) == 1:  # torch's mean over one axis cannot leave the division out
        return F.avg_pool2d(padded.unsqueeze(2), (1, sizes[0]), (1, steps[0]), divisor_override=1).squeeze(2)
    pool = F.avg_pool2d if len(sizes) == 2 else F.avg_pool3d
    return pool(padded, sizes, steps, divisor_override=1)


def _counts(x: Tensor, window: Window, exclude_padding: bool) -> Tensor:
    """Return how many entries of each window count for its mean, to go with the last axes."""
    total = torch.ones((), dtype=x.dtype)
    for length, size, step, (before, after), count in zip(x.shape[2:], *window, strict=True):
        first, last = (0, length) if exclude_padding else (-before, length + after)
        starts = torch.arange(count) * step - before
        entries = (starts + size).clamp(max=last) - starts.clamp(min=first)
        total = total[..., None] * entries.to(x.dtype)
    return total


@op("avg_pool")
def avg_pool(
    *,
    x: Tensor,
    kernel_sizes: Tensor,
    pad_type: str,
    strides: Tensor | None = None,
    pad: Tensor | None = None,
    exclude_padding_from_average: Tensor | bool = False,
    ceil_mode: Tensor | bool = False,
) -> Tensor:
    """Means over windows."""
    window = _window(x, kernel_sizes, strides, pad_type, pad, ceil_mode)
    values = wide(x)
    return _sums(values, window) / _counts(values, window, bool(number(exclude_padding_from_average)))


@op("max_pool")
def max_pool(
    *,
    x: Tensor,
    kernel_sizes: Tensor,
    pad_type: str,
    strides: Tensor | None = None,
    pad: Tensor | None = None,
    ceil_mode: Tensor | bool = False,
) -> Tensor:
    """Maxima over windows; padding never wins."""
    window = _window(x, kernel_sizes, strides, pad_type, pad, ceil_mode)
    pool = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[len(window[0]) - 1]
    result: Tensor = pool(_padded(wide(x), window, -math.inf), window[0], window[1])
    return result


@op("l2_pool")
def l2_pool(
    *,
    x: Tensor,
    kernel_sizes: Tensor,
    pad_type: str,
    strides: Tensor | None = None,
    pad: Tensor | None = None,
    ceil_mode: Tensor | bool = False,
) -> Tensor:
    """Roots of the sums of squares over windows."""
    return _sums(wide(x).square(), _window(x, kernel_sizes, strides, pad_type, pad, ceil_mode)).sqrt()
