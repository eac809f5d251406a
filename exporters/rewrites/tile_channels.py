"""The widest maps in tiles of channels, where that leaves less memory in use at once.

    f(conv(x; W, b))  ->  [ f1(conv(x; W1, b1)) | f2(conv(x; W2, b2)) | ... ]          f: every channel for itself

Between an expansion and the layer that mixes channels again stand a network's widest maps: activations, depthwise
convolutions, pools. A runtime that runs operator by operator holds the whole of two of them; in tiles it holds x, what
is done, and two tiles. It pays with more launches and one concatenation, so a chain has to end smaller than it begins.

What is in use at once is the memory that an inference walks through, and where something else ran before, none of it is
in the caches: bytes saved are fetched at `Costs.fetch_gb_s`, which `bench/tiles.py` measures on ONNX Runtime's CPU.
Letters: C channels, T tiles.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from operator import getitem
from typing import Any

from torch import Tensor
from torch.fx import GraphModule, Node

from edgesmith.exporters.graph import (
    CONVOLUTIONS,
    Emitter,
    arguments,
    aten,
    constant,
    rank,
    site,
    stand_for,
    val,
)
from edgesmith.exporters.rewrite import Rejection, RewriteReport
from edgesmith.exporters.targets import Costs

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
POOLS = frozenset({aten.max_pool2d.default, aten.avg_pool2d.default})

SMALLEST = 2
"""Of a tile, in vectors of `Costs.columns` channels: convolutions with fewer rows are slower."""


@dataclass(frozen=True)
class Chain:
    """A dense convolution and what follows it channel by channel, to the first of its smallest values."""

    nodes: tuple[Node, ...]
    x: int
    sizes: tuple[int, ...]
    outside: int
    keeps_x: bool

    def peak(self, tiles: int) -> int:
        """Most bytes in use at once, in so many tiles; one tile is the chain as it is."""
        kept = self.x if self.keeps_x else 0
        peak = 0 if tiles == 1 else self.outside + kept + 2 * self.sizes[-1]  # the concatenation
        for tile in range(tiles):
            done = self.sizes[-1] * tile // tiles
            for i, size in enumerate(self.sizes):
                reads = 0 if i == 0 else self.sizes[i - 1] // tiles
                holds_x = self.x if i == 0 or tile < tiles - 1 else kept
                peak = max(peak, self.outside + done + holds_x + reads + size // tiles)
        return peak


class TileChannels:
    """Tile the chain at which the program's memory peaks, until that is not worth it: then it is a near miss."""

    name = "tile_channels"

    def apply(self, module: GraphModule, costs: Costs) -> RewriteReport:
        """Tile in place."""
        applied: list[tuple[str, str]] = []
        rejected: list[Rejection] = []
        while math.isfinite(costs.fetch_gb_s) and not rejected:
            in_use = memory(module)
            at = max(in_use, key=in_use.__getitem__, default=None)
            chain = None if at is None else _chain_at(module, at, in_use)
            if chain is None:
                break
            width = int(val(chain.nodes[0]).shape[1])
            whole = max(in_use.values())
            elsewhere = max((n for node, n in in_use.items() if node not in chain.nodes), default=0)
            gains = {}
            for tiles in range(2, width // (SMALLEST * costs.columns) + 1):
                if width % (tiles * costs.columns):
                    continue
                saved = (whole - max(chain.peak(tiles), elsewhere)) / (costs.fetch_gb_s * 1e3)
                launches = (tiles - 1) * len(chain.nodes) + 1
                gains[tiles] = saved, launches * costs.launch_us + 2 * chain.sizes[-1] / (costs.copy_gb_s * 1e3)
            where = site(*chain.nodes)
            if not gains:
                break
            best = max(gains, key=lambda tiles: gains[tiles][0] - gains[tiles][1])
            saved, paid = gains[best]
            peaks = f"{whole / 1e6:.3g} MB in use, {max(chain.peak(best), elsewhere) / 1e6:.3g} MB in {best} tiles"
            figures = f"{peaks}: saves {saved:.0f} us, costs {paid:.0f} us"
            if saved > paid:
                _tile(module, chain, best)
                applied.append((where, figures))
            else:
                rejected.append(Rejection(where, figures))
        return RewriteReport(self.name, tuple(applied), tuple(rejected))


def memory(module: GraphModule) -> dict[Node, int]:
    """Bytes of activations in use while each operator runs: what it reads, what it makes, what others still need."""
    order = list(module.graph.nodes)
    last = {_base(read): node for node in order for read in node.all_input_nodes}
    held, in_use = 0, {}
    for node in order:
        held += _bytes(node)
        if node.op == "call_function":
            in_use[node] = held
        held -= sum(_bytes(read) for read in {_base(n) for n in node.all_input_nodes} if last[read] is node)
    return in_use


def _base(node: Node) -> Node:
    """The node that owns a node's memory: an item of a tuple is the tuple's."""
    while node.target is getitem:
        node = node.args[0]  # type: ignore[assignment]  # a node, as in every captured graph
    return node


def _bytes(node: Node) -> int:
    if node.op not in ("call_function", "placeholder") or node.target is getitem:
        return 0
    value: Any = node.meta["val"]
    tensors: Sequence[Tensor] = value if isinstance(value, list | tuple) else [value]
    return sum(
        math.prod(int(getattr(getattr(n, "node", None), "hint", n)) for n in t.shape) * t.element_size()
        for t in tensors
        if isinstance(t, Tensor)
    )


def _chain_at(module: GraphModule, at: Node, in_use: dict[Node, int]) -> Chain | None:
    """The chain that a node belongs to, where it has one that ends smaller than it begins."""
    start = at
    while _is_each_channels_own(module, start):
        start = start.args[0]  # type: ignore[assignment]  # what such an operator reads
    if not _is_expansion(module, start):
        return None
    nodes = [start]
    while len(nodes[-1].users) == 1:
        (reader,) = nodes[-1].users
        if not _is_each_channels_own(module, reader):
            break
        nodes.append(reader)
    sizes = [_bytes(node) for node in nodes]
    end = sizes.index(min(sizes))
    if end == 0 or at not in nodes[: end + 1]:
        return None
    x = start.args[0]
    assert isinstance(x, Node)
    order = {node: i for i, node in enumerate(module.graph.nodes)}
    keeps_x = max(order[user] for user in x.users) > order[nodes[end]]
    outside = in_use[start] - _bytes(_base(x)) - sizes[0]
    return Chain(tuple(nodes[: end + 1]), _bytes(_base(x)), tuple(sizes[: end + 1]), outside, keeps_x)


def _is_expansion(module: GraphModule, node: Node) -> bool:
    """A dense convolution of a batch, with constant weights."""
    return node.target in CONVOLUTIONS and _has_weights(module, node) and arguments(node)[6] == 1


def _has_weights(module: GraphModule, conv: Node) -> bool:
    weight, bias = constant(module, conv.args[1]), arguments(conv)[2]
    is_constant = weight is not None and (bias is None or constant(module, bias) is not None)
    return is_constant and rank(conv) == rank(conv.args[1])


def _is_each_channels_own(module: GraphModule, node: Node) -> bool:
    if node.target in CONVOLUTIONS:
        if not _has_weights(module, node):
            return False
        rows, columns = val(node.args[1]).shape[:2]
        return columns == 1 and rows == arguments(node)[6] > 1
    return node.target in ACTIVATIONS or (node.target in POOLS and rank(node) == 4)


def _tile(module: GraphModule, chain: Chain, tiles: int) -> None:
    end = chain.nodes[-1]
    emit = Emitter(module, before=end)
    rows = int(val(chain.nodes[0]).shape[1]) // tiles
    parts = []
    for tile in range(tiles):
        value = chain.nodes[0].args[0]
        for node in chain.nodes:
            emit.source = node
            args = (value, *node.args[1:])
            if node.target in CONVOLUTIONS:
                _, w, b, *settings, groups = arguments(node)
                own = slice(tile * rows, (tile + 1) * rows)
                args = (value, *(_rows(emit, held, own) for held in (w, b)), *settings, rows if groups > 1 else 1)
            value = emit(node.target, *args, **node.kwargs)
        parts.append(value)
    joined = emit(aten.cat.default, parts, 1)
    stand_for(joined, end)
    end.replace_all_uses_with(joined)
    for node in reversed(chain.nodes):
        module.graph.erase_node(node)


def _rows(emit: Emitter, held: Node | None, rows: slice) -> Node | None:
    value = constant(emit.module, held)
    return None if value is None or held is None else emit.constant(f"{held.target}_{rows.start}", value[rows])
