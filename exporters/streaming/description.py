"""The manifest's account of a step program: its frame, its states, who keeps them. Made and read here.

    {"delay": 5, "frame": {"name": "frame", "shape": [1, 128]}, "is_frame": "is_frame", "kept_by": "caller",
     "outputs": [{"name": "logits", "time_axis": null}],
     "states": [{"name": "valid", "next": "next_valid", "shape": [5], "dtype": "float32", "initial": 0.0, ...}]}

A step is called with the frame, `is_frame` where there is a delay, and the states, in this order; it returns its
outputs, then the next states. Where the runtime keeps the states, they are neither inputs nor outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypedDict

if TYPE_CHECKING:
    import numpy as np

IS_FRAME = "is_frame"
"""The input that is 1 while frames come and 0 in the steps after the last one."""

KeptBy = Literal["caller", "runtime"]
"""The one who hands the states from step to step: the caller, as inputs and outputs, or the runtime."""

CALLER: KeptBy = "caller"
RUNTIME: KeptBy = "runtime"

COMPENSATION = "_rest"
"""The end of the names of states that hold what rounding has taken from the sum in another state."""


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


class FrameDescription(TypedDict):
    """The input that takes a frame: its name and its shape, with the batch."""

    name: str
    shape: list[int]


class OutputDescription(TypedDict):
    """One output: its name and its time axis in the sequence program, None for one value over all frames."""

    name: str
    time_axis: int | None


class StateDescription(TypedDict):
    """One state: the names of the input and of the output with its next value, and what `State` says of it."""

    name: str
    next: str
    shape: list[int]
    dtype: Literal["float32"]
    initial: float
    meaning: str


class StreamingDescription(TypedDict):
    """The manifest's `streaming`.

    Attributes:
        delay: steps until the first frame's prediction comes out.
        is_frame: the name of the input that says so, None where there is no delay.
        states: in the order of inputs and outputs.
    """

    delay: int
    frame: FrameDescription
    is_frame: str | None
    kept_by: KeptBy
    outputs: list[OutputDescription]
    states: list[StateDescription]


def next_name(state: str) -> str:
    """Return the name of the output with a state's next value."""
    return f"next_{state}"


def is_compensation(state: str) -> bool:
    """Return whether the state of a name holds what rounding has taken from the sum in another."""
    return state.endswith(COMPENSATION)


def describe_step(
    frame: FrameDescription,
    delay: int,
    outputs: Mapping[str, int | None],
    states: Sequence[State],
    kept_by: KeptBy = CALLER,
) -> StreamingDescription:
    """Return the description of a step program.

    Args:
        frame: its first input.
        delay: steps until the first frame's prediction comes out.
        outputs: their time axes in the sequence program, by name.
        states: in the order of inputs and outputs.
        kept_by: who hands them on.
    """
    return {
        "delay": delay,
        "frame": frame,
        "is_frame": IS_FRAME if delay else None,
        "kept_by": kept_by,
        "outputs": [{"name": name, "time_axis": axis} for name, axis in outputs.items()],
        "states": [
            {
                "name": state.name,
                "next": next_name(state.name),
                "shape": list(state.shape),
                "dtype": "float32",
                "initial": state.initial,
                "meaning": state.meaning,
            }
            for state in states
        ],
    }


def read(manifest: Mapping[str, Any]) -> StreamingDescription | None:
    """Return what a manifest says of its step program; None where it has none."""
    found: StreamingDescription | None = manifest.get("streaming")
    return found


def states_of_caller(streaming: StreamingDescription) -> list[StateDescription]:
    """Return the states that are inputs and outputs."""
    return streaming["states"] if streaming["kept_by"] == CALLER else []


def initial_states(streaming: StreamingDescription) -> list[np.ndarray]:
    """Return the values of the states that are inputs, before the first frame."""
    import numpy as np

    return [np.full(state["shape"], state["initial"], np.float32) for state in states_of_caller(streaming)]


def inputs_of_call(
    streaming: StreamingDescription, frame: np.ndarray, states: Sequence[np.ndarray], is_frame: bool = True
) -> list[np.ndarray]:
    """Return the values of a step's inputs, in their order."""
    import numpy as np

    flag = [] if streaming["is_frame"] is None else [np.full((1,), float(is_frame), np.float32)]
    return [frame, *flag, *states]


def compensations(streaming: StreamingDescription) -> frozenset[str]:
    """Return the names of outputs that hold what rounding has taken from a sum: another number in every runtime."""
    return frozenset(state["next"] for state in streaming["states"] if is_compensation(state["name"]))
