"""The structure of a recurrence that a capture has unrolled: one copy of its step for each time step.

    stack(o_0 ... o_{T-1}),  c_t = step(c_{t-1}, e_t),  o_t = out(c_t)

The state c is the first value of a step from which the rest of it follows. Each of the T copies must be the same graph,
operator for operator and literal for literal; they are compared with the last one, backwards from the outputs. What a
step means is not asked here. Time is linear in the number of nodes. Letters: T time.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_leaves

from edgesmith.exporters.graph.edit import arguments, aten, constant, operator_name, rank, val
from edgesmith.exporters.graph.interpret import run_part
from edgesmith.exporters.rewrites.rewrite import Reject

FEWEST = 3
"""Steps from which a loop is looked for: fewer could be anything."""

FILLED: dict[Any, Callable[[Sequence[Any]], float]] = {
    aten.zeros_like.default: lambda _: 0.0,
    aten.zeros.default: lambda _: 0.0,
    aten.new_zeros.default: lambda _: 0.0,
    aten.full_like.default: lambda args: float(args[1]),
    aten.full.default: lambda args: float(args[1]),
    aten.new_full.default: lambda args: float(args[2]),
}
"""Operators that fill a tensor with one number, and the number."""


@dataclass(frozen=True)
class Loop:
    """An unrolled recurrence.

    Attributes:
        states: c_t.
        inputs: e_t, what a step reads beside the state and what all steps share.
        step, out: nodes of the last copy in order, with which the others were compared; `out` is empty where o_t = c_t.
        outputs: o_t.
    """

    module: GraphModule
    states: list[Node]
    inputs: list[Node]
    step: list[Node]
    out: list[Node]
    outputs: list[Node]

    def nodes(self) -> list[Node]:
        """All nodes of the last step and of the first, without what computes the inputs."""
        before = ancestors(self.inputs[0]) | {self.inputs[0]}
        return [*self.step, *self.out, *(ancestors(self.states[0]) | {self.states[0]}) - before]

    def next_state(self, state: Tensor, given: Tensor) -> Tensor:
        """c_t from c_{t-1} and e_t."""
        return evaluate(self.module, self.step, self.states[-1], {self.states[-2]: state, self.inputs[-1]: given})

    def output(self, state: Tensor) -> Tensor:
        """o_t from c_t."""
        return evaluate(self.module, self.out, self.outputs[-1], {self.states[-1]: state})

    def first_state(self, given: Tensor) -> Tensor:
        """c_0 from e_0, whatever the shape of its graph; tensors full of one number take the shape of `given`.

        Raises ValueError where c_0 depends on something else.
        """
        nodes, read = self.first_step()
        values: dict[Node, Any] = dict.fromkeys(read, given)

        def value(node: Node) -> Any:
            return values[node] if node in values else _small(constant(self.module, node))

        with torch.no_grad():
            for node in nodes:
                if node in values or node.op != "call_function":
                    continue
                if node.target in FILLED:
                    values[node] = torch.full_like(given, FILLED[node.target](arguments(node)))
                elif all(x in values or constant(self.module, x) is not None for x in node.all_input_nodes):
                    args, kwargs = torch.fx.map_arg((node.args, node.kwargs), value)
                    values[node] = node.target(*args, **kwargs)  # type: ignore[operator]  # an operator
        if self.states[0] not in values:
            raise ValueError("its first step reads something else than its input")
        result: Tensor = values[self.states[0]]
        return result

    def first_step(self) -> tuple[list[Node], set[Node]]:
        """The nodes that c_0 comes from, in order, and those among them that are e_0."""
        first, inside = self.inputs[0], ancestors(self.states[0]) | {self.states[0]}
        nodes = [node for node in self.module.graph.nodes if node in inside]
        return nodes, {
            node for node in nodes if node is first or (slice_of(first) and slice_of(node) == slice_of(first))
        }


def find_loop(module: GraphModule, join: Node) -> tuple[Loop, int] | None:
    """The recurrence whose outputs a stack or concatenation joins, and the axis along which; None where there is none.

    Raises:
        Reject: some steps at the end are copies of each other, but not all; or a value inside is read outside too.
    """
    values, axis = _joined(join)
    if values is None or len(values) < FEWEST or len(set(values)) < len(values):
        return None
    loop = _loop(module, values)
    if loop is None:
        return None
    inside = {*_descendants(loop.states[0]), loop.states[0]} & ancestors(join)
    outside = [user for node in inside for user in node.users if user not in inside and user is not join]
    if outside:
        raise Reject(f"a value of the loop is also read by {outside[0].name}, outside of it")
    return loop, axis


def slice_of(node: Node) -> tuple[Node, int, int] | None:
    """The value, axis and position that a slice of one time step is of."""
    if node.target is aten.select.int:
        x, axis, t = arguments(node)
        return x, axis % rank(x), t % int(val(x).shape[axis]) if isinstance(val(x).shape[axis], int) else t
    if node.target is operator.getitem and isinstance(node.args[0], Node) and node.args[0].target is aten.unbind.int:
        x, axis = arguments(node.args[0])
        return x, axis % rank(x), int(node.args[1])  # type: ignore[arg-type]  # getitem of a list
    return None


def ancestors(node: Node) -> set[Node]:
    """All that a node is computed from, itself left out."""
    return _reach(node, lambda n: n.all_input_nodes)


def evaluate(module: GraphModule, nodes: Iterable[Node], end: Node, given: dict[Node, Tensor]) -> Tensor:
    """Run a few nodes, in order, on given values; constants are read. Raises ValueError for any other node read."""
    result: Tensor = run_part(module, nodes, given)[end]
    return result


class _Differs(Exception):
    """A copy that is no copy of the last step, after `agreed` steps that are."""

    def __init__(self, reason: str, agreed: int = 0) -> None:
        super().__init__(reason)
        self.reason, self.agreed = reason, agreed


@dataclass(frozen=True)
class _LastStep:
    """The last copy, with which the others are compared: the nodes from `before` to `state`, and on to `output`."""

    state: Node
    before: Node
    step: list[Node]
    out: list[Node]
    output: Node

    def compare(self, state: Node) -> tuple[Node | None, list[Node]]:
        """Return what the copy that ends at `state` has for `before`, and what it reads beside. Raises _Differs."""
        return _compare(self.step, self.state, state, self.before)

    def puts_out(self, state: Node, output: Node) -> bool:
        """Return whether an output is computed from a state as in this copy."""
        if not self.out:
            return output is state
        try:
            read, leaves = _compare(self.out, self.output, output, self.state)
        except _Differs:
            return False
        return read is state and leaves == _leaves(self.out, self.state)


def _joined(join: Node) -> tuple[list[Node] | None, int]:
    """The values that a stack, or a concatenation of unsqueezed values, puts together, and along which axis."""
    values, axis = arguments(join)
    if not all(isinstance(value, Node) and value.op == "call_function" for value in values) or not values:
        return None, 0
    axis = axis % rank(join)
    if join.target is aten.cat.default:
        if any(v.target is not aten.unsqueeze.default or v.args[1] % rank(v) != axis for v in values):
            return None, 0
        values = [value.args[0] for value in values]
    return list(values), axis


def _loop(module: GraphModule, outputs: list[Node]) -> Loop | None:
    """The recurrence that some values are the outputs of. Raises Reject where at least two steps agree, but not all."""
    order = {node: i for i, node in enumerate(module.graph.nodes)}
    shifted = _shifted(outputs[-1], outputs[-2], ancestors(outputs[-2]))
    furthest: tuple[int, str] = (0, "")
    for state, before in sorted(shifted.items(), key=lambda pair: order[pair[0]]):
        if not isinstance(val(state), Tensor) or val(state).shape != val(before).shape or order[before] >= order[state]:
            continue
        step = _between(before, state, order)
        out = _between(state, outputs[-1], order)
        if step is None or (out is None and outputs[-1] is not state):
            continue
        try:
            return _follow(module, outputs, _LastStep(state, before, step, out or [], outputs[-1]))
        except _Differs as found:
            furthest = max(furthest, (found.agreed, found.reason))
    agreed, reason = furthest
    if agreed >= 2:
        raise Reject(reason)
    return None


def _follow(module: GraphModule, outputs: list[Node], last_step: _LastStep) -> Loop:
    """Compare every copy with the last one, going back to the first. Raises _Differs at the first that differs."""
    count = len(outputs)
    states: list[Node] = [last_step.state]
    leaves: list[list[Node]] = []
    for t in range(count - 1, 0, -1):
        agreed = count - 1 - t
        try:
            previous, read = last_step.compare(states[-1])
        except _Differs as found:
            raise _Differs(f"step {t} of {count} differs from the last one: {found.reason}", agreed) from None
        if not last_step.puts_out(states[-1], outputs[t]):
            raise _Differs(f"the output of step {t} of {count} is computed otherwise than the last one", agreed)
        if previous is None:
            raise _Differs(f"step {t} of {count} does not read the state of the one before", agreed)
        leaves.append(read)
        states.append(previous)
    if not last_step.puts_out(states[-1], outputs[0]):
        raise _Differs(f"the output of step 0 of {count} is computed otherwise than the last one", count - 1)
    states.reverse()
    leaves.reverse()
    inputs = _inputs(states, leaves)
    first = None if inputs is None else _read_first(last_step, states[0], leaves, inputs)
    if inputs is None or first is None:
        raise _Differs("")
    return Loop(module, states, [first, *inputs], last_step.step, last_step.out, outputs)


def _inputs(states: list[Node], leaves: list[list[Node]]) -> list[Node] | None:
    """e_1 to e_{T-1}: the only value that is another one in each step; None where there is no such, or a later one."""
    columns = list(zip(*leaves, strict=True))
    varying = {column for column in columns if any(node is not column[-1] for node in column)}
    if len(varying) != 1:
        return None
    (inputs,) = varying
    later = _descendants(states[0])
    if any(node in later for node in (*inputs, *leaves[-1])):
        return None
    return list(inputs)


def _read_first(last_step: _LastStep, state: Node, leaves: list[list[Node]], inputs: list[Node]) -> Node | None:
    """Return what step 0 reads for the later ones' `inputs`: by its place where its graph is theirs, or by kind."""
    try:
        _, read = last_step.compare(state)
    except _Differs:
        return _first_input(state, inputs)
    return read[leaves[-1].index(inputs[-1])]


def _first_input(state: Node, inputs: list[Node]) -> Node | None:
    """Return what step 0 reads for the later ones' `inputs`; its graph is often simpler, for there is no state yet."""
    before = ancestors(state) | {state}
    sliced = slice_of(inputs[0])
    if sliced is not None:
        wanted = (*sliced[:2], sliced[2] - 1)
        return next((node for node in sorted(before, key=lambda n: n.name) if slice_of(node) == wanted), None)
    matching = [
        node
        for node in before
        if node.target is inputs[0].target and node.op == "call_function" and _alike(node, inputs[0])
    ]
    return matching[0] if len(matching) == 1 else None


def _alike(node: Node, other: Node) -> bool:
    """Return whether two nodes apply the same operator with the same constants."""
    args, others = arguments(node), arguments(other)
    return all(
        a is b or (isinstance(a, Node) and isinstance(b, Node) and "get_attr" not in (a.op, b.op)) or a == b
        for a, b in zip(args, others, strict=True)
    )


def _descendants(node: Node) -> set[Node]:
    return _reach(node, lambda n: n.users)


def _reach(node: Node, following: Callable[[Node], Iterable[Node]]) -> set[Node]:
    found: set[Node] = set()
    queue = [node]
    while queue:
        for other in following(queue.pop()):
            if other not in found:
                found.add(other)
                queue.append(other)
    return found


def _shifted(last: Node, previous: Node, past: set[Node]) -> dict[Node, Node]:
    """Nodes of the last step, each with the one that has its position in the step before."""
    shifted: dict[Node, Node] = {}
    queue = [(last, previous)]
    while queue:
        a, b = queue.pop()
        if a is b or a in shifted or a in past or a.op != "call_function" or a.target is not b.target:
            continue
        shifted[a] = b
        queue += [
            (x, y)
            for x, y in zip(tree_leaves(arguments(a)), tree_leaves(arguments(b)), strict=False)
            if isinstance(x, Node) and isinstance(y, Node)
        ]
    return shifted


def _between(start: Node, end: Node, order: dict[Node, int]) -> list[Node] | None:
    """The nodes through which `end` depends on `start`, itself left out, in order; None where it does not."""
    depends = {start: True}
    queue = [end]
    while queue:
        node = queue[-1]
        if node in depends:
            queue.pop()
            continue
        if order[node] < order[start]:
            depends[node] = False
            continue
        unknown = [x for x in node.all_input_nodes if x not in depends]
        if unknown:
            queue += unknown
        else:
            depends[node] = any(depends[x] for x in node.all_input_nodes)
    if not depends[end] or end is start:
        return None
    return sorted((node for node, does in depends.items() if does and node is not start), key=order.__getitem__)


def _leaves(nodes: list[Node], start: Node) -> list[Node]:
    """Return what a step reads beside the state, in order of reading."""
    inside = {*nodes, start}
    return [x for node in nodes for x in node.all_input_nodes if x not in inside]


def _compare(nodes: list[Node], end: Node, other: Node, start: Node) -> tuple[Node | None, list[Node]]:
    """Return what the step that ends at `other` has for `start` and for the leaves of this one. Raises _Differs."""
    inside = set(nodes)
    bound: dict[Node, Node] = {}
    queue: list[tuple[Node, Node]] = [(end, other)]
    while queue:
        p, g = queue.pop()
        if p not in bound:
            bound[p] = g
            queue += _operands(p, g) if p in inside else []
        elif bound[p] is not g:
            raise _Differs(f"it reads {g.name} where the last one reads {bound[p].name}")
    return bound.get(start), [bound[x] for x in _leaves(nodes, start)]


def _operands(p: Node, g: Node) -> list[tuple[Node, Node]]:
    """The operands of two equal operators, side by side. Raises _Differs where operators or literals differ."""
    if g.op != "call_function" or g.target is not p.target:
        raise _Differs(f"it has {operator_name(g) if g.op == 'call_function' else g.op} for {operator_name(p)}")
    args, others = tree_leaves((arguments(p), p.kwargs)), tree_leaves((arguments(g), g.kwargs))
    if len(args) != len(others):
        raise _Differs(f"{g.name} has other arguments")
    pairs = []
    for a, b in zip(args, others, strict=True):
        if isinstance(a, Node) and isinstance(b, Node):
            pairs.append((a, b))
        elif isinstance(a, Node) or isinstance(b, Node) or a != b:
            raise _Differs(f"{g.name} ({operator_name(g)}) has {b} for {a}")
    return pairs


def _small(value: Tensor | None) -> Any:
    """A constant state full of one number fits any shape."""
    assert value is not None
    if value.numel() > 1 and bool((value == value.reshape(-1)[0]).all()):
        return value.reshape(-1)[0]
    return value
