"""Values that are copied as they are: copies go, so that patterns and loops are of what is computed.

    clone(x), contiguous(x), detach(x), alias(x), lift_fresh_copy(x)      ->  x
    to(x, dtype), expand(x, size), reshape(x, size), of x's own           ->  x
    slice(x), from its first to its last entry                            ->  x
    slice_scatter(x, v), copy(x, v), where v takes the place of all of x  ->  v

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
    aten.slice.Tensor,
)

_WRITTEN_OVER = (aten.slice_scatter.default, aten.copy.default)


@rewrites(*_COPIES, *_WRITTEN_OVER, rule="a copy of x -> x")
def drop_copies(module: GraphModule, node: Node, costs: Costs) -> str | None:
    """Drop a copy. What changes type or shape is none, and no near miss."""
    origin = 1 if node.target in _WRITTEN_OVER else 0
    if not _has_the_values_of(node, origin):
        return None
    x = node.args[origin]
    assert isinstance(x, Node)
    if _returns(node) and (x.op != "call_function" or _returns(x)):
        return None
    node.replace_all_uses_with(x)
    module.graph.erase_node(node)
    return f"{node.name} -> {x.name}"


def is_copy(node: Node) -> bool:
    """Return whether a node's value is that of its first argument, of the same type and shape."""
    return node.target in _COPIES and _has_the_values_of(node, 0)


def _has_the_values_of(node: Node, argument: int) -> bool:
    """Return whether a copy has the type and shape of one of its arguments, and so all that it holds."""
    x = node.args[argument]
    if not isinstance(x, Node):
        return False
    before, after = val(x), val(node)
    return before.dtype == after.dtype and before.device == after.device and same_shape(before, after)


def _returns(node: Node) -> bool:
    """Return whether the program returns a value."""
    return any(user.op == "output" for user in node.users)
