"""Rules by which an operator of a sequence program becomes one of a step, for the kinds in step_program.py.

A rule looks at an operator that reads a stream. It says which stream comes out, and returns a function that emits the
operator into the step. Fused ops have none of their own here: one with a recurrence says its step, a norm its axis.
Letters: B batch, C channels, T time, K frames of a window.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils._pytree import tree_leaves

from edgesmith.exporters.graph.edit import arguments, aten, module_path, rank, val
from edgesmith.exporters.streaming.building import Emit, Plan, Rule, StepBuilder, Stream, name_of, refuse
from edgesmith.kernels.op import Recurrence, find


def rule_for(node: Node) -> Rule:
    """Return the rule for an operator."""
    rule = _RULES.get(node.target)
    if rule is not None:
        return rule
    op = find(node.target)
    if op is not None and op.recurrence is not None:
        return partial(_recurrence, op.recurrence)
    if op is not None and op.normalised_axis is not None:
        return partial(_norm_over, op.normalised_axis)
    if op is not None and op.no_step:
        raise refuse(node, op.no_step)
    return _pointwise


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

    def emit(step: StepBuilder) -> Node:
        mapped = torch.fx.map_arg((args, kwargs), lambda x: step.at(x, delay))
        return step.emit(node.target, *mapped[0], **mapped[1])

    return emit


def _pointwise(plan: Plan, node: Node) -> tuple[Stream, Emit]:
    """Each frame by itself, with broadcasting."""
    if node.target is operator.getitem:
        source = node.args[0]
        return plan.stream(source), lambda step: step.emit(operator.getitem, step.value(source), node.args[1])
    is_pointwise = isinstance(node.target, torch._ops.OpOverload) and torch.Tag.pointwise in node.target.tags
    if not is_pointwise and node.target not in _LOCAL:
        raise refuse(node, "is no operator that streaming knows to treat frames one by one")
    delay = plan.align(node)
    axes = set()
    for x in node.all_input_nodes:
        if x in plan.streams:
            axis = plan.streams[x].axis
            axes.add(None if axis is None else axis + rank(node) - rank(x))
    if len(axes) > 1:
        raise refuse(node, "combines values whose time axes differ")
    (axis,) = axes
    if axis is None:
        return Stream(None, delay), _same(node, delay)
    others = {x: axis - rank(node) + rank(x) for x in node.all_input_nodes if x not in plan.streams}  # their time axes
    if any(own >= 0 and val(x).shape[own] != 1 for x, own in others.items()):
        raise refuse(node, "combines frames with a constant that has a value for each of them")

    def emit(step: StepBuilder) -> Node:
        def become(x: Node) -> Node:
            if others.get(x, -1) < 0:
                return step.at(x, delay)
            return step.rearranged(x, lambda value: value.squeeze(others[x]))

        args, kwargs = torch.fx.map_arg((node.args, node.kwargs), become)
        return step.emit(node.target, *args, **kwargs)

    return Stream(axis, delay), emit


def _other_axes(index: int) -> Rule:
    """An operator along the axis that its argument `index` names, which may not be time."""

    def rule(plan: Plan, node: Node) -> tuple[Stream, Emit]:
        stream = plan.stream(node.args[0])
        given = arguments(node)[index] % rank(node.args[0])
        if given == stream.axis:
            raise refuse(node, "mixes frames")
        return stream, _same(node, stream.delay, {index: stream.dim(given, rank(node.args[0]))})

    return rule


def _reduce(plan: Plan, node: Node) -> tuple[Stream, Emit]:
    """Mean or sum. Over time a step has the value over the frames so far; over other axes the operator stays."""
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
        raise refuse(node, "reduces the batch or changes the type")

    def emit(step: StepBuilder) -> Node:
        newest = step.value(x)
        others = [stream.dim(axis, rank(x)) for axis in reduced if axis != stream.axis]
        if others:
            newest = step.emit(node.target, newest, others, keepdim)
        where = module_path(node) or node.name
        meaning = f"the sum over all frames so far for {name_of(node)}"
        total = step.accumulate(f"{where}_sum", val(newest).shape, newest, meaning, stream.delay)
        if node.target is aten.mean.dim:
            meaning = f"the number of frames so far for {name_of(node)}"
            valid = step.valid(stream.delay)
            count = step.accumulate(f"{where}_count", (1,), 1.0 if valid is None else valid, meaning)
            total = step.emit(aten.div.Tensor, total, step.emit(aten.clamp_min.default, count, 1.0))
        return step.emit(aten.unsqueeze.default, total, stream.axis) if keepdim else total

    return Stream(None, stream.delay), emit


def _convolution(plan: Plan, node: Node) -> tuple[Stream, Emit]:
    """A convolution over time: it reads a window, and is behind by the frames that it looks ahead to."""
    x, w, b, strides, padding, dilations, groups = arguments(node)
    stream = plan.streams[x]
    if w in plan.streams or b in plan.streams:
        raise refuse(node, "has weights that depend on the frames")
    if stream.axis is None or rank(x) != val(w).dim():
        raise refuse(node, "is a convolution without a time axis among its frames")
    if stream.axis != 2 or rank(x) != 3:
        raise refuse(node, "is a convolution over more than time")
    before, after = (padding[0] + extra for extra in stream.padding)
    kernel, stride, dilation = val(w).shape[2], strides[0], dilations[0]
    reach = (kernel - 1) * dilation
    if stride != 1 or before + after != reach:
        raise refuse(node, "changes the number of frames")
    if not 0 <= before <= reach:
        raise refuse(node, "pads by more than it reaches")
    plan.need(x, reach)

    def emit(step: StepBuilder) -> Node:
        window = step.window(x, 0, reach + 1)  # [B, (reach + 1) C]
        bias = None if b is None else step.value(b)
        if groups == 1 and (dilation == 1 or kernel == 1):
            if plan.shares_weights and kernel > 1:
                window = _time_last(step, window, reach + 1)
                window = step.emit(aten.flatten.using_ints, window, 1)  # [B, C (reach + 1)]
                return step.emit(
                    aten.linear.default, window, step.rearranged(w, lambda weight: weight.flatten(1)), bias
                )
            return step.emit(aten.linear.default, window, step.rearranged(w, _as_matrix), bias)
        y = step.emit(
            aten.conv1d.default, _time_last(step, window, reach + 1), step.value(w), bias, [1], [0], [dilation], groups
        )
        return step.emit(aten.squeeze.dims, y, [2])

    return Stream(2, stream.delay + reach - before), emit


def _time_last(step: StepBuilder, window: Node, frames: int) -> Node:
    """A window with its frames along the last axis. [B, K C] -> [B, C, K]"""
    apart = step.emit(aten.reshape.default, window, [val(window).shape[0], frames, -1])
    return step.emit(aten.permute.default, apart, [0, 2, 1])


def _as_matrix(weight: Tensor) -> Tensor:
    """A convolution's weight for one matmul with all frames that it reads. [C', C, K] -> [C', K C]"""
    return weight.permute(0, 2, 1).flatten(1)


def _pad(plan: Plan, node: Node) -> tuple[Stream, Emit]:
    """Zeros around the frames wait for a convolution; as many before as are cut off behind shift the frames."""
    x, widths, *how = arguments(node)
    stream = plan.stream(x)
    if stream.axis is None:
        return stream, _same(node, stream.delay)
    behind = 2 * (rank(x) - 1 - stream.axis)  # pairs of widths come last axis first
    before, after = (*widths, *[0] * (behind + 2))[behind : behind + 2]
    if not before and not after:
        return stream, _same(node, stream.delay, {1: [*widths[:behind], *widths[behind + 2 :]]})
    mode, value = how if node.target is aten.pad.default else ("constant", *how)
    if mode != "constant" or value:
        raise refuse(node, "pads the frames with something else than zeros")
    if any(width for i, width in enumerate(widths) if i not in (behind, behind + 1)):
        raise refuse(node, "pads time and other axes at once")
    if before == -after > 0:
        plan.need(x, before)
        return Stream(stream.axis, stream.delay), lambda step: step.window(x, before, 1)
    if min(before, after) < 0:
        raise refuse(node, "reads some of the frames only")
    plan.padded[node] = x  # whose history has the zeros
    return Stream(stream.axis, stream.delay, (before, after)), lambda step: step.value(x)


def _recurrence(recurrence: Recurrence, plan: Plan, node: Node) -> tuple[Stream, Emit]:
    """A fused op that says its own step: its states, and its step with every frame."""
    x, *others = arguments(node)
    read = [leaf for leaf in tree_leaves(others) if isinstance(leaf, Node)]
    framed = [others[i - 1] for i in recurrence.sequences]
    if any((other in plan.streams) != (other in framed) for other in read) or x not in plan.streams:
        raise refuse(node, "has weights that depend on the frames")
    delay = plan.align(node)
    given = torch.fx.map_arg((x, *others), val)
    reason = recurrence.cannot_step(*given)
    if reason is not None:
        raise refuse(node, reason)
    axis, axis_after = recurrence.axes(*given)
    if any(plan.stream(one).axis != axis for one in (x, *framed)):
        raise refuse(node, f"{recurrence.runs} along another axis than time")
    count = len(recurrence.states)

    def frame_step(frame: Tensor, *tensors: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        values = dict(zip(read, tensors[count:], strict=True))
        return recurrence.step(tensors[:count], frame, *torch.fx.map_arg(others, values.__getitem__))

    def emit(step: StepBuilder) -> Node:
        where = module_path(node) or node.name
        slots = [
            step.state(
                f"{where}_{state.name}", state.shape(*given), state.initial(*given), f"{state.meaning} of {where}"
            )
            for state in recurrence.states
        ]
        before = [slot.before for slot in slots]
        output: Node
        output, following = step.emit.inline(
            frame_step, step.at(x, delay), *before, *(step.at(other, delay) for other in read), as_captured=True
        )
        for slot, after in zip(slots, following, strict=True):
            step.update_for_frame(slot, after, delay)
        return output

    return Stream(axis_after, delay), emit


def _permute(plan: Plan, node: Node) -> tuple[Stream, Emit]:
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

    def emit(step: StepBuilder) -> Node:
        value = step.value(x)
        return value if others == sorted(others) else step.emit(aten.permute.default, value, others)

    return Stream(order.index(stream.axis), stream.delay), emit


def _unsqueeze(plan: Plan, node: Node) -> tuple[Stream, Emit]:
    x, at = arguments(node)
    stream = plan.stream(x)
    at %= rank(node)
    after = replace(stream, axis=None if stream.axis is None else stream.axis + (at <= stream.axis))
    return after, _same(node, stream.delay, {1: after.dim(at, rank(node))})


def _squeeze(plan: Plan, node: Node) -> tuple[Stream, Emit]:
    x = node.args[0]
    stream = plan.stream(x)
    given = arguments(node)[1]
    dims = sorted(axis % rank(x) for axis in ([given] if isinstance(given, int) else given))
    dims = [axis for axis in dims if val(x).shape[axis] == 1 and axis != stream.axis]
    axis = None if stream.axis is None else stream.axis - sum(a < stream.axis for a in dims)

    def emit(step: StepBuilder) -> Node:
        return step.emit(aten.squeeze.dims, step.value(x), [stream.dim(a, rank(x)) for a in dims])

    return Stream(axis, stream.delay), emit


def _lookup(plan: Plan, node: Node) -> tuple[Stream, Emit]:
    """Rows of a constant table by the indices of each frame."""
    table, indices, *_ = arguments(node)
    if table in plan.streams:
        raise refuse(node, "looks up in a table that depends on the frames")
    stream = plan.stream(indices)
    return Stream(stream.axis, stream.delay), _same(node, stream.delay)


def _reshape(plan: Plan, node: Node) -> tuple[Stream, Emit]:
    """A reshape that keeps time as an axis of its own."""
    x = node.args[0]
    stream = plan.stream(x)
    before, after = list(val(x).shape), list(val(node).shape)
    if stream.axis is None:
        axis = None
    else:
        ahead = torch.Size(before[: stream.axis]).numel()
        positions = [
            i for i in range(len(after)) if torch.Size(after[:i]).numel() == ahead and after[i] == before[stream.axis]
        ]
        if not positions:
            raise refuse(node, "reshapes frames together with other axes")
        axis = positions[-1]
        del after[axis]

    def emit(step: StepBuilder) -> Node:
        return step.emit(aten.reshape.default, step.value(x), after)

    return Stream(axis, stream.delay), emit


def _expand(plan: Plan, node: Node) -> tuple[Stream, Emit]:
    x, sizes, _ = arguments(node)
    stream = plan.stream(x)
    if stream.axis is None:
        return stream, _same(node, stream.delay)
    axis = stream.axis + len(sizes) - rank(x)
    others = [size for i, size in enumerate(sizes) if i != axis]
    return Stream(axis, stream.delay), _same(node, stream.delay, {1: others})


def _select(plan: Plan, node: Node) -> tuple[Stream, Emit]:
    """One index of another axis. Of time only the last frame, which in a step is the newest."""
    x, dim, index = arguments(node)
    stream = plan.stream(x)
    dim = dim % rank(x)
    if stream.axis is None or dim != stream.axis:
        axis = None if stream.axis is None else stream.axis - (dim < stream.axis)
        return Stream(axis, stream.delay), _same(node, stream.delay, {1: stream.dim(dim, rank(x))})
    if index not in (-1, plan.length(x) - 1):
        raise refuse(node, "reads one frame that is not the last")
    return Stream(None, stream.delay), lambda step: step.value(x)


def _slice(plan: Plan, node: Node) -> tuple[Stream, Emit]:
    x, dim, start, end, hop = arguments(node)
    stream = plan.stream(x)
    if stream.axis is None or dim % rank(x) != stream.axis:
        return stream, _same(node, stream.delay, {1: stream.dim(dim, rank(x))})
    if (start or 0) != 0 or hop != 1 or (end is not None and end < plan.length(x)):
        raise refuse(node, "reads some of the frames only")
    return stream, lambda step: step.value(x)


def _join(plan: Plan, node: Node) -> tuple[Stream, Emit]:
    """Concatenation along another axis than time."""
    parts, dim = arguments(node)
    delay = plan.align(node)
    axes = {plan.streams[x].axis for x in parts if x in plan.streams}
    if len(axes) > 1 or any(x not in plan.streams for x in parts):
        raise refuse(node, "joins frames with constants or with values whose time axes differ")
    (axis,) = axes
    if axis is not None and dim % rank(node) == axis:
        raise refuse(node, "joins frames one after the other")
    joined = Stream(axis, delay)
    return joined, _same(node, delay, {1: joined.dim(dim, rank(node))})


def _linear(plan: Plan, node: Node) -> tuple[Stream, Emit]:
    x, *weights = arguments(node)
    stream = plan.stream(x)
    if any(w in plan.streams for w in weights) or stream.axis == rank(x) - 1:
        raise refuse(node, "mixes frames")
    return stream, _same(node, stream.delay)


def _norm(plan: Plan, node: Node) -> tuple[Stream, Emit]:
    """Layer norm over the last axes; batch norm with stored statistics of axis 1."""
    x = node.args[0]
    stream = plan.stream(x)
    if node.target is aten.layer_norm.default:
        mixes = stream.axis is not None and stream.axis >= rank(x) - len(arguments(node)[1])
    else:
        mixes = stream.axis == 1 or arguments(node)[5]
    if mixes:
        raise refuse(node, "normalises over frames")
    return stream, _with_axis(node, stream) if stream.axis == 0 else _same(node, stream.delay)


def _norm_over(axis: int, plan: Plan, node: Node) -> tuple[Stream, Emit]:
    """A fused op that normalises over one axis."""
    stream = plan.stream(node.args[0])
    axis %= rank(node.args[0])
    if stream.axis == axis:
        raise refuse(node, "normalises over frames")
    is_ahead = stream.axis is not None and stream.axis < axis
    return stream, _with_axis(node, stream) if is_ahead else _same(node, stream.delay)


def _with_axis(node: Node, stream: Stream) -> Emit:
    """The same operator on a frame with a time axis of 1, without which it would take another axis for its own."""
    x, *weights = node.args

    def emit(step: StepBuilder) -> Node:
        frame = step.emit(aten.unsqueeze.default, step.value(x), stream.axis)
        others, kwargs = torch.fx.map_arg((tuple(weights), node.kwargs), step.value)
        return step.emit(aten.squeeze.dims, step.emit(node.target, frame, *others, **kwargs), [stream.axis])

    return emit


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

_RULES: dict[Any, Rule] = {
    aten.batch_norm.default: _norm,
    aten.cat.default: _join,
    aten.constant_pad_nd.default: _pad,
    aten.conv1d.default: _convolution,
    aten.embedding.default: _lookup,
    aten.expand.default: _expand,
    aten.flatten.using_ints: _reshape,
    aten.glu.default: _other_axes(1),
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
    aten.unbind.int: _other_axes(1),
    aten.unflatten.int: _reshape,
    aten.unsqueeze.default: _unsqueeze,
    aten.view.default: _reshape,
}
