"""Which module and which op of the program an operator of a runtime's belongs to.

ONNX Runtime's operators are found by the ONNX file that it runs:

    name in the profile                        is                                       found by
    network.0.0.attn/Mul_24                    a node of the file                       its name
    blocks.0/MatMul_16/MatmulTransposeFusion/  nodes that ONNX Runtime joined           the name that it begins with
    relu_2_nchwc                               a convolution in blocks of channels, its the value that it makes, and
                                               activation joined to it                  back to the convolution
    ReorderInput_token_19                      from one layout to another               no node: no module, no op

A node's module is what its name begins with. Its op is what it was lowered from. The values that end a lowering carry
the name of a node of the program (`additive_attention_3`, `conv2d`); those inside it are `val_N`, or `NAME__K` where an
op has several results. So nodes of one module that such values connect are one op, called after the value that ends it.

TensorRT's layers are found by the names of ONNX nodes, in what the builder wrote down of a layer (`layers.json`), else
in the layer's own name:

    stages.0/Conv_1 + stages.0/Relu_2          nodes that TensorRT joined; PWN(a, b) and {ForeignNode[a...b]} are others
    __myl_CastTranMulAdd_myl0_3                the same, named in layers.json only
    Reformatting CopyNode for Input Tensor 0   from one layout to another: no module, no op

Nothing says how a layer's time is shared among what was joined. Its op is all of their ops, `conv2d + relu`, and its
module what their modules have in common.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

from edgesmith.bench.measurement import Operator
from edgesmith.exporters import artifact as artifacts
from edgesmith.exporters.tensorrt import engine as engines
from edgesmith.readers.messages import read_onnx

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto

INSIDE = re.compile(r"val_\d+.*|(?P<op>.+?)(_\d+)?__\d+")
"""Values inside a lowering."""

LAYOUT = "layout"
"""The group of operators that only change the layout."""

JOINED = re.compile(r" \+ |, |\.\.\.|[()\[\]{}]")
"""The marks between nodes in a layer's name."""

MOST_JOINED = 3
"""Ops of one layer that are named; of further ones, how many there are."""


def place_operators(found: Iterable[Operator], file: Path) -> tuple[Operator, ...]:
    """Operators with the module and the op that an ONNX file says they come from."""
    graph = read_onnx(file).graph
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


def place_layers(found: Iterable[Operator], file: Path) -> tuple[Operator, ...]:
    """Layers with type, module and op, as layers.json beside an engine and the ONNX file that it is of say.

    Where that file is not at hand, an op is what its nodes' names say: `conv` of `stages.0/Conv_1`.
    """
    listed = engines.read_layers(file.parent)["layers"] if (file.parent / engines.LAYERS).is_file() else []
    layers = {layer["name"]: layer for layer in listed}
    source = _typed_onnx(file)
    ops = ops_of_nodes(read_onnx(source).graph) if source else {}
    known = ops.keys() | {node for layer in listed for node in layer["nodes"]}

    def place(one: Operator) -> Operator:
        layer = layers.get(one.name, {"type": "", "nodes": ()})
        named = replace(one, type=one.type or layer["type"])
        parts = [] if one.name.startswith("Reformatting ") else JOINED.split(one.name)
        nodes = [node for node in layer["nodes"] or parts if node in known]
        if not nodes:
            return named
        joined = list(dict.fromkeys(ops.get(node) or _kind(node) for node in nodes))
        more = [f"{len(joined) - MOST_JOINED} more"] if len(joined) > MOST_JOINED else []
        return replace(named, op=" + ".join(joined[:MOST_JOINED] + more), module=_common(map(_module_of, nodes)))

    return tuple(place(one) for one in found)


def place_calls(found: Iterable[Operator], file: Path) -> tuple[Operator, ...]:
    """Calls of a compiled model, whose types say what they compute: a kernel's kind, or the operators of a loop."""
    return tuple(replace(one, op=one.type) for one in found)


def _typed_onnx(engine: Path) -> Path | None:
    """The ONNX file that an engine is of: beside it, in the kit around it, or in the kit that `build-on` was given."""
    beside = engine.with_suffix(".onnx")
    if beside.is_file():
        return beside
    built = artifacts.read(engine)
    wanted = built.manifest["kit"].get("onnx") if "kit" in built.manifest else None
    kits = (built.path.parent, built.path.with_name(built.path.name.removesuffix("-built")))
    for kit in kits:
        onnx = kit / beside.name
        if onnx.is_file() and hashlib.sha256(onnx.read_bytes()).hexdigest() == wanted:
            return onnx
    return None


def _common(modules: Iterable[str | None]) -> str | None:
    """The first names of their paths that modules share; None where they share none."""
    paths = [module.split(".") if module else [] for module in modules]
    same = takewhile(lambda names: len(set(names)) == 1, zip(*paths, strict=False))
    return ".".join(names[0] for names in same) or None


def _kind(node: str) -> str:
    """`conv` of `stages.0/Conv_1`."""
    return re.sub(r"_\d+$", "", node.rpartition("/")[2]).lower()


def _module_of(name: str) -> str | None:
    module, slash, _ = name.rpartition("/")
    return module if slash else None


def ops_of_nodes(graph: GraphProto) -> dict[str, str]:
    """Return the op that each node of a graph is part of, by the node's name; without the number of its use."""
    nodes = {node.name: node for node in graph.node}
    results = {value.name for value in graph.output}
    several = {match["op"].rstrip("_") for node in graph.node for value in node.output if (match := _of_several(value))}
    neighbours = _inner_neighbours(graph)
    found: dict[str, str] = {}
    for start in nodes:
        if start not in found:
            together = _reachable(start, neighbours)
            op = _called([node for name, node in nodes.items() if name in together], results, several)
            found |= dict.fromkeys(together, op)
    return found


def _inner_neighbours(graph: GraphProto) -> dict[str, list[str]]:
    """The nodes of one module that share a value inside of a lowering, by their names."""
    readers = defaultdict(list)
    for node in graph.node:
        for value in node.input:
            readers[value].append(node)
    neighbours = defaultdict(list)
    for node in graph.node:
        inside = [value for value in node.output if INSIDE.fullmatch(value)]
        for reader in (one for value in inside for one in readers[value] if _module(one) == _module(node)):
            neighbours[node.name].append(reader.name)
            neighbours[reader.name].append(node.name)
    return neighbours


def _reachable(start: str, neighbours: Mapping[str, Sequence[str]]) -> set[str]:
    """All that a node is connected with, itself among it."""
    together, left = {start}, [start]
    while left:
        fresh = set(neighbours.get(left.pop(), ())) - together
        together |= fresh
        left += fresh
    return together


def _module(node: NodeProto) -> str | None:
    return _module_of(node.name)


def _of_several(value: str) -> re.Match[str] | None:
    """The match of a value that is one of several results of an op, `op` among its groups."""
    match = INSIDE.fullmatch(value)
    return match if match and match["op"] else None


def _called(nodes: Sequence[NodeProto], results: set[str], several: set[str]) -> str:
    """Name the nodes of one lowering, after the value that ends it or by the last node's type.

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
    return _grouped(operators, lambda one: one.op or (LAYOUT if _is_layout(one) else one.type or "(no op)"))


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
        return LAYOUT if one.op is None and _is_layout(one) else "(no module)"
    return ".".join(one.module.split(".")[:depth])


def _is_layout(one: Operator) -> bool:
    return "Reorder" in one.type or "Reformat" in one.type + one.name


def _grouped(operators: Sequence[Operator], key: Callable[[Operator], str]) -> dict[str, tuple[float, int]]:
    groups: dict[str, tuple[float, int]] = {}
    for one in operators:
        ms, count = groups.get(key(one), (0.0, 0))
        groups[key(one)] = ms + one.ms, count + 1
    return dict(sorted(groups.items(), key=lambda item: (-item[1][0], item[0])))
