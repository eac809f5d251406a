"""The graph of a fused op's reference becomes that fused op.

Sites are found with the pattern captured at the op's example shapes, literals ignored; then the reference is captured
again at each site's own shapes and compared exactly. A site is refused, with its reason, when an operator or a literal
differs, when the op's shape rule does not hold, or when a value in between is read from outside.
"""

from __future__ import annotations

import inspect
import operator
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from edgesmith.exporters.costs import Costs
from edgesmith.exporters.graph.capture import capture
from edgesmith.exporters.graph.edit import operators, site, stand_for, val
from edgesmith.exporters.graph.match import Comparison, Place, compare, differences, escapes, literal_at, outputs_of
from edgesmith.exporters.rewrites.canonicalise import pattern_form
from edgesmith.exporters.rewrites.rewrite import Rejection, RewriteReport
from edgesmith.kernels.op import FusedOp, all_ops

NEAR = 0.5
"""Fraction of the reference's operators from which a place that does not match is worth reporting."""


class Fuse:
    """Fuse one op. The rewrite is called `fuse_<op>`."""

    def __init__(self, op: FusedOp) -> None:
        self.op = op
        self.name = f"fuse_{op.name}"

    def apply(self, module: GraphModule, costs: Costs) -> RewriteReport:
        """Fuse every site in place."""
        applied, rejected = [], []
        loose = _pattern(self.op.name, tuple(tuple(x.shape) for x in self.op.example()))
        target = outputs_of(loose)[0].target
        for anchor in operators(module):
            if anchor.target is not target or anchor.graph is not module.graph or anchor._erased:
                continue
            found = compare(loose, anchor, literals=False)
            if found.likeness < NEAR:
                continue
            where = site(*found.matched)
            accepted = self._accept(loose, found, anchor)
            if isinstance(accepted, str):
                rejected.append(Rejection(where, accepted))
                continue
            inputs, outputs, literals = accepted
            place = _place(module, inputs, outputs)
            if place is None:
                rejected.append(Rejection(where, "an output of the site is read before its last input is there"))
                continue
            self._replace(module, place, where, inputs, outputs, literals)
            applied.append((where, f"{len(found.matched)} operators -> edgesmith.{self.op.name}"))
        return RewriteReport(self.name, tuple(applied), tuple(rejected))

    def _accept(
        self, loose: Graph, found: Comparison, anchor: Node
    ) -> tuple[list[Node], list[Node], dict[str, Any]] | str:
        """A site's arguments, outputs and literals, or the reason why it is none."""
        if found.mismatches:
            return found.mismatches[0]
        inputs = found.inputs(loose)
        if inputs is None:
            return "an argument of the reference is missing"
        literals = self._literals(found)
        if isinstance(literals, str):
            return literals
        values = [val(node) for node in inputs]
        try:
            self.op.shape(*values, **literals)
        except ValueError as error:
            return str(error)
        if any(value.dtype != values[0].dtype for value in values):
            return "its arguments are of different types"
        pattern = _pattern(self.op.name, tuple(_hints(value) for value in values), tuple(literals.items()))
        exact = compare(pattern, anchor, literals=True)
        if exact.mismatches:
            return exact.mismatches[0]
        # Literals can decide which operand of a sum is which, so the arguments are those of the exact comparison.
        inputs = exact.inputs(pattern)
        outputs = [exact.bound.get(output) for output in outputs_of(pattern)]
        if inputs is None or None in outputs:
            return "an argument of the reference is missing"
        known = [output for output in outputs if output is not None]
        return escapes(exact, known) or (inputs, known, literals)

    def _literals(self, found: Comparison) -> dict[str, Any] | str:
        """What a site has for the op's free literals, or why that cannot be said."""
        literals = {}
        for literal, places in _places(self.op.name).items():
            values = [literal_at(place, found.bound) for place in places]
            if any(value != values[0] or type(value) is not type(values[0]) for value in values):
                return f"it has several values for {literal}: {', '.join(map(str, values))}"
            if values:
                literals[literal] = values[0]
        return literals

    def _replace(
        self,
        module: GraphModule,
        place: Node,
        where: str,
        inputs: list[Node],
        outputs: list[Node],
        literals: dict[str, Any],
    ) -> None:
        """One call of the op, at a place that fits, instead of a site."""
        anchor = outputs[0]
        with module.graph.inserting_before(place):
            fused = module.graph.call_function(self.op.overload, (*inputs, *self._positional(literals)))
        fused.meta.update({key: anchor.meta[key] for key in ("stack_trace",) if key in anchor.meta})
        if "nn_module_stack" in anchor.meta:
            fused.meta["nn_module_stack"] = _enclosing(anchor, where)
        if len(outputs) == 1:
            fused.meta["val"] = anchor.meta["val"]
            results = [fused]
        else:
            fused.meta["val"] = tuple(output.meta["val"] for output in outputs)
            fused.meta["equals"] = ""
            with module.graph.inserting_before(place):
                results = [module.graph.call_function(operator.getitem, (fused, i)) for i in range(len(outputs))]
        inside = _ancestors(outputs, inputs)  # an output may be read inside the site too: what goes away stays as it is
        for result, output in zip(results, outputs, strict=True):
            stand_for(result, output)
            output.replace_all_uses_with(result, delete_user_cb=lambda user: user not in inside)
        module.graph.eliminate_dead_code()

    def _positional(self, literals: dict[str, Any]) -> list[Any]:
        """The op's literal arguments by position, up to the last one that is not at its default."""
        parameters = list(inspect.signature(self.op.reference).parameters.values())[len(self.op.example()) :]
        values = [literals.get(p.name, p.default) for p in parameters]
        while values and values[-1] == parameters[len(values) - 1].default:
            values.pop()
        return values


def _place(module: GraphModule, inputs: list[Node], outputs: list[Node]) -> Node | None:
    """The node before which a call can stand: after all of its inputs, before all that read an output.

    Constants that come later are moved to the front. None where the other inputs leave no such place.
    """
    order = {node: i for i, node in enumerate(module.graph.nodes)}
    inside = _ancestors(outputs, inputs)
    readers = [user for output in outputs for user in output.users if user not in inside]
    place = min((outputs[0], *readers), key=order.__getitem__)
    for late in [node for node in inputs if order[node] > order[place]]:
        if late.op != "get_attr":
            return None
        next(iter(module.graph.nodes)).prepend(late)
    return place


def _ancestors(nodes: list[Node], until: list[Node]) -> set[Node]:
    """`nodes` and whatever they are computed from, not beyond `until`."""
    found: set[Node] = set()
    queue = list(nodes)
    while queue:
        node = queue.pop()
        if node not in found and node not in until:
            found.add(node)
            queue += node.all_input_nodes
    return found


class _Reference(nn.Module):
    def __init__(self, op: FusedOp, literals: dict[str, Any]) -> None:
        super().__init__()
        self.op = op
        self.literals = literals

    def forward(self, *args: Tensor) -> Tensor | tuple[Tensor, ...]:
        return self.op.reference(*args, **self.literals)


@cache
def _pattern(name: str, sizes: tuple[tuple[int, ...], ...], literals: tuple[tuple[str, Any], ...] = ()) -> Graph:
    """The reference's graph at given argument shapes and literals, spelled canonically."""
    op = all_ops()[name]
    program = capture(_Reference(op, dict(literals)), [torch.zeros(size) for size in sizes])
    graph = pattern_form(program.module).graph
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    for placeholder, parameter in zip(placeholders, inspect.signature(op.reference).parameters, strict=False):
        placeholder.name = parameter
    return graph


@cache
def _places(name: str) -> dict[str, list[Place]]:
    """Where in the pattern at the example's shapes each of an op's free literals is."""
    op = all_ops()[name]
    sizes = tuple(tuple(x.shape) for x in op.example())
    places = {}
    for literal, probe in op.literals.items():
        found = differences(_pattern(name, sizes), _pattern(name, sizes, ((literal, probe),)))
        if not found:
            raise ValueError(
                f"{name}: no place in the reference's graph has {literal}, or it decides about more than one"
            )
        places[literal] = found
    return places


def _hints(value: Tensor) -> tuple[int, ...]:
    """Sizes as integers; a dynamic batch counts as the size that it was captured with."""
    return tuple(int(getattr(getattr(n, "node", None), "hint", n)) for n in value.shape)


def _enclosing(anchor: Node, where: str) -> dict[str, Any]:
    """The anchor's module stack, cut where it goes deeper than the whole site."""
    stack = anchor.meta["nn_module_stack"]
    return {
        key: entry
        for key, entry in stack.items()
        if entry[0] == where or where.startswith(f"{entry[0]}.") or not entry[0]
    }
