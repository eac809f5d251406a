"""Which module and which op of the program an operator of ONNX Runtime's belongs to.

    name in the profile                        is                                       found by
    network.0.0.attn/Mul_24                    a node of the file                       its name
    blocks.0/MatMul_16/MatmulTransposeFusion/  nodes that ONNX Runtime joined           the name that it begins with
    relu_2_nchwc                               a convolution in blocks of channels, its the value that it makes, and
                                               activation joined to it                  back to the convolution
    ReorderInput_token_19                      from one layout to another               no node: no module, no op

A node's module is what its name begins with. Its op is what it was lowered from. The values that end a lowering carry
the name of a node of the program (`additive_attention_3`, `conv2d`); those inside it are `val_N`, or `NAME__K` where an
op has several results. So nodes of one module that such values connect are one op, called after the value that ends it.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgesmith.bench.measurement import Operator

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto

INSIDE = re.compile(r"val_\d+.*|(?P<op>.+?)(_\d+)?__\d+")
"""Values inside a lowering."""

LAYOUT = "layout"
"""What operators that only change the layout are listed under."""


def place_operators(found: Iterable[Operator], file: Path) -> tuple[Operator, ...]:
    """Operators with the module and the op that an ONNX file says they come from."""
    import onnx

    graph = onnx.load(str(file), load_external_data=False).graph
    nodes: dict[str, NodeProto] = {node.name: node for node in graph.node}
    ops = ops_of_nodes(graph)
    makers: dict[str, NodeProto] = {value: node for node in graph.node for value in node.output}
    by_length = sorted(ops, key=len, reverse=True)

    def node_of(one: Operator) -> NodeProto | None:
        if one.name in nodes:
            return nodes[one.name]
        node = makers.get(one.name.removeprefix("InsertedPrecisionFreeCast_").removesuffix("_nchwc"))
        if node is None:
            return next((nodes[name] for name in by_length if one.name.startswith(f"{name}/")), None)
        first: NodeProto | None = node
        while first is not None and first.op_type != one.type.removeprefix("Fused"):
            first = makers.get(first.input[0]) if first.input else None
        return first or node

    def place(one: Operator) -> Operator:
        node = node_of(one)
        return one if node is None else replace(one, op=ops[node.name], module=_module(node))

    return tuple(place(one) for one in found)


def ops_of_nodes(graph: GraphProto) -> dict[str, str]:
    """The op that each node of a graph is part of, by the node's name; without the number of its use."""
    readers = defaultdict(list)
    for node in graph.node:
        for value in node.input:
            readers[value].append(node)
    connected = defaultdict(list)
    for node in graph.node:
        inside = [value for value in node.output if INSIDE.fullmatch(value)]
        for reader in (one for value in inside for one in readers[value] if _module(one) == _module(node)):
            connected[node.name].append(reader.name)
            connected[reader.name].append(node.name)
    nodes = {node.name: node for node in graph.node}
    results = {value.name for value in graph.output}
    several = {match["op"].rstrip("_") for node in graph.node for value in node.output if (match := _of_several(value))}
    found: dict[str, str] = {}
    for start in nodes:
        if start in found:
            continue
        together, left = {start}, [start]
        while left:
            fresh = set(connected[left.pop()]) - together
            together |= fresh
            left += fresh
        op = _called([node for name, node in nodes.items() if name in together], results, several)
        found |= dict.fromkeys(together, op)
    return found


def _module(node: NodeProto) -> str | None:
    module, slash, _ = node.name.rpartition("/")
    return module if slash else None


def _of_several(value: str) -> re.Match[str] | None:
    """The match of a value that is one of several results of an op, `op` among its groups."""
    match = INSIDE.fullmatch(value)
    return match if match and match["op"] else None


def _called(nodes: Sequence[NodeProto], results: set[str], several: set[str]) -> str:
    """What nodes of one lowering are called: after the value that ends it, or what its last node is.

    Of an op of several results the first ends as `getitem`; only the others have its name, where something reads them.
    Where none does, it is the only such op of the file, if there is one.
    """
    values = [value for node in nodes for value in node.output]
    own = [match["op"].rstrip("_") for value in values if (match := _of_several(value))]
    named = [value for value in values if value not in results and not INSIDE.fullmatch(value)]
    if own:
        return own[0]
    if named and not named[-1].startswith("getitem"):
        return re.sub(r"_\d+$", "", named[-1])
    return next(iter(several)) if named and len(nodes) > 1 and len(several) == 1 else nodes[-1].op_type.lower()


def group_by_op(operators: Sequence[Operator]) -> dict[str, tuple[float, int]]:
    """Milliseconds and number of the operators of each op, the most first."""
    return _grouped(operators, lambda one: one.op or (LAYOUT if "Reorder" in one.type else one.type))


def group_by_module(operators: Sequence[Operator], most: int = 16) -> dict[str, tuple[float, int]]:
    """Milliseconds and number of the operators of each module, the most first.

    Modules are joined by the first names of their paths, as many names as leave no more than `most` groups.
    """

    def grouped(depth: int) -> dict[str, tuple[float, int]]:
        return _grouped(operators, lambda one: _shortened(one, depth))

    depth = 1
    deepest = max((one.module.count(".") + 1 for one in operators if one.module), default=1)
    while depth < deepest and len(grouped(depth + 1)) <= most:
        depth += 1
    return grouped(depth)


def _shortened(one: Operator, depth: int) -> str:
    if one.module is None:
        return LAYOUT if "Reorder" in one.type else "(no module)"
    return ".".join(one.module.split(".")[:depth])


def _grouped(operators: Sequence[Operator], key: Callable[[Operator], str]) -> dict[str, tuple[float, int]]:
    groups: dict[str, tuple[float, int]] = {}
    for one in operators:
        ms, count = groups.get(key(one), (0.0, 0))
        groups[key(one)] = ms + one.ms, count + 1
    return dict(sorted(groups.items(), key=lambda item: (-item[1][0], item[0])))
