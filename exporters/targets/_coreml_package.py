"""A Core ML package as it is published: described, and the same bytes for the same model.

A package as coremltools saves it differs from run to run: random identifiers, the date, map entries in hash order.
Identifiers become hashes of what they name, the date is dropped, and map entries are sorted.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgesmith._version import __version__
from edgesmith.errors import Unsupported
from edgesmith.exporters.mil.functions import SPECIFICATION
from edgesmith.exporters.mil.legalize import LEGALIZED, Legalization
from edgesmith.exporters.mil.program import SOURCES
from edgesmith.exporters.targets.target import Request
from edgesmith.readers.documents import read_json

if TYPE_CHECKING:
    from edgesmith.exporters.graph.capture import Program

Sources = Mapping[str, Mapping[str, Sequence[str]]]
"""Of each function, from modules ("" for the model itself) to the names of their operators."""


def describe(model: Any, request: Request, sources: Sources, legalized: Sequence[Legalization]) -> None:
    """Write what is known about a model into its metadata.

    Args:
        model: the package's specification, a protobuf `Model`.
        request: as it was lowered.
        sources: of its operators.
        legalized: what the lowering changed.
    """
    metadata = model.description.metadata
    metadata.shortDescription = request.name
    metadata.versionString = __version__
    metadata.license = request.licence
    facts = {"edgesmith.source": request.source, "edgesmith.precision": request.precision.name}
    if request.image is not None:
        facts["edgesmith.input.mean"] = json.dumps(request.image.mean)
        facts["edgesmith.input.std"] = json.dumps(request.image.std)
    if request.sequence is not None:
        facts["edgesmith.input.normalised"] = request.sequence.normalised
    for function, table in sources.items():
        facts[SOURCES if len(sources) == 1 else f"{SOURCES}.{function}"] = json.dumps(table)
    if legalized:
        facts[LEGALIZED] = json.dumps([asdict(one) for one in legalized])
    for key, value in facts.items():
        metadata.userDefined[key] = value
    metadata.userDefined.pop("com.github.apple.coremltools.conversion_date", None)


def write(model: Any, source: Path, path: Path) -> None:
    """Write a package as `path`: the specification `model`, and everything else as it is in the package `source`."""
    shutil.copytree(source / "Data", path / "Data")  # what coremltools leaves beside Data is for debugging
    (path / SPECIFICATION).write_bytes(model.SerializeToString(deterministic=True))
    manifest = read_json(source / "Manifest.json", "package's manifest", advice="export it again")
    entries, root = manifest["itemInfoEntries"], manifest["rootModelIdentifier"]
    renamed = {_identifier(path, entry["path"]): (old, entry) for old, entry in _by_path(entries)}
    manifest |= {
        "itemInfoEntries": {new: entry for new, (_, entry) in renamed.items()},
        "rootModelIdentifier": next(new for new, (old, _) in renamed.items() if old == root),
    }
    (path / "Manifest.json").write_text(json.dumps(manifest, indent=4, sort_keys=True) + "\n", encoding="utf-8")


def _by_path(entries: Mapping[str, Mapping[str, str]]) -> list[tuple[str, Mapping[str, str]]]:
    return sorted(entries.items(), key=lambda item: item[1]["path"])


def _identifier(package: Path, entry: str) -> str:
    """Return an identifier that follows from the files of a manifest's entry."""
    digest = hashlib.sha256(entry.encode())
    item = package / "Data" / entry
    for file in sorted([item] if item.is_file() else item.rglob("*")):
        if file.is_file():
            digest.update(file.relative_to(package).as_posix().encode() + b"\0" + file.read_bytes())
    return str(uuid.uuid5(uuid.NAMESPACE_OID, digest.hexdigest())).upper()


def check_names(model: Any, programs: Mapping[str, Program], is_classifier: bool) -> None:
    """Raise Unsupported where coremltools has renamed inputs or outputs: the manifest must be right about them.

    Args:
        model: the specification.
        programs: of its functions, by name.
        is_classifier: whether its outputs are a classifier's own.
    """
    described = {function.name: function for function in model.description.functions}
    for function, program in programs.items():
        features = described.get(function, model.description)
        found = [feature.name for feature in features.input]
        wanted = list(program.input_names)
        if not is_classifier:
            found += [feature.name for feature in features.output]
            wanted += program.output_names
        if found != wanted:
            raise Unsupported(
                f"Core ML calls the inputs and outputs {found}, wanted {wanted}; rename forward's arguments"
            )
