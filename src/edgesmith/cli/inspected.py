"""`inspect` of an artifact that is no engine: what its file takes and gives, and what reads it where."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgesmith.cli.rows import Row
from edgesmith.errors import BadInput

if TYPE_CHECKING:
    from edgesmith.exporters.artifact import Artifact
    from edgesmith.exporters.usage.facts import Facts

ENGINE = ".engine"
"""The suffix of files that have words of their own, which `exporters/tensorrt/engine.py` reads."""

KIND = "artifact"

HERE = "the kind of machine that it was exported on"
"""The place where a file is read that is for one processor, when no device was named."""


def describe_artifact(path: Path, device: str | None) -> dict[str, Any] | None:
    """Return an artifact's file as its manifest has it; None for an engine, a kit, or what is no artifact's folder.

    Args:
        path: of the artifact.
        device: a name from `profiles/` that must read such files.

    Raises:
        BadInput: the manifest is damaged, or the device does not read such files.
    """
    from edgesmith.exporters import artifact as artifacts
    from edgesmith.exporters import targets
    from edgesmith.exporters.tensorrt.kit.record import KIT
    from edgesmith.exporters.usage.facts import read_facts

    if not path.is_dir() or (path / KIT).is_file():
        return None
    made = artifacts.read(path)
    if made.file.suffix == ENGINE:
        return None
    target, facts = targets.get(made.target), read_facts(made.manifest)
    names = _devices(made, target.marks_device)
    if device is not None and device not in names:
        raise BadInput(f"{path.name} is for {', '.join(names) or HERE}, not for {device}")
    return {
        "kind": KIND,
        "path": str(path),
        "model": made.model,
        "precision": made.precision,
        "target": target.name,
        "file": facts.file,
        "bytes": sum(one.stat().st_size for one in _files(made.file)),
        **_values(facts),
        "read_by": target.description,
        "devices": names,
        "checked_in": target.runtime,
        "changed": artifacts.changed_files(made),
    }


def artifact_rows(found: dict[str, Any]) -> Iterator[Row]:
    """Yield the rows of what `describe_artifact` returned."""
    yield "model", f"{found['model']}, {found['precision']}"
    size = found["bytes"]
    yield "file", f"{found['file']}, {f'{size / 1e6:.2f} MB' if size >= 1e4 else f'{size} bytes'}"
    for kind in ("inputs", "outputs", "states"):
        for one in found[kind]:
            yield kind.removesuffix("s"), _describe_value(one)
    yield "read by", found["read_by"]
    yield "devices", ", ".join(found["devices"]) or HERE
    yield "checked in", found["checked_in"]
    yield from (("changed", f"{change} since it was published") for change in found["changed"])
    yield "a program for it", f"edgesmith use {found['path']}"


def _describe_value(value: dict[str, Any]) -> str:
    """Return a value in words; manifests of older artifacts say less of it."""
    shape = " x ".join(map(str, value["shape"])) or ("one number" if value["type"] else "")
    said = "; ".join(filter(None, (", ".join(filter(None, (value["type"], shape))), value["meaning"])))
    return f"{value['name']}: {said}" if said else str(value["name"])


def _values(facts: Facts) -> dict[str, list[dict[str, Any]]]:
    """Return inputs, outputs and states by name, type, shape and meaning."""
    states = () if facts.stream is None else facts.stream.states
    begins = [{"meaning": f"begins with {one.initial:g}", "begins_with": one.initial} for one in states]
    return {
        "inputs": [asdict(one) for one in facts.inputs],
        "outputs": [asdict(one) for one in facts.outputs],
        "states": [
            {"name": one.name, "type": one.type, "shape": one.shape, **more}
            for one, more in zip(states, begins, strict=True)
        ],
    }


def _devices(made: Artifact, marks_device: bool) -> list[str]:
    """Return the names of the devices that read an artifact's file."""
    from edgesmith.profiles.device import all_devices

    asked = made.manifest["target"]["options"]["device"]
    if marks_device:
        return [asked] if asked else []
    return [one.name for one in all_devices().values() if made.target in one.targets]


def _files(file: Path) -> list[Path]:
    """Return the files that a file or a package is; none where it is missing, which `changed` says."""
    return [one for one in ([file] if file.is_file() else file.rglob("*")) if one.is_file()]
