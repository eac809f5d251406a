"""Finding a fused op's reference in a captured graph, and saying why where it almost was.

    pattern  the reference's own captured graph; its placeholders stand for any value
    compare  walk pattern and graph together, backwards from an anchor, and collect every mismatch instead of stopping
             at the first: none is a match, few is a near miss that can be explained

Operators compare by overload, arguments by schema position with defaults filled in. Sums and multiplies are tried in
both orders. Literals (strides, groups, norms, axes) are compared only when asked: a pattern captured at one shape finds
sites of every shape loosely, and decides on them only after it was captured again at the site's own shapes.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch.fx import Graph, Node
from torch.utils._pytree import tree_leaves

from edgesmith.exporters.graph.edit import COMMUTATIVE, arguments, operator_name, site


class Mismatch(NamedTuple):
    """A difference between a pattern and a graph.

    Attributes:
        sentence: the reference's and the graph's.
        node: of the graph, where it is; None where that cannot be said.
    """

    sentence: str
    node: Node | None


@dataclass(frozen=True)
class Comparison:
    """The outcome of comparing a pattern with the graph at one anchor.

    Attributes:
        bound: pattern node to graph node, placeholders included.
        mismatches: outputs first; empty for a match.
        total: operators in the pattern.
    """

    bound: dict[Node, Node] = field(default_factory=dict)
    mismatches: tuple[Mismatch, ...] = ()
    total: int = 0

    @property
    def matched(self) -> list[Node]:
        """Graph nodes that stand for the pattern's operators."""
        return [g for p, g in self.bound.items() if p.op == "call_function"]

    @property
    def likeness(self) -> float:
        """Fraction of the pattern's operators that were found."""
        return len(self.matched) / max(self.total, 1)

    def inputs(self, pattern: Graph) -> list[Node] | None:
        """Graph nodes for the pattern's placeholders, in order; None if one of them was not met."""
        nodes = [self.bound.get(p) for p in pattern.nodes if p.op == "placeholder"]
        return None if any(n is None for n in nodes) else [n for n in nodes if n is not None]


def outputs_of(pattern: Graph) -> list[Node]:
    """The operators whose values a pattern returns, in order. The first one is where a site is looked for."""
    (returned,) = pattern.output_node().args
    leaves = torch.utils._pytree.tree_leaves(returned)
    assert all(isinstance(leaf, Node) for leaf in leaves)
    return leaves


def compare(pattern: Graph, anchor: Node, literals: bool) -> Comparison:
    """Compare `pattern`, backwards from its first output, with the graph that ends at `anchor`."""
    total = sum(node.op == "call_function" for node in pattern.nodes)
    bound, mismatches = _compare_values(outputs_of(pattern)[0], anchor, {}, literals)
    return Comparison(bound, tuple(mismatches), total)


def escapes(comparison: Comparison, outputs: Sequence[Node]) -> str | None:
    """Return why the matched nodes cannot be replaced as one: something else reads a value that is no output."""
    matched = set(comparison.matched)
    for node in comparison.matched:
        outside = [user for user in node.users if user not in matched]
        if node not in outputs and outside:
            return f"{node.name} ({operator_name(node)}) is also read by {outside[0].name}, outside the site"
    return None


def centre_name(node: Node) -> str:
    """Return how an op's centre calls an operator: `operator_name`, but one name for transforms over some axes."""
    name = operator_name(node)
    return _OVER_TWO_AXES.get(name, name)


_OVER_TWO_AXES = {f"aten.fft_{kind}n": f"aten.fft_{kind}2" for kind in ("fft", "ifft", "rfft", "irfft")}


Position = tuple[Node, tuple[int, ...]]
"""Where a literal is: an operator, and the way through its arguments, by schema position."""


def differences(graph: Graph, other: Graph) -> list[Position] | None:
    """Return the positions in `graph` where two graphs of one function, called with another literal, differ.

    None where they differ in more than literals: then the literal decides about the structure.
    """
    positions: list[Position] = []
    nodes, others = list(graph.nodes), list(other.nodes)
    if len(nodes) != len(others):
        return None
    twin = dict(zip(nodes, others, strict=True))
    for a, b in twin.items():
        if a.op != b.op or a.target != b.target:
            return None
        if a.op != "call_function":
            continue
        if not _differences(a, arguments(a), arguments(b), (), twin, positions):
            return None
    return positions


def literal_at(position: Position, bound: Mapping[Node, Node]) -> Any:
    """Return the literal that a site has at a pattern's position; None where it has nothing there."""
    node, path = position
    value: Any = arguments(bound[node]) if node in bound else ()
    for index in path:
        if not isinstance(value, list | tuple) or index >= len(value):
            return None
        value = value[index]
    return value


def _differences(
    node: Node, a: object, b: object, path: tuple[int, ...], twin: dict[Node, Node], positions: list[Position]
) -> bool:
    if isinstance(a, Node):
        return twin.get(a) is b
    if isinstance(a, list | tuple):
        if not isinstance(b, list | tuple) or len(a) != len(b):
            return False
        return all(
            _differences(node, x, y, (*path, i), twin, positions) for i, (x, y) in enumerate(zip(a, b, strict=True))
        )
    if isinstance(b, Node):
        return False
    if a != b:
        positions.append((node, path))
    return True


_Bound = dict[Node, Node]


def _differ(p: object, g: object, node: Node | None = None) -> list[Mismatch]:
    return [Mismatch(f"the reference has {p} where the graph has {g}", node)]


def _compare_values(p: object, g: object, bound: _Bound, literals: bool) -> tuple[_Bound, list[Mismatch]]:
    if isinstance(p, Node):
        return _compare_nodes(p, g, bound, literals)
    if isinstance(g, Node):
        return bound, _differ(repr(p), g.name, g)
    if isinstance(p, list | tuple) and isinstance(g, list | tuple):
        if literals and not any(isinstance(value, Node) for value in (*p, *g)):
            return bound, [] if list(p) == list(g) else _differ(list(p), list(g))
        if len(p) != len(g):
            return bound, _differ(list(p), list(g)) if literals else []
        found: list[Mismatch] = []
        for a, b in zip(p, g, strict=True):
            bound, mismatches = _compare_values(a, b, bound, literals)
            found += mismatches
        return bound, found
    if (p is None) != (g is None):
        return bound, _differ(repr(p), repr(g))
    if literals and p != g:
        return bound, _differ(repr(p), repr(g))
    return bound, []


def _compare_nodes(p: Node, g: object, bound: _Bound, literals: bool) -> tuple[_Bound, list[Mismatch]]:
    if p in bound:
        if bound[p] is g:
            return bound, []
        read = g if isinstance(g, Node) else None
        sentence = f"the reference reads {bound[p].name} where the graph reads {getattr(g, 'name', g)}"
        return bound, [Mismatch(sentence, read)]
    if not isinstance(g, Node):
        return bound, _differ(p.name, repr(g))
    if p.op == "placeholder":
        return {**bound, p: g}, []
    if g.op != "call_function" or g.target is not p.target:
        found = operator_name(g) if g.op == "call_function" else f"{g.op} {g.target}"
        sentence = f"at {site(g)}: the reference has {operator_name(p)} where the graph has {found}"
        for a, b in zip(p.all_input_nodes, g.all_input_nodes, strict=False):  # how much alike is it below?
            bound, _ = _compare_nodes(a, b, bound, literals)
        return bound, [Mismatch(sentence, g)]
    bound = {**bound, p: g}
    args, others = arguments(p), arguments(g)
    orders = [others]
    if p.target in COMMUTATIVE:
        orders.append((others[1], others[0], *others[2:]))
    attempts = [_compare_arguments(p, g, args, order, bound, literals) for order in orders]
    return min(attempts, key=lambda attempt: (len(attempt[1]), -len(attempt[0])))


def _compare_arguments(
    p: Node, g: Node, args: tuple[object, ...], others: tuple[object, ...], bound: _Bound, literals: bool
) -> tuple[_Bound, list[Mismatch]]:
    found: list[Mismatch] = []
    names = [a.name for a in p.target._schema.arguments] if isinstance(p.target, torch._ops.OpOverload) else []
    for i, (a, b) in enumerate(zip(args, others, strict=True)):
        part_of_tuple = p.target is operator.getitem and not isinstance(a, Node)  # which never depends on shapes
        bound, mismatches = _compare_values(a, b, bound, literals or part_of_tuple)
        values = [leaf for leaf in tree_leaves((a, b)) if isinstance(leaf, Node)]  # which name their own position
        here = (not values or isinstance(a, Node) != isinstance(b, Node)) and i < len(names)
        label = f"at {site(g)}: {operator_name(p)}'s {names[i]}: " if here else ""
        found += [Mismatch(label + sentence, node or g) for sentence, node in mismatches]
    return bound, found
