"""The graph of a fused op's reference becomes that fused op.

Sites are found with the pattern captured at the op's example shapes, literals ignored; then the reference is captured
again at each site's own shapes and compared exactly. A site is refused, with its reason, when an operator or a literal
differs, when the op's shape rule does not hold, or when a value in between is read from outside.
"""

from __future__ import annotations

import inspect
import operator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from edgesmith.exporters.costs import Costs
from edgesmith.exporters.graph.capture import capture
from edgesmith.exporters.graph.edit import changed, example_sizes, site, stand_for, val
from edgesmith.exporters.graph.match import Comparison, Position, compare, differences, escapes, literal_at, outputs_of
from edgesmith.exporters.rewrites.canonicalise import pattern_form
from edgesmith.exporters.rewrites.rewrite import Fired, Reject, Rewrite, declining_at, rewrites
from edgesmith.kernels.op import FusedOp, all_ops

NEAR = 0.5
"""Fraction of the reference's operators from which a site that does not match is worth reporting."""


def fuse(op: FusedOp) -> Rewrite:
    """The rewrite `fuse_<op>`: every site of one op's reference becomes that op."""

    def fuse_op(module: GraphModule, anchor: Node, costs: Costs) -> Fired | None:
        loose = _loose_pattern(op.name)
        if anchor.target is not outputs_of(loose)[0].target:
            return None
        found = compare(loose, anchor, literals=False)
        if found.likeness < NEAR:
            return None
        where = site(*found.matched)
        with declining_at(where):
            accepted = _accept(op, loose, found, anchor)
            _replace(module, op, accepted, where)
        return Fired(where, f"{len(found.matched)} operators -> edgesmith.{op.name}")

    return rewrites(rule=f"the graph of {op.name}'s reference -> edgesmith.{op.name}", name=f"fuse_{op.name}")(fuse_op)


@dataclass(frozen=True)
class _Site:
    """The arguments and outputs of an op in a graph, and what it has for the op's free literals."""

    inputs: list[Node]
    outputs: list[Node]
    literals: dict[str, Any]


def _accept(op: FusedOp, loose: Graph, found: Comparison, anchor: Node) -> _Site:
    """Return the site of what was found loosely. Raises `Reject` where it is none."""
    inputs = _matching(found, loose)
    literals = _literals(op, found)
    values = [val(node) for node in inputs]
    try:
        op.shape(*values, **literals)
    except ValueError as error:
        raise Reject(str(error)) from error
    if any(value.dtype != values[0].dtype for value in values):
        raise Reject("its arguments are of different types")
    sizes = tuple(tuple(example_sizes(value.shape)) for value in values)
    pattern = _pattern(op.name, sizes, tuple(literals.items()))
    exact = compare(pattern, anchor, literals=True)
    # Literals can decide which operand of a sum is which, so the arguments are those of the exact comparison.
    inputs = _matching(exact, pattern)
    outputs = [exact.bound[output] for output in outputs_of(pattern) if output in exact.bound]
    if len(outputs) < len(outputs_of(pattern)):
        raise Reject("an argument of the reference is missing")
    escaping = escapes(exact, outputs)
    if escaping is not None:
        raise Reject(escaping)
    return _Site(inputs, outputs, literals)


def _matching(found: Comparison, pattern: Graph) -> list[Node]:
    """The arguments of a comparison without mismatches."""
    if found.mismatches:
        raise Reject(found.mismatches[0])
    inputs = found.inputs(pattern)
    if inputs is None:
        raise Reject("an argument of the reference is missing")
    return inputs


def _literals(op: FusedOp, found: Comparison) -> dict[str, Any]:
    """Return a site's values for the op's free literals. Raises `Reject` where they cannot be told."""
    literals = {}
    for literal, positions in _positions(op.name).items():
        values = [literal_at(position, found.bound) for position in positions]
        if any(value != values[0] or type(value) is not type(values[0]) for value in values):
            raise Reject(f"it has several values for {literal}: {', '.join(map(str, values))}")
        if values:
            literals[literal] = values[0]
    return literals


def _replace(module: GraphModule, op: FusedOp, found: _Site, where: str) -> None:
    """Replace a site by one call of the op, at a position that fits."""
    before = _insertion_point(module, found.inputs, found.outputs)
    anchor, outputs = found.outputs[0], found.outputs
    with module.graph.inserting_before(before):
        fused = module.graph.call_function(op.overload, (*found.inputs, *_positional(op, found.literals)))
    fused.meta.update({key: anchor.meta[key] for key in ("stack_trace",) if key in anchor.meta})
    if "nn_module_stack" in anchor.meta:
        fused.meta["nn_module_stack"] = _enclosing(anchor, where)
    if len(outputs) == 1:
        fused.meta["val"] = anchor.meta["val"]
        results = [fused]
    else:
        fused.meta["val"] = tuple(output.meta["val"] for output in outputs)
        changed(fused)
        with module.graph.inserting_before(before):
            results = [module.graph.call_function(operator.getitem, (fused, i)) for i in range(len(outputs))]
    inside = _ancestors(outputs, found.inputs)  # an output may be read inside the site too: what goes away stays
    for result, output in zip(results, outputs, strict=True):
        stand_for(result, output)
        output.replace_all_uses_with(result, delete_user_cb=lambda user: user not in inside)


def _positional(op: FusedOp, literals: dict[str, Any]) -> list[Any]:
    """An op's literal arguments by position, up to the last one that is not at its default."""
    parameters = list(inspect.signature(op.reference).parameters.values())[len(op.example()) :]
    values = [literals.get(p.name, p.default) for p in parameters]
    while values and values[-1] == parameters[len(values) - 1].default:
        values.pop()
    return values


def _insertion_point(module: GraphModule, inputs: list[Node], outputs: list[Node]) -> Node:
    """Return the node before which a call can stand: after all of its inputs, before all that read an output.

    Constants that come later are moved to the front. Raises `Reject` where the other inputs leave no such position.
    """
    order = {node: i for i, node in enumerate(module.graph.nodes)}
    inside = _ancestors(outputs, inputs)
    readers = [user for output in outputs for user in output.users if user not in inside]
    first = min((outputs[0], *readers), key=order.__getitem__)
    late = [node for node in inputs if order[node] > order[first]]
    if any(node.op != "get_attr" for node in late):
        raise Reject("an output of the site is read before its last input is there")
    for node in late:
        next(iter(module.graph.nodes)).prepend(node)
    return first


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
def _loose_pattern(name: str) -> Graph:
    """The reference's graph at the example's shapes, which finds sites of every shape."""
    return _pattern(name, tuple(tuple(x.shape) for x in all_ops()[name].example()))


@cache
def _positions(name: str) -> dict[str, list[Position]]:
    """Return the positions of an op's free literals in the pattern at the example's shapes."""
    op = all_ops()[name]
    sizes = tuple(tuple(x.shape) for x in op.example())
    positions = {}
    for literal, probe in op.literals.items():
        found = differences(_loose_pattern(name), _pattern(name, sizes, ((literal, probe),)))
        if not found:
            raise ValueError(
                f"{name}: no position in the reference's graph has {literal}, or it decides about more than one"
            )
        positions[literal] = found
    return positions


def _enclosing(anchor: Node, where: str) -> dict[str, Any]:
    """The anchor's module stack, cut where it goes deeper than the whole site."""
    stack = anchor.meta["nn_module_stack"]
    return {
        key: entry
        for key, entry in stack.items()
        if entry[0] == where or where.startswith(f"{entry[0]}.") or not entry[0]
    }
