"""PatchTSMixer and TTM: the authors' outputs, configurations, the time-series contract, and what files make of them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import edgesmith
from edgesmith.errors import BadInput
from edgesmith.exporters.graph.capture import capture
from edgesmith.exporters.inputs import draw_series
from edgesmith.exporters.load import load as load_model
from edgesmith.exporters.options import ModelOptions
from edgesmith.exporters.precision.restored_levels import find_restored_levels
from edgesmith.exporters.verify import verify_artifact
from edgesmith.models import registry
from edgesmith.models.checkpoint import load
from edgesmith.models.series import SeriesConfig, read_config, to_input
from edgesmith.models.ttm import TinyTimeMixer

NAMES = [name for name, spec in registry.all_models().items() if spec.task == "forecasting"]
FIXTURES = (
    "patchtsmixer_512_96",
    "patchtsmixer_mix_channel_512_96",
    "patchtsmixer_batchnorm_512_96",
    "ttm_512_96",
    "ttm_r2_exog_512_96",
)
SMALL: dict[str, Any] = {
    "context_length": 32,
    "prediction_length": 8,
    "patch_length": 8,
    "patch_stride": 8,
    "num_input_channels": 3,
    "d_model": 16,
    "num_layers": 1,
    "adaptive_patching_levels": 2,
    "decoder_num_layers": 1,
    "decoder_d_model": 12,
    "decoder_mode": "mix_channel",
    "prediction_channel_indices": [2, 0],
    "exogenous_channel_indices": [1],
    "resolution_prefix_tuning": True,
    "frequency_token_vocab_size": 4,
    "enable_forecast_channel_mixing": True,
    "fcm_use_mixer": True,
    "fcm_mix_layers": 1,
    "architectures": ["TinyTimeMixerForPrediction"],
    "model_type": "tinytimemixer",
}


def relative(found: Tensor | np.ndarray, expected: Tensor | np.ndarray) -> float:
    found, expected = torch.as_tensor(found), torch.as_tensor(expected)
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.abs().max())


def write_config(folder: Path, **changes: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(SMALL | changes), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", FIXTURES)
def test_the_authors_outputs_are_reproduced_from_their_checkpoints(
    name: str, rebuild: ModuleType, fixtures: Path, tmp_path: Path
) -> None:
    state, x, expected, _ = rebuild.load(fixtures / f"{name}.npz")
    save_file(state, tmp_path / "model.safetensors")
    model, weights = load(registry.get(name), tmp_path / "model.safetensors")
    assert weights.notes == ()
    assert list(model.state_dict()) == list(state)
    with np.load(fixtures / f"{name}.npz") as stored:
        others = [torch.from_numpy(stored[f"in/{one}"]) for one in list(model.reads.inputs)[1:]]
    with torch.no_grad():
        assert relative(model(x, *others), expected) <= 1e-5
        if others:  # what has to matter does, and what must not does not
            token, future = others
            assert relative(model(x, (token + 1) % 8, future), expected) > 1e-2
            ahead, target = future.clone(), future.clone()
            ahead[..., 3:] += 1
            target[..., :3] += 1
            assert relative(model(x, token, ahead), expected) > 1e-2
            assert torch.equal(model(x, token, target), model(x, token, future))


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_the_published_ones(name: str) -> None:
    spec = registry.get(name)
    assert sum(p.numel() for p in registry.build(spec).parameters()) == spec.params


CONFIGS: dict[str, dict[str, Any]] = {
    "attention": {"self_attn": True, "self_attn_heads": 2},
    "no gates": {"gated_attn": False},
    "windows that leave some out": {"patch_length": 10, "patch_stride": 7},
    "mean": {"scaling": "mean"},
    "none": {"scaling": None},
    "positions": {"use_positional_encoding": True},
    "classes": {"architectures": ["PatchTSMixerForTimeSeriesClassification"], "head_aggregation": "avg_pool"},
    "classes in a range": {"architectures": ["PatchTSMixerForTimeSeriesClassification"], "output_range": [0, 2]},
    "values": {"architectures": ["PatchTSMixerForRegression"], "output_range": [0, 2], "head_aggregation": None},
}


@pytest.mark.parametrize("changes", CONFIGS.values(), ids=list(CONFIGS))
def test_every_part_of_a_configuration_runs_and_changes_the_outputs(changes: dict[str, Any]) -> None:
    facts = {"context_length": 40, "num_input_channels": 3, "d_model": 8, "num_layers": 1}
    torch.manual_seed(0)
    model = registry.build(registry.get("patchtsmixer"), config=read_config(facts | changes, {}, "a test"))
    x = torch.randn(2, 40, 3)
    with torch.no_grad():
        y = model(x)
        assert y.shape == ((2, 16, 3) if model.is_forecast else (2, 3))
        assert torch.isfinite(y).all()
        if changes.get("output_range"):
            assert float(y.min()) >= 0
            assert float(y.max()) <= 2
        if changes.get("patch_stride"):  # the windows end with the series, so the first two steps are in none
            assert (40 - 10) % 7 == 2
            assert model.model.encoder.mlp_mixer_encoder.mixers[0].patch_mixer.mlp.fc1.in_features == 5


@pytest.mark.parametrize("kind", ["std", "mean"])
def test_a_mask_of_ones_is_no_mask_and_what_is_missing_does_not_count(kind: str) -> None:
    config = SeriesConfig(scaling=kind, num_input_channels=2)
    torch.manual_seed(0)
    masked = registry.build(registry.get("patchtsmixer"), config=config, observed_mask=True)
    plain = registry.build(registry.get("patchtsmixer"), config=config)
    plain.load_state_dict(masked.state_dict())
    x, mask = torch.randn(2, 32, 2), torch.ones(2, 32, 2)
    with torch.no_grad():
        assert relative(masked(x, mask), plain(x)) <= 1e-6
        mask[:, :5] = 0
        _, loc, scale = masked.scaler(x, mask)
        _, expected_loc, expected_scale = plain.scaler(x[:, 5:], None)
    assert relative(scale, expected_scale) <= 1e-6
    assert torch.allclose(loc, expected_loc, atol=1e-6)


def test_forecasts_are_in_the_datas_scale() -> None:
    model = registry.build(registry.get("patchtsmixer"))
    x = torch.randn(1, 32, 1)
    with torch.no_grad():
        assert relative(model(1000 + 30 * x), 1000 + 30 * model(x)) <= 1e-4


def test_a_config_json_makes_the_model_its_inputs_and_its_file(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    torch.manual_seed(1)
    model = TinyTimeMixer(read_config(SMALL, {}, "a test")).eval()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    artifact = edgesmith.export("ttm", "onnx", config=config, weights=tmp_path / "model.safetensors", out=tmp_path)
    record = artifact.manifest["model"]
    assert [one["name"] for one in record["inputs"]] == ["past_values", "freq_token", "future_values"]
    assert [one["shape"] for one in record["inputs"]] == [[1, 32, 3], [1], [1, 8, 3]]
    assert record["outputs"] == ["forecast"]
    series = record["series"]
    assert (series["context_length"], series["channels"], series["prediction_length"]) == (32, 3, 8)
    assert series["predicted_channels"] == [0, 2]
    assert series["future_channels"] == [1]
    assert series["freq_token"] == {"oov": 0, "min": 1, "2min": 2, "5min": 3}
    facts = {one.key: one.value for one in onnx.load(artifact.file).metadata_props}
    assert json.loads(facts["edgesmith.input.series"]) == series
    assert not artifact.manifest["verification"].get("unverified")
    verify_artifact(artifact.path)  # whose inputs it keeps


@pytest.mark.parametrize("target", ["coreml", "coreai", "tensorrt"])
@pytest.mark.slow
def test_a_small_one_is_verified_on_every_target(target: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"device": "rtx3080"} if target == "tensorrt" else {}
    edgesmith.export("ttm", target, config=write_config(tmp_path), precision="fp16", out=tmp_path, **options)


@pytest.mark.parametrize("name", FIXTURES)
@pytest.mark.slow
def test_the_authors_outputs_are_reproduced_in_onnx_runtime(
    name: str, rebuild: ModuleType, fixtures: Path, tmp_path: Path
) -> None:
    import onnxruntime

    state, x, expected, _ = rebuild.load(fixtures / f"{name}.npz")
    save_file(state, tmp_path / "model.safetensors")
    artifact = edgesmith.export(name, "onnx", weights=tmp_path / "model.safetensors", out=tmp_path)
    session = onnxruntime.InferenceSession(artifact.file, providers=["CPUExecutionProvider"])
    with np.load(fixtures / f"{name}.npz") as stored:
        others = {one.name: stored[f"in/{one.name}"] for one in session.get_inputs()[1:]}
    (found,) = session.run(None, {"past_values": x.numpy(), **others})
    assert relative(found, expected) <= 1e-4


def test_drawn_series_have_levels_masks_and_every_token() -> None:
    reads = to_input(read_config(SMALL, {}, "a test"), observed_mask=True)
    calls = [draw_series(reads, 1, seed) for seed in range(4)]
    assert [tuple(x.shape) for x in calls[0]] == [(1, 32, 3), (1, 32, 3), (1,), (1, 8, 3)]
    assert [int(call[2]) for call in calls] == [0, 1, 2, 3]
    assert float(calls[0][0].abs().max()) < 10
    assert float(calls[1][0].min()) > 400
    assert {0.0, 1.0} == set(calls[0][1].flatten().tolist())


class Restored(nn.Module):
    """A foreign forecaster: a level is taken from the data and given back, or something else is."""

    def __init__(self, gives_back: bool) -> None:
        super().__init__()
        self.layer, self.gives_back = nn.Linear(24, 24), gives_back

    def forward(self, x: Tensor) -> Tensor:
        loc = x.mean(dim=1, keepdim=True)
        scale = ((x - loc).square().mean(dim=1, keepdim=True) + 1e-5).sqrt()
        y = self.layer(((x - loc) / scale).transpose(1, 2)).transpose(1, 2)
        return y * scale + loc if self.gives_back else y


def test_both_ends_of_a_foreign_forecaster_stay_fp32_and_nothing_else() -> None:
    x = torch.randn(1, 24, 2)
    kept = find_restored_levels(capture(Restored(True), (x,)))
    assert {name.rstrip("_0123456789") for name in kept} >= {"mean", "sub", "sqrt", "div", "mul", "add"}
    assert not any("linear" in name for name in kept)
    assert not find_restored_levels(capture(Restored(False), (x,)))
    assert not find_restored_levels(capture(nn.Sequential(nn.LayerNorm(2), nn.Linear(2, 2)), (x,)))


class Scaled(nn.Module):
    """A foreign forecaster that divides by the mean of magnitudes and multiplies by it again, or by another number."""

    def __init__(self, gives_back: bool, adds: float | None) -> None:
        super().__init__()
        self.layer, self.gives_back, self.adds = nn.Linear(24, 24), gives_back, adds

    def forward(self, x: Tensor) -> Tensor:
        scale = x.abs().mean(dim=1, keepdim=True).clamp(min=1e-10)
        y = self.layer((x / scale).transpose(1, 2)).transpose(1, 2)
        y = y * (scale if self.gives_back else 2.0)
        return y if self.adds is None else y + self.adds


@pytest.mark.parametrize("adds", [None, 1.0])
def test_a_factor_that_is_given_back_stays_fp32(adds: float | None) -> None:
    """In fp16 the bound of 1e-10 is 0, and a series of zeros gave NaN on Core AI and TensorRT."""
    x = torch.randn(1, 24, 2)
    kept = find_restored_levels(capture(Scaled(True, adds), (x,)))
    assert {name.rstrip("_0123456789") for name in kept} >= {"mean", "clamp", "div", "mul"}
    assert not any("linear" in name for name in kept)
    assert not find_restored_levels(capture(Scaled(False, adds), (x,)))


def test_half_precision_knows_a_deviation_at_a_high_level(tmp_path: Path) -> None:
    """The fault that this would show: fp16 steps of 0.5 at 1000, in the forecast of a series whose deviation is 1."""
    import onnxruntime

    torch.manual_seed(0)
    model = Restored(True)
    x = 1000 + torch.randn(1, 24, 2)
    artifact = edgesmith.export(model, "onnx", inputs=(x,), precision="fp16", out=tmp_path)
    session = onnxruntime.InferenceSession(artifact.file, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        assert float(np.abs(found - model(x).numpy()).max()) < 0.02


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"model": "ttm_512_96", "frames": 5}, "ttm_512_96 reads a context of 512 steps and has no --frames"),
        ({"model": "ttm_512_96", "features": True}, "ttm_512_96 reads time series and has no --features"),
        ({"model": "casvit_xs", "observed_mask": True}, "--observed-mask is for forecasters, such as ttm"),
    ],
)
def test_options_that_a_forecaster_does_not_have_are_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BadInput, match=re.escape(sentence)):
        ModelOptions(**options)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"loss": "nll"}, 'config.json: loss must be "mse" or "mae" or "pinball" or "huber", got "nll"'),
        ({"multi_scale": True}, "config.json: multi_scale must be false, got true"),
        ({"d_model": "16"}, 'config.json: d_model must be a whole number, got "16"'),
        ({"gated_attn": "yes"}, 'config.json: gated_attn must be true or false, got "yes"'),
        ({"patch_length": 64}, "config.json: patch_length must be context_length at most"),
        ({"prediction_channel_indices": [3]}, "config.json: channel 3 is none of the 3"),
        ({"architectures": ["TinyTimeMixerForMaskedPrediction"]}, 'must be ["TinyTimeMixerForPrediction"], got'),
        ({"model_type": "patchtsmixer"}, 'config.json: model_type must be "tinytimemixer", got "patchtsmixer"'),
        ({"contextlength": 8}, "config.json: contextlength is no name of a configuration. Nearest: context_length"),
        ({"hiden_size": 8}, "config.json: hiden_size is no name of a configuration. Nearest: hidden_size"),
        ({"prediction_length": 0}, "config.json: prediction_length must be 1 or more"),
        ({"self_attn": True, "self_attn_heads": 0}, "config.json: self_attn_heads must be 1 or more"),
        ({"head_aggregation": "sum"}, "config.json: head_aggregation must be use_last, max_pool, avg_pool or null"),
        ({"output_range": [1]}, "config.json/output_range must be a list of 2 or null, got [1]"),
        ({"norm_eps": -1}, "config.json: norm_eps must be more than 0, got -1"),
        ({"prediction_channel_indices": []}, "config.json: no channel is left to predict"),
        ({"fcm_context_length": 33}, "config.json: fcm_context_length and fcm_prepend_past_offset together must be"),
        ({"d_model": 15}, "config.json: d_model must be divisible by 2, for adaptive_patching_levels 2, got 15"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(changes: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=re.escape(sentence)):
        _ = ModelOptions("ttm", config=write_config(tmp_path, **changes))


def test_what_granite_tsfm_saves_as_null_or_under_another_name_is_read(tmp_path: Path) -> None:
    changes = {"categorical_vocab_size_list": None, "architectures": None, "multi_scale": None, "d_model": 16}
    saved = ModelOptions("ttm", config=write_config(tmp_path, trend_decoder_num_layers=None, **changes))
    assert saved.spec is not None
    renamed = {"hidden_size": 24, "num_hidden_layers": 2, "adaptive_patching_levels": 0}
    config = read_config({"context_length": 32, **renamed}, saved.spec.supported, "a test")
    assert (config.d_model, config.num_layers) == (24, 2)


@pytest.mark.parametrize(("ending", "output"), [("ForRegression", "values"), ("ForTimeSeriesClassification", "logits")])
def test_an_output_is_called_what_its_head_returns(ending: str, output: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [f"PatchTSMixer{ending}"], "num_layers": 1}))
    options = ModelOptions("patchtsmixer", config=tmp_path / "config.json")
    assert load_model(options).output_names == (output,)
    assert options.series is not None
    assert "prediction_length" not in options.series.describe()


def test_one_patch_is_mixed_as_each_author_does() -> None:
    config = SeriesConfig(context_length=8, d_model=16, num_layers=1, decoder_num_layers=1)
    theirs = registry.build(registry.get("patchtsmixer"), config=config).state_dict()
    assert any("patch_mixer" in key for key in theirs)
    assert not any("patch_mixer" in key for key in TinyTimeMixer(config).state_dict())


def test_a_ttm_may_have_positions_behind_its_frequency() -> None:
    torch.manual_seed(0)
    model = TinyTimeMixer(read_config(SMALL | {"use_positional_encoding": True}, {}, "a test")).eval()
    positions = model.state_dict()["backbone.encoder.positional_encoder.position_enc"]
    assert positions.shape == (5, 16)
    given = draw_series(model.reads, 1, 0)
    with torch.no_grad():
        before = model(*given)
        positions.zero_()
        assert relative(model(*given), before) > 1e-4


def test_a_config_that_is_none_and_one_beside_a_preset_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[]", encoding="utf-8")
    with pytest.raises(BadInput, match=r"holds a list; wanted a JSON object"):
        _ = ModelOptions("ttm", config=tmp_path / "config.json")
    with pytest.raises(BadInput, match=r"no.json"):
        _ = ModelOptions("ttm", config=tmp_path / "no.json")
    with pytest.raises(BadInput, match=r"--config goes with --model ttm"):
        _ = ModelOptions("ttm_512_96", config=tmp_path / "config.json")


def test_a_step_of_a_forecaster_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="mixes all patches of its context and has no --streaming"):
        edgesmith.export("ttm", "onnx", streaming=True, out=tmp_path)
