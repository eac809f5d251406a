"""Step programs whose states Core ML keeps (iOS18 and later), instead of taking and returning them.

Core ML's states are float16 and begin as zeros. So a state is kept as its difference from its initial value; in a
float32 program as two halves of which the second is what the first has rounded away, times 2^11:

    high = half(x)     low = half(2048 (x - high))     x' = high + low / 2048         |x - x'| <= 2^-22 |x|

which holds for |x| from 2^-14 to 65504. A half-precision program keeps the first one only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from edgesmith.exporters.graph.capture import Program

SCALE = 2048.0


class KeepsStates(nn.Module):
    """A step program as a module that keeps its states in buffers.

    Args:
        step: the program; its last inputs and outputs are the states.
        states: as the manifest's `streaming` describes them.
        half: whether one half is kept of each, or two.
    """

    def __init__(self, step: nn.Module, states: Sequence[Mapping[str, Any]], half: bool) -> None:
        super().__init__()
        self.step = step
        self.states = states
        self.half_only = half
        for state in states:
            for name in held_as(state["name"], half):
                self.register_buffer(name, torch.zeros(state["shape"], dtype=torch.float16))

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        """One step: the program's inputs without its states to its outputs without theirs."""
        outputs = self.step(*given, *(self._read(state) for state in self.states))
        count = len(outputs) - len(self.states)
        for state, value in zip(self.states, outputs[count:], strict=True):
            self._write(state, value)
        return tuple(outputs[:count])

    def _parts(self, state: Mapping[str, Any]) -> list[Tensor]:
        return [self.get_buffer(name) for name in held_as(state["name"], self.half_only)]

    def _read(self, state: Mapping[str, Any]) -> Tensor:
        high, *low = (part.float() for part in self._parts(state))
        value = high + low[0] / SCALE if low else high
        return value + state["initial"] if state["initial"] else value

    def _write(self, state: Mapping[str, Any], value: Tensor) -> None:
        value = value - state["initial"] if state["initial"] else value
        high, *low = self._parts(state)
        rounded = value.half()
        high.copy_(rounded)
        if low:
            low[0].copy_(((value - rounded.float()) * SCALE).half())


def held_as(name: str, half: bool) -> list[str]:
    """Return Core ML's names for the parts of a state."""
    return [name] if half else [f"{name}_high", f"{name}_low"]


def keep_states(program: Program, states: Sequence[Mapping[str, Any]], half: bool) -> tuple[Program, KeepsStates]:
    """A step program without its states among inputs and outputs, and the module that keeps them."""
    count = len(states)
    kept = replace(
        program,
        inputs=program.inputs[:-count],
        input_names=program.input_names[:-count],
        output_names=program.output_names[:-count],
    )
    return kept, KeepsStates(program.module, states, half)
