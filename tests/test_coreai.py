"""Core AI: the adapter between edgesmith and Apple's packages, what it makes steady, and what it answers."""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from support.lowering import lower
from torch import Tensor, nn

import edgesmith
from edgesmith.cli.doctor import examine
from edgesmith.errors import BackendMissing, BadInput, Unsupported, VerificationFailed
from edgesmith.exporters import targets
from edgesmith.exporters.graph.capture import capture, exported
from edgesmith.exporters.graph.edit import aten, operators
from edgesmith.exporters.graph.sizes import refuse_unknown_sizes
from edgesmith.exporters.precision.half import half
from edgesmith.exporters.targets import _coreai_adapter as adapter
from edgesmith.exporters.targets._coreai_products import convolve_linears
from edgesmith.exporters.targets.target import NotHere, Request, Target
from edgesmith.kernels import lif

COREAI = targets.get("coreai")
needs_packages = pytest.mark.skipif(adapter.missing() is not None, reason=str(adapter.missing()))


class Mixed(nn.Module):
    """A convolution, composites, a large weight, a spiking loop, and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.group, self.layer = nn.Conv1d(8, 12, 3, padding=1), nn.GroupNorm(3, 12), nn.LayerNorm(40)
        self.linear = nn.Linear(40, 200)  # 32 kB: a resource in the file, not a literal

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.layer(self.group(self.conv(x)).relu())
        spikes = lif.OP.overload(2 * y, dim=-1)
        return self.linear(y), spikes.mean(-1)


X = torch.randn(2, 8, 40, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def asset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("coreai") / "mixed.aimodel"
    lower(COREAI, capture(Mixed().eval(), (X,)), path, licence="MIT", labels=("ä", "b"))
    return path


def copy(asset: Path, folder: Path) -> Path:
    path = folder / "copy.aimodel"
    path.mkdir()
    for file in asset.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    return path


def test_the_adapter_is_no_target() -> None:
    assert "coreai" in targets.all_targets()
    assert not [name for name in targets.all_targets() if name.startswith("_")]


@needs_packages
def test_file_runs_and_counts_a_composite_as_one_operator(asset: Path) -> None:
    COREAI.open(asset).check()
    outputs = COREAI.open(asset).run([[X.numpy()], [2 * X.numpy()]])
    assert not isinstance(outputs, NotHere)
    for scale, found in zip((1, 2), outputs, strict=True):
        with torch.no_grad():
            expected = Mixed().eval()(scale * X)
        assert np.abs(found[0] - expected[0].numpy()).max() <= 1e-5
        assert np.array_equal(found[1], expected[1].numpy())
    counts = COREAI.open(asset).count_operators()
    assert (counts["group_norm"], counts["layer_norm"], counts["while"]) == (1, 1, 1)
    assert not {"invoke", "constant", "yield"} & set(counts)


@needs_packages
def test_group_norms_over_many_numbers_keep_their_digits(tmp_path: Path) -> None:
    """The converter's own body sums a group at once and is 3e-6 of the peak away."""
    norm, x = nn.GroupNorm(1, 64), 1 + torch.randn(1, 64, 32, 32)
    artifact = edgesmith.export(norm, "coreai", inputs=x, out=tmp_path)
    assert artifact.manifest["verification"]["steps"][-1]["relative_error"] <= 1e-6


@needs_packages
def test_file_says_what_it_is_and_not_when_it_was_made(asset: Path) -> None:
    metadata = json.loads((asset / adapter.METADATA).read_text(encoding="utf-8"))
    assert "creationDate" not in metadata
    assert metadata["license"] == "MIT"
    said = metadata["creatorDefinedMetadata"]
    assert (said["edgesmith.name"], said["edgesmith.labels"]) == ("mixed", '["ä", "b"]')
    assert sorted(file.name for file in asset.iterdir()) == [adapter.HASH, adapter.PROGRAM, adapter.METADATA]
    program = (asset / adapter.PROGRAM).read_bytes()
    assert (asset / adapter.HASH).read_bytes() == hashlib.sha256(program).digest()
    assert b"weight_0\0" in program
    assert b"resource_" not in program
    assert b"group_norm_0\0" in program


@needs_packages
def test_another_process_writes_the_same_bytes(asset: Path, tmp_path: Path) -> None:
    code = (
        "import importlib.util as u, pathlib, sys; sys.path.insert(0, str(pathlib.Path(sys.argv[1]).parent));"
        "spec = u.spec_from_file_location('t', sys.argv[1]);"
        "t = u.module_from_spec(spec); sys.modules['t'] = t; spec.loader.exec_module(t);"
        "t.lower(t.COREAI, t.capture(t.Mixed().eval(), (t.X,)), pathlib.Path(sys.argv[2]), name='mixed',"
        " licence='MIT', labels=('ä', 'b'))"
    )
    again = tmp_path / "again.aimodel"
    environment = {**os.environ, "PYTHONHASHSEED": "4711"}
    subprocess.run([sys.executable, "-c", code, __file__, str(again)], env=environment, check=True)
    for file in asset.iterdir():
        assert file.read_bytes() == (again / file.name).read_bytes(), file.name


@needs_packages
def test_values_inside_the_file_have_the_programs_names(asset: Path) -> None:
    program = exported(capture(Mixed().eval(), (X,)), "coreai").module(check_guards=False)
    names = [node.name for node in operators(program)]
    found = COREAI.open(asset).intermediate(names, [X.numpy()])
    assert {"relu", "layer_norm"} <= set(found)
    model = Mixed().eval()
    with torch.no_grad():
        relu = model.group(model.conv(X)).relu()
        assert np.abs(found["relu"] - relu.numpy()).max() <= 1e-5
        assert np.abs(found["layer_norm"] - model.layer(relu).numpy()).max() <= 1e-5


@needs_packages
def test_a_wrong_file_is_refused_at_its_first_wrong_operator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A weight changes behind the check of the program: the sentence names the module whose result is wrong first."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh())
    right = type(COREAI).lower

    def wrong(target: Target, program: object, path: Path, request: Request) -> None:
        other = capture(nn.Sequential(model[0], nn.Tanh(), nn.Linear(4, 4), nn.Tanh()), (torch.zeros(1, 4),))
        right(target, other, path, request)

    monkeypatch.setattr(type(COREAI), "lower", wrong)
    with pytest.raises(VerificationFailed, match=r"they diverge first at 2 \(aten.(linear|addmm)"):
        edgesmith.export(model, "coreai", inputs=torch.randn(1, 4), out=tmp_path)


@needs_packages
def test_an_input_of_another_shape_does_not_reach_the_runtime(asset: Path) -> None:
    with pytest.raises(BadInput, match=r"x must have shape \[2, 8, 40\], got \[1, 8, 40\]"):
        COREAI.open(asset).run([[X[:1].numpy()]])


@needs_packages
@pytest.mark.parametrize("file", [adapter.PROGRAM, adapter.HASH, adapter.METADATA])
def test_a_missing_or_altered_part_is_one_sentence(file: str, asset: Path, tmp_path: Path) -> None:
    path = copy(asset, tmp_path)
    content = (path / file).read_bytes()
    (path / file).unlink()
    with pytest.raises(Unsupported, match=r"copy.aimodel is no readable Core AI asset"):
        COREAI.open(path).check()
    (path / file).write_bytes(content[:-3])
    with pytest.raises(Unsupported, match=r"copy.aimodel is (damaged|no readable)"):
        COREAI.open(path).check()


@needs_packages
def test_a_program_without_main_or_without_sense_is_refused(asset: Path, tmp_path: Path) -> None:
    path = copy(asset, tmp_path)
    for program, sentence in (
        ((path / adapter.PROGRAM).read_bytes().replace(b"\0main\0", b"\0mien\0"), "no function called main"),
        (b"no bytecode at all", "no readable Core AI asset"),
    ):
        (path / adapter.PROGRAM).write_bytes(program)
        (path / adapter.HASH).write_bytes(hashlib.sha256(program).digest())
        with pytest.raises(Unsupported, match=sentence):
            COREAI.open(path).check()
        with pytest.raises(Unsupported):
            COREAI.open(path).run([[X.numpy()]])


@needs_packages
def test_too_little_room_is_said_before_the_packages_write(
    asset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter, "_OVERHEAD", 1 << 62)
    with pytest.raises(OSError, match="No space left on device"):
        lower(COREAI, capture(nn.Linear(4, 4), (torch.zeros(1, 4),)), tmp_path / "x.aimodel")
    with pytest.raises(OSError, match="No space left on device"):
        adapter.Session(asset)


def test_another_version_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "9.9")
    with pytest.raises(BackendMissing, match=r"made for coreai-torch 0.4.3, and 9.9 is installed: pip install coreai"):
        adapter.require()
    assert isinstance(COREAI.open(Path("x.aimodel")).run([]), NotHere)
    row = examine(COREAI)
    assert (row["lower"], row["do"]) == ("no", 'pip install "edgesmith[coreai]"')


def test_missing_packages_are_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert "needs coreai-torch, which is not installed: pip install" in str(COREAI.cannot_run())


def test_versions_of_the_extra_are_the_tested_ones(checkout: Path) -> None:
    project = (checkout / "pyproject.toml").read_text(encoding="utf-8")
    for name, version in adapter.TESTED.items():
        assert f'"{name}=={version}"' in project
        assert f"{name}=={version}\n" in (checkout / "constraints.txt").read_text(encoding="utf-8")


@needs_packages
def test_an_api_that_has_moved_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import coreai_torch

    monkeypatch.delattr(coreai_torch, "get_decomp_table")
    with pytest.raises(Unsupported, match=r"not as edgesmith knows them .*coreai_torch.get_decomp_table"):
        edgesmith.export(nn.Linear(4, 4), "coreai", inputs=torch.zeros(1, 4), out=tmp_path)


@needs_packages
def test_nothing_of_the_packages_reaches_the_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    edgesmith.export(nn.Linear(4, 4), "coreai", inputs=torch.zeros(1, 4), out=tmp_path)
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


@pytest.mark.parametrize("value", [0, 1, 127, 128, 16383, 16384, 2**35, 2**56 - 1, 2**56, 2**64 - 1])
def test_integers_of_the_bytecode_are_read_as_they_are_written(value: int) -> None:
    data = adapter._as_varint(value)
    assert adapter._varint(b"\xff" + data, 1) == (value, 1 + len(data))


def test_bytecode_of_another_form_is_refused() -> None:
    for program in (b"", b"ELF", b"ML\xefR\x0dMLIR\0\x81"):
        with pytest.raises(Unsupported, match="the bytecode has another form"):
            adapter._steady(program)


@needs_packages
def test_a_step_runs_twenty_times_with_its_states_carried(tmp_path: Path) -> None:
    artifact = edgesmith.export("lmuformer", "coreai", streaming=True, frames=25, out=tmp_path)
    file = artifact.manifest["verification"]["steps"][-1]
    assert file["relative_error"] <= 1e-5
    assert (file["step"], file["frames"]) == ("eager -> file", 25)


@needs_packages
@pytest.mark.slow
@pytest.mark.parametrize("name", ["affnet_et", "casvit_xs", "efficientvim_m1", "lmuformer", "spiking_lmuformer"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_model_of_each_family_at_its_own_size(
    name: str, precision: str, one_block_a_stage: Callable[[], None], tmp_path: Path
) -> None:
    """At its own depth in half precision. In fp32 two have one block a stage: test_coreml.py exports all of theirs."""
    if precision == "fp32" and name in ("affnet_et", "efficientvim_m1"):
        one_block_a_stage()
    if (name, precision) == ("spiking_lmuformer", "fp16"):
        with pytest.raises(VerificationFailed, match="half precision flips spikes"):
            edgesmith.export(name, "coreai", precision=precision, out=tmp_path)
        return
    file = edgesmith.export(name, "coreai", precision=precision, out=tmp_path).manifest["verification"]["steps"][-1]
    assert file["relative_error"] <= (1e-5 if precision == "fp32" else 2e-2)
    assert file["snr_db"] >= (100 if precision == "fp32" else 40)


class Twice(nn.Module):
    """One weight in two layers, and a layer whose weight is computed."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tied, self.computed = nn.Linear(24, 24), nn.Linear(24, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.tied(self.tied(x).relu())
        return nn.functional.linear(y, self.computed.weight * y.mean(), self.computed.bias)


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "a head": (lambda: nn.Linear(1024, 40), (1, 1024)),
    "a head of a batch": (lambda: nn.Linear(96, 1), (4, 96)),
    "without a batch": (lambda: nn.Linear(96, 5), (96,)),
    "tokens": (lambda: nn.Linear(96, 20, bias=False), (2, 9, 96)),
    "a map with channels behind": (lambda: nn.Linear(96, 20), (2, 3, 5, 96)),
    "windows of a map": (lambda: nn.Linear(96, 20), (2, 3, 4, 5, 96)),
}


@needs_packages
@pytest.mark.parametrize("name", LAYERS)
def test_a_linear_layer_in_half_precision_is_a_convolution_that_sums_in_single(name: str, tmp_path: Path) -> None:
    build, shape = LAYERS[name]
    torch.manual_seed(0)
    layer, x = build().eval(), torch.randn(shape)
    if len(shape) == 1:
        layer, x = nn.Sequential(First(), layer), x[None]
    made = edgesmith.export(layer, target="coreai", precision="fp16", inputs=(x,), out=tmp_path)
    counts = made.manifest["operators"]["file"]
    assert "batch_matmul" not in counts
    assert counts["conv2d"] == 1
    (step,) = (one for one in made.manifest["verification"]["steps"] if one["step"] == "eager -> file")
    assert step["snr_db"] > 60  # products of matrices come to 45 with 1024 terms


class First(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[0]


@needs_packages
def test_a_shared_weight_is_one_kernel_and_a_computed_one_stays(tmp_path: Path) -> None:
    module, x = Twice().eval(), torch.randn(2, 9, 24)
    made = edgesmith.export(module, target="coreai", precision="fp16", inputs=(x,), out=tmp_path)
    assert {name: made.manifest["operators"]["file"][name] for name in ("conv2d", "batch_matmul")} == {
        "conv2d": 2,
        "batch_matmul": 1,
    }
    program = capture(module, (x,))
    assert convolve_linears(program) is program  # single precision stays as it is
    halved = half(program)
    convolved = convolve_linears(halved)
    assert sum(one.target is aten.conv2d.default for one in operators(convolved.module)) == 2
    assert sum("1x1" in name for name in dict(convolved.module.named_parameters())) == 1
    targets_of_given = [one.target for one in operators(halved.module)]
    assert targets_of_given.count(aten.linear.default) == 3


class _Masked(nn.Module):
    """Numbers whose count depends on their values, and what is computed of them."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@needs_packages
@pytest.mark.parametrize(
    ("function", "named"),
    [
        (lambda x: x[x > 0], "aten.index"),
        (lambda x: x[x[:, 0] > 0].sum(), "aten.index"),  # which was silently wrong
        (lambda x: torch.masked_select(x, x > 0), "aten.index"),  # which it is made
        (lambda x: torch.nonzero(x > 0) * 2, "aten.mul"),
    ],
)
def test_sizes_by_values_are_refused_before_they_are_converted(
    function: Callable[[Tensor], Tensor], named: str, tmp_path: Path
) -> None:
    program = capture(_Masked(function), (torch.randn(3, 4),))
    with pytest.raises(
        Unsupported, match=f"Core AI cannot express {named} .*its size depends on the values of tensors"
    ):
        lower(COREAI, program, tmp_path / "made.aimodel")


def test_places_are_returned_as_many_as_there_are() -> None:
    refuse_unknown_sizes(capture(_Masked(lambda x: torch.nonzero(x > 0)), (torch.randn(3, 4),)).module, "Core AI")
