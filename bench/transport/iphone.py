"""An iPhone that this Mac drives: coremltools builds an app with Xcode, installs it and has it load and run packages.

coremltools speaks to the app through files that Xcode's `devicectl` copies there and back, one call at a time, so the
phone rests for a second or more between calls. The times are the app's own, of Core ML's prediction alone. What runs
in the runner's place is iphone_runner.py, a process on this Mac; each launch of it launches the app anew.

Never run with a real iPhone: tests have stand-ins. Source of all that is said of coremltools: version 9.0,
models/ml_program/experimental, and modelrunner/ beside it, the app.
"""

from __future__ import annotations

import importlib.util
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from edgesmith.bench import iphone_runner
from edgesmith.bench.transport.address import Address
from edgesmith.bench.transport.attached import Phone, find_iphone
from edgesmith.bench.transport.local import Local
from edgesmith.bench.transport.protocol import Heard
from edgesmith.errors import BackendMissing
from edgesmith.profiles import device as devices

DRIVES = "coremltools"
"""The runner's name of the one runtime that there is on an iPhone."""

REFUSES = {"image_input": "takes an image", "labels": "answers with labels"}
"""Options of an export whose files coremltools' app cannot run."""


class IPhone(Local):
    """An iPhone, for as long as its block lasts; the app is built once in it, and the build removed after it.

    Raises (on entering):
        BackendMissing: coremltools or Xcode is not here.
        DeviceFailed: no such iPhone is connected, several are, or it is not ready.
    """

    is_here = False
    runs_there = False

    def __init__(self, address: Address) -> None:
        super().__init__(address.name)
        self._address = address
        self._phone: Phone | None = None

    def __enter__(self) -> Self:
        if importlib.util.find_spec("coremltools") is None:
            raise BackendMissing(
                '--device mac:IPHONE needs coremltools, which is not installed: pip install "edgesmith[coreml]"'
            )
        self._phone = find_iphone(self._address.name)
        self.name = self._phone.profile or self._phone.model
        self._folder = tempfile.TemporaryDirectory(prefix="edgesmith-")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._folder.cleanup()

    def write_runner(self, folder: Path) -> Path:
        return Path(iphone_runner.__file__)  # it runs here, where edgesmith is

    def run(self, command: Sequence[str], given: str = "", heard: Heard | None = None) -> Iterator[str]:
        phone = self._phone
        assert phone is not None
        facts = {
            "udid": phone.udid,
            "cpu": devices.get(phone.profile).soc if phone.profile is not None else phone.model,
            "folder": self._folder.name,
            "signing": dict(one.split("=", 1) for one in self._address.signing),
        }
        return super().run([*command, json.dumps(facts)], given, heard)
