"""Vector quantisation: of each vector the nearest codeword of a frozen codebook, by its index.

    z = argmin_s |x - C_s|^2 = argmax_s (x . C_s - |C_s|^2 / 2)         |x|^2 is the same for all s and is left out

One product and an argmax: the distances themselves are never made. Where two codewords are as near, the one with the
smaller index is taken. The scores are float32 where x is half precision: rounding them to 11 bits takes another one of
512 codewords for one vector in 400, and with |x|^2 in the sum for one in 200. What cannot be helped is that x itself is
rounded, so a vector near the border between two codewords may still change sides: compare codes before values.
exporters/rewrites/find_codewords.py finds the spellings of models; what they do with the codes, a look-up or a
one-hot product, stays as it is.
Source: van den Oord et al., "Neural Discrete Representation Learning", arXiv 1711.00937, eq. 2. Letters: B batch,
T time, D width, S codewords.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from edgesmith.kernels.op import FusedOp, Recurrence, define

_HALF = (torch.float16, torch.bfloat16)


def reference(x: Tensor, codebook: Tensor) -> Tensor:
    """The indices of the nearest codewords, int64 [..., ].

    Args:
        x: [..., D].
        codebook: [S, D].
    """
    if x.dtype in _HALF:
        x, codebook = x.float(), codebook.float()
    return (F.linear(x, codebook) - 0.5 * codebook.square().sum(-1)).argmax(-1)


def shape(x: Tensor, codebook: Tensor) -> tuple[int, ...]:
    """[..., ] from x [..., D]. Raises ValueError where the arguments do not fit together."""
    if x.dim() < 2:
        raise ValueError(f"vector_quantise: x must be [..., D], got {list(x.shape)}")
    if codebook.dim() != 2 or codebook.shape[1] != x.shape[-1] or codebook.shape[0] < 1:
        raise ValueError(f"vector_quantise: codebook must be [S, {x.shape[-1]}], got {list(codebook.shape)}")
    return tuple(x.shape[:-1])


def example(width: int = 6, codewords: int = 9, length: int = 37, batch: int = 2) -> tuple[Tensor, ...]:
    """Random vectors near codewords, all of them used, and the codebook."""
    generator = torch.Generator().manual_seed(0)
    codebook = torch.randn(codewords, width, generator=generator)
    codes = torch.arange(batch * length).reshape(batch, length) % codewords
    return codebook[codes] + 0.1 * torch.randn(batch, length, width, generator=generator), codebook


def lower_onnx(x: Any, codebook: Any) -> Any:
    """ONNX: MatMul, Sub and ArgMax, which takes the first of equals; the codebook's part is folded by the runtime."""
    from onnxscript import ir, opset20

    op: Any = opset20
    axes = op.Constant(value_ints=[1])
    if x.dtype != ir.DataType.FLOAT and x.dtype != ir.DataType.DOUBLE:
        x, codebook = op.Cast(x, to=ir.DataType.FLOAT), op.Cast(codebook, to=ir.DataType.FLOAT)
    half = op.CastLike(op.Constant(value_float=0.5), x)
    lengths = op.Mul(op.ReduceSumSquare(codebook, axes, keepdims=0), half)
    scores = op.Sub(op.MatMul(x, op.Transpose(codebook, perm=[1, 0])), lengths)
    return op.ArgMax(scores, axis=-1, keepdims=0)


def lower_coreml(x: Any, codebook: Any) -> Any:
    """Core ML: a linear layer whose bias is the codewords' part, and reduce_argmax."""
    import numpy as np
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.mil import types

    if types.nptype_from_builtin(x.dtype) == np.float16:
        x = mb.cast(x=x, dtype="fp32")
    if codebook.val is not None:
        weight = np.asarray(codebook.val, np.float32)
        scores = mb.linear(x=x, weight=weight, bias=-0.5 * np.square(weight).sum(-1))
    else:
        weight = mb.cast(x=codebook, dtype="fp32")
        lengths = mb.mul(x=mb.reduce_sum_square(x=weight, axes=[-1]), y=np.float32(0.5))
        scores = mb.sub(x=mb.matmul(x=x, y=weight, transpose_y=True), y=lengths)
    return mb.reduce_argmax(x=scores, axis=-1, keep_dims=False)


def _one_step(states: tuple[()], x: Tensor, codebook: Tensor) -> tuple[Tensor, tuple[()]]:
    """One frame [B, D] by itself; there is no state."""
    return reference(x, codebook), states


OP = define(
    FusedOp(
        name="vector_quantise",
        reference=reference,
        shape=shape,
        example=example,
        lowerings={"onnx": lower_onnx, "coreml": lower_coreml},
        tolerance=0.0,
        is_pattern=False,  # by its numbers: exporters/rewrites/find_codewords.py
        recurrence=Recurrence(step=_one_step, states=(), axes=lambda *_: (1, 1), runs="takes codewords"),
        stays_float="another codeword is the nearest where its distances are rounded",
        dtype=torch.int64,
    )
)
