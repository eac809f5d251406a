"""Loops, running sums, booleans and scalars."""

from __future__ import annotations

from edgesmith.exporters.departures.detectors import Found, detector, words
from edgesmith.exporters.departures.graph import ELEMENTWISE, VIEWS, Graph


@detector
def loop_of_computed_length(graph: Graph) -> Found:
    """Find loops that their body ends."""
    for node in graph.of("loop"):
        if node.settings.get("computed_condition"):
            yield node, "a loop whose body computes the condition"


@detector
def unlike_cumsums(graph: Graph) -> Found:
    """Find running sums that differ from the first one in axis or direction."""
    sums = [(node, graph.axis(node, 0), bool(node.settings.get("reverse"))) for node in graph.of("cumsum")]
    for node, axis, reverse in sums[1:]:
        if (axis, reverse) != sums[0][1:]:
            yield node, f"CumSum along axis {axis}{', reversed' * reverse}, beside one along axis {sums[0][1]}"


@detector
def cast_of_or_or_mean(graph: Graph) -> Found:
    """Find casts of an Or, ONNX's Mean, and outputs without axes."""
    for node in graph.of("cast"):
        if graph.operand(node, 0, "or") is not None:
            yield node, "a cast of an Or"
    for node in graph.of("mean"):
        yield node, f"a Mean of {len(node.inputs)} tensors"
    for name in graph.outputs:
        if graph.rank(name) == 0 and graph.dtype(name).startswith("fp"):
            yield graph.maker(name) or name, f"the output {name} has no axis"


@detector
def elementwise_of_unlike_ranks(graph: Graph) -> Found:
    """Find elementwise operators on tensors of unlike ranks; scalars, vectors of channels and constants are none."""
    for node in graph.of(*ELEMENTWISE, "select"):
        ranks = [graph.rank(name) for name in node.inputs if name]
        if None in ranks or len(set(ranks)) == 1:
            continue
        lower = [name for name in node.inputs if graph.rank(name) != max(rank or 0 for rank in ranks)]
        if any((graph.rank(name) or 0) > 1 and not _is_attribute(graph, name) for name in lower):
            yield node, f"{node.kind} of {' and '.join(words(graph, name) for name in node.inputs)}"


def _is_attribute(graph: Graph, name: str) -> bool:
    """Return whether a value is a constant of floating point, which delegates keep with the operator."""
    return graph.is_stored(name) and "fp" in graph.dtype(name).replace("bf", "fp")


@detector
def hardswish_of_plain_linear(graph: Graph) -> Found:
    """Find hardswish of a linear layer on [N, C]."""
    for node in graph.of("hardswish", "hardsigmoid"):
        gates = [one for one in graph.readers(node.output) if one.kind == "mul" and node.inputs[0] in one.inputs]
        if node.kind == "hardsigmoid" and not gates:
            continue
        layer = graph.operand(node, 0, "linear", "matmul", through=VIEWS | {"add"})
        if layer is not None and graph.rank(layer.output) == 2 and graph.dtype(layer.output) == "fp16":
            yield node, f"hardswish of a linear layer to {words(graph, layer.output)}"
