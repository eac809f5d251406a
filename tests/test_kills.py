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
from collections import Counter
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

BEFORE_OURS = "init_import_site"
"""Python's word for an interrupt while it starts, which it ends with 1; nothing of ours has run then."""

ENDS = {
    signal.SIGKILL: (-signal.SIGKILL,),
    signal.SIGINT: (130, -signal.SIGINT),  # the latter before Python has begun with ours, and so below
    signal.SIGTERM: (143, -signal.SIGTERM),
}
COMMANDS = ("export", "history", "profile", "report", "build-on", "bench")
LONGEST_S = 600.0
ORPHANS_S = 20.0
"""How long a process that a killed command started may take to end."""


@dataclass(frozen=True)
class Course:
    """A command, and what to expect of it. An older state of what it writes is there before.

    Attributes:
        begins: it has begun with what may leave something.
        check: fails where something that it writes is not whole, or is neither the older state nor a newer one.
        program: what Python runs.
    """

    arguments: list[str]
    begins: Callable[[], bool]
    check: Callable[[], None]
    program: tuple[str, ...] = ("-P", "-m", "edgesmith")


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

    history.add(file, Path(records[0]))
    older = file.read_bytes()

    def check() -> None:
        (series,) = history.read(file)
        assert series.points[0].started.startswith("2026-01-01")
        assert all(point.launches == 6 for point in series.points)
        assert history.add(file, Path(records[0])) == 0
        assert history.add(file, Path(records[-1])) in (0, 1)

    return Course(["history", "add", *records, "--file", str(file)], lambda: file.read_bytes() != older, check)


def keep_profiles(place: Place) -> Course:
    folder, records = place.folder / "profiles", []
    for i in range(8):
        made = recorded([[5.0, 5.1]] * 6)
        path = place.folder / f"record{i}.json"
        measurement.write(replace(made, subjects=(replace(made.subjects[0], model=f"m{i}"),)), path)
        records.append(str(path))
    measured.write(next(iter(measured.condense(measurement.read(Path(records[0]))))), folder)
    older = len(measured.read_all(folder))

    def check() -> None:
        assert older <= len(measured.read_all(folder)) <= len(records)

    arguments = ["profile", *records, "--folder", str(folder)]
    return Course(arguments, lambda: sum(1 for _ in folder.rglob("*.json")) > older, check)


def report(place: Place) -> Course:
    folder, page = place.folder / "reported", place.folder / "pages" / "report.html"
    folder.mkdir(exist_ok=True)
    measurement.write(recorded([[5.0, 5.1]] * 6), folder / "record.json")
    page.parent.mkdir(exist_ok=True)
    page.write_text("an older page</html>", encoding="utf-8")
    older = set(page.parent.iterdir())

    def check() -> None:
        assert page.read_text(encoding="utf-8").rstrip().endswith("</html>")

    return Course(["report", str(folder), "--out", str(page)], lambda: set(page.parent.iterdir()) != older, check)


def bench(place: Place) -> Course:
    record = place.folder / "record.json"
    measurement.write(recorded([[5.0, 5.1]] * 6), record)
    older = record.read_bytes()

    def check() -> None:
        assert measurement.read(record).launches

    options = ["--seconds", "6", "--launches", "4", "--out", str(record)]
    return Course(["bench", str(place.artifact), *options], lambda: record.read_bytes() != older, check)


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
_ends: Counter[tuple[str, signal.Signals, bool]] = Counter()
"""By command and signal, how many kills hit a living one, and how many came after its end."""


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
        [sys.executable, *course.program, *course.arguments],
        stdout=subprocess.DEVNULL,
        stderr=stderr_of(tmp).open("wb"),
        env={**os.environ, "TMPDIR": str(tmp), "EDGESMITH_KILLED": mark},
        start_new_session=True,
    )


def stderr_of(tmp: Path) -> Path:
    """The file beside a command's temporary folder with what it has said."""
    return tmp.with_name("stderr")


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


def examine(course: Course, code: int, how: signal.Signals, folders: tuple[Path, Path], mark: str) -> None:
    """Fail where a killed command left a process, a temporary file, or something that is not whole.

    Args:
        folders: of what it writes, and of its temporary files.
    """
    written, tmp = folders
    said = stderr_of(tmp).read_text(errors="replace")
    assert code in (*ENDS[how], 0) or (how is signal.SIGINT and code == 1 and BEFORE_OURS in said), said
    ended = time.monotonic()
    while orphans := processes(mark):
        assert time.monotonic() - ended < ORPHANS_S, f"processes are left: {orphans}"
        time.sleep(0.05)
    course.check()
    left = [path.name for path in tmp.iterdir()]
    if how is signal.SIGKILL:
        ending.remove_leftovers(tmp)
        left = [path.name for path in tmp.iterdir() if not path.name.startswith("new-")]
    else:
        partial = [str(path) for path in written.rglob("*partial*")]
        assert not partial
    assert not left


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
    _ends[command, how, code != 0] += 1
    examine(course, code, how, (place.folder, tmp), marked)


def test_every_command_was_hit_by_every_signal(pytestconfig: pytest.Config) -> None:
    """A command that ends before its kill tells nothing: of many kills, most hit a living one."""
    count = pytestconfig.getoption("--kills")
    if count < 2 * len(COMMANDS) * len(ENDS):
        pytest.skip("too few kills for all pairs: --kills 200")
    for command in COMMANDS:
        for how in ENDS:
            hit, late = _ends[command, how, True], _ends[command, how, False]
            print(f"{command} {how.name}: {hit} hit it, {late} came after its end")
            assert hit > late, (command, how.name)


PLANTED = {
    "a file for the time being": ("left", "open(os.path.join(os.environ['TMPDIR'], 'left'), 'w')"),
    "half of a file": ("partial", "open(os.path.join(sys.argv[1], '.x.partial'), 'w')"),
    "a process": ("processes are left", "subprocess.Popen(['sleep', '60'], start_new_session=True)"),
    "a code of its own": (r"assert \(3 in", "signal.signal(signal.SIGTERM, lambda *_: os._exit(3))"),
    "what cannot be read": ("not whole", "open(os.path.join(sys.argv[1], 'page'), 'w')"),
}
"""Faults of a command, each with what is said of it."""


@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_fault_is_found(fault: str, tmp_path: Path, marked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ORPHANS_S", 0.2)
    said, does = PLANTED[fault]
    written, tmp = tmp_path / "written", tmp_path / "t"
    written.mkdir()

    def check() -> None:
        assert not (written / "page").exists(), "not whole"

    program = f"import os, signal, subprocess, sys, time\n{does}\nopen(sys.argv[2], 'w').close()\ntime.sleep(60)"
    course = Course([str(written), str(tmp_path / "begun")], (tmp_path / "begun").exists, check, ("-c", program))
    process = start(course, tmp, marked)
    until(course.begins)
    process.send_signal(signal.SIGTERM)
    try:
        with pytest.raises(AssertionError, match=said):
            examine(course, process.wait(), signal.SIGTERM, (written, tmp), marked)
    finally:
        for orphan in processes(marked):
            os.kill(orphan, signal.SIGKILL)
