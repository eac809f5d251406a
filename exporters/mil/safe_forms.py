"""Forms that the Neural Engine computes right in half precision, in the place of those that it is known to get wrong.

    softplus(x)                      -> max(x, softplus(min(x, 10)))                    CM1, CM2 of exporters/departures
    log_sum_exp(x)                   -> m + log_sum_exp(x - m), m = max(x)              CM3
    log(softmax(x))                  -> d - log(sum(exp(d))), d = x - max(x)            CM4
    c (x y), c f((x W)^2 + ...)      -> (c x) y, f((x sqrt(c) W)^2 + ...), 0 < c < 1    CM7
    v softmax(s)^T                   -> (softmax(s) v^T)^T                              CM14
    table[V, D] at indices [B, T]    -> table[V, 1, D] at them, reshaped to [B, T, D]   rule `table-lookup`
    x > c, x <= c                    -> with the next number of half precision below c  rule `comparison`
    x >= c, x < c                    -> with the next one above c

The first is exact in half precision: softplus(x) - x is 4.5e-5 at 10 and falls, and fp16 has steps of 0.008 there. The
next two subtract what they add. The one after moves a constant, which is rounded once either way, from a product that
the engine ends at 32752 into an operand of it: into a constant where there is one, else into the smaller operand, and
from there into what that is a product of, such as the weight of a projection. It goes back through sums, squares, means
and changes of shape that nothing else reads, and where one of them leads elsewhere than to a product, nothing is moved.
By less than 2^-12 none is, as numbers would leave fp16's normal range.

The form of a product has the same sums; Core ML's compiler for GPUs ends the process at the other.

The last two have every x of half precision on the side of c where it is. As rounded to the nearest, c = 0.3 becomes
0.30005, and that number is not above it any more.

Programs in single precision stay: the Neural Engine does not compute them.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Collection, Iterator
from typing import Any

import numpy as np

from edgesmith.exporters.precision.policy import HALF_MAX

BOUND = 10.0
"""Below 10.39, where the engine's softplus ends, and a number that fp16 has."""

_LEAST = 2.0**-12
_VIEWS = frozenset({"reshape", "transpose", "expand_dims", "squeeze", "identity", "slice_by_index", "slice_by_size"})
_EPSILON = 1e-20
"""Of a logarithm; larger ones are somebody's own, and are kept."""


def write_safe_forms(block: Any, keep_fp32: Collection[str]) -> Iterator[tuple[str, str, str]]:
    """Write the forms above into a block and those inside it, but for operators that stay fp32.

    Yields:
        The departure's id, or the rule, the operator's name, and the change in words.
    """
    for op in list(block.operations):
        for inner in op.blocks:
            yield from write_safe_forms(inner, keep_fp32)
    with block:  # once: whenever it is left, coremltools goes through all operators
        for op in list(block.operations):
            form = _FORMS.get(op.op_type)
            if form is None or op.enclosing_block is not block or op.name in keep_fp32:
                continue
            if (done := form(op)) is not None:
                yield done[0], op.name, done[1]


def _replace(op: Any, result: Any) -> None:
    """Put a result in the place of an operator's; an output keeps its name."""
    from coremltools.converters.mil import Builder as mb

    block = op.enclosing_block
    if op.outputs[0] in block.outputs and result.name != op.outputs[0].name:
        result = mb.identity(x=result, before_op=op, name=op.outputs[0].name)
    block.replace_uses_of_var_after_op(anchor_op=op, old_var=op.outputs[0], new_var=result)
    block.remove_ops([op])


def _bound_softplus(op: Any) -> tuple[str, str] | None:
    from coremltools.converters.mil import Builder as mb

    before = op.x.op
    if before is not None and before.op_type == "minimum" and _is_at_most(before, BOUND):
        return None
    low = mb.minimum(x=op.x, y=np.float32(BOUND), before_op=op)
    smooth = mb.softplus(x=low, before_op=op)
    _replace(op, mb.maximum(x=op.x, y=smooth, before_op=op, name=op.outputs[0].name))
    return "CM1", f"softplus(x) became max(x, softplus(min(x, {BOUND:.0f})))"


def _is_at_most(op: Any, limit: float) -> bool:
    return any(value.val is not None and float(np.max(value.val)) <= limit for value in (op.x, op.y))


def _shift_log_sum_exp(op: Any) -> tuple[str, str] | None:
    from coremltools.converters.mil import Builder as mb

    before = op.x.op
    if before is not None and before.op_type == "sub" and _is_maximum(before.y):
        return None
    axes = None if op.axes is None else [int(axis) for axis in op.axes.val]
    largest = mb.reduce_max(x=op.x, axes=axes, keep_dims=True, before_op=op)
    largest = mb.clip(x=largest, alpha=np.float32(-HALF_MAX), beta=np.float32(HALF_MAX), before_op=op)
    shifted = mb.sub(x=op.x, y=largest, before_op=op)
    keep = bool(op.keep_dims.val) if op.keep_dims is not None else False
    summed = mb.reduce_log_sum_exp(x=shifted, axes=axes, keep_dims=keep, before_op=op)
    added = largest
    if not keep:
        added = mb.reshape(x=largest, shape=list(summed.shape) or [1], before_op=op)
    _replace(op, mb.add(x=summed, y=added, before_op=op, name=op.outputs[0].name))
    return "CM3", "the largest number is taken off before the sum of exponentials, and added after it"


def _is_maximum(value: Any) -> bool:
    op = value.op
    while op is not None and op.op_type in ("clip", *_VIEWS):
        op = op.x.op
    return op is not None and op.op_type == "reduce_max"


def _shift_log_of_softmax(op: Any) -> tuple[str, str] | None:
    from coremltools.converters.mil import Builder as mb

    softmax = op.x.op
    if softmax is None or softmax.op_type != "softmax" or (op.epsilon is not None and op.epsilon.val > _EPSILON):
        return None
    axes = [int(softmax.axis.val)]
    largest = mb.reduce_max(x=softmax.x, axes=axes, keep_dims=True, before_op=op)
    shifted = mb.sub(x=softmax.x, y=largest, before_op=op)
    summed = mb.reduce_sum(x=mb.exp(x=shifted, before_op=op), axes=axes, keep_dims=True, before_op=op)
    rest = mb.log(x=summed, epsilon=np.float32(1e-45), before_op=op)
    _replace(op, mb.sub(x=shifted, y=rest, before_op=op, name=op.outputs[0].name))
    return "CM4", "log(softmax(x)) became d - log(sum(exp(d))), d = x - max(x)"


def _move_scale(op: Any) -> tuple[str, str] | None:
    """Move a constant factor below 1 into the products that are scaled by it."""
    scaled, factor = _factor(op)
    if scaled is None or not 0 < factor < 1:
        return None
    products: list[tuple[Any, float]] = []
    if not _reach(scaled, factor, products, op) or any(share < _LEAST for _, share in products):
        return None
    for product, share in products:
        within = contextlib.nullcontext() if product.enclosing_block is op.enclosing_block else product.enclosing_block
        with within:
            _scale(product, share)
    scaled = op.x if op.y.val is not None else op.y  # anew, where it was the product itself
    _replace(op, scaled)
    names = ", ".join(product.name for product, _ in products)
    return "CM7", f"a factor of {factor:.3g} moved into an operand of {names}"


def _factor(op: Any) -> tuple[Any, float]:
    """Return the value that an operator scales, and the constant; None where it does not."""
    for scaled, constant in ((op.x, op.y), (op.y, op.x)):
        known = constant.val
        if known is not None and scaled.val is None and np.size(known) == 1:
            number = float(np.asarray(known).reshape(-1)[0])
            if op.op_type == "mul":
                return scaled, number
            return (scaled, 1 / number) if constant is op.y and number else (None, 0.0)
    return None, 0.0


def _reach(value: Any, factor: float, products: list[tuple[Any, float]], reader: Any) -> bool:
    """Collect the products that a factor goes back to; False where it cannot, for one branch at least."""
    op = value.op
    if op is None or value in op.enclosing_block.outputs or set(value.child_ops) != {reader}:
        return False
    if op.op_type == "matmul":
        products.append((op, factor))
        return True
    if op.op_type == "linear":
        products.append((op, factor))
        return op.weight.val is not None and (op.bias is None or op.bias.val is not None)
    if op.op_type == "square" or (op.op_type == "mul" and op.x is op.y):
        return _reach(op.x, math.sqrt(factor), products, op)
    if op.op_type in ("add", "sub"):
        return _reach(op.x, factor, products, op) and _reach(op.y, factor, products, op)
    if op.op_type in _VIEWS or op.op_type in ("reduce_sum", "reduce_mean"):
        return _reach(op.x, factor, products, op)
    return False


def _scale(product: Any, factor: float) -> None:
    """Multiply one operand of a product by a factor, or what that operand is a product of."""
    from coremltools.converters.mil import Builder as mb

    if product.op_type == "linear":
        bias = {} if product.bias is None else {"bias": product.bias.val * np.float32(factor)}
        weight = product.weight.val * np.float32(factor)
        result = mb.linear(x=product.x, weight=weight, before_op=product, name=product.outputs[0].name, **bias)
        _replace(product, result)
        return
    x, y = _scaled_operands(product, factor)
    flags = {"transpose_x": product.transpose_x, "transpose_y": product.transpose_y}
    result = mb.matmul(x=x, y=y, before_op=product, name=product.outputs[0].name, **flags)
    _replace(product, result)
    for operand in (x, y):
        before = None if isinstance(operand, np.ndarray) else operand.op
        if before is not None and before.op_type == "mul" and before.enclosing_block is result.op.enclosing_block:
            _move_scale(before)  # a projection takes it into its weight


def _scaled_operands(product: Any, factor: float) -> tuple[Any, Any]:
    """Return a product's operands, one of them scaled: a constant, or the smaller one."""
    from coremltools.converters.mil import Builder as mb

    x, y = product.x, product.y
    if x.val is not None:
        return x.val * np.float32(factor), y
    if y.val is not None:
        return x, y.val * np.float32(factor)
    if _size(x) <= _size(y):
        return mb.mul(x=x, y=np.float32(factor), before_op=product), y
    return x, mb.mul(x=y, y=np.float32(factor), before_op=product)


def _turn_attention(op: Any) -> tuple[str, str] | None:
    """Put attention weights that are transposed, on the right of a product, on its left as they are."""
    from coremltools.converters.mil import Builder as mb

    weights, is_transposed = _untransposed(op.y)
    is_transposed ^= bool(op.transpose_y.val)
    while weights.op is not None and weights.op.op_type == "identity":
        weights = weights.op.x
    if not is_transposed or weights.op is None or weights.op.op_type != "softmax" or op.x.val is not None:
        return None
    flip = not bool(op.transpose_x.val)
    turned = mb.matmul(x=weights, y=op.x, transpose_y=flip, before_op=op)
    order = [*range(turned.rank - 2), turned.rank - 1, turned.rank - 2]
    _replace(op, mb.transpose(x=turned, perm=order, before_op=op, name=op.outputs[0].name))
    return "CM14", "v softmax^T became (softmax v^T)^T"


def _lift_table(op: Any) -> tuple[str, str] | None:
    """Give a table that two-dimensional indices look rows up in a middle axis of 1; else put the indices in one row.

    A table that is compressed, or a layer's weight too, would be there twice with another shape.
    """
    from coremltools.converters.mil import Builder as mb

    given = {name: value.val for name, value in op.inputs.items() if value is not None}
    table = given["x"]
    if table is None or op.x.rank != 2 or op.indices.rank != 2 or given.get("axis", 0) != 0 or given.get("batch_dims"):
        return None
    settings = {"axis": 0, "before_op": op}
    settings |= {name: given[name] for name in ("validate_indices",) if name in given}  # none before iOS17
    if op.x.op.op_type == "const" and len(op.x.child_ops) == 1:
        rows = mb.gather(x=np.expand_dims(table, 1), indices=op.indices, **settings)
        _replace(op, mb.squeeze(x=rows, axes=[2], before_op=op, name=op.outputs[0].name))
        return "table-lookup", f"the table {list(table.shape)} has a middle axis of 1"
    if _size(op.indices) == math.inf:
        return None
    row = mb.reshape(x=op.indices, shape=[-1], before_op=op)
    rows = mb.gather(x=op.x, indices=row, **settings)
    _replace(op, mb.reshape(x=rows, shape=list(op.outputs[0].shape), before_op=op, name=op.outputs[0].name))
    return "table-lookup", f"indices into the table {list(table.shape)} are in one row"


def _round_bound(op: Any) -> tuple[str, str] | None:
    """Round the constants of a comparison to the side on which no number of half precision changes its answer."""
    from coremltools.converters.mil import Builder as mb

    name = "y" if op.x.val is None else "x"
    bound = op.inputs[name]
    if bound.val is None or not bound.is_tensor_or_scalar_of("fp32") or op.x.val is not None is not op.y.val:
        return None
    below = op.op_type in (("greater", "less_equal") if name == "y" else ("less", "greater_equal"))
    rounded = _next_half(np.asarray(bound.val, dtype=np.float32), below)
    if np.array_equal(rounded, bound.val, equal_nan=True) or (np.abs(bound.val) > HALF_MAX).any():
        return None
    given = {"x": op.x, "y": op.y, name: rounded}
    _replace(op, getattr(mb, op.op_type)(**given, before_op=op, name=op.outputs[0].name))
    return "comparison", f"its bounds are rounded {'down' if below else 'up'}, where no number of fp16 is between"


def _next_half(array: np.ndarray, below: bool) -> np.ndarray:
    """Return the numbers of half precision that are next to others, themselves where it has them, as float32."""
    with np.errstate(over="ignore"):
        nearest = array.astype(np.float16)
    beyond = nearest.astype(np.float32) > array if below else nearest.astype(np.float32) < array
    end = np.float16(-np.inf if below else np.inf)
    with np.errstate(over="ignore"):
        return np.asarray(np.where(beyond, np.nextafter(nearest, end), nearest).astype(np.float32))


def _untransposed(value: Any) -> tuple[Any, bool]:
    """Return what a value is the transpose of, in its last two axes, and whether it is one."""
    op = value.op
    if op is None or op.op_type != "transpose":
        return value, False
    rank = value.rank
    order = [int(axis) % rank for axis in op.perm.val]
    is_last_two = order == [*range(rank - 2), rank - 1, rank - 2]
    return (op.x, True) if is_last_two else (value, False)


def _size(value: Any) -> float:
    """Return how many numbers a value has; infinity where a run decides it."""
    return math.prod(value.shape) if all(isinstance(size, int | np.integer) for size in value.shape) else math.inf


_FORMS: dict[str, Callable[[Any], tuple[str, str] | None]] = {
    "softplus": _bound_softplus,
    "reduce_log_sum_exp": _shift_log_sum_exp,
    "log": _shift_log_of_softmax,
    "mul": _move_scale,
    "real_div": _move_scale,
    "matmul": _turn_attention,
    "gather": _lift_table,
    **dict.fromkeys(("greater", "greater_equal", "less", "less_equal"), _round_bound),
}
