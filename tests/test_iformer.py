"""iFormer end to end: the authors' outputs and spelling, its mixer, every size, and what the files hold."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from authors import iformer as authors
from support.lowering import assert_nothing_constant, lower
from support.rewriting import apply, reasons
from torch import Tensor, nn

import edgesmith
from edgesmith.exporters import targets
from edgesmith.exporters.graph.capture import Program, capture, run
from edgesmith.exporters.graph.edit import count_operators
from edgesmith.exporters.rewrites.fold_constants import fold_constants
from edgesmith.exporters.rewrites.order import rewrite
from edgesmith.models import registry
from edgesmith.models.checkpoint import load
from edgesmith.models.iformer import InceptionTransformer, Mixer, settle

PARITY = 1e-4
EAGER = 1e-5
FIXTURE = Path(__file__).parent / "fixtures" / "iformer_small.npz"
SMALL: dict[str, Any] = {"dims": (64, 96, 96, 128), "heads": ((1,), (2,), (2,), (3,)), "num_classes": 7, "grid": 16}


def build() -> InceptionTransformer:
    """A model of one block a stage, with none of its parameters too small to matter."""
    torch.manual_seed(0)
    model = InceptionTransformer(**SMALL).eval()
    settle(model)
    return model


def image(*size: int, batch: int = 1) -> Tensor:
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(0))


@cache
def small_program() -> Program:
    return rewrite(capture(build(), (image(64, 64),)), targets.get("onnx").costs)[0]


@pytest.fixture
def checkpoint(rebuild: ModuleType, tmp_path: Path) -> Path:
    """The checkpoint as the authors save it, a bare state dict."""
    path = tmp_path / "iformer_small.pth"
    torch.save(rebuild.load(FIXTURE)[0], path)
    return path


def test_the_authors_outputs_eager(checkpoint: Path, rebuild: ModuleType) -> None:
    _, x, expected, _ = rebuild.load(FIXTURE)
    model, _ = load(registry.get("iformer_small"), checkpoint)
    with torch.no_grad():
        assert np.abs(model(x).numpy() - expected).max() <= PARITY * np.abs(expected).max()


@pytest.mark.slow
def test_the_authors_outputs_rewritten_and_in_onnx_runtime(
    checkpoint: Path, rebuild: ModuleType, tmp_path: Path
) -> None:
    _, x, expected, _ = rebuild.load(FIXTURE)
    _, program, _ = edgesmith.explain("iformer_small", "onnx", weights=checkpoint)
    outputs = lower("onnx", program, tmp_path / "model.onnx").run([[x.numpy()]])
    assert isinstance(outputs, list)
    for found in (run(program, (x,))[0].detach().numpy(), outputs[0][0]):
        assert np.abs(found - expected).max() <= PARITY * np.abs(expected).max()


def test_a_checkpoint_of_another_size_brings_its_position_embeddings(tmp_path: Path) -> None:
    path = tmp_path / "iformer_small_384.pth"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save(registry.build(registry.get("iformer_small_384")).state_dict(), path)
    model, _ = load(registry.get("iformer_small"), path)
    assert model.get_parameter("pos_embed1").shape == (1, 96, 96, 96)


@pytest.mark.parametrize("size", [(64, 64), (96, 96)])
def test_the_authors_spelling_gets_the_fused_ops_and_numbers(size: tuple[int, int]) -> None:
    zoo, theirs = build(), authors.InceptionTransformer(**SMALL).eval()
    theirs.load_state_dict(zoo.state_dict())
    x = image(*size)
    with torch.no_grad():
        assert float((theirs(x) - zoo(x)).abs().max()) <= EAGER * float(zoo(x).abs().max())
    counts = apply(theirs, x, costs=targets.get("onnx").costs).counts
    assert counts["edgesmith.inception_mixer"] == 4
    assert not {"aten.softmax", "aten.avg_pool2d", "aten.max_pool2d", "edgesmith.attention"} & set(counts)


def test_nothing_that_does_not_depend_on_the_input_is_left_and_scales_are_in_layers() -> None:
    program = small_program()
    assert not fold_constants.apply(program.module, targets.get("onnx").costs).applied
    counts = count_operators(program.module)
    assert counts["edgesmith.inception_mixer"] == 4
    assert not {"aten.batch_norm", "aten.mul", "aten.upsample_bilinear2d", "aten.layer_norm"} & set(counts)


@pytest.mark.parametrize("target", ["onnx", "coreml"])
def test_operators_of_the_file(target: str, golden: Callable[[str, str], None], tmp_path: Path) -> None:
    if targets.get(target).missing_packages():
        pytest.skip(f"{target}: not installed")
    file = lower(target, small_program(), tmp_path / f"small{targets.get(target).suffix}")
    counts = file.count_operators()
    if target == "onnx":
        assert_nothing_constant(tmp_path / "small.onnx")
    golden(f"iformer_small.{target}", "".join(f"{count:5} {op}\n" for op, count in sorted(counts.items())))
    if target == "coreml":
        assert file.largest_rank <= 5  # type: ignore[attr-defined]  # of a Core ML file


def test_onnx_equals_eager_at_another_size_and_batch(tmp_path: Path) -> None:
    model, x = build(), image(64, 96, batch=2)
    program, _ = rewrite(capture(model, (x,), dynamic_batch=True), targets.get("onnx").costs)
    file = lower("onnx", program, tmp_path / "small.onnx")
    for given in (x, x[:1]):
        outputs = file.run([[given.numpy()]])
        assert isinstance(outputs, list)
        with torch.no_grad():
            expected = model(given).numpy()
        assert np.abs(outputs[0][0] - expected).max() <= EAGER * np.abs(expected).max()


class Mixed(nn.Module):
    """A mixer, with what a test changes: a scale of the scores, or a value that is read elsewhere."""

    def __init__(self, sharper: bool = False, leak: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mixer, self.leak = Mixer(64, heads=1, pool=2), leak
        if sharper:
            self.mixer.low_mixer.register_forward_hook(lambda module, inputs, output: 1.5 * output.relu())

    def forward(self, x: Tensor) -> Any:
        if not self.leak:
            return self.mixer(x)
        high, low = x.split(self.mixer.widths, dim=1)
        z = torch.cat((self.mixer.high_mixer(high), self.mixer.low_mixer(low)), dim=1)
        return self.mixer.proj(z + self.mixer.conv_fuse(z)), z


@pytest.mark.parametrize(
    ("change", "reason"),
    [({}, ""), ({"sharper": True}, "computes other numbers"), ({"leak": True}, "is also read by")],
)
def test_the_mixer_is_found_and_nothing_like_it(change: dict[str, bool], reason: str) -> None:
    found = apply(Mixed(**change), torch.randn(1, 64, 6, 8))
    assert found.counts.get("edgesmith.inception_mixer", 0) == (not change)
    assert reason in reasons(found.reports["find_inception"])
