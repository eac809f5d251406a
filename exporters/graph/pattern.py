"""Patterns of small formulas: the spellings that mean one thing, and the nearest that do not, each with its reason.

    X, ROOT = hole("x"), any_of(op(aten.sqrt.default, hole("v")), op(aten.pow.Tensor_Scalar, hole("v"), 0.5))
    NORMAL = any_of(
        op(aten.div.Tensor, X, ROOT),
        op(aten.mul.Tensor, X, op(aten.rsqrt.default, hole("v"))),
        near("eps is added outside the root", op(aten.div.Tensor, X, op(aten.add.Tensor, ROOT, ANY))),
    )
    found = find(NORMAL, node)          # None, or found["x"], found["v"] and found.reason

A pattern is a function from a value, a node or a literal, and what is bound so far to all the ways in which it matches.
For the graph of a whole fused op see match.py.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch.fx import Node

from edgesmith.exporters.graph.edit import COMMUTATIVE, arguments, defaults


@dataclass(frozen=True)
class Match:
    """The nodes that a pattern's holes stand for; of a near miss, also why it is none."""

    bound: Mapping[str, Any] = field(default_factory=dict)
    reason: str | None = None

    def __getitem__(self, name: str) -> Any:
        return self.bound[name]

    def bind(self, name: str, value: object) -> Iterator[Match]:
        """The match with one name more; none where the name stands for something else already."""
        if name not in self.bound:
            yield replace(self, bound={**self.bound, name: value})
        elif _is_same(self.bound[name], value):
            yield self


Pattern = Callable[[object, Match], Iterator[Match]]


def find(pattern: Pattern, value: object, **bound: Any) -> Match | None:
    """The first match of a pattern, or else the first near miss, or None.

    Args:
        bound: what some of the holes stand for.
    """
    found = list(pattern(value, Match(bound)))
    return min(found, key=lambda match: match.reason is not None, default=None)


def ANY(value: object, match: Match) -> Iterator[Match]:  # noqa: N802  # read as a constant of the language
    """Match whatever there is."""
    yield match


def hole(name: str, kind: type = object) -> Pattern:
    """Whatever there is, of a type; the same wherever the name occurs again."""

    def matches(value: object, match: Match) -> Iterator[Match]:
        if isinstance(value, kind):
            yield from match.bind(name, value)

    return matches


def named(name: str, pattern: Pattern) -> Pattern:
    """A pattern that binds what it matches."""

    def matches(value: object, match: Match) -> Iterator[Match]:
        for found in pattern(value, match):
            yield from found.bind(name, value)

    return matches


def exactly(wanted: object) -> Pattern:
    """One node; or a number, list, string or None, which is equal."""

    def matches(value: object, match: Match) -> Iterator[Match]:
        if value is wanted if isinstance(value, Node) or isinstance(wanted, Node) else value == wanted:
            yield match

    return matches


def op(target: Any, *given: Any) -> Pattern:
    """An operator with its arguments by position: patterns, or literals. Sums and multiplies match in both orders.

    Args:
        target: one overload, or a collection of them.
        given: arguments that are left out have their defaults; a last `...` leaves them open.
    """
    targets = target if isinstance(target, Collection) else (target,)
    is_open = bool(given) and given[-1] is ...
    patterns = [one if callable(one) else exactly(one) for one in (given[:-1] if is_open else given)]

    def matches(value: object, match: Match) -> Iterator[Match]:
        if not isinstance(value, Node) or value.op != "call_function" or value.target not in targets:
            return
        found = list(arguments(value))
        if not is_open and found[len(patterns) :] != list(defaults(value))[len(patterns) :]:
            return
        yield from _in_order(patterns, found, match)
        if value.target in COMMUTATIVE and found[2:] in ([], [1]):
            yield from _in_order(patterns, [found[1], found[0], *found[2:]], match)

    return matches


def any_of(*patterns: Pattern) -> Pattern:
    """Return a pattern that matches where one of several does, tried in this order."""

    def matches(value: object, match: Match) -> Iterator[Match]:
        for pattern in patterns:
            yield from pattern(value, match)

    return matches


def near(reason: str, pattern: Pattern, unless: Pattern | None = None) -> Pattern:
    """A near miss: what a pattern matches is none, for a reason; not where another pattern matches it too."""

    def matches(value: object, match: Match) -> Iterator[Match]:
        if unless is None or next(unless(value, match), None) is None:
            for found in pattern(value, match):
                yield replace(found, reason=found.reason or reason)

    return matches


def _in_order(patterns: list[Pattern], values: list[Any], match: Match) -> Iterator[Match]:
    if not patterns:
        yield match
    elif values:
        for found in patterns[0](values[0], match):
            yield from _in_order(patterns[1:], values[1:], found)


def _is_same(a: object, b: object) -> bool:
    if isinstance(a, Node) or isinstance(b, Node):
        return a is b
    return type(a) is type(b) and a == b
