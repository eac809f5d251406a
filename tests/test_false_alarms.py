"""The experiment on the gate's own errors: copies that are slower by a known share, and what is drawn from them."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_bench import noisy, recorded

from edgesmith.bench import false_alarms, measurement, runner
from edgesmith.bench.false_alarms import SHARES, TOLERANCE, settle
from edgesmith.bench.measure import Plan, Reports, Settings
from edgesmith.bench.measurement import Subject
from edgesmith.bench.verdict import INCONCLUSIVE, SLOWER, UNCHANGED, Criterion
from edgesmith.board.common import timed

CALL_NS, READ_NS = 140_000, 60


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A clock, in nanoseconds, of which each reading takes READ_NS."""
    now = [0]

    def read() -> int:
        now[0] += READ_NS
        return now[0]

    monkeypatch.setattr(runner.time, "perf_counter_ns", read)
    return now


@pytest.mark.parametrize("share", SHARES)
def test_a_slowed_call_counts_its_share_and_all_go_on_equally_long(share: float, clock: list[int]) -> None:
    def call() -> None:
        clock[0] += CALL_NS

    slow = runner.slowed(call, share, 0.1)
    before = clock[0]
    counted_ms = slow()
    assert counted_ms * 1e6 / CALL_NS == pytest.approx(1 + share, abs=0.001)
    assert timed(slow) == counted_ms  # the loop that follows is not counted
    assert (clock[0] - before) / 2 / CALL_NS == pytest.approx(1.1, abs=0.002)


class Machine:
    """A machine on which a copy is slower by its loop times `slope`, and by `offset` where it has a loop at all."""

    def __init__(self, slope: float, offset: float, spread: float) -> None:
        self.slope, self.offset, self.spread = slope, offset, spread
        self.draw, self.pilots = np.random.default_rng(0), 0

    def truth(self, loops: Sequence[float]) -> list[float]:
        """Return how much slower each copy is than the first."""
        return [loop * self.slope + (self.offset if i else 0.0) for i, loop in enumerate(loops)]

    def record(self, loops: Sequence[float], number: int) -> measurement.Measurement:
        self.pilots += 1
        noise = self.draw.normal(0, self.spread, (len(loops), false_alarms.PILOT))
        times = [
            [[5.0 * (1 + more) * float(np.exp(x))] * 4 for x in row]
            for more, row in zip(self.truth(loops), noise, strict=True)
        ]
        return recorded(*times)


def quiet(_: str) -> None:
    return None


MACHINES = {
    "as it should be": (1.0, 0.0, 0.001),
    "a loop that makes the next call slower": (1.0, 0.019, 0.001),  # what a step of 0.14 ms showed
    "a loop that takes longer than it says": (1.3, 0.0, 0.001),
    "both, and launches that scatter": (0.9, 0.01, 0.0015),
}


@pytest.mark.parametrize("name", MACHINES)
def test_loops_are_calibrated_until_copies_are_as_slow_as_they_should_be(name: str) -> None:
    machine = Machine(*MACHINES[name])
    loops, reach = settle(SHARES, machine.record, quiet)
    assert reach <= TOLERANCE
    assert machine.truth(loops) == pytest.approx(SHARES, abs=TOLERANCE)
    assert loops[0] == 0


def test_one_pilot_in_proportion_would_miss_what_a_loop_costs_beside_its_length() -> None:
    """The calibration of before: a loop times what it should have cost over what it did."""
    machine = Machine(*MACHINES["a loop that makes the next call slower"])
    found = machine.record(SHARES, 0)
    loops = [
        share**2 / (false_alarms._ratio([found], i, 0.95).value - 1) if share else 0.0 for i, share in enumerate(SHARES)
    ]
    assert max(abs(a - b) for a, b in zip(machine.truth(loops), SHARES, strict=True)) > 3 * TOLERANCE


def test_an_interval_that_is_too_wide_gets_more_launches_and_no_other_loop() -> None:
    machine = Machine(1.0, 0.0, 0.002)
    told: list[Sequence[float]] = []

    def record(loops: Sequence[float], number: int) -> measurement.Measurement:
        told.append(tuple(loops))
        return machine.record(loops, number)

    settle(SHARES, record, quiet)
    assert machine.pilots > 1
    assert set(told) == {SHARES}


def test_a_machine_that_is_too_noisy_settles_nothing() -> None:
    machine = Machine(1.0, 0.0, 0.05)
    assert settle(SHARES, machine.record, quiet)[1] > TOLERANCE
    assert machine.pilots == false_alarms.PILOTS


def test_copies_are_one_opened_model_in_a_pilot_and_models_of_their_own_in_a_recording(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened: list[int] = []
    monkeypatch.setattr(runner, "open_model", lambda plan, model: opened.append(model["file"]) or (lambda: 1.0))
    monkeypatch.setattr(runner, "tell", lambda *_, **__: None)
    models: list[dict[str, Any]] = [{"file": 7, "slowed": share, "loop": 0.1} for share in SHARES]
    runner.time_in_turn({"models": [{**one, "same": 0} for one in models], "seconds": 0, "order": [2, 0, 1, 3]})
    assert opened == [7]
    runner.time_in_turn({"models": models, "seconds": 0})
    assert opened == [7] * 5


def test_two_copies_of_a_recording_are_compared_as_a_pair() -> None:
    three = recorded([[6.0] * 4] * 12, [[9.0, 6.6, 6.6, 6.6]] * 12, [[5.0] * 4] * 12)
    orders = [(2, 0, 1), (1, 0, 2), (0, 1, 2), (2, 1, 0)] * 3
    three = replace(
        three,
        launches=tuple(replace(one, order=order) for one, order in zip(three.launches, orders, strict=True)),
    )
    two = false_alarms.pair(three)
    assert [one.order for one in two.launches[:4]] == [(0, 1), (1, 0), (0, 1), (1, 0)]
    found = Criterion().judge(two, two, 1)
    assert found.verdict == SLOWER
    assert found.ratio is not None
    assert found.ratio.value == pytest.approx(1.1)


def test_comparisons_are_drawn_from_launches_of_both_orders() -> None:
    made = noisy(1.0, launches=20)
    half = [replace(one, order=(0, 1) if i < 5 else (1, 0)) for i, one in enumerate(made.launches)]
    whole = replace(made, launches=tuple(half))
    one = false_alarms.drawn_launches(whole, np.random.default_rng(0), 24)
    assert [launch.order for launch in one.launches[:4]] == [(0, 1), (1, 0), (1, 0), (0, 1)]
    verdicts, launches = false_alarms.drawn(whole, 5, Criterion())
    assert verdicts == {UNCHANGED: 5}
    assert 6 <= launches <= 36


@pytest.mark.parametrize(("each_s", "launches"), [(2.8, 32), (2.45, 36), (3.5, 24), (40.0, 6), (0.5, 36)])
def test_a_drawn_comparison_has_the_launches_that_there_is_time_for(each_s: float, launches: int) -> None:
    most = false_alarms.launches_in_time(each_s)
    assert most == launches
    noise = noisy(1.0, launches=40, spread=0.6)
    verdicts, made = false_alarms.drawn(noise, 2, Criterion(), most)
    assert (verdicts, made) == ({INCONCLUSIVE: 2}, launches)


@pytest.mark.parametrize(
    ("name", "share", "threshold", "of", "met"),
    [
        ("quiet", 0.0, 0.05, {"unchanged": 0.995, "slower": 0.005}, True),
        ("busy-2", 0.0, 0.05, {"unchanged": 0.98, "slower": 0.01, "faster": 0.01}, False),
        ("quiet", 0.02, 0.05, {"unchanged": 0.963, "slower": 0.037}, False),
        ("busy-2", 0.02, 0.05, {"slower": 0.02}, False),
        ("quiet", 0.075, 0.05, {"slower": 0.98}, False),
        ("busy-2", 0.075, 0.05, {"slower": 0.5, "inconclusive": 0.5}, True),
        ("quiet", 0.03, 0.02, {"slower": 0.96, "inconclusive": 0.04}, True),
        ("quiet", 0.03, 0.02, {"slower": 0.94, "unchanged": 0.06}, False),
        ("quiet", 0.03, 0.05, {"slower": 0.6, "faster": 0.001}, False),
    ],
)
def test_bars_are_those_of_a_gate_that_errs_once_in_a_hundred(
    name: str, share: float, threshold: float, of: dict[Any, float], met: bool
) -> None:
    assert all(bar.is_met for bar in false_alarms.bars_of(name, share, threshold, of)) == met


def test_busy_processes_end_with_a_killed_parent() -> None:
    code = (
        "import sys, time; from edgesmith.bench import false_alarms; real = false_alarms.subprocess.Popen\n"
        "def started(command):\n"
        "  process = real(command); print(process.pid, flush=True); return process\n"
        "false_alarms.subprocess.Popen = started\n"
        "with false_alarms.busy(1): time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        computing = Path("/proc", parent.stdout.readline().strip(), "cmdline")
        parent.kill()
    until = time.monotonic() + 60
    while computing.exists() and computing.read_bytes() and time.monotonic() < until:
        time.sleep(0.02)
    assert not computing.exists() or not computing.read_bytes()


@pytest.mark.parametrize("lean", [0.0, 0.01])
def test_one_command_records_both_states_and_draws_from_what_is_there(
    lean: float,
    export_small: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A stand-in for timing takes copies to be as slow as their loops are long, and the second one by `lean`."""
    plans: list[Plan] = []

    def carry_out(plan: Plan, subjects: Sequence[Subject], reports: Reports) -> measurement.Measurement:
        plans.append(plan)
        draw = np.random.default_rng(len(plans))
        slower = [1 + model.get("slowed", 0.0) for model in plan.models]
        times = [[[5 * by * float(np.exp(draw.normal(0, 0.001)))] * 2 for _ in range(plan.launches)] for by in slower]
        if "slowed" not in plan.models[1]:  # of one file against itself, every other launch is faster, but for the lean
            times[1] = [[ms * (1 + lean + 1e-4 * (-1) ** i) for ms in times[0][i]] for i in range(plan.launches)]
        whole = recorded(*times, subjects=tuple(subjects))
        whole = replace(
            whole, launches=tuple(replace(one, order=tuple(plan.order(i))) for i, one in enumerate(whole.launches))
        )
        assert reports.record is not None
        measurement.write(whole, reports.record)
        return whole

    monkeypatch.setattr(false_alarms, "carry_out", carry_out)
    monkeypatch.setattr(false_alarms, "time_comparisons", lambda *_: ([], 1.0))
    folder = tmp_path / "kept"
    arguments = ["false_alarms", str(export_small("onnx").path), "40", "5", str(folder), "--busy", "0", "1"]
    monkeypatch.setattr("sys.argv", arguments)
    code = false_alarms.main()
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("pilot"))
    assert names == [f"{state}-{share}.json" for state in ("busy-1", "quiet") for share in ("0", "2", "3", "7.5")] + [
        "verdicts.json"
    ]
    assert {len(plan.models) for plan in plans} == {len(SHARES), 2}  # of a pilot, and of what compare times
    assert {plan.seconds for plan in plans if len(plan.models) == 2} == {Settings(until=Criterion()).launch_s}
    said = capsys.readouterr().out
    assert "quiet: 240 launches, until about" in said
    met = {bar["bar"]: bar["met"] for bar in json.loads((folder / "verdicts.json").read_text())["bars"]}
    assert met["quiet: slowed by 7.5%, threshold 5%: slower"]
    assert met["quiet: launches with head below base"] == (lean == 0)
    assert code == (3 if lean else 0)
    so_far = len(plans)
    assert false_alarms.main() == code
    assert len(plans) == so_far
