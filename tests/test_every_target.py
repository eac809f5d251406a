"""Every target: its protocol, its files, their reproducibility, and what it answers to wrong options."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import edgesmith
from edgesmith.errors import BackendMissing, BadInput, OutputError, Unsupported
from edgesmith.exporters import targets
from edgesmith.exporters.artifact import Artifact
from edgesmith.exporters.precision import table as precisions
from edgesmith.exporters.targets._coreml_file import CoreMlFile
from edgesmith.exporters.targets.target import Request, Target
from edgesmith.models import registry
from edgesmith.models.checkpoint import load

TARGETS = list(targets.all_targets().values())
NAMES = [target.name for target in TARGETS]
NEEDED: dict[str, dict[str, object]] = {"tensorrt": {"device": "rtx3080"}}
"""Options without which a target exports nothing; conftest.py has the same for `export_small`."""
LABELS = [f"class {i}" for i in range(10)]


def available(target: Target) -> Target:
    missing = target.missing_packages()
    if missing:
        pytest.skip(f"{target.name}: {', '.join(missing)} not installed")
    return target


@pytest.mark.wheel
@pytest.mark.parametrize("target", TARGETS, ids=NAMES)
def test_target_says_what_it_is(target: Target) -> None:
    assert target.suffix.startswith(".")
    assert target.precisions
    assert set(target.precisions) <= precisions.all_precisions().keys()
    assert target.costs.launch_us > 0
    assert target.options <= {*Request.__dataclass_fields__, "streaming", "with_sequence"}


@pytest.mark.wheel
@pytest.mark.parametrize("target", TARGETS, ids=NAMES)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_target_exports_verifies_and_says_what_it_did(
    target: Target, precision: str, export_small: Callable[..., Artifact]
) -> None:
    if precision not in target.precisions:
        pytest.skip(f"{target.name} has {', '.join(target.precisions)}")
    artifact = export_small(target.name, precision=precision)
    assert artifact.target == target.name
    assert artifact.precision == precision
    assert artifact.file.name == f"casvit{target.suffix}"
    manifest = artifact.manifest
    assert manifest["operators"]["rewritten"]["edgesmith.additive_attention"] == 4
    is_one_operator = "edgesmith.additive_attention" in manifest["operators"]["file"]
    assert sum(manifest["operators"]["file"].values()) > (80 if is_one_operator else 100)
    captured, rewritten, file, *_ = manifest["verification"]["steps"]
    assert captured["relative_error"] == 0
    assert rewritten["relative_error"] <= 1e-6
    assert target.cannot_run() is None
    assert file["relative_error"] <= {"fp32": 2e-6, "fp16": 5e-3}[precision]
    assert file["top1"]["agreeing"] == file["top1"]["decided"]
    assert file["runtime"] == target.runtime
    again, steps = edgesmith.verify(artifact.path)
    assert again == artifact
    assert steps[0]["matching"] == len(manifest["files"])
    assert steps[2] == file


@pytest.mark.parametrize("target", TARGETS, ids=NAMES)
def test_target_writes_the_same_bytes_again(target: Target, export_small: Callable[..., Artifact]) -> None:
    """The artifact that tests share is of another moment, and, with several workers, of another process."""

    def digests(artifact: Artifact) -> dict[str, str]:
        files = [file for file in artifact.path.rglob("*") if file.is_file()]
        return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}

    before = digests(export_small(target.name))
    example = torch.randn(1, 3, 32, 64, generator=torch.Generator().manual_seed(0))
    assert before == digests(export_small(target.name, inputs=example))


@pytest.mark.parametrize("target", TARGETS, ids=NAMES)
def test_target_without_its_packages_says_what_to_install(
    target: Target, small: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == target.packages[0] else find(name, *a)
    )
    with pytest.raises(
        BackendMissing, match=rf"target {target.name} needs {target.packages[0]}.*: pip install"
    ) as raised:
        edgesmith.export(
            small, target.name, inputs=torch.randn(1, 3, 32, 32), out=tmp_path, **NEEDED.get(target.name, {})
        )
    assert raised.value.exit_code == 4
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("target", TARGETS, ids=NAMES)
def test_target_refuses_a_damaged_file(target: Target, export_small: Callable[..., Artifact]) -> None:
    artifact = export_small(target.name)
    damaged = artifact.file
    programs = (file for file in damaged.rglob("*") if file.suffix in (".mlmodel", ".mlirb"))
    inner = damaged if damaged.is_file() else next(programs)
    inner.write_bytes(inner.read_bytes()[:1000])
    with pytest.raises(Unsupported):
        target.open(damaged).check()


@pytest.mark.no_cover  # the lines of any export, dozens of times
@pytest.mark.parametrize("size", ["1m", "3m", "5m"])
@pytest.mark.parametrize("target", TARGETS, ids=NAMES)
def test_target_on_a_full_disk_is_one_sentence(target: Target, size: str, tmp_path: Path) -> None:
    """A real file system with too little room, made with tmpfs; each size fails at another write."""
    available(target)
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("this user may not mount a file system; the write itself is tested in test_artifact.py")
    try:
        wide = nn.Sequential(nn.Linear(1500, 1500), nn.ReLU(), nn.Linear(1500, 700))  # 13 MB in fp32, 7 MB in fp16
        with pytest.raises(OutputError, match=r"cannot write to .*(No space left on device|could not be written)"):
            edgesmith.export(wide, target.name, inputs=torch.randn(1, 1500), out=disk, **NEEDED.get(target.name, {}))
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("target", TARGETS, ids=NAMES)
def test_target_names_the_operator_that_it_refuses(target: Target, tmp_path: Path) -> None:
    available(target)

    class Exotic(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.special.i1e(torch.linalg.eigvalsh(x))

    with pytest.raises(Unsupported, match=r"cannot express this model: .*(eigvalsh|eigh|i1e)") as raised:
        edgesmith.export(Exotic(), target.name, inputs=torch.eye(3), out=tmp_path, **NEEDED.get(target.name, {}))
    assert raised.value.exit_code == 6
    assert list(tmp_path.iterdir()) == []


class Lines(nn.Module):
    """A module from one function, with one linear layer at hand."""

    def __init__(self, function: Callable[..., object]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.function, self.linear = function, nn.Linear(4, 4)

    def forward(self, *inputs: torch.Tensor) -> object:
        return self.function(self, *inputs)


X = torch.randn(2, 4)
ODD = {
    "identity": (lambda s, x: x, (X,)),
    "input and result": (lambda s, x: (x, s.linear(x)), (X,)),
    "parameter and result": (lambda s, x: (s.linear.weight, s.linear(x)), (X,)),
    "the same twice": (lambda s, x: (lambda y: (y, y))(s.linear(x)), (X,)),
    "a scalar": (lambda s, x, scale: s.linear(x) * scale, (X, torch.tensor(2.0))),
    "a scalar first": (lambda s, scale, x: s.linear(x) * scale, (torch.tensor(2.0), X)),
    "an unused input": (lambda s, x, other: s.linear(x), (X, X)),
    "booleans": (lambda s, x, mask: torch.where(mask, s.linear(x), x), (X, X > 0)),
    "integers": (lambda s, x: s.linear(x.float()), (torch.arange(8).reshape(2, 4),)),
    "double": (lambda s, x: s.linear(x.float()).double(), (X.double(),)),
    "own casts": (lambda s, x: s.linear(x).float() * 2, (X,)),
}


@pytest.mark.no_cover  # the lines of any export, dozens of times
@pytest.mark.parametrize("target", TARGETS, ids=NAMES)
@pytest.mark.parametrize("case", ODD)
def test_unusual_modules_are_verified_again(case: str, target: Target, tmp_path: Path) -> None:
    available(target)
    function, inputs = ODD[case]
    for precision in {"fp32", "fp16"} & {*target.precisions}:
        options = {"inputs": inputs, "precision": precision, "out": tmp_path, "name": "odd"}
        options |= NEEDED.get(target.name, {})
        artifact = edgesmith.export(Lines(function), target.name, **options)  # type: ignore[arg-type]
        _, steps = edgesmith.verify(artifact.path)
        assert artifact.manifest["verification"]["steps"][-1] in steps


def test_onnx_has_metadata_names_of_modules_and_nothing_of_this_machine(tmp_path: Path) -> None:
    import onnx

    artifact = edgesmith.export(
        "casvit_xs", "onnx", input_size=(32, 32), labels=[f"c{i}" for i in range(1000)], out=tmp_path
    )
    model = onnx.load(str(artifact.file))
    facts = {prop.key: prop.value for prop in model.metadata_props}
    assert facts["edgesmith.name"] == "casvit_xs"
    assert facts["edgesmith.version"] == edgesmith.__version__
    assert facts["edgesmith.input.mean"] == "[0.485, 0.456, 0.406]"
    assert facts["edgesmith.labels"].startswith('["c0", "c1"')
    assert [value.name for value in model.graph.input] == ["image"]
    assert [value.name for value in model.graph.output] == ["logits"]
    assert any(node.name.startswith("network.0.0.attn/") for node in model.graph.node)
    content = artifact.file.read_bytes()
    assert str(Path.cwd()).encode() not in content
    assert b".py" not in content


def test_onnx_dynamic_batch_runs_at_any_batch(export_small: Callable[..., Artifact], small: nn.Module) -> None:
    artifact = export_small("onnx", inputs=torch.randn(2, 3, 32, 32), dynamic_batch=True)
    assert artifact.manifest["model"]["inputs"][0]["shape"] == ["batch", 3, 32, 32]
    x = torch.randn(5, 3, 32, 32)
    outputs = targets.get("onnx").open(artifact.file).run([[x.numpy()]])
    assert isinstance(outputs, list)
    assert np.abs(outputs[0][0] - small(x).detach().numpy()).max() < 1e-5


def coreml_spec(artifact: Artifact) -> object:
    from coremltools.proto import Model_pb2

    spec = Model_pb2.Model()
    spec.ParseFromString((artifact.file / "Data/com.apple.CoreML/model.mlmodel").read_bytes())
    return spec


def test_coreml_package_holds_only_what_apple_documents(export_small: Callable[..., Artifact]) -> None:
    artifact = export_small("coreml")
    files = sorted(file.relative_to(artifact.file).as_posix() for file in artifact.file.rglob("*") if file.is_file())
    data = "Data/com.apple.CoreML"
    assert files == [f"{data}/model.mlmodel", f"{data}/weights/weight.bin", "Manifest.json"]
    description = coreml_spec(artifact).description
    assert "conversion_date" not in str(description)
    types = description.input[0].type.multiArrayType, description.output[0].type.multiArrayType
    assert [t.ArrayDataType.Name(t.dataType) for t in types] == ["FLOAT16", "FLOAT32"]


def test_coreml_package_opens_with_coremltools(export_small: Callable[..., Artifact]) -> None:
    import coremltools as ct

    artifact = export_small("coreml")
    model = ct.models.MLModel(str(artifact.file), skip_model_load=True)
    assert model.short_description == artifact.model == "casvit"


@pytest.mark.parametrize(("wanted", "version"), [("iOS16", 7), (None, 8), ("iOS18", 9)])
def test_coreml_deployment_target_sets_the_specification(wanted: str | None, version: int, tmp_path: Path) -> None:
    available(targets.get("coreml"))
    model, x = nn.Conv2d(3, 4, 1), torch.randn(1, 3, 8, 8)
    artifact = edgesmith.export(model, "coreml", inputs=x, deployment_target=wanted, out=tmp_path)
    assert coreml_spec(artifact).specificationVersion == version
    assert artifact.manifest["target"]["options"]["deployment_target"] == (wanted or "iOS17")


def test_coreml_classifier_takes_an_image_and_returns_labels(tmp_path: Path) -> None:
    available(targets.get("coreml"))
    labels = [f"class {i}" for i in range(1000)]
    artifact = edgesmith.export(
        "casvit_xs", "coreml", input_size=(32, 64), image_input=True, labels=labels, out=tmp_path
    )
    description = coreml_spec(artifact).description
    image = description.input[0].type.imageType
    assert (image.height, image.width) == (32, 64)
    assert description.predictedFeatureName == "classLabel"
    file = targets.get("coreml").open(artifact.file)
    assert isinstance(file, CoreMlFile)
    assert file.labels == labels


def test_coreml_image_normalisation_is_folded_exactly() -> None:
    """The scaled program on (pixels / 255 - mean) equals the model on the normalised image, padding included."""
    from edgesmith.exporters.graph.capture import capture, run
    from edgesmith.exporters.targets._coreml_convert import scale_input, take_pixels

    spec = registry.get("casvit_xs")
    model, _ = load(spec, None)
    rgb = torch.rand(1, 3, 32, 64)
    mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (spec.input.mean, spec.input.std))
    program = capture(model, (rgb,))
    scaled = scale_input(program, Request("casvit_xs", precisions.FP32, image=spec.input, image_input=True))
    with torch.no_grad():
        expected = model((rgb - mean) / std)
    assert float((run(scaled, (rgb - mean,))[0] - expected).abs().max()) <= 1e-6
    pixels = take_pixels(scaled, Request("casvit_xs", precisions.FP32, image=spec.input, image_input=True))
    assert float((run(pixels, (255 * rgb,))[0] - expected).abs().max()) <= 1e-6


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"labels": ["a", "b"]}, "--labels has 2 names and the model has 10 classes"),
        ({"inputs": ()}, "inputs must be tensors"),
    ],
)
def test_what_only_the_loaded_model_can_tell_is_one_sentence(
    options: dict[str, object], sentence: str, small: nn.Module, tmp_path: Path
) -> None:
    """What options can tell by themselves is in test_options.py."""
    arguments = {"inputs": torch.randn(1, 3, 32, 32), **options}
    with pytest.raises(BadInput) as raised:
        edgesmith.export(small, "onnx", out=tmp_path / "out", **arguments)  # type: ignore[arg-type]
    assert sentence in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_a_new_device_raises_the_deployment_target(tmp_path: Path) -> None:
    available(targets.get("coreml"))
    model, x = nn.Conv2d(3, 4, 1), torch.randn(1, 3, 8, 8)
    artifact = edgesmith.export(model, "coreml", inputs=x, device="iphone17", out=tmp_path)
    options = artifact.manifest["target"]["options"]
    assert (options["device"], options["deployment_target"]) == ("iphone17", "iOS26")


@pytest.mark.parametrize("name", ["onnx", "coreml"])
@pytest.mark.parametrize(("groups", "affine"), [(1, True), (1, False), (3, True)])
@pytest.mark.parametrize("size", [(4, 5), (7,)], ids=["maps", "sequences"])
def test_group_norms_of_any_groups_and_rank(
    name: str, groups: int, affine: bool, size: tuple[int, ...], tmp_path: Path
) -> None:
    target = targets.get(name)
    available(target)
    norm = nn.GroupNorm(groups, 6, affine=affine)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    x = 3 + torch.randn(2, 6, *size)
    artifact = edgesmith.export(norm, name, inputs=x, precision="fp32", out=tmp_path)
    counts = artifact.manifest["operators"]["file"]
    if name == "onnx":
        assert artifact.manifest["verification"]["steps"][-1]["relative_error"] <= 1e-6
        assert counts == {"Reshape": 2, "InstanceNormalization": 1} | ({"BatchNormalization": 1} if affine else {})
    else:
        assert counts["layer_norm"] == 1


@pytest.mark.parametrize("axes", [1, (1, 2), 0])
@pytest.mark.parametrize("reduce", [torch.mean, torch.sum, torch.amax, torch.norm], ids=lambda reduce: reduce.__name__)
def test_two_reductions_in_a_row_are_one_in_a_valid_file(reduce: Any, axes: Any, tmp_path: Path) -> None:
    class Twice(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = reduce(reduce(x, dim=axes))
            return result

    edgesmith.export(Twice(), "onnx", inputs=1 + torch.rand(3, 4, 5), out=tmp_path)


def test_a_target_with_int8_says_its_largest_weight() -> None:
    with pytest.raises(ValueError, match="target onnx lists int8 and must say its largest_int8_weight"):
        replace(targets.get("onnx"), largest_int8_weight=None)
