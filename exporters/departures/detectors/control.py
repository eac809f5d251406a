"""Loops, running sums, booleans and scalars."""

from __future__ import annotations

from edgesmith.exporters.departures.detectors import Found, detector, words
from edgesmith.exporters.departures.graph import ELEMENTWISE, VIEWS, Graph, Node

_THREE = 3.0
_COMPARED = ("greater", "less", "equal", "greaterorequal", "lessorequal", "and", "or", "xor", "mod", "prelu")


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
    for node in graph.of(*ELEMENTWISE, *_COMPARED, "select"):
        ranks = [graph.rank(name) for name in node.inputs if name]
        if None in ranks or len(set(ranks)) < 2:
            continue
        lower = [name for name in node.inputs if graph.rank(name) != max(rank or 0 for rank in ranks)]
        if any((graph.rank(name) or 0) > 1 and not _is_attribute(graph, name) for name in lower):
            yield node, f"{node.kind} of {' and '.join(words(graph, name) for name in node.inputs)}"


def _is_attribute(graph: Graph, name: str) -> bool:
    """Return whether a value is a constant of floating point, which delegates keep with the operator."""
    return graph.is_stored(name) and "fp" in graph.dtype(name).replace("bf", "fp")


@detector
def hardswish_of_plain_linear(graph: Graph) -> Found:
    """Find hardswish of a linear layer on [N, C], also as x * min(max(x + 3, 0), 6) / 6."""
    for node in graph.of("hardswish", "hardsigmoid", "clip", "relu6"):
        read = node.inputs[0] if node.kind.startswith("hard") else _under_gate(graph, node)
        gates = [one for one in graph.readers(node.output) if one.kind == "mul" and read in one.inputs]
        if read is None or (node.kind == "hardsigmoid" and not gates):
            continue
        layer = graph.source(read, VIEWS | {"add"})
        is_layer = layer is not None and layer.kind in ("linear", "matmul")
        if layer is not None and is_layer and graph.rank(layer.output) == 2 and graph.dtype(layer.output) == "fp16":
            yield node, f"hardswish of a linear layer to {words(graph, layer.output)}"


def _under_gate(graph: Graph, node: Node) -> str | None:
    """Return x where a node is min(max(x + 3, 0), 6) and multiplies x, also after a division; None otherwise."""
    added = graph.operand(node, 0, "add")
    if node.kind == "clip" and (node.settings.get("min"), node.settings.get("max")) != (0, 6):
        return None
    if added is None or _THREE not in map(graph.scalar, added.inputs):
        return None
    following = graph.readers(node.output)
    following = [*following, *(one for reader in following for one in graph.readers(reader.output))]
    gated = (name for name in added.inputs if graph.scalar(name) is None)
    return next((name for name in gated if any(one.kind == "mul" and name in one.inputs for one in following)), None)
