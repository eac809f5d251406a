"""Average pools with a divisor of their own, and those that leave their padding out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from edgesmith.exporters.decompositions import decomposes

aten = torch.ops.aten


_DIVISOR = "torch's exporter and TVM drop divisor_override, and coremltools 9.0 refuses it"


@decomposes(aten.avg_pool2d.default, targets=("onnx", "tvm", "coreml"), why=_DIVISOR)
def avg_pool2d(
    x: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """Return the sums of windows of an image over the divisor."""
    if divisor_override is None:
        return NotImplemented
    kernel, steps, pads = (_each(k, 2) for k in (kernel_size, stride or kernel_size, padding))
    return _sums(F.avg_pool2d, x, kernel, steps, pads, ceil_mode) / divisor_override


@decomposes(aten.avg_pool3d.default, targets=("onnx", "tvm", "coreml"), why=_DIVISOR)
def avg_pool3d(
    x: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """Return the sums of windows of a volume over the divisor."""
    if divisor_override is None:
        return NotImplemented
    kernel, steps, pads = (_each(k, 3) for k in (kernel_size, stride or kernel_size, padding))
    return _sums(F.avg_pool3d, x, kernel, steps, pads, ceil_mode) / divisor_override


_COUNTED = "Core AI counts the padding as zeros, whatever count_include_pad says, and drops ceil_mode"


@decomposes(aten.avg_pool1d.default, targets=("coreai",), why=_COUNTED)
def uncounted_avg_pool1d(
    x: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor:
    """Return the means of windows of a sequence, of what counts in them."""
    if not (ceil_mode or (any(padding) and not count_include_pad)):
        return NotImplemented
    kernel, steps, pads = (_each(k, 1) for k in (kernel_size, stride or kernel_size, padding))
    return _means(F.avg_pool1d, x, kernel, steps, pads, ceil_mode, count_include_pad)


@decomposes(aten.avg_pool2d.default, targets=("coreai",), why=_COUNTED)
def uncounted_avg_pool2d(
    x: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """Return the means of windows of an image, of what counts in them; with a divisor, their sums over it."""
    kernel, steps, pads = (_each(k, 2) for k in (kernel_size, stride or kernel_size, padding))
    if divisor_override is not None:
        return _sums(F.avg_pool2d, x, kernel, steps, pads, ceil_mode) / divisor_override
    if not (x.dim() == 3 or ceil_mode or (any(padding) and not count_include_pad)):
        return NotImplemented
    return _means(F.avg_pool2d, x, kernel, steps, pads, ceil_mode, count_include_pad)


@decomposes(aten.avg_pool3d.default, targets=("coreai",), why=_COUNTED)
def uncounted_avg_pool3d(
    x: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """Return the means of windows of a volume, of what counts in them; with a divisor, their sums over it."""
    kernel, steps, pads = (_each(k, 3) for k in (kernel_size, stride or kernel_size, padding))
    if divisor_override is not None:
        return _sums(F.avg_pool3d, x, kernel, steps, pads, ceil_mode) / divisor_override
    if not (x.dim() == 4 or ceil_mode or (any(padding) and not count_include_pad)):
        return NotImplemented
    return _means(F.avg_pool3d, x, kernel, steps, pads, ceil_mode, count_include_pad)


@decomposes(
    *(aten.adaptive_avg_pool3d.default, aten._adaptive_avg_pool3d.default),
    targets=("coreai", "coreml", "onnx"),
    why="the converters take one number of all, or windows of one size",
)
def adaptive_avg_pool3d(x: Tensor, output_size: Sequence[int]) -> Tensor:
    """Return the means of windows from floor(i L / N) to ceil((i + 1) L / N), axis by axis: of means of one size."""
    for axis, count in enumerate(output_size, x.dim() - 3):
        x = _adaptive_means(x, axis, count)
    return x


def _adaptive_means(x: Tensor, axis: int, count: int) -> Tensor:
    """Return the means of so many windows of an axis."""
    length = x.shape[axis]
    if count == length:
        return x
    if length % count == 0:
        ahead, behind = x.shape[:axis], x.shape[axis + 1 :]
        parts = x.reshape([math.prod(ahead), count, length // count, math.prod(behind)])  # Core ML has five axes
        return parts.mean([2]).reshape([*ahead, count, *behind])
    edges = [(i * length // count, -(-(i + 1) * length // count)) for i in range(count)]
    return torch.cat([x.narrow(axis, start, stop - start).mean([axis], keepdim=True) for start, stop in edges], axis)


def _means(
    pool: Callable[..., Tensor],
    x: Tensor,
    kernel: list[int],
    steps: list[int],
    pads: list[int],
    ceil_mode: bool,
    count_include_pad: bool,
) -> Tensor:
    """Return the means of windows: their sums over how many of their places count."""
    axes = len(kernel)
    inside = torch.ones([1] * (x.dim() - axes) + list(x.shape[-axes:]), dtype=x.dtype, device=x.device)
    if count_include_pad:
        inside = F.pad(inside, [pad for pad in reversed(pads) for _ in range(2)], value=1.0)
        counts = _sums(pool, inside, kernel, steps, [0] * axes, ceil_mode)
    else:
        counts = _sums(pool, inside, kernel, steps, pads, ceil_mode)
    sums = _sums(pool, x, kernel, steps, pads, ceil_mode)
    return sums / counts[tuple(slice(0, k) for k in (*counts.shape[: x.dim() - axes], *sums.shape[-axes:]))]


def _sums(
    pool: Callable[..., Tensor], x: Tensor, kernel: list[int], steps: list[int], pads: list[int], ceil_mode: bool
) -> Tensor:
    """Return the sums of windows: averages of the padded map times their size."""
    widths: list[int] = []
    for size, k, step, pad in zip(x.shape[-len(kernel) :], kernel, steps, pads, strict=True):
        gap = size + 2 * pad - k
        count = (math.ceil(gap / step) if ceil_mode else gap // step) + 1
        if ceil_mode and (count - 1) * step >= size + pad:  # a window that begins in the padding is left out
            count -= 1
        widths = [pad, max((count - 1) * step + k - size - pad, 0), *widths]
    padded = F.pad(x, widths)
    if x.dim() == len(kernel) + 1:  # converters lack volumes without a batch
        return pool(padded.unsqueeze(0), kernel, steps).squeeze(0) * math.prod(kernel)
    return pool(padded, kernel, steps) * math.prod(kernel)


def _each(value: Sequence[int], axes: int) -> list[int]:
    """Return a number for each axis of one for all."""
    return list(value) * axes if len(value) == 1 else list(value)
