"""Core ML artifacts: their numbers by the evaluator, mixed precision, damage that is named, and states."""

from __future__ import annotations

import gc
import json
import shutil
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Run
from torch import Tensor, nn

import edgesmith
from edgesmith.errors import BadInput, Unsupported, VerificationFailed
from edgesmith.exporters import targets
from edgesmith.exporters.artifact import Artifact
from edgesmith.exporters.graph.capture import Renamed
from edgesmith.exporters.mil import placement
from edgesmith.exporters.mil.states import SCALE, KeepsStates, held_as
from edgesmith.exporters.session import StreamingSession
from edgesmith.exporters.targets import _coreml_convert, _coreml_file
from edgesmith.exporters.targets.coreml import TARGET
from edgesmith.exporters.targets.target import NotHere
from edgesmith.exporters.verify import verify_layers as layers
from edgesmith.kernels import lif

pytestmark = pytest.mark.skipif(bool(targets.get("coreml").missing_packages()), reason="coremltools is not installed")


class Loud(nn.Module):
    """Activations of some 70,000 in one layer, weights and outputs of ordinary size."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.loud = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.quiet, self.head = nn.Conv2d(8, 8, 1), nn.Linear(8, 10)
        with torch.no_grad():
            self.first.weight.mul_(300)
            self.loud.weight.mul_(450)
            self.quiet.weight.div_(1000)
            self.head.weight.div_(100)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.quiet(torch.relu(self.loud(torch.relu(self.first(x))))).mean((2, 3)))


def test_a_network_that_overflows_is_diagnosed_and_saved_by_mixed_precision(tmp_path: Path) -> None:
    model, x = Loud().eval(), torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        assert 70_000 < model.loud(torch.relu(model.first(x))).abs().max() < 200_000
    with pytest.raises(VerificationFailed, match=r"error inf .*conv.*, in loud\), which makes .* ends at 65504"):
        edgesmith.export(model, "coreml", inputs=x, precision="fp16", out=tmp_path)
    allowed = edgesmith.export(model, "coreml", inputs=x, precision="fp16", allow_inaccurate=True, out=tmp_path)
    (sentence,) = json.loads((allowed.path / "manifest.json").read_text())["verification"]["missed"]
    assert "ends at 65504" in sentence
    assert allowed.manifest["verification"]["steps"][-1]["relative_error"] is None  # infinite, which JSON has not
    artifact = edgesmith.export(model, "coreml", inputs=x, precision="mixed", out=tmp_path)
    assert artifact.path.name == "loud-coreml-mixed"
    kept = artifact.manifest["keep_fp32"]
    assert 1 <= len(kept) <= 4
    assert all("half precision ends at 65504" in reason for reason in kept.values())
    step = artifact.manifest["verification"]["steps"][-1]
    assert step["snr_db"] >= 40
    kinds = {one["dtype"] for one in edgesmith.layers(artifact.path) if one["type"] == "conv"}
    assert kinds == {"fp16", "fp32"}


class Cancelling(nn.Module):
    """A difference of two large, nearly equal values: no overflow, and half precision keeps nothing of it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.head((y + 100.0).square() - 10_000.0) / 100


def test_mixed_precision_keeps_fp32_what_loses_the_signal(tmp_path: Path) -> None:
    model, x = Cancelling().eval(), torch.randn(1, 3, 16, 16)
    with pytest.raises(VerificationFailed, match="eager -> file"):
        edgesmith.export(model, "coreml", inputs=x, precision="fp16", out=tmp_path)
    artifact = edgesmith.export(model, "coreml", inputs=x, precision="mixed", out=tmp_path)
    assert artifact.manifest["keep_fp32"]
    assert artifact.manifest["verification"]["steps"][-1]["snr_db"] >= 40


def test_mixed_precision_of_a_quiet_network_is_half_precision(export_small: Callable[..., Artifact]) -> None:
    artifact = export_small("coreml", precision="mixed")
    assert artifact.manifest["keep_fp32"] == {}
    assert artifact.manifest["verification"]["judged_as"] == "fp16"
    half = export_small("coreml", precision="fp16")
    assert artifact.manifest["operators"]["file"] == half.manifest["operators"]["file"]


def test_a_corrupt_weight_is_found_and_its_operator_named(export_small: Callable[..., Artifact]) -> None:
    artifact = export_small("coreml", precision="fp32")
    (weights,) = artifact.file.rglob("weight.bin")
    content = bytearray(weights.read_bytes())
    place = len(content) // 2 // 64 * 64  # in the middle of the largest blobs
    content[place : place + 4] = struct.pack("<f", 50.0)
    weights.write_bytes(bytes(content))
    with pytest.raises(
        VerificationFailed, match=r"weight.bin was altered; its numbers are others from \S+ \(conv"
    ) as e:
        edgesmith.verify(artifact.path)
    assert ", in " in str(e.value)  # the model's module


def test_a_corrupt_parameter_is_found_and_its_operator_named(export_small: Callable[..., Artifact]) -> None:
    from coremltools.proto import Model_pb2

    artifact = export_small("coreml", precision="fp32")
    (specification,) = artifact.file.rglob("model.mlmodel")
    model = Model_pb2.Model()
    model.ParseFromString(specification.read_bytes())
    (function,) = model.mlProgram.functions.values()
    operations = function.block_specializations[function.opset].operations
    norms = [i for i, op in enumerate(operations) if op.type == "gelu"]
    mode = operations[norms[1]].inputs["mode"].arguments[0]
    if mode.WhichOneof("binding") == "name":
        made = {output.name: op for op in operations for output in op.outputs}
        mode_value = made[mode.name].attributes["val"]
    else:
        mode_value = mode.value
    strings = mode_value.immediateValue.tensor.strings
    assert strings.values[0] == "EXACT"
    changed = Model_pb2.Model()
    changed.CopyFrom(model)
    strings.values[0] = "SIGMOID_APPROXIMATION"
    specification.write_bytes(model.SerializeToString(deterministic=True))
    with pytest.raises(VerificationFailed, match=r"model.mlmodel was altered; its numbers are others from \S+ \(gelu"):
        edgesmith.verify(artifact.path)


def test_a_package_cut_short_says_so(export_small: Callable[..., Artifact]) -> None:
    artifact = export_small("coreml", precision="fp32")
    (weights,) = artifact.file.rglob("weight.bin")
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(VerificationFailed, match=r"weight.bin was altered; its numbers are others from .*weight.bin"):
        edgesmith.verify(artifact.path)


def test_images_and_labels_are_evaluated(tmp_path: Path) -> None:
    labels = [f"class {i}" for i in range(1000)]
    options = {"input_size": (64, 96), "image_input": True, "labels": labels}
    artifact = edgesmith.export("casvit_xs", "coreml", precision="fp32", out=tmp_path, **options)  # type: ignore[arg-type]
    step = artifact.manifest["verification"]["steps"][-1]
    assert step["runtime"] == "edgesmith's evaluator"
    assert step["relative_error"] <= 1e-5


def test_layers_show_every_operator(export_small: Callable[..., Artifact]) -> None:
    artifact = export_small("coreml", precision="fp16")
    found = edgesmith.layers(artifact.path)
    convolutions = [one for one in found if one["type"] == "conv"]
    assert len(convolutions) == artifact.manifest["operators"]["file"]["conv"]
    assert all(one["module"] and one["minimum"] < one["maximum"] and one["snr_db"] > 40 for one in convolutions)
    json.dumps(found, allow_nan=False)
    onnx = export_small("onnx")
    with pytest.raises(BadInput, match="target onnx does not show its operators one by one; coreml does"):
        edgesmith.layers(onnx.path)


def test_layers_of_another_target_are_refused_before_anything_is_checked(
    export_small: Callable[..., Artifact], edgesmith: Run
) -> None:
    onnx = export_small("onnx")
    onnx.file.write_bytes(b"no longer what it was")  # which verify would say first
    shown = edgesmith("verify", str(onnx.path), "--layers")
    assert shown.returncode == BadInput.exit_code
    assert shown.stderr == "edgesmith: target onnx does not show its operators one by one; coreml does\n"


@pytest.mark.no_cover  # the lines of any export
@pytest.mark.parametrize("name", ["efficientvim_m1", "affnet_et", "lmuformer"])
def test_the_evaluator_and_core_ai_agree(name: str, tmp_path: Path) -> None:
    """Apple's own runtime, on another file of the same model, is an independent judge of the evaluator."""
    core_ai = targets.get("coreai")
    if core_ai.missing_packages():
        pytest.skip("coreai-torch is not installed")
    options = {} if name == "lmuformer" else {"input_size": (96, 128)}
    made = {
        target: edgesmith.export(name, target, precision="fp32", out=tmp_path, **options)  # type: ignore[arg-type]
        for target in ("coreml", "coreai")
    }
    for artifact in made.values():
        judged = artifact.manifest["verification"]["steps"][-1]
        assert judged["relative_error"] <= 1e-5
        assert judged["snr_db"] >= 100
    files = {target: artifact.file for target, artifact in made.items()}
    shape = (1, 128, 128) if name == "lmuformer" else (1, 3, 96, 128)
    x = np.random.default_rng(7).standard_normal(shape, dtype=np.float32)
    outputs = [targets.get(target).open(file).run([[x]]) for target, file in files.items()]
    assert not any(isinstance(one, NotHere) for one in outputs)
    (ours,), (theirs,) = (one[0] for one in outputs)  # type: ignore[index]
    assert np.abs(theirs).max() > 0
    assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max()


class Foreign(nn.Module):
    """Operators that coremltools has no translation for, as ConvNeXt V2 and GhostNet V2 use them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.scale, self.shift = (
            nn.Conv2d(3, 4, 3),
            nn.Parameter(torch.randn(4)),
            nn.Parameter(torch.randn(4)),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        norm = torch.linalg.vector_norm(y, dim=(2, 3), keepdim=True)
        broadcast = (1, -1, 1, 1)
        y = y + torch.addcmul(self.shift.view(broadcast), self.scale.view(broadcast), y * norm)
        return torch.ops.aten.alias.default(torch.addcmul(y, y, y, value=-0.5))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_operators_that_coremltools_lacks_are_translated(precision: str, tmp_path: Path) -> None:
    x = torch.randn(1, 3, 8, 9)
    artifact = edgesmith.export(Foreign(), "coreml", inputs=x, name="foreign", precision=precision, out=tmp_path)
    step = artifact.manifest["verification"]["steps"][-1]
    assert step["runtime"] == "edgesmith's evaluator"
    assert step["relative_error"] <= {"fp32": 1e-6, "fp16": 5e-3}[precision]


class Affine(nn.Module):
    """A product and a sum over channels; `conv` in front of them, where there is one, takes both."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = conv
        self.scale, self.shift = (nn.Parameter(torch.randn(1, 4, 1, 1)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(x) * self.scale + self.shift)


def test_a_product_and_a_sum_are_exact_in_fp32(tmp_path: Path) -> None:
    """As a batch norm of variance 1 and epsilon 1e-5, which coremltools makes of them, they are 5e-6 too small."""
    x = torch.randn(1, 4, 8, 9)
    artifact = edgesmith.export(Affine(nn.Tanh()), "coreml", inputs=x, precision="fp32", out=tmp_path)
    assert artifact.manifest["operators"]["file"] == {"tanh": 1, "mul": 1, "add": 1, "relu": 1}
    assert artifact.manifest["verification"]["steps"][-1]["relative_error"] <= 2e-7


def test_a_convolution_takes_the_product_and_the_sum_behind_it() -> None:
    """By coremltools' other passes; our rewrites, which do it before them, are left out."""
    import coremltools as ct

    from edgesmith.exporters.targets._coreml_convert import passes

    x = torch.randn(1, 3, 8, 9)
    exported = torch.export.export(Affine(nn.Conv2d(3, 4, 3)).eval(), (x,)).run_decompositions({})
    model = ct.convert(exported, pass_pipeline=passes(), skip_model_load=True)
    kinds = [op.op_type for op in model._mil_program.functions["main"].operations if op.op_type != "const"]
    assert [kind for kind in kinds if kind != "cast"] == ["conv", "relu"]


# The target, and a package that is open


def test_deployment_targets_are_those_that_coremltools_knows_from_ios_16_on() -> None:
    import coremltools as ct

    known = [one.name for one in ct.target if one.name.startswith("iOS") and int(one.name[3:]) >= 16]
    assert list(TARGET.deployment_targets) == known
    assert TARGET.default_deployment_target in known
    assert [TARGET.deployment_target(name) for name in known] == [ct.target[name] for name in known]
    assert TARGET.deployment_target(None) == ct.target[TARGET.default_deployment_target]
    with pytest.raises(BadInput, match=r"unknown deployment target 'iOS3'\. There are iOS16, iOS17"):
        TARGET.deployment_target("iOS3")


def test_an_export_reads_its_package_once(small: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once to describe it as it is lowered, and once as it is opened, whatever the export asks of it."""
    described, opened = [], []
    read_specification, load = _coreml_convert.read_specification, _coreml_file.load
    monkeypatch.setattr(_coreml_convert, "read_specification", lambda p: described.append(p) or read_specification(p))
    monkeypatch.setattr(_coreml_file, "load", lambda p: opened.append(p) or load(p))
    edgesmith.export(small, "coreml", inputs=torch.randn(1, 3, 32, 32), precision="fp16", out=tmp_path)
    assert (len(described), len(opened)) == (1, 1)


def test_a_file_answers_from_one_reading(
    export_small: Callable[..., Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = export_small("coreml", precision="fp16")
    file = TARGET.open(artifact.file)
    file.check()
    monkeypatch.setattr(_coreml_file, "load", None)
    shape = artifact.manifest["model"]["inputs"][0]["shape"]
    x = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    assert sum(file.count_operators().values()) == sum(artifact.manifest["operators"]["file"].values())
    (((values,),)) = file.run([[x]])  # type: ignore[misc]
    assert np.isfinite(values).all()
    assert len(file.trace([x])) >= sum(file.count_operators().values())  # a split has several results
    assert file.diagnose([x]) is None
    assert file.layers([[x]])
    assert file.lossy_operators([[x]], 40.0) == {}
    assert (file.labels, file.largest_rank, file.shared_bytes(), file.legalizations()) == ([], 4, 0, [])
    assert edgesmith.lint(file.program) == edgesmith.lint(artifact.path)


@pytest.mark.parametrize("damage", ["Manifest.json", "model.mlmodel"])
def test_a_damaged_package_is_refused_by_its_check(
    damage: str, export_small: Callable[..., Artifact], tmp_path: Path
) -> None:
    path = Path(shutil.copytree(export_small("coreml").file, tmp_path / "damaged.mlpackage"))
    (file,) = path.rglob(damage)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(Unsupported, match=r"damaged\.mlpackage"):
        TARGET.open(path).check()


# Compute plans


class RecordedPlan:
    """A plan as coremltools' MLComputePlan answers: its own classes over what a Mac would have said."""

    def __init__(self, operations: list[tuple[str, str, str | None, float | None]]) -> None:
        from coremltools.models import compute_plan as ct

        def operation(kind: str, output: str, blocks: list[ct.MLModelStructureProgramBlock]) -> object:
            outputs = [ct.MLModelStructureProgramNamedValueType(output, ct.MLModelStructureProgramValueType())]
            return ct.MLModelStructureProgramOperation({}, f"ios17.{kind}", outputs, blocks, None)

        inner = [operation(kind, output, []) for kind, output, *_ in operations[:1]]
        loop = operation("while_loop", "loop", [ct.MLModelStructureProgramBlock([], inner, ["a"])])
        made = [loop, *(operation(kind, output, []) for kind, output, *_ in operations[1:])]
        block = ct.MLModelStructureProgramBlock([], made, [operations[-1][1]])
        function = ct.MLModelStructureProgramFunction([], block)
        self.model_structure = ct.MLModelStructure(None, ct.MLModelStructureProgram({"main": function}), None)
        self.answers = {output: (device, cost) for _, output, device, cost in operations}

    def get_compute_device_usage_for_mlprogram_operation(self, operation: Any) -> Any:
        from coremltools.models import compute_device, compute_plan

        name, _ = self.answers.get(operation.outputs[0].name, (None, None))
        if name is None:
            return None
        kinds = (name, "MLCPUComputeDevice")
        classes = [getattr(compute_device, kind) for kind in dict.fromkeys(kinds)]
        devices = [kind.__new__(kind) for kind in classes]  # their constructors want Apple's objects
        return compute_plan.MLComputePlanDeviceUsage(devices[0], devices)

    def get_estimated_cost_for_mlprogram_operation(self, operation: Any) -> Any:
        from coremltools.models import compute_plan

        _, cost = self.answers.get(operation.outputs[0].name, (None, None))
        return None if cost is None else compute_plan.MLComputePlanCost(cost)


def test_a_compute_plan_is_read_operator_by_operator() -> None:
    plan = RecordedPlan(
        [
            ("add", "a", "MLCPUComputeDevice", 0.25),
            ("const", "w", None, None),
            ("conv", "b", "MLNeuralEngineComputeDevice", 0.5),
            ("relu", "c", "MLGPUComputeDevice", None),
        ]
    )
    found = placement.read(plan)
    assert [(one.output, one.type, one.device, one.cost) for one in found] == [
        ("a", "add", "cpu", 0.25),
        ("loop", "while_loop", None, None),
        ("b", "conv", "neural engine", 0.5),
        ("c", "relu", "gpu", None),
    ]
    assert [one.supported for one in found] == [("cpu",), (), ("neural engine", "cpu"), ("gpu", "cpu")]


def test_layers_show_the_plan_where_there_is_one(
    export_small: Callable[..., Artifact], edgesmith: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = export_small("coreml", precision="fp16")
    if sys.platform != "darwin":
        reason = placement.cannot_plan()
        assert reason is not None
        assert "on macOS only" in reason
    output = next(one["operator"] for one in layers(artifact.path) if one["type"] == "conv")
    planned = [placement.Placement(output, "conv", "neural engine", ("neural engine", "cpu"), 0.125)]
    monkeypatch.setattr(placement, "cannot_plan", lambda: None)
    monkeypatch.setattr(placement, "plan", lambda path, function: planned)
    shown = edgesmith("verify", str(artifact.path), "--layers").stdout
    assert "share" in shown
    rows = json.loads(edgesmith("verify", str(artifact.path), "--layers", "--json").stdout)["operators"]
    assert [(one["operator"], one["device"], one["cost"]) for one in rows if "device" in one] == [
        (output, "neural engine", 0.125)
    ]


# Step programs


class Neurons(nn.Module):
    """Convolutions, neurons that begin at 0.3, and the mean so far: every kind of state. [B, T, 3] -> [B, 2]"""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.conv, self.ahead, self.head = nn.Conv1d(3, 4, 3, padding=1), nn.Conv1d(4, 4, 3, padding=1), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.ahead(lif.OP.overload(3 * self.conv(x.transpose(1, 2)), 2.0, 1.0, 0.3))
        return self.head(y.mean(2))


@pytest.mark.parametrize(("system", "precision"), [("iOS17", "fp32"), ("iOS18", "fp32"), ("iOS18", "fp16")])
def test_steps_carry_their_states(system: str, precision: str, tmp_path: Path) -> None:
    model = Neurons().eval() if precision == "fp32" else nn.Sequential(nn.Linear(3, 4), Mean())
    artifact = edgesmith.export(
        model,
        "coreml",
        inputs=torch.randn(1, 20, 3),
        name="own",
        streaming=True,
        precision=precision,
        deployment_target=system,
        out=tmp_path,
    )
    streaming = artifact.manifest["streaming"]
    inputs = [entry["name"] for entry in artifact.manifest["model"]["inputs"]]
    kept = {state["name"] for state in streaming["states"]}
    assert streaming["kept_by"] == ("caller" if system == "iOS17" else "runtime")
    assert kept.isdisjoint(inputs) == (system == "iOS18")
    step = artifact.manifest["verification"]["steps"][-1]
    assert step["sequences"] == artifact.manifest["verification"]["inputs"]["count"]
    assert step["relative_error"] <= (1e-5 if precision == "fp32" else 1e-2)
    session, x = StreamingSession(artifact.path), np.random.default_rng(0).standard_normal((1, 33, 3), dtype=np.float32)
    with torch.no_grad():
        expected = model(torch.from_numpy(x)).numpy()
    for _ in range(2):  # from a reset on, twice the same
        last = session.run(x)[-1]
        assert np.abs(last - expected).max() <= (1e-5 if precision == "fp32" else 1e-2) * np.abs(expected).max()


@pytest.mark.parametrize("target", ["coreml", "onnx", "coreai"])
def test_half_precision_keeps_a_mean_over_thousands_of_frames(target: str, tmp_path: Path) -> None:
    """One half alone loses what comes after 2048 times its size, the number of frames first of all."""
    if targets.get(target).missing_packages():
        pytest.skip(f"{target} is not installed")
    system = {"deployment_target": "iOS18"} if target == "coreml" else {}
    artifact = edgesmith.export(
        Mean(), target, inputs=torch.randn(1, 40, 3), streaming=True, precision="fp16", out=tmp_path, **system
    )
    x = 1 + np.random.default_rng(0).standard_normal((1, 5000, 3), dtype=np.float32)
    last = StreamingSession(artifact.path).run(x)[-1]
    assert np.abs(last - x.mean(1)).max() <= 1e-3 * np.abs(x.mean(1)).max()


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


def test_long_sequences_are_streamed_through_an_interpreter_less_often(tmp_path: Path) -> None:
    model, x = nn.Sequential(nn.Linear(3, 4), Mean()), torch.randn(1, 400, 3)
    artifact = edgesmith.export(model, "coreml", inputs=x, name="own", streaming=True, out=tmp_path)
    *_, program, file = artifact.manifest["verification"]["steps"]
    assert (program["step"], program["sequences"], program["frames"]) == ("eager -> step program", 3, 400)
    assert (file["step"], file["sequences"], file["frames"]) == ("eager -> file", 2, 400)


def test_two_halves_keep_22_bits() -> None:
    states = [{"name": "s", "shape": [4096], "initial": 0.25}]
    keeper = KeepsStates(Passed(), states, half=False)
    assert [name for name, _ in keeper.named_buffers()] == held_as("s", False) == ["s_high", "s_low"]
    value = torch.randn(4096, generator=torch.Generator().manual_seed(0)) * 2.0 ** torch.arange(-10, 6).repeat(256)
    keeper(value)
    kept = keeper._read(states[0])
    assert ((kept - value).abs() <= 2**-22 * (value - 0.25).abs() + 2**-24 * value.abs()).all()
    assert SCALE == 2**11


class Passed(nn.Module):
    """A step whose next state is its input."""

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        return state, x


def test_mixed_precision_and_steps_do_not_go_together(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="--precision mixed looks at whole inputs and --streaming has steps"):
        edgesmith.export("lmuformer", "coreml", streaming=True, precision="mixed", out=tmp_path)


# A step and its sequence in one package


class Frames(nn.Module):
    """Convolutions, a hidden layer and the mean over all frames. [B, T, 3] -> [B, 2]"""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.conv, self.ahead = nn.Conv1d(3, 24, 3, padding=1), nn.Conv1d(24, 24, 3, padding=1)
        self.head = nn.Linear(24, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.ahead(torch.relu(self.conv(x.transpose(1, 2)))))
        return self.head(y.mean(2))


BOTH: dict[str, Any] = {"streaming": True, "with_sequence": True, "deployment_target": "iOS18"}


@pytest.fixture(scope="module", params=["fp32", "fp16"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return edgesmith.export(
        Frames().eval(),
        "coreml",
        inputs=torch.randn(1, 20, 3),
        name="own",
        precision=request.param,
        out=tmp_path_factory.mktemp("both"),
        **BOTH,
    )


def test_both_functions_are_verified_and_described(both: Artifact) -> None:
    assert both.path.name == f"own-coreml-{both.precision}-streaming-with-sequence-iOS18"
    checks = {check["step"]: check for check in both.manifest["verification"]["steps"]}
    _, again = edgesmith.verify(both.path)
    for step in ("eager -> file", "eager -> sequence in the file"):
        assert checks[step]["runtime"] == "edgesmith's evaluator"
        assert checks[step]["relative_error"] <= (1e-6 if both.precision == "fp32" else 5e-3)
        assert checks[step] in again
    functions = both.manifest["functions"]
    assert functions["default"] == "step"
    assert [one["shape"] for one in functions["step"]["inputs"]] == [[1, 3], [1]]
    assert functions["step"]["states"] == [state["name"] for state in both.manifest["streaming"]["states"]]
    assert functions["sequence"] == {
        "inputs": [{"name": "x", "shape": [1, 20, 3]}],
        "outputs": ["output"],
        "states": [],
    }


def test_a_package_of_both_opens_everywhere(both: Artifact, tmp_path: Path) -> None:
    session, x = StreamingSession(both.path), np.random.default_rng(0).standard_normal((1, 20, 3), dtype=np.float32)
    last = session.run(x)[-1]
    (((whole,),)) = targets.get("coreml").open(both.file).run([[x]])  # type: ignore[misc]
    allowed = {"fp32": 1e-5, "fp16": 1e-2}[both.precision] * np.abs(whole).max()
    assert np.abs(last - whole).max() <= allowed
    report = edgesmith.lint(both.path)
    assert report.operators == sum(both.manifest["operators"]["file"].values())
    assert {one.function for one in report.findings} == {"step", "sequence"}
    assert both.precision == "fp32" or not report.counts["error"]
    rows = edgesmith.layers(both.path)
    assert {one.get("function") for one in rows} == {None, "sequence"}
    modules = {one["module"] for one in rows if one.get("function") and one["type"] == "conv"}
    assert modules == {"conv", "ahead"} or both.precision == "fp16"


def test_damage_to_the_sequence_alone_is_named(both: Artifact, tmp_path: Path) -> None:
    from coremltools.proto import Model_pb2

    copied = Path(shutil.copytree(both.path, tmp_path / "copy"))
    (specification,) = copied.rglob("model.mlmodel")
    model = Model_pb2.Model()
    model.ParseFromString(specification.read_bytes())
    function = model.mlProgram.functions["sequence"]
    relus = [op for op in function.block_specializations[function.opset].operations if op.type == "relu"]
    relus[1].type = "sigmoid"
    specification.write_bytes(model.SerializeToString(deterministic=True))
    with pytest.raises(
        VerificationFailed, match=r"model.mlmodel was altered; its numbers are others from sequence: \S+"
    ):
        edgesmith.verify(copied)


def test_a_conversion_collects_no_older_garbage_and_a_callers_frozen_objects_stay() -> None:
    frozen = _coreml_convert._older_objects_uncollected
    with frozen():
        assert gc.get_freeze_count() > 0  # conftest.py's
    assert gc.get_freeze_count() > 0
    gc.unfreeze()
    try:
        with frozen():
            assert gc.get_freeze_count() > 0
        assert gc.get_freeze_count() == 0
    finally:
        gc.freeze()


@pytest.mark.parametrize("name", ["lmuformer", "spiking_lmuformer"])
def test_a_step_and_its_sequence_share_their_weights(name: str, tmp_path: Path) -> None:
    both = edgesmith.export(name, "coreml", precision="fp32", frames=40, out=tmp_path, **BOTH)
    alone = edgesmith.export(name, "coreml", precision="fp32", frames=40, out=tmp_path)

    def size(artifact: Artifact) -> int:
        return sum(file.stat().st_size for file in artifact.file.rglob("weight.bin"))

    assert both.manifest["functions"]["shared_bytes"] >= 0.9 * size(alone)
    assert size(both) <= 1.15 * size(alone)


def test_what_a_package_of_both_needs_is_said_at_once(tmp_path: Path) -> None:
    for target, options, sentence in (
        ("coreml", {"streaming": False}, "--with-sequence puts .* beside the step; give --streaming too"),
        ("coreml", {"deployment_target": None}, "systems from iOS18 on take; give --deployment-target iOS18"),
        ("onnx", {"deployment_target": None}, "target onnx has no --with-sequence; coreml does"),
    ):
        with pytest.raises(BadInput, match=sentence):
            edgesmith.export("lmuformer", target, out=tmp_path, **{**BOTH, **options})


@pytest.mark.parametrize("word", sorted(TARGET.reserved_names))
def test_words_of_core_mls_own_are_those_that_coremltools_changes(word: str) -> None:
    from coremltools.converters.mil.mil.passes.defs.preprocess import NameSanitizer

    assert NameSanitizer().sanitize_name(word) != word
    assert NameSanitizer().sanitize_name(f"{word}_") == f"{word}_"


class Recurrent(nn.Module):
    """Has an input and outputs with words of Core ML's own, one of them beside its replacement."""

    def forward(self, x: Tensor, state: Tensor) -> dict[str, Tensor]:
        return {"tensor": x + state, "tensor_": x - state, "fp16": x * state}


def test_a_name_that_core_ml_keeps_for_itself_gets_a_line_behind_it(tmp_path: Path) -> None:
    model = Recurrent().eval()
    given = (torch.randn(2, 4), torch.randn(2, 4))
    with pytest.warns(
        Renamed, match="in the file state is state_, tensor is tensor__, fp16 is fp16_: the target keeps"
    ):
        made = edgesmith.export(model, "coreml", inputs=given, precision="fp32", out=tmp_path)
    interface = made.manifest["model"]["interface"]
    assert [one["name"] for one in interface["inputs"]] == ["x", "state_"]
    assert [one["name"] for one in interface["outputs"]] == ["tensor__", "tensor_", "fp16_"]
    edgesmith.verify(made.path)
    assert "state_" in (made.path / "USE.md").read_text(encoding="utf-8")
    other = edgesmith.export(model, "onnx", inputs=given, out=tmp_path)
    assert [one["name"] for one in other.manifest["model"]["interface"]["inputs"]] == ["x", "state"]
