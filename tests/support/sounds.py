"""A sound, and the LMUFormers' frames of it by torch.stft, written by themselves."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch
from torch import Tensor


def sound(seconds: float = 1.0) -> np.ndarray:
    t = np.arange(int(16000 * seconds)) / 16000
    noise = np.random.default_rng(0).standard_normal(len(t))
    chirp = np.sin(2 * np.pi * (200 + 1500 * t) * t)
    return 0.3 * chirp + 0.01 * noise + 0.05


@cache
def triangles() -> Tensor:
    """The weight of each frequency in each band, one by one. [256, 128]"""
    low, high = (1127 * math.log(1 + hertz / 700) for hertz in (20, 8000))
    step = (high - low) / 129
    at = [(1127 * math.log(1 + k * 31.25 / 700) - low) / step for k in range(256)]
    rows = [[max(0.0, min(one - band, 2 - one + band)) for band in range(128)] for one in at]
    return torch.tensor(rows, dtype=torch.float64)


def by_torch(samples: np.ndarray) -> np.ndarray:
    """The same frames by torch.stft, and triangles drawn one by one."""
    x = torch.from_numpy(samples).unfold(0, 400, 160)
    x = x - x.mean(1, keepdim=True)
    y = x - 0.97 * torch.cat([x[:, :1], x[:, :-1]], 1)
    window = torch.hann_window(400, periodic=False, dtype=torch.float64)
    padded = torch.nn.functional.pad(y, (56, 56))  # torch puts the window into the middle of the transform
    power = torch.stft(padded, 512, 512, 400, window, center=False, return_complex=True)[..., 0].abs() ** 2
    energies = power[:, :256] @ triangles()
    return ((energies.clamp(min=torch.finfo(torch.float32).eps).log() + 6.845978) / (2 * 5.5654526)).numpy()
