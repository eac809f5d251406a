"""USE.md and `edgesmith use`: what a page says of a file, and programs that run it as they are printed."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import edgesmith
from edgesmith import cli
from edgesmith.exporters import targets
from edgesmith.exporters.artifact import Artifact, read, read_reference
from edgesmith.exporters.mil.functions import read_specification
from edgesmith.exporters.mil.lint import lint
from edgesmith.exporters.mil.program import load
from edgesmith.exporters.streaming.stepper import Stepper, open_onnx_step
from edgesmith.exporters.usage.facts import Facts, read_facts
from edgesmith.exporters.usage.guide import GUIDE, page
from edgesmith.exporters.usage.source import CPP, KOTLIN, LANGUAGES, PYTHON, SWIFT, name_in, quote
from edgesmith.exporters.verify import read_evidence, verify_artifact

STANDINS = Path(__file__).parent / "standins"


def program(artifact: Artifact, language: str, capsys: pytest.CaptureFixture[str]) -> str:
    """The program as the command prints it."""
    assert cli.run(["use", str(artifact.path), "--lang", language]) == 0
    return capsys.readouterr().out


def executed(code: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a program in Python has defined, once it has run in the artifact's folder as it is printed."""
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(code, "run.py", "exec"), names)
    return names


def facts_of(artifact: Artifact) -> Facts:
    return read_facts(artifact.manifest)


class Averages(nn.Module):
    """Two layers and a look ahead: streams, with a delay. [1, T, 4] -> [1, T, 6]"""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv1d(4, 6, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.conv(x.transpose(1, 2)).transpose(1, 2)
        return y.relu()


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """The step of a small streaming model on every target that has one."""
    out, made = tmp_path_factory.mktemp("steps"), {}
    for target, options in (("onnx", {}), ("coreml", {}), ("tensorrt", {"device": "jetson-orin-nano"})):
        if not targets.get(target).missing_packages():
            x = torch.randn(1, 12, 4, generator=torch.Generator().manual_seed(0))
            options = {**options, "streaming": True, "precision": "fp32"}
            made[target] = edgesmith.export(Averages(), target, inputs=(x,), name="averages", out=out, **options)
    return made


@pytest.fixture
def images(
    one_block_a_stage: Callable[[], None], shared: dict[str, Artifact], tmp_path_factory: Any
) -> dict[str, Artifact]:
    """CAS-ViT of one block a stage with labels: for ONNX Runtime, and for Core ML, where it takes pictures."""
    if not shared:
        one_block_a_stage()
        options: dict[str, Any] = {"input_size": (32, 32), "labels": [f"class {i}" for i in range(1000)]}
        options["out"] = tmp_path_factory.mktemp("images")
        shared["onnx"] = edgesmith.export("casvit_xs", "onnx", **options)
        if not targets.get("coreml").missing_packages():
            shared["coreml"] = edgesmith.export("casvit_xs", "coreml", image_input=True, **options)
    return shared


@pytest.fixture(scope="module")
def shared() -> dict[str, Artifact]:
    """What `images` has made."""
    return {}


# the page


def test_every_artifact_has_a_page_that_its_manifest_lists(export_small: Callable[..., Artifact]) -> None:
    made = export_small("onnx")
    text = (made.path / GUIDE).read_text(encoding="utf-8")
    assert GUIDE in made.sha256
    assert "| input | type | shape | |" in text
    assert "float32" in text
    assert all(f"## {one}" in text for one in ("Python", "C++", "Kotlin"))
    assert "in this folder" in text
    verify_artifact(made.path)


def test_the_page_follows_from_the_manifest_alone(export_small: Callable[..., Artifact], capsys: Any) -> None:
    made = export_small("onnx")
    assert cli.run(["use", str(made.path)]) == 0
    assert capsys.readouterr().out == (made.path / GUIDE).read_text(encoding="utf-8")


@pytest.mark.parametrize("target", ["onnx", "coreml", "coreai", "tensorrt"])
def test_types_and_shapes_are_the_files_own(target: str, export_small: Callable[..., Artifact]) -> None:
    made = export_small(target)  # fp16 for Core ML
    (given,), (returned,) = facts_of(made).inputs, facts_of(made).outputs
    assert (given.shape, returned.shape) == ((1, 3, 32, 64), (1, 10))
    assert given.type == ("float16" if target == "coreml" else "float32")
    assert returned.type == "float32"
    assert {one.language for one in targets.get(target).snippets(facts_of(made), made.manifest)} >= {"python"}


def test_an_older_manifest_has_its_types_from_the_file(export_small: Callable[..., Artifact], capsys: Any) -> None:
    made = export_small("onnx")
    text = (made.path / "manifest.json").read_text(encoding="utf-8")
    manifest = json.loads(text)
    del manifest["model"]["interface"]
    (made.path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    assert cli.run(["use", str(made.path)]) == 0
    assert capsys.readouterr().out == (made.path / GUIDE).read_text(encoding="utf-8")


def test_inspect_says_what_reads_an_artifact(
    export_small: Callable[..., Artifact], steps: dict[str, Artifact], capsys: pytest.CaptureFixture[str]
) -> None:
    made, step = export_small("onnx"), steps["onnx"]

    def inspected(artifact: Artifact) -> dict[str, Any]:
        assert cli.run(["inspect", str(artifact.path), "--json"]) == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    found = inspected(made)
    assert [(one["name"], one["type"]) for one in found["inputs"]] == [
        (one.name, one.type) for one in facts_of(made).inputs
    ]
    assert {"rpi5", "jetson-orin-nano"} <= set(found["devices"])
    assert "iphone15" not in found["devices"]
    states = inspected(step)["states"]
    assert [one["name"] for one in states] == [one["name"] for one in step.manifest["streaming"]["states"]]  # type: ignore[typeddict-item]
    assert cli.run(["inspect", str(made.path), "--device", "iphone15"]) == 2
    assert "not for iphone15" in capsys.readouterr().err
    assert cli.run(["inspect", str(made.path)]) == 0
    assert f"edgesmith use {made.path}" in " ".join(capsys.readouterr().out.split())


def test_a_normalisation_that_is_folded_in_is_told_nowhere(images: dict[str, Artifact]) -> None:
    if "coreml" not in images:
        pytest.skip("coremltools is not installed")
    text = (images["coreml"].path / GUIDE).read_text(encoding="utf-8")
    assert "0.485" not in text
    assert "0.229" not in text
    assert "VNClassificationObservation" in text
    other = (images["onnx"].path / GUIDE).read_text(encoding="utf-8")
    assert "mean 0.485, 0.456, 0.406; deviation 0.229, 0.224, 0.225" in other
    assert "1000 labels" in other


def test_a_language_that_a_target_has_no_program_in_is_refused(
    export_small: Callable[..., Artifact], capsys: pytest.CaptureFixture[str]
) -> None:
    made = export_small("onnx")
    assert cli.run(["use", str(made.path), "--lang", "swift"]) == 2
    assert "no program for onnx in swift; there is python, c++, kotlin" in capsys.readouterr().err
    assert cli.run(["use", str(made.path), "--lang", "Python"]) == 0
    assert cli.run(["use", str(made.path), "--lang", "rust"]) == 2
    assert "rust, which is none of swift, kotlin, c++, python" in capsys.readouterr().err


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_value_may_have_any_name(language: str) -> None:
    for name in ("x", "state.h", "class", "1st", "", "mask[0]", "été"):
        assert re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name_in(language, name)), name
    for text in ('a"b', "${x}", "\\(x)", "line\nbreak", "\x01", "\u202e"):
        written = quote(language, text)
        assert written.isascii()
        assert written.isprintable()
    assert quote(KOTLIN, "${x}") == '"\\${x}"'
    assert quote(SWIFT, "\\(x)") == '"\\\\(x)"'
    for text in ('a"b', "line\nbreak", "\u202e", "\\n"):
        assert ast.literal_eval(quote(PYTHON, text)) == text


# Python, as printed


def test_the_python_program_gives_pytorchs_outputs(
    export_small: Callable[..., Artifact], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = export_small("onnx")
    names = executed(program(made, "python", capsys), made.path, monkeypatch)
    assert capsys.readouterr().out == "(1, 10)\n"
    evidence = read_evidence(made)
    for call, expected, described in zip(evidence.calls, read_reference(made)[0], evidence.described, strict=True):
        (found,) = names["predict"](*call)
        allowed = 1e-5 if described.is_natural else 1e-4  # the judge excuses what PyTorch is from float64
        np.testing.assert_allclose(found, expected[0], rtol=0, atol=allowed * np.abs(expected[0]).max())


def test_the_python_program_normalises_an_image(
    images: dict[str, Artifact], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = images["onnx"]
    names = executed(program(made, "python", capsys), made.path, monkeypatch)
    assert re.fullmatch(r"class \d+\n", capsys.readouterr().out)
    rgb = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = ((torch.from_numpy(rgb).permute(2, 0, 1) / 255 - mean[:, None, None]) / std[:, None, None])[None]
    np.testing.assert_allclose(names["prepare"](rgb), expected, rtol=0, atol=1e-6)
    (logits,) = names["predict"](names["prepare"](rgb))
    assert names["LABELS"][int(logits[0].argmax())].startswith("class ")


def check_predictions(names: Mapping[str, Any], made: Artifact) -> None:
    """Every prediction of a program's loop is that of StreamingSession, at both ends too."""
    stepper = edgesmith.StreamingSession(made.path)
    frame = made.manifest["streaming"]["frame"]["shape"]  # type: ignore[typeddict-item]  # a step has one
    for count in (1, 2, 12):
        frames = np.random.default_rng(count).standard_normal((1, count, *frame[1:])).astype(np.float32)
        expected = stepper.run(frames)
        found = [outputs[0].copy() for outputs in names["predictions"](frames[:, t] for t in range(count))]
        assert len(found) == len(expected) == count
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)


def test_the_streaming_program_carries_the_states(
    steps: dict[str, Artifact], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = steps["onnx"]
    assert made.manifest["streaming"]["delay"] > 0  # type: ignore[typeddict-item]  # as above
    check_predictions(executed(program(made, "python", capsys), made.path, monkeypatch), made)


def test_lmuformers_streaming_program_runs_as_printed(
    artifact: Callable[..., Artifact], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = artifact("lmuformer", "onnx", streaming=True, frames=16)
    check_predictions(executed(program(made, "python", capsys), made.path, monkeypatch), made)


def test_core_ais_program_runs_as_printed(
    export_small: Callable[..., Artifact], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = export_small("coreai")
    if targets.get("coreai").cannot_run():
        pytest.skip("Core AI's runtime is not on this machine")
    names = executed(program(made, "python", capsys), made.path, monkeypatch)
    assert capsys.readouterr().out == "(1, 10)\n"
    import asyncio

    call, expected = read_evidence(made).calls[0], read_reference(made)[0][0][0]
    found = asyncio.run(names["predict"]({"x": call[0]}))
    np.testing.assert_allclose(next(iter(found.values())), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def on_the_stand_in(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a program where a stand-in for TensorRT is."""
    (folder / "run.py").write_text(code, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(STANDINS)}
    command = [sys.executable, "run.py"]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def built_on_the_stand_in(kit: Artifact, scratch: Path) -> Path:
    """What a kit's build.py writes, with a stand-in for TensorRT."""
    folder, out = shutil.copytree(kit.path, scratch / "kit"), scratch / "built"
    command = [sys.executable, str(folder / "build.py"), "--out", str(out), "--launches", "1", "--seconds", "0.1"]
    environment = {**os.environ, "PYTHONPATH": str(STANDINS)}
    built = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return out


def test_a_kits_streaming_program_runs_on_the_stand_in(steps: dict[str, Artifact], tmp_path: Path, capsys: Any) -> None:
    if "tensorrt" not in steps:
        pytest.skip("tensorrt_rtx is not installed")
    made = steps["tensorrt"]
    engine = read(built_on_the_stand_in(made, tmp_path))
    frames = np.random.default_rng(0).standard_normal((5, 1, 4)).astype(np.float32)
    np.save(tmp_path / "built" / "frames.npy", frames)
    of_kit, of_engine = (program(one, "python", capsys) for one in (made, engine))
    assert of_kit == of_engine  # what the kit's page says holds for what a board builds
    code = of_kit.replace("np.zeros((2, *FRAME), np.float32)", 'np.load("frames.npy")')
    code = code.replace("print([output.shape for output in outputs])", "print(*outputs[0].ravel().tolist())")
    done = on_the_stand_in(code, tmp_path / "built")
    assert done.returncode == 0, done.stderr
    found = np.array([[float(value) for value in line.split()] for line in done.stdout.splitlines()])
    stepper = Stepper(made.manifest["streaming"], open_onnx_step(made.file))  # type: ignore[typeddict-item]
    expected = np.array([one.ravel() for one in stepper.run(frames.transpose(1, 0, 2))])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


# C++: with ONNX Runtime's own headers and library where they are, else with the stand-ins in standins/include, which
# declare what the programs use, and take their numbers from ONNX Runtime in Python


def onnx_runtime() -> tuple[Path, Path] | None:
    """The folders of ONNX Runtime's own headers and library, where they are."""
    given = os.environ.get("ONNXRUNTIME_ROOT")
    roots = [Path(given)] if given else [Path("/usr"), Path("/usr/local")]
    for root in roots:
        for headers in (root / "include", root / "include" / "onnxruntime", root / "build" / "native" / "include"):
            if (headers / "onnxruntime_cxx_api.h").is_file():
                for library in sorted((root if given else root / "lib").rglob("libonnxruntime.so*")):
                    return headers, library.parent
    return None


def compiled(code: str, folder: Path, library: tuple[Path, Path] | None = None) -> Path:
    """The program of C++ code. Warnings are errors."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler on this machine")
    (folder / "run.cpp").write_text(code, encoding="utf-8")
    command = [compiler, "-std=c++17", "-O0", "-Wall", "-Wextra", "-Werror", "run.cpp", "-o", "run"]
    if library is None:
        command += ["-isystem", str(STANDINS / "include")]
    else:
        command += ["-isystem", str(library[0]), f"-L{library[1]}", f"-Wl,-rpath,{library[1]}", "-lonnxruntime"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "run"


def lines_of(run: Path, values: np.ndarray) -> np.ndarray:
    served = {"STANDIN_PYTHON": sys.executable, "STANDIN_SERVER": str(STANDINS / "serve_step.py")}
    environment = {**os.environ, **served}
    done = subprocess.run(
        [run], cwd=run.parent, input=values.tobytes(), capture_output=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    return np.array([[float(value) for value in line.split()] for line in done.stdout.decode().splitlines()])


def test_the_cpp_program_gives_pytorchs_outputs(export_small: Callable[..., Artifact], capsys: Any) -> None:
    made = export_small("onnx")
    run = compiled(program(made, "c++", capsys), made.path, onnx_runtime())
    call, expected = read_evidence(made).calls[0], read_reference(made)[0][0][0]
    np.testing.assert_allclose(lines_of(run, call[0]), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("target", ["onnx", "tensorrt"])
def test_the_cpp_program_carries_the_states(
    target: str, steps: dict[str, Artifact], tmp_path: Path, capsys: Any
) -> None:
    if target not in steps:
        pytest.skip("tensorrt_rtx is not installed")
    made = steps[target]
    code = (made.path / "stream.cpp").read_text(encoding="utf-8")
    assert code == program(made, "c++", capsys)
    folder = shutil.copytree(made.path, tmp_path / "step")
    if target == "tensorrt":
        folder = built_on_the_stand_in(made, tmp_path)
    run = compiled(code, folder, onnx_runtime() if target == "onnx" else None)
    stepper = edgesmith.StreamingSession(steps["onnx"].path)
    for count in (1, 7):
        frames = np.random.default_rng(count).standard_normal((1, count, 4)).astype(np.float32)
        expected = np.array([one.ravel() for one in stepper.run(frames)])
        np.testing.assert_allclose(lines_of(run, frames), expected, rtol=0, atol=1e-6)


def test_a_state_that_is_not_carried_shows(steps: dict[str, Artifact], tmp_path: Path) -> None:
    made = steps["onnx"]
    code = (made.path / "stream.cpp").read_text(encoding="utf-8")
    carried = "std::move(outputs.begin() + 1, outputs.end(), std::back_inserter(kept));"
    assert carried in code
    planted = carried.replace("kept)", "lost)")
    code = code.replace(
        carried,
        f"std::vector<Ort::Value> lost; {planted} for (auto& s : states) kept.push_back("
        "Ort::Value::CreateTensor<float>(allocator, s.shape.data(), s.shape.size()));",
    )
    run = compiled(code, shutil.copytree(made.path, tmp_path / "step"), onnx_runtime())
    frames = np.random.default_rng(0).standard_normal((1, 7, 4)).astype(np.float32)
    expected = np.array([one.ravel() for one in edgesmith.StreamingSession(made.path).run(frames)])
    assert np.abs(lines_of(run, frames) - expected).max() > 1e-2


# stream.py: one file for a board


def streamed(folder: Path, *arguments: str, values: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run a folder's stream.py where nothing of edgesmith is, and a stand-in for TensorRT."""
    code = f"import runpy, sys; sys.path.insert(0, {str(STANDINS)!r})"
    code += "; runpy.run_path('stream.py', run_name='__main__')"
    command = [sys.executable, "-I", "-c", code, *arguments]
    return subprocess.run(command, cwd=folder, input=values, capture_output=True, check=False)


@pytest.mark.parametrize("target", ["onnx", "tensorrt"])
def test_the_runner_carries_the_states_on_a_board(target: str, steps: dict[str, Artifact], tmp_path: Path) -> None:
    if target not in steps:
        pytest.skip("tensorrt_rtx is not installed")
    made = steps[target]
    assert "stream.py" in made.sha256
    folder = made.path if target == "onnx" else built_on_the_stand_in(made, tmp_path)
    expected = edgesmith.StreamingSession(steps["onnx"].path)
    for count in (1, 7):
        frames = np.random.default_rng(count).standard_normal((count, 4)).astype(np.float32)
        wanted = np.concatenate(expected.run(frames[None]))
        np.save(tmp_path / "frames.npy", frames)
        done = streamed(folder, "--frames", str(tmp_path / "frames.npy"), "--out", str(tmp_path / "out.npy"))
        assert done.returncode == 0, done.stderr
        np.testing.assert_allclose(np.load(tmp_path / "out.npy"), wanted, rtol=0, atol=1e-6)
        done = streamed(folder, values=frames.tobytes())
        assert done.returncode == 0, done.stderr
        lines = [[float(value) for value in line.split()] for line in done.stdout.decode().splitlines()]
        np.testing.assert_allclose(lines, wanted, rtol=0, atol=1e-6)


def test_the_runners_class_is_a_session(artifact: Callable[..., Artifact], tmp_path: Path) -> None:
    import runpy

    made = artifact("lmuformer", "onnx", streaming=True, frames=16)
    names = runpy.run_path(str(made.path / "stream.py"))
    stream, session = names["Stream"](made.path), edgesmith.StreamingSession(made.path)
    assert stream.delay == session.delay
    for count in (1, 9):
        frames = np.random.default_rng(count).standard_normal((count, 128)).astype(np.float32)
        found, wanted = stream.run(frames), session.run(frames[None])
        assert len(found) == len(wanted) == count
        np.testing.assert_allclose(np.concatenate(found), np.concatenate(wanted), rtol=0, atol=1e-6)
    for wrong, said in (
        (lambda: stream.step(frames[0]), "finished"),
        (lambda: (stream.reset(), stream.step(frames[0][:5])), "shape"),
        (lambda: names["Stream"](tmp_path), "no manifest.json"),
    ):
        with pytest.raises(names["Refusal"], match=said):
            wrong()
    for arguments, said in (([str(tmp_path)], "no manifest.json"), (["--frames", "no.npy"], "--frames no.npy")):
        done = streamed(made.path, *arguments)
        assert (done.returncode, done.stdout) == (2, b"")
        assert said in done.stderr.decode()
        assert len(done.stderr.splitlines()) == 1


# what no toolchain here checks, by its text


@pytest.mark.parametrize(
    ("target", "language"), [("onnx", "kotlin"), ("onnx", "c++"), ("coreml", "swift"), ("tensorrt", "c++")]
)
def test_a_steps_program_is_as_it_was_read(
    target: str, language: str, steps: dict[str, Artifact], golden: Callable[[str, str], None], capsys: Any
) -> None:
    if target not in steps:
        pytest.skip(f"{target} is not installed")
    golden(f"use.step.{target}.{language.replace('+', 'p')}", program(steps[target], language, capsys))


@pytest.mark.parametrize(
    ("target", "language"), [("onnx", "kotlin"), ("coreml", "swift"), ("coreai", "swift"), ("tensorrt", "c++")]
)
def test_a_models_program_is_as_it_was_read(
    target: str, language: str, export_small: Callable[..., Artifact], golden: Callable[[str, str], None], capsys: Any
) -> None:
    golden(f"use.model.{target}.{language.replace('+', 'p')}", program(export_small(target), language, capsys))


def test_vision_is_asked_for_classes_of_a_picture(
    images: dict[str, Artifact], golden: Callable[[str, str], None], capsys: Any
) -> None:
    if "coreml" not in images:
        pytest.skip("coremltools is not installed")
    golden("use.image.coreml.swift", program(images["coreml"], "swift", capsys))


def test_a_page_of_a_target_without_programs_says_so(export_small: Callable[..., Artifact]) -> None:
    text = page(facts_of(export_small("onnx")), ())
    assert "Nobody has written a program" in text
    assert CPP not in text.split("Nobody")[1]


# Core ML packages, as Xcode shows them


def test_a_package_is_described_for_who_uses_it(images: dict[str, Artifact]) -> None:
    if "coreml" not in images:
        pytest.skip("coremltools is not installed")
    made = images["coreml"]
    description = read_specification(made.file).description
    metadata = description.metadata
    assert metadata.userDefined["com.apple.coreml.model.preview.type"] == "imageClassifier"
    assert metadata.author == made.manifest["model"]["source"]
    assert metadata.license == "MIT"
    assert metadata.versionString == f"weights {made.manifest['weights']['sha256'][:12]}"
    said = [feature.shortDescription for feature in (*description.input, *description.output)]
    assert said == [
        "A picture in RGB; the model normalises it.",
        "The best class's label.",
        "Each class's probability, by its label.",
    ]
    own = {key: value for key, value in metadata.userDefined.items() if key.startswith("edgesmith.")}
    assert own.keys() <= {"edgesmith.version", "edgesmith.precision", "edgesmith.legalized"}
    assert not any("mean" in key or "std" in key for key in metadata.userDefined)
    assert lint(made.path).counts["error"] == 0  # what is left are the shapes of a map of 32 x 32


def test_what_only_edgesmith_reads_lies_beside_the_package(images: dict[str, Artifact], tmp_path: Path) -> None:
    if "coreml" not in images:
        pytest.skip("coremltools is not installed")
    made = images["coreml"]
    sources = {one.source for one in load(made.file).operations()}
    assert len(sources - {None}) > 10
    assert not any(one.source and one.source.startswith("model.") for one in load(made.file).operations())
    alone = Path(shutil.copytree(made.file, tmp_path / made.file.name))
    assert {one.source for one in load(alone).operations()} == {None}
    (tmp_path / "trace.json").write_text('{"package": "another.mlpackage", "notes": {"edgesmith.sources": {"x": []}}}')
    assert {one.source for one in load(alone).operations()} == {None}  # notes of another package are none of its
    (tmp_path / "trace.json").write_text("[1, 2")
    assert {one.source for one in load(alone).operations()} == {None}
    shutil.copy(made.path / "trace.json", tmp_path)
    assert {one.source for one in load(alone).operations()} == sources


def test_states_are_described(steps: dict[str, Artifact]) -> None:
    if "coreml" not in steps:
        pytest.skip("coremltools is not installed")
    description = read_specification(steps["coreml"].file).description
    said = {one.name: one.shortDescription for one in (*description.input, *description.output)}
    assert all(said.values())
    meanings = {one["name"]: one["meaning"] for one in steps["coreml"].manifest["streaming"]["states"]}  # type: ignore[typeddict-item]
    for name, meaning in meanings.items():
        assert said[name] == f"State: {meaning}."
        assert said[f"next_{name}"] == f"State for the next step: {meaning}."
