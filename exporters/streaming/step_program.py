"""A program over a whole sequence becomes a program for one step.

    step(frame, states)  ->  prediction, next states

A value that depends on the frames is a stream. In the sequence program it has a time axis. In a step it is one frame,
without that axis. A stream of delay n is n steps behind: step t computes its frame t - n. How an operator uses time
decides what it becomes (rules.py):

    pointwise      uses each frame by itself          the same operator
    convolution    kernel K, dilation d, p zeros      a matmul with the window of the last (K - 1) d + 1 frames; the
                   before the first frame             delay grows by (K - 1) d - p, which is 0 for a causal one
    recurrence     an op with `FusedOp.recurrence`    the op's own step, with the op's states
    reduction      mean, sum or last frame            the value over the frames so far

A stream's history is a state with the earlier frames that a step reads. An operator that reads several streams takes
all of them at the largest delay: the others come from their histories.

A sequence has a first and a last frame, and a convolution reads zeros beyond them. So a step program with a delay has
an input `is_frame`, which is 0 in the steps after the last frame. A state `valid` holds its last values, which say for
every operator whether the frame at its delay belongs to the sequence. If it does not, histories take zeros, and
recurrences and reductions keep their states. After the last frame, `delay` more steps return the last predictions.

Whatever mixes frames in any other way is refused with its position. Letters: B batch, T time, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from edgesmith.errors import Unsupported
from edgesmith.exporters.graph.capture import Program
from edgesmith.exporters.graph.edit import fork, tidy
from edgesmith.exporters.streaming import description
from edgesmith.exporters.streaming.building import StepBuilder, make_plan
from edgesmith.exporters.streaming.description import CALLER, IS_FRAME, KeptBy, State, StreamingDescription
from edgesmith.exporters.streaming.rules import rule_for


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
    """Return the step program of a sequence program with one input [B, T, F].

    Args:
        shares_weights: keep the weights of convolutions in the sequence program's order, so that one file can hold
            both programs and each weight once. The frames are then reordered in every step.
        half: the step will run in half precision, where a sum over some hundred frames needs a second state, see
            `StepBuilder.accumulate`.

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
    plan = make_plan(tidy(fork(program.module)), rule_for, shares_weights)
    frame = _singular(program.input_names[0])
    step = StepBuilder(plan, program.inputs[0][:, 0], {frame, IS_FRAME, *program.output_names}, half)
    module = step.build()
    inputs = [program.inputs[0][:, 0].clone()]
    names = [frame]
    if plan.delay:
        inputs.append(torch.ones(1))
        names.append(IS_FRAME)
    for state in step.states:
        inputs.append(torch.full(state.shape, state.initial))
        names.append(state.name)
    following = [description.next_name(state.name) for state in step.states]
    stepped = Program(module, tuple(inputs), tuple(names), (*program.output_names, *following))
    return StepProgram(stepped, tuple(step.states), plan.delay, plan.time_axes)


def describe(step: StepProgram, kept_by: KeptBy = CALLER) -> StreamingDescription:
    """Return what the manifest says of a step program whose states `kept_by` hands on."""
    outputs = dict(zip(step.program.output_names, step.time_axes, strict=False))
    name, shape = step.program.input_names[0], list(step.program.inputs[0].shape)
    return description.describe_step({"name": name, "shape": shape}, step.delay, outputs, step.states, kept_by)


def _singular(name: str) -> str:
    """Return a step's name for its frame: `frame` for `frames`."""
    singular = name[:-1] if name.endswith("s") and len(name) > 1 else f"{name}_frame"
    return singular if singular != IS_FRAME else f"{name}_frame"
