"""What is written is whole: on a full disk, under any umask, through links, and in a history's transaction."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import NEEDED
from test_bench import noisy, recorded
from test_peers import doubling, held, stand_ins
from test_transport import BUILDS, QUICK, Board, board, boards, keys, kit
from torch import nn

import edgesmith
from edgesmith import cli, ending
from edgesmith.bench import history, measured, measurement
from edgesmith.errors import BadInput, OutputError
from edgesmith.exporters.tensorrt.kit import build
from edgesmith.writing import write_whole

SHARED = board, boards, keys, kit
"""Fixtures of test_transport.py: an sshd, and a kit for it."""

HELD = doubling, held, stand_ins
"""Fixtures of test_peers.py: a contest of stand-ins."""


@pytest.fixture(params=[0o077, 0o027, 0o002])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# one file


def test_a_file_takes_an_older_one_s_place_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "file"
    write_whole(path, "old", "file")

    def cut(self: Path, target: Path) -> None:
        assert target.read_text() == "old"
        assert self.read_text() == "new"  # on the disk before it takes the place
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", cut)
    with pytest.raises(OutputError, match=r"cannot write the file .*deep/file: No space left on device"):
        write_whole(path, "new", "file")
    assert [one.name for one in path.parent.iterdir()] == ["file"]
    assert path.read_text() == "old"


def test_folders_that_a_failure_would_leave_empty_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(self: Path, target: Path) -> None:
        assert target.parent.is_dir()
        raise OSError(28, "No space left on device")

    (tmp_path / "there").mkdir()
    monkeypatch.setattr(Path, "replace", cut)
    for folder in (tmp_path / "new" / "deep", tmp_path / "there"):
        with pytest.raises(OutputError, match="No space left on device"):
            write_whole(folder / "file", "new", "file")
    assert [one.name for one in tmp_path.iterdir()] == ["there"]


@pytest.mark.parametrize("name", ["n" * 255, "\N{CJK UNIFIED IDEOGRAPH-4E2D}" * 85, "\N{GRINNING FACE}" * 63])
def test_a_name_may_be_as_long_as_the_file_system_has_it(name: str, tmp_path: Path) -> None:
    write_whole(tmp_path / name, "text", "file")
    assert (tmp_path / name).read_text() == "text"


def test_who_may_read_it_the_umask_says(umask: int, tmp_path: Path) -> None:
    measurement.write(noisy(1.0), tmp_path / "record.json")
    history.add(tmp_path / "history.sqlite", tmp_path / "record.json")
    profile = next(measured.condense(measurement.read(tmp_path / "record.json")))
    page, junit = tmp_path / "report.html", tmp_path / "junit.xml"
    assert cli.run(["report", str(tmp_path), "--out", str(page)]) == 0
    cli.run(["compare", str(tmp_path / "record.json"), "--junit", str(junit)])
    build.write_whole(tmp_path / "cache", b"content")
    written = [
        tmp_path / "record.json",
        tmp_path / "history.sqlite",
        measured.write(profile, tmp_path / "p"),
        page,
        junit,
    ]
    for path in (*written, tmp_path / "cache"):
        allowed = 0o644 & ~umask if path.suffix == ".sqlite" else 0o666 & ~umask  # SQLite's own: 0644
        assert mode(path) == allowed, path.name


def test_an_artifact_is_readable_as_the_umask_says(small: nn.Module, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        made = edgesmith.export(small, "coreml", inputs=torch.zeros(1, 3, 32, 64), out=tmp_path)
    finally:
        os.umask(before)
    assert {mode(path) for path in made.path.rglob("*") if path.is_file()} == {0o640}
    assert {mode(path) for path in (made.path, *made.path.rglob("*")) if path.is_dir()} == {0o750}


def test_a_link_stays_one_and_a_device_is_written_to(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "file")
    write_whole(tmp_path / "link", "content", "file")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "content"
    os.mkfifo(tmp_path / "pipe")
    reader = subprocess.Popen(["cat", str(tmp_path / "pipe")], stdout=subprocess.PIPE, text=True)
    write_whole(tmp_path / "pipe", "through", "file")
    assert reader.communicate()[0] == "through"
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


# a full disk


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Callable[[], Path]]:
    """A file system of 4 MiB; what the returned function is called after, it fills."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount") or "/bin/mount"
    try:
        done = subprocess.run(
            [mount, "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
        )
    except OSError as error:
        pytest.skip(f"no file system can be mounted here: {error}")
    if done.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")

    def fill() -> Path:
        handle = os.open(folder / "filler", os.O_CREAT | os.O_WRONLY)
        with contextlib.suppress(OSError):
            while True:
                os.write(handle, bytes(512))
        os.close(handle)
        return folder

    yield fill
    subprocess.run(["umount", str(folder)], check=True)


def state(folder: Path) -> dict[str, bytes]:
    """Return every file with its content; the filler's is its own."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "filler"
    }


def writing(command: str, disk: Path, tmp_path: Path, request: pytest.FixtureRequest) -> list[str]:
    """Return a command's arguments, after it has written its older state to the disk."""
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    measurement.write(noisy(1.0), old)
    measurement.write(noisy(1.1, launches=40, seed=3), new)
    if command == "history":
        history.add(disk / "history.sqlite", old)
        return ["history", "add", str(new), "--file", str(disk / "history.sqlite")]
    if command == "profile":
        assert cli.run(["profile", str(old), "--folder", str(disk)]) == 0
        return ["profile", str(new), "--folder", str(disk)]
    if command == "report":
        (tmp_path / "reported").mkdir()
        shutil.copy(old, tmp_path / "reported")
        arguments = ["report", str(tmp_path / "reported"), "--out", str(disk / "report.html")]
        assert cli.run(arguments) == 0
        shutil.copy(new, tmp_path / "reported")
        return arguments
    if command == "peers":
        request.getfixturevalue("held")
        arguments = ["peers", "casvit_xs", "--launches", "1", "--seconds", "0.1", "-o", str(disk / "peers.json")]
        assert cli.run(arguments) == 0
        return arguments
    if command == "junit":
        cli.run(["compare", str(old), "--junit", str(disk / "junit.xml")])
        return ["compare", str(new), "--junit", str(disk / "junit.xml")]
    if command == "build-on":
        where: Board = request.getfixturevalue("board")
        made = request.getfixturevalue("kit")(BUILDS)
        arguments = ["build-on", where.url, str(made), "--out", str(disk), "--ssh-config", str(where.config)]
        assert cli.run(arguments) == 0
        return arguments
    small = request.getfixturevalue("export_small")
    if command == "sarif":
        arguments = ["lint", str(small("onnx").path), "--sarif", str(disk / "found.sarif")]
        assert cli.run(arguments) == 0
        return arguments
    if command == "bench":
        measurement.write(noisy(1.0), disk / "record.json")
        return ["bench", str(small("onnx").path), *QUICK, "--out", str(disk / "record.json")]
    older = small(command).path  # a target
    shutil.copytree(older, disk / older.name)
    return []


WRITERS = ("history", "profile", "report", "junit", "sarif", "bench", "build-on", "peers")
WRITERS += ("onnx", "coreml", "coreai", "tensorrt", "tvm")


@pytest.mark.parametrize("command", WRITERS)
def test_on_a_full_disk_a_command_says_so_and_the_older_state_is_as_it_was(
    command: str,
    full: Callable[[], Path],
    tmp_path: Path,
    request: pytest.FixtureRequest,
    capfd: pytest.CaptureFixture[str],
) -> None:
    disk = tmp_path / "disk"
    arguments = writing(command, disk, tmp_path, request)
    before = state(disk)
    assert before
    full()
    capfd.readouterr()
    if arguments:
        assert cli.run(arguments) == OutputError.exit_code
        (said,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("edgesmith: ")]
        assert "full" in said or "No space left on device" in said
    else:
        small, options = request.getfixturevalue("small"), NEEDED.get(command, {})
        with pytest.raises(OutputError, match=r"(No space left on device|is the disk full\?); nothing was published"):
            edgesmith.export(small, command, inputs=torch.zeros(1, 3, 32, 64), out=disk, **options)
    assert state(disk) == before
    assert not list(disk.glob(".*"))


COMMANDS = (
    *(["models"], ["models", "--json"], ["targets"], ["devices"], ["operators", "softmax"], ["doctor", "--json"]),
    *(["--version"], ["export", "--help"], ["use", "ARTIFACT"], ["lint", "ARTIFACT"]),
)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full, which Linux has")
@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_a_full_disk_under_stdout_is_said(
    arguments: list[str],
    export_small: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    given = [str(export_small("onnx").path) if one == "ARTIFACT" else one for one in arguments]
    with open("/dev/full", "w") as full:  # noqa: PTH123  # a device
        monkeypatch.setattr(sys, "stdout", full)
        assert cli.run(given) == OutputError.exit_code
        with contextlib.suppress(OSError):
            full.close()
    said = capfd.readouterr().err.splitlines()[-1]
    assert said == "edgesmith: cannot write all of it: No space left on device; make room"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full, which Linux has")
def test_the_code_is_the_command_s_where_its_sentence_has_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "w") as full:  # noqa: PTH123  # a device
        monkeypatch.setattr(sys, "stderr", full)
        monkeypatch.setattr(sys, "stdout", full)
        assert cli.run(["inspect", "nowhere", "--json"]) == BadInput.exit_code
        with contextlib.suppress(OSError):
            full.close()


# a history


def test_a_history_is_added_to_in_one_transaction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed at any statement of the first `add`, the file holds nothing or all."""
    measurement.write(recorded([[5.0]] * 6, [[6.0]] * 6), tmp_path / "record.json")
    code = (
        "import os, sqlite3, sys\n"
        "from pathlib import Path\n"
        "from edgesmith.bench import history\n"
        "left = int(sys.argv[1])\n"
        "class Killed(sqlite3.Connection):\n"
        "    def execute(self, *given):\n"
        "        global left\n"
        "        left -= 1\n"
        "        if left < 0: os._exit(9)\n"
        "        return super().execute(*given)\n"
        "    executemany = lambda self, sql, rows: [self.execute(sql, row) for row in rows]\n"
        "connect = sqlite3.connect\n"
        "sqlite3.connect = lambda *a, **k: connect(*a, factory=Killed, **k)\n"
        "history.add(Path(sys.argv[2]), Path(sys.argv[3]))\n"
    )
    import concurrent.futures

    def killed(after: int) -> tuple[Path, int]:
        file = tmp_path / f"{after}.sqlite"
        command = [sys.executable, "-P", "-c", code, str(after), str(file), str(tmp_path / "record.json")]
        return file, subprocess.run(command, check=False).returncode

    ends = []
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        for file, returned in pool.map(killed, (0, 3, 6, 8, 9, 30)):
            ends.append(returned)
            if file.exists():
                assert sum(len(series.points) for series in history.read(file)) == (2 if returned == 0 else 0)
            assert history.add(file, tmp_path / "record.json") == (0 if returned == 0 else 2)
    assert ends[0] == 9
    assert ends[-1] == 0


@pytest.fixture
def record(tmp_path: Path) -> Path:
    measurement.write(recorded([[5.0]] * 6), tmp_path / "record.json")
    return tmp_path / "record.json"


def test_what_an_older_edgesmith_left_unfinished_is_a_history(record: Path, tmp_path: Path) -> None:
    file = tmp_path / "history.sqlite"
    connection = sqlite3.connect(file)
    connection.execute(history.MIGRATIONS[0])  # and killed before it gave the file its number
    connection.close()
    assert history.read(file) == []
    assert history.add(file, record) == 1
    (series,) = history.read(file)
    assert len(series.points) == 1
    empty = tmp_path / "empty.sqlite"
    empty.touch()
    assert history.read(empty) == []


def test_bytes_that_are_no_text_in_a_history_are_a_sentence(record: Path, tmp_path: Path) -> None:
    """SQLite quotes the file in its message, and Python decodes that."""
    file = tmp_path / "history.sqlite"
    history.add(file, record)
    found = file.read_bytes()
    at = found.index(b"CREATE TABLE points")
    for old, new in ((b"CREATE", b"CRE\xffTE"), (b"points", b"po\xffnts")):
        file.write_bytes(found[:at] + found[at:].replace(old, new))
        for use in (lambda: history.read(file), lambda: history.add(file, record)):
            with pytest.raises(BadInput, match="is damaged or no history of edgesmith"):
                use()


@pytest.mark.parametrize("number", [-1, -(2**31)])
def test_a_negative_schema_is_another_program_s(number: int, record: Path, tmp_path: Path) -> None:
    file = tmp_path / "history.sqlite"
    history.add(file, record)
    connection = sqlite3.connect(file)
    connection.execute(f"PRAGMA user_version = {number}")
    connection.close()
    before = file.read_bytes()
    for use in (lambda: history.read(file), lambda: history.add(file, record)):
        with pytest.raises(BadInput, match="is no history of edgesmith"):
            use()
    assert file.read_bytes() == before


def test_an_older_history_is_migrated_where_it_is_written_and_read_as_it_lies(
    record: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "history.sqlite"
    history.add(file, record)
    before = file.read_bytes()
    monkeypatch.setattr(history, "MIGRATIONS", (*history.MIGRATIONS, "CREATE INDEX by_time ON points (started)"))
    monkeypatch.setattr(history, "SCHEMA", 2)
    assert len(history.read(file)) == 1
    assert file.read_bytes() == before
    assert history.add(file, record) == 0
    connection = sqlite3.connect(file)
    assert connection.execute("PRAGMA user_version").fetchone() == (2,)
    assert connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'by_time'").fetchone() == (1,)
    connection.close()
    assert len(history.read(file)) == 1


def test_a_writer_s_journal_is_rolled_back_by_who_reads_next(record: Path, tmp_path: Path) -> None:
    file = tmp_path / "history.sqlite"
    history.add(file, record)
    code = (
        "import os, sqlite3, sys\n"
        "connection = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "connection.execute('PRAGMA cache_size = 1')\n"
        "connection.execute('BEGIN')\n"
        "connection.execute('UPDATE points SET p50_ms = -1')\n"
        "connection.execute('CREATE TABLE spill (a)')\n"
        "connection.executemany('INSERT INTO spill VALUES (?)', [('x' * 4000,)] * 200)\n"
        "os._exit(9)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(file)], check=False).returncode == 9
    assert file.with_name("history.sqlite-journal").exists()
    (series,) = history.read(file)
    assert [point.p50_ms for point in series.points] == [5.0]


def test_a_commit_waits_for_the_disk(record: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    connect = sqlite3.connect

    def heard(*given: object, **more: object) -> sqlite3.Connection:
        connection: sqlite3.Connection = connect(*given, **more)  # type: ignore[call-overload]  # passed on
        connection.set_trace_callback(said.append)
        return connection

    monkeypatch.setattr(sqlite3, "connect", heard)
    history.add(tmp_path / "history.sqlite", record)
    assert said[0] == "PRAGMA synchronous = FULL"
    assert [line for line in said if line in ("BEGIN IMMEDIATE", "COMMIT")] == ["BEGIN IMMEDIATE", "COMMIT"]


# temporary folders


def test_a_killed_command_s_temporary_folder_is_removed_by_the_next_and_a_living_one_s_is_not(tmp_path: Path) -> None:
    code = "from edgesmith import ending; import sys, os; ending.own_temporary_folder(); print('ready', flush=True); {}"
    environment = {**os.environ, "TMPDIR": str(tmp_path)}

    def start(then: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-P", "-c", code.format(then)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    living, killed = start("sys.stdin.read()"), start("os._exit(9)")
    killed.wait()
    assert len(list(tmp_path.iterdir())) == 2
    (tmp_path / f"{ending.PREFIX}link").symlink_to(tmp_path / "elsewhere")
    ending.remove_leftovers(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2  # the living one's, and what is no folder
    living.communicate("")
    assert [path.name for path in tmp_path.iterdir()] == [f"{ending.PREFIX}link"]
    killed.communicate()
