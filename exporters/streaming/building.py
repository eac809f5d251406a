"""The two stages of making a step program: the plan, which only reads the sequence program, and the step's graph.

The plan says for each value whether it is a stream, its delay, and how many of its past frames are read. The graph then
has each state beside the value that it keeps. Rules say what an operator becomes (rules.py). Letters: B batch,
C channels, T time.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from edgesmith.errors import Unsupported
from edgesmith.exporters.graph.edit import Emitter, aten, constant, module_path, operator_name, rank, site, tidy, val
from edgesmith.exporters.streaming.description import COMPENSATION, IS_FRAME, State


@dataclass(frozen=True)
class Stream:
    """A value that depends on the frames.

    Attributes:
        axis: where time is in the sequence program; None for a reduction over time, whose value at every step has the
            shape that it has there.
        delay: the steps by which its frame is older than the newest one.
        padding: zeros before and after, which a convolution without padding of its own will take.
    """

    axis: int | None
    delay: int
    padding: tuple[int, int] = (0, 0)

    def dim(self, dim: int, dims: int) -> int:
        """Return where a step's value has the axis `dim`, which is not time, of a sequence program's with `dims`."""
        dim %= dims
        return dim - (self.axis is not None and dim > self.axis)


Emit = Callable[["StepBuilder"], Node]
"""Emits an operator into a step; returns the node of its value."""

Rule = Callable[["Plan", Node], tuple[Stream, Emit]]
"""From an operator that reads a stream to the stream that it makes, and to what emits it. Raises Unsupported."""


@dataclass
class Plan:
    """The streams of a sequence program, the history that each of them needs, and what each operator becomes.

    Attributes:
        module: the sequence program's graph.
        shares_weights: see `to_step`.
        history: how many frames before the one at its delay are read of a stream.
        padded: from a stream that a padding makes to the one that it pads, which keeps the history for both.
        delay: of the predictions.
        time_axes: of the outputs.
    """

    module: GraphModule
    shares_weights: bool = False
    streams: dict[Node, Stream] = field(default_factory=dict)
    history: dict[Node, int] = field(default_factory=dict)
    emits: dict[Node, Emit] = field(default_factory=dict)
    padded: dict[Node, Node] = field(default_factory=dict)
    delay: int = 0
    time_axes: tuple[int | None, ...] = ()

    def stream(self, node: Any) -> Stream:
        """Return the stream of an operator's argument. Raises Unsupported for a padded one: see `Stream.padding`."""
        stream = self.streams[node]
        if stream.padding != (0, 0):
            raise Unsupported(f"{name_of(node)} pads the frames, which only a convolution can take in a step")
        return stream

    def need(self, node: Node, frames: int) -> None:
        """Ask for `frames` frames of a stream before the one at its delay."""
        if frames and self.streams[node].axis is None:
            raise Unsupported(
                f"{name_of(node)} comes from a reduction over time and would have to wait for other streams"
            )
        node = self.padded.get(node, node)
        self.history[node] = max(self.history.get(node, 0), frames)

    def align(self, node: Node) -> int:
        """Return the delay of the slowest stream that an operator reads, and ask for as much history of the others."""
        read = [x for x in node.all_input_nodes if x in self.streams]
        delay = max(self.stream(x).delay for x in read)
        for x in read:
            self.need(x, delay - self.streams[x].delay)
        return delay

    def length(self, node: Node) -> int:
        """Return the number of frames that a stream has in the sequence program."""
        axis = self.streams[node].axis
        assert axis is not None
        return int(val(node).shape[axis])


def make_plan(module: GraphModule, rule_for: Callable[[Node], Rule], shares_weights: bool = False) -> Plan:
    """Return the plan of a sequence program whose inputs are [B, T, F]. Raises Unsupported."""
    plan = Plan(module, shares_weights)
    for node in module.graph.nodes:
        if node.op == "placeholder":
            plan.streams[node] = Stream(1, 0)
        elif node.op == "call_function" and any(x in plan.streams for x in node.all_input_nodes):
            plan.streams[node], plan.emits[node] = rule_for(node)(plan, node)
    outputs = _outputs(module)
    for node in outputs:
        if node not in plan.streams:
            raise Unsupported(f"output {node.name} does not depend on the frames")
    plan.delay = max(plan.stream(node).delay for node in outputs)
    plan.time_axes = tuple(plan.streams[node].axis for node in outputs)
    for node in outputs:
        plan.need(node, plan.delay - plan.streams[node].delay)
    return plan


def _outputs(module: GraphModule) -> list[Node]:
    (returned,) = module.graph.output_node().args
    return list(torch.utils._pytree.tree_leaves(returned))


def name_of(node: Node) -> str:
    """Return an operator's site and name, for a refusal: `block.0.norm (aten.layer_norm)`."""
    return f"{site(node)} ({operator_name(node)})"


def refuse(node: Node, why: str) -> Unsupported:
    """Return the refusal of a program because of one operator."""
    return Unsupported(f"no step program: {name_of(node)} {why}")


@dataclass(frozen=True)
class Slot:
    """A state while its step is built: the node with its value before, and its position among the states."""

    before: Node
    index: int


class StepBuilder:
    """The graph of a step while it is built.

    Args:
        plan: of the sequence program.
        frame: an example of the input, [B, F].
        names: that states may not have.
        half: whether sums need a compensation, see `accumulate`.
    """

    def __init__(self, plan: Plan, frame: Tensor, names: set[str], half: bool) -> None:
        self.plan = plan
        self.half = half
        self.states: list[State] = []
        self._next: list[Node] = []
        self._values: dict[Node, Node] = {}
        self._windows: dict[Node, Node] = {}
        self._constants: dict[str, Node] = {}
        self._belongs: list[Node] = []
        self._names = names
        self.module = GraphModule(plan.module, Graph())
        self.graph = self.module.graph
        end = self.graph.output(None)
        first = self.graph.call_function(operator.pos, (0,))  # inputs go before it, all else behind
        end.prepend(first)
        self._input = Emitter(self.module, before=first)
        self._frame = self._input.placeholder("frame", frame)
        self.emit = Emitter(self.module, before=end)
        if plan.delay:
            self._watch_ends()

    def _watch_ends(self) -> None:
        """Take `is_frame`, and keep it for the last steps: 1 for the delay of a frame that belongs to the sequence."""
        delay = self.plan.delay
        flag = self._input.placeholder(IS_FRAME, torch.ones(1))
        slot = self.state("valid", (delay,), 0.0, "which of the last steps had a frame, the newest first")
        self._valid = self.emit(aten.cat.default, [flag, slot.before])
        self.update(slot, self.emit(aten.slice.Tensor, self._valid, 0, 0, delay))
        belongs = self.emit(aten.gt.Scalar, self._valid, 0)
        parts = self.emit(aten.split_with_sizes.default, belongs, [1] * (delay + 1))
        self._zero = self.emit.constant("zero", torch.zeros(1))
        self._belongs = [self.emit(operator.getitem, parts, i) for i in range(delay + 1)]

    def build(self) -> GraphModule:
        """Return the whole graph."""
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
        outputs = [self.at(node, plan.delay) for node in _outputs(plan.module)]
        self.graph.output_node().args = ((*outputs, *self._next),)
        return tidy(self.module)

    def value(self, node: Any) -> Node:
        """Return what a node has become, at its own delay."""
        return self._values[node]

    def at(self, node: Any, delay: int) -> Node:
        """Return a stream's frame at some delay, not less than its own; what is no stream is the same at each."""
        stream = self.plan.streams.get(node)
        if stream is None or stream.delay == delay:
            return self._values[node]
        return self.window(node, delay - stream.delay, 1)

    def window(self, node: Node, back: int, frames: int) -> Node:
        """Return the frames [t - back - frames + 1, t - back] of a stream, oldest first, where t is that at its delay.

        [B, C, ...] -> [B, frames C, ...]: they lie one behind the other along axis 1.
        """
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
        """Return 1 where the frame at a delay belongs to the sequence, else 0, [1]; None where all frames do."""
        if not self.plan.delay:
            return None
        return self.emit(aten.slice.Tensor, self._valid, 0, delay, delay + 1)

    def state(self, name: str, shape: Sequence[int], initial: float, meaning: str) -> Slot:
        """Return a new state, called after `name`. What it becomes is to be said: see `update`."""
        taken = self._names | {state.name for state in self.states}
        name = re.sub(r"\W+", "_", name).strip("_").lower()
        name = f"layer_{name}" if name[0].isdigit() else name
        unique, count = name, 1
        while unique in taken:
            unique, count = f"{name}_{count}", count + 1
        self.states.append(State(unique, tuple(shape), initial, meaning))
        before = self._input.placeholder(unique, torch.zeros(*shape))
        self._next.append(before)
        return Slot(before, len(self.states) - 1)

    def update(self, slot: Slot, node: Node) -> None:
        """Say what a state becomes."""
        self._next[slot.index] = node

    def update_for_frame(self, slot: Slot, node: Node, delay: int) -> Node:
        """Say what a state becomes where the frame at a delay belongs to the sequence; else it stays as it is."""
        belongs = self._is_valid(delay)
        if belongs is not None:
            node = self.emit(aten.where.self, belongs, node, slot.before)
        self.update(slot, node)
        return node

    def accumulate(
        self, name: str, shape: Sequence[int], value: Node | float, meaning: str, delay: int | None = None
    ) -> Node:
        """Return the sum of a value over all steps so far, in a state; with `delay` over those whose frame belongs.

        In half precision a second state has the compensation, what rounding has taken from the sum s + x. It is exactly
        (s - (t - y)) + (x - y) with t = s + x and y = t - s, all rounded (Knuth's TwoSum); the next step adds it.
        """
        slots = [self.state(name, shape, 0.0, meaning)]
        if self.half:
            slots.append(self.state(f"{name}{COMPENSATION}", shape, 0.0, f"what rounding has taken from {meaning}"))
            value = self.emit(aten.add.Tensor, slots[1].before, value)
        before = slots[0].before
        sums = [self.emit(aten.add.Tensor, before, value)]
        if self.half:
            added = self.emit(aten.sub.Tensor, sums[0], before)
            of_sum = self.emit(aten.sub.Tensor, before, self.emit(aten.sub.Tensor, sums[0], added))
            of_value = self.emit(aten.sub.Tensor, value, added)
            sums.append(self.emit(aten.add.Tensor, of_sum, of_value))
        for i, slot in enumerate(slots):
            if delay is None:
                self.update(slot, sums[i])
            else:
                sums[i] = self.update_for_frame(slot, sums[i], delay)
        return sums[0]

    def _is_valid(self, delay: int) -> Node | None:
        """Return `valid` as a boolean."""
        return self._belongs[delay] if self._belongs else None

    def rearranged(self, node: Node, arrange: Callable[[Tensor], Tensor]) -> Node:
        """Return a constant of the sequence program as this step wants it; computed now where its value is known."""
        value = constant(self.plan.module, node)
        if value is None:
            arranged: Node = self.emit.inline(arrange, self.value(node))
            return arranged
        return self.emit.constant(str(node.target), arrange(value.detach()))

    def _window(self, node: Node) -> Node:
        """Return the frames of a stream's history and the one at its delay, oldest first, one behind the other along
        axis 1; zeros for what is no frame of the sequence. The history goes on without the oldest.
        """
        stream, length = self.plan.streams[node], self.plan.history[node]
        assert stream.axis is not None
        newest, belongs = self._values[node], self._is_valid(stream.delay)
        kind = val(newest).dtype
        if kind not in (torch.float32, torch.bool):
            raise refuse(node, f"has a history of {str(kind).removeprefix('torch.')}, and states are float32")
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
        self.update(slot, self.emit(aten.slice.Tensor, window, 1, width, (length + 1) * width))
        return self.emit(aten.gt.Scalar, window, 0) if kind == torch.bool else window

    def _constant(self, node: Node) -> Node:
        name = str(node.target)
        if name not in self._constants:
            value = constant(self.plan.module, node)
            assert value is not None
            self._constants[name] = self.emit.constant(name, value)
        return self._constants[name]
