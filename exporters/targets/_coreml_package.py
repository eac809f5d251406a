"""A Core ML package as it is published: described, and the same bytes for the same model.

A package as coremltools saves it differs from run to run: random identifiers, the date, map entries in hash order.
Identifiers become hashes of what they name, the date is dropped, and map entries are sorted.
"""

from __future__ import annotations

import colorsys
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


def describe(model: Any, request: Request, legalized: Sequence[Legalization]) -> None:
    """Write what is known about a model into its metadata, as Xcode shows them.

    Who reads them uses the model: they say nothing that the file does by itself, such as an image's normalisation.

    Args:
        model: the package's specification, a protobuf `Model`.
        request: as it was lowered.
        legalized: what the lowering changed.
    """
    metadata = model.description.metadata
    metadata.shortDescription = request.name
    metadata.versionString = request.version
    metadata.license = request.licence
    metadata.author = request.source
    facts = {"edgesmith.version": __version__, "edgesmith.precision": request.precision.name}
    if request.image is not None and not request.image_input:
        facts["edgesmith.input.mean"] = json.dumps(request.image.mean)
        facts["edgesmith.input.std"] = json.dumps(request.image.std)
    if request.sequence is not None:
        facts["edgesmith.input.normalised"] = request.sequence.normalised
    if request.series is not None:
        facts["edgesmith.input.series"] = json.dumps(request.series.describe())
    if legalized:
        facts[LEGALIZED] = json.dumps([asdict(one) for one in legalized])
    for key, value in (facts | _preview(request)).items():
        metadata.userDefined[key] = value
    metadata.userDefined.pop("com.github.apple.coremltools.conversion_date", None)
    words = _Words(request)
    for described in (model.description, *model.description.functions):
        for feature in described.input:
            feature.shortDescription = words.of_input(feature.name)
        for feature in described.output:
            feature.shortDescription = words.of_output(feature.name, described)
        for feature in described.state:
            feature.shortDescription = words.of_state(feature.name)


def notes_of(request: Request, sources: Sources) -> dict[str, Any]:
    """Return what verification and reports need of a package and its user does not; it is kept beside the package."""
    notes: dict[str, Any] = {}
    if request.image is not None and request.image_input:
        notes |= {"edgesmith.input.mean": list(request.image.mean), "edgesmith.input.std": list(request.image.std)}
    for function, table in sources.items():
        notes[SOURCES if len(sources) == 1 else f"{SOURCES}.{function}"] = {name: [*own] for name, own in table.items()}
    return notes


class _Words:
    """The description of each input, output and state of a package, in a sentence."""

    def __init__(self, request: Request) -> None:
        self.request = request
        streaming = request.streaming
        self.meanings = {} if streaming is None else {one["name"]: one["meaning"] for one in streaming["states"]}
        self.flag = None if streaming is None else streaming["is_frame"]

    def of_input(self, name: str) -> str:
        """Return what an input takes."""
        request = self.request
        if name in self.meanings:
            return f"State: {self.meanings[name]}."
        if name == self.flag:
            return "1 while frames come, 0 in the steps after the last one."
        if request.image is not None and name == request.image.name:
            if request.image_input:
                return "A picture in RGB; the model normalises it."
            mean, std = (", ".join(f"{one:g}" for one in each) for each in (request.image.mean, request.image.std))
            return f"RGB, channels first: (value in 0..1 - mean) / deviation; mean {mean}; deviation {std}."
        if request.sequence is not None:
            return f"{request.sequence.describe(request.streaming is not None)}."
        if request.series is not None:
            return f"{name} of a series, in the data's own scale."
        return f"{name}, as forward takes it."

    def of_output(self, name: str, described: Any) -> str:
        """Return what an output gives.

        Args:
            described: of the function that it belongs to.
        """
        if name == described.predictedFeatureName:
            return "The best class's label."
        if name == described.predictedProbabilitiesName:
            return "Each class's probability, by its label."
        state = name.removeprefix("next_")
        if state in self.meanings:
            return f"State for the next step: {self.meanings[state]}."
        if self.request.segments:
            return "The class of each pixel, or a score of each class."
        return "A score of each class, before the softmax." if name == "logits" else f"{name}, as forward returns it."

    def of_state(self, name: str) -> str:
        """Return what a state holds. What rounding took from one is in a second one beside it."""
        return f"State: {self.meanings.get(name, 'what rounding took from the state beside it')}."


def _preview(request: Request) -> dict[str, str]:
    """Return what Xcode, and apps that follow it, read of classes: a type of preview, and of segments their colours."""
    if request.classifies and request.image_input:
        return {"com.apple.coreml.model.preview.type": "imageClassifier"}
    if not request.segments or request.labels is None:
        return {}
    labels = request.labels
    hues = [colorsys.hsv_to_rgb(i / len(labels), 0.7, 0.9) for i in range(len(labels))]
    colours = ["#" + "".join(f"{round(255 * part):02X}" for part in hue) for hue in hues]
    named = {"labels": list(labels), "colors": colours}
    return {
        "com.apple.coreml.model.preview.type": "imageSegmenter",
        "com.apple.coreml.model.preview.params": json.dumps(named, ensure_ascii=False),
    }


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
            raise Unsupported(_describe_renamed(found, wanted))


def _describe_renamed(found: Sequence[str], wanted: Sequence[str]) -> str:
    """Return, in a sentence, what Core ML calls inputs and outputs otherwise."""
    others = [f"{name!r} {other!r}" for other, name in zip(found, wanted, strict=False) if other != name]
    if len(found) != len(wanted) or not others:
        return f"Core ML has the inputs and outputs {list(found)}, wanted {list(wanted)}; rename forward's arguments"
    return (
        f"Core ML keeps some words for itself, and calls {', '.join(others)}; give that argument of forward, or that"
        " key of what it returns, another name"
    )
