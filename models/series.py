"""The time-series contract: what a forecaster reads and returns, and its configuration. Imports no torch.

    past_values     [B, T, C]   the last T values of each channel, in the data's own scale
    observed_mask   [B, T, C]   float, 1 where a value was observed and 0 where not; only where it is asked for
    freq_token      [B]         int64, the sampling rate's index; of models with resolution prefix tuning
    future_values   [B, H, C]   channels that are known ahead; of models with exogenous channels, others are not read
    static_covariates  [B, C, s]     facts about each channel that do not change
    future_covariates  [B, C, H, f]  what is known ahead about each channel, beside its values
    forecast        [B, H, c]   the next H values of the predicted channels, in the data's own scale

Names and defaults are those of transformers' PatchTSMixerConfig and granite-tsfm's TinyTimeMixerConfig, so their
`config.json` is read as it is. Letters: B batch, T context, H horizon, C channels, P patch length, p patches, D width,
s f covariates of a channel.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from edgesmith.errors import BadInput
from edgesmith.readers.documents import read_json
from edgesmith.readers.typed import as_dataclass

FREQUENCIES = ("oov", "min", "2min", "5min", "10min", "15min", "30min", "h", "D", "W")
"""The meaning of a frequency token, by its index; a model knows the first of them, as many as its table has."""

NARROWEST = 4
"""Features of a patch at which a level of adaptive patching is left as it is."""

LETTERS = 2
"""How much longer or shorter a name is that is taken for a misspelling."""

HEADS = {
    "ForPrediction": "prediction",
    "ForTimeSeriesClassification": "classification",
    "ForRegression": "regression",
}
"""Heads by how the class in a config's `architectures` ends."""

OUTPUTS = {"prediction": "forecast", "classification": "logits", "regression": "values"}
"""The name of the output by the head."""


@dataclass(frozen=True)
class SeriesInput:
    """The input of a forecaster: float series of shape [B, *shape], shape = (T, C), in the data's own scale.

    Attributes:
        name: of the series.
        normalised: what is done to the values outside, in words: nothing.
        horizon: H, steps of the forecast; 0 where the model returns classes or values instead.
        predicted: the channels of the forecast.
        exogenous: channels that are known ahead and read from `future_values`.
        frequencies: how many frequency tokens there are; 0 for none.
        observed_mask: whether a mask of observed values is an input.
        static, future: s and f, covariates of each channel that do not change, and that are known ahead; 0 for none.
        returns: the name of the output, a value of `OUTPUTS`.
    """

    name: str
    shape: tuple[int, int]
    normalised: str
    horizon: int
    predicted: tuple[int, ...]
    exogenous: tuple[int, ...] = ()
    frequencies: int = 0
    observed_mask: bool = False
    static: int = 0
    future: int = 0
    returns: str = "forecast"

    @property
    def inputs(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of all inputs without the batch, in their order."""
        return {
            self.name: self.shape,
            **({"observed_mask": self.shape} if self.observed_mask else {}),
            **({"freq_token": ()} if self.frequencies else {}),
            **({"future_values": (self.horizon, self.shape[1])} if self.exogenous else {}),
            **({"static_covariates": (self.shape[1], self.static)} if self.static else {}),
            **({"future_covariates": (self.shape[1], self.horizon, self.future)} if self.future else {}),
        }

    def describe(self) -> dict[str, Any]:
        """Return the contract as it stands in manifests and files."""
        facts: dict[str, Any] = {
            "context_length": self.shape[0],
            "channels": self.shape[1],
            "inputs": list(self.inputs),
            "layout": "batch, steps, channels",
            "scale": "of the data: values go in as they are, and forecasts are in the same scale",
        }
        if self.horizon:
            facts |= {"prediction_length": self.horizon, "predicted_channels": list(self.predicted)}
        if self.observed_mask:
            facts["observed_mask"] = "float, 1 observed, 0 missing"
        if self.frequencies:
            facts["freq_token"] = dict(enumerate_names(self.frequencies))
        if self.exogenous:
            facts["future_channels"] = list(self.exogenous)
        if self.static:
            facts["static_covariates"] = self.static
        if self.future:
            facts["future_covariates"] = self.future
        return facts


def enumerate_names(count: int) -> list[tuple[str, int]]:
    """Return frequencies with their tokens, of a table of `count`."""
    return [(name, i) for i, name in enumerate(FREQUENCIES[:count])]


@dataclass(frozen=True)
class SeriesConfig:
    """The configuration of a PatchTSMixer or TTM, with transformers' names. Defaults are PatchTSMixer's.

    Attributes:
        head: prediction, classification or regression; from `architectures`.
        mode: `mix_channel` mixes channels in the backbone too, `common_channel` does not.
        scaling: `std`, `mean` or None.
        adaptive_patching_levels and what follows: of TTM alone, up to fcm_prepend_past_offset.
        static_features, future_features: covariates of each channel; of TSM2 alone.
    """

    head: str = "prediction"
    context_length: int = 32
    prediction_length: int = 16
    patch_length: int = 8
    patch_stride: int = 8
    num_input_channels: int = 1
    prediction_channel_indices: tuple[int, ...] | None = None
    d_model: int = 8
    expansion_factor: int = 2
    num_layers: int = 3
    mode: str = "common_channel"
    gated_attn: bool = True
    norm_mlp: str = "LayerNorm"
    norm_eps: float = 1e-5
    self_attn: bool = False
    self_attn_heads: int = 1
    use_positional_encoding: bool = False
    scaling: str | bool | None = "std"
    loss: str = "mse"
    num_targets: int = 3
    head_aggregation: str | None = "max_pool"
    output_range: tuple[float, float] | None = None
    exogenous_channel_indices: tuple[int, ...] | None = None
    adaptive_patching_levels: int = 0
    resolution_prefix_tuning: bool = False
    frequency_token_vocab_size: int = 5
    use_decoder: bool = True
    decoder_num_layers: int = 8
    decoder_d_model: int = 8
    decoder_adaptive_patching_levels: int = 0
    decoder_raw_residual: bool = False
    decoder_mode: str = "common_channel"
    prediction_filter_length: int | None = None
    enable_forecast_channel_mixing: bool = False
    fcm_gated_attn: bool = True
    fcm_context_length: int = 1
    fcm_use_mixer: bool = False
    fcm_mix_layers: int = 2
    fcm_prepend_past: bool = True
    fcm_prepend_past_offset: int | None = None
    static_features: int = 0
    future_features: int = 0

    @property
    def patches(self) -> int:
        """Return p, without a frequency's."""
        return (max(self.context_length, self.patch_length) - self.patch_length) // self.patch_stride + 1

    @property
    def exogenous(self) -> tuple[int, ...]:
        """Return the channels that are known ahead."""
        return tuple(self.exogenous_channel_indices or ())

    @property
    def predicted(self) -> tuple[int, ...]:
        """Return the channels of the forecast, sorted: those that are named, or all that are not known ahead."""
        if self.prediction_channel_indices is not None:
            return tuple(sorted(self.prediction_channel_indices))
        return tuple(i for i in range(self.num_input_channels) if i not in self.exogenous)

    @property
    def horizon(self) -> int:
        """Return H, steps of the forecast."""
        return self.prediction_filter_length or self.prediction_length

    @property
    def scaler(self) -> str:
        """Return `std`, `mean` or the empty string; True is `std`, whatever transformers' documentation says."""
        return "std" if self.scaling is True else str(self.scaling or "")


MODES = ("common_channel", "mix_channel")
POOLS = ("use_last", "max_pool", "avg_pool")
ONE_OR_MORE = (
    *("patch_length", "patch_stride", "num_input_channels", "d_model", "decoder_d_model", "expansion_factor"),
    *("prediction_length", "num_targets", "frequency_token_vocab_size"),
)
"""Numbers of which a model needs one."""

ALIASES = {"hidden_size": "d_model", "num_hidden_layers": "num_layers"}
"""Other names that transformers reads as a field's."""

LARGEST = 65_536
"""Of a configuration's numbers; ten times what the published ones have. No memory holds a model of 2^31 channels."""


def read_config(facts: Mapping[str, Any], supported: Mapping[str, Any], origin: str) -> SeriesConfig:
    """Return a configuration. What no field is called is left out: it changes training alone, or does not load. What
    is nearly called as one is refused: the field would silently have its default.

    Args:
        facts: by transformers' names.
        supported: the values of other names that a family has, by name: `[false]` for what it has not.
        origin: the file or model, for sentences.

    Raises:
        BadInput: a value that the family does not have, or values that do not fit together.
    """
    for name, values in supported.items():
        if (
            facts.get(name) is not None and facts[name] not in values
        ):  # null is how transformers writes what is not there
            wanted = " or ".join(json.dumps(value) for value in values)
            raise BadInput(f"{origin}: {name} must be {wanted}, got {json.dumps(facts[name])}")
    known = {field.name: field.default for field in fields(SeriesConfig)}
    facts = {known_as: facts[name] for name, known_as in ALIASES.items() if name in facts} | dict(facts)
    _check_names(facts, {*known, *supported, *ALIASES}, origin)
    typed = {  # numbers and switches have sentences of their own below
        name: list(value) if isinstance(value, tuple) else value
        for name, value in facts.items()
        if name in known and (type(known[name]) not in (int, bool) or name == "scaling")
    }
    as_dataclass(SeriesConfig, typed, origin)
    own: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in facts.items() if name in known}
    head = _head(facts.get("architectures"), origin)
    if head is not None:
        own["head"] = head
    config = SeriesConfig(**own)
    _check(config, origin)
    return config


def _check_names(facts: Mapping[str, Any], known: Collection[str], origin: str) -> None:
    """Raise BadInput for a name that is spelled like a field's, but for a letter or two."""
    for name, value in facts.items():
        near = [] if name in known or value is None else get_close_matches(name, known, 1, cutoff=0.85)
        if near and abs(len(near[0]) - len(name)) <= LETTERS:
            raise BadInput(f"{origin}: {name} is no name of a configuration. Nearest: {near[0]}")


def _head(architectures: object, origin: str) -> str | None:
    """Return the head that a class name stands for; None where no class is named."""
    if not isinstance(architectures, list) or not architectures:
        return None
    name = str(architectures[0])
    for ending, head in HEADS.items():
        if name.endswith(ending):
            return head
    raise BadInput(f"{origin}: architectures must name a class that ends in {', '.join(HEADS)}, got {name}")


def _check(config: SeriesConfig, origin: str) -> None:
    """Raise BadInput for the first value that is no number of its kind, or that does not fit the others."""
    for field in fields(config):
        value, default = getattr(config, field.name), field.default
        if type(default) is int and (type(value) is not int or value < 0):
            raise BadInput(f"{origin}: {field.name} must be a whole number, got {json.dumps(value)}")
        if type(value) is int and value > LARGEST:
            raise BadInput(f"{origin}: {field.name} must be {LARGEST} at most, got {value}")
        if type(default) is bool and field.name != "scaling" and type(value) is not bool:
            raise BadInput(f"{origin}: {field.name} must be true or false, got {json.dumps(value)}")
    for holds, sentence in _conditions(config):
        if not holds:
            raise BadInput(f"{origin}: {sentence}")
    for name, size in (("d_model", config.d_model), ("decoder_d_model", config.decoder_d_model)):
        levels = config.adaptive_patching_levels if name == "d_model" else config.decoder_adaptive_patching_levels
        factor = 2 ** max(levels - 1, 0)
        if size // factor > NARROWEST and size % factor:
            why = f"for {name.replace('d_model', '')}adaptive_patching_levels {levels}"
            raise BadInput(f"{origin}: {name} must be divisible by {factor}, {why}, got {size}")


def _conditions(config: SeriesConfig) -> tuple[tuple[bool, str], ...]:
    """Return what has to hold, each with its sentence."""
    channels, heads = config.num_input_channels, config.self_attn_heads
    beyond = [i for i in (*config.predicted, *config.exogenous) if not 0 <= i < channels]
    least = [name for name in ONE_OR_MORE if getattr(config, name) < 1]
    needed = config.fcm_context_length + (config.fcm_prepend_past_offset or 0)
    return (
        (config.head in OUTPUTS, f"head must be {', '.join(OUTPUTS)}"),
        (not least, f"{least[0] if least else ''} must be 1 or more"),
        (config.patch_length <= config.context_length, "patch_length must be context_length at most"),
        (config.mode in MODES, f"mode must be {' or '.join(MODES)}"),
        (config.decoder_mode in MODES, f"decoder_mode must be {' or '.join(MODES)}"),
        (config.scaler in ("", "std", "mean"), "scaling must be std, mean or null"),
        (config.head_aggregation in (None, *POOLS), f"head_aggregation must be {', '.join(POOLS)} or null"),
        (config.norm_eps > 0, f"norm_eps must be more than 0, got {config.norm_eps}"),
        (not config.self_attn or heads > 0, "self_attn_heads must be 1 or more"),
        (not config.self_attn or config.d_model % max(heads, 1) == 0, "d_model must be divisible by self_attn_heads"),
        (not beyond, f"channel {beyond[0] if beyond else ''} is none of the {channels}"),
        (bool(config.predicted), "no channel is left to predict: name one in prediction_channel_indices"),
        (config.horizon <= config.prediction_length, "prediction_filter_length must be prediction_length at most"),
        (
            not config.enable_forecast_channel_mixing or needed <= config.context_length,
            "fcm_context_length and fcm_prepend_past_offset together must be context_length at most",
        ),
    )


def to_input(config: SeriesConfig, observed_mask: bool = False) -> SeriesInput:
    """Return what a model of this configuration reads."""
    forecasts = config.head == "prediction"
    return SeriesInput(
        "past_values",
        (config.context_length, config.num_input_channels),
        "not at all: values in the data's own scale",
        config.horizon if forecasts else 0,
        config.predicted if forecasts else (),
        config.exogenous if config.enable_forecast_channel_mixing else (),
        config.frequency_token_vocab_size if config.resolution_prefix_tuning else 0,
        observed_mask,
        config.static_features,
        config.future_features,
        OUTPUTS[config.head],
    )


def read_file(path: str | Path) -> dict[str, Any]:
    """Return the facts in a `config.json`.

    Raises:
        BadInput: it cannot be read, or is no JSON object.
    """
    found = read_json(Path(path), "config.json", advice="give the config.json of the model")
    if not isinstance(found, dict):
        raise BadInput(f"--config {path} holds a {type(found).__name__}; wanted a JSON object of names and values")
    return found
