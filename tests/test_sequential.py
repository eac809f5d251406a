"""Comparisons that end where they are decided: their looks, their orders, and how often their verdicts are wrong."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations, count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_bench import noisy, recorded

from edgesmith.bench import measure, measurement, runner
from edgesmith.bench.experiments import operating_curve
from edgesmith.bench.experiments.operating_curve import NOISES, in_turn, operate, simulate
from edgesmith.bench.statistics import Interval, confidence_of_a_look
from edgesmith.bench.verdict import (
    FASTER,
    INCONCLUSIVE,
    SLOWER,
    UNCHANGED,
    Criterion,
    Word,
    judge,
    launch_ratios,
    worst_code,
)
from edgesmith.board import common
from edgesmith.errors import BadInput

COMPARISONS = 100
Counts = dict[tuple[str, float, float], Counter[Word]]


# looks


@pytest.mark.parametrize(
    ("confidence", "looks", "bound"),
    [  # Jennison and Turnbull, Group Sequential Methods, 2000, table 2.1
        (0.99, 1, 2.576),
        (0.99, 2, 2.772),
        (0.99, 4, 2.939),
        (0.99, 10, 3.117),
        (0.95, 4, 2.361),
        (0.9, 5, 2.122),
    ],
)
def test_bounds_are_those_of_the_published_table(confidence: float, looks: int, bound: float) -> None:
    of_a_look = confidence_of_a_look(confidence, tuple(6 * k for k in range(1, looks + 1)))
    assert 1 - of_a_look == pytest.approx(math.erfc(bound / math.sqrt(2)), rel=3e-3)


def test_intervals_of_all_looks_hold_the_truth_together_as_surely_as_is_said() -> None:
    criterion, noise = Criterion(confidence=0.9), in_turn(0.0, lambda draw, n: draw.normal(0, 0.02, n))
    missed = 0
    for seed in range(COMPARISONS):
        ends = [seen for _, seen in simulate(noise, criterion, seed)]
        missed += any(one.low is None or one.high is None or not one.low <= 0 <= one.high for one in ends)
    assert missed <= 19  # 10 expected of 100; 20 or more have a probability of 0.2 %


def test_looks_are_even_and_there_is_an_interval_at_each() -> None:
    def looks(launches: int) -> tuple[int, ...]:
        return measure.Plan([], 1.0, launches, until=Criterion()).looks

    assert looks(36) == (6, 12, 18, 24, 30, 36)
    assert looks(12) == (6, 8, 10, 12)
    assert looks(7) == (6, 7)
    assert looks(2) == (2,)
    assert measure.Plan([], 1.0, 24).looks == ()


# orders


@pytest.mark.parametrize("count", [2, 3, 5])
def test_of_any_two_subjects_each_comes_first_in_half_of_the_launches(count: int) -> None:
    plan = measure.Plan([{}] * count, 1.0, 8)
    orders = [plan.order(i) for i in range(8)]
    assert all(sorted(order) == list(range(count)) for order in orders)
    for a, b in combinations(range(count), 2):
        for launches in range(2, 9, 2):
            assert sum(order.index(a) < order.index(b) for order in orders[:launches]) == launches / 2


def test_rounds_begin_in_the_launch_s_order_and_each_pair_of_them_is_balanced() -> None:
    turns = runner.turns([2, 0, 1], seed=3)
    rounds = [next(turns) for _ in range(20)]
    assert rounds[0] == [2, 0, 1]
    assert all(second == first[::-1] for first, second in zip(rounds[::2], rounds[1::2], strict=True))
    assert len({tuple(one) for one in rounds}) > 2


def test_the_runner_opens_warms_and_runs_in_the_plan_s_order(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done: list[str] = []

    def open_model(plan: dict[str, Any], model: dict[str, Any]) -> Any:
        done.append(f"open {model['name']}")
        return lambda: done.append(model["name"])

    monkeypatch.setattr(runner, "open_model", open_model)
    monkeypatch.setattr(runner, "warm_up", lambda call: (done.append("warm"), call(), (1, 1.0, True))[-1])
    plan = {"models": [{"name": "a"}, {"name": "b"}], "order": [1, 0], "seed": 0, "seconds": 1e-9, "slot_ms": 1e-9}
    runner.time_in_turn(plan)
    assert done[:8] == ["open b", "b", "open a", "a", "warm", "b", "warm", "a"]
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["model"] for event in events] == [1, 0, 1, 0, 1, 0, 0, 1]


def test_the_runner_opens_copies_and_pairs_of_rounds_go_to_them_by_turns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened: list[str] = []
    called: list[tuple[str, int]] = []

    def open_model(plan: dict[str, Any], model: dict[str, Any]) -> Any:
        copy = opened.count(model["name"])
        opened.append(model["name"])
        return lambda: called.append((model["name"], copy))

    monkeypatch.setattr(runner, "open_model", open_model)
    monkeypatch.setattr(runner, "warm_up", lambda call: (4, 4.0, True))
    names = ["a", "b"]
    plan = {"models": [{"name": name} for name in names], "seed": 0, "slot_ms": 1e-9, "copies": 3}
    runner.time_in_turn({**plan, "seconds": 0.03})  # a pair of rounds takes 8 ms
    assert opened == ["a", "b", "b", "a", "a", "b"]
    assert called[:6] == [("a", 0), ("b", 0), ("b", 1), ("a", 1), ("a", 2), ("b", 2)]
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["event"] for event in told[:5]] == ["open", "open", "warm", "warm", "slot"]
    slots = [event for event in told if event["event"] == "slot"]
    assert all(slot["copy"] == slot["round"] // 2 % 3 for slot in slots)
    assert {(names[slot["model"]], slot["copy"]) for slot in slots} == set(called)
    opened.clear()
    runner.time_in_turn({**plan, "seconds": 0.017})
    assert opened == ["a", "b", "b", "a"]  # as many as there are pairs of rounds for


@pytest.mark.parametrize(
    ("runtimes", "size", "count"),
    [
        (("onnxruntime", "onnxruntime"), 12 << 20, 6),
        (("onnxruntime", "compiled"), 48 << 20, 2),
        (("onnxruntime", "onnxruntime"), 1 << 30, 1),
        (("onnxruntime", "onnxruntime"), 0, 6),
        (("tensorrt", "tensorrt"), 1 << 20, 1),
    ],
)
def test_copies_are_of_processors_files_and_fit_into_memory(runtimes: tuple[str, str], size: int, count: int) -> None:
    two = [replace(one, runtime=name, bytes=size) for one, name in zip(noisy(1.0).subjects, runtimes, strict=True)]
    assert measure.copies_of(two) == count


def test_launches_of_several_copies_scatter_less() -> None:
    """What a copy's memory was given goes with it; each of its rounds alone would say the same."""
    draw = np.random.default_rng(0)

    def launches(copies: int) -> measurement.Measurement:
        rounds = range(24)
        made = recorded(*[[[1.0] * len(rounds)] * 40] * 2)

        def launch(one: measurement.Launch) -> measurement.Launch:
            luck = draw.normal(0, 0.02, (copies, 2))
            slots = tuple(
                replace(
                    slot,
                    samples_ms=(float(np.exp(luck[slot.round // 2 % copies, slot.subject])),),
                    copy=slot.round // 2 % copies,
                )
                for slot in one.slots
            )
            return replace(one, slots=slots)

        return replace(made, launches=tuple(map(launch, made.launches)))

    alone, six = (launch_ratios(launches(copies), 0, 1).std() for copies in (1, 6))
    assert six == pytest.approx(alone / math.sqrt(6), rel=0.3)


# measuring until it is decided


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Let launches be those of a list of ratios by which head takes longer; the orders that were asked for."""
    orders: list[list[int]] = []

    def events(plan: dict[str, Any], where: object) -> Iterator[dict[str, Any]]:
        orders.append(plan["order"])
        draw = np.random.default_rng(len(orders))
        yield {"event": "start", "runtimes": {}, "environment": {}}
        for model in plan["order"]:
            yield {"event": "warm", "model": model, "calls": 3 + model, "ms": 1.0, "is_steady": True}
        for number in range(2):
            for model in plan["order"]:
                took = 5.0 * (plan["models"][model]["ratio"] * math.exp(draw.normal(0, plan["models"][1]["spread"])))
                yield {"event": "slot", "model": model, "round": number, "at_s": 0.0, "samples_ms": [took]}
        yield {"event": "end", "environment": {}}

    monkeypatch.setattr(measure, "_events", events)
    monkeypatch.setattr(measure._Run, "start_cold", lambda self: None)
    return orders


def carried_out(ratio: float, spread: float, launches: int = 36, **more: Any) -> measurement.Measurement:
    models = [{"ratio": 1.0, "spread": spread}, {"ratio": ratio, "spread": spread}]
    plan = measure.Plan(models, 1.0, launches, **{"until": Criterion(), **more})
    return measure.carry_out(plan, noisy(1.0).subjects)


@pytest.mark.parametrize(
    ("ratio", "spread", "count", "word"),
    [
        (1.0, 0.002, 6, UNCHANGED),
        (1.2, 0.002, 6, SLOWER),
        (0.8, 0.02, 6, FASTER),  # the interval is not narrow, and lies beyond half the threshold
        (1.0, 0.2, 36, INCONCLUSIVE),
    ],
)
def test_launches_are_added_until_the_verdict_stands(
    ratio: float, spread: float, count: int, word: Word, launched: list[list[int]]
) -> None:
    made = carried_out(ratio, spread)
    assert (len(made.launches), made.complete, made.looks) == (count, True, (6, 12, 18, 24, 30, 36))
    assert Criterion().judge(made, made, 1).verdict == word
    assert [launch.order for launch in made.launches] == [tuple(order) for order in launched]
    assert all([warm.calls for warm in launch.warm] == [3, 4] for launch in made.launches)  # the subjects' own order


def test_a_comparison_out_of_time_ends_after_a_pair_and_where_there_is_an_interval(launched: list[list[int]]) -> None:
    assert len(carried_out(1.0, 0.2, whole_s=0.0).launches) == 6
    made = carried_out(1.0, 0.2, launches=4, whole_s=0.0)
    assert (len(made.launches), made.complete) == (4, True)


def test_a_comparison_adds_the_launches_that_there_is_time_for(
    launched: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = count(0, 2.6)  # seconds of a launch: 24 would take 62.4
    monkeypatch.setattr(measure.time, "monotonic", lambda: next(clock))
    assert len(carried_out(1.0, 0.2, whole_s=60.0).launches) == 22


def test_launches_of_a_comparison_are_as_long_as_where_fewer_fit() -> None:
    """Shorter ones would spend most of their time on starting."""
    assert measure.Settings(until=Criterion()).launch_s == pytest.approx(90 / 22 - 1.5)
    assert measure.Settings(until=Criterion(), launches=12).launch_s == 6.0
    assert measure.Settings(until=Criterion(), seconds=20).launch_s == measure.SHORTEST_S
    assert measure.Settings().launch_s == 1.0


def test_what_is_not_compared_has_all_its_launches(launched: list[list[int]]) -> None:
    made = carried_out(1.0, 0.002, launches=12, until=None)
    assert (len(made.launches), made.looks) == (12, ())


def test_a_comparison_has_three_times_the_usual_time_and_launches() -> None:
    assert measure.Settings().most == (30.0, 12)
    assert measure.Settings(until=Criterion()).most == (90.0, 36)
    assert measure.Settings(seconds=5, launches=3, until=Criterion()).most == (5, 3)


# the rule


@pytest.mark.parametrize(
    ("value", "low", "high", "word"),
    [
        (1.06, 1.021, 1.1, SLOWER),  # sure, and the estimate reaches the threshold
        (1.06, 1.001, 1.2, INCONCLUSIVE),  # it does, and could be of a change by 2 %
        (1.06, 0.999, 1.12, INCONCLUSIVE),
        (1.04, 1.026, 1.055, SLOWER),  # all of it above half the threshold
        (1.04, 1.024, 1.055, INCONCLUSIVE),  # the interval's end beyond the threshold is no slowdown
        (1.04, 1.024, 1.049, UNCHANGED),
        (1.0, 0.96, 1.04, UNCHANGED),
        (1.0, 0.94, 1.04, INCONCLUSIVE),
        (1 / 1.06, 1 / 1.1, 1 / 1.021, FASTER),
        (1 / 1.06, 1 / 1.2, 1 / 1.001, INCONCLUSIVE),
        (1 / 1.04, 1 / 1.055, 1 / 1.026, FASTER),
        (1 / 1.04, 1 / 1.055, 1 / 1.024, INCONCLUSIVE),
    ],
)
def test_the_rule_s_own_words(value: float, low: float, high: float, word: Word) -> None:
    assert judge(Interval(value, low, high), 0.05, 0.0, 12)[0] == word


def test_a_noisier_machine_makes_no_slowdown() -> None:
    """An interval is widened about one estimate: what is not slower does not become so."""
    words = [judge(Interval(1.03, 1.03 / w, 1.03 * w), 0.05, 0.0, 12)[0] for w in np.linspace(1.01, 1.3, 30)]
    assert SLOWER not in words


def test_several_verdicts_have_the_worst_s_code() -> None:
    slower, unsure, same = noisy(1.3), noisy(1.05, spread=0.4), noisy(1.0)
    found = {name: Criterion().judge(one, one, 1) for name, one in (("8", slower), ("9", unsure), ("0", same))}
    assert worst_code([found["0"], found["9"], found["8"]]) == 8
    assert worst_code([found["0"], found["9"]]) == 9
    assert worst_code([found["9"], replace(found["0"], verdict="not comparable")]) == 10
    assert worst_code([found["0"]]) == 0
    assert worst_code([]) == 0


# how often it is wrong


@pytest.fixture(scope="module")
def counts() -> Counts:
    """Verdicts of simulated comparisons, by the machine, the threshold and the true change."""
    asked = [("quiet", 0.05, (0.0, 0.02, 0.075)), ("quiet", 0.02, (0.0, 0.03)), ("loaded", 0.05, (0.0, 0.075))]
    found: Counts = {}
    for name, threshold, changes in asked:
        rows = operate(NOISES[name], Criterion(threshold), changes, COMPARISONS)
        found |= {(name, threshold, change): row[0] for change, row in zip(changes, rows, strict=True)}
    return found


@pytest.mark.parametrize(("machine", "threshold"), [("quiet", 0.05), ("quiet", 0.02), ("loaded", 0.05)])
def test_a_file_against_itself_is_neither_slower_nor_faster(machine: str, threshold: float, counts: Counts) -> None:
    found = counts[machine, threshold, 0.0]
    assert found[SLOWER] + found[FASTER] <= COMPARISONS / 100


def test_what_is_slower_is_called_so_and_what_is_little_slower_is_not(counts: Counts) -> None:
    assert counts["quiet", 0.05, 0.075][SLOWER] >= 0.99 * COMPARISONS
    assert counts["quiet", 0.05, 0.02][SLOWER] <= COMPARISONS / 100
    assert counts["quiet", 0.02, 0.03][SLOWER] >= 0.95 * COMPARISONS
    assert not sum(found[FASTER] for found in counts.values())


def test_launches_of_one_order_would_lean() -> None:
    """The same noise, with the order of the launches left as it was: what alternating is for."""
    leaning = lambda draw: draw.normal(-0.03, 0.012, measure.MOST_LAUNCHES)  # noqa: E731
    balanced = in_turn(0.03, lambda draw, n: draw.normal(0, 0.012, n))
    assert operate(leaning, Criterion(0.02), (0.0,), 40)[0][0][FASTER] > 30
    assert operate(balanced, Criterion(0.02), (0.0,), 40)[0][0][FASTER] == 0


def test_the_curve_is_drawn_and_printed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from xml.etree import ElementTree

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["operating_curve", "3"])
    operating_curve.main()
    assert (
        len(list(ElementTree.parse(operating_curve.FIGURE).getroot().iter("{http://www.w3.org/2000/svg}polyline"))) == 8
    )
    assert "quiet: 3 comparisons" in capsys.readouterr().out


# a loaded machine


@pytest.mark.parametrize(
    ("busy", "cores", "threads", "said"),
    [
        (0.1, 2, 1, False),
        (1.1, 2, 1, True),
        (0.6, 2, 2, True),
        (3.0, 16, 1, False),
        (5.0, 16, 1, True),
        (0.3, 1, 1, True),
        (None, 2, 1, False),
    ],
)
def test_a_loaded_machine_is_told_from_a_quiet_one(busy: float | None, cores: int, threads: int, said: bool) -> None:
    found = measure.describe_load("host", busy, cores, threads)
    assert (found is not None) == said
    if found:
        assert found.startswith(f"host is busy before the measurement, {busy:.1f} of {cores} core")


def test_busy_cores_are_counted_from_ticks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stat = tmp_path / "proc" / "stat"
    stat.parent.mkdir()
    stat.write_text("cpu 100 0 10 5000 0 0 0 7 0 0\n")
    monkeypatch.setattr(common, "ROOT", tmp_path)
    clock = iter((0.0, 0.5))
    monkeypatch.setattr(common.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(common.time, "sleep", lambda _: stat.write_text("cpu 140 0 10 6000 0 0 0 17 0 0\n"))
    assert common.busy_cores() == pytest.approx(50 / os.sysconf("SC_CLK_TCK") / 0.5)
    monkeypatch.undo()
    monkeypatch.setattr(common, "ROOT", tmp_path)
    monkeypatch.setattr(common, "LOOK_S", 0.0)
    stat.unlink()
    assert common.busy_cores() is None


def test_a_loaded_machine_is_said_before_the_first_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []

    def begin(self: object) -> None:
        raise BadInput(f"told {len(told)} before")

    for name, value in (
        ("read_timed", lambda path: path),
        ("check_options", lambda *_, **__: None),
        ("subjects_of", lambda *_: noisy(1.0).subjects),
        ("_put", lambda *_: "file"),
        ("busy_cores", lambda: 99.0),
    ):
        monkeypatch.setattr(measure, name, value)
    monkeypatch.setattr(measure._Run, "start_cold", begin)
    with pytest.raises(BadInput, match="told 1 before"):
        measure.measure(["a", "b"], reports=measure.Reports(on_warning=told.append))
    assert told[0].startswith("host is busy before the measurement, 99.0 of")


# records


def test_records_of_before_there_were_orders_are_read(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    measurement.write(noisy(1.0), path)
    record = json.loads(path.read_text())
    assert record["schema"] == 2
    for schema in (1, 2, 3):
        path.write_text(json.dumps(record | {"schema": schema}))
        old = measurement.read(path)
        assert old == noisy(1.0)
        assert old.launches[0].order is None


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"looks": (12, 6)}, "its looks do not rise"),
        ({"launches": tuple(replace(one, order=(0, 0)) for one in noisy(1.0).launches)}, "an order that is none"),
    ],
)
def test_looks_and_orders_are_sound_or_refused(facts: dict[str, Any], said: str, tmp_path: Path) -> None:
    measurement.write(replace(recorded([[5.0]] * 12, [[5.0]] * 12), **facts), tmp_path / "record.json")
    with pytest.raises(BadInput, match=said):
        measurement.read(tmp_path / "record.json")
