"""The inception mixer: convolution, max pool and attention side by side, each over channels of its own.

    x = [ a | b | c ]                         channels r, r, L of C = 2r + L                    [B, C, H, W]
    a' = gelu(dw3x3(W_a a))                                                                     [B, 2r, H, W]
    b' = gelu(W_b maxpool3x3(b))                                                                [B, 2r, H, W]
    q, k, v = conv_p(c)                       p x p, stride p: mean of each cell, then qkv      [B, L, H/p, W/p]
    c' = nearest_p(v softmax(q' k)')          h heads, positions last, 1 / sqrt(d) in q's rows  [B, L, H, W]
    y = W dw3x3([ a' | b' | c' ])             the residual around dw3x3 is in its centres       [B, C, H, W]

Source: Inception Transformer, arXiv 2205.12956, eq. 2-9; mean, scale and residual are in the weights.
Letters: B batch, C channels, r = (C - L) / 2, L channels of the attention, H W, h heads, d head width, p a cell's side.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from edgesmith.kernels import attention
from edgesmith.kernels.op import FusedOp, define


def reference(
    x: Tensor,
    conv_weight: Tensor,
    local_weight: Tensor,
    peak_weight: Tensor,
    peak_bias: Tensor,
    qkv_weight: Tensor,
    qkv_bias: Tensor,
    fuse_weight: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
    heads: int = 1,
) -> Tensor:
    """Mix [B, C, H, W]; returns [B, C, H, W].

    Args:
        x: the map.
        conv_weight, local_weight: W_a, [2r, r, 1, 1], and the depthwise 3x3 behind it, [2r, 1, 3, 3].
        peak_weight, peak_bias: W_b, [2r, r, 1, 1] and [2r].
        qkv_weight, qkv_bias: [3L, L, p, p] and [3L]; q's rows first, then k's and v's, head by head.
        fuse_weight: depthwise 3x3 of all, [4r + L, 1, 3, 3].
        proj_weight, proj_bias: W, [C, 4r + L, 1, 1] and [C].
        heads: h.
    """
    half, cell = conv_weight.shape[1], qkv_weight.shape[2]
    a, b, c = x.split((half, half, x.shape[1] - 2 * half), dim=1)
    a = F.gelu(F.conv2d(F.conv2d(a, conv_weight), local_weight, padding=1, groups=2 * half))
    b = F.gelu(F.conv2d(F.max_pool2d(b, 3, stride=1, padding=1), peak_weight, peak_bias))
    q, k, v = _heads(F.conv2d(c, qkv_weight, qkv_bias, stride=cell), heads)
    c = attention.reference(q, k, v, channels_first=True)  # [B, h, d, n]
    return _joined(a, b, c, x, cell, fuse_weight, proj_weight, proj_bias)


def _heads(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values, each [B, h, d, n]."""
    width = qkv.shape[1] // (3 * heads)
    q, k, v = qkv.unflatten(1, (3 * heads, width)).flatten(3).chunk(3, dim=1)
    return q, k, v


def _joined(
    a: Tensor, b: Tensor, c: Tensor, x: Tensor, cell: int, fuse_weight: Tensor, proj_weight: Tensor, proj_bias: Tensor
) -> Tensor:
    """The three branches' outputs, the last one [B, h, d, n], joined and fused."""
    c = c.flatten(1, 2).unflatten(2, (x.shape[2] // cell, x.shape[3] // cell))
    if cell > 1:
        c = F.interpolate(c, scale_factor=float(cell), mode="nearest")
    z = torch.cat((a, b, c), dim=1)
    return F.conv2d(F.conv2d(z, fuse_weight, padding=1, groups=z.shape[1]), proj_weight, proj_bias)


def shape(
    x: Tensor,
    conv_weight: Tensor,
    local_weight: Tensor,
    peak_weight: Tensor,
    peak_bias: Tensor,
    qkv_weight: Tensor,
    qkv_bias: Tensor,
    fuse_weight: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
    heads: int = 1,
) -> tuple[int, ...]:
    """That of x. Raises ValueError where the weights do not fit it, or the map no cells."""
    if x.dim() != 4:
        raise ValueError(f"inception_mixer: x must be [B, C, H, W], got {list(x.shape)}")
    channels, height, width = x.shape[1:]
    half = conv_weight.shape[1]
    low, cell = channels - 2 * half, qkv_weight.shape[2] if qkv_weight.dim() == 4 else 1
    joined = 4 * half + low
    for name, value, expected in (
        ("conv_weight", conv_weight, (2 * half, half, 1, 1)),
        ("local_weight", local_weight, (2 * half, 1, 3, 3)),
        ("peak_weight", peak_weight, (2 * half, half, 1, 1)),
        ("peak_bias", peak_bias, (2 * half,)),
        ("qkv_weight", qkv_weight, (3 * low, low, cell, cell)),
        ("qkv_bias", qkv_bias, (3 * low,)),
        ("fuse_weight", fuse_weight, (joined, 1, 3, 3)),
        ("proj_weight", proj_weight, (channels, joined, 1, 1)),
        ("proj_bias", proj_bias, (channels,)),
    ):
        if tuple(value.shape) != expected:
            raise ValueError(
                f"inception_mixer: {name} must be {list(expected)}, got {list(value.shape)}"
                f" (C = {channels}, r = {half}, L = {low}, p = {cell})"
            )
    if height % cell or width % cell or low % heads:
        raise ValueError(
            f"inception_mixer: H, W and L must be whole cells and heads, got {height}, {width} and {low} for cells of"
            f" {cell} and {heads} heads"
        )
    return tuple(x.shape)


def example(half: int = 3, low: int = 4, cell: int = 2, size: tuple[int, int] = (4, 6)) -> tuple[Tensor, ...]:
    """Random arguments at unit scale: x, then the weights."""
    generator = torch.Generator().manual_seed(0)
    channels, joined = 2 * half + low, 4 * half + low
    sizes = (
        (2 * half, half, 1, 1),
        (2 * half, 1, 3, 3),
        (2 * half, half, 1, 1),
        (2 * half,),
        (3 * low, low, cell, cell),
        (3 * low,),
        (joined, 1, 3, 3),
        (channels, joined, 1, 1),
        (channels,),
    )
    x = torch.randn(2, channels, *size, generator=generator)
    return x, *(0.4 * torch.randn(one, generator=generator) for one in sizes)


def lower_onnx(
    x: Any,
    conv_weight: Any,
    local_weight: Any,
    peak_weight: Any,
    peak_bias: Any,
    qkv_weight: Any,
    qkv_bias: Any,
    fuse_weight: Any,
    proj_weight: Any,
    proj_bias: Any,
    heads: int = 1,
) -> Any:
    """ONNX: the reference; ONNX Runtime takes the transpositions into the products."""
    from onnxscript import opset20

    op: Any = opset20  # its stubs want numpy's types where the exporter takes values
    channels, height, width = map(int, x.shape[1:])
    half, cell = int(conv_weight.shape[1]), int(qkv_weight.shape[2])
    low = channels - 2 * half
    positions = (height // cell) * (width // cell)

    def ints(*values: int) -> Any:
        return op.Constant(value_ints=list(values))

    def part(start: int, stop: int) -> Any:
        return op.Slice(x, ints(start), ints(stop), ints(1))

    def depthwise(value: Any, weight: Any, groups: int) -> Any:
        return op.Conv(value, weight, group=groups, kernel_shape=[3, 3], pads=[1, 1, 1, 1])

    a = op.Conv(part(0, half), conv_weight, kernel_shape=[1, 1])
    a = op.Gelu(depthwise(a, local_weight, 2 * half))
    b, *_ = op.MaxPool(part(half, 2 * half), kernel_shape=[3, 3], pads=[1, 1, 1, 1])  # and the indices
    b = op.Gelu(op.Conv(b, peak_weight, peak_bias, kernel_shape=[1, 1]))
    qkv = op.Conv(part(2 * half, channels), qkv_weight, qkv_bias, kernel_shape=[cell, cell], strides=[cell, cell])
    qkv = op.Reshape(qkv, ints(0, 3 * heads, low // heads, positions))
    q, k, v = op.Split(qkv, axis=1, num_outputs=3)
    weights = op.Softmax(op.MatMul(op.Transpose(q, perm=[0, 1, 3, 2]), k), axis=-1)
    c = op.MatMul(v, op.Transpose(weights, perm=[0, 1, 3, 2]))
    c = op.Reshape(c, ints(0, low, height // cell, width // cell))
    if cell > 1:
        scales = op.Constant(value_floats=[1.0, 1.0, float(cell), float(cell)])
        modes = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        c = op.Resize(c, None, scales, mode="nearest", **modes)
    z = depthwise(op.Concat(a, b, c, axis=1), fuse_weight, 4 * half + low)
    return op.Conv(z, proj_weight, proj_bias, kernel_shape=[1, 1])


def lower_coreml(
    x: Any,
    conv_weight: Any,
    local_weight: Any,
    peak_weight: Any,
    peak_bias: Any,
    qkv_weight: Any,
    qkv_bias: Any,
    fuse_weight: Any,
    proj_weight: Any,
    proj_bias: Any,
    heads: int = 1,
) -> Any:
    """Core ML: the reference at rank 4, with attention's own lowering inside."""
    from coremltools.converters.mil import Builder as mb

    batch, channels, height, width = x.shape
    half, cell = conv_weight.shape[1], qkv_weight.shape[2]
    low = channels - 2 * half
    positions = (height // cell) * (width // cell)

    def depthwise(value: Any, weight: Any, groups: int) -> Any:
        return mb.conv(x=value, weight=weight, groups=groups, pad_type="custom", pad=[1, 1, 1, 1])

    a, b, c = mb.split(x=x, split_sizes=[half, half, low], axis=1)
    a = mb.gelu(x=depthwise(mb.conv(x=a, weight=conv_weight), local_weight, 2 * half), mode="EXACT")
    b = mb.max_pool(x=b, kernel_sizes=[3, 3], strides=[1, 1], pad_type="custom", pad=[1, 1, 1, 1])
    b = mb.gelu(x=mb.conv(x=b, weight=peak_weight, bias=peak_bias), mode="EXACT")
    qkv = mb.conv(x=c, weight=qkv_weight, bias=qkv_bias, strides=[cell, cell])
    qkv = mb.reshape(x=qkv, shape=[batch, 3 * heads, low // heads, positions])
    q, k, v = mb.split(x=qkv, num_splits=3, axis=1)
    c = attention.lower_coreml(q, k, v, channels_first=True)
    c = mb.reshape(x=c, shape=[batch, low, height // cell, width // cell])
    if cell > 1:
        c = mb.upsample_nearest_neighbor(x=c, scale_factor_height=float(cell), scale_factor_width=float(cell))
    z = depthwise(mb.concat(values=[a, b, c], axis=1), fuse_weight, 4 * half + low)
    return mb.conv(x=z, weight=proj_weight, bias=proj_bias)


def for_coreai(
    x: Tensor,
    conv_weight: Tensor,
    local_weight: Tensor,
    peak_weight: Tensor,
    peak_bias: Tensor,
    qkv_weight: Tensor,
    qkv_bias: Tensor,
    fuse_weight: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
    heads: int = 1,
) -> Tensor:
    """Core AI: the reference, with its composite for attention."""
    half, cell = conv_weight.shape[1], qkv_weight.shape[2]
    a, b, c = x.split((half, half, x.shape[1] - 2 * half), dim=1)
    a = F.gelu(F.conv2d(F.conv2d(a, conv_weight), local_weight, padding=1, groups=2 * half))
    b = F.gelu(F.conv2d(F.max_pool2d(b, 3, stride=1, padding=1), peak_weight, peak_bias))
    q, k, v = _heads(F.conv2d(c, qkv_weight, qkv_bias, stride=cell), heads)
    c = attention.for_coreai(q, k, v, channels_first=True)
    return _joined(a, b, c, x, cell, fuse_weight, proj_weight, proj_bias)


OP = define(
    FusedOp(
        name="inception_mixer",
        reference=reference,
        shape=shape,
        example=example,
        lowerings={"onnx": lower_onnx, "coreml": lower_coreml},
        inlined={"coreai": for_coreai},
        tolerance=5e-6,
        is_pattern=False,  # too many spellings: exporters/rewrites/find_inception.py knows them by their numbers
    )
)
