"""Libraries of kernels: equal bytes, no foreign symbols, and one sentence where they cannot be made."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from edgesmith.errors import BackendMissing, EdgesmithError, OutputError, Unsupported
from edgesmith.kernels.native import toolchain
from edgesmith.kernels.native.elementwise import Elementwise, emit
from edgesmith.kernels.native.toolchain import CpuTarget, compile_units, find_compiler, host
from edgesmith.kernels.native.unit import Unit


@pytest.fixture(scope="module")
def target() -> CpuTarget:
    try:
        find_compiler(host())
    except EdgesmithError as refused:
        pytest.skip(str(refused))
    return host()


@pytest.fixture(scope="module")
def units(target: CpuTarget) -> list[Unit]:
    return [emit(Elementwise(count, "relu"), target) for count in (5, 70, 33)]


def test_equal_units_give_equal_bytes(target: CpuTarget, units: list[Unit], tmp_path: Path) -> None:
    first = compile_units(units, tmp_path / "a" / "kernels.so", target, jobs=1)
    second = compile_units([*reversed(units), units[0]], tmp_path / "b.so", target, jobs=3)
    assert first.read_bytes() == second.read_bytes()


def test_a_library_exports_its_kernels_and_needs_the_c_library_alone(
    target: CpuTarget, units: list[Unit], tmp_path: Path
) -> None:
    path = compile_units(units, tmp_path / "kernels.so", target)
    names = subprocess.run(["nm", "-D", "--defined-only", str(path)], capture_output=True, text=True, check=True).stdout
    assert {line.split()[-1] for line in names.splitlines()} == {"es_set_threads", *(unit.symbol for unit in units)}
    needed = subprocess.run(["readelf", "-d", str(path)], capture_output=True, text=True, check=True).stdout
    libraries = {line.partition("[")[2].partition("]")[0] for line in needed.splitlines() if "NEEDED" in line}
    assert libraries <= {"libc.so.6", "libpthread.so.0"}


def test_weights_of_another_width_are_refused_by_the_compiler(target: CpuTarget, tmp_path: Path) -> None:
    wrong = CpuTarget(target.triple, ("neon",))  # four lanes
    unit = emit(Elementwise(5, "relu"), wrong)
    with pytest.raises(toolchain.CompilationFailed, match="fails at compiling a kernel") as failed:
        compile_units([unit], tmp_path / "kernels.so", target)
    assert "packed for vectors of 4 floats" in failed.value.log
    assert not (tmp_path / "kernels.so").exists()


def test_no_compiler_is_one_sentence(target: CpuTarget, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(toolchain.importlib.util, "find_spec", lambda name: None)
    toolchain._examine.cache_clear()
    with pytest.raises(BackendMissing, match=r"need g\+\+ 12, clang 15 or the ziglang package: pip install"):
        find_compiler(target)
    other = "aarch64-linux-gnu" if target.architecture == "x86_64" else "x86_64-linux-gnu"
    with pytest.raises(BackendMissing, match=f"need the ziglang package, to compile for {other}: pip install"):
        find_compiler(CpuTarget(other, ("neon",)))
    toolchain._examine.cache_clear()


def test_an_old_compiler_is_passed_over(target: CpuTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    said = {"--version": "g++ (GCC) 9.4.0", "-dumpversion": "9.4.0"}
    monkeypatch.setattr(toolchain, "_ask", lambda command, *words: said[words[0]])
    monkeypatch.setattr(toolchain.shutil, "which", lambda command: command)
    toolchain._examine.cache_clear()
    assert toolchain._examine("g++") is None
    said["-dumpversion"] = "12"
    toolchain._examine.cache_clear()
    found = toolchain._examine("g++")
    toolchain._examine.cache_clear()
    assert found is not None
    assert found.kind == "g++"


def test_a_processor_without_kernels_is_refused() -> None:
    with pytest.raises(Unsupported, match="need AVX2 with FMA, AVX-512 or NEON, and riscv64-linux-gnu has none"):
        _ = CpuTarget("riscv64-linux-gnu", ()).instructions


def test_a_folder_that_cannot_be_written_is_refused(target: CpuTarget, units: list[Unit], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cannot write the library"):
        compile_units(units[:1], tmp_path / "file" / "kernels.so", target)
