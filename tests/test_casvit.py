"""CAS-ViT end to end: the authors' outputs, every size and batch in ONNX Runtime, and the Core ML program's limits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from support.lowering import lower

import edgesmith
from edgesmith.exporters import targets
from edgesmith.exporters.artifact import Artifact
from edgesmith.exporters.graph.capture import capture, run
from edgesmith.exporters.graph.edit import count_operators
from edgesmith.exporters.rewrites.order import rewrite
from edgesmith.models import registry
from edgesmith.models.checkpoint import load

PARITY = 1e-5
EAGER = 2e-6


@pytest.fixture(scope="module")
def authors(rebuild: ModuleType, fixture_file: Path) -> tuple[torch.Tensor, np.ndarray]:
    """Input and output of the authors' own implementation."""
    _, x, output, _ = rebuild.load(fixture_file)
    return x, output


def test_fixture_is_the_shared_one(parity: Path, fixture_file: Path) -> None:
    assert (parity / "casvit_xs.npz").read_bytes() == fixture_file.read_bytes()


@pytest.mark.wheel
def test_the_authors_outputs_eager_rewritten_and_in_onnx_runtime(
    authors: tuple[torch.Tensor, np.ndarray], authors_checkpoint: Path, tmp_path: Path
) -> None:
    x, expected = authors
    model, _ = load(registry.get("casvit_xs"), authors_checkpoint)
    with torch.no_grad():
        assert np.abs(model(x).numpy() - expected).max() <= PARITY
    backend = targets.get("onnx")
    _, rewritten, _ = edgesmith.explain("casvit_xs", "onnx", weights=authors_checkpoint)
    assert np.abs(run(rewritten, (x,))[0].numpy() - expected).max() <= PARITY
    artifact = edgesmith.export("casvit_xs", "onnx", weights=authors_checkpoint, out=tmp_path)
    outputs = backend.open(artifact.file).run([[x.numpy()]])
    assert isinstance(outputs, list)
    assert np.abs(outputs[0][0] - expected).max() <= PARITY
    assert artifact.manifest["weights"]["origin"] == "file rcvit_xs.pth"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size", "batch"),
    [
        *(("casvit_xs", size, batch) for size in ((224, 224), (192, 256)) for batch in (1, 4)),
        *((f"casvit_{variant}", (224, 224), 1) for variant in "smt"),
        *((f"casvit_{variant}", (192, 256), 4) for variant in "smt"),
    ],
)
def test_onnx_equals_eager_at_every_size_and_batch(
    name: str, size: tuple[int, int], batch: int, one_block_a_stage: Callable[[], None], tmp_path: Path
) -> None:
    """XS at its own depth in all four, T at the published size; the others' widths with one block a stage."""
    if name != "casvit_xs" and (name, *size, batch) != ("casvit_t", 224, 224, 1):
        one_block_a_stage()
    spec = registry.get(name)
    model, _ = load(spec, None)
    x = torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(batch))
    rewritten, _ = rewrite(capture(model, (x,), ("image",), ("logits",)), targets.get("onnx").costs)
    file = lower("onnx", rewritten, tmp_path / f"{name}.onnx", image=spec.input)
    file.check()
    assert "BatchNormalization" not in file.count_operators()
    outputs = file.run([[x.numpy()]])
    assert isinstance(outputs, list)
    with torch.no_grad():
        expected = model(x).numpy()
    assert np.abs(outputs[0][0] - expected).max() <= EAGER * np.abs(expected).max()


def test_onnx_features_equal_eager(one_block_a_stage: Callable[[], None], tmp_path: Path) -> None:
    one_block_a_stage()
    artifact = edgesmith.export("casvit_xs", "onnx", features=True, input_size=(64, 96), out=tmp_path)
    assert artifact.manifest["model"]["outputs"] == [f"features_{i}" for i in range(4)]
    assert artifact.manifest["verification"]["steps"][-1]["relative_error"] <= EAGER


@pytest.mark.parametrize("target", ["onnx", "coreml"])
def test_operator_counts_of_the_file(
    target: str, golden: Callable[[str, str], None], artifact: Callable[..., Artifact]
) -> None:
    if targets.get(target).missing_packages():
        pytest.skip(f"{target}: not installed")
    counts = artifact("casvit_xs", target).manifest["operators"]["file"]
    golden(f"casvit_xs.{target}", "".join(f"{count:5} {op}\n" for op, count in counts.items()))


def test_coreml_program_of_xs_keeps_its_limits(artifact: Callable[..., Artifact]) -> None:
    pytest.importorskip("coremltools", reason="coremltools is not installed")
    from edgesmith.exporters.targets.coreml import TARGET

    file = TARGET.open(artifact("casvit_xs", "coreml").file)
    counts = file.count_operators()
    assert "batch_norm" not in counts
    assert sum(counts.values()) <= 330
    assert file.largest_rank <= 4


def test_published_program_holds_its_mixers() -> None:
    """For Core ML; test_every_model.py counts those of each variant, for ONNX."""
    _, after, _ = edgesmith.explain("casvit_xs", "coreml", input_size=(32, 32))
    assert count_operators(after.module)["edgesmith.additive_attention"] == 10
