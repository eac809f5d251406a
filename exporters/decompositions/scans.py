"""Running products and sums along an axis, by shifts and masks."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from edgesmith.exporters.decompositions import LEAVE, decomposes

aten = torch.ops.aten


@decomposes(
    aten.cumprod.default,
    targets=("onnx", "tvm"),
    why="torch's exporter has no translation, and ONNX no operator; TVM keeps a call into its own runtime",
)
def cumprod(x: Tensor, dim: int, *, dtype: torch.dtype | None = None) -> Tensor:
    """Return the products of the first 1, 2, 3 ... numbers along an axis."""
    return _scanned(x, dim, dtype, torch.mul, 1.0)


@decomposes(aten.cumsum.default, targets=("tvm",), why="TVM keeps a call into its own runtime")
def running_sums(x: Tensor, dim: int, *, dtype: torch.dtype | None = None) -> Tensor:
    """Return the sums of the first 1, 2, 3 ... numbers along an axis."""
    return _scanned(x, dim, dtype, torch.add, 0.0)


def _scanned(
    x: Tensor, dim: int, dtype: torch.dtype | None, combine: Callable[[Tensor, Tensor], Tensor], neutral: float
) -> Tensor:
    """Combine the first 1, 2, 3 ... numbers along an axis, in log2(n) steps (Hillis and Steele 1986)."""
    kind = dtype or (x.dtype if x.is_floating_point() else torch.int64)
    y = x.to(kind)
    if not x.dim():
        return y
    y = y.movedim(dim, -1)
    shift, size = 1, y.shape[-1]
    while shift < size:
        y = combine(y, torch.nn.functional.pad(y[..., :-shift], (shift, 0), value=neutral))
        shift *= 2
    return y.movedim(-1, dim)


@decomposes(
    aten.vander.default, why="PyTorch spells it by products that it writes into places, which only TVM's importer takes"
)
def vander(x: Tensor, N: int | None = None, increasing: bool = False) -> Tensor:  # noqa: N803 - the operator's own name
    """Return the powers of numbers, [n] to [n, N]: from the power 0 on, or down to it."""
    count = x.shape[0] if N is None else N
    one = torch.ones_like(x, dtype=x.dtype if x.is_floating_point() else torch.int64).unsqueeze(1)
    if count < 2:
        return one[:, :count]
    powers = _scanned(x.unsqueeze(1).expand([-1, count - 1]), 1, None, torch.mul, 1.0)
    table = torch.cat([one, powers], 1)
    return table if increasing else table.flip([1])


@decomposes(
    aten.logcumsumexp.default,
    targets=("onnx", "tvm"),
    why="torch's exporter sums exponentials, which over- and underflow; TVM has none",
)
def logcumsumexp(x: Tensor, dim: int) -> Tensor:
    """Return log(exp x_0 + ... + exp x_i) along an axis, each by the largest number in it: n x n of them."""
    if not x.dim():
        return x.clone()
    y = x.movedim(dim, -1)
    places = torch.arange(y.shape[-1])
    seen = places.unsqueeze(0) <= places.unsqueeze(1)  # [i, j]: j is among the first of i
    rows = torch.where(seen, y.unsqueeze(-2), -math.inf)
    return torch.logsumexp(rows, -1).movedim(-1, dim)


@decomposes(
    aten.cumsum.default, targets=("coreml",), why="coremltools refuses an axis counted from the end but the last"
)
def cumsum(x: Tensor, dim: int, *, dtype: torch.dtype | None = None) -> Tensor:
    """Return the running sums along the same axis, counted from the front."""
    if dim >= -1:
        return LEAVE
    return x.cumsum(dim + x.dim(), dtype=dtype)
