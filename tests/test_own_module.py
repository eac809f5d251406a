"""A module of the user's own on the command line: found, called, given weights and inputs, or refused in a sentence."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgesmith.cli import run
from edgesmith.errors import BadInput
from edgesmith.exporters.artifact import read
from edgesmith.exporters.own.building import build
from edgesmith.exporters.own.reference import InputSpec, OwnModule, parse_input

NET = """
import torch
from torch import nn

print("imported")

class Net(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, padding=1)
        self.head = nn.Linear(width, 2)

    def forward(self, x, mask=None, *, scale=1.0):
        print("called")
        y = self.conv(x).relu() * scale
        if mask is not None:
            y = y * mask
        return {"logits": self.head(y.mean((2, 3))), "note": "text"}

def build(width):
    return Net(width)

def nothing():
    return None

def pair():
    return Net(), 3

def fails():
    return Net().missing

def ends():
    raise SystemExit(1)

class Nested(nn.Module):
    def forward(self, tokens, state):
        return tokens + state["h"] + state["list"][1]

MADE = Net()
NUMBER = 3
"""
SHAPE = ("--input", "1x3x6x6")
VIT = """
import torch
from torch import nn

from edgesmith.models.casvit import AdditiveTokenMixer, CasViT

class Gate(nn.Module):
    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, x):
        mask = torch.tanh(self.block(x))
        return x * mask

def build():
    model = CasViT(depths=(1, 1, 1, 1), dims=(8, 12, 16, 24), num_classes=10)
    for mixer in model.modules():
        if isinstance(mixer, AdditiveTokenMixer):
            mixer.oper_q[1] = Gate(mixer.oper_q[1].block[:2])
    return model
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with code of somebody's own, its weights, and an edgesmith.toml."""
    at = tmp_path_factory.mktemp("own")
    (at / "net.py").write_text(NET)
    (at / "missing.py").write_text("import no_such_package\ndef build(): ...\n")
    (at / "wrong.py").write_text("def build(:\n")
    (at / "script.py").write_text("import sys\nsys.exit(2)\ndef build(): ...\n")
    (at / "raises.py").write_text("x = {}\ny = x['key']\ndef build(): ...\n")
    (at / "nets").mkdir()
    (at / "nets" / "__init__.py").write_text("")
    (at / "nets" / "parts.py").write_text("WIDTH = 5\n")
    (at / "nets" / "inner.py").write_text(
        "from torch import nn\nfrom .parts import WIDTH\ndef build(): return nn.Conv2d(3, WIDTH, 1)\n"
    )
    (at / "edgesmith.toml").write_text(
        '[models.ours]\nmodule = "net.py:Net"\nkwargs = { width = 8 }\ninput = ["1x3x6x6"]\n'
        '[models.twice]\nmodule = "net.py:Net"\ninputz = "x"\n'
        '[models.typed]\nmodule = "net.py:Net"\nkwargs = 3\n'
        '[models.casvit_m]\nmodule = "net.py:Net"\n'
    )
    sizes = {"conv.weight": (8, 3, 3, 3), "conv.bias": (8,), "head.weight": (2, 8), "head.bias": (2,)}
    state = {name: torch.full(size, 0.5) for name, size in sizes.items()}
    torch.save({"epoch": 3, "ema": {"module": {f"module.{name}": x for name, x in state.items()}}}, at / "ema.pth")
    torch.save({name.replace("head", "fc"): x for name, x in state.items()}, at / "other.pth")
    np.savez(at / "example.npz", arr_0=np.zeros((2, 3, 4, 4), np.float32), mask=np.ones((2, 1, 4, 4), np.float32))
    return at


@pytest.fixture(autouse=True)
def _inside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Be in that folder, and leave Python's path and modules as they were."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in ("net", "nets", "missing", "script", "raises"):
            del sys.modules[name]


def refuse(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that is refused, and return its sentence."""
    code = run([*arguments])
    said = capsys.readouterr()
    assert code == 2, said.err
    assert "Traceback" not in said.err
    assert said.out == ""
    return said.err.splitlines()[-1].removeprefix("edgesmith: ")


BEFORE_TORCH = {
    ("explain",): "give a model: --model NAME from `edgesmith models`, or --module path/to/file.py:callable",
    ("explain", "--model", "ours", "--module", "net.py:Net"): "--model is a name, and --module code of your own",
    ("explain", "--model", "our"): "unknown model 'our'. Nearest: ours",
    ("explain", "--model", "casvit_m"): "edgesmith.toml has a model casvit_m, and so has edgesmith",
    ("explain", "--model", "casvit_s", "--fixed", "{}"): "--fixed is for a module of your own",
    ("explain", "--model", "twice"): "models.twice has 'inputz', which is no option; the nearest: input",
    ("explain", "--model", "typed"): "models.typed.kwargs must be a table, got 3",
    ("explain", "--key", "model"): "--key says something about a model; give --model or --module too",
    ("explain", "--module", "net.py"): "--module must be path/to/file.py:callable or package.module:callable",
    ("explain", "--module", "nets:"): "--module must be path/to/file.py:callable or package.module:callable",
    ("explain", "--module", "none.py:Net", *SHAPE): "there is no file none.py",
    ("explain", "--module", "net.py:Nett", *SHAPE): "net.py has no 'Nett'; the nearest: Net, Nested",
    ("explain", "--module", "wrong.py:build", *SHAPE): "wrong.py:1 is no Python",
    ("explain", "--module", "net.py:Net"): "--module needs --input SHAPE for each argument of forward, or --inputs",
    (
        "explain",
        "--module",
        "net.py:Net",
        "--inputs",
        "net.py",
    ): "without --input the arrays of an .npz are the example",
    ("explain", "--module", "net.py:Net", "--input", "1x3xx8"): "--input must be a shape such as 1x3x224x224",
    ("explain", "--module", "net.py:Net", "--input", "1x3:int"): "the type must be one of float32",
    ("explain", "--module", "net.py:Net", "--input", "3:int64:9-0"): "a range LOW-HIGH belongs to whole numbers",
    ("explain", "--module", "net.py:Net", "--input", "m=2", "--input", "3"): "those without a name come first",
    ("explain", "--module", "net.py:Net", *SHAPE, "--kwargs", "{width: 3}"): "--kwargs must be a JSON object",
    ("explain", "--module", "net.py:Net", *SHAPE, "--kwargs", "[3]"): "--kwargs must be a JSON object",
    ("explain", "--module", "net.py:Net", *SHAPE, "--key", "ema"): "give --weights FILE too",
    ("explain", "--module", "net.py:Net", *SHAPE, "--weights", "none.pth"): "no weights file at none.pth",
    ("explain", "--model", "casvit_xs", "--weights", "."): "no weights file at .; give a .pth",
    ("explain", "--model", "CASVIT_XS"): "unknown model 'CASVIT_XS'. Nearest: casvit_xs",
    ("lint",): "give an artifact's folder, or a model to export for this",
    ("bench",): "give artifacts' folders, or a model to export for this",
    ("estimate", "--device", "iphone15"): "give an artifact's folder, or a model to export for this",
    (
        "lint",
        "artifact",
        "--module",
        "net.py:Net",
        *SHAPE,
    ): "artifact is an artifact, and --model and --module make one",
}


@pytest.mark.parametrize("arguments", BEFORE_TORCH, ids=" ".join)
def test_a_wrong_option_is_answered_before_any_code_runs(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert BEFORE_TORCH[arguments] in refuse(capsys, *arguments)
    assert "net" not in sys.modules


NET_OF_8 = ("explain", "--module", "net.py:Net", "--kwargs", '{"width": 8}', *SHAPE)
BY_RUNNING = {
    (
        "explain",
        "--module",
        "missing.py:build",
        *SHAPE,
    ): r"at missing.py:1 \(import no_such_package\): .*; install no_such_",
    (
        "explain",
        "--module",
        "script.py:build",
        *SHAPE,
    ): r"ends the program at script.py:2 \(sys.exit\(2\)\); put what a",
    ("explain", "--module", "raises.py:build", *SHAPE): r"failed at raises.py:2 \(y = x\['key'\]\): KeyError: 'key'",
    ("explain", "--module", "absent.net:Net", *SHAPE): "there is no Python module absent",
    ("explain", "--module", "nets.inner:built", *SHAPE): "nets.inner has no 'built'; the nearest: build",
    ("explain", "--module", "nets/inner.py:build", *SHAPE): "give it as package.module:callable from the folder above",
    ("explain", "--module", "net.py:nothing", *SHAPE): "nothing must return a torch.nn.Module, got NoneType",
    ("explain", "--module", "net.py:pair", *SHAPE): "must return a torch.nn.Module, got tuple of Net, int",
    ("explain", "--module", "net.py:fails", *SHAPE): r"fails\(\) failed at net.py:\d+ \(return Net\(\).missing\): Attr",
    ("explain", "--module", "net.py:ends", *SHAPE): "ends ends the program at net.py",
    ("explain", "--module", "net.py:NUMBER", *SHAPE): "must be a class or a function that returns a torch.nn.Module",
    (
        "explain",
        "--module",
        "net.py:build",
        *SHAPE,
    ): r"build takes \(width\), and width is missing; give it as --kwargs",
    ("explain", "--module", "net.py:Net", *SHAPE, "--kwargs", '{"widht": 8}'): "no 'widht'; the nearest is width",
    ("explain", "--module", "net.py:MADE", *SHAPE, "--kwargs", '{"width": 8}'): "MADE is a module already",
    ("explain", "--module", "net.py:Net", "--input", "3x8"): r"does not run on inputs of shape \[3, 8\]",
    ("explain", "--module", "net.py:Net", *SHAPE, "--fixed", '{"scal": 2}'): "no 'scal'; the nearest is scale",
    ("explain", "--module", "net.py:Net", "--input", "mask=1x1x6x6"): "and the inputs have no x; give an example of it",
    (*NET_OF_8, "--weights", "none.pth"): "no weights file at none.pth",
    (*NET_OF_8, "--weights", "ema.pth", "--key", "model"): "ema.pth has no key 'model'; the nearest: epoch, ema",
    (*NET_OF_8, "--weights", "ema.pth", "--key", "ema"): "ema.pth holds a dict under 'ema', not a state dict",
    (
        *NET_OF_8,
        "--weights",
        "other.pth",
    ): r"2 missing, first head.weight \[2, 8\] \(the nearest in the file: fc.weight",
    (
        "explain",
        "--module",
        "net.py:Net",
        *SHAPE,
        "--weights",
        "ema.pth",
        "--key",
        "ema.module",
    ): "4 of another shape|3 of",
}


@pytest.mark.parametrize("arguments", BY_RUNNING, ids=" ".join)
def test_what_only_running_the_code_can_tell_is_a_sentence_too(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    said = refuse(capsys, *arguments)
    assert re.search(BY_RUNNING[arguments], said), said


def explain(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[dict[str, object], str]:
    """Run `explain --json`. Returns its record, and what it said on stderr."""
    code = run(["explain", *arguments, "--json"])
    said = capsys.readouterr()
    assert code == 0, said.err
    return json.loads(said.out), said.err


def test_a_module_is_imported_only_where_that_is_asked_for_and_it_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    found, said = explain(capsys, "--module", "net.py:Net", *SHAPE)
    assert found["model"] == "net.py:Net"
    assert "running the code of net.py:Net, which was asked for\nimported\n" in said
    assert "called" in said, "what the model prints goes to stderr"
    assert "leaves out: note ('text')" in said


def test_a_name_in_edgesmith_toml_stands_for_its_options_and_flags_come_before_them(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert explain(capsys, "--model", "ours")[0]["model"] == "ours"
    said = explain(capsys, "--model", "ours", "--weights", "ema.pth", "--key", "ema.module")[1]
    assert "running the code of net.py:Net" in said
    assert "width" in refuse(capsys, "explain", "--model", "ours", "--kwargs", '{"wide": 8}')


def test_weights_that_do_not_fit_are_taken_as_far_as_they_do_and_that_is_said(
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, said = explain(capsys, *NET_OF_8[1:], "--weights", "other.pth", "--no-strict")
    assert "WARNING: file other.pth: 2 weights are not in the file, first head.weight; 2 weights of the file" in said


def test_weights_under_a_key_are_loaded_without_their_prefix(folder: Path) -> None:
    own = OwnModule(
        "net.py:Net", kwargs={"width": 8}, inputs=(InputSpec((1, 3, 6, 6)),), weights=Path("ema.pth"), key="ema.module"
    )
    built = build(own)
    assert all(bool((x == 0.5).all()) for x in built.module.state_dict().values())
    assert built.weights is not None
    assert built.weights.notes == ("module. was dropped from the names",)


def test_packages_are_imported_from_the_current_folder() -> None:
    built = build(OwnModule("nets.inner:build", inputs=(InputSpec((1, 3, 6, 6)),)))
    assert built.module(*built.args).shape == (1, 5, 6, 6)


def test_random_weights_are_the_same_every_time_and_leave_the_callers_generator_alone() -> None:
    before = torch.get_rng_state()
    own = OwnModule("net.py:Net", inputs=(InputSpec((1, 3, 6, 6)),))
    first, second = (build(own).module.conv.weight for _ in range(2))  # type: ignore[union-attr]  # of the class in NET
    assert torch.equal(first, second)
    assert torch.equal(before, torch.get_rng_state())


def test_inputs_lie_in_nests_by_their_names() -> None:
    inputs = tuple(map(parse_input, ("1x4:int64:5-9", "state.h=1x4", "state.list.0=2", "state.list.1=1x4:bool")))
    built = build(OwnModule("net.py:Nested", inputs=inputs))
    tokens, state = built.args[0], built.kwargs["state"]
    assert 5 <= int(tokens.min()) <= int(tokens.max()) <= 9
    assert isinstance(state["list"], list)
    assert [x.dtype for x in state["list"]] == [torch.float32, torch.bool]
    assert built.module(*built.args, **built.kwargs).shape == (1, 4)


def test_without_shapes_the_arrays_of_an_npz_are_the_example(capsys: pytest.CaptureFixture[str]) -> None:
    built = build(OwnModule("net.py:Net", example=Path("example.npz")))
    assert [x.shape for x in built.args] == [(2, 3, 4, 4)]
    assert built.kwargs["mask"].shape == (2, 1, 4, 4)
    np.savez("objects.npz", x=np.array([{}]))
    assert "objects.npz is no .npz of plain arrays" in refuse(
        capsys, "explain", "--module", "net.py:Net", "--inputs", "objects.npz"
    )


def test_export_writes_what_was_fixed_and_verifies_on_data_where_shapes_are_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "data.npz", x=np.random.rand(3, 3, 6, 6).astype(np.float32))
    own = ("--model", "ours", "--fixed", '{"scale": 2.5}', "--input", "1x3x6x6", "--inputs", str(tmp_path / "data.npz"))
    code = run(["export", *own, "--target", "onnx", "--out", str(tmp_path), "--json"])
    said = capsys.readouterr()
    assert code == 0, said.err
    assert "fixed in the file, as they are no tensors: scale = 2.5" in said.err
    manifest = read(Path(json.loads(said.out)["path"])).manifest
    assert manifest["model"]["name"] == "ours"
    assert manifest["model"]["outputs"] == ["logits"]
    assert manifest["model"]["fixed"] == {"scale": "2.5"}
    assert sum(call["kind"] == "given" for call in manifest["verification"]["inputs"]["calls"]) == 3


def test_lint_and_estimate_export_the_module_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "net.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    assert run(["lint", "--module", "net.py:Net", *SHAPE, "--json"]) == 0
    said = capsys.readouterr()
    assert "operators" in json.loads(said.out)
    assert "exported to artifacts/net-coreml-fp16" in said.err
    assert run(["estimate", "--module", "net.py:Net", *SHAPE, "--device", "galaxy-s23", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["estimated_p50_ms"] > 0
    assert (tmp_path / "artifacts" / "net-onnx-fp16").is_dir()


def test_explain_says_of_a_gate_with_tanh_exactly_that_and_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "vit.py").write_text(VIT)
    monkeypatch.chdir(tmp_path)
    found, _ = explain(capsys, "--module", "vit.py:build", "--input", "1x3x32x32")
    assert isinstance(found["rewrites"], list)
    (fuse,) = [one for one in found["rewrites"] if one["name"] == "fuse_additive_attention"]
    assert len(fuse["rejected"]) == 4
    number = VIT.splitlines().index("        mask = torch.tanh(self.block(x))") + 1
    for missed in fuse["rejected"]:
        assert missed["reason"].endswith("oper_q.1: the reference has aten.sigmoid where the graph has aten.tanh")
        assert missed["line"] == f"vit.py:{number} (mask = torch.tanh(self.block(x)))"


def test_the_python_call_takes_a_description_too() -> None:
    own = OwnModule("net.py:Net", inputs=(InputSpec((1, 3, 6, 6)),))
    from edgesmith import explain

    captured, _, _ = explain(own)
    assert captured.output_names == ("logits",)
    with pytest.raises(BadInput, match="an OwnModule says its inputs itself"):
        explain(own, inputs=(torch.zeros(1),))


def test_modules_made_by_code_are_called_with_nests_in_python_too() -> None:
    class Adds(nn.Module):
        def forward(self, pair: dict[str, Tensor], *, times: int) -> tuple[Tensor, ...]:
            return tuple(pair["a"] + pair["b"] for _ in range(times))

    from edgesmith import explain

    with pytest.warns(UserWarning, match="fixed in the file, as they are no tensors: times = 2"):
        captured, _, _ = explain(Adds(), inputs={"pair": {"a": torch.ones(2), "b": torch.ones(2)}, "times": 2})
    assert captured.input_names == ("pair_a", "pair_b")
    assert captured.output_names == ("output_0", "output_1")
