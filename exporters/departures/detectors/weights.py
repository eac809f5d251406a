"""Compressed weights: tables, blocks, scales."""

from __future__ import annotations

from edgesmith.exporters.departures.detectors import Found, detector, words
from edgesmith.exporters.departures.detectors.states import entries
from edgesmith.exporters.departures.graph import VIEWS, Graph, Node

_SMALL_TABLE = 16


def _weight(graph: Graph, node: Node) -> Node | None:
    """Return what decompresses a layer's weight."""
    return graph.source(node.inputs[1]) if len(node.inputs) > 1 else None


@detector
def linear_of_small_table(graph: Graph) -> Found:
    """Find linear layers whose weight has one table of 16 entries and fewer."""
    for node in graph.of("linear", "matmul"):
        weight = _weight(graph, node)
        if weight is None or weight.kind != "lut_weights":
            continue
        table = graph.shape(weight.inputs[1])
        groups = [size for size in table[:-2] if size != 1]
        if 0 < entries(graph, weight.inputs[1]) <= _SMALL_TABLE and not groups:
            yield node, f"a weight of {words(graph, node.inputs[1])} by one table {words(graph, weight.inputs[1])}"


@detector
def scaled_table(graph: Graph) -> Found:
    """Find scales over looked-up weights."""
    for node in graph.of("blockwise_weights"):
        if graph.operand(node, 0, "lut_weights") is not None:
            yield node, f"scales {words(graph, node.inputs[1])} over a look-up table"


def _groups(graph: Graph, node: Node) -> int:
    """Return by how many groups of inputs a weight's scales go."""
    scale = graph.shape(node.inputs[1])
    return max((size or 1 for size in scale[1:]), default=1)


@detector
def table_scaled_by_group(graph: Graph) -> Found:
    """Find scales by groups of inputs over looked-up weights."""
    for node in graph.of("blockwise_weights"):
        if graph.operand(node, 0, "lut_weights") is not None and _groups(graph, node) > 1:
            yield node, f"scales {words(graph, node.inputs[1])} over a look-up table"


@detector
def bytes_scaled_by_block(graph: Graph) -> Found:
    """Find 8-bit weights with scales by blocks of inputs."""
    for node in graph.of("blockwise_weights"):
        is_bytes = graph.dtype(node.inputs[0]) in ("int8", "uint8")
        if is_bytes and graph.operand(node, 0, "lut_weights") is None and _groups(graph, node) > 1:
            yield node, f"scales {words(graph, node.inputs[1])} of {words(graph, node.inputs[0])}"


@detector
def linear_of_bytes(graph: Graph) -> Found:
    """Find linear layers with int8 weights."""
    for node in graph.of("linear", "matmul"):
        weight = _weight(graph, node)
        if weight is not None and weight.kind in ("dequantize", "blockwise_weights", "affine_weights"):
            source = graph.source(weight.inputs[0], VIEWS)
            if source is None and graph.dtype(weight.inputs[0]) == "int8":
                yield node, f"an int8 weight of {words(graph, node.inputs[1])}"
