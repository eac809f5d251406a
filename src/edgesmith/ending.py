"""The ways in which the process of a command ends, and what it leaves.

    SIGINT     KeyboardInterrupt: every block on the way out cleans up; exit code 130
    SIGTERM    the same, with exit code 143
    SIGKILL    temporary files stay in one folder, which the next command removes

Libraries make temporary files where no block of ours sees them, and remove some only when Python ends by itself. So a
command has a folder of its own for all of them, in the system's.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from edgesmith.errors import INTERRUPTED, TERMINATED

PREFIX = "edgesmith-run-"

_heard: list[int] = []


def hear_sigterm() -> None:
    """Let SIGTERM end the process as SIGINT does: by a KeyboardInterrupt, on whose way out all is removed."""

    def end(number: int, frame: FrameType | None) -> None:
        _heard.append(number)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, end)


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
