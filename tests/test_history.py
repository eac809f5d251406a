"""Latencies over time: the file, and where it says that something changed."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_bench import recorded

from edgesmith import cli
from edgesmith.bench import history, measurement
from edgesmith.bench.measurement import Measurement
from edgesmith.errors import BadInput, OutputError
from edgesmith.records import check, schema_of


def on_day(day: int, ms: float, version: str = "1", **facts: object) -> Measurement:
    made = recorded([[ms, ms * 1.01]] * 6, started=f"2026-01-{day:02d}T00:00:00+00:00", **facts)
    return replace(made, runtimes={"onnxruntime": version})


def added(folder: Path, *records: Measurement) -> Path:
    file = folder / "history.sqlite"
    for i, made in enumerate(records):
        path = folder / f"{i}.json"
        measurement.write(made, path)
        history.add(file, path)
    return file


NOISES: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "normal": lambda draw, n: draw.normal(0, 1, n),
    "heavy tails": lambda draw, n: draw.standard_t(3, n) / 3**0.5,
    "outliers": lambda draw, n: draw.normal(0, 1, n) + 10 * abs(draw.normal(0, 1, n)) * (draw.random(n) < 0.05),
}


@pytest.mark.parametrize("kind", NOISES)
def test_a_series_without_a_change_shows_none(kind: str) -> None:
    draw = np.random.default_rng(0)
    series = [10 * np.exp(0.02 * NOISES[kind](draw, 20)) for _ in range(400)]
    assert sum(bool(history.change_points(one)) for one in series) <= 4


@pytest.mark.parametrize("kind", NOISES)
def test_a_step_is_found_where_it_is(kind: str) -> None:
    draw, found = np.random.default_rng(0), 0
    for _ in range(100):
        series = 10 * np.exp(0.02 * NOISES[kind](draw, 30))
        series[22:] *= 1.1
        found += any(abs(at - 22) <= 1 for at in history.change_points(series))
    assert found >= 95


def test_equal_values_single_outliers_and_few_points_are_no_change() -> None:
    assert history.change_points([5.0] * 20) == []
    assert history.change_points([5.0] * 10 + [9.0] + [5.0] * 10) == []
    assert history.change_points([5.0, 5.0, 9.0, 9.0, 9.0]) == []
    assert history.change_points([5.0] * 3 + [9.0] * 3) == [3]


def test_a_change_names_what_else_is_new_there(tmp_path: Path) -> None:
    days = [on_day(i, 5.0 + 0.01 * (i % 2)) for i in range(1, 7)] + [on_day(i, 6.0, "2") for i in range(7, 11)]
    (series,) = history.read(added(tmp_path, *reversed(days)))
    assert [point.started for point in series.points] == sorted(point.started for point in series.points)
    (change,) = series.changes
    assert change.at == 6
    assert change.cause == ("runtime",)
    assert change.after_ms / change.before_ms == pytest.approx(6 / 5.005, rel=1e-3)


def test_a_series_has_one_device_and_one_way_of_running(tmp_path: Path) -> None:
    other = replace(on_day(2, 5.0).device, cpu="another")
    records = [on_day(1, 5.0), on_day(2, 5.0, device=other), on_day(3, 5.0, threads=2), on_day(4, 5.0)]
    lengths = sorted(len(series.points) for series in history.read(added(tmp_path, *records)))
    assert lengths == [1, 1, 2]


def test_a_record_counts_once_and_a_file_against_itself_too(tmp_path: Path) -> None:
    both = recorded([[5.0]] * 6, [[5.1]] * 6)
    same = replace(both, subjects=(both.subjects[0], replace(both.subjects[0], name="s0 (2)")))
    file = added(tmp_path, same)
    assert history.add(file, tmp_path / "0.json") == 0
    (series,) = history.read(file)
    assert [point.p50_ms for point in series.points] == [5.0]


def test_base_and_head_of_a_record_are_two_series(tmp_path: Path) -> None:
    names = [
        replace(one, name=name) for one, name in zip(recorded([[5.0]], [[9.0]]).subjects, ("m", "m (2)"), strict=True)
    ]
    days = [replace(recorded([[5.0]], [[9.0]]), subjects=tuple(names), started=f"2026-01-0{i}") for i in (1, 2, 3)]
    found = {
        series.key.name: [point.p50_ms for point in series.points] for series in history.read(added(tmp_path, *days))
    }
    assert found == {"m": [5.0] * 3, "m (2)": [9.0] * 3}


def test_what_is_no_history_is_refused_in_a_sentence(tmp_path: Path) -> None:
    measurement.write(on_day(1, 5.0), tmp_path / "record.json")
    measurement.write(replace(on_day(1, 5.0), launches=()), tmp_path / "empty.json")
    (tmp_path / "text.sqlite").write_text("no database " * 100)
    for name, sql in (("other", "CREATE TABLE a (b)"), ("future", "PRAGMA user_version = 9")):
        connection = sqlite3.connect(tmp_path / f"{name}.sqlite")
        connection.execute(sql)
        connection.close()
    for name, said in (("text", "damaged or no history"), ("other", "another program's"), ("future", "has schema 9")):
        with pytest.raises(BadInput, match=said):
            history.add(tmp_path / f"{name}.sqlite", tmp_path / "record.json")
    with pytest.raises(BadInput, match="holds no launch"):
        history.add(tmp_path / "new.sqlite", tmp_path / "empty.json")
    with pytest.raises(BadInput, match="no history at"):
        history.read(tmp_path / "none.sqlite")
    with pytest.raises(OutputError, match="cannot write the history"):
        history.add(tmp_path / "record.json" / "history.sqlite", tmp_path / "record.json")


def test_the_command_adds_and_shows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    days = [on_day(i, 5.0 if i < 5 else 6.0) for i in range(1, 10)]
    for i, made in enumerate(days):
        measurement.write(made, tmp_path / f"{i}.json")
    options = ["--file", str(tmp_path / "history.sqlite")]
    records = [str(tmp_path / f"{i}.json") for i in range(len(days))]
    assert cli.run(["history", "add", *records, *options]) == 0
    assert cli.run(["history", "add", records[0], *options]) == 0
    assert "already there" in capsys.readouterr().out
    assert cli.run(["history", *options]) == 0
    assert "+20.0%" in capsys.readouterr().out
    assert cli.run(["history", "--json", *options]) == 0
    said = json.loads(capsys.readouterr().out)
    check(said, schema_of(history.History), "history", name="stdout")
    (series,) = said["series"]
    assert [change["at"] for change in series["changes"]] == [4]
    assert cli.run(["history", "--file", str(tmp_path / "none")]) == 2
    assert "no history at" in capsys.readouterr().err
