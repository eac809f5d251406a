"""The widest maps in tiles of channels, where that leaves less memory in use at once.

    f(conv(x; W, b))  ->  [ f1(conv(x; W1, b1)) | f2(conv(x; W2, b2)) | ... ]          f: every channel for itself

Between an expansion and the layer that mixes channels again stand a network's widest maps: activations, depthwise
convolutions, pools. A runtime that runs operator by operator holds the whole of two of them; in tiles it holds x, what
is done, and two tiles. It pays with more launches and one concatenation, so a chain has to end smaller than it begins.

What is in use at once is the memory that an inference walks through, and where something else ran before, none of it is
in the caches: bytes saved would have been fetched at `Costs.fetch_gb_s`. `bench/experiments/tiles.py` times the tiles
that are chosen so.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from operator import getitem
from typing import Any, NamedTuple

from torch import Tensor
from torch.fx import GraphModule, Node

from edgesmith.exporters.costs import Costs
from edgesmith.exporters.graph.edit import (
    CONVOLUTIONS,
    Emitter,
    arguments,
    aten,
    constant,
    fork,
    numbers,
    rank,
    replace,
    site,
    val,
)
from edgesmith.exporters.graph.linear import Linear, as_layer, channel_axis
from edgesmith.exporters.rewrites.rewrite import Fired, Rejection, searches

ACTIVATIONS = frozenset(
    {
        aten.relu.default,
        aten.relu6.default,
        aten.hardtanh.default,
        aten.silu.default,
        aten.hardswish.default,
        aten.gelu.default,
        aten.sigmoid.default,
        aten.hardsigmoid.default,
        aten.tanh.default,
        aten.leaky_relu.default,
    }
)
IN_PLACE = ACTIVATIONS - {aten.silu.default, aten.gelu.default}
"""What runtimes compute where its input lies, or inside of the convolution before it."""

VIEWS = frozenset(
    {
        aten.flatten.using_ints,
        aten.unflatten.int,
        aten.view.default,
        aten.reshape.default,
        aten.squeeze.dim,
        aten.squeeze.dims,
        aten.unsqueeze.default,
    }
)
POOLS = frozenset({aten.max_pool2d.default, aten.avg_pool2d.default})

SMALLEST = 2
"""Of a tile, in vectors of `Costs.columns` channels: convolutions with fewer rows are slower."""


@searches(rule="the widest maps in tiles of channels, where the target gains by less memory in use", for_sequences=True)
def tile_channels(module: GraphModule, costs: Costs) -> Iterator[Fired | Rejection]:
    """Tile the chain at which the program's memory peaks, until that is not worth it: then it is a near miss.

    Where the program is equally wide in two positions, neither alone lowers the peak, and both stay.
    """
    if not math.isfinite(costs.fetch_gb_s) or not _is_known(module):
        return
    while chain := _widest(module):
        whole = max(memory(module).values())
        trials = _trials(module, chain, whole, costs)
        if not trials:
            return
        best = max(trials, key=lambda tiles: trials[tiles].saved_us - trials[tiles].paid_us)
        trial, where = trials[best], site(*chain)
        figures = (
            f"{whole / 1e6:.3g} MB in use, {trial.peak / 1e6:.3g} MB in {best} tiles:"
            f" saves {trial.saved_us:.0f} us, costs {trial.paid_us:.0f} us"
        )
        if trial.saved_us <= trial.paid_us:
            yield Rejection(where, figures)
            return
        _tile(module, chain, best)
        yield Fired(where, figures)


class _Trial(NamedTuple):
    """A chain in some number of tiles: bytes in use at once, and what that saves and costs."""

    peak: int
    saved_us: float
    paid_us: float


def _trials(module: GraphModule, chain: Sequence[Node], whole: int, costs: Costs) -> dict[int, _Trial]:
    """By the number of tiles, all that divide the chain's channels into whole vectors."""
    width = int(val(chain[0]).shape[1])
    found = {}
    for tiles in range(2, width // (SMALLEST * costs.columns) + 1):
        if width % (tiles * costs.columns):
            continue
        trial = fork(module)
        _tile(trial, _widest(trial), tiles)
        peak = max(memory(trial).values())
        launches = (tiles - 1) * len(chain) + 1
        paid_us = launches * costs.launch_us + 2 * _bytes(chain[-1]) / (costs.copy_gb_s * 1e3)
        found[tiles] = _Trial(peak, (whole - peak) / (costs.fetch_gb_s * 1e3), paid_us)
    return found


def memory(module: GraphModule) -> dict[Node, int]:
    """Bytes of activations in use while each operator runs: what it reads, what it makes, what others still need.

    Views and items of tuples are their tensor's memory, and so is what an operator of `IN_PLACE` alone reads. A size
    that depends on the data counts as nothing.
    """
    order = list(module.graph.nodes)
    last = {_owner(read): node for node in order for read in node.all_input_nodes}
    held, in_use = 0, {}
    for node in order:
        held += _bytes(node)
        if node.op == "call_function":
            in_use[node] = held
        held -= sum(_bytes(read) for read in {_owner(n) for n in node.all_input_nodes} if last[read] is node)
    return in_use


def _owner(node: Node) -> Node:
    """The node that owns a node's memory."""
    while _borrows(node):
        node = node.args[0]  # type: ignore[assignment]  # a node: what such an operator reads
    return node


def _borrows(node: Node) -> bool:
    """Return whether a value lies in the memory of what it is made of."""
    if node.target in IN_PLACE:
        (read,) = node.all_input_nodes
        return len(read.users) == 1 and read.op == "call_function" and not _borrows(read)
    return node.target is getitem or node.target in VIEWS


def _bytes(node: Node) -> int:
    """Bytes that a node takes for itself."""
    if node.op not in ("call_function", "placeholder") or _borrows(node):
        return 0
    return sum((numbers(tensor.shape) or 0) * tensor.element_size() for tensor in _tensors(node))


def _tensors(node: Node) -> list[Tensor]:
    value: Any = node.meta.get("val")
    return [item for item in (value if isinstance(value, list | tuple) else [value]) if isinstance(item, Tensor)]


def _is_known(module: GraphModule) -> bool:
    """Return whether no size depends on the data."""
    return all(numbers(tensor.shape) is not None for node in module.graph.nodes for tensor in _tensors(node))


def _widest(module: GraphModule) -> list[Node]:
    """The chain at which memory peaks, to the first of its smallest values; empty where it does not end smaller."""
    in_use = memory(module)
    at = max(in_use, key=in_use.__getitem__, default=None)
    while at is not None and _is_each_channels_own(module, at):
        at = at.args[0]  # type: ignore[assignment]  # what such an operator reads
    if at is None or not _is_expansion(module, at):
        return []
    chain = [at]
    while len(chain[-1].users) == 1:
        (reader,) = chain[-1].users
        if not _is_each_channels_own(module, reader):
            break
        chain.append(reader)
    sizes = [sum((numbers(tensor.shape) or 0) for tensor in _tensors(node)) for node in chain]
    return chain[: sizes.index(min(sizes)) + 1] if min(sizes) < sizes[0] else []


def _is_expansion(module: GraphModule, node: Node) -> bool:
    """A dense convolution of a batch, with constant weights."""
    layer = _convolution(module, node)
    return layer is not None and layer.groups == 1


def _convolution(module: GraphModule, node: Node) -> Linear | None:
    """A convolution of a batch, with constant weights."""
    return as_layer(module, node) if node.target in CONVOLUTIONS and channel_axis(node) is not None else None


def _is_each_channels_own(module: GraphModule, node: Node) -> bool:
    layer = _convolution(module, node)
    if layer is not None:
        rows, columns = layer.own_weight.shape[:2]
        return columns == 1 and rows == layer.groups > 1
    return node.target in ACTIVATIONS or (node.target in POOLS and rank(node) == 4)


def _tile(module: GraphModule, chain: Sequence[Node], tiles: int) -> None:
    """Put a chain's tiles and their concatenation where it begins, so that what it reads is needed no longer."""
    start, end = chain[0], chain[-1]
    emit = Emitter(module, before=start)
    width = int(val(start).shape[1]) // tiles
    parts = []
    for tile in range(tiles):
        value = start.args[0]
        for node in chain:
            emit.source = node
            args = (value, *node.args[1:])
            if node.target in CONVOLUTIONS:
                _, w, b, *settings, groups = arguments(node)
                own = slice(tile * width, (tile + 1) * width)
                args = (value, *(_rows(emit, held, own) for held in (w, b)), *settings, width if groups > 1 else 1)
            value = emit(node.target, *args, **node.kwargs)
        parts.append(value)
    joined = emit(aten.cat.default, parts, 1)
    replace(end, joined)
    for node in reversed(chain):
        module.graph.erase_node(node)


def _rows(emit: Emitter, held: Node | None, rows: slice) -> Node | None:
    value = constant(emit.module, held)
    return None if value is None or held is None else emit.constant(f"{held.target}_{rows.start}", value[rows])
