"""The LMUFormers' front end against torch's own STFT, sample by sample and as a file alone."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
from support.sounds import by_torch, sound

from edgesmith.models import front_end
from edgesmith.models.front_end import FrontEnd


def test_frames_are_those_of_torchs_stft() -> None:
    found = FrontEnd().push(sound())
    assert found.shape == (98, 128)
    np.testing.assert_allclose(found, by_torch(sound()), rtol=0, atol=1e-6)
    assert np.isfinite(FrontEnd().push(np.zeros(800))).all()


def test_frames_do_not_depend_on_how_samples_come() -> None:
    whole, stream = FrontEnd().push(sound()), FrontEnd()
    parts = np.split(sound(), sorted(np.random.default_rng(1).choice(16000, 60, replace=False)))
    np.testing.assert_array_equal(np.concatenate([stream.push(part) for part in parts]), whole)
    stream.reset()
    np.testing.assert_array_equal(stream.push(sound()), whole)


def test_another_constant_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front_end, "EMPHASIS", 0.9)
    assert np.abs(FrontEnd().push(sound()) - by_torch(sound())).max() > 1e-2


def save(path: Path, rate: int = 16000) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", "not compressed"))
        file.writeframes((sound() * 32767).astype("<i2").tobytes())
    return path


def test_it_is_one_file_for_a_board(tmp_path: Path) -> None:
    source = Path(front_end.__file__)
    ast.parse(source.read_text(encoding="utf-8"), feature_version=(3, 8))
    assert "edgesmith" not in source.read_text(encoding="utf-8")
    shutil.copy(source, tmp_path)
    save(tmp_path / "word.wav")
    command = [sys.executable, "-I", "front_end.py", "word.wav", "frames.npy"]
    subprocess.run(command, cwd=tmp_path, check=True)
    assert np.load(tmp_path / "frames.npy").shape == (98, 128)
    save(tmp_path / "word.wav", 44100)
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "wanted 16000" in done.stderr
    assert len(done.stderr.splitlines()) == 1
