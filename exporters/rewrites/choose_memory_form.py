"""The cheapest form of a linear recurrence for its length and the target; it may be to compute no state at all.

    convolution  B M T^2 multiplies at once
    chunked      B M T^2 / L at once, then L steps that multiply the memories of T / L chunks by A
    recurrent    T steps that multiply one memory by A, so that A is read T times
    folded       W [m; x] = K * u + W_x x,  K = W_m H [N, T]: B N T^2, and neither m nor W_m m is made

m is the recurrence's state, its memory. Folding needs a readout that mixes the channels of m, [m; x] or [x; m] at each
time step by itself: a linear layer over the last axis or a 1x1 convolution. Nothing else may read m. K is formed in
float64. Source of the last form: Chilkuri and Eliasmith, ICML 2021, section 3.
Letters: B batch, T time, M memory, L steps of a chunk, N readout.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.fx import GraphModule, Node

from edgesmith.exporters.costs import Costs
from edgesmith.exporters.graph.edit import (
    Emitter,
    arguments,
    aten,
    constant,
    example_sizes,
    operator_name,
    readers,
    replace,
    site,
    val,
)
from edgesmith.exporters.rewrites.rewrite import Fired, Reject, rewrites
from edgesmith.kernels.op import LinearRecurrence, find

FORM = 4
"""Position of `form` among the arguments of such an op."""


@dataclass(frozen=True)
class Readout:
    """The only reader of a memory.

    Attributes:
        node: linear or 1x1 convolution.
        others: what is concatenated with the memory, in order.
        start: the first of the memory's columns in the weight.
        channels_last: the readout works on [B, T, M], the memory transposed.
        axis: that the others are concatenated along.
    """

    node: Node
    others: tuple[Node, ...]
    start: int
    channels_last: bool
    axis: int


@rewrites(rule="a linear recurrence -> its cheapest form, or none of it", for_sequences=True)
def choose_memory_form(module: GraphModule, memory: Node, costs: Costs) -> str | Fired | None:
    """See the table above: for each memory by the target's costs. Memories that have a form already are left."""
    op = find(memory.target)
    if op is None or op.linear is None or len(memory.args) > FORM:
        return None
    readout, why_not = None, ""
    try:
        readout = _readout(module, memory)
    except Reject as declined:
        why_not = f"; not folded: {declined.reason}"
    times = estimate(memory, op.linear, costs, readout)
    best = min(times, key=times.__getitem__)
    note = f"estimated {', '.join(f'{form} {time:.0f} us' for form, time in times.items())}{why_not}"
    if best == "folded" and readout is not None:
        fired = Fired(site(memory, readout.node), f"{note} -> folded into its readout")
        _fold(module, memory, readout)
        return fired
    if best == op.linear.forms[0]:
        raise Reject(f"{note}: it stays a convolution")
    memory.args = (*arguments(memory)[:FORM], best)
    return f"{note} -> {best}"


def estimate(memory: Node, linear: LinearRecurrence, costs: Costs, readout: Readout | None) -> dict[str, float]:
    """Microseconds that each form of a memory would take, with its readout where that could be folded."""
    batch, order, length = example_sizes(val(memory).shape)
    _, _, a, b = arguments(memory)[:FORM]

    def at_once(macs: float) -> float:
        return 1e-3 * macs / costs.gmac_s

    def stepwise(steps: int, rows: int) -> float:
        """Steps that join memory and signal, and multiply by A, which is read anew each time."""
        step = max(at_once(rows * order**2), 4e-3 * order**2 / costs.read_gb_s)
        return steps * (2 * costs.loop_us + step)

    times = {"convolution": 2 * costs.launch_us + at_once(batch * order * length**2)}
    if a is not None and b is not None and length > 1:
        size, count = linear.chunks(length)
        times["chunked"] = (
            8 * costs.launch_us
            + at_once(batch * order * (count - 1) * size * count)
            + stepwise(size, batch * count)
            + 2 * 8e-3 * batch * order * length / costs.copy_gb_s  # put together and transposed
        )
        times["recurrent"] = 2 * costs.launch_us + stepwise(length, batch)
    if readout is not None:
        width = int(arguments(readout.node)[1].meta["val"].shape[0])
        read = at_once(batch * width * order * length) + costs.launch_us
        if readout.others:
            joined = sum(int(val(other).shape[readout.axis]) for other in readout.others) + order
            read += costs.launch_us + 8e-3 * batch * joined * length / costs.copy_gb_s
        times = {form: time + read for form, time in times.items()}
        launches = 4 if readout.others else 2
        times["folded"] = launches * costs.launch_us + at_once(batch * width * length**2)
    return times


def _readout(module: GraphModule, memory: Node) -> Readout | None:
    """The layer that a memory can be folded into; None where nothing reads it. Raises Reject where it cannot be."""
    if constant(module, memory.args[1]) is None:
        raise Reject("its impulse response is computed")
    if not memory.users:
        return None
    node = _only_reader(memory, "it")
    channels_last = _swaps_last_axes(node)
    if channels_last:
        node = _only_reader(node, "it")
    axis = 2 if channels_last else 1
    others: tuple[Node, ...] = ()
    start = 0
    if node.target is aten.cat.default:
        others, start = _joined(memory, node, axis)
        node = _only_reader(node, "what it is joined with")
    _check_mixes_channels(module, node, channels_last)
    return Readout(node, others, start, channels_last, axis)


def _only_reader(node: Node, called: str) -> Node:
    if len(node.users) != 1:
        raise Reject(f"{called} is read by {readers(node)}")
    (reader,) = node.users
    return reader


def _joined(memory: Node, join: Node, axis: int) -> tuple[tuple[Node, ...], int]:
    """Return what a memory is concatenated with, and how many channels of that lie before its own."""
    parts, along = arguments(join)
    own = [i for i, part in enumerate(parts) if part in (memory, *memory.users)]
    if along % 3 != axis or len(own) != 1:
        raise Reject(f"{join.name} (aten.cat) joins it along another axis than its own channels")
    others = tuple(part for i, part in enumerate(parts) if i != own[0])
    return others, sum(int(val(part).shape[axis]) for part in parts[: own[0]])


def _check_mixes_channels(module: GraphModule, node: Node, channels_last: bool) -> None:
    """Raise Reject where a node is no layer with constant weights over the channels of each step by itself."""
    if node.target is not (aten.linear.default if channels_last else aten.conv1d.default):
        raise Reject(f"{operator_name(node) if node.op == 'call_function' else 'the output'} reads it")
    weight = constant(module, arguments(node)[1])
    if weight is None or any(part in node.args[1:] for part in node.all_input_nodes[:1]):
        raise Reject(f"the weight of {node.name} is computed")
    if not channels_last:
        _, _, _, stride, padding, dilation, groups = arguments(node)
        is_pointwise = weight.shape[2] == 1 and groups == 1
        if not is_pointwise or list(stride) != [1] or list(padding) != [0] or list(dilation) != [1]:
            raise Reject(f"{node.name} (aten.conv1d) is no 1x1 convolution")


def _swaps_last_axes(node: Node) -> bool:
    """[B, M, T] -> [B, T, M]"""
    if node.target in (aten.transpose.int, aten.swapaxes.default):
        return {axis % 3 for axis in arguments(node)[1:]} == {1, 2}
    return node.target is aten.permute.default and [axis % 3 for axis in arguments(node)[1]] == [0, 2, 1]


def _fold(module: GraphModule, memory: Node, readout: Readout) -> None:
    node = readout.node
    u = memory.args[0]
    impulse, weight = constant(module, memory.args[1]), constant(module, arguments(node)[1])
    assert impulse is not None
    assert weight is not None
    assert isinstance(u, Node)
    order, length = impulse.shape
    stop = readout.start + order
    mixed = weight.double().reshape(len(weight), -1)
    kernel = (mixed[:, readout.start : stop] @ impulse.double()).flip(1).unsqueeze(1)
    bias = arguments(node)[2]
    emit, where = Emitter(module, before=node), site(node)
    signal = emit(aten.constant_pad_nd.default, emit(aten.unsqueeze.default, u, 1), [length - 1, 0])
    stored = emit.constant(f"{where}.kernel", kernel.to(weight.dtype))
    result = emit(aten.conv1d.default, signal, stored, bias)
    if readout.channels_last:
        result = emit(aten.transpose.int, result, 1, 2)
    if readout.others:
        columns = [*range(readout.start), *range(stop, mixed.shape[1])]
        remaining: Tensor = weight[:, columns]
        x = readout.others[0]
        if len(readout.others) > 1:
            x = emit(aten.cat.default, list(readout.others), readout.axis)
        own = emit.constant(f"{where}.weight", remaining)
        result = emit(aten.add.Tensor, result, emit(node.target, x, own))
    replace(node, result)
