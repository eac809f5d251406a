"""The judge of an export: the inputs that everything is compared on, PyTorch's outputs for them, and what passes."""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from edgesmith.errors import EdgesmithWarning
from edgesmith.exporters.graph.capture import Program, computes_in_half
from edgesmith.exporters.graph.edit import count_operators
from edgesmith.exporters.inputs import describe_drawn, describe_inputs
from edgesmith.exporters.load import Loaded
from edgesmith.exporters.manifest import CalibrationRecord, CheckRecord, InputsRecord, VerifiedCall
from edgesmith.exporters.options import ExportOptions
from edgesmith.exporters.precision import calibration as calibrations
from edgesmith.exporters.precision import table as precisions
from edgesmith.exporters.precision.calibration import Calibration
from edgesmith.exporters.verification.check import AcceptanceCriteria, Evidence, check_program, measure_noise
from edgesmith.exporters.verification.doubts import find_doubts
from edgesmith.exporters.verification.exact import run_in_float64
from edgesmith.exporters.verification.noise import NoiseMeter
from edgesmith.exporters.verification.selection import Given, Selection, Subject, select
from edgesmith.exporters.verification.ties import returns_choices
from edgesmith.kernels.op import spikes_in

if TYPE_CHECKING:
    from edgesmith.exporters.products import Product


class Unverified(EdgesmithWarning):
    """An output that no check could have failed on."""


@dataclass(frozen=True)
class Judge:
    """The evidence and criteria that an export is judged by.

    Attributes:
        evidence: inputs, and PyTorch's outputs for them.
        calibration: the data that a precision is made on; None where it needs none.
        of_program: criteria for programs, by the model's own precision.
        of_file: criteria for the file, by the precision that was asked for.
        inputs: how the manifest describes the inputs, but for their noise.
        noise: of each input, where it was asked.
        unverified: outputs that no check can fail on, each with the reason.
        keeps_inputs: whether the artifact has to keep the inputs: they do not follow from the example and seeds.
        keeps_example: whether it has to keep the example: it is the caller's.
    """

    evidence: Evidence
    calibration: Calibration | None
    of_program: AcceptanceCriteria
    of_file: AcceptanceCriteria
    inputs: InputsRecord
    noise: NoiseMeter
    unverified: dict[str, str]
    keeps_inputs: bool
    keeps_example: bool

    def check_programs(self, captured: Program, rewritten: Program, product: Product) -> list[CheckRecord]:
        """Check the programs that the file will be made of, in PyTorch.

        Raises:
            VerificationFailed: one of them diverges from eager PyTorch.
        """
        checks = [
            check_program(name, program, captured, self.evidence, self.of_program)
            for name, program in (("captured", captured), ("rewritten", rewritten))
        ]
        return checks + product.check_programs(captured, self.evidence, self.of_program)

    def describe_inputs(self) -> InputsRecord:
        """Return the manifest's record of the inputs, with the noise that the file's precision has asked for."""
        dtype = self.of_file.precision.criteria.dtype
        state = self.noise.state(dtype)
        record: InputsRecord = {**self.inputs, "noise": state}
        noise = self.noise.measure(dtype) if state == "known" else None
        if noise is None:
            return record
        calls = [
            cast(VerifiedCall, {**call, "noise": [float(f"{one:.1e}") for one in found]})
            for call, found in zip(self.inputs["calls"], noise, strict=True)
        ]
        return {**record, "calls": calls}


def appoint(
    options: ExportOptions,
    model: Loaded,
    captured: Program,
    rewritten: Program,
    data: tuple[list[list[Tensor]], dict[str, Any]] | None = None,
) -> Judge:
    """Return the judge of an export; a warning for outputs that no check can fail on.

    Args:
        data: of the caller's own, to verify on, and what they are.

    Raises:
        BadInput: calibration data that cannot be used, or data that the model does not run on.
    """
    is_named, calibration = model.spec is not None, None
    if options.arithmetic.calibrates:
        calibration = calibrations.for_program(options.calibration, captured, options.image, is_named)
    given = None
    if data is not None:
        given = Given("given", data[0])
    elif calibration is not None and calibration.held_out is not None:
        given = Given("held out", calibration.held_out)
    own = precisions.of_dtype("float16" if computes_in_half(captured) else model.dtype)
    asked = options.arithmetic.criteria
    judged = own if asked is precisions.FP32 else asked
    image = options.image if options.image_input else None
    subject = Subject(model.module, captured, is_named, image, getattr(torch, judged.dtype))
    selection = select(subject, given)
    exact = run_in_float64(model.module, selection.inputs) if judged is precisions.FP32 else []
    evidence = Evidence(selection.inputs, selection.reference, selection.calls, exact)
    levels = [i for i, call in enumerate(evidence.described) if call.kind == "levels"]
    noise = NoiseMeter(model.module, evidence.inputs, evidence.reference, levels)
    natural = evidence.chosen(lambda call: call.is_natural)
    spikes = spikes_in(count_operators(rewritten.module))
    criteria = AcceptanceCriteria(
        own,
        spikes,
        partial(measure_noise, model.module, natural),
        noise_of_calls=noise.measure,
        noise_of_elements=noise.of_elements,
        noise_again=noise.draw_again,
        of_classes=options.labels_pixels,
        chooses=returns_choices(captured),
    )
    of_file = replace(criteria, precision=judged, collects=options.allow_inaccurate)
    unverified = find_doubts(captured.output_names, evidence)
    for output, reason in unverified.items():
        warnings.warn(f"{output} is not verified: {reason}", Unverified, stacklevel=2)
    record = _describe(selection, subject, given is not None, None if data is None else data[1])
    keeps_example = not is_named or not all(
        x.is_floating_point() for x in captured.inputs
    )  # tokens follow from no seed
    return Judge(evidence, calibration, criteria, of_file, record, noise, unverified, given is not None, keeps_example)


def _describe(selection: Selection, subject: Subject, is_kept: bool, facts: dict[str, Any] | None) -> InputsRecord:
    """Return how the manifest describes the inputs."""
    record: InputsRecord = {"count": len(selection.calls)}
    record["calls"] = [
        cast(VerifiedCall, {key: value for key, value in asdict(call).items() if value is not None})
        for call in selection.calls
    ]
    kinds = {call.kind for call in selection.calls}
    if "drawn" in kinds:
        record["values"] = describe_drawn(subject.captured.inputs)
    if "seeded" in kinds:
        record["values"] = describe_inputs(subject.captured.inputs, subject.image)
    if selection.left_out:
        record["left_out"] = selection.left_out
    if is_kept:
        record["kept"] = calibrations.INPUTS_FILE
    if facts is not None:
        record["given"] = cast(CalibrationRecord, facts)
    return record
