"""Convolutions, pools and pads with settings that are computed otherwise."""

from __future__ import annotations

from collections.abc import Sequence

from edgesmith.exporters.departures.detectors import Found, detector, words
from edgesmith.exporters.departures.graph import ELEMENTWISE, VIEWS, Graph, Node

_ACTIVATIONS = frozenset({"relu", "silu", "sigmoid", "mul", "hardswish", "gelu", "leaky_relu", "clip"})
_LONG_REFLECTION = 1024
_LONG_STRIDE = 8
_PATCH = 14
_LARGE_MAP = 900


def _kernel(graph: Graph, node: Node) -> tuple[int | None, ...]:
    """Return the sizes of a convolution's kernel."""
    return graph.shape(node.inputs[1])[2:] if len(node.inputs) > 1 else ()


def _pads(node: Node) -> tuple[list[int], list[int]]:
    """Return the borders at all beginnings, and those at all ends."""
    pads = node.ints("pads")
    half = len(pads) // 2
    return pads[:half], pads[half:]


def _by(sizes: Sequence[int | None]) -> str:
    return "x".join("?" if size is None else str(size) for size in sizes)


@detector
def depthwise_of_joined_pointwise(graph: Graph) -> Found:
    """Find a depthwise convolution of joined 1x1 convolutions."""
    for node in graph.of("conv"):
        channels = graph.shape(node.inputs[0])[1:2]
        joined = graph.operand(node, 0, "concat", through=VIEWS)
        if joined is None or node.settings.get("groups", 1) == 1 or (node.settings["groups"],) != channels:
            continue
        branches = graph.operands(joined, "conv")
        if len(branches) > 1 and all(set(_kernel(graph, one)) == {1} for one in branches):
            yield node, f"a depthwise {_by(_kernel(graph, node))} of {len(branches)} joined 1x1 convolutions"


@detector
def pool_counting_wide_borders(graph: Graph) -> Found:
    """Find average pools that count borders of two and more."""
    for node in graph.of("avg_pool"):
        if node.settings.get("count_padding") and max(node.ints("pads"), default=0) >= 2:
            yield node, f"a pool {_by(node.ints('kernel'))} that counts borders of {max(node.ints('pads'))}"


@detector
def pool_counting_uneven_borders(graph: Graph) -> Found:
    """Find average pools that count borders which are uneven or rounded up."""
    for node in graph.of("avg_pool"):
        begins, ends = _pads(node)
        if node.settings.get("count_padding") and (begins != ends or (node.settings.get("ceil") and any(begins))):
            yield node, f"a pool {_by(node.ints('kernel'))} that counts the borders {node.ints('pads')}"


@detector
def quantised_pool_rounded_up(graph: Graph) -> Found:
    """Find max pools of quantised data that round their output up."""
    for node in graph.of("max_pool"):
        quantised = graph.operand(node, 0, "dequantize") or graph.dtype(node.inputs[0]) in ("int8", "uint8")
        if node.settings.get("ceil") and quantised:
            yield node, f"a quantised pool {_by(node.ints('kernel'))} with ceil_mode"


@detector
def even_kernel_with_borders(graph: Graph) -> Found:
    """Find strided convolutions of uneven kernels, one side even, with borders."""
    for node in graph.of("conv"):
        kernel, strides = _kernel(graph, node), node.ints("strides")
        even = len(set(kernel)) > 1 and any(size is not None and size > 1 and size % 2 == 0 for size in kernel)
        if even and max(strides, default=1) > 1 and any(node.ints("pads")):
            yield node, f"a convolution {_by(kernel)} of stride {_by(strides)} with borders {node.ints('pads')}"


@detector
def uneven_conv_transpose(graph: Graph) -> Found:
    """Find transposed convolutions with an output shape that is given, or one-sided borders."""
    for node in graph.of("conv_transpose"):
        begins, ends = _pads(node)
        if node.ints("output_shape") and node.settings.get("given_shape"):
            yield node, f"conv_transpose with the output shape {node.ints('output_shape')}"
        elif begins != ends:
            yield node, f"conv_transpose with the borders {node.ints('pads')}"


@detector
def dilated_conv_transpose(graph: Graph) -> Found:
    """Find transposed convolutions that are dilated."""
    for node in graph.of("conv_transpose"):
        if max(node.ints("dilations"), default=1) > 1:
            yield node, f"conv_transpose with dilation {_by(node.ints('dilations'))}"


@detector
def conv_transpose_with_output_padding(graph: Graph) -> Found:
    """Find transposed convolutions with output padding."""
    for node in graph.of("conv_transpose"):
        if any(node.ints("output_padding")):
            yield node, f"conv_transpose with output_padding {node.ints('output_padding')}"


@detector
def long_stride_transposed(graph: Graph) -> Found:
    """Find transposed convolutions over one axis with a long stride."""
    for node in graph.of("conv_transpose"):
        strides, sizes = node.ints("strides"), graph.shape(node.inputs[0])[2:]
        long = [stride for stride in strides if stride >= _LONG_STRIDE]
        others = [size for size, stride in zip(sizes, strides, strict=False) if stride < _LONG_STRIDE]
        if len(long) == 1 and all(size == 1 for size in others):
            yield node, f"conv_transpose over one axis with stride {long[0]}"


@detector
def dilated_conv_to_one(graph: Graph) -> Found:
    """Find dilated, strided, grouped convolutions over one axis that leave one position."""
    for node in graph.of("conv"):
        dilations, strides = node.ints("dilations"), node.ints("strides")
        along = [size for size in _kernel(graph, node) if size != 1]
        single = len(along) == 1 and set(graph.shape(node.output)[2:]) == {1}
        if single and max(dilations, default=1) > 1 and max(strides) > 1 and node.settings.get("groups", 1) > 1:
            yield node, f"a convolution to {words(graph, node.output)} with dilation {max(dilations)}"


@detector
def long_reflection(graph: Graph) -> Found:
    """Find long pads by reflection."""
    for node in graph.of("pad"):
        if node.settings.get("mode") == "reflect" and max(node.ints("pads"), default=0) >= _LONG_REFLECTION:
            yield node, f"a pad by reflection of {max(node.ints('pads'))}"


@detector
def pad_of_rank_3(graph: Graph) -> Found:
    """Find pads of rank 3 on another axis than the last."""
    for node in graph.of("pad"):
        begins, ends = _pads(node)
        if graph.rank(node.inputs[0]) == 3 and max((*begins[:-1], *ends[:-1]), default=0) > 0:
            yield node, f"a pad of {words(graph, node.inputs[0])} by {node.ints('pads')}"


@detector
def conv_of_large_patches(graph: Graph) -> Found:
    """Find convolutions in fp32 of large patches over a large map."""
    for node in graph.of("conv"):
        strides, kernel = node.ints("strides"), _kernel(graph, node)
        if min(strides, default=1) < _PATCH or list(kernel) != strides or graph.dtype(node.output) != "fp32":
            continue
        if max((size or 0 for size in graph.shape(node.inputs[0])[2:]), default=0) >= _LARGE_MAP:
            yield node, f"patches of {_by(kernel)} over {words(graph, node.inputs[0])}"


@detector
def small_conv_with_end_borders(graph: Graph) -> Found:
    """Find 2x2 convolutions of stride 1 with borders at the ends."""
    for node in graph.of("conv"):
        at_ends = _kernel(graph, node) == (2, 2) and node.ints("pads") == [0, 0, 1, 1]
        if at_ends and max(node.ints("strides"), default=1) == 1:
            yield node, "a convolution 2x2 with the pads [0, 0, 1, 1]"


@detector
def half_convolution(graph: Graph) -> Found:
    """Find convolutions in half precision."""
    for node in graph.of("conv"):
        if graph.dtype(node.output) == "fp16":
            yield node, f"a convolution of {words(graph, node.inputs[0])} in fp16"


@detector
def shortcut_of_split_in_concat(graph: Graph) -> Found:
    """Find shortcuts around a convolution in fp16 that are parts of a split and go into a concat too."""
    for node in graph.of("add"):
        if graph.dtype(node.output) != "fp16":
            continue
        for shortcut, branch in (node.inputs, node.inputs[::-1]):
            part = graph.source(shortcut)
            convolved = graph.source(branch, VIEWS | _ACTIVATIONS)
            if part is None or part.kind not in ("split", "slice") or convolved is None or convolved.kind != "conv":
                continue
            if any(reader.kind == "concat" for reader in graph.after(shortcut, ("identity",))):
                yield node, f"a shortcut of {words(graph, shortcut)} that is a part of a split and goes into a concat"


@detector
def cubic_resize_of_transposed_if(graph: Graph) -> Found:
    """Find cubic resizes of what an If returns, transposed."""
    for node in graph.of("resize"):
        copies = ("identity", "cast")
        moved = graph.operand(node, 0, "transpose", through=copies)
        if node.settings.get("mode") == "cubic" and moved is not None and graph.operand(moved, 0, "if", through=copies):
            yield node, f"a cubic Resize of a transposed If, {words(graph, node.inputs[0])}"


@detector
def summed_grid_samples(graph: Graph) -> Found:
    """Find sums that several GridSample come together in."""
    if len(list(graph.of("grid_sample"))) < 2:
        return
    through = VIEWS | {"mul", "slice", "softmax"}
    for node in graph.of("add", "concat", "stack"):
        parts = [_samples(graph, name) for name in node.inputs]
        samples = set().union(*parts)
        is_sum = node.kind == "add" or any(
            reader.kind in ("reduce_sum", "reduce_mean", "matmul") for reader in graph.after(node.output, through)
        )
        if len(samples) > 1 and sum(map(bool, parts)) > 1 and is_sum:
            yield node, f"{len(samples)} GridSample meet in a sum of {words(graph, node.output)}"


def _samples(graph: Graph, name: str, depth: int = 8) -> set[int]:
    """Return the GridSample that a value is made of by elementwise operators and views, by their identity."""
    node = graph.source(name)
    if node is None or not depth:
        return set()
    if node.kind == "grid_sample":
        return {id(node)}
    if node.kind not in ELEMENTWISE | _ACTIVATIONS | {"slice", "softmax"}:
        return set()
    return set().union(*(_samples(graph, one, depth - 1) for one in node.inputs))


@detector
def grid_sample_of_opset_20(graph: Graph) -> Found:
    """Find linear GridSample as opset 20 has it; before that the mode was called bilinear."""
    if int(graph.settings.get("opset", 0)) >= 20:
        for node in graph.of("grid_sample"):
            if node.settings.get("mode", "linear") == "linear":
                yield node, f"a linear GridSample of opset {graph.settings['opset']}, {words(graph, node.output)}"


@detector
def single_grid_sample_in_half(graph: Graph) -> Found:
    """Find GridSample in fp32 in a network of half precision."""
    if graph.half:
        for node in graph.of("grid_sample"):
            if graph.dtype(node.output) == "fp32":
                yield node, f"a GridSample of {words(graph, node.inputs[0])} in fp32"
