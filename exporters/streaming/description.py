"""How to drive a step program, as a typed record: the manifest's `streaming`."""

from __future__ import annotations

from typing import Literal, TypedDict


class FrameDescription(TypedDict):
    """The input that takes one frame."""

    name: str
    shape: list[int]


class OutputDescription(TypedDict):
    """An output; `time_axis` is where the sequence program has time, null for a value over all frames."""

    name: str
    time_axis: int | None


class StateDescription(TypedDict):
    """A tensor that a step hands to the next one."""

    name: str
    next: str
    shape: list[int]
    dtype: str
    initial: float
    meaning: str


class StreamingDescription(TypedDict):
    """How to drive a step program."""

    delay: int
    frame: FrameDescription
    is_frame: str | None
    kept_by: Literal["caller", "runtime"]
    outputs: list[OutputDescription]
    states: list[StateDescription]
