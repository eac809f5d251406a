"""The ways in which the process of a command ends, and what it leaves.

    SIGINT     KeyboardInterrupt: every block on the way out cleans up; exit code 130
    SIGTERM    the same, with exit code 143
    SIGKILL    temporary files stay in one folder, which the next command removes

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
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from edgesmith.errors import INTERRUPTED, TERMINATED

PREFIX = "edgesmith-run-"

AGAIN_S = 0.02
"""How long an interrupt waits between two looks at what is imported."""

LONGEST_WAIT_S = 5.0
"""How long it waits at most: what is imported may be a file of the user's that never ends."""

_heard: list[int] = []
_IMPORTS = ("<frozen importlib._bootstrap>", "<frozen importlib._bootstrap_external>")
_IMPORT = dis.opmap["IMPORT_NAME"]


def hear_signals() -> None:
    """Let SIGINT and SIGTERM end the process by a KeyboardInterrupt, on whose way out all is removed.

    A signal that comes while compiled code of an import may be under way is sent again until it is not, for up to
    `LONGEST_WAIT_S` seconds.
    """
    since: dict[int, float] = {}

    def end(number: int, frame: FrameType | None) -> None:
        is_sent_again = number in since
        waited = time.monotonic() - since.setdefault(number, time.monotonic())
        if waited < LONGEST_WAIT_S and is_in_compiled_import(frame):
            if not is_sent_again:
                send_again(number, AGAIN_S, lambda: number in since)
            return
        del since[number]
        _heard.append(number)
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


def code_of_interrupt() -> int:
    """Return the exit code after a KeyboardInterrupt: 143 where SIGTERM was its reason, else 130."""
    return TERMINATED if signal.SIGTERM in _heard else INTERRUPTED


def ignore_interrupts() -> None:
    """Let no further signal disturb what is removed at the end."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def own_temporary_folder() -> Callable[[], None]:
    """Have temporary files of this process, and of those that it starts, lie in a folder of its own from now on.

    Folders that killed commands have left are removed first. Where no folder can be made, the system's is used.

    Returns:
        The function that removes it. It is called at Python's own end too, after what libraries do there.
    """
    parent, owner = Path(tempfile.gettempdir()), os.getpid()
    remove_leftovers(parent)
    try:
        handle, folder = _make(parent)
    except OSError:
        return lambda: None
    tempfile.tempdir = os.environ["TMPDIR"] = str(folder)

    def remove() -> None:
        if os.getpid() != owner:  # a fork of it, which ends earlier
            return
        shutil.rmtree(folder, ignore_errors=True)
        if handle is not None:
            with contextlib.suppress(OSError):
                os.close(handle)

    atexit.register(remove)
    return remove


def _make(parent: Path) -> tuple[int | None, Path]:
    """Make a folder and lock it while this process lives. It gets its name once it is locked, or nobody would know."""
    made = Path(tempfile.mkdtemp(prefix=f"new-{PREFIX}", dir=parent))
    handle = _lock(made)
    folder = made.rename(parent / made.name.removeprefix("new-"))
    return handle, folder


def _lock(folder: Path) -> int | None:
    """Lock a folder. Returns what holds the lock, None where there are no locks. Raises BlockingIOError."""
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise
    except OSError:  # a file system without locks
        os.close(handle)
        return None
    return handle


def remove_leftovers(parent: Path) -> None:
    """Remove folders of this user's commands that have ended without doing so."""
    for folder in parent.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # another command lives in it, or has just removed it
            if folder.is_symlink() or not folder.is_dir() or folder.stat().st_uid != os.getuid():
                continue
            handle = _lock(folder)
            if handle is not None:
                shutil.rmtree(folder, ignore_errors=True)
                os.close(handle)
