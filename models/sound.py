"""The front end of front_end.py as a module: sound to log mel frames inside of an exported graph.

All that happens to the samples of one frame before the squares is linear: its mean off, pre-emphasis, Hann window and
discrete Fourier transform. So it is one matrix [512, 400], made in float64, and framing a strided convolution by it:

    (re, im)   conv1d(sound, kernel, stride 160)                 256 frequencies, the highest one has no weight
    energies   conv1d of width 1 (re^2, im^2), bands twice
    frames     (log max(energies, 2^-23) + 6.845978) / (2 * 5.5654526)

There is no FFT, no complex number and no window of a runtime's own, so every target takes it. The maths and its source
are in front_end.py. Letters: B batch, N samples, T frames, K frequencies.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgesmith.models import front_end
from edgesmith.models.registry import SoundInput

BLANK = -front_end.MEAN / (2 * front_end.DEVIATION)
"""A frame that the authors pad a short sound with: they pad with 0 and normalise then."""


def analysis() -> np.ndarray:
    """Return the matrix that takes the samples of a frame to its spectrum, real parts first. [2 K, LENGTH]"""
    length, size = front_end.LENGTH, front_end.SIZE
    n, k = np.arange(length), np.arange(size // 2)[:, None]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * n / (length - 1))
    emphasis = np.eye(length) - front_end.EMPHASIS * np.eye(length, k=-1)
    emphasis[0, 0] -= front_end.EMPHASIS  # before the first sample comes the first
    angle = 2 * np.pi * k * n / size
    spectrum = np.concatenate([np.cos(angle), -np.sin(angle)]) * window
    kernel: np.ndarray = spectrum @ emphasis @ (np.eye(length) - 1 / length)
    return kernel


class FrontEnd(nn.Module):
    """Sound to normalised log mel frames. [B, N] -> [B, T, BANDS]

    Args:
        frames: T; the sound's own frames are padded to it with `BLANK`.
        samples: N, which make T frames or fewer.
    """

    def __init__(self, frames: int, samples: int) -> None:
        super().__init__()
        self.kernel: Tensor
        self.bands: Tensor
        self.missing = frames - ((samples - front_end.LENGTH) // front_end.SHIFT + 1)
        self.register_buffer("kernel", torch.from_numpy(analysis()).float().unsqueeze(1))
        bands = np.tile(front_end.mel_bands()[:, : front_end.SIZE // 2], 2)
        self.register_buffer("bands", torch.from_numpy(bands).float().unsqueeze(2))

    def forward(self, sound: Tensor) -> Tensor:
        frames = self.to_frames(F.conv1d(sound.unsqueeze(1), self.kernel, stride=front_end.SHIFT))
        if self.missing:
            frames = F.pad(frames, (0, self.missing), value=BLANK)
        return frames.transpose(1, 2)

    def to_frames(self, spectrum: Tensor) -> Tensor:
        """Return the frames of spectra. [B, 2 K, T] -> [B, BANDS, T]"""
        energies = F.conv1d(spectrum * spectrum, self.bands)
        logs = energies.clamp(min=front_end.FLOOR).log()
        return (logs - front_end.MEAN) / (2 * front_end.DEVIATION)


class FrontEndOfHops(FrontEnd):
    """The same of hops, for a step: a frame ends with the hop that completes it. [B, T, SHIFT] -> [B, T, BANDS]

    Before the first hop is silence. The last 80 samples of three hops are no part of a frame of 400, so it is the one
    that begins with the first of the three.
    """

    def __init__(self, frames: int) -> None:
        super().__init__(frames, front_end.SHIFT * frames + front_end.LENGTH - front_end.SHIFT)
        hops = -(-front_end.LENGTH // front_end.SHIFT)
        padded = F.pad(self.kernel, (0, hops * front_end.SHIFT - front_end.LENGTH))
        self.kernel = padded.reshape(-1, hops, front_end.SHIFT).transpose(1, 2).contiguous()

    def forward(self, hops: Tensor) -> Tensor:
        before = F.pad(hops.transpose(1, 2), (self.kernel.shape[2] - 1, 0))
        return self.to_frames(F.conv1d(before, self.kernel)).transpose(1, 2)


class Hearing(nn.Module):
    """A model behind its front end. [B, N], or [B, T, SHIFT] of hops, to the model's outputs."""

    def __init__(self, ears: FrontEnd, model: nn.Module) -> None:
        super().__init__()
        self.front_end = ears
        self.model = model

    def forward(self, sound: Tensor) -> Tensor:
        outputs: Tensor = self.model(self.front_end(sound))
        return outputs


def hearing(reads: SoundInput, model: nn.Module) -> Hearing:
    """Return a model behind its front end, in eval mode as it is."""
    frames = reads.shape[0]
    return Hearing(FrontEndOfHops(frames) if reads.is_of_hops else FrontEnd(frames, reads.samples), model).eval()
