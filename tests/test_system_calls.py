"""System calls of the commands: no socket, and nothing written but where the user said, or in the temporary folder.

`.ci/run` installs strace. One process runs every command (fixtures/exercise.py); opening a file that is not there says
where one ends and the next begins.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from edgesmith.exporters import targets

pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="there is no strace, which Linux has")

EXERCISE = Path(__file__).parent / "fixtures" / "exercise.py"
CALLS = "network,openat,open,creat,mkdir,mkdirat,rename,renameat,renameat2,link,linkat,symlink,symlinkat,truncate"
NETWORK = re.compile(r"\b(socket|connect|sendto|sendmsg|bind)\((?!AF_UNIX|PF_UNIX)(?:\d+, \{sa_family=)?(AF_\w+)?")
WRITES = re.compile(r"O_WRONLY|O_RDWR|O_CREAT|O_TRUNC|O_APPEND")
PATHS = re.compile(r'"((?:[^"\\]|\\.)*)"')
DEVICES = ("/dev/null", "/dev/tty", "/dev/shm/", "/proc/self/")
"""What a process may write to that keeps nothing: shared memory goes with it."""


OF_FOLDERS = ("XDG_CACHE_HOME", "XDG_CONFIG_HOME")
QUIETENS = (
    *("ORT_DISABLE_TELEMETRY", "DO_NOT_TRACK"),
    *("CI", "GITHUB_ACTIONS", "TF_BUILD", "TRAVIS", "JENKINS_URL", "CODEBUILD_BUILD_ID"),
)
"""Variables that turn telemetry off: ONNX Runtime sends none from a build server. A user's machine has none of them."""


def lines_by_phase(trace: str, marks: Path) -> dict[str, list[str]]:
    """Return the lines of a trace by the phase that they belong to."""
    phases: dict[str, list[str]] = {"start": []}
    now = "start"
    for line in trace.splitlines():
        if begun := re.search(re.escape(str(marks)) + r'/([\w-]+)"', line):
            now = begun[1]
        phases.setdefault(now, []).append(line)
    return phases


def violations(lines: list[str], allowed: tuple[Path, ...]) -> list[str]:
    """Return the calls that open a socket of the network, or write outside the folders that are allowed."""
    found = []
    for line in lines:
        if " = -1 " in line or " resumed>" in line:
            continue
        if (call := NETWORK.search(line)) and call[2] in ("AF_INET", "AF_INET6", "AF_NETLINK"):
            found.append(line)
        is_open = re.search(r"\b(openat|open)\(", line)
        if is_open and not WRITES.search(line):
            continue
        if is_open or re.search(r"\b(creat|mkdir|mkdirat|rename|renameat2?|link|linkat|symlinkat?|truncate)\(", line):
            paths = [Path(path) for path in PATHS.findall(line)]
            inside = all(path.is_relative_to(folder) for path in paths[:1] for folder in allowed[:1]) or any(
                all(path.is_relative_to(folder) or not path.is_absolute() for path in paths) for folder in allowed
            )
            if not inside and not any(str(path).startswith(DEVICES) for path in paths):
                found.append(line)
    return found


def trace(command: list[str], folder: Path, environment: Mapping[str, str]) -> str:
    """Run a command under strace and return what it traced. HOME and TMPDIR are folders of its own."""
    for name in ("home", "tmp"):
        (folder / name).mkdir()
    where = {"HOME": str(folder / "home"), "TMPDIR": str(folder / "tmp"), "PYTHONDONTWRITEBYTECODE": "1"}
    kept = {name: value for name, value in os.environ.items() if name not in (*OF_FOLDERS, *QUIETENS)}
    log = folder / "trace"
    done = subprocess.run(
        ["strace", "-f", "--seccomp-bpf", "-qq", "-e", f"trace={CALLS}", "-e", "signal=none", "-o", str(log), *command],
        env={**kept, **where, **environment},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=500,
    )
    if "ptrace" in done.stderr and done.returncode != 0:
        pytest.skip(f"this machine lets nothing be traced: {done.stderr.splitlines()[0]}")
    assert done.returncode == 0, done.stderr[-3000:]
    return log.read_text(errors="replace")


WANTED = tuple(name for name in ("onnx", "coreml", "coreai", "tensorrt", "tvm") if name in targets.all_targets())


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, list[str]], Path]:
    folder = tmp_path_factory.mktemp("traced")
    there = [name for name in WANTED if not targets.get(name).missing_packages()]
    text = trace([sys.executable, "-P", str(EXERCISE), str(folder / "marks"), str(folder / "out"), *there], folder, {})
    return lines_by_phase(text, folder / "marks"), folder


EXPORTS = tuple(f"export-{name}" for name in WANTED)
PHASES = (
    "import",
    *EXPORTS,
    "verify",
    "lint",
    "inspect",
    "bench",
    "profile",
    "history",
    "use",
    "estimate",
    "compare",
    "report",
)


@pytest.mark.parametrize("phase", PHASES)
def test_no_socket_is_opened_and_nothing_is_written_elsewhere(
    phase: str, traced: tuple[dict[str, list[str]], Path]
) -> None:
    phases, folder = traced
    if phase not in phases:
        pytest.skip(f"{phase} needs packages that are not installed")
    assert not violations(phases[phase], (folder / "out", folder / "tmp"))


def test_nothing_is_left_in_the_home_or_temporary_folder(traced: tuple[dict[str, list[str]], Path]) -> None:
    folder = traced[1]
    assert "end" in traced[0]
    assert not list((folder / "home").iterdir())
    assert not [path.name for path in (folder / "tmp").iterdir() if path.name.startswith("edgesmith")]


PLANTED = {
    "telemetry": "import onnxruntime",
    "a look-up": "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM)",
    "a file in the home": "import pathlib; (pathlib.Path.home() / 'id').write_text('x')",
    "a folder in the home": "import pathlib; (pathlib.Path.home() / 'cache').mkdir()",
    "a compiler's file beside it": "import subprocess; subprocess.run(['sh', '-c', 'echo 1 > ~/a.o'], check=True)",
    "a file that is moved out": "import os; open('out', 'w').close(); os.rename('out', os.path.expanduser('~/x'))",
}


@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_fault_is_found(fault: str, tmp_path: Path) -> None:
    """ONNX Runtime by itself is the fault that was found; the others are the simplest of their kinds."""
    lines = trace([sys.executable, "-c", PLANTED[fault]], tmp_path, {}).splitlines()
    assert violations(lines, (tmp_path / "out", tmp_path / "tmp"))
