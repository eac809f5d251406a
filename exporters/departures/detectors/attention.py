"""Attention, and the products around it."""

from __future__ import annotations

from collections.abc import Iterator

from edgesmith.exporters.departures.detectors import Found, detector, words
from edgesmith.exporters.departures.detectors.norms import spelled_norms
from edgesmith.exporters.departures.detectors.ranges import of_softmax
from edgesmith.exporters.departures.graph import ELEMENTWISE, VIEWS, Graph, Node, Shape

_PRODUCTS = ("matmul", "einsum")
_LARGE_BATCH = 10
_WIDE_HEAD = 256
_NEAR = 12
"""Operators between a projection and the scores, at most."""


def _spelled(graph: Graph) -> Iterator[tuple[Node, Node, Node]]:
    """Yield scores, softmax and product of attention in primitives: matmul(softmax(.. matmul ..), v)."""
    for softmax in graph.of("softmax", "div", "mul"):
        read = of_softmax(graph, softmax)
        scores = _scores(graph, read) if read is not None else None
        after = [node for node in graph.after(softmax.output) if node.kind in _PRODUCTS]
        if scores is not None and after:
            yield scores, softmax, after[0]


def _scores(graph: Graph, name: str, depth: int = 6) -> Node | None:
    """Return the product that a value is made of by masks and scales, whichever operand it is."""
    node = graph.source(name)
    if node is None or node.kind in _PRODUCTS or not depth:
        return node if node is not None and node.kind in _PRODUCTS else None
    read = node.inputs if node.kind in ELEMENTWISE | {"select"} else ()
    return next((one for name in read if (one := _scores(graph, name, depth - 1)) is not None), None)


def _batch(graph: Graph, node: Node) -> int | None:
    """Return the first size of a node's result; None where a run decides it, and 1 where there is none."""
    shape = graph.shape(node.output)
    return shape[0] if len(shape) > 1 else 1


@detector
def biased_attention_of_large_batch(graph: Graph) -> Found:
    """Find product, sum, softmax, product and projection over ten or more."""
    for scores, softmax, product in _spelled(graph):
        biased = graph.operand(softmax, 0, "add", through=VIEWS | {"mul", "div"})
        projected = any(node.kind in ("linear", "matmul", "conv") for node in graph.after(product.output))
        batch = _batch(graph, scores)
        if biased is not None and projected and batch is not None and batch >= _LARGE_BATCH:
            yield softmax, f"attention with an added bias, {words(graph, scores.output)}"


def _width(shape: Shape, node: Node) -> int:
    """Return the width of a head: queries of rank 3 have all heads side by side."""
    return (shape[-1] or 0) // max(int(node.settings.get("heads", 1)), 1)


@detector
def attention_of_wide_heads(graph: Graph) -> Found:
    """Find fused attention of wide heads whose queries are computed."""
    for node in graph.of("attention"):
        shape = graph.shape(node.inputs[0])
        wide = len(shape) > 1 and _width(shape, node) > _WIDE_HEAD and (shape[-2] or 2) > 1
        if wide and graph.dtype(node.inputs[0]) == "fp16" and graph.maker(node.inputs[0]) is not None:
            yield node, f"attention of queries {words(graph, node.inputs[0])} in fp16"


@detector
def attention_of_wide_heads_and_tokens(graph: Graph) -> Found:
    """Find fused attention of wide heads over six tokens and more."""
    for node in graph.of("attention"):
        shape = graph.shape(node.inputs[0])
        wide = len(shape) > 2 and _width(shape, node) > _WIDE_HEAD and (shape[-2] or 6) >= 6
        if wide and graph.dtype(node.inputs[0]) == "fp16":
            yield node, f"attention of queries {words(graph, node.inputs[0])} in fp16"


@detector
def attention_with_present(graph: Graph) -> Found:
    """Find attention whose keys and values are returned."""
    for node in graph.of("attention"):
        used = [name for name in node.outputs[1:3] if name and (graph.readers(name) or name in graph.outputs)]
        if used:
            yield node, f"{' and '.join(used)} of an Attention are read"


@detector
def attention_of_rank_3(graph: Graph) -> Found:
    """Find attention in primitives on tensors of rank 3, in a graph that has others."""
    for scores, softmax, product in _spelled(graph):
        if all(graph.rank(node.output) == 3 for node in (scores, softmax, product)):
            yield softmax, f"attention on {words(graph, softmax.output)}"


@detector
def product_with_transposed_softmax(graph: Graph) -> Found:
    """Find products whose right operand is a transposed softmax."""
    for node in graph.of("matmul"):
        softmax = graph.operand(node, 1, "softmax", through=VIEWS)
        if softmax is None:
            continue
        moved = graph.operand(node, 1, "transpose")
        if moved is not None or node.settings.get("transpose_y"):
            yield node, f"a product with a transposed softmax of {words(graph, softmax.output)}"


def _projections(graph: Graph, name: str) -> list[Node]:
    """Return the products with constants that read a value."""
    return [
        node
        for node in graph.readers(name)
        if node.kind in ("matmul", "linear") and node.inputs[0] == name and graph.is_stored(node.inputs[1])
    ]


@detector
def products_of_one_norm(graph: Graph) -> Found:
    """Find several products of one layer norm, also of one in primitives."""
    spelled = [_with_affine(graph, norm.result) for norm in spelled_norms(graph)]
    for node in (*graph.of("layer_norm", "rms_norm"), *spelled):
        products = _projections(graph, node.output)
        if len(products) > 1:
            yield node, f"{len(products)} products read one norm of {words(graph, node.inputs[0])}"


def _with_affine(graph: Graph, node: Node) -> Node:
    """Return the node that ends a norm in primitives: the bias or the scale behind it, where it has one."""
    for kind in ("mul", "add"):
        readers = graph.readers(node.output)
        if len(readers) == 1 and readers[0].kind == kind and any(map(graph.is_stored, readers[0].inputs)):
            node = readers[0]
    return node


@detector
def projections_of_batch(graph: Graph) -> Found:
    """Find three projections of one input in fp16 over two and more, in front of attention."""
    if not any(True for _ in _spelled(graph)) and not any(True for _ in graph.of("attention")):
        return
    for name in {name: None for node in graph.of("matmul", "linear") for name in node.inputs[:1]}:
        products = _projections(graph, name)
        batch = graph.shape(name)[:1] if (graph.rank(name) or 0) > 2 else (1,)
        if len(products) >= 3 and graph.dtype(name) == "fp16" and batch[0] != 1:
            yield products[0], f"{len(products)} projections of {words(graph, name)} in fp16"


@detector
def batched_attention_of_strided_keys(graph: Graph) -> Found:
    """Find attention over a batch whose keys come through a strided convolution."""
    for scores, softmax, _ in _spelled(graph):
        if _batch(graph, scores) == 1:
            continue
        near = [node for _, node in zip(range(_NEAR), graph.ancestors(scores.inputs[1]), strict=False)]
        reducing = [node for node in near if node.kind == "conv" and max(node.ints("strides"), default=1) > 1]
        if reducing and not graph.is_stored(scores.inputs[0]):
            yield softmax, f"attention over {words(graph, scores.output)}, keys by {reducing[0].name}"


@detector
def vector_products_in_a_row(graph: Graph) -> Found:
    """Find two products of one row with constants, one after the other."""
    through = VIEWS | {"relu", "add", "gelu", "silu", "sigmoid", "tanh", "mul", "hardswish", "layer_norm"}
    through |= {"clip", "relu6", "leaky_relu", "elu", "hardsigmoid", "erf", "softplus", "div"}
    for node in graph.of("matmul", "linear"):
        before = graph.operand(node, 0, "matmul", "linear", through=through)
        if before is not None and all(_is_row(graph, one) for one in (node, before)):
            yield node, f"two products with one row, the second to {words(graph, node.output)}"


def _is_row(graph: Graph, node: Node) -> bool:
    """Return whether a node multiplies a single row by a constant."""
    shape = graph.shape(node.inputs[0])
    return bool(shape) and all(size == 1 for size in shape[:-1]) and graph.is_stored(node.inputs[1])


@detector
def broadcast_onto_product(graph: Graph) -> Found:
    """Find sums of a product with something of another shape."""
    for node in graph.of("add"):
        product = next(iter(graph.operands(node, "matmul", "linear")), None)
        if product is None or any(graph.is_stored(name) and graph.rank(name) == 1 for name in node.inputs):
            continue  # a bias is fused into the product
        shapes = {graph.shape(name) for name in node.inputs}
        if len(shapes) > 1 and () not in shapes:
            yield node, f"{words(graph, node.inputs[0])} + {words(graph, node.inputs[1])}"


@detector
def product_with_flag(graph: Graph) -> Found:
    """Find batched products that transpose an operand themselves."""
    for node in graph.of("matmul"):
        flags = [name for name in ("transpose_x", "transpose_y") if node.settings.get(name)]
        if flags and not graph.is_stored(node.inputs[1]):
            yield node, f"a product of {words(graph, node.inputs[0])} with {flags[0]}"
