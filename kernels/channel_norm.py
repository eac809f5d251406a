"""Layer norm over the channels at each position, for tensors that keep their channels in front.

    y = (x - mean_C(x)) / sqrt(var_C(x) + eps) * w + b                  [B, C, *]; biased variance

Source: layer normalisation, arXiv 1607.06450, as ConvNeXt, EfficientViM and others write it for [B, C, H, W]. PyTorch's
own layer norm wants the channels last, so models spell this one out, in six operators or more.
Letters: B batch, C channels.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from edgesmith.kernels.op import FusedOp, define


def reference(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """Normalise [B, C, *] over C.

    Args:
        x: [B, C, *].
        weight, bias: [C].
        eps: added to the variance.
    """
    broadcast = (-1, *[1] * (x.dim() - 2))
    centred = x - x.mean(1, keepdim=True)
    variance = (centred * centred).mean(1, keepdim=True)
    return centred / torch.sqrt(variance + eps) * weight.reshape(broadcast) + bias.reshape(broadcast)


def shape(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> tuple[int, ...]:
    """That of x. Raises ValueError where the weights do not fit C."""
    if x.dim() < 2:
        raise ValueError(f"channel_norm: x must be [B, C, *], got {list(x.shape)}")
    for name, value in (("weight", weight), ("bias", bias)):
        if tuple(value.shape) != (x.shape[1],):
            raise ValueError(f"channel_norm: {name} must be {[x.shape[1]]}, got {list(value.shape)}")
    return tuple(x.shape)


def example() -> tuple[Tensor, ...]:
    """Random arguments: x with a mean and a scale that the norm takes away, weight, bias."""
    generator = torch.Generator().manual_seed(0)
    x = 3 * torch.randn(2, 6, 4, 5, generator=generator) + 1
    return x, torch.randn(6, generator=generator), torch.randn(6, generator=generator)


def lower_onnx(x: Any, weight: Any, bias: Any, eps: float = 1e-5) -> Any:
    """ONNX: LayerNormalization between two transpositions, which cancel against a neighbour's. 5 nodes, 3 in 3-D."""
    from onnxscript import opset20

    op: Any = opset20
    sizes = list(x.shape[2:])

    def normalised(rows: Any) -> Any:
        y, *_ = op.LayerNormalization(rows, weight, bias, axis=-1, epsilon=eps)  # and the statistics
        return y

    if not sizes:
        return normalised(x)
    rows = x if len(sizes) == 1 else op.Reshape(x, op.Constant(value_ints=[0, 0, -1]))  # [B, C, N]
    rows = op.Transpose(rows, perm=[0, 2, 1])
    rows = op.Transpose(normalised(rows), perm=[0, 2, 1])
    return rows if len(sizes) == 1 else op.Reshape(rows, op.Constant(value_ints=[0, 0, *sizes]))


def lower_coreml(x: Any, weight: Any, bias: Any, eps: float = 1e-5) -> Any:
    """Core ML: its own layer norm, over axis 1."""
    from coremltools.converters.mil import Builder as mb

    return mb.layer_norm(x=x, axes=[1], gamma=weight, beta=bias, epsilon=eps)


def for_coreai(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """Core AI: its composite for layer norms, which wants the channels last, as TVM's kernel does."""
    return F.layer_norm(x.movedim(1, -1), (x.shape[1],), weight, bias, eps).movedim(-1, 1)


OP = define(
    FusedOp(
        name="channel_norm",
        reference=reference,
        shape=shape,
        example=example,
        lowerings={"onnx": lower_onnx, "coreml": lower_coreml},
        inlined={"coreai": for_coreai, "tvm": for_coreai},
        tolerance=2e-6,
        literals={"eps": 0.1},
        is_pattern=False,  # too many spellings: exporters/rewrites/fuse_channel_norm.py knows them
        normalised_axis=1,
        stays_float="a norm divides by what would be rounded",
    )
)
