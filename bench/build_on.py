"""Building an engine on the board that it is for: a kit goes there, what it builds comes back.

    KIT/    kit.json, by kit.schema.json, and the files that it lists, build.py and README.md among them
    there   python3 build.py --out RESULT     0: RESULT is whole; 2: a sentence on stderr, and no RESULT
    here    OUT/<kit>-built/                  what RESULT held: engine, manifest.json, measurement.json

Everything of the kit is compared with its digests before it is copied, and everything that comes back with the board's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from edgesmith.bench import measurement as measurements
from edgesmith.bench.transport import Address, CommandFailed, Transport, connect
from edgesmith.errors import BadInput, DeviceFailed, Unsupported
from edgesmith.exporters import artifact as artifacts
from edgesmith.exporters.manifest import MANIFEST
from edgesmith.exporters.tensorrt import engine as engines
from edgesmith.exporters.tensorrt.kit import KIT, SCRIPT, Kit, read_kit
from edgesmith.paths import is_listed, path_listed

MEASUREMENT = "measurement.json"
THERE, RESULT = "kit", "result"
"""Folders of the kit and of what is built in this run's folder on the board."""

LIST = (
    "import os, sys; [print(os.path.relpath(os.path.join(d, f), sys.argv[1]).replace(os.sep, '/'))"
    " for d, _, files in os.walk(sys.argv[1]) for f in files]"
)

MOST_FILES = 100

OnProgress = Callable[[str], None]
"""Hears lines about the copies, and those that build.py writes."""


def read_whole_kit(path: Path) -> Kit:
    """Return the record of a whole kit. Raises BadInput where one of its files is missing or altered."""
    if not (path / KIT).is_file():
        raise BadInput(
            f"no kit at {path}, which has no {KIT}: a kit is what `edgesmith export --target tensorrt --device NAME`"
            " writes for a board"
        )
    kit = read_kit(path)
    for name, digest in kit["files"].items():
        if not is_listed(name):
            raise BadInput(f"{path / KIT} lists {name!r}, which is no path in the kit: export it again")
        there = path_listed(path, name)
        if there.exists() and not there.is_file():
            raise BadInput(f"{there} is no file: export the kit again")
        try:
            with there.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise BadInput(f"{path / name} is not there ({error.strerror or error}): export the kit again") from error
        if found != digest:
            raise BadInput(f"{path / name} was altered since the kit was written: export it again")
    if not (path / SCRIPT).is_file():
        raise BadInput(f"{path} has no {SCRIPT}: export the kit again")
    return kit


def build_on(
    board: Address, path: Path, out: Path, on_progress: OnProgress | None = None, options: Sequence[str] = ()
) -> Path:
    """Have a board build a kit.

    Args:
        board: where; see `transport.parse`.
        path: the kit's folder.
        out: where the result's folder is made, in one step.
        on_progress: hears what happens.
        options: of build.py, such as `--dla 0`.

    Returns:
        The result's folder, `out/<the kit's name>-built`.

    Raises:
        BadInput: no whole kit.
        Unsupported: the board cannot build it, in its own words.
        DeviceFailed: no way to the board, it was cut off, or what came back is not a result.
        BackendMissing, OutputError: see `transport.connect`; something else is in the result's place.
    """
    kit = read_whole_kit(path)
    on_progress = on_progress or (lambda _: None)
    name = f"{path.resolve().name}-built"
    with artifacts.staging(out, name) as folder, connect(board) as where:
        for file in sorted({KIT, SCRIPT, *kit["files"]}):
            on_progress(f"copying {file}, {(path / file).stat().st_size / 1e6:.2f} MB")
            where.put(path / file, f"{THERE}/{file}")
        _build(where, on_progress, options)
        for file in _listed(where):
            on_progress(f"bringing {file}")
            here = path_listed(folder, file)
            here.parent.mkdir(parents=True, exist_ok=True)
            where.get(f"{RESULT}/{file}", here)
        _check(folder, kit, where)
        return artifacts.publish(folder, out, name)


def _build(where: Transport, on_progress: OnProgress, options: Sequence[str]) -> None:
    try:
        for line in where.run([*where.python, f"{THERE}/{SCRIPT}", "--out", RESULT, *options], heard=on_progress):
            on_progress(line)
    except CommandFailed as error:
        if error.code == 2:
            raise Unsupported(f"{where.name} does not build the kit: {error.last_line}") from error
        raise DeviceFailed(
            f"{SCRIPT} stopped on {where.name} with {error.code}: {error.last_line}; nothing was brought back"
        ) from error


def _listed(where: Transport) -> list[str]:
    """Return the files of the result there. Raises DeviceFailed where it is no result."""
    files = sorted(where.run([*where.python, "-c", LIST, RESULT]))
    if len(files) > MOST_FILES:
        raise DeviceFailed(
            f"{SCRIPT} made {len(files)} files on {where.name}, and a result has a few; nothing was brought back"
        )
    lacking = next((file for file in (MANIFEST, MEASUREMENT) if file not in files), None)
    odd = next((file for file in files if not is_listed(file)), None)
    if lacking is not None or odd is not None:
        why = f"has no {lacking}" if lacking is not None else f"holds {odd!r}"
        raise DeviceFailed(f"what {SCRIPT} made on {where.name} {why}: it is no result, and nothing was brought back")
    return files


def _check(folder: Path, kit: Kit, where: Transport) -> None:
    """Read what came back as whoever uses it will, before it is published.

    Raises:
        DeviceFailed: a link is among it, a record is damaged, a file is not what the manifest says, or the engine is
            another model's.
    """
    said = f"what {SCRIPT} made on {where.name} is no result, and nothing was published"
    if links := [path for path in folder.rglob("*") if path.is_symlink()]:
        raise DeviceFailed(f"{said}: {links[0].relative_to(folder)} is a link")
    try:
        artifact = artifacts.read(folder)
        measurements.read(folder / MEASUREMENT)
        changed = artifacts.changed_files(artifact)
        engines.read_header(artifact.file)
    except (BadInput, Unsupported) as error:
        raise DeviceFailed(f"{said}: {error}") from error
    if changed:
        raise DeviceFailed(f"{said}: {changed[0]}")
    if (artifact.model, artifact.precision) != (kit["model"], kit["precision"]):
        raise DeviceFailed(f"{said}: it is {artifact.model}, {artifact.precision}, and the kit is {kit['model']}")
