"""A filter with constant coefficients is a convolution with a constant kernel, one for each channel.

    irfft(rfft(x) * K)                          =  x (*) h      circular
    irfft(rfft(x, 2 L) * rfft(k, 2 L))[:L]      =  x * k        causal

static_filters.py finds it, in any spelling and over one or two axes, and asks it for its response h to an impulse. Then
there are four forms of one filter, of which the cheapest stands:

    transforms      left to the `dft` rewrite
    matrix          y[c] = x[c] M[c], M the circulant or Toeplitz matrix of h over the flattened axes
    convolution     padding, circular or with zeros, and a depthwise convolution with a kernel as long as h
    phases          the same, for Q neighbouring results at once: a grouped convolution of stride Q, which is a matmul
                    [Q, K + Q - 1] for each channel where a depthwise convolution takes one product after the other

All but the first cost about N N' MACs a channel, for N numbers in and N' out; they win where launches cost more than
that, on short signals and small maps, and where a padded signal would be transformed at twice its length.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from edgesmith.exporters.costs import Costs
from edgesmith.exporters.graph.edit import aten, example_sizes, rank, replace, site, val
from edgesmith.exporters.rewrites import fourier
from edgesmith.exporters.rewrites.complex_values import Arithmetic, is_complex
from edgesmith.exporters.rewrites.dft import transform_axes
from edgesmith.exporters.rewrites.fourier import Price
from edgesmith.exporters.rewrites.rewrite import Fired, Reject, declining_at, rewrites
from edgesmith.exporters.rewrites.static_filters import Filter, find_filter

FORMS = ("transforms", "matrix", "convolution", "phases")


@rewrites(
    rule="irfft(rfft(x) * constant) -> a convolution or a matrix, where the target says cheaper",
    for_steps={"form": "convolution"},
)
def fold_filters(module: GraphModule, node: Node, costs: Costs, form: str | None = None) -> Fired | None:
    """See above. A near miss is a constant filter that its transforms serve best, or whose spectrum is read twice.

    Args:
        form: overrides the choice, for measurements, tests and steps: one of `FORMS`.
    """
    filtered = find_filter(module, node)
    if filtered is None:
        return None
    where = site(filtered.transforms[0], node)
    with declining_at(where):
        made, note = _folded(Arithmetic(module, filtered.y), filtered, costs, form)
    replace(filtered.y, made)
    return Fired(where, note)


def _folded(emit: Arithmetic, filtered: Filter, costs: Costs, form: str | None) -> tuple[Node, str]:
    """The filter in the form that costs least, and a note. Raises `Reject` where that is its transforms."""
    x, axes, channel = filtered.x, filtered.axes, filtered.channel
    kernel = _kernel(filtered)
    prices, phase = _prices(filtered, kernel, costs)
    signals = max(prod(example_sizes(val(x).shape)), 1) // prod(filtered.given)
    figures = ", ".join(f"{f} {p.macs / signals / 1e6:.3g} MMAC a channel, {p.us:.0f} us" for f, p in prices.items())
    note = f"over {axes} {'x'.join(str(n) for n in filtered.given)}: {figures}"
    channels = len(filtered.response)
    if channels * prod(filtered.given) * prod(filtered.made) > fourier.LARGEST_CONSTANTS:
        del prices["matrix"]
    if channels * phase * (prod(kernel.taps) + phase) > fourier.LARGEST_CONSTANTS:
        del prices["phases"]
    best = form or min(prices, key=lambda form: prices[form].us)
    if best == "transforms":
        raise Reject(f"its transforms cost least {note}")
    rest = [i for i in range(rank(x)) if i not in axes and i not in channel]
    order = [*rest, *channel, *axes]
    y = _permuted(emit, x, order)
    if best == "matrix":
        y = _matrix(emit, y, filtered)
    else:
        y = _convolution(emit, y, filtered, kernel, phase if best == "phases" else 1)
    y = _permuted(emit, y, [order.index(i) for i in range(rank(x))])
    return emit.reshape(y, list(val(filtered.y).shape)), f"{best} {note}"  # type: ignore[return-value]  # of a node


@dataclass(frozen=True)
class _Kernel:
    """The kernel of a convolution: for each axis whether it goes round, and the zeros before and behind.

    Attributes:
        weight: [channels or 1, *taps], for a cross-correlation.
    """

    circular: list[bool]
    before: list[int]
    behind: list[int]
    weight: Tensor

    @property
    def taps(self) -> list[int]:
        """Numbers that are read along each axis."""
        return list(self.weight.shape[1:])


def _kernel(filtered: Filter) -> _Kernel:
    weight, circular, before, behind = filtered.response, [], [], []
    for k, (n, made) in enumerate(zip(filtered.given, filtered.made, strict=True)):
        first, last = filtered.lags(k)
        circular.append(filtered.is_circular(k))
        before.append(last)
        behind.append(0 if circular[-1] else made - n - first)
        weight = weight.narrow(k + 1, first + n - 1, last - first + 1).flip(k + 1)
    return _Kernel(circular, before, behind, weight)


def _prices(filtered: Filter, kernel: _Kernel, costs: Costs) -> tuple[dict[str, Price], int]:
    """Return what each form costs, and in how many phases at once."""
    x = val(filtered.x)
    shape, itemsize = example_sizes(x.shape), x.dtype.itemsize

    def passes(operators: int, numbers: int) -> Price:
        return Price(0, operators * (costs.launch_us + 2 * numbers * itemsize / costs.stream_gb_s / 1e3))

    numbers, n, made = prod(shape), prod(filtered.given), prod(filtered.made)
    signals = numbers // n
    between = prod(example_sizes(val(filtered.transforms[-1].args[0]).shape))
    moved = Price() if filtered.axes[0] == len(shape) - len(filtered.axes) else passes(2, numbers)
    there_and_back = sum((_transform_price(node, costs, itemsize) for node in filtered.transforms), Price())
    prices = {"transforms": there_and_back + passes(6, between) + Price(4 * between)}
    rows, times = (1, signals) if filtered.channel else (signals, 1)
    one = fourier.matmul_price(rows, n, made, 1, (1, 1), costs, itemsize)
    prices["matrix"] = Price(times * one.macs, costs.launch_us + times * (one.us - costs.launch_us)) + moved
    macs = signals * made * prod(kernel.taps)
    padded = passes(2 * sum(kernel.circular) + (not all(kernel.circular)), 2 * numbers) + moved
    prices["convolution"] = Price(macs, costs.launch_us + macs / costs.depthwise_gmac_s / 1e3) + padded
    by_phase = {q: _phases_price(filtered, kernel, q, signals, costs, itemsize) for q in _divisors(filtered.made[-1])}
    phase = min(by_phase, key=lambda q: by_phase[q].us)
    prices["phases"] = by_phase[phase] + passes(2, signals * made) + padded
    return prices, phase


def _transform_price(node: Node, costs: Costs, itemsize: int) -> Price:
    operand = node.args[0]
    real_out = not is_complex(node) or all(user.target is aten.real.default for user in node.users)
    shape = example_sizes(val(operand).shape)
    return fourier.plan(transform_axes(node), shape, not is_complex(operand), real_out, costs, itemsize).price


def _phases_price(filtered: Filter, kernel: _Kernel, q: int, signals: int, costs: Costs, itemsize: int) -> Price:
    """A matmul [Q, taps] [taps, columns] for each signal, and what lays the columns out."""
    *others, last = kernel.taps
    taps, columns = prod(others) * (last + q - 1), prod(filtered.made) // q
    filled = -(-columns // costs.columns) * costs.columns
    us = costs.launch_us + signals * (costs.matmul_us + q * taps * filled / costs.gmac_s / 1e3)
    us += 2 * signals * taps * columns * itemsize / costs.copy_gb_s / 1e3
    us += len(filtered.response) * q * taps * itemsize / costs.stream_gb_s / 1e3
    return Price(signals * q * taps * columns, us)


def _divisors(length: int) -> list[int]:
    """Numbers of neighbours that a length consists of; one alone is a convolution of its own."""
    return [q for q in range(2, length + 1) if length % q == 0] or [1]


def _permuted(emit: Arithmetic, x: Node, order: list[int]) -> Node:
    return x if order == sorted(order) else emit(aten.permute.default, x, order)


def _matrix(emit: Arithmetic, x: Node, filtered: Filter) -> Node:
    """A matrix [C, N, N'] on x [..., C, *given]; [..., *given] without channels."""
    flat = torch.zeros(1, 1, dtype=torch.long)
    for n, made in zip(filtered.given, filtered.made, strict=True):
        lag = torch.arange(made)[None] - torch.arange(n)[:, None] + n - 1  # [from, to]
        flat = flat[:, None, :, None] * (n + made - 1) + lag[None, :, None, :]
        flat = flat.reshape(flat.shape[0] * n, -1)
    matrix = filtered.response.flatten(1)[:, flat].to(val(x).dtype)
    before = list(val(x).shape[: rank(x) - len(filtered.given)])
    m = emit.constant("filter_matrix", matrix if filtered.channel else matrix[0])
    if not filtered.channel:
        rows = emit.reshape(x, [*before, prod(filtered.given)])
    elif len(filtered.given) == 1:  # a reshape would say nothing else, and be taken for a map that is flattened
        rows = emit(aten.unsqueeze.default, x, -2)
        return emit(aten.squeeze.dim, emit(aten.matmul.default, rows, m), -2)
    else:
        rows = emit.reshape(x, [*before, 1, prod(filtered.given)])
    return emit.reshape(emit(aten.matmul.default, rows, m), [*before, *filtered.made])  # type: ignore[return-value]


def _convolution(emit: Arithmetic, x: Node, filtered: Filter, kernel: _Kernel, phase: int) -> Node:
    """Padding and a convolution of each channel with its kernel, `phase` results at once; arguments as `_matrix`."""
    count, *taps = kernel.weight.shape
    axes = len(taps)
    before = list(val(x).shape[: rank(x) - axes])
    y, own = _padded(emit, _maps(emit, x, before, count, filtered), kernel)
    weight = kernel.weight.to(val(x).dtype).unsqueeze(1)  # [C, 1, *taps]
    if phase > 1:
        weight = torch.stack([torch.nn.functional.pad(weight, (q, phase - 1 - q)) for q in range(phase)], 1).flatten(
            0, 1
        )
    kernel_node = emit.constant("filter_kernel", weight)
    target = aten.conv1d.default if axes == 1 else aten.conv2d.default
    y = emit(target, y, kernel_node, None, [1] * (axes - 1) + [phase], own, [1] * axes, count)
    if phase > 1:
        *others, length = filtered.made
        y = emit.reshape(y, [val(y).shape[0], count, phase, *others, length // phase])  # type: ignore[assignment]
        y = emit(aten.permute.default, y, [0, 1, *range(3, 3 + axes), 2])
    return emit.reshape(y, [*before, *filtered.made])  # type: ignore[return-value]


def _maps(emit: Arithmetic, x: Node, before: list[Any], count: int, filtered: Filter) -> Node:
    """The signals as a batch of maps [B, C, *given]."""
    if not filtered.channel:
        return emit.reshape(x, [_product(before), 1, *filtered.given])  # type: ignore[return-value]
    if len(before) == 2:
        return x
    return emit.reshape(x, [_product(before[:-1]), count, *filtered.given])  # type: ignore[return-value]


def _product(sizes: list[Any]) -> Any:
    result = 1
    for n in sizes:
        result = result * n
    return result


def _padded(emit: Arithmetic, x: Node, kernel: _Kernel) -> tuple[Node, list[int]]:
    """Maps with what is around them, and what a convolution is to add itself."""
    widths: list[int] = []
    for axis, (is_circular, before, behind) in enumerate(
        zip(kernel.circular, kernel.before, kernel.behind, strict=True), 2
    ):
        if is_circular and before:
            x = emit(aten.cat.default, [emit(aten.slice.Tensor, x, axis, 1, before + 1), x], axis)
        widths = [0, 0, *widths] if is_circular else [before, behind, *widths]
    halves = [widths[i] for i in range(0, len(widths), 2)][::-1]
    if all(widths[i] == widths[i + 1] for i in range(0, len(widths), 2)):
        return x, halves
    return emit(aten.constant_pad_nd.default, x, widths, 0.0), [0] * len(halves)
