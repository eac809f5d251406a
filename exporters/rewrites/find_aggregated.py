"""Aggregated attention in any spelling becomes edgesmith.aggregated_attention: its numbers say what it is.

    softmax([q~ . unfold(k^) | q~ . k^_p] + b), and what it weighs  ->  aggregated_attention(q, kv, pooled, ...)

The authors write it with `F.unfold` and matrices of one row, others with shifted slices, on tokens or on maps. Between
the layers that make q, kv and the pooled kv and the layer that reads the result there are no weights but the op's own,
so whatever lies there is a function of three maps. It is run, in float64, on maps that show each of the op's constants
by itself, and then on random ones: it is the op where the numbers are the same.

    all keys 0                       the logits are b
    unit keys in the pooled cells    with q = 0 and with unit queries: A E and A (1 + E)
    values that are 1 on a grid      with q = 0 and with unit queries: c and T, less the softmax
    one key in the map               which column of the logits is which neighbour

Near misses: a neighbour outside of the map that no mask hides, a value that is read elsewhere, other numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import permutations
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from edgesmith.exporters.costs import Costs
from edgesmith.exporters.graph.edit import (
    Emitter,
    arguments,
    aten,
    constant,
    example_sizes,
    operator_name,
    rank,
    replace,
    site,
    val,
)
from edgesmith.exporters.graph.interpret import run_part
from edgesmith.exporters.graph.linear import channel_axis
from edgesmith.exporters.rewrites.rewrite import Reject, declining_at, rewrites
from edgesmith.kernels import aggregated_attention
from edgesmith.kernels.aggregated_attention import MASKED, inside

SAME = 1e-7
"""Largest difference between the same numbers, relative to their peak: constants of the graph may have been rounded."""

HIDDEN = 1e3
"""A bias below minus this hides a neighbour."""

LARGEST = 2**25
"""Logits up to which a site is run: more would take gigabytes."""

CANDIDATES = 16
"""Sizes of the map that are tried."""

TAPS = 9


@rewrites(aten.softmax.int, rule="aggregated attention in another spelling -> edgesmith.aggregated_attention")
def find_aggregated(module: GraphModule, node: Node, costs: Costs) -> str | None:
    """See above."""
    region = _region(module, node)
    if region is None:
        return None
    sites = [
        found
        for sources in permutations(region.sources)
        for size in region.sizes
        if (found := _as_site(module, node, region, sources, size)) is not None
    ]
    declined: Reject | None = None
    with declining_at(site(*region.nodes)):
        for found in sites:
            try:
                return _fuse(module, region, found)
            except Reject as reason:
                declined = declined or reason
        if declined is not None:
            raise declined
    return None


@dataclass(frozen=True)
class _Region:
    """What lies between layers around a softmax.

    Attributes:
        sources: the three layers that it reads.
        nodes: in order.
        last: what the layer behind it reads.
        reader: that layer.
        free: nodes that are sizes, with the numbers that the example has.
    """

    sources: tuple[Node, ...]
    nodes: list[Node]
    last: Node
    reader: Node
    free: Mapping[Node, int]

    @cached_property
    def sizes(self) -> list[tuple[int, int]]:
        """Heights and widths that its maps may have, the likeliest first: what is unfolded, then what is a map."""
        unfolded = [node.all_input_nodes[0] for node in self.nodes if node.target is aten.im2col.default]
        values = [node for node in self.nodes if isinstance(node.meta.get("val"), Tensor)]
        met = [example_sizes(val(node).shape)[-2:] for node in (*unfolded, *self.sources, *values) if rank(node) > 3]
        ordered = sorted(dict.fromkeys((h, w) for h, w in met), key=lambda size: min(size) == 1)
        return ordered[:CANDIDATES]


def _is_layer(node: Node) -> bool:
    return node.op == "call_function" and channel_axis(node) is not None


def _region(module: GraphModule, softmax: Node) -> _Region | None:
    """The region around a softmax; None where it has other than three layers before it and one behind."""
    reached, queue, ends = {softmax}, [softmax], set()
    while queue:
        for user in queue.pop().users:
            if _is_layer(user):
                ends.add((user.args[0], user))
            elif user not in reached:
                reached.add(user)
                queue.append(user)
    if len(ends) != 1:
        return None
    ((last, reader),) = ends
    nodes: set[Node] = set()
    sources: dict[Node, None] = {}
    free: dict[Node, int] = {}
    queue = [last]
    while queue:
        node = queue.pop()
        if node in nodes or node.op == "get_attr":
            continue
        if isinstance(node.meta.get("val"), torch.SymInt):
            free[node] = int(node.meta["val"].node.hint)
        elif _is_layer(node):
            sources[node] = None
        elif node.op != "call_function":
            return None
        else:
            nodes.add(node)
            queue += node.all_input_nodes
    if len(sources) != 3:
        return None
    ordered = [node for node in module.graph.nodes if node in nodes]
    return _Region(tuple(sources), ordered, last, reader, free)


class _Site:
    """A region read as an aggregated attention of three sources, which can be run on maps [B, C, N].

    Attributes:
        heads, head_width, height, width, cells: the op's sizes.
    """

    def __init__(
        self, module: GraphModule, softmax: Node, region: _Region, sources: Sequence[Node], sizes: Sequence[int]
    ) -> None:
        self.softmax, self.region, self.sources = softmax, region, sources
        self.batch, self.heads, self.head_width, self.height, self.width, self.cells = sizes
        self.positions = self.height * self.width
        self.channels = self.heads * self.head_width
        self.module = module
        read = {source for node in region.nodes for source in node.all_input_nodes if source.op == "get_attr"}
        held = {node: constant(module, node) for node in read}
        self._constants = {
            node: value.double() if value.is_floating_point() else value
            for node, value in held.items()
            if value is not None
        }

    def run(self, q: Tensor, kv: Tensor, pooled: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the logits and the weights, [B, h, N, 9 + P], and the output, [B, C, N]."""
        given: dict[Node, Any] = {**self.region.free, **self._constants}
        for source, x in zip(self.sources, (q, kv, pooled), strict=True):
            given[source] = _as_in(source, x)
        values = run_part(self.module, self.region.nodes, given)
        logits = self.softmax.all_input_nodes[0]
        output = values[self.region.last]
        if _axis_read(self.region) != 1:
            output = output.reshape(self.batch, -1, self.channels).transpose(1, 2)
        output = output.reshape(self.batch, self.channels, -1)
        return self._rows(values[logits]), self._rows(values[self.softmax]), output

    def _rows(self, x: Tensor) -> Tensor:
        _, axis, *_ = arguments(self.softmax)
        rows = x.movedim(axis, -1)
        columns = rows.shape[-1]
        if rows.shape[-2] == self.positions:
            return rows.reshape(self.batch, self.heads, self.positions, columns)
        return rows.reshape(self.batch, self.positions, self.heads, columns).transpose(1, 2)

    def zeros(self) -> tuple[Tensor, Tensor, Tensor]:
        """Maps of nothing."""
        kind = torch.float64
        return (
            torch.zeros(self.batch, self.channels, self.positions, dtype=kind),
            torch.zeros(self.batch, 2 * self.channels, self.positions, dtype=kind),
            torch.zeros(self.batch, 2 * self.channels, self.cells, dtype=kind),
        )

    def unit_queries(self, shift: int) -> tuple[Tensor, Tensor]:
        """Queries that are one of the d directions at each position, the same in each head; which one it is, [N]."""
        at = (torch.arange(self.positions) + shift) % self.head_width
        directions = torch.nn.functional.one_hot(at, self.head_width).double().T  # [d, N]
        return directions.repeat(self.heads, 1).expand(self.batch, -1, -1), at


def _as_in(source: Node, x: Tensor) -> Tensor:
    """A map [B, C, N] as a layer makes it."""
    shape = example_sizes(val(source).shape)
    return (x if channel_axis(source) == 1 else x.transpose(1, 2)).reshape(shape)


def _axis_read(region: _Region) -> int:
    """The axis of the output that the layer behind takes as channels."""
    return 1 if channel_axis(region.reader) == 1 else rank(region.last) - 1


def _as_site(
    module: GraphModule, softmax: Node, region: _Region, sources: Sequence[Node], size: tuple[int, int]
) -> _Site | None:
    """A region as a site, for an order of its sources and a size of the map; None where the sizes do not fit."""
    shapes = []
    for source in sources:
        batch, *rest = example_sizes(val(source).shape)
        channels = rest.pop(0) if channel_axis(source) == 1 else rest.pop()
        shapes.append((batch, channels, torch.Size(rest).numel()))
    (batch, channels, positions), (_, twice, around), (_, pooled, cells) = shapes
    _, axis, *_ = arguments(softmax)
    logits = example_sizes(val(softmax).shape)
    columns = logits.pop(axis)
    rows = torch.Size(logits).numel()
    fits = twice == pooled == 2 * channels and around == positions == size[0] * size[1] and columns == TAPS + cells
    if not fits or rows % (batch * positions) or positions not in logits[-2:]:
        return None
    heads = rows // (batch * positions)
    if channels % heads or rows * columns > LARGEST or torch.Size(example_sizes(val(region.last).shape)).numel() != (
        batch * channels * positions
    ):
        return None
    return _Site(module, softmax, region, sources, (batch, heads, channels // heads, *size, cells))


def _fuse(module: GraphModule, region: _Region, found: _Site) -> str:
    """Put the op in a region's place. Raises `Reject` where it computes something else."""
    if any(val(node).dtype != torch.float32 for node in (*found.sources, region.last)):
        raise Reject("it is not of float32 throughout")
    within = {*region.nodes}
    outside = [user for node in region.nodes if node is not region.last for user in node.users if user not in within]
    if outside or len(region.last.users) > 1:
        reader = outside[0] if outside else next(user for user in region.last.users if user is not region.reader)
        raise Reject(f"a value in it is also read by {reader.name} ({operator_name(reader)}), outside the site")
    try:
        constants = _identify(found)
        _compare(found, constants)
    except (RuntimeError, TypeError, IndexError) as error:
        raise Reject("it sets types or sizes itself, and cannot be run on others") from error
    where, emit = site(*region.nodes), Emitter(module, region.last)
    maps = [_as_map(emit, source, found) for source in found.sources[:2]]
    maps.append(_as_cells(emit, found.sources[2]))
    weights = [emit.constant(f"{where}.{name}", value.float()) for name, value in constants.items()]
    y = emit(aggregated_attention.OP.overload, *maps, *weights)
    if _axis_read(region) != 1:
        y = emit(aten.permute.default, y, [0, 2, 3, 1])
    if list(val(y).shape) != list(val(region.last).shape):
        y = emit(aten.reshape.default, y, _sizes(region.last, y))
    replace(region.last, y)
    return f"{len(region.nodes)} operators, in another spelling -> edgesmith.aggregated_attention"


def _sizes(node: Node, free: Node) -> list[Any]:
    """A node's sizes, for a reshape; a free batch stays -1."""
    return [size if isinstance(size, int) else -1 for size in val(node).shape]


def _as_map(emit: Emitter, source: Node, found: _Site) -> Node:
    """A layer's output as [B, C, H, W]."""
    if channel_axis(source) != 1:
        last = rank(source) - 1
        source = emit(aten.permute.default, source, [0, last, *range(1, last)])
    if rank(source) == 4:
        return source
    return emit(aten.unflatten.int, source, 2, [found.height, found.width])


def _as_cells(emit: Emitter, source: Node) -> Node:
    """A layer's output as [B, C, P]."""
    if channel_axis(source) != 1:
        last = rank(source) - 1
        source = emit(aten.permute.default, source, [0, last, *range(1, last)])
    return source if rank(source) == 3 else emit(aten.flatten.using_ints, source, 2)


def _identify(found: _Site) -> dict[str, Tensor]:
    """The constants of the op that a site is, if it is one, in the order of its arguments."""
    bias, _, _ = found.run(*found.zeros())
    bias = bias[0].transpose(1, 2)  # [h, columns, N]
    local, pool = _columns(found)
    seen = torch.from_numpy(inside(found.height, found.width)) > 0
    if bool((bias[:, local] > -HIDDEN)[:, ~seen].any()):
        raise Reject("a neighbour outside of the map is not masked")
    local_bias = torch.where(seen, bias[:, local], -MASKED)
    scale, embedding = _scale(found, pool)
    tokens, token_bias = _tokens(found, local)
    return {
        "scale": scale,
        "embedding": embedding,
        "bias": torch.cat((local_bias, bias[:, pool]), dim=1),
        "tokens": tokens,
        "token_bias": token_bias,
    }


def _columns(found: _Site) -> tuple[list[int], list[int]]:
    """Which columns of the logits are the nine neighbours, row by row, and which the pooled cells."""
    _, kv, pooled = found.zeros()
    queries, _ = found.unit_queries(0)
    pooled[:, : found.channels] = 1
    before, _, _ = found.run(queries, *found.zeros()[1:])
    after, _, _ = found.run(queries, kv, pooled)
    moved = (torch.nan_to_num(after - before).abs() > 0).any(2).any(1)[0]
    pool = moved.nonzero().flatten().tolist()
    local = (~moved).nonzero().flatten().tolist()
    if len(pool) != found.cells:
        raise Reject("its columns are not nine neighbours and the pooled cells")
    if min(found.height, found.width) < 3:
        return local, pool  # row by row; the comparison decides
    row, column = found.height // 2, found.width // 2
    kv[:, : found.channels, row * found.width + column] = 1
    after, _, _ = found.run(queries, kv, found.zeros()[2])
    changed = torch.nan_to_num(after - before).abs().amax((0, 1))  # [N, columns]
    order = []
    for i in (-1, 0, 1):
        for j in (-1, 0, 1):
            position = (row - i) * found.width + column - j
            order.append(max(local, key=lambda one, at=position: float(changed[at, one])))  # type: ignore[misc]  # mypy does not infer lambdas with defaults
    return (order if len(set(order)) == TAPS else local), pool


def _scale(found: _Site, pool: Sequence[int]) -> tuple[Tensor, Tensor]:
    """A [h, 1, N] and E [h, d, 1], from pooled keys that are one direction each."""
    along_keys = []
    for q in (found.zeros()[0], found.unit_queries(0)[0]):
        parts = []
        for start in range(0, found.head_width, found.cells):
            _, kv, pooled = found.zeros()
            keys = pooled[:, : found.channels].view(found.batch, found.heads, found.head_width, found.cells)
            directions = range(start, min(start + found.cells, found.head_width))
            for cell, direction in enumerate(directions):
                keys[:, :, direction, cell] = 1
            logits, _, _ = found.run(q, kv, pooled)
            bare, _, _ = found.run(q, kv, found.zeros()[2])
            parts.append((logits - bare)[0][..., [pool[cell] for cell in range(len(directions))]])
        along_keys.append(torch.cat(parts, dim=-1))  # [h, N, d]
    without, with_unit = along_keys
    at = found.unit_queries(0)[1].expand(found.heads, -1)[..., None]
    scale = (with_unit - without).gather(2, at)  # [h, N, 1]
    if bool((scale.abs() < 1e-12).any()):
        raise Reject("its logits do not depend on a query")
    embedding = (without / scale).mean(1)  # [h, d]
    return scale.transpose(1, 2), embedding[..., None]


def _tokens(found: _Site, local: Sequence[int]) -> tuple[Tensor, Tensor]:
    """T [h, 9, d] and c [h, 9, 1], from values that are 1 on a grid."""
    seen = torch.from_numpy(inside(found.height, found.width)) > 0  # [9, N]
    bare = _learned(found, local, found.zeros()[0])  # [h, 9, N]
    first = seen.to(torch.int8).argmax(1)
    token_bias = bare.gather(2, first.expand(found.heads, -1)[..., None]) * seen.any(1)[:, None]
    tokens = torch.zeros(found.heads, TAPS, found.head_width, dtype=torch.float64)
    known = ~seen.any(1)[:, None].expand(-1, found.head_width).clone()
    for shift in range(found.head_width):
        if bool(known.all()):
            break
        queries, at = found.unit_queries(shift)
        weights = _learned(found, local, queries) - token_bias
        for tap in range(TAPS):
            usable = seen[tap].nonzero().flatten()
            tokens[:, tap, at[usable]] = weights[:, tap, usable]
            known[tap, at[usable]] = True
    return tokens, token_bias


def _learned(found: _Site, local: Sequence[int], q: Tensor) -> Tensor:
    """What is added to the softmax for each neighbour, [h, 9, N]; 0 outside of the map."""
    y, x = (t.flatten() for t in torch.meshgrid(torch.arange(found.height), torch.arange(found.width), indexing="ij"))
    weights = torch.zeros(found.heads, TAPS, found.positions, dtype=torch.float64)
    for start in range(0, TAPS, found.head_width):
        phases = range(start, min(start + found.head_width, TAPS))
        _, kv, pooled = found.zeros()
        values = kv[:, found.channels :].view(found.batch, found.heads, found.head_width, found.positions)
        for direction, phase in enumerate(phases):
            values[:, :, direction] = ((y % 3 == phase // 3) & (x % 3 == phase % 3)).double()
        _, softmax, output = found.run(q, kv, pooled)
        output = output[0].view(found.heads, found.head_width, found.positions)
        for tap in range(TAPS):
            phase_seen = ((y + tap // 3 - 1) % 3) * 3 + (x + tap % 3 - 1) % 3  # the grid that a neighbour lies on
            for direction, phase in enumerate(phases):
                at = phase_seen == phase
                weights[:, tap, at] = output[:, direction, at] - softmax[0][:, at, local[tap]]
    return weights * torch.from_numpy(inside(found.height, found.width))


def _compare(found: _Site, constants: Mapping[str, Tensor]) -> None:
    """Raise `Reject` where a site has other numbers than the op with these constants."""
    generator = torch.Generator().manual_seed(0)
    for magnitude in (1.0, 30.0):
        q, kv, pooled = (magnitude * torch.randn(x.shape, generator=generator).double() for x in found.zeros())
        _, _, output = found.run(q, kv, pooled)
        size = (found.height, found.width)
        expected = aggregated_attention.reference(
            q.unflatten(2, size), kv.unflatten(2, size), pooled, *constants.values()
        ).flatten(2)
        if not bool((output - expected).abs().max() <= SAME * expected.abs().max()):
            raise Reject("it has the sizes of an aggregated attention, and computes other numbers")
