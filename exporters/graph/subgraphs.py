"""Sub-graphs that torch.export keeps apart: those that only say how a region runs become part of the program.

    with torch.autocast(..., enabled=False)   wrap_with_autocast           ->  its body
    with torch.enable_grad()                  wrap_with_set_grad_enabled   ->  its body
    checkpoint(f, x), as strict mode has it   tag_activation_checkpoint    ->  its body
    nested_compile_region                     invoke_subgraph              ->  its body
    torch.cond(p, f, g, x), p constant        cond                         ->  the body that runs
    torch's own print                         print                        ->  nothing
    scan, while_loop, map, other cond         control flow                 ->  stays, its own bodies looked through

Rewrites match operators of one graph, so whatever stays in a sub-graph is hidden from them. Autocast is the one region
that can change numbers. It is its body only where it casts nothing in there, which is found by running the body's
operators on fake tensors under autocast and without. Every other operator of this kind is refused by its name and line.
"""

from __future__ import annotations

import contextlib
import operator
import re
import textwrap
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_leaves

from edgesmith.errors import Unsupported
from edgesmith.exporters.graph.edit import add_constant, constant, operator_name, site
from edgesmith.exporters.graph.interpret import held, run_part
from edgesmith.exporters.graph.watching import Watching

OPERANDS = {
    "wrap_with_autocast": 5,
    "wrap_with_set_grad_enabled": 2,
    "wrap": 1,
    "wrap_activation_checkpoint": 1,
    "tag_activation_checkpoint": 1,
    "dynamo_bypassing_wrapper": 2,
    "strict_mode": 1,
    "hints_wrapper": 1,
    "invoke_subgraph": 2,
}
"""Operators that mean their body, each with the position where its operands begin."""

CONTROL_FLOW = frozenset({"cond", "while_loop", "scan", "map_impl", "associative_scan"})
"""Operators that run their bodies by what they compute: for them targets have loops and branches of their own."""


def inline_subgraphs(module: GraphModule) -> None:
    """Put every body that is simply run where it stands, in the graph and in the bodies of its control flow.

    The graph has to be recompiled afterwards.

    Raises:
        Unsupported: another operator with a sub-graph.
    """
    while (found := next(_runs_once(module), None)) is not None:
        _inline(module, *found)
    for node in _higher_order(module):
        if name_of(node) == "print":
            module.graph.erase_node(node)
    for node in _higher_order(module):
        if name_of(node) not in CONTROL_FLOW:
            raise Unsupported(f"{name_of(node)}{line(node)} is an operator that no file holds; compute without it")
        for body in bodies(module, node):
            inline_subgraphs(body)
            body.recompile()


def refuse_casts(module: GraphModule) -> None:
    """Refuse autocast where it rounds something: no file could follow, each has one precision for all.

    Raises:
        Unsupported: with the first operator that autocast gives another type, and its line.
    """
    for node in _higher_order(module):
        inner = bodies(module, node)
        if name_of(node) == "wrap_with_autocast":
            device, dtype, is_enabled = cast(tuple[str, torch.dtype, bool], node.args[:3])
            rounded = _first_cast(inner[0], device, dtype) if is_enabled else None
            if rounded is not None:
                raise Unsupported(
                    f"autocast runs {operator_name(rounded)} at {site(rounded)}{line(rounded)} in"
                    f" {str(dtype).removeprefix('torch.')}, and a file has one precision for all its layers; leave"
                    " autocast out, or set enabled=False, and choose the file's precision with --precision"
                )
        for body in inner:
            refuse_casts(body)


def refuse_control_flow(module: GraphModule, target: str, takes: Collection[str] = ()) -> None:
    """Refuse loops and branches that a target has not.

    Args:
        target: what users call it.
        takes: names of the operators that it has.

    Raises:
        Unsupported: with the operator and its line.
    """
    for node in _higher_order(module):
        if name_of(node) in CONTROL_FLOW and name_of(node) not in takes:
            raise Unsupported(
                f"{target} cannot express {name_of(node)}{line(node)}; choose by torch.where, or write a loop of fixed"
                " length in Python"
            )
        for body in bodies(module, node):
            refuse_control_flow(body, target, takes)


def any_operator(module: GraphModule, is_wanted: Callable[[Node], bool]) -> bool:
    """Return whether some operator of a graph, or of a body in it, is one that is asked for."""
    return any(
        is_wanted(node) or any(any_operator(body, is_wanted) for body in bodies(module, node))
        for node in module.graph.nodes
    )


def bodies(module: GraphModule, node: Node) -> list[GraphModule]:
    """The sub-graphs that a node reads."""
    read = [held(module, source) for source in node.all_input_nodes if source.op == "get_attr"]
    return [value for value in read if isinstance(value, GraphModule)]


def name_of(node: Node) -> str:
    """The name of a higher-order operator: `cond`, `wrap_with_autocast`."""
    assert isinstance(node.target, torch._ops.HigherOrderOperator)
    return str(node.target)


def line(node: Node) -> str:
    """The source line that a node was captured from, in brackets, for a sentence; empty where it is not known."""
    frames = re.findall(r'File "([^"<>]+)", line (\d+), in [^\n]*\n\s*([^\n]+)', str(node.meta.get("stack_trace")))
    own = [frame for frame in frames if not frame[0].startswith(_TORCH)] or frames
    if not own:
        return ""
    path, number, text = own[-1]
    return f" ({Path(path).name}, line {number}: {textwrap.shorten(text, 80, placeholder=' ...')})"


_TORCH = str(Path(torch.__file__).parent)


def _higher_order(module: GraphModule) -> list[Node]:
    return [node for node in module.graph.nodes if isinstance(node.target, torch._ops.HigherOrderOperator)]


def _runs_once(module: GraphModule) -> Iterator[tuple[Node, GraphModule, Sequence[Any]]]:
    """Operators that run one body once, whatever the inputs are, each with the body and its operands."""
    for node in _higher_order(module):
        name = name_of(node)
        if name in OPERANDS:
            yield node, bodies(module, node)[0], tree_leaves(node.args[OPERANDS[name] :])
        elif name == "cond" and (branch := _branch_taken(module, node)) is not None:
            yield node, branch, tree_leaves(node.args[3])


def _branch_taken(module: GraphModule, cond: Node) -> GraphModule | None:
    """The branch that a condition of constants takes; None where it depends on the inputs."""
    predicate, *branches = cond.args[:3]
    value = _constant_value(module, predicate) if isinstance(predicate, Node) else predicate
    if value is None:
        return None
    chosen = branches[0 if value else 1]
    assert isinstance(chosen, Node)
    body: GraphModule = held(module, chosen)
    return body


def _constant_value(module: GraphModule, node: Node) -> Any:
    """A value that is computed from constants alone, without chance; None for others."""
    needed: set[Node] = set()
    queue = [node]
    while queue:
        one = queue.pop()
        is_random = torch.Tag.nondeterministic_seeded in getattr(one.target, "tags", ())
        if one.op == "placeholder" or is_random or bodies(module, one):
            return None
        if one not in needed:
            needed.add(one)
            queue += one.all_input_nodes
    if node.op == "get_attr":
        return constant(module, node)
    return run_part(module, [one for one in module.graph.nodes if one in needed and one.op != "get_attr"], {})[node]


def _inline(module: GraphModule, call: Node, body: GraphModule, operands: Sequence[Any]) -> None:
    """Put the operators of a body where it is called. Raises Unsupported where its operands are not all there."""
    given = [node for node in body.graph.nodes if node.op == "placeholder"]
    if len(given) != len(operands):
        raise Unsupported(f"{name_of(call)}{line(call)} is called with named arguments; name none of them")
    values: dict[Node, Any] = dict(zip(given, operands, strict=True))
    results: Any = None
    for node in body.graph.nodes:
        if node.op == "output":
            results = torch.fx.map_arg(node.args[0], values.__getitem__)
        elif node.op == "get_attr":
            values[node] = _move_held(module, call, body, node)
        elif node.op == "call_function":
            with module.graph.inserting_before(call):
                values[node] = module.graph.node_copy(node, values.__getitem__)
    _return(module, call, results)


def _move_held(module: GraphModule, call: Node, body: GraphModule, node: Node) -> Node:
    """A node of the outer graph for what a body holds: a tensor, or a body of its own."""
    value = held(body, node)
    if isinstance(value, FakeTensor):
        raise Unsupported(f"{name_of(call)}{line(call)} was captured without its constants; compute without it")
    if isinstance(value, Tensor):
        return add_constant(module, str(node.target), value, before=call)
    name, count = "body", 0
    while hasattr(module, name):
        name, count = f"body_{count}", count + 1
    module.add_module(name, value)
    with module.graph.inserting_before(call):
        return module.graph.get_attr(name)


def _return(module: GraphModule, call: Node, results: Any) -> None:
    """Let a call's readers read its results, and forget the call."""
    for user in list(call.users):
        if user.target is operator.getitem and isinstance(results, list | tuple):
            _read_instead(user, results[user.args[1]])  # type: ignore[index]  # an index into a tuple
            module.graph.erase_node(user)
    _read_instead(call, results)
    read = call.all_input_nodes
    module.graph.erase_node(call)
    for source in read:
        if source.op == "get_attr" and not source.users:
            module.graph.erase_node(source)


def _read_instead(node: Node, value: Any) -> None:
    """Let a node's readers read a value, which may be another node, a number, or a nest of them."""
    for reader in list(node.users):
        args, kwargs = torch.fx.map_arg((reader.args, reader.kwargs), lambda one: value if one is node else one)
        reader.args, reader.kwargs = args, kwargs


def _first_cast(body: GraphModule, device: str, dtype: torch.dtype) -> Node | None:
    """The first operator in a body that autocast gives other types than it has; None where there is none."""
    node: Node
    for node in body.graph.nodes:
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            inner = [] if name_of(node) == "wrap_with_autocast" else bodies(body, node)  # which has its own say
            found = next((one for part in inner if (one := _first_cast(part, device, dtype)) is not None), None)
            if found is not None:
                return found
        elif isinstance(node.target, torch._ops.OpOverload):
            args, kwargs = torch.fx.map_arg(
                (node.args, node.kwargs), lambda one: one.meta["val"] if "val" in one.meta else held(body, one)
            )
            plain, rounded = [
                _operators_run(node.target, args, kwargs, torch.autocast(device, dtype, enabled=enabled))
                for enabled in (False, True)
            ]
            if plain != rounded:
                return node
    return None


class _Log(Watching):
    """The operators that run, with the types that they return."""

    def __init__(self) -> None:
        super().__init__()
        self.run: list[str] = []

    def watch(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        result = func(*args, **kwargs)
        made = [leaf.dtype for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.run.append(f"{func} {made}")
        return result


def _operators_run(target: Any, args: Any, kwargs: Any, region: torch.autocast) -> list[str]:
    """Return what an operator runs, on fake tensors in a region of autocast."""
    fake = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, FakeTensor)]
    log = _Log()
    with torch.no_grad(), region, fake[0].fake_mode if fake else contextlib.nullcontext(), log:
        target(*args, **kwargs)
    return log.run
