"""int8: what is quantised and what stays float, calibration data, and the figures that three models have to reach."""

from __future__ import annotations

import io
import json
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from support.lowering import lower
from torch import Tensor, nn

import edgesmith
from edgesmith.errors import BadInput, Unsupported
from edgesmith.exporters import targets
from edgesmith.exporters.figures import measure
from edgesmith.exporters.graph.capture import Program, capture, run
from edgesmith.exporters.graph.edit import count_operators
from edgesmith.exporters.inputs import COUNT, seeded_inputs
from edgesmith.exporters.precision import calibration, int8
from edgesmith.exporters.precision.int8 import (
    Histogram,
    find_layers,
    observe,
    open_fused,
    quantise,
    round_weight,
    sensitivities,
)
from edgesmith.exporters.targets._typed_onnx import OnnxFile
from edgesmith.exporters.targets.tensorrt import build
from edgesmith.kernels.op import all_ops
from edgesmith.models import registry

IMAGE = registry.get("casvit_xs").input
QUANTISE, DEQUANTISE, WEIGHT = (
    f"quantized_decomposed.{name}"
    for name in ("quantize_per_tensor", "dequantize_per_tensor", "dequantize_per_channel")
)


class Layers(nn.Module):
    """Every kind of layer: convolutions, one depthwise, a sum behind one, linear, a product, a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.local = nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False)
        self.point = nn.Conv2d(16, 16, 1)
        self.linear, self.head = nn.Linear(16, 12), nn.Linear(12, 10)
        self.matrix = nn.Parameter(torch.randn(12, 12) / 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = x + self.point(F.gelu(self.local(x)))
        rows: Tensor = (12 * (3 * self.linear(x.flatten(2).transpose(1, 2))).softmax(-1)) @ self.matrix
        out: Tensor = self.head(rows.mean(1))
        return out


def inputs_of(program: Program, count: int = 8, first: int = 8) -> list[list[Tensor]]:
    return seeded_inputs(program.inputs, None, False, first + count)[first:]


def snr_db(reference: Program, other: Program | Path, as_written: bool = False) -> float:
    """Of a program or a file against a program in float, over inputs that nothing was calibrated on."""
    given = seeded_inputs(reference.inputs, None, False)
    expected = [[y.numpy() for y in run(reference, x)] for x in given]
    if isinstance(other, Path):
        outputs = OnnxFile(other, "", as_written=as_written).run([[t.numpy() for t in x] for x in given])
    else:
        outputs = [[y.numpy() for y in run(other, x)] for x in given]
    assert isinstance(outputs, list)
    found = measure(expected, outputs, 0.0).snr_db
    return float("inf") if found is None else found


def program_of(function: Callable[..., Any], *inputs: Tensor, **weights: Tensor) -> Program:
    class Module(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights = nn.ParameterDict(weights)

        def forward(self, *values: Tensor) -> Any:
            return function(*values, **dict(self.weights.items()))

    return capture(Module(), inputs)


@pytest.fixture(scope="module")
def layers() -> Program:
    return capture(Layers().eval(), (torch.randn(1, 3, 16, 16),))


def test_layers_and_the_sum_behind_one_read_int8(layers: Program) -> None:
    found = quantise(layers, inputs_of(layers), 20.0)
    assert (found.layers, found.sums, found.kept) == (6, 1, {})
    counts = count_operators(found.program.module)
    assert counts[QUANTISE] == counts[DEQUANTISE] == 6  # the stem's output is rounded once for two readers
    assert counts[WEIGHT] == 6
    (add,) = (node for node in found.program.module.graph.nodes if node.target is torch.ops.aten.add.Tensor)
    assert [str(source.target) for source in add.all_input_nodes] == [f"{DEQUANTISE}.default", "aten.conv2d.default"]
    weights = {name: tensor.dtype for name, tensor in found.program.module.state_dict().items()}
    assert sum(dtype == torch.int8 for name, dtype in weights.items() if name.endswith("_int8")) == 6
    assert not any(name.endswith(".weight") for name in weights)
    assert snr_db(layers, found.program) > 40


def test_quantising_leaves_the_program_alone_and_is_the_same_again(layers: Program) -> None:
    before = layers.module.code
    first, second = (quantise(layers, inputs_of(layers), 20.0).program.module for _ in range(2))
    assert layers.module.code == before
    assert first.code == second.code
    a, b = first.state_dict(), second.state_dict()
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_quantised_program_has_no_layer_left_to_quantise(layers: Program) -> None:
    found = quantise(layers, inputs_of(layers), 20.0)
    assert find_layers(found.program.module) == []


def test_what_has_no_constant_float_weight_stays_float() -> None:
    def function(x: Tensor, y: Tensor, table: Tensor, up: Tensor, kernel: Tensor, deep: Tensor) -> Tensor:
        x = F.conv2d(x, y)  # a weight that is an input
        x = F.conv_transpose2d(x, up)
        x = x @ x.transpose(2, 3)  # two activations
        x = F.layer_norm(x, x.shape[-1:])
        x = x + table[torch.tensor([0, 1, 2, 3, 4, 5, 6, 7])]
        x = deep @ x  # a stack of matrices has no one axis of output channels
        return F.conv2d(x.double(), kernel.double()).float() + F.conv2d(kernel, kernel).sum()

    g = torch.Generator().manual_seed(0)
    shapes = {"table": (8, 8), "up": (4, 4, 1, 1), "kernel": (4, 4, 1, 1), "deep": (4, 8, 8)}
    weights = {name: torch.randn(shape, generator=g) for name, shape in shapes.items()}
    program = program_of(function, torch.randn(1, 4, 8, 8), torch.randn(4, 4, 1, 1), **weights)
    assert find_layers(program.module) == []
    with pytest.raises(Unsupported, match="int8 is for convolutions and matmuls with constant float32 weights"):
        quantise(program, inputs_of(program, 2), 20.0)


class ComputedBias(nn.Module):
    """Two layers, and between them a convolution whose bias follows from the input."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.bias, self.middle, self.last = nn.Linear(3, 16), nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.middle.weight, 0.05 * self.bias(x.mean((0, 2, 3))))
        out: Tensor = self.last(x)
        return out


def test_a_layer_whose_bias_is_computed_stays_float_with_the_reason_and_keeps_the_bias(tmp_path: Path) -> None:
    program = capture(ComputedBias().eval(), (torch.randn(1, 3, 8, 8),))
    assert [layer.node.name for layer in find_layers(program.module)] == ["linear", "conv2d_1"]
    found = quantise(program, inputs_of(program), 20.0)
    assert found.kept == {"conv2d": "conv2d at conv2d has a computed bias"}
    assert found.layers == 2
    assert "mul" in found.program.module.code  # the bias
    assert snr_db(program, found.program) > 30
    with random_calibration():
        artifact = edgesmith.export(
            ComputedBias(), "onnx", inputs=torch.randn(1, 3, 8, 8), precision="int8", out=tmp_path
        )
    assert artifact.manifest["keep_fp32"] == found.kept
    assert artifact.manifest["verification"]["steps"][2]["snr_db"] > 30


def test_a_model_whose_only_layer_has_a_computed_bias_is_refused() -> None:
    program = program_of(
        lambda x, b, w: F.conv2d(x, w, b), torch.randn(1, 4, 8, 8), torch.randn(4), w=torch.randn(4, 4, 1, 1)
    )
    with pytest.raises(Unsupported, match="no computed bias, and this model has none"):
        quantise(program, inputs_of(program, 2), 20.0)


@pytest.mark.parametrize("shape", [(12,), (6, 12), (6, 1), (1,)])
def test_addmm_is_a_layer_whatever_the_shape_of_its_bias(shape: tuple[int, ...], tmp_path: Path) -> None:
    g = torch.Generator().manual_seed(0)
    program = program_of(
        lambda x, w, b: torch.addmm(b, x, w),
        torch.randn(6, 16),
        w=torch.randn(16, 12, generator=g) / 4,
        b=3 * torch.randn(shape, generator=g),
    )
    (layer,) = find_layers(program.module)
    assert layer.at == (1, 2, 0, 1)
    given = inputs_of(program)
    found = quantise(program, given, 20.0)
    assert (found.layers, found.kept) == (1, {})
    assert snr_db(program, found.program) > 35
    error = torch.stack([run(found.program, x)[0] - run(program, x)[0] for x in given]).mean((0, 1))
    assert float(error.abs().max()) < 1e-5  # the bias was corrected
    costs = sensitivities(program, [layer], observe(program, [layer], given), given)
    assert 1e-8 < costs["addmm"] < 1e-2
    path = tmp_path / "model.onnx"
    lower("onnx", found.program, path, "int8")
    assert snr_db(found.program, path, as_written=True) > 60


class Addmm(nn.Module):
    """The three that are float: a computed bias, and factors."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight, self.first = nn.Parameter(torch.randn(16, 16) / 4), nn.Linear(16, 16)
        self.bias = nn.Parameter(torch.randn(16))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.addmm(x, torch.relu(self.first(x)), self.weight)
        y = torch.addmm(self.bias, y, self.weight, beta=0.5)
        return torch.addmm(self.bias, y, self.weight, alpha=3, beta=0)


def test_addmm_with_a_computed_bias_or_with_factors_stays_float(tmp_path: Path) -> None:
    program = capture(Addmm().eval(), (torch.randn(8, 16),))
    assert [layer.node.name for layer in find_layers(program.module)] == ["linear"]
    assert quantise(program, inputs_of(program), 20.0).kept == {"addmm": "addmm at addmm has a computed bias"}
    with random_calibration():
        artifact = edgesmith.export(Addmm(), "onnx", inputs=torch.randn(8, 16), precision="int8", out=tmp_path)
    assert artifact.manifest["int8"]["layers"] == 2  # a product whose bias is computed is a product and a sum by then
    assert artifact.manifest["verification"]["steps"][2]["snr_db"] > 30


def test_fused_ops_stay_float_but_for_the_layers_inside_those_that_may_be_int8() -> None:
    ops, generator = all_ops(), torch.Generator().manual_seed(0)
    attention, channels = ops["additive_attention"].example()[1:], 4
    spectrum = ops["fft_filter"].example()[1:]
    norm = torch.ones(6), torch.zeros(6)
    project = torch.randn(12, 6, 1, 1, generator=generator)

    def function(x: Tensor, **w: Tensor) -> Tensor:
        x = torch.ops.edgesmith.fft_filter(x, *(w[f"f{i}"] for i in range(len(spectrum))))
        x = torch.ops.edgesmith.channel_norm(x, w["n0"], w["n1"])
        x = torch.ops.edgesmith.lif(x)
        return torch.ops.edgesmith.additive_attention(F.conv2d(x, w["p"]), *(w[f"a{i}"] for i in range(len(attention))))

    named = {f"{k}{i}": t for k, ts in (("f", spectrum), ("n", norm), ("a", attention)) for i, t in enumerate(ts)}
    program = program_of(function, torch.randn(1, 6, 5, 6), p=project, **named)
    found = quantise(program, inputs_of(program), 20.0)
    counts = count_operators(found.program.module)
    kept = ("fft_filter", "channel_norm", "lif")
    assert [counts[f"edgesmith.{name}"] for name in kept] == [1, 1, 1]
    assert "edgesmith.additive_attention" not in counts
    assert counts[WEIGHT] == found.layers + 0 == 1 + 8  # the projection, and eight convolutions of attention
    assert channels * 3 == project.shape[0]


@pytest.mark.parametrize("axis", [0, 1])
def test_a_weight_keeps_each_output_channels_peak(axis: int) -> None:
    weight = torch.randn(5, 4) * torch.tensor([1e-3, 1, 1e3, 1]).reshape(1, 4)
    weight[2, :] = 0 if axis == 0 else weight[2, :]
    numbers, scales = round_weight(weight, axis)
    assert numbers.dtype == torch.int8
    assert scales.shape == (weight.shape[axis],)
    assert scales.min() > 0
    back = numbers * (scales.unsqueeze(1) if axis == 0 else scales)
    steps = scales.unsqueeze(1) if axis == 0 else scales
    assert bool(((back - weight).abs() <= steps / 2 * 1.0001).all())
    assert int(round_weight(weight, axis, 63)[0].abs().max()) == 63


def test_histogram_finds_percentiles_of_what_grows() -> None:
    histogram = Histogram()
    values = [torch.randn(1, 7, 64, 64, generator=torch.Generator().manual_seed(i)) * 10.0**i for i in range(4)]
    for value in values:
        histogram.add(value)
    exact = torch.cat([value.flatten() for value in values]).abs()
    for per_cent in (50.0, 99.0, 99.99):
        expected = float(np.percentile(exact.numpy(), per_cent))
        assert abs(histogram.percentile(per_cent) - expected) <= 0.05 * expected + 2 * histogram.width
    assert histogram.percentile(100) >= float(exact.max()) - 2 * histogram.width


def test_histogram_of_zeros_and_of_what_is_not_finite() -> None:
    histogram = Histogram()
    histogram.add(torch.zeros(3))
    histogram.add(torch.tensor([float("nan"), float("inf")]))
    assert histogram.percentile(99.99) == 0
    histogram.add(torch.tensor([0.0, 1.0, float("inf")]))
    assert histogram.percentile(99.99) == pytest.approx(1, rel=1e-3)


def test_an_outlier_does_not_set_the_range() -> None:
    program = program_of(lambda x, w: F.conv2d(x, w), torch.randn(1, 4, 64, 64), w=torch.randn(4, 4, 1, 1))
    given = inputs_of(program, 4)
    given[0][0][0, 0, 0, 0] = 1e4
    (scale,) = observe(program, find_layers(program.module), given).scales.values()
    assert 3 / 127 < scale < 6 / 127


def test_biases_take_back_the_mean_error_of_what_came_before(layers: Program) -> None:
    """On the calibration inputs the int8 head has its mean where the float head has it."""
    given = inputs_of(layers)
    found = quantise(layers, given, 20.0, 63)
    exact = torch.stack([run(layers, x)[0] for x in given]).mean(0)
    mean = torch.stack([run(found.program, x)[0] for x in given]).mean(0)
    error = torch.stack([run(found.program, x)[0] - run(layers, x)[0] for x in given]).abs().mean()
    assert float((mean - exact).abs().max()) < 1e-5
    assert float(error) > 1e-4


class Spread(nn.Module):
    """One channel is a thousand times the others and is read by nobody but a layer whose weights ignore it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.spread, self.last = (nn.Conv2d(8, 8, 1) for _ in range(3))
        with torch.no_grad():
            self.first.weight[0] *= 3000
            self.spread.weight[:, 0] = 0

    def forward(self, x: Tensor) -> Tensor:
        y = self.spread(F.leaky_relu(self.first(x), 0.5))
        z: Tensor = self.last(F.relu(y))
        return y + z


def test_a_layer_that_int8_spoils_stays_float_with_the_reason() -> None:
    program = capture(Spread().eval(), (torch.randn(1, 8, 16, 16),))
    given = inputs_of(program)
    found = quantise(program, given, 20.0)
    assert list(found.kept) == ["conv2d_1"]
    assert found.kept["conv2d_1"].startswith("conv2d at spread alone leaves ")
    assert (found.layers, found.snr_db is not None and found.snr_db > 20) == (2, True)
    assert snr_db(program, found.program) >= 20


def test_sensitivity_is_the_noise_of_one_layer_alone(layers: Program) -> None:
    program = open_fused(layers)
    given = inputs_of(program, 2)
    found = find_layers(program.module)
    costs = sensitivities(program, found, observe(program, found, given), given)
    assert costs.keys() == {layer.node.name for layer in found} | {"add"}
    assert all(1e-8 < cost < 1e-2 for cost in costs.values())


def test_a_bar_that_nothing_reaches_leaves_all_layers_float_and_says_how_far_it_is(layers: Program) -> None:
    found = quantise(layers, inputs_of(layers, 4), 200.0)
    assert len(found.kept) == 7
    assert (found.layers, found.sums) == (0, 0)


def test_the_outputs_have_to_be_better_than_wanted_by_a_margin(layers: Program) -> None:
    given = inputs_of(layers)
    whole = quantise(layers, given, 20.0)
    assert whole.kept == {}
    assert whole.snr_db is not None
    assert quantise(layers, given, whole.snr_db - 1.6).kept == {}
    wanted_db = whole.snr_db - 1.4  # which all in int8 reaches, but not by the margin
    found = quantise(layers, given, wanted_db)
    assert found.kept
    assert found.snr_db is not None
    assert found.snr_db >= wanted_db + 1.5


def test_file_computes_what_the_program_does_and_kernels_for_integers_do_not_saturate(
    layers: Program, tmp_path: Path
) -> None:
    found = quantise(layers, inputs_of(layers), 20.0, targets.get("onnx").largest_int8_weight)
    path = tmp_path / "model.onnx"
    file = lower("onnx", found.program, path, "int8")
    file.check()
    assert snr_db(found.program, path, as_written=True) > 60
    assert snr_db(layers, path) > 35  # whatever kernels this processor has
    kinds = {one.name: one.data_type for one in onnx.load(str(path)).graph.initializer}
    assert kinds["stem.weight_int8"] == onnx.TensorProto.INT8
    assert sum(kind == onnx.TensorProto.FLOAT for name, kind in kinds.items() if name.endswith("weight")) == 0
    macs = file.count_macs()
    assert macs["int8"] == macs["all"] == 256 * (3 * 16 * 9 + 16 * 9 + 16 * 16 + 16 * 12 + 12 * 12) + 12 * 10


def test_macs_of_float_layers_are_not_counted_as_int8(layers: Program, tmp_path: Path) -> None:
    macs = lower("onnx", layers, tmp_path / "model.onnx").count_macs()
    assert macs["int8"] == 0
    assert macs["all"] > 0


def random_calibration() -> Any:
    return pytest.warns(calibration.RandomCalibration, match="calibrated on random inputs")


@pytest.mark.parametrize("target", ["onnx", "tensorrt"])
def test_export_writes_the_same_bytes_again_and_warns_without_data(target: str, tmp_path: Path) -> None:
    if targets.get(target).missing_packages():
        pytest.skip(f"{target} is not installed")
    options: dict[str, Any] = {"device": "rtx5080"} if target == "tensorrt" else {}
    options |= {"inputs": torch.randn(1, 3, 16, 16), "precision": "int8", "out": tmp_path, "name": "layers"}
    with random_calibration():
        artifact = edgesmith.export(Layers(), target, **options)
    first = {file.name: file.read_bytes() for file in artifact.path.iterdir()}
    manifest = artifact.manifest
    assert manifest["precision"] == "int8"
    assert manifest["verification"]["judged_as"] == "int8"
    assert manifest["verification"]["thresholds"]["int8"] == {
        "relative_error": 0.2,
        "snr_db": 20.0,
        "top1": "every decided input",
    }
    found = manifest["int8"]
    sums = {"onnx": 2, "tensorrt": 1}[target]  # all that lie between layers, or those whose other operand a layer reads
    assert (found["layers"], found["sums"], found["share_of_macs"]) == (6, sums, 1.0)
    assert found.get("joined") == {"onnx": True, "tensorrt": None}[target]
    assert found["weight_bits"] == {"onnx": 7, "tensorrt": 8}[target]
    assert found["calibration"]["source"] == "random"
    assert found["calibration"]["seeds"] == "8 to 15"
    assert "real data is unknown" in found["calibration"]["warning"]
    assert "keep_fp32" not in manifest
    assert manifest["verification"]["steps"][2]["snr_db"] > 30
    assert manifest["operators"]["file"]["QuantizeLinear"] == {"onnx": 11, "tensorrt": 6}[target]
    _, steps = edgesmith.verify(artifact.path)
    assert steps[2] == manifest["verification"]["steps"][2]
    with random_calibration():
        again = edgesmith.export(Layers(), target, **options)
    assert {file.name: file.read_bytes() for file in again.path.iterdir()} == first


def test_layers_that_stay_float_are_listed_in_the_manifest(tmp_path: Path) -> None:
    options: dict[str, Any] = {"inputs": torch.randn(1, 8, 16, 16), "precision": "int8", "out": tmp_path}
    with random_calibration():
        artifact = edgesmith.export(Spread(), "onnx", **options)
    assert list(artifact.manifest["keep_fp32"]) == ["conv2d_1"]
    assert artifact.manifest["int8"]["share_of_macs"] == round(2 / 3, 4)


def pictures(folder: Path, count: int = 9) -> Path:
    """Images of several kinds, sizes and modes."""
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    rng = np.random.default_rng(0)
    (folder / "more").mkdir(parents=True)
    for i in range(count):
        pixels = rng.integers(0, 256, (40 + i, 50 - i, 3), dtype=np.uint8)
        place = folder / ("more" if i % 2 else "")
        picture = image.fromarray(pixels)
        if i == 3:
            picture = picture.convert("L")
        picture.save(place / f"{i}.{'png' if i % 3 else 'jpg'}")
    (folder / ".DS_Store").write_bytes(b"hidden")
    return folder


def test_folder_of_images_is_read_in_order_cropped_and_normalised(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    red = image.new("RGB", (90, 60), (255, 0, 0))
    (tmp_path / "a").mkdir()
    for name in ("b.png", "a/z.png", "c.png", "d.png"):
        red.save(tmp_path / name)
    image.new("RGB", (60, 60), (0, 0, 255)).save(tmp_path / "a/z.png")  # the first of the paths
    found = calibration.load(tmp_path, ["image"], [torch.zeros(1, 3, 32, 64)], IMAGE, False)
    assert [len(found.inputs), len(found.held_out or [])] == [3, 1]
    blue, red_one = found.inputs[0][0], found.inputs[1][0]
    assert blue.shape == (1, 3, 32, 64)
    mean, std = torch.tensor(IMAGE.mean), torch.tensor(IMAGE.std)
    assert torch.allclose(red_one[0, :, 5, 5], (torch.tensor([1.0, 0, 0]) - mean) / std)
    assert torch.allclose(blue[0, :, 5, 5], (torch.tensor([0, 0, 1.0]) - mean) / std)


def twelve_bits(path: Path) -> None:
    """A TIFF of 12 bits a sample, two samples in three bytes, 40 by 40, by hand: Pillow reads such and writes none."""
    numbers = np.round(np.linspace(0, 4095, 1600)).astype(np.uint16)
    a, b = numbers[::2], numbers[1::2]
    pixels = np.stack([a >> 4, (a & 15) << 4 | b >> 8, b & 255], 1).astype(np.uint8).tobytes()
    tags = ((256, 40), (257, 40), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 40), (279, len(pixels)))
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    path.write_bytes(b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels + directory)


@pytest.mark.parametrize("kind", ["png", "tif", "big endian tif", "pgm", "12 bits", "8 bits"])
def test_images_of_more_than_8_bits_are_scaled_to_their_own_white(kind: str, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    ramp = np.linspace(0, 1, 1600).reshape(40, 40)
    sixteen = np.round(ramp * 65535).astype(np.uint16)
    path = tmp_path / "a"
    if kind == "12 bits":
        twelve_bits(path)
    elif kind == "big endian tif":
        image.frombytes("I;16B", (40, 40), sixteen.astype(">u2").tobytes()).save(path, "TIFF")
    elif kind == "8 bits":
        image.fromarray(np.round(ramp * 255).astype(np.uint8)).save(path, "PNG")
    else:
        image.fromarray(sixteen).save(path, {"png": "PNG", "tif": "TIFF", "pgm": "PPM"}[kind])
    values = seen(path)
    assert float((values[0] - values[2]).abs().max()) < 1e-6
    rows = values[1].mean(1)
    assert float((rows + rows.flip(0) - 1).abs().max()) < 0.01  # dark is as far from black as light from white
    assert 0.05 < float(values.min()) < 0.08  # an eighth of the rows is cut away
    assert 0.92 < float(values.max()) < 0.95


def seen(path: Path) -> Tensor:
    """What a model with 35 by 35 inputs reads of an image, its normalisation undone, [3, 35, 35] from 0 to 1."""
    shutil.copy(path, path.with_name("b"))
    found = calibration.load(path.parent, ["image"], [torch.zeros(1, 3, 35, 35)], IMAGE, False)
    mean, std = (torch.tensor(value).reshape(3, 1, 1) for value in (IMAGE.mean, IMAGE.std))
    return found.inputs[0][0][0] * std + mean


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_images_of_every_mode_have_their_colour(mode: str, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    colour = (255, 0, 0) if mode in ("P", "RGB", "RGBA", "CMYK") else (255, 255, 255)
    picture = image.new("RGB", (40, 40), colour).convert(mode)
    picture.save(tmp_path / "a", "TIFF" if mode == "CMYK" else "PNG")
    assert torch.allclose(seen(tmp_path / "a"), torch.tensor(colour).reshape(3, 1, 1) / 255, atol=1e-6)


@pytest.mark.parametrize(("dtype", "what"), [(np.float32, "floating point"), (np.int32, "32-bit integers")])
def test_images_without_a_known_white_are_refused(dtype: Any, what: str, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    image.fromarray(np.ones((40, 40), dtype)).save(tmp_path / "a.tif")
    with pytest.raises(BadInput, match=rf"a\.tif must have 8 or 16 bits a channel, got {what}.*; convert it or remove"):
        seen(tmp_path / "a.tif")


def test_a_long_thin_image_is_not_enlarged_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    image.new("RGB", (1, 20000), (0, 255, 0)).save(tmp_path / "a.png")
    sizes = []
    resize = image.Image.resize
    monkeypatch.setattr(
        image.Image, "resize", lambda self, size, *a, **k: sizes.append(size) or resize(self, size, *a, **k)
    )
    assert torch.allclose(seen(tmp_path / "a.png"), torch.tensor([0.0, 1, 0]).reshape(3, 1, 1), atol=1e-6)
    assert sizes == [(35, 35)] * 2


def test_hash_of_a_folder_changes_with_its_images_and_with_nothing_else(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "set")
    options: tuple[Any, ...] = (["image"], [torch.zeros(1, 3, 32, 32)], IMAGE, False)
    first, again = (calibration.load(folder, *options) for _ in range(2))
    assert first.described == again.described
    assert all(
        torch.equal(a, b) for x, y in zip(first.inputs, again.inputs, strict=True) for a, b in zip(x, y, strict=True)
    )
    assert first.described["calls"] + first.described["held_out"] == 9
    (folder / "0.jpg").unlink()
    assert calibration.load(folder, *options).described["sha256"] != first.described["sha256"]


def test_export_with_data_is_judged_on_those_held_out_and_verified_again_without_the_file(tmp_path: Path) -> None:
    given = seeded_inputs([torch.zeros(1, 3, 16, 16)], None, False, 8)
    path = tmp_path / "set.npz"
    np.savez(path, x=np.concatenate([3 * x[0].numpy() + 1 for x in given]))
    out = tmp_path / "out"
    artifact = edgesmith.export(
        Layers(), "onnx", inputs=torch.randn(1, 3, 16, 16), precision="int8", calibration=path, out=out
    )
    path.unlink()
    verification = artifact.manifest["verification"]
    kinds = [call["kind"] for call in verification["inputs"]["calls"]]
    assert (kinds[0], kinds.count("held out"), verification["inputs"]["count"]) == ("example", 2, len(kinds))
    assert (artifact.path / "inputs.safetensors").is_file()
    assert artifact.manifest["int8"]["calibration"].keys() == {"source", "samples", "calls", "held_out", "sha256"}
    assert verification["steps"][2]["snr_db"] >= 20
    _, steps = edgesmith.verify(artifact.path)
    assert steps[2] == verification["steps"][2]


def test_images_calibrate_a_named_model_from_the_command_line(
    tmp_path: Path, edgesmith: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = pictures(tmp_path / "set", 16)
    result = edgesmith(
        *("export", "-m", "efficientvim_m1", "-t", "onnx", "-p", "int8", "--input-size", "32"),
        *("--calibration", str(folder), "--json"),
    )
    assert result.returncode == 0, result.stderr
    assert "WARNING" not in result.stderr
    assert json.loads(result.stdout)["int8"]["calibration"]["source"] == "images"


def test_without_data_the_command_line_warns_loudly(edgesmith: Callable[..., Any]) -> None:
    result = edgesmith("export", "-m", "lmuformer", "-t", "onnx", "-p", "int8", "--frames", "16")
    assert "edgesmith: WARNING: int8 was calibrated on random inputs" in result.stderr
    assert result.returncode == 0, result.stderr
    assert "7-bit weights, integers between layers; calibrated on 8 calls, judged on 4 others" in " ".join(
        result.stdout.split()
    )
    assert "WARNING: int8 was calibrated on random inputs" in " ".join(result.stdout.split())


def test_samples_fill_batches_and_every_fourth_call_is_held_out(tmp_path: Path) -> None:
    path = tmp_path / "set.npz"
    np.savez(path, a=np.arange(34, dtype=np.float64).reshape(17, 2), b=np.arange(17))
    examples = [torch.zeros(2, 2), torch.zeros(2, dtype=torch.int64)]
    found = calibration.load(path, ["a", "b"], examples, None, False)
    assert found.held_out is not None
    assert [x[1].tolist() for x in found.inputs] == [[0, 1], [2, 3], [4, 5], [8, 9], [10, 11], [12, 13]]
    assert [x[1].tolist() for x in found.held_out] == [[6, 7], [14, 15]]
    assert found.inputs[1][0].dtype == torch.float32
    assert found.inputs[1][0].tolist() == [[4, 5], [6, 7]]
    assert {key: found.described[key] for key in ("samples", "calls", "held_out")} == {
        "samples": 17,
        "calls": 6,
        "held_out": 2,
    }


def test_a_large_set_is_thinned_evenly_and_holds_out_as_many_as_verification_takes(tmp_path: Path) -> None:
    path = tmp_path / "set.npz"
    np.savez(path, x=np.arange(1000, dtype=np.float32).reshape(1000, 1))
    found = calibration.load(path, ["x"], [torch.zeros(1, 1)], None, False)
    assert found.held_out is not None
    assert (len(found.inputs) + len(found.held_out), len(found.held_out)) == (calibration.LIMIT, COUNT)
    assert float(max(x[0].max() for x in found.inputs)) > 900


ARRAY = np.zeros((4, 3, 32, 32), np.float32)


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({"set/a.png": None}, "set holds 1 images; wanted 2 at least"),
        ({"set/.hidden": b"x"}, "set holds 0 images; wanted 2 at least"),
        ({"set/a.png": None, "set/b.txt": b"words"}, r"b\.txt is no image that Pillow can read; remove it"),
        ({"set/a.png": None, "set/b.png": "cut"}, r"b\.png is no image that Pillow can read; remove it"),
        ({"set.npz": b"PK none"}, r"set\.npz is no \.npz of plain arrays; write it with numpy\.savez"),
        ({"set.npz": {}}, "has no arrays, and the model's inputs are image; image is missing"),
        ({"set.npz": {"picture": ARRAY}}, "has picture, and the model's inputs are image; image is missing"),
        ({"set.npz": {"image": ARRAY[:, :, :16]}}, r"image .* must be \[N, 3, 32, 32\], got \[4, 3, 16, 32\]"),
        ({"set.npz": {"image": ARRAY.astype(np.uint8)}}, "image in .* must be floating point, got uint8"),
        ({"set.npz": {"image": ARRAY / 0}}, "has values that are not finite; remove those samples"),
        ({"set.npz": {"image": ARRAY[:1]}}, "set.npz holds 1 samples; wanted 2 at least"),
        ({"set.npz": {"image": np.array([ARRAY], dtype=object)}}, r"is no \.npz of plain arrays"),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_wrong_calibration_data_is_one_sentence(
    files: dict[str, Any], sentence: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    path = tmp_path / "set"
    for name, content in files.items():
        file = tmp_path / name
        path = file if file.parent == tmp_path else file.parent
        file.parent.mkdir(exist_ok=True)
        if isinstance(content, dict):
            np.savez(file, **content)
        elif isinstance(content, bytes):
            file.write_bytes(content)
        else:
            image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
            image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(file)
            if content == "cut":
                file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(BadInput, match=sentence) as raised:
        calibration.load(path, ["image"], [torch.zeros(1, 3, 32, 32)], IMAGE, False)
    assert "\n" not in str(raised.value)


def packed(**members: bytes) -> bytes:
    """A zip with these members, whose names get `.npy`."""
    with io.BytesIO() as file:
        with zipfile.ZipFile(file, "w") as archive:
            for name, content in members.items():
                archive.writestr(f"{name}.npy", content)
        return file.getvalue()


def npy(array: np.ndarray) -> bytes:
    with io.BytesIO() as file:
        np.save(file, array)
        return file.getvalue()


def with_byte(content: bytes, local: int, central: int, value: int) -> bytes:
    """A zip of one member with a byte of its two headers changed, at these offsets in them."""
    changed = bytearray(content)
    changed[local] = value
    changed[content.rindex(b"PK\1\2") + central] = value
    return bytes(changed)


ROWS = np.zeros((4, 16), np.float32)
PACKED = packed(x=npy(ROWS))
DAMAGED = io.BytesIO()
np.savez_compressed(DAMAGED, x=np.random.default_rng(0).random((4, 16)))
DAMAGED_BYTES = DAMAGED.getvalue()[:100] + bytes(20) + DAMAGED.getvalue()[120:]
HUGE = npy(ROWS).replace(b"(4, 16), }" + b" " * 20, b"(4" + b"0" * 15 + b", 16), }" + b" " * 5)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (
            npy(ROWS),
            r"is a single array \(\.npy\), wanted an \.npz .*; write it with numpy\.savez\('set\.npz', x=array\)",
        ),
        (with_byte(PACKED, 6, 8, 1), "is encrypted, or compressed in a way that Python's zipfile does not know; write"),
        (
            with_byte(PACKED, 8, 10, 99),
            "is encrypted, or compressed in a way that Python's zipfile does not know; write",
        ),
        (packed(x=b"words"), r"x in .* is a file that holds no array; write it with numpy\.savez"),
        (packed(x=npy(ROWS)[:90]), r"is no \.npz of plain arrays; write it with numpy\.savez"),
        (
            packed(x=npy(ROWS).replace(b"(4, 16)", b"(4] 16)")),
            r"is no \.npz of plain arrays; write it with numpy\.savez",
        ),
        (packed(x=HUGE), r"is no \.npz of plain arrays: x\.npy declares .* GB in a file of"),
        (DAMAGED_BYTES, r"is no \.npz of plain arrays; write it with numpy\.savez"),
        (PACKED[:-30], r"is no \.npz of plain arrays; write it with numpy\.savez"),
        (b"", r"is no \.npz of plain arrays; write it with numpy\.savez"),
        (packed(x=npy(np.zeros(4, [("x", "f4", 16)]))), r"x in .* must be \[N, 16\], got \[4\]"),
        (packed(x=npy(np.zeros((4, 16), [("x", "f4")]))), "x in .* must be floating point, got "),
        (
            packed(x=npy(np.full((4, 16), 1e39))),
            r"x in .* has 1e\+39, and float32 ends at 3\.40.*; remove those samples",
        ),
        (packed(x=npy(np.full((4, 16), -1e39))), r"x in .* has -1e\+39, and float32 ends at -3\.40.*; remove"),
        (packed(x=npy(np.full((4, 16), np.longdouble("1e4000")))), r"x in .* has 1e\+4000, and float32 ends at 3\.40"),
    ],
)
def test_npz_that_cannot_be_used_is_one_sentence(content: bytes, sentence: str, tmp_path: Path) -> None:
    if "4000" in sentence and np.finfo(np.longdouble).max <= np.finfo(np.float64).max:
        pytest.skip("long doubles have 64 bits here")
    path = tmp_path / "set.npz"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=sentence) as raised:
        calibration.load(path, ["x"], [torch.zeros(1, 16)], None, False)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("dtype", "value", "end"),
    [(torch.int64, 2**63, 2**63 - 1), (torch.int32, 2**31, 2**31 - 1), (torch.uint8, -1, 0)],
)
def test_integers_that_an_input_does_not_hold_are_refused(
    dtype: torch.dtype, value: int, end: int, tmp_path: Path
) -> None:
    path = tmp_path / "set.npz"
    np.savez(path, x=np.full((4, 16), value, np.int64 if value < 0 else np.uint64))
    with pytest.raises(BadInput, match=rf"x in .* has {value}, and {str(dtype)[6:]} ends at {end}; remove those"):
        calibration.load(path, ["x"], [torch.zeros(1, 16, dtype=dtype)], None, False)


@pytest.mark.parametrize("kind", [">f4", ">f8", "<f2", ">f2", "g", ">i4", ">u8", "u1", "?"])
def test_numbers_of_every_width_and_order_of_bytes_are_read(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "set.npz"
    values = np.arange(64).reshape(4, 16) % (2 if kind == "?" else 64)
    np.savez(path, x=np.asfortranarray(values.astype(kind)))
    dtype = {"f": torch.float32, "b": torch.bool}.get(np.dtype(kind).kind, torch.int64)
    ((first,),) = calibration.load(path, ["x"], [torch.zeros(2, 16, dtype=dtype)], None, False).inputs
    assert first.dtype == dtype
    assert torch.equal(first.long(), torch.from_numpy(values[:2]))


def test_an_array_that_is_no_input_need_not_be_readable(tmp_path: Path) -> None:
    path = tmp_path / "set.npz"
    np.savez(path, x=ROWS, names=np.array(["a", None], dtype=object))
    assert len(calibration.load(path, ["x"], [torch.zeros(1, 16)], None, False).inputs) == 3


def test_a_single_array_ends_the_command_line_with_2(tmp_path: Path, edgesmith: Callable[..., Any]) -> None:
    path = tmp_path / "set.npz"
    path.write_bytes(npy(ROWS))
    options = (
        "-t",
        "onnx",
        "-p",
        "int8",
        "--input-size",
        "32",
        "--calibration",
        str(path),
        "-o",
        str(tmp_path / "out"),
    )
    result = edgesmith("export", "-m", "efficientvim_m1", *options)
    assert result.returncode == 2
    assert "is a single array (.npy), wanted an .npz" in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr


def test_inputs_fill_calls_by_their_own_first_axes(tmp_path: Path) -> None:
    path = tmp_path / "set.npz"
    np.savez(path, a=np.arange(8.0).reshape(8, 1), b=np.arange(16.0), c=np.arange(4))
    examples = [torch.zeros(2, 1), torch.zeros(4), torch.tensor(3)]
    found = calibration.load(path, ["a", "b", "c"], examples, None, False)
    calls = [*found.inputs, *(found.held_out or [])]
    assert [x[0].flatten().tolist() for x in calls] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert [x[1].tolist() for x in calls] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15]]
    assert [x[2].item() for x in calls] == [0, 1, 2, 3]
    assert all(tuple(x.shape) == tuple(e.shape) for call in calls for x, e in zip(call, examples, strict=True))


def test_arrays_that_fill_different_numbers_of_calls_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "set.npz"
    np.savez(path, a=np.zeros((64, 16), np.float32), b=np.zeros(64, np.float32))
    sentence = "must have as many batches as the others, got a 64 in batches of 1, b 64 in batches of 16"
    with pytest.raises(BadInput, match=sentence):
        calibration.load(path, ["a", "b"], [torch.zeros(1, 16), torch.zeros(16)], None, False)
    with pytest.raises(BadInput, match="the input a has a batch of 0, which no samples fill; leave the option out"):
        calibration.load(path, ["a"], [torch.zeros(0, 16)], None, False)


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(16, 16)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        out: Tensor = self.linear(a * b)
        return out


def test_export_calibrates_inputs_with_different_first_axes(tmp_path: Path) -> None:
    path, rng = tmp_path / "set.npz", np.random.default_rng(0)
    np.savez(path, a=rng.standard_normal((8, 16), np.float32), b=rng.standard_normal(8 * 16, np.float32))
    options: dict[str, Any] = {"precision": "int8", "calibration": path, "out": tmp_path / "out"}
    made = edgesmith.export(Scaled(), "onnx", inputs=(torch.randn(1, 16), torch.randn(16)), **options)
    assert made.manifest["int8"]["calibration"]["calls"] == 6
    assert made.manifest["verification"]["steps"][2]["snr_db"] >= 20


def test_a_sample_that_the_model_does_not_take_is_one_sentence() -> None:
    program = capture(nn.Sequential(nn.Embedding(10, 16), nn.Linear(16, 4)), (torch.zeros(1, 3, dtype=torch.int64),))
    given = [[torch.full((1, 3), i)] for i in (5, 99)]
    with pytest.raises(BadInput, match=r"does not run on what it was given \(index out of range.*\); give samples"):
        quantise(program, given, 20.0)


def test_images_are_refused_for_a_model_that_reads_none(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"is a folder of images, and this model reads none; give an \.npz"):
        calibration.load(tmp_path, ["x"], [torch.zeros(1, 4)], None, False)


def test_arrays_of_different_lengths_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "set.npz"
    np.savez(path, a=np.zeros((3, 2), np.float32), b=np.zeros((4, 2), np.float32))
    with pytest.raises(BadInput, match="must have as many samples as the others, got a 3, b 4"):
        calibration.load(path, ["a", "b"], [torch.zeros(1, 2)] * 2, None, False)


def test_a_model_without_layers_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with (
        pytest.raises(Unsupported, match="this model has none; use --precision fp32"),
        pytest.warns(calibration.RandomCalibration),
    ):
        edgesmith.export(nn.ReLU(), "onnx", inputs=torch.randn(1, 4), precision="int8", out=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "weights"), [("casvit_xs", "fixture"), ("efficientvim_m1", None), ("affnet_et", None)]
)
def test_three_models_reach_20_db_with_four_fifths_of_their_macs_in_int8(
    name: str, weights: str | None, fixtures: Path, rebuild: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the published size, on held-out inputs, and engines for two capabilities.

    CAS-ViT's initial weights leave its residual branches nearly silent, so it has those of the fixture. EfficientViM's
    fixture is no network for int8: one layer of 8 bits alone leaves 10.5 dB.
    """
    checkpoint = tmp_path / "weights.pth"
    if weights is not None:
        state, _, _, meta = rebuild.load(fixtures / f"{name}.npz")
        torch.save({meta["envelope"]: state} if meta["envelope"] else state, checkpoint)
    with random_calibration():
        made = edgesmith.export(
            name, "onnx", weights=checkpoint if weights else None, precision="int8", out=tmp_path / "out"
        )
    assert made.manifest["verification"]["steps"][2]["snr_db"] >= 20
    assert made.manifest["int8"]["share_of_macs"] >= 0.8
    counts = made.manifest["operators"]["file"]
    assert counts["DequantizeLinear"] > counts["QuantizeLinear"] > 20
    if targets.get("tensorrt").missing_packages():
        pytest.skip("tensorrt_rtx is not installed")
    if made.manifest["int8"]["joined"]:  # TensorRT takes no activations without a sign
        monkeypatch.setattr(int8, "_join", lambda *_: None)
        with random_calibration():
            made = edgesmith.export(name, "onnx", weights=checkpoint, precision="int8", out=tmp_path / "signed")
    for capability in ("8.6", "12.0"):
        content, _ = build(made.file, capability)
        assert content.startswith(b"vtrt")
