"""PatchTSMixer: patches of each channel, mixed by MLPs over patches, features and channels, in export-friendly PyTorch.

    scaler    x' = (x - loc) / scale over time                                       [B, T, C]
    patches   windows of P steps, stride S, as [B, C, p, P], and a linear layer      [B, C, p, D]
    layer     x + gate(mlp(norm(x))) over patches, then over features; with `mix_channel` first x + mlp(gate(norm(x)))
              over channels
    head      linear([p D] -> H) a channel, y scale + loc                            [B, H, C]

    mlp(x)  = W2 gelu(W1 x + b1) + b2,    gate(x) = x * softmax(W x + b)

Mixers over patches and channels multiply from the left, along the axis where these are, and transpose nothing. Windows
are a reshape where they do not overlap, and a convolution where they do.

Source: Ekambaram et al., "TSMixer: Lightweight MLP-Mixer Model for Multivariate Time Series Forecasting", KDD 2023,
arXiv 2306.09364. Module names follow transformers' state dicts, so checkpoints load as they are.
Letters: B batch, T context, H horizon, C channels, P patch length, p patches, D width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgesmith.models.registry import get
from edgesmith.models.series import SeriesConfig, SeriesInput, to_input

PATCHES, FEATURES = -2, -1
"""Axes of a map [B, C, p, D] that are mixed; channels are axis 1."""


class Scaler(nn.Module):
    """Scaling over time: `std`, `mean` or none. x [B, T, C] -> scaled x, loc [B, 1, C], scale [B, 1, C]

    Deviations are taken from the mean before they are squared: E[x^2] - E[x]^2 loses 7 % at an offset of 1000.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        if self.kind == "std":
            loc = _mean(x, mask)
            centred = x - loc
            scale = (_mean(centred * centred, mask) + 1e-5).sqrt()
            return centred / scale, loc, scale
        zeros = torch.zeros_like(x[:, :1])
        if self.kind == "mean":
            scale = self._mean_scale(x, mask)
            return x / scale, zeros, scale
        return x, zeros, torch.ones_like(zeros)

    @staticmethod
    def _mean_scale(x: Tensor, mask: Tensor | None) -> Tensor:
        """Return mean |x| of what was observed; of a series without any, the batch's.

        A mask is 0 or 1, so what chooses between the two is a number: no file needs a comparison for it.
        """
        if mask is None:
            return x.abs().mean(1, keepdim=True).clamp(min=1e-10)
        total, count = (x * mask).abs().sum(1, keepdim=True), mask.sum(1, keepdim=True)
        batch = total.sum(0) / count.sum(0).clamp(min=1)
        seen = count.clamp(max=1)
        return (seen * (total / count.clamp(min=1)) + (1 - seen) * batch).clamp(min=1e-10)


def _mean(x: Tensor, mask: Tensor | None) -> Tensor:
    """Return the mean over time of what was observed. [B, T, C] -> [B, 1, C]"""
    if mask is None:
        return x.mean(1, keepdim=True)
    return (x * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)


def patch(x: Tensor, linear: nn.Linear, stride: int) -> Tensor:
    """Return a linear layer of each window; the windows end with the series. [B, T, C] -> [B, C, p, D]"""
    (batch, steps, channels), length = x.shape, linear.in_features
    x = x.transpose(1, 2)
    x = x[:, :, (steps - length) % stride :]
    if stride == length:
        windows: Tensor = linear(x.reshape(batch, channels, -1, length))
        return windows
    weight = linear.weight.unsqueeze(1)
    x = F.conv1d(x.reshape(batch * channels, 1, -1), weight, linear.bias, stride=stride)  # [B C, D, p]
    return x.transpose(1, 2).reshape(batch, channels, -1, linear.out_features)


def along(linear: nn.Linear, x: Tensor, axis: int) -> Tensor:
    """Return a linear layer over one axis of a map [B, C, p, D]: the last, the one before it, or the channels."""
    if axis == FEATURES:
        mixed: Tensor = linear(x)
        return mixed
    assert linear.bias is not None
    if axis == PATCHES:
        return linear.weight @ x + linear.bias.unsqueeze(1)
    batch, _, patches, width = x.shape
    mixed = linear.weight @ x.reshape(batch, -1, patches * width) + linear.bias.unsqueeze(1)
    return mixed.reshape(batch, -1, patches, width)


class Norm(nn.Module):
    """A layer norm over features, or a batch norm of each feature. [B, C, p, D]"""

    def __init__(self, width: int, config: SeriesConfig) -> None:
        super().__init__()
        self.is_batch = "batch" in config.norm_mlp.lower()
        self.norm: nn.Module = _BatchNorm(width, config.norm_eps) if self.is_batch else _layer_norm(width, config)

    def forward(self, x: Tensor) -> Tensor:
        normed: Tensor = self.norm(x)
        return normed


def _layer_norm(width: int, config: SeriesConfig) -> nn.LayerNorm:
    return nn.LayerNorm(width, eps=config.norm_eps)


class _BatchNorm(nn.Module):
    """A batch norm of each feature with its running statistics: a factor and a sum, which layers behind it take."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.batchnorm = nn.BatchNorm1d(width, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        norm = self.batchnorm
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        return x * scale + (norm.bias - norm.running_mean * scale)


class Mlp(nn.Module):
    """linear, GELU, linear, along one axis."""

    def __init__(self, size: int, factor: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(size, size * factor), nn.Linear(size * factor, size)

    def forward(self, x: Tensor, axis: int) -> Tensor:
        return along(self.fc2, F.gelu(along(self.fc1, x, axis)), axis)


class Gate(nn.Module):
    """x * softmax(linear(x)), along one axis."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.attn_layer = nn.Linear(size, size)

    def forward(self, x: Tensor, axis: int = FEATURES) -> Tensor:
        return x * along(self.attn_layer, x, axis).softmax(axis)


class Attention(nn.Module):
    """Self-attention over patches, of each channel by itself. [B, C, p, D]"""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.k_proj, self.v_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.q_proj, self.out_proj = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, patches, width = x.shape
        x = x.flatten(0, 1)

        def split(linear: nn.Linear) -> Tensor:
            heads: Tensor = linear(x).reshape(batch * channels, patches, self.heads, -1)
            return heads.transpose(1, 2)  # [B C, heads, p, D / heads]

        mixed = F.scaled_dot_product_attention(split(self.q_proj), split(self.k_proj), split(self.v_proj))
        out: Tensor = self.out_proj(mixed.transpose(1, 2).reshape(batch * channels, patches, width))
        return out.reshape(batch, channels, patches, width)


class AxisMixer(nn.Module):
    """x + gate(mlp(norm(x))) along one axis; over channels the gate comes before the MLP, as transformers has it."""

    def __init__(self, size: int, width: int, axis: int, config: SeriesConfig) -> None:
        super().__init__()
        self.axis = axis
        self.norm = Norm(width, config)
        self.mlp = Mlp(size, config.expansion_factor)
        self.has_gate = config.gated_attn
        if self.has_gate:
            self.gating_block = Gate(size)
        self.has_attention = config.self_attn and axis == PATCHES
        if self.has_attention:
            self.self_attn_layer = Attention(width, config.self_attn_heads)
            self.norm_attn = Norm(width, config)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        gate_first = self.axis == 1
        y = self.gating_block(normed, self.axis) if self.has_gate and gate_first else normed
        y = self.mlp(y, self.axis)
        if self.has_gate and not gate_first:
            y = self.gating_block(y, self.axis)
        if self.has_attention:
            y = self.norm_attn(y + self.self_attn_layer(normed))
        return y + x


class Layer(nn.Module):
    """Mixers over channels (with `mix_channel`), over patches and over features.

    Args:
        one: mix over patches where there is only one, too: transformers does, granite-tsfm does not.
    """

    def __init__(self, patches: int, width: int, channels: int | None, config: SeriesConfig, one: bool = False) -> None:
        super().__init__()
        self.mixes_patches, self.mixes_channels = one or patches > 1, channels is not None
        if self.mixes_patches:
            self.patch_mixer = AxisMixer(patches, width, PATCHES, config)
        self.feature_mixer = AxisMixer(width, width, FEATURES, config)
        if channels is not None:
            self.channel_feature_mixer = AxisMixer(channels, width, 1, config)

    def forward(self, x: Tensor) -> Tensor:
        if self.mixes_channels:
            x = self.channel_feature_mixer(x)
        if self.mixes_patches:
            x = self.patch_mixer(x)
        return self.feature_mixer(x)


class Layers(nn.Module):
    """Layers, one after the other, under the name `mixers`."""

    def __init__(
        self, count: int, patches: int, width: int, channels: int | None, config: SeriesConfig, one: bool = False
    ) -> None:
        super().__init__()
        self.mixers = nn.Sequential(*(Layer(patches, width, channels, config, one) for _ in range(count)))

    def forward(self, x: Tensor) -> Tensor:
        mixed: Tensor = self.mixers(x)
        return mixed


class Position(nn.Module):
    """A learned or constant vector a patch, added."""

    def __init__(self, patches: int, width: int) -> None:
        super().__init__()
        self.position_enc = nn.Parameter(0.02 * torch.randn(patches, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.position_enc


class _Encoder(nn.Module):
    def __init__(self, config: SeriesConfig) -> None:
        super().__init__()
        self.stride = config.patch_stride
        self.has_positions = config.use_positional_encoding
        self.patcher = nn.Linear(config.patch_length, config.d_model)
        if self.has_positions:
            self.positional_encoder = Position(config.patches, config.d_model)
        channels = config.num_input_channels if config.mode == "mix_channel" else None
        self.mlp_mixer_encoder = Layers(config.num_layers, config.patches, config.d_model, channels, config, True)

    def forward(self, x: Tensor) -> Tensor:
        x = patch(x, self.patcher, self.stride)
        return self.mlp_mixer_encoder(self.positional_encoder(x) if self.has_positions else x)


class _Backbone(nn.Module):
    def __init__(self, config: SeriesConfig) -> None:
        super().__init__()
        self.encoder = _Encoder(config)

    def forward(self, x: Tensor) -> Tensor:
        encoded: Tensor = self.encoder(x)
        return encoded


class ForecastHead(nn.Module):
    """The forecast of each channel, still scaled. [B, C, p, D] -> [B, H, c]"""

    def __init__(self, config: SeriesConfig) -> None:
        super().__init__()
        self.base_forecast_block = nn.Linear(config.patches * config.d_model, config.prediction_length)

    def forward(self, x: Tensor) -> Tensor:
        forecast: Tensor = self.base_forecast_block(x.flatten(2))
        return forecast.transpose(1, 2)


class PooledHead(nn.Module):
    """Classes or values of all channels together. [B, C, p, D] -> [B, targets]"""

    def __init__(self, config: SeriesConfig) -> None:
        super().__init__()
        self.pool, self.range = config.head_aggregation, config.output_range
        kept = config.patches if self.pool is None else 1
        self.projection = nn.Linear(config.d_model * config.num_input_channels * kept, config.num_targets)

    def forward(self, x: Tensor) -> Tensor:
        pools = {"use_last": lambda y: y[:, :, -1], "max_pool": lambda y: y.amax(2), "avg_pool": lambda y: y.mean(2)}
        x = x.transpose(2, 3) if self.pool is None else pools[self.pool](x)
        y: Tensor = self.projection(x.flatten(1))
        if self.range is None:
            return y
        low, high = self.range
        return y.sigmoid() * (high - low) + low


class InjectScale(nn.Module):
    """Features joined with an affine map of the scaler's loc and scale. [B, C, p, D]"""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inverse_trans_expansion = nn.Linear(width + 2, 2 * width)
        self.inverse_trans_compression = nn.Linear(2 * width, width)
        self.map_scale_expansion = nn.Linear(2, 4)
        self.map_scale_compression = nn.Linear(4, 2)

    def forward(self, x: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
        facts = torch.cat((loc, scale), dim=1).transpose(1, 2).unsqueeze(2)  # [B, C, 1, 2]
        facts = self.map_scale_compression(self.map_scale_expansion(facts))
        joined = torch.cat((x, facts.expand(-1, -1, x.shape[2], -1)), dim=-1)
        out: Tensor = self.inverse_trans_compression(self.inverse_trans_expansion(joined))
        return out


class PatchTSMixer(nn.Module):
    """PatchTSMixer by configuration.

    Args:
        config: see `SeriesConfig`.
        observed_mask: read a mask of observed values too.

    Shapes: [B, T, C] (and a mask of that shape) to the forecast [B, H, c], or to [B, targets].
    """

    def __init__(self, config: SeriesConfig, observed_mask: bool = False) -> None:
        super().__init__()
        self.reads: SeriesInput = to_input(config, observed_mask)
        self.is_forecast = config.head == "prediction"
        self.scaler = Scaler(config.scaler)
        self.model = _Backbone(config)
        self.head: nn.Module = ForecastHead(config) if self.is_forecast else PooledHead(config)
        self.injects = not self.is_forecast and bool(config.scaler)
        if self.injects:
            self.inject_scale = InjectScale(config.d_model)
        self.picked = pick(config)

    def forward(self, past_values: Tensor, *others: Tensor) -> Tensor:
        given = name_inputs(self.reads, others)
        x, loc, scale = self.scaler(past_values, given.get("observed_mask"))
        x = self.model(x)
        if self.injects:
            x = self.inject_scale(x, loc, scale)
        y: Tensor = self.head(x)
        if not self.is_forecast:
            return y
        return self.picked(y) * self.picked(scale) + self.picked(loc)


class Pick(nn.Module):
    """Some of the channels, in order. [B, T, C] -> [B, T, c]"""

    def __init__(self, channels: tuple[int, ...]) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        runs = [(i, i + 1) for i in self.channels]
        merged = runs[:1]
        for start, stop in runs[1:]:
            merged = [*merged[:-1], (merged[-1][0], stop)] if merged[-1][1] == start else [*merged, (start, stop)]
        parts = [x[..., start:stop] for start, stop in merged]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


def pick(config: SeriesConfig) -> nn.Module:
    """Return what picks the predicted channels: nothing where these are all."""
    every = config.predicted == tuple(range(config.num_input_channels))
    return nn.Identity() if every else Pick(config.predicted)


def name_inputs(reads: SeriesInput, others: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """Return the inputs after the series by their names."""
    return dict(zip(list(reads.inputs)[1:], others, strict=True))


def patchtsmixer(config: SeriesConfig | None = None, **options: Any) -> PatchTSMixer:
    """PatchTSMixer of a configuration, by default transformers' own. Options: `observed_mask` of `PatchTSMixer`."""
    return PatchTSMixer(config or get("patchtsmixer").series, **options)


def patchtsmixer_512_96(config: SeriesConfig | None = None, **options: Any) -> PatchTSMixer:
    """PatchTSMixer for ETTh1: 512 steps of 7 channels to 96. Options as for `patchtsmixer`."""
    return PatchTSMixer(config or get("patchtsmixer_512_96").series, **options)


def patchtsmixer_mix_channel_512_96(config: SeriesConfig | None = None, **options: Any) -> PatchTSMixer:
    """The same with mixers over channels. Options as for `patchtsmixer`."""
    return PatchTSMixer(config or get("patchtsmixer_mix_channel_512_96").series, **options)


def patchtsmixer_batchnorm_512_96(config: SeriesConfig | None = None, **options: Any) -> PatchTSMixer:
    """PatchTSMixer with batch norms and patches that overlap by half. Options as for `patchtsmixer`."""
    return PatchTSMixer(config or get("patchtsmixer_batchnorm_512_96").series, **options)


def from_checkpoint(state: dict[str, Tensor], **_: Any) -> tuple[dict[str, Any], dict[str, Tensor], list[str]]:
    """Return builder options (none: the configuration says all), the tensors to load, and no notes."""
    return {}, state, []
