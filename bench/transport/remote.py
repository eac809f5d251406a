"""The common part of far devices: a folder that somebody keeps, commands in it, copies that go on after a cut.

The keeper is a shell on the device, on the connection's first channel. It makes the folder, and removes it however the
connection ends, as its stdin ends then:

    it reads    end     ends what runs there, removes the folder and says so
                keep    from now on waits a minute after a cut, for a connection that goes on with a copy
                free    from now on removes the folder at once after a cut
    it finds    folders of keepers that were killed themselves, and removes those first

A device's login shell may be any, so what it is asked is always the same: to start `sh`, which reads a line from its
stdin and carries it out; that line is ours to quote. Commands frame what they write, as login scripts may write too,
and end with their exit code: where the end of either does not come, the connection was cut. The marks are drawn anew
for each connection, so that no output holds them.

    stdout      noise  BEGIN  output  END
    stderr      noise  BEGIN  errors  END code
"""

from __future__ import annotations

import hashlib
import re
import secrets
import shlex
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from edgesmith.bench.transport.address import Address
from edgesmith.bench.transport.process import LONGEST_LINE, Errors, give, limited, started
from edgesmith.bench.transport.protocol import CommandFailed, CutOff, Heard, write_runner
from edgesmith.errors import BackendMissing, DeviceFailed, EdgesmithError, OutputError

SHELL = """exec sh -c 'IFS= read -r line; eval "$line"'"""
"""Every login shell takes this for the same: nothing in it is special between single quotes."""

SAYS = "edgesmith-keeper:"
OLDEST_PYTHON = (3, 8)
KEPT_S = 60
PAUSES_S = (1, 2, 4)
"""Between a cut and the attempts to connect again."""

CUT_S = 5
"""The time within which the end of a channel is known to be that of the connection."""

ANSWER_S = 60
"""The time that a device has to begin: to log in, to start a shell or Python."""

COPIED_S = 600
"""The time that it has to read a file through."""

LARGEST_ANSWER = 1 << 20
LARGEST_OUTPUT = 1 << 28
"""Bytes of an answer, and of a command's output: a runner's samples are some megabytes."""

CHUNK = 1 << 20
NO_ROOM = ("No space left on device", "Disk quota exceeded", "File too large", "Read-only file system")

USUAL_PARENT = '"${TMPDIR:-/tmp}"; [ -d "$parent" ] || parent=/data/local/tmp'
"""Android has no /tmp, and older ones no TMPDIR either."""

NEWLINE = r"newline=$(printf '\n.'); newline=${newline%.};"
KEEPER = r"""
export LC_ALL=C; trap "" HUP PIPE; umask 077;
for old in "$parent"/edgesmith.*;
do pid=$(cat "$old/keeper" 2>/dev/null) && [ -n "$pid" ] && { kill -0 "$pid" 2>/dev/null || rm -rf "$old"; };
done;
stop() {
found=;
for run in "$folder"/.run.*;
do if [ -e "$run" ]; then found=1; kill -s "$1" -- "-${run##*.}" || kill -s "$1" "${run##*.}"; fi;
done;
} 2>/dev/null;
if [ -n "$folder" ] && [ -d "$folder" ]; then stop KILL; rm -f "$folder"/.run.*;
else folder=$(mktemp -d "$parent/edgesmith.XXXXXXXX") || { echo "SAYS"; exit 1; }; fi;
echo $$ >"$folder/keeper" || { rm -rf "$folder"; echo "SAYS"; exit 1; };
echo "SAYS $folder";
kept=0;
while IFS= read -r word; do case $word in keep) kept=KEPT_S;; free) kept=0;; end) break;; esac; done;
[ "$word" = end ] && kept=0;
mine() { [ "$(cat "$folder/keeper" 2>/dev/null)" = $$ ]; };
mine || exit 0;
stop TERM; [ "$found" ] && sleep 1 && stop KILL;
while [ $kept -gt 0 ]; do sleep 1; kept=$((kept - 1)); mine || exit 0; done;
rm -rf "$folder"; echo "SAYS removed"
"""
DIGEST = (
    "import hashlib, sys; h, f = hashlib.sha256(), open(sys.argv[1], 'rb');"
    " [h.update(b) for b in iter(lambda: f.read(1 << 20), b'')]; print(f.tell(), h.hexdigest())"
)


class Remote(ABC):
    """A device with a shell, over a connection that a subclass makes.

    Attributes:
        name: what a record calls the device.
        python: the interpreter there.
        folder: this run's folder there.
    """

    is_here = False
    runs_there = True

    def __init__(self, address: Address) -> None:
        self.address, self.name = address, address.name
        self.python: Sequence[str] = (address.python,)
        self.folder = ""
        self.begin, self.end = (f"edgesmith-{word}-{secrets.token_hex(8)}" for word in ("begin", "end"))
        self._stack = ExitStack()
        self._keeper: subprocess.Popen[bytes] | None = None
        self._errors: Errors | None = None
        self._is_kept = False
        self._arrived: dict[str, tuple[int, str]] = {}

    @abstractmethod
    def _connection(self) -> list[str]:
        """Return the command that starts `SHELL` there for the keeper, and with it the connection."""

    @abstractmethod
    def _channel(self) -> list[str]:
        """Return the command that starts `SHELL` there on that connection."""

    @abstractmethod
    def _why(self, said: Sequence[str]) -> EdgesmithError:
        """Return the error for a connection that was not made, from the lines of `_connection` on stderr."""

    def write_runner(self, folder: Path) -> Path:
        return write_runner(folder)

    def open(self) -> None:
        """Connect, make the folder, look for Python."""
        self._start()
        python = self.python[0]
        try:
            version = "".join(self.ask([python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]))
        except CommandFailed as error:
            if error.code in (126, 127):  # of POSIX shells: cannot be executed, is not there
                why = f"there is no {python} on {self.name}"
            else:
                why = f"{python} on {self.name} does not start ({error.last_line})"
            raise BackendMissing(f"{why}: install Python 3.8 or later there, or name it with --python") from error
        if not re.fullmatch(r"\d{1,3}\.\d{1,3}", version, re.ASCII):
            raise DeviceFailed(f"{python} on {self.name} says that it is Python {version[:80]!r}, which is no version")
        if tuple(map(int, version.split("."))) < OLDEST_PYTHON:
            raise BackendMissing(
                f"{python} on {self.name} is Python {version}, and 3.8 or later is needed: name another with --python"
            )

    def close(self) -> None:
        """Have the folder removed, and end the connection."""
        keeper, self._keeper = self._keeper, None
        try:
            if keeper is not None and keeper.poll() is None:
                give(keeper, b"end\n")
                assert keeper.stdout is not None
                keeper.stdout.read()  # to its end, which follows the removal
                keeper.wait()
        finally:
            if keeper is not None and keeper.poll() is None:
                keeper.kill()  # the keeper there finds its stdin ended
            self._stack.close()

    def put(self, file: Path, name: str) -> str:
        wanted = file.stat().st_size, _digest(file)
        path = f"{self.folder}/{name}"
        if self._arrived.get(name) == wanted:
            return path

        def attempt() -> bool:
            try:
                self._send(file, name)
                is_whole = self._look(name) == wanted
                if not is_whole:
                    self._command(["rm", "-f", name])
            except CommandFailed as error:
                raise self._not_written(file, error) from error
            return is_whole

        self._copy(attempt, f"{file.name} arrived on {self.name}")
        self._arrived[name] = wanted
        return path

    def get(self, name: str, file: Path) -> None:
        def attempt() -> bool:
            try:
                wanted = self._look(name)
                self._fetch(name, file, wanted[0])
            except CommandFailed as error:
                raise DeviceFailed(f"{name} cannot be read on {self.name}: {error.last_line}") from error
            is_whole = (file.stat().st_size, _digest(file)) == wanted
            if not is_whole:
                file.unlink()
            return is_whole

        file.unlink(missing_ok=True)
        self._copy(attempt, f"{name} came from {self.name}")

    def _copy(self, attempt: Callable[[], bool], which: str) -> None:
        """Attempt a copy until it is whole, and go on with it after a cut."""
        cuts = damaged = 0
        with self._kept():
            while damaged < 2:
                try:
                    if attempt():
                        return
                    damaged += 1
                except CutOff as cut:
                    cuts += 1
                    if cuts > len(PAUSES_S):
                        raise
                    self._reconnect(cut)
        raise DeviceFailed(f"{which} with other bytes, twice: look at its memory and storage")

    def run(self, command: Sequence[str], given: str = "", heard: Heard | None = None) -> Iterator[str]:
        with self._session(_quoted(command), heard) as session:
            session.give(given.encode())
            yield from session.lines()
            session.check()

    def ask(self, command: Sequence[str], seconds: float = ANSWER_S) -> list[str]:
        """Run a command there that answers soon and briefly. Raises DeviceFailed where it does not."""
        with self._session(_quoted(command)) as session, limited(session.process, seconds) as late:
            try:
                session.give(b"")
                lines = list(session.lines(LARGEST_ANSWER))
                session.check()
            except DeviceFailed as error:
                if late.is_set():
                    raise DeviceFailed(
                        f"{self.name} did not answer within {seconds:g} s; look at what runs there"
                    ) from error
                raise
        return lines

    def _send(self, file: Path, name: str) -> None:
        """Append to a file there what it lacks."""
        there = _quote(name)
        parent = _quote(str(PurePosixPath(name).parent))
        size = "".join(
            self._shell(f"mkdir -p {parent} && if [ -e {there} ]; then wc -c <{there}; else echo 0; fi")
        ).strip()
        if not re.fullmatch(r"\d{1,15}", size, re.ASCII):
            raise DeviceFailed(f"{self.name} says of {name} that it has {size[:80]!r} bytes")
        if int(size) > file.stat().st_size:
            self._command(["rm", "-f", name])
            size = "0"
        with file.open("rb") as source, self._session(f"LC_ALL=C cat >>{there}") as session:
            source.seek(int(size))
            while (chunk := source.read(CHUNK)) and session.give(chunk, close=False):
                pass
            session.give(b"")
            session.check()

    def _fetch(self, name: str, file: Path, size: int) -> None:
        """Append to a file here what it lacks of so many bytes."""
        with file.open("ab") as target:
            line = f"tail -c +{target.tell() + 1} {_quote(name)}"
            with self._session(line) as session:
                session.give(b"")
                while chunk := session.output.read(min(CHUNK, size - target.tell())):
                    target.write(chunk)
                session.check()

    def _look(self, name: str) -> tuple[int, str]:
        """Size and sha256 of a file there."""
        said = "\n".join(self.ask([*self.python, "-c", DIGEST, name], COPIED_S))
        found = re.fullmatch(r"(\d{1,15}) ([0-9a-f]{64})", said, re.ASCII)
        if found is None:
            raise DeviceFailed(f"{self.name} says of {name} that it is {said[:80]!r}, which is no size and digest")
        return int(found[1]), found[2]

    def _command(self, command: Sequence[str]) -> None:
        for _ in self.run(command):
            pass

    def _shell(self, line: str) -> list[str]:
        """Run a line in the shell there. Returns the lines that it writes."""
        with self._session(line) as session:
            session.give(b"")
            lines = list(session.lines())
            session.check()
        return lines

    @contextmanager
    def _session(self, line: str, heard: Heard | None = None) -> Iterator[_Session]:
        folder = _quote(self.folder)
        begin, end = self.begin, self.end
        framed = (
            f"{NEWLINE} echo {begin}; echo {begin} >&2; export TMPDIR={folder}; if cd {folder};"
            f" then true 2>/dev/null >.run.$$; {line}; code=$?; rm -f {folder}/.run.$$; else code=1; fi;"
            f" printf %s {end}; printf '\\n%s %d\\n' {end} $code >&2; exit $code"
        )
        with started(self._channel()) as process:
            give(process, f"{framed}\n".encode(), close=False)
            with limited(process, ANSWER_S) as late:
                session = _Session(process, self, heard)
            if late.is_set():
                raise DeviceFailed(f"{self.name} did not begin a command within {ANSWER_S} s; look at what runs there")
            yield session

    def _start(self) -> None:
        """Connect and start a keeper, of `self.folder` where there is one. Raises what `_why` says."""
        parent = USUAL_PARENT if self.address.folder is None else _quoted([self.address.folder])
        line = f"parent={parent}; folder={_quote(self.folder)};"
        script = KEEPER.replace("\n", " ").replace("SAYS", SAYS).replace("KEPT_S", str(KEPT_S))
        self._keeper = self._stack.enter_context(started(self._connection()))
        self._errors = Errors(self._keeper)
        give(self._keeper, f"{NEWLINE} {line} {script}\n".encode(), close=False)
        folder = self._read_folder(self._keeper)
        if folder is None:
            self._keeper.wait()
            raise self._why(self._errors.lines())
        if folder:
            if self.folder and folder != self.folder:
                raise DeviceFailed(f"what was copied to {self.name} is gone; try again")
            self.folder = folder
            if self._is_kept:
                give(self._keeper, b"keep\n", close=False)
            return
        lines = self._errors.lines() or ["nobody said why"]
        why = _no_room(lines) or lines[-1]
        raise OutputError(f"no folder can be made on {self.name} ({why}): choose another place with --remote-tmp")

    def _read_folder(self, keeper: subprocess.Popen[bytes]) -> str | None:
        """Return the folder that a keeper says it has made, empty for none; None where it ended before."""
        assert keeper.stdout is not None
        with limited(keeper, ANSWER_S) as late:
            while raw := keeper.stdout.readline(LONGEST_LINE):
                said = raw.decode(errors="replace").strip()
                if said.startswith(SAYS):
                    return said.removeprefix(SAYS).strip()
        if late.is_set():
            raise DeviceFailed(f"{self.name} did not answer within {ANSWER_S} s of the login; look at what runs there")
        return None

    def _reconnect(self, cut: CutOff) -> None:
        """Connect again after a cut, to the folder that is still there. Raises the cut where that cannot be done."""
        for pause in PAUSES_S:
            time.sleep(pause)
            self._stack.close()
            try:
                self._start()
            except DeviceFailed:
                continue
            return
        raise cut

    @contextmanager
    def _kept(self) -> Iterator[None]:
        """While files are copied, the folder outlives the connection for `KEPT_S`."""
        self._is_kept = True
        if self._keeper is not None:
            give(self._keeper, b"keep\n", close=False)
        try:
            yield
        finally:
            self._is_kept = False
            if self._keeper is not None:
                give(self._keeper, b"free\n", close=False)

    def _not_written(self, file: Path, error: CommandFailed) -> EdgesmithError:
        reason = _no_room(error.said.splitlines())
        if reason is None:
            return DeviceFailed(f"{file.name} cannot be written on {self.name}: {error.last_line}")
        where, size_mb = PurePosixPath(self.folder).parent, file.stat().st_size / 1e6
        return OutputError(
            f"{self.name} has no room for {file.name}, {size_mb:.2f} MB, in {where} ({reason}): choose another place"
            " with --remote-tmp"
        )

    def _cut(self, said: Sequence[str]) -> EdgesmithError:
        """Return the error for a command without an exit code."""
        assert self._keeper is not None
        assert self._errors is not None
        try:
            self._keeper.wait(CUT_S)
        except subprocess.TimeoutExpired:
            return DeviceFailed(f"what ran on {self.name} was ended from outside")
        why = [line for line in (*said, *self._errors.lines()) if line and not line.startswith((self.begin, self.end))]
        return CutOff(f"the connection to {self.name} was cut" + (f" ({why[-1].rstrip('.')})" if why else ""))


class _Session:
    """A command that runs there, after its first line on stdout."""

    def __init__(self, process: subprocess.Popen[bytes], remote: Remote, heard: Heard | None) -> None:
        assert process.stdout is not None
        self.process, self._remote, self._heard = process, remote, heard
        self._is_begun = self._is_whole = False
        self._errors = Errors(process, self._hear)
        self.output: IO[bytes] = process.stdout
        while (line := self.output.readline(LONGEST_LINE)) and line.strip() != remote.begin.encode():
            pass

    def give(self, text: bytes, close: bool = True) -> bool:
        """Write to its stdin. Returns whether it still reads."""
        give(self.process, text, close)
        assert self.process.stdin is not None
        return not self.process.stdin.closed

    def lines(self, most: int = LARGEST_OUTPUT) -> Iterator[str]:
        """Yield the lines that it writes to stdout; half a line that was cut off is none.

        Raises:
            DeviceFailed: they have more bytes than `most`.
        """
        end = self._remote.end.encode()
        left = most
        while raw := self.output.readline(left + 1):
            left -= len(raw)
            if left < 0:
                raise DeviceFailed(
                    f"{self._remote.name} wrote more than {most / 1e6:.1f} MB where that was not expected"
                )
            self._is_whole = raw.endswith(end)
            line = raw.removesuffix(end)
            if line.endswith(b"\n") or (self._is_whole and line):
                yield line.decode(errors="replace").rstrip("\r\n")

    def check(self) -> None:
        """Raise CommandFailed or CutOff, unless it ended with 0."""
        if not self._is_whole:
            rest = b""
            while chunk := self.output.read(CHUNK):
                rest = (rest + chunk)[-len(self._remote.end) :]
            self._is_whole = rest.endswith(self._remote.end.encode())
        self.process.wait()
        lines, end = self._errors.lines(), self._remote.end
        if not self._is_whole or not lines or not lines[-1].startswith(end):
            raise self._remote._cut(lines)
        said = lines[-1].removeprefix(end).strip()
        if not re.fullmatch(r"\d{1,3}", said, re.ASCII):
            raise DeviceFailed(f"{self._remote.name} says that a command ended with {said[:80]!r}")
        code = int(said)
        if code != 0:
            begin = lines.index(self._remote.begin) + 1 if self._remote.begin in lines else 0
            raise CommandFailed(code, "\n".join(lines[begin:-1]).rstrip("\n"))

    def _hear(self, line: str) -> None:
        if line == self._remote.begin:
            self._is_begun = True
        elif self._is_begun and line and not line.startswith(self._remote.end) and self._heard is not None:
            self._heard(line)


def _quote(word: str) -> str:
    """A word for a POSIX shell, on one line: where it breaks lines stands `NEWLINE`'s variable."""
    return shlex.quote(word).replace("\n", "'\"$newline\"'")


def _quoted(command: Sequence[str]) -> str:
    """A command for a POSIX shell, where `~/` at the beginning is the home there."""
    first, *rest = command
    home, first = ('"$HOME"/', first[2:]) if first.startswith("~/") else ("", first)
    return " ".join([home + (_quote(first) if first or not home else ""), *map(_quote, rest)])


def _digest(file: Path) -> str:
    with file.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def _no_room(lines: Sequence[str]) -> str | None:
    """The system's words for a full or closed disk, where these lines have them."""
    return next((reason for line in lines for reason in NO_ROOM if reason in line), None)
