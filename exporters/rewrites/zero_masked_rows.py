"""A query that its mask lets see no key has an attention of 0, in PyTorch alone.

    sdpa(q, k, v, mask)  ->  where(any(mask, -1), sdpa(q, k, v, mask), 0)      mask boolean, with such rows or computed

PyTorch's softmax of a row of -inf is 0 there (`aten::_safe_softmax`); runtimes make NaN of it, an average over all
values, or attention as if there were no mask. Padding in a batch makes such rows.
"""

from __future__ import annotations

import torch
from torch.fx import GraphModule, Node

from edgesmith.exporters.costs import Costs
from edgesmith.exporters.graph.edit import Emitter, arguments, aten, changed, constant, stand_for, val
from edgesmith.exporters.rewrites.rewrite import rewrites


@rewrites(aten.scaled_dot_product_attention.default, rule="sdpa(q, k, v, mask) -> 0 where a query sees no key")
def zero_masked_rows(module: GraphModule, node: Node, costs: Costs) -> str | None:
    """See above. A constant mask whose every row lets something through needs nothing, and is no near miss."""
    mask = arguments(node)[3]
    if not isinstance(mask, Node) or val(mask).dtype != torch.bool:
        return None
    known = constant(module, mask)
    if known is not None and bool(known.any(-1).all()):
        return None
    emit = Emitter(module, node.next)
    emit.source = node
    if known is None:
        sees = emit(aten.any.dim, mask, -1, True)
    else:
        sees = emit.constant(f"{node.name}.sees", known.any(-1, keepdim=True))
    attention = emit(aten.where.ScalarOther, sees, node, 0.0)
    node.replace_all_uses_with(attention, delete_user_cb=lambda user: user is not attention)
    stand_for(attention, node)
    changed(node)
    return f"{node.name}: 0 for queries that see no key"
