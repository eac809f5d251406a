"""ViM2 and TSM2: the paper's equations in two forms, their counts, and what files and steps make of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import edgesmith
from edgesmith.exporters.costs import Costs
from edgesmith.exporters.export import explain
from edgesmith.exporters.graph.capture import capture
from edgesmith.exporters.graph.edit import count_operators
from edgesmith.exporters.inputs import draw_series
from edgesmith.exporters.options import ModelOptions
from edgesmith.exporters.rewrites.order import rewrite
from edgesmith.exporters.verify import verify_artifact
from edgesmith.models import registry
from edgesmith.models.mamba import Mamba
from edgesmith.models.series import read_config
from edgesmith.models.tsm2 import TSM2
from edgesmith.models.vim2 import ChannelMixer, CrossScan, PatchMerging, Stage, TokenMixer, ViM2
from edgesmith.models.weighted_averages import WeightedAverage

IMAGES = {"vim2_tiny": 20, "vim2_small": 43, "vim2_base": 74}
"""Parameters as printed, millions."""

SERIES = ("tsm2", "tsm2_512_96", "tsm2_aux_512_96")
SMALL_SERIES = {
    "context_length": 32,
    "prediction_length": 8,
    "patch_length": 8,
    "patch_stride": 4,
    "num_input_channels": 3,
    "d_model": 8,
    "num_layers": 2,
}
COVARIATES = {"static_features": 2, "future_features": 3}


def relative(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return float((found.double() - expected.double()).abs().max() / expected.abs().max())


def scan(x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """S6 of x [B, T, D] by its definition: h_t = exp(delta_t A) h_{t-1} + delta_t x_t B_t and y_t = h_t C_t."""
    h, outputs = torch.zeros(x.shape[0], *a.shape, dtype=x.dtype), []
    for t in range(x.shape[1]):
        h = torch.exp(delta[:, t].unsqueeze(-1) * a) * h
        h = h + (delta[:, t] * x[:, t]).unsqueeze(-1) * b[:, t].unsqueeze(1)
        outputs.append((h * c[:, t].unsqueeze(1)).sum(-1))
    return torch.stack(outputs, 1)


# counts


@pytest.mark.parametrize("name", IMAGES)
def test_parameters_and_macs_of_images_are_those_of_the_table(name: str) -> None:
    spec = registry.get(name)
    with torch.device("meta"):
        model = registry.build(spec)
        with FlopCounterMode(display=False) as counter:
            model.stem(torch.zeros(1, *spec.input.shape))
    assert sum(p.numel() for p in model.parameters()) == spec.params
    assert counter.get_total_flops() // 2 + count_of_stages(model, spec.input.shape[1] // 4) == spec.macs


def count_of_stages(model: ViM2, size: int) -> int:
    """MACs of linear layers and convolutions behind the stem, by their shapes: a call at 224 would take minutes."""
    total = model.head.weight.numel()
    for i, stage in enumerate(model.stages):
        if i:
            size = -(-size // 2)
            total += size**2 * model.merges[i - 1].reduction.weight.numel()
        for block in stage.blocks:
            for mixer in block.token_mixers:
                weights = (mixer.in_proj, mixer.conv2d, mixer.out_proj)
                each = sum(one.weight.numel() for one in weights)
                each += mixer.scan.x_proj_weight.numel() + mixer.scan.dt_projs_weight.numel()
                total += size**2 * each
            mixer = block.channel_mixer
            steps = mixer.in_proj.out_features // mixer.group
            ways = (mixer.forwards, mixer.backwards)
            small = sum(way.x_proj.weight.numel() + way.dt_proj.weight.numel() for way in ways)
            total += size**2 * (mixer.in_proj.weight.numel() + mixer.out_proj.weight.numel() + steps * small)
    return total


def test_the_counted_macs_are_those_of_a_call() -> None:
    model = ViM2(8, (1, 1), (16, 16), num_classes=3).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, 24, 24))
    stem = model.stem.weight.numel() * 6**2
    assert counter.get_total_flops() // 2 == stem + count_of_stages(model, 6)


def test_no_reading_of_the_paper_has_all_three_printed_counts() -> None:
    """The finding behind the table: gates in the token mixers or not, W as printed or 2 C in the last stage too."""

    def count(name: str, has_gate: bool, widest: bool) -> float:
        with torch.device("meta"):
            model = registry.build(registry.get(name))
        total = sum(p.numel() for p in model.parameters())
        for block in (block for stage in model.stages for block in stage.blocks):
            if not has_gate:
                total -= sum(mixer.in_proj.weight.numel() // 2 for mixer in block.token_mixers)
        if widest:
            mixer = model.stages[-1].blocks[0].channel_mixer
            total += mixer.in_proj.weight.numel() + mixer.out_proj.weight.numel()
        return total / 1e6

    readings = [[count(name, gate, widest) for name in IMAGES] for gate in (False, True) for widest in (False, True)]
    for reading in readings:
        errors = [abs(found / printed - 1) for found, printed in zip(reading, IMAGES.values(), strict=True)]
        assert max(errors) > 0.02
    nearest = min(readings, key=lambda one: max(abs(a / b - 1) for a, b in zip(one, IMAGES.values(), strict=True)))
    assert nearest in readings[2:]  # with the gate


@pytest.mark.parametrize("name", SERIES)
def test_parameters_and_macs_of_series_are_those_of_the_table(name: str) -> None:
    spec = registry.get(name)
    model = registry.build(spec)
    assert sum(p.numel() for p in model.parameters()) == spec.params
    reads = ModelOptions(name).series
    assert reads is not None
    inputs = draw_series(reads, 1, 0)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        assert model(*inputs).shape == (1, 96, 7)
    assert counter.get_total_flops() // 2 == spec.macs


# the paper's equations, in two forms


def test_four_scans_equal_four_sequences_of_the_map() -> None:
    torch.manual_seed(0)
    module, x = CrossScan(6, 2, 4), torch.randn(2, 6, 3, 5)
    columns = torch.stack([x[:, :, i, j] for j in range(5) for i in range(3)], 1)  # [B, w h, D]
    rows = torch.stack([x[:, :, i, j] for i in range(3) for j in range(5)], 1)
    expected = torch.zeros(2, 3, 5, 6)
    for k, sequence in enumerate((rows, columns, rows.flip(1), columns.flip(1))):
        steps, b, c = (sequence @ module.x_proj_weight[k].t()).split((2, 4, 4), -1)
        delta = F.softplus(steps @ module.dt_projs_weight[k].t() + module.dt_projs_bias[k])
        own = slice(6 * k, 6 * k + 6)
        y = scan(sequence, delta, -torch.exp(module.A_logs[own]), b, c) + module.Ds[own] * sequence
        order = (
            [(i, j) for i in range(3) for j in range(5)] if k % 2 == 0 else [(i, j) for j in range(5) for i in range(3)]
        )
        for t, (i, j) in enumerate(order[::-1] if k >= 2 else order):
            expected[:, i, j] += y[:, t]
    with torch.no_grad():
        assert relative(module(x).reshape(expected.shape), expected.detach()) <= 1e-5


def test_a_token_mixer_equals_its_equations() -> None:
    torch.manual_seed(0)
    module, x = TokenMixer(6, state=4), torch.randn(1, 3, 5, 6)
    with torch.no_grad():
        normed = F.layer_norm(x, (6,), module.norm.weight, module.norm.bias)
        u, z = normed @ module.in_proj.weight[:12].t(), normed @ module.in_proj.weight[12:].t()
        u = F.silu(F.conv2d(u.movedim(-1, 1), module.conv2d.weight, module.conv2d.bias, padding=1, groups=12))
        y = module.scan(u).reshape(1, 3, 5, 12)
        y = F.layer_norm(y, (12,), module.out_norm.weight, module.out_norm.bias) * (z * torch.sigmoid(z))
        assert relative(module(x), y @ module.out_proj.weight.t()) <= 1e-5


@pytest.mark.parametrize("group", [1, 2])
def test_a_channel_mixer_equals_scans_of_each_positions_channels(group: int) -> None:
    torch.manual_seed(0)
    module, x = ChannelMixer(6, 8, group, state=4), torch.randn(1, 2, 3, 6)
    with torch.no_grad():
        expected = torch.empty(1, 2, 3, 6)
        for i in range(2):
            for j in range(3):
                u = F.silu(module.in_proj(module.norm(x[:, i, j]))).reshape(1, 8 // group, group)
                total = torch.zeros_like(u)
                for way, turns in ((module.forwards, False), (module.backwards, True)):
                    given = u.flip(1) if turns else u
                    steps, b, c = way.x_proj(given).split((1, 4, 4), -1)
                    y = scan(given, F.softplus(way.dt_proj(steps)), -torch.exp(way.A_log), b, c) + way.D * given
                    total += y.flip(1) if turns else y
                expected[:, i, j] = module.out_proj(total.reshape(1, 8))
        assert relative(module(x), expected) <= 1e-5


def test_weighted_averages_equal_the_papers_sums() -> None:
    """alpha, beta, theta and gamma as matrices of all layers, applied to mixers that only multiply."""
    torch.manual_seed(0)
    stage = Stage(2, 4, 8, 1)
    for block in stage.blocks:
        block.token_mixers = nn.ModuleList((nn.Linear(4, 4), nn.Linear(4, 4)))
        block.channel_mixer = nn.Linear(4, 4)
        for average in block.averages:
            nn.init.normal_(average.weight)
    x = torch.randn(1, 2, 2, 4)
    with torch.no_grad():
        tokens, channels = [x], [x]
        for block in stage.blocks:
            for i in range(3):
                kinds = torch.stack((*tokens, *channels))
                read = torch.einsum("k,k...->...", block.averages[i].weight, kinds)
                if i < 2:
                    tokens.append(block.token_mixers[i](read))
                else:
                    channels.append(block.channel_mixer(read))
        assert relative(stage(x), channels[-1]) <= 1e-5
        scalars = sum(average.weight.numel() for block in stage.blocks for average in block.averages)
    assert scalars == (1 + 1) + (2 + 1) + (3 + 1) + (3 + 2) + (4 + 2) + (5 + 2)


def test_an_untrained_model_is_a_plain_chain() -> None:
    torch.manual_seed(0)
    stage, x = Stage(2, 4, 8, 1).eval(), torch.randn(1, 2, 2, 4)
    with torch.no_grad():
        y = x
        for block in stage.blocks:
            for mixer in (*block.token_mixers, block.channel_mixer):
                y = mixer(y)
        assert relative(stage(x), y) <= 1e-6
    assert WeightedAverage(2, 2).weight.tolist() == [0, 1, 0, 0]


def test_patches_are_merged_column_by_column_and_odd_sizes_are_padded() -> None:
    torch.manual_seed(0)
    module, x = PatchMerging(2), torch.randn(1, 3, 4, 2)
    with torch.no_grad():
        padded = F.pad(x, (0, 0, 0, 0, 0, 1))
        patch = torch.cat([padded[:, i, j] for i, j in ((2, 2), (3, 2), (2, 3), (3, 3))], -1)
        assert relative(module(x)[:, 1, 1], module.reduction(module.norm(patch))) <= 1e-6


def forecast_by_the_equations(model: TSM2, x: Tensor, static: Tensor | None, future: Tensor | None) -> Tensor:
    """TSM2 by section 4.4, channel by channel and patch by patch."""
    loc = x.mean(1, keepdim=True)
    scale = (((x - loc) ** 2).mean(1, keepdim=True) + 1e-5).sqrt()
    series = ((x - loc) / scale).transpose(1, 2)  # [B, M, T]
    parts, covariates = [series], model.covariates
    if future is not None:
        mixed = torch.stack([channels_at_once(covariates.mixer, future[:, :, t]) for t in range(future.shape[2])], 2)
        parts.append(covariates.future_proj(mixed.flatten(2)))
    if static is not None:
        parts.append(covariates.static_proj(static))
    joined = torch.cat(parts, -1)
    patches = joined.unfold(2, model.patcher.in_features, model.stride) @ model.patcher.weight.t() + model.patcher.bias
    y0 = patches + model.position
    tokens, channels = [y0], [y0]
    for layer in model.layers:
        read = torch.einsum("k,k...->...", layer.token_average.weight, torch.stack((*tokens, *channels)))
        mixer = layer.token_mixer
        tokens.append(torch.stack([mamba(mixer.mixer, mixer.norm(read[:, m])) for m in range(read.shape[1])], 1))
        read = torch.einsum("k,k...->...", layer.channel_average.weight, torch.stack((*tokens, *channels)))
        each = [channels_at_once(layer.channel_mixer, read[:, :, p]) for p in range(read.shape[2])]
        channels.append(torch.stack(each, 2))
    last = channels[-1]
    last = F.layer_norm(last, last.shape[-1:], model.feature_norm.weight, model.feature_norm.bias)
    turned = last.transpose(2, 3)
    last = F.layer_norm(turned, turned.shape[-1:], model.patch_norm.weight, model.patch_norm.bias).transpose(2, 3)
    return model.head(last.flatten(2)).transpose(1, 2) * scale + loc


def mamba(mixer: Mamba, u: Tensor) -> Tensor:
    """A Mamba mixer by its formulas, u [B, T, D]."""
    x, z = mixer.in_proj(u).chunk(2, -1)
    taps = mixer.conv1d.weight.squeeze(1)  # [D, K]
    padded = F.pad(x, (0, 0, taps.shape[1] - 1, 0))
    shifted = [padded[:, k : k + x.shape[1]] * taps[:, k] for k in range(taps.shape[1])]
    x = F.silu(sum(shifted) + mixer.conv1d.bias)
    steps, b, c = mixer.x_proj(x).split(mixer.sizes, -1)
    delta = F.softplus(mixer.dt_proj(steps))
    return mixer.out_proj((scan(x, delta, -torch.exp(mixer.A_log), b, c) + mixer.D * x) * F.silu(z))


def channels_at_once(mixer: Any, x: Tensor) -> Tensor:
    """A channel mixer on [B, M, D]."""
    u = mixer.norm(x)
    return mamba(mixer.forwards, u) + mamba(mixer.backwards, u.flip(1)).flip(1)


@pytest.mark.parametrize("covariates", [{}, COVARIATES], ids=["series alone", "covariates"])
def test_a_forecast_equals_the_papers_equations(covariates: dict[str, int]) -> None:
    torch.manual_seed(0)
    model = TSM2(read_config(SMALL_SERIES | covariates, {}, "a test")).eval()
    for layer in model.layers:
        nn.init.normal_(layer.token_average.weight)
        nn.init.normal_(layer.channel_average.weight)
    inputs = draw_series(model.reads, 2, 0)
    static, future = inputs[1:] if covariates else (None, None)
    with torch.no_grad():
        assert relative(model(*inputs), forecast_by_the_equations(model, inputs[0], static, future)) <= 1e-5


def test_covariates_and_a_mask_matter_and_forecasts_are_in_the_datas_scale() -> None:
    torch.manual_seed(0)
    model = TSM2(read_config(SMALL_SERIES | COVARIATES, {}, "a test"), observed_mask=True).eval()
    assert list(model.reads.inputs) == ["past_values", "observed_mask", "static_covariates", "future_covariates"]
    x, _, static, future = draw_series(model.reads, 1, 0)
    ones = torch.ones_like(x)
    with torch.no_grad():
        y = model(x, ones, static, future)
        assert relative(model(1000 + 30 * x, ones, static, future), 1000 + 30 * y) <= 1e-4
        for given in ((ones, static + 1, future), (ones, static, future.flip(2)), ((x > 0).float(), static, future)):
            assert relative(model(x, *given), y) > 1e-4


# files and steps


def test_rewritten_graphs_are_the_goldens(golden: Callable[[str, str], None]) -> None:
    model = ViM2(8, (1, 1), (16, 16), num_classes=3).eval()
    program, _ = rewrite(capture(model, (torch.randn(1, 3, 16, 12),)), Costs(3.0, loop_us=0.8, read_gb_s=75))
    _, after, _ = explain("tsm2_512_96", "onnx")
    for name, one in (("vim2", program), ("tsm2_512_96", after)):
        counts = count_operators(one.module)
        assert counts["edgesmith.selective_scan"] == {"vim2": 20, "tsm2_512_96": 6}[name]
        golden(f"{name}.rewritten", "".join(f"{count:5} {op}\n" for op, count in counts.items()))


def test_features_are_the_maps_of_all_stages() -> None:
    maps = ViM2(8, (1, 1), (16, 16), features=True)(torch.zeros(2, 3, 24, 20))
    assert [tuple(one.shape) for one in maps] == [(2, 8, 6, 5), (2, 16, 3, 3)]


def test_a_config_makes_a_tsm2_with_covariates_and_its_file(tmp_path: Path) -> None:
    import json

    (tmp_path / "config.json").write_text(json.dumps(SMALL_SERIES | COVARIATES | {"num_layers": 1}), encoding="utf-8")
    artifact = edgesmith.export("tsm2", "onnx", config=tmp_path / "config.json", out=tmp_path)
    record = artifact.manifest["model"]
    assert [one["name"] for one in record["inputs"]] == ["past_values", "static_covariates", "future_covariates"]
    assert record["series"]["future_covariates"] == 3
    verify_artifact(artifact.path)
