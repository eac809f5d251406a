"""TSM2: series mixed by selective scans over time and over channels, in export-friendly PyTorch.

    scaler   x' = (x - loc) / scale over time                                                        [B, T, M]
    joined   x' | Linear(channel mixer(Z)) | Linear(S), along time, with covariates S and Z          [B, M, T to 3 T]
    patches  windows of P steps, stride S, a linear layer and a learned position                     [B, M, p, D]
    token    a Mamba mixer over the patches of each channel, causal
    channel  two Mamba mixers over the channels at each patch, one of them backwards, added
    head     norms over D and over p, linear([p D] -> H) a channel, y scale + loc                    [B, H, M]

Each mixer has a LayerNorm before it and reads a weighted average of all earlier outputs of both kinds; two layers of
both make the model.

Source: Behrouz et al., "MambaMixer: Efficient Selective State Space Models with Dual Token and Channel Selection",
arXiv 2403.19888 v1, section 4.4. No code was published, no sizes are printed, and no count of parameters either. What
is chosen here is what a replication of others chose, whose errors were 1.03 times the paper's on average: instance norm
with the biased variance, patches of 16 with a stride of 8, 32 channels inside, 2 layers, 16 states, kernel 4, twice as
wide inside the mixers, norms over features and then over patches ("2D normalisation"), one linear layer as head. Of the
covariates the paper says `x | Z_proj | S_proj`, Z_proj = Linear(channel mixer(Z)) and S_proj = Linear(S); here Z
[M, H, f] is mixed over the M channels at each step ahead, as series are at each patch, and its linear layer reads all
H f numbers of a channel. Module names are ours.
Letters: B batch, T context, H horizon, M channels, P patch length, p patches, D width, s and f covariates of a channel.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from edgesmith.models.mamba import Mamba
from edgesmith.models.patchtsmixer import Scaler, name_inputs, patch, pick
from edgesmith.models.registry import get
from edgesmith.models.series import SeriesConfig, SeriesInput, to_input
from edgesmith.models.weighted_averages import WeightedAverage


class TokenMixer(nn.Module):
    """A Mamba mixer over patches, causal. [B, M, p, D] -> [B, M, p, D]"""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.mixer = nn.LayerNorm(width), Mamba(width)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.mixer(self.norm(x).flatten(0, 1))
        return y.reshape(x.shape)


class ChannelMixer(nn.Module):
    """Two Mamba mixers over channels, one of them backwards, added. [B, M, p, D] -> [B, M, p, D]"""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.forwards, self.backwards = Mamba(width), Mamba(width)

    def forward(self, x: Tensor) -> Tensor:
        sequences = self.norm(x).transpose(1, 2)  # [B, p, M, D]
        given = sequences.flatten(0, 1)
        y = self.forwards(given) + self.backwards(given.flip(1)).flip(1)
        mixed: Tensor = y.reshape(sequences.shape).transpose(1, 2)
        return mixed


class Layer(nn.Module):
    """A token mixer and a channel mixer, each of a weighted average of all outputs before it.

    Args:
        width: D.
        before: how many layers come before this one.
    """

    def __init__(self, width: int, before: int) -> None:
        super().__init__()
        count = 1 + before
        self.token_average = WeightedAverage(count, count, 2 * count - 1 if before else None)
        self.channel_average = WeightedAverage(count + 1, count)
        self.token_mixer, self.channel_mixer = TokenMixer(width), ChannelMixer(width)

    def forward(self, tokens: list[Tensor], channels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        tokens = [*tokens, self.token_mixer(self.token_average(tokens, channels))]
        return tokens, [*channels, self.channel_mixer(self.channel_average(tokens, channels))]


class Covariates(nn.Module):
    """Covariates of the series as T numbers of each channel.

    Args:
        config: with `static_features` and `future_features`, either of which may be 0.
    """

    def __init__(self, config: SeriesConfig) -> None:
        super().__init__()
        static, future, steps = config.static_features, config.future_features, config.context_length
        self.mixer = ChannelMixer(future) if future else None
        self.future_proj = nn.Linear(config.horizon * future, steps) if future else None
        self.static_proj = nn.Linear(static, steps) if static else None

    def forward(self, x: Tensor, given: dict[str, Tensor]) -> Tensor:
        """Return a series [B, T, M] with its covariates behind it, [B, T, 2 T or 3 T, M]."""
        parts = [x]
        if self.mixer is not None and self.future_proj is not None:
            mixed = self.mixer(given["future_covariates"])  # [B, M, H, f]
            parts.append(self.future_proj(mixed.flatten(2)).transpose(1, 2))
        if self.static_proj is not None:
            parts.append(self.static_proj(given["static_covariates"]).transpose(1, 2))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


class TSM2(nn.Module):
    """TSM2 of a configuration. A forecast [B, H, M] of series [B, T, M], in the data's scale.

    Args:
        config: its `context_length`, `prediction_length`, `patch_length`, `patch_stride`, `num_input_channels`,
            `d_model`, `num_layers`, `scaling`, `static_features` and `future_features` count.
        observed_mask: read a mask of observed values too.
    """

    def __init__(self, config: SeriesConfig, observed_mask: bool = False) -> None:
        super().__init__()
        self.reads: SeriesInput = to_input(config, observed_mask)
        width, length, stride = config.d_model, config.patch_length, config.patch_stride
        parts = 1 + bool(config.static_features) + bool(config.future_features)
        patches = (parts * config.context_length - length) // stride + 1
        self.stride = stride
        self.scaler, self.covariates = Scaler(config.scaler), Covariates(config)
        self.patcher = nn.Linear(length, width)
        self.position = nn.Parameter(0.02 * torch.randn(1, patches, width))
        self.layers = nn.ModuleList(Layer(width, i) for i in range(config.num_layers))
        self.feature_norm, self.patch_norm = nn.LayerNorm(width), nn.LayerNorm(patches)
        self.head = nn.Linear(patches * width, config.horizon)
        self.picked = pick(config)

    def forward(self, past_values: Tensor, *others: Tensor) -> Tensor:
        given = name_inputs(self.reads, others)
        x, loc, scale = self.scaler(past_values, given.get("observed_mask"))
        x = patch(self.covariates(x, given), self.patcher, self.stride) + self.position  # [B, M, p, D]
        tokens, channels = [x], [x]
        for layer in self.layers:
            tokens, channels = layer(tokens, channels)
        x = self.patch_norm(self.feature_norm(channels[-1]).transpose(2, 3)).transpose(2, 3)
        y = self.head(x.flatten(2)).transpose(1, 2)
        return self.picked(y) * self.picked(scale) + self.picked(loc)


def tsm2(config: SeriesConfig | None = None, **options: Any) -> TSM2:
    """TSM2 of a configuration, by default for ETTh1. Options: `observed_mask` of `TSM2`."""
    return TSM2(config or get("tsm2").series, **options)


def tsm2_512_96(config: SeriesConfig | None = None, **options: Any) -> TSM2:
    """TSM2 for ETTh1: 512 steps of 7 channels to 96. Options as for `tsm2`."""
    return TSM2(config or get("tsm2_512_96").series, **options)


def tsm2_aux_512_96(config: SeriesConfig | None = None, **options: Any) -> TSM2:
    """TSM2 with 4 covariates of each channel that do not change and 3 that are known ahead. Options as for `tsm2`."""
    return TSM2(config or get("tsm2_aux_512_96").series, **options)


def from_checkpoint(state: dict[str, Tensor], **_: Any) -> tuple[dict[str, Any], dict[str, Tensor], list[str]]:
    """Return builder options (none: the configuration says all), the tensors to load, and no notes."""
    return {}, state, []
