"""TDSM: the authors' outputs for given permutations, a seed that the manifest states, and two gathers in the file."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from support.lowering import assert_nothing_constant, lower
from torch import Tensor, nn

import edgesmith
from edgesmith.exporters import targets
from edgesmith.exporters.graph import equal_rows
from edgesmith.exporters.graph.capture import capture, run
from edgesmith.exporters.graph.edit import count_operators
from edgesmith.exporters.graph.equal_rows import with_centred_rows
from edgesmith.exporters.rewrites.order import rewrite
from edgesmith.models import registry, tdsm
from edgesmith.models.checkpoint import load

PARITY = 1e-4
FIXTURE = Path(__file__).parent / "fixtures" / "tdsm_d192_n6.npz"


@pytest.fixture
def given(rebuild: ModuleType, tmp_path: Path) -> tuple[Path, tuple[Tensor, Tensor], np.ndarray]:
    """A checkpoint with the permutations of the fixture, its inputs, and the authors' output."""
    state, c, output, _ = rebuild.load(FIXTURE)
    with np.load(FIXTURE) as z:
        drawn = {key[3:]: torch.from_numpy(z[key]) for key in z.files if key.startswith("in/perm")}
        t = torch.from_numpy(z["in/t"])
    path = tmp_path / "tdsm.pth"
    torch.save({**state, **drawn}, path)
    return path, (c, t), output


def test_the_authors_output_eager_rewritten_and_in_onnx_runtime(
    given: tuple[Path, tuple[Tensor, Tensor], np.ndarray], tmp_path: Path
) -> None:
    path, inputs, expected = given
    model, weights = load(registry.get("tdsm_d192_n6"), path)
    assert len(model.state_dict()) == 25
    assert weights.notes == ("the permutations are the checkpoint's",)
    program, _ = rewrite(capture(model, inputs), targets.get("onnx").costs)
    file = lower("onnx", program, tmp_path / "tdsm.onnx")
    assert_nothing_constant(tmp_path / "tdsm.onnx")
    outputs = file.run([[x.numpy() for x in inputs]])
    assert isinstance(outputs, list)
    with torch.no_grad():
        for found in (model(*inputs), run(program, inputs)[0], torch.from_numpy(outputs[0][0])):
            assert np.abs(found.numpy() - expected).max() <= PARITY * np.abs(expected).max()
    assert file.count_operators()["Gather"] == 2
    assert count_operators(program.module)["edgesmith.attention"] == 6


def test_the_manifest_states_the_seed(rebuild: ModuleType, tmp_path: Path) -> None:
    state, *_ = rebuild.load(FIXTURE)
    path = tmp_path / "authors.pth"
    torch.save({f"controlnet.0.process.{key}": value for key, value in state.items()}, path)
    artifact = edgesmith.export("tdsm_d192_n6", "onnx", weights=path, frames=8, out=tmp_path)
    assert artifact.manifest["weights"]["notes"] == list(tdsm.NOTES)
    assert "seed 0" in tdsm.NOTES[0]
    assert [one["name"] for one in artifact.manifest["model"]["inputs"]] == ["c", "t"]


def test_the_seed_makes_the_permutations() -> None:
    first, again, other = (tdsm.draw_permutations([32, 64], 8, seed) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize(
    ("dim", "groups", "widths"),
    [
        (1152, 4, [288] * 4),
        (1152, 6, [192] * 6),
        (320, 4, [64, 64, 96, 96]),
        (320, 6, [32, 32, 64, 64, 64, 64]),
        (192, 4, [32, 32, 64, 64]),
    ],
)
def test_groups_are_as_wide_as_the_authors(dim: int, groups: int, widths: list[int]) -> None:
    assert tdsm.group_widths(dim, groups) == widths


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="6 groups need a multiple of 32 channels, 192 at least"):
        tdsm.group_widths(160, 6)
    with pytest.raises(ValueError, match="multiple of 4, got 6"):
        tdsm.TDSM(96, 3, frames=6)


def test_parameters_are_the_published_ones() -> None:
    for name, spec in registry.all_models().items():
        if spec.family == "tdsm":
            model = registry.build(spec)
            assert sum(p.numel() for p in model.parameters()) == spec.params, name
    eleven = [6, 2, 6, 4, 2, 2, 4, 4, 6, 6, 6]
    outside = 2 * (1152 * 1152 + 1152)  # the layers before and behind each block
    blocks = sum(registry.get(f"tdsm_d1152_n{n}").params + outside for n in eleven)
    assert blocks == 45_715_968


class Normed(nn.Module):
    """A norm of what the caller hands in, as rows in another order, and one behind a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.layer, self.second = nn.LayerNorm(192, 1e-6), nn.Linear(192, 8), nn.LayerNorm(8, 1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.layer(self.first(x.transpose(1, 2))))


@pytest.mark.parametrize("value", [0.67, -117.3])
def test_core_ai_makes_nothing_of_a_constant_row_that_is_handed_in(value: float, tmp_path: Path) -> None:
    """Its runtime adds up in order: centred once the first norm makes 1.4e-3 and 0.11 of what is 0."""
    if targets.get("coreai").missing_packages():
        pytest.skip("coreai: not installed")
    torch.manual_seed(0)
    model = Normed().eval()
    x = torch.full((1, 192, 3), value)
    program, _ = rewrite(capture(model, (torch.randn(1, 192, 3),)), targets.get("coreai").costs)
    shifted = with_centred_rows(program.module, program.inputs, equal_rows.FEWEST["coreai"])
    before, after = count_operators(program.module), count_operators(shifted)
    assert {key: after[key] - before.get(key, 0) for key in after if after[key] != before.get(key, 0)} == {
        "aten.mean": 1,
        "aten.sub": 1,
    }
    outputs = lower("coreai", program, tmp_path / "normed.aimodel").run([[x.numpy()]])
    assert isinstance(outputs, list)
    with torch.no_grad():
        wanted = model(x)
    assert float((torch.from_numpy(outputs[0][0]) - wanted).abs().max()) <= 1e-5 * float(wanted.abs().max())
