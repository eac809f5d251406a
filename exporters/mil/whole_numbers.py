"""Whole numbers as floats, which half precision has up to 2048 only: what runs through them stays fp32.

    ids.float() == 50257             half precision has 50240 and 50272
    mask.float().cumsum(-1).long()   from 2048 on it counts no further
    arange(5000.) < lengths          a constant

In PyTorch these are exact. From the operator that makes such a number on, what it runs through stays fp32, up to and
with what makes a whole number, a truth value or a bounded one of it again, or an output. Where it may go elsewhere, as
into a layer, nothing stays: it is a feature there, as coarse as others.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgesmith.exporters.precision.large_constants import find_reach

LARGEST = 2048
"""Half precision has every whole number up to this one."""

_VIEWS = frozenset(
    {
        *("reshape", "transpose", "expand_dims", "squeeze", "slice_by_index", "slice_by_size", "identity"),
        *("tile", "concat", "stack", "gather", "gather_along_axis", "reverse", "pad", "split"),
    }
)
_CHOOSING = frozenset({"maximum", "minimum", "clip", "abs", "reduce_max", "reduce_min", "select", "relu"})
_COMPUTING = frozenset(
    {
        *("add", "sub", "mul", "real_div", "floor_div", "mod", "square", "floor", "ceil", "round"),
        *("reduce_sum", "reduce_mean", "cumsum"),
    }
)
_CARRYING = _VIEWS | _CHOOSING | _COMPUTING
_BOUNDING = frozenset(
    {
        *("softmax", "sigmoid", "tanh", "sign", "sin", "cos", "atan", "erf"),
        *("log", "sqrt", "rsqrt", "inverse"),
    }
)
"""Operators whose results are in range, and no more exact than other floats are, whatever they read."""


_LOOKED_AT = 1_000_000
"""Numbers that a constant has at most whose magnitude matters here; a table of embeddings counts nothing."""

Bounds = dict[Any, float]
"""The largest magnitude of values that count, place or tell something, as far as that is known."""


def find_whole_numbers(block: Any, bounds: Bounds | None = None) -> Iterator[tuple[Any, list[str]]]:
    """Yield operators that make whole numbers beyond half precision, and the names of what stays fp32 for them."""
    bounds = {} if bounds is None else bounds
    for op in block.operations:
        for inner in op.blocks:
            yield from find_whole_numbers(inner, bounds)
        bounds |= _bounds_of(op, bounds)
        if _is_equal_to_a_constant(op):
            yield op, [op.name]
        elif _makes_large(op, bounds) and (path := Reach(_CARRYING, _BOUNDING).of(op)) and path[1:]:
            yield op, [one.name for one in path]


def _makes_large(op: Any, bounds: Bounds) -> bool:
    """Return whether an operator makes floats of integers, or adds up truth values, beyond LARGEST."""
    if not op.outputs or op.outputs[0].val is not None or not op.outputs[0].is_tensor_or_scalar_of("fp32"):
        return False
    bound = _bound(op.outputs[0], bounds)
    if op.op_type == "cast":
        return bound > LARGEST and not any(op.x.is_tensor_or_scalar_of(kind) for kind in ("fp16", "fp32"))
    if op.op_type in ("reduce_sum", "cumsum"):
        return LARGEST < bound < math.inf
    return op.op_type in _COMPUTING | _CHOOSING and any(map(_is_row_of_places, _values(op)))


def _is_equal_to_a_constant(op: Any) -> bool:
    """Return whether a number that half precision has not is looked for; of other comparisons it is rounded aside."""
    return op.op_type in ("equal", "not_equal") and (_is_coarse(op.x, whole=False) or _is_coarse(op.y, whole=False))


def _is_row_of_places(value: Any) -> bool:
    """Return whether a constant has several whole numbers that half precision rounds; a mask has one, its fill."""
    if not _is_coarse(value):
        return False
    large = np.abs(np.asarray(value.val))
    large = large[large > LARGEST]
    return large.size > 0 and bool(large.min() < large.max())


def _is_coarse(value: Any, whole: bool = True) -> bool:
    """Return whether a constant has finite numbers that half precision rounds; `whole`: and has whole ones only."""
    if value.val is None:
        return False
    array = np.asarray(value.val)
    if array.dtype != np.float32 or not np.isfinite(array).all():
        return False
    if whole and (array != np.rint(array)).any():
        return False
    with np.errstate(over="ignore"):
        return bool((array.astype(np.float16).astype(np.float32) != array).any())


def _bounds_of(op: Any, bounds: Bounds) -> Bounds:
    """Return the bounds of an operator's results, where they are known."""
    kind = op.op_type
    given = [_bound(value, bounds) for value in _values(op, "x", "y", "values", "a", "b")]
    if kind in ("reduce_argmax", "reduce_argmin"):
        return {op.outputs[0]: _sizes(op.x, [int(op.axis.val)])}
    if kind == "topk":
        places = {one: _sizes(op.x, [-1 if op.axis is None else int(op.axis.val)]) for one in op.outputs[1:]}
        return {op.outputs[0]: given[0], **places}
    if kind in ("reduce_sum", "cumsum"):
        return {op.outputs[0]: given[0] * _terms(op)}
    if kind == "mul":
        return {op.outputs[0]: math.prod(given) if math.inf not in given else math.inf}
    if kind in ("add", "sub"):
        return {op.outputs[0]: sum(given)}
    if kind in ("cast", *_VIEWS, *_CHOOSING):
        return dict.fromkeys(op.outputs, max(given, default=math.inf))
    return {}


def _bound(value: Any, bounds: Bounds) -> float:
    if value.is_tensor_or_scalar_of("bool"):
        return 1.0
    if value.val is not None and not isinstance(value.val, str) and np.size(value.val) <= _LOOKED_AT:
        return float(np.abs(np.asarray(value.val, dtype=np.float64)).max(initial=0.0))
    return bounds.get(value, math.inf)


def _terms(op: Any) -> float:
    """Return how many numbers a sum has at most."""
    if op.op_type == "cumsum":
        return _sizes(op.x, [0 if op.axis is None else int(op.axis.val)])
    return _sizes(op.x, range(op.x.rank) if op.axes is None else [int(axis) for axis in op.axes.val])


def _sizes(value: Any, axes: Iterable[int]) -> float:
    """Return how many numbers some axes have; infinite where a run decides it."""
    sizes = [value.shape[axis] for axis in axes]
    return math.prod(sizes) if all(isinstance(size, int | np.integer) for size in sizes) else math.inf


def _values(op: Any, *names: str) -> Iterator[Any]:
    """Yield the values that an operator reads, by some of its parameters or by all."""
    for name, value in op.inputs.items():
        if value is not None and (not names or name in names):
            yield from value if isinstance(value, list | tuple) else (value,)


@dataclass(frozen=True)
class Reach:
    """The operators that a kind of numbers runs through in a program that coremltools types.

    Attributes:
        carrying: operators whose results are such numbers again.
        bounding: those whose results are in range whatever they read.
    """

    carrying: frozenset[str]
    bounding: frozenset[str]

    def of(self, op: Any) -> list[Any] | None:
        """Return an operator and all that its value runs through, see `find_reach`."""
        return find_reach(op, self._readers, self.is_bounded)

    def _readers(self, op: Any) -> list[Any] | None:
        """Return what reads an operator's results, or None where some of that neither carries nor bounds them.

        The outputs of a package are Float32, those of a loop's body are whatever reads them next.
        """
        block = op.enclosing_block
        if block.outer_op is not None and any(output is one for output in op.outputs for one in block.outputs):
            return None
        following = [reader for output in op.outputs for reader in output.child_ops]
        return following if all(one.op_type in self.carrying or self.is_bounded(one) for one in following) else None

    def is_bounded(self, op: Any) -> bool:
        """Return whether an operator's results are in range, or no floats."""
        return op.op_type in self.bounding or not any(output.is_tensor_or_scalar_of("fp32") for output in op.outputs)
