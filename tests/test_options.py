"""The options of an export: what each refusal says, what they come to, and that asking takes no torch."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import edgesmith
from edgesmith.errors import BackendMissing, BadInput, EdgesmithError
from edgesmith.exporters import targets
from edgesmith.exporters.artifact import Artifact
from edgesmith.exporters.options import ExportOptions, ModelOptions
from edgesmith.exporters.precision import table as precisions
from edgesmith.exporters.rewrites.rewrite import RewriteReport

THOUSAND = [f"class {i}" for i in range(1000)]
OF_MODULES = "weights, input_size, frames, batch and features belong to named models; a module has its own weights"

REFUSED: list[tuple[str, str, dict[str, Any], str]] = [
    # names
    ("casvit_xss", "onnx", {}, "unknown model 'casvit_xss'. Nearest: casvit_xs, casvit_s"),
    ("casvit_xs", "onxx", {}, "unknown target 'onxx'. Nearest: onnx"),
    ("casvit_xs", "coreml", {"device": "iphone99"}, "unknown device 'iphone99'. Nearest: iphone1"),
    ("casvit_xs", "onnx", {"name": "mine"}, "a named model keeps its name, casvit_xs; name= is for a module"),
    ("module", "onnx", {"name": "../x"}, "letters, digits, _ and - only, got '../x'"),
    ("module", "onnx", {"name": "a b"}, "letters, digits, _ and - only, got 'a b'"),
    # the model and its inputs
    ("casvit_xs", "onnx", {"inputs": ()}, "casvit_xs has inputs of its own shape; inputs= is for a module"),
    (
        "module",
        "onnx",
        {"inputs": None},
        "exporting a module needs inputs=(tensor, ...), one example for each argument",
    ),
    ("module", "onnx", {"weights": "x.pth"}, OF_MODULES),
    ("module", "onnx", {"input_size": (32, 32)}, OF_MODULES),
    ("module", "onnx", {"frames": 3}, OF_MODULES),
    ("module", "onnx", {"batch": 4}, OF_MODULES),
    ("module", "onnx", {"features": True}, OF_MODULES),
    # sizes
    ("casvit_xs", "onnx", {"batch": 0}, "--batch must be 1 or more, got 0"),
    ("module", "onnx", {"batch": 0}, "--batch must be 1 or more, got 0"),
    ("casvit_xs", "onnx", {"input_size": (225, 224)}, "divisible by 32, got 225x224; the nearest is 224x224"),
    ("casvit_xs", "onnx", {"input_size": (0, 64)}, "divisible by 32, got 0x64; the nearest is 32x64"),
    ("casvit_xs", "onnx", {"frames": 9}, "casvit_xs reads images and has no --frames; their size is --input-size"),
    ("lmuformer", "onnx", {"frames": 0}, "--frames must be 1 or more, got 0"),
    ("lmuformer", "onnx", {"input_size": (32, 32)}, "lmuformer reads sequences and has no --input-size; their length"),
    ("lmuformer", "onnx", {"features": True}, "lmuformer reads sequences and has no --features; their length"),
    ("casvit_xs", "coreml", {"dynamic_batch": True}, "target coreml takes static shapes only; give --batch N"),
    ("casvit_xs", "coreai", {"dynamic_batch": True}, "target coreai takes static shapes only; give --batch N"),
    ("module", "coreml", {"dynamic_batch": True}, "static shapes only; give an example of the batch that you need"),
    # precision, target and device
    ("casvit_xs", "onnx", {"precision": "int4"}, "target onnx has precisions fp32, fp16, int8, got 'int4'"),
    ("casvit_xs", "coreml", {"precision": "int8"}, "target coreml has precisions fp16, fp32, mixed, got 'int8'"),
    ("casvit_xs", "coreml", {"precision": "FP16"}, "target coreml has precisions fp16, fp32, mixed, got 'FP16'"),
    ("casvit_xs", "onnx", {"device": "iphone15"}, "iPhone 15 takes coreml, not onnx; choose --target"),
    ("casvit_xs", "coreml", {"device": "rtx4070"}, "GeForce RTX 4070 takes onnx, tensorrt, not coreml"),
    ("casvit_xs", "tensorrt", {}, "an engine is for one GPU: say which with --device, one of a100, dgx-spark"),
    (
        "casvit_xs",
        "tensorrt",
        {"device": "rpi5"},
        "Raspberry Pi 5 has no NVIDIA GPU and takes onnx, tvm; engines are for",
    ),
    ("casvit_xs", "tensorrt", {"device": "jetson-nano"}, "has a TensorRT of before 8.6, which is the first that kits"),
    (
        "casvit_xs",
        "tensorrt",
        {"device": "rtx4070", "precision": "mixed"},
        "tensorrt has precisions fp32, fp16, bf16, int8, got 'mixed'",
    ),
    # systems
    ("casvit_xs", "coreml", {"deployment_target": "iOS3"}, "unknown deployment target 'iOS3'. There are iOS16, iOS17"),
    (
        "casvit_xs",
        "coreml",
        {"deployment_target": "ios17"},
        "unknown deployment target 'ios17'. There are iOS16, iOS17",
    ),
    ("casvit_xs", "onnx", {"deployment_target": "iOS17"}, "target onnx has no --deployment-target; coreml does"),
    (
        "casvit_xs",
        "coreml",
        {"device": "iphone15", "deployment_target": "iOS99"},
        "iPhone 15 runs iOS26 at most, got iOS99",
    ),
    (
        "casvit_xs",
        "coreml",
        {"device": "iphone15", "deployment_target": "ios17"},
        "unknown deployment target 'ios17'. There are iOS16, iOS17",
    ),
    # labels and images
    ("casvit_xs", "tensorrt", {"device": "rtx4070", "labels": THOUSAND}, "no --labels; coreai, coreml, onnx do"),
    ("casvit_xs", "onnx", {"labels": ["a", "b"]}, "--labels has 2 names and the model has 1000 classes"),
    ("casvit_xs", "coreml", {"labels": ["a", "a"]}, "labels must differ from each other, got 'a' twice"),
    (
        "casvit_xs",
        "coreml",
        {"labels": THOUSAND, "batch": 2},
        "a Core ML classifier classifies one image, got --batch 2",
    ),
    (
        "casvit_xs",
        "onnx",
        {"labels": ["a"], "features": True},
        "--labels belongs to logits and --features returns none",
    ),
    ("casvit_xs", "onnx", {"image_input": True}, "target onnx has no --image-input; coreml does"),
    ("casvit_xs", "coreml", {"image_input": True, "batch": 4}, "an image input holds one image, got --batch 4"),
    ("lmuformer", "coreml", {"image_input": True}, "lmuformer reads sequences and has no --image-input; leave it out"),
    ("module", "coreml", {"image_input": True}, "is a module, whose input may be anything, and has no --image-input"),
    # steps
    ("casvit_xs", "onnx", {"streaming": True}, "casvit_xs reads images and has no --streaming; models of sequences"),
    (
        "lmuformer",
        "onnx",
        {"streaming": True, "dynamic_batch": True},
        "--streaming keeps states of a fixed batch; give",
    ),
    ("lmuformer", "onnx", {"streaming": True, "precision": "int8"}, "--precision int8 looks at whole inputs and"),
    ("lmuformer", "coreml", {"streaming": True, "precision": "mixed"}, "--precision mixed looks at whole inputs and"),
    (
        "lmuformer",
        "onnx",
        {"streaming": True, "with_sequence": True},
        "target onnx has no --with-sequence; coreml does",
    ),
    (
        "lmuformer",
        "coreml",
        {"with_sequence": True},
        "--with-sequence puts the whole sequence's program beside the step",
    ),
    ("lmuformer", "coreml", {"streaming": True, "with_sequence": True}, "give --deployment-target iOS18"),
    # calibration
    ("casvit_xs", "onnx", {"calibration": "x.npz"}, "--calibration is for --precision int8, got fp32"),
    (
        "casvit_xs",
        "onnx",
        {"precision": "int8", "calibration": "none"},
        "there is no none; wanted a folder of images or",
    ),
    ("casvit_xs", "onnx", {"precision": "int8", "calibration": __file__}, "or an .npz, got the file"),
]


def label(value: object) -> str:
    return ",".join(f"{k}={v}"[:40] for k, v in value.items()) if isinstance(value, dict) else str(value)[:24]


@pytest.mark.parametrize(("model", "target", "options", "sentence"), REFUSED, ids=label)
def test_wrong_options_are_one_sentence(model: str, target: str, options: dict[str, Any], sentence: str) -> None:
    subject, given = (model, options)
    if model == "module":
        subject, given = nn.Linear(4, 4), {"inputs": torch.zeros(1, 4), **options}  # type: ignore[assignment]
    with pytest.raises(BadInput) as raised:
        ExportOptions(subject, target, **given)
    assert sentence in str(raised.value)
    assert "\n" not in str(raised.value)


def test_what_is_neither_a_name_nor_a_module_is_refused() -> None:
    with pytest.raises(BadInput, match=r"model must be a name or a torch\.nn\.Module, got int"):
        ExportOptions(3)  # type: ignore[arg-type]


def test_a_target_that_is_not_installed_is_said_last_and_before_torch_is_needed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(type(targets.get("coreml")), "missing_packages", lambda target: ["coremltools"])
    with pytest.raises(BadInput, match="--batch must be 1 or more"):
        ExportOptions("casvit_xs", "coreml", batch=0)
    with pytest.raises(BackendMissing, match=r'coreml needs coremltools, .*: pip install "edgesmith\[coreml\]"'):
        ExportOptions("casvit_xs", "coreml")
    ModelOptions("casvit_xs", "coreml")  # explaining needs no package of the target's


def test_export_refuses_before_it_makes_a_folder(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="--batch must be 1 or more"):
        edgesmith.export("casvit_xs", "onnx", batch=0, out=tmp_path / "out")
    with pytest.raises(BadInput, match="unknown model"):
        edgesmith.explain("casvit_xss")
    assert list(tmp_path.iterdir()) == []


def test_labels_of_a_checkpoint_are_counted_when_it_is_loaded(tmp_path: Path) -> None:
    """Its head may have fewer classes than the published one."""
    weights = tmp_path / "mine.pth"
    with pytest.raises(BadInput, match=r"no weights file at .*mine\.pth"):
        ExportOptions("casvit_xs", "onnx", labels=["a", "b"], weights=weights)
    weights.touch()
    assert ExportOptions("casvit_xs", "onnx", labels=["a", "b"], weights=weights).labels == ["a", "b"]


def test_options_of_every_kind_are_checked_without_torch_and_backends() -> None:
    code = """
import sys
from edgesmith.errors import BadInput
from edgesmith.exporters.options import ExportOptions, ModelOptions
options = [
    ExportOptions("casvit_xs", "coreml", batch=4, precision="fp16", deployment_target="iOS18", device="iphone17"),
    ExportOptions("casvit_xs", "coreml", image_input=True, labels=[str(i) for i in range(1000)]),
    ExportOptions("casvit_xs", "onnx", precision="int8", input_size=(64, 96)),
    ExportOptions("lmuformer", "onnx", streaming=True, frames=9),
    ExportOptions("casvit_xs", "tensorrt", device="jetson-orin-nano"),
    ExportOptions("casvit_xs", "tensorrt", device="rtx4070"),
    ExportOptions("casvit_xs", "coreai"),
]
for one in options:
    one.folder_name, one.costs, one.backend.delivery(one.profile)
ModelOptions("efficientvim_m1", features=True).shape
for wrong in ({"batch": 0}, {"input_size": (225, 225)}, {"labels": ["a", "b"]}, {"precision": "fp64"}):
    try:
        ExportOptions("casvit_xs", "coreml", **wrong)
    except BadInput:
        continue
    raise AssertionError(wrong)
heavy = {"torch", "numpy", "onnx", "onnxruntime", "onnxscript", "coremltools", "coreai_torch", "tensorrt_rtx"}
print(*sorted(heavy & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    missing = [name for name, target in targets.all_targets().items() if target.missing_packages()]
    if missing and "BackendMissing" in done.stderr:
        pytest.skip(f"{', '.join(missing)} not installed")
    assert done.stderr == ""
    assert done.stdout == "\n"


def test_the_signature_of_export_shows_every_option_and_is_that_of_its_options() -> None:
    shown = inspect.signature(edgesmith.export)
    of_options = inspect.signature(ExportOptions)
    assert shown.parameters == of_options.parameters
    assert list(shown.parameters)[:2] == ["model", "target"]
    assert shown.parameters.keys() == {one.name for one in dataclasses.fields(ExportOptions)}
    assert len(shown.parameters) == 27
    assert [one.kind.name for one in shown.parameters.values()] == ["POSITIONAL_OR_KEYWORD"] * 2 + ["KEYWORD_ONLY"] * 25
    assert shown.return_annotation in (Artifact, "Artifact")
    assert inspect.signature(edgesmith.explain).parameters == inspect.signature(ModelOptions).parameters
    assert RewriteReport.__name__ in str(inspect.signature(edgesmith.explain).return_annotation)
    assert "allow_inaccurate" in str(inspect.getdoc(edgesmith.export))


def test_a_wrong_call_is_answered_in_the_words_of_the_function() -> None:
    with pytest.raises(TypeError) as wrong:
        edgesmith.export("casvit_xs", torch.ones(1), target="onnx")  # type: ignore[misc,arg-type]
    said = "export: multiple values for argument 'target'; call it as export(model, target, option=...)"
    assert str(wrong.value) == said
    with pytest.raises(TypeError, match="explain: got an unexpected keyword argument 'taget'; call it as explain"):
        edgesmith.explain("casvit_xs", taget="onnx")  # type: ignore[call-arg]


def test_every_option_is_documented() -> None:
    described = f"{ModelOptions.__doc__}{ExportOptions.__doc__}"
    for one in dataclasses.fields(ExportOptions):
        assert f"        {one.name}: " in described, one.name


def test_options_are_a_value() -> None:
    options = ExportOptions("casvit_xs", "onnx", batch=4)
    assert options == ExportOptions("casvit_xs", "onnx", batch=4) != ExportOptions("casvit_xs", "onnx")
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.batch = 0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("model", "target", "options", "name"),
    [
        ("casvit_xs", "onnx", {}, "casvit_xs-onnx-fp32"),
        ("casvit_xs", "coreml", {}, "casvit_xs-coreml-fp16"),
        ("spiking_lmuformer", "coreml", {}, "spiking_lmuformer-coreml-fp32"),
        ("casvit_xs", "onnx", {"input_size": (224, 224)}, "casvit_xs-onnx-fp32"),
        ("casvit_xs", "onnx", {"input_size": (64, 96)}, "casvit_xs-onnx-fp32-64x96"),
        ("casvit_xs", "onnx", {"batch": 4}, "casvit_xs-onnx-fp32-batch-4"),
        ("casvit_xs", "onnx", {"dynamic_batch": True}, "casvit_xs-onnx-fp32-batch-dynamic"),
        ("casvit_xs", "onnx", {"features": True}, "casvit_xs-onnx-fp32-features"),
        ("casvit_xs", "coreml", {"labels": THOUSAND, "image_input": True}, "casvit_xs-coreml-fp16-labels-image"),
        ("casvit_xs", "coreml", {"deployment_target": "iOS17"}, "casvit_xs-coreml-fp16"),
        ("casvit_xs", "coreml", {"deployment_target": "iOS18"}, "casvit_xs-coreml-fp16-iOS18"),
        ("casvit_xs", "coreml", {"device": "iphone17"}, "casvit_xs-coreml-fp16-iOS26"),
        ("casvit_xs", "coreml", {"device": "iphone12"}, "casvit_xs-coreml-fp16"),
        ("casvit_xs", "tensorrt", {"device": "rtx4070"}, "casvit_xs-tensorrt-fp32-rtx4070"),
        ("casvit_xs", "onnx", {"device": "rtx4070"}, "casvit_xs-onnx-fp32"),
        ("lmuformer", "onnx", {"frames": 9}, "lmuformer-onnx-fp32-9-frames"),
        ("lmuformer", "onnx", {"streaming": True}, "lmuformer-onnx-fp32-streaming"),
        (
            "lmuformer",
            "coreml",
            {"streaming": True, "with_sequence": True, "deployment_target": "iOS18"},
            "lmuformer-coreml-fp16-streaming-with-sequence-iOS18",
        ),
        (
            "lmuformer",
            "tensorrt",
            {"frames": 9, "batch": 2, "streaming": True, "precision": "bf16", "device": "jetson-orin-nano"},
            "lmuformer-tensorrt-bf16-9-frames-batch-2-streaming-jetson-orin-nano",
        ),
        ("module", "onnx", {}, "linear-onnx-fp32"),
        ("module", "onnx", {"name": "mine", "precision": "fp16"}, "mine-onnx-fp16"),
        ("module", "onnx", {"dynamic_batch": True}, "linear-onnx-fp32-batch-dynamic"),
    ],
    ids=label,
)
def test_a_folder_is_named_by_what_is_not_the_default(
    model: str, target: str, options: dict[str, Any], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(targets.get(target)), "require", lambda target: None)  # names need no packages
    subject, given = (model, options)
    if model == "module":
        subject, given = nn.Linear(4, 4), {"inputs": torch.zeros(1, 4), **options}  # type: ignore[assignment]
    assert ExportOptions(subject, target, **given).folder_name == name


def test_only_fp32_chooses_forms_that_cost_last_bits() -> None:
    fp32, fp16 = (ExportOptions("casvit_xs", "onnx", precision=name) for name in ("fp32", "fp16"))
    assert fp32.costs == fp32.backend.costs
    assert (fp16.costs.tile_gb_s, fp16.costs.fetch_gb_s) == (0, float("inf"))
    assert fp16.arithmetic is precisions.FP16


def test_every_stage_is_watched(tmp_path: Path) -> None:
    begun: list[str] = []
    ended: list[str] = []

    @contextlib.contextmanager
    def watch(stage: str) -> Iterator[None]:
        assert begun == ended  # one after the other
        begun.append(stage)
        yield
        ended.append(stage)

    edgesmith.export(nn.Linear(4, 4), "onnx", inputs=torch.zeros(1, 4), out=tmp_path, watch=watch)
    programs = ["load", "capture", "rewrite", "verify the program"]
    assert begun == ended == [*programs, "type as fp32", "lower to onnx", "verify the file", "publish"]


def test_an_artifact_is_a_path(tmp_path: Path) -> None:
    made = edgesmith.export(nn.Linear(4, 2).eval(), "onnx", inputs=(torch.randn(1, 4),), out=tmp_path)
    assert Path(made) == made.path
    again, _ = edgesmith.verify(made)
    assert again.path == made.path
    assert edgesmith.lint(made).findings == edgesmith.lint(made.path).findings


ODD = (
    64,
    "64",
    1.5,
    [64],
    (64, 64, 64),
    (64.0, 64.0),
    (64, "64"),
    None,
    True,
    {},
    {1: 2},
    object(),
    "cat",
    -1,
    [-64, 0],
)


@pytest.mark.parametrize("option", [field.name for field in dataclasses.fields(ExportOptions)])
def test_a_value_of_another_kind_is_one_sentence(option: str) -> None:
    """Whatever is given as an option makes options, or is refused: never a TypeError from inside, nor three labels."""
    for value in ODD:
        given = {"model": "casvit_xs", option: value}
        with contextlib.suppress(EdgesmithError):
            made = ExportOptions(**given)
            assert getattr(made, option) == value
            assert made.folder_name.startswith("casvit_xs-")
    with pytest.raises(BadInput, match=r"input_size must be two integers, \(height, width\), got 64$"):
        ModelOptions("casvit_xs", input_size=64)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="labels must be a list of class names, got 'cat'"):
        ExportOptions("casvit_xs", "coreml", labels="cat")
    assert ModelOptions("casvit_xs", input_size=[256, 224]).shape == (3, 256, 224)  # type: ignore[arg-type]
