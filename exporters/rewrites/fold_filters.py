"""A filter with constant coefficients is a circular convolution, one kernel a channel.

    irfft(rfft(x) * K)  =  x (*) k,    k = irfft(rfft(delta) * K)        any number of axes, and each norm

The map from x to the result commutes with shifts, so its response to a unit impulse says all about it; that is also
what becomes of the imaginary parts that `irfft` ignores. It is computed once, in float64, and then there are three
forms of one filter, of which the cheapest stands:

    transforms      left to the `dft` rewrite
    convolution     circular padding and a depthwise convolution with a kernel as large as the map
    matrix          y[c] = x[c] M[c], M the circulant of k over the flattened axes, one for each channel

The last two cost N^2 MACs a channel of N numbers: they win where launches cost more than that, on small maps.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from edgesmith.exporters.costs import Costs
from edgesmith.exporters.graph.edit import (
    arguments,
    aten,
    constant,
    example_sizes,
    operator_name,
    rank,
    replace,
    same_shape,
    site,
    val,
)
from edgesmith.exporters.rewrites import fourier
from edgesmith.exporters.rewrites.complex_values import Arithmetic
from edgesmith.exporters.rewrites.dft import is_transform, transform_axes
from edgesmith.exporters.rewrites.fourier import Axis, Price
from edgesmith.exporters.rewrites.rewrite import Fired, Reject, declining_at, rewrites

FORMS = ("transforms", "matrix", "convolution")


@rewrites(rule="irfft(rfft(x) * constant) -> a circular convolution or a matrix, where the target says cheaper")
def fold_filters(module: GraphModule, node: Node, costs: Costs, form: str | None = None) -> Fired | None:
    """See above. A near miss is a constant filter that its transforms serve best, or whose spectrum is read twice.

    Args:
        form: overrides the choice, for measurements and tests: `transforms`, `matrix` or `convolution`.
    """
    found = _filter(module, node)
    if found is None:
        return None
    forth, spectrum = found
    where = site(forth, node)
    with declining_at(where):
        made, note = _folded(Arithmetic(module, node), _checked(forth, node, spectrum), costs, form)
    replace(node, made)
    return Fired(where, note)


def _filter(module: GraphModule, back: Node) -> tuple[Node, Tensor] | None:
    """The forward transform and the constant of irfft(rfft(x) * constant), or None."""
    if not is_transform(back) or "irfft" not in operator_name(back):
        return None
    product = back.args[0]
    if not isinstance(product, Node) or product.target is not aten.mul.Tensor:
        return None
    for forth, factor in (product.args, reversed(product.args)):
        spectrum = constant(module, factor)
        if spectrum is not None and isinstance(forth, Node) and is_transform(forth) and "_rfft" in operator_name(forth):
            return forth, spectrum
    return None


@dataclass(frozen=True)
class _Filter:
    """A constant filter.

    Attributes:
        forth, back: its transforms, over the axes `inward` and `outward`.
        spectrum: what stands between them.
        channel: the axis along which it differs, beside the transformed ones; at most one.
    """

    forth: Node
    back: Node
    spectrum: Tensor
    inward: list[Axis]
    outward: list[Axis]
    channel: list[int]

    @property
    def signal(self) -> Node:
        """The node that is filtered."""
        x = self.forth.args[0]
        assert isinstance(x, Node)
        return x

    @property
    def axes(self) -> list[int]:
        """The transformed axes, in order."""
        return sorted(axis.position for axis in self.inward)

    @property
    def numbers(self) -> int:
        """Of one signal."""
        return prod(axis.length for axis in self.inward)


def _checked(forth: Node, back: Node, spectrum: Tensor) -> _Filter:
    """A filter that is a circular convolution of a real signal. Raises `Reject` where it is another one."""
    x, product = forth.args[0], back.args[0]
    assert isinstance(x, Node)
    assert isinstance(product, Node)
    if len(forth.users) > 1 or len(product.users) > 1:
        raise Reject("the spectrum is read by something else too")
    inward, outward = _circular_axes(forth, back)
    if not val(x).is_floating_point() or len(inward) > 2:
        raise Reject("only filters of real signals over one or two axes are folded")
    if not same_shape(val(product), val(forth)):
        raise Reject("the filter makes several signals of one")
    transformed = {a.position for a in inward}
    differing = [1] * (rank(x) - spectrum.dim()) + list(spectrum.shape)
    channel = [i for i, n in enumerate(differing) if n != 1 and i not in transformed]
    if len(channel) > 1:
        raise Reject("the filter differs along more than one axis beside the transformed ones")
    return _Filter(forth, back, spectrum, inward, outward, channel)


def _circular_axes(forth: Node, back: Node) -> tuple[list[Axis], list[Axis]]:
    """The axes of both transforms, where they are the same, and as long as the signal."""
    inward, outward = transform_axes(forth), transform_axes(back)
    if [(a.position, a.length) for a in inward] != [(a.position, a.length) for a in outward]:
        raise Reject("the two transforms differ in axes or lengths")
    if any(a.given != a.length for a in inward):
        raise Reject("the signal is padded or cropped, so over what is given the filter is not circular")
    return inward, outward


def _folded(emit: Arithmetic, filtered: _Filter, costs: Costs, form: str | None) -> tuple[Node, str]:
    """The filter in the form that costs least, and a note. Raises `Reject` where that is its transforms."""
    x, axes, channel = filtered.signal, filtered.axes, filtered.channel
    prices = _prices(filtered, costs)
    signals = max(prod(example_sizes(val(x).shape)), 1) // filtered.numbers
    figures = ", ".join(f"{f} {p.macs / signals / 1e6:.3g} MMAC a channel, {p.us:.0f} us" for f, p in prices.items())
    note = f"over {axes} {'x'.join(str(a.length) for a in filtered.inward)}: {figures}"
    channels = prod(filtered.spectrum.shape[i - rank(x)] for i in channel)
    if channels * filtered.numbers**2 > fourier.LARGEST_CONSTANTS:
        del prices["matrix"]
    best = form or min(prices, key=lambda form: prices[form].us)
    if best == "transforms":
        raise Reject(f"its transforms cost least {note}")
    rest = [i for i in range(rank(x)) if i not in axes and i not in channel]
    order = [*rest, *channel, *axes]
    lengths = (a.length for a in sorted(filtered.inward, key=lambda axis: axis.position))
    kernel = _response(filtered).permute(order).reshape(-1, *lengths)
    y = _permuted(emit, x, order)
    y = (_matrix if best == "matrix" else _convolution)(emit, y, kernel.to(val(x).dtype), bool(channel))
    return _permuted(emit, y, [order.index(i) for i in range(rank(x))]), f"{best} {note}"


def _prices(filtered: _Filter, costs: Costs) -> dict[str, Price]:
    """Return what each form costs."""
    x, inward, outward = val(filtered.signal), filtered.inward, filtered.outward
    shape, itemsize = example_sizes(x.shape), x.dtype.itemsize

    def passes(operators: int, numbers: int) -> Price:
        return Price(0, operators * (costs.launch_us + 2 * numbers * itemsize / costs.stream_gb_s / 1e3))

    numbers, n = prod(shape), filtered.numbers
    signals = numbers // n
    between = shape.copy()
    between[inward[-1].position] = inward[-1].made
    moved = Price() if min(axis.position for axis in inward) == len(shape) - len(inward) else passes(2, numbers)
    there = fourier.plan(inward, shape, True, False, costs, itemsize).price
    back = fourier.plan(outward, between, False, True, costs, itemsize).price
    prices = {"transforms": there + back + passes(6, prod(between)) + Price(4 * prod(between))}
    rows, times = (1, signals) if filtered.channel else (signals, 1)
    one = fourier.matmul_price(rows, n, n, 1, (1, 1), costs, itemsize)
    prices["matrix"] = Price(times * one.macs, costs.launch_us + times * (one.us - costs.launch_us)) + moved
    prices["convolution"] = Price(signals * n * n, costs.launch_us + signals * n * n / costs.depthwise_gmac_s / 1e3)
    prices["convolution"] += passes(2 * len(inward), 2 * numbers) + moved
    return prices


def _response(filtered: _Filter) -> Tensor:
    """Return the filter's response to a unit impulse, in float64, in the layout of the signal."""
    shape, axes = val(filtered.back).shape, filtered.axes
    impulse = torch.zeros([int(n) if i in axes else 1 for i, n in enumerate(shape)], dtype=torch.float64)
    impulse.view(-1)[0] = 1
    spectrum = _transformed(filtered.forth, impulse) * filtered.spectrum.to(torch.complex128)
    return _transformed(filtered.back, spectrum)


def _transformed(transform: Node, values: Tensor) -> Tensor:
    """A transform's own operator on other values."""
    function = getattr(torch.fft, operator_name(transform).removeprefix("aten.fft_"))
    result: Tensor = function(values, *arguments(transform)[1:])
    return result


def _permuted(emit: Arithmetic, x: Node, order: list[int]) -> Node:
    return x if order == sorted(order) else emit(aten.permute.default, x, order)


def _matrix(emit: Arithmetic, x: Node, kernel: Tensor, channels: bool) -> Node:
    """The circulants [C, N, N] of a kernel [C, *lengths], on x [..., C, *lengths]; [..., *lengths] without channels."""
    lengths = kernel.shape[1:]
    positions = torch.cartesian_prod(*map(torch.arange, lengths)).reshape(-1, len(lengths))  # [N, axes]
    offset = (positions[None] - positions[:, None]) % torch.tensor(lengths)  # [from, to, axes]
    flat = torch.zeros(offset.shape[:2], dtype=torch.long)
    for i, length in enumerate(lengths):
        flat = flat * length + offset[..., i]
    circulant = kernel.flatten(1)[:, flat]
    before = list(val(x).shape[: rank(x) - len(lengths)])
    n = prod(lengths)
    rows = emit.reshape(x, [*before, 1, n] if channels else [*before, n])
    m = emit.constant("filter_matrix", circulant if channels else circulant[0])
    return emit.reshape(emit(aten.matmul.default, rows, m), [*before, *lengths])  # type: ignore[return-value]


def _convolution(emit: Arithmetic, x: Node, kernel: Tensor, channels: bool) -> Node:
    """Circular padding and a depthwise convolution; arguments as for `_matrix`."""
    count, *lengths = kernel.shape
    shape = list(val(x).shape)
    y: Any = emit.reshape(x, [prod(shape[: rank(x) - len(lengths) - channels]), count, *lengths])
    for axis, length in enumerate(lengths, start=2):
        if length > 1:
            y = emit(aten.cat.default, [emit(aten.slice.Tensor, y, axis, 1, length), y], axis)
    weight = emit.constant("filter_kernel", kernel.flip(*range(1, kernel.dim())).unsqueeze(1))
    ones = [1] * len(lengths)
    target = aten.conv1d.default if len(lengths) == 1 else aten.conv2d.default
    return emit.reshape(emit(target, y, weight, None, ones, [0] * len(lengths), ones, count), shape)  # type: ignore[return-value]
