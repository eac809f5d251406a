"""Sound in, logits out: the front end inside of exported files against torch's own STFT, on every target."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.sounds import by_torch, sound
from torch import nn

import edgesmith
from edgesmith.errors import BadInput
from edgesmith.exporters import inputs, targets
from edgesmith.exporters.artifact import Artifact
from edgesmith.exporters.load import load
from edgesmith.exporters.options import ExportOptions
from edgesmith.models import front_end, registry
from edgesmith.models import sound as sounds

FRAMES = 12
SAMPLES = 160 * FRAMES + 240
FITS = {"onnx": "fp32", "coreml": "fp16", "coreai": "fp16", "tensorrt": "fp16"}
FREE_OF = ("fft", "stft", "dft", "complex")


def clip(samples: int = SAMPLES) -> np.ndarray:
    return sound(2.0)[8000 : 8000 + samples]


def frames_of(module: nn.Module, samples: np.ndarray) -> np.ndarray:
    found: np.ndarray = module(torch.from_numpy(samples).float().unsqueeze(0))[0].numpy()
    return found


# the module


def test_a_second_becomes_the_frames_of_torchs_stft_and_the_authors_padding() -> None:
    reads = registry.to_sound(registry.get("lmuformer").input, 128, is_of_hops=False)
    assert (reads.samples, reads.shape) == (16000, (128, 128))
    found = frames_of(sounds.FrontEnd(128, 16000), sound())
    np.testing.assert_allclose(found[:98], by_torch(sound()), rtol=0, atol=5e-5)
    np.testing.assert_allclose(found[98:], (0 + 6.845978) / (2 * 5.5654526), rtol=1e-6)


def test_hops_become_the_frames_that_end_with_them() -> None:
    samples = clip(160 * FRAMES)
    found = frames_of(sounds.FrontEndOfHops(FRAMES), samples.reshape(FRAMES, 160))
    silence_first = np.concatenate([np.zeros(320), samples, np.zeros(80)])
    np.testing.assert_allclose(found, by_torch(silence_first)[:FRAMES], rtol=0, atol=5e-5)
    for n in (1, FRAMES):  # and of a board's, sample for sample
        whole = front_end.FrontEnd().push(np.concatenate([np.zeros(320), samples[: 160 * n], np.zeros(80)]))
        np.testing.assert_allclose(found[:n], whole[:n], rtol=0, atol=5e-5)


def test_silence_and_the_loudest_sound_have_finite_frames() -> None:
    module = sounds.FrontEnd(FRAMES, SAMPLES)
    for samples in (np.zeros(SAMPLES), np.ones(SAMPLES), np.where(np.arange(SAMPLES) % 40 < 20, 1.0, -1.0)):
        np.testing.assert_allclose(frames_of(module, samples), by_torch(samples), rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [("EMPHASIS", 0.95), ("LOWEST_HZ", 0.0), ("MEAN", -6.8), ("DEVIATION", 5.5), ("FLOOR", 1e-10), ("SIZE", 400)],
)
def test_another_constant_shows(name: str, wrong: float, monkeypatch: pytest.MonkeyPatch) -> None:
    quiet = np.concatenate([clip(), np.zeros(800)])
    assert np.abs(frames_of(sounds.FrontEnd(FRAMES + 5, len(quiet)), quiet) - by_torch(quiet)).max() < 5e-5
    monkeypatch.setattr(front_end, name, wrong)
    assert np.abs(frames_of(sounds.FrontEnd(FRAMES + 5, len(quiet)), quiet) - by_torch(quiet)).max() > 1e-3


def test_drawn_sounds_are_in_range_and_not_alike() -> None:
    reads = registry.to_sound(registry.get("lmuformer").input, FRAMES, is_of_hops=False)
    drawn = [call[0] for call in inputs.draw_sounds(reads, 2)]
    assert all(x.shape == (2, SAMPLES) and 0.02 < x.abs().max() <= 1 for x in drawn)
    assert not torch.equal(drawn[0][0], drawn[0][1])
    assert not torch.equal(drawn[0], drawn[1])
    assert all(torch.equal(a, b[0]) for a, b in zip(drawn, inputs.draw_sounds(reads, 2), strict=True))


# files


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Artifact]:
    """Export lmuformer with its front end to a target, once for each set of options."""
    found: dict[Any, Artifact] = {}

    def make(target: str, **options: Any) -> Artifact:
        if missing := targets.get(target).missing_packages():
            pytest.skip(f"{target}: {', '.join(missing)} not installed")
        key = (target, *options.items())
        if key not in found:
            device = "jetson-orin-nano" if target == "tensorrt" else None
            out = tmp_path_factory.mktemp("sound")
            common = {"frames": FRAMES, "front_end": True, "device": device, "out": out, "precision": FITS[target]}
            found[key] = edgesmith.export("lmuformer", target, **{**common, **options})
        return found[key]

    return make


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """lmuformer as it is exported, without a front end: the same random weights."""
    return load(ExportOptions("lmuformer", "onnx", frames=FRAMES)).module


def logits_of(model: nn.Module, frames: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        found: np.ndarray = model(torch.from_numpy(frames).float().unsqueeze(0)).numpy()
    return found


@pytest.mark.parametrize("target", FITS)
def test_a_file_takes_sound(target: str, made: Callable[..., Artifact], model: nn.Module) -> None:
    artifact = made(target)
    manifest = artifact.manifest
    assert manifest["model"]["inputs"] == [{"name": "sound", "shape": [1, SAMPLES]}]
    assert manifest["model"]["interface"]["inputs"][0]["type"] == "float32"
    assert manifest["model"]["sound"] == {
        "rate_hz": 16000,
        "lowest": -1.0,
        "highest": 1.0,
        "samples": SAMPLES,
        "frames": FRAMES,
        "bands": 128,
    }
    assert not [name for name in manifest["operators"]["file"] if any(word in name.lower() for word in FREE_OF)]
    assert any("front end" in why for why in manifest.get("keep_fp32", {}).values()) == (FITS[target] != "fp32")
    file = targets.get(target).open(artifact.file)
    (found,) = file.run([[clip().astype(np.float32)[None]]])[0]
    expected = logits_of(model, by_torch(clip()))
    bound = 1e-5 if FITS[target] == "fp32" else 1e-2
    np.testing.assert_allclose(found, expected, rtol=0, atol=bound * np.abs(expected).max())
    page = (artifact.path / "USE.md").read_text(encoding="utf-8")
    assert f"sound of one channel at 16000 Hz, in -1..1, {SAMPLES} samples" in page
    assert artifact.path.name.endswith(f"front-end{'-jetson-orin-nano' if target == 'tensorrt' else ''}")


def test_a_wrong_file_is_found(made: Callable[..., Artifact], monkeypatch: pytest.MonkeyPatch) -> None:
    """A model with another constant answers otherwise than the file, and the file holds what it keeps."""
    artifact = made("onnx")
    assert {step["step"] for step in edgesmith.verify(artifact.path)[1]} >= {"files", "format"}
    monkeypatch.setattr(front_end, "EMPHASIS", 0.9)
    file = targets.get("onnx").open(artifact.file)
    other = sounds.hearing(
        registry.to_sound(registry.get("lmuformer").input, FRAMES, False),
        load(ExportOptions("lmuformer", "onnx", frames=FRAMES)).module,
    )
    (found,) = file.run([[clip().astype(np.float32)[None]]])[0]
    with torch.no_grad():
        wrong = other(torch.from_numpy(clip()).float().unsqueeze(0)).numpy()
    assert np.abs(found - wrong).max() > 1e-3 * np.abs(found).max()


def test_a_step_takes_hops(made: Callable[..., Artifact], model: nn.Module, tmp_path: Path) -> None:
    artifact = made("onnx", streaming=True)
    assert artifact.manifest["model"]["sound"]["samples"] == 160
    assert artifact.manifest["streaming"]["frame"]["shape"] == [1, 160]
    samples = clip(160 * FRAMES)
    session = edgesmith.StreamingSession(artifact.path)
    found = session.run(samples.astype(np.float32).reshape(1, FRAMES, 160))
    frames = by_torch(np.concatenate([np.zeros(320), samples, np.zeros(80)]))[:FRAMES]
    expected = logits_of(model, frames)  # the last prediction is that of all frames
    np.testing.assert_allclose(found[-1], expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert "160 samples (10 ms) at a time" in (artifact.path / "USE.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "why"),
    [
        (
            "casvit_xs",
            "casvit_xs reads no frames of sound and has no --front-end; lmuformer and spiking_lmuformer have",
        ),
        ("lmuformer_psmnist", "lmuformer_psmnist reads no frames of sound and has no --front-end"),
        ("ttm", "ttm reads no frames of sound and has no --front-end"),
    ],
)
def test_models_without_a_front_end_say_so(name: str, why: str) -> None:
    with pytest.raises(BadInput, match=why):
        ExportOptions(name, "onnx", front_end=True)


def test_states_of_half_precision_are_refused() -> None:
    options = {"front_end": True, "streaming": True, "deployment_target": "iOS18"}
    with pytest.raises(BadInput, match="--front-end makes its frames in fp32, and states that iOS18 keeps"):
        ExportOptions("lmuformer", "coreml", precision="fp16", **options)
    ExportOptions("lmuformer", "coreml", precision="fp32", **options)


def test_a_module_has_no_front_end() -> None:
    with pytest.raises(BadInput, match="which may read anything, and has no --front-end"):
        ExportOptions(nn.Linear(4, 4), "onnx", inputs=(torch.zeros(1, 4),), front_end=True)
