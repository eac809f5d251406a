"""Parts of a graph that are read as one function of a few values, whatever the spelling, and are run to compare it.

    region(last, stops)     what `last` is computed from, back to the values at which `stops` says so
    dominated(last, ...)    the same, back to the one value that all of it is computed from
    Region.run(values)      what becomes of other values there, in float64

Rewrites that know an op by its numbers use it: find_aggregated, find_conv_glu, find_inception.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from edgesmith.exporters.graph.edit import Emitter, aten, constant, example_sizes, operator_name, rank, val
from edgesmith.exporters.graph.interpret import run_part
from edgesmith.exporters.graph.linear import channel_axis
from edgesmith.exporters.rewrites.rewrite import Reject

SAME = 1e-7
"""Largest difference between the same numbers, relative to their peak: constants of the graph may have been rounded."""


@dataclass(frozen=True)
class Region:
    """A part of a graph.

    Attributes:
        module: whose graph it is.
        sources: the values that it reads, no constants.
        nodes: its operators, in order.
        last: its result.
        free: nodes that are sizes, with the numbers that the example has.
    """

    module: GraphModule
    sources: tuple[Node, ...]
    nodes: list[Node]
    last: Node
    free: Mapping[Node, int]

    def run(self, *values: Tensor) -> dict[Node, Any]:
        """Return every node's value for float64 values of the sources."""
        given: dict[Node, Any] = {**self.free, **dict(zip(self.sources, values, strict=True))}
        for node in self.nodes:
            for source in node.all_input_nodes:
                held = constant(self.module, source) if source not in given else None
                if held is not None:
                    given[source] = held.double() if held.is_floating_point() else held
        return run_part(self.module, self.nodes, given)

    def check_alone(self) -> None:
        """Raise `Reject` where something outside reads a value in between."""
        within = {*self.nodes}
        for node in self.nodes:
            outside = next((user for user in node.users if user not in within), None)
            if node is not self.last and outside is not None:
                reader = f"{outside.name} ({operator_name(outside)})"
                raise Reject(f"a value in it is also read by {reader}, outside the site")


def is_layer(node: Node) -> bool:
    """Return whether a node is a convolution or a linear layer."""
    return node.op == "call_function" and channel_axis(node) is not None


def region(module: GraphModule, last: Node, stops: Callable[[Node], bool]) -> Region | None:
    """All that a node is computed from, itself included, back to where `stops` holds; None where it reads an input."""
    nodes: set[Node] = set()
    sources: dict[Node, None] = {}
    free: dict[Node, int] = {}
    queue = [last]
    while queue:
        node = queue.pop()
        if node in nodes or node.op == "get_attr":
            continue
        if isinstance(node.meta.get("val"), torch.SymInt):
            free[node] = int(node.meta["val"].node.hint)
        elif node is not last and stops(node):
            sources[node] = None
        elif node.op != "call_function":
            return None
        else:
            nodes.add(node)
            queue += node.all_input_nodes
    ordered = [node for node in module.graph.nodes if node in nodes]
    return Region(module, tuple(sources), ordered, last, free)


def dominated(module: GraphModule, last: Node, *kinds: tuple[Any, ...]) -> Region | None:
    """The smallest region with one source that ends at a node and has an operator of each kind; None for none."""
    order = {node: i for i, node in enumerate(module.graph.nodes)}
    nodes: list[Node] = []
    free: dict[Node, int] = {}
    ahead = {last}
    while ahead:
        node = max(ahead, key=order.__getitem__)
        is_value = len(ahead) == 1 and isinstance(node.meta.get("val"), Tensor)
        if is_value and all(any(one.target in kind for one in nodes) for kind in kinds):
            return Region(module, (node,), nodes[::-1], last, free)
        ahead.remove(node)
        if node.op != "call_function":
            return None
        nodes.append(node)
        for source in node.all_input_nodes:
            if isinstance(source.meta.get("val"), torch.SymInt):
                free[source] = int(source.meta["val"].node.hint)
            elif source.op != "get_attr":
                ahead.add(source)
    return None


def as_made(layer: Node, x: Tensor) -> Tensor:
    """A map [B, C, N] as a layer makes it."""
    shape = example_sizes(val(layer).shape)
    return (x if channel_axis(layer) == 1 else x.transpose(1, 2)).reshape(shape)


def with_channels_first(emit: Emitter, layer: Node) -> Node:
    """A layer's output with its channels at axis 1."""
    if channel_axis(layer) == 1:
        return layer
    last = rank(layer) - 1
    return emit(aten.permute.default, layer, [0, last, *range(1, last)])


def in_place_of(emit: Emitter, y: Node, node: Node, channels_last: bool) -> Node:
    """A map [B, C, H, W] in the shape of a node that has the same numbers."""
    if channels_last:
        y = emit(aten.permute.default, y, [0, 2, 3, 1])
    wanted = val(node).shape
    if list(val(y).shape) == list(wanted):
        return y
    return emit(aten.reshape.default, y, [size if isinstance(size, int) else -1 for size in wanted])


def same(one: Tensor, two: Tensor) -> bool:
    """Return whether two values are the same but for rounding."""
    return one.shape == two.shape and bool((one - two).abs().max() <= SAME * two.abs().max())
