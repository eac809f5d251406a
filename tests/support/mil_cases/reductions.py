"""Cases of reductions, sums along an axis, and sorting."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from support.mil_sites import Draw, Site, Table

CASES = Table()


def product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted((axis % x.dim() for axis in axes), reverse=True):
        x = torch.prod(x, axis, keepdim=keep)
    return x


TORCH_REDUCTIONS: dict[str, Callable[[Tensor, list[int], bool], Tensor]] = {
    "reduce_l1_norm": lambda x, axes, keep: torch.linalg.vector_norm(x, 1, axes, keep),
    "reduce_l2_norm": lambda x, axes, keep: torch.linalg.vector_norm(x, 2, axes, keep),
    "reduce_log_sum": lambda x, axes, keep: torch.log(torch.sum(x, axes, keep)),
    "reduce_log_sum_exp": torch.logsumexp,
    "reduce_max": torch.amax,
    "reduce_mean": torch.mean,
    "reduce_min": torch.amin,
    "reduce_prod": product,
    "reduce_sum": torch.sum,
    "reduce_sum_square": lambda x, axes, keep: torch.linalg.vector_norm(x, 2, axes, keep) ** 2,
}


@CASES.drawn(*TORCH_REDUCTIONS)
def reduction(draw: Draw, name: str) -> Site:
    shape = draw.shape(1, 4, 4)
    axes, keep = draw.axes(len(shape)), draw.flag()
    attributes: dict[str, Any] = {"keep_dims": True} if keep else {}
    if draw.flag():
        attributes["axes"] = axes
    else:
        axes = list(range(len(shape)))
        if not keep:  # a model's output has an axis
            attributes["keep_dims"] = keep = True
    if not keep and len(axes) == len(shape):
        attributes["keep_dims"] = keep = True
    function = TORCH_REDUCTIONS[name]
    if draw.flag() and draw.flag():
        low = 2 if name == "reduce_log_sum" else 1 if name == "reduce_prod" else -9
        x = draw.wholes(shape, low, 3 if name == "reduce_prod" else 9)
        x = x % 3 if name == "reduce_prod" else x

        def whole(x: Tensor) -> Tensor:  # 1e-9: the double's square may miss an integer from below
            result = function(x.double(), axes, keep)
            return (result + result.sign() * 1e-9).int()

        return Site({"x": x}, attributes, whole)
    ranges = {"reduce_log_sum": (1.1, 3), "reduce_log_sum_exp": (0.5, 4), "reduce_prod": (0.8, 1.2)}
    x = draw.floats(shape, *ranges.get(name, (-1, 3)))
    half = name in ("reduce_max", "reduce_min", "reduce_sum", "reduce_mean")
    return Site({"x": x}, attributes, lambda x: function(x, axes, keep), half=half)


@CASES.drawn("reduce_argmax", "reduce_argmin")
def reduce_arg(draw: Draw, name: str) -> Site:
    shape = draw.shape(2, 4)
    axis, keep = draw.axis(len(shape)), draw.flag()
    attributes: dict[str, Any] = {"axis": axis, "keep_dims": keep}
    if axis == -1 and not keep and draw.flag():
        attributes = {}
    if draw.opset >= 17 and draw.flag():
        attributes["output_dtype"] = draw.choose(["int32", "uint16"])
    function = torch.argmax if name == "reduce_argmax" else torch.argmin
    x = draw.distinct(shape)
    return Site({"x": x.int() if draw.flag() else x}, attributes, lambda x: function(x, axis, keep))


@CASES.drawn("cumsum")
def cumsum(draw: Draw) -> Site:
    shape = draw.shape()
    axis, exclusive, backwards = draw.whole(-1, len(shape) - 1), draw.flag(), draw.flag()
    attributes = {"axis": axis, "exclusive": exclusive, "reverse": backwards}
    x = draw.wholes(shape) if draw.flag() else draw.floats(shape, -1, 3)

    def reference(x: Tensor) -> Tensor:
        size = x.shape[axis]
        up_to = torch.ones(size, size, dtype=torch.float64).tril(-1 if exclusive else 0)
        up_to = up_to.T if backwards else up_to
        return (x.double().movedim(axis, -1) @ up_to.T).movedim(-1, axis).to(x.dtype)

    return Site({"x": x}, attributes, reference)


@CASES.drawn("argsort")
def argsort(draw: Draw) -> Site:
    shape = draw.shape()
    axis, ascending = draw.axis(len(shape)), draw.flag()
    attributes = {} if axis == -1 and not ascending else {"axis": axis, "ascending": ascending}
    x = draw.distinct(shape)
    x = x.int() if draw.flag() else x
    return Site({"x": x}, attributes, lambda x: torch.argsort(x, axis, descending=not ascending))


@CASES.drawn("topk")
def topk(draw: Draw) -> Site:
    shape = draw.shape()
    axis, ascending = draw.axis(len(shape)), draw.flag()
    k = draw.whole(1, shape[axis])
    attributes: dict[str, Any] = {"k": k, "axis": axis, "ascending": ascending}
    only = False
    if draw.opset >= 16:
        only = draw.flag()
        attributes |= {"return_indices": not only, "sort": True}
    if draw.opset >= 17 and not only:
        attributes["output_indices_dtype"] = draw.choose(["int32", "uint16"])
    x = draw.distinct(shape)
    x = x.int() if draw.flag() else x

    def reference(x: Tensor) -> Any:
        values, indices = torch.topk(x, k, axis, largest=not ascending, sorted=True)
        return values if only else (values, indices)

    return Site({"x": x}, attributes, reference, half=True)
