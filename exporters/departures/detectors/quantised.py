"""int8 in the graph: quantize and dequantize, their scales and their types."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from edgesmith.exporters.departures.detectors import Found, detector, words
from edgesmith.exporters.departures.graph import VIEWS, Graph, Node

_LAYERS = ("conv", "matmul", "linear", "conv_transpose")
_CLOSE = 1e-3
_HTP = 2e-3
_FULL = 64
_BITS = {"uint8": 256.0, "int8": 256.0, "uint16": 65536.0, "int16": 65536.0}


def _scale(graph: Graph, node: Node | None) -> np.ndarray | None:
    """Return the constant scales of a quantize or dequantize."""
    found = graph.numbers(node.inputs[1]) if node is not None and len(node.inputs) > 1 else None
    return None if found is None or not found.size else found.astype(np.float64).reshape(-1)


def _zero(graph: Graph, node: Node) -> np.ndarray:
    found = graph.numbers(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] else None
    return np.zeros(1) if found is None or not found.size else found.astype(np.float64).reshape(-1)


def _dequantised(graph: Graph, node: Node, index: int) -> Node | None:
    return graph.operand(node, index, "dequantize", "affine_weights", through=VIEWS)


@detector
def bias_of_own_scale(graph: Graph) -> Found:
    """Find quantised layers whose int32 bias has another scale than input times weight."""
    for node in graph.of(*_LAYERS):
        if len(node.inputs) < 3 or not node.inputs[2]:
            continue
        scales = [_scale(graph, _dequantised(graph, node, index)) for index in range(3)]
        if any(one is None for one in scales):
            continue
        x, w, b = (one for one in scales if one is not None)
        wanted = x * w
        if b.size not in (1, wanted.size) or not np.allclose(b, wanted, rtol=_CLOSE, atol=0):
            yield node, f"a bias of scale {b[0]:.3g}, and {wanted[0]:.3g} is that of input and weight"


@detector
def quantised_convolution(graph: Graph) -> Found:
    """Find convolutions of quantised data."""
    for node in graph.of("conv"):
        if _dequantised(graph, node, 0) is not None:
            yield node, f"a convolution of quantised data, {words(graph, node.inputs[0])}"
            return


@detector
def quantised_first_convolution(graph: Graph) -> Found:
    """Find quantised convolutions of the input itself."""
    for node in graph.of("conv"):
        levels = _dequantised(graph, node, 0)
        read = _origin(graph, levels.inputs[0]) if levels is not None else ""
        if read in graph.inputs:
            yield node, f"a quantised convolution of the input {read}"


def _origin(graph: Graph, name: str) -> str:
    """Return what a value is made of by quantising and views alone."""
    while (node := graph.maker(name)) is not None and node.kind in VIEWS | {"quantize"}:
        name = node.inputs[0]
    return name


@detector
def unsigned_by_full_signed(graph: Graph) -> Found:
    """Find products of uint8 data with int8 weights beyond 64."""
    for node in graph.of(*_LAYERS):
        data, weight = (_dequantised(graph, node, index) for index in range(2))
        if data is None or weight is None or graph.dtype(data.inputs[0]) != "uint8":
            continue
        levels = graph.numbers(weight.inputs[0]) if graph.dtype(weight.inputs[0]) == "int8" else None
        if levels is not None and levels.size and int(np.abs(levels.astype(np.int16)).max()) > _FULL:
            yield node, f"uint8 data by int8 weights up to {int(np.abs(levels.astype(np.int16)).max())}"


@detector
def bounded_activation_of_other_scale(graph: Graph) -> Found:
    """Find sigmoid, softmax and hard sigmoid that are quantised by another scale than 1 / 2^bits."""
    for node in graph.of("hardsigmoid", "sigmoid", "softmax"):
        for reader in graph.after(node.output):
            scale = _scale(graph, reader) if reader.kind == "quantize" else None
            levels = _BITS.get(graph.dtype(reader.output))
            if scale is None or levels is None:
                continue
            if abs(scale[0] * levels - 1) > 2 * _CLOSE or bool(_zero(graph, reader).any()):
                yield (
                    node,
                    f"{node.kind} quantised with scale {scale[0]:.4g} and zero point {_zero(graph, reader)[0]:.0f}",
                )


@detector
def batch_norm_of_channel_scales(graph: Graph) -> Found:
    """Find batch norms whose weights are dequantised by channel."""
    for node in graph.of("batch_norm"):
        for index in range(1, len(node.inputs)):
            scale = _scale(graph, _dequantised(graph, node, index))
            if scale is not None and scale.size > 1:
                yield node, f"a batch norm with {scale.size} scales of a weight"
                break


@detector
def signed_activation(graph: Graph) -> Found:
    """Find activations in int8, and products of fp16 with int8."""
    for node in graph.of("quantize"):
        if graph.dtype(node.output) == "int8" and not graph.is_stored(node.inputs[0]):
            yield node, f"an activation of {words(graph, node.inputs[0])} in int8"
    for node in graph.of("matmul"):
        first, second = (graph.dtype(name) for name in node.inputs[:2])
        weight = _dequantised(graph, node, 1)
        mixed = first == second == "fp16" and weight is not None and graph.dtype(weight.inputs[0]) == "int8"
        if mixed and _dequantised(graph, node, 0) is None:
            yield node, "a product of an fp16 with an int8 operand"


@detector
def rescaled_quantised_multiply(graph: Graph) -> Found:
    """Find multiplies between dequantize and quantize whose scales differ."""
    for node in graph.of("mul"):
        makers = [_dequantised(graph, node, index) for index in range(len(node.inputs))]
        scales = (_scale(graph, maker) for maker in makers if maker is not None and maker.kind == "dequantize")
        before = [one[0] for one in scales if one is not None]
        for after in _quantised(graph, node):
            scale = _scale(graph, after)
            if before and scale is not None and not any(np.isclose(one, scale[0], rtol=_CLOSE) for one in before):
                yield node, f"a multiply from scale {before[0]:.4g} to {scale[0]:.4g}"


def _quantised(graph: Graph, node: Node) -> Iterator[Node]:
    return (reader for reader in graph.after(node.output) if reader.kind == "quantize")
