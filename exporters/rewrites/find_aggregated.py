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
from itertools import permutations

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from edgesmith.exporters.costs import Costs
from edgesmith.exporters.graph.edit import Emitter, arguments, aten, example_sizes, rank, replace, site, val
from edgesmith.exporters.graph.linear import channel_axis
from edgesmith.exporters.rewrites.regions import (
    Region,
    as_made,
    in_place_of,
    is_layer,
    region,
    same,
    with_channels_first,
)
from edgesmith.exporters.rewrites.rewrite import Reject, declining_at, rewrites
from edgesmith.kernels import aggregated_attention
from edgesmith.kernels.aggregated_attention import MASKED, inside

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
    around = _around(module, node)
    if around is None:
        return None
    found, reader = around
    sites = [
        one
        for sources in permutations(range(len(found.sources)))
        for size in _sizes(found)
        if (one := _as_site(node, found, reader, sources, size)) is not None
    ]
    declined: Reject | None = None
    with declining_at(site(*found.nodes)):
        for one in sites:
            try:
                return _fuse(one)
            except Reject as reason:
                declined = declined or reason
        if declined is not None:
            raise declined
    return None


def _around(module: GraphModule, softmax: Node) -> tuple[Region, Node] | None:
    """The region between the layers around a softmax, and the layer behind; None for other than three before it."""
    reached, queue, ends = {softmax}, [softmax], set()
    while queue:
        for user in queue.pop().users:
            if is_layer(user):
                ends.add((user.args[0], user))
            elif user not in reached:
                reached.add(user)
                queue.append(user)
    if len(ends) != 1:
        return None
    ((last, reader),) = ends
    found = region(module, last, is_layer) if isinstance(last, Node) else None
    if found is None or len(found.sources) != 3 or not all(map(is_layer, found.sources)):
        return None
    return found, reader


def _sizes(found: Region) -> list[tuple[int, int]]:
    """Heights and widths that its maps may have, the likeliest first: what is unfolded, then what is a map."""
    unfolded = [node.all_input_nodes[0] for node in found.nodes if node.target is aten.im2col.default]
    values = [node for node in found.nodes if isinstance(node.meta.get("val"), Tensor)]
    met = [example_sizes(val(node).shape)[-2:] for node in (*unfolded, *found.sources, *values) if rank(node) > 3]
    ordered = sorted(dict.fromkeys((h, w) for h, w in met), key=lambda size: min(size) == 1)
    return ordered[:CANDIDATES]


class _Site:
    """A region read as an aggregated attention of three sources, which can be run on maps [B, C, N].

    Attributes:
        heads, head_width, height, width, cells: the op's sizes.
    """

    def __init__(
        self, softmax: Node, found: Region, reader: Node, sources: Sequence[int], sizes: Sequence[int]
    ) -> None:
        self.softmax, self.region, self.reader, self.order = softmax, found, reader, sources
        self.sources = [found.sources[i] for i in sources]
        self.batch, self.heads, self.head_width, self.height, self.width, self.cells = sizes
        self.positions = self.height * self.width
        self.channels = self.heads * self.head_width
        self.channels_last = channel_axis(reader) != 1

    def run(self, q: Tensor, kv: Tensor, pooled: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the logits and the weights, [B, h, N, 9 + P], and the output, [B, C, N]."""
        made = [as_made(source, x) for source, x in zip(self.sources, (q, kv, pooled), strict=True)]
        values = self.region.run(*(made[self.order.index(i)] for i in range(3)))
        output = values[self.region.last]
        if self.channels_last:
            output = output.reshape(self.batch, -1, self.channels).transpose(1, 2)
        output = output.reshape(self.batch, self.channels, -1)
        return self._rows(values[self.softmax.all_input_nodes[0]]), self._rows(values[self.softmax]), output

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


def _as_site(softmax: Node, found: Region, reader: Node, sources: Sequence[int], size: tuple[int, int]) -> _Site | None:
    """A region as a site, for an order of its sources and a size of the map; None where the sizes do not fit."""
    shapes = []
    for source in (found.sources[i] for i in sources):
        batch, *rest = example_sizes(val(source).shape)
        channels = rest.pop(0) if channel_axis(source) == 1 else rest.pop()
        shapes.append((batch, channels, torch.Size(rest).numel()))
    (batch, channels, positions), (_, twice, around), (_, pooled, cells) = shapes
    logits = example_sizes(val(softmax).shape)
    columns = logits.pop(arguments(softmax)[1])
    rows = torch.Size(logits).numel()
    fits = twice == pooled == 2 * channels and around == positions == size[0] * size[1] and columns == TAPS + cells
    if not fits or rows % (batch * positions) or positions not in logits[-2:] or rows * columns > LARGEST:
        return None
    heads = rows // (batch * positions)
    made = torch.Size(example_sizes(val(found.last).shape)).numel()
    if channels % heads or made != batch * channels * positions:
        return None
    return _Site(softmax, found, reader, sources, (batch, heads, channels // heads, *size, cells))


def _fuse(found: _Site) -> str:
    """Put the op in a region's place. Raises `Reject` where it computes something else."""
    nodes, last = found.region.nodes, found.region.last
    if any(val(node).dtype != torch.float32 for node in (*found.sources, last)):
        raise Reject("it is not of float32 throughout")
    found.region.check_alone()
    try:
        constants = _identify(found)
        _compare(found, constants)
    except (RuntimeError, TypeError, IndexError) as error:
        raise Reject("it sets types or sizes itself, and cannot be run on others") from error
    where, emit = site(*nodes), Emitter(found.region.module, last)
    q, kv, pooled = (with_channels_first(emit, source) for source in found.sources)
    size = [found.height, found.width]
    q, kv = (x if rank(x) == 4 else emit(aten.unflatten.int, x, 2, size) for x in (q, kv))
    pooled = pooled if rank(pooled) == 3 else emit(aten.flatten.using_ints, pooled, 2)
    weights = [emit.constant(f"{where}.{name}", value.float()) for name, value in constants.items()]
    y = emit(aggregated_attention.OP.overload, q, kv, pooled, *weights)
    replace(last, in_place_of(emit, y, last, found.channels_last))
    return f"{len(nodes)} operators, in another spelling -> edgesmith.aggregated_attention"


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
    """The part that is added to the softmax for each neighbour, [h, 9, N]; 0 outside of the map."""
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
        maps = (torch.unflatten(x, 2, size) for x in (q, kv))
        expected = aggregated_attention.OP.reference(*maps, pooled, *constants.values())
        assert isinstance(expected, Tensor)
        if not same(output, expected.flatten(2)):
            raise Reject("it has the sizes of an aggregated attention, and computes other numbers")
