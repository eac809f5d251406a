"""Frequency filters with constant coefficients, found between their transforms and described by their impulse response.

    y = f(x),  f linear, between a transform of the real signal x and a real result
    y[i] = sum_j h[i - j] x[j]                        along the transformed axes, for each channel by itself

There are many ways to write one: real or complex transforms, a product on complex numbers or on halves, zeros around
the signal, a slice of the result, a direct path beside it. So whatever lies between the ends is taken, if each operator
is linear, and asked for its response to impulses, in float64. The filter is found if those explain what it does to
random numbers. Padded to twice its length a signal has a causal filter; unpadded, a circular one: h[i] = h[i - n].
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from edgesmith.exporters.graph.edit import arguments, aten, constant, example_sizes, operator_name, rank, site, val
from edgesmith.exporters.graph.interpret import run_part
from edgesmith.exporters.rewrites.dft import is_transform, transform_axes
from edgesmith.exporters.rewrites.drop_copies import is_copy
from edgesmith.exporters.rewrites.rewrite import Reject, declining_at

SAME = 1e-6
"""Largest difference between numbers that are the same but for rounding, relative to their peak."""

BESIDE = 8
"""Operators that a direct path beside a filter may have."""


@dataclass(frozen=True)
class Filter:
    """A constant filter.

    Attributes:
        x, y: the signal and the result.
        transforms: between them, in order.
        axes: that are transformed, in order; `given` and `made` are the signal's and the result's lengths there.
        channel: the axis along which the filter differs, beside the transformed ones; at most one.
        response: h, [channels or 1, *(given + made - 1)], float64; along an axis the lags from 1 - given to made - 1.
    """

    x: Node
    y: Node
    transforms: list[Node]
    axes: list[int]
    given: list[int]
    made: list[int]
    channel: list[int]
    response: Tensor

    def is_circular(self, k: int) -> bool:
        """Return whether the filter goes round along the k-th of its axes."""
        n = self.given[k]
        if n != self.made[k] or n == 1:
            return False
        ahead, behind = (self.response.narrow(k + 1, start, n - 1) for start in (0, n))
        return _close(ahead, behind, self.response)

    def lags(self, k: int) -> tuple[int, int]:
        """The first and the last lag along the k-th axis that count, one of them 0 at least."""
        n, made = self.given[k], self.made[k]
        if self.is_circular(k):
            return 0, n - 1
        sizes = self.response.abs().movedim(k + 1, 0).flatten(1)
        ahead = sizes[: n - 1]
        noise = SAME * float(sizes.max())
        first = n - 1 if not len(ahead) or float(ahead.max()) <= noise else int((ahead.amax(1) > noise).nonzero()[0])
        tails = sizes.flip(0).cumsum(0) <= SAME * sizes.sum(0)  # what is left out changes no result by more
        last = n + made - 2 - int(tails.all(1).sum())
        return min(first - n + 1, made - n, 0), max(last - n + 1, 0)


def find_filter(module: GraphModule, end: Node) -> Filter | None:
    """The filter whose result leaves its spectrum at a node, with what follows at once; None where there is none.

    Raises:
        Reject: it has both transforms and a constant between them, and is no filter, or has another reader.
    """
    if not _leaves_the_spectrum(end):
        return None
    core = _region(module, end)
    if core is None or not _is_there_and_back(core):
        return None
    forth, where = core.transforms[0], site(core.transforms[0], end)
    with declining_at(where):
        _refuse_other_lengths(core)
        _refuse_other_readers(core)
        whole = _widened(core)
        while (longer := _extended(module, whole)) is not None:
            whole = longer
        found = _described(module, whole)
        if found is None and whole is not core:
            found = _described(module, core)
    if found is None:
        raise Reject(f"between {forth.name} and {end.name} it does not commute with shifts of the signal", where)
    return found


@dataclass(frozen=True)
class _Region:
    """The operators between a signal and a result, in order, and the sizes of free axes that they read."""

    x: Node
    nodes: list[Node]
    sizes: list[Node]

    @property
    def y(self) -> Node:
        """The result."""
        return self.nodes[-1]

    @property
    def transforms(self) -> list[Node]:
        """The operators that transform."""
        return [node for node in self.nodes if is_transform(node)]

    def run(self, module: GraphModule, x: Tensor) -> Tensor:
        """Return the result for a signal in float64; constants are widened."""
        given: dict[Node, Any] = {node: int(node.meta["val"].node.hint) for node in self.sizes}
        for source in {source for node in self.nodes for source in node.all_input_nodes}:
            value = constant(module, source)
            if value is not None and (value.is_floating_point() or value.is_complex()):
                given[source] = value.to(torch.promote_types(value.dtype, torch.float64))
        result: Tensor = run_part(module, self.nodes, {**given, self.x: x})[self.y]
        return result


def _leaves_the_spectrum(node: Node) -> bool:
    """Return whether a node is real, and read off complex values."""
    name = operator_name(node)
    if is_transform(node):
        return "irfft" in name or "_hfft" in name
    if name in ("aten.real", "aten.imag"):
        return True
    return name == "aten.select" and operator_name(node.args[0]) == "aten.view_as_real"  # type: ignore[arg-type]  # a node


def _region(module: GraphModule, end: Node, x: Node | None = None, most: int | None = None) -> _Region | None:
    """The linear operators from a signal to a node; None where one is not linear, or reads something else.

    Args:
        x: the signal; default: what transforms read.
        most: how many operators there may be.
    """
    inside: set[Node] = set()
    starts: set[Node] = set()
    sizes: list[Node] = []
    queue = [end]
    while queue:
        node = queue.pop()
        if node in inside or node in starts or node in sizes or node.op == "get_attr":
            continue
        if node is x:
            starts.add(node)
        elif isinstance(node.meta.get("val"), torch.SymInt):
            sizes.append(node)
        elif node.op != "call_function" or (operator_name(node) not in _LINEAR and not is_transform(node)):
            return None
        else:
            inside.add(node)
            if most is not None and len(inside) > most:
                return None
            operand = node.args[0] if is_transform(node) and x is None else None
            if isinstance(operand, Node) and operand.op != "get_attr" and val(operand).is_floating_point():
                starts.add(operand)
            else:
                queue += node.all_input_nodes
    if len(starts) != 1 or not _are_linear(inside, (start := starts.pop())):
        return None
    return _Region(start, sorted(inside), sizes)


def _are_linear(inside: set[Node], x: Node) -> bool:
    """Return whether no product has two factors that depend on the signal."""
    depends = {x}
    for node in sorted(inside):
        read = [source for source in node.all_input_nodes if source in depends]
        if not read:
            return False  # computed from constants alone, and not folded: random, or too large
        depends.add(node)
        name = operator_name(node)
        if name in _PRODUCTS and len([leaf for leaf in _leaves(node) if leaf in depends]) > 1:
            return False
        if name == "aten.div" and (arguments(node)[1] in depends or node.kwargs.get("rounding_mode")):
            return False
    return True


def _leaves(node: Node) -> list[Node]:
    found: list[Node] = []
    torch.fx.map_arg(arguments(node), lambda n: found.append(n))
    return found


def _is_there_and_back(region: _Region) -> bool:
    """Return whether there are a transform and an inverse one, and a constant between them."""
    names = [operator_name(node).removeprefix("aten.fft_") for node in region.transforms]
    back = [name.startswith("i") != name.startswith(("ihfft", "hfft")) for name in names]
    reads = any(source.op == "get_attr" for node in region.nodes for source in node.all_input_nodes)
    return any(back) and not all(back) and reads


def _refuse_other_lengths(region: _Region) -> None:
    """Raise `Reject` where the transforms there and back differ in axes or lengths."""
    forms: dict[bool, set[tuple[int, int]]] = {True: set(), False: set()}
    ranks = {rank(node) for node in region.transforms}
    for node in region.transforms:
        for axis in transform_axes(node):
            from_the_end = axis.position - rank(node) if len(ranks) > 1 else axis.position
            forms[axis.sign > 0].add((from_the_end, axis.length))
    if forms[True] != forms[False]:
        raise Reject("the two transforms differ in axes or lengths")


def _refuse_other_readers(region: _Region) -> None:
    inside = {*region.nodes}
    for node in region.nodes[:-1]:
        if any(user not in inside for user in node.users):
            raise Reject("the spectrum is read by something else too")


def _widened(region: _Region) -> _Region:
    """The region with zeros that are put around the signal first."""
    pad = region.x
    if pad.target not in (aten.constant_pad_nd.default, aten.pad.default) or not isinstance(pad.args[0], Node):
        return region
    if arguments(pad)[2] not in (0, "constant") or arguments(pad)[-1]:  # the value, or the mode and then the value
        return region
    if any(user not in region.nodes for user in pad.users):
        return region
    return _Region(pad.args[0], [pad, *region.nodes], region.sizes)


def _extended(module: GraphModule, region: _Region) -> _Region | None:
    """The region with what follows at once: a slice of the result, or a direct path that is added; None for else."""
    y = region.y
    if len(y.users) != 1:
        return None
    (user,) = y.users
    if not isinstance(user.meta.get("val"), Tensor):
        return None
    is_slice = (user.target is aten.slice.Tensor and arguments(user)[4] == 1) or user.target is aten.narrow.default
    is_sum = user.target in (aten.add.Tensor, aten.sub.Tensor)
    if not (is_slice or is_sum or is_copy(user)):
        return None
    longer = _region(module, user, region.x, len(region.nodes) + BESIDE)
    if longer is None or not {*region.nodes} <= {*longer.nodes} or len(longer.transforms) > len(region.transforms):
        return None
    inside = {*longer.nodes}
    is_closed = all(reader in inside for node in longer.nodes[:-1] for reader in node.users)
    return longer if is_closed else None


def _described(module: GraphModule, region: _Region) -> Filter | None:
    """A region as a filter; None where it is none. Raises `Reject` where it is one of another kind."""
    x, y = region.x, region.y
    if not val(x).is_floating_point() or not val(y).is_floating_point():
        return None
    shape = example_sizes(val(x).shape)
    axes = _signal_axes(region)
    if not 1 <= len(axes) <= 2:
        raise Reject("only filters of real signals over one or two axes are folded")
    result = _as_laid_out(example_sizes(val(y).shape), shape, axes)
    if result is None:
        raise Reject("the filter makes several signals of one")
    given, made = ([sizes[i] for i in axes] for sizes in (shape, result))
    if not all(isinstance(val(x).shape[i], int) for i in axes):
        return None
    try:
        probe = _Probe(module, region, shape, result, axes)
        response = probe.response()
        if response is None or not probe.explains(response):
            return None
    except (RuntimeError, ValueError, TypeError, IndexError):
        return None  # it sets types itself
    others = [i for i in range(len(shape)) if i not in axes]
    channel = [i for i in others if not _close(response, response.narrow(i, 0, 1), response)]
    if len(channel) > 1:
        raise Reject("the filter differs along more than one axis beside the transformed ones")
    for i in others:
        response = response if i in channel else response.narrow(i, 0, 1)
    response = response.permute([*others, *axes]).reshape(-1, *(response.shape[i] for i in axes))
    return Filter(x, y, region.transforms, axes, given, made, channel, response)


def _signal_axes(region: _Region) -> list[int]:
    """The axes along which the signal is transformed: those of all transforms of the first one's direction."""
    sign = transform_axes(region.transforms[0])[0].sign
    transforms = [node for node in region.transforms if rank(node) == rank(region.x)]
    return sorted({axis.position for node in transforms for axis in transform_axes(node) if axis.sign == sign})


def _as_laid_out(result: list[int], shape: list[int], axes: list[int]) -> list[int] | None:
    """The result's shape with the signal's axes, axes of one dropped or added; None where others differ."""
    while len(result) > len(shape) and 1 in result:
        drop = next((i for i, n in enumerate(result) if n == 1 and (i >= len(shape) or shape[i] != 1)), None)
        if drop is None:
            return None
        result = [*result[:drop], *result[drop + 1 :]]
    if len(result) != len(shape):
        return None
    same = all(a == b for i, (a, b) in enumerate(zip(result, shape, strict=True)) if i not in axes)
    return result if same else None


@dataclass(frozen=True)
class _Probe:
    """A region that is asked by its numbers, on signals of `shape` with results of `result`."""

    module: GraphModule
    region: _Region
    shape: list[int]
    result: list[int]
    axes: list[int]

    def run(self, x: Tensor) -> Tensor:
        """The result for a signal."""
        return self.region.run(self.module, x).double().reshape(self.result)

    def response(self) -> Tensor | None:
        """The responses of all signals, the lags where the signal has its axes; None where it has none."""
        if self.run(torch.zeros(self.shape, dtype=torch.float64)).any():
            return None
        lags = list(self.shape)
        for i in self.axes:
            lags[i] = self.shape[i] + self.result[i] - 1
        response = torch.zeros(lags, dtype=torch.float64)
        for position in itertools.product(*(self._positions(i) for i in self.axes)):
            impulse = torch.zeros(self.shape, dtype=torch.float64)
            inside, to = impulse, response
            for i, at in zip(self.axes, position, strict=True):
                inside = inside.narrow(i, at, 1)
                to = to.narrow(i, self.shape[i] - 1 - at, self.result[i])
            inside.fill_(1)
            to.copy_(self.run(impulse))
        return response

    def _positions(self, axis: int) -> list[int]:
        """Positions of impulses by which every lag is seen."""
        n, made = self.shape[axis], self.result[axis]
        return sorted({min(at, n - 1) for at in range(0, n - 1 + made, max(made, 1))})

    def explains(self, response: Tensor) -> bool:
        """Return whether a random signal is filtered as the response says."""
        x = torch.randn(self.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        sizes = [self.shape[i] + response.shape[i] for i in self.axes]
        product = torch.fft.rfftn(x, sizes, self.axes) * torch.fft.rfftn(response, sizes, self.axes)
        expected = torch.fft.irfftn(product, sizes, self.axes)
        for i in self.axes:
            expected = expected.narrow(i, self.shape[i] - 1, self.result[i])
        return _close(self.run(x), expected, expected)


def _close(a: Tensor, b: Tensor, peak: Tensor) -> bool:
    return a.numel() == 0 or float((a - b).abs().max()) <= SAME * float(peak.abs().max())


_PRODUCTS = frozenset(f"aten.{name}" for name in ("mul", "matmul", "mm", "bmm", "einsum", "linear", "complex_mul"))

_LINEAR = _PRODUCTS | frozenset(
    [f"aten.{name}" for name in ("add", "sub", "rsub", "neg", "div", "sum", "mean", "cat", "stack", "complex", "flip")]
    + [f"aten.{name}" for name in ("real", "imag", "view_as_real", "view_as_complex", "conj", "_conj", "resolve_conj")]
    + [f"aten.{name}" for name in ("view", "_unsafe_view", "reshape", "permute", "transpose", "unsqueeze", "squeeze")]
    + [f"aten.{name}" for name in ("expand", "expand_as", "select", "slice", "narrow", "flatten", "unflatten", "t")]
    + [f"aten.{name}" for name in ("unbind", "split", "split_with_sizes", "chunk", "movedim", "constant_pad_nd", "pad")]
    + [f"aten.{name}" for name in ("to", "_to_copy", "clone", "contiguous", "alias", "detach", "roll", "swapaxes")]
    + ["getitem", "aten.fft_fftshift", "aten.fft_ifftshift", "aten.resolve_neg", "aten.view_as"]
)
"""Operators that are linear, in one factor where they are products."""
