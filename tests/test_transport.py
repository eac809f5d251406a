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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

import edgesmith
from edgesmith import cli
from edgesmith.bench import build_on, measure, measurement, runner, transport
from edgesmith.bench.transport import Address, CommandFailed, CutOff, Transport, connect, parse, remote
from edgesmith.errors import BackendMissing, BadInput, DeviceFailed, EdgesmithError, OutputError, Unsupported

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


def test_try(board: Board, tmp_path: Path) -> None:
    with connect(board.address) as where:
        assert board.left()
        print(where.folder, list(where.run(["env"])))
        (tmp_path / "f").write_bytes(b"abc" * 1000)
        t = time.time()
        print(where.put(tmp_path / "f", "a/b.bin"), time.time() - t)
        where.get("a/b.bin", tmp_path / "g")
        assert (tmp_path / "g").read_bytes() == b"abc" * 1000
    assert not board.left()
