"""The judge of an export: the inputs that everything is compared on, PyTorch's outputs for them, and what passes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from edgesmith.exporters.graph.capture import Program, run_eager
from edgesmith.exporters.graph.edit import count_operators
from edgesmith.exporters.inputs import COUNT, describe_inputs, seeded_inputs
from edgesmith.exporters.load import Loaded
from edgesmith.exporters.manifest import CheckRecord, InputsRecord
from edgesmith.exporters.options import ExportOptions
from edgesmith.exporters.precision import calibration as calibrations
from edgesmith.exporters.precision import table as precisions
from edgesmith.exporters.precision.calibration import Calibration
from edgesmith.exporters.verification.check import (
    AcceptanceCriteria,
    Evidence,
    arrays,
    check_program,
    measure_noise,
)
from edgesmith.kernels.op import spikes_in

if TYPE_CHECKING:
    from edgesmith.exporters.products import Product


@dataclass(frozen=True)
class Judge:
    """The evidence and criteria that an export is judged by.

    Attributes:
        evidence: inputs, and PyTorch's outputs for them.
        calibration: the data that a precision is made on; None where it needs none.
        of_program: criteria for programs, by the model's own precision.
        of_file: criteria for the file, by the precision that was asked for.
        inputs: how the manifest describes the inputs.
    """

    evidence: Evidence
    calibration: Calibration | None
    of_program: AcceptanceCriteria
    of_file: AcceptanceCriteria
    inputs: InputsRecord

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


def appoint(options: ExportOptions, model: Loaded, captured: Program, rewritten: Program) -> Judge:
    """Return the judge of an export.

    Raises:
        BadInput: calibration data that cannot be used.
    """
    image = options.image if options.image_input else None
    given = seeded_inputs(captured.inputs, image, options.dynamic_batch)
    inputs: InputsRecord = {
        "count": COUNT,
        "seeds": f"0 to {COUNT - 1}",
        "values": describe_inputs(captured.inputs, image),
    }
    calibration = None
    if options.arithmetic.calibrates:
        calibration = calibrations.for_program(options.calibration, captured, options.image)
        if calibration.held_out is not None:
            given = calibration.held_out
            held_out = f"of the calibration set, kept in {calibrations.INPUTS_FILE}"
            inputs = {"count": len(given), "held_out": held_out}
    evidence = Evidence(given, [arrays(run_eager(model.module, x)) for x in given])
    own = precisions.of_dtype(model.dtype)
    spikes = spikes_in(count_operators(rewritten.module))
    criteria = AcceptanceCriteria(own, spikes, partial(measure_noise, model.module, evidence))
    asked = options.arithmetic.criteria
    judged = own if asked is precisions.FP32 else asked
    of_file = replace(criteria, precision=judged, collects=options.allow_inaccurate)
    return Judge(evidence, calibration, criteria, of_file, inputs)
