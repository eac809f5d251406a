"""Gathers, slices and choices."""

from __future__ import annotations

from edgesmith.exporters.departures.detectors import Found, detector, words
from edgesmith.exporters.departures.graph import VIEWS, Graph, Node

_WIDE_ROW = 32
_NARROW = ("int16", "uint16", "int8", "uint8")


def _last(graph: Graph, node: Node, axes: list[int]) -> bool:
    """Return whether a node works on the last axis of its first operand."""
    rank = graph.rank(node.inputs[0])
    return bool(rank) and any(axis % (rank or 1) == (rank or 1) - 1 for axis in axes)


def _begins_inside(graph: Graph, node: Node) -> bool:
    """Return whether a slice of the last axis begins behind its first element."""
    pairs = zip(node.ints("axes"), node.ints("begin"), strict=False)
    return any(begin != 0 and _last(graph, node, [axis]) for axis, begin in pairs)


@detector
def slice_into_last_axis(graph: Graph) -> Found:
    """Find slices of the last axis in fp16 that begin behind its first element."""
    for node in graph.of("slice"):
        if (
            graph.dtype(node.inputs[0]) == "fp16"
            and not graph.is_stored(node.inputs[0])
            and _begins_inside(graph, node)
        ):
            yield node, f"a slice of {words(graph, node.inputs[0])} that begins at {node.ints('begin')}"


@detector
def fixed_gather_of_last_axis(graph: Graph) -> Found:
    """Find gathers along the last axis by constants, also as slices that are joined."""
    for node in graph.of("gather"):
        axes = node.ints("axis") or [0]
        fixed = graph.is_stored(node.inputs[1]) and (graph.rank(node.inputs[1]) or 0) > 0
        if fixed and not graph.is_stored(node.inputs[0]) and _last(graph, node, axes):
            yield node, f"a gather along the last axis of {words(graph, node.inputs[0])}"
    for node in graph.of("concat", "stack"):
        slices = [one for name in node.inputs if (one := graph.source(name)) is not None and one.kind == "slice"]
        parts = [one for one in slices if _begins_inside(graph, one)]
        sources = {one.inputs[0] for one in parts}
        rank = graph.rank(node.output) or 1
        is_last = (node.ints("axis") or [-1])[0] % rank == rank - 1
        if len(parts) > 1 and len(sources) == 1 and is_last:
            yield node, f"{len(parts)} slices of the last axis, joined"


@detector
def computed_gather_nd(graph: Graph) -> Found:
    """Find gather_nd by computed indices."""
    for node in graph.of("gather_nd"):
        if not graph.is_stored(node.inputs[1]):
            yield node, f"gather_nd of {words(graph, node.inputs[0])} by computed indices"


@detector
def narrowed_data(graph: Graph) -> Found:
    """Find int32 data that are narrowed to be gathered, squeezed or sorted."""
    for node in graph.of("cast"):
        narrow = graph.dtype(node.output) in _NARROW and graph.dtype(node.inputs[0]) == "int32"
        if narrow and not graph.is_stored(node.inputs[0]):
            for reader in graph.after(node.output, VIEWS - {"squeeze"}):
                if reader.kind in ("gather", "squeeze", "topk") and _is_data(graph, reader, node):
                    yield node, f"data of {words(graph, node.inputs[0])} narrowed to {graph.dtype(node.output)}"


def _is_data(graph: Graph, reader: Node, node: Node) -> bool:
    """Return whether a node's result is what a reader takes elements of, and not which ones."""
    name = reader.inputs[0]
    return name == node.output or graph.source(name, VIEWS - {"squeeze", "cast"}) is node


@detector
def argmax_of_map_at_the_end(graph: Graph) -> Found:
    """Find outputs that are an argmax over the channels of a map, of which there are several."""
    for name in graph.outputs:
        node = graph.source(name)
        shape = graph.shape(node.inputs[0]) if node is not None and node.kind == "argmax" else ()
        axis = graph.axis(node) if node is not None and shape else 0
        positions = [size for size in shape[1:-1] if size is not None]
        classes = shape[-1] if shape else None  # fewer of them than of positions: else it is a row's width
        is_last = axis == len(shape) - 1 and classes is not None and classes < min(positions, default=0)
        is_map = len(shape) >= 4 and (axis == 1 or is_last)
        if node is not None and is_map and shape[axis] != 1:
            yield node, f"the output {name} is an argmax over channels of {words(graph, node.inputs[0])}"


@detector
def gather_of_wide_rows_by_topk(graph: Graph) -> Found:
    """Find gathers of wide rows in fp16 by the indices of a topk."""
    for node in graph.of("gather", "gather_along_axis", "gather_nd"):
        row = graph.shape(node.inputs[0])[-1:]
        chosen = graph.operand(node, 1, "topk", through=VIEWS | {"add", "mul", "div", "concat", "tile", "expand"})
        if chosen is not None and graph.dtype(node.inputs[0]) == "fp16" and row and (row[0] or 0) >= _WIDE_ROW:
            yield node, f"a gather of {words(graph, node.inputs[0])} by a topk"
