"""Masks of ones in foreign forecasters: their scalers become what ours are, and the nearest others do not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgesmith.exporters.costs import Costs
from edgesmith.exporters.graph.capture import capture
from edgesmith.exporters.graph.edit import count_operators
from edgesmith.exporters.inputs import draw_series
from edgesmith.exporters.rewrites.drop_ones import drop_ones, find_mean
from edgesmith.exporters.rewrites.order import rewrite
from edgesmith.models import registry
from edgesmith.models.series import read_config, to_input

COSTS = Costs(3.0)
SERIES: dict[str, Any] = {
    "context_length": 32,
    "prediction_length": 8,
    "patch_length": 8,
    "patch_stride": 8,
    "num_input_channels": 3,
    "d_model": 8,
    "num_layers": 1,
}
OF_TTM: dict[str, Any] = SERIES | {
    "d_model": 16,
    "adaptive_patching_levels": 2,
    "decoder_num_layers": 1,
    "decoder_d_model": 8,
}


AHEAD: dict[str, Any] = {
    "decoder_mode": "mix_channel",
    "prediction_channel_indices": [0, 2],
    "exogenous_channel_indices": [1],
    "resolution_prefix_tuning": True,
    "frequency_token_vocab_size": 4,
    "enable_forecast_channel_mixing": True,
    "fcm_use_mixer": True,
    "fcm_mix_layers": 1,
}


def fused(counts: dict[str, int]) -> dict[str, int]:
    return {name: count for name, count in counts.items() if name.startswith("edgesmith.")}


class Scaled(nn.Module):
    """A scaler with a mask, as transformers has it, that nobody gave a mask."""

    least = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(12, 5)

    def mask(self, x: Tensor) -> Tensor:
        return torch.ones_like(x)

    def count(self, mask: Tensor) -> Tensor:
        return mask.sum(1, keepdim=True).clamp_min(self.least)

    def forward(self, x: Tensor) -> Tensor:
        mask = self.mask(x)
        count = self.count(mask)
        loc = (x * mask).sum(1, keepdim=True) / count
        variance = (((x - loc) * mask) ** 2).sum(1, keepdim=True) / count
        y: Tensor = self.layer(((x - loc) / torch.sqrt(variance + 1e-5)).transpose(1, 2))
        return y


class Full(Scaled):
    """The same with a mask of another spelling, and another clamp."""

    def mask(self, x: Tensor) -> Tensor:
        return torch.full(x.shape, True).to(x.dtype)

    def count(self, mask: Tensor) -> Tensor:
        return torch.clamp(mask.sum(dim=(1,), keepdim=True), min=1e-3)


class Held(Scaled):
    """The least count is a tensor, as granite-tsfm has it."""

    def count(self, mask: Tensor) -> Tensor:
        return torch.clamp_min(mask.sum(1, keepdim=True), torch.tensor(1))


@pytest.mark.parametrize("spelling", [Scaled, Full, Held], ids=lambda one: str(one.__name__))
def test_a_scaler_without_a_mask_is_a_norm_with_the_same_numbers(spelling: Any) -> None:
    torch.manual_seed(0)
    model, x = spelling().eval(), torch.randn(2, 12, 3)
    program, _ = rewrite(capture(model, (x,)), COSTS)
    counts = count_operators(program.module)
    assert fused(counts) == {"edgesmith.channel_norm": 1}
    assert not {"aten.ones_like", "aten.full", "aten.clamp_min", "aten.clamp", "aten.sum", "aten.mean"} & counts.keys()
    with torch.no_grad():
        assert torch.allclose(program.module(x), model(x), atol=1e-6)
    _, reports = rewrite(program, COSTS, (find_mean, drop_ones))
    assert not any(one.applied or one.rejected for one in reports)


class Fewer(Scaled):
    """At least 20 values are counted, and there are 12."""

    least = 20.0


class Other(Scaled):
    """The channels are counted, not the steps."""

    def count(self, mask: Tensor) -> Tensor:
        return mask.sum(2, keepdim=True).clamp_min(1.0).mean(1, keepdim=True)


class Real(Scaled):
    """A mask that hides something."""

    def mask(self, x: Tensor) -> Tensor:
        return (x > 0).to(x.dtype)


class Larger(nn.Module):
    """Ones that make what they multiply larger."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :1] * torch.ones_like(x)


@pytest.mark.parametrize(
    ("spelling", "reasons"),
    [(Fewer, 2), (Other, 0), (Real, 0), (Larger, 0)],
    ids=lambda one: one.__name__ if isinstance(one, type) else "",
)
def test_the_nearest_others_are_left_with_the_same_numbers(spelling: Any, reasons: int) -> None:
    torch.manual_seed(0)
    model, x = spelling().eval(), torch.randn(2, 12, 3)
    program, reports = rewrite(capture(model, (x,)), COSTS, (find_mean, drop_ones))
    with torch.no_grad():
        assert torch.allclose(program.module(x), model(x), atol=1e-6)
    found = next(report for report in reports if report.name == "find_mean")
    assert not found.applied
    assert len(found.rejected) == reasons
    assert all("a sum of 12 values is divided by a count of 20" in one.reason for one in found.rejected)


class Forecast(nn.Module):
    """The forecast of a model that returns several things."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, past_values: Tensor, freq_token: Tensor | None = None, future: Tensor | None = None) -> Tensor:
        given = {} if freq_token is None else {"freq_token": freq_token, "future_values": future}
        y: Tensor = self.model(past_values=past_values, return_loss=False, **given).prediction_outputs
        return y


def compare_counts(theirs: nn.Module, family: str, config: dict[str, Any]) -> None:
    """Hold a foreign model's fused ops and numbers to ours with its weights."""
    ours = registry.build(registry.get(family), config=read_config(config, {}, "a test"))
    ours.load_state_dict(theirs.state_dict())
    inputs = draw_series(to_input(read_config(config, {}, "a test")), 1, 0)
    found = []
    for model in (Forecast(theirs.eval()), ours):
        program, _ = rewrite(capture(model, inputs), COSTS)
        found.append(fused(count_operators(program.module)))
        with torch.no_grad():
            assert torch.allclose(program.module(*inputs), ours(*inputs), atol=1e-4)
    assert found[0] == found[1] != {}


@pytest.mark.parametrize(
    "changes",
    [{}, {"mode": "mix_channel"}, {"self_attn": True, "self_attn_heads": 2}, {"norm_mlp": "BatchNorm"}],
    ids=["common", "mix_channel", "attention", "BatchNorm"],
)
def test_transformers_patchtsmixer_gets_the_ops_of_ours(changes: dict[str, Any]) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(0)
    config = transformers.PatchTSMixerConfig(**SERIES, **changes)
    compare_counts(transformers.PatchTSMixerForPrediction(config), "patchtsmixer", SERIES | changes)


@pytest.mark.parametrize("changes", [{}, AHEAD], ids=["common", "channels known ahead"])
def test_granites_ttm_gets_the_ops_of_ours(changes: dict[str, Any]) -> None:
    ttm = pytest.importorskip("tsfm_public.models.tinytimemixer", reason="granite-tsfm is not installed")
    torch.manual_seed(0)
    config = OF_TTM | changes
    compare_counts(ttm.TinyTimeMixerForPrediction(ttm.TinyTimeMixerConfig(**config)), "ttm", config)
