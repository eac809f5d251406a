"""A command again, in a process of its own with a limit of time and of memory: a hostile file then costs a sentence.

The process has a session of its own, which is killed whole when the time is over or when this one ends, and on Linux
also when this one is killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from edgesmith.errors import BadInput, Unreadable
from edgesmith.readers.budget import GIBIBYTE

INSIDE = "EDGESMITH_WITHIN_LIMIT"
"""Set in the environment of such a process, so that it makes no other."""

OUT_OF_MEMORY = 70
"""What such a process ends with where Python was refused memory."""

LEAST_GIB = 0.25
"""Python itself does not start with much less."""

_DIES_WITH_PARENT = 1  # PR_SET_PDEATHSIG


@dataclass(frozen=True)
class Limit:
    """The most that a command may take. memory_gib: of what the process itself allocates; macOS enforces none."""

    seconds: float
    memory_gib: float = 4.0


def parse_limit(text: str) -> Limit:
    """Return the limit that `60` or `60,2` says: seconds, and GiB of memory. Raises BadInput for anything else."""
    try:
        parts = [float(part) for part in text.split(",")]
    except ValueError:
        parts = []
    limit = Limit(*parts) if 1 <= len(parts) <= 2 else Limit(0)
    if not (0 < limit.seconds < 1e6 and LEAST_GIB <= limit.memory_gib < 1e6):
        raise BadInput(f"--limit takes seconds, or seconds and at least {LEAST_GIB} GiB such as 60,4; got {text!r}")
    return limit


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error is, in a process with a limit, of memory that was refused; libraries say it in words."""
    said = isinstance(error, MemoryError) or re.search("bad_alloc|allocate|memory", str(error), re.IGNORECASE)
    return INSIDE in os.environ and bool(said)


def run_within(limit: Limit, arguments: Sequence[str], what: str) -> int:
    """Run `edgesmith ARGUMENTS` within a limit and return its exit code; its output goes where this process's does.

    Args:
        what: the file that is read, for the sentence.

    Raises:
        Unreadable: the time was over, memory was refused, or the process was killed by a signal.
    """
    command = [sys.executable, "-P", "-m", "edgesmith", *arguments]
    sys.stdout.flush()
    # The preparation runs between fork and exec, and calls the system only.
    child = subprocess.Popen(  # noqa: S603  # this very program
        command,
        env={**os.environ, INSIDE: "1"},
        start_new_session=True,
        preexec_fn=lambda: prepare(int(limit.memory_gib * GIBIBYTE)),
    )
    try:
        code = child.wait(limit.seconds)
    except subprocess.TimeoutExpired:
        raise Unreadable(
            f"{what} took longer than the {limit.seconds:g} s that --limit allows, and was stopped: it may be made to"
            " never end; allow more time if you trust it"
        ) from None
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    if code == OUT_OF_MEMORY or code < 0:
        how = "was refused memory" if code == OUT_OF_MEMORY else f"ended by {signal.Signals(-code).name}"
        raise Unreadable(
            f"{what}: the process that read it {how}, within the {limit.memory_gib:g} GiB that --limit allows; allow"
            " more if you trust it"
        )
    return code


def prepare(memory: int) -> None:
    """Set the limits of a process that is about to become another program."""
    kind = resource.RLIMIT_DATA if sys.platform == "linux" else resource.RLIMIT_AS
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(kind, (memory, memory))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_DIES_WITH_PARENT, signal.SIGKILL)
