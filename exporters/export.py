"""From a model's name to a verified file: the straight line, each step taking what the one before returned.

load -> capture -> rewrite -> verify the program -> lower -> verify the file -> publish
"""

from __future__ import annotations

import contextlib
import copy
import importlib.metadata
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from edgesmith import __version__
from edgesmith.errors import BadInput, EdgesmithError, Unsupported, VerificationFailed
from edgesmith.exporters import artifact as artifacts
from edgesmith.exporters import targets
from edgesmith.exporters.artifact import Artifact
from edgesmith.exporters.graph.capture import Program, capture, exported, run, run_eager, with_module
from edgesmith.exporters.graph.edit import count_operators, operators
from edgesmith.exporters.precision import calibration as calibrations
from edgesmith.exporters.precision.calibration import Calibration
from edgesmith.exporters.precision.half import KINDS
from edgesmith.exporters.precision.islands import find_wide
from edgesmith.exporters.rewrites.order import rewrite
from edgesmith.exporters.rewrites.rewrite import RewriteReport
from edgesmith.exporters.streaming.session import CALLER, RUNTIME, Step, Stepper
from edgesmith.exporters.streaming.step_program import StepProgram, describe, is_rest, to_step
from edgesmith.exporters.targets import NotHere, Request, Target
from edgesmith.exporters.verification import check as verify
from edgesmith.models import registry
from edgesmith.models.checkpoint import Weights, fingerprint, load
from edgesmith.models.registry import ImageInput, ModelSpec, SequenceInput
from edgesmith.profiles import device as devices
from edgesmith.profiles.device import DeviceProfile

if TYPE_CHECKING:
    from edgesmith.exporters.precision.int8 import Quantised

Watch = Callable[[str], AbstractContextManager[None]]
"""Called with each stage's name; entered when the stage starts and left when it ends."""


def silent(stage: str) -> AbstractContextManager[None]:
    """A `Watch` that shows nothing."""
    return contextlib.nullcontext()


@dataclass(frozen=True)
class Loaded:
    """A model ready for capture, and what is known about it.

    Attributes:
        name: of the model, for files.
        inputs: example inputs, seeded.
        spec: None for a module of the caller's own.
    """

    name: str
    module: nn.Module
    inputs: tuple[Tensor, ...]
    input_names: tuple[str, ...] | None
    output_names: tuple[str, ...] | None
    weights: Weights
    spec: ModelSpec | None = None


def export(
    model: str | nn.Module,
    target: str = "onnx",
    *,
    inputs: Sequence[Tensor] | Tensor | None = None,
    name: str | None = None,
    weights: str | Path | None = None,
    precision: str | None = None,
    input_size: tuple[int, int] | None = None,
    frames: int | None = None,
    batch: int = 1,
    dynamic_batch: bool = False,
    features: bool = False,
    labels: Sequence[str] | None = None,
    image_input: bool = False,
    streaming: bool = False,
    with_sequence: bool = False,
    deployment_target: str | None = None,
    device: str | None = None,
    calibration: str | Path | None = None,
    allow_inaccurate: bool = False,
    out: str | Path = "artifacts",
    watch: Watch = silent,
) -> Artifact:
    """Export a model to a target, check it against PyTorch, and publish it as an artifact.

    Args:
        model: a name from `edgesmith models`, or any module that torch.export captures.
        target: a name from `edgesmith targets`.
        inputs: example tensors, for a module; its shapes are the artifact's.
        name: what to call a module's artifact; default: its class, in lower case.
        weights: checkpoint of a named model; without it weights are random from a fixed seed.
        precision: `fp32`, `fp16`, for TensorRT `bf16`, for Core ML `mixed`, for ONNX and TensorRT `int8`; default: the
            model's own, which is fp32 where neurons spike, or the target's.
        input_size: height and width in pixels, of a named image model; default: the published size.
        frames: length of the sequences of a named sequence model; default: the published length.
        batch: images or sequences in one call.
        dynamic_batch: leave the batch free, where the target can.
        features: the dense features of a named model instead of its logits.
        labels: class names; a Core ML artifact becomes a classifier, which returns probabilities.
        image_input: take an image (Core ML); mean and deviation are folded in.
        streaming: one step of a sequence model instead of the whole sequence: a frame and states in, a prediction and
            the next states out (see streaming.py and session.py).
        with_sequence: beside the step the whole sequence's program, as two functions of one package that share their
            weights (Core ML, iOS18 and later).
        deployment_target: oldest system to run on (Core ML), such as `iOS17`.
        device: a name from `profiles/`; it must take the target, and a system newer than the default that all such
            devices have becomes the deployment target. TensorRT needs one: an engine is for one GPU.
        calibration: a folder of images or an `.npz` that int8 is calibrated and judged on (calibration.py); without it
            random inputs are, with a warning.
        allow_inaccurate: publish a file whose outputs part from PyTorch's beyond the threshold; the manifest's
            `verification.missed` says by how much, and verifying it raises VerificationFailed as ever.
        out: folder for the artifact's own folder.
        watch: see `Watch`.

    Raises:
        BadInput, CheckpointError, BackendMissing, Unsupported, OutputError: see errors.py.
        VerificationFailed: outputs part from PyTorch's beyond the threshold; nothing is published. Also with
            `allow_inaccurate` where the program parts before it is lowered: that is no matter of the file's precision.
    """
    backend = targets.get(target)
    profile = devices.get(device) if device is not None else None
    deployment_target = _checked_device(backend, profile, deployment_target)
    spec = registry.get(model) if isinstance(model, str) else None
    if precision is None and spec is not None and spec.precision:
        precision = spec.precision
    precision = _checked_options(
        backend,
        precision,
        batch,
        dynamic_batch,
        labels,
        image_input,
        deployment_target,
        features,
        streaming,
        with_sequence,
        calibration,
    )
    if spec is None and not isinstance(model, nn.Module):
        raise BadInput(f"model must be a name or a torch.nn.Module, got {type(model).__name__}")
    if spec is None and inputs is None:
        raise BadInput("exporting a module needs inputs=(tensor, ...), one example for each argument of forward")
    of_named = (weights, input_size, frames)
    if spec is None and (any(value is not None for value in of_named) or batch != 1 or features or image_input):
        raise BadInput(
            "weights, input_size, frames, batch, features and image_input belong to named models;"
            " a module has its own weights, and its shapes are those of inputs"
        )
    shape = _checked_shape(spec, input_size, frames, features, image_input) if spec else None
    if streaming and spec and not isinstance(spec.input, SequenceInput):
        raise BadInput(f"{spec.name} reads images and has no --streaming; models of sequences have")
    name = spec.name if spec else _checked_name(model, name)
    targets.require(backend)
    folder_name = _folder_name(
        name,
        target,
        precision,
        _describe_shape(shape) if spec and shape and shape != spec.input.shape else None,
        f"batch-{'dynamic' if dynamic_batch else batch}" if dynamic_batch or batch != 1 else None,
        "features" if features else None,
        "labels" if labels is not None else None,
        "image" if image_input else None,
        "streaming" if streaming else None,
        "with-sequence" if with_sequence else None,
        deployment_target if deployment_target != getattr(backend, "DEFAULT_DEPLOYMENT_TARGET", None) else None,
        device if hasattr(backend, "check_device") else None,
    )

    calibrated: Calibration | None = None
    quantised: Quantised | None = None
    with artifacts.staging(out, folder_name) as folder:
        with watch("load"):
            if spec is not None and shape is not None:
                loaded = load_named(spec, shape, batch, weights, features, dynamic_batch)
            else:
                assert isinstance(model, nn.Module)  # both were asked above
                assert inputs is not None
                loaded = load_module(model, inputs, name)
            if labels is not None:
                loaded = _as_classifier(loaded, tuple(labels), backend, batch)
        request = Request(
            name=name,
            precision=precision,
            image=spec.input if spec and isinstance(spec.input, ImageInput) else None,
            sequence=spec.input if spec and isinstance(spec.input, SequenceInput) else None,
            labels=tuple(labels) if labels is not None else None,
            image_input=image_input,
            deployment_target=deployment_target,
            compute_capability=profile.cuda.compute_capability if profile and profile.cuda else None,
            device=device,
            licence=spec.licence if spec else "",
            source=spec.source if spec else "",
        )
        with watch("capture"):
            program = capture(loaded.module, loaded.inputs, loaded.input_names, loaded.output_names, dynamic_batch)
        with watch("rewrite"):
            costs = backend.costs if precision == "fp32" else replace(backend.costs, tile_gb_s=0.0, fetch_gb_s=math.inf)
            rewritten, reports = rewrite(program, costs, streaming=streaming)
            step = to_step(rewritten, with_sequence, half=precision in KINDS) if streaming else None
            whole = rewrite(program, costs)[0] if with_sequence else None
            kept_by = RUNTIME if backend.keeps_states(deployment_target) else CALLER
            streamed = None if step is None else describe(step, kept_by)
        with watch("verify the program"):
            given = verify.seeded_inputs(program.inputs, request.image if image_input else None, dynamic_batch)
            if precision == "int8":
                calibrated = _calibration(calibration, program, request)
                given = calibrated.held_out or given
            reference = [_arrays(run_eager(loaded.module, x)) for x in given]
            own = "fp16" if _is_half(loaded.module) else "fp32"
            spikes = "edgesmith.lif" in count_operators(rewritten.module)
            rule = Rule(own, spikes, partial(_noise, loaded.module, given, reference))
            steps = [_check_program("captured", program, program, reference, given, rule)]
            steps.append(_check_program("rewritten", rewritten, program, reference, given, rule))
            if step is not None:
                eager = _eager_step(step)
                steps.append(_check_step("step program", describe(step), eager, reference[:STEP_INPUTS], given, rule))
            if whole is not None:
                steps.append(_check_program("sequence program", whole, program, reference, given, rule))
        kits = targets.kits_for(backend, profile)
        file = folder / f"{name}{kits.KIT_SUFFIX if kits else backend.suffix}"
        if precision in KINDS and step is None and hasattr(backend, "FINDS_ISLANDS"):
            with watch("find what must stay fp32"):
                limit = verify.THRESHOLDS[precision].snr_db
                wide = find_wide(rewritten, given[:MIXED_INPUTS], limit, KINDS[precision])
                request = replace(request, wide=wide)
        lowered = rewritten if step is None else step.program
        if calibrated is not None:
            with watch("quantise"):
                quantised = _quantise(rewritten, calibrated, backend)
                lowered, request = quantised.program, replace(request, wide=quantised.kept)
        with watch(f"lower to {target}"):
            request = replace(request, streaming=streamed, whole=whole)
            backend.lower(lowered, file, request)
            backend.check(file)
        if precision == "mixed":
            with watch("find what must stay fp32"):
                request = _widen(backend, lowered, file, request, given)
        with watch("verify the file"):
            judged = precision if precision in (*KINDS, "int8") else "fp16" if request.half or own == "fp16" else "fp32"
            rule = replace(rule, precision=judged, collects=allow_inaccurate)
            if streamed is not None:
                steps += _check_step_file(backend, file, streamed, reference, given, rule)
            if streamed is None or whole is not None:
                steps += _check_file(backend, file, whole or lowered, reference, given, rule, beside=whole is not None)
        if kits is not None and (sentences := missed(steps)):
            raise VerificationFailed(
                f"{'; '.join(sentences)}; a board refuses what it builds of that, so no kit is written", steps
            )
        with watch("publish"):
            artifacts.write_reference(folder, reference, program.inputs)
            if calibrated is not None and calibrated.held_out is not None:
                artifacts.write_inputs(folder, calibrated.held_out)
            artifacts.write_trace(folder, _traced(backend, file, given, streamed, whole is not None))
            manifest = _manifest(
                loaded, backend, request, program, rewritten, step, reports, file, steps, features, device, judged
            )
            if calibrated is not None and quantised is not None:
                manifest |= _describe_int8(backend, file, calibrated, quantised)
                if calibrated.held_out is not None:
                    held_out = f"of the calibration set, kept in {artifacts.INPUTS}"
                    manifest["verification"]["inputs"] = {"count": len(given), "held_out": held_out}
            artifacts.write_manifest(folder, manifest)
            if kits is not None and profile is not None:
                unjudged = frozenset[str]()
                if step is None or streamed is None:
                    arrays, expected = [[t.numpy() for t in x] for x in given], reference
                else:
                    arrays, expected = _step_cases(step, streamed, given)
                    # What rounding has taken from a sum is another number in every runtime; the sum itself is judged.
                    unjudged = frozenset(state["next"] for state in streamed["states"] if is_rest(state["name"]))
                manifest |= kits.pack(file, request, arrays, expected, _limits(rule), spikes, manifest, unjudged)
                artifacts.write_manifest(folder, manifest)
                if kits.builds_here(profile):
                    built = kits.build_here(file)
                    others = [one for one in manifest["verification"]["steps"] if one["step"] != built["step"]]
                    manifest["verification"]["steps"] = [*others, built]
                    artifacts.write_manifest(folder, manifest)
            final = artifacts.publish(folder, out, folder_name)
    return artifacts.read(final)


def _calibration(path: str | Path | None, program: Program, request: Request) -> Calibration:
    """What int8 is calibrated and judged on; a warning where that is random."""
    found = calibrations.load(
        None if path is None else Path(path),
        program.input_names,
        program.inputs,
        request.image,
        program.dynamic_batch,
    )
    if path is None:
        warnings.warn(calibrations.WARNING, calibrations.RandomCalibration, stacklevel=3)
    return found


def _quantise(program: Program, calibrated: Calibration, backend: Target) -> Quantised:
    from edgesmith.exporters.precision.int8 import quantise

    largest = getattr(backend, "LARGEST_INT8_WEIGHT")  # noqa: B009  # a target that has int8 has it, and others have not
    return quantise(program, calibrated.inputs, verify.THRESHOLDS["int8"].snr_db, largest)


def _describe_int8(backend: Target, file: Path, calibrated: Calibration, quantised: Quantised) -> dict[str, Any]:
    """What the manifest says of an int8 file: how much of it is int8, and by what data."""
    macs: dict[str, int] = getattr(backend, "count_macs")(file)  # noqa: B009  # as above
    return {
        "int8": {
            "layers": quantised.layers,
            "sums": quantised.sums,
            "macs": macs,
            "share_of_macs": round(macs["int8"] / macs["all"], 4),
            "weight_bits": 8 if getattr(backend, "LARGEST_INT8_WEIGHT", 127) > 63 else 7,
            "snr_db": None if quantised.snr_db is None else round(quantised.snr_db, 1),
            "calibration": calibrated.described,
        }
    }


MIXED_INPUTS = 2
"""Inputs over which mixed precision looks for what must stay fp32."""

MIXED_ROUNDS = 8
"""How often it may look again with what it has found kept wide."""


def _widen(
    backend: Target, program: Program, file: Path, request: Request, given: Sequence[Sequence[Tensor]]
) -> Request:
    """Lower a program of mixed precision again until it is good enough, or nothing is left to keep wide."""
    arrays = [[t.numpy() for t in x] for x in given[:MIXED_INPUTS]]
    for _ in range(MIXED_ROUNDS):
        found = backend.wide_operators(file, arrays, verify.THRESHOLDS["fp16"].snr_db)
        if not found.keys() - request.wide.keys():
            break
        request = replace(request, wide={**found, **request.wide})
        artifacts.remove(file)
        backend.lower(program, file, request)
        backend.check(file)
    return request


def _first_call(given: Sequence[Sequence[Tensor]], streaming: dict[str, Any] | None) -> list[np.ndarray]:
    """What a file is called with first: the first input, or its first frame and the states before it."""
    first = [t.numpy() for t in given[0]]
    if streaming is None:
        return first
    frame = [first[0][:, 0], *([np.ones(1, np.float32)] if streaming["is_frame"] else [])]
    states = streaming["states"] if streaming["kept_by"] == CALLER else []
    return [*frame, *(np.full(state["shape"], state["initial"], np.float32) for state in states)]


def _traced(
    backend: Target, file: Path, given: Sequence[Sequence[Tensor]], streaming: dict[str, Any] | None, has_sequence: bool
) -> dict[str, tuple[float, float]]:
    """What a target's `traced` says of a file, and of the sequence program in it where there is one beside a step."""
    found = backend.traced(file, _first_call(given, streaming))
    if has_sequence:
        found |= {f"sequence: {place}": one for place, one in backend.traced(file, _first_call(given, None)).items()}
    return found


LAYER_INPUTS = 2
"""Inputs over which `layers` are measured."""


def verify_layers(path: str | Path) -> list[dict[str, Any]]:
    """Of every operator of an artifact's file: its range over two seeded inputs, and what its precision costs there.

    Where a file holds a step and its sequence, operators of the sequence's come last and have `function`.

    Raises:
        BadInput: there is no readable artifact, or its target does not show its operators.
        BackendMissing: the target's packages are not installed.
    """
    artifact = artifacts.read(path)
    backend = targets.get(artifact.target)
    targets.require_layers(backend)
    targets.require(backend)
    streaming = artifact.manifest.get("streaming")
    _, given = _given(artifact)
    whole = [[t.numpy() for t in x] for x in given[:LAYER_INPUTS]]
    found = backend.layers(artifact.file, whole if streaming is None else [_first_call(given, streaming)])
    if "functions" in artifact.manifest:
        found += [{"function": "sequence", **one} for one in backend.layers(artifact.file, whole)]
    return found


def _given(artifact: Artifact) -> tuple[verify.Outputs, list[list[Tensor]]]:
    """PyTorch's outputs that an artifact carries, and the inputs that they belong to."""
    reference, examples = artifacts.read_reference(artifact)
    options = artifact.manifest["target"]["options"]
    reads = registry.get(artifact.model).input if options["image_input"] else None
    image = reads if isinstance(reads, ImageInput) else None
    kept = artifacts.read_inputs(artifact)
    if kept is not None:
        return reference, kept
    given = verify.seeded_inputs(examples, image, options["batch"] == "dynamic", len(reference))
    return reference, given


def verify_artifact(path: str | Path, watch: Watch = silent) -> tuple[Artifact, list[dict[str, Any]]]:
    """Check an artifact that exists: its files against the manifest, its format, and its numbers where it can run.

    Needs neither the model nor its weights: PyTorch's outputs for the seeded inputs are in the artifact.

    Returns:
        The artifact, and one entry for each check, as in the manifest's `verification.steps`.

    Raises:
        BadInput: there is no readable artifact.
        BackendMissing: the target's packages are not installed.
        VerificationFailed: a file is missing or altered, is not valid, or its outputs are beyond the threshold; of
            outputs it has the figures in `steps`.
    """
    artifact = artifacts.read(path)
    backend = targets.get(artifact.target)
    steps: list[dict[str, Any]] = []
    with watch("files"):
        changed = artifacts.changed_files(artifact)
        if changed:
            place = _parted(backend, artifact)
            raise VerificationFailed(
                f"{artifact.path} is not as it was published: {'; '.join(changed)}"
                + (f"; its numbers are others from {place} on" if place else "")
            )
        steps.append({"step": "files", "matching": len(artifact.sha256)})
    if artifacts.REFERENCE not in artifact.sha256:
        raise BadInput(
            f"{artifact.path} is the engine of a kit, as it was built, and only the kit has PyTorch's outputs: verify"
            " that, and see the engine with edgesmith inspect"
        )
    targets.require(backend)
    with watch("format"):
        try:
            backend.check(artifact.file)
        except Unsupported as error:
            raise VerificationFailed(str(error)) from error
        steps.append({"step": "format", "operators": sum(backend.count_operators(artifact.file).values())})
    with watch("numbers"):
        reference, given = _given(artifact)
        verification = artifact.manifest["verification"]
        noises = [step["noise"] for step in verification["steps"] if "noise" in step]
        spikes = "edgesmith.lif" in artifact.manifest["operators"]["rewritten"]
        rule = Rule(verification["judged_as"], spikes, lambda: max(noises, default=None), collects=True)
        streaming = artifact.manifest.get("streaming")
        beside = "functions" in artifact.manifest
        if streaming is not None:
            steps += _check_step_file(backend, artifact.file, streaming, reference, given, rule)
        if streaming is None or beside:
            steps += _check_file(backend, artifact.file, None, reference, given, rule, beside)
    if sentences := missed(steps):
        raise VerificationFailed("; ".join(sentences), steps)
    return artifact, steps


def missed(steps: Sequence[Mapping[str, Any]]) -> list[str]:
    """What parts from PyTorch beyond its threshold: a sentence for each such check."""
    return [f"{step['step']}: {step['missed']}" for step in steps if "missed" in step]


TRACE_ERROR = 1e-4
"""How far an operator's figures may be from what they were on another machine, relative to its root mean square."""


def _parted(backend: Target, artifact: Artifact) -> str | None:
    """The first operator of a changed file whose result is not what it was; None where that cannot be said."""
    if targets.missing_packages(backend):
        return None
    try:
        before = artifacts.read_trace(artifact)
        _, given = _given(artifact)
        streaming = artifact.manifest.get("streaming")
        now = _traced(backend, artifact.file, given, streaming, "functions" in artifact.manifest)
    except EdgesmithError as error:  # the file is damaged: the sentence says where
        return str(error)
    except (OSError, KeyError, ValueError):
        return None
    for place, figures in now.items():
        if place not in before:
            return place
        if not np.allclose(figures, before[place], rtol=0, atol=TRACE_ERROR * before[place][0], equal_nan=True):
            return place
    return None


def explain(
    model: str | nn.Module,
    target: str = "onnx",
    *,
    inputs: Sequence[Tensor] | Tensor | None = None,
    weights: str | Path | None = None,
    input_size: tuple[int, int] | None = None,
    frames: int | None = None,
    features: bool = False,
) -> tuple[Program, Program, list[RewriteReport]]:
    """Capture and rewrite a model as `export` would. Arguments and errors are those of `export`.

    Returns:
        The captured program, the rewritten program, and what every rewrite did.
    """
    backend = targets.get(target)
    if isinstance(model, str):
        spec = registry.get(model)
        loaded = load_named(
            spec, _checked_shape(spec, input_size, frames, features, False), 1, weights, features, False
        )
    elif inputs is None:
        raise BadInput("explaining a module needs inputs=(tensor, ...), one example for each argument of forward")
    else:
        loaded = load_module(model, inputs, None)
    program = capture(loaded.module, loaded.inputs, loaded.input_names, loaded.output_names)
    rewritten, reports = rewrite(program, backend.costs)
    return program, rewritten, reports


def load_named(
    spec: ModelSpec,
    shape: tuple[int, ...],
    batch: int,
    weights: str | Path | None,
    features: bool,
    dynamic_batch: bool,
) -> Loaded:
    """A model of the registry with example inputs of a shape, batch left out."""
    asked: dict[str, Any] = {"features": True} if features else {}
    if isinstance(spec.input, SequenceInput):
        asked["frames"] = shape[0]
    module, origin = load(spec, weights, **asked)
    generator = torch.Generator().manual_seed(0)
    batch = max(batch, 2) if dynamic_batch else batch
    x = torch.randn(batch, *shape, generator=generator)
    outputs: tuple[str, ...] = ("logits",)
    if features:
        outputs = tuple(f"features_{i}" for i in range(len(run_eager(module, (x,)))))
    return Loaded(spec.name, module, (x,), (spec.input.name,), outputs, origin, spec)


def load_module(module: nn.Module, inputs: Sequence[Tensor] | Tensor, name: str | None) -> Loaded:
    """A module of the caller's own with its inputs."""
    given = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    if not isinstance(module, nn.Module):
        raise BadInput(f"model must be a name or a torch.nn.Module, got {type(module).__name__}")
    if not given or not all(isinstance(x, Tensor) for x in given):
        raise BadInput(f"inputs must be tensors, got {[type(x).__name__ for x in given]}")
    name = _checked_name(module, name)
    tensors = {key: value for key, value in module.state_dict().items() if isinstance(value, Tensor)}
    origin = Weights("the module's own", fingerprint(tensors) if not any(map(is_lazy, tensors.values())) else "")
    return Loaded(name, module, given, None, None, origin)


def _checked_options(
    backend: Target,
    precision: str | None,
    batch: int,
    dynamic_batch: bool,
    labels: Sequence[str] | None,
    image_input: bool,
    deployment_target: str | None,
    features: bool,
    streaming: bool,
    with_sequence: bool,
    calibration: str | Path | None,
) -> str:
    """The precision to use. Raises BadInput for what the target or the combination does not have."""
    precision = precision or backend.precisions[0]
    if precision not in backend.precisions:
        raise BadInput(f"target {backend.name} has precisions {', '.join(backend.precisions)}, got {precision!r}")
    given = {
        "labels": labels is not None,
        "image_input": image_input,
        "deployment_target": deployment_target is not None,
        "streaming": streaming,
        "with_sequence": with_sequence,
    }
    for option, is_given in given.items():
        if is_given and option not in backend.options:
            have = [t.name for t in targets.all_targets().values() if option in t.options]
            does = f"{have[0]} does" if len(have) == 1 else f"{', '.join(have)} do"
            raise BadInput(f"target {backend.name} has no --{option.replace('_', '-')}; {does}")
    if batch < 1:
        raise BadInput(f"--batch must be 1 or more, got {batch}")
    if dynamic_batch and not backend.dynamic_batch:
        raise BadInput(f"target {backend.name} takes static shapes only; give --batch N instead of --dynamic-batch")
    if streaming and precision in ("mixed", "int8"):
        raise BadInput(f"--precision {precision} looks at whole inputs and --streaming has steps; choose fp16 or fp32")
    if calibration is not None and precision != "int8":
        raise BadInput(f"--calibration is for --precision int8, got {precision}")
    if calibration is not None:
        calibrations.check_path(Path(calibration))
    if streaming and dynamic_batch:
        raise BadInput("--streaming keeps states of a fixed batch; give --batch N instead of --dynamic-batch")
    if with_sequence and not streaming:
        raise BadInput("--with-sequence puts the whole sequence's program beside the step; give --streaming too")
    if with_sequence and not backend.keeps_states(deployment_target):
        raise BadInput(
            "--with-sequence makes one package of two functions, which systems from iOS18 on take;"
            " give --deployment-target iOS18"
        )
    if labels is not None and features:
        raise BadInput("--labels belongs to logits and --features returns none; choose one")
    if labels is not None and len(set(labels)) != len(labels):
        twice = next(label for i, label in enumerate(labels) if label in labels[:i])
        raise BadInput(f"labels must differ from each other, got {twice!r} twice")
    if image_input and batch != 1:
        raise BadInput(f"an image input holds one image, got --batch {batch}; use --batch 1")
    if hasattr(backend, "deployment_target") and not targets.missing_packages(backend):
        backend.deployment_target(deployment_target)
    return precision


def _checked_name(model: object, name: str | None) -> str:
    name = name or type(model).__name__.lower()
    if not name.replace("_", "").replace("-", "").isalnum():
        raise BadInput(f"a model's name becomes a file's name: letters, digits, _ and - only, got {name!r}")
    return name


def _checked_device(backend: Target, profile: DeviceProfile | None, deployment_target: str | None) -> str | None:
    """The deployment target for a device. Raises BadInput where the device does not take the target."""
    if hasattr(backend, "check_device"):  # its files are for one kind of device
        backend.check_device(profile)
    if profile is None:
        return deployment_target
    if backend.name not in profile.targets:
        raise BadInput(f"{profile.title} takes {', '.join(profile.targets)}, not {backend.name}; choose --target")
    if profile.systems is None or "deployment_target" not in backend.options:
        return deployment_target
    if deployment_target is None:
        default = str(getattr(backend, "DEFAULT_DEPLOYMENT_TARGET", profile.systems.oldest))
        return max(default, profile.systems.oldest, key=_version)
    if _version(deployment_target) > _version(profile.systems.newest):
        raise BadInput(f"{profile.title} runs {profile.systems.newest} at most, got {deployment_target}")
    return deployment_target


def _version(system: str) -> int:
    """17 of `iOS17`."""
    digits = "".join(c for c in system if c.isdigit())
    return int(digits) if digits else 0


def _checked_shape(
    spec: ModelSpec, size: tuple[int, int] | None, frames: int | None, features: bool, image_input: bool
) -> tuple[int, ...]:
    """The shape of one input, without the batch. Raises BadInput for one that the model does not take."""
    reads = spec.input
    if isinstance(reads, SequenceInput):
        if size is not None or features or image_input:
            given = "--input-size" if size is not None else "--features" if features else "--image-input"
            raise BadInput(f"{spec.name} reads sequences and has no {given}; their length is --frames")
        if frames is not None and frames < 1:
            raise BadInput(f"--frames must be 1 or more, got {frames}")
        return (frames or reads.shape[0], reads.shape[1])
    if frames is not None:
        raise BadInput(f"{spec.name} reads images and has no --frames; their size is --input-size")
    if size is None:
        return reads.shape
    if any(n < reads.divisor or n % reads.divisor for n in size):
        nearest = [max(reads.divisor, round(n / reads.divisor) * reads.divisor) for n in size]
        raise BadInput(
            f"{spec.name} needs height and width divisible by {reads.divisor}, got {size[0]}x{size[1]};"
            f" the nearest is {nearest[0]}x{nearest[1]}"
        )
    return (reads.shape[0], *size)


def _describe_shape(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[2]}" if len(shape) == 3 else f"{shape[0]}-frames"


class _Classifier(nn.Module):
    """Probabilities instead of logits: what a classifier artifact returns beside the label."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> Tensor:
        logits: Tensor = self.model(*inputs)
        return logits.softmax(dim=1)


def _as_classifier(loaded: Loaded, labels: tuple[str, ...], backend: Target, batch: int) -> Loaded:
    outputs = run_eager(loaded.module, loaded.inputs)
    if len(outputs) != 1 or outputs[0].dim() != 2:
        raise BadInput("--labels needs a model that returns one tensor [B, classes]")
    logits = outputs[0]
    if logits.shape[1] != len(labels):
        raise BadInput(f"--labels has {len(labels)} names and the model has {logits.shape[1]} classes")
    if backend.name != "coreml":
        return loaded
    if batch != 1:
        raise BadInput(f"a Core ML classifier classifies one image, got --batch {batch}; use --batch 1")
    names = loaded.input_names or tuple(f"input_{i}" for i in range(len(loaded.inputs)))
    return replace(loaded, module=_Classifier(loaded.module), input_names=names, output_names=("probabilities",))


def _is_half(module: nn.Module) -> bool:
    return any(tensor.dtype == torch.float16 for tensor in (*module.parameters(), *module.buffers()))


def _arrays(tensors: Sequence[Tensor]) -> list[np.ndarray]:
    return [t.detach().float().numpy() for t in tensors]


STEP_INPUTS = 3
"""Sequences that a step program runs in PyTorch; its file runs all of them."""


STEP_FRAMES = 1024
"""Frames that a slow runtime steps through, in whole sequences, one of them at least."""


@dataclass(frozen=True)
class Rule:
    """How outputs are judged; see verify.py.

    Attributes:
        precision: of the thresholds.
        spikes: whether there are spiking neurons.
        noise: how far, relative to the peak, eager outputs are from those in float64; asked only when it matters.
            None where that cannot be said.
        collects: whether a check that fails says so in its entry, under `missed`, instead of raising.
    """

    precision: str
    spikes: bool
    noise: Callable[[], float | None]
    collects: bool = False


def _noise(model: nn.Module, given: Sequence[Sequence[Tensor]], reference: verify.Outputs) -> float | None:
    """How far a model is from itself in float64, relative to the peak."""
    try:
        exact = copy.deepcopy(model).double()
        outputs = [[y.numpy() for y in run_eager(exact, [_double(t) for t in x])] for x in given]
    except (BadInput, RuntimeError, TypeError):  # a model that sets types itself
        return None
    figures = verify.measure(outputs, [[y.astype(np.float64) for y in ys] for ys in reference], 0.0)
    return figures.relative_error


def _double(x: Tensor) -> Tensor:
    return x.double() if x.is_floating_point() else x


def _check(
    what: str,
    reference: verify.Outputs,
    outputs: verify.Outputs,
    rule: Rule,
    locate: Callable[[], str | None],
) -> dict[str, Any]:
    """One line of the manifest's verification.

    Raises:
        VerificationFailed: with the place where the numbers part, unless the rule collects failures.
    """
    thresholds = verify.THRESHOLDS[rule.precision]
    described: dict[str, Any] = {"step": what}
    try:
        figures = verify.measure(reference, outputs, thresholds.relative_error)
        failure = verify.judge(figures, thresholds)
        if failure is not None and rule.spikes:
            agreeing = verify.agreeing_inputs(reference, outputs, thresholds.relative_error)
            described["spike_for_spike"] = {"inputs": len(agreeing), "of": len(reference)}
            if verify.is_half(agreeing, reference):
                described["others"] = describe_figures(figures)
                few = [[outs[i] for i in agreeing] for outs in (reference, outputs)]
                figures = verify.measure(few[0], few[1], thresholds.relative_error)
                failure = verify.judge(figures, thresholds)
        if failure is not None and rule.precision == "fp32" and (noise := rule.noise()) is not None:
            thresholds = verify.above_noise(thresholds, noise)
            described |= {"noise": float(f"{noise:.1e}"), "allowed": float(f"{thresholds.relative_error:.1e}")}
            failure = verify.judge(figures, thresholds)
    except ValueError as error:
        raise VerificationFailed(f"{what}: {error}") from error
    if failure is not None:
        if rule.spikes and rule.precision != "fp32":
            words = "int8" if rule.precision == "int8" else "half precision"
            failure += f" ({words} flips spikes; use --precision fp32)"
        place = locate()
        failure += f"; they part first at {place}" if place else ""
        if not rule.collects:
            raise VerificationFailed(f"{what}: {failure}")
        described["missed"] = failure
    return described | describe_figures(figures)


def _limits(rule: Rule) -> dict[str, float]:
    """The thresholds that another machine must hold: eager's own noise, which it cannot measure, is in them."""
    thresholds = verify.THRESHOLDS[rule.precision]
    if rule.precision == "fp32" and (noise := rule.noise()) is not None:
        thresholds = verify.above_noise(thresholds, noise)
    return {"relative_error": float(f"{thresholds.relative_error:.2g}"), "snr_db": round(thresholds.snr_db, 1)}


def describe_figures(figures: verify.Figures) -> dict[str, Any]:
    """Figures as the manifest has them: two significant digits, SNR to a tenth of a dB; None for what is infinite."""

    def known(value: float | None, digits: Callable[[float], float]) -> float | None:
        return None if value is None or not math.isfinite(value) else digits(value)

    described: dict[str, Any] = {
        "max_abs_error": known(figures.max_abs_error, lambda value: float(f"{value:.1e}")),
        "relative_error": known(figures.relative_error, lambda value: float(f"{value:.1e}")),
        "snr_db": known(figures.snr_db, lambda value: round(value, 1)),
    }
    if figures.finite < 1:
        described["finite"] = round(figures.finite, 3)
    if figures.decided is not None:
        described["top1"] = {"agreeing": figures.agreeing, "decided": figures.decided, "ties": figures.ties}
    return described


def _check_program(
    what: str,
    program: Program,
    captured: Program,
    reference: verify.Outputs,
    given: Sequence[Sequence[Tensor]],
    rule: Rule,
) -> dict[str, Any]:
    """Check a captured or rewritten program, by the thresholds of the model's own precision."""

    def locate() -> str | None:
        if program is captured:
            return None
        found = verify.values(program.module, given[0])
        limit = verify.THRESHOLDS[rule.precision].relative_error
        return verify.first_divergence(captured, found, verify.captured_names(program), given[0], limit)

    outputs = [_arrays(run(program, x)) for x in given]
    return _check(f"eager -> {what}", reference, outputs, rule, locate)


def _check_file(
    backend: Target,
    file: Path,
    program: Program | None,
    reference: verify.Outputs,
    given: Sequence[Sequence[Tensor]],
    rule: Rule,
    beside: bool = False,
) -> list[dict[str, Any]]:
    """Check a file in its runtimes, or say why not here.

    Args:
        program: what it was lowered from, where that is known.
        beside: whether this is the sequence's function of a file that has a step too.
    """
    arrays = [[t.numpy() for t in x] for x in given]
    what = "eager -> sequence in the file" if beside else "eager -> file"
    outputs = backend.run(file, arrays)
    if isinstance(outputs, NotHere):
        return [{"step": what, "not_checked_here": outputs.reason}]

    def locate() -> str | None:
        if rule.precision == "fp16" and (place := backend.diagnose(file, arrays[0])) is not None:
            return place
        if program is None:
            return None
        # Exporting anew numbers the nodes anew, and those are the names that the file has.
        lowerings = getattr(backend, "LOWERINGS", backend.name)
        lowered = with_module(program, exported(program, lowerings).module(check_guards=False))
        names = [node.name for node in operators(lowered.module)]
        found = backend.intermediate(file, names, arrays[0])
        limit = verify.THRESHOLDS[rule.precision].relative_error
        return verify.first_divergence(lowered, found, {name: name for name in names}, given[0], limit)

    steps = [{**_check(what, reference, outputs, rule, locate), "runtime": backend.runtime}]
    for runtime, run_there in backend.other_runtimes().items():
        others = run_there(file, arrays)
        if isinstance(others, NotHere):
            steps.append({"step": f"eager -> {runtime}", "not_checked_here": others.reason})
            continue
        steps.append({**_check(what, reference, others, rule, lambda: None), "runtime": runtime})
        steps.append({**_check(f"{backend.runtime} -> {runtime}", outputs, others, rule, lambda: None)})
    return steps


def _check_step_file(
    backend: Target,
    file: Path,
    streaming: dict[str, Any],
    reference: verify.Outputs,
    given: Sequence[Sequence[Tensor]],
    rule: Rule,
) -> list[dict[str, Any]]:
    """Check a step program's file in its runtime, or say why not here; and which others did not execute it."""
    elsewhere = {name: run_there(file, []) for name, run_there in backend.other_runtimes().items()}
    unseen = [
        {"step": f"eager -> {name}", "not_checked_here": found.reason}
        for name, found in elsewhere.items()
        if isinstance(found, NotHere)
    ]
    step = backend.open_step(file)
    if isinstance(step, NotHere):
        return [{"step": "eager -> file", "not_checked_here": step.reason}, *unseen]
    if backend.is_interpreter:
        reference = reference[: max(1, STEP_FRAMES // given[0][0].shape[1])]
    try:
        checked = _check_step("file", streaming, step, reference, given, rule)
        return [{**checked, "runtime": backend.runtime}, *unseen]
    finally:
        step.close()


def _eager_step(step: StepProgram) -> Step:
    """A step program in PyTorch."""

    def call(values: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        return _arrays(run(step.program, [torch.from_numpy(value) for value in values]))

    return Step(call)


def _step_cases(
    step: StepProgram, streaming: dict[str, Any], given: Sequence[Sequence[Tensor]]
) -> tuple[list[list[np.ndarray]], verify.Outputs]:
    """The first steps of a sequence in PyTorch, each by itself: its inputs with the states before it, its outputs."""
    call = _eager_step(step).call
    frames = given[0][0].numpy()
    inputs, outputs = [_first_call(given, streaming)], []
    for i in range(len(given)):
        outputs.append(list(call(inputs[i])))
        count = len(streaming["states"])
        states = outputs[i][len(outputs[i]) - count :]
        between = inputs[i][1 : len(inputs[i]) - count]  # whether this is a frame of the sequence, which it is
        inputs.append([frames[:, (i + 1) % frames.shape[1]], *between, *states])
    return inputs[: len(given)], outputs


def _check_step(
    what: str,
    streaming: dict[str, Any],
    step: Step,
    reference: verify.Outputs,
    given: Sequence[Sequence[Tensor]],
    rule: Rule,
) -> dict[str, Any]:
    """Check a step program: fed frame by frame, it says what the whole sequence does in PyTorch.

    Compared are the predictions for all frames, and the last one where an output is a value over all of them.
    """
    stepper = Stepper(streaming, step)
    axes = [output["time_axis"] for output in streaming["outputs"]]
    outputs: verify.Outputs = []
    for (sequence,), _ in zip(given, reference, strict=False):
        predictions = stepper.run(sequence.float().numpy())
        steps = [[y] if isinstance(y, np.ndarray) else list(y) for y in predictions]
        outputs.append(
            [
                steps[-1][j] if axis is None else np.stack([step[j] for step in steps], axis)
                for j, axis in enumerate(axes)
            ]
        )
    checked = _check(f"eager -> {what}", reference, outputs, rule, lambda: None)
    return {**checked, "sequences": len(reference), "frames": given[0][0].shape[1]}


def _manifest(
    loaded: Loaded,
    backend: Target,
    request: Request,
    program: Program,
    rewritten: Program,
    step: StepProgram | None,
    reports: Sequence[RewriteReport],
    file: Path,
    steps: Sequence[dict[str, Any]],
    features: bool,
    device: str | None,
    judged: str,
) -> dict[str, Any]:
    spec = loaded.spec
    lowered = program if step is None else step.program
    shapes = [["batch", *x.shape[1:]] if program.dynamic_batch else list(x.shape) for x in lowered.inputs]
    kept = {state.name for state in step.states} if step and request.keeps_states else set()
    names = [(n, s) for n, s in zip(lowered.input_names, shapes, strict=True) if n not in kept]
    model: dict[str, Any] = {"name": loaded.name, "inputs": [{"name": n, "shape": s} for n, s in names]}
    model["outputs"] = [n for n in lowered.output_names if n.removeprefix("next_") not in kept]
    if spec is not None:
        model |= {"features": features, "source": spec.source, "paper": spec.paper, "licence": spec.licence}
        reads = spec.input
        model["normalisation"] = (
            {"mean": list(reads.mean), "std": list(reads.std)} if isinstance(reads, ImageInput) else reads.normalised
        )
    weights = loaded.weights
    return {
        "file": file.name,
        "model": model,
        **({} if request.streaming is None else {"streaming": request.streaming}),
        **_functions(backend, file, request, model),
        "weights": {
            "origin": weights.origin,
            "sha256": weights.sha256,
            "file_sha256": weights.file_sha256,
            "notes": list(weights.notes),
        },
        "target": {
            "name": backend.name,
            "options": {
                "batch": "dynamic" if program.dynamic_batch else next(iter(program.inputs[0].shape), None),
                "image_input": request.image_input,
                "labels": None if request.labels is None else len(request.labels),
                "deployment_target": request.deployment_target or getattr(backend, "DEFAULT_DEPLOYMENT_TARGET", None),
                "device": device,
            },
        },
        "precision": request.precision,
        **({"wide": dict(request.wide)} if request.precision == "mixed" or request.wide else {}),
        "tool": {"edgesmith": __version__},
        "versions": _versions(backend),
        "rewrites": [
            {
                "name": report.name,
                "applied": [{"site": site, "note": note} for site, note in report.applied],
                "rejected": [{"site": rejection.site, "reason": rejection.reason} for rejection in report.rejected],
            }
            for report in reports
        ],
        **_mended(backend, file),
        **(backend.describe(file) if hasattr(backend, "describe") else {}),
        "operators": {
            "captured": count_operators(program.module),
            "rewritten": count_operators(rewritten.module),
            **({} if step is None else {"step": count_operators(step.program.module)}),
            "file": backend.count_operators(file),
        },
        "verification": {
            "inputs": {
                "count": verify.COUNT,
                "seeds": f"0 to {verify.COUNT - 1}",
                "values": verify.describe_inputs(program.inputs, request.image if request.image_input else None),
            },
            "judged_as": judged,
            "thresholds": {
                precision: {"relative_error": t.relative_error, "snr_db": t.snr_db, "top1": "every decided input"}
                for precision, t in verify.THRESHOLDS.items()
            },
            **({"missed": sentences} if (sentences := missed(steps)) else {}),
            "steps": list(steps),
        },
    }


def _functions(backend: Target, file: Path, request: Request, step: dict[str, Any]) -> dict[str, Any]:
    """Inputs, outputs and states of each function of a file that holds a step and its sequence, and what they share."""
    if request.whole is None or request.streaming is None:
        return {}
    whole = request.whole
    inputs = [{"name": n, "shape": list(x.shape)} for n, x in zip(whole.input_names, whole.inputs, strict=True)]
    states = [state["name"] for state in request.streaming["states"]]
    functions = {
        "default": "step",
        "step": {"inputs": step["inputs"], "outputs": step["outputs"], "states": states},
        "sequence": {"inputs": inputs, "outputs": list(whole.output_names), "states": []},
    }
    return {"functions": functions | {"shared_bytes": getattr(backend, "shared_bytes", lambda _: 0)(file)}}


def _mended(backend: Target, file: Path) -> dict[str, Any]:
    """What a target's lowering has mended by itself, where it says so and there is something."""
    found = backend.mended(file) if hasattr(backend, "mended") else []
    return {"mended": found} if found else {}


def _versions(backend: Target) -> dict[str, str]:
    packages = dict.fromkeys(("torch", "numpy", *backend.packages, "onnxruntime"))
    return {package: importlib.metadata.version(package) for package in packages}


def _folder_name(name: str, target: str, precision: str, *differences: str | None) -> str:
    """Model, target and precision, and whatever is not the default, so that variants live side by side."""
    return "-".join([name, target, precision, *(word for word in differences if word)])
