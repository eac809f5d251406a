"""Arithmetic in half precision, explicit in the graph: types in the program, not a flag for somebody's converter."""

from __future__ import annotations

import torch
from torch.fx import Node

from edgesmith.exporters.capture import Program, with_module
from edgesmith.exporters.graph import add_constant, aten, constant, fork, tidy

_HALF_MAX = torch.finfo(torch.float16).max


def half(program: Program) -> Program:
    """The program with fp16 weights and arithmetic; inputs and outputs stay float32, one cast at each end.

    Weights beyond the fp16 range become its largest number rather than infinity.
    """
    module = fork(program.module)
    output = module.graph.output_node()
    singles = [node for node in output.all_input_nodes if node.meta["val"].dtype == torch.float32]
    replaced: dict[Node, Node] = {}
    for node in list(module.graph.nodes):
        value = constant(module, node)
        if node.op == "placeholder" and node.meta["val"].dtype == torch.float32:
            half_of = _cast(module.graph, node, torch.float16)
            node.replace_all_uses_with(half_of, delete_user_cb=lambda user, own=half_of: user is not own)
            replaced[node] = half_of
        elif value is not None and value.dtype == torch.float32:
            half_value = value.clamp(-_HALF_MAX, _HALF_MAX).half()
            new = add_constant(module, f"{node.target}_fp16", half_value, node)
            node.replace_all_uses_with(new)
            module.graph.erase_node(node)
            replaced[node] = new
    for node in singles:
        result = replaced.get(node, node)
        output.replace_input_with(result, _cast(module.graph, result, torch.float32))
    return with_module(program, tidy(module))


def _cast(graph: torch.fx.Graph, node: Node, dtype: torch.dtype) -> Node:
    """A cast of `node`, after it; after all placeholders when it is one."""
    after = [n for n in graph.nodes if n.op == "placeholder"][-1] if node.op == "placeholder" else node
    with graph.inserting_after(after):
        cast = graph.call_function(aten._to_copy.default, (node,), {"dtype": dtype})
    cast.meta["val"] = node.meta["val"].to(dtype)
    return cast
