"""Measuring, what the samples say, and the verdict."""

from __future__ import annotations

import ast
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jsonschema
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import edgesmith
from edgesmith import cli, records
from edgesmith.bench import announce, measure, measurement, runner
from edgesmith.bench.measurement import Cold, Device, Launch, Measurement, Slot, Subject, WarmUp
from edgesmith.bench.statistics import (
    FEWEST_LAUNCHES,
    Interval,
    log_ratios,
    order_rank,
    paired_ratio,
    quantile,
    unpaired_ratio,
    with_ends,
)
from edgesmith.bench.subjects import subjects_of
from edgesmith.bench.verdict import (
    CONFIDENCE,
    FASTER,
    INCONCLUSIVE,
    NOT_COMPARABLE,
    SLOWER,
    UNCHANGED,
    Comparison,
    compare,
    launch_ratios,
    noise_floor,
)
from edgesmith.board.common import is_steady
from edgesmith.board.join import join
from edgesmith.errors import (
    INCONCLUSIVE_CODE,
    NOT_COMPARABLE_CODE,
    SLOWER_CODE,
    BadInput,
    OutputError,
    Unsupported,
)
from edgesmith.exporters import artifact as artifacts


def recorded(*subjects: Sequence[Sequence[float]], **facts: Any) -> Measurement:
    """A measurement of subjects, each given as its launches, each of those as the times of its rounds."""
    launches = tuple(
        Launch(
            tuple(WarmUp(3, 1.0, True) for _ in rounds),
            tuple(
                Slot(s, r, 0.1 * r, (ms,)) for r in range(len(rounds[0])) for s, ms in enumerate(x[r] for x in rounds)
            ),
        )
        for rounds in zip(*subjects, strict=True)
    )
    plain = Measurement(
        edgesmith="0",
        started="2026-01-01T00:00:00+00:00",
        device=Device("host", "Linux", "a processor", "abc"),
        runtimes={"onnxruntime": "1"},
        threads=1,
        cores=None,
        seconds=1.0,
        slot_ms=30.0,
        seed=0,
        subjects=tuple(
            Subject(f"s{i}", "m", "onnx", "fp32", "onnxruntime", f"{i:064x}", 1, Cold(1.0, 1.0, 1.0))
            for i in range(len(subjects))
        ),
        launches=launches,
        complete=True,
    )
    return replace(plain, **facts)


def noisy(ratio: float, launches: int = 12, spread: float = 0.01, seed: int = 0) -> Measurement:
    """Base and head of 5 ms and `ratio` times 5 ms; machine speed drifts by half, pairs by `spread`."""
    draw = np.random.default_rng(seed)
    drift = np.exp(draw.uniform(-0.5, 0.5, (launches, 8)))
    own = np.exp(draw.normal(0, spread, (2, launches, 8)))
    return recorded((5 * drift * own[0]).tolist(), (5 * ratio * drift * own[1]).tolist())


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3))
    out = tmp_path_factory.mktemp("artifacts")
    return edgesmith.export(model, "onnx", inputs=(torch.randn(1, 3, 48, 48),), name="tiny", out=out).path


# statistics


@given(st.integers(1, 40), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_order_rank_holds_the_median_so_surely_and_no_surer(count: int, confidence: float) -> None:
    def outside(rank: int) -> float:
        return 2 * sum(math.comb(count, k) for k in range(rank + 1)) / 2**count

    rank = order_rank(count, confidence)
    if rank is None:
        assert outside(0) > 1 - confidence
    else:
        assert outside(rank) <= 1 - confidence + 1e-12
        assert 2 * (rank + 1) >= count or outside(rank + 1) > 1 - confidence


def test_quantile_takes_each_launch_as_one_number() -> None:
    launches = [[1.0] * 1000, *([[float(i)] * 3 for i in range(2, 13)])]
    found = quantile(launches, 0.5, 0.95)
    assert found == Interval(6.5, 3.0, 10.0)  # of 12: the third from either end, 96.1 %
    assert quantile([[1.0, 2.0, 3.0]], 0.5) == Interval(2.0, None, None)


def in_slots(calls: tuple[int, int], ratio: float, times: Callable[[int], np.ndarray], launches: int) -> Measurement:
    """A measurement of two subjects, of so many calls in each slot; `times` draws them, and the head's are longer."""
    plain = recorded(*[[[1.0] * 18] * launches] * 2)

    def slot(one: Slot) -> Slot:
        return replace(one, samples_ms=tuple((times(calls[one.subject]) * (1.0, ratio)[one.subject]).tolist()))

    drawn = tuple(replace(one, slots=tuple(map(slot, one.slots))) for one in plain.launches)
    return replace(plain, launches=drawn)


def test_calls_that_other_work_holds_up_move_no_ratio() -> None:
    draw = np.random.default_rng(0)

    def held_up(calls: int) -> np.ndarray:  # more or fewer of them, as the scheduler has it
        times = draw.normal(1.0, 0.01, calls)
        times[draw.random(calls) < draw.uniform(0.1, 0.8)] *= 1.6
        return times

    together = in_slots((60, 60), 1.02, held_up, 24)
    ratios = launch_ratios(together, 0, 1)
    assert ratios.mean() == pytest.approx(0.02, abs=0.005)
    assert ratios.std() < 0.01
    medians = log_ratios(*([[np.median(x) for x in one] for one in together.rounds(side)] for side in (0, 1)))
    assert medians.std() > 5 * ratios.std()


def test_long_calls_that_other_work_holds_up_move_no_ratio() -> None:
    draw = np.random.default_rng(0)

    def held_up(calls: int) -> np.ndarray:  # two of a round, each of them twice as long as often as not
        return draw.normal(20.0, 0.2, calls) * draw.choice([1.0, 2.0], calls)

    together = in_slots((2, 2), 1.02, held_up, 48)
    ratios = launch_ratios(together, 0, 1)
    assert ratios.mean() == pytest.approx(0.02, abs=0.005)
    assert ratios.std() < 0.02


@pytest.mark.parametrize("calls", [(60, 60), (60, 12), (10, 200), (10, 9), (1, 2), (2, 3), (3, 40)])
def test_the_number_of_calls_leans_to_neither_side(calls: tuple[int, int]) -> None:
    draw = np.random.default_rng(0)
    together = in_slots(calls, 1.0, lambda count: draw.lognormal(0, 0.02, count), 200)
    ratios = launch_ratios(together, 0, 1)
    assert abs(ratios.mean()) < 0.0015
    assert 0.35 < (ratios < 0).mean() < 0.65


@given(st.lists(st.floats(0.5, 2.0), min_size=8, max_size=8), st.floats(0.5, 2.0))
def test_drift_of_the_machine_moves_no_paired_ratio(drift: list[float], ratio: float) -> None:
    base = [[5 * d for d in drift]]
    head = [[5 * ratio * d for d in drift]]
    assert log_ratios(base, head)[0] == pytest.approx(math.log(ratio))


def test_the_paired_interval_misses_the_truth_as_seldom_as_it_says() -> None:
    draw = np.random.default_rng(1)
    for spread in (lambda: draw.normal(0, 0.02, 12), lambda: draw.standard_t(3, 12) * 0.02):
        misses = 0
        for trial in range(500):
            found = paired_ratio(spread(), 0.99, seed=trial)
            assert found.low is not None
            assert found.high is not None
            misses += not found.low <= 1 <= found.high
        assert misses <= 12  # 5 expected; 13 or more have a probability of 0.2 % at 1 %


def test_the_unpaired_interval_holds_the_ratio_of_two_runs() -> None:
    draw = np.random.default_rng(2)
    base, head = 5 * np.exp(draw.normal(0, 0.02, (2, 12)))
    found = unpaired_ratio(base.tolist(), (1.2 * head).tolist(), 0.99)
    assert found.low is not None
    assert found.high is not None
    assert 1.1 < found.low < 1.2 < found.high < 1.3


@pytest.mark.parametrize("sign", [1, -1])
def test_an_interval_reaches_further_to_the_side_that_a_skewed_sample_may_have_missed(sign: int) -> None:
    """Of few launches with a long tail the mean is too small more often, and by more, than it is too large."""
    tail = sign * 0.05 * -np.log(1 - (np.arange(12) + 0.5) / 12)  # quantiles of an exponential distribution
    for found in (paired_ratio(tail, 0.95), unpaired_ratio(np.full(12, 1.0), np.exp(tail), 0.95)):
        assert found.low is not None
        assert found.high is not None
        arms = math.log(found.value / found.low), math.log(found.high / found.value)
        near, far = arms if sign > 0 else arms[::-1]
        assert 0 < 1.2 * near < far


@pytest.mark.parametrize("nearly", [0.0, 1e-17, 1e-13, 1e-9, 1e-6])
def test_launches_that_are_nearly_equal_have_an_interval(nearly: float) -> None:
    """Coarse timers tell the same ratio twice; a resample of such launches has next to no deviation."""
    for ratios in ([0.1, 0.1, 0.1, 0.1 + nearly, 0.3, 0.2], [0.1 + nearly * i for i in range(5)] + [0.1001], [0.1] * 6):
        for found in (paired_ratio(np.array(ratios), 0.999), unpaired_ratio([1.0] * 6, list(np.exp(ratios)), 0.999)):
            assert found.low is not None
            assert found.high is not None
            assert 0 < found.low <= found.value <= found.high < math.inf


@pytest.mark.parametrize("ends", [(None, None), (1.0, None), (None, 2.0)])
def test_an_interval_without_an_end_is_not_shown(ends: tuple[float | None, float | None]) -> None:
    """A record may be anybody's, and may have one end alone."""
    assert with_ends(1.23456, *ends) == "1.235"
    assert with_ends(1.23456, 1.0, 2.0, digits=2) == "1.23 (1.00 to 2.00)"


def test_too_few_launches_give_no_interval() -> None:
    assert paired_ratio(np.zeros(FEWEST_LAUNCHES - 1), 0.99) == Interval(1.0, None, None)


# verdict


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [(1.0, UNCHANGED), (1.02, UNCHANGED), (1.05, SLOWER), (1.5, SLOWER), (1 / 1.05, FASTER), (0.5, FASTER)],
)
def test_verdict_at_a_threshold_of_five_percent(ratio: float, expected: str) -> None:
    together = noisy(ratio)
    assert compare(together, together, 0, 1).verdict == expected


def test_identical_times_are_unchanged() -> None:
    same = recorded([[5.0] * 8] * 12, [[5.0] * 8] * 12)
    assert compare(same, same, 0, 1).verdict == UNCHANGED


@pytest.mark.parametrize("launches", [3, 6])
def test_noise_or_few_launches_are_inconclusive_and_say_so(launches: int) -> None:
    together = noisy(1.05, launches, spread=0.3)
    found = compare(together, together, 0, 1)
    assert found.verdict == INCONCLUSIVE
    assert "measure longer" in found.reason
    assert found.exit_code == INCONCLUSIVE_CODE


def test_a_change_within_the_noise_floor_is_not_called() -> None:
    together = noisy(1.06)
    assert compare(together, together, 0, 1).verdict == SLOWER
    found = compare(together, together, 0, 1, floor=0.08)
    assert (found.verdict, "within the noise floor" in found.reason) == (INCONCLUSIVE, True)


def test_false_alarms_are_rarer_than_one_in_a_hundred() -> None:
    verdicts = [compare(m, m, 0, 1).verdict for m in (noisy(1.0, spread=0.05, seed=seed) for seed in range(300))]
    assert verdicts.count(SLOWER) + verdicts.count(FASTER) <= 8  # 3 expected at 99 %; 9 have a probability of 0.4 %


@pytest.mark.parametrize(
    ("facts", "name"),
    [
        ({"device": Device("host", "Linux", "another", "abc")}, "device"),
        ({"device": Device("host", "Linux", "a processor", "def")}, "machine"),
        ({"device": Device("host", "Linux", "a processor", "abc", "15W")}, "power mode"),
        ({"threads": 2}, "threads"),
        ({"cores": (0,)}, "cores"),
        ({"runtimes": {"onnxruntime": "2"}}, "runtime"),
    ],
)
def test_what_was_measured_otherwise_is_not_comparable_unless_told(facts: dict[str, Any], name: str) -> None:
    base = noisy(1.0)
    head = replace(noisy(1.0, seed=1), **facts)
    found = compare(base, head)
    assert (found.verdict, found.exit_code, found.ratio) == (NOT_COMPARABLE, NOT_COMPARABLE_CODE, None)
    assert found.reason.startswith(f"{name} differs: ")
    assert compare(base, head, despite=frozenset({name})).verdict != NOT_COMPARABLE


@pytest.mark.parametrize("complete", [True, False])
def test_records_that_were_kept_are_judged_by_what_is_in_them(
    complete: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, ratio in (("base", 1.0), ("head", 1.3)):
        one = recorded([[5.0 * ratio * (1 + i / 1000)] for i in range(12)])
        measurement.write(replace(one, complete=complete), tmp_path / f"{name}.json")
    assert cli.run(["compare", str(tmp_path / "base.json"), str(tmp_path / "head.json")]) == SLOWER_CODE
    assert "slower" in capsys.readouterr().out


@pytest.mark.parametrize("option", [["--threshold", "500%"], ["--confidence", "2"], ["--floor", "missing.json"]])
@pytest.mark.parametrize("command", [["compare", "a", "b"], ["bench", "a", "--against", "b"]])
def test_what_cannot_be_judged_is_said_before_anything_is_measured(
    command: list[str], option: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(*_: object, **__: object) -> Measurement:
        raise AssertionError("measured")

    monkeypatch.setattr("edgesmith.bench.measure.measure", measured)
    assert cli.run([*command, *option]) == 2


def test_a_record_without_a_warm_up_is_refused(tmp_path: Path) -> None:
    one = noisy(1.0)
    measurement.write(
        replace(one, launches=tuple(replace(launch, warm=()) for launch in one.launches)), tmp_path / "r.json"
    )
    with pytest.raises(BadInput, match="launch 0 has not a warm-up for each subject"):
        measurement.read(tmp_path / "r.json")


@pytest.mark.parametrize("option", [{"threshold": 0.0}, {"threshold": 5.0}, {"confidence": 1.0}, {"floor": -0.1}])
def test_an_option_out_of_range_is_refused(option: dict[str, float]) -> None:
    together = noisy(1.0)
    with pytest.raises(BadInput, match=next(iter(option)).replace("_", " ")):
        compare(together, together, 0, 1, **option)


def test_the_noise_floor_is_the_far_end_of_one_file_against_itself() -> None:
    together = noisy(1.0)
    same = replace(together, subjects=(together.subjects[0], replace(together.subjects[0], name="again")))
    ratio = paired_ratio(launch_ratios(same, 0, 1), CONFIDENCE)
    assert ratio.low is not None
    assert ratio.high is not None
    assert noise_floor(same) == pytest.approx(max(ratio.high, 1 / ratio.low) - 1)
    with pytest.raises(BadInput, match="against itself"):
        noise_floor(together)


def test_markdown_and_junit_say_what_the_verdicts_do() -> None:
    slower, unsure = noisy(1.2), noisy(1.05, spread=0.3)
    verdicts = [compare(slower, slower, 0, 1), compare(unsure, unsure, 0, 1)]
    table = announce.markdown(verdicts, slower, 0.05, 0.99)
    assert "| **slower** |" in table
    assert "| inconclusive |" in table
    assert "12 launches on host (a processor), 1 thread." in table
    suite = ElementTree.fromstring(announce.junit(verdicts))
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("2", "1", "1")
    (failure,) = suite.iter("failure")
    assert failure.get("message") == verdicts[0].reason


# records


@pytest.mark.wheel
def test_a_record_is_read_as_it_was_written_and_keeps_to_the_schema(tmp_path: Path) -> None:
    together = noisy(1.0)
    measurement.write(together, tmp_path / "deep" / "record.json")
    assert measurement.read(tmp_path / "deep" / "record.json") == together
    jsonschema.Draft202012Validator.check_schema(measurement.schema())
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["record.json"]


def test_copies_are_in_a_record_and_without_them_it_is_what_it_was(tmp_path: Path) -> None:
    plain, path = noisy(1.0), tmp_path / "record.json"

    def copied(launch: Launch) -> Launch:
        return replace(launch, slots=tuple(replace(slot, copy=slot.round // 2 % 2) for slot in launch.slots))

    with_copies = replace(plain, launches=tuple(map(copied, plain.launches)))
    measurement.write(with_copies, path)
    assert (json.loads(path.read_text())["schema"], measurement.read(path)) == (4, with_copies)
    assert [len(copies) for copies in with_copies.copies(0)] == [2] * len(plain.launches)
    measurement.write(plain, path)
    assert json.loads(path.read_text())["schema"] < 4
    assert '"copy"' not in path.read_text()


def damaged(record: dict[str, Any], how: str) -> str:
    slot = record["launches"][0]["slots"][0]
    if how == "future":
        record["schema"] = measurement.SCHEMA + 1
    elif how == "negative":
        slot["samples_ms"] = [-1.0]
    elif how == "zero":
        slot["samples_ms"] = [0.0]
    elif how in ("endless start", "vast start"):
        record["subjects"][0]["cold"]["load_ms"] = 424242
    elif how == "stranger":
        slot["subject"] = 7
    elif how == "uneven":
        del record["launches"][0]["slots"][0]
    elif how == "torn":
        slot["copy"] = 1
    elif how == "field":
        record["mood"] = "good"
    elif how == "none":
        del record["threads"]
    text = json.dumps(record)
    if how == "nan":
        return text.replace(json.dumps(slot["samples_ms"][0]), "NaN", 1)
    if how == "infinite":
        return text.replace(json.dumps(slot["samples_ms"][0]), "1e999", 1)
    if how in ("tiny", "vast"):
        return text.replace(json.dumps(slot["samples_ms"][0]), "1e-320" if how == "tiny" else "1e308", 1)
    if how in ("endless start", "vast start"):
        return text.replace("424242", "1e999" if how == "endless start" else "1e300")
    return text[: len(text) // 2] if how == "truncated" else text


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("future", "has schema 5, and this edgesmith reads 1 and 2 and 3 and 4"),
        ("negative", "at /launches/0/slots/0/samples_ms/0, -1.0"),
        ("zero", "at /launches/0/slots/0/samples_ms/0, 0.0"),
        ("stranger", "times a subject 7"),
        ("uneven", "has not the same rounds for each subject"),
        ("torn", "launch 0 has a round of several copies"),
        ("field", "'mood' was unexpected"),
        ("none", "'threads' is a required property"),
        ("nan", "it holds NaN"),
        ("infinite", "1e999, and numbers are finite"),
        ("tiny", "launch 0 holds a time that no call takes"),
        ("vast", "launch 0 holds a time that no call takes"),
        ("endless start", "1e999, and numbers are finite"),
        ("vast start", "a figure of s0 is beyond what is measured"),
        ("truncated", "damaged"),
    ],
)
def test_an_unsound_record_is_refused_in_a_sentence(how: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    measurement.write(noisy(1.0), path)
    path.write_text(damaged(json.loads(path.read_text()), how))
    with pytest.raises(BadInput) as caught:
        measurement.read(path)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[]", "is no measurement: it holds no object"),
        ("{}", "is no measurement: it names no schema"),
        ("3", "is no measurement: it holds no object"),
        ('{"schema": "1"}', "has schema '1', and this edgesmith reads 1 and 2 and 3 and 4"),
    ],
)
def test_another_json_file_is_no_record(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text(text)
    with pytest.raises(BadInput, match=said):
        measurement.read(tmp_path / "other.json")


def test_a_record_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write the measurement"):
        measurement.write(noisy(1.0), tmp_path / "file" / "record.json")


# the runner


def test_the_runner_is_a_python_3_8_program_of_its_own() -> None:
    tree = ast.parse(join(Path(runner.__file__)), feature_version=(3, 8))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not [name for name in names if name.startswith("edgesmith")]


@pytest.mark.parametrize(
    ("medians", "expected"),
    [
        ([5.0, 4.0], False),
        ([9.0, 7.0, 5.0], False),
        ([5.0, 7.0, 9.0], False),  # slowing down is no steady state either
        ([9.0, 5.0, 4.0, 4.1], True),
        ([5.0, 4.99, 4.98], True),
    ],
)
def test_steady_is_three_windows_without_a_trend(medians: list[float], expected: bool) -> None:
    assert is_steady(medians) == expected


@pytest.mark.wheel
def test_every_sample_of_every_launch_is_kept(artifact: Path, tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    record = tmp_path / "record.json"
    made = measure.measure(
        [artifact, artifact],
        measure.Settings(seconds=0.1, launches=2, cores=[min(os.sched_getaffinity(0))]),
        reports=measure.Reports(record, lambda *step: steps.append(step)),
    )
    assert measurement.read(record) == made
    assert made.complete
    assert steps == [(i, 4) for i in range(5)]
    assert [subject.name for subject in made.subjects] == ["tiny-onnx-fp32", "tiny-onnx-fp32 (2)"]
    assert made.subjects[0].sha256 == made.subjects[1].sha256
    assert made.subjects[0].bytes == next(artifact.glob("*.onnx")).stat().st_size
    assert all(subject.cold is not None and subject.cold.memory_mib > 1 for subject in made.subjects)
    for launch in made.launches:
        assert {"load", "preempted", "time_s"} <= launch.before.keys() & launch.after.keys()
        assert len(launch.warm) == 2
        orders = [slot.subject for slot in launch.slots]
        assert all(sorted(orders[i : i + 2]) == [0, 1] for i in range(0, len(orders), 2))
        assert all(sum(slot.samples_ms) >= measure.SLOT_MS for slot in launch.slots)


def test_a_file_that_takes_twice_as_long_is_slower(artifact: Path) -> None:
    file = str(next(artifact.glob("*.onnx")))
    models = [{"file": file, "runtime": "onnxruntime"}, {"file": file, "runtime": "onnxruntime", "slowed": 1.0}]
    subjects = [replace(noisy(1.0).subjects[i], name=name) for i, name in enumerate(("as it is", "slowed"))]
    made = measure.carry_out(measure.Plan(models, 0.2, 8, slot_ms=2.0), subjects)
    found = compare(made, made, 0, 1, confidence=0.9)
    assert found.verdict == SLOWER, found
    assert found.paired


def test_a_file_that_does_not_load_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    models = [{"file": str(tmp_path / "broken.onnx"), "runtime": "onnxruntime"}]
    with pytest.raises(Unsupported, match=r"the runner stopped with 1: .*broken\.onnx"):
        measure.carry_out(measure.Plan(models, 0.1, 1, slot_ms=2.0), noisy(1.0).subjects[:1])


def test_nothing_to_measure_and_cores_that_are_not_there_are_refused(artifact: Path) -> None:
    with pytest.raises(BadInput, match="give one or more artifacts"):
        measure.measure([])
    with pytest.raises(BadInput, match="no core 4096"):
        measure.measure([artifact], measure.Settings(cores=[0, 4096]))
    with pytest.raises(BadInput, match="launches must be more than 0"):
        measure.measure([artifact], measure.Settings(launches=0))
    with pytest.raises(BadInput, match="seconds must be more than 0 and finite, got inf"):
        measure.measure([artifact], measure.Settings(seconds=math.inf))


# the commands


def bench(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "edgesmith", "bench", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def waited_for(record: Path, process: subprocess.Popen[str]) -> None:
    while not record.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_bench_that_is_ended_leaves_what_it_measured(how: signal.Signals, artifact: Path, tmp_path: Path) -> None:
    record = tmp_path / "record.json"
    process = bench(str(artifact), "--seconds", "600", "--launches", "300", "--out", str(record))
    waited_for(record, process)
    process.send_signal(how)
    out, err = process.communicate()
    kept = measurement.read(record)
    assert not kept.complete
    assert 1 <= len(kept.launches) < 300
    if how is signal.SIGINT:
        assert process.returncode == 130
        assert f"interrupted after {len(kept.launches)} of 300 launches, which are kept" in err
        assert "nothing was published" not in err
        assert str(record) in out


def test_two_of_one_name_are_told_apart_by_the_folder_above(artifact: Path, tmp_path: Path) -> None:
    for side in ("base", "head"):
        shutil.copytree(artifact, tmp_path / side / artifact.name)
    base, head = (artifacts.read(tmp_path / side / artifact.name) for side in ("base", "head"))
    names = [one.name for one in subjects_of([base, head])]
    assert names == ["base/tiny-onnx-fp32", "head/tiny-onnx-fp32"]
    assert [one.name for one in subjects_of([base, base])] == ["tiny-onnx-fp32", "tiny-onnx-fp32 (2)"]
    assert [one.name for one in subjects_of([base, head, head])][2] == "head/tiny-onnx-fp32 (2)"
    assert [one.name for one in subjects_of([head])] == ["tiny-onnx-fp32"]


def test_bench_against_an_artifact_prints_a_verdict(
    artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = str(tmp_path / "record.json")
    options = ["--seconds", "0.1", "--launches", "6", "--out", record]
    assert cli.run(["bench", str(artifact), "--against", str(artifact), *options, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in said["subjects"]] == ["tiny-onnx-fp32", "tiny-onnx-fp32 (2)"]
    assert {"p50_ms", "p90_ms", "p99_ms", "per_second", "cold", "bytes"} <= said["subjects"][0].keys()
    (verdict,) = said["verdicts"]
    assert verdict["paired"]
    assert cli.run(["compare", record, "--json"]) == verdict["exit_code"]
    compared = json.loads(capsys.readouterr().out)
    records.check(compared, records.schema_of(Comparison), "comparison", name="stdout")
    assert compared["verdicts"] == [verdict]
    assert cli.run(["compare", record, "--floor", record, "--markdown"]) in (
        0,
        INCONCLUSIVE_CODE,
    )  # itself is its noise floor
    assert "| tiny-onnx-fp32 | tiny-onnx-fp32 (2) |" in capsys.readouterr().out


def test_a_floor_of_more_than_the_whole_time_tells_nothing_of_a_change(tmp_path: Path) -> None:
    """Beside other work two copies of one file are timed two-fold apart at times."""
    loaded = noisy(1.0, spread=2.0)
    same = replace(loaded, subjects=tuple(replace(one, sha256="0" * 64) for one in loaded.subjects))
    measurement.write(same, tmp_path / "floor.json")
    assert noise_floor(same) > 1
    for ratio, code in ((1.5, INCONCLUSIVE_CODE), (1.0, 0), (100.0, SLOWER_CODE)):
        measurement.write(noisy(ratio), tmp_path / "record.json")
        floor = ["--floor", str(tmp_path / "floor.json")]
        assert cli.run(["compare", str(tmp_path / "record.json"), *floor]) == code


@pytest.mark.parametrize(("ratio", "code"), [(1.0, 0), (0.8, 0), (1.2, SLOWER_CODE)])
def test_compare_returns_what_a_gate_needs(
    ratio: float, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measurement.write(noisy(ratio), tmp_path / "record.json")
    report = tmp_path / "report.xml"
    assert cli.run(["compare", str(tmp_path / "record.json"), "--threshold", "5%", "--junit", str(report)]) == code
    assert ElementTree.parse(report).getroot().get("failures") == str(int(code == SLOWER_CODE))


def test_records_of_two_runs_are_compared_or_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other, both = (tmp_path / f"{name}.json" for name in ("one", "other", "both"))
    measurement.write(recorded([[5.0, 5.1]] * 12), one)
    measurement.write(recorded([[7.0, 7.1]] * 12, threads=2), other)
    measurement.write(noisy(1.0), both)
    assert cli.run(["compare", str(one), str(other)]) == NOT_COMPARABLE_CODE
    assert "not comparable: threads differs: 1 and 2" in capsys.readouterr().out
    assert cli.run(["compare", str(one), str(other), "--despite", "threads"]) == SLOWER_CODE
    for arguments, said in (
        ([str(one)], "is a record of one artifact"),
        ([str(one), str(both)], "is a record of 2 artifacts"),
        ([str(one), str(tmp_path)], "a record and an artifact"),
        ([str(both), "--threshold", "much"], "--threshold must be a share such as 5% or 0.05"),
        ([str(both), "--floor", str(both)], "against itself"),
    ):
        assert cli.run(["compare", *arguments]) == 2
        assert said in capsys.readouterr().err


@settings(max_examples=60)
@given(st.sampled_from(["0", "1,3", "0-2", "0-1,4", "x", "1-", "-1", "", "1,,2"]))
def test_cores_are_numbers_and_ranges(text: str) -> None:
    from edgesmith.cli.options import parse_cores

    known = {"0": [0], "1,3": [1, 3], "0-2": [0, 1, 2], "0-1,4": [0, 1, 4]}
    if text in known:
        assert parse_cores(text) == known[text]
    else:
        with pytest.raises(BadInput, match="--cores must be numbers"):
            parse_cores(text)
