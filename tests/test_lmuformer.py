"""LMUFormer and its spiking form: the authors' outputs, spike for spike, at any length, and their checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import edgesmith
from edgesmith.errors import BadInput, CheckpointError
from edgesmith.exporters import targets
from edgesmith.exporters.graph.capture import run
from edgesmith.kernels.lmu_memory import impulse_response
from edgesmith.models import registry
from edgesmith.models.checkpoint import load
from edgesmith.models.lmuformer import LIF, legendre

NAMES = ("lmuformer", "spiking_lmuformer")
PARITY = 2e-6
"""Of the peak. A single spike more or less would move an output of the spiking model by 1e-3 of it."""


@pytest.fixture(scope="module")
def states(rebuild: ModuleType, fixtures: Path) -> dict[str, dict[str, Tensor]]:
    return {name: rebuild.load(fixtures / f"{name}.npz")[0] for name in NAMES}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory, states: dict[str, dict[str, Tensor]]) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("weights")
    for name in NAMES:
        torch.save(states[name], folder / f"{name}.pth")
    return {name: folder / f"{name}.pth" for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_fixture_is_the_shared_one(name: str, parity: Path, fixtures: Path) -> None:
    assert (parity / f"{name}.npz").read_bytes() == (fixtures / f"{name}.npz").read_bytes()


@pytest.mark.wheel
@pytest.mark.parametrize("name", NAMES)
def test_the_authors_outputs_eager_rewritten_and_in_onnx_runtime(
    name: str, rebuild: ModuleType, fixtures: Path, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    _, x, expected, _ = rebuild.load(fixtures / f"{name}.npz")
    allowed = PARITY * np.abs(expected).max()
    model, weights = load(registry.get(name), checkpoints[name])
    with torch.no_grad():
        assert np.abs(model(x).numpy() - expected).max() <= allowed
    assert weights.notes == ("block.0.attn.lmu.fft_H is the Fourier transform of H and was left out",)
    _, rewritten, _ = edgesmith.explain(name, "onnx", weights=checkpoints[name])
    assert np.abs(run(rewritten, (x,))[0].numpy() - expected).max() <= allowed
    artifact = edgesmith.export(name, "onnx", weights=checkpoints[name], out=tmp_path)
    outputs = targets.get("onnx").open(artifact.file).run([[x.numpy()]])
    assert isinstance(outputs, list)
    assert np.abs(outputs[0][0] - expected).max() <= allowed


def test_the_memory_is_the_authors(states: dict[str, dict[str, Tensor]]) -> None:
    for state in states.values():
        a, b = legendre(len(state["block.0.attn.lmu.A"]), 128)
        assert float((a - state["block.0.attn.lmu.A"]).abs().max()) <= 1e-8
        assert float((b - state["block.0.attn.lmu.B"]).abs().max()) <= 1e-8
        h = impulse_response(a, b[:, 0], 128)
        assert float((h - state["block.0.attn.lmu.H"]).abs().max()) <= 1e-6


@pytest.mark.parametrize("frames", [1, 50, 300])
def test_a_checkpoint_serves_sequences_of_every_length(frames: int, checkpoints: dict[str, Path]) -> None:
    model, weights = load(registry.get("lmuformer"), checkpoints["lmuformer"], frames=frames)
    whole, _ = load(registry.get("lmuformer"), checkpoints["lmuformer"])
    assert f"for {frames} frames; the checkpoint's is for 128" in weights.notes[-1]
    x = torch.randn(1, frames, 128)
    with torch.no_grad():
        assert model(x).shape == (1, 35)
        if frames < 128:  # what comes later says nothing about what came before, but for five frames
            model.any_time = whole.any_time = True
            early = whole(torch.cat([x, torch.zeros(1, 128 - frames, 128)], 1))[:, : max(frames - 5, 0)]
            assert torch.allclose(model(x)[:, : max(frames - 5, 0)], early, atol=1e-4)


def test_an_any_time_prediction_ends_with_the_whole_sequences() -> None:
    torch.manual_seed(0)
    model = registry.build(registry.get("lmuformer"), frames=20)
    x = torch.randn(2, 20, 128)
    with torch.no_grad():
        whole = model(x)
        model.any_time = True
        assert torch.allclose(model(x)[:, -1], whole, atol=1e-6)


def test_a_memory_that_is_not_its_impulse_response_is_damaged(
    states: dict[str, dict[str, Tensor]], tmp_path: Path
) -> None:
    state = dict(states["lmuformer"])
    state["block.0.attn.lmu.H"] = state["block.0.attn.lmu.H"].roll(1, 1)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"block.0.attn.lmu.H is not the impulse response of A and B"):
        load(registry.get("lmuformer"), tmp_path / "w.pth")


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision_checkpoints_load(
    kind: torch.dtype, states: dict[str, dict[str, Tensor]], tmp_path: Path
) -> None:
    state = {key: x.to(kind) if x.is_floating_point() else x for key, x in states["lmuformer"].items()}
    torch.save(state, tmp_path / "w.pth")
    load(registry.get("lmuformer"), tmp_path / "w.pth")


@pytest.mark.parametrize("damage", [lambda h: h[:, :0], lambda h: h.bool(), lambda h: h.to_sparse()])
def test_an_odd_memory_is_a_checkpoint_error(
    damage: Callable[[Tensor], Tensor], states: dict[str, dict[str, Tensor]], tmp_path: Path
) -> None:
    state = states["lmuformer"] | {"block.0.attn.lmu.H": damage(states["lmuformer"]["block.0.attn.lmu.H"])}
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"block.0.attn.lmu.H"):
        load(registry.get("lmuformer"), tmp_path / "w.pth")


def test_another_size_is_another_model(checkpoints: dict[str, Path]) -> None:
    with pytest.raises(CheckpointError, match=r"spiking_lmuformer.pth is not a checkpoint of lmuformer: "):
        load(registry.get("lmuformer"), checkpoints["spiking_lmuformer"])


def test_the_number_of_classes_is_the_checkpoints(states: dict[str, dict[str, Tensor]], tmp_path: Path) -> None:
    state = dict(states["lmuformer"])
    state |= {"head.weight": state["head.weight"][:12], "head.bias": state["head.bias"][:12]}
    torch.save(state, tmp_path / "w.pth")
    model, _ = load(registry.get("lmuformer"), tmp_path / "w.pth")
    assert model.head.out_features == 12


@pytest.mark.parametrize("name", ["spiking_lmuformer", "spiking_lmuformer_psmnist"])
def test_neurons_fire_at_random_weights(name: str) -> None:
    spec = registry.get(name)
    model, _ = load(spec, None)
    rates = []
    for module in model.modules():
        if isinstance(module, LIF):
            module.register_forward_hook(lambda _, __, spikes: rates.append(float(spikes.mean())))
    with torch.no_grad():
        model(torch.randn(2, *spec.input.shape))
    assert all(0.005 < rate < 0.5 for rate in rates)
    assert not any(module.training for module in model.modules())
    assert {module.momentum for module in model.modules() if isinstance(module, nn.BatchNorm1d)} <= {0.1}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"input_size": (64, 64)}, "lmuformer reads sequences and has no --input-size; their length is --frames"),
        ({"features": True}, "lmuformer reads sequences and has no --features"),
        ({"frames": 0}, "--frames must be 1 or more, got 0"),
    ],
)
def test_options_of_images_are_none_of_sequences(options: dict[str, object], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=sentence):
        edgesmith.export("lmuformer", "onnx", out=tmp_path, **options)


def test_frames_are_none_of_images(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="casvit_xs reads images and has no --frames; their size is --input-size"):
        edgesmith.export("casvit_xs", "onnx", frames=5, out=tmp_path)


# what the compiler makes of them

FACTS = {  # parameters of the authors' code, and multiply-accumulates of it as fvcore counts them, millions
    "lmuformer": (1_621_796, 207.4),
    "spiking_lmuformer": (1_689_894, 216.1),
    "lmuformer_psmnist": (166_798, None),
    "spiking_lmuformer_psmnist": (166_092, None),
}
NODES = {"lmuformer": 60, "spiking_lmuformer": 250, "lmuformer_psmnist": 60, "spiking_lmuformer_psmnist": 60}


@pytest.mark.parametrize("name", FACTS)
def test_parameters_and_macs_are_the_published_ones(name: str) -> None:
    spec = registry.get(name)
    model = registry.build(spec)
    params, macs_m = FACTS[name]
    assert sum(p.numel() for p in model.parameters()) == spec.params == params
    norms = 0

    def count(_: nn.Module, __: object, output: Tensor) -> None:
        nonlocal norms
        norms += 2 * output.numel()

    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.register_forward_hook(count)
    if macs_m is not None:
        model.any_time = True  # the head at every frame, as the authors have it
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, *spec.input.shape))
    assert counter.get_total_flops() // 2 + norms == spec.macs
    assert macs_m is None or round(spec.macs / 1e6, 1) == macs_m


@pytest.mark.parametrize("name", NODES)
def test_onnx_file_is_small_and_has_no_fft(name: str, tmp_path: Path) -> None:
    artifact = edgesmith.export(name, "onnx", out=tmp_path)
    counts = artifact.manifest["operators"]["file"]  # those inside loops too
    assert sum(counts.values()) <= NODES[name]
    assert not {"DFT", "Einsum", "Loop"} & set(counts)
    assert counts.get("Scan", 0) == artifact.manifest["operators"]["captured"].get("edgesmith.lif", 0)


@pytest.mark.parametrize("name", ["lmuformer", "spiking_lmuformer_psmnist"])
def test_coreml_program_does_not_grow_with_the_sequence(name: str, tmp_path: Path) -> None:
    pytest.importorskip("coremltools", reason="coremltools is not installed")
    from edgesmith.exporters.targets._coreml_file import CoreMlFile

    counts = []
    for frames in (20, 90):
        artifact = edgesmith.export(name, "coreml", frames=frames, out=tmp_path)
        file = targets.get("coreml").open(artifact.file)
        assert isinstance(file, CoreMlFile)
        counts.append(file.count_operators())
        assert file.largest_rank <= 4
    assert counts[0] == counts[1]


@pytest.mark.parametrize("batch", [{"batch": 3}, {"dynamic_batch": True}])
@pytest.mark.parametrize("name", NAMES)
def test_any_batch(name: str, batch: dict[str, object], tmp_path: Path) -> None:
    artifact = edgesmith.export(name, "onnx", frames=30, out=tmp_path, **batch)
    assert artifact.manifest["verification"]["steps"][-1]["step"] == "eager -> file"
