"""Steps of causal sequence mixers: the whole sequence's numbers over 50, 512 and 4,096 frames, from one file."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import edgesmith
from edgesmith.exporters.session import StreamingSession
from edgesmith.kernels import ssd, vector_quantise
from edgesmith.kernels.op import all_ops
from edgesmith.models.longvq import DampedEma
from edgesmith.models.mamba import Mamba
from edgesmith.models.tsm2 import TokenMixer

WIDTH, LENGTHS = 4, (50, 512, 4096)


class StateSpace(nn.Module):
    """An SSD scan with projections."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.steps = nn.Linear(WIDTH, 2 * 3), nn.Linear(WIDTH, 2)
        self.register_buffer("rates", torch.tensor([-0.01, -2.0]))
        self.rates: Tensor

    def forward(self, x: Tensor) -> Tensor:
        b, c = self.rows(x).reshape(*x.shape[:2], 2, 1, 3).unbind(2)
        heads = x.reshape(*x.shape[:2], 2, -1)
        y: Tensor = ssd.OP.overload(heads, F.softplus(self.steps(x)), self.rates, b, c)
        return y.flatten(2)


class Time(nn.Module):
    """TSM2's time mixer, on the patches of one channel."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = TokenMixer(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner.mixer(self.inner.norm(x))
        return y


class Causal(nn.Module):
    """A causal depthwise convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(WIDTH, WIDTH, 4, groups=WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(F.pad(x.transpose(1, 2), (3, 0)))
        return y.transpose(1, 2)


class Codes(nn.Module):
    """Codewords instead of vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("codebook", torch.randn(7, WIDTH))
        self.codebook: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return F.embedding(vector_quantise.OP.overload(x, self.codebook), self.codebook)


MIXERS: dict[str, Any] = {
    "selective scan": lambda: Mamba(WIDTH, state=3),
    "state space": StateSpace,
    "TSM2's time mixer": Time,
    "causal convolution": Causal,
    "damped averages": lambda: DampedEma(WIDTH, 3),
    "codewords": Codes,
}
STATES = [[1, 3, 8], [1, 2, 3, 2], [1, 16, 8], [1, 4, 3]]
"""Of the scan, the state space, the time mixer and the averages; windows of convolutions come beside them."""


class Side(nn.Module):
    """All mixers on the same frames, an output of each."""

    def __init__(self) -> None:
        super().__init__()
        self.mixers = nn.ModuleList(make() for make in MIXERS.values())

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(mixer(x) for mixer in self.mixers)


def test_a_step_equals_the_sequence_and_its_states_do_not_grow(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Side().eval()
    artifact = edgesmith.export(model, "onnx", inputs=(torch.randn(1, 12, WIDTH),), streaming=True, out=tmp_path)
    shapes = [state["shape"] for state in artifact.manifest["streaming"]["states"]]
    assert all(shape in shapes for shape in STATES)
    session = StreamingSession(artifact.path)
    x = torch.randn(1, max(LENGTHS), WIDTH, generator=torch.Generator().manual_seed(1))
    steps = [session.step(frame) for frame in x[0].numpy()]
    with torch.no_grad():
        sequence = model(x)
    for i, (name, outputs) in enumerate(zip(MIXERS, sequence, strict=True)):
        found, expected = np.concatenate([step[i] for step in steps]), outputs[0].numpy()
        peak = np.abs(expected).max()
        for length in LENGTHS:  # of a causal mixer the first outputs are those of a shorter sequence
            assert np.abs(found[:length] - expected[:length]).max() <= 1e-5 * peak, (name, length)
    assert [list(state.shape) for state in session._states] == shapes


def test_every_op_with_a_recurrence_that_is_a_sequence_mixer_is_among_them() -> None:
    known = {"selective_scan", "ssd", "damped_ema", "vector_quantise"}
    others = {"lif", "lmu_memory", "leaky_sum"}  # test_streaming.py and test_spiking.py hold their streams to it
    assert {op.name for op in all_ops().values() if op.recurrence is not None} == known | others
    assert all("x" in inspect.signature(all_ops()[name].reference).parameters for name in known)
