"""Layer norms: fused, and in primitives that a fuser or half precision takes otherwise.

mean = reduce_mean(x), d = x - mean, variance = reduce_mean(d d), y = d / sqrt(variance + eps)

The root may be an rsqrt, and the quotient a product with a reciprocal.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from edgesmith.exporters.departures.detectors import Found, detector, words
from edgesmith.exporters.departures.graph import VIEWS, Graph, Node

_HALF = 0.5
"""The exponent of a root, and without its sign of one over a root."""


@dataclass(frozen=True)
class Norm:
    """A layer norm in primitives: its nodes, and the one that makes its result."""

    mean: Node
    difference: Node
    variance: Node
    result: Node


def spelled_norms(graph: Graph) -> Iterator[Norm]:
    """Yield the layer norms in primitives."""
    for root in graph.of("sqrt", "rsqrt", "pow"):
        if root.kind == "pow" and abs(graph.scalar(root.inputs[1]) or 0.0) != _HALF:
            continue
        variance = _mean_under(graph, root)
        square = graph.maker(variance.inputs[0]) if variance is not None else None
        squared = _squared(graph, square)
        difference = graph.maker(squared) if squared is not None else None
        if variance is None or difference is None or difference.kind != "sub":
            continue
        mean = graph.operand(difference, 1, "reduce_mean")
        if mean is None or mean.inputs[0] != difference.inputs[0]:
            continue
        same = _alike(graph, difference)
        result = next((one for one in _divided(graph, root) if same.intersection(one.inputs)), None)
        if result is not None:
            yield Norm(mean, difference, variance, result)


def _alike(graph: Graph, difference: Node) -> set[str]:
    """Return the results of a difference, and of others of the same operands: some exports take it twice."""
    readers = graph.readers(difference.inputs[0])
    return {one.output for one in readers if one.kind == difference.kind and one.inputs == difference.inputs}


def _mean_under(graph: Graph, root: Node) -> Node | None:
    """Return the mean under a root, directly or with an epsilon added."""
    added = graph.operand(root, 0, "add")
    if added is None:
        return graph.operand(root, 0, "reduce_mean")
    return next(iter(graph.operands(added, "reduce_mean")), None)


def _squared(graph: Graph, node: Node | None) -> str | None:
    """Return what a node squares."""
    if node is None:
        return None
    if node.kind == "square" or (node.kind == "mul" and len(set(node.inputs)) == 1):
        return node.inputs[0]
    return node.inputs[0] if node.kind == "pow" and graph.scalar(node.inputs[1]) == 2 else None


def _divided(graph: Graph, root: Node) -> list[Node]:
    """Return the nodes that divide by a root."""
    found = [node for node in graph.readers(root.output) if node.kind in ("div", "mul")]
    for inverse in graph.readers(root.output):
        if inverse.kind in ("reciprocal", "div") and inverse not in found[1:]:
            found += [node for node in graph.readers(inverse.output) if node.kind == "mul"]
    return found


@detector
def layer_norm_of_half_primitives(graph: Graph) -> Found:
    """Find layer norms in primitives of half precision, also with the variance as mean of squares less squared mean."""
    for norm in spelled_norms(graph):
        if graph.dtype(norm.variance.output) == "fp16":
            yield norm.difference, f"a layer norm of {words(graph, norm.difference.output)} in primitives of fp16"
    for node in graph.of("sub"):
        squares, mean = (graph.maker(name) for name in node.inputs)
        mean_of = graph.maker(_squared(graph, mean) or "")
        if squares is None or squares.kind != "reduce_mean" or mean_of is None or mean_of.kind != "reduce_mean":
            continue
        if _squared(graph, graph.maker(squares.inputs[0])) == mean_of.inputs[0] and graph.dtype(node.output) == "fp16":
            yield node, f"a variance of {words(graph, mean_of.inputs[0])} in fp16, as a difference of squares"


@detector
def layer_norm_of_dropped_axis(graph: Graph) -> Found:
    """Find layer norms in primitives one of whose means drops its axis; a product with a reciprocal is not fused."""
    for norm in spelled_norms(graph):
        if norm.result.kind != "div":
            continue
        if any(node.settings.get("keep_dims") is False for node in (norm.mean, norm.variance)):
            yield norm.difference, f"a norm of {words(graph, norm.difference.output)} whose mean has keepdims 0"


@detector
def layer_norm_of_broadcast_scale(graph: Graph) -> Found:
    """Find layer norms in primitives whose scale or bias broadcasts along what is normalised."""
    for norm in spelled_norms(graph):
        if norm.result.kind != "div":
            continue  # a product with a reciprocal is not fused
        rank = graph.rank(norm.difference.inputs[0])
        axes = sorted(axis % rank for axis in norm.mean.ints("axes")) if rank else []
        wanted = [graph.shape(norm.difference.inputs[0])[axis] for axis in axes]
        node = norm.result
        for kind in ("mul", "add"):
            following = [one for one in graph.readers(node.output) if one.kind == kind]
            if len(following) != 1:
                continue
            (following_one,) = following
            others = [name for name in following_one.inputs if name != node.output and graph.is_stored(name)]
            if others and (shape := list(graph.shape(others[0]))) != wanted and _is_fewer(shape, wanted):
                word = "scale" if kind == "mul" else "bias"
                yield following_one, f"a norm over {wanted} with a {word} of {words(graph, others[0])}"
            node = following_one


def _is_fewer(shape: list[int | None], wanted: list[int | None]) -> bool:
    """Return whether a shape has other numbers than the normalised one, apart from axes of 1 in front."""
    while shape and shape[0] == 1 and len(shape) > len(wanted):
        shape = shape[1:]
    return shape != wanted


@detector
def rms_norm_by_peak(graph: Graph) -> Found:
    """Find RMS norms of rows that were divided by their peak, with an eps that was not."""
    for node in graph.of("reduce_mean"):
        squared = _squared(graph, graph.maker(node.inputs[0]))
        divided = graph.maker(squared) if squared is not None else None
        if divided is None or not _is_by_peak(graph, divided):
            continue
        for added in graph.readers(node.output):
            if added.kind == "add" and any(graph.scalar(name) for name in added.inputs):
                yield added, "an eps that is added to squares of x / max|x|"


def _is_by_peak(graph: Graph, node: Node) -> bool:
    """Return whether a node divides by a maximum, or multiplies by one over it; an eps may be added to that."""
    through = VIEWS | {"max", "clip", "add"}
    if node.kind == "div":
        return graph.operand(node, 1, "reduce_max", through=through) is not None
    inverses = [one for name in node.inputs if (one := graph.source(name)) is not None] if node.kind == "mul" else []
    over = [one.inputs[0 if one.kind == "reciprocal" else 1] for one in inverses if one.kind in ("reciprocal", "div")]
    return any((one := graph.source(name, through)) is not None and one.kind == "reduce_max" for name in over)


@detector
def half_norm_of_sum(graph: Graph) -> Found:
    """Find layer norms in fp16 of a sum."""
    for node in graph.of("layer_norm"):
        added = graph.operand(node, 0, "add")
        if added is not None and graph.dtype(node.output) == "fp16" and not _has_constant(graph, added):
            yield node, f"a layer norm in fp16 of a sum, {words(graph, node.inputs[0])}"


def _has_constant(graph: Graph, node: Node) -> bool:
    return any(graph.is_stored(name) for name in node.inputs)
