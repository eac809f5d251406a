"""A filter with constant coefficients is a circular convolution, one kernel a channel.

    irfft(rfft(x) * K)  =  x (*) k,    k = irfft(rfft(delta) * K)        any number of axes, and each norm

The map from x to the result commutes with shifts, so its response to a unit impulse says all about it; that is also
what becomes of the imaginary parts that `irfft` ignores. It is computed once, in float64, and then there are three
forms of one filter, of which the cheapest stands:

    transforms      left to the `dft` rewrite
    convolution     circular padding and a depthwise convolution with a kernel as large as the map
    matrix          y[c] = x[c] M[c], M the circulant of k over the flattened axes, one for each channel

The last two cost N^2 products a channel of N numbers: they win where launches cost more than that, on small maps.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    operator_name,
    operators,
    rank,
    site,
    stand_for,
    val,
)
from edgesmith.exporters.rewrites import fourier
from edgesmith.exporters.rewrites.complex_values import Arithmetic, NoRule
from edgesmith.exporters.rewrites.dft import hints, is_transform, transform_axes
from edgesmith.exporters.rewrites.fourier import Axis, Price
from edgesmith.exporters.rewrites.rewrite import Rejection, RewriteReport

FORMS = ("transforms", "matrix", "convolution")


class FoldFilters:
    """See above. A near miss is a constant filter that its transforms serve best, or whose spectrum is read twice.

    `form` overrides the choice, for measurements and tests: `transforms`, `matrix` or `convolution`.
    """

    name = "fold_filters"

    def __init__(self, form: str | None = None) -> None:
        self.form = form

    def apply(self, module: GraphModule, costs: Costs) -> RewriteReport:
        """Fold in place."""
        applied, rejected = [], []
        for back in operators(module):
            found = _filter(module, back)
            if found is None:
                continue
            forth, spectrum = found
            where = site(forth, back)
            try:
                made, note = _folded(Arithmetic(module, back), forth, spectrum, costs, self.form)
            except NoRule as reason:
                rejected.append(Rejection(where, str(reason)))
                continue
            stand_for(made, back)
            back.replace_all_uses_with(made)
            applied.append((where, note))
            module.graph.eliminate_dead_code()
        return RewriteReport(self.name, tuple(applied), tuple(rejected))


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


def _folded(emit: Arithmetic, forth: Node, spectrum: Tensor, costs: Costs, form: str | None) -> tuple[Node, str]:
    """The filter in the form that costs least. Raises NoRule where that is its transforms, or nothing else holds."""
    back, x = emit.before, forth.args[0]
    product = back.args[0]
    assert isinstance(x, Node)
    assert isinstance(product, Node)
    if len(forth.users) > 1 or len(product.users) > 1:
        raise NoRule("the spectrum is read by something else too")
    inward, outward = transform_axes(forth), transform_axes(back)
    if [(a.position, a.length) for a in inward] != [(a.position, a.length) for a in outward]:
        raise NoRule("the two transforms differ in axes or lengths")
    if any(a.given != a.length for a in inward):
        raise NoRule("the signal is padded or cropped, so over what is given the filter is not circular")
    if not val(x).is_floating_point() or len(inward) > 2:
        raise NoRule("only filters of real signals over one or two axes are folded")
    if [str(n) for n in val(product).shape] != [str(n) for n in val(forth).shape]:
        raise NoRule("the filter makes several signals of one")
    axes = sorted(a.position for a in inward)
    differing = [1] * (rank(x) - spectrum.dim()) + list(spectrum.shape)
    channel = [i for i, n in enumerate(differing) if n != 1 and i not in axes]
    if len(channel) > 1:
        raise NoRule("the filter differs along more than one axis beside the transformed ones")

    prices = _prices(hints(val(x)), inward, outward, bool(channel), costs, val(x).dtype.itemsize)
    signals = max(prod(hints(val(x))), 1) // prod(a.length for a in inward)
    figures = ", ".join(f"{f} {p.macs / signals / 1e6:.3g} MMAC a channel, {p.us:.0f} us" for f, p in prices.items())
    note = f"over {axes} {'x'.join(str(a.length) for a in inward)}: {figures}"
    if prod(differing[i] for i in channel) * prod(a.length for a in inward) ** 2 > fourier.LARGEST_CONSTANTS:
        del prices["matrix"]
    best = form or min(prices, key=lambda form: prices[form].us)
    if best == "transforms":
        raise NoRule(f"its transforms cost least {note}")
    rest = [i for i in range(rank(x)) if i not in axes and i not in channel]
    order = [*rest, *channel, *axes]
    kernel = (
        _response(forth, back, spectrum, axes, rank(x)).permute(order).reshape(-1, *(a.length for a in _by(inward)))
    )
    y = _permuted(emit, x, order)
    y = (_matrix if best == "matrix" else _convolution)(emit, y, kernel.to(val(x).dtype), bool(channel))
    return _permuted(emit, y, [order.index(i) for i in range(rank(x))]), f"{best} {note}"


def _by(axes: Sequence[Axis]) -> list[Axis]:
    return sorted(axes, key=lambda axis: axis.position)


def _prices(
    shape: list[int], inward: Sequence[Axis], outward: Sequence[Axis], channels: bool, costs: Costs, itemsize: int
) -> dict[str, Price]:
    """What each form costs for a signal of this shape."""

    def passes(operators: int, numbers: int) -> Price:
        return Price(0, operators * (costs.launch_us + 2 * numbers * itemsize / costs.stream_gb_s / 1e3))

    numbers, n = prod(shape), prod(axis.length for axis in inward)
    signals = numbers // n
    between = shape.copy()
    between[inward[-1].position] = inward[-1].made
    moved = Price() if min(axis.position for axis in inward) == len(shape) - len(inward) else passes(2, numbers)
    there = fourier.plan(inward, shape, True, False, costs, itemsize).price
    back = fourier.plan(outward, between, False, True, costs, itemsize).price
    prices = {"transforms": there + back + passes(6, prod(between)) + Price(4 * prod(between))}
    rows, times = (1, signals) if channels else (signals, 1)
    one = fourier.product_price(rows, n, n, 1, (1, 1), costs, itemsize)
    prices["matrix"] = Price(times * one.macs, costs.launch_us + times * (one.us - costs.launch_us)) + moved
    prices["convolution"] = Price(signals * n * n, costs.launch_us + signals * n * n / costs.depthwise_gmac_s / 1e3)
    prices["convolution"] += passes(2 * len(inward), 2 * numbers) + moved
    return prices


def _response(forth: Node, back: Node, spectrum: Tensor, axes: Sequence[int], rank: int) -> Tensor:
    """What the filter makes of a unit impulse, in float64, in the layout of the signal."""
    impulse = torch.zeros([_length(back, i) if i in axes else 1 for i in range(rank)], dtype=torch.float64)
    impulse.view(-1)[0] = 1
    values = impulse
    for node in (forth, back):
        transform = getattr(torch.fft, operator_name(node).removeprefix("aten.fft_"))
        values = transform(values, *arguments(node)[1:])
        if node is forth:
            values = values * spectrum.to(torch.complex128)
    return values


def _length(back: Node, axis: int) -> int:
    return int(val(back).shape[axis])


def _permuted(emit: Arithmetic, x: Node, order: list[int]) -> Node:
    return x if order == sorted(order) else emit(aten.permute.default, x, order)


def _matrix(emit: Arithmetic, x: Node, kernel: Tensor, channels: bool) -> Node:
    """The circulants [C, N, N] of a kernel [C, *lengths], on x [..., C, *lengths]; [..., *lengths] without channels."""
    lengths = kernel.shape[1:]
    places = torch.cartesian_prod(*map(torch.arange, lengths)).reshape(-1, len(lengths))  # [N, axes]
    offset = (places[None] - places[:, None]) % torch.tensor(lengths)  # [from, to, axes]
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
