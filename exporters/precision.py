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
    first = next(node for node in module.graph.nodes if node.op == "call_function")
    for node in list(module.graph.nodes):
        if node.op == "placeholder" and node.meta["val"].dtype == torch.float32:
            _cast_after(module.graph, node, first)
        elif node.op == "get_attr":
            value = constant(module, node)
            if value is not None and value.dtype == torch.float32:
                new = add_constant(module, f"{node.target}_fp16", value.clamp(-_HALF_MAX, _HALF_MAX).half(), node)
                node.replace_all_uses_with(new)
                module.graph.erase_node(node)
    output = module.graph.output_node()
    with module.graph.inserting_before(output):
        for result in list(output.all_input_nodes):
            if result.meta["val"].dtype == torch.float32:
                back = module.graph.call_function(aten._to_copy.default, (result,), {"dtype": torch.float32})
                output.replace_input_with(result, back)
    return with_module(program, tidy(module))


def _cast_after(graph: torch.fx.Graph, placeholder: Node, first: Node) -> None:
    with graph.inserting_before(first):
        cast = graph.call_function(aten._to_copy.default, (placeholder,), {"dtype": torch.float16})
    placeholder.replace_all_uses_with(cast, delete_user_cb=lambda user: user is not cast)
