"""Profiles: what is kept of a record for a model on a device, and the page's table of them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.zoo import FIRST_ZOO

from edgesmith.bench import measured, measurement
from edgesmith.bench.measurement import Cold, Device, Launch, Measurement, Slot, Subject, WarmUp
from edgesmith.bench.statistics import quantile
from edgesmith.errors import BadInput, OutputError


def record(launches: int = 12, complete: bool = True) -> Measurement:
    """Launch k of the first artifact takes 10 + k ms, of the second half as much; every third sample a tenth more."""
    subjects = (
        Subject("a", "casvit_xs", "onnx", "fp32", "ONNX Runtime, CPU", "0" * 64, 1_000_000, Cold(30.0, 20.0, 100.0)),
        Subject("b", "lmuformer", "onnx", "fp16", "ONNX Runtime, CPU", "1" * 64, 2_500_000, None),
    )
    warm = (WarmUp(5, 10.0, True),) * 2
    made = [
        Launch(
            warm,
            tuple(
                Slot(i, r, float(r), tuple((10 + k) / (i + 1) * (1.1 if n == 2 else 1.0) for n in range(3)))
                for r in range(2)
                for i in range(2)
            ),
        )
        for k in range(launches)
    ]
    device = Device("host", "Linux 6", "a processor", "m")
    return Measurement(
        "0.1",
        "2026-01-02T03:04:05Z",
        device,
        {"onnxruntime": "1.2"},
        1,
        None,
        30.0,
        2.0,
        0,
        subjects,
        tuple(made),
        complete,
    )


def test_a_profile_has_the_quantiles_of_the_record_and_survives_a_file(tmp_path: Path) -> None:
    made = record()
    first, second = measured.condense(made)
    for i, profile in enumerate((first, second)):
        for share in measured.QUANTILES:
            kept, whole = profile.latency_ms(share), quantile(made.samples(i), share / 100)
            assert kept.value == pytest.approx(whole.value, abs=1e-4)
            assert (kept.low, kept.high) == pytest.approx((whole.low, whole.high), abs=1e-4)
        assert profile.samples == 12 * 6
        path = measured.write(profile, tmp_path)
        assert measured.read(path) == profile
    assert measured.read_all(tmp_path) == [first, second]
    assert ["/".join(one.words) for one in (first, second)] == [
        "host/casvit_xs.onnx.fp32.json",
        "host/lmuformer.onnx.fp16.json",
    ]
    with pytest.raises(KeyError):
        first.latency_ms(75)


def test_few_launches_have_no_interval() -> None:
    profile, _ = measured.condense(record(3))
    assert (profile.latency_ms(50).low, profile.latency_ms(50).high) == (None, None)
    assert measured.row(profile)[5] == "11.00"


def test_an_interrupted_record_is_no_profile() -> None:
    with pytest.raises(BadInput, match="interrupted run; measure again"):
        list(measured.condense(record(complete=False)))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"schema": 2}, "has schema 2, and this edgesmith reads 1"),
        ({"quantiles_ms": [[1.0, 2.0]]}, "at /quantiles_ms/0, [1.0, 2.0] is too short; measure again"),
        ({"quantiles_ms": [[1.0, 2.0, -3.0]]}, "at /quantiles_ms/0/2, -3.0 is less than or equal to the minimum of 0"),
        ({"quantiles_ms": [[1.0, float("nan"), 3.0]]}, "it holds NaN, and numbers are finite"),
        ({"quantiles_ms": []}, "at /quantiles_ms, [] should be non-empty"),
        ({"device": "host"}, "at /device, 'host' is not of type 'object'; measure again"),
        ({"more": 1}, "at the top, Additional properties are not allowed ('more' was unexpected)"),
    ],
)
def test_what_is_no_profile_is_one_sentence(change: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    path = measured.write(next(measured.condense(record())), tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(BadInput) as raised:
        measured.read(path)
    assert sentence in str(raised.value)
    path.write_text(path.read_text()[:50])
    with pytest.raises(BadInput, match="is damaged or no profile"):
        measured.read(path)
    with pytest.raises(BadInput, match="cannot read the profile"):
        measured.read(tmp_path / "none.json")


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "host").write_text("a file")
    with pytest.raises(OutputError, match="cannot write the profile"):
        measured.write(next(measured.condense(record())), tmp_path)


def test_command_keeps_records_and_shows_them(edgesmith: Callable[..., Any], tmp_path: Path) -> None:
    made = tmp_path / "record.json"
    measurement.write(record(), made)
    where = ["--folder", str(tmp_path / "kept")]
    assert "no profiles here" in edgesmith("profile", *where).stdout
    result = edgesmith("profile", str(made), *where)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("kept: ") == 2
    for part in (
        "casvit_xs",
        "lmuformer",
        "15.50 (12.00 to 19.00)",
        "`host`: a processor, Linux 6; onnxruntime 1.2; 2026-01-02.",
    ):
        assert part in result.stdout
    (only,) = json.loads(edgesmith("profile", *where, "-m", "lmuformer", "--json").stdout)
    assert only["p50_ms"]["value"] == pytest.approx(7.75)
    assert edgesmith("profile", *where, "--markdown").stdout == measured.markdown(measured.read_all(tmp_path / "kept"))


def test_profiles_are_kept_with_the_user_and_not_in_the_package(
    edgesmith: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    before = sorted(measured.FOLDER.rglob("*"))
    measurement.write(record(), tmp_path / "record.json")
    shown = edgesmith("profile", str(tmp_path / "record.json"), "--json")
    assert shown.returncode == 0, shown.stderr
    assert sorted(measured.FOLDER.rglob("*")) == before
    kept = measured.read_all(tmp_path / "data" / "edgesmith" / "measured")
    assert len(kept) == 2
    assert len(json.loads(shown.stdout)) == len(measured.read_all(measured.FOLDER, measured.user_folder()))


@pytest.mark.parametrize(
    ("system", "given", "expected"),
    [
        ("linux", {}, ".local/share"),
        ("linux", {"XDG_DATA_HOME": "relative"}, ".local/share"),
        ("darwin", {"XDG_DATA_HOME": "/elsewhere"}, "Library/Application Support"),
        ("win32", {}, "AppData/Local"),
        ("win32", {"LOCALAPPDATA": "/elsewhere"}, "/elsewhere"),
    ],
)
def test_each_system_has_its_folder(
    system: str, given: dict[str, str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("XDG_DATA_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": str(tmp_path), **given}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(measured.sys, "platform", system)
    assert measured.user_folder() == tmp_path / expected / "edgesmith" / "measured"


def test_a_later_folders_profile_stands_for_an_earlier_ones(tmp_path: Path) -> None:
    first = next(measured.condense(record()))
    newer = replace(first, started="2026-02-01T00:00:00Z")
    measured.write(first, tmp_path / "package")
    measured.write(newer, tmp_path / "user")
    assert measured.read_all(tmp_path / "package", tmp_path / "user") == [newer]


def test_what_was_measured_otherwise_is_kept_beside_it(tmp_path: Path) -> None:
    plain = record()
    slow = replace(plain, device=replace(plain.device, power_mode="15 W, low"))
    kept = [
        measured.write(one, tmp_path).name
        for m in (plain, slow, replace(plain, threads=2))
        for one in measured.condense(m)
    ]
    assert len(set(kept)) == len(kept)
    assert sum(name.endswith(".15-w-low.json") for name in kept) == len(plain.subjects)
    assert sum(name.endswith(".2threads.json") for name in kept) == len(plain.subjects)
    assert {measured.row(one)[3] for one in measured.read_all(tmp_path)} == {"host", "host, 15 W, low"}


def test_newer_measurement_replaces_an_older_one(tmp_path: Path) -> None:
    first = next(measured.condense(record()))
    measured.write(first, tmp_path)
    newer = replace(first, started="2026-02-01T00:00:00Z")
    measured.write(newer, tmp_path)
    assert measured.read_all(tmp_path) == [newer]


@pytest.mark.wheel
def test_every_model_of_the_first_zoo_has_a_profile_of_the_host() -> None:
    found = {(one.device.name, one.model, one.target, one.precision) for one in measured.read_all()}
    assert {("host", name, "onnx", "fp32") for name in FIRST_ZOO} <= found


def test_the_pages_table_comes_from_the_profiles(checkout: Path) -> None:
    text = (checkout / "docs" / "latency.md").read_text(encoding="utf-8")
    (table,) = re.findall(r"<!-- edgesmith profile --markdown -->\n(.*?)<!-- end -->", text, re.DOTALL)
    assert table == measured.markdown(measured.read_all())
