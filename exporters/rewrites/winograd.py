"""Convolutions over time with fewer multiplies, in Winograd's form, where the target's costs say that it is faster.

    conv1d(x; W [C', C, r])  ->  A^T ((G W) (B^T x)),  m outputs from each tile of n = m + r - 1 inputs

    V = B^T x    [B, n, C, T/m]     one convolution of stride m over time, the same for every channel
    U = G W      [n, C', C]         in float64, while compiling
    M = U V      [B, n, C', T/m]    n matmuls instead of m r, each of C' C T/m multiplies
    y = A^T M    [B, C', T]         one matmul for all channels, then tiles in their order

Evaluating both polynomials at n - 1 points and at infinity, multiplying there and interpolating (Toom and Cook) gives
the three matrices. Points are a trade: more of them save more and round worse. With 0, 3/4, -3/4, 3/2, -3/2 a tile of
four with r = 3 rounds twice as coarsely as the convolution itself (5.9e-7 of the deviation against 2.6e-7, C = 256;
the usual 0, 1, -1, 2, -2: 8.5e-7). All entries of A and B are exact in float32. A potential of a spiking model may sit
an ulp from its threshold, so in front of neurons nothing is changed.

The estimate: matmuls at the target's rate, weights and their n / r times larger transforms read once, and tiles moved
at `Costs.tile_gb_s`; `bench/experiments/convolutions.py` holds it against ONNX Runtime.
Source: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016, arXiv 1509.09308, section 4; the
points: Barabasz et al., "Error Analysis and Improving the Accuracy of Winograd Convolution for Deep Neural Networks",
arXiv 1803.10986. Letters: B batch, C C' channels, T time, r kernel, m tile, n points.
"""

from __future__ import annotations

from fractions import Fraction
from functools import cache

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from edgesmith.exporters.costs import Costs
from edgesmith.exporters.graph.edit import (
    Emitter,
    arguments,
    aten,
    constant,
    count_operators,
    example_sizes,
    replace,
    site,
    val,
)
from edgesmith.exporters.rewrites.rewrite import Reject, rewrites
from edgesmith.kernels.op import spikes_in

POINTS = {
    4: (Fraction(0), Fraction(1), Fraction(-1)),
    6: (Fraction(0), Fraction(3, 4), Fraction(-3, 4), Fraction(3, 2), Fraction(-3, 2)),
}
"""Finite points, by how many there are with infinity."""

LAUNCHES = 7
"""Operators of the form: one before and three after its transforms and matmuls, two and one."""


@rewrites(
    aten.conv1d.default,
    rule="convolutions over time with fewer multiplies, where the target says faster",
    for_sequences=True,
)
def winograd(module: GraphModule, node: Node, costs: Costs, points: int | None = None) -> str | None:
    """Choose by the target's costs. What cannot have the form at all is no near miss.

    Only convolutions of one axis, stride 1, without groups and dilation, have it.

    Args:
        points: take tiles of so many inputs wherever there are such, whatever the target's costs say.
    """
    weight = _weight(module, node)
    if weight is None:
        return None
    if costs.tile_gb_s == 0 and points is None:
        raise Reject("the target's convolutions are not to be replaced")
    if spikes_in(count_operators(module)):
        raise Reject("the model has neurons, whose spikes its rounding could flip")
    times = estimate(val(node), weight, costs)
    figures = ", ".join(f"{'direct' if m == 1 else f'tiles of {m}'} {time:.0f} us" for m, time in times.items())
    best = min(times, key=times.__getitem__) if points is None else max(points - weight.shape[2] + 1, 1)
    if best == 1:
        raise Reject(f"estimated {figures}: it stays a convolution")
    _replace(module, node, weight, best)
    return f"estimated {figures} -> tiles of {best}"


def estimate(out: Tensor, weight: Tensor, costs: Costs) -> dict[int, float]:
    """Microseconds of a convolution with an output [B, C', T], by outputs in a tile; 1 is the convolution itself."""
    batch, width, length = example_sizes(out.shape)
    _, channels, kernel = weight.shape

    def at_once(matmuls: int, rows: int) -> float:
        """Return the microseconds of matmuls whose weights are read once, for so many rows of columns."""
        columns = -(-rows // costs.columns) * costs.columns
        return matmuls * width * channels * (batch * columns / costs.gmac_s + 4 / costs.stream_gb_s) * 1e-3

    times = {1: costs.launch_us + at_once(kernel, length)}
    for points in POINTS:
        tile = points - kernel + 1
        if tile < 2 or costs.tile_gb_s == 0:
            continue
        tiles = -(-length // tile)
        moved_kb = 4e-3 * batch * (channels + width) * (length + points * tiles)
        times[tile] = LAUNCHES * costs.launch_us + at_once(points, tiles) + moved_kb / costs.tile_gb_s
    return times


@cache
def matrices(tile: int, kernel: int) -> tuple[Tensor, Tensor, Tensor]:
    """A^T [m, n], G [n, r] and B^T [n, n] in float64, for tiles of m outputs and r weights, n = m + r - 1 points.

    With f_j the finite points: A holds their powers, G those divided by N_j = prod_{k != j} (f_j - f_k), and row j of
    B^T the coefficients of prod_{k != j} (z - f_k); the last rows are the leading coefficients, at infinity.
    """
    points = tile + kernel - 1
    finite = POINTS[points]
    others = [[f for f in finite if f != point] for point in finite]
    infinity = [[Fraction(int(i == size - 1)) for i in range(size)] for size in (tile, kernel)]
    a = [[point**i for i in range(tile)] for point in finite] + [infinity[0]]
    g = [
        [point**i / _at(_polynomial(rest), point) for i in range(kernel)]
        for point, rest in zip(finite, others, strict=True)
    ] + [infinity[1]]
    b = [[*_polynomial(rest), Fraction(0)] for rest in others] + [_polynomial(list(finite))]
    return _as_tensor(a).T, _as_tensor(g), _as_tensor(b)


def _as_tensor(rows: list[list[Fraction]]) -> Tensor:
    """A matrix in float64."""
    return torch.tensor([[float(x) for x in row] for row in rows], dtype=torch.float64)


def _polynomial(roots: list[Fraction]) -> list[Fraction]:
    """Coefficients of prod (z - root), the constant first."""
    coefficients = [Fraction(1)]
    for root in roots:
        shifted = [Fraction(0), *coefficients]
        scaled = [root * c for c in coefficients] + [Fraction(0)]
        coefficients = [high - low for high, low in zip(shifted, scaled, strict=True)]
    return coefficients


def _at(polynomial: list[Fraction], point: Fraction) -> Fraction:
    """A polynomial's value."""
    return sum((c * point**i for i, c in enumerate(polynomial)), Fraction(0))


def _weight(module: GraphModule, node: Node) -> Tensor | None:
    """The weight of a convolution that has the form in some size, or None."""
    if node.target is not aten.conv1d.default:
        return None
    _, w, _, stride, padding, dilation, groups = arguments(node)
    weight = constant(module, w)
    if weight is None or weight.dtype != torch.float32 or isinstance(padding, str):
        return None
    is_plain = list(stride) == [1] and list(dilation) == [1] and groups == 1
    return weight if is_plain and 2 <= weight.shape[2] < max(POINTS) else None


def _replace(module: GraphModule, node: Node, weight: Tensor, tile: int) -> None:
    x, _, bias, _, (padding,), _, _ = arguments(node)
    a, g, b = matrices(tile, weight.shape[2])
    points, length = len(g), int(val(node).shape[2])
    extra = -length % tile  # outputs that the last tile has too many
    emit, where = Emitter(module, before=node), site(node)
    if extra:
        x, padding = emit(aten.constant_pad_nd.default, x, [padding, padding + extra]), 0
    tiles = emit.constant(f"{where}.tiles", b.float().reshape(points, 1, 1, points))
    transformed = emit.constant(f"{where}.transformed", torch.einsum("nr,oir->noi", g, weight.double()).float())
    joined = emit.constant(f"{where}.joined", a.float())
    v = emit(aten.conv2d.default, emit(aten.unsqueeze.default, x, 1), tiles, None, [1, tile], [0, padding])
    multiplied = emit(aten.matmul.default, transformed, v)  # [B, n, C', tiles]
    y = emit(aten.matmul.default, joined, emit(aten.flatten.using_ints, multiplied, 2))  # [B, m, C' tiles]
    y = emit(aten.reshape.default, emit(aten.transpose.int, y, 1, 2), [-1, weight.shape[0], length + extra])
    if extra:
        y = emit(aten.slice.Tensor, y, 2, 0, length)
    if bias is not None:
        y = emit(aten.add.Tensor, y, emit(aten.unsqueeze.default, bias, 1))
    replace(node, y)
