"""Values that are copied as they are: copies go, so that patterns and loops are of what is computed.

    clone(x), contiguous(x), detach(x), alias(x), lift_fresh_copy(x)      ->  x
    to(x, dtype), expand(x, size), reshape(x, size), of x's own           ->  x

They come from `.detach()` and `.contiguous()` in a model, from regions that run without autocast or with gradients, and
from in-place operators that were made functional. A copy of an input that the model returns stays: a program that
returns its own input is none that runtimes take.
"""

from __future__ import annotations

from torch.fx import GraphModule, Node

from edgesmith.exporters.costs import Costs
from edgesmith.exporters.graph.edit import aten, same_shape, val
from edgesmith.exporters.rewrites.rewrite import rewrites

_COPIES = (
    aten.clone.default,
    aten.contiguous.default,
    aten.detach.default,
    aten.alias.default,
    aten.lift_fresh_copy.default,
    aten.to.dtype,
    aten.to.device,
    aten.to.other,
    aten.to.dtype_layout,
    aten._to_copy.default,
    aten.type_as.default,
    aten.expand.default,
    aten.expand_as.default,
    aten.view.default,
    aten.view_as.default,
    aten._unsafe_view.default,
    aten.reshape.default,
    aten.reshape_as.default,
)


@rewrites(*_COPIES, rule="a copy of x -> x")
def drop_copies(module: GraphModule, node: Node, costs: Costs) -> str | None:
    """Drop a copy. What changes type or shape is none, and no near miss."""
    if not is_copy(node):
        return None
    x = node.args[0]
    assert isinstance(x, Node)
    if _returns(node) and (x.op != "call_function" or _returns(x)):
        return None
    node.replace_all_uses_with(x)
    module.graph.erase_node(node)
    return f"{node.name} -> {x.name}"


def is_copy(node: Node) -> bool:
    """Return whether a node's value is that of its first argument, of the same type and shape."""
    if node.target not in _COPIES or not isinstance(node.args[0], Node):
        return False
    before, after = val(node.args[0]), val(node)
    return before.dtype == after.dtype and before.device == after.device and same_shape(before, after)


def _returns(node: Node) -> bool:
    """Return whether the program returns a value."""
    return any(user.op == "output" for user in node.users)
