"""Transposed convolutions, as convolutions that make all outputs of a stride at once.

    y[s q + r] = sum_j x[q - j] w[s j + r]        0 <= r < s,  j = 0 ... ceil(K / s) - 1

Along each axis an output is s q + r, and only each s-th weight meets an input there. So the s outputs of one q are
channels of one convolution, which are then put beside each other, and the pads are cut off (Shi et al. 2016,
arXiv 1609.07009, show it for their sub-pixel convolution). Letters: K weights, s stride, q and r as above.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from edgesmith.exporters.decompositions import LEAVE, decomposes

aten = torch.ops.aten

_KEEPS = "TVM keeps a call into its own runtime"


@decomposes(aten.conv_transpose2d.input, targets=("tvm",), why=_KEEPS)
def conv_transpose2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    output_padding: Sequence[int] = (0, 0),
    groups: int = 1,
    dilation: Sequence[int] = (1, 1),
) -> Tensor:
    """Return the transposed convolution of maps [B, C, H, W] by weights [C, N / groups, K, K]."""
    stride, padding, output_padding, dilation = map(_pair, (stride, padding, output_padding, dilation))
    if x.dim() != len(weight.shape):
        return LEAVE
    weight = _spread(weight, dilation)
    inputs, outputs, *kernel = weight.shape
    steps = [-(-size // step) for size, step in zip(kernel, stride, strict=True)]
    more = [count * step - size for count, step, size in zip(steps, stride, kernel, strict=True)]
    w = F.pad(weight, (0, more[1], 0, more[0])).reshape(
        [groups, inputs // groups, outputs, steps[0], stride[0], steps[1], stride[1]]
    )
    w = w.flip(3, 5).permute(0, 2, 4, 6, 1, 3, 5)
    w = w.reshape([groups * outputs * stride[0] * stride[1], inputs // groups, *steps])
    y = F.conv2d(x, w, None, 1, [count - 1 for count in steps], 1, groups)
    height, width = y.shape[2:]
    y = y.reshape([-1, groups * outputs, stride[0], stride[1], height, width]).permute(0, 1, 4, 2, 5, 3)
    y = y.reshape([-1, groups * outputs, height * stride[0], width * stride[1]])
    y = _cut(y, x.shape[2:], kernel, stride, padding, output_padding)
    return y if bias is None else y + bias.reshape([1, -1, 1, 1])


@decomposes(aten.conv_transpose1d.default, targets=("tvm",), why=_KEEPS)
def conv_transpose1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] = (1,),
    padding: Sequence[int] = (0,),
    output_padding: Sequence[int] = (0,),
    groups: int = 1,
    dilation: Sequence[int] = (1,),
) -> Tensor:
    """Return the transposed convolution of rows [B, C, T], as maps of one row."""
    sizes = ((1, stride[0]), (0, padding[0]), (0, output_padding[0]))
    if x.dim() != len(weight.shape):
        return LEAVE
    made = conv_transpose2d(x.unsqueeze(2), weight.unsqueeze(2), bias, *sizes, groups, (1, dilation[0]))
    return made.squeeze(2)


@decomposes(
    aten.conv_transpose2d.input,
    targets=("coreml",),
    why="coremltools 9.0 fails where outputs are behind the last weight",
)
def conv_transpose2d_behind(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    output_padding: Sequence[int] = (0, 0),
    groups: int = 1,
    dilation: Sequence[int] = (1, 1),
) -> Tensor:
    """Return the transposed convolution whose outputs are more than the pads cut off."""
    if all(more <= cut for more, cut in zip(_pair(output_padding), _pair(padding), strict=True)):
        return LEAVE
    stride, padding, output_padding, dilation = map(_pair, (stride, padding, output_padding, dilation))
    kernel = [(size - 1) * step + 1 for size, step in zip(weight.shape[2:], dilation, strict=True)]
    y = F.conv_transpose2d(x, weight, None, stride, 0, 0, groups, dilation)
    y = _cut(y, x.shape[2:], kernel, stride, padding, output_padding)
    return y if bias is None else y + bias.reshape([1, -1, 1, 1])


def _pair(numbers: Sequence[int]) -> list[int]:
    return [numbers[0], numbers[-1]]


def _spread(weight: Tensor, dilation: Sequence[int]) -> Tensor:
    """Return weights with the zeros of a dilation between them."""
    for axis, step in zip((2, 3), dilation, strict=True):
        if step > 1:
            size = weight.shape[axis]
            spread = F.pad(weight.unsqueeze(axis + 1), [*([0, 0] * (3 - axis)), 0, step - 1])
            weight = spread.flatten(axis, axis + 1).narrow(axis, 0, (size - 1) * step + 1)
    return weight


def _cut(
    y: Tensor,
    sizes: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    output_padding: Sequence[int],
) -> Tensor:
    """Return the outputs within the pads; those behind the last weight are zeros."""
    for axis in (0, 1):
        length = (sizes[axis] - 1) * stride[axis] - 2 * padding[axis] + kernel[axis] + output_padding[axis]
        if (beyond := padding[axis] + length - y.shape[2 + axis]) > 0:
            y = F.pad(y, (0, 0, 0, beyond) if axis == 0 else (0, beyond))
        y = y.narrow(2 + axis, padding[axis], length)
    return y
