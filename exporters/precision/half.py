"""Arithmetic of 16 bits, explicit in the graph: types in the program, not a flag for somebody's converter.

fp16   11 bits of significand, up to 65504
bf16    8 bits of significand, the range of fp32
"""

from __future__ import annotations

import operator
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils._pytree import tree_map

from edgesmith.exporters.graph.capture import Program, with_module
from edgesmith.exporters.graph.edit import add_constant, aten, constant, fork, tidy

HALF_MAX = torch.finfo(torch.float16).max

KINDS = {"fp16": torch.float16, "bf16": torch.bfloat16}
"""Types of 16 bits by the names of their precisions."""

_NAMES = {kind: name for name, kind in KINDS.items()}


def half(program: Program, keep_fp32: Collection[str] = (), kind: torch.dtype = torch.float16) -> Program:
    """Return the program with weights and arithmetic of 16 bits. Inputs, outputs and `keep_fp32` stay float32.

    A value is cast where it enters or leaves half precision, once, however many nodes read it. Between neighbours that
    are both float32 there is no cast. Weights beyond the type's range become its largest number rather than infinity.

    Args:
        program: of float32.
        keep_fp32: names of nodes that stay float32, as `islands.find_islands` finds them.
        kind: one of `KINDS`.
    """
    module = fork(program.module)
    for node in list(module.graph.nodes):
        value = node.meta.get("val")
        if not is_kept(node, keep_fp32):
            _raise_guard(node, kind)
        if node.op == "output" or not isinstance(value, Tensor) or value.dtype != torch.float32:
            continue
        weight = constant(module, node)
        is_single = weight is not None or node.op == "placeholder" or is_kept(node, keep_fp32)
        if not is_single:
            _name_type(node, kind)
            is_single = _is_of_default_type(node, kind)
        others = [user for user in node.users if (user.op == "output" or is_kept(user, keep_fp32)) != is_single]
        if not others:
            continue
        if weight is None:
            new = _cast(module.graph, node, kind if is_single else torch.float32)
        else:
            new = add_constant(module, f"{node.target}_{_NAMES[kind]}", round_weight(weight, kind), node)
        for user in others:
            user.replace_input_with(node, new)
    return replace(with_module(program, tidy(module)), typed_as=_NAMES[kind])


def is_kept(node: Node, keep_fp32: Collection[str]) -> bool:
    """Return whether a node stays float32: it is named, or takes one of the results of a node that is."""
    if node.target is operator.getitem and isinstance(node.args[0], Node):
        return is_kept(node.args[0], keep_fp32)
    return node.name in keep_fp32


def round_weight(weight: Tensor, kind: torch.dtype = torch.float16) -> Tensor:
    """Return a weight in a type of 16 bits."""
    limit = torch.finfo(kind).max
    return weight.clamp(-limit, limit).to(kind)


def _name_type(node: Node, kind: torch.dtype) -> None:
    """Have a node that names the type of its result, as a cast of a mask or a softmax may, name the other one."""

    def renamed(value: Any) -> Any:
        return kind if value is torch.float32 else value

    node.args, node.kwargs = tree_map(renamed, node.args), tree_map(renamed, node.kwargs)


def _is_of_default_type(node: Node, kind: torch.dtype) -> bool:
    """Return whether a node makes float32 of what is no float, which is PyTorch's default: where(mask, -inf, 0.0)."""
    if kind in node.args or kind in node.kwargs.values():
        return False
    read = (torch.utils._pytree.tree_leaves(one.meta.get("val")) for one in node.all_input_nodes)
    return not any(isinstance(value, Tensor) and value.is_floating_point() for values in read for value in values)


_GUARDED: dict[Any, int] = {aten.clamp_min.default: 1, aten.clamp.default: 1, aten.add.Tensor: 1, aten.add.Scalar: 1}
"""Operators that keep a divisor from being zero, with the argument that does."""


def _raise_guard(node: Node, kind: torch.dtype) -> None:
    """Raise a number that keeps a divisor from being zero, and would be zero in 16 bits, to the least normal one.

    So x / max(|x|, 1e-12) stays 0 where x is 0. Numbers that small are lost in the type anyway.
    """
    index = _GUARDED.get(node.target, 0) if callable(node.target) else 0
    value = node.args[index] if 0 < index < len(node.args) else None
    if isinstance(value, float) and value > 0 and not torch.tensor(value, dtype=kind):
        node.update_arg(index, torch.finfo(kind).smallest_normal)


def _cast(graph: torch.fx.Graph, node: Node, dtype: torch.dtype) -> Node:
    """A cast of `node`, after it; after all placeholders when it is one."""
    after = [n for n in graph.nodes if n.op == "placeholder"][-1] if node.op == "placeholder" else node
    with graph.inserting_after(after):
        cast = graph.call_function(aten._to_copy.default, (node,), {"dtype": dtype})
    cast.meta["val"] = node.meta["val"].to(dtype)
    return cast
