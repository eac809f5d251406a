"""Sums of products: convolutions, linear layers, matrix products. They are what `accumulate` is about."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from edgesmith.exporters.mil.ops import Context, ints, number, op, wide

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def rounds_sums(context: Context) -> bool:
    """Whether partial sums are rounded to half: when that was asked for, and the result is half."""
    declared = [getattr(one.type, "dtype", None) for one in context.operation.outputs]
    return context.accumulate == "fp16" and declared[:1] == ["fp16"]


def blocks(context: Context, length: int) -> Iterator[slice]:
    """The contraction's indices, in order, as many at a time as are summed in fp32."""
    for start in range(0, length, context.accumulate_block):
        yield slice(start, min(start + context.accumulate_block, length))


def half(x: Tensor) -> Tensor:
    """fp32 values rounded to fp16, as fp32 values."""
    return x.half().float()


def product(context: Context, x: Tensor, y: Tensor) -> Tensor:
    """The matrix product [..., N, K] @ [..., K, M], with partial sums rounded where the evaluation asks for it."""
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
    result = product(context, flat, weight.transpose(0, 1)).reshape(*x.shape[:-1], weight.shape[0])
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
    """NumPy's matrix product, one side or both transposed first; a transposition says nothing to a vector."""
    if number(transpose_x) and x.dim() > 1:
        x = x.transpose(-1, -2)
    if number(transpose_y) and y.dim() > 1:
        y = y.transpose(-1, -2)
    rows, columns = x.dim() == 1, y.dim() == 1
    result = product(context, x[None] if rows else x, y[:, None] if columns else y)
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
    result = product(context, x.transpose(-3, -2), y.transpose(-3, -2))  # [..., H, C, W] @ [..., H, W, U]
    return result.transpose(-3, -2)


@op("conv", context=True)
def conv(
    context: Context,
    *,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    strides: Tensor | None = None,
    pad_type: str = "valid",
    pad: Tensor | None = None,
    dilations: Tensor | None = None,
    groups: Tensor | int = 1,
) -> Tensor:
    """Cross-correlation of x [B, C, *D] with weight [O, C / groups, *K], over one to three axes.

    `same` gives ceil(D / stride) positions and puts the odd element of padding at the end, `same_lower` at the
    beginning. The documentation of MIL derives the padding from the kernel alone, which is right for a stride of 1;
    what coremltools' own shape rule and TensorFlow do is followed here, as it also gives that size at other strides.
    """
    rank = x.dim() - 2
    stride = ints(strides) if strides is not None else [1] * rank
    dilation = ints(dilations) if dilations is not None else [1] * rank
    extents = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], dilation, strict=True)]
    before_after = _conv_padding(pad_type, pad, list(x.shape[2:]), extents, stride)
    x = F.pad(wide(x), [p for pair in reversed(before_after) for p in pair])
    weight = wide(weight)
    if rounds_sums(context):
        result = _conv_in_blocks(context, x, weight, stride, dilation, int(number(groups)))
        return result if bias is None else result + wide(bias).reshape(-1, *[1] * rank)
    return _CONV[rank](x, weight, None if bias is None else wide(bias), stride, 0, dilation, int(number(groups)))


def _conv_padding(
    kind: str, pad: Tensor | None, sizes: list[int], extents: list[int], strides: list[int]
) -> list[tuple[int, int]]:
    """Padding before and after each axis; `extents` are those of the dilated kernel."""
    if kind == "valid":
        return [(0, 0)] * len(sizes)
    if kind == "custom":
        given = ints(pad) if pad is not None else [0] * (2 * len(sizes))
        return list(zip(given[::2], given[1::2], strict=True))
    if kind not in ("same", "same_lower"):
        raise ValueError(f"the pad_type {kind} is none that MIL has")
    found = []
    for size, extent, stride in zip(sizes, extents, strides, strict=True):
        total = max((-(-size // stride) - 1) * stride + extent - size, 0)
        small, large = total // 2, total - total // 2
        found.append((small, large) if kind == "same" else (large, small))
    return found


def _conv_in_blocks(
    context: Context, x: Tensor, weight: Tensor, stride: list[int], dilation: list[int], groups: int
) -> Tensor:
    """A convolution whose partial sums are rounded: `accumulate_block` products at a time of each output.

    A block of products lies in a few input channels; it is a convolution of those with the weights of other products
    set to zero, which adds nothing but zeros to a sum.
    """
    outputs, channels = weight.shape[:2]
    taps = weight[0, 0].numel()
    flat = weight.reshape(outputs, channels * taps)
    of_group = x.reshape(x.shape[0], groups, channels, *x.shape[2:])
    total = torch.zeros((), dtype=x.dtype)
    for block in blocks(context, channels * taps):
        first, last = block.start // taps, (block.stop - 1) // taps + 1
        part = torch.zeros(outputs, (last - first) * taps, dtype=weight.dtype)
        part[:, block.start - first * taps : block.stop - first * taps] = flat[:, block]
        kernel = part.reshape(outputs, last - first, *weight.shape[2:])
        slab = of_group[:, :, first:last].flatten(1, 2)
        total = half(total + _CONV[len(stride)](slab, kernel, None, stride, 0, dilation, groups))
    return total


@op("conv_transpose", context=True)
def conv_transpose(
    context: Context,
    *,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    pad: Tensor | None = None,
    output_shape: Tensor | None = None,
    pad_type: str = "valid",
    strides: Tensor | None = None,
    dilations: Tensor | None = None,
    groups: Tensor | int = 1,
) -> Tensor:
    """The transpose of a convolution: x [B, C, *D] with weight [C, O / groups, *K].

    The whole result has (D - 1) stride + (K - 1) dilation + 1 elements an axis. `custom` cuts off the padding, `same`
    cuts to D stride with the odd element at the end; `output_shape` sets the size that remains, which is filled with
    zeros (and the bias) past the end of the whole. Sums in half: the products of an input channel are scattered, so
    `accumulate_block` input channels are summed in fp32 at a time.
    """
    rank = x.dim() - 2
    stride = ints(strides) if strides is not None else [1] * rank
    dilation = ints(dilations) if dilations is not None else [1] * rank
    whole = _transposed(context, wide(x), wide(weight), stride, dilation, int(number(groups)))
    given = ints(pad) if pad is not None and pad_type == "custom" else [0] * (2 * rank)
    wanted = ints(output_shape)[2:] if output_shape is not None else None
    for axis in range(rank):
        full, before, after = whole.shape[2 + axis], given[2 * axis], given[2 * axis + 1]
        size = full - before - after if pad_type != "same" else x.shape[2 + axis] * stride[axis]
        size = size if wanted is None else wanted[axis]
        start = max(full - size, 0) // 2 if pad_type == "same" else before
        whole = whole.narrow(2 + axis, start, min(size, full - start))
        missing = size - whole.shape[2 + axis]
        whole = F.pad(whole, [0, 0] * (rank - 1 - axis) + [0, missing]) if missing > 0 else whole
    return whole if bias is None else whole + wide(bias).reshape(-1, *[1] * rank)


def _transposed(
    context: Context, x: Tensor, weight: Tensor, stride: list[int], dilation: list[int], groups: int
) -> Tensor:
    function = _TRANSPOSED[len(stride)]
    if not rounds_sums(context):
        return function(x, weight, None, stride, 0, 0, groups, dilation)
    channels = weight.shape[0] // groups
    of_group = x.reshape(x.shape[0], groups, channels, *x.shape[2:])
    kernels = weight.reshape(groups, channels, *weight.shape[1:])
    total = torch.zeros((), dtype=x.dtype)
    for block in blocks(context, channels):
        slab, kernel = of_group[:, :, block].flatten(1, 2), kernels[:, block].flatten(0, 1)
        total = half(total + function(slab, kernel, None, stride, 0, 0, groups, dilation))
    return total
