"""One view of every layer that multiplies what it reads by a constant weight.

    operator               reads        weight            channels of the output
    conv1d, 2d, 3d         [B, C, *]    [C', C / g, *]    axis 1
    linear                 [..., C]     [C', C]           the last axis
    addmm                  [B, C]       [C, C']           the last axis
    matmul, mm   x W       [..., C]     [C, C']           the last axis
                 W x       [..., C, N]  [C', C]           the last axis but one

Weight and bias are handed out in float64 and rounded once, when they are written. One policy for an absent bias: it
stays absent unless something that is not zero has to go in.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor
from torch.fx import GraphModule, Node

from edgesmith.exporters.graph.edit import CONVOLUTIONS, arguments, aten, constant, rank, set_constant, site, val

LAYERS = CONVOLUTIONS | {aten.linear.default}
"""Operators that are a layer by themselves, with a weight [C', C, ...] and an argument for a bias."""


class Spelling(NamedTuple):
    """The positions of a layer's parts among an operator's arguments.

    Attributes:
        data, weight, bias: positions among the arguments; bias -1 where the operator has none.
        rows: the weight's axis of output channels.
    """

    data: int
    weight: int
    bias: int
    rows: int


@dataclass(frozen=True)
class Linear:
    """A layer with a constant weight of floating-point numbers.

    Attributes:
        node: the operator.
        at: where its parts are.
    """

    module: GraphModule
    node: Node
    at: Spelling

    @property
    def read(self) -> Node:
        """The node that it reads beside its weight."""
        value: Node = arguments(self.node)[self.at.data]
        return value

    @property
    def weight_node(self) -> Node:
        """The node that reads its weight."""
        value: Node = arguments(self.node)[self.at.weight]
        return value

    @property
    def bias_node(self) -> Node | None:
        """The node of its bias, computed or not."""
        return arguments(self.node)[self.at.bias] if self.at.bias >= 0 else None

    @property
    def has_computed_bias(self) -> bool:
        """Return whether its bias is no constant."""
        return self.bias_node is not None and constant(self.module, self.bias_node) is None

    @property
    def own_weight(self) -> Tensor:
        """The weight as it is stored."""
        weight = constant(self.module, self.weight_node)
        assert weight is not None
        return weight

    @property
    def weight(self) -> Tensor:
        """The weight in float64."""
        return self.own_weight.double()

    @property
    def bias(self) -> Tensor | None:
        """The bias [C'] in float64; None where there is none."""
        bias = constant(self.module, self.bias_node)
        return None if bias is None else bias.double()

    @property
    def channels(self) -> int:
        """C', the rows of the weight."""
        return int(self.own_weight.shape[self.at.rows])

    @property
    def groups(self) -> int:
        """Groups of a convolution; 1 for every other layer."""
        return int(arguments(self.node)[6]) if self.node.target in CONVOLUTIONS else 1

    @property
    def pads(self) -> bool:
        """Return whether it is a convolution that pads with zeros, on any axis and at either end."""
        if self.node.target not in CONVOLUTIONS:
            return False
        padding = arguments(self.node)[4]
        return any(p != 0 for p in (padding if isinstance(padding, list | tuple) else [padding]))

    @property
    def axis(self) -> int:
        """The axis of the output that its channels are; 0 for a convolution without a batch."""
        if self.node.target in CONVOLUTIONS or self.node.target is aten.convolution.default:
            return 1 if rank(self.node) == self.own_weight.dim() else 0
        return rank(self.node) - (2 if self.at.bias < 0 and self.at.rows == 0 else 1)

    def of_rows(self, factors: Tensor) -> Tensor:
        """Numbers [C'] or [1], one for each output channel, shaped so that they broadcast with the weight."""
        return factors.reshape([-1 if i == self.at.rows else 1 for i in range(self.own_weight.dim())])

    def write(self, weight: Tensor, bias: Tensor | None) -> None:
        """Store weight and bias, rounded to the layer's type; None, and zeros where there is no bias, leave that."""
        dtype = val(self.node).dtype
        where = site(self.node)
        set_constant(self.module, self.node, self.at.weight, f"{where}.weight", weight.to(dtype))
        if bias is not None and (self.bias_node is not None or bool(bias.any())):
            set_constant(self.module, self.node, self.at.bias, f"{where}.bias", bias.to(dtype))

    def scale_output(self, scale: Tensor, shift: Tensor | None = None) -> None:
        """Let the layer f yield scale * f(x) + shift; both [C'] or [1]."""
        bias = None if self.bias is None else self.bias * scale
        if shift is not None:
            bias = add_biases(bias, shift.expand(self.channels))
        self.write(self.weight * self.of_rows(scale), bias)

    def divide_output(self, scale: Tensor) -> None:
        """Let the layer f yield f(x) / scale."""
        self.write(self.weight / self.of_rows(scale), None if self.bias is None else self.bias / scale)

    def scale_input(self, scale: Tensor, shift: Tensor) -> None:
        """Let the layer f yield f(scale * x + shift), per channel of x. Not where it pads, unless the shift is 0."""
        weight = self.weight
        out, width = weight.shape[:2]
        grouped = weight.reshape(self.groups, out // self.groups, width, -1)
        per_group = (self.groups, 1, width, 1)
        bias = (grouped * shift.reshape(per_group)).sum((2, 3)).reshape(out)
        self.write((grouped * scale.reshape(per_group)).reshape(weight.shape), add_biases(bias, self.bias))


def as_layer(module: GraphModule, node: object) -> Linear | None:
    """A convolution or linear layer whose weight [C', C, ...] and bias are constant; None for anything else."""
    if not isinstance(node, Node) or node.target not in LAYERS:
        return None
    layer = next(spelled(module, node), None)
    return layer if layer is not None and layer.own_weight.dim() > 1 and not layer.has_computed_bias else None


def spelled(module: GraphModule, node: Node) -> Iterator[Linear]:
    """Yield the ways to see an operator as a layer: one or none, but for a matmul of two constants.

    Biases may be computed. The weight is of floating-point numbers.
    """
    for at in _spellings(node):
        weight = constant(module, arguments(node)[at.weight])
        if weight is not None and weight.is_floating_point():
            yield Linear(module, node, at)


_BY_ROWS = Spelling(0, 1, 2, 0)


def _spellings(node: Node) -> list[Spelling]:
    if node.target in LAYERS or (node.target is aten.convolution.default and not arguments(node)[6]):
        return [_BY_ROWS]
    if node.target is aten.addmm.default and arguments(node)[3:] == (1, 1):
        return [Spelling(1, 2, 0, 1)]
    if node.target in (aten.matmul.default, aten.mm.default):
        a, b = (rank(side) for side in arguments(node))
        right = [Spelling(0, 1, -1, 1)] if b == 2 and a >= 2 else []
        return right + ([Spelling(1, 0, -1, 0)] if a == 2 and b >= 2 else [])
    return []


def channel_axis(node: Node) -> int | None:
    """The axis of an operator's output that its channels are; None for what is no layer, or has no batch."""
    if node.target in CONVOLUTIONS:
        return 1 if rank(node) == rank(node.args[1]) else None
    return rank(node) - 1 if node.target is aten.linear.default else None


def add_biases(one: Tensor | None, two: Tensor | None) -> Tensor | None:
    """The sum of two biases, either of which may be absent."""
    return two if one is None else one if two is None else one + two


def along(values: Tensor, axis: int, dims: int) -> Tensor:
    """Numbers [C], one for each channel, shaped so that they broadcast along an axis of a value."""
    return values.reshape(-1, *[1] * (dims - 1 - axis))
