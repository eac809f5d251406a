"""A device over Android's debug bridge, by its own program: `adb push`, `adb shell`, `adb pull`.

The device needs a Python that `adb shell` can start, with ONNX Runtime: boards with Linux have one, phones one that was
pushed there (`--python /data/local/tmp/python/bin/python3`). Copies begin anew where they were cut.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from edgesmith.bench.transport.protocol import CommandFailed
from edgesmith.bench.transport.remote import SHELL, Remote
from edgesmith.errors import BackendMissing, DeviceFailed, EdgesmithError


class Adb(Remote):
    """A device that `adb devices` lists."""

    def open(self) -> None:
        if shutil.which("adb") is None:
            raise BackendMissing("adb: needs Android's adb, which is not here: install the platform tools")
        try:
            self._adb("get-state")
        except CommandFailed as error:
            raise self._why(error.said.splitlines()) from error
        super().open()

    def _connection(self) -> list[str]:
        return self._channel()

    def _channel(self) -> list[str]:
        return ["adb", "-s", self.address.name, "shell", "-T", SHELL]

    def _send(self, file: Path, name: str) -> None:
        self._command(["mkdir", "-p", str(PurePosixPath(name).parent)])
        self._adb("push", str(file), f"{self.folder}/{name}")

    def _fetch(self, name: str, file: Path, size: int) -> None:
        self._adb("pull", str(PurePosixPath(self.folder) / name), str(file))

    def _adb(self, *arguments: str) -> None:
        """Run adb. Raises CommandFailed with what it said, or CutOff."""
        command = ["adb", "-s", self.address.name, *arguments]
        done = subprocess.run(command, capture_output=True, check=False, start_new_session=True)  # noqa: S603
        if done.returncode != 0:
            said = (done.stdout + done.stderr).decode(errors="replace")
            if self._keeper is not None and self._keeper.poll() is not None:
                raise self._cut(said.splitlines())
            raise CommandFailed(done.returncode, said)

    def _why(self, said: Sequence[str]) -> EdgesmithError:
        lines = [line.strip() for line in said if line.strip()]
        last = lines[-1].removeprefix("error: ") if lines else "adb said nothing"
        return DeviceFailed(f"adb does not reach {self.name} ({last}): see `adb devices`")
