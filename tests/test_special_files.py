"""What is no plain file, in the place of every file that is read: a sentence at once, and nothing outside is read."""

from __future__ import annotations

import os
import shutil
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import fuzzing
from support.fuzzing import PATTERNS, READERS, Reader, command, copy_of

from edgesmith.bench.build_on import read_whole_kit
from edgesmith.bench.report.answers import Origin, origin_of
from edgesmith.errors import BadInput, EdgesmithError, OutputError
from edgesmith.exporters import targets
from edgesmith.paths import path_below
from edgesmith.writing import refuse_unwritable, write_whole

NEEDS = {"coreml": "Core ML", "coreai": "Core AI", "tvm": "compiled"}
LONGEST_S = 15


def pipe(path: Path) -> None:
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.mkdir()


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def circle(path: Path) -> None:
    path.symlink_to(path.name)


def nowhere(path: Path) -> None:
    path.symlink_to("/nowhere/at/all")


def bound(path: Path) -> None:
    here = Path.cwd()
    with socket.socket(socket.AF_UNIX) as made:
        os.chdir(path.parent)  # a socket's path is short
        try:
            made.bind(path.name)
        finally:
            os.chdir(here)


KINDS: tuple[Callable[[Path], None], ...] = (pipe, folder, endless, circle, nowhere, bound)

MORE = (
    Reader("weights of Core ML", copy_of("coreml"), "made/*/Data/*/weights/weight.bin", fuzzing.lint_package, bytes),
    Reader("use of a weight", copy_of("coreml"), "made/*/Data/*/weights/weight.bin", fuzzing.read_altered, bytes),
    Reader("kit for a board", copy_of("tensorrt"), "made/cases.npz", lambda f: read_whole_kit(f / "made"), bytes),
    Reader("kit", copy_of("tensorrt"), "made/cases.npz", lambda f: command("inspect", str(f / "made")), bytes),
    Reader("artifact in a report", fuzzing.make_all, "made/*.onnx", fuzzing.read_report, bytes),
)
"""Files that no reader of the fuzzing damages."""


OF_NO_FILE = ("runner's lines", "peer's lines")
"""Readers of what a process says."""

AS_IF_ABSENT = frozenset(
    {"report", "report's manifest", "artifact in a report", "edgesmith.toml", "log of a sweep", "kit"}
)
"""Readers that say so, or do, where there is no such file."""


def missing(reader: Reader) -> bool:
    named = {"weights of Core ML": "coreml", "use of a weight": "coreml"}.get(reader.name)
    found = [target for target, word in NEEDS.items() if word in reader.name] + ([named] if named else [])
    return any(targets.get(target).missing_packages() for target in found)


class TooLong(BaseException):
    """It waits, or reads without end."""


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with a name")
@pytest.mark.parametrize(
    "reader", [one for one in (*READERS, *MORE) if one.name not in OF_NO_FILE], ids=lambda reader: reader.name
)
def test_what_is_no_file_is_a_sentence_at_once(reader: Reader, tmp_path: Path) -> None:
    if missing(reader):
        pytest.skip("its target is not installed")
    (sound := tmp_path / "sound").mkdir()
    reader.make(sound)
    (sample,) = sound.glob(PATTERNS.get(reader.file, reader.file))

    def late(*_: Any) -> None:
        raise TooLong

    before = signal.signal(signal.SIGALRM, late)
    try:
        for kind in KINDS:
            place = tmp_path / kind.__name__ / "here"
            shutil.copytree(sound, place)
            (there := place / sample.relative_to(sound)).unlink()
            kind(there)
            signal.alarm(LONGEST_S)
            refused, is_read = None, False
            try:
                reader.read(place)
                is_read = True
            except EdgesmithError as error:
                refused = error
            finally:
                signal.alarm(0)
            assert refused is None or (refused.exit_code in fuzzing.DOCUMENTED and len(str(refused)) < 1000)
            assert not is_read or reader.name in AS_IF_ABSENT, f"{kind.__name__} was taken for {reader.file}"
            shutil.rmtree(place, ignore_errors=True)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("place", ["there", "there/page.html"])
def test_a_link_to_itself_is_no_place_to_write_to(place: str, tmp_path: Path) -> None:
    circle(tmp_path / "there")
    with pytest.raises(OutputError, match="symbolic links"):
        write_whole(tmp_path / place, "text", "report")
    with pytest.raises(OutputError, match="symbolic links"):
        refuse_unwritable(tmp_path / place, "report")
    with pytest.raises(BadInput, match="leads to itself"):
        path_below(tmp_path, *place.split("/"))


def test_a_checkout_s_link_to_itself_stops_no_report(tmp_path: Path) -> None:
    circle(tmp_path / "loop")
    (tmp_path / ".git").write_text("gitdir: loop")
    assert origin_of(tmp_path) == Origin(tmp_path.name, "")
