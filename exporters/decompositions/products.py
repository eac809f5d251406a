"""Products of matrices and vectors, and what consists of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from edgesmith.exporters.decompositions import LEAVE, decomposes

aten = torch.ops.aten


@decomposes(aten.matmul.default, targets=("coreml",), why="coremltools 9.0 fails on vectors, or gets their shape wrong")
def matmul(x: Tensor, y: Tensor) -> Tensor:
    """Return x y; a vector is a row on the left and a column on the right."""
    if x.dim() > 1 and y.dim() > 1:
        return LEAVE
    left = x.unsqueeze(0) if x.dim() == 1 else x
    right = y.unsqueeze(1) if y.dim() == 1 else y
    product = torch.matmul(left, right)
    product = product.squeeze(-1) if y.dim() == 1 else product
    if x.dim() == 1:
        product = product.squeeze(-1 if y.dim() == 1 else -2)
    return product


@decomposes(aten.mv.default, aten.dot.default, targets=("coreml",), why="coremltools 9.0 fails on vectors")
def mv(x: Tensor, y: Tensor) -> Tensor:
    """Return the product of a matrix, or a vector, with a vector."""
    return matmul(x, y)


_FLOATS = "TVM's products of integers are float32, and ONNX Runtime's Gemm takes none"


def are_integers(x: Tensor) -> bool:
    """Return whether a tensor is of integers; truth values are none."""
    return not x.is_floating_point() and not x.is_complex() and x.dtype != torch.bool


@decomposes(aten.linear.default, targets=("tvm", "onnx"), why=_FLOATS)
def linear_of_integers(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x w^T + b."""
    if not are_integers(x):
        return LEAVE
    product = torch.matmul(x, weight.t())
    return product if bias is None else product + bias


@decomposes(aten.addmm.default, targets=("tvm",), why=_FLOATS)
def addmm_of_integers(x: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """Return beta x + alpha a b, of integers."""
    return sum_of_integers(x, beta, torch.mm(a, b), alpha) if are_integers(x) else LEAVE


@decomposes(aten.baddbmm.default, targets=("tvm",), why=_FLOATS)
def baddbmm_of_integers(x: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """Return beta x + alpha a b, for each of a batch of integers."""
    return sum_of_integers(x, beta, torch.bmm(a, b), alpha) if are_integers(x) else LEAVE


def sum_of_integers(x: Tensor, beta: float, product: Tensor, alpha: float) -> Tensor:
    """Return beta x + alpha times a product, all of them integers."""
    return x * int(beta) + product * int(alpha)


_TYPES = "coremltools 9.0 multiplies floats by integers, which it refuses"


@decomposes(aten.addmm.default, targets=("coreml",), why=_TYPES)
def addmm(x: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """Return beta x + alpha a b."""
    return LEAVE if beta == alpha == 1 else _sum(x, beta, torch.mm(a, b), alpha)


def _sum(x: Tensor, beta: float, product: Tensor, alpha: float) -> Tensor:
    """Return beta x + alpha times a product; a beta of 0 drops what is not finite, as in PyTorch."""
    if are_integers(x):
        return sum_of_integers(x, beta, product, alpha)
    product = product * float(alpha)
    return product if beta == 0 else x * float(beta) + product


@decomposes(aten.baddbmm.default, targets=("coreml",), why=_TYPES)
def baddbmm(x: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """Return beta x + alpha a b, for each of a batch."""
    return _sum(x, beta, torch.bmm(a, b), alpha)


@decomposes(aten.addbmm.default, targets=("coreml", "coreai"), why="neither converter has a translation")
def addbmm(x: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """Return beta x + alpha times the sum of a b over a batch."""
    return _sum(x, beta, torch.bmm(a, b).sum(0), alpha)


@decomposes(aten.addmv.default, targets=("coreml", "coreai"), why="neither converter has a translation that works")
def addmv(x: Tensor, a: Tensor, v: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """Return beta x + alpha a v."""
    return _sum(x, beta, matmul(a, v), alpha)


@decomposes(aten.addr.default, targets=("coreml",), why="coremltools 9.0 has no translation")
def addr(x: Tensor, u: Tensor, v: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """Return beta x + alpha u v^T."""
    return _sum(x, beta, u.unsqueeze(1) * v.unsqueeze(0), alpha)


@decomposes(aten.linalg_multi_dot.default, targets=("coreml",), why="coremltools 9.0 has no translation")
def multi_dot(tensors: Sequence[Tensor]) -> Tensor:
    """Return the product of several matrices, from the left on."""
    product = tensors[0]
    for tensor in tensors[1:]:
        product = torch.matmul(product, tensor)
    return product


@decomposes(
    aten.linalg_cross.default, targets=("coreml", "coreai"), why="neither converter has a translation that works"
)
def cross(x: Tensor, y: Tensor, *, dim: int = -1) -> Tensor:
    """Return the vector product along an axis of 3."""
    x, y = torch.broadcast_tensors(x, y)  # type: ignore[no-untyped-call]  # torch declares no types
    x1, x2, x3 = x.unbind(dim)
    y1, y2, y3 = y.unbind(dim)
    return torch.stack([x2 * y3 - x3 * y2, x3 * y1 - x1 * y3, x1 * y2 - x2 * y1], dim)


@decomposes(aten.matrix_power.default, targets=("coreml",), why="coremltools 9.0 has no translation")
def matrix_power(x: Tensor, n: int) -> Tensor:
    """Return the n-th power of square matrices, for n of 1 and more."""
    if n < 1:
        return LEAVE
    product = x
    for _ in range(n - 1):
        product = torch.matmul(product, x)
    return product


@decomposes(aten.tensordot.default, targets=("coreml",), why="coremltools 9.0 has no translation")
def tensordot(x: Tensor, y: Tensor, dims_x: Sequence[int], dims_y: Sequence[int]) -> Tensor:
    """Return the sum over pairs of axes, as one product of matrices."""
    over_x, over_y = ([axis % one.dim() for axis in dims] for one, dims in ((x, dims_x), (y, dims_y)))
    kept_x = [axis for axis in range(x.dim()) if axis not in over_x]
    kept_y = [axis for axis in range(y.dim()) if axis not in over_y]
    count = 1
    for axis in over_x:
        count *= x.shape[axis]
    left = x.permute(kept_x + over_x).reshape([-1, count])
    right = y.permute(over_y + kept_y).reshape([count, -1])
    return torch.mm(left, right).reshape([x.shape[axis] for axis in kept_x] + [y.shape[axis] for axis in kept_y])


@decomposes(
    aten.bilinear.default,
    targets=("coreml", "coreai", "tvm"),
    why="none of the converters has a translation that works",
)
def bilinear(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x W_o y + b_o: x [..., I], y [..., J], W [O, I, J]."""
    outputs, inputs, others = weight.shape
    driven = torch.matmul(x.reshape([-1, inputs]), weight.permute(1, 0, 2).reshape([inputs, -1]))
    product = torch.matmul(driven.reshape([-1, outputs, others]), y.reshape([-1, others, 1]))
    result = product.reshape([*x.shape[:-1], outputs])
    return result if bias is None else result + bias


@decomposes(aten.kron.default, targets=("coreml",), why="coremltools 9.0 has no translation")
def kron(x: Tensor, y: Tensor) -> Tensor:
    """Return every product of two numbers, in blocks of y's shape: of matrices or vectors."""
    if x.dim() != y.dim() or x.dim() > 2:
        return LEAVE
    if x.dim() < 2:
        return (x.reshape([-1, 1]) * y.reshape([1, -1])).reshape([-1])
    product = x.reshape([x.shape[0], 1, x.shape[1], 1]) * y.reshape([1, y.shape[0], 1, y.shape[1]])
    return product.reshape([x.shape[0] * y.shape[0], x.shape[1] * y.shape[1]])


@decomposes(aten.inner.default, targets=("coreml",), why="coremltools 9.0 makes a matrix of the product of two numbers")
def inner(x: Tensor, y: Tensor) -> Tensor:
    """Return the products of the rows of x [..., n] with those of y [..., n]; of a single number, those with it."""
    if not (x.dim() and y.dim()):
        return x * y
    if x.dim() == y.dim() == 1:
        return (x * y).sum(-1)
    products = torch.mm(x.reshape([-1, x.shape[-1]]), y.reshape([-1, y.shape[-1]]).t())
    return products.reshape([*x.shape[:-1], *y.shape[:-1]])
