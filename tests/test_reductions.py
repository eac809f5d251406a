"""Long reductions in ONNX files: in two stages, with the same numbers, no further from float64 than PyTorch."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import helper
from support.formula import Formula
from torch import Tensor, nn

import edgesmith
from edgesmith.cli.rows import describe_check
from edgesmith.exporters import targets
from edgesmith.exporters.graph import equal_rows
from edgesmith.exporters.graph.capture import capture
from edgesmith.exporters.precision import table as precisions
from edgesmith.exporters.targets import _onnx_reductions
from edgesmith.exporters.targets.onnx import COARSE_FROM
from edgesmith.exporters.targets.target import Request
from edgesmith.exporters.verification.exact import measure_distances

ONNX = targets.get("onnx")


def errors(model: nn.Module, x: Tensor, folder: Path, dynamic: bool = False) -> tuple[float, float, dict[str, int]]:
    """The largest distance from float64 of the file and of PyTorch, relative to the peak, and the file's operators."""
    path = folder / "long.onnx"
    ONNX.lower(capture(model.eval(), (x,), ("x",), dynamic_batch=dynamic), path, Request("long", precisions.FP32))
    file = ONNX.open(path)
    file.check()
    (outputs,) = file.run([[x.numpy()]])  # type: ignore[misc]
    with torch.no_grad():
        exact = copy.deepcopy(model).double()(x.double()).numpy()
        eager = model(x).numpy()
    assert outputs[0].shape == exact.shape
    peak = np.abs(exact).max()
    return np.abs(outputs[0] - exact).max() / peak, np.abs(eager - exact).max() / peak, file.count_operators()


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)) + 0.7


def settled(norm: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    for parameter in norm.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1 + 1
    return norm


CASES: dict[str, tuple[nn.Module, Tensor]] = {
    "mean of the last axis": (Formula(lambda x: x.mean(-1)), normal(2, 131072)),
    "mean of a map": (Formula(lambda x: x.mean((2, 3), keepdim=True)), normal(1, 3, 512, 512)),
    "mean of all": (Formula(lambda x: x.mean()), normal(4, 64, 1024)),
    "mean of the first axis": (Formula(lambda x: x.mean(0)), normal(16384, 4)),
    "mean in the middle": (Formula(lambda x: x.mean(1)), normal(2, 16384, 6)),
    "mean of a prime length": (Formula(lambda x: x.mean(-1)), normal(2, 131071)),
    "sum": (Formula(lambda x: x.sum(1)), normal(3, 100003)),
    "norm": (Formula(lambda x: torch.linalg.vector_norm(x, dim=-1)), normal(3, 65536)),
    "pooling": (nn.AdaptiveAvgPool2d(1), normal(1, 4, 256, 256)),
    "cumsum": (Formula(lambda x: x.cumsum(1)), normal(2, 10007)),
    "cumsum of rows": (Formula(lambda x: x.cumsum(1)), normal(2, 4096, 3)),
    "group norm": (settled(nn.GroupNorm(1, 64)), normal(1, 64, 64, 64)),
    "group norm of two": (settled(nn.GroupNorm(2, 64)), normal(2, 64, 64, 64)),
    "instance norm": (settled(nn.InstanceNorm2d(3, affine=True)), normal(2, 3, 256, 257)),
    "layer norm": (settled(nn.LayerNorm((16, 64, 64))), normal(2, 16, 64, 64)),
}


@pytest.fixture
def centred_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lower as behind layers, where no picture is blank."""
    monkeypatch.setattr(equal_rows, "FEWEST", {})


@pytest.mark.parametrize("name", CASES)
def test_a_long_reduction_is_no_further_from_float64_than_twice_pytorchs(name: str, tmp_path: Path) -> None:
    model, x = CASES[name]
    ours, eagers, counts = errors(model, x, tmp_path)
    floor = 4e-7 if "CumSum" in counts else 1.5e-7  # last bits; PyTorch's own cumsum adds in float64
    assert ours <= max(2 * eagers, 2 * floor), counts


@pytest.mark.usefixtures("centred_once")
@pytest.mark.parametrize("name", ["mean in the middle", "norm", "cumsum", "group norm"])
def test_the_runtimes_own_kernel_is_further_away(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets.onnx.Onnx, "lower", _lower_as_it_comes)
    model, x = CASES[name]
    ours, eagers, _ = errors(model, x, tmp_path)
    assert ours > max(2 * eagers, 3e-7)


def _lower_as_it_comes(self: object, *arguments: object) -> None:
    targets.onnx._typed_onnx.lower(*arguments)  # type: ignore[arg-type]


def test_a_norm_far_from_zero_is_within_two_units_in_the_last_place_of_what_it_reads(tmp_path: Path) -> None:
    model, x = settled(nn.GroupNorm(1, 64)), normal(1, 64, 64, 64) + 30
    ours, _, _ = errors(model, x, tmp_path)
    peak = float(model(x).abs().max())
    assert ours <= 2 * float(np.spacing(np.float32(x.max()))) / peak


def test_short_reductions_stay_as_they_are(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), settled(nn.GroupNorm(1, 8)), nn.AdaptiveAvgPool2d(1))
    counts = errors(model, normal(1, 3, 24, 24), tmp_path)[2]
    assert counts["InstanceNormalization"] == 1
    assert "Expand" not in counts
    assert COARSE_FROM["InstanceNormalization"] > 8 * 24 * 24


@pytest.mark.usefixtures("centred_once")
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(("channels", "side"), [(104, 16), (64, 32), (16, 32)])
def test_a_norm_of_small_maps_is_made_of_each_maps(channels: int, side: int, affine: bool, tmp_path: Path) -> None:
    model = settled(nn.GroupNorm(1, channels, affine=affine))
    ours, eagers, counts = errors(model, normal(1, channels, side, side), tmp_path)
    assert ours <= 2 * max(eagers, 1.5e-7)
    assert counts == {"ReduceMean": 3, "Sub": 1, "Mul": 1, "MatMul": 1, "BatchNormalization": 1}


@pytest.mark.usefixtures("centred_once")
def test_a_norm_takes_its_variance_into_the_affine_behind_it(tmp_path: Path) -> None:
    counts = errors(*CASES["group norm"], tmp_path)[2]
    assert counts == {"ReduceMean": 6, "Reshape": 3, "Sub": 1, "Mul": 1, "Expand": 1, "BatchNormalization": 1}


def test_a_free_batch_stays_free(tmp_path: Path) -> None:
    model = nn.Sequential(settled(nn.GroupNorm(2, 16)), Formula(lambda x: x.mean((2, 3))))
    ours, eagers, _ = errors(model, normal(2, 16, 128, 128), tmp_path, dynamic=True)
    assert ours <= 2 * max(eagers, 1.5e-7)
    (outputs,) = ONNX.open(tmp_path / "long.onnx").run([[normal(3, 16, 128, 128).numpy()]])  # type: ignore[misc]
    assert outputs[0].shape == (3, 16)


def test_verify_shows_the_files_distance_from_float64_beside_pytorchs(tmp_path: Path) -> None:
    model, x = CASES["group norm"]
    artifact = edgesmith.export(model, "onnx", inputs=x, out=tmp_path, name="norm")
    step = artifact.manifest["verification"]["steps"][2]
    assert step["step"] == "eager -> file"
    found = step["from_float64"]
    assert 0 < found["file"] <= 5e-7
    assert 0 < found["pytorch"] <= 5e-7
    _, steps = edgesmith.verify(artifact.path)
    assert steps[2]["from_float64"] == found
    assert f"{found['file']:.1e} of the peak from float64, PyTorch {found['pytorch']:.1e}" in describe_check(steps[2])


def test_a_distance_is_of_the_worst_output_and_unknown_where_one_is_not_finite() -> None:
    exact = [[np.array([2.0, -4.0]), np.array([1.0])]]
    close, far = [[np.array([2.0, -4.0]), np.array([1.01])]], [[np.array([2.0, -3.0]), np.array([1.0])]]
    assert measure_distances(exact, close, far) == {"file": 0.25, "pytorch": 0.01}
    assert measure_distances(exact, close, [[np.array([2.0, np.nan]), np.array([1.0])]]) is None


def test_a_reshape_that_only_a_loop_reads_stays() -> None:
    body = helper.make_graph(
        [helper.make_node("Add", ["h", "shaped"], ["out"]), helper.make_node("Identity", ["out"], ["seen"])],
        "body",
        [helper.make_tensor_value_info(name, 1, [1, 4]) for name in ("h", "row")],
        [helper.make_tensor_value_info(name, 1, [1, 4]) for name in ("out", "seen")],
    )
    nodes = [
        helper.make_node("Reshape", ["x", "sizes"], ["shaped"]),
        helper.make_node("Scan", ["x", "rows"], ["last", "all"], body=body, num_scan_inputs=1),
    ]
    kept = _onnx_reductions._without_unread([*nodes, helper.make_node("Reshape", ["x", "sizes"], ["nobody"])], {"last"})
    assert [node.op_type for node in kept] == ["Reshape", "Scan"]
