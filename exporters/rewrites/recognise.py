"""A fused op that is spelled in other operators than its reference becomes that op: its ends are known, numbers decide.

    irfft2(f(rfft2(x), constants))  ->  fft_filter(x, w1, b1, w2, b2, threshold)    where f gives the same numbers

There are many ways to write a complex product: as one einsum or four, on pairs, halves or complex numbers, in any order
of axes. For an op that says at which operators it begins and ends (`FusedOp.is_region`), whatever lies between them and
reads nothing but constants is compared with the reference: in float64, on random inputs of all magnitudes, and with
random numbers for the constants, so that no weight is too small to be seen. The constants take the places of the op's
weights in every order that its shape rule admits, two halves, or a complex one, as a stack of both; the literals are
those that stand in the graph. This rewrite runs first, while constants are those of the model.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_leaves

from edgesmith.exporters.costs import Costs
from edgesmith.exporters.graph.edit import (
    Emitter,
    arguments,
    aten,
    constant,
    example_sizes,
    rank,
    replace,
    site,
    val,
)
from edgesmith.exporters.graph.interpret import run_part
from edgesmith.exporters.graph.match import centre_name
from edgesmith.exporters.rewrites.rewrite import Fired, Reject, rewrites
from edgesmith.kernels.op import FusedOp, all_ops

MAGNITUDES = (1.0, 1e-4, 1e-2, 1e2, 1e4)
"""Scales of the inputs on which the numbers must be the same; the first one rules out most."""

SAME = 1e-9
"""Largest difference between the same numbers in float64, relative to their peak."""

Weights = tuple[tuple[Node, ...], ...]
"""For each weight of an op the constants that it is made of: one, or real and imaginary part."""


@rewrites(rule="a fused op in another spelling -> that op")
def recognise(module: GraphModule, node: Node, costs: Costs) -> Fired | None:
    """See above. A near miss has constants that fit the op, and other numbers."""
    for op in all_ops().values():
        if op.is_region and centre_name(node) == op.centre[-1]:
            region = _region(module, node, op.centre[0])
            if region is not None and (fired := _fuse(module, op, region)) is not None:
                return fired
    return None


@dataclass(frozen=True)
class _Region:
    """The part of a graph from the first to the last operator of an op, where it may be one.

    Attributes:
        x: what the first one reads.
        nodes: both, and all between them, in order.
        constants: that these read, in the order of reading.
        sizes: sizes that these read, which depend on a free axis.
    """

    x: Node
    nodes: list[Node]
    constants: list[Node]
    sizes: list[Node]

    def run(self, module: GraphModule, x: Tensor, constants: Sequence[Tensor]) -> Tensor:
        """Return the last one's value."""
        sizes = {node: int(node.meta["val"].node.hint) for node in self.sizes}
        given = {self.x: x, **dict(zip(self.constants, constants, strict=True)), **sizes}
        result: Tensor = run_part(module, self.nodes, given)[self.nodes[-1]]
        return result


def _region(module: GraphModule, last: Node, first: str) -> _Region | None:
    """The region that ends at a node; None where it begins with several operators, or reads something else."""
    inside: set[Node] = set()
    starts, constants, sizes = [], [], []
    queue = [last]
    while queue:
        node = queue.pop()
        if node in inside or node in constants or node in sizes:
            continue
        if isinstance(node.meta.get("val"), torch.SymInt):
            sizes.append(node)
        elif node.op == "get_attr":
            constants.append(node)
        elif node.op != "call_function":
            return None
        else:
            inside.add(node)
            if centre_name(node) == first:
                starts.append(node)
                queue += node.all_input_nodes[1:]
            else:
                queue += node.all_input_nodes
    if len(starts) != 1:
        return None
    nodes = [node for node in module.graph.nodes if node in inside]
    read = [source for node in nodes for source in node.all_input_nodes]
    x = starts[0].all_input_nodes[0]
    return _Region(x, nodes, sorted(constants, key=read.index), sizes)


def _fuse(module: GraphModule, op: FusedOp, region: _Region) -> Fired | None:
    """Put an op in a region's place. None where no constants fit it; raises Reject where the numbers do not."""
    last, where = region.nodes[-1], site(*region.nodes)
    values = [constant(module, node) for node in region.constants]
    if val(region.x).dtype != torch.float32 or any(value is None for value in values):
        return None
    orders = [order for order in op.layouts or (_as_is(region.x),) if len(order) == rank(region.x)]
    fitting = {order: list(_fitting(module, op, region, order)) for order in orders}
    if not any(fitting.values()):
        return None
    attempts = ((order, _with_the_same_numbers(module, op, region, fitting[order], order)) for order in orders)
    order, found = next((attempt for attempt in attempts if attempt[1] is not None), ((), None))
    if found is None:
        raise Reject(
            f"it has weights of {op.name}'s shapes between its ends, and computes other numbers with them", where
        )
    inside = {*region.nodes}
    outside = [user for node in region.nodes[:-1] for user in node.users if user not in inside]
    if outside:
        raise Reject(f"a value in it is also read by {outside[0].name}, outside the site", where)
    weights, literals = found
    emit = Emitter(module, before=last)
    names = list(op.reference.__annotations__)[1:]
    parameters = [
        parts[0]
        if len(parts) == 1 and not val(parts[0]).is_complex()
        else emit.constant(f"{where}.{name}", _joined([_held(module, part) for part in parts]))
        for name, parts in zip(names, weights, strict=False)
    ]
    is_as_is = order == _as_is(region.x)
    x = region.x if is_as_is else emit(aten.permute.default, region.x, list(order))
    y = emit(op.overload, x, *parameters, *op.positional(literals))
    replace(last, y if is_as_is else emit(aten.permute.default, y, [order.index(i) for i in range(len(order))]))
    return Fired(where, f"{len(region.nodes)} operators, in another spelling -> edgesmith.{op.name}")


def _as_is(x: Node) -> tuple[int, ...]:
    """The order of axes that changes nothing."""
    return tuple(range(rank(x)))


def _held(module: GraphModule, node: Node) -> Tensor:
    value = constant(module, node)
    assert value is not None
    return value


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """One weight of its halves, or of a complex one, real part first: [2, ...]."""
    if len(parts) == 1:
        return torch.view_as_real(parts[0].resolve_conj()).movedim(-1, 0) if parts[0].is_complex() else parts[0]
    return torch.stack(tuple(parts))


def _fitting(module: GraphModule, op: FusedOp, region: _Region, order: tuple[int, ...]) -> Iterator[Weights]:
    """The ways in which a region's constants can be the op's weights, by the shape rule, with its axes in an order."""
    count = len(op.example()) - 1
    alone = [(node,) for node in region.constants]
    pairs = list(zip(region.constants[::2], region.constants[1::2], strict=False))
    x = torch.empty(example_sizes(val(region.x).shape), device="meta").permute(order)
    for parts in (alone, pairs):
        if len(parts) != count or len(region.constants) not in (count, 2 * count):
            continue
        for arranged in itertools.permutations(parts):
            try:
                weights = [_joined([_held(module, node) for node in one]) for one in arranged]
                op.shape(x, *weights)
            except (ValueError, RuntimeError):
                continue
            yield tuple(arranged)


def _with_the_same_numbers(
    module: GraphModule, op: FusedOp, region: _Region, fitting: Sequence[Weights], order: tuple[int, ...]
) -> tuple[Weights, dict[str, Any]] | None:
    """The weights and literals under which an op has a region's numbers; None for none."""
    generator = torch.Generator().manual_seed(0)
    drawn = [
        0.5
        * torch.randn(value.shape, generator=generator, dtype=torch.complex128 if value.is_complex() else torch.float64)
        for value in (_held(module, node) for node in region.constants)
    ]
    by_node = dict(zip(region.constants, drawn, strict=True))
    x = torch.randn(example_sizes(val(region.x).shape), generator=generator, dtype=torch.float64)
    candidates = list(itertools.product(fitting, _literals(op, region)))
    for magnitude in MAGNITUDES:
        given = magnitude * x
        x_there = given.permute(order)
        try:
            expected = region.run(module, given, drawn).permute(order)
        except (RuntimeError, ValueError, TypeError, IndexError):
            return None  # it sets types itself
        candidates = [
            (weights, literals)
            for weights, literals in candidates
            if _close(
                op.reference(x_there, *[_joined([by_node[n] for n in one]) for one in weights], **literals), expected
            )
        ]
    return candidates[0] if candidates else None


def _literals(op: FusedOp, region: _Region) -> Iterator[dict[str, Any]]:
    """Values for the literals that a site may set: numbers in the graph of the kind of the probe, in each variant."""
    leaves = [leaf for node in region.nodes for leaf in tree_leaves(arguments(node))]
    choices = [
        dict.fromkeys(
            leaf for leaf in [*leaves, 0.0] if isinstance(leaf, int | float) and isinstance(probe, type(leaf))
        )
        for probe in op.literals.values()
    ]
    for variant, values in itertools.product(({}, *op.variants), itertools.product(*choices)):
        yield {**dict(zip(op.literals, values, strict=True)), **variant}


def _close(x: object, y: Tensor) -> bool:
    is_comparable = isinstance(x, Tensor) and x.shape == y.shape and x.dtype == y.dtype
    return is_comparable and bool((x - y).abs().max() <= SAME * y.abs().max())  # type: ignore[operator]  # a tensor
