"""Files that a library's native code reads or builds: in a process of its own, as they may end that process.

MLIR ends the process over bytecode that does not hold together, and ONNX's inference of shapes is C++ that believes
what it is told. A worker reads such a file, with a limit of time and of memory, and returns plain data. Where it dies
or does not end, the caller has a sentence. It stays for the next file: what it imports is imported once.

    parent -> worker     {"function": "package.module:name", "arguments": [...]}       a line of JSON
    worker -> parent     {} once, when it is there
                         {"value": ...} or {"error": name, "sentence": ...}            a line of JSON; of the system's
                                                                                       errors their arguments, too

In a process that has a limit already (limits.py) the function is called as it is: that process is the one that may die.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any, Final

from edgesmith import errors
from edgesmith.errors import EdgesmithError, Unreadable
from edgesmith.readers.budget import GIBIBYTE
from edgesmith.readers.limits import INSIDE, Limit, is_out_of_memory, prepare

LIMIT: Final = Limit(120, 8)
"""Seconds for a file, and GiB for the worker: a program of 2 GiB, which protobuf ends at, is held more than once."""

START_S: Final = 120
"""Seconds in which a worker is there; a busy machine takes long to start Python."""

_lock = threading.Lock()


class Died(Unreadable):
    """The process ended over a file. how: by which signal or code, to follow a noun."""

    how = ""

    @classmethod
    def of(cls, what: str, how: str) -> Died:
        """Return the error for a file."""
        error = cls(f"{what} is damaged: the process that read it {how}; make the file anew")
        error.how = how
        return error


class _Worker:
    """A process that calls functions for this one, until it dies or this one ends."""

    def __init__(self, limit: Limit) -> None:
        self.owner = os.getpid()
        self.limit = limit
        self._has_begun = False
        # The preparation runs between fork and exec, and calls the system only.
        self._process = subprocess.Popen(  # this very module
            [sys.executable, "-P", "-m", "edgesmith.readers.apart"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, INSIDE: "1"},
            start_new_session=True,
            preexec_fn=lambda: prepare(int(limit.memory_gib * GIBIBYTE)),
        )

    @property
    def is_alive(self) -> bool:
        """Return whether this process can ask it; one that was forked has the parent's."""
        return self.owner == os.getpid() and self._process.poll() is None

    def ask(self, request: bytes) -> bytes | None:
        """Return the line that it answers, or None where it dies first. Raises TimeoutError."""
        assert self._process.stdin is not None
        if not self._has_begun:  # starting Python is no time of the file's
            self._has_begun = self._hear(START_S) is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(request)
            self._process.stdin.flush()
        return self._hear(self.limit.seconds)

    def _hear(self, seconds: float) -> bytes | None:
        """Return the next line, or None where it dies first. Raises TimeoutError."""
        assert self._process.stdout is not None
        until = time.monotonic() + seconds
        answer, heard = bytearray(), self._process.stdout.fileno()
        while not answer.endswith(b"\n"):
            if not select.select([heard], [], [], max(0.0, until - time.monotonic()))[0]:
                raise TimeoutError
            part = os.read(heard, 2**20)
            if not part:
                return None
            answer += part
        return bytes(answer)

    def end(self) -> int:
        """End it, and return its exit code, negative for a signal."""
        if self.owner != os.getpid():
            return 0
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        if self._process.stdout is not None:
            self._process.stdout.close()
        return self._process.wait()

    def wait_for_death(self) -> int:
        """Return the exit code of a worker that has closed its end."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1)
        return self.end()


_worker: _Worker | None = None


def call(function: str, arguments: Sequence[Any], what: str, limit: Limit = LIMIT) -> Any:
    """Return what a function returns, called in a process of its own.

    Args:
        function: `package.module:name`, of ours; it takes and returns what JSON has.
        arguments: of the function; paths absolute, as the worker's folder is another.
        what: the file that is read, for the sentence.

    Raises:
        EdgesmithError, OSError: the function's own, of the same kind.
        Died: the process died over the file.
        Unreadable: it was refused memory, or took longer than the limit.
    """
    if INSIDE in os.environ:
        return json.loads(json.dumps(_named(function)(*arguments)))
    request = json.dumps({"function": function, "arguments": list(arguments)}).encode() + b"\n"
    with _lock:
        answer = _ask(request, what, limit)
    said = json.loads(answer)
    if "error" not in said:
        return said["value"]
    kind = getattr(errors, said["error"], None)
    if isinstance(kind, type) and issubclass(kind, EdgesmithError):
        raise kind(said["sentence"])
    if said["error"] == _NO_MEMORY:
        raise Unreadable(f"{what} asks for more than {limit.memory_gib:g} GiB of memory to be read: it is damaged")
    if said["error"] == _SYSTEM:
        raise OSError(*said["arguments"])
    raise RuntimeError(f"{said['error']}: {said['sentence']}")  # a bug of ours, told like one


def _ask(request: bytes, what: str, limit: Limit) -> bytes:
    """Return a worker's answer; one that is of no more use is ended. Raises Unreadable."""
    global _worker
    if _worker is None or not _worker.is_alive or _worker.limit != limit:
        end()
        _worker = _Worker(limit)
    asked, is_sound = _worker, False
    try:
        answer = asked.ask(request)
        if answer is not None:
            is_sound = True
            return answer
        code = asked.wait_for_death()
    except TimeoutError:
        raise Unreadable(
            f"{what} took longer than {limit.seconds:g} s to be read, and that was stopped: it may be made to never end"
        ) from None
    finally:
        if not is_sound:
            end()
    how = f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
    raise Died.of(what, how)


def end() -> None:
    """End the worker, where there is one."""
    global _worker
    if _worker is not None:
        _worker.end()
        _worker = None


atexit.register(end)

_NO_MEMORY, _SYSTEM = "memory", "system"


def _named(function: str) -> Any:
    module, _, name = function.partition(":")
    return getattr(importlib.import_module(module), name)


def _answer(request: bytes) -> dict[str, Any]:
    """Return what a function returns or raises."""
    asked = json.loads(request)
    try:
        return {"value": _named(asked["function"])(*asked["arguments"])}
    except EdgesmithError as error:
        return {"error": type(error).__name__, "sentence": str(error)}
    except OSError as error:
        arguments = [str(error)] if error.errno is None else [error.errno, error.strerror, error.filename]
        return {"error": _SYSTEM, "sentence": str(error), "arguments": arguments}
    except Exception as error:  # whatever it is, the caller is told
        return {"error": _NO_MEMORY if is_out_of_memory(error) else type(error).__name__, "sentence": str(error)}


def main() -> None:
    """Answer until the parent closes its end. What libraries print goes nowhere."""
    with os.fdopen(os.dup(1), "wb") as answers:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.close(nowhere)
        answers.write(b"{}\n")
        answers.flush()
        for request in sys.stdin.buffer:
            answers.write(json.dumps(_answer(request)).encode() + b"\n")
            answers.flush()


if __name__ == "__main__":
    main()
