"""Convolutional additive attention: similarity is a sum of two gated contexts, never an N x N matmul. O(H W).

    q, k, v = split(qkv)                             each [B, C, H, W]
    s(x) = x * sigmoid(w_s * relu(dw3x3(x)))         spatial gate, mask  [B, 1, H, W]
    c(x) = x * sigmoid(W_c mean_HW(x))               channel gate, mask  [B, C, 1, 1]
    y    = proj3x3(dwc3x3(c(s(q)) + c(s(k))) * v)    [B, C, H, W]

Source: CAS-ViT, arXiv 2408.03703, eq. 5-7. The batch norm that the paper has inside s is folded into dw3x3 before
this op is looked for. q and k pass through equal gates with different weights; with `share_gates` both pass through
one grouped convolution (2 C channels, then groups = 2), which halves the launches and costs one more split of q and k.
Letters: B batch, C channels, H W.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from edgesmith.kernels.op import FusedOp, define
from edgesmith.kernels.relax_calls import call_kernel, channels_first, channels_last, sizes


def reference(
    qkv: Tensor,
    q_spatial_weight: Tensor,
    q_spatial_bias: Tensor,
    q_mix: Tensor,
    q_channel: Tensor,
    k_spatial_weight: Tensor,
    k_spatial_bias: Tensor,
    k_mix: Tensor,
    k_channel: Tensor,
    dwc_weight: Tensor,
    dwc_bias: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
    share_gates: bool = False,
) -> Tensor:
    """Additive attention of [B, 3C, H, W] queries, keys and values. Returns [B, C, H, W].

    Args:
        qkv: [B, 3C, H, W].
        q_spatial_weight, q_spatial_bias: depthwise 3x3 of q's spatial gate, [C, 1, 3, 3] and [C]. Same for k.
        q_mix: pointwise convolution C -> 1 of q's spatial gate, [1, C, 1, 1]. Same for k.
        q_channel: pointwise convolution C -> C of q's channel gate, [C, C, 1, 1]. Same for k.
        dwc_weight, dwc_bias, proj_weight, proj_bias: the two depthwise 3x3, [C, 1, 3, 3] and [C].
        share_gates: pass q and k through one grouped convolution each, the same numbers in another order.
    """
    channels = qkv.shape[1] // 3
    if share_gates:
        qk, v = qkv.split((2 * channels, channels), dim=1)
        spatial_weight = torch.cat((q_spatial_weight, k_spatial_weight))
        spatial_bias = torch.cat((q_spatial_bias, k_spatial_bias))
        gate = F.relu(F.conv2d(qk, spatial_weight, spatial_bias, padding=1, groups=2 * channels))
        mask = torch.sigmoid(F.conv2d(gate, torch.cat((q_mix, k_mix)), groups=2))  # [B, 2, H, W]
        q_mask, k_mask = mask.chunk(2, dim=1)
        q, k = qk.chunk(2, dim=1)
        q, k = q * q_mask, k * k_mask
        mean = torch.cat((q.mean((2, 3), keepdim=True), k.mean((2, 3), keepdim=True)), dim=1)
        scale = torch.sigmoid(F.conv2d(mean, torch.cat((q_channel, k_channel)), groups=2))  # [B, 2C, 1, 1]
        q_scale, k_scale = scale.chunk(2, dim=1)
        q, k = q * q_scale, k * k_scale
    else:
        q, k, v = qkv.chunk(3, dim=1)
        gate = F.relu(F.conv2d(q, q_spatial_weight, q_spatial_bias, padding=1, groups=channels))
        q = q * torch.sigmoid(F.conv2d(gate, q_mix))
        q = q * torch.sigmoid(F.conv2d(q.mean((2, 3), keepdim=True), q_channel))
        gate = F.relu(F.conv2d(k, k_spatial_weight, k_spatial_bias, padding=1, groups=channels))
        k = k * torch.sigmoid(F.conv2d(gate, k_mix))
        k = k * torch.sigmoid(F.conv2d(k.mean((2, 3), keepdim=True), k_channel))
    context = F.conv2d(q + k, dwc_weight, dwc_bias, padding=1, groups=channels)
    return F.conv2d(context * v, proj_weight, proj_bias, padding=1, groups=channels)


_TENSORS = (
    ("q_spatial_weight", lambda c: (c, 1, 3, 3)),
    ("q_spatial_bias", lambda c: (c,)),
    ("q_mix", lambda c: (1, c, 1, 1)),
    ("q_channel", lambda c: (c, c, 1, 1)),
    ("k_spatial_weight", lambda c: (c, 1, 3, 3)),
    ("k_spatial_bias", lambda c: (c,)),
    ("k_mix", lambda c: (1, c, 1, 1)),
    ("k_channel", lambda c: (c, c, 1, 1)),
    ("dwc_weight", lambda c: (c, 1, 3, 3)),
    ("dwc_bias", lambda c: (c,)),
    ("proj_weight", lambda c: (c, 1, 3, 3)),
    ("proj_bias", lambda c: (c,)),
)


def shape(qkv: Tensor, *weights: Tensor, share_gates: bool = False) -> tuple[int, ...]:
    """[B, C, H, W] from [B, 3C, H, W]. Raises ValueError where a weight does not fit C."""
    if qkv.dim() != 4 or qkv.shape[1] % 3:
        raise ValueError(f"additive_attention: qkv must be [B, 3C, H, W], got {list(qkv.shape)}")
    batch, channels, height, width = qkv.shape[0], qkv.shape[1] // 3, *qkv.shape[2:]
    for (name, expected), weight in zip(_TENSORS, weights, strict=False):
        if tuple(weight.shape) != expected(channels):
            raise ValueError(
                f"additive_attention: {name} must be {list(expected(channels))}, got {list(weight.shape)}"
                f" (C = {channels})"
            )
    return batch, channels, height, width


def example(channels: int = 4, height: int = 5, width: int = 6, batch: int = 1) -> tuple[Tensor, ...]:
    """Random arguments at unit scale: qkv, then the weights."""
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(batch, 3 * channels, height, width, generator=generator)
    return qkv, *(0.3 * torch.randn(size(channels), generator=generator) for _, size in _TENSORS)


def lower_onnx(
    qkv: Any,
    q_spatial_weight: Any,
    q_spatial_bias: Any,
    q_mix: Any,
    q_channel: Any,
    k_spatial_weight: Any,
    k_spatial_bias: Any,
    k_mix: Any,
    k_channel: Any,
    dwc_weight: Any,
    dwc_bias: Any,
    proj_weight: Any,
    proj_bias: Any,
    share_gates: bool = False,
) -> Any:
    """ONNX: the reference operator by operator, GlobalAveragePool for the mean. 23 nodes, 22 with shared gates."""
    from onnxscript import opset20

    op: Any = opset20  # its stubs want numpy's types where the exporter takes values
    channels = qkv.shape[1] // 3

    def depthwise(x: Any, weight: Any, bias: Any, groups: int) -> Any:
        return op.Conv(x, weight, bias, group=groups, kernel_shape=[3, 3], pads=[1, 1, 1, 1])

    if share_gates:
        axis = op.Constant(value_ints=[1])  # two slices: a recorded Split can only make equal parts
        qk = op.Slice(qkv, op.Constant(value_ints=[0]), op.Constant(value_ints=[2 * channels]), axis)
        v = op.Slice(qkv, op.Constant(value_ints=[2 * channels]), op.Constant(value_ints=[3 * channels]), axis)
        spatial_weight = op.Concat(q_spatial_weight, k_spatial_weight, axis=0)
        spatial_bias = op.Concat(q_spatial_bias, k_spatial_bias, axis=0)
        gate = op.Relu(depthwise(qk, spatial_weight, spatial_bias, 2 * channels))
        mask = op.Sigmoid(op.Conv(gate, op.Concat(q_mix, k_mix, axis=0), group=2, kernel_shape=[1, 1]))
        q_mask, k_mask = op.Split(mask, axis=1, num_outputs=2)
        q, k = op.Split(qk, axis=1, num_outputs=2)
        q, k = op.Mul(q, q_mask), op.Mul(k, k_mask)
        mean = op.Concat(op.GlobalAveragePool(q), op.GlobalAveragePool(k), axis=1)
        channel = op.Concat(q_channel, k_channel, axis=0)
        scale = op.Sigmoid(op.Conv(mean, channel, group=2, kernel_shape=[1, 1]))
        q_scale, k_scale = op.Split(scale, axis=1, num_outputs=2)
        q, k = op.Mul(q, q_scale), op.Mul(k, k_scale)
    else:

        def gated(x: Any, weight: Any, bias: Any, mix: Any, channel: Any) -> Any:
            gate = op.Relu(depthwise(x, weight, bias, channels))
            x = op.Mul(x, op.Sigmoid(op.Conv(gate, mix, kernel_shape=[1, 1])))
            return op.Mul(x, op.Sigmoid(op.Conv(op.GlobalAveragePool(x), channel, kernel_shape=[1, 1])))

        q, k, v = op.Split(qkv, axis=1, num_outputs=3)
        q = gated(q, q_spatial_weight, q_spatial_bias, q_mix, q_channel)
        k = gated(k, k_spatial_weight, k_spatial_bias, k_mix, k_channel)
    context = depthwise(op.Add(q, k), dwc_weight, dwc_bias, channels)
    return depthwise(op.Mul(context, v), proj_weight, proj_bias, channels)


def lower_coreml(
    qkv: Any,
    q_spatial_weight: Any,
    q_spatial_bias: Any,
    q_mix: Any,
    q_channel: Any,
    k_spatial_weight: Any,
    k_spatial_bias: Any,
    k_mix: Any,
    k_channel: Any,
    dwc_weight: Any,
    dwc_bias: Any,
    proj_weight: Any,
    proj_bias: Any,
    share_gates: bool = False,
) -> Any:
    """Core ML: rank 4 throughout, as the Neural Engine wants it; weights are joined here, not on the device."""
    import numpy as np
    from coremltools.converters.mil import Builder as mb

    channels = qkv.shape[1] // 3

    def depthwise(x: Any, weight: Any, bias: Any, groups: int) -> Any:
        return mb.conv(x=x, weight=weight, bias=bias, groups=groups, pad_type="custom", pad=[1, 1, 1, 1])

    def mean(x: Any) -> Any:
        return mb.reduce_mean(x=x, axes=[2, 3], keep_dims=True)

    def joined(a: Any, b: Any) -> Any:
        return np.concatenate((a.val, b.val))

    if share_gates:
        qk, v = mb.split(x=qkv, split_sizes=[2 * channels, channels], axis=1)
        weight, bias = joined(q_spatial_weight, k_spatial_weight), joined(q_spatial_bias, k_spatial_bias)
        gate = mb.relu(x=depthwise(qk, weight, bias, 2 * channels))
        mask = mb.sigmoid(x=mb.conv(x=gate, weight=joined(q_mix, k_mix), groups=2))
        q_mask, k_mask = mb.split(x=mask, num_splits=2, axis=1)
        q, k = mb.split(x=qk, num_splits=2, axis=1)
        q, k = mb.mul(x=q, y=q_mask), mb.mul(x=k, y=k_mask)
        means = mb.concat(values=[mean(q), mean(k)], axis=1)
        scale = mb.sigmoid(x=mb.conv(x=means, weight=joined(q_channel, k_channel), groups=2))
        q_scale, k_scale = mb.split(x=scale, num_splits=2, axis=1)
        q, k = mb.mul(x=q, y=q_scale), mb.mul(x=k, y=k_scale)
    else:

        def gated(x: Any, weight: Any, bias: Any, mix: Any, channel: Any) -> Any:
            gate = mb.relu(x=depthwise(x, weight, bias, channels))
            x = mb.mul(x=x, y=mb.sigmoid(x=mb.conv(x=gate, weight=mix)))
            return mb.mul(x=x, y=mb.sigmoid(x=mb.conv(x=mean(x), weight=channel)))

        q, k, v = mb.split(x=qkv, num_splits=3, axis=1)
        q = gated(q, q_spatial_weight, q_spatial_bias, q_mix, q_channel)
        k = gated(k, k_spatial_weight, k_spatial_bias, k_mix, k_channel)
    context = depthwise(mb.add(x=q, y=k), dwc_weight, dwc_bias, channels)
    return depthwise(mb.mul(x=context, y=v), proj_weight, proj_bias, channels)


def lower_tvm(make: Any, qkv: Any, *weights: Any) -> Any:
    """TVM: one kernel, native/additive_attention.h, which reads maps with their channels last."""
    batch, channels, height, width = sizes(qkv)
    shape = [batch, height, width, channels // 3]
    given = weights[: len(WEIGHTS)]
    return channels_first(make, call_kernel(make, OP.name, channels_last(make, qkv), given, [shape]))


WEIGHTS = tuple(
    [f"{part}_{name}" for part in "qk" for name in ("spatial_weight", "spatial_bias", "mix", "channel")]
    + ["dwc_weight", "dwc_bias", "proj_weight", "proj_bias"]
)
"""Names of the weights, in the order of the arguments."""

OP = define(
    FusedOp(
        name="additive_attention",
        reference=reference,
        shape=shape,
        example=example,
        lowerings={"onnx": lower_onnx, "coreml": lower_coreml, "tvm": lower_tvm},
        centre=("aten.sigmoid", "aten.add", "aten.conv2d", "aten.mul"),
        tolerance=2e-6,
        forms=({}, {"share_gates": True}),
    )
)
