"""Arithmetic in types that a target has, of a program in types that it lacks.

    x + y: uint8      (x + y) mod 256              in int32, where x and y are below 256
    x + y: int8       (x + y + 128) mod 256 - 128                            int16 likewise, with 2^15
    x + y: float64    x + y in float32             where it is asked for

Values are the same whole numbers, and doubles the nearest floats. Inputs and constants are converted where they are
read; outputs are of the wider type. An operator that hands on values, or picks some, needs no modulus.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from edgesmith.exporters.graph.capture import Program, with_module
from edgesmith.exporters.graph.edit import Emitter, aten, constant, equals, fork, operator_name, tidy

SMALL = {torch.uint8: 0, torch.int8: 2**7, torch.int16: 2**15}
"""Whole numbers of less than 32 bits, with how far below zero they go."""

_RANGE = {torch.uint8: 2**8, torch.int8: 2**8, torch.int16: 2**16}

_KEEPS_RANGE = frozenset(
    f"aten.{name}"
    for name in (
        *("alias", "amax", "amin", "argsort", "bitwise_and", "bitwise_or", "bitwise_xor", "cat", "chunk", "clamp"),
        *("clamp_max", "clamp_min", "clip", "clone", "constant_pad_nd", "contiguous", "detach", "diagonal", "expand"),
        *("flatten", "flip", "floor", "gather", "index", "index_select", "max", "maximum", "min", "minimum", "narrow"),
        *("pad", "permute", "reflection_pad1d", "reflection_pad2d", "relu", "repeat", "reshape", "roll", "round"),
        *("select", "slice", "sort", "split", "squeeze", "stack", "t", "tile", "topk", "transpose", "tril", "triu"),
        *("trunc", "unbind", "unsqueeze", "view", "where", "max_pool2d", "upsample_nearest2d", "unflatten", "unfold"),
    )
)
"""Operators whose results lie between values of their inputs."""


def with_plain_types(program: Program, doubles: bool = False) -> Program:
    """Return a program that computes in int32 what it computed in less, and with `doubles` in float32 what in 64 bits.

    A program with loops or branches is left as it is.
    """
    wider: dict[torch.dtype, torch.dtype] = dict.fromkeys(SMALL, torch.int32)
    wider |= {torch.float64: torch.float32} if doubles else {}
    nodes = list(program.module.graph.nodes)
    own = [node for node in nodes if node.op == "call_function"]
    if not any(one.dtype in wider for node in nodes for one in _tensors(node)) or any(_is_nested(n) for n in own):
        return program
    module = fork(program.module)
    made: dict[Node, Node] = {}
    nodes = list(module.graph.nodes)
    first = [node for node in nodes if node.op == "placeholder"][-1].next  # constants may stand before them
    for node in nodes:
        emit = Emitter(module, first if node.op == "placeholder" else node)
        types = {one.dtype for one in _tensors(node)} & wider.keys()
        if node.op == "output":
            node.args = torch.fx.map_arg(node.args, lambda one: made.get(one, one))
        elif node.op == "get_attr" and types:
            value = constant(module, node)
            assert value is not None  # it has a type
            made[node] = emit.constant(f"{node.name}_plain", value.to(wider[value.dtype]))
        elif node.op == "placeholder" and types:
            made[node] = emit(aten._to_copy.default, node, dtype=wider[types.pop()])
        elif node.op == "call_function" and (types or any(one in made for one in node.all_input_nodes)):
            made[node] = _plain(emit, node, made, wider)
    return with_module(program, tidy(module))


def _plain(emit: Emitter, node: Node, made: dict[Node, Node], wider: dict[torch.dtype, torch.dtype]) -> Node:
    """Emit an operator of wider values, and what brings its result back into the type's range."""

    def widen(value: Any) -> Any:
        return wider.get(value, value) if isinstance(value, torch.dtype) else value

    args, kwargs = torch.fx.map_arg((_in_range(node), node.kwargs), lambda one: made.get(one, one))
    args = tuple(widen(value) for value in args)
    new = emit(node.target, *args, **{name: widen(value) for name, value in kwargs.items()})
    values = _tensors(node)
    if len(values) == 1 and values[0].dtype in SMALL and operator_name(node) not in _KEEPS_RANGE:
        below, count = SMALL[values[0].dtype], _RANGE[values[0].dtype]
        shifted = emit(aten.add.Scalar, new, below) if below else new
        new = emit(aten.remainder.Scalar, shifted, count)
        new = emit(aten.sub.Scalar, new, below) if below else new
    new.meta["equals"] = equals(node)
    return new


def _in_range(node: Node) -> tuple[Any, ...]:
    """Return a node's arguments with numbers as PyTorch takes them beside a small type: -1 is 255 to a uint8."""
    kinds = {one.dtype for source in node.all_input_nodes for one in _tensors(source) if one.dim()}
    kind = kinds.pop() if len(kinds) == 1 else None
    if kind not in SMALL or any(one.is_floating_point() for one in _tensors(node)):
        return tuple(node.args)
    below, count = SMALL[kind], _RANGE[kind]
    declared = [str(one.type) for one in node.target._schema.arguments]  # type: ignore[union-attr]  # an operator's
    return tuple(
        (value + below) % count - below if "number" in of.lower() and type(value) is int else value
        for value, of in zip(node.args, declared, strict=False)
    )


def _tensors(node: Node) -> list[Tensor]:
    """Return the values that a node makes."""
    if _is_quantised(node):
        return []
    return [one for one in torch.utils._pytree.tree_leaves(node.meta.get("val")) if isinstance(one, Tensor)]


def _is_quantised(node: Node) -> bool:
    """Return whether a node makes int8 that a target takes as such: of a quantiser, or a weight for its opposite."""
    if node.op == "get_attr":
        return bool(node.users) and all(_is_quantiser(user) for user in node.users)
    return _is_quantiser(node) and ".quantize" in operator_name(node)


def _is_quantiser(node: Node) -> bool:
    return node.op == "call_function" and operator_name(node).startswith("quantized_decomposed.")


def _is_nested(node: Node) -> bool:
    """Return whether a node runs a graph of its own."""
    return isinstance(node.target, torch._ops.HigherOrderOperator)
