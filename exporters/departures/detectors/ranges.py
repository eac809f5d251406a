"""Functions and sums that leave half precision."""

from __future__ import annotations

import math
from collections.abc import Iterator

from edgesmith.exporters.departures.detectors import Found, detector, words
from edgesmith.exporters.departures.graph import VIEWS, Graph, Node

SOFTPLUS_END = 10.39
"""The Neural Engine's softplus is 0 from here on."""

LONG = 4096
"""Numbers of magnitude 16 whose sum passes fp16's range."""

WIDE = 1024
"""Numbers of magnitude 8 whose squares' sum passes fp16's range."""


def _softplus(graph: Graph) -> Iterator[Node]:
    """Yield softplus in half precision whose input is not seen to be bounded."""
    for node in graph.of("softplus", "softplus_parametric"):
        if graph.dtype(node.output) == "fp16" and not _is_below(graph, node.inputs[0], SOFTPLUS_END):
            yield node


def _is_below(graph: Graph, name: str, limit: float) -> bool:
    """Return whether a value is the smaller of something and a constant below a limit."""
    node = graph.source(name)
    if node is None:
        return False
    if node.kind == "clip":
        return float(node.settings.get("max", math.inf)) <= limit
    bounds = [graph.scalar(one) for one in node.inputs] if node.kind == "min" else []
    return any(bound is not None and bound <= limit for bound in bounds)


@detector
def softplus_in_half(graph: Graph) -> Found:
    """Find softplus whose input may be large."""
    for node in _softplus(graph):
        yield node, f"softplus of {words(graph, node.inputs[0])} in fp16, without a bound"


@detector
def mish_in_half(graph: Graph) -> Found:
    """Find a tanh of such a softplus."""
    for node in _softplus(graph):
        if any(reader.kind == "tanh" for reader in graph.after(node.output)):
            yield node, f"the softplus in a Mish of {words(graph, node.inputs[0])} in fp16"


@detector
def unshifted_log_sum_exp(graph: Graph) -> Found:
    """Find log-sum-exp of what is not less its maximum."""
    for node in graph.of("log_sum_exp"):
        if graph.dtype(node.output) == "fp16" and not _is_shifted(graph, node.inputs[0]):
            yield node, f"log-sum-exp of {words(graph, node.inputs[0])} in fp16, without a shift"


def _is_shifted(graph: Graph, name: str) -> bool:
    """Return whether a value is something less a maximum."""
    node = graph.source(name)
    if node is None or node.kind != "sub":
        return False
    subtracted = graph.source(node.inputs[1], VIEWS | {"clip", "max", "min"})
    return subtracted is not None and subtracted.kind == "reduce_max"


@detector
def log_of_softmax(graph: Graph) -> Found:
    """Find a logarithm of a softmax."""
    for node in graph.of("log"):
        softmax = graph.operand(node, 0, "softmax", through=VIEWS)
        if softmax is not None and graph.dtype(node.output) == "fp16":
            yield node, f"log of a softmax of {words(graph, softmax.inputs[0])} in fp16"


@detector
def log_of_cumsum_of_exp(graph: Graph) -> Found:
    """Find a logarithm of running sums of exponentials."""
    for node in graph.of("log"):
        sums = graph.operand(node, 0, "cumsum", through=VIEWS)
        exps = graph.operand(sums, 0, "exp", through=VIEWS) if sums is not None else None
        if exps is not None and graph.dtype(node.output) == "fp16" and not _is_shifted(graph, exps.inputs[0]):
            yield node, f"log of a cumsum of an exp of {words(graph, exps.inputs[0])} in fp16"


@detector
def infinite_mask(graph: Graph) -> Found:
    """Find a constant beyond fp16's range that is added to the scores of a softmax."""
    for node in graph.of("softmax"):
        added = graph.operand(node, 0, "add", "select", through=VIEWS)
        for name in added.inputs if added is not None else ():
            numbers = graph.numbers(name)
            if numbers is not None and numbers.dtype.kind == "f" and bool((numbers < -65504).any()):
                yield added or node, f"a mask down to {numbers.min():.3g} before a softmax"


@detector
def scale_after_product(graph: Graph) -> Found:
    """Find products of computed matrices in fp16 that are scaled down or squared after it."""
    for node in graph.of("matmul"):
        if graph.dtype(node.output) != "fp16" or all(graph.is_stored(name) for name in node.inputs):
            continue
        computed = not any(graph.is_stored(name) for name in node.inputs)
        for reader in graph.after(node.output):
            if computed and (factor := _factor(graph, reader)) is not None and factor < 1:
                yield node, f"a product to {words(graph, node.output)} in fp16, scaled by {factor:.3g} after it"
            elif not computed and _squares(reader) and _is_scaled_down(graph, reader.output):
                yield node, f"a product to {words(graph, node.output)} in fp16, squared and scaled down after it"


def _factor(graph: Graph, node: Node) -> float | None:
    """Return the constant that a node scales by, in magnitude; None where it does not."""
    if node.kind not in ("mul", "div") or len(node.inputs) != 2:
        return None
    left, right = (graph.scalar(name) for name in node.inputs)
    if node.kind == "div":
        return 1 / abs(right) if right else None
    known = right if right is not None else left
    return None if known is None else abs(known)


def _squares(node: Node) -> bool:
    return node.kind == "square" or (node.kind == "mul" and len(set(node.inputs)) == 1)


def _is_scaled_down(graph: Graph, name: str, depth: int = 3) -> bool:
    """Return whether a value, or a sum with it, is multiplied by a constant below 1."""
    for reader in graph.after(name):
        factor = _factor(graph, reader)
        if factor is not None and 0 < factor < 1:
            return True
        if depth and reader.kind in ("add", "reduce_sum", "reduce_mean") and _is_scaled_down(graph, reader.output, 0):
            return True
    return False


def _count(graph: Graph, node: Node) -> int:
    """Return how many numbers a reduction takes together; 0 where sizes are not known."""
    shape = graph.shape(node.inputs[0])
    axes = node.ints("axes") or list(range(len(shape)))
    sizes = [shape[axis] for axis in axes if -len(shape) <= axis < len(shape)]
    return 0 if not sizes or None in sizes else math.prod(size or 0 for size in sizes)


@detector
def long_mean(graph: Graph) -> Found:
    """Find sums and means over many numbers."""
    for node in graph.of("reduce_mean", "reduce_sum", "global_avg_pool"):
        count = _count(graph, node)
        if node.kind == "global_avg_pool":
            spatial = graph.shape(node.inputs[0])[2:]
            count = 0 if None in spatial else math.prod(size or 0 for size in spatial)
        if count >= LONG:
            yield node, f"{node.kind} over {count} numbers of {words(graph, node.inputs[0])}"


@detector
def wide_mean_of_squares(graph: Graph) -> Found:
    """Find means of squares of wide rows."""
    for node in graph.of("reduce_mean", "reduce_sum"):
        maker = graph.maker(node.inputs[0])
        count = _count(graph, node)
        powers = maker is not None and maker.kind == "pow" and graph.scalar(maker.inputs[1]) == 2
        squares = powers or (maker is not None and _squares(maker))
        if squares and count >= WIDE:
            yield node, f"a mean of {count} squares"


@detector
def gelu_in_half(graph: Graph) -> Found:
    """Find GELU in half precision."""
    for node in graph.of("gelu"):
        if graph.dtype(node.output) == "fp16":
            yield node, f"GELU of {words(graph, node.inputs[0])} in fp16"


@detector
def single_output_of_half(graph: Graph) -> Found:
    """Find fp32 outputs of a program of half precision."""
    if graph.half:
        for name in graph.outputs:
            if graph.dtype(name) == "fp32":
                yield graph.maker(name) or name, f"the output {name} is fp32"
