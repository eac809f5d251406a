"""The plan of a compiled model: values that live at once do not meet, and what is written around it is C."""

from __future__ import annotations

import itertools
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgesmith.exporters.targets import _tvm_source
from edgesmith.exporters.targets._tvm_plan import ALIGNMENT, Block, Call, Listing, Value, place, plan


def chain(count: int, size: int = 100) -> Listing:
    """Calls in a row, each of which reads what the one before wrote."""
    values = {f"v{i}": Value(f"v{i}", (size,), "float32") for i in range(count + 1)}
    calls = tuple(Call("step", (f"v{i}",), (f"v{i + 1}",)) for i in range(count))
    return Listing((values["v0"],), (values[f"v{count}"],), calls, values)


def test_a_chain_works_in_the_memory_of_two_values() -> None:
    found = plan(chain(20))
    assert found.memory == 2 * 448  # 400 bytes, in whole cache lines
    assert len(set(found.positions.values())) == 2


BLOCKS = st.lists(
    st.tuples(st.integers(0, 5000), st.integers(0, 20), st.integers(0, 20)).map(
        lambda one: (one[0], min(one[1:]), max(one[1:]))
    ),
    max_size=30,
)


@given(BLOCKS)
def test_blocks_that_live_at_once_do_not_meet(drawn: list[tuple[int, int, int]]) -> None:
    blocks = [Block(str(i), *one) for i, one in enumerate(drawn)]
    positions, memory = place(blocks)
    for i, one in enumerate(blocks):
        assert positions[one.name] % ALIGNMENT == 0
        assert positions[one.name] + one.size <= memory
        for other in blocks[:i]:
            if one.first <= other.last and other.first <= one.last and one.size and other.size:
                apart = positions[one.name] + one.size <= positions[other.name]
                assert apart or positions[other.name] + other.size <= positions[one.name]


def test_an_input_that_is_an_output_is_not_written_over() -> None:
    values = {name: Value(name, (64,), "float32") for name in ("x", "y")}
    listing = Listing((values["x"],), (values["x"], values["y"]), (Call("f", ("x",), ("y",)),), values)
    found = plan(listing)
    assert abs(found.positions["x"] - found.positions["y"]) >= 256


def test_another_name_for_the_same_bytes_keeps_them() -> None:
    """`r` is `y`, reshaped: what is written while `r` is still needed must not lie where `y` does."""
    values = {name: Value(name, (64,), "float32") for name in ("x", "y", "r", "z", "out")}
    calls = (Call("f", ("x",), ("y",)), Call("g", ("x",), ("z",)), Call("h", ("r", "z"), ("out",)))
    found = plan(Listing((values["x"],), (values["out"],), calls, values, aliases={"r": "y"}))
    assert found.positions["y"] != found.positions["z"]
    assert "r" not in found.positions


def test_equal_parameters_are_kept_once_and_aligned() -> None:
    values = {name: Value(name, (3,), "float32") for name in ("x", "a", "b", "c", "y")}
    parameters = {"a": b"1" * 12, "b": b"2" * 12, "c": b"1" * 12}
    listing = Listing((values["x"],), (values["y"],), (Call("f", ("a", "b", "c", "x"), ("y",)),), values, parameters)
    found = plan(listing)
    assert found.weights == {"a": 0, "b": ALIGNMENT, "c": 0}
    assert len(found.content) == ALIGNMENT + 12


def test_scratch_is_a_calls_own_while_it_runs() -> None:
    values = {name: Value(name, (64,), "float32") for name in ("x", "y")}
    calls = (Call("f", ("x",), ("y",), scratch=(1000, 24)),)
    found = plan(Listing((values["x"],), (values["y"],), calls, values))
    (first, second) = found.scratch[0]
    taken = sorted([(first, 1000), (second, 24), (found.positions["x"], 256), (found.positions["y"], 256)])
    assert all(at + size <= after for (at, size), (after, _) in itertools.pairwise(taken))


@pytest.mark.parametrize(
    ("name", "expected"),
    [("casvit_xs", "casvit_xs"), ("a-b", "a_b"), ("3d", "m_3d"), ("int", "m_int"), ("naïve", "na_ve"), ("", "m_")],
)
def test_names_are_such_that_c_takes_them(name: str, expected: str) -> None:
    assert _tvm_source.identifier(name) == expected


def test_header_and_example_are_c(tmp_path: Path) -> None:
    """As C and as C++, without warnings."""
    if shutil.which("gcc") is None or shutil.which("g++") is None:
        pytest.skip("no gcc here")
    inputs = [("image", Value("v0", (1, 3, 2, 2), "float32")), ("int", Value("v1", (), "int64"))]
    outputs = [("logits", Value("v2", (1, 10), "float32")), ("mask", Value("v3", (4,), "bool"))]
    (tmp_path / "my-model.h").write_text(_tvm_source.header("my-model", inputs, outputs), "utf-8")
    (tmp_path / "example.c").write_text(_tvm_source.example("my-model", inputs, outputs), "utf-8")
    assert len(_tvm_source.example("my-model", inputs, outputs).splitlines()) <= 40
    for compiler in (["gcc", "-std=c11", "-pedantic"], ["g++", "-x", "c++", "-std=c++11"]):
        command = [*compiler, "-Wall", "-Wextra", "-Werror", "-fsyntax-only", "example.c"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
