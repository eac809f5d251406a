"""TTM, Tiny Time Mixers: PatchTSMixer's layers in patches of several lengths, in export-friendly PyTorch.

    backbone   patches, a frequency's vector before them, then levels: 2^i times as many patches of D / 2^i features
    decoder    a linear layer to its width, and further layers
    head       linear([p D] -> H) a channel                                                        [B, H, c]
    FCM        mixes the forecast with the last c values before it and with channels that are known ahead

The forecast channel mixer reads the values before the forecast and the ones ahead as they are, and the forecast scaled:
so the authors have it, who scale their data outside, and checkpoints are trained so.

Source: Ekambaram et al., "Tiny Time Mixers (TTMs): Fast Pre-trained Models for Enhanced Zero/Few-Shot Forecasting of
Multivariate Time Series", NeurIPS 2024, arXiv 2401.03955. Module names follow granite-tsfm's state dicts, so
checkpoints load as they are. Letters: see patchtsmixer.py; w = 2c + 1 the window of the forecast channel mixer.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgesmith.models.patchtsmixer import (
    FEATURES,
    Gate,
    Layer,
    Layers,
    Pick,
    Position,
    Scaler,
    from_checkpoint,
    name_inputs,
    patch,
    pick,
)
from edgesmith.models.registry import get
from edgesmith.models.series import NARROWEST, SeriesConfig, SeriesInput, to_input

__all__ = ["from_checkpoint"]


class Level(nn.Module):
    """Layers at another patch length: patches are cut into `factor` of fewer features. [B, C, p, D] -> the same"""

    def __init__(self, factor: int, patches: int, width: int, channels: int | None, config: SeriesConfig) -> None:
        super().__init__()
        self.factor = factor if width // factor > NARROWEST else 1
        sizes = (patches * self.factor, width // self.factor)
        self.mixer_layers = nn.Sequential(*(Layer(*sizes, channels, config) for _ in range(config.num_layers)))

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, patches, width = x.shape
        x = x.reshape(batch, channels, patches * self.factor, width // self.factor)
        mixed: Tensor = self.mixer_layers(x)
        return mixed.reshape(batch, channels, patches, width)


class Levels(nn.Module):
    """Levels of adaptive patching, the shortest patches first, under the name `mixers`."""

    def __init__(self, levels: int, patches: int, width: int, channels: int | None, config: SeriesConfig) -> None:
        super().__init__()
        factors = [2**i for i in reversed(range(levels))]
        self.mixers = nn.Sequential(*(Level(factor, patches, width, channels, config) for factor in factors))

    def forward(self, x: Tensor) -> Tensor:
        mixed: Tensor = self.mixers(x)
        return mixed


def _block(levels: int, patches: int, width: int, channels: int | None, config: SeriesConfig) -> nn.Module:
    """Return plain layers, or those of several patch lengths."""
    if levels > 0:
        return Levels(levels, patches, width, channels, config)
    return Layers(config.num_layers, patches, width, channels, config)


class Encoder(nn.Module):
    """Patches, the frequency's vector in front of them, a vector of each position, and layers."""

    def __init__(self, config: SeriesConfig) -> None:
        super().__init__()
        self.stride, self.has_prefix = config.patch_stride, config.resolution_prefix_tuning
        length, width = config.patch_length, config.d_model
        self.patcher = nn.Linear(length, width)
        channels = config.num_input_channels if config.mode == "mix_channel" else None
        patches = config.patches + self.has_prefix
        self.mlp_mixer_encoder = _block(config.adaptive_patching_levels, patches, width, channels, config)
        self.has_positions = config.use_positional_encoding
        if self.has_positions:
            self.positional_encoder = Position(patches, width)
        if self.has_prefix:
            middle = (length + width) // 2
            self.freq_mod = nn.Sequential(
                nn.Embedding(config.frequency_token_vocab_size, length),
                nn.Linear(length, middle),
                nn.GELU(),
                nn.Linear(middle, width),
            )

    def forward(self, x: Tensor, token: Tensor | None) -> Tensor:
        mixed = patch(x, self.patcher, self.stride)  # [B, C, p, D]
        if token is not None:
            prefix = self.freq_mod(token)[:, None, None, :].expand(-1, x.shape[2], -1, -1)
            mixed = torch.cat((prefix, mixed), dim=2)
        encoded: Tensor = self.mlp_mixer_encoder(self.positional_encoder(mixed) if self.has_positions else mixed)
        return encoded


class _Backbone(nn.Module):
    def __init__(self, config: SeriesConfig) -> None:
        super().__init__()
        self.encoder = Encoder(config)

    def forward(self, x: Tensor, token: Tensor | None) -> Tensor:
        encoded: Tensor = self.encoder(x, token)
        return encoded


class Decoder(nn.Module):
    """A linear layer to the decoder's width, and layers there. [B, C, p, D] -> [B, C, p, D']"""

    def __init__(self, config: SeriesConfig) -> None:
        super().__init__()
        width, self.stride = config.decoder_d_model, config.patch_stride
        self.has_prefix, self.has_residual = config.resolution_prefix_tuning, config.decoder_raw_residual
        self.adapter = nn.Linear(config.d_model, width) if width != config.d_model else nn.Identity()
        if self.has_residual:
            self.decoder_raw_embedding = nn.Linear(config.patch_length, width)
        channels = config.num_input_channels if config.decoder_mode == "mix_channel" else None
        patches = config.patches + self.has_prefix
        layers = replace(config, num_layers=config.decoder_num_layers)
        self.decoder_block = _block(config.decoder_adaptive_patching_levels, patches, width, channels, layers)

    def forward(self, x: Tensor, series: Tensor) -> Tensor:
        x = self.adapter(x)
        if self.has_residual:
            raw = patch(series, self.decoder_raw_embedding, self.stride)
            if self.has_prefix:  # the embedding of a patch of zeros
                first = self.decoder_raw_embedding.bias.expand(*raw.shape[:2], 1, -1)
                raw = torch.cat((first, raw), dim=2)
            x = x + raw
        decoded: Tensor = self.decoder_block(x)
        return decoded


class ForecastChannelMixer(nn.Module):
    """The forecast, corrected by what surrounds it and what is known ahead. [B, H, c] -> [B, H, c]

    Windows of w steps with a linear layer each are a convolution over time with one weight for all channels.
    """

    def __init__(self, config: SeriesConfig) -> None:
        super().__init__()
        self.around, self.prepends = config.fcm_context_length, config.fcm_prepend_past
        self.skipped = config.fcm_prepend_past_offset or 0
        self.window, self.has_gate, self.has_mixer = (2 * self.around + 1, config.fcm_gated_attn, config.fcm_use_mixer)
        self.targets, self.ahead = pick(config), Pick(config.exogenous)
        self.has_ahead = bool(config.exogenous)
        count, width = len(config.predicted) + len(config.exogenous), self.window
        if self.has_mixer:
            width = 2 * self.window
            layers = replace(config, gated_attn=config.fcm_gated_attn)
            self.exog_mixer = Layers(config.fcm_mix_layers, count, width, None, layers)
            self.fcm_embedding = nn.Linear(self.window, width)
        self.mlp = nn.Linear(count * width, len(config.predicted))
        if self.has_gate:
            self.fcm_gating_block = Gate(count * width)

    def forward(self, forecast: Tensor, past: Tensor, future: Tensor | None) -> Tensor:
        known = [] if future is None or not self.has_ahead else [self.ahead(future)]
        joined = torch.cat((forecast, *known), dim=2)  # [B, H, n]
        if self.around:
            stop = past.shape[1] - self.skipped
            before = past[:, stop - self.around : stop]
            before = torch.cat((self.targets(before), self.ahead(before)), 2) if known else self.targets(before)
            zeros = torch.zeros_like(before)
            joined = torch.cat((before if self.prepends else zeros, joined, zeros), dim=1)
        x = self._windows(joined, forecast.shape[1])  # [B, H, n, w or 2w]
        if self.has_mixer:
            x = self.exog_mixer(x)
        x = x.flatten(2)
        if self.has_gate:
            x = self.fcm_gating_block(x, FEATURES)
        mixed: Tensor = self.mlp(x)
        return mixed + forecast

    def _windows(self, x: Tensor, steps: int) -> Tensor:
        """Return the window around each step, embedded where there is a mixer. [B, H + 2c, n] -> [B, H, n, w or 2w]"""
        if not self.has_mixer:
            return torch.stack([x[:, i : i + steps] for i in range(self.window)], dim=-1)
        batch, _, channels = x.shape
        signal = x.transpose(1, 2).reshape(batch * channels, 1, -1)
        embedded = F.conv1d(signal, self.fcm_embedding.weight.unsqueeze(1), self.fcm_embedding.bias)
        return embedded.reshape(batch, channels, *embedded.shape[1:]).permute(0, 3, 1, 2)


class _Head(nn.Module):
    def __init__(self, config: SeriesConfig) -> None:
        super().__init__()
        width = config.decoder_d_model if config.use_decoder else config.d_model
        patches = config.patches + config.resolution_prefix_tuning
        self.base_forecast_block = nn.Linear(patches * width, config.prediction_length)
        self.kept, self.picked = config.horizon, pick(config)
        self.mixes = config.enable_forecast_channel_mixing
        if self.mixes:
            self.fcm_block = ForecastChannelMixer(config)

    def forward(self, x: Tensor, past: Tensor, future: Tensor | None) -> Tensor:
        x = self.base_forecast_block(x.flatten(2)).transpose(1, 2)
        x = self.picked(x)[:, : self.kept]
        return self.fcm_block(x, past, future) if self.mixes else x


class TinyTimeMixer(nn.Module):
    """TTM for forecasting, by configuration.

    Args:
        config: see `SeriesConfig`.
        observed_mask: read a mask of observed values too.

    Shapes: past_values [B, T, C] and the others of `SeriesInput.inputs` to the forecast [B, H, c].
    """

    def __init__(self, config: SeriesConfig, observed_mask: bool = False) -> None:
        super().__init__()
        self.reads: SeriesInput = to_input(config, observed_mask)
        self.scaler = Scaler(config.scaler)
        self.backbone = _Backbone(config)
        self.has_decoder = config.use_decoder
        if self.has_decoder:
            self.decoder = Decoder(config)
        self.head = _Head(config)
        self.picked = pick(config)

    def forward(self, past_values: Tensor, *others: Tensor) -> Tensor:
        given = name_inputs(self.reads, others)
        series, loc, scale = self.scaler(past_values, given.get("observed_mask"))
        x = self.backbone(series, given.get("freq_token"))
        if self.has_decoder:
            x = self.decoder(x, series)
        y: Tensor = self.head(x, past_values, given.get("future_values"))
        return y * self.picked(scale) + self.picked(loc)


def ttm(config: SeriesConfig | None = None, **options: Any) -> TinyTimeMixer:
    """TTM of a configuration, by default granite-tsfm's own. Options: `observed_mask` of `TinyTimeMixer`."""
    return TinyTimeMixer(config or get("ttm").series, **options)


def ttm_512_96(config: SeriesConfig | None = None, **options: Any) -> TinyTimeMixer:
    """TTM r1 and r2, 512 steps to 96. Options as for `ttm`."""
    return TinyTimeMixer(config or get("ttm_512_96").series, **options)


def ttm_r1_1024_96(config: SeriesConfig | None = None, **options: Any) -> TinyTimeMixer:
    """TTM r1, 1024 steps to 96. Options as for `ttm`."""
    return TinyTimeMixer(config or get("ttm_r1_1024_96").series, **options)


def ttm_r2_1024_96(config: SeriesConfig | None = None, **options: Any) -> TinyTimeMixer:
    """TTM r2, 1024 steps to 96. Options as for `ttm`."""
    return TinyTimeMixer(config or get("ttm_r2_1024_96").series, **options)


def ttm_r2_1536_96(config: SeriesConfig | None = None, **options: Any) -> TinyTimeMixer:
    """TTM r2, 1536 steps to 96. Options as for `ttm`."""
    return TinyTimeMixer(config or get("ttm_r2_1536_96").series, **options)


def ttm_r2_exog_512_96(config: SeriesConfig | None = None, **options: Any) -> TinyTimeMixer:
    """TTM r2, 512 steps to 96, with a frequency token and two channels that are known ahead. Options as for `ttm`."""
    return TinyTimeMixer(config or get("ttm_r2_exog_512_96").series, **options)
