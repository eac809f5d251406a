"""Verifying an artifact that exists: its files, its format, and its numbers where it can run.

Needs neither the model nor its weights: PyTorch's outputs for the inputs are in the artifact.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from edgesmith.errors import BadInput, EdgesmithError, Unreadable, Unsupported, VerificationFailed
from edgesmith.exporters import artifact as artifacts
from edgesmith.exporters import targets
from edgesmith.exporters.artifact import Artifact
from edgesmith.exporters.figures import judge, measure
from edgesmith.exporters.inputs import Call, make, seeded_inputs
from edgesmith.exporters.manifest import CheckRecord, InputsRecord, VerifiedCall, missed
from edgesmith.exporters.options import Watch, silent
from edgesmith.exporters.outputs import Outputs
from edgesmith.exporters.precision import table as precisions
from edgesmith.exporters.products import read_product
from edgesmith.exporters.targets.target import Target
from edgesmith.exporters.verification.check import AcceptanceCriteria, Evidence
from edgesmith.exporters.verification.consistency import check_consistency
from edgesmith.kernels.op import spikes_in
from edgesmith.models import registry
from edgesmith.models.registry import ImageInput

TRACE_ERROR = 1e-4
"""How far an operator's figures may be from what they were on another machine, relative to its root mean square."""


CONSISTENT = 2
"""Natural calls on which a file is compared with itself."""


def verify_artifact(path: str | Path, watch: Watch = silent) -> tuple[Artifact, list[CheckRecord]]:
    """Check an artifact: its files against the manifest, its format, and its numbers where it can run.

    Returns:
        The artifact, and a record of each check, as in the manifest's `verification.steps`.

    Raises:
        BadInput: there is no readable artifact.
        BackendMissing: the target's packages are not installed.
        VerificationFailed: a file is missing or altered, is not valid, or its outputs are beyond the threshold; of
            outputs it has the figures in `steps`.
    """
    artifact = artifacts.read(path)
    target = targets.get(artifact.target)
    with watch("files"):
        checks = [_check_files(artifact, target)]
    target.require_for(artifact.file.suffix)
    file = target.open(artifact.file)
    with watch("format"):
        try:
            file.check()
        except Unsupported as error:
            raise VerificationFailed(str(error)) from error
        checks.append({"step": "format", "operators": sum(file.count_operators().values())})
    with watch("numbers"):
        product, evidence = read_product(artifact.manifest), read_evidence(artifact)
        checks += product.check_file(file, target, evidence, _criteria(artifact, evidence))
        if artifact.manifest.get("streaming") is None:
            natural = evidence.chosen(lambda call: call.is_natural).first(CONSISTENT)
            checks += check_consistency(file, natural.calls, _criteria(artifact), _batch(artifact))
    if sentences := missed(checks):
        raise VerificationFailed("; ".join(sentences), checks)
    return artifact, checks


def _batch(artifact: Artifact) -> int | None:
    """Return the rows of a call, 0 for any number; None for a module of one's own, whose first axis may be anything."""
    batch = artifact.manifest["target"]["options"]["batch"]
    if "features" not in artifact.manifest["model"] or batch is None:
        return None
    return batch if isinstance(batch, int) else 0


def verify_layers(path: str | Path) -> list[dict[str, Any]]:
    """Return, of every operator of an artifact's file, its range over two inputs, and what its precision costs there.

    Where a file holds a step and its sequence, operators of the sequence's come last and have `function`.

    Raises:
        BadInput: there is no readable artifact, or its target does not show its operators.
        BackendMissing: the target's packages are not installed.
    """
    artifact = artifacts.read(path)
    target = targets.get(artifact.target)
    targets.require_layers(target)
    target.require_for(artifact.file.suffix)
    return read_product(artifact.manifest).layers(target.open(artifact.file), read_evidence(artifact))


def verify_as(path: str | Path, device: str) -> dict[str, Any]:
    """Return how far an artifact's outputs are from PyTorch's as a device is documented to compute them.

    It is a model of the device and no measurement: of what is published, see exporters/departures, some is applied.

    Args:
        device: a name in the target's `device_models`, such as `ane`.

    Returns:
        `device` and `model`, in words; `max_abs_error`, `relative_error` and `snr_db` over all inputs, None where a
        finite value became none; `holds`, whether that is within the thresholds.

    Raises:
        BadInput: there is no readable artifact, or no such model for its target; or it is a step.
        BackendMissing: the target's packages are not installed.
    """
    artifact = artifacts.read(path)
    target = targets.get(artifact.target)
    title = targets.require_model(target, device)
    target.require_for(artifact.file.suffix)
    if artifact.manifest.get("streaming") is not None:
        raise BadInput(
            f"{artifact.path.name} is a step, whose states a model of {title} does not carry; export it whole"
        )
    evidence = read_evidence(artifact)
    calls = [[x.numpy() for x in given] for given in evidence.inputs]
    limits = precisions.get(artifact.manifest["verification"]["judged_as"]).limits()
    figures = measure(evidence.reference, target.open(artifact.file).run_as(device, calls), limits.relative_error)
    finite = {
        "max_abs_error": figures.max_abs_error,
        "relative_error": figures.relative_error,
        "snr_db": figures.snr_db,
    }
    record: dict[str, Any] = {"device": title, "model": "of documented departures, not measured"}
    record |= {key: value if value is None or math.isfinite(value) else None for key, value in finite.items()}
    return record | {"holds": judge(figures, limits) is None}


def read_evidence(artifact: Artifact) -> Evidence:
    """Return PyTorch's outputs that an artifact carries, and the inputs that they belong to."""
    reference, examples = artifacts.read_reference(artifact)
    calls = [_read_call(one) for one in artifact.manifest["verification"]["inputs"].get("calls", ())]
    kept, exact = artifacts.read_inputs(artifact), artifacts.read_exact(artifact)
    if kept is not None:
        return Evidence(kept, reference, calls, exact)
    options = artifact.manifest["target"]["options"]
    reads = registry.get(artifact.model).input if options["image_input"] else None
    image = reads if isinstance(reads, ImageInput) else None
    is_dynamic = options["batch"] == "dynamic"
    if not calls:  # of an artifact that judges all of them together
        return Evidence(seeded_inputs(examples, image, is_dynamic, len(reference)), reference)
    if any(call.kind == "seeded" for call in calls):
        (examples,) = seeded_inputs(examples, count=1)  # the example of a named model, of which the shape is kept
    return Evidence([make(call, examples, image, is_dynamic) for call in calls], reference, calls, exact)


def _read_call(record: VerifiedCall) -> Call:
    """Return a call that the manifest describes."""
    values = tuple(record["values"]) if "values" in record else None
    return Call(record["kind"], record.get("seed"), record.get("factor"), record.get("only"), values)


def _criteria(artifact: Artifact, evidence: Evidence | None = None) -> AcceptanceCriteria:
    """Return what an artifact's outputs must hold; eager's own noise is what it was when the artifact was made.

    Args:
        evidence: by which whole numbers, and parts beside a large peak, are judged as well; None: they are not.
    """
    verification = artifact.manifest["verification"]
    noises = [step["noise"] for step in verification["steps"] if "noise" in step]
    counts = artifact.manifest.get("operators")
    spikes = counts is not None and spikes_in(counts["rewritten"])
    judged = precisions.get(verification["judged_as"])
    kept = [call["noise"] for call in verification["inputs"].get("calls", ()) if "noise" in call]
    moved = None
    if evidence is not None:
        _check_noise(artifact, kept, evidence)
        moved = _noise_of_elements(verification["inputs"], evidence)
    return AcceptanceCriteria(
        judged,
        spikes,
        lambda: max(noises, default=None),
        collects=True,
        noise_of_calls=lambda _: kept or None,
        noise_of_elements=lambda _: moved,
        of_classes=artifact.manifest["model"].get("segmentation") == "labels",
    )


def _check_noise(artifact: Artifact, kept: list[list[float]], evidence: Evidence) -> None:
    """Raise Unreadable where a manifest's noise is not that of every output of every call, where it has to be."""
    wanted = [len(ys) for ys in evidence.reference]
    is_known = artifact.manifest["verification"]["inputs"].get("noise") == "known"
    if (kept or is_known) and list(map(len, kept)) != wanted:
        raise Unreadable(
            f"{artifact.path} has no sound manifest: noise is wanted of {len(wanted)} calls with {wanted[0]} outputs"
            f" each, and it has that of {len(kept)}, or of other outputs; export the model again"
        )


def _noise_of_elements(inputs: InputsRecord, evidence: Evidence) -> Outputs | None:
    """Return the noise of every element as far as an artifact says it; None where it does not.

    The export has excused each by its own, and says the largest of each output. Where it has asked for none, nothing
    was to be excused, and the distance of PyTorch from float64 is known of the first calls.
    """
    state = inputs.get("noise")
    if state is None or state == "unknown":
        return None
    calls = inputs.get("calls", ())
    if state == "known":
        return [
            [np.full(y.shape, largest) for y, largest in zip(ys, call.get("noise", ()), strict=True)]
            for call, ys in zip(calls, evidence.reference, strict=True)
        ]
    found = [[np.zeros(y.shape) for y in ys] for ys in evidence.reference]
    for i, exact in enumerate(evidence.exact):
        found[i] = [np.nan_to_num(np.abs(y - z)) for y, z in zip(evidence.reference[i], exact, strict=True)]
    return found


def _check_files(artifact: Artifact, target: Target) -> CheckRecord:
    """Compare the files with the manifest's list of them."""
    changed = artifacts.changed_files(artifact)
    if changed:
        position = _first_change(target, artifact)
        raise VerificationFailed(
            f"{artifact.path} is not as it was published: {'; '.join(changed)}"
            + (f"; its numbers are others from {position} on" if position else "")
        )
    if artifacts.REFERENCE not in artifact.sha256:
        raise BadInput(
            f"{artifact.path} is the engine of a kit, as it was built, and only the kit has PyTorch's outputs: verify"
            " that, and see the engine with edgesmith inspect"
        )
    return {"step": "files", "matching": len(artifact.sha256)}


def _first_change(target: Target, artifact: Artifact) -> str | None:
    """Return the first operator of a changed file whose result is not what it was; None where that cannot be said."""
    if target.missing_packages():
        return None
    try:
        before = artifacts.read_trace(artifact)
        now = read_product(artifact.manifest).trace(target.open(artifact.file), read_evidence(artifact))
    except EdgesmithError as error:  # the file is damaged: the sentence says where
        return str(error)
    except (OSError, KeyError, ValueError):
        return None
    for position, figures in now.items():
        if position not in before:
            return position
        close = np.allclose(figures, before[position], rtol=0, atol=TRACE_ERROR * before[position][0], equal_nan=True)
        if not close:
            return position
    return None
