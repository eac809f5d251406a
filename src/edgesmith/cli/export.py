"""The commands around an artifact: `export` writes one, `explain` shows how it would come about, `verify` checks it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from edgesmith.cli import options as given
from edgesmith.cli.chosen import Chosen, chooses_model
from edgesmith.cli.rows import artifact_rows, describe_check
from edgesmith.cli.tables import (
    Table,
    counted,
    new_table,
    print_json,
    print_line,
    print_table,
    printing_to_stderr,
    show_stage,
)
from edgesmith.errors import BadInput, VerificationFailed
from edgesmith.readers.limits import parse_limit, run_within

if TYPE_CHECKING:
    from edgesmith.exporters.artifact import Artifact
    from edgesmith.exporters.manifest import CheckRecord
    from edgesmith.exporters.rewrites.rewrite import RewriteReport


@chooses_model
def export(
    chosen: Chosen,
    target: given.TargetName,
    config: given.Config = None,
    observed_mask: given.ObservedMask = False,
    precision: given.PrecisionName = None,
    input_size: given.InputSize = None,
    frames: given.Frames = None,
    batch: given.Batch = 1,
    dynamic_batch: given.DynamicBatch = False,
    features: given.Features = False,
    front_end: given.FrontEnd = False,
    segmentation: given.Segmentation = None,
    image_input: given.TakesImage = False,
    streaming: given.Streaming = False,
    with_sequence: given.WithSequence = False,
    labels: given.Labels = None,
    deployment_target: given.DeploymentTarget = None,
    device: given.ForDevice = None,
    calibration: given.Calibration = None,
    allow_inaccurate: given.AllowInaccurate = False,
    out: given.OutFolder = Path("artifacts"),
    verbose: given.Verbose = False,
    as_json: given.Json = False,
) -> None:
    """Write a model as a checked file for a target."""
    from edgesmith.exporters.options import ExportOptions

    options = ExportOptions(
        chosen.require(),
        target,
        **chosen.options,
        config=config,
        observed_mask=observed_mask,
        precision=precision,
        input_size=given.parse_size(input_size),
        frames=frames,
        batch=batch,
        dynamic_batch=dynamic_batch,
        features=features,
        front_end=front_end,
        segmentation=segmentation,
        labels=given.read_labels(labels),
        image_input=image_input,
        streaming=streaming,
        with_sequence=with_sequence,
        deployment_target=deployment_target,
        device=device,
        calibration=calibration,
        verify_inputs=chosen.verify_inputs,
        allow_inaccurate=allow_inaccurate,
        out=out,
        watch=show_stage,
    )
    with show_stage("import"):
        from edgesmith.exporters.export import run
    with printing_to_stderr():
        artifact = run(options)
    _show_artifact(artifact, as_json, verbose)


def _show_artifact(artifact: Artifact, as_json: bool, is_verbose: bool) -> None:
    if as_json:
        print_json({"path": str(artifact.path), **artifact.manifest})
    else:
        title = f"{artifact.model} for {artifact.target}, {artifact.precision}"
        table = new_table(title, "", "", header=False)
        for row in artifact_rows(artifact, is_verbose):
            table.add_row(*row)
        print_table(table)
    for sentence in artifact.manifest["verification"].get("missed", []):
        print_line(f"edgesmith: INACCURATE, published because of --allow-inaccurate: {sentence}", to_stderr=True)


def export_chosen(chosen: Chosen, target: str, precision: str | None = None) -> Path:
    """Export a model for a command that looks at artifacts, as `edgesmith export` does, and return its folder."""
    from edgesmith.exporters.options import ExportOptions

    model = chosen.require()
    options = ExportOptions(
        model, target, **chosen.options, verify_inputs=chosen.verify_inputs, precision=precision, watch=show_stage
    )
    with show_stage("import"):
        from edgesmith.exporters.export import run
    with printing_to_stderr():
        artifact = run(options)
    print_line(f"exported to {artifact.path}", to_stderr=True)
    return artifact.path


def one_artifact(artifact: Path | None, chosen: Chosen, target: str, precision: str | None = None) -> Path:
    """Return the artifact that was given, or one exported for this. Raises BadInput for both or neither."""
    if artifact is not None and chosen.model is not None:
        raise BadInput(f"{artifact} is an artifact, and --model and --module make one; choose one")
    if artifact is None and chosen.model is None:
        raise BadInput("give an artifact's folder, or a model to export for this: --model NAME or --module CODE")
    return export_chosen(chosen, target, precision) if artifact is None else artifact


@chooses_model
def explain(
    chosen: Chosen,
    target: given.TargetName = "onnx",
    config: given.Config = None,
    observed_mask: given.ObservedMask = False,
    input_size: given.InputSize = None,
    frames: given.Frames = None,
    features: given.Features = False,
    front_end: given.FrontEnd = False,
    as_json: given.Json = False,
) -> None:
    """Show every site where a rewrite fired, and every near miss with its reason."""
    from edgesmith.exporters.options import ModelOptions

    size = given.parse_size(input_size)
    options = ModelOptions(
        chosen.require(),
        target,
        **chosen.options,
        config=config,
        observed_mask=observed_mask,
        input_size=size,
        frames=frames,
        features=features,
        front_end=front_end,
    )
    with show_stage("import"):
        from edgesmith.exporters.export import capture_and_rewrite
        from edgesmith.exporters.graph.edit import count_operators
    with show_stage("capture and rewrite"):
        captured, rewritten, reports = capture_and_rewrite(options)
        covered = options.backend.share(rewritten)
    counts = {"captured": count_operators(captured.module), "rewritten": count_operators(rewritten.module)}
    if as_json:
        rewrites = [asdict(report) for report in reports]
        also = {} if covered is None else {"covered": covered}
        print_json({"model": chosen.label, "target": target, "rewrites": rewrites, "operators": counts, **also})
    else:
        _show_rewrites(reports)
        print_table(_operators_table(chosen.label, **counts))
        if covered is not None:
            print_table(_covered_table(chosen.label, covered))


def _show_rewrites(reports: list[RewriteReport]) -> None:
    for report in reports:
        if report.applied or report.rejected:
            print_table(_rewrite_table(report))
    idle = [report.name for report in reports if not report.applied and not report.rejected]
    if idle:
        print_line(f"found nothing: {', '.join(idle)}")
        print_line()


def _rewrite_table(report: RewriteReport) -> Table:
    fired, missed = len(report.applied), len(report.rejected)
    counts = f"fired at {counted(fired, 'site')}, {counted(missed, 'near miss', 'near misses')}"
    table = new_table(f"{report.name}: {counts}", "", "site", "how, or why not", "line")
    for site, note in report.applied:
        table.add_row("fired", site, note, "")
    for rejection in report.rejected:
        table.add_row("no", rejection.site, rejection.reason, rejection.line or "")
    return table


def _operators_table(model: str, captured: dict[str, int], rewritten: dict[str, int]) -> Table:
    table = new_table(f"{model}: operators", "operator", "captured", "rewritten")
    for name in {**captured, **rewritten}:
        table.add_row(name, str(captured.get(name, 0)), str(rewritten.get(name, 0)))
    table.add_row("all", str(sum(captured.values())), str(sum(rewritten.values())))
    return table


def _covered_table(model: str, covered: Mapping[str, Mapping[str, int]]) -> Table:
    """The table of what computes which operators, and of its share of the multiply-accumulates."""
    macs = covered["macs"]
    table = new_table(f"{model}: computed by", "by", "operators", "share of multiply-accumulates")
    for name, found in covered.items():
        if name != "macs":
            named = ", ".join(f"{count} {one}" for one, count in sorted(found.items(), key=lambda item: -item[1]))
            table.add_row(name, named, f"{macs.get(name, 0) / (sum(macs.values()) or 1):.1%}")
    return table


def verify(
    artifact: given.ArtifactPath,
    layers: given.Layers = False,
    as_device: given.AsDevice = None,
    limit: given.Within = None,
    as_json: given.Json = False,
) -> None:
    """Check an artifact again: its files, its format, and its numbers where it can run."""
    if limit is not None:
        flags = [flag for flag, is_given in (("--layers", layers), ("--json", as_json)) if is_given]
        flags += [] if as_device is None else ["--as", as_device]
        raise typer.Exit(run_within(parse_limit(limit), ["verify", *flags, "--", str(artifact)], str(artifact)))
    from edgesmith.exporters import targets
    from edgesmith.exporters.artifact import read

    found = read(artifact)  # a wrong path is answered before torch is imported
    if layers:
        targets.require_layers(targets.get(found.target))
    if as_device is not None:
        targets.require_model(targets.get(found.target), as_device)
    with show_stage("import"):
        from edgesmith.exporters.verify import verify_artifact, verify_as, verify_layers
    failure: VerificationFailed | None = None
    try:
        checks: list[Any] = verify_artifact(artifact, show_stage)[1]
    except VerificationFailed as error:
        if not error.steps:
            raise
        failure, checks = error, list(error.steps)
    operators = []
    if layers:
        with show_stage("operators"):
            operators = verify_layers(artifact)
    modelled = None
    if as_device is not None:
        with show_stage(f"as {as_device}"):
            modelled = verify_as(artifact, as_device)
    if as_json:
        also: dict[str, Any] = {"operators": operators} if layers else {}
        also |= {"as_device": modelled} if modelled else {}
        also |= {"error": str(failure), "exit_code": failure.exit_code} if failure else {}
        print_json({"path": str(found.path), "steps": checks, **also})
    else:
        print_table(_checks_table(found.path.name, checks))
        if layers:
            print_table(_layers_table(operators))
        if modelled:
            print_line(_describe_model(modelled))
    if failure:
        print_line(f"edgesmith: {failure}", to_stderr=True)
        raise typer.Exit(failure.exit_code)


def _describe_model(found: dict[str, Any]) -> str:
    """Return what a model of a device says, in a sentence."""
    error = found["relative_error"]
    figures = "values that are not finite" if error is None else f"an error of {error:.2g} of the peak"
    if found["snr_db"] is not None:
        figures += f", {found['snr_db']:.1f} dB"
    verdict = "which holds" if found["holds"] else "which does NOT hold; edgesmith lint says where it comes from"
    return (
        f"As {found['device']} is documented to depart from the file, a model and no measurement: {figures}, {verdict}."
    )


def _checks_table(title: str, checks: list[CheckRecord]) -> Table:
    table = new_table(title, "check", "result", names=True)
    for check in checks:
        table.add_row(check["step"], describe_check(check))
    return table


def _layers_table(operators: list[dict[str, Any]]) -> Table:
    columns = ["operator", "type", "module", "minimum", "maximum", "error", "SNR, dB", "loses, dB"]
    is_planned = any("device" in one for one in operators)  # on a Mac
    columns += ["runs on", "share of time"] if is_planned else []
    table = new_table("operators, at their own precision against a wider one", *columns)
    for one in operators:
        name = f"{one['function']}: {one['operator']}" if "function" in one else one["operator"]
        extremes = [_number(one[key], ".3g") for key in ("minimum", "maximum")]
        if "overflowed" in one:
            extremes[1] += f", {one['overflowed']} overflowed"
        loss = _number(one["loss_db"] or None, ".1f")
        figures = (_number(one["relative_error"], ".1e"), _number(one["snr_db"], ".1f"), loss)
        plan = (one.get("device") or "", _number(one.get("cost"), ".1%")) if is_planned else ()
        table.add_row(name, f"{one['type']} {one['dtype']}", one["module"] or "", *extremes, *figures, *plan)
    return table


def _number(value: float | None, form: str) -> str:
    return "" if value is None else f"{value:{form}}"
