"""Arguments and ranks that torch's ONNX exporter forgets: factors of 0, no axes, single numbers, batch statistics."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from edgesmith.errors import Unsupported
from edgesmith.exporters.decompositions import decomposes
from edgesmith.exporters.decompositions.products import are_integers, sum_of_integers

aten = torch.ops.aten

_FACTOR = (
    "PyTorch leaves out what is multiplied by 0, and ONNX multiplies infinities by it; ONNX Runtime's Gemm takes no"
    " integers"
)


@decomposes(aten.baddbmm.default, targets=("onnx",), why=_FACTOR)
def baddbmm(x: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """Return alpha a b, of a batch, where beta is 0."""
    return NotImplemented if beta else torch.bmm(a, b) * alpha


@decomposes(aten.addmm.default, targets=("onnx",), why=_FACTOR)
def addmm(x: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """Return alpha a b where beta is 0, and beta x + alpha a b of integers."""
    if are_integers(x):
        return sum_of_integers(x, beta, torch.mm(a, b), alpha)
    return NotImplemented if beta else torch.mm(a, b) * alpha


_SINGLE = "torch's exporter names an axis of a single number, which ONNX refuses"


@decomposes(aten.amax.default, targets=("onnx",), why=_SINGLE)
def amax(x: Tensor, dim: Sequence[int] = (), keepdim: bool = False) -> Tensor:
    """Return the largest number along axes; along all of them where none is named."""
    if not x.dim():
        return x.clone()
    return NotImplemented if dim else torch.amax(x, list(range(x.dim())), keepdim)


@decomposes(aten.amin.default, targets=("onnx",), why=_SINGLE)
def amin(x: Tensor, dim: Sequence[int] = (), keepdim: bool = False) -> Tensor:
    """Return the smallest number along axes; along all of them where none is named."""
    if not x.dim():
        return x.clone()
    return NotImplemented if dim else torch.amin(x, list(range(x.dim())), keepdim)


@decomposes(aten.any.dim, aten.any.dims, aten.all.dim, aten.all.dims, targets=("onnx",), why=_SINGLE)
def truth(x: Tensor, dim: object = None, keepdim: bool = False) -> Tensor:
    """Return the truth of a single number, along whatever axis."""
    return NotImplemented if x.dim() else x != 0


@decomposes(
    aten.softmax.int, targets=("onnx",), why="TensorRT-RTX's builder asks for a GPU where the tensor is a vector"
)
def softmax(x: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    """Return the softmax of a vector as that of a matrix of one row; of a single number, 1."""
    if x.dim() > 1:
        return NotImplemented
    y = x if dtype is None else x.to(dtype)
    return torch.softmax(y.reshape(1, -1), 1).reshape(x.shape)


@decomposes(
    aten.log_softmax.int, targets=("onnx",), why="TensorRT-RTX's builder asks for a GPU where the tensor is a vector"
)
def log_softmax(x: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    """Return the log-softmax of a vector as that of a matrix of one row; of a single number, 0."""
    if x.dim() > 1:
        return NotImplemented
    y = x if dtype is None else x.to(dtype)
    return torch.log_softmax(y.reshape(1, -1), 1).reshape(x.shape)


@decomposes(aten.nonzero.default, aten.argwhere.default, targets=("onnx",), why="ONNX gives a single number a place")
def nonzero(x: Tensor) -> Tensor:
    """Refuse a single number, whose place has no axis.

    Raises:
        Unsupported: always, for a single number.
    """
    if x.dim():
        return NotImplemented
    raise Unsupported("aten.nonzero of a single number has no places; compare the number with 0")


@decomposes(aten.isclose.default, targets=("onnx",), why="torch's exporter loses small differences from 0")
def isclose(x: Tensor, y: Tensor, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False) -> Tensor:
    """Return where |x - y| <= atol + rtol |y|, or the two are equal."""
    near = (x - y).abs() <= y.abs() * rtol + atol
    same = (x == y) | (near & (y.abs() < torch.inf) if y.is_floating_point() else near)
    return same | (torch.isnan(x) & torch.isnan(y)) if equal_nan and x.is_floating_point() else same


@decomposes(
    aten.bucketize.Tensor,
    targets=("onnx", "tvm"),
    why="torch's exporter searches in a loop whose length it cannot say, TVM by a call of its runtime",
)
def bucketize(x: Tensor, boundaries: Tensor, *, out_int32: bool = False, right: bool = False) -> Tensor:
    """Return how many boundaries are below each number, or with `right` not above it."""
    below = boundaries <= x.unsqueeze(-1) if right else boundaries < x.unsqueeze(-1)
    return below.sum(-1).to(torch.int32 if out_int32 else torch.int64)


@decomposes(aten.scatter_add.default, targets=("onnx",), why="ONNX wants a source as large as the index")
def scatter_add(x: Tensor, dim: int, index: Tensor, src: Tensor) -> Tensor:
    """Return x with the part of a source added that an index is for, or one number with another; others are left."""
    if not x.dim():
        return torch.scatter_add(x.reshape([1]), 0, index.reshape([1]), src.reshape([1])).reshape([])
    if src.shape == index.shape:
        return NotImplemented
    return torch.scatter_add(x, dim, index, src[tuple(slice(0, size) for size in index.shape)])


@decomposes(aten.scatter_reduce.two, targets=("onnx",), why="ONNX has no mean, and torch's exporter takes the source")
def scatter_reduce(
    x: Tensor, dim: int, index: Tensor, source: Tensor, reduce: str, *, include_self: bool = True
) -> Tensor:
    """Return x with the means of what an index sends to each place, of x too with `include_self`."""
    if source.shape != index.shape:
        part = source[tuple(slice(0, size) for size in index.shape)]
        return torch.scatter_reduce(x, dim, index, part, reduce, include_self=include_self)
    if reduce != "mean" or not x.is_floating_point():
        return NotImplemented
    count = torch.zeros_like(x).scatter_add(dim, index, torch.ones_like(source))
    total = (x if include_self else torch.zeros_like(x)).scatter_add(dim, index, source)
    mean = total / (count + 1.0 if include_self else count.clamp(min=1.0))
    return torch.where(count > 0, mean, x)


_BATCH = "torch's exporter takes the running statistics where PyTorch takes the batch's"


@decomposes(aten.batch_norm.default, targets=("onnx",), why=_BATCH)
def batch_norm(  # noqa: PLR0913 - the operator's arguments
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Tensor:
    """Return a batch norm by the statistics of the batch itself."""
    return _by_batch(x, weight, bias, eps)[0] if training or running_mean is None else NotImplemented


@decomposes(aten._native_batch_norm_legit.no_stats, targets=("onnx",), why=_BATCH)
def batch_norm_without_statistics(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, training: bool, momentum: float, eps: float
) -> tuple[Tensor, ...]:
    """Return a batch norm by the statistics of the batch itself, its means, and 1 / sqrt(variance + eps)."""
    return _by_batch(x, weight, bias, eps)


def _by_batch(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    axes = [0, *range(2, x.dim())]
    shape = [1, -1, *[1] * (x.dim() - 2)]
    mean = x.mean(axes, keepdim=True)
    centred = x - mean
    scale = torch.rsqrt((centred * centred).mean(axes, keepdim=True) + eps)
    y = centred * scale
    y = y if weight is None else y * weight.reshape(shape)
    y = y if bias is None else y + bias.reshape(shape)
    return y, mean.flatten(), scale.flatten()


_VECTOR = "TensorRT's selections along an axis want two axes"


@decomposes(aten.argmax.default, targets=("onnx",), why=_VECTOR)
def argmax(x: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor:
    """Return the place of the largest number of a vector, or of all numbers, as that of a matrix of one row."""
    return _place(torch.argmax, x, dim, keepdim)


@decomposes(aten.argmin.default, targets=("onnx",), why=_VECTOR)
def argmin(x: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor:
    """Return the place of the smallest number of a vector, or of all numbers, as that of a matrix of one row."""
    return _place(torch.argmin, x, dim, keepdim)


def _place(select: Callable[..., Tensor], x: Tensor, dim: int | None, keepdim: bool) -> Tensor:
    if dim is not None and x.dim() > 1:
        return NotImplemented
    found = select(x.reshape(1, -1), 1)
    return found.reshape([1] * x.dim() if keepdim else [])


@decomposes(aten.topk.default, targets=("onnx",), why=_VECTOR)
def topk(x: Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> tuple[Tensor, Tensor]:  # noqa: A002 - PyTorch's name
    """Return the largest numbers of a vector and their places, as those of a matrix of one row."""
    if x.dim() != 1:
        return NotImplemented
    values, places = torch.topk(x.reshape(1, -1), k, 1, largest, sorted)
    return values.reshape(-1), places.reshape(-1)


_WHOLE_PRODUCTS = 2**20
"""Products of a matmul of whole numbers that are written out one by one."""


@decomposes(
    aten.matmul.default,
    targets=("onnx",),
    why="TensorRT multiplies matrices of floats, and no vector by a batch, and ONNX none of small integers",
)
def matmul(x: Tensor, y: Tensor) -> Tensor:
    """Return the product of matrices of whole numbers as sums of products, of a vector and a batch by a matrix."""
    if x.dtype.is_floating_point:
        return torch.matmul(x.unsqueeze(0), y).squeeze(-2) if x.dim() == 1 and y.dim() > 2 else NotImplemented
    left = x if x.dim() > 1 else x.unsqueeze(0)  # [.., M, K]
    right = y if y.dim() > 1 else y.unsqueeze(1)  # [.., K, N]
    if max(left.numel() * right.shape[-1], right.numel() * left.shape[-2]) > _WHOLE_PRODUCTS:
        return NotImplemented
    product = (left.unsqueeze(-1) * right.unsqueeze(-3)).sum(-2).to(x.dtype)
    product = product.squeeze(-2) if x.dim() == 1 else product
    return product.squeeze(-1) if y.dim() == 1 else product


_DOUBLE = "ONNX Runtime has no kernel for double, and the same is exact to double in operators that it has"


@decomposes(aten.tan.default, targets=("onnx",), why=_DOUBLE)
def tan(x: Tensor) -> Tensor:
    """Return the tangent of doubles."""
    return torch.sin(x) / torch.cos(x) if x.dtype == torch.float64 else NotImplemented


@decomposes(aten.leaky_relu.default, targets=("onnx",), why=_DOUBLE)
def leaky_relu(x: Tensor, negative_slope: float = 0.01) -> Tensor:
    """Return doubles, those below zero scaled."""
    return torch.where(x > 0, x, x * negative_slope) if x.dtype == torch.float64 else NotImplemented


@decomposes(
    aten.round.decimals, targets=("onnx",), why="torch's exporter multiplies by 0.1, which half precision rounds"
)
def round_to_tens(x: Tensor, *, decimals: int) -> Tensor:
    """Return the nearest multiple of 10, 100 ...; fractions are left."""
    unit = 10.0**-decimals
    return torch.round(x / unit) * unit if decimals < 0 and x.is_floating_point() else NotImplemented


@decomposes(aten.sigmoid.default, targets=("onnx",), why="ONNX Runtime's kernel for double has the digits of a float's")
def sigmoid(x: Tensor) -> Tensor:
    """Return 1 / (1 + exp(-x)) of doubles, which keeps the digits of small results."""
    return 1.0 / (1.0 + torch.exp(-x)) if x.dtype == torch.float64 else NotImplemented
