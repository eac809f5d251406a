"""The models and the facts about each. Read from this folder's TOML files; only `build` imports torch.

A family of another package is an entry point in the group `edgesmith.models`. It names a module with builders and
`from_checkpoint`, and has the same facts as a family here: in a TOML file beside the module, `my_models.tiny`, or in a
table in it, `my_models.tiny:FACTS`, for which listing models has to import it.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgesmith.errors import BadInput, unknown
from edgesmith.models import front_end, series
from edgesmith.models.series import SeriesConfig, SeriesInput
from edgesmith.plugins import Facts, leave_out, use_facts
from edgesmith.readers.documents import read_toml

if TYPE_CHECKING:
    from types import ModuleType

    from torch import nn


@dataclass(frozen=True)
class ImageInput:
    """The input of an image model: float RGB of shape [B, *shape], each channel `(value in 0..1 - mean) / std`.

    Attributes:
        divisor: of every height and width.
        is_fixed: weights are for the map sizes at `shape`, so that there is no other.
    """

    name: str
    shape: tuple[int, int, int]
    divisor: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    is_fixed: bool = False


@dataclass(frozen=True)
class SequenceInput:
    """The input of a sequence model: float frames of shape [B, *shape], shape = (frames, features of a frame).

    Attributes:
        normalised: what was done to the features, in words and figures.
        frame_ms: time from one frame to the next, where frames have one.
        condition: name and width of a second input, one vector for each sequence; None where there is none.
        clip: samples at 16 kHz of the sound that the authors make `shape` of, with the log mel filters of front_end.py;
            0 where frames are something else.
    """

    name: str
    shape: tuple[int, int]
    normalised: str
    frame_ms: float | None = None
    condition: tuple[str, int] | None = None
    clip: int = 0

    @property
    def layout(self) -> str:
        """The axes of the input."""
        return "batch, frames, features"

    def describe(self, is_step: bool) -> str:
        """Return what a file's first input takes, in words."""
        return f"{'The next frame' if is_step else 'Frames, oldest first'}; {self.normalised}"


@dataclass(frozen=True)
class SoundInput(SequenceInput):
    """The input of a sequence model behind its front end: float samples in -1..1 at 16 kHz, of one channel.

    `shape` is that of the frames which the front end makes. Samples are [B, samples]; of hops, for a step, they are
    [B, frames, samples], and each frame ends with its hop.

    Attributes:
        samples: of one call, or of one hop.
        is_of_hops: whether the sound comes hop by hop.
    """

    samples: int = 0
    is_of_hops: bool = False

    @property
    def heard(self) -> tuple[int, ...]:
        """The shape of the input, without the batch."""
        return (self.shape[0], self.samples) if self.is_of_hops else (self.samples,)

    @property
    def layout(self) -> str:
        """The axes of the input."""
        return "batch, hops, samples" if self.is_of_hops else "batch, samples"

    def describe(self, is_step: bool) -> str:
        """Return what a file's first input takes, in words."""
        return f"{'The next samples of a' if is_step else 'A'} {self.normalised}"


def to_sound(frames: SequenceInput, length: int, is_of_hops: bool) -> SoundInput:
    """Return the sound that a model's front end makes a number of frames of.

    At the published length it is the published clip, which the authors pad to that length. At any other one every frame
    is one of the sound.

    Args:
        frames: that the model reads; its `clip` is not 0.
        length: how many of them.
        is_of_hops: see `SoundInput`.
    """
    shift, rest = front_end.SHIFT, front_end.LENGTH - front_end.SHIFT
    samples = shift * length + rest
    if is_of_hops:
        samples = shift
    elif length == frames.shape[0]:
        samples = min(samples, frames.clip)
    hop = f", {shift} samples ({1000 * shift // front_end.RATE} ms) at a time" if is_of_hops else f", {samples} samples"
    return SoundInput(
        name="sound",
        shape=(length, frames.shape[1]),
        normalised=f"sound of one channel at {front_end.RATE} Hz, in -1..1{hop}; the file makes log mel frames of it",
        frame_ms=frames.frame_ms,
        samples=samples,
        is_of_hops=is_of_hops,
    )


@dataclass(frozen=True)
class TokenInput:
    """The inputs of a language model: int64 tokens of shape [B, *shape], shape = (tokens,), and types 0 and 1 of each.

    Attributes:
        vocabulary: how many tokens there are.
        normalised: how text becomes tokens, in words.
        types: whether types are an input.
    """

    name: str
    shape: tuple[int]
    vocabulary: int
    normalised: str
    types: bool = True


ModelInput = ImageInput | SequenceInput | SeriesInput | TokenInput

PLUGINS = "edgesmith.models"

SEGMENTATION = "semantic segmentation"
"""The task of models whose logits are a map [B, classes, H/4, W/4]."""

HEADS = ("fpn", "upernet")
"""Heads of semantic segmentation that go on the dense features of any image model, see dense.py."""

CLASSES_OF_HEADS = 150
"""Classes of a head without a checkpoint: ADE20K's."""

SIZE_OF_HEADS = (512, 512)
"""Height and width that the authors train such heads at."""


@dataclass(frozen=True)
class ModelSpec:
    """The facts about one model.

    Attributes:
        name: also the name of the function in `models/<family>.py` that builds it.
        params, macs: with every head that the published figure includes, at `input.shape`; see the family's TOML file.
        top1: published accuracies, per cent, on the data set of `task`; empty where none was published.
        source, paper, licence: of the original.
        envelope: the key under which the authors' checkpoint files hold the weights of the published accuracies, where
            they hold others too.
        precision: the default of every target for this model; empty for the target's own.
        module: with the architecture; empty for `edgesmith.models.<family>`.
        config: of a forecaster, its configuration by transformers' names; see series.py.
        supported: of a forecaster, the values that its family has of other names.
        configurable: whether a configuration of the caller's own may take the place of `config`.
        own_prefix: with which the model's own keys begin, where a checkpoint's usually mean a model around it.
    """

    name: str
    family: str
    task: str
    classes: int
    input: ModelInput
    params: int
    macs: int
    top1: tuple[float, ...]
    source: str
    paper: str
    licence: str
    envelope: str = ""
    precision: str = ""
    module: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    supported: Mapping[str, Any] = field(default_factory=dict)
    configurable: bool = False
    own_prefix: str = ""

    @property
    def series(self) -> SeriesConfig:
        """The configuration of a forecaster."""
        return series.read_config(self.config, self.supported, self.name)

    @property
    def segments(self) -> bool:
        """Return whether its logits are a map: of each pixel, at a quarter of the image's size."""
        return self.task == SEGMENTATION


def configure(spec: ModelSpec, facts: Mapping[str, Any], observed_mask: bool, origin: str) -> ModelSpec:
    """Return a forecaster's facts with a configuration of the caller's own in the place of its config.

    Args:
        facts: by transformers' names; where they leave something out, the family's defaults hold.
        observed_mask: whether it reads a mask of observed values too.
        origin: of the facts, for sentences.

    Raises:
        BadInput: a value that the family does not have, or values that do not fit together.
    """
    config = {**spec.config, **facts}
    reads = series.to_input(series.read_config(config, spec.supported, origin), observed_mask)
    return replace(spec, config=config, input=reads)


@cache
def all_models() -> dict[str, ModelSpec]:
    """Every model by name, family by family, those of other packages last.

    Raises:
        ValueError: two files of this folder claim one name. A plugin that does is left out.
    """
    found: dict[str, ModelSpec] = {}
    for path in sorted(Path(__file__).parent.glob("*.toml")):
        for spec in _family(read_toml(path, "table of facts")):
            if spec.name in found:
                raise ValueError(f"two families define {spec.name}: {found[spec.name].family} and {path.stem}")
            found[spec.name] = spec

    def add(name: str, facts: dict[str, Any], whose: Facts) -> None:
        for spec in _family({**facts, "module": whose.module}):
            if spec.name in found:
                other = found[spec.name].family
                leave_out(PLUGINS, whose.name, f"{whose.origin} has a model {spec.name}, and so has {other}; rename it")
            else:
                found[spec.name] = spec

    use_facts(PLUGINS, add)
    return found


def _family(facts: dict[str, Any]) -> list[ModelSpec]:
    """The models of one family. What a model's own table says of its input goes before what its family's says."""
    models, common = facts.pop("models"), facts.pop("input", None)
    if "config" in facts:
        return [_forecaster(name, facts, own) for name, own in models.items()]
    inputs = {name: _input(own.pop("input", common)) for name, own in models.items()}
    return [ModelSpec(**{**facts, **_frozen(own)}, name=name, input=inputs[name]) for name, own in models.items()]


def _forecaster(name: str, facts: dict[str, Any], own: dict[str, Any]) -> ModelSpec:
    """Return the facts of a forecaster, whose configuration says what it reads."""
    config = {**facts["config"], **own.pop("config", {})}
    reads = series.to_input(series.read_config(config, facts.get("supported", {}), name))
    return ModelSpec(**{**_frozen(facts), **_frozen(own), "config": config}, name=name, input=reads)


def _input(facts: dict[str, Any]) -> ModelInput:
    kinds: dict[int, type[ImageInput] | type[SequenceInput] | type[TokenInput]]
    kinds = {1: TokenInput, 2: SequenceInput, 3: ImageInput}
    if "condition" in facts:
        facts = {**facts, "condition": (facts["condition"]["name"], facts["condition"]["width"])}
    return kinds[len(facts["shape"])](**_frozen(facts))


def _frozen(facts: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in facts.items()}


def get(name: str) -> ModelSpec:
    """The model called `name`. Raises BadInput with the nearest names when there is none."""
    models = all_models()
    if name not in models:
        raise unknown("model", name, models, "edgesmith models")
    return models[name]


def family(spec: ModelSpec) -> ModuleType:
    """Return the Python module with a model's architecture. Imports torch.

    Raises:
        BadInput: it is another package's, and does not load.
    """
    if not spec.module:
        return importlib.import_module(f"edgesmith.models.{spec.family}")
    try:
        return importlib.import_module(spec.module)
    except Exception as error:  # whatever a foreign module does while it is imported
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
        raise BadInput(f"model {spec.name} cannot be built, for {spec.module} does not load ({reason})") from error


def build(spec: ModelSpec, **options: Any) -> nn.Module:
    """The model as an nn.Module in eval mode, weights as PyTorch's random state makes them.

    Args:
        options: of the family's builder, such as `features`, `num_classes`, `distillation`, `frames`.
    """
    model: nn.Module = getattr(family(spec), spec.name)(**options)
    return model.eval()
