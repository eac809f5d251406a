"""Are the numbers still PyTorch's? Eager against captured, rewritten and the file, by the figures of figures.py.

Each call is judged by itself, as figures.py says. Natural inputs (inputs.py) are judged in every precision. So are
adversarial ones, but that a precision that clips, such as int8, is far outside of its data on zeros, quiet, loud and
constant ones: it reports their figures, and they have to be finite. So it is, in every precision, where PyTorch's own
output for an adversarial input is nothing but rounding, such as the norm of a constant. Evidence without a description
of its calls, as older artifacts have it, is judged over all calls together.

What the peak of a whole output hides is looked for where the figures pass: other whole numbers, and wrong parts.

Outputs that are classes of pixels have no error that means anything: one is judged by how many of them agree.

Beyond a threshold, the first position where the two programs diverge is looked for by name. Two kinds of models need
more than a threshold:

    noise    a model may magnify rounding so that PyTorch itself is further from its own result in float64 than fp32's
             threshold. Nothing can be asked to be closer to it than that: the threshold is then NOISE_FACTOR times
             that distance, LARGEST_NOISE at most. It is asked of the very input, see noise.py.
    spikes   a neuron whose potential misses its threshold by an ulp may fire in one order of summation and not in
             another, and what follows differs visibly. Such an input says nothing; at least half of the natural
             inputs of each batch size, and half of the adversarial ones, must agree spike for spike, which is judged
             by the thresholds as ever. A neuron that is wrong by a per cent fires otherwise on most inputs; one that
             is wrong by 1e-4 may pass.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import cast

import numpy as np
from torch import Tensor, nn
from torch.export import ExportedProgram

from edgesmith.errors import BadInput, VerificationFailed
from edgesmith.exporters.figures import (
    LARGEST_WHOLE,
    NOISE_FACTOR,
    OTHER_CLASS,
    OTHER_CLASS_OF_ONE,
    OTHER_WHOLE,
    CallFigures,
    Figures,
    above_noise,
    agreeing_inputs,
    allowed_classes,
    cover_half,
    is_whole,
    judge,
    measure,
    measure_call,
    measure_classes,
    of_parts,
    scales_of,
    wrong_parts,
)
from edgesmith.exporters.graph.capture import Program, exported, run, run_eager, to_arrays, with_module
from edgesmith.exporters.graph.edit import operators
from edgesmith.exporters.inputs import Call
from edgesmith.exporters.manifest import CallRecord, CheckRecord, FiguresRecord
from edgesmith.exporters.outputs import Outputs, distances
from edgesmith.exporters.precision.table import Precision
from edgesmith.exporters.precision.task import Thresholds
from edgesmith.exporters.streaming.description import StreamingDescription
from edgesmith.exporters.streaming.step import Step
from edgesmith.exporters.streaming.stepper import Stepper
from edgesmith.exporters.targets.target import NotHere, Target, TargetFile
from edgesmith.exporters.verification.divergence import captured_names, first_divergence, position_found, values
from edgesmith.exporters.verification.exact import measure_distances
from edgesmith.exporters.verification.noise import Noise

STEP_INPUTS = 3
"""Sequences that a step program runs in PyTorch; its file runs all of them."""

STEP_FRAMES = 1024
"""Frames that a slow runtime steps through, in whole sequences, one of them at least."""


NEAR = 4.0
"""How far beyond what its noise allows an error may be for that to be asked again."""

HALF_A_STEP = 0.5
"""Noise from which a whole number may be another one."""

EPSILON = {"float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
"""What a part's peak exceeds relative to the output's: below it, it is nothing but rounding beside the others."""

REPORTED = frozenset({"zeros", "quiet", "loud", "constant", "levels", "missing", "infinite"})
"""Kinds of inputs that a precision that clips says the figures of, and is not judged by."""


@dataclass(frozen=True)
class Evidence:
    """The inputs and outputs that programs and files are compared on.

    Attributes:
        inputs: of each call.
        reference: PyTorch's outputs for them.
        described: what each call is; empty where all are judged together.
        exact: outputs in float64 for the first few, see exact.py; empty where nothing is compared with them.
    """

    inputs: Sequence[Sequence[Tensor]]
    reference: Outputs
    described: Sequence[Call] = ()
    exact: Outputs = field(default_factory=list)

    @property
    def calls(self) -> list[list[np.ndarray]]:
        """The inputs as arrays."""
        return [[t.numpy() for t in given] for given in self.inputs]

    def first(self, count: int) -> Evidence:
        """Return the first `count` calls."""
        return Evidence(self.inputs[:count], self.reference[:count], self.described[:count], self.exact[:count])

    def chosen(self, choose: Callable[[Call], bool]) -> Evidence:
        """Return the calls that are chosen; all where there is no description of them."""
        if not self.described:
            return self
        picked = [i for i, call in enumerate(self.described) if choose(call)]
        inputs, reference, described = self.inputs, self.reference, self.described
        return Evidence([inputs[i] for i in picked], [reference[i] for i in picked], [described[i] for i in picked])


@dataclass(frozen=True)
class AcceptanceCriteria:
    """The criteria by which outputs are judged.

    Attributes:
        precision: whose thresholds hold.
        spikes: whether there are spiking neurons.
        noise: how far, relative to the peak, eager outputs are from those in float64; asked only when it matters.
            None where that cannot be said.
        collects: whether a check that fails says so in its record, under `missed`, instead of raising.
        of_classes: whether outputs are classes of pixels, judged by how many agree.
        chooses: whether an output says which of several numbers was chosen.
        noise_of_calls: from the name of a type to the noise of each call in it, see noise.py.
        noise_again: the same, asked once more for some calls, see noise.py.
        noise_of_elements: the same of every element of every output; None where that cannot be said.
    """

    precision: Precision
    spikes: bool
    noise: Callable[[], float | None]
    collects: bool = False
    noise_of_calls: Callable[[str], Noise | None] = lambda _: None
    noise_of_elements: Callable[[str], Outputs | None] = lambda _: None
    noise_again: Callable[[str, Sequence[int]], Noise | None] = lambda *_: None
    of_classes: bool = False
    chooses: bool = False

    def thresholds(self) -> Thresholds:
        """Return what another machine must hold: eager's own noise, which it cannot measure, is in it."""
        noise = self.noise() if self.precision.excuses_noise else None
        limits = self.precision.limits()
        return limits if noise is None else above_noise(limits, noise)

    def other_whole(self) -> float:
        """Return the share of integers that may be others on another machine, whose rounding nobody knows here."""
        if self.of_classes:
            return self.other_classes()
        return OTHER_WHOLE if self.precision.is_half or self.precision.clips else OTHER_CLASS

    def other_classes(self) -> float:
        """Return the share of pixels that may have another class; 0 where outputs are no classes."""
        limits = self.precision.criteria
        return allowed_classes(limits.limits(), limits.clips) if self.of_classes else 0.0


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


def _nowhere(call: int) -> str | None:
    """Say nothing about where numbers diverge."""
    return None


@dataclass
class _Judgement:
    """The outcome of a comparison.

    Attributes:
        figures: that count.
        failure: why they do not pass; None where they do.
        call: on which they do not, or come closest to it.
        details: for the record.
    """

    figures: Figures
    failure: str | None
    call: int = 0
    details: CheckRecord = field(default_factory=lambda: cast(CheckRecord, {}))


def check(
    what: str,
    reference: Outputs,
    outputs: Outputs,
    criteria: AcceptanceCriteria,
    locate: Callable[[int], str | None] = _nowhere,
    described: Sequence[Call] = (),
) -> CheckRecord:
    """Compare two sets of outputs.

    Args:
        what: was compared with what, such as `eager -> file`.
        locate: finds the first position where the two diverge on a call, in words.
        described: what each call is; empty where all are judged together.

    Raises:
        VerificationFailed: with that position, unless the criteria collect failures.
    """
    try:
        if criteria.of_classes:
            judged = _judge_classes(reference, outputs, criteria, described)
        elif described:
            judged = _judge_calls(reference, outputs, criteria, described)
        else:
            judged = _judge(reference, outputs, criteria)
    except ValueError as error:
        raise VerificationFailed(f"{what}: {error}") from error
    record: CheckRecord = {"step": what}
    if (failure := judged.failure) is not None:
        if criteria.spikes and criteria.precision.flips_spikes:
            failure += f" ({criteria.precision.flips_spikes} flips spikes; use --precision fp32)"
        if criteria.chooses and (rounding := criteria.precision.flips_spikes):
            failure += f" ({rounding} orders what nearly ties otherwise; return the scores, or use --precision fp32)"
        position = position_found(partial(locate, judged.call))
        failure += f"; they diverge first at {position}" if position else ""
        if not criteria.collects:
            raise VerificationFailed(f"{what}: {failure}")
        record["missed"] = failure
    return cast(CheckRecord, {**record, **judged.details, **describe_figures(judged.figures)})


def _judge(reference: Outputs, outputs: Outputs, criteria: AcceptanceCriteria) -> _Judgement:
    """Judge all calls together. The details list what was excused."""
    details: CheckRecord = cast(CheckRecord, {})
    thresholds = criteria.precision.limits()
    figures = measure(reference, outputs, thresholds.relative_error)
    failure = judge(figures, thresholds)
    if failure is not None and criteria.spikes:
        agreeing = agreeing_inputs(reference, outputs, thresholds.relative_error)
        details["spike_for_spike"] = {"inputs": len(agreeing), "of": len(reference)}
        if cover_half(agreeing, reference):
            details["others"] = describe_figures(figures)
            few = [[outs[i] for i in agreeing] for outs in (reference, outputs)]
            figures = measure(few[0], few[1], thresholds.relative_error)
            failure = judge(figures, thresholds)
    if failure is not None and criteria.precision.excuses_noise and (noise := criteria.noise()) is not None:
        thresholds = above_noise(thresholds, noise)
        details["noise"] = float(f"{noise:.1e}")
        details["allowed"] = float(f"{thresholds.relative_error:.1e}")
        failure = judge(figures, thresholds)
    return _Judgement(figures, failure, 0, details)


def _judge_classes(
    reference: Outputs, outputs: Outputs, criteria: AcceptanceCriteria, described: Sequence[Call]
) -> _Judgement:
    """Judge classes of pixels: nearly all of them agree on the natural calls, and most on each of these.

    Adversarial calls, of even images, are reported. The figures are shares of pixels: the error is that of those with
    another class.
    """
    allowed = criteria.other_classes()
    of_one = min(1.0, OTHER_CLASS_OF_ONE * allowed)
    found = [measure_classes(ys, zs, of_one) for ys, zs in zip(reference, outputs, strict=True)]
    natural = [i for i, _ in enumerate(found) if not described or described[i].is_natural]
    worst = max(natural, key=lambda i: found[i].share)
    details: CheckRecord = cast(CheckRecord, {"calls": [_describe_call(one) for one in found]})
    for i, call in enumerate(described):
        details["calls"][i]["kind"] = call.kind
        if i not in natural:
            details["calls"][i]["not_judged"] = True
    pixels = sum(y.size for i in natural for y in reference[i])
    others = sum(round(found[i].max_abs_error * sum(y.size for y in reference[i])) for i in natural)
    share = others / max(pixels, 1)
    figures = Figures(found[worst].max_abs_error, share, None, agreeing=pixels - others, decided=pixels, ties=0)
    failure = f"{share:.2%} of the pixels have another class, allowed {allowed:.2%}" if share > allowed else None
    return _Judgement(figures, failure or found[worst].failure, worst, details)


def _judge_calls(
    reference: Outputs, outputs: Outputs, criteria: AcceptanceCriteria, described: Sequence[Call]
) -> _Judgement:
    """Judge each call by itself. The details have the figures of all of them, and of the worst."""
    precision = criteria.precision.criteria
    natural = [i for i, call in enumerate(described) if call.is_natural]
    scales = scales_of(reference, natural)

    def measured(noise: Noise | None) -> list[CallFigures]:
        return [
            measure_call(
                ys,
                zs,
                scales,
                precision.limits(),
                None if noise is None else noise[i],
                clips=precision.clips,
                is_natural=described[i].is_natural,
            )
            for i, (ys, zs) in enumerate(zip(reference, outputs, strict=True))
        ]

    found = measured(None)
    reported = [
        i for i, call in enumerate(described) if precision.clips and call.kind in REPORTED and _is_known(found[i])
    ]
    failing = [i for i, one in enumerate(found) if one.failure is not None and i not in reported]
    details: CheckRecord = cast(CheckRecord, {})
    if failing and not precision.clips:
        found, failing, is_nothing = _excuse(found, failing, natural, criteria, measured)
        reported += is_nothing
    flipped: list[int] = []
    if failing and criteria.spikes and all(_is_known(found[i]) for i in failing):  # a spike makes no NaN
        agreeing = [i for i in range(len(found)) if i not in failing]
        details["spike_for_spike"] = {"inputs": sum(i in natural for i in agreeing), "of": len(natural)}
        if _covers_half(agreeing, natural, reference):
            failing, flipped = [], failing
            details["others"] = describe_figures(_summarise(reference, outputs, natural, criteria))
    kept = [i for i in natural if i not in flipped]
    judged = [i for i in range(len(found)) if i not in reported and i not in flipped]
    worst = max(failing or judged, key=lambda i: found[i].share)
    details["worst"] = _describe_call(found[worst])
    details["worst"]["input"] = str(described[worst])
    details["calls"] = [_describe_call(one) for one in found]
    for i, record in enumerate(details["calls"]):
        record["kind"] = described[i].kind
        if i in reported or i in flipped:
            record["not_judged"] = True
    figures = _summarise(reference, outputs, kept, criteria)
    failure = _say_failure(figures, found, failing, described) if judged else None
    if failure is None and not precision.clips:
        failure = _hidden(reference, outputs, judged, kept, criteria)
    return _Judgement(figures, failure, worst, details)


def _excuse(
    found: list[CallFigures],
    failing: list[int],
    natural: Sequence[int],
    criteria: AcceptanceCriteria,
    measured: Callable[[Noise], list[CallFigures]],
) -> tuple[list[CallFigures], list[int], list[int]]:
    """Judge calls that fail by what rounding does to them, which is asked once more of those that then nearly pass.

    Returns:
        The figures; the calls that fail all the same; and adversarial ones whose outputs are nothing but rounding.
    """
    dtype, is_nothing = criteria.precision.criteria.dtype, list[int]()
    for is_first in (True, False):
        near = [i for i in failing if found[i].max_abs_error <= min(found[i].most, NEAR * found[i].allowed)]
        if not is_first and not near:
            break
        noise = criteria.noise_of_calls(dtype) if is_first else criteria.noise_again(dtype, near)
        if noise is not None:
            found = measured(noise)
            is_nothing += [i for i in failing if found[i].is_rounding and i not in natural and _is_known(found[i])]
            failing = [i for i in failing if found[i].failure is not None and i not in is_nothing]
    return found, failing, is_nothing


def _hidden(
    reference: Outputs, outputs: Outputs, judged: Sequence[int], natural: Sequence[int], criteria: AcceptanceCriteria
) -> str | None:
    """Return what the peak of a whole output hides: other whole numbers, and parts that are off; see figures.py.

    Args:
        judged: the calls that count.
        natural: those of them that are like what the model will meet.
    """
    for j in range(len(reference[0])):
        wanted, made = [reference[i][j] for i in natural], [outputs[i][j] for i in natural]
        if not natural:
            return None
        what = "" if len(reference[0]) == 1 else f" of output {j}"
        if is_whole(wanted):
            failure = _other_whole(reference, outputs, judged, natural, criteria, j)
        else:
            failure = None if criteria.spikes else _wrong_part(wanted, made, natural, criteria, j)
        if failure is not None:
            return failure + what
    return None


def _other_whole(
    reference: Outputs,
    outputs: Outputs,
    judged: Sequence[int],
    natural: Sequence[int],
    criteria: AcceptanceCriteria,
    j: int,
) -> str | None:
    """Return how many whole numbers are others, where that is more than rounding may do; None where it is not."""
    precision = criteria.precision.criteria
    chosen = natural if precision.is_half else [i for i in judged if _is_exact(reference[i][j])]
    wanted, made = [reference[i][j] for i in chosen], [outputs[i][j] for i in chosen]
    different = [distances(y, z) >= HALF_A_STEP for y, z in zip(wanted, made, strict=True)]
    if not any(one.any() for one in different):
        return None
    noise = criteria.noise_of_elements(precision.dtype)
    if noise is None:
        return None
    moved = [noise[i][j] >= HALF_A_STEP for i in chosen]
    if not precision.is_half:  # what moves one of them may move another, in another order of summation
        moved = [np.full(one.shape, one.any()) for one in moved]
    others = sum(int((one & ~other).sum()) for one, other in zip(different, moved, strict=True))
    total = sum(one.size for one in different)
    if others <= (OTHER_WHOLE * total if precision.is_half else 0):
        return None
    return f"{others} of {total} whole numbers are others than in PyTorch"


def _is_exact(y: np.ndarray) -> bool:
    """Return whether PyTorch's type has every digit of whole numbers of this size."""
    return y.dtype.kind == "i" or bool((np.abs(y) < LARGEST_WHOLE).all())


def _wrong_part(
    wanted: list[np.ndarray], made: list[np.ndarray], natural: Sequence[int], criteria: AcceptanceCriteria, j: int
) -> str | None:
    """Return which part of an output is off by more than its own noise; None where none is."""
    precision = criteria.precision.criteria
    limit = precision.limits().relative_error
    parts = wrong_parts(wanted, made, limit**0.5, EPSILON[precision.dtype])
    noise = criteria.noise_of_elements(precision.dtype) if parts else None
    if noise is None:
        return None
    moved = [noise[i][j] for i in natural]
    of_axes = {axis: of_parts(moved, axis) for axis in {part.axis for part in parts}}
    off = [part for part in parts if part.error > NOISE_FACTOR * of_axes[part.axis][part.index]]
    return str(max(off, key=lambda part: part.error / part.peak)) if off else None


def _say_failure(
    figures: Figures, found: Sequence[CallFigures], failing: Sequence[int], described: Sequence[Call]
) -> str | None:
    """Return why some calls do not pass, by the worst of them; None where all do."""
    if figures.finite == 0:
        return "PyTorch's own outputs are not finite on any natural input, so nothing can be compared"
    if not failing:
        return None
    worst = max(failing, key=lambda i: found[i].max_abs_error / (found[i].allowed or 1.0))
    others = f", and on {len(failing) - 1} other inputs" if len(failing) > 1 else ""
    return f"{found[worst].failure}, on {described[worst]}{others}"


def _is_known(figures: CallFigures) -> bool:
    """Return whether what is finite in PyTorch is finite, and what is not is the same."""
    return math.isfinite(figures.max_abs_error)


def _covers_half(agreeing: Sequence[int], natural: Sequence[int], reference: Outputs) -> bool:
    """Return whether half of the natural inputs of each batch size agree, and half of the others."""
    if not cover_half([k for k, i in enumerate(natural) if i in agreeing], [reference[i] for i in natural]):
        return False
    others = [i for i in range(len(reference)) if i not in natural]
    return 2 * sum(i in agreeing for i in others) >= len(others)


def _summarise(reference: Outputs, outputs: Outputs, chosen: Sequence[int], criteria: AcceptanceCriteria) -> Figures:
    """Return the figures of the worst of some calls, each relative to its own peak; top-1 over all of them."""
    limit = criteria.precision.limits().relative_error
    of_each = [measure([reference[i]], [outputs[i]], limit) for i in chosen]
    ratios = [one.snr_db for one in of_each if one.snr_db is not None]
    known = [one.relative_error for one in of_each if math.isfinite(one.relative_error)]
    broken = any(not math.isfinite(one.max_abs_error) for one in of_each)
    counts = [[getattr(one, key) for one in of_each] for key in ("agreeing", "decided", "ties")]
    is_top1 = all(one.decided is not None for one in of_each)
    return Figures(
        max((one.max_abs_error for one in of_each), default=0.0),
        math.inf if broken or (of_each and not known) else max(known, default=0.0),
        min(ratios) if ratios else None,
        measure([reference[i] for i in chosen], [reference[i] for i in chosen], limit).finite if chosen else 1.0,
        *(sum(one) if is_top1 and of_each else None for one in counts),
    )


def _describe_call(figures: CallFigures) -> CallRecord:
    """Return the figures of a call as the manifest has them."""
    whole = describe_figures(Figures(figures.max_abs_error, figures.relative_error, figures.snr_db))
    record: CallRecord = {
        "max_abs_error": whole["max_abs_error"],
        "relative_error": whole["relative_error"],
        "snr_db": whole["snr_db"],
        "allowed": float(f"{figures.allowed:.1e}"),
    }
    return record


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

    def locate(call: int) -> str | None:
        if program is captured:
            return None
        found = values(program.module, evidence.inputs[call])
        limit = criteria.precision.limits().relative_error
        return first_divergence(captured, found, captured_names(program), evidence.inputs[call], limit)

    outputs = [to_arrays(run(program, x)) for x in evidence.inputs]
    return check(f"eager -> {what}", evidence.reference, outputs, criteria, locate, evidence.described)


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
    wider = [name for name in ("mixed", "fp32") if name in target.precisions]
    outputs = file.run(calls)
    if isinstance(outputs, NotHere):
        return [{"step": what, "not_checked_here": outputs.reason}]

    def locate(call: int) -> str | None:
        if criteria.precision.dtype == "float16" and (position := file.diagnose(calls[call])) is not None:
            return f"{position}; use --precision {' or '.join(wider)}"
        return None if program is None else _locate_in_file(file, target, program, evidence.inputs[call], criteria)

    first = check(what, evidence.reference, outputs, criteria, locate, evidence.described)
    first["runtime"] = file.runtime
    _add_distances(first, evidence, outputs)
    records = [first]
    for runtime, run_there in file.other_runtimes().items():
        others = run_there(calls)
        if isinstance(others, NotHere):
            records.append({"step": f"eager -> {runtime}", "not_checked_here": others.reason})
            continue
        there = check(f"eager -> {runtime}", evidence.reference, others, criteria, described=evidence.described)
        there["runtime"] = runtime
        between = check(f"{file.runtime} -> {runtime}", outputs, others, criteria, described=evidence.described)
        records += [there, between]
    return records


def _add_distances(record: CheckRecord, evidence: Evidence, outputs: Outputs) -> None:
    """Say in a record how far outputs and PyTorch's are from float64, where that is known."""
    if evidence.exact and (found := measure_distances(evidence.exact, evidence.reference, outputs)) is not None:
        record["from_float64"] = found


def _exported(program: Program, target: Target) -> ExportedProgram:
    return exported(program, target.lowers_as, is_traced_again=target.traces_again)


def _locate_in_file(
    file: TargetFile, target: Target, program: Program, inputs: Sequence[Tensor], criteria: AcceptanceCriteria
) -> str | None:
    """Return the first value of a file that diverges from the program's on some inputs."""
    # Exporting anew numbers the nodes anew, and those are the names that the file has.
    lowered = with_module(program, _exported(program, target).module(check_guards=False))
    names = [node.name for node in operators(lowered.module)]
    found = file.intermediate(names, [x.numpy() for x in inputs])
    limit = criteria.precision.limits().relative_error
    return first_divergence(lowered, found, {name: name for name in names}, inputs, limit)


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
        checked = check_step("file", streaming, step, evidence, criteria, is_file=True)
    finally:
        step.close()
    checked["runtime"] = file.runtime
    return [checked, *unseen]


def check_step(
    what: str,
    streaming: StreamingDescription,
    step: Step,
    evidence: Evidence,
    criteria: AcceptanceCriteria,
    is_file: bool = False,
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
    checked = check(f"eager -> {what}", evidence.reference, outputs, criteria, described=evidence.described)
    if is_file:
        _add_distances(checked, evidence, outputs)
    checked["sequences"] = len(evidence.reference)
    checked["frames"] = evidence.inputs[0][0].shape[1]
    return checked
