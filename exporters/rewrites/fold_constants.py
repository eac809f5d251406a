"""Constant folding: sigmoid(alpha), softmax(weights), rfft(kernel) ... of parameters alone are computed once, here.

Random numbers and values larger than anything a model would store stay in the graph.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_leaves

from edgesmith.exporters.costs import Costs
from edgesmith.exporters.graph.edit import add_constant, constant, operators, replace, site
from edgesmith.exporters.graph.interpret import evaluate
from edgesmith.exporters.rewrites.rewrite import Fired, searches

LARGEST = 2**24
"""Elements up to which a result is stored. A file of 64 MiB is worth no multiplication that it saves."""


@searches(rule="what is computed from parameters alone becomes a parameter")
def fold_constants(module: GraphModule, costs: Costs) -> Iterator[Fired]:
    """Store what the rest of the graph reads of constant subgraphs. There are no near misses."""
    _share_numbers(module)
    known = _known(module)
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
        stored[computed] = add_constant(module, f"{site(node)}.{node.name}", value, before=node)
        replace(node, stored[computed])
        yield Fired(site(node), f"{node.name}, {list(value.shape)}, is a constant")


def _share_numbers(module: GraphModule) -> None:
    """Let equal numbers be one constant: a `torch.tensor(0.9)` in a loop is captured as one for each iteration."""
    first: dict[tuple[Any, ...], Node] = {}
    for node in module.graph.nodes:
        value = constant(module, node)
        if value is not None and value.dim() == 0:
            one = first.setdefault((value.dtype, repr(value.item())), node)
            if one is not node:
                node.replace_all_uses_with(one)


def _known(module: GraphModule) -> dict[Node, Any]:
    """Return the values that are computed from parameters alone, in the model's own precision."""
    known: dict[Node, Any] = {}
    for node in module.graph.nodes:
        if node.op == "get_attr":
            known[node] = constant(module, node)
        elif node.op == "call_function" and _is_pure(node) and all(x in known for x in node.all_input_nodes):
            value = evaluate(node, known.__getitem__)
            if all(not isinstance(leaf, Tensor) or leaf.numel() <= LARGEST for leaf in tree_leaves(value)):
                known[node] = value
    return known


def _is_pure(node: Node) -> bool:
    if node.target is operator.getitem:
        return True
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    return not node.target._schema.is_mutable and torch.Tag.nondeterministic_seeded not in node.target.tags
