"""A program over a whole sequence becomes a program for one step: a frame and the states in, a prediction and the next
states out.

Every value that depends on the frames is a stream: it has a time axis, which a step's values do without, and a delay,
the number of steps by which it is behind the newest frame. Operators are of few kinds:

    pointwise      each frame by itself (and whatever mixes other axes only): the same operator
    convolution    over k frames d apart, padded by p before: a window of the last (k - 1) d frames, one product with
                   all of them, and (k - 1) d - p more steps of delay, none for a causal one
    recurrence     lif, lmu_memory: its own state
    reduction      mean or sum over time, the last frame: the value so far, "any-time"

Streams that meet are brought to the same delay by histories of the faster one. A sequence begins and ends somewhere,
and a convolution sees zeros beyond: so each step says whether its frame belongs to the sequence, a register hands that
on from delay to delay, windows take zeros for frames that do not, and recurrences and reductions pass over them. After
the last frame as many steps as the delay bring out the last predictions.

What mixes frames in any other way is refused with its place. Letters: B batch, T time, C channels.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from edgesmith.errors import Unsupported
from edgesmith.exporters.graph.capture import Program
from edgesmith.exporters.graph.edit import (
    Emitter,
    arguments,
    aten,
    constant,
    fork,
    module_path,
    operator_name,
    rank,
    site,
    tidy,
    val,
)
from edgesmith.exporters.streaming.stepper import CALLER
from edgesmith.kernels import channel_norm, lif, lmu_memory

IS_FRAME = "is_frame"
"""The input that is 1 while frames come and 0 in the steps after the last one."""


@dataclass(frozen=True)
class State:
    """One tensor that a step hands to the next one.

    Attributes:
        name: of the input; the output with its next value is called `next_<name>`.
        shape: with the batch.
        initial: the value of every element before the first frame.
        meaning: in words.
    """

    name: str
    shape: tuple[int, ...]
    initial: float
    meaning: str


@dataclass(frozen=True)
class StepProgram:
    """A step program and how to drive it.

    Attributes:
        program: inputs are the frame [B, F], `is_frame` [1] where there is a delay, and the states; outputs are the
            sequence program's without their time axes, then the next states.
        states: in the order of inputs and outputs.
        delay: steps until the first frame's prediction comes out.
        time_axes: of the sequence program's outputs, None where an output is a value over all frames.
    """

    program: Program
    states: tuple[State, ...]
    delay: int
    time_axes: tuple[int | None, ...]


def to_step(program: Program, shares_weights: bool = False, half: bool = False) -> StepProgram:
    """The step program of a sequence program with one input [B, T, F].

    Args:
        shares_weights: keep the weights of convolutions in the sequence program's order, so that one file can hold
            both programs and each weight once. The frames are then reordered in every step.
        half: the step will run in half precision, where a sum over some hundred frames needs a second state, see
            `_Step.accumulate`.

    Raises:
        Unsupported: an operator mixes frames in a way that no step can follow.
    """
    if len(program.inputs) != 1 or program.inputs[0].dim() != 3:
        raise Unsupported("streaming needs a model with one input [B, T, F]: batch, frames, features")
    if program.dynamic_batch:
        raise Unsupported("streaming keeps states of a fixed batch; leave --dynamic-batch out")
    if program.inputs[0].dtype != torch.float32:
        kind = str(program.inputs[0].dtype).removeprefix("torch.")
        raise Unsupported(
            f"states are float32, and the model takes {kind}; export model.float(), with --precision fp16"
        )
    plan = _Plan(tidy(fork(program.module)), shares_weights)
    step = _Step(plan, program, half)
    module = step.build()
    inputs = [program.inputs[0][:, 0].clone()]
    names = [_singular(program.input_names[0])]
    if plan.delay:
        inputs.append(torch.ones(1))
        names.append(IS_FRAME)
    for state in step.states:
        inputs.append(torch.full(state.shape, state.initial))
        names.append(state.name)
    following = [f"next_{state.name}" for state in step.states]
    stepped = Program(module, tuple(inputs), tuple(names), (*program.output_names, *following))
    return StepProgram(stepped, tuple(step.states), plan.delay, plan.time_axes)


_REST = "_rest"


def is_rest(state: str) -> bool:
    """Whether a state of this name has what rounding has taken from a sum in another."""
    return state.endswith(_REST)


def describe(step: StepProgram, kept_by: str = CALLER) -> dict[str, Any]:
    """What the manifest says of a step program whose states `kept_by` hands on, and `session.Stepper` runs it by."""
    frame = {"name": step.program.input_names[0], "shape": list(step.program.inputs[0].shape)}
    return {
        "delay": step.delay,
        "frame": frame,
        "is_frame": IS_FRAME if step.delay else None,
        "kept_by": kept_by,
        "outputs": [
            {"name": name, "time_axis": axis}
            for name, axis in zip(step.program.output_names, step.time_axes, strict=False)
        ],
        "states": [
            {
                "name": state.name,
                "next": f"next_{state.name}",
                "shape": list(state.shape),
                "dtype": "float32",
                "initial": state.initial,
                "meaning": state.meaning,
            }
            for state in step.states
        ],
    }


@dataclass(frozen=True)
class Stream:
    """What depends on the frames.

    Attributes:
        axis: where time is in the sequence program; None for a reduction over time, whose value at every step has the
            shape that it has there.
        delay: steps behind the newest frame.
        padding: zeros before and after, which a convolution without padding of its own will take.
    """

    axis: int | None
    delay: int
    padding: tuple[int, int] = (0, 0)

    def dim(self, dim: int, dims: int) -> int:
        """Where a step's values have the axis `dim`, which is not time, of a sequence program's value with `dims`."""
        dim %= dims
        return dim - (self.axis is not None and dim > self.axis)


Emit = Callable[["_Step"], Node]


@dataclass
class _Plan:
    """Which values are streams, how much history each of them needs, and how each operator becomes one of a step.

    `padded` leads from the streams that a padding makes to those that it pads, which keep the history for both.
    `shares_weights` is that of `to_step`.
    """

    module: GraphModule
    shares_weights: bool = False
    streams: dict[Node, Stream] = field(default_factory=dict)
    history: dict[Node, int] = field(default_factory=dict)
    emits: dict[Node, Emit] = field(default_factory=dict)
    padded: dict[Node, Node] = field(default_factory=dict)
    delay: int = 0
    time_axes: tuple[int | None, ...] = ()

    def __post_init__(self) -> None:
        (returned,) = self.module.graph.output_node().args
        for node in self.module.graph.nodes:
            if node.op == "placeholder":
                self.streams[node] = Stream(1, 0)
            elif node.op == "call_function" and any(x in self.streams for x in node.all_input_nodes):
                rule = _RULES.get(node.target, _pointwise)
                self.streams[node], self.emits[node] = rule(self, node)
        outputs = torch.utils._pytree.tree_leaves(returned)
        for node in outputs:
            if node not in self.streams:
                raise Unsupported(f"output {node.name} does not depend on the frames")
            if self.streams[node].padding != (0, 0):
                raise Unsupported(f"{_place(node)} pads the frames, which only a convolution can take in a step")
        self.delay = max(self.streams[node].delay for node in outputs)
        self.time_axes = tuple(self.streams[node].axis for node in outputs)
        for node in outputs:
            self.need(node, self.delay - self.streams[node].delay)

    def stream(self, node: Any) -> Stream:
        """The stream of an operator's argument; padding can only be taken by a convolution."""
        stream = self.streams[node]
        if stream.padding != (0, 0):
            raise Unsupported(f"{_place(node)} pads the frames, which only a convolution can take in a step")
        return stream

    def need(self, node: Node, frames: int) -> None:
        """Ask for the last `frames` frames of a stream besides the newest."""
        if frames and self.streams[node].axis is None:
            raise Unsupported(
                f"{_place(node)} comes from a reduction over time and would have to wait for other streams"
            )
        node = self.padded.get(node, node)
        self.history[node] = max(self.history.get(node, 0), frames)

    def align(self, node: Node) -> int:
        """The delay at which all streams that an operator reads can meet."""
        read = [x for x in node.all_input_nodes if x in self.streams]
        delay = max(self.stream(x).delay for x in read)
        for x in read:
            self.need(x, delay - self.streams[x].delay)
        return delay


@dataclass(frozen=True)
class _Slot:
    """A state while its step is built: the node with its value before, and its place among the states."""

    before: Node
    index: int


class _Step:
    """The graph of a step while it is built."""

    def __init__(self, plan: _Plan, program: Program, half: bool) -> None:
        self.plan = plan
        self.half = half
        self.states: list[State] = []
        self._next: list[Node] = []
        self._values: dict[Node, Node] = {}
        self._windows: dict[Node, Node] = {}
        self._constants: dict[str, Node] = {}
        self._belongs: list[Node] = []
        self._names = {_singular(program.input_names[0]), IS_FRAME, *program.output_names}
        self.module = GraphModule(plan.module, Graph())
        self.graph = self.module.graph
        end = self.graph.output(None)
        first = self.graph.call_function(operator.pos, (0,))  # inputs go before it, all else behind
        end.prepend(first)
        self._input = Emitter(self.module, before=first)
        self._frame = self._input.placeholder("frame", program.inputs[0][:, 0])
        self.emit = Emitter(self.module, before=end)
        if plan.delay:
            self._flag = self._input.placeholder(IS_FRAME, torch.ones(1))
            meaning = "which of the last steps had a frame, the newest first"
            self._register = self.state("valid", (plan.delay,), 0.0, meaning)
            self._valid = self.emit(aten.cat.default, [self._flag, self._register.before])
            self.follow(self._register, self.emit(aten.slice.Tensor, self._valid, 0, 0, plan.delay))
            belongs = self.emit(aten.gt.Scalar, self._valid, 0)
            parts = self.emit(aten.split_with_sizes.default, belongs, [1] * (plan.delay + 1))
            self._zero = self.emit.constant("zero", torch.zeros(1))
            self._belongs = [self.emit(operator.getitem, parts, i) for i in range(plan.delay + 1)]

    def build(self) -> GraphModule:
        """The whole graph."""
        plan = self.plan
        for node in plan.module.graph.nodes:
            self.emit.source = node
            if node.op == "placeholder":
                self._values[node] = self._frame
            elif node.op == "get_attr":
                self._values[node] = self._constant(node)
            elif node in plan.emits:
                self._values[node] = plan.emits[node](self)
            elif node.op == "call_function":
                args, kwargs = torch.fx.map_arg((node.args, node.kwargs), self._values.__getitem__)
                self._values[node] = self.emit(node.target, *args, **kwargs)
            if plan.history.get(node):
                self._windows[node] = self._window(node)
        (returned,) = plan.module.graph.output_node().args
        outputs = [self.at(node, plan.delay) for node in torch.utils._pytree.tree_leaves(returned)]
        self.graph.output_node().args = ((*outputs, *self._next),)
        return tidy(self.module)

    def value(self, node: Any) -> Node:
        """What a node has become, at its own delay."""
        return self._values[node]

    def at(self, node: Any, delay: int) -> Node:
        """What a node has become, at a delay of `delay` or, where it is no stream, as it is."""
        stream = self.plan.streams.get(node)
        if stream is None or stream.delay == delay:
            return self._values[node]
        return self.last(node, delay - stream.delay, 1)

    def last(self, node: Node, back: int, frames: int) -> Node:
        """`frames` frames of a stream along axis 1, the newest of them, which is the last, `back` steps ago."""
        node = self.plan.padded.get(node, node)
        if not self.plan.history.get(node):
            return self._values[node]
        shape = val(self._values[node]).shape
        length, width = self.plan.history[node] + 1, shape[1] if len(shape) > 1 else 1
        found = self._windows[node]
        if frames < length:
            first, end = (length - back - frames) * width, (length - back) * width
            found = self.emit(aten.slice.Tensor, found, 1, first, end)
        return found if len(shape) > 1 or frames > 1 else self.emit(aten.squeeze.dims, found, [1])

    def valid(self, delay: int) -> Node | None:
        """1 where the frame that is `delay` steps back belongs to the sequence, else 0, [1]; None where all do."""
        if not self.plan.delay:
            return None
        return self.emit(aten.slice.Tensor, self._valid, 0, delay, delay + 1)

    def state(self, name: str, shape: Sequence[int], initial: float, meaning: str) -> _Slot:
        """A new state."""
        taken = self._names | {state.name for state in self.states}
        name = re.sub(r"\W+", "_", name).strip("_").lower()
        name = f"layer_{name}" if name[0].isdigit() else name
        unique, count = name, 1
        while unique in taken:
            unique, count = f"{name}_{count}", count + 1
        self.states.append(State(unique, tuple(shape), initial, meaning))
        before = self._input.placeholder(unique, torch.zeros(*shape))
        self._next.append(before)  # until `follow` says what it becomes
        return _Slot(before, len(self.states) - 1)

    def follow(self, slot: _Slot, node: Node) -> None:
        """Say what a state becomes."""
        self._next[slot.index] = node

    def follow_valid(self, slot: _Slot, node: Node, delay: int) -> Node:
        """Say what a state becomes if the frame belongs to the sequence; it stays otherwise. Returns which it is."""
        belongs = self._is_valid(delay)
        if belongs is not None:
            node = self.emit(aten.where.self, belongs, node, slot.before)
        self.follow(slot, node)
        return node

    def accumulate(
        self, name: str, shape: Sequence[int], value: Node | float, meaning: str, delay: int | None = None
    ) -> Node:
        """The sum of a value over all steps so far, in a state; with `delay` over those whose frame belongs.

        In half precision a second state has what rounding has taken from the sum s + x, which is exactly
        (s - (t - y)) + (x - y) with t = s + x and y = t - s, all rounded (Knuth's TwoSum), and the next step adds it.
        """
        slots = [self.state(name, shape, 0.0, meaning)]
        if self.half:
            slots.append(self.state(f"{name}{_REST}", shape, 0.0, f"what rounding has taken from {meaning}"))
            value = self.emit(aten.add.Tensor, slots[1].before, value)
        before = slots[0].before
        sums = [self.emit(aten.add.Tensor, before, value)]
        if self.half:
            added = self.emit(aten.sub.Tensor, sums[0], before)
            of_sum = self.emit(aten.sub.Tensor, before, self.emit(aten.sub.Tensor, sums[0], added))
            sums.append(self.emit(aten.sub.Tensor, value, added))
            sums[1] = self.emit(aten.add.Tensor, of_sum, sums[1])
        for i, slot in enumerate(slots):
            if delay is None:
                self.follow(slot, sums[i])
            else:
                sums[i] = self.follow_valid(slot, sums[i], delay)
        return sums[0]

    def _is_valid(self, delay: int) -> Node | None:
        """`valid` as a boolean."""
        return self._belongs[delay] if self._belongs else None

    def rearranged(self, node: Node, arrange: Callable[[Tensor], Tensor]) -> Node:
        """A constant of the sequence program as this step wants it; computed now where its value is known."""
        value = constant(self.plan.module, node)
        if value is None:
            arranged: Node = self.emit.inline(arrange, self.value(node))
            return arranged
        return self.emit.constant(str(node.target), arrange(value.detach()))

    def _window(self, node: Node) -> Node:
        """The last frames of a stream and its newest, one behind the other along axis 1, zeros for what is no frame."""
        stream, length = self.plan.streams[node], self.plan.history[node]
        assert stream.axis is not None
        newest, belongs = self._values[node], self._is_valid(stream.delay)
        kind = val(newest).dtype
        if kind not in (torch.float32, torch.bool):
            raise _refuse(node, f"has a history of {str(kind).removeprefix('torch.')}, and states are float32")
        if kind == torch.bool:
            newest = self.emit(aten._to_copy.default, newest, dtype=torch.float32)
        if belongs is not None:
            newest = self.emit(aten.where.self, belongs, newest, self._zero)  # what is no frame may be nan
        if rank(newest) == 1:
            newest = self.emit(aten.unsqueeze.default, newest, 1)
        shape = list(val(newest).shape)
        width = shape[1]
        shape[1] *= length
        where = module_path(node) or node.name
        slot = self.state(f"{where}_history", shape, 0.0, f"the last {length} frames out of {where}, the oldest first")
        window = self.emit(aten.cat.default, [slot.before, newest], 1)
        self.follow(slot, self.emit(aten.slice.Tensor, window, 1, width, (length + 1) * width))
        return self.emit(aten.gt.Scalar, window, 0) if kind == torch.bool else window

    def _constant(self, node: Node) -> Node:
        name = str(node.target)
        if name not in self._constants:
            value = constant(self.plan.module, node)
            assert value is not None
            self._constants[name] = self.emit.constant(name, value)
        return self._constants[name]


def _place(node: Node) -> str:
    return f"{site(node)} ({operator_name(node)})"


def _refuse(node: Node, why: str) -> Unsupported:
    return Unsupported(f"no step program: {_place(node)} {why}")


def _singular(name: str) -> str:
    singular = name[:-1] if name.endswith("s") and len(name) > 1 else f"{name}_frame"
    return singular if singular != IS_FRAME else f"{name}_frame"


def _length(plan: _Plan, node: Node) -> int:
    """Frames of the sequence program, as a stream's value has them."""
    axis = plan.streams[node].axis
    assert axis is not None
    return int(val(node).shape[axis])


def _same(node: Node, delay: int, replaced: Mapping[int, Any] | None = None) -> Emit:
    """The same operator on what its arguments have become, with some arguments replaced by position."""
    args, kwargs = list(node.args), dict(node.kwargs)
    if replaced:
        assert isinstance(node.target, torch._ops.OpOverload)
        named = node.target._schema.arguments[: max(len(args), *(index + 1 for index in replaced))]
        args = list(arguments(node)[: len(named)])
        kwargs = {name: x for name, x in kwargs.items() if name not in {argument.name for argument in named}}
        for index, value in replaced.items():
            args[index] = value

    def emit(step: _Step) -> Node:
        mapped = torch.fx.map_arg((args, kwargs), lambda x: step.at(x, delay))
        return step.emit(node.target, *mapped[0], **mapped[1])

    return emit


def _pointwise(plan: _Plan, node: Node) -> tuple[Stream, Emit]:
    """Each frame by itself, with broadcasting."""
    if node.target is operator.getitem:
        source = node.args[0]
        return plan.stream(source), lambda step: step.emit(operator.getitem, step.value(source), node.args[1])
    is_pointwise = isinstance(node.target, torch._ops.OpOverload) and torch.Tag.pointwise in node.target.tags
    if not is_pointwise and node.target not in _LOCAL:
        raise _refuse(node, "is no operator that streaming knows to treat frames one by one")
    delay = plan.align(node)
    axes = set()
    for x in node.all_input_nodes:
        if x in plan.streams:
            axis = plan.streams[x].axis
            axes.add(None if axis is None else axis + rank(node) - rank(x))
    if len(axes) > 1:
        raise _refuse(node, "combines values whose time axes differ")
    (axis,) = axes
    if axis is None:
        return Stream(None, delay), _same(node, delay)
    others = {x: axis - rank(node) + rank(x) for x in node.all_input_nodes if x not in plan.streams}  # their time axes
    if any(own >= 0 and val(x).shape[own] != 1 for x, own in others.items()):
        raise _refuse(node, "combines frames with a constant that has a value for each of them")

    def emit(step: _Step) -> Node:
        def become(x: Node) -> Node:
            if others.get(x, -1) < 0:
                return step.at(x, delay)
            return step.rearranged(x, lambda value: value.squeeze(others[x]))

        args, kwargs = torch.fx.map_arg((node.args, node.kwargs), become)
        return step.emit(node.target, *args, **kwargs)

    return Stream(axis, delay), emit


def _other_axes(index: int) -> Callable[[_Plan, Node], tuple[Stream, Emit]]:
    """An operator along the axis that its argument `index` names, which may not be time."""

    def rule(plan: _Plan, node: Node) -> tuple[Stream, Emit]:
        stream = plan.stream(node.args[0])
        given = arguments(node)[index] % rank(node.args[0])
        if given == stream.axis:
            raise _refuse(node, "mixes frames")
        return stream, _same(node, stream.delay, {index: stream.dim(given, rank(node.args[0]))})

    return rule


def _reduce(plan: _Plan, node: Node) -> tuple[Stream, Emit]:
    """Mean or sum: over time it becomes the value so far, over other axes it stays what it is."""
    x, axes, keepdim, dtype = arguments(node)
    stream = plan.stream(x)
    dims = range(rank(x)) if axes is None or not list(axes) else axes
    reduced = sorted(axis % rank(x) for axis in dims)
    if stream.axis is None or stream.axis not in reduced:
        axis = stream.axis
        if axis is not None and not keepdim:
            axis -= sum(a < axis for a in reduced)
        dims = [stream.dim(a, rank(x)) for a in reduced]
        return Stream(axis, stream.delay), _same(node, stream.delay, {1: dims})
    if 0 in reduced or dtype is not None:
        raise _refuse(node, "reduces the batch or changes the type")

    def emit(step: _Step) -> Node:
        newest = step.value(x)
        others = [stream.dim(axis, rank(x)) for axis in reduced if axis != stream.axis]
        if others:
            newest = step.emit(node.target, newest, others, keepdim)
        where = module_path(node) or node.name
        meaning = f"the sum over all frames so far for {_place(node)}"
        total = step.accumulate(f"{where}_sum", val(newest).shape, newest, meaning, stream.delay)
        if node.target is aten.mean.dim:
            meaning = f"the number of frames so far for {_place(node)}"
            valid = step.valid(stream.delay)
            count = step.accumulate(f"{where}_count", (1,), 1.0 if valid is None else valid, meaning)
            total = step.emit(aten.div.Tensor, total, step.emit(aten.clamp_min.default, count, 1.0))
        return step.emit(aten.unsqueeze.default, total, stream.axis) if keepdim else total

    return Stream(None, stream.delay), emit


def _convolution(plan: _Plan, node: Node) -> tuple[Stream, Emit]:
    """A convolution over time: a window, and the delay that it looks ahead."""
    x, w, b, strides, padding, dilations, groups = arguments(node)
    stream = plan.streams[x]
    if w in plan.streams or b in plan.streams:
        raise _refuse(node, "has weights that depend on the frames")
    if stream.axis is None or rank(x) != val(w).dim():
        raise _refuse(node, "is a convolution without a time axis among its frames")
    if stream.axis != 2 or rank(x) != 3:
        raise _refuse(node, "is a convolution over more than time")
    before, after = (padding[0] + extra for extra in stream.padding)
    kernel, stride, dilation = val(w).shape[2], strides[0], dilations[0]
    reach = (kernel - 1) * dilation
    if stride != 1 or before + after != reach:
        raise _refuse(node, "changes the number of frames")
    if not 0 <= before <= reach:
        raise _refuse(node, "pads by more than it reaches")
    plan.need(x, reach)

    def emit(step: _Step) -> Node:
        window = step.last(x, 0, reach + 1)  # [B, (reach + 1) C]
        bias = None if b is None else step.value(b)
        if groups == 1 and (dilation == 1 or kernel == 1):
            if plan.shares_weights and kernel > 1:
                window = _turned(step, window, reach + 1)
                window = step.emit(aten.flatten.using_ints, window, 1)  # [B, C (reach + 1)]
                return step.emit(
                    aten.linear.default, window, step.rearranged(w, lambda weight: weight.flatten(1)), bias
                )
            return step.emit(aten.linear.default, window, step.rearranged(w, _as_product), bias)
        y = step.emit(
            aten.conv1d.default, _turned(step, window, reach + 1), step.value(w), bias, [1], [0], [dilation], groups
        )
        return step.emit(aten.squeeze.dims, y, [2])

    return Stream(2, stream.delay + reach - before), emit


def _turned(step: _Step, window: Node, frames: int) -> Node:
    """A window with its frames along the last axis. [B, K C] -> [B, C, K]"""
    apart = step.emit(aten.reshape.default, window, [val(window).shape[0], frames, -1])
    return step.emit(aten.permute.default, apart, [0, 2, 1])


def _as_product(weight: Tensor) -> Tensor:
    """A convolution's weight for one product with all frames that it reads. [C', C, K] -> [C', K C]"""
    return weight.permute(0, 2, 1).flatten(1)


def _pad(plan: _Plan, node: Node) -> tuple[Stream, Emit]:
    """Zeros around the frames wait for a convolution."""
    x, widths, *how = arguments(node)
    stream = plan.stream(x)
    if stream.axis is None:
        return stream, _same(node, stream.delay)
    behind = 2 * (rank(x) - 1 - stream.axis)  # pairs of widths come last axis first
    before, after = (*widths, *[0] * (behind + 2))[behind : behind + 2]
    if not before and not after:
        return stream, _same(node, stream.delay, {1: [*widths[:behind], *widths[behind + 2 :]]})
    mode, value = how if node.target is aten.pad.default else ("constant", *how)
    if mode != "constant" or value or min(before, after) < 0:
        raise _refuse(node, "pads the frames with something else than zeros")
    if any(width for i, width in enumerate(widths) if i not in (behind, behind + 1)):
        raise _refuse(node, "pads time and other axes at once")
    plan.padded[node] = x  # whose history has the zeros
    return Stream(stream.axis, stream.delay, (before, after)), lambda step: step.value(x)


def _lif(plan: _Plan, node: Node) -> tuple[Stream, Emit]:
    x, tau, threshold, reset, decay_input, dim = arguments(node)
    stream = plan.stream(x)
    if stream.axis is None or dim % rank(x) != stream.axis:
        raise _refuse(node, "integrates along another axis than time")

    def neurons(now: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        return lif.step(now, before, tau, threshold, reset, decay_input)

    def emit(step: _Step) -> Node:
        where = module_path(node) or node.name
        now = step.value(x)
        slot = step.state(f"{where}_membrane", val(now).shape, float(reset or 0), f"membrane potential of {where}")
        spikes: Node
        spikes, after = step.emit.inline(neurons, now, slot.before)
        step.follow_valid(slot, after, stream.delay)
        return spikes

    return stream, emit


def _memory(plan: _Plan, node: Node) -> tuple[Stream, Emit]:
    u, _, a, b, _ = arguments(node)
    stream = plan.stream(u)
    if a is None or b is None:
        raise _refuse(node, "knows only its impulse response; give a and b, the recurrence that it is the response of")
    if stream.axis != 1:
        raise _refuse(node, "runs along another axis than time")

    def emit(step: _Step) -> Node:
        where = module_path(node) or node.name
        slot = step.state(f"{where}_memory", val(node).shape[:2], 0.0, f"memory of {where}")
        turned = step.emit(aten.linear.default, slot.before, step.value(a))
        signal = step.emit(aten.unsqueeze.default, step.value(u), 1)
        driven = step.emit(aten.mul.Tensor, signal, step.value(b))  # [B, 1] [M]
        after = step.emit(aten.add.Tensor, turned, driven)
        step.follow_valid(slot, after, stream.delay)
        return after

    return Stream(2, stream.delay), emit


def _permute(plan: _Plan, node: Node) -> tuple[Stream, Emit]:
    x = node.args[0]
    stream = plan.stream(x)
    order = list(range(rank(x)))
    if node.target is aten.permute.default:
        order = [axis % rank(x) for axis in arguments(node)[1]]
    else:
        i, j = (axis % rank(x) for axis in arguments(node)[1:3])
        order[i], order[j] = order[j], order[i]
    if stream.axis is None:
        return stream, _same(node, stream.delay)
    others = [stream.dim(axis, rank(x)) for axis in order if axis != stream.axis]

    def emit(step: _Step) -> Node:
        value = step.value(x)
        return value if others == sorted(others) else step.emit(aten.permute.default, value, others)

    return Stream(order.index(stream.axis), stream.delay), emit


def _unsqueeze(plan: _Plan, node: Node) -> tuple[Stream, Emit]:
    x, at = arguments(node)
    stream = plan.stream(x)
    at %= rank(node)
    after = replace(stream, axis=None if stream.axis is None else stream.axis + (at <= stream.axis))
    return after, _same(node, stream.delay, {1: after.dim(at, rank(node))})


def _squeeze(plan: _Plan, node: Node) -> tuple[Stream, Emit]:
    x = node.args[0]
    stream = plan.stream(x)
    given = arguments(node)[1]
    dims = sorted(axis % rank(x) for axis in ([given] if isinstance(given, int) else given))
    dims = [axis for axis in dims if val(x).shape[axis] == 1 and axis != stream.axis]
    axis = None if stream.axis is None else stream.axis - sum(a < stream.axis for a in dims)

    def emit(step: _Step) -> Node:
        return step.emit(aten.squeeze.dims, step.value(x), [stream.dim(a, rank(x)) for a in dims])

    return Stream(axis, stream.delay), emit


def _reshape(plan: _Plan, node: Node) -> tuple[Stream, Emit]:
    """A reshape that keeps time as an axis of its own."""
    x = node.args[0]
    stream = plan.stream(x)
    before, after = list(val(x).shape), list(val(node).shape)
    if stream.axis is None:
        axis = None
    else:
        ahead = torch.Size(before[: stream.axis]).numel()
        places = [
            i for i in range(len(after)) if torch.Size(after[:i]).numel() == ahead and after[i] == before[stream.axis]
        ]
        if not places:
            raise _refuse(node, "reshapes frames together with other axes")
        axis = places[-1]
        del after[axis]

    def emit(step: _Step) -> Node:
        return step.emit(aten.reshape.default, step.value(x), after)

    return Stream(axis, stream.delay), emit


def _expand(plan: _Plan, node: Node) -> tuple[Stream, Emit]:
    x, sizes, _ = arguments(node)
    stream = plan.stream(x)
    if stream.axis is None:
        return stream, _same(node, stream.delay)
    axis = stream.axis + len(sizes) - rank(x)
    others = [size for i, size in enumerate(sizes) if i != axis]
    return Stream(axis, stream.delay), _same(node, stream.delay, {1: others})


def _select(plan: _Plan, node: Node) -> tuple[Stream, Emit]:
    """One place of another axis; of time, the last frame, which is the newest so far."""
    x, dim, index = arguments(node)
    stream = plan.stream(x)
    dim = dim % rank(x)
    if stream.axis is None or dim != stream.axis:
        axis = None if stream.axis is None else stream.axis - (dim < stream.axis)
        return Stream(axis, stream.delay), _same(node, stream.delay, {1: stream.dim(dim, rank(x))})
    if index not in (-1, _length(plan, x) - 1):
        raise _refuse(node, "reads one frame that is not the last")
    return Stream(None, stream.delay), lambda step: step.value(x)


def _slice(plan: _Plan, node: Node) -> tuple[Stream, Emit]:
    x, dim, start, end, hop = arguments(node)
    stream = plan.stream(x)
    if stream.axis is None or dim % rank(x) != stream.axis:
        return stream, _same(node, stream.delay, {1: stream.dim(dim, rank(x))})
    if (start or 0) != 0 or hop != 1 or (end is not None and end < _length(plan, x)):
        raise _refuse(node, "reads some of the frames only")
    return stream, lambda step: step.value(x)


def _join(plan: _Plan, node: Node) -> tuple[Stream, Emit]:
    """Concatenation along another axis than time."""
    parts, dim = arguments(node)
    delay = plan.align(node)
    axes = {plan.streams[x].axis for x in parts if x in plan.streams}
    if len(axes) > 1 or any(x not in plan.streams for x in parts):
        raise _refuse(node, "joins frames with constants or with values whose time axes differ")
    (axis,) = axes
    if axis is not None and dim % rank(node) == axis:
        raise _refuse(node, "joins frames one after the other")
    joined = Stream(axis, delay)
    return joined, _same(node, delay, {1: joined.dim(dim, rank(node))})


def _linear(plan: _Plan, node: Node) -> tuple[Stream, Emit]:
    x, *weights = arguments(node)
    stream = plan.stream(x)
    if any(w in plan.streams for w in weights) or stream.axis == rank(x) - 1:
        raise _refuse(node, "mixes frames")
    return stream, _same(node, stream.delay)


def _norm(plan: _Plan, node: Node) -> tuple[Stream, Emit]:
    """Layer norm over the last axes; over axis 1, or, as a batch norm, with stored statistics of it."""
    x = node.args[0]
    stream = plan.stream(x)
    if node.target is aten.layer_norm.default:
        mixes = stream.axis is not None and stream.axis >= rank(x) - len(arguments(node)[1])
    else:
        mixes = stream.axis == 1 or (node.target is aten.batch_norm.default and arguments(node)[5])
    if mixes:
        raise _refuse(node, "normalises over frames")
    if stream.axis != 0:
        return stream, _same(node, stream.delay)

    def emit(step: _Step) -> Node:
        frame = step.emit(aten.unsqueeze.default, step.value(x), 0)  # or axis 1 would be another one
        weights, kwargs = torch.fx.map_arg((node.args[1:], node.kwargs), step.value)
        return step.emit(aten.squeeze.dims, step.emit(node.target, frame, *weights, **kwargs), [0])

    return stream, emit


_LOCAL = frozenset(
    {
        aten.clone.default,
        aten.contiguous.default,
        aten.detach.default,
        aten.alias.default,
        aten.dropout.default,
        aten._to_copy.default,
        aten.to.dtype,
    }
)

_RULES: dict[Any, Callable[[_Plan, Node], tuple[Stream, Emit]]] = {
    aten.batch_norm.default: _norm,
    aten.cat.default: _join,
    aten.constant_pad_nd.default: _pad,
    aten.conv1d.default: _convolution,
    aten.expand.default: _expand,
    aten.flatten.using_ints: _reshape,
    aten.layer_norm.default: _norm,
    aten.linear.default: _linear,
    aten.log_softmax.int: _other_axes(1),
    aten.mean.dim: _reduce,
    aten.pad.default: _pad,
    aten.permute.default: _permute,
    aten.reshape.default: _reshape,
    aten.select.int: _select,
    aten.slice.Tensor: _slice,
    aten.softmax.int: _other_axes(1),
    aten.split_with_sizes.default: _other_axes(2),
    aten.squeeze.dim: _squeeze,
    aten.squeeze.dims: _squeeze,
    aten.sum.dim_IntList: _reduce,
    aten.transpose.int: _permute,
    aten.unsqueeze.default: _unsqueeze,
    aten.view.default: _reshape,
    channel_norm.OP.overload: _norm,
    lif.OP.overload: _lif,
    lmu_memory.OP.overload: _memory,
}
