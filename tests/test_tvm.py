"""Compiled models: what they compute, what they need, and what they say where they cannot be had."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

pytest.importorskip("tvm", reason="tvm is not installed")

import edgesmith
from edgesmith.errors import BadInput, Unsupported
from edgesmith.exporters import targets
from edgesmith.exporters.artifact import Artifact
from edgesmith.exporters.targets import _tvm_compile, _tvm_library
from edgesmith.kernels.op import FusedOp, all_ops

TVM = targets.get("tvm")


class Small(nn.Module):
    """A stem, a depthwise layer, a gate, a norm, and a head: of each kind of loop one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.norm = nn.GroupNorm(1, 16)
        self.up, self.down = nn.Conv2d(16, 40, 1), nn.Conv2d(40, 16, 1)
        self.head = nn.Linear(16, 7)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(image))
        x = x + self.depthwise(x).sigmoid() * x
        x = x + self.down(F.gelu(self.up(self.norm(x))))
        return self.head(x.mean((2, 3)))


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    torch.manual_seed(0)
    image = torch.randn(2, 3, 18, 22)
    return edgesmith.export(Small().eval(), "tvm", inputs=image, name="small", out=tmp_path_factory.mktemp("tvm"))


def test_the_library_is_within_rounding_of_pytorch(artifact: Artifact) -> None:
    check = artifact.manifest["verification"]["steps"][-1]
    assert check["runtime"] == TVM.runtime
    assert check["relative_error"] <= 2e-6


def test_the_folder_has_a_header_an_example_and_a_loader(artifact: Artifact) -> None:
    assert {file.name for file in artifact.path.iterdir()} >= {"small.so", "small.h", "example.c", "load_small.py"}
    details = artifact.manifest["details"]
    assert details["macs"]["kernels"] + details["macs"]["tvm"] > 100_000
    assert details["memory_bytes"] == _tvm_library.read(artifact.file).description.memory_bytes


def test_the_example_compiles_and_runs_with_the_c_library_alone(artifact: Artifact, tmp_path: Path) -> None:
    if shutil.which("gcc") is None:
        pytest.skip("no gcc here")
    command = ["gcc", "-O1", str(artifact.path / "example.c"), str(artifact.file), "-I", str(artifact.path)]
    subprocess.run([*command, f"-Wl,-rpath,{artifact.path}", "-o", str(tmp_path / "example")], check=True)
    shown = subprocess.run([str(tmp_path / "example")], capture_output=True, text=True, check=True).stdout
    with_zeros = _tvm_library.read(artifact.file).load()([np.zeros((2, 3, 18, 22), np.float32)])[0]
    assert [np.float32(line.split("=")[1]) for line in shown.splitlines()] == with_zeros.ravel()[:5].tolist()
    needed = subprocess.run(["readelf", "-d", str(artifact.file)], capture_output=True, text=True, check=True).stdout
    libraries = {line.split("[")[1].split("]")[0] for line in needed.splitlines() if "NEEDED" in line}
    assert libraries <= {"libc.so.6", "libm.so.6", "libgcc_s.so.1", "libpthread.so.0"}


def test_the_loader_needs_numpy_alone(artifact: Artifact) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import numpy as np; from load_small import Model;"
        "print(Model()(np.ones((2, 3, 18, 22)))[0].sum()); assert not {'torch', 'tvm', 'edgesmith'} & {*sys.modules}"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code, str(artifact.path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ones = _tvm_library.read(artifact.file).load()([np.ones((2, 3, 18, 22), np.float32)])[0]
    assert float(done.stdout) == pytest.approx(float(ones.sum()), rel=1e-6)


def test_its_page_says_types_and_shapes_and_its_program_runs(artifact: Artifact) -> None:
    page = (artifact.path / "USE.md").read_text(encoding="utf-8")
    assert "one number" not in page
    assert "float32" in page
    code = page.split("```python\n")[1].split("```")[0]
    done = subprocess.run(
        [sys.executable, "-P", "-c", "import sys; sys.path.insert(0, '.')\n" + code],
        cwd=artifact.path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tuple(artifact.manifest["model"]["interface"]["outputs"][0]["shape"]))


def test_two_exports_have_the_same_bytes(artifact: Artifact, tmp_path: Path) -> None:
    torch.manual_seed(0)
    image = torch.randn(2, 3, 18, 22)
    again = edgesmith.export(Small().eval(), "tvm", inputs=image, name="small", out=tmp_path)
    assert again.sha256 == artifact.sha256


def test_inputs_may_lie_anywhere(artifact: Artifact) -> None:
    """Compiled loops read whole vectors: what is not aligned for them is copied first."""
    session = _tvm_library.read(artifact.file).load()
    image = np.random.default_rng(0).standard_normal((2, 3, 18, 22)).astype(np.float32)
    expected = session([image])[0]
    block = np.empty(image.size + 16, np.float32)
    for shift in range(16):
        moved = block[shift : shift + image.size].reshape(image.shape)
        moved[:] = image
        assert np.array_equal(session([moved])[0], expected)


def test_a_call_allocates_nothing_and_leaves_nothing(artifact: Artifact) -> None:
    """Memory that is full of anything gives the same numbers, and stays of its size."""
    session = _tvm_library.read(artifact.file).load()
    image = np.ones((2, 3, 18, 22), np.float32)
    expected = session([image])[0]
    session._memory[:] = 255  # NaN
    assert np.array_equal(session([image])[0], expected)
    symbols = subprocess.run(["nm", "-D", str(artifact.file)], capture_output=True, text=True, check=True).stdout
    wanted = {line.split()[-1].split("@")[0] for line in symbols.splitlines() if " U " in line}
    assert not wanted & {"malloc", "calloc", "aligned_alloc", "posix_memalign", "_Znwm", "mmap"}


def test_two_threads_run_two_sessions_at_once(artifact: Artifact) -> None:
    library = _tvm_library.read(artifact.file)
    images = [np.full((2, 3, 18, 22), value, np.float32) for value in (0.5, -1.0)]
    expected = [library.load()([image])[0] for image in images]
    wrong: list[int] = []

    def run(i: int) -> None:
        session = library.load()
        for _ in range(50):
            if not np.array_equal(session([images[i]])[0], expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=run, args=(i,)) for i in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_memory_that_is_missing_or_not_aligned_is_a_number_not_0(artifact: Artifact) -> None:
    run = ctypes.CDLL(str(artifact.file)).small_run
    block = np.empty(1 << 20, np.uint8)
    pointers = (ctypes.c_void_p * 1)(block.ctypes.data)
    assert run(pointers, pointers, None) != 0
    assert run(pointers, pointers, ctypes.c_void_p((block.ctypes.data | 63) + 2)) != 0


@pytest.mark.parametrize("cut", [100, 5000, -100])
def test_a_library_that_is_cut_off_is_refused(cut: int, artifact: Artifact, tmp_path: Path) -> None:
    damaged = tmp_path / "small.so"
    damaged.write_bytes(artifact.file.read_bytes()[:cut])
    with pytest.raises(Unsupported, match=r"small\.so is no compiled model"):
        TVM.open(damaged).check()


def test_a_library_for_another_processor_is_not_run(artifact: Artifact, tmp_path: Path) -> None:
    content = bytearray(artifact.file.read_bytes())
    content[18:20] = (183 if content[18] == 62 else 62).to_bytes(2, "little")
    other = tmp_path / "small.so"
    other.write_bytes(content)
    answer = TVM.open(other).run([[np.zeros((2, 3, 18, 22), np.float32)]])
    assert isinstance(answer, targets.target.NotHere)
    assert "this machine has" in answer.reason


class Operators(nn.Module):
    """One function as a module."""

    def __init__(self, function: Callable[..., object]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: torch.Tensor) -> object:
        return self.function(*inputs)


class Fused(nn.Module):
    """Every fused op with a kernel, on its example; its weights are the module's own."""

    def __init__(self, ops: list[FusedOp]) -> None:
        super().__init__()
        self.ops = ops
        self.names = [[f"{op.name}_{i}" for i in range(len(op.example()) - 1)] for op in ops]
        for op, names in zip(ops, self.names, strict=True):
            for name, weight in zip(names, op.example()[1:], strict=True):
                self.register_buffer(name, weight)

    def forward(self, *inputs: torch.Tensor) -> list[torch.Tensor]:
        made: list[torch.Tensor] = []
        for op, names, x in zip(self.ops, self.names, inputs, strict=True):
            results = op.overload(x, *[getattr(self, name) for name in names])
            made += results if isinstance(results, tuple) else [results]
        return made


def test_every_fused_op_with_a_kernel_goes_through_it(tmp_path: Path) -> None:
    ops = [op for op in all_ops().values() if "tvm" in op.lowerings]
    inputs = tuple(op.example()[0] for op in ops)
    artifact = edgesmith.export(Fused(ops), "tvm", inputs=inputs, name="fused", out=tmp_path)
    covered = artifact.manifest["details"]["covered"]
    assert {op.name.replace("_", " ") for op in ops} <= covered["kernels"].keys()
    assert artifact.manifest["verification"]["steps"][-1]["relative_error"] <= 2e-6


def test_an_operator_that_tvm_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match=r"TVM cannot express this model: it does not take aten\._linalg_eigh"):
        edgesmith.export(Operators(torch.linalg.eigvalsh), "tvm", inputs=torch.eye(3), out=tmp_path)


def test_a_device_that_nothing_is_compiled_for_is_refused() -> None:
    with pytest.raises(BadInput, match=r"iPhone 15 takes coreml.*compiled models are for host, .*rpi5"):
        edgesmith.export("casvit_xs", "tvm", device="iphone15")


def test_a_library_for_a_board_is_compiled_here_and_not_run(tmp_path: Path) -> None:
    pytest.importorskip("ziglang")
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
    artifact = edgesmith.export(model, "tvm", inputs=torch.zeros(2, 8), name="small", device="rpi5", out=tmp_path)
    library = _tvm_library.read(artifact.file)
    assert (library.machine, library.description.cpu) == ("aarch64", "cortex-a76")
    assert "this machine has" in artifact.manifest["verification"]["steps"][-1]["not_checked_here"]


def test_explain_says_what_computes_what(edgesmith: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    shown = edgesmith("explain", "--model", "casvit_xs", "--target", "tvm", "--input-size", "32x32").stdout
    assert "computed by" in shown
    assert "share of" in shown  # as wide as there is room
    assert "multiply-accumulates" in shown


def test_loops_that_tvm_does_not_compile_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(lowered: object, out: Path) -> None:
        raise RuntimeError("InternalError: Check failed: (it != var_map_.end()) is false")

    monkeypatch.setattr(_tvm_compile, "compile_loops", fail)
    with pytest.raises(Unsupported, match=r"it does not take aten\.atan\(.*; spell it") as refused:
        edgesmith.export(Operators(torch.atan), "tvm", inputs=torch.randn(1, 4), out=tmp_path)
    assert "var_map_" not in str(refused.value)


def test_what_the_importer_does_not_know_is_spelled_as_for_another_target(tmp_path: Path) -> None:
    """cdist and hypot are spelled for others; the importer, PyTorch's decompositions and ours for TVM have neither."""
    model = Operators(lambda x: (torch.cdist(x, x.flip(1)), torch.hypot(x, x.flip(0))))
    artifact = edgesmith.export(model, "tvm", inputs=torch.randn(3, 4), out=tmp_path)
    assert artifact.manifest["verification"]["steps"][-1]["step"] == "eager -> file"
