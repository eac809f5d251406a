"""Building an engine on the board that it is for: a kit goes there, what it builds comes back.

    KIT/    kit.json {"schema": 1, "model", "device", "files": {name: sha256}}, build.py, README.md and the files listed
    there   python3 build.py --out RESULT     0: RESULT is whole; 2: a sentence on stderr, and no RESULT
    here    OUT/<kit>-built/                  what RESULT held: engine, manifest.json, measurement.json

Everything of the kit is compared with its digests before it is copied, and everything that comes back with the board's.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from edgesmith.bench.transport import Address, CommandFailed, Transport, connect
from edgesmith.errors import BadInput, DeviceFailed, Unsupported
from edgesmith.exporters import artifact as artifacts

SCHEMA = 1
DESCRIPTION, SCRIPT = "kit.json", "build.py"
MANIFEST, MEASUREMENT = artifacts.MANIFEST, "measurement.json"
KIT, RESULT = "kit", "result"
"""Their folders in this run's folder on the board."""

LIST = (
    "import os, sys; [print(os.path.relpath(os.path.join(d, f), sys.argv[1]).replace(os.sep, '/'))"
    " for d, _, files in os.walk(sys.argv[1]) for f in files]"
)

Told = Callable[[str], None]
"""Hears what happens, line by line: the copies, and what build.py writes."""


@dataclass(frozen=True)
class Kit:
    """A kit that is whole.

    Attributes:
        files: sha256 by path in the folder, without kit.json.
    """

    path: Path
    model: str
    device: str
    files: dict[str, str]


def read_kit(path: Path) -> Kit:
    """The kit in a folder. Raises BadInput where there is none, or a file in it is missing or altered."""
    try:
        facts = json.loads((path / DESCRIPTION).read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(
            f"no kit at {path} ({DESCRIPTION}: {error.strerror or error}): a kit is what `edgesmith export --target"
            " tensorrt --device NAME` writes for a board"
        ) from error
    except ValueError as error:
        raise BadInput(f"{path / DESCRIPTION} is damaged ({error}): export the kit again") from error
    schema = facts.get("schema") if isinstance(facts, dict) else None
    if schema != SCHEMA:
        raise BadInput(f"{path / DESCRIPTION} has schema {schema}, this edgesmith reads {SCHEMA}: export the kit again")
    files = facts.get("files")
    is_sound = isinstance(files, dict) and all(isinstance(digest, str) for digest in files.values())
    if not is_sound or not all(isinstance(facts.get(key), str) for key in ("model", "device")):
        raise BadInput(f"{path / DESCRIPTION} lacks a model, a device or its files' digests: export the kit again")
    for name, digest in files.items():
        if not _is_within(name):
            raise BadInput(f"{path / DESCRIPTION} lists {name!r}, which is no path in the kit: export it again")
        try:
            with (path / name).open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise BadInput(f"{path / name} is not there ({error.strerror or error}): export the kit again") from error
        if found != digest:
            raise BadInput(f"{path / name} was altered since the kit was written: export it again")
    if not (path / SCRIPT).is_file():
        raise BadInput(f"{path} has no {SCRIPT}: export the kit again")
    return Kit(path, facts["model"], facts["device"], files)


def build_on(board: Address, path: Path, out: Path, told: Told | None = None, options: Sequence[str] = ()) -> Path:
    """Have a board build a kit.

    Args:
        board: where; see `transport.parse`.
        path: the kit's folder.
        out: where the result's folder is made, in one step.
        told: hears what happens.
        options: of build.py, such as `--dla 0`.

    Returns:
        The result's folder, `out/<the kit's name>-built`.

    Raises:
        BadInput: no whole kit.
        Unsupported: the board cannot build it, in its own words.
        DeviceFailed: no way to the board, it was cut off, or what came back is not a result.
        BackendMissing, OutputError: see `transport.connect`; something else is in the result's place.
    """
    kit = read_kit(path)
    told = told or (lambda _: None)
    name = f"{path.resolve().name}-built"
    with artifacts.staging(out, name) as folder, connect(board) as where:
        for file in sorted({DESCRIPTION, SCRIPT, *kit.files}):
            told(f"copying {file}, {(path / file).stat().st_size / 1e6:.2f} MB")
            where.put(path / file, f"{KIT}/{file}")
        _build(where, told, options)
        for file in _listed(where):
            told(f"bringing {file}")
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            where.get(f"{RESULT}/{file}", folder / file)
        _check(folder, where)
        return artifacts.publish(folder, out, name)


def _build(where: Transport, told: Told, options: Sequence[str]) -> None:
    try:
        for line in where.run([*where.python, f"{KIT}/{SCRIPT}", "--out", RESULT, *options], heard=told):
            told(line)
    except CommandFailed as error:
        if error.code == 2:
            raise Unsupported(f"{where.name} does not build the kit: {error.last_line}") from error
        raise DeviceFailed(
            f"{SCRIPT} stopped on {where.name} with {error.code}: {error.last_line}; nothing was brought back"
        ) from error


def _listed(where: Transport) -> list[str]:
    """What the result holds there."""
    files = sorted(where.run([*where.python, "-c", LIST, RESULT]))
    lacking = next((file for file in (MANIFEST, MEASUREMENT) if file not in files), None)
    odd = next((file for file in files if not _is_within(file)), None)
    if lacking is not None or odd is not None:
        why = f"has no {lacking}" if lacking is not None else f"holds {odd!r}"
        raise DeviceFailed(f"what {SCRIPT} made on {where.name} {why}: it is no result, and nothing was brought back")
    return files


def _check(folder: Path, where: Transport) -> None:
    try:
        manifest: Any = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except ValueError as error:
        raise DeviceFailed(f"the {MANIFEST} that {SCRIPT} wrote on {where.name} is damaged: {error}") from error
    if not isinstance(manifest, dict):
        raise DeviceFailed(f"the {MANIFEST} that {SCRIPT} wrote on {where.name} is none: no JSON object")


def _is_within(name: str) -> bool:
    """Whether a name is a plain path in a folder."""
    path = PurePosixPath(name)
    plain = name.isprintable() and "\\" not in name and str(path) == name
    return plain and not path.is_absolute() and ".." not in path.parts and name != "."
