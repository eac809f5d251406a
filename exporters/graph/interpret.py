"""Running a graph node by node: the one interpreter behind constants, calibration, islands and first divergences.

    run_graph    what a program returns
    interpret    every node's value, for several calls at once, in order; dropped after its last reader
    run_part     some nodes alone, on given values
    recompute    what becomes of a whole run when one node has another value
    evaluate     one node; fused ops by their references

What an operator computes is a function that a caller may replace: to watch it, to round it, or to build another graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from edgesmith.kernels.op import find

Values = Callable[[Node], Any]
"""From a node to its value."""

Compute = Callable[[Node, Values, int], Any]
"""From an operator, the values that it may read and the number of the call to the operator's value."""


_AS_RESHAPE = frozenset([torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default])
"""Operators that want values that lie in one piece, which a graph without copies does not promise."""


def held(module: GraphModule, node: Node) -> Any:
    """Return what a `get_attr` node reads: a tensor without its gradient, or a submodule."""
    value: Any = module
    for part in str(node.target).split("."):
        value = getattr(value, part)
    return value.detach() if isinstance(value, Tensor) else value


def evaluate(node: Node, values: Values, call: int = 0) -> Any:
    """Return an operator's result for its operands' values; for the output node, what the program returns."""
    args, kwargs = torch.fx.map_arg((node.args, node.kwargs), values)
    if node.op == "output":
        return args[0]
    assert callable(node.target)
    op = find(node.target)
    function = torch.ops.aten.reshape.default if node.target in _AS_RESHAPE else node.target
    with torch.no_grad():
        return (op.reference if op is not None else function)(*args, **kwargs)


def interpret(
    module: GraphModule,
    calls: Sequence[Sequence[Any]],
    compute: Compute = evaluate,
    read: Callable[[Node], Any] | None = None,
) -> Iterator[tuple[Node, list[Any]]]:
    """Every node in order with its values, one for each call; the output node's are what the program returns.

    A caller may change the list that it gets: what reads the node then reads that.

    Args:
        calls: the inputs of each call, one for each placeholder.
        compute: what an operator's value is.
        read: what a `get_attr` node's value is; default: what it holds.
    """
    known: dict[Node, list[Any]] = {}
    last = {source: node for node in module.graph.nodes for source in node.all_input_nodes}
    position = 0
    for node in module.graph.nodes:
        if node.op == "placeholder":
            known[node] = [call[position] for call in calls]
            position += 1
        elif node.op == "get_attr":
            known[node] = [held(module, node) if read is None else read(node)] * len(calls)
        else:
            function = evaluate if node.op == "output" else compute
            known[node] = [function(node, lambda source, i=i: known[source][i], i) for i in range(len(calls))]  # type: ignore[misc]  # mypy does not infer lambdas with defaults
        yield node, known[node]
        for source in node.all_input_nodes:
            if last[source] is node:
                del known[source]


def run_graph(
    module: GraphModule, inputs: Sequence[Any], compute: Compute = evaluate, read: Callable[[Node], Any] | None = None
) -> Any:
    """Return what a program returns for one call; arguments as for `interpret`."""
    result = None
    for _, values in interpret(module, [inputs], compute, read):
        (result,) = values
    return result


def run_part(
    module: GraphModule, nodes: Iterable[Node], given: Mapping[Node, Any], compute: Compute = evaluate
) -> dict[Node, Any]:
    """Run some nodes, in their order, on given values; constants are read. Returns all values, the given ones too.

    Raises:
        ValueError: a node reads something that is neither given, nor constant, nor one of the nodes before it.
    """
    values = dict(given)

    def value(source: Node) -> Any:
        if source not in values:
            if source.op != "get_attr":
                raise ValueError(f"{source.name} is no part of what is run")
            values[source] = held(module, source)
        return values[source]

    for node in nodes:
        values[node] = compute(node, value, 0)
    return values


def recompute(module: GraphModule, values: Mapping[Node, Any], start: Node, value: Any) -> Any:
    """Return what a program returns when one node has another value. Only what depends on the node is computed again.

    Args:
        values: of every node, from a run of the whole program.
    """
    again = {start: value}
    for node in module.graph.nodes:
        if node is not start and any(source in again for source in node.all_input_nodes):
            again[node] = evaluate(node, lambda source: again[source] if source in again else values[source])
    output = module.graph.output_node()
    return again[output] if output in again else values[output]
