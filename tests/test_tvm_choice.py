"""Compiled models: which kernels compute what, in what order numbers lie between them, and how long each call takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.formula import Formula
from support.lowering import lower
from torch import nn

pytest.importorskip("tvm", reason="tvm is not installed")

import edgesmith
from edgesmith import cli
from edgesmith.bench import measurement, runner
from edgesmith.exporters.artifact import Artifact
from edgesmith.exporters.graph.capture import capture
from edgesmith.exporters.targets import _tvm_compile, _tvm_graph, _tvm_library, _tvm_processor, _tvm_schedule
from edgesmith.kernels import lif
from edgesmith.models import casvit


class Sequences(nn.Module):
    """Layers over time: each looks at its maps channels first, and what fires goes into the next two."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(9, 33, 3, padding=1), nn.Conv1d(33, 40, 3, padding=1)
        self.norm = nn.BatchNorm1d(40)
        self.left, self.right = nn.Conv1d(40, 21, 3, padding=1), nn.Linear(40, 21)
        self.last = nn.Conv1d(21, 5, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.second(F.relu(self.first(x))))
        fired: torch.Tensor = lif.OP.overload(4 * x, 2.0, 0.5)
        x = self.last(F.gelu(self.left(fired) + self.right(fired.transpose(1, 2)).transpose(1, 2)))
        return x.mean(2)


class Maps(nn.Module):
    """Groups of channels, and pixels that lie apart."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 18, 4, stride=4)
        self.grouped = nn.Conv2d(18, 36, 3, padding=1, groups=3)
        self.spread = nn.Conv2d(36, 36, 3, dilation=2, groups=36)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.spread(F.silu(self.grouped(self.patches(image))))


class Last(nn.Module):
    """A layer that leaves one pixel: its stride is 2 all the same."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 18, 3, stride=2, padding=1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return F.gelu(self.layer(image))


class Residuals(nn.Module):
    """Three residuals, each of which a kernel adds."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.block = nn.Conv2d(3, 20, 4, stride=4), casvit.AdditiveBlock(20, 2)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x: torch.Tensor = self.block(self.patches(image))
        return x.mean((2, 3))


class Attention(nn.Module):
    """Products of two values, and a softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(36, 108), nn.Linear(36, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, 2, 18)).permute(2, 0, 3, 1, 4)
        x = (q @ k.transpose(-1, -2) * 0.2).softmax(-1) @ v
        return self.out(x.transpose(1, 2).flatten(2))


def kinds(artifact: Artifact) -> list[str]:
    return [kind for _, kind in _tvm_library.read(artifact.file).description.calls]


@pytest.fixture(scope="module")
def sequences(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    torch.manual_seed(0)
    model, x = Sequences().eval(), torch.randn(2, 9, 26)
    return edgesmith.export(model, "tvm", inputs=x, name="sequences", out=tmp_path_factory.mktemp("tvm"))


def test_operators_of_single_numbers_come_before_arrangements(sequences: Artifact) -> None:
    """Between two layers nothing is turned: relu and the norm are in layers, neurons run over the axis of the time."""
    assert sequences.manifest["verification"]["steps"][-1]["relative_error"] <= 2e-6
    found = kinds(sequences)
    begin, end = found.index("convolution"), len(found) - 1 - found[::-1].index("convolution")
    assert found[begin : begin + 3] == ["convolution", "winograd", "lif"]
    assert found[begin + 3 : end].count("spikes") == 2
    lanes = next(symbol for symbol, kind in _tvm_library.read(sequences.file).description.calls if kind == "lif")
    assert "2x26x40" in lanes  # not 80x26x1, one neuron after the other
    assert not [kind for kind in found[begin:] if "transpose" in kind]
    assert "mean" in found


@pytest.mark.parametrize(
    ("model", "shape", "expected"),
    [
        (Maps, (1, 3, 28, 28), {"convolution", "depthwise"}),
        (Last, (1, 3, 2, 2), {"convolution"}),
        (Residuals, (1, 3, 24, 20), {"pointwise", "depthwise", "additive attention"}),
        (Attention, (2, 25, 36), {"pointwise", "matmul", "softmax"}),
    ],
)
def test_every_product_is_a_kernel(
    model: type[nn.Module], shape: tuple[int, ...], expected: set[str], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    made = edgesmith.export(model().eval(), "tvm", inputs=torch.randn(shape), name="seen", out=tmp_path)
    assert made.manifest["verification"]["steps"][-1]["relative_error"] <= 2e-6
    assert made.manifest["details"]["macs"]["tvm"] == 0
    assert expected <= set(kinds(made))
    assert not [kind for kind in kinds(made) if "add" in kind.split()]


def test_vectors_of_loops_leave_no_rest() -> None:
    assert [_tvm_schedule._lanes(extent) for extent in (7, 48, 104, 220, 49)] == [7, 16, 8, 4, 16]


@pytest.mark.parametrize("kind", ["where", "maximum"])
def test_values_read_twice_are_not_computed_again_and_again(kind: str) -> None:
    steps = {
        "where": lambda x: torch.where(x > 0.1, x * 0.9, x.abs() * 0.4),
        "maximum": lambda x: torch.maximum(x, x.flip(1)) * 0.5 + torch.minimum(x, x.flip(1)) * 0.4,
    }

    class Chain(nn.Module):
        def __init__(self, length: int) -> None:
            super().__init__()
            self.length = length

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for _ in range(self.length):
                x = steps[kind](x)
            return x

    few, many = (_loads_of(Chain(length)) for length in (4, 12))
    assert many <= 4 * few


def _loads_of(model: nn.Module) -> int:
    """The places at which the loops of a compiled model read a number."""
    program = capture(model, (torch.randn(1, 6, 4),))
    lowered = _tvm_graph.lower(program, "tvm", _tvm_processor.here())
    scheduled = [_tvm_schedule.schedule(one, symbol) for symbol, one in lowered.functions.items()]
    return sum(len(_tvm_schedule._found_in(one.body, "TensorLoad")) for one in scheduled)


def test_threads_change_no_bit(sequences: Artifact) -> None:
    outputs = []
    for threads in (1, 3):
        said, bind = runner.load_compiled(str(sequences.file), threads)
        given, made = runner.arrays_compiled(said, 0)
        bind(given, made)()
        outputs.append(made[0])
    assert np.array_equal(*outputs)
    with pytest.raises(runner.Refusal, match="1 to 64 threads"):
        runner.load_compiled(str(sequences.file), 65)


def test_bench_ops_times_every_call(sequences: Artifact, tmp_path: Path) -> None:
    record = tmp_path / "record.json"
    options = ["--seconds", "0.1", "--launches", "1", "--threads", "2", "--out", str(record)]
    assert cli.run(["bench", str(sequences.path), "--ops", *options]) == 0
    kept = measurement.read(record).subjects[0].profile
    assert kept is not None
    assert [one.op for one in kept.operators] == kinds(sequences)
    assert 0 < sum(one.ms for one in kept.operators) <= 1.5 * kept.call_ms


SHARED = {
    "sum": (lambda x, y: (x + y) * x, (1, 64, 48, 48)),
    "of one channel": (lambda x, y: torch.exp(x) - y, (1, 1, 192, 192)),
    "turned": (lambda x, y: (x.transpose(1, 3) * y.transpose(1, 3)).sigmoid(), (2, 33, 34, 48)),
    "of few channels": (lambda x, y: torch.maximum(x, y[:, :, :1]) + 1, (1, 3, 96, 96)),
}


@pytest.mark.parametrize("name", SHARED)
def test_long_loops_are_shared(name: str, tmp_path: Path) -> None:
    """Elementwise loops that are long: each number is made once, whichever thread makes it."""
    formula, shape = SHARED[name]
    generator = torch.Generator().manual_seed(0)
    given = tuple(torch.randn(*shape, generator=generator) for _ in range(2))
    program = capture(Formula(formula), given, ("x", "y"))
    lowered = _tvm_graph.lower(program, "tvm", _tvm_processor.here())
    assert max(call.tasks for call in _tvm_compile.compile_loops(lowered, tmp_path / "loops.o").calls) > 1
    path = tmp_path / "shared.so"
    lower("tvm", program, path)
    expected = formula(*given).numpy()
    for threads in (1, 2, 3):
        _, bind = runner.load_compiled(str(path), threads)
        made = np.full(expected.shape, np.nan, np.float32)
        bind([value.numpy() for value in given], [made])()
        np.testing.assert_allclose(made, expected, rtol=2e-6, atol=2e-6)


def test_short_loops_are_the_callers() -> None:
    program = capture(Formula(lambda x, y: x + y), (torch.randn(1, 8, 4, 4), torch.randn(1, 8, 4, 4)), ("x", "y"))
    lowered = _tvm_graph.lower(program, "tvm", _tvm_processor.here())
    (function,) = [_tvm_schedule.schedule(one, symbol) for symbol, one in lowered.functions.items()]
    assert _tvm_schedule.TASKS not in str(function)
