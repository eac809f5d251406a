"""Damped averages of each channel by a loop in Python, in any spelling, become edgesmith.damped_ema.

    h_t = p h_{t-1} + a x_t,  y_t = sum over E of w h_t,  stacked over t        ->  damped_ema(x, tables of p and a w)

Every operator between the sequence and its averages is linear with constants, so that what lies there is a function of
one value: it is run in float64. The decays are a constant of the graph, one for each channel and average; the weights
are a product of others like it. It is the op where random sequences give the same numbers.

Near misses: a loop with constants of that shape, and other numbers.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterator, Sequence
from functools import reduce

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from edgesmith.exporters.costs import Costs
from edgesmith.exporters.graph.edit import Emitter, aten, constant, example_sizes, operators, rank, replace, site, val
from edgesmith.exporters.rewrites.regions import Region, region, same
from edgesmith.exporters.rewrites.rewrite import Fired, Reject, Rejection, attempt, searches
from edgesmith.kernels import damped_ema

_NAMES = """
    mul add sub sum matmul bmm mm einsum reshape view _unsafe_view flatten unflatten permute transpose expand unsqueeze
    squeeze slice select cat stack zeros zeros_like new_zeros full full_like clone contiguous detach alias div
"""
_LINEAR = frozenset(getattr(aten, name) for name in _NAMES.split())
"""Operators of which a loop may consist."""

SHORTEST = 3
"""Steps from which on a loop is one; fewer have no decay that shows."""

WEIGHTS = 4
"""Constants like the decays of which the weights may be a product."""


@searches(rule="damped averages by a loop -> edgesmith.damped_ema")
def find_averages(module: GraphModule, costs: Costs) -> Iterator[Fired | Rejection]:
    """See above."""
    for source, outputs in _candidates(module):
        outcome = attempt(outputs[-1], _first_that_fits, module, source, outputs)
        if outcome is not None:
            yield outcome


def _packet(node: Node) -> object:
    return getattr(node.target, "overloadpacket", node.target)


def _candidates(module: GraphModule) -> list[tuple[Node, list[Node]]]:
    """Sequences of three axes, and what has their size behind a loop over them, the first ones first."""
    source_of: dict[Node, Node] = {}
    looped: set[Node] = set()
    outputs: dict[Node, list[Node]] = {}
    for node in operators(module):
        frames = _frames_of(node)
        if frames is not None:
            source_of[node] = frames
            continue
        values = [one for one in node.all_input_nodes if constant(module, one) is None]
        roots = {source_of.get(one, one) for one in values}
        if len(roots) != 1 or _packet(node) not in _LINEAR or not isinstance(node.meta.get("val"), Tensor):
            continue
        (root,) = roots
        source_of[node] = root
        joins = _packet(node) in (aten.stack, aten.cat) and len(values) >= SHORTEST
        if joins or any(one in looped for one in values):
            looped.add(node)
            if rank(node) == rank(root) == 3 and _sizes(node) == _sizes(root):
                outputs.setdefault(root, []).append(node)
    return list(outputs.items())


def _sizes(node: Node) -> list[str]:
    return sorted(map(str, val(node).shape))


def _frames_of(node: Node) -> Node | None:
    """The sequence that a node is one frame of, by its index or as a part; None for any other node."""
    if node.target is operator.getitem and isinstance(node.args[0], Node) and node.args[0].target is aten.unbind.int:
        node = node.args[0]
    elif node.target is not aten.select.int:
        return None
    source = node.args[0]
    return source if isinstance(source, Node) and rank(source) == 3 else None


def _first_that_fits(module: GraphModule, source: Node, outputs: Sequence[Node]) -> Fired | None:
    """Put the op in the place of the last of some values that has its numbers; raises `Reject` where none has."""
    declined: Reject | None = None
    for output in reversed(outputs):
        found = region(module, output, lambda node: node is source)
        if found is None or found.sources != (source,) or val(source).dtype != torch.float32:
            continue
        try:
            if (fired := _fuse(found)) is not None:
                return fired
        except Reject as reason:
            declined = declined or reason
    if declined is not None:
        raise declined
    return None


def _fuse(found: Region) -> Fired | None:
    """Put the op in a region's place; None where it has no constants for it."""
    (source,), last = found.sources, found.last
    has_candidates = False
    for channels, made in itertools.product((1, 2), (1, 2)):
        x = torch.randn(example_sizes(val(source).shape), generator=torch.Generator().manual_seed(0)).double()
        sequence = x if channels == 2 else x.transpose(1, 2)
        constants = _tables(found, int(sequence.shape[2]))
        if len(constants) < 1 or sequence.shape[1] < SHORTEST:
            continue
        has_candidates = True
        averages = found.run(x)[last]
        averages = averages if made == 2 else averages.transpose(1, 2)
        for decay, weight in _decays(constants):
            tables = damped_ema.tables(decay, weight, int(sequence.shape[1]))
            expected = damped_ema.OP.reference(sequence, *tables)
            if isinstance(expected, Tensor) and same(averages, expected):
                found.check_alone()
                return _put(found, tables, channels, made)
    if has_candidates:
        raise Reject("a loop with a decay for each channel, and other numbers than damped averages")
    return None


def _tables(found: Region, channels: int) -> list[Tensor]:
    """The constants of a region that have a number for each channel and average, [D, E], in float64."""
    held: list[Tensor] = []
    for node in dict.fromkeys(one for inner in found.nodes for one in inner.all_input_nodes):
        value = constant(found.module, node)
        if value is None or not value.is_floating_point():
            continue
        sizes = [n for n in value.shape if n != 1]
        if channels in sizes[:1] and len(sizes) <= 2:
            held.append(value.double().reshape(channels, -1))
        elif channels in sizes[1:] and len(sizes) == 2:
            held.append(value.double().reshape(-1, channels).t())
    return held


def _decays(constants: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Decays between 0 and 1, and weights that are a product of others of their shape."""
    for i, decay in enumerate(constants):
        if bool((decay <= 0).any()) or bool((decay >= 1).any()):
            continue
        others = [one for j, one in enumerate(constants) if j != i and one.shape == decay.shape][:WEIGHTS]
        for count in range(len(others), -1, -1):
            for chosen in itertools.combinations(others, count):
                yield decay, reduce(torch.mul, chosen, torch.ones_like(decay))


def _put(found: Region, tables: Sequence[Tensor], channels: int, made: int) -> Fired:
    (source,), last, where = found.sources, found.last, site(*found.nodes)
    names = list(damped_ema.reference.__annotations__)[1:]
    emit = Emitter(found.module, last)
    x = source if channels == 2 else emit(aten.permute.default, source, [0, 2, 1])
    constants = [emit.constant(f"{where}.{name}", one.float()) for name, one in zip(names, tables, strict=False)]
    y = emit(damped_ema.OP.overload, x, *constants)
    replace(last, y if made == 2 else emit(aten.permute.default, y, [0, 2, 1]))
    return Fired(where, f"{len(found.nodes)} operators of a loop -> edgesmith.damped_ema")
