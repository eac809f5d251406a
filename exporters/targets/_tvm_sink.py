"""Operators of single numbers, computed where the numbers were before they were arranged.

    relu(permute(x))                           permute(relu(x))
    add(permute(x), permute(y))                permute(add(x, y)), where both arrange alike; so with a constant
    lif(reshape(permute(x)))                   the same neurons, over the axis of x that is the time
    mean(permute(x))                           the mean over those axes of x that hold the same numbers

An arrangement that comes behind its operators meets the next one, and the two cancel (_tvm_arrange.py); and the
operators lie beside the layer before them, whose epilogue takes them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgesmith.exporters.targets._tvm_arrange import (
    PERMUTES,
    RESHAPES,
    apply,
    operator,
    rebuilt,
    sizes,
)

if TYPE_CHECKING:
    import numpy as np

SINGLE = frozenset(
    [
        *(f"relax.{name}" for name in ("add", "subtract", "multiply", "divide", "maximum", "minimum", "power")),
        *(f"relax.{name}" for name in ("exp", "log", "sqrt", "rsqrt", "abs", "negative", "tanh", "sigmoid", "erf")),
        *(f"relax.{name}" for name in ("sin", "cos", "square", "clip", "round")),
        *(f"relax.nn.{name}" for name in ("relu", "relu6", "silu", "gelu", "gelu_tanh", "leakyrelu", "softplus")),
    ]
)
"""Operators of Relax that compute each number of their result of the numbers in its place."""

NEURONS = "edgesmith.lif"

LARGEST = 2**24
"""Numbers of a value whose order is looked at."""


@dataclass(frozen=True)
class View:
    """A value as an arrangement of another one.

    Attributes:
        source: what is arranged.
        calls: the arrangements, the first first.
    """

    source: Any
    calls: tuple[Any, ...]


def sunk(module: Any) -> Any:
    """Return a module whose operators of single numbers come before arrangements, where all they read allows it."""
    return rebuilt(module, _Sinker().seen)


class _Sinker:
    """Remembers which values are arrangements, and of what."""

    def __init__(self) -> None:
        self.views: dict[Any, View] = {}
        self._orders: dict[Any, np.ndarray] = {}

    def seen(self, variable: Any, value: Any) -> Any:
        """Return what a variable is: bindings before it, and its value."""
        import tvm

        name = operator(value)
        if name == PERMUTES or name in RESHAPES:
            source = value.args[0]
            if isinstance(source, tvm.ir.Var):
                before = self.views.get(source, View(source, ()))
                self.views[variable] = View(before.source, (*before.calls, value))
            return value
        if name in SINGLE:
            return self._single(variable, value)
        if name == "relax.mean":
            return self._mean(variable, value)
        if name == "relax.call_dps_packed" and str(value.args[0].global_symbol) == NEURONS:
            return self._neurons(variable, value)
        return value

    def _single(self, variable: Any, value: Any) -> Any:
        """Return an operator of single numbers as an arrangement of one of the numbers' source."""
        import tvm

        views = [self.views[one] for one in value.args if one in self.views and sizes(one) == sizes(variable)]
        if not views or math.prod(sizes(variable)) > LARGEST:
            return value
        view = views[0]
        given = [self._before(one, view, sizes(variable)) for one in value.args]
        if any(one is None for one in given):
            return value
        return self._arranged(variable, tvm.ir.Call(value.op, given, value.attrs), view.source, view.calls)

    def _before(self, one: Any, view: View, shape: tuple[int, ...]) -> Any:
        """Return what an operator reads beside a view, as it is before the view's arrangement; None where it is not."""
        import tvm
        from tvm import relax

        if not isinstance(one.ty, relax.TensorType):
            return one  # a number that is part of the operator
        if isinstance(one, tvm.ir.GenericConst):
            return self._constant_before(one.value.numpy(), view, shape)
        other = self.views.get(one)
        if other is None or sizes(one) != shape:
            return None
        shaped = sizes(view.source)
        if not (self._order(other) == self._order(view)).all():
            return None
        return other.source if sizes(other.source) == shaped else relax.op.reshape(other.source, list(shaped))

    def _constant_before(self, array: np.ndarray, view: View, shape: tuple[int, ...]) -> Any:
        """Return a constant that is as long as it has to be where an arrangement begins."""
        import numpy as np
        from tvm import relax

        if array.size == 1:
            return relax.const(array.reshape(()), str(array.dtype))  # by itself it makes int64 int32
        if array.ndim > len(shape):
            return None
        flat = np.empty(math.prod(shape), array.dtype)
        flat[self._order(view).ravel()] = np.broadcast_to(array, shape).ravel()
        made = flat.reshape(sizes(view.source))
        for axis in range(made.ndim):
            first = made.take([0], axis)
            made = first if (made == first).all() else made
        return relax.const(np.ascontiguousarray(made), str(made.dtype))

    def _neurons(self, variable: Any, value: Any) -> Any:
        """Return neurons [outer, time, inner] over the axis of the source that is the time, where it is one."""
        from tvm import relax

        x, *rest = value.args[1].fields
        view = self.views.get(x)
        if view is None or sizes(x)[1] < 2 or math.prod(sizes(x)) > LARGEST:
            return value
        order, length = self._order(view), sizes(x)[1]
        stride = int(order[0, 1, 0]) - int(order[0, 0, 0])
        begins = order[:, 0]
        is_axis = stride > 0 and bool((order[:, 1:] - order[:, :-1] == stride).all())
        if not is_axis or (begins // stride % length).any():
            return value
        shape = [order.size // (length * stride), length, stride]
        dtype = variable.ty.dtype
        given = relax.DataflowVar("currents", relax.TensorType(shape, dtype))
        spikes = relax.DataflowVar("spikes", relax.TensorType(shape, dtype))
        fired = relax.call_dps_packed(NEURONS, relax.Tuple([given, *rest]), relax.TensorType(shape, dtype))
        last = relax.op.reshape(spikes, list(sizes(view.source)))
        before = [(given, relax.op.reshape(view.source, shape)), (spikes, fired)]
        return [*before, *self._arranged(variable, last, view.source, view.calls)]

    def _mean(self, variable: Any, value: Any) -> Any:
        """Return a mean over axes of the source, where some hold together the numbers that it is of."""
        import numpy as np
        from tvm import relax

        view = self.views.get(value.args[0])
        if view is None or math.prod(sizes(value.args[0])) > LARGEST:
            return value
        order, shape = self._order(view), sizes(view.source)
        axes = [int(axis) % order.ndim for axis in value.attrs.axis or range(order.ndim)]
        wanted = _rows(order, axes)
        single = [axis for axis, size in enumerate(shape) if size == 1 and 0 < axis < len(shape) - 1]
        long = [axis for axis, size in enumerate(shape) if size > 1]
        numbers = np.arange(order.size, dtype=np.int32).reshape(shape)
        for count in range(len(long) + 1):
            for chosen in itertools.combinations(long, count):
                if math.prod(shape[axis] for axis in chosen) != wanted.shape[1]:
                    continue
                over = sorted({*chosen, *single})
                if np.array_equal(_rows(numbers, over), wanted):
                    left = [size for axis, size in enumerate(shape) if axis not in over]
                    made = relax.DataflowVar("mean", relax.TensorType(left, variable.ty.dtype))
                    found = relax.op.mean(view.source, over)
                    return [(made, found), (variable, relax.op.reshape(made, list(sizes(variable))))]
        return value

    def _arranged(self, variable: Any, value: Any, source: Any, calls: Sequence[Any]) -> list[tuple[Any, Any]]:
        """Return the bindings of a value of a source's shape, arranged by some calls; the last one is the variable."""
        from tvm import relax

        dtype = variable.ty.dtype
        one = relax.DataflowVar("before", relax.TensorType(sizes(source), dtype))
        self.views[variable] = View(one, tuple(calls))
        bindings = [(one, value)]
        for call in calls:
            made = relax.DataflowVar("arranged", relax.TensorType(sizes(call), dtype))
            bindings.append((made, _again(call, one)))
            one = made
        return [*bindings[:-1], (variable, bindings[-1][1])]

    def _order(self, view: View) -> np.ndarray:
        """Return the positions in its source of a view's numbers."""
        import numpy as np

        key = (sizes(view.source), *map(id, view.calls))  # `views` keeps the calls
        if key not in self._orders:
            shape = sizes(view.source)
            numbers = np.arange(math.prod(shape), dtype=np.int32).reshape(shape)
            for call in view.calls:
                numbers = apply(numbers, call)
            self._orders[key] = numbers
        return self._orders[key]


def _rows(order: np.ndarray, axes: Sequence[int]) -> np.ndarray:
    """Return which numbers lie together along some axes, sorted, for each place of the others."""
    import numpy as np

    kept = [axis for axis in range(order.ndim) if axis not in axes]
    together = order.transpose(*kept, *axes).reshape(math.prod(order.shape[axis] for axis in kept), -1)
    return np.sort(together, axis=1)


def _again(call: Any, value: Any) -> Any:
    """Return an arrangement of another value."""
    from tvm import relax

    if operator(call) in RESHAPES:
        return relax.op.reshape(value, list(sizes(call)))
    return relax.op.permute_dims(value, call.attrs.axes)
