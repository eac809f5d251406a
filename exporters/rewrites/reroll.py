"""Recurrences that a capture has unrolled, one copy of their step for each time step, become one op again.

    stack(o_0 ... o_{T-1}),  c_t = step(c_{t-1}, e_t),  o_t = out(c_t)      a loop in the model's Python
    torch's higher-order `scan`                                            the same as one node
    another package's operator for the whole recurrence                    such as spikingjelly's `sj_lif.forward`

Found by structure (unrolled.py), decided by numbers. An elementwise op with one state says which settings a step could
have (`Recognition` in kernels/op.py). A step is that op if, under some of them, the op gives its numbers bit for bit,
for inputs of all magnitudes and around the step's own literals: however a model spells a reset, it is found, and a
division that rounds otherwise is noticed. A step is a linear recurrence if it is linear, with an input of rank one; its
operators decide that, because numbers that stay below 10 do not tell a clamp at 10 from none. Time is linear in the
number of nodes. Letters: B batch, T time, M memory.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
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
    rank,
    replace,
    val,
)
from edgesmith.exporters.graph.edit import site as site_of
from edgesmith.exporters.rewrites.rewrite import Reject, rewrites
from edgesmith.exporters.rewrites.unrolled import FILLED, Loop, evaluate, find_loop, slice_of
from edgesmith.kernels.op import FusedOp, Recognition, Recurrence, all_ops, linear_recurrence

SAMPLES = 2**14

Step = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""From state and input to the next state and the output."""

Settings = tuple[Any, ...]


@rewrites(rule="an unrolled loop, or a scan, of one step -> one op", backwards=True, until_stable=True)
def reroll(module: GraphModule, node: Node, costs: Costs) -> str | None:
    """Replace in place; of a loop of several layers the last one first, then what it reads.

    A near miss is a loop whose steps are equal but mean no op, or that differs in some of its steps.
    """
    if node.target in (aten.stack.default, aten.cat.default):
        return _unrolled(module, node)
    if node.target is torch.ops.higher_order.scan:
        return _scanned(module, node)
    return _foreign(module, node)


def _unrolled(module: GraphModule, join: Node) -> str | None:
    found = find_loop(module, join)
    if found is None:
        return None
    loop, axis = found
    return _elementwise_loop(loop, join, axis) or _linear_loop(loop, join, axis)


# elementwise recurrences, recognised by their numbers


@dataclass(frozen=True)
class _Elementwise:
    """An op that can be recognised by its numbers, and what it says of itself."""

    op: FusedOp
    recurrence: Recurrence
    told_by: Recognition

    def initial(self, x: Tensor, settings: Settings) -> float:
        """The value of its state before the first frame of inputs [T, ...]."""
        (state,) = self.recurrence.states
        return state.initial(x, *self.told_by.literals(settings, 0))

    def call(self, settings: Settings, axis: int) -> tuple[Any, ...]:
        """The literals of a call with time along an axis."""
        return self.told_by.literals(settings, axis)

    def described(self, settings: Settings) -> str:
        """The op with its settings, for a report; without those at the end that it does not have."""
        count = max(i for i, value in enumerate(settings, start=1) if value is not None)
        return f"edgesmith.{self.op.name}({', '.join(map(str, settings[:count]))})"


def _elementwise_ops() -> list[_Elementwise]:
    recurrences = [(op, op.recurrence) for op in all_ops().values() if op.recurrence is not None]
    return [_Elementwise(op, one, one.recognition) for op, one in recurrences if one.recognition is not None]


def _elementwise_loop(loop: Loop, join: Node, axis: int) -> str | None:
    module, state, output = loop.module, loop.states[-1], loop.outputs[-1]
    if val(loop.inputs[-1]).shape != val(state).shape:
        return None
    dtype = val(state).dtype
    if val(output).dtype != dtype:
        raise Reject(f"its outputs are {val(output).dtype}, not of the input's type")

    def step(state: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        after = loop.next_state(state, x)
        return after, loop.output(after)

    numbers = _numbers(module, loop.nodes())
    try:
        found = _op_of_loop(step, loop.first_state, numbers, dtype)
    except (RuntimeError, ValueError, TypeError, IndexError):
        return None  # no step for a state and an input of one shape, whatever that is
    if found is None:
        reason = _near_miss(step, dtype)
        if reason is not None:
            raise Reject(reason)
        return None
    one, settings = found
    inputs, dim = _stacked(module, join, loop.inputs)
    _put(module, join, Emitter(module, before=join)(one.op.overload, inputs, *one.call(settings, dim)), dim, axis)
    return f"{len(loop.outputs)} unrolled steps -> {one.described(settings)}"


def _numbers(module: GraphModule, nodes: Iterable[Node]) -> list[float]:
    """The numbers that stand in some nodes: literals, and constants of one number."""
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


PARTS = (slice(0, 64), slice(None))
"""Of the samples: a few, which rule out most settings, and then all."""


def _op_of_loop(
    step: Step, start: Callable[[Tensor], Tensor], numbers: Sequence[float], dtype: torch.dtype
) -> tuple[_Elementwise, Settings] | None:
    """The op and the settings under which it has the numbers of an unrolled step, exactly; None for none.

    The step's state is the cut of `Recognition`: a step settles what the one before has left, and advances.
    """
    cut, x = _samples(numbers, dtype, 0), _samples(numbers, dtype, 1)
    after, output = step(cut, x)
    first = start(x)
    if after.shape != cut.shape or output.shape != cut.shape or first.shape != cut.shape:
        return None

    def agrees(one: _Elementwise, settings: Settings, part: slice) -> bool:
        state = one.told_by.settle(cut[part], *settings)[1]
        advanced = one.told_by.advance(state, x[part], *settings)
        begun = one.told_by.advance(torch.full_like(x[part], one.initial(x, settings)), x[part], *settings)
        settled = one.told_by.settle(advanced, *settings)[0]
        same = torch.equal(advanced, after[part]) and torch.equal(settled, output[part])
        return same and torch.equal(begun, first[part])

    return _first_that(agrees, numbers)


def _op_of_scan(
    step: Step, start: float, numbers: Sequence[float], dtype: torch.dtype
) -> tuple[_Elementwise, Settings] | None:
    """The op and the settings under which its step has a scan's numbers, exactly; None for none."""
    state, x = _samples(numbers, dtype, 0), _samples(numbers, dtype, 1)
    after, output = step(state, x)

    def agrees(one: _Elementwise, settings: Settings, part: slice) -> bool:
        if one.initial(x, settings) != start:
            return False
        settled, left = one.told_by.settle(one.told_by.advance(state[part], x[part], *settings), *settings)
        return torch.equal(settled, output[part].to(dtype)) and torch.equal(left, after[part])

    return _first_that(agrees, numbers)


def _first_that(
    agrees: Callable[[_Elementwise, Settings, slice], bool], numbers: Sequence[float]
) -> tuple[_Elementwise, Settings] | None:
    for one in _elementwise_ops():
        for settings in one.told_by.settings(numbers):
            if all(agrees(one, settings, part) for part in PARTS):
                return one, settings
    return None


def _near_miss(step: Step, dtype: torch.dtype) -> str | None:
    """Return why a step is not the op that one would expect; None where nobody would expect any."""
    output = step(_samples([0.0, 1.0], dtype, 0), _samples([0.0, 1.0], dtype, 1))[1]
    reasons = [one.told_by.near_miss(output) for one in _elementwise_ops()]
    return next((reason for reason in reasons if reason is not None), None)


# linear recurrences


def _linear_loop(loop: Loop, join: Node, axis: int) -> str | None:
    module, op, state = loop.module, linear_recurrence(), loop.states[-1]
    if op is None or rank(state) != 2 or loop.out or not val(state).is_floating_point():
        return None
    other = _not_affine(loop.step, {loop.states[-2], loop.inputs[-1]}) or _not_affine(*loop.first_step())
    if other is not None:
        raise Reject(f"its step is not linear: it has {operator_name(other)} ({other.name})")
    a = _matrix(loop)
    if a is None:
        return None
    signals, b = _driven(loop)
    emit = Emitter(module, before=join)
    u, dim = _stacked(module, join, signals)  # [B, 1] each
    u = emit(aten.squeeze.dim, u, 2 if dim < 2 else 1)
    if dim == 0:
        u = emit(aten.transpose.int, u, 0, 1)
    length = len(loop.outputs)
    _put(module, join, _emit_linear(emit, op, site_of(join), u, (a, b, length)), 2, axis)
    return f"{length} unrolled steps -> edgesmith.{op.name}, M = {len(b)}"


def _emit_linear(emit: Emitter, op: FusedOp, where: str, u: Node, system: tuple[Tensor, Tensor, int]) -> Node:
    """A call of the op for linear recurrences on u [B, T], of A, b and T. [B, M, T]"""
    assert op.linear is not None
    a, b, _ = system
    named = (("impulse", op.linear.impulse_response(*system)), ("a", a), ("b", b))
    return emit(op.overload, u, *[emit.constant(f"{where}.{name}", x) for name, x in named])


def _matrix(loop: Loop) -> Tensor | None:
    """A of a step A m + e that begins with e, [M, M]; None where it is no such step.

    Raises:
        Reject: it is one but for a constant.
    """
    state = loop.states[-1]
    order, dtype = int(val(state).shape[1]), val(state).dtype
    generator = torch.Generator().manual_seed(0)
    m, e = (torch.randn(5, order, generator=generator).to(dtype) for _ in range(2))
    nothing = torch.zeros(5, order, dtype=dtype)
    try:
        a = loop.next_state(torch.eye(order, dtype=dtype), torch.zeros(order, order, dtype=dtype)).T
        is_linear = _close(loop.next_state(m, e), m @ a.T + e) and _close(loop.first_state(e), e)
        is_shifted = bool(loop.next_state(nothing, nothing).any() or loop.first_state(nothing).any())
    except (RuntimeError, ValueError, TypeError, IndexError):
        return None
    if is_shifted:
        raise Reject("its step adds a constant to the state")
    return a if is_linear else None


def _driven(loop: Loop) -> tuple[list[Node], Tensor]:
    """The signal [B, 1] of each step and the vector b [M] with e = u b^T. Raises Reject where there is no one b."""
    signals: list[Node] = []
    b: Tensor | None = None
    for node in loop.inputs:
        split = _outer(loop.module, node, loop.states[-1])
        if split is None:
            raise Reject(f"what drives it, {node.name} ({operator_name(node)}), is no signal times a vector")
        signal, column = split
        if b is not None and not torch.equal(b, column):
            raise Reject(f"its vector b changes at {node.name}")
        b = column
        signals.append(signal)
    assert b is not None
    return signals, b


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
    column, nothing, other = (evaluate(module, [node], node, {parts[0]: k * one}) for k in (1, 0, -2))
    is_outer = column.shape == (1, val(state).shape[1]) and not nothing.any() and _close(other, -2 * column)
    return (parts[0], column.reshape(-1)) if is_outer else None


def _not_affine(nodes: Iterable[Node], given: set[Node]) -> Node | None:
    """The first of some nodes, in order, that may be no affine function of the given ones; None where all are."""
    depends = set(given)
    for node in nodes:
        if node in depends or node.op != "call_function" or node.target in FILLED:
            continue
        positions = [i for i, x in enumerate(arguments(node)) if any(leaf in depends for leaf in _nodes_in(x))]
        if not positions:
            continue
        if not _is_affine(node, positions):
            return node
        depends.add(node)
    return None


def _is_affine(node: Node, positions: list[int]) -> bool:
    """Return whether an operator is affine in its arguments at some positions, together."""
    is_product = node.target in _PRODUCTS and len(positions) == 1
    is_first = node.target in _AFFINE_IN_THE_FIRST and positions == [0]
    return node.target in _AFFINE or is_product or is_first


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


# putting an op in place of a loop


def _stacked(module: GraphModule, join: Node, values: list[Node]) -> tuple[Node, int]:
    """A tensor that has some values as its slices, in order, and its time axis.

    What a step does to each frame by itself, as a layer between two kinds of neurons in one loop, is done to all frames
    at once; where their values come from another loop, that one is then found at the stack made here.
    """
    emit = Emitter(module, before=join)
    sliced = _sliced(values)
    if sliced is not None:
        x, axis = sliced
        is_whole = val(x).shape[axis] == len(values)
        return x if is_whole else emit(aten.slice.Tensor, x, axis, 0, len(values)), axis
    varying = _varying_frames(values)
    if varying is None:
        return emit(aten.stack.default, values, 0), 0
    k, frames = varying
    x, axis = _stacked(module, join, frames)
    if axis != 0:
        x = emit(aten.permute.default, x, [axis, *(i for i in range(rank(x)) if i != axis)])
    node = values[0]
    return emit(node.target, *node.args[:k], x, *node.args[k + 1 :], **node.kwargs), 0


def _sliced(values: list[Node]) -> tuple[Node, int] | None:
    """The tensor and the axis whose first slices, in order, some values are."""
    slices = [slice_of(node) for node in values]
    first = slices[0]
    if first is None or any(s is None or s[:2] != first[:2] or s[2] != t for t, s in enumerate(slices)):
        return None
    return first[:2]


def _varying_frames(values: list[Node]) -> tuple[int, list[Node]] | None:
    """Of one operator applied to each frame by itself: the position of the frame, the only argument that differs."""
    node = values[0]
    varying = [k for k in range(len(node.args)) if any(v.args[k : k + 1] != node.args[k : k + 1] for v in values)]
    is_alike = all(v.target is node.target and v.kwargs == node.kwargs for v in values)
    if node.target not in _FRAME_BY_FRAME or not is_alike or len(varying) != 1:
        return None
    (k,) = varying
    frames = [frame for frame in (v.args[k] for v in values) if isinstance(frame, Node)]
    if len(frames) != len(values) or any(rank(frame) != rank(node) for frame in frames):
        return None
    return k, frames


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
        others = [i for i in range(rank(value)) if i != dim]
        value = Emitter(module, before=join)(aten.permute.default, value, [*others[:axis], dim, *others[axis:]])
    replace(join, value)


# torch's own loop


@dataclass(frozen=True)
class _Scan:
    """A scan with one state, over one sequence [T, ...], that yields one value a step.

    Attributes:
        body: from state, slice and `shared` to the next state and the value.
        state: node of the first state, full of `start`.
        shared: what all steps read.
        result: the node of all values.
    """

    body: GraphModule
    state: Node
    start: float
    x: Node
    shared: list[Tensor]
    result: Node

    def step(self, state: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """The next state and the value."""
        with torch.no_grad():
            after, output = self.body(state, x, *self.shared)
        return after, output


def _read_scan(module: GraphModule, scan: Node) -> _Scan | None:
    combine, states, sequences, more = cast(tuple[Node, list[Node], list[Node], list[Node]], scan.args)
    if len(states) != 1 or len(sequences) != 1:
        return None
    results = _results(scan)
    if 0 in results and results[0].users:
        raise Reject("the last state of the scan is read too")
    if 1 not in results or len(results) > 2:
        return None
    start = _start(module, states[0])
    if start is None:
        raise Reject("the state of the scan starts with something computed")
    shared = [value for value in (constant(module, node) for node in more) if value is not None]
    if len(shared) < len(more):
        raise Reject("its steps share something computed")
    return _Scan(getattr(module, str(combine.target)), states[0], start, sequences[0], shared, results[1])


def _results(node: Node) -> Mapping[Any, Node]:
    """The nodes that read the results of an operator with several, by index."""
    return {user.args[1]: user for user in node.users if user.target is operator.getitem}


def _scanned(module: GraphModule, node: Node) -> str | None:
    scan = _read_scan(module, node)
    if scan is None:
        return None
    emit = Emitter(module, before=node)
    try:
        if val(scan.state).shape == val(scan.x).shape[1:]:
            one, settings = _elementwise_scan(scan)
            value = emit(one.op.overload, scan.x, *one.call(settings, 0))
            note = f"a scan -> {one.described(settings)}"
        else:
            linear = linear_recurrence()
            system = _linear_scan(scan)
            if linear is None or system is None:
                return None
            u = emit(aten.transpose.int, emit(aten.squeeze.dim, scan.x, 2), 0, 1)
            memory = _emit_linear(emit, linear, site_of(node), u, system)
            value = emit(aten.permute.default, memory, [2, 0, 1])
            note = f"a scan of {system[2]} steps -> edgesmith.{linear.name}, M = {len(system[1])}"
    except (RuntimeError, TypeError, IndexError):
        return None  # no step for other shapes than its own
    replace(scan.result, value)
    return note


def _elementwise_scan(scan: _Scan) -> tuple[_Elementwise, Settings]:
    """The op and the settings of an elementwise scan. Raises Reject where there are none."""
    numbers = {*_numbers(scan.body, scan.body.graph.nodes), scan.start}
    numbers |= {value.item() for value in scan.shared if value.numel() == 1}
    dtype = val(scan.x).dtype
    found = _op_of_scan(scan.step, scan.start, sorted(numbers), dtype)
    if found is None:
        names = ", ".join(one.op.name for one in _elementwise_ops())
        raise Reject(_near_miss(scan.step, dtype) or f"none of its literals give the numbers of {names}")
    if val(scan.result).dtype != dtype:
        raise Reject(f"its outputs are {val(scan.result).dtype}, not of the input's type")
    return found


def _linear_scan(scan: _Scan) -> tuple[Tensor, Tensor, int] | None:
    """A, b and T of a scan over a signal [T, B, 1] that is linear, starts at 0 and yields its state; None for others.

    Raises:
        Reject: it is no such scan for one operator, or but for a constant.
    """
    state, x, dtype = scan.state, scan.x, val(scan.x).dtype
    if rank(state) != 2 or rank(x) != 3 or val(x).shape[2] != 1 or scan.start != 0 or not dtype.is_floating_point:
        return None
    if val(x).shape[1] != val(state).shape[0]:
        return None
    given = [node for node in scan.body.graph.nodes if node.op == "placeholder"][:2]
    other = _not_affine(scan.body.graph.nodes, set(given))
    if other is not None:
        raise Reject(f"its step is not linear: it has {operator_name(other)} ({other.name})")
    order = int(val(state).shape[1])
    if any(y.any() for y in scan.step(torch.zeros(5, order, dtype=dtype), torch.zeros(5, 1, dtype=dtype))):
        raise Reject("its step adds a constant to the state")
    a = scan.step(torch.eye(order, dtype=dtype), torch.zeros(order, 1, dtype=dtype))[0].T
    b = scan.step(torch.zeros(1, order, dtype=dtype), torch.ones(1, 1, dtype=dtype))[0].reshape(-1)
    generator = torch.Generator().manual_seed(0)
    m, u = (torch.randn(5, n, generator=generator).to(dtype) for n in (order, 1))
    after, output = scan.step(m, u)
    is_linear = torch.equal(after, output) and _close(after, m @ a.T + u * b)
    return (a, b, int(val(x).shape[0])) if is_linear else None


def _start(module: GraphModule, state: Node) -> float | None:
    """The one number that a state starts with."""
    if state.op == "call_function" and state.target in FILLED:
        return FILLED[state.target](arguments(state))
    value = constant(module, state)
    if value is None or bool((value != value.reshape(-1)[0]).any()):
        return None
    return float(value.reshape(-1)[0])


# operators of other packages


def _foreign(module: GraphModule, node: Node) -> str | None:
    """Another package's operator (x [T, ...], state, *others) -> (output, ...), see `Recognition.foreign`."""
    name = str(node.target)
    one = next((one for one in _elementwise_ops() if name in one.told_by.foreign), None)
    if one is None:
        return None
    x, state, *others = arguments(node)
    results = _results(node)
    if [index for index, result in results.items() if result.users] != [0]:
        raise Reject("its state is read too")
    settings = one.told_by.foreign[name](*others)
    sample = 2 * torch.randn(8, 512, generator=torch.Generator().manual_seed(0)).to(val(x).dtype)
    initial = one.initial(sample, settings)
    if _start(module, state) != initial:
        raise Reject(f"its state does not start with {initial}, as {one.op.name}'s does")
    expected = node.target(sample, torch.full_like(sample[0], initial), *others)[0]  # type: ignore[operator]  # it is one
    found = one.op.reference(sample, *one.call(settings, 0))
    assert isinstance(found, Tensor)
    if not torch.equal(expected, found):
        raise Reject(f"{one.op.name} gives other numbers")
    replace(results[0], Emitter(module, before=node)(one.op.overload, x, *one.call(settings, 0)))
    return f"{name.removesuffix('.default')} -> {one.described(settings)}"
