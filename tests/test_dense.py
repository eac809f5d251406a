"""Heads on dense features: mmsegmentation's outputs and checkpoints, the published sizes, and maps of classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from authors import dense_heads
from torch import Tensor, nn

import edgesmith
from edgesmith.errors import BadInput, CheckpointError
from edgesmith.exporters import targets
from edgesmith.exporters.costs import Costs
from edgesmith.exporters.graph.edit import count_operators
from edgesmith.exporters.options import ExportOptions, ModelOptions
from edgesmith.exporters.rewrites.fold_constants import fold_constants
from edgesmith.models import dense, registry
from edgesmith.models.checkpoint import load

XS = registry.get("casvit_xs")
AUTHORS = {"fpn": dense_heads.fpn, "upernet": dense_heads.upernet}


class Maps(nn.Module):
    """A backbone whose maps are given."""

    def __init__(self, maps: tuple[Tensor, ...]) -> None:
        super().__init__()
        self.maps = maps

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.maps


def shaken(model: nn.Module) -> dict[str, Tensor]:
    """Give every tensor of a model other numbers."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                drawn = torch.randn(value.shape, generator=generator) / max(value[0].numel(), 1) ** 0.5
                value.copy_(drawn.abs() + 0.5 if name.endswith(("running_var", "bn.weight")) else drawn)
    return dict(model.state_dict())


@pytest.mark.parametrize("sides", [((24, 16), (12, 8), (6, 4), (3, 2)), ((14, 16), (7, 8), (4, 4))], ids=["4", "3"])
@pytest.mark.parametrize("head", registry.HEADS)
def test_heads_are_mmsegmentations(head: str, sides: tuple[tuple[int, int], ...]) -> None:
    dims = [8, 12, 16, 20][: len(sides)]
    generator = torch.Generator().manual_seed(1)
    maps = tuple(torch.randn(2, dim, *side, generator=generator) for dim, side in zip(dims, sides, strict=True))
    options = {"width": 10} if head == "fpn" else {}
    model = dense.HEADS[head](Maps(maps), dims, 5, channels=6, **options).eval()
    state = shaken(model)
    assert len(state) == {("fpn", 4): 60, ("fpn", 3): 56, ("upernet", 4): 74, ("upernet", 3): 62}[head, len(dims)]
    with torch.no_grad():
        expected, found = AUTHORS[head](state, maps), model(torch.empty(0))
    assert found.shape == (2, 5, *sides[0])
    assert float((found - expected).abs().max()) <= 2e-6 * float(expected.abs().max())


PUBLISHED_M = {"transnext_tiny": 59, "transnext_small": 80, "transnext_base": 121}
"""Millions of UPerNet's parameters, an auxiliary head of training among them (the authors' README)."""


@pytest.mark.parametrize(
    "name", [name if name == "transnext_tiny" else pytest.param(name, marks=pytest.mark.slow) for name in PUBLISHED_M]
)
def test_parameters_are_the_published_ones(name: str) -> None:
    spec = registry.get(name)
    with torch.device("meta"):
        model = dense.build(spec, "upernet")
    third = dense.feature_dims(spec)[2]
    auxiliary = third * 256 * 9 + 2 * 256 + 257 * registry.CLASSES_OF_HEADS
    assert round((sum(p.numel() for p in model.parameters()) + auxiliary) / 1e6) == PUBLISHED_M[name]


# checkpoints


@pytest.fixture
def checkpoint(one_block_a_stage: Callable[[], None], tmp_path: Path) -> tuple[Path, nn.Module]:
    """A file as mmsegmentation saves it, and the model that it is of."""
    one_block_a_stage()
    model = dense.build(XS, "fpn", {"num_classes": 7, "channels": 12, "width": 20})
    state = shaken(model)
    state["auxiliary_head.conv_seg.weight"] = torch.zeros(7, 3, 1, 1)
    torch.save({"meta": {}, "state_dict": {f"module.{key}": value for key, value in state.items()}}, tmp_path / "w.pth")
    return tmp_path / "w.pth", model


def test_mmsegmentations_checkpoints_load_as_they_are(checkpoint: tuple[Path, nn.Module]) -> None:
    path, wanted = checkpoint
    model, weights = load(XS, path, head="fpn")
    assert weights.notes == ("1 tensors of no use in inference were left out, first auxiliary_head.conv_seg.weight",)
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(model(x), wanted(x))
        assert model(x).shape == (1, 7, 16, 16)


def test_another_head_and_none_are_refused_by_name(checkpoint: tuple[Path, nn.Module], tmp_path: Path) -> None:
    path, model = checkpoint
    with pytest.raises(
        CheckpointError, match=r"w\.pth is not .* upernet: it has a head of fpn; use --segmentation fpn"
    ):
        load(XS, path, head="upernet")
    state = {key: value for key, value in model.state_dict().items() if key.startswith("backbone.")}
    torch.save(state, tmp_path / "backbone.pth")
    with pytest.raises(CheckpointError, match="it has no head, only a backbone"):
        load(XS, tmp_path / "backbone.pth", head="fpn")
    torch.save({**model.state_dict(), "decode_head.extra": torch.zeros(1)}, tmp_path / "more.pth")
    with pytest.raises(CheckpointError, match=r"1 unexpected, first decode_head\.extra"):
        load(XS, tmp_path / "more.pth", head="fpn")
    maps, _ = load(XS, path, features=True)  # and the file is one of a backbone still
    assert len(maps(torch.zeros(1, 3, 64, 64))) == 4


# options


def test_a_head_has_its_own_size_classes_and_folder() -> None:
    options = ExportOptions("casvit_xs", "onnx", segmentation="upernet-labels", labels=[str(i) for i in range(150)])
    assert (options.shape, options.classes, options.head) == ((3, 512, 512), 150, "upernet")
    assert options.folder_name == "casvit_xs-onnx-fp32-512x512-upernet-label-map-labels"
    assert ModelOptions("casvit_xs", segmentation="fpn", input_size=(64, 96)).shape == (3, 64, 96)
    assert ModelOptions("randformer_s12", segmentation="fpn").shape == (3, 224, 224)
    assert ModelOptions("segformer_b0", segmentation="fpn").segments


@pytest.mark.parametrize(
    ("model", "options", "sentence"),
    [
        ("casvit_xs", {"segmentation": "labels"}, "for a head on its dense features give fpn, fpn-labels, upernet"),
        ("casvit_xs", {"segmentation": "unet"}, "--segmentation is logits, labels, or, for a head .*, got 'unet'"),
        ("casvit_xs", {"segmentation": "fpn", "features": True}, "since --features returns no classes"),
        ("lmuformer", {"segmentation": "fpn"}, "lmuformer has no --segmentation, since it reads no images"),
    ],
)
def test_heads_are_refused_where_none_can_be(model: str, options: Mapping[str, object], sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence):
        ModelOptions(model, **options)  # type: ignore[arg-type]  # its own


# files


@pytest.mark.parametrize("head", ["upernet", pytest.param("fpn", marks=pytest.mark.slow)])
def test_nothing_constant_is_computed(head: str, one_block_a_stage: Callable[[], None]) -> None:
    one_block_a_stage()
    _, after, _ = edgesmith.explain("casvit_xs", "onnx", segmentation=head, input_size=(64, 64))
    counts = count_operators(after.module)
    assert counts.get("aten.batch_norm", 0) <= (head == "upernet"), "norms of features go into the layers behind them"
    assert not fold_constants.apply(after.module, Costs(0)).applied


def test_an_onnx_file_with_a_head_has_the_eager_logits(one_block_a_stage: Callable[[], None], tmp_path: Path) -> None:
    one_block_a_stage()
    artifact = edgesmith.export("casvit_xs", "onnx", segmentation="fpn", input_size=(32, 64), batch=2, out=tmp_path)
    record = artifact.manifest["model"]
    assert (record["outputs"], record["segmentation"], record["head"]) == (["logits"], "logits", "fpn")
    model, _ = load(XS, None, head="fpn")
    x = torch.randn(2, 3, 32, 64, generator=torch.Generator().manual_seed(5))
    outputs = targets.get("onnx").open(artifact.file).run([[x.numpy()]])
    assert isinstance(outputs, list)
    with torch.no_grad():
        expected = model(x).numpy()
    assert expected.shape == (2, 150, 8, 16)
    assert np.abs(outputs[0][0] - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.slow
def test_a_core_ml_file_with_a_head_labels_the_pixels_of_an_image(
    one_block_a_stage: Callable[[], None], tmp_path: Path
) -> None:
    pytest.importorskip("coremltools", reason="coremltools is not installed")
    one_block_a_stage()
    artifact = edgesmith.export(
        "casvit_xs", "coreml", segmentation="fpn-labels", input_size=(32, 64), image_input=True, out=tmp_path
    )
    assert artifact.manifest["model"]["outputs"] == ["labels"]
    assert artifact.manifest["model"]["head"] == "fpn"
    file = targets.get("coreml").open(artifact.file)
    model, _ = load(XS, None, head="fpn")
    x = torch.randint(0, 256, (1, 3, 32, 64), generator=torch.Generator().manual_seed(2)) / 255
    assert isinstance(XS.input, registry.ImageInput)
    mean, std = (torch.tensor(one).reshape(3, 1, 1) for one in (XS.input.mean, XS.input.std))
    x = (x - mean) / std
    outputs = file.run([[x.numpy()]])
    assert isinstance(outputs, list)
    with torch.no_grad():
        wanted = F.interpolate(model(x), (32, 64), mode="bilinear").argmax(1).numpy()
    assert (outputs[0][0] == wanted).mean() >= 0.995
    edgesmith.verify(artifact.path)
