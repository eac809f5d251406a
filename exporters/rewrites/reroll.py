"""Recurrences that a capture has unrolled, one copy of their step for each time step, become one op again.

    stack(o_0 ... o_{T-1}),  c_t = step(c_{t-1}, e_t),  o_t = out(c_t)      a loop in the model's Python
    torch's higher-order `scan`                                            the same as one node
    spikingjelly's own operator, `sj_lif.forward`                          what its version 2 makes of a multi-step LIF

Found by structure, decided by numbers. The state c is the first value of a step from which the rest of it follows; each
of the T copies must be the same graph, operator for operator and literal for literal. What the step then means is
decided by running it: it is `lif` where, for some of its literals as tau, threshold and reset, it gives the numbers of
that op's step, bit for bit, on inputs of all magnitudes and around the threshold; so it does not matter how a model
spells a reset, and a division that rounds otherwise is noticed. It is `lmu_memory` where it is linear, with an input of
rank one; linear by its operators, for numbers that stay below 10 do not tell a clamp at 10 from none. Time is linear in
the number of nodes. Letters: B batch, T time, M memory.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_leaves

from edgesmith.exporters.costs import Costs
from edgesmith.exporters.graph.edit import (
    Emitter,
    arguments,
    aten,
    constant,
    operator_name,
    operators,
    rank,
    site,
    stand_for,
    val,
)
from edgesmith.exporters.rewrites.rewrite import Rejection, RewriteReport
from edgesmith.kernels import lif, lmu_memory

FEWEST = 3
"""Steps from which a loop is looked for: fewer could be anything."""

SAMPLES = 2**14

Step = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""From state and input to the next state and the output."""


class Reroll:
    """See above. A near miss is a loop whose steps are equal but mean no op, or that differs in some of its steps."""

    name = "reroll"

    def apply(self, module: GraphModule, costs: Costs) -> RewriteReport:
        """Replace in place."""
        applied: list[tuple[str, str]] = []
        rejected: list[Rejection] = []
        module.graph.eliminate_dead_code()  # the last state is often computed for nobody
        found = -1
        while len(applied) > found:  # a loop of several layers: the last one first, then what it reads
            found, rejected = len(applied), []
            for node in reversed(list(operators(module))):
                outcome = None
                if node._erased:
                    continue
                if node.target in (aten.stack.default, aten.cat.default):
                    outcome = _unrolled(module, node)
                elif node.target is torch.ops.higher_order.scan:
                    outcome = _scanned(module, node)
                elif str(node.target) == _SPIKINGJELLY:
                    outcome = _spikingjelly(module, node)
                if isinstance(outcome, Rejection):
                    rejected.append(outcome)
                elif outcome is not None:
                    applied.append(outcome)
                    module.graph.eliminate_dead_code()
        return RewriteReport(self.name, tuple(applied), tuple(rejected))


_Outcome = tuple[str, str] | Rejection | None


@dataclass
class _Loop:
    """An unrolled recurrence.

    Attributes:
        states: c_t.
        inputs: e_t, what a step reads beside the state and what all steps share.
        step, out: nodes of one copy in order, from which the others were compared.
        before: the state that the first copy reads, a node.
        outputs: o_t.
    """

    states: list[Node]
    inputs: list[Node]
    step: list[Node]
    out: list[Node]
    outputs: list[Node]


def _unrolled(module: GraphModule, join: Node) -> _Outcome:
    values, axis = _joined(join)
    if values is None or len(values) < FEWEST or len(set(values)) < len(values):
        return None
    order = {node: i for i, node in enumerate(module.graph.nodes)}
    found = _loop(module, values, order)
    if found is None:
        return None
    where = site(join)
    if isinstance(found, str):
        return Rejection(where, found)
    inside = {*_descendants(found.states[0]), found.states[0]} & _ancestors(join)
    outside = [user for node in inside for user in node.users if user not in inside and user is not join]
    if outside:
        return Rejection(where, f"a value of the loop is also read by {outside[0].name}, outside of it")
    return _as_lif(module, join, axis, found, where) or _as_memory(module, join, axis, found, where)


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


def _loop(module: GraphModule, outputs: list[Node], order: dict[Node, int]) -> _Loop | str | None:
    """The recurrence that some values are the outputs of; how far one came that differs somewhere; None for none."""
    past = _ancestors(outputs[-2])
    shifted = _shifted(outputs[-1], outputs[-2], past)
    reason: tuple[int, str] = (0, "")
    for state, before in sorted(shifted.items(), key=lambda pair: order[pair[0]]):
        if not isinstance(val(state), Tensor) or val(state).shape != val(before).shape or order[before] >= order[state]:
            continue
        step = _between(before, state, order)
        out = _between(state, outputs[-1], order)
        if step is None or (out is None and outputs[-1] is not state):
            continue
        attempt = _follow(module, outputs, state, before, step, out or [])
        if isinstance(attempt, _Loop):
            return attempt
        reason = max(reason, attempt)
    steps, text = reason
    return text if steps >= 2 else None


def _follow(
    module: GraphModule, outputs: list[Node], state: Node, before: Node, step: list[Node], out: list[Node]
) -> _Loop | tuple[int, str]:
    """Compare every copy with the last one. Returns how many agreed, and the first that did not, where one did not."""
    last = len(outputs) - 1
    states, leaves = [state], []
    for t in range(last, 0, -1):
        bound = _same(step, state, states[-1], before)
        if isinstance(bound, str):
            return last - t, f"step {t} of {last + 1} differs from the last one: {bound}"
        previous, read = bound
        leaves.append(read)
        if out:
            seen = _same(out, outputs[-1], outputs[t], state)
            if isinstance(seen, str) or seen[0] is not states[-1] or seen[1] != _leaves(out, state):
                return last - t, f"the output of step {t} of {last + 1} is computed otherwise than the last one"
        elif outputs[t] is not states[-1]:
            return last - t, f"the output of step {t} of {last + 1} is computed otherwise than the last one"
        if previous is None:
            return last - t, f"step {t} of {last + 1} does not read the state of the one before"
        states.append(previous)
    begun = _same(out, outputs[-1], outputs[0], state) if out else (outputs[0], [])
    if isinstance(begun, str) or begun[0] is not states[-1] or begun[1] != (_leaves(out, state) if out else []):
        return last, f"the output of step 0 of {last + 1} is computed otherwise than the last one"
    states.reverse()
    varying = [k for k in range(len(leaves[0])) if any(read[k] is not leaves[0][k] for read in leaves)]
    later = _descendants(states[0])
    if len({tuple(read[k] for read in leaves) for k in varying}) != 1:
        return 0, ""
    inputs = [read[varying[0]] for read in reversed(leaves)]
    if any(node in later for node in (*inputs, *leaves[0])):
        return 0, ""
    first = _first_input(states[0], inputs)
    if first is None:
        return 0, ""
    return _Loop(states, [first, *inputs], step, out, outputs)


def _first_input(state: Node, inputs: list[Node]) -> Node | None:
    """What step 0 reads where the later ones read `inputs`; its graph is often simpler, for there is no state yet."""
    sliced = _slice(inputs[0])
    for node in sorted(_ancestors(state) | {state}, key=lambda n: n.name):
        if sliced is not None:
            own = _slice(node)
            if own is not None and own[:2] == sliced[:2] and own[2] == sliced[2] - 1:
                return node
    if sliced is not None:
        return None
    matching = [
        node
        for node in _ancestors(state) | {state}
        if node.target is inputs[0].target and node.op == "call_function" and _alike(node, inputs[0])
    ]
    return matching[0] if len(matching) == 1 else None


def _alike(node: Node, other: Node) -> bool:
    """Whether two nodes apply the same operator with the same constants."""
    args, others = arguments(node), arguments(other)
    return all(
        a is b or (isinstance(a, Node) and isinstance(b, Node) and "get_attr" not in (a.op, b.op)) or a == b
        for a, b in zip(args, others, strict=True)
    )


def _slice(node: Node) -> tuple[Node, int, int] | None:
    """The value, axis and place that a slice of one time step is of."""
    if node.target is aten.select.int:
        x, axis, t = arguments(node)
        return x, axis % rank(x), t % int(val(x).shape[axis]) if isinstance(val(x).shape[axis], int) else t
    if node.target is operator.getitem and isinstance(node.args[0], Node) and node.args[0].target is aten.unbind.int:
        x, axis = arguments(node.args[0])
        return x, axis % rank(x), int(node.args[1])  # type: ignore[arg-type]  # getitem of a list
    return None


# the graph of a step


def _ancestors(node: Node) -> set[Node]:
    return _reach(node, lambda n: n.all_input_nodes)


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
    """Nodes of the last step, each with the one that has its place in the step before."""
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
    """What a step reads beside the state, in order of reading."""
    inside = {*nodes, start}
    return [x for node in nodes for x in node.all_input_nodes if x not in inside]


def _same(nodes: list[Node], end: Node, other: Node, start: Node) -> tuple[Node | None, list[Node]] | str:
    """Compare a step with the one that ends at `other`: what that has for `start` and the leaves, or the difference."""
    inside = set(nodes)
    bound: dict[Node, Node] = {}
    queue: list[tuple[Node, Node]] = [(end, other)]
    while queue:
        p, g = queue.pop()
        if p in bound:
            if bound[p] is not g:
                return f"it reads {g.name} where the last one reads {bound[p].name}"
            continue
        bound[p] = g
        if p not in inside:
            continue
        if g.op != "call_function" or g.target is not p.target:
            return f"it has {operator_name(g) if g.op == 'call_function' else g.op} for {operator_name(p)}"
        args, others = tree_leaves((arguments(p), p.kwargs)), tree_leaves((arguments(g), g.kwargs))
        if len(args) != len(others):
            return f"{g.name} has other arguments"
        for a, b in zip(args, others, strict=True):
            if isinstance(a, Node) and isinstance(b, Node):
                queue.append((a, b))
            elif isinstance(a, Node) or isinstance(b, Node) or a != b:
                return f"{g.name} ({operator_name(g)}) has {b} for {a}"
    leaves = [bound[x] for x in _leaves(nodes, start)]
    return bound.get(start), leaves


def _evaluate(module: GraphModule, nodes: list[Node], end: Node, given: dict[Node, Tensor]) -> Tensor:
    """Run a few nodes on given values; constants are read."""
    values: dict[Node, Any] = dict(given)

    def value(node: Node) -> Any:
        if node not in values:
            values[node] = constant(module, node)
            if values[node] is None:
                raise ValueError(f"{node.name} is no part of the step")
        return values[node]

    with torch.no_grad():
        for node in nodes:
            args, kwargs = torch.fx.map_arg((node.args, node.kwargs), value)
            values[node] = node.target(*args, **kwargs)  # type: ignore[operator]  # an operator
    result: Tensor = value(end)
    return result


def _first_state(module: GraphModule, loop: _Loop, given: Tensor) -> Tensor:
    """c_0 from e_0, whatever the shape of its graph; tensors made of zeros and the like take the input's shape."""
    nodes, read = _first_step(module, loop)
    values: dict[Node, Any] = dict.fromkeys(read, given)
    with torch.no_grad():
        for node in nodes:
            if node in values or node.op != "call_function":
                continue
            if node.target in _FILLED:
                values[node] = torch.full_like(given, _FILLED[node.target](arguments(node)))
            elif all(x in values or constant(module, x) is not None for x in node.all_input_nodes):
                args, kwargs = torch.fx.map_arg(
                    (node.args, node.kwargs), lambda x: values[x] if x in values else _small(constant(module, x))
                )
                values[node] = node.target(*args, **kwargs)  # type: ignore[operator]  # an operator
    if loop.states[0] not in values:
        raise ValueError("its first step reads something else than its input")
    result: Tensor = values[loop.states[0]]
    return result


def _first_step(module: GraphModule, loop: _Loop) -> tuple[list[Node], set[Node]]:
    """The nodes that c_0 comes from, in order, and those among them that are e_0."""
    first, inside = loop.inputs[0], _ancestors(loop.states[0]) | {loop.states[0]}
    nodes = [node for node in module.graph.nodes if node in inside]
    return nodes, {node for node in nodes if node is first or (_slice(first) and _slice(node) == _slice(first))}


def _small(value: Tensor | None) -> Any:
    """A constant state full of one number fits any shape."""
    assert value is not None
    if value.numel() > 1 and bool((value == value.reshape(-1)[0]).all()):
        return value.reshape(-1)[0]
    return value


_FILLED: dict[Any, Callable[[Sequence[Any]], float]] = {
    aten.zeros_like.default: lambda _: 0.0,
    aten.zeros.default: lambda _: 0.0,
    aten.new_zeros.default: lambda _: 0.0,
    aten.full_like.default: lambda args: float(args[1]),
    aten.full.default: lambda args: float(args[1]),
    aten.new_full.default: lambda args: float(args[2]),
}


# what a step means


def _as_lif(module: GraphModule, join: Node, axis: int, loop: _Loop, where: str) -> _Outcome:
    state, output = loop.states[-1], loop.outputs[-1]
    if val(loop.inputs[-1]).shape != val(state).shape:
        return None
    if val(output).dtype != val(state).dtype:
        return Rejection(where, f"its outputs are {val(output).dtype}, spikes of lif are of the input's type")

    def step(v: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        after = _evaluate(module, loop.step, state, {_state_read(loop): v, loop.inputs[-1]: x})
        return after, _evaluate(module, loop.out, output, {state: after})

    numbers = _numbers(module, [*loop.step, *loop.out, *_ancestors(loop.states[0])])
    try:
        settings = _settings(step, numbers, lambda x: _first_state(module, loop, x), val(state).dtype)
    except (RuntimeError, ValueError, TypeError, IndexError):
        return None  # no step for a state and an input of one shape, whatever that is
    if settings is None:
        is_binary = _is_binary(step, val(state).dtype)
        return Rejection(where, "no tau, threshold and reset of its literals give lif's numbers") if is_binary else None
    currents, dim = _stacked(module, join, loop.inputs)
    emit = Emitter(module, before=join)
    spikes = emit(lif.OP.overload, currents, *settings, dim)
    _put(module, join, spikes, dim, axis)
    return where, f"{len(loop.outputs)} unrolled steps -> edgesmith.lif({', '.join(map(str, settings))})"


def _state_read(loop: _Loop) -> Node:
    return loop.states[-2]


def _numbers(module: GraphModule, nodes: Iterable[Node]) -> list[float]:
    """The numbers that stand in some nodes: literals, and constants of one element."""
    found = {0.0, 1.0}
    for node in nodes:
        if node.op != "call_function":
            continue
        for leaf in tree_leaves(arguments(node)):
            if isinstance(leaf, int | float) and not isinstance(leaf, bool):
                found.add(float(leaf))
            value = constant(module, leaf)
            if value is not None and value.is_floating_point() and value.numel() >= 1:
                first = value.reshape(-1)[0]
                if bool((value == first).all()):
                    found.add(float(first))
    return sorted(found)


Settings = tuple[float, float, float | None, bool]


def _candidates(numbers: Sequence[float]) -> Iterator[Settings]:
    taus = dict.fromkeys(
        tau for n in numbers if n for tau in (n, 1 / n, *((1 / (1 - n),) if n != 1 else ())) if tau >= 1
    )
    yield from itertools.product(taus, numbers, (*numbers, None), (True, False))


def _samples(numbers: Sequence[float], dtype: torch.dtype, seed: int) -> Tensor:
    """Values of all magnitudes, small numbers, and the given numbers with their neighbours."""
    generator = torch.Generator().manual_seed(seed)
    wide = torch.randn(SAMPLES // 2, generator=generator) * 10 ** torch.empty(SAMPLES // 2).uniform_(
        -4, 4, generator=generator
    )
    near = torch.tensor(numbers)[torch.randint(len(numbers), (SAMPLES // 4,), generator=generator)]
    near = near * (1 + torch.randint(-3, 4, near.shape, generator=generator) * 2.0**-23)
    usual = 2 * torch.randn(SAMPLES - len(wide) - len(near), generator=generator)
    values = torch.cat((usual, wide, near))
    return values[torch.randperm(len(values), generator=generator)].to(dtype)


def _settings(
    step: Step, numbers: Sequence[float], start: Callable[[Tensor], Tensor], dtype: torch.dtype
) -> Settings | None:
    """The settings of lif with which it has the step's numbers, exactly; None for none.

    The step's state is the potential before its reset: it resets, charges and fires.
    """
    v, x = _samples(numbers, dtype, 0), _samples(numbers, dtype, 1)
    after, output = step(v, x)
    first = start(x)
    if after.shape != v.shape or output.shape != v.shape or first.shape != v.shape:
        return None
    for tau, threshold, reset, decay in _candidates(numbers):
        for part in (slice(0, 64), slice(None)):
            rested = lif.fire(v[part], threshold, reset)[1]
            charged = lif.charge(x[part], rested, tau, reset, decay)
            spikes = lif.fire(charged, threshold, reset)[0]
            begun = lif.charge(x[part], torch.full_like(x[part], reset or 0.0), tau, reset, decay)
            same = torch.equal(charged, after[part]) and torch.equal(spikes, output[part])
            if not (same and torch.equal(begun, first[part])):
                break
        else:
            return tau, threshold, reset, decay
    return None


def _is_binary(step: Step, dtype: torch.dtype) -> bool:
    """Whether a step puts out spikes, so that somebody would expect it to be lif."""
    output = step(_samples([0.0, 1.0], dtype, 0), _samples([0.0, 1.0], dtype, 1))[1]
    return bool(((output == 0) | (output == 1)).all()) and bool(output.any())


def _as_memory(module: GraphModule, join: Node, axis: int, loop: _Loop, where: str) -> _Outcome:
    state = loop.states[-1]
    if rank(state) != 2 or loop.out or not val(state).is_floating_point():
        return None
    order = int(val(state).shape[1])
    read, driven = _state_read(loop), loop.inputs[-1]
    other = _not_affine(loop.step, {read, driven}) or _not_affine(*_first_step(module, loop))
    if other is not None:
        return Rejection(where, f"its step is not linear: it has {operator_name(other)} ({other.name})")

    def step(m: Tensor, e: Tensor) -> Tensor:
        return _evaluate(module, loop.step, state, {read: m, driven: e})

    dtype = val(state).dtype
    generator = torch.Generator().manual_seed(0)
    m, e = (torch.randn(5, order, generator=generator).to(dtype) for _ in range(2))
    nothing = torch.zeros(5, order, dtype=dtype)
    try:
        a = step(torch.eye(order, dtype=dtype), torch.zeros(order, order, dtype=dtype)).T
        is_linear = _close(step(m, e), m @ a.T + e) and _close(_first_state(module, loop, e), e)
        is_shifted = bool(step(nothing, nothing).any() or _first_state(module, loop, nothing).any())
    except (RuntimeError, ValueError, TypeError, IndexError):
        return None
    if is_shifted:
        return Rejection(where, "its step adds a constant to the state")
    if not is_linear:
        return None
    signals, b = [], None
    for node in loop.inputs:
        split = _outer(module, node, state)
        if split is None:
            return Rejection(where, f"what drives it, {node.name} ({operator_name(node)}), is no signal times a vector")
        signal, column = split
        if b is not None and not torch.equal(b, column):
            return Rejection(where, f"its vector b changes at {node.name}")
        b = column
        signals.append(signal)
    assert b is not None
    emit = Emitter(module, before=join)
    u, dim = _stacked(module, join, signals)  # [B, 1] each
    u = emit(aten.squeeze.dim, u, 2 if dim < 2 else 1)
    if dim == 0:
        u = emit(aten.transpose.int, u, 0, 1)
    length = len(loop.outputs)
    impulse = lmu_memory.impulse_response(a, b, length)
    given = [emit.constant(f"{where}.{name}", x) for name, x in (("impulse", impulse), ("a", a), ("b", b))]
    memory = emit(lmu_memory.OP.overload, u, *given)
    _put(module, join, memory, 2, axis)
    return where, f"{length} unrolled steps -> edgesmith.lmu_memory, M = {order}"


def _outer(module: GraphModule, node: Node, state: Node) -> tuple[Node, Tensor] | None:
    """A signal [B, 1] and a vector [M] whose outer product a node is; `state` [B, M] is what it drives."""
    if node.target not in (aten.mul.Tensor, aten.linear.default, aten.matmul.default, aten.mm.default):
        return None
    parts = [x for x in arguments(node) if isinstance(x, Node) and constant(module, x) is None]
    if len(parts) != 1 or rank(parts[0]) != 2 or val(parts[0]).shape[1] != 1 or val(node).shape != val(state).shape:
        return None
    if _not_affine([node], set(parts)) is not None:
        return None
    one = torch.ones(1, 1, dtype=val(node).dtype)
    column, nothing, other = (_evaluate(module, [node], node, {parts[0]: k * one}) for k in (1, 0, -2))
    is_outer = column.shape == (1, val(state).shape[1]) and not nothing.any() and _close(other, -2 * column)
    return (parts[0], column.reshape(-1)) if is_outer else None


def _not_affine(nodes: Iterable[Node], given: set[Node]) -> Node | None:
    """The first of some nodes, in order, that may be no affine function of the given ones; None where all are."""
    depends = set(given)
    for node in nodes:
        if node in depends or node.op != "call_function" or node.target in _FILLED:
            continue
        places = [i for i, x in enumerate(arguments(node)) if any(leaf in depends for leaf in _nodes_in(x))]
        if not places:
            continue
        is_product = node.target in _PRODUCTS and len(places) == 1
        is_first = node.target in _AFFINE_IN_THE_FIRST and places == [0]
        if not (node.target in _AFFINE or is_product or is_first):
            return node
        depends.add(node)
    return None


def _nodes_in(argument: object) -> list[Node]:
    return [leaf for leaf in tree_leaves(argument) if isinstance(leaf, Node)]


_PRODUCTS = frozenset({aten.mul.Tensor, aten.mul.Scalar, aten.matmul.default, aten.mm.default})
_AFFINE_IN_THE_FIRST = frozenset({aten.linear.default, aten.div.Tensor, aten.div.Scalar})
_AFFINE = frozenset(
    {
        aten.add.Tensor,
        aten.add.Scalar,
        aten.sub.Tensor,
        aten.sub.Scalar,
        aten.rsub.Tensor,
        aten.rsub.Scalar,
        aten.neg.default,
        aten.t.default,
        aten.transpose.int,
        aten.permute.default,
        aten.view.default,
        aten._unsafe_view.default,
        aten.reshape.default,
        aten.expand.default,
        aten.unsqueeze.default,
        aten.squeeze.default,
        aten.squeeze.dim,
        aten.squeeze.dims,
        aten.select.int,
        aten.slice.Tensor,
        aten.detach.default,
        aten.alias.default,
        aten.clone.default,
        aten.contiguous.default,
    }
)
"""Operators that are affine in all their tensors together; above, in one of two, and in the first."""


def _close(x: Tensor, y: Tensor) -> bool:
    return x.shape == y.shape and float((x - y).abs().max()) <= 1e-5 * float(y.abs().max())


# putting an op in place


def _stacked(module: GraphModule, join: Node, values: list[Node]) -> tuple[Node, int]:
    """A tensor that has some values as its slices, in order, and its time axis.

    What a step does to each frame by itself, as a layer between two kinds of neurons in one loop, is done to all frames
    at once; where their values come from another loop, that one is then found at the stack made here.
    """
    emit = Emitter(module, before=join)
    slices = [_slice(node) for node in values]
    first = slices[0]
    if first is not None and all(s is not None and s[:2] == first[:2] and s[2] == t for t, s in enumerate(slices)):
        x, axis, _ = first
        if val(x).shape[axis] == len(values):
            return x, axis
        return emit(aten.slice.Tensor, x, axis, 0, len(values)), axis
    node = values[0]
    varying = [k for k in range(len(node.args)) if any(v.args[k : k + 1] != node.args[k : k + 1] for v in values)]
    is_alike = all(v.target is node.target and v.kwargs == node.kwargs for v in values)
    if node.target in _FRAME_BY_FRAME and is_alike and len(varying) == 1:
        (k,) = varying
        frames = [frame for frame in (v.args[k] for v in values) if isinstance(frame, Node)]
        if len(frames) == len(values) and all(rank(frame) == rank(node) for frame in frames):
            x, axis = _stacked(module, join, frames)
            if axis != 0:
                x = emit(aten.permute.default, x, [axis, *(i for i in range(rank(x)) if i != axis)])
            return emit(node.target, *node.args[:k], x, *node.args[k + 1 :], **node.kwargs), 0
    return emit(aten.stack.default, values, 0), 0


_FRAME_BY_FRAME = frozenset(
    {
        aten.linear.default,
        aten.relu.default,
        aten.gelu.default,
        aten.sigmoid.default,
        aten.tanh.default,
        aten.detach.default,
        aten.add.Tensor,
        aten.sub.Tensor,
        aten.mul.Tensor,
        aten.div.Tensor,
    }
)
"""Operators that treat leading axes alike, so that one more, for time, changes nothing."""


def _put(module: GraphModule, join: Node, value: Node, dim: int, axis: int) -> None:
    """Let `value`, with time along `dim`, stand for `join`, which has it along `axis`."""
    if dim != axis:
        rest = [i for i in range(rank(value)) if i != dim]
        value = Emitter(module, before=join)(aten.permute.default, value, [*rest[:axis], dim, *rest[axis:]])
    stand_for(value, join)
    join.replace_all_uses_with(value)


# torch's own loop


def _scanned(module: GraphModule, scan: Node) -> _Outcome:
    combine, states, sequences, more = cast(tuple[Node, list[Node], list[Node], list[Node]], scan.args)
    body = getattr(module, str(combine.target))
    where = site(scan)
    results = {user.args[1]: user for user in scan.users if user.target is operator.getitem}
    if len(states) != 1 or len(sequences) != 1:
        return None
    if 0 in results and results[0].users:
        return Rejection(where, "the last state of the scan is read too")
    if 1 not in results or len(results) > 2:
        return None
    state, x = states[0], sequences[0]
    start = _start(module, state)
    if start is None:
        return Rejection(where, "the state of the scan starts with something computed")
    shared = [value for value in (constant(module, node) for node in more) if value is not None]
    if len(shared) < len(more):
        return Rejection(where, "its steps share something computed")

    def step(state: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            after, output = body(state, x, *shared)
        return after, output

    emit = Emitter(module, before=scan)
    try:
        if val(state).shape == val(x).shape[1:]:
            numbers = sorted({*_numbers(body, body.graph.nodes), *(v.item() for v in shared if v.numel() == 1), start})
            settings = _scanned_settings(step, numbers, start, val(x).dtype)
            if settings is None:
                return Rejection(where, "no tau, threshold and reset of its literals give lif's numbers")
            if val(results[1]).dtype != val(x).dtype:
                return Rejection(where, f"its outputs are {val(results[1]).dtype}, not of the input's type")
            value = emit(lif.OP.overload, x, *settings, 0)
            note = f"a scan -> edgesmith.lif({', '.join(map(str, settings))})"
        else:
            found = _scanned_memory(body, step, state, x, start)
            if found is None:
                return None
            if isinstance(found, str):
                return Rejection(where, found)
            a, b = found
            length = int(val(x).shape[0])
            u = emit(aten.transpose.int, emit(aten.squeeze.dim, x, 2), 0, 1)
            impulse = lmu_memory.impulse_response(a, b, length)
            given = [emit.constant(f"{where}.{name}", t) for name, t in (("impulse", impulse), ("a", a), ("b", b))]
            value = emit(aten.permute.default, emit(lmu_memory.OP.overload, u, *given), [2, 0, 1])
            note = f"a scan of {length} steps -> edgesmith.lmu_memory, M = {len(b)}"
    except (RuntimeError, TypeError, IndexError):
        return None  # no step for other shapes than its own
    stand_for(value, results[1])
    results[1].replace_all_uses_with(value)
    return where, note


def _scanned_settings(step: Step, numbers: Sequence[float], start: float, dtype: torch.dtype) -> Settings | None:
    """The settings of lif with which its step has a scan's numbers, exactly; None for none."""
    v, x = _samples(numbers, dtype, 0), _samples(numbers, dtype, 1)
    after, output = step(v, x)
    for settings in _candidates(numbers):
        if (settings[2] or 0.0) != start:
            continue
        for part in (slice(0, 64), slice(None)):
            spikes, rested = lif.step(x[part], v[part], *settings)
            if not (torch.equal(spikes, output[part].to(dtype)) and torch.equal(rested, after[part])):
                break
        else:
            return settings
    return None


def _scanned_memory(
    body: GraphModule, step: Step, state: Node, x: Node, start: float
) -> tuple[Tensor, Tensor] | str | None:
    """A and b of a scan over a signal [T, B, 1] that is linear, starts at 0 and yields its state; or why it is not."""
    if rank(state) != 2 or rank(x) != 3 or val(x).shape[2] != 1 or start != 0 or not val(x).is_floating_point():
        return None
    if val(x).shape[1] != val(state).shape[0]:
        return None
    given = [node for node in body.graph.nodes if node.op == "placeholder"][:2]
    other = _not_affine(body.graph.nodes, set(given))
    if other is not None:
        return f"its step is not linear: it has {operator_name(other)} ({other.name})"
    order, dtype = int(val(state).shape[1]), val(x).dtype
    if any(y.any() for y in step(torch.zeros(5, order, dtype=dtype), torch.zeros(5, 1, dtype=dtype))):
        return "its step adds a constant to the state"
    a = step(torch.eye(order, dtype=dtype), torch.zeros(order, 1, dtype=dtype))[0].T
    b = step(torch.zeros(1, order, dtype=dtype), torch.ones(1, 1, dtype=dtype))[0].reshape(-1)
    generator = torch.Generator().manual_seed(0)
    m, u = (torch.randn(5, n, generator=generator).to(dtype) for n in (order, 1))
    after, output = step(m, u)
    return (a, b) if torch.equal(after, output) and _close(after, m @ a.T + u * b) else None


_SPIKINGJELLY = "sj_lif.forward.default"


def _spikingjelly(module: GraphModule, node: Node) -> _Outcome:
    """Operator of spikingjelly 2: (x [T, ...], v, tau, decay_input, threshold, reset, ...) -> (spikes, ...)."""
    x, state, tau, decay, threshold, reset, *rest = arguments(node)
    where = site(node)
    results = {user.args[1]: user for user in node.users if user.target is operator.getitem}
    read = [k for k, result in results.items() if result.users]
    if read != [0]:
        return Rejection(where, "its potential is read too")
    if _start(module, state) != (reset or 0.0):
        return Rejection(where, "its potential does not start at the reset")
    settings = (tau, threshold, reset, decay)
    sample = 2 * torch.randn(8, 512, generator=torch.Generator().manual_seed(0)).to(val(x).dtype)
    start = torch.full_like(sample[0], reset or 0.0)
    expected = node.target(sample, start, tau, decay, threshold, reset, *rest)[0]  # type: ignore[operator]
    if not torch.equal(expected, lif.reference(sample, *settings, 0)):
        return Rejection(where, "lif gives other spikes")
    spikes = Emitter(module, before=node)(lif.OP.overload, x, *settings, 0)
    stand_for(spikes, results[0])
    results[0].replace_all_uses_with(spikes)
    return where, f"sj_lif.forward -> edgesmith.lif({', '.join(map(str, settings))})"


def _start(module: GraphModule, state: Node) -> float | None:
    """The one number that a state starts with."""
    if state.op == "call_function" and state.target in _FILLED:
        return _FILLED[state.target](arguments(state))
    value = constant(module, state)
    if value is None or bool((value != value.reshape(-1)[0]).any()):
        return None
    return float(value.reshape(-1)[0])
