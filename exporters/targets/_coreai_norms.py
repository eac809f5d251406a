"""Norms of what the caller hands in, so that Core AI's runtime makes of a constant row what its maths says: nothing.

    norm(x)  ->  norm(x - x_0)            x_0 the first element of each row, of rows that no layer has made

Its runtime adds up a row in order in fp32. The mean of n equal numbers is then off by some n ulp, which 1 / sqrt(eps)
magnifies: of 192 times 0.67 with an eps of 1e-6 it makes 1.4e-3 where the row is 0 exactly, of 1152 times 1000.1 it
makes 1. A norm does not see what is subtracted from a whole row, and equal numbers less one of them are 0 in any order.

Only the caller can hand in such rows: behind a layer none is constant. Half precision is left, as it would round the
differences.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from edgesmith.exporters.graph.capture import Program, with_module
from edgesmith.exporters.graph.edit import Emitter, aten, fork, operators, tidy
from edgesmith.kernels import channel_norm

_HANDING_ON = frozenset(
    getattr(aten, name).default
    for name in ("permute", "reshape", "view", "unsqueeze", "expand", "clone", "contiguous", "flip")
) | {
    aten.transpose.int,
    aten.flatten.using_ints,
    aten.unflatten.int,
    aten.squeeze.dim,
    aten.slice.Tensor,
    aten.cat.default,
}
"""Operators whose results are rows of what they read."""


def shift_norms_of_inputs(program: Program) -> Program:
    """Return the program with norms of float32 rows of its inputs shifted; itself where there are none."""
    found = [node for node in operators(program.module) if _axis(node) is not None and _is_handed_in(node.args[0])]
    if not found:
        return program
    names = {node.name for node in found}
    module = fork(program.module)
    for node in operators(module):
        if node.name in names:
            axis, x, emit = _axis(node), node.args[0], Emitter(module, node)
            assert axis is not None
            assert isinstance(x, Node)
            first = x
            for one in range(axis, x.meta["val"].dim()) if node.target is aten.layer_norm.default else (axis,):
                first = emit(aten.slice.Tensor, first, one, 0, 1)
            node.replace_input_with(x, emit(aten.sub.Tensor, x, first))
    return with_module(program, tidy(module))


def _axis(node: Node) -> int | None:
    """Return the first axis that a norm of float32 is over; None for other operators."""
    x: Any = node.args[0] if node.args else None
    value = x.meta.get("val") if isinstance(x, Node) else None
    if not isinstance(value, Tensor) or value.dtype != torch.float32:
        return None
    if node.target is aten.layer_norm.default:
        shape = node.args[1]
        return value.dim() - len(shape) if isinstance(shape, (list, tuple)) else None
    return 1 if node.target is channel_norm.OP.overload else None


def _is_handed_in(x: Any) -> bool:
    """Return whether a value is one of the inputs, or some of its rows."""
    while isinstance(x, Node) and x.target in _HANDING_ON:
        x = x.all_input_nodes[0]
    return isinstance(x, Node) and x.op == "placeholder"
