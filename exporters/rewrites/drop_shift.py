"""A softmax does not see what is added to all of a row alike.

    softmax_d(x + c)  ->  softmax_d(x)       where c has one number for the whole of axis d; x - c the same

Exact but for rounding: softmax subtracts the row's largest value anyway. EfficientViM's parameter A is such a c.
"""

from __future__ import annotations

from torch.fx import GraphModule, Node

from edgesmith.exporters.graph import arguments, aten, operator_name, operators, rank, site, val
from edgesmith.exporters.rewrite import Rejection, RewriteReport
from edgesmith.exporters.targets import Costs

_SOFTMAX = frozenset({aten.softmax.int, aten._softmax.default})


class DropShift:
    """See above. A near miss is a sum whose other term varies along the axis, but is a constant."""

    name = "drop_shift"

    def apply(self, module: GraphModule, costs: Costs) -> RewriteReport:
        """Drop in place; a row may be shifted more than once."""
        applied, rejected = [], []
        for node in operators(module):
            while node.target in _SOFTMAX:
                total, axis = arguments(node)[:2]
                if total.target not in (aten.add.Tensor, aten.sub.Tensor):
                    break
                first, second = arguments(total)[:2]
                orders = ((first, second), (second, first)) if total.target is aten.add.Tensor else ((first, second),)
                kept = next((x for x, c in orders if _is_shift(c, x, node, axis)), None)
                if kept is None:
                    if any(isinstance(c, Node) and c.op == "get_attr" for _, c in orders):
                        rejected.append(Rejection(site(total), f"what {total.name} adds varies along axis {axis}"))
                    break
                applied.append((site(node), f"{operator_name(total)} before the softmax -> nothing"))
                node.update_arg(0, kept)
        module.graph.eliminate_dead_code()
        return RewriteReport(self.name, tuple(applied), tuple(rejected))


def _is_shift(c: object, x: object, softmax: Node, axis: int) -> bool:
    """Whether x + c is x with one number added along the whole axis, without growing or changing its type."""
    if not isinstance(x, Node) or val(x).shape != val(softmax).shape or val(x).dtype != val(softmax).dtype:
        return False
    if not isinstance(c, Node):
        return True  # a number
    behind = rank(x) - axis % rank(x)  # the axis counted from the end, where broadcasting aligns
    return rank(c) < behind or val(c).shape[-behind] == 1
