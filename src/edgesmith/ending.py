"""The ways in which the process of a command ends, and what it leaves.

    SIGINT     KeyboardInterrupt: every block on the way out cleans up; exit code 130
    SIGTERM    the same, with exit code 143
    SIGKILL    temporary files stay in one folder, which the next command removes

A signal waits where something and the note of it belong together, `held`. Once a command is done its process ends at
the first one, `done`; and while the last files are removed there is nothing left that one could end.

Libraries make temporary files where no block of ours sees them, and remove some only when Python ends by itself. So a
command has a folder of its own for all of them, in the system's.

Python runs a handler between two instructions, whichever they are. While a library is imported these may be of a
function that its compiled code calls, and not every compiled code lets an exception through: some abort the process.
So an interrupt waits until no compiled code of an import is under way.
"""

from __future__ import annotations

import _thread
import atexit
import contextlib
import dis
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Never

from edgesmith.errors import INTERRUPTED, INTERRUPTION, TERMINATED
from edgesmith.locks import lock

PREFIX = "edgesmith-run-"

AGAIN_S = 0.02
"""How long an interrupt waits between two looks at what is imported."""

LONGEST_WAIT_S = 5.0
"""How long it waits at most: what is imported may be a file of the user's that never ends."""

NAMED = 3
"""How many files the sentence of an interrupted command names."""


@dataclass
class _State:
    """State of this process on its way to its end."""

    heard: list[int] = field(default_factory=list)
    """Signals that have ended the command."""

    holds: int = 0
    late: list[int] = field(default_factory=list)
    """Signals that came while they were held."""

    written: list[Path] = field(default_factory=list)
    is_done: bool = False
    is_over: bool = False
    removals: list[Callable[[], None]] = field(default_factory=list)


_state = _State()
_IMPORTS = ("<frozen importlib._bootstrap>", "<frozen importlib._bootstrap_external>")
_IMPORT = dis.opmap["IMPORT_NAME"]


def hear_signals() -> None:
    """Let SIGINT and SIGTERM end the process by a KeyboardInterrupt, on whose way out all is removed.

    A signal that comes while compiled code of an import may be under way is sent again until it is not, for up to
    `LONGEST_WAIT_S` seconds; one that comes while they are `held`, once that is over.
    """
    since: dict[int, float] = {}

    def end(number: int, frame: FrameType | None) -> None:
        if _state.is_over:
            return
        if _state.holds:
            _state.late.append(number)
            return
        if _state.is_done:
            _state.heard.append(number)
            leave()
        is_sent_again = number in since
        waited = time.monotonic() - since.setdefault(number, time.monotonic())
        if waited < LONGEST_WAIT_S and is_in_compiled_import(frame):
            if not is_sent_again:
                send_again(number, AGAIN_S, lambda: number in since)
            return
        del since[number]
        _state.heard.append(number)
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as a shell's background job has it
            signal.signal(number, end)


def is_in_compiled_import(frame: FrameType | None) -> bool:
    """Return whether compiled code of an import may be among a thread's functions, of which `frame` is the innermost.

    They have none where each of them, from the outermost import on, has come to an `import` statement, or is Python's
    own machinery of it. A call may be one of a compiled function: that is not to be told from here.
    """
    calls = False  # among what is further inside
    inner = None
    while frame is not None:
        code = frame.f_code
        if code.co_filename in _IMPORTS:
            is_compiled = code.co_qualname.startswith("ExtensionFileLoader.")
            if calls or is_compiled or (inner is not None and not _is_begun_by_import(inner)):
                return True
        elif code.co_code[frame.f_lasti] != _IMPORT:
            calls = True
        inner, frame = frame, frame.f_back
    return False


def _is_begun_by_import(frame: FrameType) -> bool:
    """Return whether Python's import calls this function with none in between: more of itself, or a module's body."""
    return frame.f_code.co_filename in _IMPORTS or frame.f_code.co_name == "<module>"


def send_again(number: int, after_s: float, while_: Callable[[], bool] | None = None) -> None:
    """Send a signal to the main thread once more after `after_s` seconds, or again and again `while_` that holds.

    By the thread's name: it may be waiting in a system call, which only its own signal ends. The sending thread is
    one without `threading`'s locks, which the interrupted code may hold.
    """
    main = threading.main_thread().ident
    assert main is not None  # it runs

    def send() -> None:
        time.sleep(after_s)
        while while_ is None or while_():
            signal.pthread_kill(main, number)
            if while_ is None:
                return
            time.sleep(after_s)

    _thread.start_new_thread(send, ())


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Have SIGINT and SIGTERM wait until the block is over."""
    _state.holds += 1
    try:
        yield
    finally:
        _state.holds -= 1
        if _state.late and not _state.holds:
            number = signal.SIGTERM if signal.SIGTERM in _state.late else _state.late[-1]
            _state.late.clear()
            signal.raise_signal(number)


@contextlib.contextmanager
def put_in_place(path: Path) -> Iterator[None]:
    """Hold signals while a file or a folder is given its place, so that whether it is there can be told."""
    with held():
        yield
        _state.written.append(path)


def interruption() -> str:
    """Return the sentence of a command that is interrupted: what it has written by then."""
    there = [str(path) for path in dict.fromkeys(_state.written) if _is_there(path)]  # some lay in what was removed
    if not there:
        return INTERRUPTION
    *others, last = there if len(there) <= NAMED else [*there[: NAMED - 1], f"{len(there) - NAMED + 1} more"]
    return f"interrupted; {', '.join(others)}{' and ' if others else ''}{last} had been written"


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a folder above it may not be read any more
        return False


def done() -> None:
    """Let the next signal end the process at once: the command has ended, and only Python's own end is left."""
    _state.is_done = True


def leave(sentence: str = "") -> Never:
    """End the process with the exit code of an interrupt, and without Python's own end; temporary files are removed.

    An interrupt inside an extension module's import leaves a mark that makes Python's own exit a death by SIGINT.

    Args:
        sentence: written to stderr before.
    """
    _state.is_over = True
    try:
        for stream, last in ((sys.stdout, ""), (sys.stderr, f"{sentence}\n" if sentence else "")):
            # It may be closed, and a signal may come while it is flushed.
            with contextlib.suppress(OSError, RuntimeError, ValueError):
                stream.write(last)
                stream.flush()
        for remove in _state.removals:
            remove()
    finally:
        os._exit(TERMINATED if signal.SIGTERM in _state.heard else INTERRUPTED)


def own_temporary_folder() -> None:
    """Have temporary files of this process, and of those that it starts, lie in a folder of its own from now on.

    It is removed at Python's own end, after what libraries do there, and by `leave`. Folders that killed commands have
    left are removed first. Where no folder can be made, the system's is used.
    """
    owner = os.getpid()
    with held():  # Python writes a file there to find out whether it can
        parent = Path(tempfile.gettempdir())
    remove_leftovers(parent)

    def remove() -> None:
        if os.getpid() != owner:  # a fork of it, which ends earlier
            return
        _state.is_over = True
        shutil.rmtree(folder, ignore_errors=True)
        if handle is not None:
            with contextlib.suppress(OSError):
                os.close(handle)

    with held():
        try:
            handle, folder = _make(parent)
        except OSError:
            return
        tempfile.tempdir = os.environ["TMPDIR"] = str(folder)
        atexit.register(remove)
        _state.removals.append(remove)


def _make(parent: Path) -> tuple[int | None, Path]:
    """Make a folder and lock it while this process lives. It gets its name once it is locked, or nobody would know."""
    made = Path(tempfile.mkdtemp(prefix=f"new-{PREFIX}", dir=parent))
    handle = lock(made, wait=False)
    folder = made.rename(parent / made.name.removeprefix("new-"))
    return handle, folder


def remove_leftovers(parent: Path) -> None:
    """Remove folders of this user's commands that have ended without doing so."""
    for folder in parent.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # another command lives in it, or has just removed it
            if folder.is_symlink() or not folder.is_dir() or folder.stat().st_uid != os.getuid():
                continue
            handle = lock(folder, wait=False)
            if handle is not None:
                shutil.rmtree(folder, ignore_errors=True)
                os.close(handle)
