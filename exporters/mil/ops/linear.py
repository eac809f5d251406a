"""Sums of products: convolutions, linear layers, matmuls. They are what `accumulate` is about."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from edgesmith.exporters.mil.ops import Context, ints, number, op, wide

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def rounds_sums(context: Context) -> bool:
    """Return whether partial sums are rounded to half: where that was asked for, and the result is half."""
    declared = [getattr(one.type, "dtype", None) for one in context.operation.outputs]
    return context.accumulate == "fp16" and declared[:1] == ["fp16"]


def blocks(context: Context, length: int) -> Iterator[slice]:
    """Yield the contraction's indices, in order, as many at a time as are summed in fp32."""
    for start in range(0, length, context.accumulate_block):
        yield slice(start, min(start + context.accumulate_block, length))


def half(x: Tensor) -> Tensor:
    """Return fp32 values rounded to fp16, as fp32 values."""
    return x.half().float()


def multiply_matrices(context: Context, x: Tensor, y: Tensor) -> Tensor:
    """Return [..., N, K] @ [..., K, M], with partial sums rounded where the evaluation asks for it."""
    x, y = wide(x), wide(y)
    if not rounds_sums(context):
        return torch.matmul(x, y)
    total = torch.zeros((), dtype=x.dtype)
    for block in blocks(context, x.shape[-1]):
        total = half(total + torch.matmul(x[..., block], y[..., block, :]))
    return total


@op("linear", context=True)
def linear(context: Context, *, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply x [..., K] by the transposed weight [M, K], plus bias [M]."""
    flat = x.reshape(-1, x.shape[-1])
    result = multiply_matrices(context, flat, weight.transpose(0, 1)).reshape(*x.shape[:-1], weight.shape[0])
    return result if bias is None else result + wide(bias)


@op("matmul", context=True)
def matmul(
    context: Context,
    *,
    x: Tensor,
    y: Tensor,
    transpose_x: Tensor | bool = False,
    transpose_y: Tensor | bool = False,
) -> Tensor:
    """NumPy's matmul, one side or both transposed first; a transposition says nothing to a vector."""
    if number(transpose_x) and x.dim() > 1:
        x = x.transpose(-1, -2)
    if number(transpose_y) and y.dim() > 1:
        y = y.transpose(-1, -2)
    rows, columns = x.dim() == 1, y.dim() == 1
    result = multiply_matrices(context, x[None] if rows else x, y[:, None] if columns else y)
    if columns:
        result = result.squeeze(-1)
    return result.squeeze(-1 if columns else -2) if rows else result


@op("einsum", context=True)
def einsum(context: Context, *, values: tuple[Tensor, ...], equation: str) -> Tensor:
    """The two contractions that MIL has: `nchw,nwhu->nchu` and `chw,whr->chr`, by whatever letters.

    Sizes of 1 broadcast, which `torch.einsum` would do as well, but for the contracted axis.
    """
    x, y = values
    first, _, third = equation.replace(" ", "").replace("->", ",").partition(",")
    *batch, c, h, w = list(first if len(first) in (3, 4) else "???")
    u = third[-1:]
    if third != "".join([*batch, w, h, u, ",", *batch, c, h, u]) or len({*batch, c, h, w, u}) != x.dim() + 1:
        raise ValueError(f"the equation {equation} is none that MIL has")
    result = multiply_matrices(context, x.transpose(-3, -2), y.transpose(-3, -2))  # [..., H, C, W] @ [..., H, W, U]
    return result.transpose(-3, -2)


@dataclass(frozen=True, kw_only=True)
class Conv:
    """The inputs of `conv` and `conv_transpose`, by MIL's names."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None = None
    strides: Tensor | None = None
    pad_type: str = "valid"
    pad: Tensor | None = None
    dilations: Tensor | None = None
    groups: Tensor | int = 1

    @property
    def rank(self) -> int:
        """The number of axes that are convolved over."""
        return self.x.dim() - 2

    @property
    def geometry(self) -> Geometry:
        """Strides, dilations and groups."""
        ones = [1] * self.rank
        strides = ints(self.strides) if self.strides is not None else ones
        dilations = ints(self.dilations) if self.dilations is not None else ones
        return Geometry(strides, dilations, int(number(self.groups)))

    def add_bias(self, y: Tensor) -> Tensor:
        """Return y [B, O, *D] plus the bias [O], where there is one."""
        return y if self.bias is None else y + wide(self.bias).reshape(-1, *[1] * self.rank)


@dataclass(frozen=True, kw_only=True)
class ConvTranspose(Conv):
    """The inputs of `conv_transpose`, by MIL's names."""

    output_shape: Tensor | None = None


@dataclass(frozen=True)
class Geometry:
    """The way a convolution walks over its map."""

    strides: list[int]
    dilations: list[int]
    groups: int


@op("conv", context=True, inputs=Conv)
def conv(context: Context, given: Conv) -> Tensor:
    """Cross-correlate x [B, C, *D] with weight [O, C / groups, *K], over one to three axes.

    `same` gives ceil(D / stride) positions and puts the odd element of padding at the end, `same_lower` at the
    beginning. The documentation of MIL derives the padding from the kernel alone, which is right for a stride of 1;
    what coremltools' own shape rule and TensorFlow do is followed here, as it also gives that size at other strides.
    """
    geometry, weight = given.geometry, wide(given.weight)
    padding = _conv_padding(given, geometry)
    x = F.pad(wide(given.x), [amount for pair in reversed(padding) for amount in pair])
    if rounds_sums(context):
        return given.add_bias(_conv_in_blocks(context, x, weight, geometry))
    bias = None if given.bias is None else wide(given.bias)
    return _CONV[given.rank](x, weight, bias, geometry.strides, 0, geometry.dilations, geometry.groups)


def _conv_padding(given: Conv, geometry: Geometry) -> list[tuple[int, int]]:
    """Return the padding before and after each axis."""
    if given.pad_type == "valid":
        return [(0, 0)] * given.rank
    if given.pad_type == "custom":
        pad = ints(given.pad) if given.pad is not None else [0] * (2 * given.rank)
        return list(zip(pad[::2], pad[1::2], strict=True))
    if given.pad_type not in ("same", "same_lower"):
        raise ValueError(f"the pad_type {given.pad_type} is none that MIL has")
    found = []
    axes = zip(given.x.shape[2:], given.weight.shape[2:], geometry.strides, geometry.dilations, strict=True)
    for size, kernel, stride, dilation in axes:
        extent = (kernel - 1) * dilation + 1
        total = max((-(-size // stride) - 1) * stride + extent - size, 0)
        small, large = total // 2, total - total // 2
        found.append((small, large) if given.pad_type == "same" else (large, small))
    return found


def _conv_in_blocks(context: Context, x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """Return a convolution whose partial sums are rounded: `accumulate_block` products at a time of each output.

    A block of products lies in a few input channels; it is a convolution of those with the weights of other products
    set to zero, which adds nothing but zeros to a sum.
    """
    outputs, channels = weight.shape[:2]
    taps = weight[0, 0].numel()
    flat = weight.reshape(outputs, channels * taps)
    of_group = x.reshape(x.shape[0], geometry.groups, channels, *x.shape[2:])
    total = torch.zeros((), dtype=x.dtype)
    convolve = _CONV[len(geometry.strides)]
    for block in blocks(context, channels * taps):
        first, last = block.start // taps, (block.stop - 1) // taps + 1
        masked = torch.zeros(outputs, (last - first) * taps, dtype=weight.dtype)
        masked[:, block.start - first * taps : block.stop - first * taps] = flat[:, block]
        kernel = masked.reshape(outputs, last - first, *weight.shape[2:])
        slab = of_group[:, :, first:last].flatten(1, 2)
        total = half(total + convolve(slab, kernel, None, geometry.strides, 0, geometry.dilations, geometry.groups))
    return total


@op("conv_transpose", context=True, inputs=ConvTranspose)
def conv_transpose(context: Context, given: ConvTranspose) -> Tensor:
    """The transpose of a convolution: x [B, C, *D] with weight [C, O / groups, *K].

    The whole result has (D - 1) stride + (K - 1) dilation + 1 elements an axis. `custom` cuts off the padding, `same`
    cuts to D stride with the odd element at the end; `output_shape` sets the size that remains, which is filled with
    zeros (and the bias) past the end of the whole. Sums in half: the products of an input channel are scattered, so
    `accumulate_block` input channels are summed in fp32 at a time.
    """
    geometry = given.geometry
    whole = _transposed(context, wide(given.x), wide(given.weight), geometry)
    is_same = given.pad_type == "same"
    pad = ints(given.pad) if given.pad is not None and given.pad_type == "custom" else [0] * (2 * given.rank)
    wanted = ints(given.output_shape)[2:] if given.output_shape is not None else None
    for axis, stride in enumerate(geometry.strides):
        full, before, after = whole.shape[2 + axis], pad[2 * axis], pad[2 * axis + 1]
        size = given.x.shape[2 + axis] * stride if is_same else full - before - after
        size = size if wanted is None else wanted[axis]
        start = max(full - size, 0) // 2 if is_same else before
        whole = whole.narrow(2 + axis, start, min(size, full - start))
        missing = size - whole.shape[2 + axis]
        whole = F.pad(whole, [0, 0] * (given.rank - 1 - axis) + [0, missing]) if missing > 0 else whole
    return given.add_bias(whole)


def _transposed(context: Context, x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """Return the whole transposed convolution, nothing cut off."""
    strides, dilations, groups = geometry.strides, geometry.dilations, geometry.groups
    function = _TRANSPOSED[len(strides)]
    if not rounds_sums(context):
        return function(x, weight, None, strides, 0, 0, groups, dilations)
    channels = weight.shape[0] // groups
    of_group = x.reshape(x.shape[0], groups, channels, *x.shape[2:])
    kernels = weight.reshape(groups, channels, *weight.shape[1:])
    total = torch.zeros((), dtype=x.dtype)
    for block in blocks(context, channels):
        slab, kernel = of_group[:, :, block].flatten(1, 2), kernels[:, block].flatten(0, 1)
        total = half(total + function(slab, kernel, None, strides, 0, 0, groups, dilations))
    return total
