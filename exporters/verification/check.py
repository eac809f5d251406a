"""Are the numbers still PyTorch's? Eager against captured, rewritten and the file, by the figures of figures.py.

Beyond a threshold, the first position where the two programs diverge is looked for by name. Two kinds of models need
more than a threshold:

    noise    a model may magnify rounding so that PyTorch itself is further from its own result in float64 than fp32's
             threshold. Nothing can be asked to be closer to it than that: the threshold is then NOISE_FACTOR times
             that distance, LARGEST_NOISE at most.
    spikes   a neuron whose potential misses its threshold by an ulp may fire in one order of summation and not in
             another, and what follows differs visibly. Such an input says nothing; at least half of the inputs of
             each batch size must agree spike for spike, which is judged by the thresholds as ever. A neuron that is
             wrong by a per cent fires otherwise on most inputs; one that is wrong by 1e-4 may pass.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from torch import Tensor, nn
from torch.export import ExportedProgram

from edgesmith.errors import BadInput, VerificationFailed
from edgesmith.exporters.figures import (
    Figures,
    Outputs,
    above_noise,
    agreeing_inputs,
    cover_half,
    judge,
    measure,
)
from edgesmith.exporters.graph.capture import Program, exported, run, run_eager, with_module
from edgesmith.exporters.graph.edit import operators
from edgesmith.exporters.manifest import CheckRecord, FiguresRecord
from edgesmith.exporters.precision.table import Precision
from edgesmith.exporters.precision.task import Thresholds
from edgesmith.exporters.streaming.description import StreamingDescription
from edgesmith.exporters.streaming.step import Step
from edgesmith.exporters.streaming.stepper import Stepper
from edgesmith.exporters.targets.target import NotHere, Target, TargetFile
from edgesmith.exporters.verification.divergence import captured_names, first_divergence, position_found, values

STEP_INPUTS = 3
"""Sequences that a step program runs in PyTorch; its file runs all of them."""

STEP_FRAMES = 1024
"""Frames that a slow runtime steps through, in whole sequences, one of them at least."""


@dataclass(frozen=True)
class Evidence:
    """The inputs and outputs that programs and files are compared on.

    Attributes:
        inputs: of each call.
        reference: PyTorch's outputs for them.
    """

    inputs: Sequence[Sequence[Tensor]]
    reference: Outputs

    @property
    def calls(self) -> list[list[np.ndarray]]:
        """The inputs as arrays."""
        return [[t.numpy() for t in given] for given in self.inputs]

    def first(self, count: int) -> Evidence:
        """Return the first `count` calls."""
        return Evidence(self.inputs[:count], self.reference[:count])


@dataclass(frozen=True)
class AcceptanceCriteria:
    """The criteria by which outputs are judged.

    Attributes:
        precision: whose thresholds hold.
        spikes: whether there are spiking neurons.
        noise: how far, relative to the peak, eager outputs are from those in float64; asked only when it matters.
            None where that cannot be said.
        collects: whether a check that fails says so in its record, under `missed`, instead of raising.
    """

    precision: Precision
    spikes: bool
    noise: Callable[[], float | None]
    collects: bool = False

    def thresholds(self) -> Thresholds:
        """Return what another machine must hold: eager's own noise, which it cannot measure, is in it."""
        noise = self.noise() if self.precision.excuses_noise else None
        limits = self.precision.limits()
        return limits if noise is None else above_noise(limits, noise)


def measure_noise(model: nn.Module, evidence: Evidence) -> float | None:
    """Return how far a model is from itself in float64, relative to the peak; None where that cannot be said."""
    try:
        exact = copy.deepcopy(model).double()
        outputs = [[y.numpy() for y in run_eager(exact, [_double(t) for t in x])] for x in evidence.inputs]
    except (BadInput, RuntimeError, TypeError):  # a model that sets types itself
        return None
    figures = measure(outputs, [[y.astype(np.float64) for y in ys] for ys in evidence.reference], 0.0)
    return figures.relative_error


def _double(x: Tensor) -> Tensor:
    return x.double() if x.is_floating_point() else x


def arrays(tensors: Sequence[Tensor]) -> list[np.ndarray]:
    """Return tensors as float32 arrays."""
    return [t.detach().float().numpy() for t in tensors]


def _nowhere() -> str | None:
    """Say nothing about where numbers diverge."""
    return None


def check(
    what: str,
    reference: Outputs,
    outputs: Outputs,
    criteria: AcceptanceCriteria,
    locate: Callable[[], str | None] = _nowhere,
) -> CheckRecord:
    """Compare two sets of outputs.

    Args:
        what: was compared with what, such as `eager -> file`.
        locate: finds the first position where the two diverge, in words.

    Raises:
        VerificationFailed: with that position, unless the criteria collect failures.
    """
    record: CheckRecord = {"step": what}
    try:
        figures, failure = _judge(reference, outputs, criteria, record)
    except ValueError as error:
        raise VerificationFailed(f"{what}: {error}") from error
    if failure is not None:
        if criteria.spikes and criteria.precision.flips_spikes:
            failure += f" ({criteria.precision.flips_spikes} flips spikes; use --precision fp32)"
        position = position_found(locate)
        failure += f"; they diverge first at {position}" if position else ""
        if not criteria.collects:
            raise VerificationFailed(f"{what}: {failure}")
        record["missed"] = failure
    return cast(CheckRecord, {**record, **describe_figures(figures)})


def _judge(
    reference: Outputs, outputs: Outputs, criteria: AcceptanceCriteria, record: CheckRecord
) -> tuple[Figures, str | None]:
    """Return the figures that count and why they do not pass. The record lists what was excused."""
    thresholds = criteria.precision.limits()
    figures = measure(reference, outputs, thresholds.relative_error)
    failure = judge(figures, thresholds)
    if failure is not None and criteria.spikes:
        agreeing = agreeing_inputs(reference, outputs, thresholds.relative_error)
        record["spike_for_spike"] = {"inputs": len(agreeing), "of": len(reference)}
        if cover_half(agreeing, reference):
            record["others"] = describe_figures(figures)
            few = [[outs[i] for i in agreeing] for outs in (reference, outputs)]
            figures = measure(few[0], few[1], thresholds.relative_error)
            failure = judge(figures, thresholds)
    if failure is not None and criteria.precision.excuses_noise and (noise := criteria.noise()) is not None:
        thresholds = above_noise(thresholds, noise)
        record["noise"] = float(f"{noise:.1e}")
        record["allowed"] = float(f"{thresholds.relative_error:.1e}")
        failure = judge(figures, thresholds)
    return figures, failure


def describe_figures(figures: Figures) -> FiguresRecord:
    """Return figures as the manifest has them: two significant digits, SNR to 0.1 dB, null for what is infinite."""

    def known(value: float | None, digits: Callable[[float], float]) -> float | None:
        return None if value is None or not math.isfinite(value) else digits(value)

    record: FiguresRecord = {
        "max_abs_error": known(figures.max_abs_error, lambda value: float(f"{value:.1e}")),
        "relative_error": known(figures.relative_error, lambda value: float(f"{value:.1e}")),
        "snr_db": known(figures.snr_db, lambda value: round(value, 1)),
    }
    if figures.finite < 1:
        record["finite"] = round(figures.finite, 3)
    if figures.decided is not None:
        record["top1"] = {"agreeing": figures.agreeing, "decided": figures.decided, "ties": figures.ties}
    return record


def check_program(
    what: str, program: Program, captured: Program, evidence: Evidence, criteria: AcceptanceCriteria
) -> CheckRecord:
    """Check a captured or rewritten program, by the thresholds of the model's own precision."""

    def locate() -> str | None:
        if program is captured:
            return None
        found = values(program.module, evidence.inputs[0])
        limit = criteria.precision.limits().relative_error
        return first_divergence(captured, found, captured_names(program), evidence.inputs[0], limit)

    outputs = [arrays(run(program, x)) for x in evidence.inputs]
    return check(f"eager -> {what}", evidence.reference, outputs, criteria, locate)


def check_file(
    what: str,
    file: TargetFile,
    target: Target,
    program: Program | None,
    evidence: Evidence,
    criteria: AcceptanceCriteria,
) -> list[CheckRecord]:
    """Check a file in its runtimes, or say why not here.

    Args:
        what: in the file is checked, such as `file`.
        program: what it was lowered from, where that is known.
    """
    what, calls = f"eager -> {what}", evidence.calls
    outputs = file.run(calls)
    if isinstance(outputs, NotHere):
        return [{"step": what, "not_checked_here": outputs.reason}]

    def locate() -> str | None:
        if criteria.precision.dtype == "float16" and (position := file.diagnose(calls[0])) is not None:
            return position
        return None if program is None else _locate_in_file(file, target, program, evidence, criteria)

    first = check(what, evidence.reference, outputs, criteria, locate)
    first["runtime"] = file.runtime
    records = [first]
    for runtime, run_there in file.other_runtimes().items():
        others = run_there(calls)
        if isinstance(others, NotHere):
            records.append({"step": f"eager -> {runtime}", "not_checked_here": others.reason})
            continue
        there = check(f"eager -> {runtime}", evidence.reference, others, criteria)
        there["runtime"] = runtime
        records += [there, check(f"{file.runtime} -> {runtime}", outputs, others, criteria)]
    return records


def _exported(program: Program, target: Target) -> ExportedProgram:
    return exported(program, target.lowers_as, is_traced_again=target.traces_again)


def _locate_in_file(
    file: TargetFile, target: Target, program: Program, evidence: Evidence, criteria: AcceptanceCriteria
) -> str | None:
    """Return the first value of a file that diverges from the program's."""
    # Exporting anew numbers the nodes anew, and those are the names that the file has.
    lowered = with_module(program, _exported(program, target).module(check_guards=False))
    names = [node.name for node in operators(lowered.module)]
    found = file.intermediate(names, evidence.calls[0])
    limit = criteria.precision.limits().relative_error
    return first_divergence(lowered, found, {name: name for name in names}, evidence.inputs[0], limit)


def check_step_file(
    file: TargetFile,
    target: Target,
    streaming: StreamingDescription,
    evidence: Evidence,
    criteria: AcceptanceCriteria,
) -> list[CheckRecord]:
    """Check a step program's file in its runtime, or say why not here; and which others did not execute it."""
    elsewhere = {name: run_there([]) for name, run_there in file.other_runtimes().items()}
    unseen: list[CheckRecord] = [
        {"step": f"eager -> {name}", "not_checked_here": found.reason}
        for name, found in elsewhere.items()
        if isinstance(found, NotHere)
    ]
    step = file.open_step()
    if isinstance(step, NotHere):
        return [{"step": "eager -> file", "not_checked_here": step.reason}, *unseen]
    if target.is_interpreter:
        evidence = evidence.first(max(1, STEP_FRAMES // evidence.inputs[0][0].shape[1]))
    try:
        checked = check_step("file", streaming, step, evidence, criteria)
    finally:
        step.close()
    checked["runtime"] = file.runtime
    return [checked, *unseen]


def check_step(
    what: str, streaming: StreamingDescription, step: Step, evidence: Evidence, criteria: AcceptanceCriteria
) -> CheckRecord:
    """Check a step program: fed frame by frame, it says what the whole sequence does in PyTorch.

    Compared are the predictions for all frames, and the last one where an output is a value over all of them.
    """
    stepper = Stepper(streaming, step)
    axes = [output["time_axis"] for output in streaming["outputs"]]
    outputs: Outputs = []
    for (sequence,) in evidence.inputs:
        predictions = stepper.run(sequence.float().numpy())
        steps = [[y] if isinstance(y, np.ndarray) else list(y) for y in predictions]
        outputs.append(
            [
                steps[-1][j] if axis is None else np.stack([step[j] for step in steps], axis)
                for j, axis in enumerate(axes)
            ]
        )
    checked = check(f"eager -> {what}", evidence.reference, outputs, criteria)
    checked["sequences"] = len(evidence.reference)
    checked["frames"] = evidence.inputs[0][0].shape[1]
    return checked
