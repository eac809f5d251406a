"""int8 between layers: what is rounded, what ONNX Runtime makes of it, and when nothing is joined."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import edgesmith
from edgesmith.cli.rows import _describe_int8
from edgesmith.exporters.graph.capture import capture
from edgesmith.exporters.precision import int8
from edgesmith.exporters.precision.int8 import find_layers
from edgesmith.exporters.precision.int8_joined import find_rounded

pytestmark = pytest.mark.filterwarnings("ignore::edgesmith.exporters.precision.calibration.RandomCalibration")


class Gated(nn.Module):
    """Parts, gates of pixels and of channels, sums, ReLUs; and a GELU, which no runtime has in integers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.parts = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 32, 1)
        self.pixels, self.channels = nn.Conv2d(16, 1, 1), nn.Conv2d(16, 16, 1)
        self.wide, self.back = nn.Conv2d(16, 48, 1), nn.Conv2d(48, 16, 1)

    def forward(self, image: Tensor) -> Tensor:
        x = torch.relu(self.stem(image))
        one, other = self.parts(x).chunk(2, 1)
        one = one * self.pixels(other).sigmoid()
        one = one * self.channels(one.mean((2, 3), keepdim=True)).sigmoid()
        x = x + one
        return x + self.back(nn.functional.gelu(self.wide(x)))


class Normed(nn.Module):
    """A norm as arithmetic behind a layer: its products are not between layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        centred = y - y.mean(-1, keepdim=True)
        return self.second(centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + 1e-5))


def rounded_in(model: nn.Module, x: Tensor) -> list[str]:
    """Return the operators whose results are rounded."""
    program = capture(model.eval(), (x,), ["x"])
    found = find_rounded(program.module, find_layers(program.module))
    return [str(node.target).removeprefix("aten.").partition(".")[0] for node in found]


def export(model: nn.Module, x: Tensor, folder: Path) -> edgesmith.Artifact:
    return edgesmith.export(model, "onnx", inputs=x, precision="int8", out=folder, name="model")


def run_optimised(file: Path, x: Tensor, folder: Path) -> tuple[Counter[str], Sequence[Any]]:
    """Return the operators that ONNX Runtime runs, and what comes of it."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    kinds = Counter(node.op_type for node in onnx.load(folder / "optimised.onnx").graph.node)
    return kinds, session.run(None, {session.get_inputs()[0].name: x.numpy()})


def test_every_layer_is_a_kernel_for_integers(tmp_path: Path) -> None:
    """Conversions are left around the GELU and at the ends, where the last sum reads two."""
    model, x = Gated().eval(), torch.randn(1, 3, 16, 16)
    artifact = export(model, x, tmp_path)
    assert artifact.manifest["int8"]["joined"] is True
    kinds, (y,) = run_optimised(artifact.file, x, tmp_path)
    assert kinds["QLinearConv"] == 6
    assert not kinds["Conv"] + kinds["FusedConv"]
    assert {
        "QLinearMul": 2,
        "QLinearSigmoid": 2,
        "QLinearAdd": 1,
        "QLinearGlobalAveragePool": 1,
    }.items() <= kinds.items()
    assert (kinds["QuantizeLinear"], kinds["DequantizeLinear"]) == (2, 3)
    wanted = model(x).detach().numpy()
    assert 10 * np.log10((wanted**2).sum() / ((wanted - y) ** 2).sum()) > 30


def test_values_that_are_never_negative_have_all_numbers_for_them(tmp_path: Path) -> None:
    file = onnx.load(export(Gated().eval(), torch.randn(1, 3, 16, 16), tmp_path).file)
    constants = {one.name: onnx.numpy_helper.to_array(one) for one in file.graph.initializer}
    zeros = [constants[node.input[2]] for node in file.graph.node if node.op_type == "QuantizeLinear"]
    assert all(zero.dtype == np.uint8 for zero in zeros)
    relus = {node.output[0] for node in file.graph.node if node.op_type in ("Relu", "Sigmoid")}
    behind = [
        int(constants[n.input[2]]) for n in file.graph.node if n.op_type == "QuantizeLinear" and n.input[0] in relus
    ]
    assert behind == [0] * 3
    assert {int(zero) for zero in zeros} == {0, 128}


def test_what_only_a_relu_reads_is_not_rounded() -> None:
    found = Counter(rounded_in(Gated(), torch.randn(1, 3, 16, 16)))
    assert found["conv2d"] == 5  # of six layers, but for the one in front of a ReLU
    assert found["relu"] == 1
    assert found["<built-in function getitem>"] == 2


def test_arithmetic_of_a_norm_is_not_joined() -> None:
    assert rounded_in(Normed(), torch.randn(4, 8)) == ["x", "linear", "mul"]


def test_nothing_is_joined_where_outputs_are_too_near_to_what_is_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only layers' inputs are rounded then, with a sign, as TensorRT takes them; the table says what that costs."""
    monkeypatch.setattr(int8, "JOIN_MARGIN_DB", 100.0)
    artifact = export(Gated().eval(), torch.randn(1, 3, 16, 16), tmp_path)
    assert artifact.manifest["int8"]["joined"] is False
    file = onnx.load(artifact.file)
    constants = {one.name: onnx.numpy_helper.to_array(one) for one in file.graph.initializer}
    zeros = [constants[node.input[2]] for node in file.graph.node if node.op_type == "QuantizeLinear"]
    assert len(zeros) == 6
    assert all(zero.dtype == np.int8 and not zero for zero in zeros)
    shown = _describe_int8(artifact.manifest["int8"])
    assert "floats between layers (in ONNX Runtime such files are slower than fp32)" in shown
