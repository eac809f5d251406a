"""Functions and sums that leave half precision."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator

from edgesmith.exporters.departures.detectors import Found, detector, words
from edgesmith.exporters.departures.graph import VIEWS, Graph, Node

SOFTPLUS_END = 10.39
"""The Neural Engine's softplus is 0 from here on."""

LONG = 4096
"""Numbers of magnitude 16 whose sum passes fp16's range."""

WIDE = 1024
"""Numbers of magnitude 8 whose squares' sum passes fp16's range."""


_PARTS = VIEWS | {"slice", "split", "gather"}
"""Kinds that keep numbers, or some of them."""

_HIGHEST = {**dict.fromkeys(("sigmoid", "hardsigmoid", "tanh", "softmax", "erf", "sin", "cos"), 1.0), "relu6": 6.0}
"""Kinds whose results are not above a number, whatever they read."""

_NOT_NEGATIVE = frozenset({"abs", "relu", "relu6", "square", "exp", "sqrt", "sigmoid", "softmax", "softplus"})


def _softplus(graph: Graph) -> Iterator[tuple[Node, str]]:
    """Yield softplus in half precision, also as log(1 + exp(x)), of an input without a seen bound, and it."""
    for node in graph.of("softplus", "softplus_parametric", "log"):
        read = node.inputs[0] if node.kind != "log" else _under_log(graph, node)
        if read is not None and graph.dtype(node.output) == "fp16" and not _is_below(graph, read, SOFTPLUS_END):
            yield node, read


def _under_log(graph: Graph, node: Node) -> str | None:
    """Return x of log(1 + exp(x)); None for other logarithms."""
    added = graph.operand(node, 0, "add", through=VIEWS)
    if added is None or 1.0 not in map(graph.scalar, added.inputs):
        return None
    exps = [one for name in added.inputs if (one := graph.source(name)) is not None and one.kind == "exp"]
    return exps[0].inputs[0] if exps else None


def _is_below(graph: Graph, name: str, limit: float, depth: int = 8) -> bool:
    """Return whether a value cannot be above a limit, by constants and bounded functions."""
    known = graph.scalar(name)
    if known is not None:
        return known <= limit
    node = graph.source(name)
    if node is None or not depth:
        return False
    below = (_is_below(graph, one, limit, depth - 1) for one in node.inputs)
    if node.kind == "clip":
        return float(node.settings.get("max", math.inf)) <= limit or next(below)
    if node.kind == "min":
        return any(below)
    if node.kind in ("max", "relu", "concat"):
        return limit >= 0 and all(below)
    if node.kind in ("neg", "mul"):
        return limit >= 0 and _negated(graph, node, _NOT_NEGATIVE) is not None
    return _HIGHEST.get(node.kind, math.inf) <= limit


def _negated(graph: Graph, node: Node, kinds: Collection[str]) -> Node | None:
    """Return what a node negates, by `neg` or a negative factor, where that is of some kinds."""
    if node.kind == "mul" and not any((graph.scalar(name) or 0) < 0 for name in node.inputs):
        return None
    found = (graph.source(name) for name in node.inputs)
    is_negation = node.kind in ("neg", "mul")
    return next((one for one in found if is_negation and one is not None and one.kind in kinds), None)


@detector
def softplus_in_half(graph: Graph) -> Found:
    """Find softplus whose input may be large."""
    for node, read in _softplus(graph):
        yield node, f"softplus of {words(graph, read)} in fp16, without a bound"


@detector
def mish_in_half(graph: Graph) -> Found:
    """Find a tanh of such a softplus."""
    for node, read in _softplus(graph):
        if any(reader.kind == "tanh" for reader in graph.after(node.output)):
            yield node, f"the softplus in a Mish of {words(graph, read)} in fp16"


@detector
def unshifted_log_sum_exp(graph: Graph) -> Found:
    """Find log-sum-exp of what is not less its maximum, also as a logarithm of a sum of exponentials."""
    for node in graph.of("log_sum_exp", "log"):
        read = node.inputs[0]
        if node.kind == "log":
            total = graph.operand(node, 0, "reduce_sum", through=VIEWS)
            exps = graph.operand(total, 0, "exp", through=VIEWS) if total is not None else None
            if exps is None:
                continue
            read = exps.inputs[0]
        if graph.dtype(node.output) == "fp16" and not _is_shifted(graph, read):
            yield node, f"log-sum-exp of {words(graph, read)} in fp16, without a shift"


def _is_shifted(graph: Graph, name: str) -> bool:
    """Return whether a value is something less a maximum."""
    node = graph.source(name)
    if node is None or node.kind not in ("sub", "add"):
        return False
    bounds = VIEWS | {"clip", "max", "min"}
    if node.kind == "sub":
        subtracted = graph.source(node.inputs[1], bounds)
        return subtracted is not None and subtracted.kind == "reduce_max"
    added = (graph.source(one, bounds) for one in node.inputs)
    return any(one is not None and _negated(graph, one, ("reduce_max",)) is not None for one in added)


@detector
def log_of_softmax(graph: Graph) -> Found:
    """Find a logarithm of a softmax."""
    for node in graph.of("log"):
        softmax = graph.source(node.inputs[0], _PARTS)
        if softmax is not None and of_softmax(graph, softmax) is not None and graph.dtype(node.output) == "fp16":
            yield node, f"log of a softmax of {words(graph, softmax.inputs[0])} in fp16"


def of_softmax(graph: Graph, node: Node) -> str | None:
    """Return what a softmax reads, also the quotient of exponentials by their sum that ends one; None for others."""
    if node.kind == "softmax":
        return node.inputs[0]
    if node.kind not in ("div", "mul") or len(node.inputs) != 2:
        return None
    for one, other in (node.inputs, node.inputs[::-1])[: 1 if node.kind == "div" else 2]:
        exps, total = graph.source(one), graph.source(other, VIEWS | {"reciprocal"} if node.kind == "mul" else VIEWS)
        if exps is not None and exps.kind == "exp" and total is not None and total.kind == "reduce_sum":
            return exps.inputs[0] if graph.source(total.inputs[0]) is exps else None
    return None


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
        for added, name in _added(graph, node.inputs[0]):
            lowest = _lowest(graph, name)
            if lowest < -65504:
                yield added, f"a mask down to {lowest:.3g} before a softmax"


def _added(graph: Graph, name: str, depth: int = 4) -> Iterator[tuple[Node, str]]:
    """Yield what is added to, or chosen in the place of, a value, each with the node that does it."""
    node = graph.source(name)
    if node is None or node.kind not in ("add", "select") or not depth:
        return
    for one in node.inputs:
        yield node, one
        yield from _added(graph, one, depth - 1)


def _lowest(graph: Graph, name: str) -> float:
    """Return the lowest number of a constant, or of its product with what may be 1; 0 for what is computed."""
    numbers = graph.numbers(name)
    if numbers is not None:
        return float(numbers.min()) if numbers.dtype.kind == "f" and numbers.size else 0.0
    node = graph.source(name)
    if node is None or node.kind != "mul":
        return 0.0
    return min((graph.scalar(one) or 0.0 for one in node.inputs), default=0.0)


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
    left, right = (_known(graph, name) for name in node.inputs)
    if node.kind == "div":
        return 1 / abs(right) if right else None
    known = right if right is not None else left
    return None if known is None else abs(known)


def _known(graph: Graph, name: str) -> float | None:
    """Return a constant of one number, or the root of one."""
    known = graph.scalar(name)
    node = graph.source(name) if known is None and graph.is_stored(name) else None
    under = graph.scalar(node.inputs[0]) if node is not None and node.kind in ("sqrt", "rsqrt") else None
    if node is None or under is None or under <= 0:
        return known
    return math.sqrt(under) if node.kind == "sqrt" else 1 / math.sqrt(under)


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
    if node.settings.get("computed_axes"):
        return 0
    axes = node.ints("axes") or list(range(len(shape)))
    sizes = [shape[axis] for axis in axes if -len(shape) <= axis < len(shape)]
    return 0 if not sizes or None in sizes else math.prod(size or 0 for size in sizes)


@detector
def long_mean(graph: Graph) -> Found:
    """Find sums and means over many numbers."""
    for node in graph.of("reduce_mean", "reduce_sum", "global_avg_pool", "avg_pool"):
        count = math.prod(node.ints("kernel") or [0]) if node.kind == "avg_pool" else _count(graph, node)
        if node.kind == "global_avg_pool":
            spatial = graph.shape(node.inputs[0])[2:]
            count = 0 if None in spatial else math.prod(size or 0 for size in spatial)
        if count >= LONG:
            yield node, f"{node.kind} over {count} numbers of {words(graph, node.inputs[0])}"


@detector
def wide_mean_of_squares(graph: Graph) -> Found:
    """Find means of squares of wide rows."""
    for node in graph.of("reduce_mean", "reduce_sum"):
        maker = graph.source(node.inputs[0], ("identity", "cast"))
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
    for node in graph.of("erf"):
        raised = [
            one for one in graph.readers(node.output) if one.kind == "add" and 1.0 in map(graph.scalar, one.inputs)
        ]
        if raised and graph.dtype(node.output) == "fp16" and _multiplies_its_origin(graph, node, raised[0]):
            yield node, f"GELU of {words(graph, node.inputs[0])} in fp16, by its formula"


def _multiplies_its_origin(graph: Graph, node: Node, raised: Node) -> bool:
    """Return whether 1 + erf(a x) is multiplied by x, or by a half of it, at once or after its own half."""
    scaled = graph.maker(node.inputs[0])
    origins = {name for name in (scaled.inputs if scaled is not None else ()) if not graph.is_stored(name)}
    origins |= {one.output for name in origins for one in graph.readers(name) if one.kind in ("mul", "div")}
    products = [one for one in graph.readers(raised.output) if one.kind == "mul"]
    products += [one for product in products for one in graph.readers(product.output) if one.kind == "mul"]
    return any(origins.intersection(one.inputs) for one in products)


@detector
def single_output_of_half(graph: Graph) -> Found:
    """Find fp32 outputs of a program of half precision."""
    if graph.half:
        for name in graph.outputs:
            if graph.dtype(name) == "fp32":
                yield graph.maker(name) or name, f"the output {name} is fp32"
