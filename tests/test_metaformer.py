"""MetaFormer baselines: the authors' outputs, both layouts of their checkpoints, the published sizes, and the graph."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.lowering import assert_nothing_constant
from support.rewriting import apply
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import edgesmith
from edgesmith.errors import BadInput
from edgesmith.exporters import targets
from edgesmith.exporters.costs import Costs
from edgesmith.exporters.graph.capture import run
from edgesmith.exporters.graph.edit import count_operators
from edgesmith.exporters.rewrites.fold_constants import fold_constants
from edgesmith.models import metaformer, registry
from edgesmith.models.checkpoint import load

HERE = Path(__file__).parent
PARITY = 1e-4
SPECS = [spec for spec in registry.all_models().values() if spec.family == "metaformer"]

PUBLISHED_GMAC = {
    "identityformer": {"s12": 1.8, "s24": 3.4, "s36": 5.0, "m36": 8.8, "m48": 11.5},
    "randformer": {"s12": 1.9, "s24": 3.5, "s36": 5.2, "m36": 9.0, "m48": 11.9},
    "poolformerv2": {"s12": 1.8, "s24": 3.4, "s36": 5.0, "m36": 8.8, "m48": 11.5},
    "convformer": {"s18": 3.9, "s36": 7.6, "m36": 12.8, "b36": 22.6},
    "caformer": {"s18": 4.1, "s36": 8.0, "m36": 13.2, "b36": 23.2},
}
PUBLISHED_GMAC_384 = {
    "convformer": {"s18": 11.6, "s36": 22.4, "m36": 37.7, "b36": 66.5},
    "caformer": {"s18": 13.4, "s36": 26.0, "m36": 42.0, "b36": 72.2},
}
PUBLISHED_PARAMS = {  # millions; without the frozen matrices of randformer
    "identityformer": {"s12": "11.9", "s24": "21.3", "s36": "30.8", "m36": "56.1", "m48": "73.3"},
    "randformer": {"s12": "11.9", "s24": "21.3", "s36": "30.8", "m36": "56.1", "m48": "73.3"},
    "poolformerv2": {"s12": "11.9", "s24": "21.3", "s36": "30.8", "m36": "56.1", "m48": "73.3"},
    "convformer": {"s18": "27", "s36": "40", "m36": "57", "b36": "100"},
    "caformer": {"s18": "26", "s36": "39", "m36": "56", "b36": "99"},
}
ENTRIES = {"identityformer_s12": 104, "randformer_s12": 112, "convformer_s18": 242, "caformer_s18": 206}


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_parameters_and_macs_are_the_published_ones(spec: registry.ModelSpec) -> None:
    family, size, *suffix = spec.name.split("_")
    with torch.device("meta"):
        model = registry.build(spec)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            assert model(torch.empty(1, *spec.input.shape)).shape == (1, spec.classes)
    assert sum(p.numel() for p in model.parameters()) == spec.params
    assert counter.get_total_flops() // 2 == spec.macs
    if suffix == ["in21k"]:
        assert spec.classes == 21841
        return
    learnt = sum(p.numel() for p in model.parameters() if p.requires_grad)
    printed = PUBLISHED_PARAMS[family][size]
    assert f"{learnt / 1e6:.{len(printed.partition('.')[2])}f}" == printed
    published = (PUBLISHED_GMAC_384 if suffix else PUBLISHED_GMAC)[family][size]
    assert spec.macs / 1e9 == pytest.approx(published, abs=0.06)


def test_the_registry_has_every_size_and_another_name_is_no_builder() -> None:
    plain = 3 * len(PUBLISHED_GMAC["randformer"])
    assert len(SPECS) == plain + 3 * (len(PUBLISHED_GMAC["convformer"]) + len(PUBLISHED_GMAC["caformer"]))
    for name, count in ENTRIES.items():
        with torch.device("meta"):
            assert len(registry.build(registry.get(name)).state_dict()) == count
    for name in ("caformer_s12", "poolformer_s12", "caformer_s18_448"):
        with pytest.raises(AttributeError, match=name):
            getattr(metaformer, name)


def fixture_of(name: str) -> Path:
    path = HERE / "fixtures" / f"{name}.npz"
    if not path.is_file():
        path = HERE.parent.parent / "shared" / "parity2" / f"{name}.npz"
    if not path.is_file():
        pytest.skip(f"no {path.name} here: its random matrices are too large to be kept beside the tests")
    return path


@pytest.mark.parametrize(
    "name",
    [
        "poolformerv2_s12",
        "caformer_s18",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("identityformer_s12", "randformer_s12", "convformer_s18")),
    ],
)
def test_the_authors_outputs_eager_rewritten_and_in_onnx_runtime(
    name: str, rebuild: ModuleType, tmp_path: Path
) -> None:
    state, x, expected, _ = rebuild.load(fixture_of(name))
    torch.save(state, tmp_path / "authors.pth")
    model, weights = load(registry.get(name), tmp_path / "authors.pth")
    allowed = PARITY * np.abs(expected).max()
    with torch.no_grad():
        assert np.abs(model(x).numpy() - expected).max() <= allowed
    assert weights.notes == ()
    _, rewritten, _ = edgesmith.explain(name, "onnx", weights=tmp_path / "authors.pth")
    assert np.abs(run(rewritten, (x,))[0].numpy() - expected).max() <= allowed
    artifact = edgesmith.export(name, "onnx", weights=tmp_path / "authors.pth", out=tmp_path)
    outputs = targets.get("onnx").open(artifact.file).run([[x.numpy()]])
    assert isinstance(outputs, list)
    assert np.abs(outputs[0][0] - expected).max() <= allowed
    assert_nothing_constant(artifact.file)


TIMM = (
    (r"^downsample_layers\.0\.conv\.", "stem.conv."),
    (r"^downsample_layers\.0\.post_norm\.", "stem.norm."),
    (r"^downsample_layers\.(\d)\.pre_norm\.", r"stages.\1.downsample.norm."),
    (r"^downsample_layers\.(\d)\.conv\.", r"stages.\1.downsample.conv."),
    (r"^stages\.(\d)\.(\d+)\.", r"stages.\1.blocks.\2."),
    (r"^norm\.", "head.norm."),
    (r"^head\.(?!norm\.weight$|norm\.bias$)", "head.fc."),
    (r"^head\.norm\.(?=weight$|bias$)", "head.fc.norm."),
)


def as_timm(key: str) -> str:
    """What timm calls one of the authors' tensors."""
    return next((re.sub(pattern, name, key) for pattern, name in TIMM if re.search(pattern, key)), key)


@pytest.mark.parametrize("name", ["caformer_s18", "poolformerv2_s12"])
def test_timms_layout_is_told_by_its_keys_and_loads_the_same_weights(
    name: str, rebuild: ModuleType, tmp_path: Path
) -> None:
    state, *_ = rebuild.load(fixture_of(name))
    torch.save(state, tmp_path / "authors.pth")
    of_timm = {}
    for key, value in state.items():
        is_map = key.startswith("stages.") and not (name.startswith("caformer") and key[7] in "23")
        of_timm[as_timm(key)] = value[:, :, None, None] if value.dim() == 2 and is_map else value
    torch.save(of_timm, tmp_path / "timm.pth")
    _, ours = load(registry.get(name), tmp_path / "authors.pth")
    _, theirs = load(registry.get(name), tmp_path / "timm.pth")
    assert ours.sha256 == theirs.sha256
    assert theirs.notes == ("the checkpoint has timm's keys",)


def test_the_number_of_classes_is_the_checkpoints_and_features_leave_the_head_out(tmp_path: Path) -> None:
    state = metaformer.caformer_s18(num_classes=7).state_dict()
    torch.save(state, tmp_path / "seven.pth")
    model, _ = load(registry.get("caformer_s18"), tmp_path / "seven.pth")
    x = torch.zeros(1, 3, 64, 96)
    assert model(x).shape == (1, 7)
    dense, _ = load(registry.get("caformer_s18"), tmp_path / "seven.pth", features=True)
    assert [tuple(m.shape) for m in dense(x)] == [
        (1, c, 16 // 2**i, 24 // 2**i) for i, c in enumerate((64, 128, 320, 512))
    ]


def test_random_mixers_are_for_one_size() -> None:
    sentence = "randformer_s12 has weights for 224x224 alone, got 448x448; leave --input-size out"
    with pytest.raises(BadInput, match=sentence):
        edgesmith.explain("randformer_s12", "onnx", input_size=(448, 448))


@pytest.mark.parametrize(
    "name", ["identityformer_s12", "randformer_s12", "poolformerv2_s12", "convformer_s18", "caformer_s18"]
)
def test_operators_after_the_rewrites(name: str, golden: Callable[[str, str], None]) -> None:
    """Nothing that depends on weights alone is left to compute, and every activation has gone into its neighbours."""
    size = None if name.startswith("rand") else (64, 64)
    captured, after, _ = edgesmith.explain(name, "onnx", input_size=size)
    counts = count_operators(after.module)
    assert not fold_constants.apply(after.module, Costs(0)).applied
    x = captured.inputs
    wanted = run(captured, x)[0]
    assert (run(after, x)[0] - wanted).abs().max() <= 5e-6 * wanted.abs().max()
    assert counts["aten.conv2d"] == count_operators(captured.module)["aten.conv2d"]
    assert "aten.scaled_dot_product_attention" not in counts
    golden(f"{name}.rewritten", "".join(f"{count:5} {op}\n" for op, count in counts.items()))


SHAPES = [
    (name, target)
    for name in ("identityformer_s12", "randformer_s12", "poolformerv2_s12", "convformer_s18", "caformer_s18")
    for target in ("onnx", "coreml", "coreai", "tensorrt")
]


@pytest.mark.parametrize(
    ("name", "target"),
    [one if one == ("caformer_s18", "coreml") else pytest.param(*one, marks=pytest.mark.slow) for one in SHAPES],
)
def test_every_family_exports_to_every_target(
    name: str, target: str, one_block_a_stage: Callable[[], None], tmp_path: Path
) -> None:
    """One at its own depth, where half precision adds up; the others with one block a stage."""
    if targets.get(target).missing_packages():
        pytest.skip(f"{target}: not installed")
    if (name, target) != ("caformer_s18", "coreml"):
        one_block_a_stage()
    options: dict[str, object] = {"device": "rtx3080", "precision": "fp16"} if target == "tensorrt" else {}
    size = None if name.startswith("rand") else (32, 32)
    artifact = edgesmith.export(name, target, input_size=size, out=tmp_path, **options)  # type: ignore[arg-type]  # as above
    *_, last = artifact.manifest["verification"]["steps"]
    assert "missed" not in last
    if target == "coreml":
        assert last["snr_db"] is not None
        assert last["snr_db"] >= 40
        assert edgesmith.lint(artifact.file).counts["error"] == 0


# the rewrites, on small models of the same kinds in other spellings


class Star(nn.Module):
    """StarReLU as the paper's code has it."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([scale]))
        self.bias = nn.Parameter(torch.tensor([-0.4]))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * F.relu(x) ** 2 + self.bias


class Padded(nn.Module):
    """StarReLU before a convolution that pads, and a pointwise one."""

    def __init__(self, scale: float = 0.9, out: int = 4, **how: int) -> None:
        super().__init__()
        self.act = Star(scale)
        self.dw = nn.Conv2d(8, 8, 7, padding=3, groups=8, **how)
        self.pw = nn.Conv2d(8, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.pw(self.dw(self.act(x)))


@pytest.mark.parametrize("scale", [0.9, -0.7])
@pytest.mark.parametrize("how", [{}, {"stride": 2}, {"dilation": 2}])
def test_an_activations_shift_is_a_map_behind_a_padded_convolution(scale: float, how: Mapping[str, int]) -> None:
    found = apply(Padded(scale, **how), torch.randn(2, 8, 9, 11))
    assert found.counts == {"aten.conv2d": 2, "aten.add": 1, "aten.mul": 1, "aten.relu": 1}
    assert [site for site, _ in found.reports["fold_borders"].applied] == ["act"]


def test_a_map_that_would_be_larger_stays_a_shift() -> None:
    model = nn.Sequential(Star(0.9), nn.Conv2d(2, 32, 3, padding=1))
    found = apply(model, torch.randn(1, 2, 8, 8))
    (rejected,) = found.reports["fold_borders"].rejected
    assert rejected.reason == "the map behind 1 has 2048 numbers, more than what is added to"
    assert found.counts["aten.add"] == 1


class OverSample(nn.Module):
    """The modified layer norm, written by hand with the channels behind."""

    def __init__(self, axes: tuple[int, ...] = (1, 2, 3), correction: bool = False) -> None:
        super().__init__()
        self.weight, self.axes, self.correction = nn.Parameter(torch.rand(6) + 0.5), axes, correction

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(self.axes, keepdim=True)
        variance = x.var(self.axes, keepdim=True) if self.correction else centred.pow(2).mean(self.axes, keepdim=True)
        return centred / torch.sqrt(variance + 1e-6) * self.weight


class Between(nn.Module):
    """Something with the channels behind between two convolutions."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.before, self.inner, self.after = nn.Conv2d(3, 6, 3), inner, nn.Conv2d(6, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.inner(self.before(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


def test_a_norm_over_a_sample_is_a_group_norm_on_the_map() -> None:
    found = apply(Between(OverSample()), torch.randn(2, 3, 8, 9))
    assert found.counts == {"aten.conv2d": 2, "aten.group_norm": 1}


@pytest.mark.parametrize("wrong", [OverSample((2, 3)), OverSample(correction=True)], ids=["axes", "unbiased"])
def test_a_norm_over_less_or_unbiased_is_no_group_norm(wrong: nn.Module) -> None:
    assert "aten.group_norm" not in apply(Between(wrong), torch.randn(2, 3, 8, 9)).counts


class Tokens(nn.Module):
    """A transformer's block on [B, N, C], with a matrix over the positions and an embedding of them."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.fc = nn.LayerNorm(6), nn.Linear(6, 6)
        self.matrix, self.places = nn.Parameter(torch.rand(42, 42)), nn.Parameter(torch.rand(1, 42, 6))
        self.gamma = nn.Parameter(torch.rand(6))

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, channels = x.shape
        t = x.reshape(batch, height * width, channels) + self.places
        t = t + self.gamma * F.gelu(self.fc(self.norm(t)))
        t = torch.einsum("mn,bnc->bmc", self.matrix, t)
        return t.reshape(batch, height, width, channels)


def test_tokens_between_two_convolutions_stay_maps() -> None:
    found = apply(Between(Tokens()), torch.randn(2, 3, 8, 9))
    assert not found.counts.keys() & {"aten.permute", "aten.transpose", "aten.linear", "aten.layer_norm"}
    assert found.counts["edgesmith.channel_norm"] == 1
    assert found.counts["aten.matmul"] == 1


def test_positions_that_never_come_back_keep_their_layout() -> None:
    class Once(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 6, 3), nn.Linear(6, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.conv(x).flatten(2).transpose(1, 2))

    found = apply(Once(), torch.randn(1, 3, 8, 8))
    assert found.counts == {"aten.conv2d": 1, "aten.flatten": 1, "aten.transpose": 1, "aten.linear": 1}
    assert not found.reports["keep_maps"].applied


def test_what_else_reads_the_positions_gets_them_from_the_map() -> None:
    class Forked(Between):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]  # a pair
            t = self.inner(F.relu(self.before(x)).permute(0, 2, 3, 1))  # else the two layers are composed
            y = F.relu(self.after(t.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
            return (2 * y).permute(0, 3, 1, 2), t.cumsum(1)

    found = apply(Forked(nn.Linear(6, 6)), torch.randn(2, 3, 8, 9))
    assert found.counts["aten.permute"] == 1
    assert found.counts["aten.conv2d"] == 3
