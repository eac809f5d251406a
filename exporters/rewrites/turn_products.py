"""Layers along the second last axis, in a row, are layers along the last one of the transposed value.

    W x + b, W [m, n], b [m, 1]                  ->  linear(x', W, b)'          x' the last two axes exchanged
    f(W2 f(W1 x + b1) + b2), softmax_-2 of it    ->  the same of x', transposed back where anything else reads it

A runtime whose layers take their bias in, but add that of a product with its matrix on the left in an operator of its
own, saves that addition in each, and one matmul serves the whole batch; it pays for two transpositions of the row. The
target's costs say whether it does, and whether the row is long enough: MLP-mixers' MLPs with their gates are. Exact.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import Tensor
from torch.fx import GraphModule, Node

from edgesmith.exporters.costs import Costs
from edgesmith.exporters.graph.edit import (
    Emitter,
    arguments,
    aten,
    constant,
    numbers,
    operators,
    rank,
    replace,
    same_shape,
    site,
    sweep,
    val,
)
from edgesmith.exporters.rewrites.rewrite import Fired, searches

_UNARY = frozenset(
    {
        *(aten.gelu.default, aten.relu.default, aten.silu.default, aten.sigmoid.default, aten.tanh.default),
        *(aten.leaky_relu.default, aten.hardswish.default, aten.clamp.default, aten.neg.default, aten.exp.default),
    }
)
_BINARY = frozenset({aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor})
_SOFTMAX = frozenset({aten.softmax.int, aten._softmax.default})


@searches(
    rule="W x + b along the second last axis, in a row -> linear(x', W, b)', where the target says cheaper",
    for_sequences=True,
)
def turn_products(module: GraphModule, costs: Costs) -> Iterator[Fired]:
    """See the table above. There are no near misses."""
    if not costs.adds_left_bias:
        return
    for node in list(operators(module)):
        if node._erased or not _is_left_product(module, node):
            continue
        row = _Row.from_(module, node.args[1])  # type: ignore[arg-type]  # a node: it is such a product
        if row.saves(costs) > 0:
            where = site(*row.products)
            row.commit()
            sweep(module)
            yield Fired(where, f"{len(row.products)} products with their matrix on the left -> layers, transposed once")


def _is_left_product(module: GraphModule, node: Node) -> bool:
    """Return whether a node is W x, W constant, x of known sizes with axes before its last two."""
    if node.target is not aten.matmul.default:
        return False
    matrix, x = node.args
    held = constant(module, matrix)
    return held is not None and held.dim() == 2 and rank(x) > 2 and numbers(val(x).shape) is not None


def _bias(module: GraphModule, node: Node, product: Node) -> Tensor | None:
    """The constant [m, 1] that a sum adds to a product; None where a node is no such sum."""
    if node.target is not aten.add.Tensor or arguments(node)[2] != 1:
        return None
    a, b = node.args
    held = constant(module, b if a is product else a)
    size = val(product).shape[-2]
    if held is None or held.dtype != val(product).dtype or held.numel() != size:
        return None
    return held.flatten() if tuple(held.shape[-2:]) == (size, 1) else None


@dataclass
class _Row:
    """Such products of one value, one after the other, with operators between that any layout has.

    Attributes:
        nodes: in program order.
        biases: of the products that have one, behind which the sum stands.
    """

    module: GraphModule
    entry: Node
    nodes: list[Node] = field(default_factory=list)
    products: list[Node] = field(default_factory=list)
    biases: dict[Node, Tensor] = field(default_factory=dict)

    @classmethod
    def from_(cls, module: GraphModule, entry: Node) -> _Row:
        """Return the row of a value."""
        row = cls(module, entry)
        known = {entry}
        for node in operators(module):
            if row._continues(node, known):
                row.nodes.append(node)
                known.add(node)
        return row

    def _continues(self, node: Node, known: set[Node]) -> bool:
        if _is_left_product(self.module, node) and node.args[1] in known:
            self.products.append(node)
            return True
        inner = known - {self.entry}
        read = [n for n in node.all_input_nodes if n in inner]
        if not read:
            return False
        (x, *others) = read
        if x in self.products and len(x.users) == 1 and (bias := _bias(self.module, node, x)) is not None:
            self.biases[node] = bias
            return True
        if node.target in _SOFTMAX:
            return bool(arguments(node)[1] % rank(node) == rank(node) - 2 and val(node).dtype == val(x).dtype)
        if node.target in _UNARY:
            return True
        is_of_both = len(others) == 1 and same_shape(val(x).shape, val(others[0]).shape)
        return node.target in _BINARY and is_of_both

    def exits(self) -> list[Node]:
        """Return the values that something else reads too."""
        inner = set(self.nodes)
        return [node for node in self.nodes if any(user not in inner for user in node.users)]

    def saves(self, costs: Costs) -> float:
        """Return the microseconds that the row takes less when it is transposed."""

        def moved_us(node: Node, gb_s: float) -> float:
            count = numbers(val(node).shape) or 0
            return costs.launch_us + 2e-3 * count * val(node).element_size() / gb_s

        sums = sum(moved_us(node, costs.stream_gb_s) for node in self.biases)
        batch = numbers(val(self.entry).shape[:-2]) or 1
        matmuls = len(self.products) * (batch - 1) * costs.matmul_us
        return sums + matmuls - sum(moved_us(node, costs.copy_gb_s) for node in (self.entry, *self.exits()))

    def commit(self) -> None:
        """Let the row be computed of the transposed value."""
        exits = self.exits()
        emit = Emitter(self.module, self.nodes[0])
        turned = {self.entry: emit(aten.transpose.int, self.entry, -2, -1)}
        for node in self.nodes:
            turned[node] = self._turned(node, turned)
        for node in exits:
            back = Emitter(self.module, node)(aten.transpose.int, turned[node], -2, -1)
            replace(node, back)

    def _turned(self, node: Node, turned: dict[Node, Node]) -> Node:
        emit = Emitter(self.module, node)
        if node in self.products:
            return emit(aten.linear.default, turned[node.args[1]], node.args[0], None)  # type: ignore[index]  # a node
        if node in self.biases:
            product = next(turned[n] for n in node.all_input_nodes if n in turned)
            x, weight, _ = product.args
            return emit(aten.linear.default, x, weight, emit.constant(f"{site(node)}.bias", self.biases[node]))
        if node.target in _SOFTMAX:
            return emit(node.target, turned[node.all_input_nodes[0]], -1, *arguments(node)[2:])
        given = [turned.get(n, n) if isinstance(n, Node) else n for n in node.args]
        return emit(node.target, *given, **node.kwargs)
