"""Compiled kernels return what PyTorch does in float64, at odd shapes, on every instruction set and any threads."""

from __future__ import annotations

import shutil
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import native_driver
from support.native_cases import Case, error, integer_sweep, quiet_sweep, sweep

from edgesmith.errors import BackendMissing, BadInput, EdgesmithError
from edgesmith.exporters.targets._tvm_processor import here
from edgesmith.kernels.native import pointwise
from edgesmith.kernels.native.callable import Library
from edgesmith.kernels.native.tiles import (
    AVX2,
    AVX512,
    GROUP_BYTES,
    MANY_WEIGHTS,
    NEON,
    SDOT,
    InstructionSet,
    ceil_div,
    choose_tile,
    cut,
    panels,
)
from edgesmith.kernels.native.toolchain import CpuTarget, compile_program, compile_units, find_compiler, host

SHARED = "-DES_SHARE_ALL"
"""Threads share phases that are too short for it, as those of all cases here are."""


def target_of(name: str) -> CpuTarget:
    """Return this machine with an instruction set, or skip."""
    try:
        machine = host()
        find_compiler(machine)
    except EdgesmithError as refused:
        pytest.skip(str(refused))
    features = tuple(name.split())
    if not {*features} <= {*machine.features, *dots_here()}:
        pytest.skip(f"this machine has no {name}")
    return CpuTarget(machine.triple, features)


def dots_here() -> tuple[str, ...]:
    """Return the products of integers that this machine has."""
    return here(multiplies_integers=True).cpu_target().features


@pytest.fixture(scope="module", params=["avx512", "avx2", "neon"])
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Library, list[Case]]:
    """The sweep, compiled for one instruction set."""
    target = target_of(request.param)
    cases = sweep(target)
    path = tmp_path_factory.mktemp(request.param) / "kernels.so"
    return Library(compile_units([case.unit for case in cases], path, target, flags=(SHARED,))), cases


@pytest.mark.parametrize("threads", [1, 2, 3, 4])
def test_kernels_agree_with_float64(built: tuple[Library, list[Case]], threads: int) -> None:
    library, cases = built
    library.set_threads(threads)
    wrong = {}
    for case in cases:
        for found, expected in zip(library.call(case.unit, *case.given), case.expected, strict=True):
            worst = error(found, expected)
            if not worst <= case.tolerance:
                wrong[case.unit.symbol] = worst
    library.set_threads(1)
    assert not wrong


def test_sanitizers_find_nothing(tmp_path: Path) -> None:
    """AddressSanitizer and UndefinedBehaviorSanitizer, over the same sweep, with two threads."""
    target = target_of("avx2")
    cases = sweep(target)
    program = compile_program(
        [case.unit for case in cases],
        native_driver.write_main(cases),
        tmp_path / "sweep",
        target,
        flags=(SHARED, "-O0", "-g0", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
    )
    outputs, said = native_driver.run(program, cases, threads=2)
    assert not said
    for case, found in zip(cases, outputs, strict=True):
        for one, expected in zip(found, case.expected, strict=True):
            assert error(one, expected) <= case.tolerance, case.unit.symbol


@pytest.mark.parametrize("name", ["avx512 vnni", "avx512", "avx2", "neon", "neon sdot"])
def test_products_of_integers_are_what_they_say_in_cpp(name: str, tmp_path: Path) -> None:
    """The instruction of a processor, and the lines that it stands for: the same bits, on any threads."""
    target = target_of(name)
    cases = integer_sweep(target)[1::2]
    units = [case.unit for case in cases]
    made = Library(compile_units(units, tmp_path / "made.so", target))
    plain = Library(compile_units(units, tmp_path / "plain.so", target, flags=("-DES_PLAIN_DOT",)))
    made.set_threads(3)
    for case in cases:
        (found,), (meant,) = (library.call(case.unit, *case.given) for library in (made, plain))
        np.testing.assert_array_equal(found, meant, err_msg=case.unit.symbol)
        assert error(found, case.expected[0]) <= case.tolerance, case.unit.symbol
    made.set_threads(1)


@pytest.mark.slow
@pytest.mark.parametrize("features", [("neon",), ("neon", "sdot")])
def test_kernels_agree_on_aarch64(features: tuple[str, ...], tmp_path: Path) -> None:
    """The sweep for NEON, compiled by zig and run by an emulator; with sdot what multiplies integers."""
    emulator, target = shutil.which("qemu-aarch64"), CpuTarget("aarch64-linux-musl", features)
    if emulator is None:
        pytest.skip("no qemu-aarch64: apt-get install qemu-user")
    try:
        find_compiler(target)
    except BackendMissing as refused:
        pytest.skip(str(refused))
    cases = integer_sweep(target) if target.dot is SDOT else sweep(target)
    main = native_driver.write_main(cases)
    units = [case.unit for case in cases]
    program = compile_program(units, main, tmp_path / "sweep", target, flags=(SHARED, "-static"))
    for threads in (1, 2, 3, 4):
        outputs, _ = native_driver.run(program, cases, threads, before=(emulator,))
        for case, found in zip(cases, outputs, strict=True):
            for one, expected in zip(found, case.expected, strict=True):
                assert error(one, expected) <= case.tolerance, case.unit.symbol


@pytest.mark.parametrize(
    ("pixels", "inputs", "outputs", "reads", "shared"),
    [
        (49, 384, 1536, 1, 2),  # few pixels and many weights, which come from memory: read once by each of two threads
        (49, 1536, 384, 1, 2),
        (16, 320, 1280, 1, 1),  # very many weights: two threads read half of them each
        (1, 384, 1000, 1, 1),
        (196, 192, 768, 2, 2),
        (3136, 64, 256, 8, 8),  # many pixels and few weights: inputs are read once
    ],
)
def test_layers_are_cut_where_least_is_read_again(
    pixels: int, inputs: int, outputs: int, reads: int, shared: int
) -> None:
    op = pointwise.Pointwise(pixels, inputs, outputs)
    tile = choose_tile(AVX512, pixels, outputs)
    units, panel_count = ceil_div(pixels, tile.pixels), len(panels(AVX512, tile.vectors, outputs))
    made = cut(units, panel_count, 4 * pixels * inputs, 4 * inputs * outputs)
    assert (made.alone, made.shared) == (reads, shared)
    source = pointwise.emit(op, CpuTarget("x86_64-linux-gnu", ("avx512",))).source
    assert f"ALONE = {reads};" in source
    assert f"SHARED = {shared};" in source


@given(
    units=st.integers(1, 500),
    panel_count=st.integers(1, 64),
    unit_bytes=st.integers(4, 1 << 20),
    weight_bytes=st.integers(4, 1 << 24),
    least=st.integers(1, 8),
)
def test_cuts_cover_a_layer_and_are_enough_tasks(
    units: int, panel_count: int, unit_bytes: int, weight_bytes: int, least: int
) -> None:
    made = cut(units, panel_count, units * unit_bytes, weight_bytes, least)
    assert 1 <= made.alone <= made.shared <= units
    assert 1 <= made.panel_groups <= panel_count
    assert made.alone * made.panel_groups >= min(least, panel_count)
    assert ceil_div(units, made.alone) * unit_bytes <= max(GROUP_BYTES, unit_bytes)
    assert made.shared > 1 or units == 1 or weight_bytes > MANY_WEIGHTS * units * unit_bytes


@pytest.mark.parametrize(("instructions", "registers"), [(AVX512, 32), (AVX2, 16), (NEON, 32)])
def test_tiles_fit_into_the_registers(instructions: InstructionSet, registers: int) -> None:
    assert registers >= max(pixels * vectors + vectors + 1 for vectors, pixels in instructions.tiles.items())
    assert registers >= max(
        pixels * vectors + min(pixels, vectors) + 1 for pixels, vectors in instructions.short.items()
    )


POOL = """
#include "pool.h"
#include <pthread.h>
#include <stdio.h>

constexpr int MOST = 9, PHASES = 30000;

// Each phase's tasks, counted by the phase itself: 1 each, and none beyond.
static void* run_phases(void* wrong) {
    for (int phase = 0; phase < PHASES; ++phase) {
        int runs[MOST] = {};
        const int tasks = phase % MOST;
        es::parallel(tasks, [&](int task) { __atomic_add_fetch(&runs[task], 1, __ATOMIC_RELAXED); });
        for (int task = 0; task < MOST; ++task)
            if (runs[task] != (task < tasks)) __atomic_add_fetch(static_cast<int*>(wrong), 1, __ATOMIC_RELAXED);
    }
    return nullptr;
}

int main() {
    int wrong = 0;
    pthread_t other;
    constexpr int COUNTS[] = {4, 2, 1, 3};
    for (int threads : COUNTS) {
        if (es_set_threads(threads)) return 2;
        pthread_create(&other, nullptr, run_phases, &wrong);
        run_phases(&wrong);
        pthread_join(other, nullptr);
    }
    return wrong ? 1 : 0;
}
"""


def test_the_pool_runs_every_task_once(tmp_path: Path) -> None:
    """Short phases from two callers, under ThreadSanitizer, while threads come and go."""
    program = compile_program(
        [],
        POOL,
        tmp_path / "pool",
        target_of("avx2"),
        flags=("-fsanitize=thread", "-g0"),
    )
    done = subprocess.run([str(program)], capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_two_threads_may_call_at_once(built: tuple[Library, list[Case]]) -> None:
    library, cases = built
    alone = [library.call(case.unit, *case.given) for case in cases]
    library.set_threads(3)
    right: list[str] = []

    def call_all() -> None:
        for _ in range(3):
            for case, outputs in zip(cases, alone, strict=True):
                found = library.call(case.unit, *case.given)
                if all(np.array_equal(*pair) for pair in zip(found, outputs, strict=True)):
                    right.append(case.unit.symbol)

    callers = [threading.Thread(target=call_all) for _ in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    library.set_threads(1)
    assert sorted(right) == sorted(9 * [case.unit.symbol for case in cases])


def test_threads_change_no_bit(built: tuple[Library, list[Case]]) -> None:
    library, cases = built
    alone = [library.call(case.unit, *case.given)[0] for case in cases]
    library.set_threads(4)
    for case, expected in zip(cases, alone, strict=True):
        np.testing.assert_array_equal(library.call(case.unit, *case.given)[0], expected, err_msg=case.unit.symbol)
    library.set_threads(1)


def test_a_number_that_is_none_stays_one(built: tuple[Library, list[Case]]) -> None:
    library, cases = built
    for case in cases:
        if "elementwise" in case.unit.symbol or "pointwise" in case.unit.symbol:
            found = library.call(case.unit, np.full_like(case.given[0], np.nan), *case.given[1:])[0]
            assert np.isnan(found).all(), case.unit.symbol


def test_exp_and_sigmoid_are_accurate_where_they_are_small(built: tuple[Library, list[Case]]) -> None:
    library, cases = built
    for case in cases:
        if case.unit.symbol.startswith(("es_elementwise_exp", "es_elementwise_sigmoid")):
            found, expected = library.call(case.unit, *case.given)[0], case.expected[0]
            ordinary = expected > 1e-37
            assert np.abs(found / expected - 1)[ordinary].max() <= 1e-6
            assert np.abs(found - expected).max() <= 1e-6 * max(1, expected.max())


def test_layers_of_few_pixels_sum_in_stages(tmp_path: Path) -> None:
    """A thousand products in one row round four times as much."""
    layer, target, generator = pointwise.Pointwise(1, 1000, 64), host(), np.random.default_rng(0)
    unit = pointwise.emit(layer, target)
    library = Library(compile_units([unit], tmp_path / "head.so", target))
    x, weight = (generator.standard_normal(shape).astype(np.float32) for shape in ((1, 1000), (64, 1000)))
    found = library.call(unit, x, pointwise.pack(layer, target, weight))[0]
    assert error(found, x.astype(np.float64) @ weight.T) < 3e-7


@pytest.mark.parametrize("name", ["avx512", "avx2", "neon"])
def test_a_bias_is_added_last(name: str, tmp_path: Path) -> None:
    """Small products that are added to a large bias one by one would each lose their last bits."""
    target = target_of(name)
    cases = quiet_sweep(target)
    library = Library(compile_units([case.unit for case in cases], tmp_path / "quiet.so", target))
    for case in cases:
        (found,), (exact,) = library.call(case.unit, *case.given), case.expected
        allowed = np.spacing(np.abs(exact).astype(np.float32)) / 2 + 1e-8
        assert (np.abs(found.reshape(exact.shape) - exact) <= allowed).all(), case.unit.symbol


def test_wrong_sizes_and_threads_are_refused(built: tuple[Library, list[Case]]) -> None:
    library, cases = built
    unit = cases[0].unit
    with pytest.raises(BadInput, match=r"x must be \[1, 1\], got \[3\]"):
        library.call(unit, np.zeros(3, np.float32), np.zeros(3, np.float32))
    for threads in (0, 65):
        with pytest.raises(BadInput, match="1 to 64 threads"):
            library.set_threads(threads)
