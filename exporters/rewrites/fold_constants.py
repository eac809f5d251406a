"""What is computed from parameters alone is computed once, here: sigmoid(alpha), softmax(weights), rfft(kernel) ...

Random numbers and values larger than anything a model would store stay in the graph.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_leaves

from edgesmith.exporters.costs import Costs
from edgesmith.exporters.graph.edit import add_constant, constant, operators, site, stand_for
from edgesmith.exporters.rewrites.rewrite import RewriteReport

LARGEST = 2**24
"""Elements up to which a result is stored. A file of 64 MiB is worth no multiplication that it saves."""


class FoldConstants:
    """Evaluate constant subgraphs in the model's own precision and store what the rest of the graph reads of them."""

    name = "fold_constants"

    def apply(self, module: GraphModule, costs: Costs) -> RewriteReport:
        """Fold in place. There are no near misses."""
        known: dict[Node, Any] = {}
        for node in module.graph.nodes:
            if node.op == "get_attr":
                known[node] = constant(module, node)
            elif node.op == "call_function" and _is_pure(node) and all(x in known for x in node.all_input_nodes):
                value = _evaluate(node, known)
                if all(not isinstance(leaf, Tensor) or leaf.numel() <= LARGEST for leaf in tree_leaves(value)):
                    known[node] = value
        applied = []
        stored: dict[Any, Node] = {}
        first: dict[Node, Node] = {}
        again: dict[str, Node] = {}
        for node in operators(module):
            value = known.get(node)
            args, kwargs = torch.fx.map_arg((node.args, node.kwargs), lambda x: first.get(x, x))
            computed = repr((node.target, args, kwargs))  # nodes by name: the same again is the same constant
            first[node] = again.setdefault(computed, node)
            readers = [user for user in node.users if user not in known]
            if not isinstance(value, Tensor) or not readers:
                continue
            if computed in stored:
                node.replace_all_uses_with(stored[computed])
                continue
            folded = add_constant(module, f"{site(node)}.{node.name}", value, before=node)
            stored[computed] = folded
            stand_for(folded, node)
            node.replace_all_uses_with(folded)
            applied.append((site(node), f"{node.name}, {list(value.shape)}, is a constant"))
        module.graph.eliminate_dead_code()
        return RewriteReport(self.name, tuple(applied))


def _is_pure(node: Node) -> bool:
    if node.target is operator.getitem:
        return True
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    return not node.target._schema.is_mutable and torch.Tag.nondeterministic_seeded not in node.target.tags


def _evaluate(node: Node, known: dict[Node, Any]) -> Any:
    args, kwargs = torch.fx.map_arg((node.args, node.kwargs), known.__getitem__)
    with torch.no_grad():
        return node.target(*args, **kwargs)  # type: ignore[operator]  # an operator, as _is_pure has seen
