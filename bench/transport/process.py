"""Processes on this machine whose two outputs are read as they come, and which do not outlive their block."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from threading import Event, Thread, Timer

MOST_LINES = 10_000
LONGEST_LINE = 65_536
"""Of a process's stderr: what is kept of it, however much it writes."""


@contextmanager
def started(command: Sequence[str], **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process with pipes, `environment` on top of ours; what has not ended with the block is killed.

    Where the system can, it kills the process when ours is killed: a client of a connection would outlive us by as long
    as the other side has something to say.
    """
    if shutil.which(command[0]) is not None:  # what is not there fails as it would by itself
        command = [*_ending_with_us(), *command]
    with subprocess.Popen(  # noqa: S603  # a list, no shell; callers name what they start
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **environment},
        start_new_session=True,  # Ctrl-C is for us: what was measured is kept, and what was copied removed
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                with suppress(ProcessLookupError, PermissionError):  # ended just now
                    os.killpg(process.pid, signal.SIGKILL)  # and what it has started, which may hold its pipes open


@contextmanager
def limited(process: subprocess.Popen[bytes], seconds: float) -> Iterator[Event]:
    """Kill a process that takes longer than that for what the block waits for. Yields what then is set."""
    late = Event()

    def end() -> None:
        late.set()
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)

    timer = Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield late
    finally:
        timer.cancel()


@cache
def _ending_with_us() -> tuple[str, ...]:
    """Return what stands before a command that is to be killed with us: setpriv, of util-linux from 2.33 on."""
    setpriv = shutil.which("setpriv") if sys.platform == "linux" else None
    if setpriv is None:
        return ()
    guard = (setpriv, "--pdeathsig", "KILL", "--")
    tried = subprocess.run([*guard, "true"], capture_output=True, check=False)  # noqa: S603  # the system's own
    return guard if tried.returncode == 0 else ()


def give(process: subprocess.Popen[bytes], text: bytes, close: bool = True) -> None:
    """Write to a process's stdin. One that has ended reads nothing; why it has, its exit code and stderr say."""
    assert process.stdin is not None
    try:
        process.stdin.write(text)
        process.stdin.flush()
        if close:
            process.stdin.close()
    except BrokenPipeError:
        with suppress(BrokenPipeError):
            process.stdin.close()  # else what is left in the buffer is tried once more at the end of the block
    except ValueError:  # closed before
        pass


class Errors(Thread):
    """Reads a process's stderr beside the program, so that the process never waits; the last lines are kept."""

    def __init__(self, process: subprocess.Popen[bytes], heard: Callable[[str], None] | None = None) -> None:
        super().__init__(daemon=True)
        assert process.stderr is not None
        self._pipe, self._heard = process.stderr, heard
        self._lines: deque[str] = deque(maxlen=MOST_LINES)
        self.start()

    def run(self) -> None:
        with suppress(ValueError):  # closed at the end of its block
            while raw := self._pipe.readline(LONGEST_LINE):
                line = raw.decode(errors="replace").rstrip("\r\n")
                self._lines.append(line)
                if self._heard is not None:
                    self._heard(line)

    def lines(self) -> list[str]:
        """The last MOST_LINES lines, once the pipe has ended."""
        self.join()
        return list(self._lines)
