"""The product of an export, as a value that is asked: a file of the whole model, a step, or a step and its sequence.

    WholeModel         inputs to outputs
    OneStep            a frame and states to a prediction and the next states
    StepWithSequence   both, as two functions of one file

The same value is made anew from a manifest, without the programs, when an artifact is verified.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from edgesmith.exporters.graph.capture import Program, run, to_arrays
from edgesmith.exporters.graph.edit import count_operators
from edgesmith.exporters.inputs import ASKED_FOR
from edgesmith.exporters.manifest import CheckRecord, FunctionsRecord, Manifest, NamedShape
from edgesmith.exporters.options import ExportOptions
from edgesmith.exporters.outputs import Outputs
from edgesmith.exporters.rewrites.order import rewrite
from edgesmith.exporters.streaming.description import (
    CALLER,
    RUNTIME,
    StreamingDescription,
    compensations,
    initial_states,
    inputs_of_call,
)
from edgesmith.exporters.streaming.step import Step
from edgesmith.exporters.streaming.step_program import StepProgram, describe, to_step
from edgesmith.exporters.targets.target import Target, TargetFile
from edgesmith.exporters.verification.check import (
    STEP_INPUTS,
    AcceptanceCriteria,
    Evidence,
    check_file,
    check_program,
    check_step,
    check_step_file,
)

LAYER_INPUTS = 2
"""Inputs over which `layers` are measured."""

STEP_CASES = 8
"""Steps, one after the other, that a board runs to check a step program."""

Calls = list[list[np.ndarray]]


@dataclass(frozen=True)
class WholeModel:
    """A file of the whole model.

    Attributes:
        program: that is lowered; None where only the file is there.
    """

    program: Program | None = None

    @property
    def lowered(self) -> Program:
        """The program that becomes the file's first function."""
        assert self.program is not None, "a product that was read from a manifest has no program"
        return self.program

    @property
    def streaming(self) -> StreamingDescription | None:
        """The description of how to drive the step; None without one."""
        return None

    @property
    def sequence_program(self) -> Program | None:
        """The program that becomes the file's second function; None without one."""
        return None

    def check_programs(self, captured: Program, evidence: Evidence, criteria: AcceptanceCriteria) -> list[CheckRecord]:
        """Check what was derived from the rewritten program."""
        return []

    def check_file(
        self, file: TargetFile, target: Target, evidence: Evidence, criteria: AcceptanceCriteria
    ) -> list[CheckRecord]:
        """Check every function of the file in its runtimes."""
        return check_file("file", file, target, self.program, evidence, criteria)

    def first_calls(self, evidence: Evidence) -> dict[str, list[np.ndarray]]:
        """Return the first call of each function, by what its operators are marked with."""
        return {"": evidence.calls[0]}

    def trace(self, file: TargetFile, evidence: Evidence) -> dict[str, tuple[float, float]]:
        """Return a file's `trace` for the first call of each function."""
        calls = self.first_calls(evidence)
        return {f"{mark}{at}": two for mark, call in calls.items() for at, two in file.trace(call).items()}

    def layers(self, file: TargetFile, evidence: Evidence) -> list[dict[str, Any]]:
        """Return a file's `layers`; those of a sequence beside a step come last and have `function`."""
        return file.layers(evidence.calls[:LAYER_INPUTS])

    def cases(self, evidence: Evidence) -> tuple[Calls, Outputs, frozenset[str]]:
        """Return a few calls, PyTorch's outputs, and the names of outputs that differ in every runtime.

        A board judges its cases together, so a loud one would hide the others, and one that lies on steps has to be
        judged by its own noise.
        """
        few = evidence.chosen(lambda call: call.kind != "loud" and call.kind not in ASKED_FOR)
        return few.calls, few.reference, frozenset()

    def count_operators(self) -> dict[str, dict[str, int]]:
        """Return the operators of programs that were derived, by stage."""
        return {}

    def interface(self) -> tuple[list[NamedShape], list[str]]:
        """Return inputs and outputs of the file's first function, without states that the runtime keeps."""
        inputs = named_shapes(self.lowered)
        kept = set()
        if self.streaming is not None and self.streaming["kept_by"] == RUNTIME:
            kept = {state["name"] for state in self.streaming["states"]}
        shown = [one for one in inputs if one["name"] not in kept]
        return shown, [n for n in self.lowered.output_names if n.removeprefix("next_") not in kept]

    def functions(self, file: TargetFile) -> FunctionsRecord | None:
        """Return what the manifest says of a file's functions; None where there is one."""
        return None


@dataclass(frozen=True)
class OneStep(WholeModel):
    """A file of one step of a sequence model."""

    description: StreamingDescription | None = None
    step: StepProgram | None = None

    @property
    def streaming(self) -> StreamingDescription:
        """The description of how to drive the step."""
        assert self.description is not None
        return self.description

    def check_programs(self, captured: Program, evidence: Evidence, criteria: AcceptanceCriteria) -> list[CheckRecord]:
        """Check the step program in PyTorch, fed frame by frame."""
        # Who keeps the states in the file is another question: here they are handed on.
        handed_on: StreamingDescription = {**self.streaming, "kept_by": CALLER}
        few = evidence.first(STEP_INPUTS)
        return [check_step("step program", handed_on, self._eager(), few, criteria)]

    def check_file(
        self, file: TargetFile, target: Target, evidence: Evidence, criteria: AcceptanceCriteria
    ) -> list[CheckRecord]:
        """Check the step in the file, fed frame by frame."""
        return check_step_file(file, target, self.streaming, evidence, criteria)

    def first_calls(self, evidence: Evidence) -> dict[str, list[np.ndarray]]:
        """Return the first frame and the states before it."""
        frame = evidence.calls[0][0][:, 0]
        return {"": inputs_of_call(self.streaming, frame, initial_states(self.streaming))}

    def layers(self, file: TargetFile, evidence: Evidence) -> list[dict[str, Any]]:
        """Return the step's layers over its first call."""
        return file.layers([self.first_calls(evidence)[""]])

    def cases(self, evidence: Evidence) -> tuple[Calls, Outputs, frozenset[str]]:
        """Return the first steps of a sequence in PyTorch, each by itself: its inputs with the states before it."""
        call, frames = self._eager().call, evidence.calls[0][0]
        states, inputs, outputs = initial_states(self.streaming), [], []
        for i in range(STEP_CASES):
            inputs.append(inputs_of_call(self.streaming, frames[:, i % frames.shape[1]], states))
            outputs.append(list(call(inputs[i])))
            states = outputs[i][len(outputs[i]) - len(states) :]
        # What rounding has taken from a sum is another number in every runtime; the sum itself is judged.
        return inputs, outputs, compensations(self.streaming)

    def count_operators(self) -> dict[str, dict[str, int]]:
        """Return the operators of the step program."""
        return {"step": count_operators(self.lowered.module)}

    def _eager(self) -> Step:
        """Return the step program in PyTorch."""
        program = self.lowered
        return Step(lambda values: to_arrays(run(program, [torch.from_numpy(value) for value in values])))


@dataclass(frozen=True)
class StepWithSequence(OneStep):
    """A file of one step and of the whole sequence, two functions that share their weights."""

    sequence: Program | None = None

    @property
    def sequence_program(self) -> Program | None:
        """The whole sequence's program."""
        return self.sequence

    def check_programs(self, captured: Program, evidence: Evidence, criteria: AcceptanceCriteria) -> list[CheckRecord]:
        """Check both programs in PyTorch."""
        assert self.sequence is not None
        steps = super().check_programs(captured, evidence, criteria)
        return [*steps, check_program("sequence program", self.sequence, captured, evidence, criteria)]

    def check_file(
        self, file: TargetFile, target: Target, evidence: Evidence, criteria: AcceptanceCriteria
    ) -> list[CheckRecord]:
        """Check both functions of the file."""
        steps = super().check_file(file, target, evidence, criteria)
        return steps + check_file("sequence in the file", file, target, self.sequence, evidence, criteria)

    def first_calls(self, evidence: Evidence) -> dict[str, list[np.ndarray]]:
        """Return the first call of the step and that of the sequence."""
        return {**super().first_calls(evidence), "sequence: ": evidence.calls[0]}

    def layers(self, file: TargetFile, evidence: Evidence) -> list[dict[str, Any]]:
        """Return the layers of both functions."""
        whole = file.layers(evidence.calls[:LAYER_INPUTS])
        return super().layers(file, evidence) + [{"function": "sequence", **one} for one in whole]

    def functions(self, file: TargetFile) -> FunctionsRecord:
        """Return inputs, outputs and states of both functions, and the bytes that they share."""
        assert self.sequence is not None
        inputs, outputs = self.interface()
        states = [state["name"] for state in self.streaming["states"]]
        return {
            "default": "step",
            "step": {"inputs": inputs, "outputs": outputs, "states": states},
            "sequence": {
                "inputs": named_shapes(self.sequence),
                "outputs": list(self.sequence.output_names),
                "states": [],
            },
            "shared_bytes": file.shared_bytes(),
        }


Product = WholeModel
"""Any of them: the others are kinds of it."""


def named_shapes(program: Program) -> list[NamedShape]:
    """Return a program's inputs with their shapes, `batch` for a free one."""
    shapes: list[list[int | str]] = [
        ["batch", *x.shape[1:]] if program.dynamic_batch else list(x.shape) for x in program.inputs
    ]
    return [{"name": n, "shape": s} for n, s in zip(program.input_names, shapes, strict=True)]


def derive(captured: Program, rewritten: Program, options: ExportOptions) -> Product:
    """Return what the options ask for, made of the rewritten program.

    Raises:
        Unsupported: an operator mixes frames in a way that no step can follow.
    """
    if not options.streaming:
        return WholeModel(rewritten)
    step = to_step(rewritten, options.with_sequence, half=options.arithmetic.is_half)
    kept_by = RUNTIME if options.backend.keeps_states(options.system) else CALLER
    description = describe(step, kept_by)
    if not options.with_sequence:
        return OneStep(step.program, description, step)
    sequence, _ = rewrite(captured, options.costs)
    return StepWithSequence(step.program, description, step, sequence)


def read_product(manifest: Manifest) -> Product:
    """Return what an artifact holds, by its manifest, without programs."""
    if "streaming" not in manifest:
        return WholeModel()
    kind = StepWithSequence if "functions" in manifest else OneStep
    return kind(None, manifest["streaming"])
