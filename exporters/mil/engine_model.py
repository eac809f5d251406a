"""A model of the Neural Engine, no measurement: the departures that are documented of it, applied to an evaluation.

    matmul linear einsum     an fp16 result beyond 32752 in magnitude is infinite                       CM7
    softplus                 0 from 10.395 on                                                           CM1
    reduce_log_sum_exp       without a shift: 0 where the sum of exponentials passes 65504              CM3
    slice_by_index _by_size  of the last axis, not from its beginning: infinite beyond 4094             CM8

Operators in fp32 run elsewhere, and are left. A softmax that underflows before a logarithm (CM4) and an exponential
that overflows (CM5) are fp16's own arithmetic, which the evaluator has by itself. Of attention as one operator nothing
is published, and nothing is applied. The slices are those of chips before A16; the book of departures has the sources.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from edgesmith.exporters.mil.program import Operation, TensorType
from edgesmith.exporters.precision.policy import HALF_MAX

PRODUCT_LIMIT = 32752.0
PRODUCTS = ("matmul", "linear", "einsum")
SOFTPLUS_END = 10.395
SLICE_LIMIT = 4094.0

Given = Mapping[str, Any]
Effect = Callable[[Given, Tensor], Tensor]


def _end_products(given: Given, result: Tensor) -> Tensor:
    return _beyond(result, PRODUCT_LIMIT)


def _beyond(x: Tensor, limit: float) -> Tensor:
    """Return x with what is beyond a limit infinite."""
    return torch.where(x.abs() > limit, torch.copysign(torch.full_like(x, math.inf), x), x)


def _end_softplus(given: Given, result: Tensor) -> Tensor:
    return torch.where(given["x"] >= SOFTPLUS_END, torch.zeros_like(result), result)


def _sum_unshifted(given: Given, result: Tensor) -> Tensor:
    return torch.where(result.float().exp() > HALF_MAX, torch.zeros_like(result), result)


def _end_slice(given: Given, result: Tensor) -> Tensor:
    begin, x = _numbers(given.get("begin")), given["x"]
    masks = _numbers(given.get("begin_mask"))
    inside = bool(begin) and len(begin) == x.dim() and begin[-1] != 0 and not (masks and masks[-1])
    return _beyond(result, SLICE_LIMIT) if inside else result


def _numbers(value: Any) -> list[Any]:
    if isinstance(value, Tensor):
        return [value.item()] if not value.dim() else list(value.tolist())
    return list(value) if isinstance(value, Sequence) else []


_EFFECTS: dict[str, Effect] = {
    **dict.fromkeys(PRODUCTS, _end_products),
    **dict.fromkeys(("slice_by_index", "slice_by_size"), _end_slice),
    "softplus": _end_softplus,
    "reduce_log_sum_exp": _sum_unshifted,
}


def as_neural_engine(operation: Operation, given: Given, results: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return an operator's results as the Neural Engine is documented to compute them in half precision."""
    effect = _EFFECTS.get(operation.type)
    kind = operation.outputs[0].type if operation.outputs else None
    is_half = isinstance(kind, TensorType) and kind.dtype == "fp16"
    if effect is None or not is_half or not isinstance(results[0], Tensor):
        return results
    return (effect(given, results[0]), *results[1:])


DEVICES = {"ane": as_neural_engine}
"""Models of devices by the name that `verify --as` has for them."""
