"""MIL's reductions, scans and orders along axes.

Meanings from coremltools' operator documentation. Half-precision sums are taken in fp32 and rounded once. Integers stay
integers: a mean, norm or logarithm of int32 values is computed in double precision and loses its fraction. Where values
tie, MIL promises no order; here the first index wins. `axes` left out means all of them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from edgesmith.exporters.mil.ops import ints, number, op, wide

Reduction = Callable[[Tensor, list[int], bool], Tensor]


def _product(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    """Return the product over axes, one after the other, as torch's takes one at a time."""
    for dim in dims:
        x = x.prod(dim, keepdim=True)
    return x if keep else _without(x, dims)


def _without(x: Tensor, dims: list[int]) -> Tensor:
    """The tensor without these axes, which have length 1."""
    return x.squeeze(tuple(dims)) if dims else x


def _truncated(function: Reduction) -> Reduction:
    """A reduction of real numbers, for integers too: without the fraction."""

    def reduce(x: Tensor, dims: list[int], keep: bool) -> Tensor:
        if x.is_floating_point():
            return function(x, dims, keep)
        return function(x.double(), dims, keep).to(x.dtype)

    return reduce


REDUCTIONS: dict[str, Reduction] = {
    "reduce_l1_norm": lambda x, dims, keep: x.abs().sum(dims, keepdim=keep),
    "reduce_l2_norm": _truncated(lambda x, dims, keep: x.square().sum(dims, keepdim=keep).sqrt()),
    "reduce_log_sum": _truncated(lambda x, dims, keep: x.sum(dims, keepdim=keep).log()),
    "reduce_log_sum_exp": _truncated(lambda x, dims, keep: torch.logsumexp(x, dims, keepdim=keep)),
    "reduce_max": lambda x, dims, keep: x.amax(dims, keepdim=keep),
    "reduce_mean": _truncated(lambda x, dims, keep: x.mean(dims, keepdim=keep)),
    "reduce_min": lambda x, dims, keep: x.amin(dims, keepdim=keep),
    "reduce_prod": _product,
    "reduce_sum": lambda x, dims, keep: x.sum(dims, keepdim=keep),
    "reduce_sum_square": lambda x, dims, keep: x.square().sum(dims, keepdim=keep),
}
"""The reductions over several axes, as functions of the operand, its axes, and whether they are kept with length 1."""


def _reduction(function: Reduction) -> Callable[..., Tensor]:
    def apply(*, x: Tensor, axes: Tensor | None = None, keep_dims: Tensor | bool = False) -> Tensor:
        dims = list(range(x.dim())) if axes is None else [axis % max(x.dim(), 1) for axis in ints(axes)]
        if not dims:  # a scalar, or no axis named: torch would take an empty list for all of them
            return function(wide(x).unsqueeze(-1), [x.dim()], False)
        return function(wide(x), dims, bool(number(keep_dims)))

    return apply


for _name, _function in REDUCTIONS.items():
    op(_name)(_reduction(_function))


@op("reduce_argmax")
def reduce_argmax(
    *, x: Tensor, axis: Tensor | int = -1, keep_dims: Tensor | bool = False, output_dtype: str = "int32"
) -> Tensor:
    """The index of the largest value along the axis. The declared output type follows `output_dtype`."""
    return wide(x).argmax(number(axis), keepdim=bool(number(keep_dims)))


@op("reduce_argmin")
def reduce_argmin(
    *, x: Tensor, axis: Tensor | int = -1, keep_dims: Tensor | bool = False, output_dtype: str = "int32"
) -> Tensor:
    """The index of the smallest value along the axis. The declared output type follows `output_dtype`."""
    return wide(x).argmin(number(axis), keepdim=bool(number(keep_dims)))


@op("cumsum")
def cumsum(
    *, x: Tensor, axis: Tensor | int = 0, exclusive: Tensor | bool = False, reverse: Tensor | bool = False
) -> Tensor:
    """Sums of all values up to each one, without it if `exclusive`, from the end if `reverse`."""
    dim = int(number(axis))
    values = wide(x).flip(dim) if number(reverse) else wide(x)
    if number(exclusive):  # shifted by one, and not the difference, which would round
        values = torch.cat([torch.zeros_like(values.narrow(dim, 0, 1)), values], dim).narrow(dim, 0, x.shape[dim])
    sums = values.cumsum(dim)
    return sums.flip(dim) if number(reverse) else sums


@op("argsort")
def argsort(*, x: Tensor, axis: Tensor | int = -1, ascending: Tensor | bool = False) -> Tensor:
    """The indices that sort the values along the axis, the largest first unless `ascending`."""
    return torch.argsort(x, dim=number(axis), descending=not number(ascending), stable=True)


@op("topk")
def topk(
    *,
    x: Tensor,
    k: Tensor | int = 1,
    axis: Tensor | int = -1,
    ascending: Tensor | bool = False,
    sort: Tensor | bool = True,
    return_indices: Tensor | bool = True,
    output_indices_dtype: str = "int32",
) -> Tensor | tuple[Tensor, Tensor]:
    """The k largest values along the axis, or the smallest if `ascending`, and their indices.

    They are sorted even if the program does not ask for it (iOS16's `sort`), since any order will do then. k = -1
    (iOS17) takes all values.
    """
    dim, count = int(number(axis)), int(number(k))
    count = x.shape[dim] if count == -1 else count
    values, indices = torch.sort(x, dim=dim, descending=not number(ascending), stable=True)
    values = values.narrow(dim, 0, count)
    return (values, indices.narrow(dim, 0, count)) if number(return_indices) else values
