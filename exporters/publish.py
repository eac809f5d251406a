"""Publishing an export: its manifest, what lies beside the file, and the folder's one step into place."""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from edgesmith._version import __version__
from edgesmith.exporters import artifact as artifacts
from edgesmith.exporters.artifact import Artifact
from edgesmith.exporters.engine_record import Thresholds
from edgesmith.exporters.graph.capture import Program
from edgesmith.exporters.graph.edit import count_operators
from edgesmith.exporters.judge import Judge
from edgesmith.exporters.load import Loaded
from edgesmith.exporters.manifest import (
    SCHEMA,
    CheckRecord,
    Manifest,
    ModelRecord,
    RewriteRecord,
    SeriesRecord,
    TargetRecord,
    missed,
)
from edgesmith.exporters.options import SEGMENTATIONS, ExportOptions
from edgesmith.exporters.precision import table as precisions
from edgesmith.exporters.precision.task import Typed
from edgesmith.exporters.products import Product
from edgesmith.exporters.rewrites.rewrite import RewriteReport
from edgesmith.exporters.targets.target import Package, Request, Target, TargetFile
from edgesmith.exporters.usage.facts import read_facts
from edgesmith.exporters.usage.guide import write_guide
from edgesmith.exporters.usage.runner import write_programs
from edgesmith.models.front_end import RATE


@dataclass(frozen=True)
class Export:
    """All that an export has made on its way to the file."""

    options: ExportOptions
    model: Loaded
    captured: Program
    rewritten: Program
    reports: Sequence[RewriteReport]
    product: Product
    typed: Typed
    file: TargetFile
    judge: Judge


def publish(folder: Path, made: Export, request: Request, checks: list[CheckRecord]) -> Artifact:
    """Complete the staged folder and make it the artifact.

    Raises:
        VerificationFailed, Unsupported: a kit whose numbers a board would refuse, or that this machine cannot build.
        OutputError: the folder cannot be written, or something else is in its place.
    """
    options, judge = made.options, made.judge
    delivery = options.backend.delivery(options.profile)
    delivery.accept(missed(checks))
    artifacts.write_reference(folder, judge.evidence.reference, made.captured.inputs, judge.keeps_example)
    artifacts.write_exact(folder, judge.evidence.exact)
    if judge.keeps_inputs:
        artifacts.write_inputs(folder, judge.evidence.inputs)
    artifacts.write_trace(folder, made.product.trace(made.file, judge.evidence))
    manifest = describe(made, checks)
    if delivery.is_kit:
        delivered = delivery.complete(made.file, _package(made, request, manifest))
        rebuilt = {check["step"] for check in delivered.checks}
        kept = [check for check in checks if check["step"] not in rebuilt]
        manifest["verification"]["steps"] = [*kept, *delivered.checks]
        manifest = cast(Manifest, {**manifest, **delivered.entries})
    facts = read_facts(manifest)
    snippets = options.backend.snippets(facts, manifest)
    write_guide(folder, facts, snippets)
    write_programs(folder, snippets)
    artifacts.write_manifest(folder, manifest)
    return artifacts.read(artifacts.publish(folder, options.out, options.folder_name))


def _package(made: Export, request: Request, manifest: Manifest) -> Package:
    """Return what a delivery writes beside the file."""
    inputs, outputs, unjudged = made.product.cases(made.judge.evidence)
    criteria = made.judge.of_file
    limits = criteria.thresholds()
    thresholds: Thresholds = {
        "relative_error": float(f"{limits.relative_error:.2g}"),
        "snr_db": round(limits.snr_db, 1),
        "other_whole": criteria.other_whole(),
    }
    return Package(request, inputs, outputs, unjudged, thresholds, criteria.spikes, manifest)


def describe(made: Export, checks: list[CheckRecord]) -> Manifest:
    """Return the manifest of an export, without its list of files."""
    weights, product, file = made.model.weights, made.product, made.file
    functions = product.functions(file)
    legalized = file.legalizations()
    entries: dict[str, Any] = {
        "schema": SCHEMA,
        "file": file.path.name,
        "model": _describe_model(made),
        **({} if product.streaming is None else {"streaming": product.streaming}),
        **({} if functions is None else {"functions": functions}),
        "weights": {
            "origin": weights.origin,
            "sha256": weights.sha256,
            "file_sha256": weights.file_sha256,
            "notes": list(weights.notes),
        },
        "target": _describe_target(made),
        "precision": made.options.arithmetic.name,
        **({} if made.typed.keep_fp32 is None else {"keep_fp32": dict(made.typed.keep_fp32)}),
        "tool": {"edgesmith": __version__},
        "versions": versions(made.options.backend, made.file.path.suffix),
        "rewrites": [_describe_report(report) for report in made.reports],
        **({"legalized": legalized} if legalized else {}),
        **file.describe(),
        "operators": {
            "captured": count_operators(made.captured.module),
            "rewritten": count_operators(made.rewritten.module),
            **product.count_operators(),
            "file": file.count_operators(),
        },
        "verification": {
            "inputs": made.judge.describe_inputs(),
            "judged_as": made.judge.of_file.precision.name,
            "thresholds": _thresholds(),
            **({"missed": sentences} if (sentences := missed(checks)) else {}),
            **({"unverified": made.judge.unverified} if made.judge.unverified else {}),
            "steps": list(checks),
        },
        **made.typed.describe(file),
    }
    return cast(Manifest, entries)


def _describe_model(made: Export) -> ModelRecord:
    spec = made.model.spec
    inputs, outputs = made.product.interface()
    fewest = made.options.backend.smallest_rank
    inputs = [{"name": one["name"], "shape": one["shape"] or [1] * fewest} for one in inputs]
    record: ModelRecord = {"name": made.model.name, "inputs": inputs, "outputs": outputs}
    if (interface := made.file.interface()) is not None:
        record["interface"] = interface
    if made.model.fixed:
        record["fixed"] = {name: repr(value) for name, value in made.model.fixed.items()}
    if spec is None:
        return record
    record["features"] = made.options.features
    if made.options.segments:
        record["segmentation"] = SEGMENTATIONS[made.options.labels_pixels]
    if made.options.head:
        record["head"] = made.options.head
    record["source"], record["paper"], record["licence"] = spec.source, spec.paper, spec.licence
    image, sequence, sound = made.options.image, made.options.sequence, made.options.sound
    if image is not None:
        record["normalisation"] = {"mean": list(image.mean), "std": list(image.std)}
    elif sound is not None:
        record["normalisation"] = sound.normalised
        record["sound"] = {
            "rate_hz": RATE,
            "lowest": -1.0,
            "highest": 1.0,
            "samples": sound.samples,
            "frames": 1 if sound.is_of_hops else sound.shape[0],
            "bands": sound.shape[1],
        }
    elif sequence is not None:
        record["normalisation"] = sequence.normalised
    elif made.options.tokens is not None:
        record["normalisation"] = made.options.tokens.normalised
    elif made.options.series is not None:
        record["normalisation"] = made.options.series.normalised
        record["series"] = cast(SeriesRecord, made.options.series.describe())
    return record


def _describe_target(made: Export) -> TargetRecord:
    options, inputs = made.options, made.captured.inputs
    return {
        "name": options.backend.name,
        "options": {
            "batch": "dynamic" if made.captured.dynamic_batch else next(iter(inputs[0].shape), None),
            "image_input": options.image_input,
            "labels": None if options.labels is None else len(options.labels),
            "deployment_target": options.system or options.backend.default_deployment_target,
            "device": options.device,
        },
    }


def _describe_report(report: RewriteReport) -> RewriteRecord:
    return {
        "name": report.name,
        "applied": [{"site": site, "note": note} for site, note in report.applied],
        "rejected": [{"site": rejection.site, "reason": rejection.reason} for rejection in report.rejected],
    }


def _thresholds() -> dict[str, Any]:
    """Return the thresholds of every precision that has its own."""
    own = {name: one.thresholds for name, one in precisions.all_precisions().items() if one.thresholds}
    return {
        name: {"relative_error": limits.relative_error, "snr_db": limits.snr_db, "top1": "every decided input"}
        for name, limits in own.items()
    }


def versions(target: Target, suffix: str) -> dict[str, str]:
    """Return the versions of the packages that a file was made with."""
    packages = dict.fromkeys(("torch", "numpy", *target.packages_for(suffix), "onnxruntime"))
    return {package: _version(package) for package in packages}


@functools.cache
def _version(package: str) -> str:
    """Return the version of an imported package, whatever its distribution is called."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # apache-tvm is imported as tvm
        return importlib.metadata.version(importlib.metadata.packages_distributions()[package][0])
