"""Reading and editing captured graphs: constants by name, arguments by schema, sites by module.

A captured graph is a `torch.fx.GraphModule` whose parameters are `get_attr` nodes under the model's own names, whose
operators are ATen overloads, and whose nodes carry the module they came from.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

from edgesmith.exporters.graph.interpret import Values, held, run_graph

aten = torch.ops.aten

CONVOLUTIONS = frozenset({aten.conv1d.default, aten.conv2d.default, aten.conv3d.default})

COMMUTATIVE = frozenset({aten.add.Tensor, aten.mul.Tensor})
"""Operators whose first two arguments may be exchanged; a sum's `alpha` is 1 then."""


def fork(module: GraphModule) -> GraphModule:
    """A graph that can be edited without touching `module`; tensors are shared until they are replaced."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # copying torch's own tree specs warns of torch's own renaming
        return GraphModule(module, copy.deepcopy(module.graph))


def tidy(module: GraphModule) -> GraphModule:
    """Drop dead nodes and the parameters that no node reads any more, check the graph, and recompile."""
    module.graph.eliminate_dead_code()
    module.graph.lint()
    return GraphModule(module, module.graph)


def sweep(module: GraphModule) -> None:
    """Erase operators whose value nobody reads, and constants that only those read.

    A constant that nobody has ever read stays until `tidy`: a rewrite may look for it by its numbers.
    """
    for node in reversed(module.graph.nodes):
        if node.op != "call_function" or node.users or node.is_impure():
            continue
        read = node.all_input_nodes
        module.graph.erase_node(node)
        for source in read:
            if source.op == "get_attr" and not source.users:
                module.graph.erase_node(source)


def constant(module: GraphModule, node: object) -> Tensor | None:
    """The tensor behind a `get_attr` node, or None for anything else."""
    if not isinstance(node, Node) or node.op != "get_attr":
        return None
    value = held(module, node)
    return value if isinstance(value, Tensor) else None


def add_constant(module: GraphModule, name: str, value: Tensor, before: Node) -> Node:
    """A new parameter called `name` (numbered when that is taken) and the `get_attr` node that reads it.

    A name is also taken where a module has something of its own under it or under a part of it: `to`, `type`, `float`.
    """
    read = {str(n.target) for n in module.graph.nodes if n.op == "get_attr"}
    unique, count = name, 1
    while not _is_free(module, unique, read):
        unique, count = f"{name}_{count}".replace(".", "_"), count + 1
    *path, leaf = unique.split(".")
    parent: nn.Module = module
    for part in path:
        if not hasattr(parent, part):
            parent.add_module(part, nn.Module())
        parent = getattr(parent, part)
    if hasattr(parent, leaf):
        delattr(parent, leaf)
    parent.register_parameter(leaf, nn.Parameter(value.contiguous(), requires_grad=False))
    with module.graph.inserting_before(before):
        node = module.graph.get_attr(unique)
    node.meta["val"] = value
    return node


def _is_free(module: nn.Module, name: str, read: set[str]) -> bool:
    """Return whether a parameter can be called `name`: nothing else is, but for a tensor that no node reads."""
    if name in read:
        return False
    value: Any = module
    parts = name.split(".")
    for i, part in enumerate(parts):
        if not isinstance(value, nn.Module):
            return False
        if not hasattr(value, part):
            return _MODULES_OWN.isdisjoint(parts[i + 1 :])  # the rest is made anew
        value = getattr(value, part)
    return isinstance(value, Tensor)


_MODULES_OWN = frozenset(dir(nn.Module()))
"""Attributes of every module, under whose names it can hold nothing else."""


def set_constant(module: GraphModule, user: Node, index: int, name: str, value: Tensor) -> None:
    """Make `value` the constant that `user` reads as argument `index`, under the old name where only `user` read it."""
    old = user.args[index] if index < len(user.args) else None
    if isinstance(old, Node):
        name = str(old.target)
        user.update_arg(index, None)
        if not old.users:
            module.graph.erase_node(old)
    node = add_constant(module, name, value, before=user)
    while len(user.args) <= index:
        user.args = (*user.args, None)
    user.update_arg(index, node)


class Emitter:
    """Appends operators to a graph, before one node, with the shapes and types that they yield.

    `emit(aten.mul.Tensor, a, b)` is a new node. Its `val` comes from running the operator on fake tensors, its module
    and source line from `source`: the node that it helps to replace, which is `before` unless it is set.
    """

    def __init__(self, module: GraphModule, before: Node) -> None:
        self.module = module
        self.before = before
        self.source = before
        self._mode = _fake_mode(module)

    def __call__(self, target: Any, *args: Any, **kwargs: Any) -> Node:
        """A node for `target(*args, **kwargs)`; arguments may be nodes, constants, and lists of them."""
        with self.module.graph.inserting_before(self.before):
            node = self.module.graph.call_function(target, args, kwargs)
        node.meta.update({key: self.source.meta[key] for key in _PLACE if key in self.source.meta})
        changed(node)  # unless `stand_for` says what it equals
        with self._mode, enable_python_dispatcher():  # without which some operators would fix a free axis
            real, other = torch.fx.map_arg((args, kwargs), lambda n: self._fake(n.meta["val"]))
            node.meta["val"] = target(*real, **other)
        return node

    def constant(self, name: str, value: Tensor) -> Node:
        """A new parameter called `name`, numbered when that is taken, and the node that reads it."""
        return add_constant(self.module, name, value, self.before)

    def placeholder(self, name: str, example: Tensor) -> Node:
        """A new input called `name`."""
        with self.module.graph.inserting_before(self.before):
            node = self.module.graph.placeholder(name)
        node.meta["val"] = self._fake(example)
        return node

    def inline(self, function: Callable[..., Any], *args: Node, as_captured: bool = False) -> Any:
        """Emit the nodes of a plain PyTorch function of some values, and return its results as it nests them.

        Args:
            as_captured: keep the operators that a capture has, such as a linear layer, instead of what they consist of.
        """
        examples = [torch.zeros(tuple(arg.meta["val"].shape), dtype=arg.meta["val"].dtype) for arg in args]
        taken_apart = {overload: overload.decompose for overload in _TAKEN_APART} if as_captured else None
        traced = make_fx(function, decomposition_table=taken_apart, pre_dispatch=as_captured)(*examples)

        def emit(node: Node, values: Values, call: int) -> Node:
            inputs, named = torch.fx.map_arg((node.args, node.kwargs), values)
            return self(node.target, *inputs, **named)

        def hold(node: Node) -> Node:
            return self.constant(f"{module_path(self.source)}.{node.name}", held(traced, node))

        return run_graph(traced, args, emit, hold)

    def _fake(self, value: Any) -> Any:
        if isinstance(value, Tensor) and not isinstance(value, FakeTensor):
            return self._mode.from_tensor(value, static_shapes=True)  # or a constant would have free axes
        return value


_PLACE = ("nn_module_stack", "stack_trace")

_TAKEN_APART = (aten.to.dtype, aten.where.ScalarSelf, aten.where.ScalarOther, aten.where.Scalar)
"""Spellings of a change of type and of a choice, for which rewrites and rules know one other."""


def _fake_mode(module: GraphModule) -> FakeTensorMode:
    """The mode that a graph's fake tensors belong to; where it has none, one of its own."""
    for node in module.graph.nodes:
        if isinstance(node.meta.get("val"), FakeTensor):
            mode: FakeTensorMode = node.meta["val"].fake_mode
            return mode
    return FakeTensorMode()


def arguments(node: Node) -> tuple[Any, ...]:
    """All arguments of an operator by position, defaults filled in from its schema."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return (*node.args, *node.kwargs.values())
    values = []
    for i, argument in enumerate(node.target._schema.arguments):
        if i < len(node.args):
            values.append(node.args[i])
        else:
            values.append(node.kwargs.get(argument.name, argument.default_value))
    return tuple(values)


def defaults(node: Node) -> tuple[Any, ...]:
    """The default of each argument of an operator; None where there is none."""
    assert isinstance(node.target, torch._ops.OpOverload)
    return tuple(argument.default_value for argument in node.target._schema.arguments)


def val(node: object) -> Tensor:
    """The fake tensor of a node: its shape and dtype."""
    assert isinstance(node, Node)
    value: Tensor = node.meta["val"]
    return value


def numbers(shape: Iterable[Any]) -> int | None:
    """Return how many numbers a shape holds, free axes at their examples; None where a size depends on the data."""
    count = 1
    for size in shape:
        hint = size if isinstance(size, int) else size.node.hint
        if hint is None:
            return None
        count *= int(hint)
    return count


def example_sizes(shape: Iterable[Any]) -> list[int]:
    """The sizes of a shape, free axes at those of the example that the program was captured with."""
    return [int(size if isinstance(size, int) else size.node.hint) for size in shape]


def same_shape(a: Any, b: Any) -> bool:
    """Return whether two shapes, or two tensors' shapes, are equal. Free axes stay free: their sizes are not asked."""
    return [str(n) for n in getattr(a, "shape", a)] == [str(n) for n in getattr(b, "shape", b)]


def rank(node: object) -> int:
    """Number of dimensions of a node's value."""
    return val(node).dim()


def module_path(node: Node) -> str:
    """Dotted path of the module a node was captured in: `network.0.1.attn.qkv`, or '' for the model itself."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values()]
    return str(paths[-1]).removeprefix("L['self']").strip(".") if paths else ""


def site(*nodes: Node) -> str:
    """Return the site of some nodes in the model: their modules' common path, or else the first node's name."""
    paths = [module_path(node).split(".") for node in nodes]
    common: list[str] = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    return ".".join(common) or nodes[0].name


def readers(node: Node) -> str:
    """The operators that read a node, for a sentence."""
    return ", ".join(f"{user.name} ({operator_name(user)})" for user in node.users)


def operator_name(node: Node) -> str:
    """`aten.conv2d`, `edgesmith.additive_attention`, `getitem`: how reports and counts call a node's operator."""
    if isinstance(node.target, torch._ops.OpOverload):
        return str(node.target.overloadpacket)
    return getattr(node.target, "__name__", str(node.target))


def operators(module: GraphModule) -> Iterable[Node]:
    """The nodes that compute something, in order."""
    return [node for node in module.graph.nodes if node.op == "call_function"]


def count_operators(module: GraphModule) -> dict[str, int]:
    """Return how often each operator occurs, most frequent first. Tuple access (`getitem`) is not an operator."""
    counts: dict[str, int] = {}
    for node in operators(module):
        name = operator_name(node)
        if name != "getitem":
            counts[name] = counts.get(name, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def equals(node: Node) -> str:
    """Return the name of the captured node whose value this node has: its own, unless it stands for another."""
    return str(node.meta.get("equals", node.name))


def stand_for(node: Node, captured: Node) -> None:
    """Record that `node` now yields what `captured` did, so that verification can compare the two graphs by name."""
    node.meta["equals"] = equals(captured)
    for key in ("val", "nn_module_stack", "stack_trace"):
        if key in captured.meta and (key == "val" or key not in node.meta):
            node.meta[key] = captured.meta[key]


def changed(node: Node) -> None:
    """Record that `node` now yields another value than any node of the captured graph."""
    node.meta["equals"] = ""


def is_changed(node: Node) -> bool:
    """Return whether a node yields a value that no node of the captured graph has."""
    return equals(node) == ""


def replace(node: Node, by: Node) -> None:
    """Let `by`, which yields what `node` did, be read instead of it."""
    stand_for(by, node)
    node.replace_all_uses_with(by)
