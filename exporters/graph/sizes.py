"""Sizes that are known at run time only.

of values       what `x[mask]` and `nonzero` return, and all that is computed of it
of the batch    an axis that is free, which `squeeze` would take away where it is 1
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_leaves

from edgesmith.errors import Unsupported
from edgesmith.exporters.graph.edit import operator_name, operators, site
from edgesmith.exporters.graph.subgraphs import line

_PLACES = (torch.ops.aten.nonzero.default, torch.ops.aten.argwhere.default)
"""What a target may return as it is: places, as many as there are."""


def refuse_unknown_sizes(module: GraphModule, target: str) -> None:
    """Refuse values whose size is known at run time only, but for places that are returned as they are.

    Args:
        target: what users call it.

    Raises:
        Unsupported: with the operator and its line.
    """
    for node in operators(module):
        reads = any(_is_unknown(source) for source in node.all_input_nodes)
        if (_is_unknown(node) and node.target not in _PLACES) or (reads and isinstance(node.meta.get("val"), Tensor)):
            raise Unsupported(
                f"{target} cannot express {operator_name(node)} at {site(node)}{line(node)}: its size depends on the"
                " values of tensors, and a file's shapes are fixed; mask with torch.where, or take a fixed number with"
                " topk"
            )


_SQUEEZES = (torch.ops.aten.squeeze.default, torch.ops.aten.squeeze.dim, torch.ops.aten.squeeze.dims)


def refuse_squeezed_batch(graph: GraphModule) -> None:
    """Refuse an axis of a free size that is squeezed: the number of axes would depend on it. Raises Unsupported."""
    for node in operators(graph):
        if node.target not in _SQUEEZES:
            continue
        shape = node.all_input_nodes[0].meta["val"].shape
        given = node.args[1] if len(node.args) > 1 else range(len(shape))
        axes = [given] if isinstance(given, int) else given
        assert isinstance(axes, list | tuple | range)
        if any(isinstance(shape[axis], torch.SymInt) for axis in axes if isinstance(axis, int) and shape):
            raise Unsupported(
                f"the model cannot have a free batch: {operator_name(node)} at {site(node)}{line(node)} takes an axis"
                " away where its size is 1, and the batch may be; name the axes that it is meant for, or leave"
                " --dynamic-batch out"
            )


def _is_unknown(node: Node) -> bool:
    """Return whether a value has an axis whose size is known at run time only."""
    values = [one for one in tree_leaves(node.meta.get("val")) if isinstance(one, Tensor)]
    return any(isinstance(size, torch.SymInt) for one in values for size in one.shape)
