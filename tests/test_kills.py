"""Commands that are killed at any moment: what they were writing is readable after, and nothing of theirs is left.

    pytest tests/test_kills.py              one kill of each command
    pytest tests/test_kills.py --kills 200  so many, at random moments of their course: `make kills`

Every command has a folder for temporary files of its own, and a mark in its environment that what it starts inherits.
build-on goes to a real sshd on loopback.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from test_bench import recorded
from test_transport import BUILDS, Board, board, boards, keys, kit, until

from edgesmith import ending
from edgesmith.bench import history, measured, measurement
from edgesmith.exporters import artifact as artifacts

SHARED = board, boards, keys, kit
"""Fixtures of test_transport.py: an sshd, and a kit for it."""

ENDS = {
    signal.SIGKILL: (-signal.SIGKILL,),
    signal.SIGINT: (130, -signal.SIGINT),  # the latter before Python has begun with ours, and so below
    signal.SIGTERM: (143, -signal.SIGTERM),
}
COMMANDS = ("export", "history", "profile", "report", "build-on", "bench")
LONGEST_S = 600.0


@dataclass(frozen=True)
class Course:
    """A command, and what to expect of it.

    Attributes:
        begins: it has begun with what may leave something.
        check: fails where something that it writes is not whole.
    """

    arguments: list[str]
    begins: Callable[[], bool]
    check: Callable[[], None]


@dataclass(frozen=True)
class Place:
    """Where a command's files are."""

    folder: Path
    artifact: Path
    board: Callable[[], Board]
    kit: Callable[[str], Path]


def export(place: Place) -> Course:
    out = place.folder / "artifacts"

    def check() -> None:
        for made in out.glob("[!.]*"):
            assert not artifacts.changed_files(artifacts.read(made))

    arguments = ["export", "--model", "casvit_xs", "--input-size", "32", "--target", "coreml", "--out", str(out)]
    return Course(arguments, lambda: any(out.glob(".edgesmith-*")), check)


def add_to_history(place: Place) -> Course:
    file, records = place.folder / "history.sqlite", []
    for day in range(1, 9):
        path = place.folder / f"day{day}.json"
        measurement.write(recorded([[5.0 + day / 10]] * 6, started=f"2026-01-{day:02d}T00:00:00+00:00"), path)
        records.append(str(path))

    def check() -> None:
        if file.exists():
            for series in history.read(file):
                assert all(point.launches == 6 for point in series.points)
        assert history.add(file, Path(records[0])) in (0, 1)

    return Course(["history", "add", *records, "--file", str(file)], file.exists, check)


def keep_profiles(place: Place) -> Course:
    folder, records = place.folder / "profiles", []
    for i in range(8):
        made = recorded([[5.0, 5.1]] * 6)
        path = place.folder / f"record{i}.json"
        measurement.write(replace(made, subjects=(replace(made.subjects[0], model=f"m{i}"),)), path)
        records.append(str(path))
    return Course(["profile", *records, "--folder", str(folder)], folder.exists, lambda: readable(folder))


def readable(folder: Path) -> None:
    """Read all profiles of a folder."""
    measured.read_all(folder)


def report(place: Place) -> Course:
    folder, page = place.folder / "reported", place.folder / "pages" / "report.html"
    folder.mkdir(exist_ok=True)
    measurement.write(recorded([[5.0, 5.1]] * 6), folder / "record.json")

    def check() -> None:
        if page.exists():
            assert page.read_text(encoding="utf-8").rstrip().endswith("</html>")

    return Course(["report", str(folder), "--out", str(page)], page.parent.exists, check)


def bench(place: Place) -> Course:
    record = place.folder / "record.json"

    def check() -> None:
        if record.exists():
            assert measurement.read(record).launches

    options = ["--seconds", "6", "--launches", "4", "--out", str(record)]
    return Course(["bench", str(place.artifact), *options], record.exists, check)


def build_on(place: Place) -> Course:
    where, out = place.board(), place.folder / "built"
    slow = f"import time; time.sleep(0.5)\n{BUILDS}"

    def check() -> None:
        for made in out.glob("[!.]*"):
            names = sorted(path.name for path in made.iterdir())
            assert names == ["manifest.json", "measurement.json", "small.engine"]
        until(lambda: not where.left())

    arguments = ["build-on", where.url, str(place.kit(slow)), "--out", str(out), "--ssh-config", str(where.config)]
    return Course(arguments, lambda: bool(where.left()), check)


COURSES: dict[str, Callable[[Place], Course]] = dict(
    zip(COMMANDS, (export, add_to_history, keep_profiles, report, build_on, bench), strict=True)
)
_spans: dict[str, float] = {}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "kill" in metafunc.fixturenames:
        count = int(metafunc.config.getoption("--kills"))
        kills = [
            (COMMANDS[i % len(COMMANDS)], list(ENDS)[(i // len(COMMANDS) + i) % len(ENDS)], i) for i in range(count)
        ]
        names = [f"{command}-{how.name}-{i}" for command, how, i in kills]
        metafunc.parametrize("kill", kills, ids=names)


@pytest.fixture
def place(tmp_path: Path, request: pytest.FixtureRequest, kit: Callable[[str], Path]) -> Place:
    folder = tmp_path / "place"
    folder.mkdir()
    command = request.getfixturevalue("kill")[0]
    artifact = request.getfixturevalue("export_small")("onnx").path if command == "bench" else folder
    return Place(folder, artifact, lambda: request.getfixturevalue("board"), kit)


@pytest.fixture
def marked() -> str:
    """A mark for environments of which no process may be left."""
    return f"kill-{random.SystemRandom().getrandbits(64):x}"


def start(course: Course, tmp: Path, mark: str) -> subprocess.Popen[bytes]:
    tmp.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "edgesmith", *course.arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "TMPDIR": str(tmp), "EDGESMITH_KILLED": mark},
        start_new_session=True,
    )


def processes(mark: str) -> list[int]:
    """Processes that have the mark in their environment; Linux alone shows those."""
    found = []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark.encode() in environment.read_bytes():
                found.append(int(environment.parent.name))
        except OSError:  # it has ended, or is somebody else's
            continue
    return found


def test_a_kill_leaves_everything_readable_and_nothing_behind(
    kill: tuple[str, signal.Signals, int], place: Place, tmp_path: Path, marked: str, pytestconfig: pytest.Config
) -> None:
    command, how, number = kill
    course, tmp = COURSES[command](place), tmp_path / "t"
    if pytestconfig.getoption("--kills") > len(COMMANDS):
        if command not in _spans:  # what it writes is the older state of the first kill
            begun = time.monotonic()
            assert start(course, tmp, marked).wait() == 0
            _spans[command] = time.monotonic() - begun
        process = start(course, tmp, marked)
        try:
            process.wait(random.Random(number).uniform(0, _spans[command]))
        except subprocess.TimeoutExpired:
            process.send_signal(how)
    else:
        process = start(course, tmp, marked)
        until(lambda: course.begins() or process.poll() is not None)
        process.send_signal(how)
    code = process.wait(LONGEST_S)
    assert code in (*ENDS[how], 0)
    ended = time.monotonic()
    while processes(marked):
        assert time.monotonic() - ended < 20, processes(marked)
        time.sleep(0.05)
    course.check()
    left = [path.name for path in tmp.iterdir()]
    if how is signal.SIGKILL:
        ending.remove_leftovers(tmp)
        left = [path.name for path in tmp.iterdir() if not path.name.startswith("new-")]
    else:
        partial = [str(path) for path in place.folder.rglob("*partial*")]
        assert not partial
    assert not left
