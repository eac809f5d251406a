"""The graph of a fused op's reference becomes that fused op.

Sites are found with the pattern captured at the op's example shapes, literals ignored; then the reference is captured
again at each site's own shapes and compared exactly. A site is refused, with its reason, when an operator or a literal
differs, when the op's shape rule does not hold, or when a value in between is read from outside. Where the graph has an
op's centre, the few operators by which one knows it, and there is no site, the first difference is a near miss too.
"""

from __future__ import annotations

import inspect
import operator
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

from edgesmith.exporters.costs import Costs
from edgesmith.exporters.graph.blame import line_of_node
from edgesmith.exporters.graph.capture import capture
from edgesmith.exporters.graph.edit import changed, example_sizes, operator_name, operators, site, stand_for, sweep, val
from edgesmith.exporters.graph.match import (
    Comparison,
    Mismatch,
    Position,
    centre_name,
    compare,
    differences,
    escapes,
    literal_at,
    outputs_of,
)
from edgesmith.exporters.rewrites.canonicalise import pattern_form
from edgesmith.exporters.rewrites.rewrite import Fired, Reject, Rejection, Rewrite, attempt, declining_at, searches
from edgesmith.kernels.op import FusedOp, all_ops

NEAR = 0.5
"""Fraction of the reference's operators from which a site that does not match is worth reporting."""


def fuse(op: FusedOp) -> Rewrite:
    """The rewrite `fuse_<op>`: every site of one op's reference becomes that op."""

    def search(module: GraphModule, costs: Costs) -> Iterator[Fired | Rejection]:
        loose = _loose_pattern(op.name)
        explained: set[Node] = set()
        for anchor in operators(module):
            if anchor.target is not outputs_of(loose)[0].target:
                continue
            found = compare(loose, anchor, literals=False)
            outcome = attempt(anchor, _fuse_site, module, op, found, anchor)
            if isinstance(outcome, Rejection):
                explained |= {*found.matched}
            if outcome is not None:
                yield outcome
            if isinstance(outcome, Fired):
                sweep(module)  # what is dead must not count as a reader
        yield from _unmatched_centres(module, op, explained)

    rule = f"the graph of {op.name}'s reference -> edgesmith.{op.name}"
    return searches(rule=rule, name=f"fuse_{op.name}")(search)


def _fuse_site(module: GraphModule, op: FusedOp, found: Comparison, anchor: Node) -> Fired | None:
    if found.likeness < NEAR:
        return None
    where = site(*found.matched)
    with declining_at(where):
        accepted = _accept(op, _loose_pattern(op.name), found, anchor)
        _replace(module, op, accepted, where)
    return Fired(where, f"{len(found.matched)} operators -> edgesmith.{op.name}")


def _unmatched_centres(module: GraphModule, op: FusedOp, explained: set[Node]) -> Iterator[Rejection]:
    """A near miss for each occurrence of an op's centre that is no site, unless it was explained already."""
    centre = centre_of(op)
    reaches = _reaches(op.name, centre)
    for last in operators(module):
        if not centre or centre_name(last) != centre[-1] or last in explained:
            continue
        chain = _chain(last, centre[:-1], reaches[:-1])
        if chain is None:
            continue
        anchors = [last, *(node for _, node in _steps(last, lambda node: node.users, reaches[-1]))]
        closest = max(
            (compare(_loose_pattern(op.name), anchor, literals=False) for anchor in anchors),
            key=lambda found: (len({*found.matched} & {*chain}), found.likeness),
        )
        if explained.isdisjoint(closest.matched):
            explained |= {*closest.matched}
            first = closest.mismatches[0] if closest.mismatches else Mismatch(f"it is no {op.name}", last)
            yield Rejection(site(*chain), first.sentence, line_of_node(first.node or last))


def centre_of(op: FusedOp) -> tuple[str, ...]:
    """The operators by which one knows a site of an op, see `FusedOp.centre`; empty where there are no such."""
    if op.centre:
        return op.centre
    names = Counter(operator_name(node) for node in _loose_pattern(op.name).nodes if node.op == "call_function")
    rarest = min(names, key=lambda name: names[name], default="getitem")
    return () if rarest in _EVERYWHERE else (rarest,)


_EVERYWHERE = frozenset(
    ["getitem", *(f"aten.{name}" for name in ("add", "sub", "mul", "div", "neg", "pow", "sum", "mean", "exp", "sqrt"))]
    + [f"aten.{name}" for name in ("relu", "sigmoid", "tanh", "gelu", "silu", "softmax", "rsqrt", "clamp", "clone")]
    + [f"aten.{name}" for name in ("linear", "matmul", "conv1d", "conv2d", "batch_norm", "layer_norm", "group_norm")]
    + [f"aten.{name}" for name in ("view", "reshape", "permute", "transpose", "flatten", "unflatten", "unsqueeze")]
    + [f"aten.{name}" for name in ("squeeze", "select", "slice", "expand", "cat", "stack", "split_with_sizes", "to")]
)
"""Operators of every kind of graph, none of which is a centre by itself."""


@cache
def _reaches(name: str, centre: tuple[str, ...]) -> tuple[int, ...]:
    """Return how far apart a graph may have the operators of a centre, one behind the other, and the output from them.

    It may have them one step further apart than the reference, or, where they are the two ends of an op, as many steps
    as the reference has operators.
    """
    nodes = [node for node in _loose_pattern(name).nodes if node.op == "call_function"]
    if all_ops()[name].is_region:
        return (*(len(nodes) for _ in centre[1:]), 0)
    reached = [node for node in nodes if operator_name(node) == centre[0]] if centre else []
    reaches = []
    for wanted in centre[1:]:
        steps = {node: step for one in reversed(reached) for step, node in _steps(one, lambda node: node.users)}
        reached = [node for node in nodes if operator_name(node) == wanted and node in steps]
        reaches.append(1 + min((steps[node] for node in reached), default=0))
    behind = [step for one in reached for step, _ in _steps(one, lambda node: node.users)]
    return (*reaches, 1 + max(behind, default=0))


def _steps(
    node: Node, following: Callable[[Node], Iterable[Node]], reach: int | None = None
) -> Iterator[tuple[int, Node]]:
    """The operators that follow on a node, with the fewest steps to each, the nearest first."""
    layer, seen, step = [node], {node}, 0
    while layer and step != reach:
        step += 1
        found = (
            other for one in layer for other in following(one) if other.op == "call_function" and other not in seen
        )
        layer = list(dict.fromkeys(found))
        seen |= {*layer}
        yield from ((step, other) for other in layer)


def _chain(last: Node, before: tuple[str, ...], reaches: tuple[int, ...]) -> list[Node] | None:
    """The operators of a centre that ends with `last`, the last one first; None where they are not there."""
    if not before:
        return [last]
    for _, node in _steps(last, lambda node: node.all_input_nodes, reaches[-1]):
        if centre_name(node) == before[-1] and (rest := _chain(node, before[:-1], reaches[:-1])) is not None:
            return [last, *rest]
    return None


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
        raise Reject(found.mismatches[0].sentence, node=found.mismatches[0].node)
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
        fused = module.graph.call_function(op.overload, (*found.inputs, *op.positional(found.literals)))
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
    graph = pattern_form(_trace(_Reference(op, dict(literals)), [torch.zeros(size) for size in sizes])).graph
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    for placeholder, parameter in zip(placeholders, inspect.signature(op.reference).parameters, strict=False):
        placeholder.name = parameter
    return graph


def _trace(reference: nn.Module, inputs: list[Tensor]) -> GraphModule:
    """Return a reference's graph as `capture` would, in half of its time: a model has a dozen sites of other shapes.

    What torch.export does beyond tracing shows in references that write in place or have constants or sub-graphs.
    """
    with torch.no_grad():
        trace = make_fx(
            lambda *args: reference(*args), tracing_mode="fake", pre_dispatch=True, _allow_non_fake_inputs=True
        )
        traced = trace(*inputs)
    if all(_is_plain(node) for node in traced.graph.nodes):
        return traced
    return capture(reference, inputs).module


def _is_plain(node: Node) -> bool:
    """Return whether a traced node is one in torch.export's graph too: no constant, no sub-graph, written nowhere."""
    if isinstance(node.target, torch._ops.OpOverload):
        return not node.target._schema.is_mutable
    return node.op in ("placeholder", "output") or node.target is operator.getitem


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
