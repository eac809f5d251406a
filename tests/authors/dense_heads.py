"""mmsegmentation's Semantic FPN and UPerNet heads, as functions of a state dict with its keys.

A `ConvModule` there is a convolution `conv`, which has a bias where no norm follows, a norm `bn`, and ReLU.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]


def conv_module(state: State, key: str, x: Tensor) -> Tensor:
    """One `ConvModule`."""
    weight = state[f"{key}.conv.weight"]
    x = F.conv2d(x, weight, state.get(f"{key}.conv.bias"), padding=weight.shape[-1] // 2)
    if f"{key}.bn.weight" not in state:
        return x
    norm = [state[f"{key}.bn.{name}"] for name in ("running_mean", "running_var", "weight", "bias")]
    return F.relu(F.batch_norm(x, *norm, training=False, eps=1e-5), inplace=True)


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """mmseg's `resize`, called whether or not the size is another."""
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def classify(state: State, x: Tensor) -> Tensor:
    """`cls_seg` in inference."""
    return F.conv2d(x, state["decode_head.conv_seg.weight"], state["decode_head.conv_seg.bias"])


def fpn(state: State, inputs: Sequence[Tensor]) -> Tensor:
    """The neck `FPN`, num_outs=4, and the head `FPNHead`, feature_strides=[4, 8, 16, 32]."""
    laterals = [conv_module(state, f"neck.lateral_convs.{i}", x) for i, x in enumerate(inputs)]
    for i in reversed(range(1, len(laterals))):
        laterals[i - 1] += F.interpolate(laterals[i], size=laterals[i - 1].shape[2:], mode="nearest")
    outs = [conv_module(state, f"neck.fpn_convs.{i}", x) for i, x in enumerate(laterals)]
    for _ in range(4 - len(outs)):
        outs.append(F.max_pool2d(outs[-1], 1, stride=2))
    output = conv_module(state, "decode_head.scale_heads.0.0", outs[0])
    for i in (1, 2, 3):
        x = outs[i]
        for k in range(i):
            x = conv_module(state, f"decode_head.scale_heads.{i}.{2 * k}", x)
            x = resize(x, [2 * n for n in x.shape[-2:]])
        output = output + resize(x, output.shape[2:])
    return classify(state, output)


def upernet(state: State, inputs: Sequence[Tensor]) -> Tensor:
    """The head `UPerHead`, pool_scales=(1, 2, 3, 6)."""
    last, levels = inputs[-1], len(inputs)
    psp = [last]
    for i, side in enumerate((1, 2, 3, 6)):
        pooled = conv_module(state, f"decode_head.psp_modules.{i}.1", F.adaptive_avg_pool2d(last, side))
        psp.append(resize(pooled, last.shape[2:]))
    laterals = [conv_module(state, f"decode_head.lateral_convs.{i}", inputs[i]) for i in range(levels - 1)]
    laterals.append(conv_module(state, "decode_head.bottleneck", torch.cat(psp, dim=1)))
    for i in range(levels - 1, 0, -1):
        laterals[i - 1] = laterals[i - 1] + resize(laterals[i], laterals[i - 1].shape[2:])
    outs = [conv_module(state, f"decode_head.fpn_convs.{i}", laterals[i]) for i in range(levels - 1)]
    outs = [outs[0], *(resize(x, outs[0].shape[2:]) for x in (*outs[1:], laterals[-1]))]
    return classify(state, conv_module(state, "decode_head.fpn_bottleneck", torch.cat(outs, dim=1)))
