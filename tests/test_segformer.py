"""SegFormer: transformers' outputs, every layout of its checkpoints, its head's fold, and maps of classes."""

from __future__ import annotations

import json
import re
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
from edgesmith.errors import BadInput, VerificationFailed
from edgesmith.exporters import targets
from edgesmith.exporters.costs import Costs
from edgesmith.exporters.figures import allowed_classes, measure_classes
from edgesmith.exporters.graph.capture import capture, run
from edgesmith.exporters.graph.edit import count_operators, operators
from edgesmith.exporters.precision import table as precisions
from edgesmith.exporters.precision.half import half
from edgesmith.exporters.precision.label_maps import _named, expected_share, find_ends
from edgesmith.exporters.rewrites.fold_constants import fold_constants
from edgesmith.exporters.verification.check import AcceptanceCriteria, check
from edgesmith.models import registry, segformer
from edgesmith.models.checkpoint import load

FIXTURE = Path(__file__).parent / "fixtures" / "segformer_b0.npz"
SPEC = registry.get("segformer_b0")
SIZE = (128, 160)
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def hub(rebuild: ModuleType) -> State:
    """A checkpoint as transformers writes it."""
    state, *_ = rebuild.load(FIXTURE)
    return dict(state)


@pytest.fixture(scope="module")
def checkpoint(hub: State, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "hub.pth"
    torch.save(hub, path)
    return path


MACS_512 = {"segformer_b0": 7.93, "segformer_b1": 15.9, "segformer_b2": 62.4}
"""Published billions at 512 x 512, with 1 to 3 % for norms and with 150 classes for the larger ones."""


@pytest.mark.parametrize("name", MACS_512)
def test_parameters_and_macs_are_the_published_ones(name: str) -> None:
    spec = registry.get(name)
    with torch.device("meta"):
        model = registry.build(spec)
        counted = []
        for size in ((512, 1024), (512, 512)):
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                assert model(torch.empty(1, 3, *size)).shape == (1, 19, size[0] // 4, size[1] // 4)
            counted.append(counter.get_total_flops() // 2)
    assert sum(p.numel() for p in model.parameters()) == spec.params
    assert counted[0] == spec.macs
    assert 0.96 <= counted[1] / 1e9 / MACS_512[name] <= 1
    assert f"{spec.params / 1e6:.1f}" == {"segformer_b0": "3.7", "segformer_b1": "13.7", "segformer_b2": "27.4"}[name]


def test_transformers_outputs_eager_rewritten_and_in_onnx_runtime(
    rebuild: ModuleType, checkpoint: Path, tmp_path: Path
) -> None:
    _, x, expected, _ = rebuild.load(FIXTURE)
    model, weights = load(SPEC, checkpoint)
    allowed = 1e-4 * np.abs(expected).max()
    with torch.no_grad():
        assert np.abs(model(x).numpy() - expected).max() <= allowed
    assert weights.notes == ()
    artifact = edgesmith.export(SPEC.name, "onnx", weights=checkpoint, input_size=SIZE, out=tmp_path)
    _, rewritten, _ = edgesmith.explain(SPEC.name, "onnx", weights=checkpoint, input_size=SIZE)
    outputs = targets.get("onnx").open(artifact.file).run([[x.numpy()]])
    assert isinstance(outputs, list)
    for found in (run(rewritten, (x,))[0].numpy(), outputs[0][0]):
        assert np.abs(found - expected).max() <= allowed
    assert artifact.manifest["model"]["segmentation"] == "logits"


# layouts

MODULES = (
    (r"segformer\.encoder\.patch_embeddings\.(\d)\.", r"segformer.stages.\1.patch_embeddings."),
    (r"segformer\.encoder\.block\.(\d)\.(\d)\.", r"segformer.stages.\1.blocks.\2."),
    (r"segformer\.encoder\.layer_norm\.(\d)\.", r"segformer.stages.\1.layer_norm."),
    (r"\.layer_norm_1\.", ".layernorm_before."),
    (r"\.layer_norm_2\.", ".layernorm_after."),
    (r"\.self\.query\.", ".q_proj."),
    (r"\.self\.key\.", ".k_proj."),
    (r"\.self\.value\.", ".v_proj."),
    (r"\.self\.sr\.", ".sequence_reduction.sequence_reduction."),
    (r"\.self\.layer_norm\.", ".sequence_reduction.layer_norm."),
    (r"\.output\.dense\.", ".o_proj."),
    (r"\.mlp\.dense(\d)\.", r".mlp.fc\1."),
    (r"decode_head\.linear_c\.(\d)\.", r"decode_head.linear_projections.\1."),
)
AUTHORS = (
    (r"segformer\.encoder\.patch_embeddings\.(\d)\.proj\.", lambda m: f"backbone.patch_embed{int(m[1]) + 1}.proj."),
    (
        r"segformer\.encoder\.patch_embeddings\.(\d)\.layer_norm\.",
        lambda m: f"backbone.patch_embed{int(m[1]) + 1}.norm.",
    ),
    (r"segformer\.encoder\.block\.(\d)\.", lambda m: f"backbone.block{int(m[1]) + 1}."),
    (r"segformer\.encoder\.layer_norm\.(\d)\.", lambda m: f"backbone.norm{int(m[1]) + 1}."),
    (r"\.layer_norm_(\d)\.", r".norm\1."),
    (r"\.attention\.self\.query\.", ".attn.q."),
    (r"\.attention\.self\.sr\.", ".attn.sr."),
    (r"\.attention\.self\.layer_norm\.", ".attn.norm."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.mlp\.dense(\d)\.", r".mlp.fc\1."),
    (r"decode_head\.linear_c\.(\d)\.", lambda m: f"decode_head.linear_c{int(m[1]) + 1}."),
    (r"decode_head\.linear_fuse\.", "decode_head.linear_fuse.conv."),
    (r"decode_head\.batch_norm\.", "decode_head.linear_fuse.bn."),
    (r"decode_head\.classifier\.", "decode_head.linear_pred."),
)


def renamed(state: State, table: tuple[tuple[str, object], ...]) -> State:
    found = {}
    for key, value in state.items():
        for pattern, name in table:
            key = re.sub(pattern, name, key)  # type: ignore[call-overload]  # text, or a function
        found[key] = value
    return found


def of_authors(hub: State) -> State:
    """NVlabs' layout, in which keys and values are one layer and a head lies unused."""
    state = renamed(hub, AUTHORS)
    for key in [key for key in state if ".attention.self.key." in key]:
        pair = state.pop(key), state.pop(key.replace(".key.", ".value."))
        state[key.replace(".attention.self.key.", ".attn.kv.")] = torch.cat(pair)
    return {
        **state,
        "decode_head.conv_seg.weight": torch.zeros(19, 128, 1, 1),
        "decode_head.conv_seg.bias": torch.zeros(19),
    }


def of_student(hub: State) -> State:
    """TransKD's layout: as the authors', without the two prefixes."""
    state = {re.sub(r"^(?:backbone|decode_head)\.", "", key): value for key, value in of_authors(hub).items()}
    return {key: value for key, value in state.items() if not key.startswith("conv_seg.")}


def wrapped(hub: State) -> State:
    """The module that trains the student, as data-parallel training saves it."""
    training = {"skfs.0.fc.weight": torch.zeros(3), "embed1_linearproject.weight": torch.zeros(2, 2)}
    state = {f"student.{key}": value for key, value in of_student(hub).items()}
    return {
        f"module.{key}": value
        for key, value in (state | training | {"patch_embed1.proj.weight": torch.ones(1)}).items()
    }


TRANSKD = "TransKD trains on RGB values in 0..1 without mean and deviation: give the file such values"


@pytest.mark.parametrize(
    ("layout", "entries", "notes"),
    [
        (lambda hub: renamed(hub, MODULES), 208, ()),
        (of_authors, 194, ()),
        (of_student, 192, (TRANSKD,)),
        (wrapped, 195, ("TransKD's student; 3 tensors of its training were left out", TRANSKD)),
    ],
    ids=["transformers", "authors", "student", "wrapper"],
)
def test_every_layout_holds_the_same_weights(
    layout: object, entries: int, notes: tuple[str, ...], hub: State, checkpoint: Path, tmp_path: Path
) -> None:
    state = layout(hub)  # type: ignore[operator]  # one of the functions above
    assert len(state) == entries
    torch.save({"state_dict": state, "meta": {}}, tmp_path / "other.pth")
    model, weights = load(SPEC, tmp_path / "other.pth")
    reference, expected = load(SPEC, checkpoint)
    assert (weights.sha256, weights.notes) == (expected.sha256, notes)
    eps = {module.eps for module in model.modules() if isinstance(module, segformer.ChannelNorm)}
    assert eps == ({1e-5} if entries == 208 else {1e-5, 1e-6})
    assert {module.eps for module in reference.modules() if isinstance(module, segformer.ChannelNorm)} == {1e-5}


def test_an_encoder_alone_gives_features_and_no_segmentation(hub: State, tmp_path: Path) -> None:
    encoder = {re.sub(r"^backbone\.", "", k): v for k, v in of_authors(hub).items() if k.startswith("backbone.")}
    torch.save(
        {**encoder, "head.weight": torch.zeros(1000, 256), "head.bias": torch.zeros(1000)}, tmp_path / "mit_b0.pth"
    )
    model, _ = load(SPEC, tmp_path / "mit_b0.pth", features=True)
    assert [m.shape[1] for m in model(torch.zeros(1, 3, 64, 64))] == [32, 64, 160, 256]
    with pytest.raises(edgesmith.errors.CheckpointError, match="missing, first decode_head"):
        load(SPEC, tmp_path / "mit_b0.pth")


def test_classes_are_the_checkpoints(tmp_path: Path) -> None:
    torch.save(segformer.segformer_b0(num_classes=3).state_dict(), tmp_path / "three.pth")
    model, _ = load(SPEC, tmp_path / "three.pth")
    assert model(torch.zeros(1, 3, 64, 32)).shape == (1, 3, 16, 8)


# the graph


def test_the_head_is_four_small_convolutions_and_nothing_constant_is_computed() -> None:
    captured, after, _ = edgesmith.explain(SPEC.name, "onnx", input_size=SIZE)
    counts = count_operators(after.module)
    assert counts == {
        "aten.conv2d": 71,
        "aten.reshape": 32,
        "edgesmith.channel_norm": 30,
        "aten.add": 19,
        "aten.gelu": 8,
        "edgesmith.attention": 8,
        "aten.upsample_bilinear2d": 3,
        "aten.relu": 1,
    }
    assert not fold_constants.apply(after.module, Costs(0)).applied
    x = captured.inputs
    wanted = run(captured, x)[0]
    assert (run(after, x)[0] - wanted).abs().max() <= 5e-6 * wanted.abs().max()


class Pyramid(nn.Module):
    """A head over maps of several sizes."""

    def __init__(self, mode: str = "bilinear", width: int = 16, reads_again: bool = False) -> None:
        super().__init__()
        self.fuse, self.mode, self.reads_again = nn.Conv2d(32 + 24 + 8, width, 1), mode, reads_again

    def forward(self, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        large = [F.interpolate(x, c.shape[2:], mode=self.mode) for x in (a, b)]
        y = self.fuse(torch.cat([*large, c], 1))
        return y + large[0].mean() if self.reads_again else y


MAPS = torch.randn(1, 32, 4, 5), torch.randn(1, 24, 8, 10), torch.randn(1, 8, 16, 20)
DEAR_PRODUCTS = Costs(launch_us=0.1, gmac_s=0.1, copy_gb_s=10.0)


@pytest.mark.parametrize("mode", ["bilinear", "nearest", "bicubic"])
def test_resized_maps_are_convolved_at_their_own_size(mode: str) -> None:
    found = apply(Pyramid(mode), *MAPS, costs=DEAR_PRODUCTS)
    assert found.counts["aten.conv2d"] == 3
    assert "aten.cat" not in found.counts


def test_a_resize_that_would_be_dearer_or_is_read_elsewhere_stays() -> None:
    assert (
        apply(Pyramid(width=256), *MAPS, costs=Costs(launch_us=0.1, gmac_s=1e4, copy_gb_s=0.1)).counts["aten.cat"] == 1
    )
    found = apply(Pyramid(reads_again=True), *MAPS, costs=DEAR_PRODUCTS)
    (rejected,) = found.reports["split_resized"].rejected
    assert "is read by" in rejected.reason


# maps of classes


def test_a_core_ml_file_of_classes_takes_an_image_and_agrees_but_for_ties(checkpoint: Path, tmp_path: Path) -> None:
    """Weights by a rule have no margins: 0.18 % of the pixels would change, so that both ends stay fp32."""
    pytest.importorskip("coremltools", reason="coremltools is not installed")
    names = [f"class {i}" for i in range(19)]
    artifact = edgesmith.export(
        SPEC.name,
        "coreml",
        weights=checkpoint,
        input_size=(64, 64),
        segmentation="labels",
        labels=names,
        image_input=True,
        out=tmp_path,
    )
    assert artifact.path.name == "segformer_b0-coreml-fp16-64x64-label-map-labels-image"
    assert artifact.manifest["model"]["outputs"] == ["labels"]
    assert artifact.manifest["model"]["segmentation"] == "labels"
    kept = artifact.manifest["keep_fp32"]
    assert any("of the pixels would change their class" in reason for reason in kept.values())
    *_, last = artifact.manifest["verification"]["steps"]
    assert last["top1"]["agreeing"] >= 0.999 * last["top1"]["decided"]
    file = targets.get("coreml").open(artifact.file)
    model, _ = load(SPEC, checkpoint)
    smooth = F.interpolate(torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(1)), (64, 64), mode="bicubic")
    rgb = (255 * smooth.clamp(0, 1)).round() / 255  # an image has nothing between
    assert isinstance(SPEC.input, registry.ImageInput)
    mean, std = (torch.tensor(one).reshape(3, 1, 1) for one in (SPEC.input.mean, SPEC.input.std))
    x = (rgb - mean) / std
    outputs = file.run([[x.numpy()]])
    assert isinstance(outputs, list)
    with torch.no_grad():
        scores = F.interpolate(model(x), (64, 64), mode="bilinear")
    best = scores.topk(2, dim=1).values
    is_decided = best[:, 0] - best[:, 1] > 5e-3 * scores.abs().max()
    same = torch.from_numpy(outputs[0][0]) == scores.argmax(1)
    assert is_decided.float().mean() > 0.9
    assert same[is_decided].all()
    assert same.float().mean() >= 0.999
    metadata = file.program.metadata
    assert metadata["com.apple.coreml.model.preview.type"] == "imageSegmenter"
    assert json.loads(metadata["com.apple.coreml.model.preview.params"])["labels"] == names
    scale, mean, first = [one for one in file.program.operations() if one.type in ("mul", "sub", "conv")][:3]
    assert [scale.type, mean.type, scale.source, mean.source] == ["mul", "sub", first.source, first.source]
    findings = edgesmith.lint(artifact.file).findings
    assert "fp32-near-ties" in {one.rule for one in findings}
    assert [one for one in findings if one.severity == "error"] == []  # no island, and no view in half precision
    edgesmith.verify(artifact.path)


def test_an_onnx_file_of_classes_names_them_and_has_the_images_size(tmp_path: Path) -> None:
    names = [f"class {i}" for i in range(19)]
    artifact = edgesmith.export(
        SPEC.name, "onnx", input_size=(32, 64), segmentation="labels", labels=names, batch=2, out=tmp_path
    )
    outputs = targets.get("onnx").open(artifact.file).run([[np.zeros((2, 3, 32, 64), np.float32)]])
    assert isinstance(outputs, list)
    assert outputs[0][0].shape == (2, 32, 64)
    assert artifact.manifest["target"]["options"]["labels"] == 19
    assert_nothing_constant(artifact.file)


@pytest.mark.parametrize(
    ("model", "options", "sentence"),
    [
        ("segformer_b0", {"segmentation": "maps"}, "--segmentation is logits, labels, or, for a head .*, got 'maps'"),
        (
            "casvit_xs",
            {"segmentation": "labels"},
            "casvit_xs has no --segmentation labels, since it is no model for semantic",
        ),
        ("segformer_b0", {"segmentation": "labels", "features": True}, "since --features returns no classes"),
    ],
)
def test_maps_of_classes_are_refused_where_there_are_none(
    model: str, options: dict[str, object], sentence: str
) -> None:
    with pytest.raises(BadInput, match=sentence):
        edgesmith.explain(model, "onnx", **options)  # type: ignore[arg-type]  # its own


def test_other_classes_fail_beyond_the_share_that_a_precision_may_change() -> None:
    map_ = np.zeros((1, 100, 100), np.float32)
    for precision, allowed in (("fp32", 10), ("fp16", 10), ("bf16", 80)):
        criteria = AcceptanceCriteria(precisions.get(precision), False, lambda: None, of_classes=True)
        limits = precisions.get(precision).criteria.limits()
        assert round(1e4 * allowed_classes(limits, False)) == allowed
        other = map_.copy()
        other.reshape(-1)[:allowed] = 7
        record = check("eager -> file", [[map_]], [[other]], criteria)
        assert record["top1"] == {"agreeing": 10_000 - allowed, "decided": 10_000, "ties": 0}
        other.reshape(-1)[allowed] = 7
        with pytest.raises(VerificationFailed, match="of the pixels have another class, allowed"):
            check("eager -> file", [[map_]], [[other]], criteria)
    with pytest.raises(ValueError, match="the outputs have shapes"):
        measure_classes([map_], [map_[:, 1:]], 0.1)


class Scores(nn.Module):
    """Classes of pixels by three layers, whose scores are `margin` apart at least in the mean."""

    def __init__(self, margin: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.last = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 1), nn.Conv2d(16, 5, 1)
        with torch.no_grad():
            self.last.bias.copy_(margin * torch.arange(5.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.second(F.relu(self.first(x))))).argmax(1).to(torch.int32)


class Residual(nn.Module):
    """Two residual layers in one module, each a module of its own, and scores behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.scores = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.first(x)
        x = x + self.second(x)
        return self.scores(x).argmax(1).to(torch.int32)


def test_a_layer_whose_sum_is_no_end_is_none_either() -> None:
    program = capture(Residual().eval(), (torch.randn(1, 3, 8, 8),))
    nodes = [node.name for node in operators(program.module)]
    assert nodes[:4] == ["conv2d", "add", "conv2d_1", "add_1"]
    names = {"a": "first", "b": "second", "c": "scores"}
    assert set(_named(program, dict.fromkeys(nodes[2:], "ties"), names)) == {"c"}
    assert set(_named(program, dict.fromkeys(nodes, "ties"), names)) == {"a", "b", "c"}


def test_both_ends_stay_fp32_as_far_as_near_ties_ask_for_it() -> None:
    inputs = [(torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(i)),) for i in range(2)]
    program = capture(Scores(0).eval(), inputs[0])
    before = expected_share(program, inputs, {}, torch.float16)
    rounded = run(half(program), inputs[0])[0] != run(program, inputs[0])[0]
    assert before == pytest.approx(float(rounded.float().mean()), rel=0.5)
    ends = find_ends(program, inputs, {}, torch.float16, before / 2)
    assert 0 < len(ends) < len(list(operators(program.module)))
    assert expected_share(program, inputs, ends, torch.float16) <= before / 2
    assert all("of the pixels would change their class" in reason for reason in ends.values())
    assert find_ends(program, inputs, {}, torch.float16, before) == {}
    apart = capture(Scores(10.0).eval(), inputs[0])
    assert find_ends(apart, inputs, {}, torch.float16, 1e-9) == {}
    everything = find_ends(program, inputs, {}, torch.float16, 0.0)
    assert {node.name for node in operators(program.module)} - set(everything) <= {"to"}  # the argmax too reads scores
