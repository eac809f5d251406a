"""Far devices: a real sshd on loopback, which this file starts; a stand-in for adb; kits that a board builds.

Cut connections are sshd's session processes killed, or a relay that ends. The full disk is a tmpfs of some KiB.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest
from support.manifests import smallest_manifest

from edgesmith import cli
from edgesmith.bench import build_on, measure, measurement
from edgesmith.bench.transport import Address, CommandFailed, CutOff, Transport, connect, parse, remote
from edgesmith.board.common import machine
from edgesmith.errors import BackendMissing, BadInput, DeviceFailed, EdgesmithError, OutputError, Unsupported
from edgesmith.exporters.artifact import Artifact
from edgesmith.exporters.tensorrt.kit.record import Kit, Origin, write_record

HERE = Path(__file__).parent
QUICK = ["--seconds", "0.1", "--launches", "1"]


def tool(name: str) -> str:
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin:/sbin")
    if found is None:
        pytest.skip(f"{name} is not installed: apt-get install openssh-server openssh-client")
    return found


def until(holds: Callable[[], bool], process: subprocess.Popen[str] | None = None) -> None:
    while not holds():
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.02)


def script(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(("#!/bin/sh", *lines, "")))
    path.chmod(0o755)
    return path


@dataclass(frozen=True)
class Keys:
    """A host's key and another, a user's key and a stranger's."""

    host: Path
    other_host: Path
    user: Path
    stranger: Path


@dataclass(frozen=True)
class Board:
    """An sshd on loopback.

    Attributes:
        tmp: where it makes folders for those who log in: its TMPDIR.
        config: a client's configuration that lets it in, as a user would write one.
    """

    process: subprocess.Popen[bytes]
    port: int
    tmp: Path
    config: Path

    @property
    def url(self) -> str:
        return f"ssh://127.0.0.1:{self.port}"

    @property
    def address(self) -> Address:
        return parse(self.url, config=self.config)

    @property
    def options(self) -> list[str]:
        return ["--device", self.url, "--ssh-config", str(self.config)]

    def left(self) -> list[str]:
        """What lies there."""
        return sorted(path.name for path in self.tmp.iterdir())

    def cut(self) -> None:
        """Kill the session processes, and neither the listener nor what they have started."""
        listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,comm="], capture_output=True, text=True, check=True)
        processes = [line.split(None, 2) for line in listed.stdout.splitlines()]
        ours = {str(self.process.pid)}
        for _ in range(2):  # some versions have a process between the two
            ours |= {pid for pid, parent, name in processes if parent in ours and "sshd" in name}
        for pid in ours - {str(self.process.pid)}:
            os.kill(int(pid), signal.SIGKILL)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    folder = tmp_path_factory.mktemp("keys")
    made = Keys(*(folder / name for name in ("host", "other_host", "user", "stranger")))
    for path in (made.host, made.other_host, made.user, made.stranger):
        subprocess.run([tool("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
    return made


Boards = Callable[..., Board]


@pytest.fixture
def boards(keys: Keys, tmp_path: Path) -> Iterator[Boards]:
    """Start an sshd, with a Python there that is `python`, and with further lines of sshd_config."""
    started: list[subprocess.Popen[bytes]] = []

    def start(python: str | None = f'exec {sys.executable} "$@"', *lines: str) -> Board:
        folder = tmp_path / f"board{len(started)}"
        tmp, bin_ = folder / "tmp", folder / "bin"
        for path in (tmp, bin_):
            path.mkdir(parents=True)
        if python is None:  # a path without python3
            for name in ("sh", "cat", "rm", "mktemp", "sleep", "mkdir", "wc", "tail"):
                (bin_ / name).symlink_to(tool(name))
            search = str(bin_)
        else:
            script(bin_ / "python3", python)
            search = f"{bin_}:{os.environ['PATH']}"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        shutil.copy(keys.user.with_suffix(".pub"), folder / "authorized_keys")
        settings = [
            f"Port {port}",
            "ListenAddress 127.0.0.1",
            f"HostKey {keys.host}",
            f"AuthorizedKeysFile {folder / 'authorized_keys'}",
            "PidFile none",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            "PermitRootLogin yes",
            "UsePAM no",
            "StrictModes no",  # the folders of tests belong to whom they may
            f"SetEnv HOME={folder} TMPDIR={tmp} PATH={search}",  # another home, so that no login script of ours runs
            *lines,
        ]
        (folder / "sshd_config").write_text("\n".join((*settings, "")))
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd of root asks for it
        log = (folder / "log").open("wb")
        command = [tool("sshd"), "-D", "-e", "-f", str(folder / "sshd_config")]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        started.append(process)
        until(lambda: b"Server listening" in (folder / "log").read_bytes() or process.poll() is not None)
        assert process.poll() is None, (folder / "log").read_text()
        (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {keys.host.with_suffix('.pub').read_text()}")
        config = folder / "ssh_config"
        config.write_text(
            f"IdentityFile {keys.user}\nIdentitiesOnly yes\nIdentityAgent none\n"
            f"UserKnownHostsFile {folder / 'known_hosts'}\nGlobalKnownHostsFile /dev/null\n"
        )
        return Board(process, port, tmp, config)

    yield start
    for process in started:
        process.terminate()
        process.wait()


@pytest.fixture
def board(boards: Boards) -> Board:
    return boards()


@pytest.fixture
def small_onnx(export_small: Callable[..., Artifact]) -> Path:
    return export_small("onnx").path


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """This side's folder for temporary files; short, as sockets' paths have to be."""
    with tempfile.TemporaryDirectory(prefix="es-", dir="/tmp") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        monkeypatch.setenv("TMPDIR", folder)
        yield Path(folder)


@pytest.fixture
def adb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The stand-in for adb in front of the path; the folder where its device makes folders."""
    script(tmp_path / "adb" / "adb", f'exec {sys.executable} {HERE / "adb_stand_in.py"} "$@"')
    monkeypatch.setenv("PATH", f"{tmp_path / 'adb'}:{os.environ['PATH']}")
    (tmp_path / "device").mkdir()
    return tmp_path / "device"


def one_sentence(error: str) -> str:
    lines = error.strip().splitlines()
    (line,) = [line for line in lines if line and not line.startswith("note: ")]  # such as that this machine is busy
    assert line.startswith("edgesmith: ")
    return line


# addresses


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ("host", Address("host", "host")),
        ("mac", Address("mac", "mac")),
        ("mac:iphone15pro", Address("iphone", "iphone15pro")),
        ("ssh://board", Address("ssh", "board")),
        ("ssh://me@board.local:2222/", Address("ssh", "board.local", "me", 2222)),
        ("ssh://Alias", Address("ssh", "Alias")),
        ("ssh://board:", Address("ssh", "board")),
        ("ssh://me@board:0022", Address("ssh", "board", "me", 22)),
        ("ssh://me@[fe80::1%eth0]:22", Address("ssh", "fe80::1%eth0", "me", 22)),
        ("adb:R58M42ABCDE", Address("adb", "R58M42ABCDE")),
        ("adb:192.168.1.5:5555", Address("adb", "192.168.1.5:5555")),
    ],
)
def test_a_device_is_named_as_its_user_knows_it(device: str, expected: Address) -> None:
    assert parse(device) == expected


@pytest.mark.parametrize(
    "device",
    [
        "board",
        "macbook",
        "mac:",
        "ssh:board",
        "ssh://",
        "ssh://-oProxyCommand=x",
        "ssh://-l@board",
        "ssh://me:secret@board",
        "ssh://board;reboot",
        "ssh://$(reboot)@board",
        "ssh://board/path",
        "ssh://board:port",
        "ssh://board:99999",
        "adb:",
        "adb:-a",
        "adb:a b",
    ],
)
def test_what_is_no_device_is_refused(device: str) -> None:
    wanted = r"must be host, mac, mac:IPHONE, ssh://\[user@\]host\[:port\] or adb:SERIAL, got"
    with pytest.raises(BadInput, match=wanted):
        parse(device)


def test_options_of_another_kind_of_device_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="--python and --remote-tmp are for devices that are not this machine"):
        parse("host", python="python3.9")
    with pytest.raises(BadInput, match="--ssh-config and --ssh-option are for --device ssh"):
        parse("adb:X", options=["Port=3"])
    with pytest.raises(BadInput, match="KEY=VALUE"):
        parse("ssh://board", options=["-v"])
    for option in ({"python": "venv/bin/python"}, {"folder": "scratch"}):
        with pytest.raises(BadInput, match="a path there that begins with / or ~/"):
            parse("ssh://board", **option)
    with pytest.raises(BadInput, match="no file"):
        parse("ssh://board", config=tmp_path / "none")


def test_the_login_shell_is_asked_for_nothing_that_shells_read_differently() -> None:
    outside, inside, rest = remote.SHELL.split("'")
    assert (outside, rest) == ("exec sh -c ", "")
    assert not set(inside) & set("'\\!\n")  # special between single quotes in fish or csh


# every transport


@pytest.fixture(params=["host", "ssh", "adb"])
def device(request: pytest.FixtureRequest) -> Iterator[Transport]:
    if request.param == "host":
        with connect(measure.HERE) as where:
            yield where
        return
    if request.param == "ssh":
        noisy = 'ForceCommand echo noise; echo noise >&2; eval "$SSH_ORIGINAL_COMMAND"'
        board = request.getfixturevalue("boards")(f'exec {sys.executable} "$@"', noisy)
        address, left = board.address, board.left
    else:
        folder = request.getfixturevalue("adb")
        address = parse("adb:STANDIN", folder=str(folder), python=sys.executable)
        left = lambda: sorted(folder.iterdir())  # noqa: E731
    with connect(address) as where:
        assert left()
        yield where
    assert not left()


def test_files_go_there_and_back_and_commands_run(device: Transport, tmp_path: Path) -> None:
    content = bytes(range(256)) * 300 + b"no newline at the end"
    (tmp_path / "it's a file").write_bytes(content)
    there = device.put(tmp_path / "it's a file", "deep/it's there")
    device.get(there, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == content

    heard: list[str] = []
    code = (
        "import sys; print(len(open(sys.argv[1], 'rb').read())); print(sys.stdin.read()); print('!', file=sys.stderr)"
    )
    lines = device.run([*device.python, "-c", code, there], "it's $HOME\nand `more`", heard.append)
    assert list(lines) == [str(len(content)), "it's $HOME", "and `more`"]
    assert heard == ["!"]

    with pytest.raises(CommandFailed) as caught:
        list(device.run([*device.python, "-c", "import sys; sys.exit('a reason')"]))
    assert (caught.value.code, caught.value.last_line) == (1, "a reason")


def test_lines_come_as_they_are_written(device: Transport) -> None:
    code = "import sys\nprint(1, flush=True)\nsys.stdin.read()\nwhile True: print(2, flush=True)"
    lines = device.run([*device.python, "-c", code])
    assert [next(lines), next(lines)] == ["1", "2"]  # and what never ends, ends with the fixture
    lines.close()  # type: ignore[attr-defined]


# bench over SSH


@pytest.mark.parametrize("delay_s", [0.0, 0.02])
def test_bench_over_ssh_writes_the_same_record_and_times_no_connection(
    delay_s: float, board: Board, small_onnx: Path, here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    relay = f"{sys.executable} {HERE / 'relay.py'} {board.port} {tmp_path / 'counts'} --delay-s {delay_s}"
    options = ["--ssh-option", f"ProxyCommand={relay}"] if delay_s else []
    record = tmp_path / "record.json"
    assert cli.run(["bench", str(small_onnx), *board.options, *options, *QUICK, "--out", str(record), "--json"]) == 0
    assert not board.left()
    assert not list(here.iterdir())
    made = measurement.read(record)
    assert made.complete
    assert made.device.name == "127.0.0.1"
    assert made.device == measurement.Device("127.0.0.1", **machine())
    assert made.runtimes.keys() == {"onnxruntime"}
    (subject,) = made.subjects
    assert subject.sha256 == hashlib.sha256(next(small_onnx.glob("*.onnx")).read_bytes()).hexdigest()
    assert subject.cold is not None
    (samples,) = made.samples(0)
    assert samples
    if delay_s:
        assert statistics.median(samples) < 1e3 * delay_s  # each answer took at least so long
        assert len(list((tmp_path / "counts").iterdir())) == 1  # one connection


@pytest.fixture
def small_coreml(export_small: Callable[..., Artifact]) -> Path:
    return export_small("coreml").path


def test_a_mac_over_ssh_is_given_whole_packages_and_times_them(
    boards: Boards, small_coreml: Path, here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """tests/standins/mac has coremltools find a Core ML there, which is none: no Mac was ever asked."""
    if sys.platform == "darwin":
        pytest.skip("this is a Mac, whose own Core ML stands where the stand-in would")
    mac = boards(f'PYTHONPATH={HERE / "standins" / "mac"} exec {sys.executable} "$@"')
    options = [*mac.options, *QUICK, "--compute-units", "cpu_and_ne", "--out", str(tmp_path / "record.json")]
    assert cli.run(["bench", str(small_coreml), *options]) == 0, capsys.readouterr().err
    assert not mac.left()
    assert not list(here.iterdir())
    made = measurement.read(tmp_path / "record.json")
    assert (made.device.name, made.runtimes.keys()) == ("127.0.0.1", {"coremltools"})
    assert made.subjects[0].compute_units == "CPU_AND_NE"
    assert made.samples(0)[0]


def test_a_board_without_core_ml_says_so(board: Board, small_coreml: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if sys.platform == "darwin":
        pytest.skip("this is a Mac")
    assert cli.run(["bench", str(small_coreml), *board.options, *QUICK]) == 4
    said = one_sentence(capsys.readouterr().err)
    assert said == "edgesmith: coremltools cannot work on 127.0.0.1: Core ML is part of macOS, not of Linux"
    assert not board.left()


def test_a_core_that_is_not_there_is_refused_before_anything_is_timed(board: Board, small_onnx: Path) -> None:
    with pytest.raises(BadInput, match="no core 4096"):
        measure.measure([small_onnx], measure.Settings(cores=[4096]), board.address)
    assert not board.left()


def test_after_a_cut_nothing_connects_by_itself(board: Board) -> None:
    with connect(board.address) as where:
        assert isinstance(where, remote.Remote)
        assert where._keeper is not None
        board.cut()
        where._keeper.wait()  # until then there is a socket, which answers no more
        with pytest.raises(CutOff):
            list(where.run(["true"]))
    until(lambda: not board.left())


def failing(kind: str, boards: Boards, keys: Keys) -> tuple[Board, list[str]]:
    """A board at which one thing is wrong, and further options."""
    pythons = {
        "no python": None,
        "old python": "echo 3.6",
        "broken python": "echo no libpython >&2; exit 1",
        "no onnxruntime": f'exec {sys.executable} -S "$@"',
    }
    board = boards(pythons[kind]) if kind in pythons else boards()
    known = board.config.with_name("known_hosts")
    if kind == "unknown key":
        known.write_text("")
    if kind == "unknown key, config accepts":
        known.write_text("")
        return board, ["--ssh-option", "StrictHostKeyChecking=no"]
    if kind == "changed key":
        known.write_text(f"[127.0.0.1]:{board.port} {keys.other_host.with_suffix('.pub').read_text()}")
    if kind == "refused":
        board.config.write_text(board.config.read_text().replace(str(keys.user), str(keys.stranger)))
    if kind == "unreachable":
        board.process.terminate()
        board.process.wait()
    if kind == "no folder":
        return board, ["--remote-tmp", "/nowhere/at/all"]
    if kind == "no such command":
        return board, ["--python", "~/venv/bin/python"]
    return board, []


@pytest.mark.parametrize(
    ("kind", "code", "said"),
    [
        (
            "unknown key",
            7,
            "the host key of 127.0.0.1 is not known, and none is accepted unseen: log in once with `ssh",
        ),
        ("unknown key, config accepts", 7, "the host key of 127.0.0.1 is not known"),
        ("changed key", 7, "another host key than the known one"),
        ("refused", 7, "127.0.0.1 refuses the login"),
        ("unreachable", 7, "127.0.0.1 cannot be reached over SSH: connect to host 127.0.0.1 port"),
        ("no folder", 5, "no folder can be made on 127.0.0.1"),
        (
            "no python",
            4,
            "there is no python3 on 127.0.0.1: install Python 3.8 or later there, or name it with --python",
        ),
        ("no such command", 4, "there is no ~/venv/bin/python on 127.0.0.1"),
        ("old python", 4, "python3 on 127.0.0.1 is Python 3.6, and 3.8 or later is needed"),
        ("broken python", 4, "python3 on 127.0.0.1 does not start (no libpython)"),
        ("no onnxruntime", 4, "python3 on 127.0.0.1 cannot import onnxruntime (No module named 'numpy')"),
    ],
)
def test_what_stands_in_the_way_is_one_sentence_and_leaves_nothing(
    kind: str,
    code: int,
    said: str,
    boards: Boards,
    keys: Keys,
    small_onnx: Path,
    here: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    board, options = failing(kind, boards, keys)
    known = board.config.with_name("known_hosts").read_bytes()
    record = tmp_path / "record.json"
    assert cli.run(["bench", str(small_onnx), *board.options, *options, *QUICK, "--out", str(record)]) == code
    assert said in one_sentence(capfd.readouterr().err)
    assert not record.exists()
    assert not board.left()
    assert not list(here.iterdir())
    assert board.config.with_name("known_hosts").read_bytes() == known


@pytest.mark.parametrize("kib", [0, 8, 60])
def test_a_full_disk_is_one_sentence_and_leaves_nothing(
    kib: int, board: Board, small_onnx: Path, here: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    full = tmp_path / "full"
    full.mkdir()
    mounted = subprocess.run(
        [tool("mount"), "-t", "tmpfs", "-o", f"size={max(kib, 4)}k,nr_inodes={1 if kib == 0 else 100}", "tmpfs", full],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode != 0:
        pytest.skip(f"no file system of {kib} KiB can be mounted here: {mounted.stderr.strip()}")
    try:
        big = shutil.copytree(small_onnx, tmp_path / "big")
        (file,) = big.glob("*.onnx")
        file.write_bytes(file.read_bytes() + bytes(100_000))
        record = tmp_path / "record.json"
        arguments = ["bench", str(big), *board.options, "--remote-tmp", str(full), *QUICK, "--out", str(record)]
        assert cli.run(arguments) == OutputError.exit_code
        said = one_sentence(capfd.readouterr().err)
        which = {
            0: "no folder can be made on 127.0.0.1",
            8: "has no room for runner.py",
            60: f"has no room for {file.name}",
        }
        assert which[kib] in said
        assert "No space left on device" in said
        assert not list(full.iterdir())
        assert not list(here.iterdir())
        assert not record.exists()
    finally:
        subprocess.run([tool("umount"), full], check=True)


def bench(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-P", "-m", "edgesmith", "bench", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def is_running(folder: str) -> bool:
    """Whether a runner in the folder is timing."""
    listed = subprocess.run(["ps", "-A", "-ww", "-o", "args="], capture_output=True, text=True, check=True).stdout
    return any(
        folder in line and "runner.py" in line and "edgesmith-begin-" not in line for line in listed.splitlines()
    )


def running_below(folder: Path) -> list[str]:
    """The processes whose working directory is, or was, in a folder; other tests start the same commands elsewhere."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (process / "cwd").readlink().as_posix().startswith(f"{folder}/"):
                found.append((process / "cmdline").read_text().replace("\0", " "))
    return found


@pytest.mark.parametrize("how", ["cut", "cut in the first launch", "Ctrl-C", "killed"])
def test_a_bench_that_ends_early_keeps_whole_launches_and_leaves_nothing(
    how: str, board: Board, small_onnx: Path, here: Path, tmp_path: Path
) -> None:
    record = tmp_path / "record.json"
    launches = 1 if how == "cut in the first launch" else 300
    spent = ["--seconds", str(2 * launches), "--launches", str(launches)]
    if launches == 1:
        spent[1] = "36000"
    process = bench(str(small_onnx), *board.options, *spent, "--out", str(record))
    until(record.exists if launches > 1 else lambda: is_running(str(board.tmp)), process)
    if how.startswith("cut"):
        board.cut()
        _, err = process.communicate()
        assert process.returncode == DeviceFailed.exit_code
        assert "the connection to 127.0.0.1 was cut" in one_sentence(err)
    else:
        process.send_signal(signal.SIGINT if how == "Ctrl-C" else signal.SIGKILL)
        _, err = process.communicate()
    if how == "Ctrl-C":
        assert process.returncode == 130
        assert not board.left()
    until(lambda: not board.left())  # the keeper there may need a moment
    until(lambda: not is_running(str(board.tmp)))
    if how != "killed":
        assert not list(here.iterdir())
    if how == "cut in the first launch":
        assert not record.exists()
        return
    kept = measurement.read(record)
    assert not kept.complete
    assert 1 <= len(kept.launches) < 300
    if how == "cut":
        assert f"while measuring; {len(kept.launches)} of 300 launches are in {record}" in err


# copies


def relayed(board: Board, counts: Path, *limits: str) -> Address:
    command = f"{sys.executable} {HERE / 'relay.py'} {board.port} {counts} {' '.join(limits)}"
    return parse(board.url, config=board.config, options=[f"ProxyCommand={command}"])


@pytest.mark.parametrize("direction", ["there", "back"])
def test_a_copy_that_is_cut_goes_on_where_it_was(direction: str, board: Board, here: Path, tmp_path: Path) -> None:
    size, limit = 3_000_000, 2_000_000
    content = os.urandom(size)
    (tmp_path / "big").write_bytes(content)
    with connect(relayed(board, tmp_path / "counts", "--limit" + "-back" * (direction == "back"), str(limit))) as where:
        folders = board.left()
        where.put(tmp_path / "big", "big")
        where.get("big", tmp_path / "again")
        assert board.left() == folders
        (there,) = board.tmp.glob("*/big")
        assert there.read_bytes() == content
        assert (tmp_path / "again").read_bytes() == content
    first, second = (list(map(int, path.read_text().split())) for path in sorted((tmp_path / "counts").iterdir()))
    which = 1 if direction == "back" else 0
    assert first[which] > limit
    assert second[which] < size  # not all of it once more
    assert not board.left()
    assert not list(here.iterdir())


def test_a_copy_whose_board_does_not_come_back_is_a_sentence_and_is_removed_there(
    board: Board, here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "KEPT_S", 1)
    monkeypatch.setattr(remote, "PAUSES_S", (0, 0))
    (tmp_path / "big").write_bytes(os.urandom(3_000_000))

    def attempt() -> None:
        with connect(relayed(board, tmp_path / "counts", "--limit 2000000")) as where:
            board.process.terminate()
            board.process.wait()
            where.put(tmp_path / "big", "big")

    with pytest.raises(CutOff, match=r"^the connection to 127\.0\.0\.1 was cut"):
        attempt()
    until(lambda: not board.left())
    assert not list(here.iterdir())


def test_folders_whose_keeper_was_killed_are_removed_by_the_next_and_others_stay(board: Board) -> None:
    ended = subprocess.run(["sh", "-c", "echo $$"], capture_output=True, text=True, check=True).stdout
    for name, keeper in (("edgesmith.dead", ended), ("edgesmith.alive", str(os.getpid())), ("edgesmith.no", None)):
        (board.tmp / name).mkdir()
        if keeper is not None:
            (board.tmp / name / "keeper").write_text(keeper)
    with connect(board.address):
        pass
    assert board.left() == ["edgesmith.alive", "edgesmith.no"]


@pytest.mark.parametrize(("written", "expected"), [("one\nhal", ["one"]), ("one\nhalEND", ["one", "hal"])])
def test_half_a_line_of_what_was_cut_off_is_none(
    written: str, expected: list[str], board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a connection that dies, stderr with the exit code may arrive, and stdout not to its end."""
    monkeypatch.setattr(remote, "CUT_S", 0.1)
    with connect(board.address) as where:
        assert isinstance(where, remote.Remote)
        said = (
            f"printf '{where.begin}\n{written.replace('END', where.end)}'; printf '{where.begin}\n{where.end} 0\n' >&2"
        )
        monkeypatch.setattr(where, "_channel", lambda: ["sh", "-c", said])
        lines = where.run(["true"])
        assert [next(lines) for _ in expected] == expected
        if "END" in written:
            assert list(lines) == []
        else:
            with pytest.raises(DeviceFailed, match="ended from outside"):
                next(lines)
        monkeypatch.undo()


# adb


def test_bench_by_adb_writes_the_same_record(
    adb: Path, small_onnx: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    record = tmp_path / "record.json"
    options = ["--device", "adb:STANDIN", "--remote-tmp", str(adb), "--python", sys.executable, "--out", str(record)]
    assert cli.run(["bench", str(small_onnx), *options, *QUICK]) == 0, capfd.readouterr().err
    made = measurement.read(record)
    assert made.complete
    assert made.device == measurement.Device("STANDIN", **machine())
    assert not list(adb.iterdir())


def test_adb_without_the_device_or_the_program_is_a_sentence(adb: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DeviceFailed, match=r"adb does not reach OTHER \(device 'OTHER' not found\): see `adb devices`"):
        connect(parse("adb:OTHER")).__enter__()
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(BackendMissing, match="which is not here"):
        connect(parse("adb:STANDIN")).__enter__()
    with pytest.raises(BackendMissing, match="there is no ssh here"):
        connect(parse("ssh://board")).__enter__()


def test_what_arrives_damaged_twice_is_refused(adb: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADB_STAND_IN_DAMAGES", "1")
    (tmp_path / "file").write_bytes(b"content")

    def attempt() -> None:
        with connect(parse("adb:STANDIN", folder=str(adb), python=sys.executable)) as where:
            where.put(tmp_path / "file", "file")

    with pytest.raises(DeviceFailed, match="file arrived on STANDIN with other bytes, twice"):
        attempt()
    assert not list(adb.iterdir())


# kits

BUILDS = """
import hashlib, json, os, pathlib, sys
out = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
here = pathlib.Path(__file__).parent
print("building", flush=True)
print("a warning", file=sys.stderr)
staging = out.with_name("staging")
staging.mkdir()
header = (b"ftrt".ljust(24, bytes(1)) + bytes((10, 3, 0, 26))).ljust(64, bytes(1))
(staging / "small.engine").write_bytes(header + (here / "small.onnx").read_bytes()[::-1])
(staging / "measurement.json").write_bytes((here / "measurement.json").read_bytes())
manifest = json.loads((here / "kit.json").read_text())["manifest"]
manifest |= {
    "file": "small.engine",
    "model": {"name": "small", "inputs": [], "outputs": ["y"]},
    "weights": {"origin": "random (seed 0)", "sha256": "0" * 64, "file_sha256": None, "notes": []},
    "target": {
        "name": "tensorrt",
        "options": dict.fromkeys(("batch", "labels", "deployment_target", "device"), None) | {"image_input": False},
    },
    "versions": {},
    "verification": {"inputs": {"count": 1}, "judged_as": "fp16", "thresholds": {}, "steps": []},
    "files": [
        {"path": path.name, "bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for path in sorted(staging.iterdir())
    ],
}
(staging / "manifest.json").write_text(json.dumps(manifest))
SPOIL = None
os.rename(staging, out)
"""
"""A kit's build.py: what it makes has an engine's header alone. SPOIL is where a hostile board changes it."""

REFUSES = "import sys; print('a trace\\nTensorRT is not installed on this board', file=sys.stderr); sys.exit(2)"
CRASHES = "raise RuntimeError('no memory')"
LACKS = "import os, sys; os.mkdir(sys.argv[-1]); open(os.path.join(sys.argv[-1], 'manifest.json'), 'w').write('{}')"


def origin() -> Origin:
    """What a kit repeats of its artifact's manifest."""
    whole = smallest_manifest(precision="fp16")
    whole["model"]["name"], whole["target"]["name"] = "small", "tensorrt"
    whole["verification"] = {"inputs": whole["verification"]["inputs"], "judged_as": "fp16"}
    return cast(Origin, {key: whole[key] for key in Origin.__annotations__ if key in whole})


def record(digests: dict[str, str]) -> Kit:
    """The record of a small kit."""
    return {
        "schema": 1,
        "model": "small",
        "device": "jetson-orin-nano",
        "precision": "fp16",
        "onnx": "small.onnx",
        "inputs": ["x"],
        "outputs": ["y"],
        "board": {
            "title": "Orin",
            "compute_capability": "8.7",
            "tensorrt": "10.3",
            "jetpack": "6.2",
            "dla_cores": 0,
        },
        "thresholds": {"relative_error": 0.02, "snr_db": 40.0},
        "spikes": False,
        "flags": {"strongly_typed": True, "tf32": False, "optimization_level": 3},
        "operators": {"Conv": "8.6"},
        "manifest": origin(),
        "files": digests,
    }


@pytest.fixture
def kit(tmp_path: Path) -> Callable[[str], Path]:
    """A small kit with a build.py."""
    launch = measurement.Launch((measurement.WarmUp(1, 1.0, True),), (measurement.Slot(0, 0, 0.0, (1.0, 1.1)),))
    subject = measurement.Subject("small", "small", "tensorrt", "fp16", "tensorrt", f"{0:064x}", 1)
    board = measurement.Device("jetson", "Linux", "Orin", "abc")
    made = measurement.Measurement(
        "0", "2026-01-01T00:00:00+00:00", board, {}, 1, None, 1.0, 30.0, 0, (subject,), (launch,), True
    )

    def make(build: str) -> Path:
        folder = tmp_path / "small-kit"
        folder.mkdir()
        (folder / "small.onnx").write_bytes(b"a typed program")
        (folder / "build.py").write_text(build)
        measurement.write(made, folder / "measurement.json")
        digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
        write_record(record(digests), folder)
        (folder / "notes of mine").write_text("not of the kit")
        return folder

    return make


def test_a_board_builds_a_kit_and_the_result_comes_back(
    board: Board, kit: Callable[[str], Path], here: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ["build-on", board.url, str(kit(BUILDS)), "--out", str(out), "--ssh-config", str(board.config)]
    assert cli.run([*arguments, "--json"]) == 0
    shown = capfd.readouterr()
    (built,) = out.iterdir()
    assert json.loads(shown.out)["result"] == str(built)
    assert json.loads(shown.out)["subjects"][0]["p50_ms"]["value"] == pytest.approx(1.05)
    assert sorted(path.name for path in built.iterdir()) == ["manifest.json", "measurement.json", "small.engine"]
    assert (built / "small.engine").read_bytes().endswith(b"margorp depyt a")
    for line in ("copying small.onnx, 0.00 MB", "building", "a warning", "bringing small.engine"):
        assert line in shown.err.splitlines()
    assert "notes of mine" not in shown.err
    assert not board.left()
    assert not list(here.iterdir())
    (built / "notes of mine").write_text("not of the result")
    assert cli.run(arguments) == OutputError.exit_code  # what is somebody's own is not replaced
    assert f"{built} is in the way" in capfd.readouterr().err


def test_a_kit_of_ours_is_built_over_ssh_with_a_stand_in_for_tensorrt(
    boards: Boards, export_small: Callable[..., Artifact], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """tests/standins has TensorRT's interface and ONNX Runtime's numbers; without it the board has no TensorRT."""
    kit = export_small("tensorrt", device="jetson-orin-nano", precision="fp16").path
    out = tmp_path / "out"

    def build_on_board(board: Board) -> int:
        arguments = ["build-on", board.url, str(kit), "--out", str(out), "--ssh-config", str(board.config)]
        return cli.run([*arguments, "--", "--launches", "1", "--seconds", "0.1"])

    without = boards()
    assert build_on_board(without) == Unsupported.exit_code
    said = one_sentence(capfd.readouterr().err.splitlines()[-1])
    assert "127.0.0.1 does not build the kit: " in said
    assert "TensorRT" in said
    assert not out.exists()
    assert not without.left()

    board = boards(f'PYTHONPATH={HERE / "standins"} exec {sys.executable} "$@"')
    assert build_on_board(board) == 0, capfd.readouterr().err
    (built,) = out.iterdir()
    manifest = json.loads((built / "manifest.json").read_text())
    assert {path.name for path in built.iterdir()} == {
        "casvit.engine",
        "layers.json",
        "manifest.json",
        "measurement.json",
    }
    assert manifest["kit"]["onnx"] == build_on.read_whole_kit(kit)["files"]["casvit.onnx"]
    assert len(measurement.read(built / "measurement.json").launches) == 1
    assert not board.left()

    record = tmp_path / "record.json"
    assert cli.run(["bench", str(built), *board.options, *QUICK, "--ops", "--out", str(record)]) == 0, (
        capfd.readouterr().err
    )
    made = measurement.read(record)
    assert (made.device.name, made.subjects[0].runtime) == ("127.0.0.1", "tensorrt")
    assert made.subjects[0].sha256 == measurement.read(built / "measurement.json").subjects[0].sha256
    assert made.subjects[0].profile is not None
    assert cli.run(["bench", str(built), *without.options, *QUICK, "--out", str(record)]) == BackendMissing.exit_code
    assert "on 127.0.0.1 cannot import tensorrt (No module named 'tensorrt')" in capfd.readouterr().err
    assert not board.left()
    assert not without.left()


SPOILT = {
    '(staging / "shadow").symlink_to("/etc/hostname")': "shadow was added",
    '(staging / "manifest.json").write_text("{")': "is damaged or no manifest",
    '(staging / "manifest.json").write_text("[" * 100000)': "nested too deeply",
    '(staging / "measurement.json").write_text("{}")': "names no schema",
    '(staging / "small.engine").write_bytes(b"x" * 99)': "is no engine",
    '(staging / "more").write_bytes(b"x")': "more was added",
    '(staging / "manifest.json").write_text(json.dumps({**manifest, "file": "../../x"}))': "is no path of a file",
    '(staging / "manifest.json").write_text(json.dumps({**manifest, "precision": "fp32"}))': "and the kit is small",
    '(staging / "a\x1b[2J").write_bytes(b"x")': "holds",
}


@pytest.mark.parametrize(("spoil", "said"), SPOILT.items())
def test_what_a_hostile_board_sends_is_read_before_it_is_published(
    spoil: str, said: str, board: Board, kit: Callable[[str], Path], tmp_path: Path
) -> None:
    with pytest.raises(DeviceFailed, match=said):
        build_on.build_on(board.address, kit(BUILDS.replace("SPOIL = None", spoil)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("build", "kind", "said"),
    [
        (REFUSES, Unsupported, "127.0.0.1 does not build the kit: TensorRT is not installed on this board"),
        (CRASHES, DeviceFailed, "build.py stopped on 127.0.0.1 with 1: RuntimeError: no memory"),
        (LACKS, DeviceFailed, "what build.py made on 127.0.0.1 has no measurement.json"),
    ],
)
def test_a_kit_that_is_not_built_is_one_sentence_and_leaves_nothing(
    build: str, kind: type[EdgesmithError], said: str, board: Board, kit: Callable[[str], Path], tmp_path: Path
) -> None:
    with pytest.raises(kind) as caught:
        build_on.build_on(board.address, kit(build), tmp_path / "out")
    assert str(caught.value).startswith(said)
    assert not (tmp_path / "out").exists()
    assert not board.left()


def test_a_board_that_is_cut_off_while_it_builds_stops_building(
    board: Board, kit: Callable[[str], Path], tmp_path: Path
) -> None:
    forever = "import time\nprint('building', flush=True)\nwhile True: time.sleep(0.1)"

    seen: list[str] = []

    def told(line: str) -> None:
        if line == "building":
            seen.extend(running_below(board.tmp))
            board.cut()

    with pytest.raises(CutOff, match="was cut"):
        build_on.build_on(board.address, kit(forever), tmp_path / "out", told)
    until(lambda: not board.left())
    assert seen
    assert running_below(board.tmp) == []
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("none", "no kit at"),
        ("damaged", "is damaged"),
        ("future", "has schema 2, and this edgesmith reads 1"),
        ("no digests", "at the top, 'files' is a required property"),
        ("outside", "lists '../small.onnx', which is no path in the kit"),
        ("altered", "small.onnx was altered since the kit was written"),
        ("missing", "small.onnx is not there"),
        ("no script", "has no build.py"),
    ],
)
def test_a_kit_that_is_not_whole_is_refused_before_anything_is_copied(
    how: str, said: str, kit: Callable[[str], Path]
) -> None:
    folder = kit(BUILDS)
    described = folder / "kit.json"
    facts = json.loads(described.read_text())
    if how == "future":
        facts["schema"] = 2
    elif how == "no digests":
        del facts["files"]
    elif how == "outside":
        facts["files"]["../small.onnx"] = facts["files"]["small.onnx"]
    elif how == "no script":
        del facts["files"]["build.py"]
        (folder / "build.py").unlink()
    described.write_text(json.dumps(facts)[: 9 if how == "damaged" else None])
    if how == "none":
        described.unlink()
    elif how == "altered":
        (folder / "small.onnx").write_bytes(b"another")
    elif how == "missing":
        (folder / "small.onnx").unlink()
    with pytest.raises(BadInput) as caught:
        build_on.read_whole_kit(folder)
    assert said in str(caught.value)


def test_build_on_is_for_another_device(kit: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["build-on", "host", str(kit(BUILDS))]) == BadInput.exit_code
    assert "on this machine run python3" in capsys.readouterr().err
