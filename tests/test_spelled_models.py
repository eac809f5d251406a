"""Models that reach a target by what we spell ourselves: recurrent layers, short-time transforms, token shifts, inputs.

The files are held to PyTorch on the inputs that have gone wrong: zeros, quiet and loud rows, edges.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.formula import Formula
from support.lowering import lower
from test_decompositions import ALL, APPLES, ROWS, X, Y, assert_equal, run_file
from torch import Tensor, nn

import edgesmith
from edgesmith.exporters.decompositions import decomposes
from edgesmith.exporters.graph.capture import capture
from edgesmith.exporters.rewrites.order import rewrite
from edgesmith.exporters.session import StreamingSession
from edgesmith.exporters.targets import get
from edgesmith.exporters.targets.target import TargetFile

aten = torch.ops.aten


def _drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def _file(model: nn.Module, inputs: tuple[Tensor, ...], target: str, folder: Path, **how: object) -> TargetFile:
    program, _ = rewrite(capture(model, inputs), get(target).costs)
    return lower(target, program, folder / f"m{get(target).suffix}", **how)  # type: ignore[arg-type]  # of `lower`


def _hold(model: nn.Module, inputs: tuple[Tensor, ...], target: str, precision: str = "fp32", **how: float) -> None:
    """Hold a model's file to the model."""
    model = model.eval()
    with torch.no_grad():
        wanted = torch.utils._pytree.tree_leaves(model(*inputs))
    for got, want in zip(run_file(model, inputs, target, precision), wanted, strict=True):
        assert_equal(got, want, **how)


class Recurrent(nn.Module):
    """A recurrent layer with given initial states."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, *states: Tensor) -> object:
        return self.layer(x, states if len(states) > 1 else states[0]) if states else self.layer(x)


LAYERS = {
    "lstm": (nn.LSTM, {"batch_first": True}),
    "lstm_both_ways": (nn.LSTM, {"num_layers": 2, "bidirectional": True, "bias": False}),
    "gru": (nn.GRU, {"batch_first": True}),
    "gru_both_ways": (nn.GRU, {"num_layers": 2, "bidirectional": True}),
    "rnn": (nn.RNN, {"batch_first": True}),
    "rnn_relu_both_ways": (nn.RNN, {"num_layers": 2, "bidirectional": True, "nonlinearity": "relu"}),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("target", APPLES)
def test_a_recurrent_layer_is_pytorchs(name: str, target: str) -> None:
    kind, options = LAYERS[name]
    torch.manual_seed(0)
    layer = kind(3, 4, **options)
    states: tuple[Tensor, ...] = ()
    if "both_ways" not in name:
        states = (_drawn(1, 2, 4),) * (2 if kind is nn.LSTM else 1)
    _hold(Recurrent(layer), (_drawn(2, 5, 3), *states), target)


def test_recurrent_layers_are_core_mls_own(tmp_path: Path) -> None:
    x = _drawn(5, 2, 3)
    assert _file(nn.LSTM(3, 4), (x,), "coreml", tmp_path).count_operators()["lstm"] == 1
    (tmp_path / "gru").mkdir()
    newer = _file(nn.GRU(3, 4), (x,), "coreml", tmp_path / "gru", deployment_target="iOS18")
    assert newer.count_operators()["gru"] == 1


@pytest.mark.parametrize("deployment_target", ["iOS17", "iOS18"])
def test_a_gru_resets_after_the_product_on_every_system(tmp_path: Path, deployment_target: str) -> None:
    torch.manual_seed(0)
    layer, x = nn.GRU(3, 4), _drawn(5, 2, 3)
    file = _file(layer, (x,), "coreml", tmp_path, deployment_target=deployment_target)
    got = file.run([[x.numpy()]])
    assert isinstance(got, list)
    for one, wanted in zip(got[0], layer(x), strict=True):
        assert_equal(one, wanted)


WINDOW = torch.hann_window(20)


def _spectrum(x: Tensor) -> Tensor:
    """A window shorter than the frame, zeros around the signal."""
    spectrum = torch.stft(x, 32, 8, 20, WINDOW, pad_mode="constant", return_complex=True)
    return torch.view_as_real(spectrum)


def _by_hand(x: Tensor) -> Tensor:
    """The same by windows of the padded signal."""
    frames = F.pad(x, (16, 16)).unfold(-1, 32, 8) * F.pad(WINDOW, (6, 6))
    return torch.view_as_real(torch.fft.rfft(frames)).transpose(1, 2)


def _there_and_back(x: Tensor) -> Tensor:
    window = torch.hann_window(32)
    return torch.istft(torch.stft(x, 32, 8, window=window, return_complex=True), 32, 8, window=window, length=150)


def _mel(x: Tensor) -> Tensor:
    """The logarithm of a filter bank over a power spectrum, as speech models begin."""
    power = torch.stft(x, 32, 12, window=torch.hann_window(32), normalized=True, return_complex=True).abs() ** 2
    bank = torch.linspace(0, 1, 17 * 5).reshape(5, 17)
    return torch.log(torch.matmul(bank, power).clamp(min=1e-5))


TRANSFORMS = {
    "stft": _spectrum,
    "by_hand": _by_hand,
    "istft": _there_and_back,
    "mel": _mel,
    "two_sided": lambda x: torch.stft(
        x, 16, 8, window=torch.ones(16), center=False, onesided=False, return_complex=True
    ).abs(),
    "magnitude": lambda x: torch.fft.rfft(x[:, :16]).abs(),
    "angle": lambda x: torch.fft.fft(x[:, :8]).angle()[:, 1:4],
}


@pytest.mark.parametrize("target", ALL)
def test_short_time_transforms_are_pytorchs(target: str) -> None:
    inputs = (torch.cat([_drawn(1, 160), _drawn(1, 160) * 1e-2]),)
    _hold(
        Formula(lambda x: [transform(x) for transform in TRANSFORMS.values()]),
        inputs,
        target,
        tolerance=5e-5,
        least=2e-5,
    )


def test_both_spellings_of_a_short_time_transform_are_the_same_matmuls() -> None:
    x = _drawn(2, 160)
    counts = []
    for spelling in (_spectrum, _by_hand):
        program, _ = rewrite(capture(Formula(spelling), (x,)), get("coreml").costs)
        counts.append(sum(node.target is aten.matmul.default for node in program.module.graph.nodes))
    assert counts[0] == counts[1] == 2


@pytest.mark.parametrize("target", ["coreml", "onnx"])
def test_rms_norm_holds_on_zeros_and_quiet_rows(target: str, tmp_path: Path) -> None:
    norm = nn.RMSNorm(32, eps=1e-6)
    made = edgesmith.export(nn.Sequential(norm), target, inputs=(ROWS[:2],), precision="fp32", out=tmp_path, name="rms")
    padded = torch.cat([ROWS[:1], ROWS[:1] * 0])
    for x in (ROWS[:2], padded, ROWS[:2] * 1e-3):
        got = get(target).open(made.file).run([[x.numpy()]])
        assert isinstance(got, list)
        assert_equal(got[0][0], norm(x))


@pytest.mark.parametrize("eps", [1e-3, 1e-6, 1e-12])
def test_rms_norm_holds_in_half_precision(eps: float) -> None:
    """A square of a quiet row is below the smallest number of fp16, and that of a loud one beyond the largest."""
    rows = torch.cat([ROWS[:4], ROWS[4:5] * 30, ROWS[5:] * 3])
    _hold(nn.RMSNorm(32, eps=eps), (rows.half().float(),), "coreml", "fp16", tolerance=4e-3, least=1e-3)


@pytest.mark.parametrize("target", ALL)
def test_an_exported_atan2_is_in_its_quadrant(target: str, tmp_path: Path) -> None:
    made = edgesmith.export(Formula(torch.atan2), target, inputs=(Y, X), precision="fp32", out=tmp_path, name="angle")
    got = get(target).open(made.file).run([[Y.numpy(), X.numpy()]])
    assert isinstance(got, list)
    assert_equal(got[0][0], torch.atan2(Y, X))


@pytest.mark.parametrize("target", APPLES)
def test_outputs_may_be_inputs_constants_and_twice_the_same(target: str) -> None:
    def model(x: Tensor) -> list[Tensor]:
        y = x + 1
        return [x, y, y, torch.ones(2), torch.positive(x)]

    _hold(Formula(model), (_drawn(2, 3),), target)


def test_inputs_may_be_numbers_truth_values_and_bytes(tmp_path: Path) -> None:
    inputs = (torch.tensor(2.5), torch.tensor([[True, False, True]]), torch.tensor([[0, 255, 7]], dtype=torch.uint8))

    def model(scale: Tensor, mask: Tensor, picture: Tensor) -> Tensor:
        return torch.where(mask, picture.float() / 255, -1.0) * scale

    _hold(Formula(model), inputs, "coreml")
    made = edgesmith.export(Formula(model), "coreml", inputs=inputs, precision="fp32", out=tmp_path, name="odd")
    assert [one["shape"] for one in made.manifest["model"]["inputs"]] == [[1], [1, 3], [1, 3]]


class Shifted(nn.Module):
    """A mix of each token with the one before, a gate, and a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 8)

    def forward(self, x: Tensor) -> Tensor:
        before = F.pad(x, (0, 0, 1, -1))
        return F.glu(self.layer(0.7 * x + 0.3 * before), -1)


def test_gates_and_token_shifts_stream(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Shifted().eval(), _drawn(1, 7, 6)
    made = edgesmith.export(model, "onnx", inputs=(x,), streaming=True, precision="fp32", out=tmp_path, name="shift")
    frames = np.stack(StreamingSession(made.path).run(x.numpy()), axis=1)
    assert_equal(frames, model(x))


def test_an_operator_has_one_spelling_for_a_target() -> None:
    with pytest.raises(ValueError, match=r"spells aten\.atan2\.default for these targets already"):
        decomposes(aten.atan2.default, targets=("coreml",), why="again")(lambda y, x: y)


def test_the_comparison_sees_a_planted_fault() -> None:
    x = ROWS
    wanted = F.rms_norm(x, (32,), eps=1e-6)
    for fault in (wanted * 1.001, wanted.nan_to_num() + (x == 0) * 1e-3, torch.where(x == 0, torch.nan, wanted)):
        with pytest.raises(AssertionError):
            assert_equal(np.asarray(fault), wanted)
