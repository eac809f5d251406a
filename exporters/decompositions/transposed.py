"""Transposed convolutions, as convolutions that make all outputs of a stride at once.

    y[s q + r] = sum_j x[q - j] w[s j + r]        0 <= r < s,  j = 0 ... ceil(K / s) - 1

Along each axis an output is s q + r, and only each s-th weight meets an input there. So the s outputs of one q are
channels of one convolution, which are then put beside each other, and the pads are cut off (Shi et al. 2016,
arXiv 1609.07009, show it for their sub-pixel convolution). Letters: K weights, s stride, q and r as above.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

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
    if x.dim() != len(weight.shape):
        return LEAVE
    steps = _Steps(2, stride, padding, output_padding, dilation)
    return _transposed(F.conv2d, x, weight, bias, steps, groups)


@decomposes(
    aten.conv_transpose3d.input,
    targets=("tvm", "coreai", "onnx"),
    why="TVM's importer and Core AI's converter have none, and ONNX Runtime lacks outputs behind the last weight",
)
def conv_transpose3d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] = (1, 1, 1),
    padding: Sequence[int] = (0, 0, 0),
    output_padding: Sequence[int] = (0, 0, 0),
    groups: int = 1,
    dilation: Sequence[int] = (1, 1, 1),
) -> Tensor:
    """Return the transposed convolution of volumes [B, C, D, H, W] by weights [C, N / groups, K, K, K]."""
    steps = _Steps(3, stride, padding, output_padding, dilation)
    if x.dim() == 4:
        return _transposed(F.conv3d, x.unsqueeze(0), weight, bias, steps, groups).squeeze(0)
    return _transposed(F.conv3d, x, weight, bias, steps, groups)


class _Steps:
    """Stride, padding, outputs behind and dilation of a transposed convolution, for each axis."""

    def __init__(self, axes: int, *given: Sequence[int]) -> None:
        self.axes = axes
        self.stride, self.padding, self.behind, self.dilation = (
            list(numbers) * axes if len(numbers) == 1 else list(numbers) for numbers in given
        )


def _transposed(
    convolve: Callable[..., Tensor], x: Tensor, weight: Tensor, bias: Tensor | None, steps: _Steps, groups: int
) -> Tensor:
    """Return a transposed convolution by a convolution of as many axes."""
    weight = _spread(weight, steps.dilation)
    inputs, outputs, *kernel = weight.shape
    taps = [-(-size // step) for size, step in zip(kernel, steps.stride, strict=True)]
    more = [count * step - size for count, step, size in zip(taps, steps.stride, kernel, strict=True)]
    places = [size for pair in zip(taps, steps.stride, strict=True) for size in pair]
    w = F.pad(weight, [width for behind in reversed(more) for width in (0, behind)])
    w = w.reshape([groups, inputs // groups, outputs, *places])
    of_taps = [3 + 2 * axis for axis in range(steps.axes)]
    of_phases = [4 + 2 * axis for axis in range(steps.axes)]
    w = w.flip(of_taps).permute([0, 2, *of_phases, 1, *of_taps])
    w = w.reshape([groups * outputs * math.prod(steps.stride), inputs // groups, *taps])
    y = convolve(x, w, None, 1, [count - 1 for count in taps], 1, groups)
    sizes = y.shape[2:]
    y = y.reshape([-1, groups * outputs, *steps.stride, *sizes])
    between = [2 + side * steps.axes + axis for axis in range(steps.axes) for side in (1, 0)]
    y = y.permute([0, 1, *between])
    y = y.reshape([-1, groups * outputs, *(size * step for size, step in zip(sizes, steps.stride, strict=True))])
    y = _cut(y, x.shape[2:], kernel, steps)
    return y if bias is None else y + bias.reshape([1, -1, *[1] * steps.axes])


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
    steps = _Steps(2, stride, padding, output_padding, dilation)
    kernel = [(size - 1) * step + 1 for size, step in zip(weight.shape[2:], steps.dilation, strict=True)]
    y = F.conv_transpose2d(x, weight, None, steps.stride, 0, 0, groups, steps.dilation)
    y = _cut(y, x.shape[2:], kernel, steps)
    return y if bias is None else y + bias.reshape([1, -1, 1, 1])


def _pair(numbers: Sequence[int]) -> list[int]:
    return [numbers[0], numbers[-1]]


def _spread(weight: Tensor, dilation: Sequence[int]) -> Tensor:
    """Return weights with the zeros of a dilation between them."""
    for axis, step in enumerate(dilation, 2):
        if step > 1:
            size = weight.shape[axis]
            spread = F.pad(weight.unsqueeze(axis + 1), [*([0, 0] * (weight.dim() - 1 - axis)), 0, step - 1])
            weight = spread.flatten(axis, axis + 1).narrow(axis, 0, (size - 1) * step + 1)
    return weight


def _cut(y: Tensor, sizes: Sequence[int], kernel: Sequence[int], steps: _Steps) -> Tensor:
    """Return the outputs within the pads; those behind the last weight are zeros."""
    for axis in range(steps.axes):
        length = (sizes[axis] - 1) * steps.stride[axis] - 2 * steps.padding[axis] + kernel[axis] + steps.behind[axis]
        if (beyond := steps.padding[axis] + length - y.shape[2 + axis]) > 0:
            y = F.pad(y, [*([0, 0] * (steps.axes - 1 - axis)), 0, beyond])
        y = y.narrow(2 + axis, steps.padding[axis], length)
    return y
