"""The gate of a convolutional GLU: one half of the channels, convolved, gates the other.

    a, v = split(u)                    each [B, C, H, W]
    y    = gelu(dw3x3(a)) * v          [B, C, H, W]

Source: TransNeXt, arXiv 2311.17132, section 3.3. The linear layers before and behind are layers of their own.
Letters: B batch, C channels, H W.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from edgesmith.kernels.op import FusedOp, define


def reference(u: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Gate the second half of u by the first. Returns [B, C, H, W].

    Args:
        u: [B, 2C, H, W].
        weight, bias: depthwise 3x3 over the first half, [C, 1, 3, 3] and [C].
    """
    a, v = u.chunk(2, dim=1)
    return F.gelu(F.conv2d(a, weight, bias, padding=1, groups=a.shape[1])) * v


def shape(u: Tensor, weight: Tensor, bias: Tensor) -> tuple[int, ...]:
    """[B, C, H, W]. Raises ValueError where the weights do not fit u."""
    if u.dim() != 4 or u.shape[1] % 2:
        raise ValueError(f"conv_glu: u must be [B, 2C, H, W], got {list(u.shape)}")
    channels = u.shape[1] // 2
    for name, value, expected in (("weight", weight, (channels, 1, 3, 3)), ("bias", bias, (channels,))):
        if tuple(value.shape) != expected:
            raise ValueError(f"conv_glu: {name} must be {list(expected)}, got {list(value.shape)} (C = {channels})")
    return u.shape[0], channels, *u.shape[2:]


def example() -> tuple[Tensor, ...]:
    """Random arguments at unit scale: u, weight, bias."""
    generator = torch.Generator().manual_seed(0)
    sizes = ((1, 8, 5, 6), (4, 1, 3, 3), (4,))
    return tuple(torch.randn(size, generator=generator) for size in sizes)


def lower_onnx(u: Any, weight: Any, bias: Any) -> Any:
    """ONNX: Split, Conv, Gelu, Mul."""
    from onnxscript import opset20

    op: Any = opset20  # its stubs want numpy's types where the exporter takes values
    a, v = op.Split(u, axis=1, num_outputs=2)
    a = op.Conv(a, weight, bias, group=u.shape[1] // 2, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    return op.Mul(op.Gelu(a), v)


def lower_coreml(u: Any, weight: Any, bias: Any) -> Any:
    """Core ML: the same four operators, rank 4."""
    from coremltools.converters.mil import Builder as mb

    a, v = mb.split(x=u, num_splits=2, axis=1)
    pad = [1, 1, 1, 1]
    a = mb.conv(x=a, weight=weight, bias=bias, groups=u.shape[1] // 2, pad_type="custom", pad=pad)
    return mb.mul(x=mb.gelu(x=a, mode="EXACT"), y=v)


OP = define(
    FusedOp(
        name="conv_glu",
        reference=reference,
        shape=shape,
        example=example,
        lowerings={"onnx": lower_onnx, "coreml": lower_coreml},
        tolerance=2e-6,
        is_pattern=False,  # exporters/rewrites/find_conv_glu.py knows it on maps and on tokens
    )
)
