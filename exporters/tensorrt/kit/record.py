"""kit.json: the record that goes with a kit, made and read here; build.py reads it on the board with Python alone."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NotRequired, TypedDict, cast

from edgesmith import records
from edgesmith.errors import Unreadable
from edgesmith.exporters.engine_record import Board, Digest, Flags, Thresholds
from edgesmith.exporters.manifest import InputsRecord, ModelRecord, TargetRecord, WeightsRecord
from edgesmith.exporters.streaming.description import StreamingDescription
from edgesmith.paths import is_name

KIT = "kit.json"
ADVICE = "export the model again"


class Judged(TypedDict):
    """Words of the artifact's manifest about its verification, which the engine's manifest repeats."""

    inputs: InputsRecord
    judged_as: str


class Origin(TypedDict):
    """Facts of the artifact's manifest that the engine's manifest repeats.

    Attributes:
        schema: the manifest's.
        streaming: of a step program, how to drive it.
    """

    schema: Literal[2]
    model: ModelRecord
    streaming: NotRequired[StreamingDescription]
    weights: WeightsRecord
    target: TargetRecord
    precision: str
    tool: dict[str, str]
    verification: Judged


class Kit(TypedDict):
    """A folder that a device builds its own TensorRT engine of: this file, and those that it lists.

    Attributes:
        device: its profile's name.
        onnx: the typed ONNX file's name.
        inputs, outputs: names in that file, in the order of the cases' arrays, without outputs that nobody judges.
        spikes: neurons spike, so that an ulp may show, and half of the cases must agree spike for spike.
        operators: of the file, each with the TensorRT since which there is one; `never` for none, null for unknown.
        files: sha256 by path in the folder.
    """

    schema: Literal[1]
    model: str
    device: str
    precision: str
    onnx: str
    inputs: list[str]
    outputs: list[str]
    board: Board
    thresholds: Thresholds
    spikes: bool
    flags: Flags
    operators: dict[str, str | None]
    manifest: Origin
    files: dict[str, Digest]


def read_kit(folder: Path) -> Kit:
    """Return the record of the kit in a folder.

    Raises:
        BadInput: there is none, it is damaged, or it is of another schema.
    """
    record = records.read_record(folder / KIT, records.schema_of(Kit), "kit", advice=ADVICE)
    for key in ("model", "onnx"):  # files are called after them
        if not is_name(record[key]):
            named = f"its {key} {record[key]!r:.80} is no name of a file"
            raise Unreadable(f"{folder / KIT} is no sound kit: {named}; {ADVICE}")
    return cast("Kit", record)  # the schema has just said so


def write_record(kit: Kit, folder: Path) -> None:
    """Write the record into a kit's folder, which is staged: it is published whole or not at all."""
    (folder / KIT).write_text(records.to_text(kit), encoding="utf-8")
