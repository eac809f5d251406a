"""A rewrite of one's own: sqrt(x * x) -> abs(x), one operator for two, and no overflow in half precision."""

from __future__ import annotations

import torch
from torch.fx import GraphModule, Node

from edgesmith.exporters.costs import Costs
from edgesmith.exporters.graph.edit import Emitter, aten, replace, val
from edgesmith.exporters.rewrites.rewrite import Reject, rewrites


@rewrites(aten.sqrt.default, rule="sqrt(x * x) -> abs(x)")
def root_of_square(module: GraphModule, node: Node, costs: Costs) -> str | None:
    """Return a note where it fired, and None where the node is no site.

    A near miss is the root of a product of two values: `edgesmith explain` shows it with the reason.
    """
    product = node.args[0]
    if not isinstance(product, Node) or product.target is not aten.mul.Tensor:
        return None
    first, second = product.args
    if first is not second or not isinstance(first, Node):
        raise Reject(f"{product.name} is no square: it multiplies {first} by {second}")
    if val(first).dtype not in (torch.float32, torch.float16):
        return None
    replace(node, Emitter(module, node)(aten.abs.default, first))
    return "the root of a square -> its absolute value"
