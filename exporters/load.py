"""The model of an export: a named one with its weights, or a module of the caller's own, with example inputs."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from edgesmith.errors import BadInput, EdgesmithWarning
from edgesmith.exporters.graph.capture import Around, run_eager
from edgesmith.exporters.graph.signature import bind
from edgesmith.exporters.graph.unwrap import unwrap
from edgesmith.exporters.inputs import DRAWN_SOUNDS, NATURAL, draw_series, draw_sounds, draw_tokens, seeded_inputs
from edgesmith.exporters.options import ExportOptions, ModelOptions
from edgesmith.exporters.own.building import build
from edgesmith.exporters.own.reference import OwnModule
from edgesmith.exporters.precision.calibration import read_given
from edgesmith.models import checkpoint
from edgesmith.models.checkpoint import Weights, fingerprint
from edgesmith.models.registry import ModelSpec
from edgesmith.models.sound import hearing


@dataclass(frozen=True)
class Loaded:
    """A model ready for capture, and what is known about it.

    Attributes:
        name: of the model, for files.
        inputs: example inputs, [B, ...] each; of a named model they follow from a seed.
        input_names, output_names: None for what capture calls them.
        spec: None for a module of the caller's own.
        fixed: arguments of its forward that are part of the file, as they are no tensors.
    """

    name: str
    module: nn.Module
    inputs: tuple[Tensor, ...]
    input_names: tuple[str, ...] | None
    output_names: tuple[str, ...] | None
    weights: Weights
    spec: ModelSpec | None = None
    fixed: Mapping[str, Any] = field(default_factory=dict)

    @property
    def dtype(self) -> str:
        """The type that the model computes in by itself: `float16` where any of its weights has it, else `float32`."""
        tensors = (*self.module.parameters(), *self.module.buffers())
        return "float16" if any(tensor.dtype == torch.float16 for tensor in tensors) else "float32"

    def name_inputs(self) -> tuple[str, ...]:
        """Return what capture calls the inputs: the parameters of `forward`, numbered where it takes `*args`."""
        if self.input_names is not None:
            return self.input_names
        names: list[str] = []
        for parameter in inspect.signature(self.module.forward).parameters.values():
            is_any = parameter.kind is inspect.Parameter.VAR_POSITIONAL
            left = len(self.inputs) - len(names)
            names += [f"{parameter.name}_{i}" for i in range(left)] if is_any else [parameter.name]
        return tuple(names[: len(self.inputs)])


def load(options: ModelOptions, labels: Sequence[str] | None = None) -> Loaded:
    """Load the model that is asked for.

    Args:
        labels: class names, which must be as many as the model has classes.

    Raises:
        CheckpointError: the weights are missing, damaged, unsafe, or of another model.
        BadInput: inputs that are no tensors; labels that do not fit the model's classes.
    """
    loaded = _load_module(options) if options.spec is None else _load_named(options, options.spec)
    if labels is not None:
        loaded = _label(loaded, labels, options.backend.classifies, options.segments)
    if options.labels_pixels:
        loaded = replace(loaded, module=_Segmenter(loaded.module), output_names=("labels",))
    return loaded


def load_given(options: ExportOptions, model: Loaded) -> tuple[list[list[Tensor]], dict[str, Any]] | None:
    """Return the caller's own data to verify on, and what they are; None where there are none.

    Those of a forecaster, or behind a front end, are drawn where the caller has none: series and sounds, which standard
    normal values are not.

    Raises:
        BadInput: a file that cannot be used, or too few of them.
    """
    if options.verify_inputs is None and options.series is not None:
        batch = model.inputs[0].shape[0]
        drawn = [list(draw_series(options.series, batch, seed)) for seed in range(NATURAL)]
        return drawn, {"source": "drawn series: a level, a trend, two seasons and noise of each channel"}
    if options.verify_inputs is None and options.sound is not None:
        return draw_sounds(options.sound, model.inputs[0].shape[0]), {"source": DRAWN_SOUNDS}
    if options.verify_inputs is None:
        return None
    return read_given(Path(options.verify_inputs), model.name_inputs(), model.inputs, options.image)


def _load_named(options: ModelOptions, spec: ModelSpec) -> Loaded:
    """Load a model of the registry, with example inputs of the shape that is asked for."""
    asked: dict[str, Any] = {"features": True} if options.features else {}
    if options.head:
        asked["head"] = options.head
    if options.sequence is not None:
        asked["frames"] = options.shape[0]
    if options.series is not None:
        asked |= {"config": spec.series, "observed_mask": options.observed_mask}
    module, origin = checkpoint.load(spec, options.weights, **asked)
    batch = max(options.batch, 2) if options.dynamic_batch else options.batch
    if options.series is not None:
        inputs, names = draw_series(options.series, batch, 0), tuple(options.series.inputs)
        return Loaded(spec.name, module, inputs, names, (options.series.returns,), origin, spec)
    if options.tokens is not None:
        vocabulary = int(getattr(module, "vocabulary", options.tokens.vocabulary))  # a checkpoint may have its own
        ids = draw_tokens(vocabulary, batch, options.shape[0])
        read = [spec.input.name, *(["token_type_ids"] if options.tokens.types else [])]
        return Loaded(spec.name, module, ids[: len(read)], tuple(read), ("logits",), origin, spec)
    read, shapes = [spec.input.name], [options.shape]
    outputs: tuple[str, ...] = ("logits" if spec.classes else "sequence",)
    if options.sequence is not None and options.sequence.condition is not None:
        name, width = options.sequence.condition
        read, shapes, outputs = [*read, name], [*shapes, (width,)], ("tokens",)
    if options.sound is not None:
        module = hearing(options.sound, module)
        (drawn,) = draw_sounds(options.sound, batch, count=1)
        return Loaded(spec.name, module, tuple(drawn), (options.sound.name,), outputs, origin, spec)
    (drawn,) = seeded_inputs([torch.zeros(batch, *shape) for shape in shapes], count=1)
    if options.features:
        outputs = tuple(f"features_{i}" for i in range(len(run_eager(module, tuple(drawn)))))
    return Loaded(spec.name, module, tuple(drawn), tuple(read), outputs, origin, spec)


class Fixed(EdgesmithWarning):
    """Arguments that are no tensors became part of the file."""


class Unfitting(EdgesmithWarning):
    """Weights of a file that were not asked to fit were taken as far as they do."""


def _load_module(options: ModelOptions) -> Loaded:
    """Take a module of the caller's own with its inputs, or build it where it was described."""
    if isinstance(options.model, OwnModule):
        built = build(options.model)
        module, args, kwargs, origin = unwrap(built.module), built.args, built.kwargs, built.weights
        if origin is not None and not options.model.strict and origin.notes:
            warnings.warn(f"{origin.origin}: {'; '.join(origin.notes)}", Unfitting, stacklevel=2)
    else:
        assert isinstance(options.model, nn.Module)  # the options have been checked
        args, kwargs = _arguments(options.inputs, options.kwargs or {})
        module, origin = unwrap(options.model), None
    bound = bind(module, args, kwargs)
    if bound.fixed:
        said = ", ".join(f"{name} = {value!r}" for name, value in bound.fixed.items())
        warnings.warn(f"fixed in the file, as they are no tensors: {said}", Fixed, stacklevel=2)
    if origin is None:
        tensors = {key: value for key, value in module.state_dict().items() if isinstance(value, Tensor)}
        origin = Weights(
            "the module's own", fingerprint(tensors) if not any(map(_has_no_values, tensors.values())) else ""
        )
    return Loaded(options.artifact_name, bound.module, bound.inputs, bound.names, None, origin, fixed=bound.fixed)


def _has_no_values(tensor: Tensor) -> bool:
    return is_lazy(tensor) or tensor.is_meta


def _arguments(
    inputs: Sequence[Any] | Mapping[str, Any] | Tensor | None, kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of forward by position and by name."""
    if isinstance(inputs, Mapping):
        return (), {**inputs, **kwargs}
    if isinstance(inputs, Tensor) or inputs is None:
        return () if inputs is None else (inputs,), dict(kwargs)
    return tuple(inputs), dict(kwargs)


class _Classifier(Around):
    """Probabilities instead of logits: what a classifier artifact returns beside the label."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> Tensor:
        logits: Tensor = self.model(*inputs)
        return logits.softmax(dim=1)


class _Segmenter(Around):
    """The class of each pixel instead of logits at a fraction of the size. [B, 3, H, W] -> int32 [B, H, W]"""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.model(image)
        scores = nn.functional.interpolate(logits, image.shape[2:], mode="bilinear")
        return scores.argmax(1).to(torch.int32)


def _label(loaded: Loaded, labels: Sequence[str], classifies: bool, segments: bool) -> Loaded:
    """Check class names against the model's outputs, and make a classifier of it where the target has such files."""
    outputs = run_eager(loaded.module, loaded.inputs)
    if len(outputs) != 1 or outputs[0].dim() != (4 if segments else 2):
        raise BadInput("--labels needs a model that returns one tensor [B, classes]")
    logits = outputs[0]
    if logits.shape[1] != len(labels):
        raise BadInput(f"--labels has {len(labels)} names and the model has {logits.shape[1]} classes")
    if segments or not classifies:
        return loaded
    names = loaded.input_names or tuple(f"input_{i}" for i in range(len(loaded.inputs)))
    return replace(loaded, module=_Classifier(loaded.module), input_names=names, output_names=("probabilities",))
