"""Values between layers of int8, for runtimes that have kernels of integers for what lies there: rounded, too.

    x_q = clamp(round(x / s) + z, 0, 255)     z = 0 where x was never negative, else 128

ONNX Runtime makes a kernel for integers of a layer whose inputs and output are rounded, and computes in float, between
conversions, every layer of which one is not. On x86-64 its kernels take activations without a sign. So the outputs of
layers are rounded, and sums, products, sigmoids, ReLUs, means of maps and parts between layers: those that read nothing
else. Each costs some of the SNR, and saves two conversions.

    joined   an operator of JOINED, of which every tensor is made by a layer or a joined operator, or read by a layer

A value that only a ReLU reads is not rounded itself, as the runtime drops a ReLU in front of a rounding that has no
negative numbers; and not what only the model's outputs read. Parts have the range of the whole.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from edgesmith.exporters.graph.edit import aten, constant, val
from edgesmith.exporters.graph.linear import Linear

PARTS = (aten.chunk.default, aten.split.Tensor, aten.split_with_sizes.default)
JOINED = (aten.add.Tensor, aten.mul.Tensor, aten.sigmoid.default, aten.relu.default, *PARTS)


def find_rounded(module: GraphModule, layers: Sequence[Linear]) -> dict[Node, Node]:
    """Return the values that are rounded, in order, each with the value that it has its range of.

    Args:
        module: of the layers.
        layers: those that are int8.
    """
    made = {layer.node for layer in layers}
    read = {layer.read for layer in layers}
    ranges: dict[Node, Node] = {}
    for node in module.graph.nodes:
        if (node.target in JOINED or _is_mean_of_maps(node)) and all(
            one in made or one in read for one in _tensors(module, node)
        ):
            made.add(node)
        if node.target is operator.getitem and node.args[0] in made:
            made.add(node)
            ranges[node] = ranges.get(whole := node.args[0].args[0], whole)
        elif (node in made or node in read) and _is_float(node) and not _is_left(node, made):
            ranges[node] = node
    return ranges


def _is_left(node: Node, made: set[Node]) -> bool:
    """Return whether a value is not rounded itself."""
    readers = list(node.users)
    only_relu = len(readers) == 1 and readers[0].target is aten.relu.default and node in made
    return only_relu or all(reader.op == "output" for reader in readers)


def _is_mean_of_maps(node: Node) -> bool:
    """Return whether a node is the mean of each map of [N, C, H, W], [N, C, 1, 1]."""
    if node.target is not aten.mean.dim or val(node.args[0]).dim() != 4 or not isinstance(node.args[1], list):
        return False
    return sorted(axis % 4 for axis in node.args[1]) == [2, 3] and node.args[2:3] == (True,)


def _is_float(node: Node) -> bool:
    value: Any = node.meta.get("val")
    return isinstance(value, Tensor) and value.dtype == torch.float32


def _tensors(module: GraphModule, node: Node) -> Iterator[object]:
    """Yield what a joined operator reads; None for a number or a constant, which no layer makes or reads."""
    for one in node.args[: 2 if node.target in (aten.add.Tensor, aten.mul.Tensor) else 1]:
        is_value = isinstance(one, Node) and constant(module, one) is None and val(one).dtype == torch.float32
        yield one if is_value else None
