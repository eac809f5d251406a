"""Weights load from every envelope the authors use; anything else is one sentence, and no code of a file ever runs."""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from edgesmith.errors import CheckpointError
from edgesmith.models import registry
from edgesmith.models.checkpoint import load, read

XS = registry.get("casvit_xs")


@pytest.fixture(scope="module")
def state(rebuild: ModuleType, fixture_file: Path) -> dict[str, Tensor]:
    return dict(rebuild.load(fixture_file)[0])


def without(state: dict[str, Tensor], *prefixes: str) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if not key.startswith(prefixes)}


ENVELOPES: dict[str, Callable[[dict[str, Tensor]], object]] = {
    "bare": lambda s: s,
    "model": lambda s: {"model": s, "epoch": 3},
    "state_dict": lambda s: {"state_dict": s},
    "training state": lambda s: {
        "model": s,
        "args": argparse.Namespace(lr=1e-3, out=None),
        "max_accuracy": np.float64(78.3),
        "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 0.1}]},
    },
    "DDP": lambda s: {"model": {f"module.{key}": value for key, value in s.items()}},
    "half": lambda s: {key: value.half() if value.is_floating_point() else value for key, value in s.items()},
}


@pytest.mark.parametrize("envelope", ENVELOPES)
def test_checkpoints_load_from_every_envelope(envelope: str, state: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(ENVELOPES[envelope](state), path)
    model, weights = load(XS, path)
    loaded = model.state_dict()
    exact = {key: value.half().float() for key, value in state.items()} if envelope == "half" else state
    assert all(torch.equal(loaded[key], exact[key]) for key in state)
    assert weights.origin == "file weights.pth"


def test_old_torch_files_and_safetensors_load_with_one_fingerprint(state: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    save_file(state, tmp_path / "new.safetensors")
    _, old = load(XS, tmp_path / "old.pth")
    _, new = load(XS, tmp_path / "new.safetensors")
    assert old.sha256 == new.sha256
    assert old.file_sha256 != new.file_sha256


def test_checkpoint_without_distillation_head(state: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(without(state, "dist_head"), tmp_path / "w.pth")
    model, _ = load(XS, tmp_path / "w.pth")
    assert sum(p.numel() for p in model.parameters()) == 2_979_700
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 1000)


def test_checkpoint_of_a_fine_tuned_model_has_its_own_classes(state: dict[str, Tensor], tmp_path: Path) -> None:
    tuned = {**without(state, "head", "dist_head"), "head.weight": torch.zeros(7, 220), "head.bias": torch.zeros(7)}
    torch.save(tuned, tmp_path / "w.pth")
    model, _ = load(XS, tmp_path / "w.pth")
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 7)


def test_features_from_a_classification_checkpoint_say_that_their_norms_are_identity(
    state: dict[str, Tensor], tmp_path: Path
) -> None:
    torch.save(state, tmp_path / "w.pth")
    model, weights = load(XS, tmp_path / "w.pth", features=True)
    assert "identity is used" in weights.notes[0]
    assert torch.equal(model.state_dict()["norm4.running_var"], torch.ones(112))


def test_features_from_a_dense_checkpoint_have_its_norms(state: dict[str, Tensor], tmp_path: Path) -> None:
    dense = without(state, "head", "dist_head", "norm.")
    for i, dim in enumerate((48, 56, 112, 220)):
        dense |= {f"norm{2 * i}.{k}": v + i for k, v in torch.nn.BatchNorm2d(dim).state_dict().items()}
    mmseg = {f"backbone.{key}": value for key, value in dense.items()} | {"decode_head.conv_seg.bias": torch.zeros(150)}
    torch.save({"state_dict": mmseg}, tmp_path / "w.pth")
    model, weights = load(XS, tmp_path / "w.pth", features=True)
    assert weights.notes == ("1 tensors outside the backbone were left out, first decode_head.conv_seg.bias",)
    assert torch.equal(model.state_dict()["norm4.running_var"], torch.full((112,), 3.0))


def test_random_weights_are_the_same_every_time_and_leave_the_random_state_alone() -> None:
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    first, second = load(XS, None)[1], load(XS, None)[1]
    assert first == second
    assert first.origin == "random (seed 0)"
    assert torch.equal(before, torch.random.get_rng_state())


def test_checkpoint_of_another_variant_names_the_first_of_each_kind(state: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save({**state, "extra.weight": torch.zeros(2, 3)}, tmp_path / "xs.pth")
    with pytest.raises(CheckpointError) as raised:
        load(registry.get("casvit_s"), tmp_path / "xs.pth")
    assert str(raised.value) == (
        "xs.pth is not a checkpoint of casvit_s: 368 of another shape, first network.1.proj.weight: [56, 48, 3, 3],"
        " wanted [64, 48, 3, 3]; 240 missing, first network.0.2.local_perception.network.0.weight [48, 48, 1, 1];"
        " 1 unexpected, first extra.weight [2, 3]"
    )


class Attack:
    """What a hostile file does when it is unpickled."""

    marker: str

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (self.marker, "w")


@pytest.mark.parametrize("zipped", [True, False, None], ids=["zip", "legacy", "plain pickle"])
def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(zipped: bool | None, tmp_path: Path) -> None:
    Attack.marker = str(tmp_path / "owned")
    path = tmp_path / "evil.pth"
    if zipped is None:
        path.write_bytes(pickle.dumps({"model": Attack()}, protocol=2))
    else:
        torch.save({"model": Attack()}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError) as raised:
        read(path)
    assert not Path(Attack.marker).exists()
    if zipped is not None:
        assert str(raised.value).startswith("evil.pth is refused: its pickle asks for io.open, which could run code")


def test_a_whole_pickled_module_is_refused(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pth")
    with pytest.raises(CheckpointError, match=r"refused: its pickle asks for torch.nn.modules.linear.Linear"):
        read(tmp_path / "module.pth")


@pytest.mark.parametrize("keep", [0, 10, 100_000, -1])
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_truncated_files_are_one_sentence(keep: int, suffix: str, state: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / f"w.{suffix}"
    torch.save(state, path) if suffix == "pth" else save_file(state, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="download it again") as raised:
        read(path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ([1, 2], "holds a list, not a state dict"),
        ({"model": {"a": 1}}, "'model' is a dict, not a tensor"),
        ({}, "holds no tensors"),
        ({"weight": torch.zeros(2), "lr": 0.1}, "'lr' is a float, not a tensor"),
    ],
)
def test_files_without_a_state_dict_are_one_sentence(content: object, sentence: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=sentence):
        read(tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("head.weight", torch.zeros(1000, 220, dtype=torch.int8), "head.weight is torch.int8"),
        ("head.weight", torch.zeros(1000, 220).to_sparse(), r"head.weight is torch.float32 \(torch.sparse_coo\)"),
        ("norm.running_var", torch.full((220,), -1.0), "norm.running_var holds negative variances"),
        ("norm.bias", torch.full((220,), 1e300, dtype=torch.float64), "not finite as torch.float32"),
    ],
)
def test_weights_of_another_kind_are_refused(
    key: str, value: Tensor, sentence: str, state: dict[str, Tensor], tmp_path: Path
) -> None:
    torch.save({**state, key: value}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=sentence):
        load(XS, tmp_path / "w.pth")


def test_weights_that_are_not_finite_are_refused(state: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save({**state, "norm.bias": torch.full((220,), torch.nan)}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"norm.bias holds values that are not finite"):
        load(XS, tmp_path / "w.pth")


def test_a_missing_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no weights file at"):
        read(tmp_path / "w.pth")
