"""Long sums that no kernel computes, as loops in stages: TVM's own add one number after another.

    sum(x) = sum_w(sum_h(x[.., h, w]))          mean, variance and standard deviation of them

A long axis is several. The last one comes last, so that until then numbers beside each other are added as vectors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgesmith.exporters import stages
from edgesmith.exporters.targets._tvm_schedule import LEAST_LANES


def legalizations() -> Mapping[str, Callable[[Any, Any], Any]]:
    """Return what makes loops of sums, by the names of TVM's operators."""
    made = {"sum": Rows.sum, "mean": Rows.mean, "variance": Rows.variance, "std": _deviation}
    return {f"relax.{name}": _legalization(compute) for name, compute in made.items()}


@dataclass(frozen=True)
class Rows:
    """A value whose rows, over some of its axes, are summed.

    Attributes:
        value: with a long axis as several.
        shape: as it came.
        sizes, axes: of `value`, and those that a row has.
    """

    value: Any
    shape: Sequence[int]
    sizes: Sequence[int]
    axes: Sequence[int]

    @classmethod
    def of(cls, x: Any, shape: Sequence[int], axes: Sequence[int]) -> Rows:
        """Return a value of a shape with rows over some axes, none of them counted from the end."""
        from tvm import topi

        factors = [stages.of(size) if axis in axes else [size] for axis, size in enumerate(shape)]
        sizes = [factor for of_axis in factors for factor in of_axis]
        places = [axis for axis, of_axis in enumerate(factors) for _ in of_axis]
        value = x if sizes == [*shape] else topi.reshape(x, sizes)
        return cls(value, shape, sizes, [place for place, axis in enumerate(places) if axis in axes])

    def with_value(self, value: Any) -> Rows:
        """Return other rows that lie the same way."""
        return Rows(value, self.shape, self.sizes, self.axes)

    def sum(self) -> Any:
        """Return the sum of each row, with axes of 1."""
        from tvm import topi

        y = self.value
        for stage in self._stages():
            y = topi.sum(y, stage, keepdims=True)
        return y

    def _stages(self) -> list[list[int]]:
        """Return the axes that are summed together: all of short rows, of long ones each for itself.

        Numbers that lie beside each other are added as vectors where they are of other rows, or along the last axis.
        """
        if math.prod(self.sizes[axis] for axis in self.axes) < stages.LONG:
            return [list(self.axes)]
        axes = [axis for axis in self.axes if self.sizes[axis] > 1]
        if math.prod(self.sizes[axes[-1] + 1 :]) < LEAST_LANES:
            axes = [axes[-1], *axes[:-1]]
        return [[axis] for axis in reversed(axes)]

    def mean(self) -> Any:
        """Return the mean of each row, with axes of 1."""
        from tvm import tirx, topi

        share = 1 / math.prod(self.sizes[axis] for axis in self.axes)
        return topi.multiply(self.sum(), tirx.const(share, self.value.dtype))

    def variance(self) -> Any:
        """Return the mean of squares about the mean of each row, with axes of 1."""
        from tvm import topi

        centred = topi.subtract(self.value, self.mean())
        return self.with_value(topi.multiply(centred, centred)).mean()

    def laid_back(self, value: Any) -> Any:
        """Return a value that lies as the rows do in the shape in which these came."""
        from tvm import topi

        return value if [*self.sizes] == [*self.shape] else topi.reshape(value, list(self.shape))


def _deviation(rows: Rows) -> Any:
    from tvm import topi

    return topi.sqrt(rows.variance())


def _legalization(compute: Callable[[Rows], Any]) -> Callable[[Any, Any], Any]:
    """Return what makes loops of a call: of long rows of float32 those above, of others TVM's own."""

    def legalize(builder: Any, call: Any) -> Any:
        from tvm import ir, topi

        shape = [int(size) for size in call.args[0].ty.shape]
        axes = sorted(int(axis) % len(shape) for axis in call.attrs.axis or range(len(shape)))
        if math.prod(shape[axis] for axis in axes) < stages.LONG or str(call.args[0].ty.dtype) != "float32":
            return ir.Op.get(call.op.name).get_attr("FLegalize")(builder, call)

        def reduced(x: Any) -> Any:
            y = compute(Rows.of(x, shape, axes))
            kept = [1 if axis in axes else size for axis, size in enumerate(shape)]
            return topi.reshape(y, kept if call.attrs.keepdims else [s for i, s in enumerate(shape) if i not in axes])

        return builder.call_te(reduced, call.args[0], primfunc_name_hint=call.op.name.rpartition(".")[2])

    return legalize
