"""What stays fp32 in half precision, and how few casts that takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import edgesmith
from edgesmith.exporters.figures import measure
from edgesmith.exporters.graph.capture import Program, capture, run
from edgesmith.exporters.inputs import seeded_inputs
from edgesmith.exporters.precision.half import half
from edgesmith.exporters.precision.islands import find_islands
from edgesmith.exporters.precision.table import FP16
from edgesmith.exporters.targets import _typed_onnx
from edgesmith.exporters.targets.target import Request


def program_of(function: object, *inputs: Tensor) -> Program:
    class Module(nn.Module):
        def forward(self, *values: Tensor) -> Tensor:
            return function(*values)  # type: ignore[operator,no-any-return]

    return capture(Module(), inputs)


def casts(program: Program) -> list[torch.dtype]:
    return [n.kwargs["dtype"] for n in program.module.graph.nodes if n.target is torch.ops.aten._to_copy.default]


def typed_onnx(program: Program, kept: dict[str, str], path: Path) -> tuple[list[str], float]:
    """The cast nodes of the typed ONNX, and its SNR in ONNX Runtime against the program in fp32, in dB."""
    _typed_onnx.lower(half(program, kept), path, Request("model", FP16))
    kinds = [node.name for node in onnx.load(str(path)).graph.node if node.op_type == "Cast"]
    given = seeded_inputs(program.inputs, None, False)
    reference = [[y.numpy() for y in run(program, x)] for x in given]
    outputs = _typed_onnx.OnnxFile(path, "ONNX Runtime").run([[t.numpy() for t in x] for x in given])
    assert isinstance(outputs, list)
    snr = measure(reference, outputs, 0.0).snr_db
    return kinds, float("inf") if snr is None else snr


def test_nothing_stays_fp32_where_half_precision_is_good_enough(small_program: Program) -> None:
    given = seeded_inputs(small_program.inputs, None, False)[:1]
    assert find_islands(small_program, given, 40.0) == {}
    assert casts(half(small_program)) == [torch.float16, torch.float32]


def test_a_norm_whose_squares_add_up_beyond_half_is_an_island_of_two_casts(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.GroupNorm(1, 64), nn.Conv2d(64, 8, 1)).eval()
    with torch.no_grad():
        model[0].weight.mul_(4)
    program = capture(model, (torch.randn(1, 3, 64, 64),))
    found = find_islands(program, [program.inputs], 40.0)
    assert list(found) == ["group_norm"]
    assert "group_norm at 1 makes" in found["group_norm"]
    assert "half precision ends at 65504" in found["group_norm"]
    kinds, snr = typed_onnx(program, found, tmp_path / "model.onnx")
    assert len(kinds) == 4
    assert snr >= 40


@pytest.mark.parametrize(("scale", "kept"), [(5.0, ["layer_norm"]), (1.0, [])])
def test_a_layer_norm_over_several_axes_adds_up_the_squares_of_all_of_them(scale: float, kept: list[str]) -> None:
    """Of 64 rows each, whose own squares half precision can add up: only their sum leaves its range."""
    x = scale * torch.randn(1, 64, 64, generator=torch.Generator().manual_seed(0))
    program = capture(nn.LayerNorm((64, 64)), (x,))
    squares = x.double().square()
    assert squares.sum(-1).max() < 65504 / 10
    assert (squares.sum((-1, -2)) > 65504).all() == bool(kept)
    found = find_islands(program, [program.inputs], 40.0)
    assert list(found) == kept
    assert all("makes 1.01e+05, and half precision ends at 65504" in reason for reason in found.values())


def test_what_makes_and_what_reads_a_value_beyond_half_is_one_island() -> None:
    program = program_of(lambda x: ((x.sin() * 1e3 * 1e3) / 1e3 / 1e3).cos(), torch.rand(2, 8) + 0.5)
    found = find_islands(program, [program.inputs], 40.0)
    assert list(found) == ["mul_1", "div"]
    assert "makes" in found["mul_1"]
    assert "reads" in found["div"]
    typed = half(program, found)
    # in, out of half for the island, back, out: none between mul_1 and div
    assert casts(typed) == [torch.float16, torch.float32, torch.float16, torch.float32]
    (exact,), (value,) = run(program, program.inputs), run(typed, program.inputs)
    assert value.dtype == torch.float32
    assert float((value - exact).abs().max()) < 2e-3


def test_an_operator_that_loses_the_signal_stays_fp32_with_what_makes_its_operands() -> None:
    program = program_of(lambda x: (x.sin() + 100) - 100, torch.rand(2, 64) + 0.5)
    found = find_islands(program, [program.inputs], 55.0)
    assert "sub" in found or "add" in found
    assert all("loses" in reason for reason in found.values())
    (exact,), (value,) = run(program, program.inputs), run(half(program, found), program.inputs)
    snr = measure([[exact.numpy()]], [[value.numpy()]], 0.0).snr_db
    assert snr is not None
    assert snr >= 55


def test_an_operator_in_fp32_reads_inputs_and_weights_unrounded() -> None:
    program = capture(nn.Linear(4, 4), (torch.randn(2, 4),))
    typed = half(program, ["linear"])
    assert casts(typed) == []
    assert torch.equal(run(typed, program.inputs)[0], run(program, program.inputs)[0])


def test_all_results_of_an_operator_in_fp32_are_fp32() -> None:
    program = program_of(lambda x: sum(part.cos() for part in x.sin().split(2, dim=1)), torch.rand(2, 4))
    split = next(node.name for node in program.module.graph.nodes if "split" in node.name)
    typed = half(program, [split])
    (exact,), (value,) = run(program, program.inputs), run(typed, program.inputs)
    assert float((value - exact).abs().max()) < 5e-3
    assert casts(typed).count(torch.float32) == 2  # into the island, and at the end


@pytest.mark.slow
def test_affnet_at_its_own_size_keeps_large_norms_fp32_with_two_casts_an_island(tmp_path: Path) -> None:
    _, program, _ = edgesmith.explain("affnet_et", "tensorrt")
    found = find_islands(program, seeded_inputs(program.inputs, None, False)[:2], 40.0)
    assert found
    assert all(name.startswith("group_norm") for name in found)
    kinds, snr = typed_onnx(program, found, tmp_path / "model.onnx")
    assert len(kinds) == 2 + 2 * len(found)
    assert snr >= 40
    assert np.isfinite(snr)


class Shares(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return nn.functional.normalize(x, dim=-1), x / (x.square().sum(-1, keepdim=True) + 1e-10)


class Single(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return torch.quantile(x, 0.3, dim=1), nn.functional.cosine_similarity(x, x.flip(1), dim=1)


def test_what_keeps_a_divisor_from_zero_does_so_in_half_precision(tmp_path: Path) -> None:
    made = edgesmith.export(Shares(), "onnx", inputs=(torch.randn(2, 8),), precision="fp16", out=tmp_path)
    assert "zeros" in [call["kind"] for call in made.manifest["verification"]["inputs"]["calls"]]


def test_operators_without_a_form_in_half_precision_stay_fp32(tmp_path: Path) -> None:
    program = capture(Single(), (torch.randn(2, 8),))
    kept = find_islands(program, [program.inputs], 40.0)
    assert [name.partition("_")[0] for name in kept] == ["quantile", "cosine"]
    made = edgesmith.export(Single(), "onnx", inputs=program.inputs, precision="fp16", out=tmp_path)
    assert "zeros" in [call["kind"] for call in made.manifest["verification"]["inputs"]["calls"]]
