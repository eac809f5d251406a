"""bf16: typed ONNX that a CPU can check although it has no kernels for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from support.lowering import lower
from torch import Tensor, nn

import edgesmith
from edgesmith.errors import VerificationFailed
from edgesmith.exporters import targets
from edgesmith.exporters.figures import measure
from edgesmith.exporters.graph.capture import Program, capture, run
from edgesmith.exporters.inputs import seeded_inputs
from edgesmith.exporters.precision.half import half
from edgesmith.exporters.precision.islands import find_islands
from edgesmith.exporters.targets._typed_onnx import OnnxFile
from edgesmith.kernels import lif


class Mixed(nn.Module):
    """Convolutions, norms, matrix products and what only moves numbers, with weights that have to be folded."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.LayerNorm(16)
        self.scale = nn.Parameter(torch.randn(32))
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x).relu().flatten(2).transpose(1, 2)  # [B, HW, 16]
        first, second = (self.norm(y) * torch.neg(self.scale[8:24])).split(8, dim=2)
        y = torch.cat((second, first.softmax(dim=1)), dim=2)
        return self.head(y.mean(dim=1))


@pytest.fixture(scope="module")
def program() -> Program:
    torch.manual_seed(0)
    return capture(Mixed().eval(), (torch.randn(2, 3, 8, 8),))


def written(program: Program, folder: Path) -> OnnxFile:
    lower("onnx", program, folder / "model.onnx", "bf16")
    return OnnxFile(folder / "model.onnx", "ONNX Runtime, CPU")


def test_file_is_bf16_throughout_and_valid(program: Program, tmp_path: Path) -> None:
    file = written(program, tmp_path)
    file.check()
    model = onnx.load(str(file.path))
    assert [opset.version for opset in model.opset_import if not opset.domain] == [22]
    assert {tensor.data_type for tensor in model.graph.initializer} <= {TensorProto.BFLOAT16, TensorProto.INT64}
    assert [node.op_type for node in model.graph.node].count("Cast") == 2
    assert {value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)} == {1}


def test_weights_are_rounded_once_to_nearest_even(tmp_path: Path) -> None:
    model = nn.Linear(4, 1, bias=False)
    with torch.no_grad():  # two ties, one below and one above the even neighbour, and one number that is exact
        model.weight.copy_(torch.tensor([[1 + 2**-8, 1 + 3 * 2**-8, 0.5, -1 - 2**-8 - 2**-20]]))
    file = written(capture(model, (torch.randn(1, 4),)), tmp_path)
    outputs = file.run([[row[None]] for row in np.eye(4, dtype=np.float32)])
    assert isinstance(outputs, list)
    assert [y.item() for (y,) in outputs] == [1.0, 1 + 2**-6, 0.5, -1 - 2**-7]


def test_its_stand_in_is_as_far_from_fp32_as_torchs_own_bf16(program: Program, tmp_path: Path) -> None:
    given = seeded_inputs(program.inputs, None, False)
    exact = [[y.numpy() for y in run(program, x)] for x in given]
    torchs = [[y.numpy() for y in run(half(program, (), torch.bfloat16), x)] for x in given]
    ours = written(program, tmp_path).run([[t.numpy() for t in x] for x in given])
    assert isinstance(ours, list)
    snr, expected = (measure(exact, outputs, 0.0).snr_db for outputs in (ours, torchs))
    assert snr is not None
    assert expected is not None
    assert 30 < expected < 60  # bf16 was at work
    assert abs(snr - expected) < 3
    assert {y.dtype for outputs in ours for y in outputs} == {np.dtype(np.float32)}


def test_results_inside_are_numbers_of_bf16(program: Program, tmp_path: Path) -> None:
    file = written(program, tmp_path)
    typed = [node.name for node in half(program, (), torch.bfloat16).module.graph.nodes if node.op == "call_function"]
    found = file.intermediate(typed, [program.inputs[0].numpy()])
    inside = {name: value for name, value in found.items() if "linear" not in name}
    assert len(inside) > 3
    for name, value in inside.items():
        assert not (value.astype(np.float32).view(np.uint32) & 0xFFFF).any(), name


def test_range_is_no_reason_for_fp32(tmp_path: Path) -> None:
    class Large(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x.sin() * 1e6).cos() + (x * 1e6) / 1e6

    program = capture(Large(), (torch.rand(2, 8),))
    assert "mul" in find_islands(program, [program.inputs], 0.0)
    assert find_islands(program, [program.inputs], -100.0, torch.bfloat16) == {}


def test_neurons_in_a_loop_are_bf16_too(tmp_path: Path) -> None:
    class Neurons(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return lif.OP.overload(x * 2, 2.0, 1.0, 0.0, True, 1)  # type: ignore[no-any-return]

    program = capture(Neurons(), (torch.rand(1, 12, 4) * 2,))
    file = written(program, tmp_path)
    file.check()
    assert file.count_operators()["Scan"] == 1
    given = seeded_inputs(program.inputs, None, False)
    torchs = [[y.numpy() for y in run(half(program, (), torch.bfloat16), x)] for x in given]
    ours = file.run([[t.numpy() for t in x] for x in given])
    assert isinstance(ours, list)
    for one, other in zip(ours, torchs, strict=True):
        np.testing.assert_array_equal(one[0], other[0])


def test_artifact_is_judged_as_bf16(tmp_path: Path) -> None:
    edgesmith_needs_tensorrt()
    torch.manual_seed(0)
    artifact = edgesmith.export(
        Mixed().eval(), "tensorrt", inputs=torch.randn(1, 3, 8, 8), device="rtx3080", precision="bf16", out=tmp_path
    )
    verification = artifact.manifest["verification"]
    assert verification["judged_as"] == "bf16"
    assert verification["thresholds"]["bf16"]["snr_db"] == 22.0
    assert artifact.manifest["engine"]["precisions"]["bf16"] > 0
    edgesmith.verify(artifact.path)


def test_a_model_that_bf16_ruins_is_refused(tmp_path: Path) -> None:
    edgesmith_needs_tensorrt()

    class Chaotic(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            for _ in range(30):
                x = 3.9 * x.sigmoid() * (1 - x.sigmoid()) * 4 - 2
                x = (x * 40).sin()
            return x

    with pytest.raises(VerificationFailed, match="eager -> file"):
        edgesmith.export(
            Chaotic(), "tensorrt", inputs=torch.randn(1, 64), device="rtx3080", precision="bf16", out=tmp_path
        )
    assert list(tmp_path.iterdir()) == []


def edgesmith_needs_tensorrt() -> None:
    if missing := targets.get("tensorrt").missing_packages():
        pytest.skip(f"tensorrt: {', '.join(missing)} not installed")
