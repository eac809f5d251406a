"""One way to write a rewrite: a function over one node, or a search over a whole graph.

    @rewrites(aten.softmax.int, rule="softmax(x + c) -> softmax(x)", again=True)
    def drop_shift(module: GraphModule, node: Node, costs: Costs) -> str | None:
        ...
        return "a sum before the softmax -> nothing"

A function looks at one node and edits the graph around it. It returns

    None                  the node is no site
    a note                it fired, and how; `Fired(site, note)` where the site is not the node's own
    raise Reject(reason)  the node is nearly a site, and why it is none; nothing is changed

A search (`@searches`) is a generator over the whole graph of what it did, `Fired`, and of near misses, `Rejection`:
for what is chosen among several sites, or shares something between them.

Parameters of a module are replaced, never written to, because they may be the caller's. Every rewrite leaves the
program's outputs equal but for rounding, and changes nothing when run again. See order.py for all of them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from torch.fx import GraphModule, Node

from edgesmith.exporters.costs import Costs
from edgesmith.exporters.graph.blame import line_of_node
from edgesmith.exporters.graph.edit import operators, site, sweep


class Fired(NamedTuple):
    """A site where a rewrite fired, and a note on how."""

    site: str
    note: str


@dataclass(frozen=True)
class Rejection:
    """A site where a rewrite nearly fired, and why it did not.

    Attributes:
        line: of the model's source, where it differs; None where that is not known.
    """

    site: str
    reason: str
    line: str | None = None


class Reject(Exception):
    """Declines a site where a rewrite nearly fires.

    Attributes:
        reason: a clause for the report.
        at: the site, where it is not that of the node that the rewrite looks at.
        node: the one that differs, where it is another.
    """

    def __init__(self, reason: str, at: str | None = None, node: Node | None = None) -> None:
        super().__init__(reason)
        self.reason, self.at, self.node = reason, at, node


@dataclass(frozen=True)
class RewriteReport:
    """The outcome of one rewrite: sites where it fired, each with a note on how, and near misses."""

    name: str
    applied: tuple[tuple[str, str], ...] = ()
    rejected: tuple[Rejection, ...] = ()


Search = Callable[..., Iterator[Fired | Rejection]]
"""From a module, the target's costs and a rewrite's own options to what was done and nearly done, one by one."""

ToSite = Callable[..., str | Fired | None]
"""From a module, one of its nodes, the target's costs and a rewrite's own options to a note; raises `Reject`."""


@dataclass(frozen=True)
class Rewrite:
    """One rewrite, as `@rewrites` and `@searches` make it.

    Attributes:
        name: in reports and manifests.
        rule: the one line that says what becomes of what.
        search: one pass over a graph.
        until_stable: passes are repeated until one changes nothing; near misses are those of the last pass.
        for_sequences: chooses a form for a whole sequence or map, so it is left out where a step is to be made.
        after: of a plugin, the name of the rewrite right behind which it runs.
        options: given to `search` by name.
        for_steps: options where a step is to be made.
    """

    name: str
    rule: str
    search: Search
    until_stable: bool = False
    for_sequences: bool = False
    after: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    for_steps: Mapping[str, Any] = field(default_factory=dict)

    def apply(self, module: GraphModule, costs: Costs) -> RewriteReport:
        """Edit a graph in place, leave no dead operator in it, and report."""
        sweep(module)
        fired: list[tuple[str, str]] = []
        while True:
            outcomes = list(self.search(module, costs, **self.options))
            sweep(module)
            new = [outcome for outcome in outcomes if isinstance(outcome, Fired)]
            fired += new
            if not new or not self.until_stable:
                rejected = tuple(outcome for outcome in outcomes if isinstance(outcome, Rejection))
                return RewriteReport(self.name, tuple(fired), rejected)

    def with_options(self, **options: Any) -> Rewrite:
        """Return the same rewrite with options of its own function set, for measurements and tests."""
        return replace(self, options={**self.options, **options})


def rewrites(
    *overloads: Any,
    rule: str,
    name: str | None = None,
    backwards: bool = False,
    again: bool = False,
    until_stable: bool = False,
    for_sequences: bool = False,
    after: str | None = None,
    for_steps: Mapping[str, Any] | None = None,
) -> Callable[[ToSite], Rewrite]:
    """Make a rewrite of a function over one node, called as `function(module, node, costs)`.

    Args:
        overloads: the operators that it looks at; none for all of them.
        rule: see `Rewrite`; so are `until_stable`, `for_sequences`, `for_steps` and `after`.
        name: default: the function's own.
        backwards: nodes come in reverse order of the program. Nodes made meanwhile do not come in the same pass.
        again: a node at which it fired comes again until it does not.
    """

    def decorate(function: ToSite) -> Rewrite:
        def search(module: GraphModule, costs: Costs, **options: Any) -> Iterator[Fired | Rejection]:
            nodes = [node for node in operators(module) if not overloads or node.target in overloads]
            for node in reversed(nodes) if backwards else nodes:
                while not node._erased:
                    outcome = attempt(node, function, module, node, costs, **options)
                    if outcome is not None:
                        yield outcome
                    if not isinstance(outcome, Fired):
                        break
                    sweep(module)  # what is dead must not count as a reader
                    if not again:
                        break

        made = Rewrite(name or function.__name__, rule, search, until_stable, for_sequences, after)
        return replace(made, for_steps=for_steps or {})

    return decorate


def searches(
    *, rule: str, name: str | None = None, for_sequences: bool = False, after: str | None = None
) -> Callable[[Search], Rewrite]:
    """Make a rewrite of a generator over a whole graph, called as `search(module, costs)`. Arguments as `rewrites`."""

    def decorate(search: Search) -> Rewrite:
        return Rewrite(name or search.__name__, rule, search, False, for_sequences, after)

    return decorate


@contextlib.contextmanager
def declining_at(where: str) -> Iterator[None]:
    """Let whatever declines in this block decline at `where`, unless it names another site."""
    try:
        yield
    except Reject as declined:
        raise Reject(declined.reason, where if declined.at is None else declined.at, declined.node) from None


def attempt(node: Node, function: ToSite, *args: Any, **options: Any) -> Fired | Rejection | None:
    """Return what came of a function that looks at one node: see the module's docstring."""
    where = site(node)
    try:
        note = function(*args, **options)
    except Reject as declined:
        line = line_of_node(declined.node or node)
        return Rejection(where if declined.at is None else declined.at, declined.reason, line)
    return Fired(where, note) if isinstance(note, str) else note
