"""What native code reads of a foreign file: it may end its process, or never end, and that is one sentence."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edgesmith import cli
from edgesmith.cli import use
from edgesmith.errors import BackendMissing, BadInput, Unreadable, Unsupported
from edgesmith.exporters.manifest import MANIFEST
from edgesmith.exporters.targets import _coreai_adapter as coreai
from edgesmith.readers import apart, messages
from edgesmith.readers.limits import INSIDE, Limit

SHORT = Limit(0.7, 8)
ABORT, HANG = "os:abort", "signal:pause"


@pytest.fixture(autouse=True)
def no_worker_stays() -> Iterator[None]:
    yield
    apart.end()


def test_a_worker_returns_what_a_function_returns_and_stays() -> None:
    first = apart.call("os:getpid", [], "a file")
    assert first != os.getpid()
    assert apart.call("os:getpid", [], "a file") == first
    assert apart.call("math:prod", [[2, 3]], "a file") == 6


def test_a_process_that_dies_is_one_sentence_and_the_next_file_is_read() -> None:
    with pytest.raises(Unreadable) as raised:
        apart.call(ABORT, [], "a.aimodel")
    assert str(raised.value) == "a.aimodel is damaged: the process that read it ended by SIGABRT; make the file anew"
    assert apart.call("math:prod", [[2, 3]], "a file") == 6


def test_what_the_system_refuses_comes_as_its_error(tmp_path: Path) -> None:
    gone = str(tmp_path / "gone")
    with pytest.raises(FileNotFoundError) as raised:
        apart.call("os:listdir", [gone], "a file")
    assert (raised.value.errno, raised.value.filename) == (errno.ENOENT, gone)
    with pytest.raises(OSError, match=r"^illegal IP address"):
        apart.call("socket:inet_aton", ["nowhere"], "a file")
    assert apart.call("math:prod", [[2, 3]], "a file") == 6


def test_what_does_not_end_is_stopped_with_its_process() -> None:
    there = apart.call("os:getpid", [], "a file", SHORT)
    with pytest.raises(Unreadable, match=r"^a\.onnx took longer than 0\.7 s to be read, and that was stopped"):
        apart.call(HANG, [], "a.onnx", SHORT)
    with pytest.raises(ProcessLookupError):
        os.kill(there, 0)


def test_memory_is_bounded() -> None:
    with pytest.raises(Unreadable, match=r"a\.onnx asks for more than 0\.5 GiB of memory"):
        apart.call("builtins:bytearray", [2**32], "a.onnx", Limit(20, 0.5))


def test_a_worker_that_was_killed_between_two_files_is_no_fault_of_the_next() -> None:
    os.kill(apart.call("os:getpid", [], "a file"), 9)
    time.sleep(0.2)
    assert apart.call("math:prod", [[2, 3]], "a file") == 6


def test_a_forked_process_has_a_worker_of_its_own() -> None:
    own = apart.call("os:getpid", [], "a file")
    child = os.fork()
    if child == 0:
        other = apart.call("os:getpid", [], "a file")
        apart.end()
        os._exit(0 if other != own else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert apart.call("os:getpid", [], "a file") == own


@pytest.mark.parametrize("kind", [BadInput, Unreadable, Unsupported, BackendMissing])
def test_an_error_of_ours_is_raised_as_it_was(kind: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apart, "_ask", lambda *_: json.dumps({"error": kind.__name__, "sentence": "said"}).encode())
    with pytest.raises(kind) as raised:
        apart.call("a:b", [], "a file")
    assert type(raised.value) is kind
    assert str(raised.value) == "said"


def test_another_error_is_a_bug() -> None:
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        apart.call("operator:truediv", [1, 0], "a file")


def test_within_a_limit_there_is_no_further_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(INSIDE, "1")
    assert apart.call("os:getpid", [], "a file") == os.getpid()


# the commands


def plant(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every native reader end its process, or never end."""
    call = apart.call
    readers = {coreai.READ_OPERATORS, messages.INFER, use.INTERFACE}

    def planted(function: str, arguments: Any, what: str) -> Any:
        assert function in readers
        return call(fault, [], what, SHORT)

    monkeypatch.setattr(apart, "call", planted)


@pytest.fixture(scope="module")
def onnx_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from support.fuzzing import exported

    return Path(shutil.copytree(exported("onnx"), tmp_path_factory.mktemp("onnx") / "made"))


@pytest.mark.parametrize("fault", [ABORT, HANG])
@pytest.mark.parametrize("command", [("lint",), ("estimate", "--device", "rpi5"), ("use",)], ids=lambda one: one[0])
def test_a_command_ends_in_a_sentence(
    command: tuple[str, ...],
    fault: str,
    onnx_artifact: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = Path(shutil.copytree(onnx_artifact, tmp_path / "made"))
    manifest = json.loads((folder / MANIFEST).read_text())
    del manifest["model"]["interface"]  # as in older ones, whose file is asked
    (folder / MANIFEST).write_text(json.dumps(manifest))
    assert cli.run([*command, str(folder)]) == 0
    plant(fault, monkeypatch)
    capsys.readouterr()
    assert cli.run([*command, str(folder)]) == Unreadable.exit_code
    said = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("  ")]  # without its stages
    assert len(said) == 1
    assert ("ended by SIGABRT" if fault == ABORT else "took longer than") in said[0]


def test_a_report_says_which_file_was_not_checked(
    onnx_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(ABORT, monkeypatch)
    assert cli.run(["report", str(onnx_artifact), "--out", str(tmp_path / "page.html")]) == 0
    assert "ended by SIGABRT" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_a_damaged_program_whose_hash_agrees_is_a_sentence(export_small: Callable[..., Any], tmp_path: Path) -> None:
    """A flipped bit, of which MLIR ends its process: the one in four that was seen."""
    pytest.importorskip("coreai_torch")
    from edgesmith.exporters.departures.lint import lint

    (sound,) = export_small("coreai").path.glob("*.aimodel")
    program = (sound / coreai.PROGRAM).read_bytes()
    damaged = Path(shutil.copytree(sound, tmp_path / "a.aimodel"))
    ends = []
    for place in range(101, len(program), len(program) // 24):
        altered = bytearray(program)
        altered[place] ^= 4
        (damaged / coreai.PROGRAM).write_bytes(altered)
        (damaged / coreai.HASH).write_bytes(hashlib.sha256(altered).digest())
        try:
            lint(damaged)
        except (Unreadable, Unsupported) as error:
            ends.append(str(error))
    assert any("ended by SIG" in end for end in ends)


def test_a_worker_ends_with_whoever_started_it() -> None:
    code = "import os, edgesmith.readers.apart as a; print(a.call('os:getpid', [], 'x'), flush=True); os._exit(0)"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    until = time.monotonic() + 5
    while Path(f"/proc/{done.stdout.strip()}/cmdline").exists() and time.monotonic() < until:
        if not Path(f"/proc/{done.stdout.strip()}/cmdline").read_bytes():
            break  # nobody has waited for it yet
        time.sleep(0.05)
    assert time.monotonic() < until
