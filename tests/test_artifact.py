"""Artifacts appear whole or not at all, and lose nothing that was there before."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.manifests import smallest_manifest

from edgesmith import locks
from edgesmith.errors import BadInput, OutputError
from edgesmith.exporters import artifact
from edgesmith.exporters.artifact import changed_files, publish, read, staging, write_manifest
from edgesmith.exporters.manifest import MANIFEST, SCHEMA


def make(out: Path, name: str, text: str) -> Path:
    with staging(out, name) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "model.bin").write_text(text)
        write_manifest(folder, smallest_manifest(file="sub/model.bin"))
        return publish(folder, out, name)


def test_publish_makes_the_folder_with_its_manifest_and_leaves_nothing_else(tmp_path: Path) -> None:
    final = make(tmp_path / "new" / "out", "a", "one")
    assert [p.name for p in final.parent.iterdir()] == ["a"]
    artifact = read(final)
    assert artifact.file.read_text() == "one"
    assert changed_files(artifact) == []
    assert read(final / MANIFEST).path == final


def test_publish_replaces_an_older_artifact_as_a_whole(tmp_path: Path) -> None:
    make(tmp_path, "a", "one")
    make(tmp_path, "a", "two")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert read(tmp_path / "a").file.read_text() == "two"
    assert changed_files(read(tmp_path / "a")) == []


def test_a_failure_while_staging_leaves_the_older_artifact(tmp_path: Path) -> None:
    make(tmp_path, "a", "one")

    def interrupted() -> None:
        with staging(tmp_path, "a") as folder:
            (folder / "half").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert read(tmp_path / "a").file.read_text() == "one"


@pytest.mark.parametrize("kind", ["folder", "file", "other manifest", "link", "note inside"])
def test_what_edgesmith_did_not_write_is_not_overwritten(kind: str, tmp_path: Path) -> None:
    path, precious = tmp_path / "a", tmp_path / "a" / "thesis.txt"
    if kind == "file":
        precious = path
    elif kind == "link":
        (tmp_path / "elsewhere").mkdir()
        path.symlink_to(tmp_path / "elsewhere")
    elif kind == "note inside":
        make(tmp_path, "a", "one")
    else:
        path.mkdir()
    precious.write_text("precious")
    if kind == "other manifest":
        (path / MANIFEST).write_text('{"name": "my web app"}')
    with pytest.raises(OutputError, match="is in the way"):
        make(tmp_path, "a", "one")
    assert precious.read_text() == "precious"
    assert not list(tmp_path.glob(".*"))


def test_an_empty_folder_is_used(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    assert read(make(tmp_path, "a", "one")).file.read_text() == "one"


def test_runs_side_by_side_publish_every_artifact(tmp_path: Path) -> None:
    """Four processes into one folder, two of them under the same name, many times over."""
    command = [sys.executable, "-c", PUBLISHER + MANY_TIMES, str(tmp_path)]
    processes = [
        subprocess.Popen([*command, name, ONE_FILE], stderr=subprocess.PIPE, text=True) for name in ("a", "a", "b", "c")
    ]
    for process in processes:
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]


def test_exchange_without_system_support_restores_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class NoExchange:
        def __init__(self, *arguments: object, **options: object) -> None:
            pass

    monkeypatch.setattr(ctypes, "CDLL", NoExchange)
    monkeypatch.setattr(sys, "platform", "linux")
    make(tmp_path, "a", "one")
    make(tmp_path, "a", "two")
    assert read(tmp_path / "a").file.read_text() == "two"
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if self.name.endswith(".partial") and Path(target).name == "a":
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OutputError, match="Input/output error; nothing was published"):
        make(tmp_path, "a", "three")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert read(tmp_path / "a").file.read_text() == "two"


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot write to .*file/out: Not a directory; choose another folder"):
        make(tmp_path / "file" / "out", "a", "one")


def test_a_read_only_folder_is_one_sentence(tmp_path: Path) -> None:
    folder = tmp_path / "read-only"
    folder.mkdir(mode=0o555)
    if os.access(folder, os.W_OK):
        folder = Path("/proc")  # root may write everywhere but here
    if not folder.is_dir():
        pytest.skip("this user can write to every folder here")
    with pytest.raises(OutputError, match="cannot write to"):
        make(folder, "a", "one")


def test_a_full_disk_is_one_sentence_and_leaves_the_older_artifact(tmp_path: Path) -> None:
    """A file-size limit stands in for the disk: the write fails in the same place with an OSError of the system's."""
    make(tmp_path, "a", "one")

    def fill() -> None:
        with staging(tmp_path, "a") as folder:
            (folder / "model.bin").write_bytes(b"x" * 1_000_000)
            publish(folder, tmp_path, "a")

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OutputError, match=r"cannot write to .*: File too large; nothing was published"):
            fill()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert read(tmp_path / "a").file.read_text() == "one"


@pytest.mark.parametrize("way", ["error", "refusal", "interrupt", "done"])
def test_a_run_that_publishes_nothing_leaves_no_folder_that_it_made(way: str, tmp_path: Path) -> None:
    """Its `--out` and those above go; not one that was there before it, nor one in which others have put something."""
    raised = {
        "error": OSError(28, "No space left on device"),
        "refusal": BadInput("no"),
        "interrupt": KeyboardInterrupt(),
    }
    (tmp_path / "there").mkdir()
    for out in (tmp_path / "new" / "out", tmp_path / "there", tmp_path / "shared" / "out"):
        with contextlib.suppress(OutputError, BadInput, KeyboardInterrupt), staging(out, "a") as folder:
            if "shared" in out.parts:
                (tmp_path / "shared" / "thesis.txt").write_text("precious")
            if way in raised:
                raise raised[way]
            (folder / "0.bin").write_text("one")
            write_manifest(folder, smallest_manifest(file="0.bin"))
            publish(folder, out, "a")
    made = ["new/out/a", "shared/out/a", "there/a"] if way == "done" else []
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.glob("*/**/a")) == made
    assert sorted(path.name for path in tmp_path.iterdir()) == [*(["new"] if made else []), "shared", "there"]
    assert [path.name for path in (tmp_path / "shared").iterdir() if path.is_file()] == ["thesis.txt"]
    assert (tmp_path / "shared" / "out").exists() == bool(made)


@pytest.mark.parametrize("moment", ["before the lock", "under the lock"])
def test_a_run_that_fails_does_not_take_the_folder_from_under_another(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other removes its empty folder after this run has found it, and before this one puts something there."""
    lock, left = locks.lock, [2]

    def removed_first(folder: Path, wait: bool = True) -> int | None:
        if not left[0] or folder.name != "out":
            return lock(folder, wait)
        left[0] -= 1
        handle = lock(folder, wait) if moment == "under the lock" else None
        folder.rmdir()
        folder.parent.rmdir()
        return lock(folder, wait) if handle is None else handle

    monkeypatch.setattr(locks, "lock", removed_first)
    monkeypatch.setattr(artifact, "lock", removed_first)
    made = make(tmp_path / "new" / "out", "a", "one")
    assert left == [0]
    assert read(made).file.read_text() == "one"


def test_an_error_from_elsewhere_is_not_blamed_on_the_output_folder(tmp_path: Path) -> None:
    def fail() -> None:
        with staging(tmp_path / "out", "a"):
            (tmp_path / "missing.pth").read_bytes()

    with pytest.raises(FileNotFoundError):
        fail()


def test_a_copy_that_fails_gives_the_systems_words(tmp_path: Path) -> None:
    def fail() -> None:
        with staging(tmp_path, "a"):
            raise shutil.Error([("from", "to", "[Errno 28] No space left on device: 'from' -> 'to'")])

    with pytest.raises(OutputError, match=r"cannot write to .*: No space left on device; nothing was published"):
        fail()


def test_leftovers_of_dead_processes_are_removed_and_those_of_live_ones_kept(tmp_path: Path) -> None:
    dead, foreign = tmp_path / ".edgesmith-a.123.partial", tmp_path / ".download.partial"
    dead.mkdir()
    foreign.mkdir()
    with staging(tmp_path, "b") as live:
        make(tmp_path, "a", "one")
        assert not dead.exists()
        assert foreign.exists()
        assert live.exists()


def test_a_path_without_an_artifact_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no artifact at .*nowhere: wanted a folder with manifest\.json"):
        read(tmp_path / "nowhere")


ONE_FILE = json.dumps(smallest_manifest(file="0.bin"))
PUBLISHER = """
import json, os, signal, sys, tempfile, time
from pathlib import Path
from edgesmith.exporters.artifact import publish, staging, write_manifest

out, name, manifest = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])

def publish_once(out, i):
    with staging(out, name) as folder:
        for j in range(20):
            (folder / f"{j}.bin").write_text(str(i))
        write_manifest(folder, manifest)
        publish(folder, out, name)
"""
MANY_TIMES = """
for i in range(60):
    publish_once(out, i)
"""
KILLED = """
with tempfile.TemporaryDirectory() as elsewhere:  # how long it takes here, and nothing is left to import
    for i in range(2):
        start = time.perf_counter()
        publish_once(Path(elsewhere), i)
    seconds = time.perf_counter() - start
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        for i in range(100_000):
            publish_once(out, i)
    time.sleep(float(line) * seconds)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    print("killed", flush=True)
"""


def test_killing_a_publisher_at_any_moment_leaves_one_whole_artifact(tmp_path: Path) -> None:
    """Publishing in a loop, over itself, killed 40 times: every file in the folder is of one and the same run."""
    command = [sys.executable, "-c", PUBLISHER + KILLED, str(tmp_path), "a", ONE_FILE]
    published = False
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for round_ in range(40):
            print(0.3 + 0.07 * round_, file=process.stdin, flush=True)
            assert process.stdout.readline() == "killed\n"
            if not (tmp_path / "a").exists():
                assert not published, "an artifact that was there is gone"
                continue
            published = True
            artifact = read(tmp_path / "a")
            assert changed_files(artifact) == []
            assert len({(artifact.path / f"{j}.bin").read_text() for j in range(20)}) == 1
            assert json.loads((artifact.path / MANIFEST).read_text())["schema"] == SCHEMA
        process.stdin.close()
    assert published
    make(tmp_path, "a", "last")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
