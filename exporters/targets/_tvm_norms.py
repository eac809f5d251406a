"""Norms that no kernel computes, as loops: TVM's own take the mean of squares less the square of the mean.

    m = mean(x) + mean(x - mean(x)),  v = mean((x - m)^2),  y = (x - m) / sqrt(v + eps) w + b

The difference of two large numbers has none of the digits of a small variance, and may be negative: NaN for a constant.
The second mean takes back what the sum of many numbers has lost, so that a constant is 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from edgesmith.exporters.targets._tvm_sums import Rows


def legalizations() -> Mapping[str, Callable[[Any, Any], Any]]:
    """Return what makes loops of norms, by the names of TVM's operators."""
    return {"relax.nn.layer_norm": _layer_norm, "relax.nn.group_norm": _group_norm}


def _layer_norm(builder: Any, call: Any) -> Any:
    shape = _shape(call.args[0])
    axes = sorted(int(axis) % len(shape) for axis in call.attrs.axes)
    epsilon = float(call.attrs.epsilon)
    normed = [size if axis in axes else 1 for axis, size in enumerate(shape)]

    def norm(x: Any, weight: Any, bias: Any) -> Any:
        return _affine(_standardised(x, shape, axes, epsilon), weight, bias, normed)

    return builder.call_te(norm, *call.args, primfunc_name_hint="layer_norm")


def _group_norm(builder: Any, call: Any) -> Any:
    from tvm import topi

    shape, given = _shape(call.args[0]), call.attrs
    channel, groups = int(given.channel_axis) % len(shape), int(given.num_groups)
    grouped = [*shape[:channel], groups, shape[channel] // groups, *shape[channel + 1 :]]
    others = [int(axis) % len(shape) for axis in given.axes]
    axes = sorted([channel + 1, *(axis + (axis > channel) for axis in others)])
    epsilon = float(given.epsilon)
    normed = [size if axis == channel else 1 for axis, size in enumerate(shape)]

    def norm(x: Any, weight: Any, bias: Any) -> Any:
        y = _standardised(topi.reshape(x, grouped), grouped, axes, epsilon)
        return _affine(topi.reshape(y, shape), weight, bias, normed)

    return builder.call_te(norm, *call.args, primfunc_name_hint="group_norm")


def _shape(value: Any) -> list[int]:
    return [int(size) for size in value.ty.shape]


def _standardised(x: Any, shape: Sequence[int], axes: Sequence[int], epsilon: float) -> Any:
    """Return (x - mean) / sqrt(var + eps) over axes."""
    from tvm import tirx, topi

    rows = Rows.of(x, shape, axes)
    first = rows.mean()
    second = rows.with_value(topi.subtract(rows.value, first)).mean()
    centred = topi.subtract(rows.value, topi.add(first, second))
    variance = rows.with_value(topi.multiply(centred, centred)).mean()
    scale = topi.rsqrt(topi.add(variance, tirx.const(epsilon, x.dtype)))
    return rows.laid_back(topi.multiply(centred, scale))


def _affine(x: Any, weight: Any, bias: Any, shape: Sequence[int]) -> Any:
    from tvm import topi

    return topi.add(topi.multiply(x, topi.reshape(weight, shape)), topi.reshape(bias, shape))
