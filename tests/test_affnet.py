"""AFFNet end to end: the authors' outputs, every size in ONNX Runtime, and the limits of what is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

import edgesmith
from edgesmith.errors import CheckpointError
from edgesmith.exporters import targets
from edgesmith.exporters.graph.capture import run
from edgesmith.exporters.rewrites.rewrite import RewriteReport
from edgesmith.models import registry
from edgesmith.models.affnet import AFFNet
from edgesmith.models.checkpoint import load

FIXTURE = Path(__file__).parent / "fixtures" / "affnet_et.npz"
PARITY = 1e-5
EAGER = 5e-6


@pytest.fixture(scope="module")
def checkpoint(rebuild: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as the authors save it: a bare state dict."""
    state, _, _, meta = rebuild.load(FIXTURE)
    assert meta["envelope"] == ""
    path = tmp_path_factory.mktemp("weights") / "checkpoint_ema_score.pt"
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def authors(rebuild: ModuleType) -> tuple[Tensor, np.ndarray]:
    """Input and output of the authors' own implementation."""
    _, x, output, _ = rebuild.load(FIXTURE)
    return x, output


def report(reports: list[RewriteReport], name: str) -> RewriteReport:
    return next(report for report in reports if report.name == name)


def test_fixture_is_the_shared_one(parity: Path) -> None:
    assert (parity / "affnet_et.npz").read_bytes() == FIXTURE.read_bytes()


@pytest.mark.wheel
def test_the_authors_outputs_eager_rewritten_and_in_onnx_runtime(
    authors: tuple[Tensor, np.ndarray], checkpoint: Path, tmp_path: Path
) -> None:
    x, expected = authors
    model, _ = load(registry.get("affnet_et"), checkpoint)
    with torch.no_grad():
        assert np.abs(model(x).numpy() - expected).max() <= PARITY
    _, rewritten, reports = edgesmith.explain("affnet_et", "onnx", weights=checkpoint)
    assert np.abs(run(rewritten, (x,))[0].numpy() - expected).max() <= PARITY
    fused = report(reports, "recognise")
    assert (len(fused.applied), fused.rejected) == (9, ())
    assert [site for site, _ in fused.applied][:2] == [f"layer_3.1.global_rep.{i}.filter" for i in range(2)]
    assert [site for site, _ in report(reports, "dense_transforms").applied] == [
        f"layer_5.1.global_rep.{i}.filter" for i in range(3)
    ]
    assert len(report(reports, "fold_group_norm").applied) == 3
    assert [site for site, _ in report(reports, "compose_layers").applied] == [
        "layer_1.0.block.red_1x1.block.conv, layer_2.0.block.exp_1x1.block.conv",
        *(f"layer_{i}.1.conv_proj.block.conv, layer_{i}.1.fusion.block.conv" for i in (3, 4, 5)),
    ]
    assert [site for site, _ in report(reports, "tile_channels").applied] == ["layer_2.0.block"]
    artifact = edgesmith.export("affnet_et", "onnx", weights=checkpoint, out=tmp_path)
    outputs = targets.get("onnx").open(artifact.file).run([[x.numpy()]])
    assert isinstance(outputs, list)
    assert np.abs(outputs[0][0] - expected).max() <= PARITY
    counts = artifact.manifest["operators"]["file"]
    assert not {"DFT", "Einsum", "Shrink", "Transpose"} & set(counts)
    assert counts["BatchNormalization"] == 20  # the affine of each group norm that a residual reads too, and two norms
    assert sum(counts.values()) <= 500  # norms over long axes run in stages


@pytest.mark.parametrize(
    ("size", "batch"), [((192, 320), 1), ((97, 130), 2), ((32, 32), "dynamic")], ids=["192x320", "odd maps", "dynamic"]
)
def test_onnx_equals_eager_at_every_size_and_batch(
    size: tuple[int, int], batch: int | str, one_block_a_stage: Callable[[], None], tmp_path: Path
) -> None:
    """At its own depth with a batch of 1; other batches and odd maps with one block a stage."""
    if batch != 1:
        one_block_a_stage()
    options = {"dynamic_batch": True} if batch == "dynamic" else {"batch": batch}
    artifact = edgesmith.export("affnet_et", "onnx", input_size=size, out=tmp_path, **options)  # type: ignore[arg-type]
    step = artifact.manifest["verification"]["steps"][-1]
    assert step["step"] == "eager -> file"
    assert step["relative_error"] <= EAGER
    if batch == "dynamic":
        model, _ = load(registry.get("affnet_et"), None)
        x = torch.randn(3, 3, *size)
        outputs = targets.get("onnx").open(artifact.file).run([[x.numpy()]])
        assert isinstance(outputs, list)
        with torch.no_grad():
            expected = model(x).numpy()
        assert np.abs(outputs[0][0] - expected).max() <= EAGER * np.abs(expected).max()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["affnet_t", "affnet"])
def test_larger_models_export(name: str, one_block_a_stage: Callable[[], None], tmp_path: Path) -> None:
    """Their widths with one block a stage: they are as deep as ET."""
    one_block_a_stage()
    artifact = edgesmith.export(name, "onnx", out=tmp_path)
    assert (
        sum(artifact.manifest["operators"]["file"].values()) <= 600
    )  # of which 13 for tiles of channels, some 130 for norms in stages
    assert artifact.manifest["verification"]["steps"][-1]["relative_error"] <= EAGER


def test_random_filters_pass_something() -> None:
    model, _ = load(registry.get("affnet_et"), None)
    assert isinstance(model, AFFNet)
    block = model.layer_5[1].global_rep[0].filter  # type: ignore[union-attr,index]
    x = torch.randn(1, 144, 8, 8)
    with torch.no_grad():
        assert float((block(x) - x).std()) > 0.05


def test_features_are_the_outputs_of_layers_2_to_5(
    checkpoint: Path, one_block_a_stage: Callable[[], None], tmp_path: Path
) -> None:
    spec = registry.get("affnet_et")
    model, origin = load(spec, checkpoint, features=True)
    with torch.no_grad():
        maps = model(torch.zeros(1, 3, 65, 97))
    assert [tuple(m.shape) for m in maps] == [(1, 48, 17, 25), (1, 64, 9, 13), (1, 104, 5, 7), (1, 144, 3, 4)]
    assert origin.notes == ()
    one_block_a_stage()
    artifact = edgesmith.export("affnet_et", "onnx", features=True, input_size=(64, 64), out=tmp_path)
    assert artifact.manifest["model"]["outputs"] == [f"features_{i}" for i in range(4)]
    assert artifact.manifest["verification"]["steps"][-1]["relative_error"] <= EAGER


def test_a_checkpoint_says_how_many_classes_it_has(checkpoint: Path, tmp_path: Path) -> None:
    state = torch.load(checkpoint, weights_only=True)
    state["classifier.fc.weight"], state["classifier.fc.bias"] = torch.zeros(7, 576), torch.arange(7.0)
    torch.save(state, tmp_path / "seven.pt")
    model, _ = load(registry.get("affnet_et"), tmp_path / "seven.pt")
    with torch.no_grad():
        assert torch.equal(model(torch.zeros(1, 3, 32, 32)), torch.arange(7.0)[None])
    with pytest.raises(CheckpointError, match="is not a checkpoint of affnet_t"):
        load(registry.get("affnet_t"), checkpoint)


@pytest.mark.no_cover  # the lines of any export
def test_coreml_program_keeps_its_limits(checkpoint: Path, tmp_path: Path) -> None:
    pytest.importorskip("coremltools", reason="coremltools is not installed")
    from edgesmith.exporters.targets.coreml import TARGET

    artifact = edgesmith.export("affnet_et", "coreml", weights=checkpoint, out=tmp_path)
    file = TARGET.open(artifact.file)
    counts = file.count_operators()
    assert counts["layer_norm"] == 21
    assert not {"transpose", "square", "real_div"} & set(counts)
    assert sum(counts.values()) <= 380
    assert file.largest_rank <= 4
