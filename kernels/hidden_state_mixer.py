"""Mixing in the hidden state of a state-space dual model: tokens write to S states, channels mix there, tokens read.

    B, C, dt = split(dw3x3(W_p x))                                      each [B, S, N], N = H W
    h        = x (softmax_N(dt) * B)^T                                  [B, D, S]
    h, z     = split(W_hz h)
    h        = W_o (h * silu(z) + d h)                                  [B, D, S], returned too
    y        = h C                                                      [B, D, H, W]

Source: EfficientViM, arXiv 2411.15241, eq. 8-10 (HSM-SSD). The paper adds a parameter A to dt: one number a state, so
the softmax over the tokens cancels it, and it is dropped before this op is looked for. Channel mixing costs O(S D^2)
instead of O(N D^2). Letters: B batch, D width, H W, N tokens, S states.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from edgesmith.kernels.op import FusedOp, define
from edgesmith.kernels.relax_calls import call_kernel, channels_first, channels_last, sizes


def reference(
    x: Tensor, project: Tensor, local: Tensor, gate: Tensor, out: Tensor, skip: Tensor
) -> tuple[Tensor, Tensor]:
    """Mix [B, D, H, W]. Returns y [B, D, H, W] and the hidden state h [B, D, S].

    Args:
        x: [B, D, H, W].
        project: pointwise convolution D -> 3 S, [3 S, D, 1, 1]; its parts are B, C and dt.
        local: depthwise 3x3 after it, [3 S, 1, 3, 3].
        gate: W_hz, [2 D, D, 1].
        out: W_o, [D, D, 1].
        skip: d, [1].
    """
    states = F.conv2d(F.conv2d(x, project), local, padding=1, groups=local.shape[0]).flatten(2)
    b, c, dt = states.chunk(3, dim=1)
    h = x.flatten(2) @ (dt.softmax(2) * b).transpose(1, 2)
    h, z = F.conv1d(h, gate).chunk(2, dim=1)
    h = F.conv1d(h * F.silu(z) + h * skip, out)
    return (h @ c).unflatten(2, x.shape[2:]), h


def shape(
    x: Tensor, project: Tensor, local: Tensor, gate: Tensor, out: Tensor, skip: Tensor
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """[B, D, H, W] and [B, D, S]. Raises ValueError where a weight does not fit D and S."""
    if x.dim() != 4:
        raise ValueError(f"hidden_state_mixer: x must be [B, D, H, W], got {list(x.shape)}")
    width, states = x.shape[1], project.shape[0] // 3
    expected = (
        ("project", project, (3 * states, width, 1, 1)),
        ("local", local, (3 * states, 1, 3, 3)),
        ("gate", gate, (2 * width, width, 1)),
        ("out", out, (width, width, 1)),
        ("skip", skip, (1,)),
    )
    for name, weight, wanted in expected:
        if tuple(weight.shape) != wanted:
            raise ValueError(
                f"hidden_state_mixer: {name} must be {list(wanted)}, got {list(weight.shape)}"
                f" (D = {width}, S = {states})"
            )
    return tuple(x.shape), (x.shape[0], width, states)


def example(width: int = 6, states: int = 5, height: int = 4, breadth: int = 3, batch: int = 2) -> tuple[Tensor, ...]:
    """Random arguments at unit scale: x, then the weights."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, width, height, breadth, generator=generator)
    sizes = ((3 * states, width, 1, 1), (3 * states, 1, 3, 3), (2 * width, width, 1), (width, width, 1), (1,))
    return x, *(0.5 * torch.randn(size, generator=generator) for size in sizes)


def lower_onnx(x: Any, project: Any, local: Any, gate: Any, out: Any, skip: Any) -> Any:
    """ONNX: tokens as rows, so that no matmul needs a transposition of its own but h C. 21 nodes.

    ONNX Runtime takes its fast depthwise kernel for multiples of 16 channels only: B, C and dt are padded to that.
    """
    from onnxscript import opset20

    op: Any = opset20
    width, height, breadth = x.shape[1:]
    channels = project.shape[0]
    states = channels // 3
    padding = -channels % 16

    def ints(*values: int) -> Any:
        return op.Constant(value_ints=list(values))

    def part(value: Any, start: int) -> Any:
        return op.Slice(value, ints(start), ints(start + states), ints(1))

    def times(value: Any, weight: Any, size: tuple[int, int], first: int) -> Any:  # rows first to first + D of W
        rows = op.Reshape(weight, ints(*size))
        rows = op.Slice(rows, ints(first), ints(first + width), ints(0))
        return op.MatMul(value, op.Transpose(rows, perm=[1, 0]))

    rows = op.Transpose(op.Reshape(x, ints(0, 0, -1)), perm=[0, 2, 1])  # [B, N, D]
    weight = op.Pad(op.Reshape(project, ints(channels, width)), ints(0, 0, padding, 0))
    kernel = op.Pad(local, ints(0, 0, 0, 0, padding, 0, 0, 0))
    maps = op.MatMul(weight, op.Transpose(rows, perm=[0, 2, 1]))  # [B, 3 S + padding, N]
    maps = op.Reshape(maps, ints(0, 0, height, breadth))
    maps = op.Conv(maps, kernel, group=channels + padding, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    maps = op.Reshape(maps, ints(0, 0, -1))
    b, c, dt = part(maps, 0), part(maps, states), part(maps, 2 * states)
    h = op.MatMul(op.Mul(op.Softmax(dt, axis=-1), b), rows)  # [B, S, D]
    z = times(h, gate, (2 * width, width), width)
    gated = op.Add(op.Mul(z, op.Sigmoid(z)), skip)
    h = times(op.Mul(times(h, gate, (2 * width, width), 0), gated), out, (width, width), 0)
    h = op.Transpose(h, perm=[0, 2, 1])
    return op.Reshape(op.MatMul(h, c), ints(0, 0, height, breadth)), h


def lower_coreml(x: Any, project: Any, local: Any, gate: Any, out: Any, skip: Any) -> Any:
    """Core ML: channels mix in 1x1 convolutions on [B, D, 1, S], as the Neural Engine wants it; rank 4 at most."""
    import numpy as np
    from coremltools.converters.mil import Builder as mb

    batch, width, height, breadth = x.shape
    channels = project.shape[0]
    states, tokens = channels // 3, height * breadth

    def mix(value: Any, weight: Any) -> Any:
        return mb.conv(x=value, weight=np.expand_dims(weight, 2))

    maps = mb.conv(x=x, weight=project)
    maps = mb.conv(x=maps, weight=local, groups=channels, pad_type="custom", pad=[1, 1, 1, 1])
    maps = mb.reshape(x=maps, shape=[batch, channels, tokens])
    b, c, dt = mb.split(x=maps, num_splits=3, axis=1)
    written = mb.mul(x=mb.softmax(x=dt, axis=2), y=b)
    flat = mb.reshape(x=x, shape=[batch, width, tokens])
    h = mb.matmul(x=flat, y=written, transpose_y=True)  # [B, D, S]
    h = mb.reshape(x=h, shape=[batch, width, 1, states])
    z = mix(h, gate.val[width:])
    gated = mb.add(x=mb.silu(x=z), y=skip)
    h = mix(mb.mul(x=mix(h, gate.val[:width]), y=gated), out.val)
    h = mb.reshape(x=h, shape=[batch, width, states])
    y = mb.reshape(x=mb.matmul(x=h, y=c), shape=[batch, width, height, breadth])
    return y, h


def lower_tvm(make: Any, x: Any, project: Any, local: Any, gate: Any, out: Any, skip: Any) -> Any:
    """TVM: one kernel, native/hidden_state_mixer.h, which reads maps with their channels last."""
    from tvm import relax

    batch, width_of_maps, height, width = sizes(x)
    states = sizes(project)[0] // 3
    shapes = [[batch, height, width, width_of_maps], [batch, states, width_of_maps]]
    both = call_kernel(make, OP.name, channels_last(make, x), (project, local, gate, out, skip), shapes)
    y, hidden = (make.emit(relax.TupleGetItem(both, i)) for i in (0, 1))
    hidden = make.emit(relax.op.permute_dims(hidden, [0, 2, 1]))
    return relax.Tuple([channels_first(make, y), hidden])


OP = define(
    FusedOp(
        name="hidden_state_mixer",
        reference=reference,
        shape=shape,
        example=example,
        lowerings={"onnx": lower_onnx, "coreml": lower_coreml, "tvm": lower_tvm},
        centre=("aten.softmax", "aten.mul", "aten.matmul", "aten.matmul"),
        tolerance=3e-6,
    )
)
