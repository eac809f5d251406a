"""What stays fp32: the range first, then what loses most, then what misses the SNR; how often a program is measured."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import nn

from edgesmith.exporters.graph.capture import Program, capture
from edgesmith.exporters.precision.islands import type_half, type_mixed
from edgesmith.exporters.precision.policy import LIMITS_DB, ROUNDS, Seen, choose, find
from edgesmith.exporters.precision.table import FP16
from edgesmith.exporters.precision.task import TypingTask


def test_a_value_beyond_the_range_keeps_what_makes_and_what_reads_it_whatever_the_outputs_are_worth() -> None:
    loud = Seen("mul", makes=70_000.0, overflows=True, loss_db=50.0)
    operators = [Seen("sin"), loud, Seen("div", reads=70_000.0, operands=(loud,)), Seen("cos", loss_db=30.0)]
    kept = {
        "mul": "makes 7e+04, and half precision ends at 65504",
        "div": "reads 7e+04, and half precision ends at 65504",
    }
    assert choose(operators, reached=True) == choose(operators, reached=False) == kept
    assert choose(operators, reached=True, largest=1e5) == {}


def test_values_beyond_the_range_in_fp32_keep_nothing_while_no_half_precision_operator_meets_them() -> None:
    loud = Seen("mul", makes=70_000.0, is_half=False)
    assert choose([loud, Seen("div", reads=70_000.0, is_half=False, operands=(loud,))], reached=True) == {}


def test_what_loses_most_is_kept_first_and_only_while_the_outputs_miss_their_snr() -> None:
    operators = [Seen(f"op_{limit:.0f}", position="somewhere", loss_db=limit + 0.5) for limit in LIMITS_DB]
    assert choose(operators, reached=True) == {}
    for first, limit in enumerate(LIMITS_DB):
        assert choose(operators[first:], reached=False) == {
            f"op_{limit:.0f}": f"somewhere loses {limit + 0.5:.1f} dB",
        }


def test_what_an_fp32_operator_loses_was_rounded_away_in_the_nearest_half_precision_operators_above_it() -> None:
    left, right, before = Seen("left", position="add at a"), Seen("right"), Seen("before")
    cast = Seen("cast", is_half=False, operands=(right,))
    inner = Seen("inner", is_half=False, operands=(left, before))
    loser = Seen("sub", is_half=False, loss_db=25.0, operands=(inner, cast, left))
    found = choose([before, left, right, cast, inner, loser], reached=False)
    assert found == {"left": "add at a loses 25.0 dB", "right": "loses 25.0 dB", "before": "loses 25.0 dB"}


def test_where_nothing_loses_a_decibel_what_misses_the_snr_is_kept() -> None:
    operators = [Seen("good", loss_db=0.9), Seen("poor", loss_db=0.7, misses=True)]
    assert choose(operators, reached=False) == {"poor": "loses 0.7 dB"}
    assert choose(operators, reached=True) == {}


def test_a_program_is_measured_until_nothing_new_is_found() -> None:
    asked: list[list[str]] = []

    def measure(kept: Mapping[str, str]) -> dict[str, str]:
        asked.append(list(kept))
        return {1: {"a": "first"}, 2: {"b": "second", "a": "again"}}.get(len(asked), {"a": "again"})

    assert find(measure) == {"b": "second", "a": "first"}
    assert asked == [[], ["a"], ["b", "a"]]


def test_a_program_is_not_measured_for_ever() -> None:
    kept = find(lambda kept: {f"op_{len(kept)}": "loses"})
    assert list(kept) == [f"op_{i}" for i in reversed(range(ROUNDS))]


# What becomes of a program


class Loud(nn.Module):
    """Two nodes of which one makes and one reads what half precision cannot hold."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return ((x.sin() * 1e3 * 1e3) / 1e3 / 1e3).cos()


@pytest.fixture(scope="module")
def loud() -> Program:
    return capture(Loud(), (torch.full((2, 8), 0.75),))


def task(program: Program, lossy: Mapping[str, str] | None = None, **options: bool) -> TypingTask:
    return TypingTask(
        inputs=[program.inputs],
        calibration=None,
        thresholds=FP16.limits(),
        is_step=options.get("is_step", False),
        types_programs=options.get("types_programs", True),
        finds_islands=options.get("finds_islands", True),
        largest_int8_weight=None,
        lossy_operators=lambda kept: lossy or {},
    )


def test_islands_are_found_where_the_target_has_them_and_the_program_is_no_step(loud: Program) -> None:
    typed = type_half(loud, task(loud), "float16")
    assert typed.keep_fp32 is not None
    assert list(typed.keep_fp32) == ["mul_1", "div"]
    for options in ({"finds_islands": False}, {"is_step": True}):
        typed = type_half(loud, task(loud, **options), "float16")
        assert typed.keep_fp32 is None
        assert typed.program is not loud
    assert type_half(loud, task(loud), "bfloat16").keep_fp32 is None


def test_a_program_that_a_converter_types_stays_as_it_is(loud: Program) -> None:
    typed = type_half(loud, task(loud, types_programs=False), "float16")
    assert (typed.program, typed.keep_fp32) == (loud, None)
    assert type_mixed(loud, task(loud)).keep_fp32 == {}
    mixed = type_mixed(loud, task(loud, {"conv": "loses"}))
    assert (mixed.program, mixed.keep_fp32) == (loud, {"conv": "loses"})
