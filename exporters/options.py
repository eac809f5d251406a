"""What an export is asked for, checked once against target, model and device, before torch is imported.

    options = ExportOptions.checked("casvit_xs", "coreml", batch=4)

Only this module knows the options one by one; what follows is given what they come to: a target, a precision, a shape,
the name of a folder. A wrong option is answered here, in a sentence, in a fraction of a second. What only the loaded
model can tell, such as how many classes a checkpoint has, load.py asks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import wraps
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from edgesmith.errors import BadInput
from edgesmith.exporters import targets
from edgesmith.exporters.costs import Costs
from edgesmith.exporters.precision import table as precisions
from edgesmith.exporters.precision.table import FP32, Precision
from edgesmith.exporters.targets.target import Target
from edgesmith.models import registry
from edgesmith.models.registry import ImageInput, ModelSpec, SequenceInput
from edgesmith.profiles import device as devices
from edgesmith.profiles.device import DeviceProfile

if TYPE_CHECKING:
    from torch import Tensor, nn

Watch = Callable[[str], AbstractContextManager[None]]
"""Called with each stage's name; entered when the stage starts and left when it ends."""


def silent(stage: str) -> AbstractContextManager[None]:
    """Show nothing: a `Watch`."""
    return contextlib.nullcontext()


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """The options of one export, resolved: names are what they name, and what has a default has its value.

    Attributes:
        model: a name from `edgesmith models`, or any module that torch.export captures.
        target: the format.
        precision: of weights and arithmetic.
        spec: the facts about a named model; None for a module.
        inputs: example tensors, for a module; their shapes are the artifact's.
        name: what the artifact calls the model; of a module by default its class, in lower case.
        weights: checkpoint of a named model; without it weights are random from a fixed seed.
        shape: of one input of a named model, without the batch; the published one, or as --input-size and --frames say.
        batch: images or sequences in one call.
        dynamic_batch: leave the batch free, where the target can.
        features: the dense features of a named model instead of its logits.
        labels: class names; a Core ML artifact becomes a classifier, which returns probabilities.
        image_input: take an image (Core ML); mean and deviation are folded in.
        streaming: one step of a sequence model instead of the whole sequence.
        with_sequence: beside the step the whole sequence's program, as two functions of one package.
        deployment_target: oldest system to run on, such as `iOS17`; None where nothing was asked for.
        profile: the device that the file is for.
        calibration: a folder of images or an `.npz` that int8 is calibrated and judged on.
        allow_inaccurate: publish a file that misses a threshold, and say so in its manifest.
        out: folder for the artifact's own folder.
        watch: shown the stages.
    """

    model: str | nn.Module
    target: Target
    precision: Precision
    spec: ModelSpec | None
    inputs: Sequence[Tensor] | Tensor | None = None
    name: str = ""
    weights: str | Path | None = None
    shape: tuple[int, ...] = ()
    batch: int = 1
    dynamic_batch: bool = False
    features: bool = False
    labels: tuple[str, ...] | None = None
    image_input: bool = False
    streaming: bool = False
    with_sequence: bool = False
    deployment_target: str | None = None
    profile: DeviceProfile | None = None
    calibration: Path | None = None
    allow_inaccurate: bool = False
    out: Path = Path("artifacts")
    watch: Watch = silent

    @classmethod
    def checked(
        cls,
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
    ) -> ExportOptions:
        """Return the options of an export, or refuse what target, model and device do not have together.

        Args are the attributes of the class, but for:
            target, precision, device: names from `edgesmith targets` and `edgesmith devices`. The default precision is
                the model's own, which is fp32 where neurons spike, or the target's. TensorRT needs a device: an engine
                is for one GPU. A newer system that all such devices have becomes the deployment target.
            input_size: height and width in pixels, of a named image model; default: the published size.
            frames: length of the sequences of a named sequence model; default: the published length.

        Raises:
            BadInput: a sentence that says what was wanted, what came and what to do.
            BackendMissing: the target's packages are not installed.
        """
        backend = targets.get(target)
        profile = devices.get(device) if device is not None else None
        backend.check_device(profile)
        spec = _spec(model)
        options = cls(
            model=model,
            target=backend,
            precision=_precision(backend, precision, spec),
            spec=spec,
            inputs=inputs,
            name=_name(model, spec, name),
            weights=weights,
            shape=_shape(spec, input_size, frames),
            batch=batch,
            dynamic_batch=dynamic_batch,
            features=features,
            labels=None if labels is None else tuple(labels),
            image_input=image_input,
            streaming=streaming,
            with_sequence=with_sequence,
            deployment_target=_deployment_target(backend, profile, deployment_target),
            profile=profile,
            calibration=None if calibration is None else Path(calibration),
            allow_inaccurate=allow_inaccurate,
            out=Path(out),
            watch=watch,
        )
        for check in (*MODEL_CHECKS, *FILE_CHECKS):
            check(options)
        backend.require()
        return options

    @classmethod
    def to_explain(
        cls,
        model: str | nn.Module,
        target: str = "onnx",
        *,
        inputs: Sequence[Tensor] | Tensor | None = None,
        weights: str | Path | None = None,
        input_size: tuple[int, int] | None = None,
        frames: int | None = None,
        features: bool = False,
    ) -> ExportOptions:
        """Return the options of an export that ends before anything is lowered. Needs no device and no package.

        Raises:
            BadInput: as `checked`.
        """
        spec = _spec(model)
        options = cls(
            model=model,
            target=targets.get(target),
            precision=FP32,
            spec=spec,
            inputs=inputs,
            name=_name(model, spec, None),
            weights=weights,
            shape=_shape(spec, input_size, frames),
            features=features,
        )
        for check in MODEL_CHECKS:
            check(options)
        return options

    @property
    def image(self) -> ImageInput | None:
        """How the model's input relates to images, where it reads images."""
        return self.spec.input if self.spec and isinstance(self.spec.input, ImageInput) else None

    @property
    def sequence(self) -> SequenceInput | None:
        """What the model's frames are, where it reads sequences."""
        return self.spec.input if self.spec and isinstance(self.spec.input, SequenceInput) else None

    @property
    def costs(self) -> Costs:
        """What the target pays, as far as the precision may choose forms by it."""
        return self.precision.costs(self.target.costs)

    @property
    def folder_name(self) -> str:
        """Model, target and precision, and whatever is not the default, so that variants live side by side."""
        is_resized = self.spec is not None and self.shape != self.spec.input.shape
        is_batched = self.dynamic_batch or self.batch != 1
        is_for_another_system = self.deployment_target not in (None, self.target.default_deployment_target)
        differences = (
            (is_resized, _describe_shape(self.shape)),
            (is_batched, f"batch-{'dynamic' if self.dynamic_batch else self.batch}"),
            (self.features, "features"),
            (self.labels is not None, "labels"),
            (self.image_input, "image"),
            (self.streaming, "streaming"),
            (self.with_sequence, "with-sequence"),
            (is_for_another_system, self.deployment_target),
            (self.profile is not None and self.target.marks_device, self.profile.name if self.profile else ""),
        )
        words = (str(word) for differs, word in differences if differs)
        return "-".join([self.name, self.target.name, self.precision.name, *words])


_P = ParamSpec("_P")
_R = TypeVar("_R")


def takes(options: Callable[_P, ExportOptions]) -> Callable[[Callable[[ExportOptions], _R]], Callable[_P, _R]]:
    """Let a function of `ExportOptions` be called with what makes them: `export(model, target, batch=4)`."""

    def decorate(function: Callable[[ExportOptions], _R]) -> Callable[_P, _R]:
        @wraps(function)
        def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            return function(options(*args, **kwargs))

        returns = signature(function).return_annotation
        call.__signature__ = signature(options).replace(return_annotation=returns)  # type: ignore[attr-defined]  # inspect's
        return call

    return decorate


def _spec(model: str | nn.Module) -> ModelSpec | None:
    if isinstance(model, str):
        return registry.get(model)
    from torch import nn  # imported already: somebody has made a module

    if not isinstance(model, nn.Module):
        raise BadInput(f"model must be a name or a torch.nn.Module, got {type(model).__name__}")
    return None


def _precision(target: Target, name: str | None, spec: ModelSpec | None) -> Precision:
    """Return the precision of a name, of the model, or of the target."""
    known = precisions.for_target(target.name, target.precisions)
    wanted = name or (spec.precision if spec else "") or known[0]
    if wanted not in known:
        raise BadInput(f"target {target.name} has precisions {', '.join(known)}, got {wanted!r}")
    return precisions.get(wanted)


def _name(model: str | nn.Module, spec: ModelSpec | None, name: str | None) -> str:
    """Return what the artifact calls the model."""
    if spec is not None:
        if name is not None:
            raise BadInput(f"a named model keeps its name, {spec.name}; name= is for a module, got {name!r}")
        return spec.name
    name = name or type(model).__name__.lower()
    if not name.replace("_", "").replace("-", "").isalnum():
        raise BadInput(f"a model's name becomes a file's name: letters, digits, _ and - only, got {name!r}")
    return name


def _shape(spec: ModelSpec | None, size: tuple[int, int] | None, frames: int | None) -> tuple[int, ...]:
    """Return the shape of one input, without the batch; of a module nothing is known."""
    if spec is None:
        if size is not None or frames is not None:
            raise BadInput("input_size and frames belong to named models; a module's shapes are those of its inputs")
        return ()
    reads = spec.input
    if isinstance(reads, SequenceInput):
        if size is not None:
            raise BadInput(f"{spec.name} reads sequences and has no --input-size; their length is --frames")
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
    return f"{shape[1]}x{shape[2]}" if len(shape) == 3 else f"{shape[0]}-frames" if shape else ""


def _deployment_target(target: Target, profile: DeviceProfile | None, wanted: str | None) -> str | None:
    """Return the oldest system to run on: what was asked for, or what all devices of a kind have."""
    known = target.deployment_targets
    if wanted is not None and known and wanted not in known:
        raise BadInput(f"unknown deployment target {wanted!r}. There are {', '.join(known)}")
    if profile is None or profile.systems is None or not known:
        return wanted
    if wanted is None:
        default = target.default_deployment_target or profile.systems.oldest
        return max(default, profile.systems.oldest, key=_version)
    if _version(wanted) > _version(profile.systems.newest):
        raise BadInput(f"{profile.title} runs {profile.systems.newest} at most, got {wanted}")
    return wanted


def _version(system: str) -> int:
    """17 of `iOS17`."""
    digits = "".join(c for c in system if c.isdigit())
    return int(digits) if digits else 0


def _check_module(options: ExportOptions) -> None:
    """Refuse options of named models beside a module, and a module without inputs."""
    if options.spec is not None:
        if options.inputs is not None:
            raise BadInput(
                f"{options.spec.name} has inputs of its own shape; inputs= is for a module, and sizes are"
                " --input-size, --frames and --batch"
            )
        return
    if options.inputs is None:
        raise BadInput("exporting a module needs inputs=(tensor, ...), one example for each argument of forward")
    if options.weights is not None or options.batch != 1 or options.features or options.image_input:
        raise BadInput(
            "weights, input_size, frames, batch, features and image_input belong to named models;"
            " a module has its own weights, and its shapes are those of inputs"
        )


def _check_reads(options: ExportOptions) -> None:
    """Refuse options of image models for sequence models, and the other way round."""
    if options.sequence is not None and (options.features or options.image_input):
        given = "--features" if options.features else "--image-input"
        raise BadInput(f"{options.name} reads sequences and has no {given}; their length is --frames")
    if options.image is not None and options.streaming:
        raise BadInput(f"{options.name} reads images and has no --streaming; models of sequences have")


def _check_target(options: ExportOptions) -> None:
    """Refuse options that the target does not serve."""
    given = {
        "labels": options.labels is not None,
        "image_input": options.image_input,
        "deployment_target": options.deployment_target is not None,
        "streaming": options.streaming,
        "with_sequence": options.with_sequence,
    }
    for option, is_given in given.items():
        if is_given and option not in options.target.options:
            have = [name for name, target in targets.all_targets().items() if option in target.options]
            does = f"{have[0]} does" if len(have) == 1 else f"{', '.join(have)} do"
            raise BadInput(f"target {options.target.name} has no --{option.replace('_', '-')}; {does}")


def _check_batch(options: ExportOptions) -> None:
    if options.batch < 1:
        raise BadInput(f"--batch must be 1 or more, got {options.batch}")
    if options.dynamic_batch and not options.target.dynamic_batch:
        name = options.target.name
        raise BadInput(f"target {name} takes static shapes only; give --batch N instead of --dynamic-batch")
    if options.image_input and options.batch != 1:
        raise BadInput(f"an image input holds one image, got --batch {options.batch}; use --batch 1")


def _check_streaming(options: ExportOptions) -> None:
    """Refuse what a step cannot have, and a sequence without a step."""
    if options.streaming and options.precision.needs_whole_inputs:
        raise BadInput(
            f"--precision {options.precision.name} looks at whole inputs and --streaming has steps; choose fp16 or fp32"
        )
    if options.streaming and options.dynamic_batch:
        raise BadInput("--streaming keeps states of a fixed batch; give --batch N instead of --dynamic-batch")
    if options.with_sequence and not options.streaming:
        raise BadInput("--with-sequence puts the whole sequence's program beside the step; give --streaming too")
    if options.with_sequence and not options.target.keeps_states(options.deployment_target):
        raise BadInput(
            "--with-sequence makes one package of two functions, which systems from iOS18 on take;"
            " give --deployment-target iOS18"
        )


def _check_calibration(options: ExportOptions) -> None:
    path = options.calibration
    if path is None:
        return
    if not options.precision.calibrates:
        raise BadInput(f"--calibration is for --precision int8, got {options.precision.name}")
    if not path.exists():
        raise BadInput(f"--calibration: there is no {path}; wanted a folder of images or an .npz")
    if path.is_file() and path.suffix.lower() != ".npz":
        raise BadInput(f"--calibration must be a folder of images or an .npz, got the file {path}")


def _check_labels(options: ExportOptions) -> None:
    labels = options.labels
    if labels is None:
        return
    if options.features:
        raise BadInput("--labels belongs to logits and --features returns none; choose one")
    if len(set(labels)) != len(labels):
        twice = next(label for i, label in enumerate(labels) if label in labels[:i])
        raise BadInput(f"labels must differ from each other, got {twice!r} twice")
    if options.target.classifies and options.batch != 1:
        raise BadInput(f"a Core ML classifier classifies one image, got --batch {options.batch}; use --batch 1")
    if options.spec is not None and options.weights is None and len(labels) != options.spec.classes:
        raise BadInput(f"--labels has {len(labels)} names and the model has {options.spec.classes} classes")


Check = Callable[[ExportOptions], None]

MODEL_CHECKS: tuple[Check, ...] = (_check_module, _check_reads)
"""What must hold to load and rewrite a model."""

FILE_CHECKS: tuple[Check, ...] = (_check_target, _check_batch, _check_streaming, _check_calibration, _check_labels)
"""What must hold beside that to write a file."""
