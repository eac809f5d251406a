"""Whole compiled models on Arm: each is cross-compiled, linked into a program, and run by an emulator."""

from __future__ import annotations

import copy
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from support.native_cases import error

pytest.importorskip("tvm", reason="tvm is not installed")

import edgesmith
from edgesmith.errors import BackendMissing
from edgesmith.exporters.targets import _tvm_compile
from edgesmith.exporters.targets._tvm_graph import Lowered
from edgesmith.kernels.native.toolchain import CpuTarget, compile_program, find_compiler
from edgesmith.models import checkpoint, registry

TARGET = CpuTarget("aarch64-linux-musl", ("neon",))
"""The boards' processor with a C library that programs bring along: the emulator needs nothing else of a board."""

FLAGS = ("-static", "-O0")
"""Kernels as they are optimised are compiled in test_native_kernels.py, which takes four times as long."""

TOLERANCE = 2e-6
"""Largest difference from PyTorch in float64, relative to the output's peak."""

MAIN = """
#include <stdio.h>
#include <stdlib.h>

int main() {
    void *input, *output, *memory;
    if (posix_memalign(&input, 64, INPUT) || posix_memalign(&output, 64, OUTPUT)) return 1;
    if (posix_memalign(&memory, 64, model_memory_bytes())) return 2;
    if (fread(input, 1, INPUT, stdin) != INPUT) return 3;
    const void* const inputs[] = {input};
    void* const outputs[] = {output};
    if (model_run(inputs, outputs, memory)) return 4;
    return fwrite(output, 1, OUTPUT, stdout) != OUTPUT;
}
"""


@pytest.fixture
def emulator() -> str:
    """The emulator, where it is and a compiler for Arm."""
    found = shutil.which("qemu-aarch64")
    if found is None:
        pytest.skip("no qemu-aarch64: apt-get install qemu-user")
    try:
        find_compiler(TARGET)
    except BackendMissing as refused:
        pytest.skip(str(refused))
    return found


class LinkedError(Exception):
    """Ends an export whose program is there: nothing here could verify it."""


def link_program(program: Path, input_bytes: int, output_bytes: int) -> Callable[..., None]:
    """Return what links a program that reads its input and writes its output, in the library's place."""

    def link(lowered: Lowered, line: str, loops: Path, out: Path) -> None:
        main = MAIN.replace("INPUT", str(input_bytes)).replace("OUTPUT", str(output_bytes))
        units = [kernel.unit for kernel in lowered.kernels.values()]
        compile_program(units, line + main, program, TARGET, linked=(str(loops),), flags=FLAGS)
        raise LinkedError

    return link


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("casvit_xs", (1, 3, 32, 32)),
        ("affnet_et", (1, 3, 96, 96)),  # on maps of few pixels its norms double what PyTorch itself rounds
        ("efficientvim_m1", (1, 3, 64, 64)),
        ("lmuformer", (1, 128, 128)),
    ],
)
def test_a_whole_model_runs_on_aarch64(
    name: str, shape: tuple[int, ...], emulator: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model, _ = checkpoint.load(registry.get(name), None)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = copy.deepcopy(model).double()(x.double()).numpy()
    program = tmp_path / "program"
    monkeypatch.setattr(_tvm_compile, "link", link_program(program, x.nbytes, 4 * expected.size))
    with pytest.raises(LinkedError):
        edgesmith.export(model, "tvm", inputs=x, name="model", device="rpi5", out=tmp_path)
    done = subprocess.run([emulator, str(program)], input=x.numpy().tobytes(), stdout=subprocess.PIPE, check=True)
    assert error(np.frombuffer(done.stdout, np.float32), expected) <= TOLERANCE
