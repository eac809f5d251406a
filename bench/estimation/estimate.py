"""Estimates of the time that a call of an artifact takes on a device that is not here. They are no measurements.

The time is the roofline's (roofline.py) with the device's own figures (profiles/) and coefficients fitted on published
latencies (fit.py; data/estimates.json). With it goes how far such estimates were off on published rows that they were
not fitted on: the row's whole family of models left out of the fit, and, for a device of which hardly a latency
is published, its device too. The interval holds as many of those rows as it says.

An estimate has its own words and its own schema, estimate.schema.json; `measurement.read` and `compare` refuse it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from edgesmith import records
from edgesmith.bench.estimation.roofline import Operator, Rates, parts
from edgesmith.bench.estimation.work import COUNTED, ONNX, Work, read_work
from edgesmith.errors import BadInput, EdgesmithError, Unsupported
from edgesmith.exporters import artifact as artifacts
from edgesmith.exporters.artifact import Artifact
from edgesmith.profiles.device import DeviceProfile
from edgesmith.profiles.device import get as get_device
from edgesmith.readers.documents import read_json

SCHEMA = "edgesmith.estimate.1"
COEFFICIENTS = Path(__file__).parent / "data" / "estimates.json"
COVERAGE = 0.8
COSTLIEST = 3
FEW_ROWS = 5
"""A device with fewer rows counts as one that nobody measured."""

HOST = "host"
"""The name of this machine in `edgesmith devices`; it has no profile."""

MOST = 1e18
"""No figure of an estimate is larger, whatever its unit."""


@dataclass(frozen=True)
class Kind:
    """Rows that are fitted together: what they ran, and which of a device's figures their roofline has.

    Attributes:
        target: what an artifact for such a device is, or one of `also`, which have the same ONNX file.
        precision: of those rows' arithmetic.
        runtime: in words.
        peak: the profile's figure, in 10^12 operations a second; None where nobody gives one: the factor has it then.
    """

    target: str
    precision: str
    runtime: str
    peak: str | None
    also: tuple[str, ...] = ()


KINDS: Mapping[str, Kind] = {
    "iphone": Kind(
        "coreml", "fp16", "Core ML with all of its units, which is the Neural Engine for most", "npu_fp16_tflops"
    ),
    "jetson": Kind("onnx", "fp16", "TensorRT on the board's GPU", "gpu_fp16_tflops", also=("tensorrt",)),
    "snapdragon": Kind("onnx", "fp16", "ONNX Runtime's QNN provider on the NPU", None),
    "raspberry": Kind("onnx", "fp32", "ONNX Runtime's CPU provider, threads as it chooses", "cpu_fp32_tflops"),
}
NOMINAL_TFLOPS = 20.0
"""Stands for the peak of NPUs that nobody gives: published rows reach half of it. A device's factor makes up for it."""


@dataclass(frozen=True)
class LeftOut:
    """The error of estimates on published rows that they were not fitted on.

    Attributes:
        what: what was left out of the fit together with a row.
        rows, models, families: how many.
        median_error: of |estimate / published - 1|.
        rank_correlation: Spearman's, between estimates and published latencies.
        logs: log(estimate / published) of every row, in order; empty in an estimate that was read from a file.
    """

    what: str
    rows: int
    models: int
    families: int
    median_error: float
    rank_correlation: float
    logs: tuple[float, ...] = ()

    def sentence(self) -> str:
        """The figures in words."""
        return (
            f"{self.median_error:.0%} in the median, rank correlation {self.rank_correlation:.2f}, over {self.rows}"
            f" rows of {self.models} models, {self.what} left out of each fit"
        )

    def span(self, coverage: float) -> tuple[float, float]:
        """Factors of an estimate between which that share of these rows' published latencies lies."""
        ordered = sorted(self.logs)

        def quantile(share: float) -> float:
            place = share * (len(ordered) - 1)
            low = math.floor(place)
            high = min(low + 1, len(ordered) - 1)
            return ordered[low] + (place - low) * (ordered[high] - ordered[low])

        outside = (1 - coverage) / 2
        return math.exp(-quantile(1 - outside)), math.exp(-quantile(outside))


@dataclass(frozen=True)
class Cost:
    """One operator's estimated share of a call. `bound`: what takes its time, a launch, computing or memory."""

    name: str
    type: str
    module: str | None
    ms: float
    share: float
    bound: str


@dataclass(frozen=True)
class Estimate:
    """The time of one call of an artifact, with its own batch, on a device. Milliseconds.

    Attributes:
        model, precision, sha256: the artifact's.
        device, title: the profile's name, and what it is.
        runtime: which the published rows ran in.
        p50_ms, interval_ms: estimated; the interval has `coverage` of the rows in `left_out`.
        call_ms: of that what a call costs by itself, whatever it computes.
        macs, operators: of the artifact's program.
        costliest: the operators that cost most.
        left_out: how far such estimates were off.
        notes: what makes this one worse than those.
    """

    model: str
    precision: str
    sha256: str
    device: str
    title: str
    runtime: str
    p50_ms: float
    interval_ms: tuple[float, float]
    coverage: float
    call_ms: float
    macs: int
    operators: int
    costliest: tuple[Cost, ...]
    left_out: LeftOut
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """As estimate.schema.json describes it; every figure's name says that it is estimated."""
        left = asdict(self.left_out)
        del left["logs"]
        return {
            "schema": SCHEMA,
            "is": "an estimate: nothing was run",
            "artifact": {"model": self.model, "precision": self.precision, "sha256": self.sha256},
            "device": {"name": self.device, "title": self.title, "runtime": self.runtime},
            "estimated_p50_ms": self.p50_ms,
            "estimated_interval_ms": list(self.interval_ms),
            "interval_coverage": self.coverage,
            "estimated_call_ms": self.call_ms,
            "macs": self.macs,
            "operators": self.operators,
            "costliest": [
                {
                    "operator": cost.name,
                    "type": cost.type,
                    "module": cost.module,
                    "estimated_ms": cost.ms,
                    "estimated_share": cost.share,
                    "bound": cost.bound,
                }
                for cost in self.costliest
            ],
            "error_on_rows_not_fitted_on": left,
            "notes": list(self.notes),
        }


def estimate(path: str | Path, device: str) -> Estimate:
    """Estimate what a call of an artifact takes on a device.

    Raises:
        BadInput: no artifact, an unknown device, or an artifact that the device does not take or the rows are not of.
        Unsupported: a device of which no such latencies are published, or a program that cannot be counted.
    """
    profile = profile_of(device)
    kind_of(profile)
    (found,) = estimate_each(artifacts.read(path), [profile])
    if isinstance(found, EdgesmithError):
        raise found
    return found


def estimate_each(artifact: Artifact, profiles: Sequence[DeviceProfile]) -> Iterator[Estimate | EdgesmithError]:
    """An estimate of an artifact on each device, or why there is none. Its operators are counted once, if at all."""
    work: list[Work] | None = None
    for profile in profiles:
        try:
            kind = _checked(artifact, profile)
            work = _counted(artifact) if work is None else work
        except EdgesmithError as error:
            yield error
        else:
            yield _estimate(artifact, work, profile, kind)


def _checked(artifact: Artifact, profile: DeviceProfile) -> Kind:
    """The kind whose rows an artifact on a device is like. Raises BadInput or Unsupported where there is none."""
    kind = kind_of(profile)
    wanted = f"export with --target {kind.target} --precision {kind.precision}"
    if artifact.target not in (kind.target, *kind.also):
        raise BadInput(
            f"estimates for {profile.title} are for target {kind.target}, this artifact is for {artifact.target};"
            f" {wanted}"
        )
    if artifact.precision != kind.precision:
        raise BadInput(
            f"estimates for {profile.title} are fitted on latencies in {kind.precision}, this artifact is in"
            f" {artifact.precision}; {wanted}"
        )
    return kind


def _counted(artifact: Artifact) -> list[Work]:
    """The work of an artifact's operators. Raises BadInput where its file is not what was exported."""
    file = artifact.file
    if file.suffix not in COUNTED:  # an engine: the ONNX file that it is built of
        file = file.with_suffix(ONNX)
    if file.suffix == ONNX and file.name not in artifact.sha256:
        raise BadInput(
            f"{artifact.path} has no {file.name}, whose operators would be counted; estimate the kit instead"
        )
    changed = [sentence for sentence in artifacts.changed_files(artifact) if sentence.startswith(file.name)]
    if changed:
        raise BadInput(f"{artifact.path}: {changed[0]} since it was exported; export the model again")
    return read_work(file)


def _estimate(artifact: Artifact, work: Sequence[Work], profile: DeviceProfile, kind: Kind) -> Estimate:
    assert profile.fit is not None
    fitted = coefficients(profile.fit)
    rates = rates_of(profile, kind, fitted["factors"].get(profile.name, 1.0))
    found = fitted["coefficients"]

    def cost(one: Work) -> tuple[float, str]:
        launch, compute, move = parts(operator_of(one), rates, found)
        sides = {"its launch": launch, "computing": compute, "memory": move}
        if launch + max(compute, move) == 0:
            return 0.0, "nothing"
        most = max(sides, key=lambda side: sides[side])
        return rates.factor * (launch + max(compute, move)), most

    costs = [cost(one) for one in work]
    call = rates.factor * found.get("call", 0.0)
    total = call + sum(ms for ms, _ in costs)
    order = sorted(range(len(work)), key=lambda i: -costs[i][0])[:COSTLIEST]
    measured = fitted["rows"].get(profile.name, 0) >= FEW_ROWS
    left = LeftOut(**fitted["left_out"]["family" if measured else "family and device"])
    low, high = left.span(COVERAGE)
    return Estimate(
        artifact.model,
        artifact.precision,
        artifact.digest,
        profile.name,
        profile.title,
        kind.runtime,
        total,
        (total * low, total * high),
        COVERAGE,
        call,
        sum(one.macs for one in work),
        len(work),
        tuple(
            Cost(work[i].name, work[i].type, work[i].module, costs[i][0], costs[i][0] / total, costs[i][1])
            for i in order
        ),
        left,
        tuple(_notes(profile, kind, fitted, total, measured)),
    )


def read(path: Path) -> Estimate:
    """Read what `edgesmith estimate --json` printed.

    Raises:
        BadInput: no such file, no JSON, another schema, or something in it that no estimate holds, with its place.
    """
    advice = "make it anew with edgesmith estimate ARTIFACT --device D --json"
    record = records.parse(path, "estimate", advice=advice)
    if not is_estimate(record):
        raise BadInput(f"{path} is no estimate of edgesmith; {advice}")
    records.check(record, schema(), "estimate", name=str(path), advice=advice)
    if not all(abs(one) < MOST for one in _numbers(record)):  # 1e999 is JSON
        raise BadInput(f"{path} is no sound estimate: it holds a figure beyond {MOST:.0e}")
    low, high = record["estimated_interval_ms"]
    if not low <= record["estimated_p50_ms"] <= high:
        raise BadInput(f"{path} is no sound estimate: its p50 is outside of its interval")
    artifact, device = record["artifact"], record["device"]
    return Estimate(
        artifact["model"],
        artifact["precision"],
        artifact["sha256"],
        device["name"],
        device["title"],
        device["runtime"],
        record["estimated_p50_ms"],
        (low, high),
        record["interval_coverage"],
        record["estimated_call_ms"],
        record["macs"],
        record["operators"],
        tuple(
            Cost(one["operator"], one["type"], one["module"], one["estimated_ms"], one["estimated_share"], one["bound"])
            for one in record["costliest"]
        ),
        LeftOut(**record["error_on_rows_not_fitted_on"]),
        tuple(record["notes"]),
    )


def is_estimate(content: Any) -> bool:
    """Return whether JSON says that it is an estimate, of whichever version."""
    return isinstance(content, dict) and str(content.get("schema", "")).startswith(SCHEMA.rpartition(".")[0] + ".")


@cache
def schema() -> dict[str, Any]:
    """The JSON Schema of an estimate."""
    loaded: dict[str, Any] = read_json(Path(__file__).with_name("estimate.schema.json"), "schema")
    return loaded


def _numbers(content: Any) -> Iterator[float]:
    if isinstance(content, dict | list):
        for one in content.values() if isinstance(content, dict) else content:
            yield from _numbers(one)
    elif isinstance(content, int | float):
        yield content


def _notes(profile: DeviceProfile, kind: Kind, fitted: Mapping[str, Any], total: float, measured: bool) -> list[str]:
    """List the reasons for which this estimate may be worse than those whose errors are known."""
    notes = []
    if not measured:
        rows = fitted["rows"].get(profile.name, 0)
        count = f"{rows or 'no'} {'latency' if rows == 1 else 'latencies'}"
        notes.append(f"{count} of {profile.title} in the published rows: only its figures tell it from other devices")
    lowest, highest = fitted["range_ms"]
    if not lowest <= total <= highest:
        notes.append(f"beyond the published rows, which take {lowest:.2f} to {highest:.1f} ms: the error may be larger")
    figures = {"bandwidth_gb_s": profile.memory["bandwidth_gb_s"]}
    if kind.peak:
        figures[kind.peak] = profile.peak[kind.peak]
    for name, figure in figures.items():
        if not figure.source:
            why = f"is derived: {figure.derived}" if figure.derived else f"has no source: {figure.unsourced}"
            notes.append(f"{name} of {profile.title} {why}")
    return notes


def profile_of(device: str) -> DeviceProfile:
    """A device by its name. Raises BadInput where it is unknown, or this machine, which can be measured."""
    if device == HOST:
        raise BadInput("no estimate for this machine: it is here; measure with: edgesmith bench")
    return get_device(device)


def kind_of(profile: DeviceProfile) -> Kind:
    """Return the kind of rows that a device is fitted with. Raises Unsupported where there are none."""
    if profile.fit is None:
        raise Unsupported(
            f"no estimate for {profile.title}: no latencies of such a device are published here to fit one on;"
            " measure with: edgesmith bench"
        )
    return KINDS[profile.fit]


def rates_of(profile: DeviceProfile, kind: Kind, factor: float = 1.0) -> Rates:
    """A device's figures for its roofline."""
    peak = NOMINAL_TFLOPS if kind.peak is None else profile.peak[kind.peak].value
    bandwidth = profile.memory["bandwidth_gb_s"].value
    assert peak is not None, profile.name
    assert bandwidth is not None, profile.name
    return Rates(peak / 2 * 1e3, bandwidth, factor)


def operator_of(work: Any) -> Operator:
    """Return the part of an operator's work that a roofline counts."""
    return Operator(work.kind, work.fused, work.macs, work.weight_bytes, work.read_bytes + work.written_bytes)


@cache
def coefficients(fit: str) -> dict[str, Any]:
    """Return the result of a fit: `coefficients`, `factors` and `rows` by device, `range_ms`, `left_out`."""
    found: dict[str, Any] = read_json(COEFFICIENTS, "table of fits")["fits"][fit]
    for one in found["left_out"].values():
        one["logs"] = tuple(one["logs"])
    return found
