"""Options of an export, checked once against target, model and device, before torch is imported.

    options = ExportOptions("casvit_xs", "coreml", batch=4)

Only this module knows the options one by one; what follows is given what they come to: a target, a precision, a shape,
the name of a folder. A wrong option is answered here, in a sentence, in a fraction of a second. What only the loaded
model can tell, such as how many classes a checkpoint has, load.py asks.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import KW_ONLY, dataclass, fields
from functools import cached_property, wraps
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

from edgesmith.errors import BadInput
from edgesmith.exporters import targets
from edgesmith.exporters.costs import Costs
from edgesmith.exporters.own.reference import OwnModule
from edgesmith.exporters.precision import table as precisions
from edgesmith.exporters.precision.table import Precision
from edgesmith.exporters.targets.target import Target
from edgesmith.models import registry
from edgesmith.models.registry import ImageInput, ModelSpec, SequenceInput, SoundInput, TokenInput
from edgesmith.models.series import SeriesInput, read_file
from edgesmith.profiles import device as devices
from edgesmith.profiles.device import DeviceProfile
from edgesmith.readers.weights import check_weights

if TYPE_CHECKING:
    from torch import Tensor, nn

Watch = Callable[[str], AbstractContextManager[None]]
"""Called with each stage's name; entered when the stage starts and left when it ends."""


def silent(stage: str) -> AbstractContextManager[None]:
    """Show nothing: a `Watch`."""
    return contextlib.nullcontext()


@dataclass(frozen=True)
class ModelOptions:
    """The options that say which model is loaded, of which shape; all that `explain` takes. Making them checks them.

    Attributes:
        model: a name from `edgesmith models`, any module that torch.export captures, or an `OwnModule`, which says
            where one is found.
        target: a name from `edgesmith targets`.
        inputs: example arguments of a module's forward, by position, or by name in a dictionary: tensors, whose shapes
            are the artifact's, and nests of them. Other values among them become part of the file.
        kwargs: those by name, beside others by position.
        name: what to call a module's artifact; default: its class, in lower case.
        weights: checkpoint of a named model; without it weights are random from a fixed seed.
        input_size: height and width in pixels, of a named image model; default: the published size.
        frames: length of the sequences of a named sequence model; default: the published length.
        batch: images or sequences in one call.
        dynamic_batch: leave the batch free, where the target can.
        features: the dense features of a named model instead of its logits.
        segmentation: of a named model for it: `logits` at a quarter of the image's size, or `labels`, the class of each
            pixel at the image's own size. Default: logits. Of any other image model: a head on its dense features,
            `fpn` or `upernet`, whose logits have the size of the first of them, or `fpn-labels`, `upernet-labels`.
        config: a forecaster's `config.json`, with transformers' names, for the models that take one.
        observed_mask: a second input of a named forecaster, which says what was observed.
        front_end: take sound in, and make the frames of a named speech model inside of the file.

    Raises:
        BadInput: a sentence that says what was wanted, what came and what to do.
    """

    model: str | nn.Module | OwnModule
    target: str = "onnx"
    _: KW_ONLY
    inputs: Sequence[Any] | Mapping[str, Any] | Tensor | None = None
    kwargs: Mapping[str, Any] | None = None
    name: str | None = None
    weights: str | Path | None = None
    input_size: tuple[int, int] | None = None
    frames: int | None = None
    batch: int = 1
    dynamic_batch: bool = False
    features: bool = False
    segmentation: str | None = None
    config: str | Path | None = None
    observed_mask: bool = False
    front_end: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.input_size, list):
            object.__setattr__(self, "input_size", tuple(self.input_size))
        for check in MODEL_CHECKS:
            check(self)

    @cached_property
    def backend(self) -> Target:
        """The target that is called `target`."""
        return targets.get(self.target)

    @cached_property
    def spec(self) -> ModelSpec | None:
        """The facts about a named model; None for a module."""
        return _configured(_spec(self.model), self.config, self.observed_mask)

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Shape of one input of a named model, without the batch; empty for a module."""
        size = self.input_size
        if self.head and size is None and self.image is not None and not self.image.is_fixed:
            size = registry.SIZE_OF_HEADS
        return _shape(self.spec, size, self.frames)

    @cached_property
    def artifact_name(self) -> str:
        """The model's name in the artifact."""
        return _name(self.model, self.spec, self.name)

    @property
    def segments(self) -> bool:
        """Return whether the model's output is a map of classes, as logits or as labels."""
        return bool(self.head) or (self.spec is not None and self.spec.segments and not self.features)

    @property
    def head(self) -> str:
        """The head that goes on the model's dense features; empty for the model's own."""
        head = (self.segmentation or "").removesuffix(OF_LABELS)
        return head if head in registry.HEADS else ""

    @property
    def labels_pixels(self) -> bool:
        """Return whether the output is the class of each pixel."""
        return (self.segmentation or "").endswith(SEGMENTATIONS[1])

    @property
    def classes(self) -> int:
        """The number of classes that a named model has without a checkpoint; 0 for none."""
        return registry.CLASSES_OF_HEADS if self.head else self.spec.classes if self.spec is not None else 0

    @property
    def image(self) -> ImageInput | None:
        """The relation of the model's input to images; None where it reads none."""
        return self.spec.input if self.spec and isinstance(self.spec.input, ImageInput) else None

    @property
    def sequence(self) -> SequenceInput | None:
        """The model's frames; None where it reads no sequences."""
        return self.spec.input if self.spec and isinstance(self.spec.input, SequenceInput) else None

    @cached_property
    def sound(self) -> SoundInput | None:
        """The sound that the file makes the model's frames of; None where it is given frames."""
        if not self.front_end or self.sequence is None:
            return None
        return registry.to_sound(self.sequence, self.shape[0], self._steps)

    @property
    def _steps(self) -> bool:
        """Return whether a step is made of the model."""
        return False

    @property
    def tokens(self) -> TokenInput | None:
        """The tokens of a language model; None where it reads none."""
        return self.spec.input if self.spec and isinstance(self.spec.input, TokenInput) else None

    @property
    def series(self) -> SeriesInput | None:
        """The contract of a forecaster; None for any other model."""
        return self.spec.input if self.spec and isinstance(self.spec.input, SeriesInput) else None


@dataclass(frozen=True, kw_only=True)
class ExportOptions(ModelOptions):
    """The options of one export. Making them checks them; see `ModelOptions` for those of the model.

    Attributes:
        precision: a name, see precision/table.py; default: the model's own, which is fp32 where neurons spike, or the
            target's.
        labels: class names; a Core ML artifact becomes a classifier, which returns probabilities.
        image_input: take an image (Core ML); mean and deviation are folded in.
        streaming: one step of a sequence model instead of the whole sequence: a frame and states in, a prediction and
            the next states out (see streaming/ and session.py).
        with_sequence: beside the step the whole sequence's program, as two functions of one package that share their
            weights (Core ML, iOS18 and later).
        deployment_target: oldest system to run on (Core ML), such as `iOS17`.
        device: a name from `edgesmith devices`; it must take the target, and a system newer than the default that all
            such devices have becomes the deployment target. TensorRT needs one: an engine is for one GPU.
        calibration: a folder of images or an `.npz` that int8 is calibrated and judged on (precision/calibration.py);
            without it random inputs are, with a warning.
        verify_inputs: a folder of images or an `.npz`, as for `calibration`, that the file is verified on instead of
            drawn inputs, in every precision; the artifact keeps what was used.
        allow_inaccurate: publish a file whose outputs diverge from PyTorch's beyond the threshold; the manifest's
            `verification.missed` says by how much, and verifying it raises VerificationFailed as ever.
        out: folder for the artifact's own folder.
        watch: see `Watch`.

    Raises:
        BadInput: a sentence that says what was wanted, what came and what to do.
        BackendMissing: the target's packages are not installed.
    """

    precision: str | None = None
    labels: Sequence[str] | None = None
    image_input: bool = False
    streaming: bool = False
    with_sequence: bool = False
    deployment_target: str | None = None
    device: str | None = None
    calibration: str | Path | None = None
    verify_inputs: str | Path | None = None
    allow_inaccurate: bool = False
    out: str | Path = "artifacts"
    watch: Watch = silent

    def __post_init__(self) -> None:
        _check_kinds(self)  # before what asks for a device or a target
        self.backend.check_device(self.profile)
        super().__post_init__()
        for check in FILE_CHECKS:
            check(self)
        self.backend.require_for(self.backend.delivery(self.profile).suffix)

    @cached_property
    def profile(self) -> DeviceProfile | None:
        """The device that is called `device`; None for `host`, which is this machine, as without one."""
        return devices.get(self.device) if self.device not in (None, HOST) else None

    @cached_property
    def arithmetic(self) -> Precision:
        """The precision that is called `precision`, or the default one."""
        return _precision(self.backend, self.precision, self.spec)

    @cached_property
    def system(self) -> str | None:
        """The oldest system to run on; None where nothing was asked for, and the target's default holds."""
        return _system(self.backend, self.profile, self.deployment_target)

    @property
    def _steps(self) -> bool:
        return self.streaming

    @property
    def costs(self) -> Costs:
        """The target's costs, as far as the precision may choose forms by them."""
        return self.arithmetic.costs(self.backend.costs)

    @property
    def folder_name(self) -> str:
        """Model, target and precision, and whatever is not the default, so that variants live side by side."""
        is_resized = self.spec is not None and self.shape != self.spec.input.shape
        is_batched = self.dynamic_batch or self.batch != 1
        is_for_another_system = self.system not in (None, self.backend.default_deployment_target)
        differences = (
            (is_resized, _describe_shape(self.shape)),
            (is_batched, f"batch-{'dynamic' if self.dynamic_batch else self.batch}"),
            (self.features, "features"),
            (bool(self.head), self.head),
            (self.labels_pixels, "label-map"),
            (self.labels is not None, "labels"),
            (self.image_input, "image"),
            (self.front_end, "front-end"),
            (self.streaming, "streaming"),
            (self.with_sequence, "with-sequence"),
            (is_for_another_system, self.system),
            (self.device is not None and self.backend.marks_device, self.device),
        )
        words = (str(word) for differs, word in differences if differs)
        return "-".join([self.artifact_name, self.backend.name, self.arithmetic.name, *words])


HOST = "host"
"""This machine, where a device may be named; `edgesmith devices` lists it too."""

SEGMENTATIONS = ("logits", "labels")
"""The outputs that a model for segmentation may have, the default first."""

OF_LABELS = f"-{SEGMENTATIONS[1]}"
"""Behind the name of a head whose output is the class of each pixel."""

OF_HEADS = tuple(f"{head}{ending}" for head in registry.HEADS for ending in ("", OF_LABELS))
"""The outputs that heads on dense features have."""

_P = ParamSpec("_P")
_R = TypeVar("_R")
_O = TypeVar("_O", bound=ModelOptions)


def takes(options: Callable[_P, _O]) -> Callable[[Callable[[_O], _R]], Callable[_P, _R]]:
    """Let a function of options be called with what makes them: `export(model, target, batch=4)`."""

    def decorate(function: Callable[[_O], _R]) -> Callable[_P, _R]:
        name, known = function.__name__, signature(options)
        by_place = [one.name for one in known.parameters.values() if one.kind is one.POSITIONAL_OR_KEYWORD]

        @wraps(function)
        def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            try:
                known.bind(*args, **kwargs)
            except TypeError as error:  # else in the words of a class that the caller has not named
                raise TypeError(f"{name}: {error}; call it as {name}({', '.join(by_place)}, option=...)") from None
            return function(options(*args, **kwargs))

        returns = signature(function).return_annotation
        call.__signature__ = known.replace(return_annotation=returns)  # type: ignore[attr-defined]  # inspect's
        return call

    return decorate


def _spec(model: str | nn.Module | OwnModule) -> ModelSpec | None:
    if isinstance(model, str):
        return registry.get(model)
    if isinstance(model, OwnModule):
        return None
    from torch import nn  # imported already: somebody has made a module

    if not isinstance(model, nn.Module):
        kind = "the class " + model.__name__ if isinstance(model, type) else type(model).__name__
        way_out = "make one of it: Name(...)" if isinstance(model, type) else "call it in a module's forward"
        raise BadInput(f"model must be a name or a torch.nn.Module, got {kind}; {way_out}")
    return None


def _configured(spec: ModelSpec | None, config: str | Path | None, observed_mask: bool) -> ModelSpec | None:
    """Return a forecaster with a configuration of the caller's own; any other model as it is."""
    if spec is None or not isinstance(spec.input, SeriesInput):
        if config is not None or observed_mask:
            option = "--config" if config is not None else "--observed-mask"
            name = spec.name if spec is not None else "a module"
            raise BadInput(f"{option} is for forecasters, such as ttm and patchtsmixer; {name} is none")
        return spec
    if config is not None and not spec.configurable:
        raise BadInput(f"{spec.name} has a configuration of its own; --config goes with --model {spec.family}")
    if config is None and not observed_mask:
        return spec
    facts = read_file(config) if config is not None else {}
    return registry.configure(spec, facts, observed_mask, Path(config).name if config is not None else spec.name)


def _precision(target: Target, name: str | None, spec: ModelSpec | None) -> Precision:
    """Return the precision of a name, of the model, or of the target."""
    known = precisions.for_target(target.name, target.precisions)
    wanted = name or (spec.precision if spec else "") or known[0]
    if wanted not in known:
        raise BadInput(f"target {target.name} has precisions {', '.join(known)}, got {wanted!r}")
    return precisions.get(wanted)


def _name(model: str | nn.Module | OwnModule, spec: ModelSpec | None, name: str | None) -> str:
    """Return what the artifact calls the model."""
    if spec is not None:
        if name is not None:
            raise BadInput(f"a named model keeps its name, {spec.name}; name= is for a module, got {name!r}")
        return spec.name
    name = name or _own_name(model)
    if not name.replace("_", "").replace("-", "").isalnum():
        raise BadInput(f"a model's name becomes a file's name: letters, digits, _ and - only, got {name!r}")
    return name


def _own_name(model: str | nn.Module | OwnModule) -> str:
    if isinstance(model, OwnModule):
        return model.name
    from edgesmith.exporters.graph.unwrap import unwrap  # torch has been imported: somebody has made a module

    return type(unwrap(cast("nn.Module", model))).__name__.lower()


def _shape(spec: ModelSpec | None, size: tuple[int, int] | None, frames: int | None) -> tuple[int, ...]:
    """Return the shape of one input, without the batch; of a module nothing is known."""
    if spec is None:
        return ()
    reads = spec.input
    if isinstance(reads, SeriesInput):
        if size is not None or frames is not None:
            option = "--input-size" if size is not None else "--frames"
            raise BadInput(
                f"{spec.name} reads a context of {reads.shape[0]} steps and has no {option}; its length is the"
                " context_length of its configuration"
            )
        return reads.shape
    if isinstance(reads, SequenceInput):
        if size is not None:
            raise BadInput(f"{spec.name} reads sequences and has no --input-size; their length is --frames")
        if frames is not None and frames < 1:
            raise BadInput(f"--frames must be 1 or more, got {frames}")
        return (frames or reads.shape[0], reads.shape[1])
    if isinstance(reads, TokenInput):
        if size is not None:
            raise BadInput(f"{spec.name} reads tokens and has no --input-size; their number is --frames")
        return (frames or reads.shape[0],)
    if frames is not None:
        raise BadInput(f"{spec.name} reads images and has no --frames; their size is --input-size")
    if size is None:
        return reads.shape
    if reads.is_fixed and size != reads.shape[1:]:
        raise BadInput(
            f"{spec.name} has weights for {reads.shape[1]}x{reads.shape[2]} alone, got {size[0]}x{size[1]};"
            " leave --input-size out"
        )
    if any(n < reads.divisor or n % reads.divisor for n in size):
        nearest = [max(reads.divisor, round(n / reads.divisor) * reads.divisor) for n in size]
        raise BadInput(
            f"{spec.name} needs height and width divisible by {reads.divisor}, got {size[0]}x{size[1]};"
            f" the nearest is {nearest[0]}x{nearest[1]}"
        )
    return (reads.shape[0], *size)


def _describe_shape(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[2]}" if len(shape) == 3 else f"{shape[0]}-frames" if shape else ""


def _system(target: Target, profile: DeviceProfile | None, wanted: str | None) -> str | None:
    """Return the oldest system to run on: what was asked for, or what all devices of a kind have."""
    known = target.deployment_targets
    systems = profile.systems if profile is not None and known else None
    if wanted is None and systems is not None:
        return max(target.default_deployment_target or systems.oldest, systems.oldest, key=_version)
    if wanted is None or not known:
        return wanted
    if profile is not None and systems is not None and _version(wanted) > _version(systems.newest):
        raise BadInput(f"{profile.title} runs {systems.newest} at most, got {wanted}")
    if wanted not in known:
        raise BadInput(f"unknown deployment target {wanted!r}. There are {', '.join(known)}")
    return wanted


def _version(system: str) -> int:
    """17 of `iOS17`."""
    digits = "".join(c for c in system if c.isdigit())
    return int(digits) if digits else 0


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_size(value: object) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(map(_is_count, value))


def _are_names(value: object) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(one, str) for one in value)


def _are_arguments(value: object) -> bool:
    return isinstance(value, Mapping) and all(isinstance(key, str) for key in value)


_KINDS: tuple[tuple[Callable[[object], bool], str, tuple[str, ...]], ...] = (
    (lambda value: isinstance(value, str), "a name", ("target", "name", "segmentation", "precision", "device")),
    (lambda value: isinstance(value, str), "a name such as 'iOS18'", ("deployment_target",)),
    (lambda value: isinstance(value, str | os.PathLike), "a path", ("weights", "config", "calibration", "out")),
    (lambda value: isinstance(value, str | os.PathLike), "a path", ("verify_inputs",)),
    (_is_count, "an integer", ("frames", "batch")),
    (_is_size, "two integers, (height, width)", ("input_size",)),
    (_are_names, "a list of class names", ("labels",)),
    (_are_arguments, "a dictionary of arguments by name", ("kwargs",)),
    (callable, "called with each stage's name", ("watch",)),
    (
        lambda value: isinstance(value, bool),
        "True or False",
        ("dynamic_batch", "features", "observed_mask", "front_end", "image_input", "streaming", "with_sequence"),
    ),
    (lambda value: isinstance(value, bool), "True or False", ("allow_inaccurate",)),
)
"""What options must be, in words; each may also be None where that is its default. Model and inputs say so later."""


def _check_kinds(options: ModelOptions) -> None:
    """Refuse values that are no option's, such as a batch in words: the command line makes none, and calls may."""
    by_default = {one.name: one.default for one in fields(options)}
    for is_kind, wanted, names in _KINDS:
        for name in (name for name in names if name in by_default):
            value = getattr(options, name)
            if not is_kind(value) and not (value is None and by_default[name] is None):
                raise BadInput(f"{name} must be {wanted}, got {value!r:.80}")


def _check_module(options: ModelOptions) -> None:
    """Refuse options of named models beside a module, and a module without inputs."""
    if options.spec is not None:
        if options.inputs is not None or options.kwargs is not None:
            raise BadInput(
                f"{options.spec.name} has inputs of its own shape; inputs= is for a module, and sizes are"
                " --input-size, --frames and --batch"
            )
        return
    given = options.inputs is not None or options.kwargs is not None
    if isinstance(options.model, OwnModule):
        if given:
            raise BadInput("an OwnModule says its inputs itself; leave inputs= and kwargs= out")
    elif not given:
        raise BadInput("exporting a module needs inputs=(tensor, ...), one example for each argument of forward")
    of_named = (options.weights, options.input_size, options.frames)
    if any(value is not None for value in of_named) or options.batch != 1 or options.features:
        raise BadInput(
            "weights, input_size, frames, batch and features belong to named models; a module has its own weights, and"
            " its shapes are those of inputs"
        )


def _check_weights(options: ModelOptions) -> None:
    """Refuse weights that are not there, before anything is imported that could read them."""
    if options.weights is not None:
        check_weights(Path(options.weights))


def _check_reads(options: ModelOptions) -> None:
    """Refuse names that nothing has, sizes that the model does not read, and maps of a model that has none."""
    _ = options.backend, options.artifact_name, options.shape  # which are refused where they cannot be
    if options.series is not None and options.features:
        raise BadInput(f"{options.artifact_name} reads time series and has no --features; leave it out")
    if options.spec is not None and options.image is None and options.features:
        raise BadInput(f"{options.artifact_name} reads sequences and has no --features; their length is --frames")


def _check_front_end(options: ModelOptions) -> None:
    """Refuse sound for what has no front end."""
    if options.front_end and (options.sequence is None or not options.sequence.clip):
        name = options.artifact_name
        every = registry.all_models().values()
        have = [one.name for one in every if isinstance(one.input, SequenceInput) and one.input.clip]
        is_module = "is a module, which may read anything," if options.spec is None else "reads no frames of sound"
        raise BadInput(f"{name} {is_module} and has no --front-end; {' and '.join(have)} have one")


def _check_segmentation(options: ModelOptions) -> None:
    """Refuse maps of classes of what makes none, and those of other kinds."""
    if options.segmentation is None:
        return
    asked, name = options.segmentation, options.artifact_name
    if asked not in (*SEGMENTATIONS, *OF_HEADS):
        known = f"{', '.join(SEGMENTATIONS)}, or, for a head on dense features, {', '.join(OF_HEADS)}"
        raise BadInput(f"--segmentation is {known}, got {asked!r}")
    if options.features:
        raise BadInput(f"{name} has no --segmentation, since --features returns no classes; leave it out")
    if options.head and options.image is None:
        raise BadInput(f"{name} has no --segmentation, since it reads no images; leave it out")
    if not options.segments:
        heads = f"; for a head on its dense features give {', '.join(OF_HEADS)}" if options.image else "; leave it out"
        raise BadInput(f"{name} has no --segmentation {asked}, since it is no model for semantic segmentation{heads}")


def _check_image_input(options: ExportOptions) -> None:
    """Refuse images for what reads none."""
    if options.image_input and options.image is None:
        name = options.artifact_name
        reads = "is a module, whose input may be anything,"
        if options.spec is not None:
            reads = "reads sequences" if options.series is None else "reads time series"
        raise BadInput(f"{name} {reads} and has no --image-input; leave it out")
    if options.image_input and options.batch != 1:
        raise BadInput(f"an image input holds one image, got --batch {options.batch}; use --batch 1")


def _check_precision_and_target(options: ExportOptions) -> None:
    """Refuse precisions, systems and options that the target does not have."""
    _ = options.arithmetic, options.system  # which are refused where there are none
    given = {
        "labels": options.labels is not None,
        "image_input": options.image_input,
        "deployment_target": options.deployment_target is not None,
        "streaming": options.streaming,
        "with_sequence": options.with_sequence,
    }
    for option, is_given in given.items():
        if is_given and option not in options.backend.options:
            have = [name for name, target in targets.all_targets().items() if option in target.options]
            does = f"{have[0]} does" if len(have) == 1 else f"{', '.join(have)} do"
            raise BadInput(f"target {options.backend.name} has no --{option.replace('_', '-')}; {does}")


def _check_batch(options: ModelOptions) -> None:
    if options.batch < 1:
        raise BadInput(f"--batch must be 1 or more, got {options.batch}")
    if options.dynamic_batch and not options.backend.dynamic_batch:
        instead = "--batch N" if options.spec is not None else "an example of the batch that you need"
        raise BadInput(
            f"target {options.backend.name} takes static shapes only; give {instead} instead of --dynamic-batch"
        )


def _check_streaming(options: ExportOptions) -> None:
    """Refuse what a step cannot have, and a sequence without a step."""
    if options.series is not None and options.streaming:
        raise BadInput(
            f"{options.artifact_name} mixes all patches of its context and has no --streaming; feed it the last"
            f" {options.shape[0]} steps each time"
        )
    if options.tokens is not None and options.streaming:
        raise BadInput(
            f"{options.artifact_name} reads all of its tokens before it answers and has no --streaming; leave it out"
        )
    if options.image is not None and options.streaming:
        raise BadInput(f"{options.artifact_name} reads images and has no --streaming; models of sequences have")
    if options.streaming and options.arithmetic.needs_whole_inputs:
        raise BadInput(
            f"--precision {options.arithmetic.name} looks at whole inputs and --streaming has steps; choose fp16 or"
            " fp32"
        )
    if options.streaming and options.dynamic_batch:
        raise BadInput("--streaming keeps states of a fixed batch; give --batch N instead of --dynamic-batch")
    if options.with_sequence and not options.streaming:
        raise BadInput("--with-sequence puts the whole sequence's program beside the step; give --streaming too")
    if options.with_sequence and not options.backend.keeps_states(options.system):
        raise BadInput(
            "--with-sequence makes one package of two functions, which systems from iOS18 on take;"
            " give --deployment-target iOS18"
        )


def _check_calibration(options: ExportOptions) -> None:
    if options.calibration is None:
        return
    if not options.arithmetic.calibrates:
        raise BadInput(f"--calibration is for --precision int8, got {options.arithmetic.name}")
    _check_samples("--calibration", Path(options.calibration))


def _check_verify_inputs(options: ExportOptions) -> None:
    """Refuse data that are not there, and those that a file of images could not be given."""
    if options.verify_inputs is None:
        return
    path = Path(options.verify_inputs)
    _check_samples("--inputs", path)
    if options.image_input and not path.is_dir():
        raise BadInput(f"--inputs must be a folder of images where --image-input takes images, got {path}")


def _check_samples(option: str, path: Path) -> None:
    """Refuse what is no folder and no `.npz`."""
    if not path.exists():
        raise BadInput(f"{option}: there is no {path}; wanted a folder of images or an .npz")
    if path.is_file() and path.suffix.lower() != ".npz":
        raise BadInput(f"{option} must be a folder of images or an .npz, got the file {path}")


def _check_labels(options: ExportOptions) -> None:
    labels = options.labels
    if labels is None:
        return
    if options.features:
        raise BadInput("--labels belongs to logits and --features returns none; choose one")
    if len(set(labels)) != len(labels):
        twice = next(label for i, label in enumerate(labels) if label in labels[:i])
        raise BadInput(f"labels must differ from each other, got {twice!r} twice")
    if options.backend.classifies and options.batch != 1 and not options.segments:
        raise BadInput(f"a Core ML classifier classifies one image, got --batch {options.batch}; use --batch 1")
    if options.spec is not None and options.weights is None and len(labels) != options.classes:
        raise BadInput(f"--labels has {len(labels)} names and the model has {options.classes} classes")


def _check_states_of_sound(options: ExportOptions) -> None:
    """Refuse states of half precision for what the front end keeps."""
    if (
        options.front_end
        and options.streaming
        and options.arithmetic.is_half
        and options.backend.keeps_states(options.system)
    ):
        raise BadInput(
            f"--front-end makes its frames in fp32, and states that {options.system} keeps in a program of"
            f" {options.arithmetic.name} are half precision; give --precision fp32, or --deployment-target iOS17"
        )


MODEL_CHECKS: tuple[Callable[[ModelOptions], None], ...] = (
    _check_kinds,
    _check_batch,
    _check_module,
    _check_weights,
    _check_reads,
    _check_front_end,
    _check_segmentation,
)
"""What must hold to load and rewrite a model."""

FILE_CHECKS: tuple[Callable[[ExportOptions], None], ...] = (
    _check_precision_and_target,
    _check_image_input,
    _check_streaming,
    _check_states_of_sound,
    _check_calibration,
    _check_verify_inputs,
    _check_labels,
)
"""What must hold beside that to write a file."""
