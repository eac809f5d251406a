"""The manifest of an artifact as a typed record: what it is made of, for what, and how it was checked.

It holds no time, path or machine name, so the same command gives the same bytes. `read` and `write` are the only ways
in and out; `manifest.schema.json` is its JSON Schema, closed: what it does not name is refused.

    schema 2   `keep_fp32`, `legalized`
    schema 1   called them `wide` and `mended`; still read
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypedDict

from edgesmith import records
from edgesmith.errors import Unreadable
from edgesmith.exporters.engine_record import BuildingDevice, EngineRecord, KitDigests, KitSummary
from edgesmith.exporters.streaming.description import StreamingDescription
from edgesmith.paths import is_listed
from edgesmith.records import Keyword

SCHEMA: Literal[2] = 2
MANIFEST = "manifest.json"
_RENAMED = {"wide": "keep_fp32", "mended": "legalized"}
"""Keys of schema 1 that have another name since."""


class NamedShape(TypedDict):
    """An input.

    Attributes:
        shape: sizes; `batch` for a free one.
    """

    name: str
    shape: list[int | str]


class ValueRecord(TypedDict):
    """An input or output of a file, as the file has it.

    Attributes:
        type: numpy's name of its elements' type; `image` of a picture, and of a classifier `string`, the best class's
            name, and `scores`, each class's probability by its name.
        shape: sizes; a word for a free one.
    """

    name: str
    type: str
    shape: list[int | str]


class InterfaceRecord(TypedDict):
    """The inputs and outputs of a file's default function, in its order, without states that the runtime keeps."""

    inputs: list[ValueRecord]
    outputs: list[ValueRecord]


class Normalisation(TypedDict):
    """The map from an image to an input: (value in 0..1 - mean) / std, per channel of RGB."""

    mean: list[float]
    std: list[float]


class SoundRecord(TypedDict):
    """The sound that a file with a front end takes: float samples of one channel.

    Attributes:
        rate_hz: samples a second.
        lowest, highest: that a sample may be.
        samples: of one call.
        frames: that the front end makes of them, those of padding included.
        bands: of a frame.
    """

    rate_hz: int
    lowest: float
    highest: float
    samples: int
    frames: int
    bands: int


class SeriesRecord(TypedDict):
    """The contract of a forecaster, see models/series.py.

    Attributes:
        freq_token: tokens of frequencies by their names.
        future_channels: channels of the input that are known ahead.
    """

    context_length: int
    channels: int
    inputs: list[str]
    layout: str
    scale: str
    prediction_length: NotRequired[int]
    predicted_channels: NotRequired[list[int]]
    observed_mask: NotRequired[str]
    freq_token: NotRequired[dict[str, int]]
    future_channels: NotRequired[list[int]]
    static_covariates: NotRequired[int]
    future_covariates: NotRequired[int]


class ModelRecord(TypedDict):
    """The model that an artifact is of.

    Attributes:
        inputs, outputs: of the file, in order, without states that the runtime keeps.
        features: whether it returns dense features instead of logits.
        segmentation: of a model for it: `logits` at a fraction of the image's size, or `labels`, each pixel's class.
        head: on dense features, see models/dense.py.
        normalisation: of images, or in words what was done to the features of frames.
        sound: of a file with a front end, what it takes.
        series: of a forecaster, what it reads and returns, see models/series.py.
        fixed: arguments of a module's forward that are part of the file, as Python writes them.
        interface: what the file itself calls and takes; a classifier's outputs are others than `outputs`. A target of a
            plugin may leave it out.
    """

    name: str
    inputs: list[NamedShape]
    outputs: list[str]
    features: NotRequired[bool]
    segmentation: NotRequired[str]
    head: NotRequired[str]
    source: NotRequired[str]
    paper: NotRequired[str]
    licence: NotRequired[str]
    normalisation: NotRequired[Normalisation | str]
    sound: NotRequired[SoundRecord]
    series: NotRequired[SeriesRecord]
    fixed: NotRequired[dict[str, str]]
    interface: NotRequired[InterfaceRecord]


class FunctionRecord(TypedDict):
    """One function of a file that has several.

    Attributes:
        states: names of those that the runtime keeps.
    """

    inputs: list[NamedShape]
    outputs: list[str]
    states: list[str]


class FunctionsRecord(TypedDict):
    """The functions of a file that holds a step and its sequence.

    Attributes:
        default: the function that runs where none is named.
        shared_bytes: that the file saves because they share weights.
    """

    default: str
    step: FunctionRecord
    sequence: FunctionRecord
    shared_bytes: int


class WeightsRecord(TypedDict):
    """The origin of the weights.

    Attributes:
        sha256: of all tensors by name, type, shape and bytes.
        file_sha256: of the checkpoint file; null without one.
        notes: what the loader decided, a sentence each.
    """

    origin: str
    sha256: str
    file_sha256: str | None
    notes: list[str]


class TargetOptions(TypedDict):
    """The options that a file was written with.

    Attributes:
        batch: `dynamic` where it is free; null for inputs without axes.
        labels: how many class names.
    """

    batch: int | str | None
    image_input: bool
    labels: int | None
    deployment_target: str | None
    device: str | None


class TargetRecord(TypedDict):
    """The target of a file."""

    name: str
    options: TargetOptions


class Fired(TypedDict):
    """A site where a rewrite fired, and how."""

    site: str
    note: str


class Declined(TypedDict):
    """A near miss of a rewrite, and why."""

    site: str
    reason: str


class RewriteRecord(TypedDict):
    """The sites and near misses of one rewrite."""

    name: str
    applied: list[Fired]
    rejected: list[Declined]


class LegalizationRecord(TypedDict):
    """A change by the lowering at one operator, to keep a device's rule."""

    rule: str
    name: str
    change: str


class OperatorCounts(TypedDict):
    """Counts of each operator, at every stage."""

    captured: dict[str, int]
    rewritten: dict[str, int]
    step: NotRequired[dict[str, int]]
    file: dict[str, int]


class Top1(TypedDict):
    """Inputs whose best class agrees, of those where it is decided; the others are ties."""

    agreeing: int | None
    decided: int | None
    ties: int | None


class FiguresRecord(TypedDict):
    """Figures of how far outputs are from the reference's; of several outputs each figure is that of the worst one.

    Attributes:
        max_abs_error, relative_error: null where a finite value became none; relative to the reference's peak.
        snr_db: null where the two are equal.
        finite: fraction of the reference's values that are finite, where that is not all of them.
    """

    max_abs_error: float | None
    relative_error: float | None
    snr_db: float | None
    finite: NotRequired[float]
    top1: NotRequired[Top1]


class SpikeForSpike(TypedDict):
    """On how many inputs spiking neurons fired alike; only those are judged."""

    inputs: int
    of: int


class CallRecord(TypedDict):
    """Figures of one call, in the order of `verification.inputs.calls`.

    Attributes:
        kind: see inputs.py; left out of the worst call, which has `input`.
        input: what it is, in words.
        max_abs_error, relative_error: null where a finite value became none; relative to the call's own peak, or null
            where that is 0 and the error is not.
        snr_db: null where the two are equal.
        allowed: the absolute error that was allowed.
        not_judged: where the figures are only reported.
    """

    kind: NotRequired[str]
    input: NotRequired[str]
    max_abs_error: float | None
    relative_error: float | None
    snr_db: float | None
    allowed: float
    not_judged: NotRequired[bool]


class DistanceRecord(TypedDict):
    """Distances from the model's outputs in float64, relative to their peak: the file's, and eager PyTorch's own."""

    file: float
    pytorch: float


class CheckRecord(TypedDict):
    """One check.

    Attributes:
        step: what was compared with what.
        not_checked_here: why this machine cannot tell.
        missed: by how much the threshold was missed, where the file was published all the same.
        runtime: what executed it.
        others: the figures over all inputs, where only some are judged.
        max_abs_error and what follows: of the worst natural input, relative to its own peak.
        worst: of all inputs that are judged, the one that came closest to what is allowed.
        calls: the figures of every input.
        noise: how far eager PyTorch is from itself in float64, relative to the peak, where that was asked.
        allowed: the error that noise allows.
        sequences, frames: that a step was fed.
        from_float64: of a file in fp32, on the first inputs.
        matching: files that are as they were published.
        operators: of a valid file.
    """

    step: str
    not_checked_here: NotRequired[str]
    missed: NotRequired[str]
    runtime: NotRequired[str]
    max_abs_error: NotRequired[float | None]
    relative_error: NotRequired[float | None]
    snr_db: NotRequired[float | None]
    finite: NotRequired[float]
    top1: NotRequired[Top1]
    spike_for_spike: NotRequired[SpikeForSpike]
    others: NotRequired[FiguresRecord]
    worst: NotRequired[CallRecord]
    calls: NotRequired[list[CallRecord]]
    noise: NotRequired[float]
    allowed: NotRequired[float]
    sequences: NotRequired[int]
    frames: NotRequired[int]
    from_float64: NotRequired[DistanceRecord]
    matching: NotRequired[int]
    operators: NotRequired[int]


class VerifiedCall(TypedDict):
    """One of the calls that outputs were compared on, see inputs.py.

    Attributes:
        seed: of a drawn or seeded one.
        factor: of a quiet or loud one.
        only: the position of the one input that was changed.
        values: of levels those on and beside steps; of rows the first, the last, and how many calls share them.
        noise: how far rounding alone moves each output in PyTorch, absolute, where that was asked.
    """

    kind: str
    seed: NotRequired[int]
    factor: NotRequired[float]
    only: NotRequired[int]
    values: NotRequired[list[float]]
    noise: NotRequired[list[float]]


class InputsRecord(TypedDict):
    """The inputs that outputs were compared on.

    Attributes:
        calls: what each is, in order; without it all were seeded, or held out, and judged together.
        values: what was drawn for each input, in words.
        left_out: what was not compared, each with the reason.
        kept: where the artifact keeps them, if they do not follow from the example and seeds.
        noise: whether what rounding alone moves in PyTorch is said of each call: it is `known`, or `unknown` as it
            could not be measured, or was `not asked`, as nothing was to be excused; without it, of an older artifact,
            nobody knows.
        given: of the caller's own data, what they are; see precision/calibration.py.
    """

    count: int
    seeds: NotRequired[str]
    values: NotRequired[list[str]]
    held_out: NotRequired[str]
    calls: NotRequired[list[VerifiedCall]]
    left_out: NotRequired[list[str]]
    kept: NotRequired[str]
    noise: NotRequired[Literal["known", "unknown", "not asked"]]
    given: NotRequired[CalibrationRecord]


class ThresholdsRecord(TypedDict):
    """Thresholds: an error of the peak at most, an SNR at least, and the same best class where it is decided.

    Attributes:
        other_whole: of an engine that a board built: the share of integers that may be others.
    """

    relative_error: float
    snr_db: float
    top1: str
    other_whole: NotRequired[float]


class VerificationRecord(TypedDict):
    """The record of how the artifact was checked against PyTorch.

    Attributes:
        judged_as: the precision whose thresholds hold.
        missed: a sentence for each check beyond its threshold, where the file was published all the same.
        unverified: outputs that no check could have failed on, each with the reason.
    """

    inputs: InputsRecord
    judged_as: str
    thresholds: dict[str, ThresholdsRecord]
    missed: NotRequired[list[str]]
    unverified: NotRequired[dict[str, str]]
    steps: list[CheckRecord]


class FileRecord(TypedDict):
    """A file of the artifact, by its path in the folder."""

    path: str
    bytes: Annotated[int, Keyword("minimum", 0)]
    sha256: Annotated[str, Keyword("pattern", "^[0-9a-f]{64}$")]


class CalibrationRecord(TypedDict):
    """The data that a file is calibrated or judged on.

    Attributes:
        source: `random`, `images`, `npz`.
        calls, held_out: inputs that were used, and that were kept to judge on.
        files, preprocessing: of images.
        samples: of an `.npz`.
        seeds, warning: of random ones.
    """

    source: str
    calls: NotRequired[int]
    held_out: NotRequired[int]
    sha256: NotRequired[str]
    files: NotRequired[int]
    preprocessing: NotRequired[str]
    samples: NotRequired[int]
    seeds: NotRequired[str]
    warning: NotRequired[str]


class LibraryRecord(TypedDict):
    """A compiled library.

    Attributes:
        triple, cpu: of the processor that it is compiled for.
        memory_bytes: of working memory.
        macs: multiply-accumulates, by what computes them.
        covered: operators, by what computes them.
    """

    triple: str
    cpu: str
    memory_bytes: int
    macs: dict[str, int]
    covered: dict[str, dict[str, int]]


class PluginRecord(TypedDict):
    """Words of a plugin's target about its file; edgesmith reads none of them.

    Attributes:
        plugin: the target's name.
    """

    plugin: str
    values: dict[str, str | int | float | bool | None]


class Int8Record(TypedDict):
    """The part of a file that is int8, and the data that decided it.

    Attributes:
        layers, sums: that are int8.
        macs: multiply-accumulates of the first batch, `all` and `int8`.
        snr_db: on the calibration inputs, against the program in float; null where equal.
        calibration: the data, see calibration.py.
        joined: of targets that can have integers between layers, whether this file has.
    """

    layers: int
    sums: int
    macs: dict[str, int]
    share_of_macs: float
    weight_bits: int
    snr_db: float | None
    calibration: CalibrationRecord
    joined: NotRequired[bool]


class Manifest(TypedDict):
    """The record of an artifact: what it is made of, for what, and how it was checked.

    Attributes:
        file: the target's file or package, below the manifest's folder.
        streaming: of a step program, how to drive it.
        functions: of a file that holds a step and its sequence.
        keep_fp32: operators that stay fp32 in a lower precision, each with the reason.
        rewrites, operators: of an export; an engine that a device has built refers to its kit instead.
        legalized: what the lowering changed to keep a device's rules.
        engine: how an engine was built.
        kit: of a kit what a board needs, of a built engine the digests of what it was built of.
        device: of a built engine, the machine.
        details: of a compiled library what it is for, of a plugin's file what its target says.
    """

    schema: Literal[2]
    file: str
    model: ModelRecord
    streaming: NotRequired[StreamingDescription]
    functions: NotRequired[FunctionsRecord]
    weights: WeightsRecord
    target: TargetRecord
    precision: str
    keep_fp32: NotRequired[dict[str, str]]
    tool: dict[str, str]
    versions: dict[str, str]
    rewrites: NotRequired[list[RewriteRecord]]
    legalized: NotRequired[list[LegalizationRecord]]
    engine: NotRequired[EngineRecord]
    operators: NotRequired[OperatorCounts]
    verification: VerificationRecord
    int8: NotRequired[Int8Record]
    kit: NotRequired[KitSummary | KitDigests]
    device: NotRequired[BuildingDevice]
    details: NotRequired[LibraryRecord | PluginRecord]
    files: list[FileRecord]


@cache
def schema() -> dict[str, Any]:
    """Return the JSON Schema of a manifest."""
    return records.schema_of(Manifest)


def read(folder: Path) -> Manifest:
    """Return the manifest in a folder, brought to the present schema.

    Raises:
        BadInput: it is damaged, of another schema, or not edgesmith's; the sentence names the position.
    """
    path, advice = folder / MANIFEST, "export the model again"
    found = records.parse(path, "manifest", advice=advice)
    if isinstance(found, dict) and found.get("schema") == 1:
        found = {_RENAMED.get(key, key): value for key, value in found.items()} | {"schema": SCHEMA}
    records.check(found, schema(), "manifest", name=str(path), advice=advice)
    manifest: Manifest = found
    if (fault := _fault(manifest)) is not None:
        raise Unreadable(f"{path} is no sound manifest: {fault}; {advice}")
    return manifest


def own_files(manifest: Manifest) -> list[FileRecord]:
    """Return the entries that are the target's file, or that lie in its package, in order of their paths."""
    file = manifest["file"]
    own = (one for one in manifest["files"] if one["path"] == file or one["path"].startswith(f"{file}/"))
    return sorted(own, key=lambda one: one["path"])


def _fault(manifest: Manifest) -> str | None:
    """Return what is wrong with the files that a manifest lists: they lie in its folder, each once, its own too."""
    paths = [entry["path"] for entry in manifest["files"]]
    for path in (manifest["file"], *paths):
        if not is_listed(path) or path == MANIFEST:
            return f"{path[:200]!r} is no path of a file in the folder"
    if len(set(paths)) < len(paths):
        return "it lists a file twice"
    if not own_files(manifest):
        return f"it does not list {manifest['file']!r}, which is its file"
    return next((fault for step in manifest["verification"]["steps"] if (fault := _fault_of_check(step))), None)


_ENDS = ("not_checked_here", "matching", "max_abs_error", "operators")
"""What a check has come to: one of these."""

_TOGETHER = {"max_abs_error": ("relative_error", "snr_db"), "noise": ("allowed",)}
"""Figures that say nothing without others."""


def _fault_of_check(step: CheckRecord) -> str | None:
    """Return what is wrong with a check, of whose figures a schema only says that each may be missing."""
    name = step["step"][:200]
    if not any(key in step for key in _ENDS):
        return f"the check {name!r} does not say what it came to"
    lacking = (other for key, others in _TOGETHER.items() if key in step for other in others if other not in step)
    if (other := next(lacking, None)) is not None:
        return f"the check {name!r} has no {other}"
    if "worst" in step and "input" not in step["worst"]:
        return f"the check {name!r} does not say which input was the worst"
    return None


def write(folder: Path, manifest: Manifest) -> None:
    """Write a manifest into its folder."""
    (folder / MANIFEST).write_text(records.to_text(manifest), encoding="utf-8")


def missed(steps: list[CheckRecord]) -> list[str]:
    """Return a sentence for each check beyond its threshold."""
    return [f"{step['step']}: {step['missed']}" for step in steps if "missed" in step]
