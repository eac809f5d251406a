"""A selective scan in another spelling becomes the op for it: an unrolled loop, or a closed form by cumulative sums.

    h_t = exp(P_t) h_{t-1} + U_t, stacked over t             a Python loop, of which a capture has one copy a step
    exp(S) cumsum(U exp(-S)),  exp(S) cumsum(U / exp(S)),  S = cumsum(P)              all steps at once
        P = Delta A,  U = (Delta x) B,  y_t = sum of h_t C_t over the states  ->  selective_scan(x, Delta, A, B, C)

The closed form is right in real numbers and not in float32: exp(-S) overflows once |S| passes 88, at Mamba's own
initial values after 255 steps. P and U may be products in any order and layout, by broadcasting or as an einsum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch.fx import GraphModule, Node

from edgesmith.exporters.costs import Costs
from edgesmith.exporters.graph.edit import Emitter, arguments, aten, constant, numbers, rank, replace, site, val
from edgesmith.exporters.rewrites.rewrite import Fired, Reject, rewrites
from edgesmith.kernels import selective_scan

_SHORTEST = 2
"""Steps from which on copies of a step are a loop."""


@dataclass(frozen=True)
class Factor:
    """One factor of a product.

    Attributes:
        dims: for each axis of the product the factor's own, None where it has one value along it.
    """

    node: Node
    dims: tuple[int | None, ...]

    def varies(self, axis: int) -> bool:
        """Return whether it has more than one value along an axis of the product."""
        return self.dims[axis] is not None

    def same_as(self, other: Factor) -> bool:
        """Return whether another factor is the same value in the same place."""
        return self.dims == other.dims and self.node is other.node


@dataclass(frozen=True)
class States:
    """All states of a scan as one tensor that would be, with its axes.

    Attributes:
        exponent, added: P and U, of which every axis is as long as theirs.
        time: their time axis.
    """

    exponent: Node
    added: Node
    time: int
    form: str


@dataclass(frozen=True)
class Readout:
    """The read-out of the states, y, and C in the axes of P and U.

    Attributes:
        output: the node that has all of y.
        c: the rows of C.
        states: the axis of P and U that is summed over.
    """

    output: Node
    c: Factor
    states: int


@rewrites(aten.cumsum.default, rule="exp(S) cumsum(U exp(-S)) -> a selective scan", name="find_closed_scan")
def find_closed_scan(module: GraphModule, node: Node, costs: Costs) -> Fired | None:
    """Replace a closed form and its read-out. A near miss is one whose factors are not those of a selective scan."""
    found = _closed(node)
    if found is None:
        return None
    states, h = found
    readout = _read_at_once(h)
    if readout is None:
        raise Reject("a closed form by cumulative sums, which overflows, but its states are not read as h C")
    where = site(readout.output)
    _replace(module, states, readout, tuple(range(rank(states.added))))
    return Fired(where, f"{states.form} overflows float32 where the sums pass 88 -> selective_scan")


def _closed(outer: Node) -> tuple[States, Node] | None:
    """Return the states of a closed form around its outer cumulative sum, and the node that has them all."""
    product, axis, *_ = arguments(outer)
    axis %= max(rank(outer), 1)
    if not isinstance(product, Node) or product.target not in (aten.mul.Tensor, aten.div.Tensor):
        return None
    for added, decay in _pairs(product):
        grown = _exponent(decay)
        if grown is None:
            continue
        sums, sign = grown
        if sums.target is not aten.cumsum.default or arguments(sums)[1] % rank(sums) != axis:
            continue
        if (sign < 0) != (product.target is aten.mul.Tensor):
            continue
        for user in outer.users:
            other = next((one for one in user.all_input_nodes if one is not outer), None)
            back = _exponent(other) if other is not None and user.target is aten.mul.Tensor else None
            if back == (sums, 1):
                spelled = "exp(S) cumsum(U exp(-S))" if sign < 0 else "exp(S) cumsum(U / exp(S))"
                return States(sums.all_input_nodes[0], added, axis, spelled), user
    return None


def _pairs(product: Node) -> list[tuple[Node, Node]]:
    """Return the operands of a product in both orders, of a quotient in its own."""
    a, b = product.args[:2]
    if not isinstance(a, Node) or not isinstance(b, Node):
        return []
    return [(a, b)] if product.target is aten.div.Tensor else [(a, b), (b, a)]


def _exponent(node: Node) -> tuple[Node, int] | None:
    """Return S and the sign of it where a node is exp(S) or exp(-S)."""
    if node.target is not aten.exp.default:
        return None
    inner = node.all_input_nodes[0]
    if inner.target is aten.neg.default:
        return inner.all_input_nodes[0], -1
    return inner, 1


def _read_at_once(h: Node) -> Readout | None:
    """Return the only reader of all states at once: sum(h C) over an axis, or an einsum of both."""
    if len(h.users) != 1:
        return None
    (user,) = h.users
    if user.target is aten.einsum.default:
        equation, operands = arguments(user)[:2]
        found = _einsum(str(equation), operands)
        if found is None or len(operands) != 2:
            return None
        letters, output = found
        at = operands.index(h)
        summed = [i for i, letter in enumerate(letters[at]) if letter not in output]
        kept = "".join(letter for letter in letters[at] if letter in output)
        if len(summed) != 1 or kept != output:
            return None
        c = Factor(operands[1 - at], tuple(_at(letters[1 - at], letter) for letter in letters[at]))
        return Readout(user, c, summed[0])
    if user.target is not aten.mul.Tensor or len(user.users) != 1:
        return None
    (total,) = user.users
    other = next((one for one in user.all_input_nodes if one is not h), None)
    if other is None or total.target is not aten.sum.dim_IntList or val(user).shape != val(h).shape:
        return None
    _, axes, keeps, *_ = arguments(total)
    if len(axes) != 1 or keeps:
        return None
    return Readout(total, _aligned(other, user), axes[0] % rank(h))


def _at(letters: str, letter: str) -> int | None:
    return letters.index(letter) if letter in letters else None


def _einsum(equation: str, operands: Sequence[Any]) -> tuple[list[str], str] | None:
    """Return the letters of the operands and of the output; None for an equation without an arrow, or with dots."""
    sides = equation.replace(" ", "").split("->")
    if len(sides) != 2 or "." in equation:
        return None
    letters = sides[0].split(",")
    is_plain = all(len(set(own)) == len(own) == rank(one) for own, one in zip(letters, operands, strict=True))
    return (letters, sides[1]) if is_plain else None


# an unrolled loop


@rewrites(
    aten.stack.default, rule="an unrolled loop of h = exp(P_t) h + U_t -> a selective scan", name="find_loop_scan"
)
def find_loop_scan(module: GraphModule, node: Node, costs: Costs) -> Fired | None:
    """Replace the copies of a step by one op. A near miss is a loop whose factors are not those of a selective scan."""
    parts, *_ = arguments(node)
    if len(parts) < _SHORTEST or not all(isinstance(part, Node) for part in parts):
        return None
    reads = [_read_one(part) for part in parts]
    if any(read is None for read in reads):
        return _states_at_once(module, node)
    first = reads[-1]
    assert first is not None
    decays, added, time = _steps([read[0] for read in reads if read is not None])
    if decays is None or added is None:
        return None
    c, c_axis = _selected([read[1] for read in reads if read is not None])
    grown = _exponent(decays)
    if c is None or grown is None or grown[1] < 0:
        raise Reject(
            "a loop of h = a h + u, but its decay is no exponential, or what reads it is not one tensor's rows"
        )
    states = States(grown[0], added, time, f"a loop of {len(parts)} steps")
    where = site(node)
    _replace_loop(module, states, node, (c, c_axis, first[2]))
    return Fired(where, f"{states.form} -> selective_scan")


def _states_at_once(module: GraphModule, stack: Node) -> Fired | None:
    """Replace a loop whose states are stacked, and read all at once."""
    parts, at = arguments(stack)
    decays, added, time = _steps(parts)
    if decays is None or added is None or time != at % rank(stack):
        return None
    grown, readout = _exponent(decays), _read_at_once(stack)
    if grown is None or grown[1] < 0 or readout is None:
        raise Reject("a loop of h = a h + u, but its decay is no exponential, or its states are not read as h C")
    states = States(grown[0], added, time, f"a loop of {len(parts)} steps")
    where = site(readout.output)
    _replace(module, states, readout, tuple(range(rank(added))))
    return Fired(where, f"{states.form} -> selective_scan")


def _read_one(part: Node) -> tuple[Node, Node, int] | None:
    """Return h_t, C_t and the axis of h_t that is summed over, of y_t = sum h_t C_t or h_t @ C_t."""
    if part.target in (aten.select.int, aten.squeeze.dim) and part.all_input_nodes[0].target is aten.matmul.default:
        product = part.all_input_nodes[0]
        h, column = arguments(product)[:2]
        if rank(column) == rank(h) and val(column).shape[-1] == 1 and arguments(part)[1] % rank(product) == rank(h) - 1:
            base = arguments(column)[0] if column.target is aten.unsqueeze.default else None
            return (h, base, rank(h) - 1) if isinstance(base, Node) else None
    if part.target is aten.sum.dim_IntList:
        product, axes, *_ = arguments(part)
        if product.target is aten.mul.Tensor and len(axes) == 1 and len(product.all_input_nodes) == 2:
            h, row = product.all_input_nodes
            if rank(row) == rank(h) and row.target is aten.unsqueeze.default:
                return h, arguments(row)[0], axes[0] % rank(h)
    return None


def _steps(states: list[Node]) -> tuple[Node | None, Node | None, int]:
    """Return the tensors whose slices are the decays and inputs of h_t = a_t h_{t-1} + u_t, and their time axis."""
    decays, added = [], []
    for t, h in enumerate(states):
        before = states[t - 1] if t else None
        found = _one_step(h, before)
        if found is None:
            return None, None, 0
        decays.append(found[0])
        added.append(found[1])
    u, axis = _selected(added)
    a, axis_of_decays = _selected(decays)
    return (a, u, axis) if a is not None and axis == axis_of_decays else (None, None, 0)


def _one_step(h: Node, before: Node | None) -> tuple[Node, Node] | None:
    """Return a_t and u_t of one step; before the first one is a state of zeros."""
    if h.target is not aten.add.Tensor or len(h.all_input_nodes) != 2 or h.kwargs:
        return None
    for product, u in (h.all_input_nodes, h.all_input_nodes[::-1]):
        if product.target is not aten.mul.Tensor or len(product.all_input_nodes) != 2:
            continue
        for a, earlier in (product.all_input_nodes, product.all_input_nodes[::-1]):
            if earlier is before or (before is None and _is_zero(earlier)):
                return a, u
    return None


def _is_zero(node: Node) -> bool:
    if node.target in (aten.zeros.default, aten.zeros_like.default, aten.new_zeros.default):
        return True
    if node.target is aten.full.default:
        return bool(node.args[1] == 0)
    module = node.graph.owning_module
    value = constant(module, node) if module is not None else None
    return value is not None and not bool(value.any())


def _selected(parts: list[Node]) -> tuple[Node | None, int]:
    """Return the tensor whose slices along one axis, all and in order, are these nodes; None where it is none."""
    if any(part.target is not aten.select.int for part in parts):
        return None, 0
    source, axis, _ = arguments(parts[0])
    axis %= rank(source)
    length = val(source).shape[axis]
    for t, part in enumerate(parts):
        own, along, index = arguments(part)
        if own is not source or along % rank(source) != axis or index % length != t:
            return None, 0
    return (source, axis) if length == len(parts) else (None, 0)


def _replace_loop(module: GraphModule, states: States, stack: Node, c: tuple[Node, int, int]) -> None:
    """Put the op in the place of the stack of y_t."""
    rows, axis_of_time, summed = c
    inner = [axis for axis in range(rank(states.added)) if axis != states.time]  # the axes of h_t
    state_axis = inner[summed]
    kept = [axis for axis in inner if axis != state_axis]
    dims: list[int | None] = [None] * rank(states.added)
    dims[states.time] = axis_of_time
    others = [i for i in range(rank(rows)) if i != axis_of_time]
    dims[state_axis] = others[-1]
    for axis, own in zip(kept, others[:-1], strict=False):
        dims[axis] = own
    at = arguments(stack)[1] % rank(stack)
    order = [*kept[:at], states.time, *kept[at:]]
    _replace(module, states, Readout(stack, Factor(rows, tuple(dims)), state_axis), tuple(order))


# the factors, and the op


def _factors(node: Node) -> list[Factor]:
    """Return the factors of a product, by broadcasting or as an einsum without sums; of other nodes themselves."""
    if node.target is aten.einsum.default:
        equation, operands = arguments(node)[:2]
        found = _einsum(str(equation), operands)
        if found is not None and set("".join(found[0])) == set(found[1]):
            letters, output = found
            return [
                Factor(inner.node, tuple(None if at is None else inner.dims[at] for at in axes))
                for one, own in zip(operands, letters, strict=True)
                for axes in [tuple(_at(own, letter) for letter in output)]
                for inner in _factors(one)
            ]
    if node.target is aten.mul.Tensor and len(node.all_input_nodes) == 2 and isinstance(node.args[1], Node):
        found_factors = []
        for operand in node.args[:2]:
            assert isinstance(operand, Node)
            outer = _aligned(operand, node)
            for one in _factors(operand):
                dims = tuple(None if dim is None else one.dims[dim] for dim in outer.dims)
                found_factors.append(Factor(one.node, dims))
        return found_factors
    moved = _moved(node)
    if moved is not None:
        source, order = moved
        return [
            Factor(one.node, tuple(None if dim is None else one.dims[dim] for dim in order)) for one in _factors(source)
        ]
    return [_aligned(node, node)]


def _moved(node: Node) -> tuple[Node, list[int | None]] | None:
    """Return what a node only arranges, and for each of its axes the axis there; None where it is no arrangement."""
    if node.target is aten.unsqueeze.default:
        source, at = arguments(node)
        dims: list[int | None] = list(range(rank(source)))
        dims.insert(at % rank(node), None)
        return source, dims
    if node.target is aten.permute.default:
        source, order = arguments(node)
        return source, [axis % rank(node) for axis in order]
    if node.target is aten.transpose.int:
        source, *both = arguments(node)
        first, second = (axis % rank(node) for axis in both)
        dims = list(range(rank(node)))
        dims[first], dims[second] = second, first
        return source, dims
    return None


def _aligned(operand: Node, product: Node) -> Factor:
    """Return an operand with its axes in those of a product that broadcasts it."""
    ahead = rank(product) - rank(operand)
    sizes = val(operand).shape
    return Factor(operand, tuple(i if i >= 0 and sizes[i] != 1 else None for i in range(-ahead, rank(operand))))


def _replace(module: GraphModule, states: States, readout: Readout, order: tuple[int, ...]) -> None:
    """Put the op in the place of a read-out whose axes are `order`, less the states'.

    Raises:
        Reject: P is no product of step sizes and rates, or U none of step sizes, an input and rows of B.
    """
    sizes = numbers_of(states.added)
    time, n = states.time, readout.states
    left = [axis for axis in range(len(sizes)) if axis not in (time, n)]
    if len(left) != 2:
        raise Reject(f"its states have {len(sizes)} axes, and a selective scan's have batch, time, channels and states")
    exponents, inputs = _factors(states.exponent), _factors(states.added)
    rates = [one for one in exponents if one.varies(n)]
    deltas = [one for one in exponents if not one.varies(n)]
    if len(rates) != 1 or len(deltas) != 1 or rates[0].varies(time):
        raise Reject("its exponents are no product of step sizes and constant rates")
    batch, width = left if rates[0].varies(left[1]) or not rates[0].varies(left[0]) else left[::-1]
    if rates[0].varies(batch):
        raise Reject("its rates differ from row to row of the batch")
    rows = [one for one in inputs if one.varies(n)]
    driven = [one for one in inputs if not one.varies(n)]
    same = next((one for one in driven if one.same_as(deltas[0])), None)
    if len(rows) != 1 or rows[0].varies(width) or readout.c.varies(width) or same is None or len(driven) != 2:
        raise Reject("its inputs are no product of the step sizes, a signal of each channel and rows of B")
    signal = next(one for one in driven if one is not same)
    emit = Emitter(module, before=readout.output)

    def arrange(factor: Factor, *axes: int) -> Node:
        return _arranged(emit, factor, axes, sizes)

    sequence = (batch, time)
    y = emit(
        selective_scan.OP.overload,
        arrange(signal, *sequence, width),
        arrange(deltas[0], *sequence, width),
        arrange(rates[0], width, n),
        arrange(rows[0], *sequence, n),
        arrange(readout.c, *sequence, n),
    )
    own = (batch, time, width)
    permutation = [own.index(axis) for axis in order if axis != n]
    replace(readout.output, y if permutation == [0, 1, 2] else emit(aten.permute.default, y, permutation))


def numbers_of(node: Node) -> list[int]:
    """Return a node's sizes. Raises Reject where one is free."""
    sizes = list(val(node).shape)
    if numbers(sizes) is None:
        raise Reject("its batch is free, so that its axes cannot be told apart")
    return [int(size) for size in sizes]


def _arranged(emit: Emitter, factor: Factor, axes: Sequence[int], sizes: Sequence[int]) -> Node:
    """Return a factor with exactly these axes of the product, in this order, and nothing else."""
    node, own = factor.node, [factor.dims[axis] for axis in axes]
    used = [dim for dim in own if dim is not None]
    rest = [dim for dim in range(rank(node)) if dim not in used]
    if [*used, *rest] != list(range(rank(node))):
        node = emit(aten.permute.default, node, [*used, *rest])
    shape = [sizes[axis] if dim is not None else 1 for axis, dim in zip(axes, own, strict=True)]
    if list(val(node).shape) != shape:
        node = emit(aten.reshape.default, node, shape)
    full = [sizes[axis] for axis in axes]
    return node if shape == full else emit(aten.expand.default, node, full)
