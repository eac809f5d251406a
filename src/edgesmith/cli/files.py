"""The commands that look into one file: `lint` of anybody's file, `inspect` of an artifact or an engine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from edgesmith.cli import options as given
from edgesmith.cli.chosen import Chosen, chooses_model
from edgesmith.cli.export import one_artifact
from edgesmith.cli.inspected import KIND, artifact_rows, describe_artifact
from edgesmith.cli.rows import Row, describe_counts, describe_flags, engine_rows
from edgesmith.cli.tables import Table, counted, new_table, print_json, print_line, print_table, show_stage
from edgesmith.errors import BadInput, VerificationFailed
from edgesmith.writing import write_whole

FORMATS = ("table", "json", "sarif")
"""What `lint` prints."""

PACKAGES = (".mlpackage", ".mlmodel")
"""Files whose values have a padded size too."""

if TYPE_CHECKING:
    from edgesmith.exporters.mil.lint import Finding, Report


@chooses_model
def lint(
    chosen: Chosen,
    artifact: given.Linted = None,
    read_for: given.ReadFor = None,
    device: given.ComputedOn = None,
    strict: given.Strict = False,
    every: given.Every = False,
    as_json: given.Json = False,
    form: given.Format = "table",
    sarif: given.Sarif = None,
    explain: given.Explain = None,
) -> None:
    """Find what devices are known to compute wrongly in a file, and what the Neural Engine takes badly.

    Reads .mlpackage, .aimodel, .onnx, and artifacts and kits of them; a model is exported first.
    """
    if explain is not None:
        _explain(explain, as_json)
        return
    if form not in FORMATS:
        raise BadInput(f"--format is {form!r}; there are {', '.join(FORMATS)}")
    artifact = one_artifact(artifact, chosen, _exported_for(read_for or []))
    with show_stage("import"):
        from edgesmith.exporters.departures.lint import lint as check
        from edgesmith.exporters.departures.sarif import as_sarif
    with show_stage("lint"):
        report = check(artifact, read_for or (), device)
    if sarif is not None:
        write_whole(sarif, json.dumps(as_sarif(report), indent=2, ensure_ascii=False) + "\n", "SARIF file")
    if as_json or form == "json":
        print_json(report.as_json())
    elif form == "sarif":
        print_json(as_sarif(report))
    else:
        _show_report(report, every)
    if strict and not report.passes:
        raise typer.Exit(VerificationFailed.exit_code)


def _exported_for(read_for: list[str]) -> str:
    """Return the target that a model is exported for, before it is linted for these."""
    from edgesmith.exporters.departures.book import TARGETS
    from edgesmith.exporters.departures.subjects import parse_subject

    return TARGETS[parse_subject(read_for[0]).target].exported_for if read_for else "coreml"


def _explain(name: str, as_json: bool) -> None:
    """Print a row of the book or a rule, with its sources and the graphs that show it."""
    from dataclasses import asdict

    from edgesmith.exporters.departures.book import SURE, TARGETS, all_departures

    row = all_departures().get(name.upper())
    if row is None:
        from edgesmith.exporters.departures.lint import explain

        rule = explain(name)
        rows = [("severity", rule.severity), ("why", rule.why), ("do", rule.do), ("sources", "\n".join(rule.sources))]
        content: dict[str, Any] = {"name": name, **dict(rows)}
    else:
        content = asdict(row)
        rows = [
            ("computed by", f"{TARGETS[row.target].title}: {row.where}"),
            ("construct", row.construct),
            ("comes out", row.wrong),
            ("safe form", row.safe),
            ("severity", f"{row.severity('0', True)}; {SURE[row.sure]}"),
            ("versions", _versions(row.since, row.fixed_in)),
            ("for instance", (row.found or row.unseen or "").replace("; ", "\n")),
            ("not", (row.left or "").replace("; ", "\n")),
            ("sources", "\n".join(row.sources)),
        ]
    if as_json:
        print_json(content)
        return
    table = new_table(name if row is None else f"{row.id}: {row.title}", "", "", header=False, names=True)
    for key, value in rows:
        if value:
            table.add_row(key, value)
    print_table(table)


def _versions(since: str | None, fixed_in: str | None) -> str:
    parts = [f"from {since} on"] if since else []
    return ", ".join([*parts, *([f"before {fixed_in}"] if fixed_in else [])])


def _show_report(report: Report, every: bool) -> None:
    """Print a table for each severity, what was legalized, the rules that were broken, and a line that sums up."""
    for severity, count in report.counts.items():
        found = [finding for finding in report.findings if finding.severity == severity]
        if found:
            print_table(_findings_table(f"{severity}s: {count}", found, every))
    if report.legalized:
        table = new_table("legalized while lowering", "rule", "at", "change")
        for legalized in report.legalized:
            table.add_row(legalized.rule, legalized.name, legalized.change)
        print_table(table)
    if report.rules:
        print_table(_rules_table(report))
    print_line(_summary(report))


def _summary(report: Report) -> str:
    """Return the line that sums up."""
    counts = ", ".join(counted(number, severity) for severity, number in report.counts.items())
    said = f"{report.path.name}, for {', '.join(report.read_for)}: {counts} in {report.operators} operators."
    if report.path.suffix not in PACKAGES:
        return f"{said} This reads the graph, and measures nothing."
    own, padded = report.bytes / 2**20, report.padded_bytes / 2**20
    return (
        f"{said} All values take {own:.1f} MiB, with their last axes padded {padded:.1f} MiB. This reads the program;"
        " where it runs, a compute plan on the device says."
    )


def _findings_table(title: str, found: list[Finding], every: bool) -> Table:
    from edgesmith.exporters.mil.lint import group

    table = new_table(title, "rule", "operators", "at" if every else "first at", "found")
    for one in group(found):
        kinds = ", ".join(f"{kind} {number}" for kind, number in one.operators.items())
        others = f" (and {one.facts - 1} other fact{'s' if one.facts > 2 else ''})" if one.facts > 1 else ""
        for finding in one.findings if every else one.findings[:1]:
            row = (finding.operator, finding.position, finding.fact)
            table.add_row(one.rule, *(row if every else (kinds, finding.position, finding.fact + others)))
    return table


def _rules_table(report: Report) -> Table:
    from edgesmith.exporters.mil.lint import label

    table = new_table("rules", "rule", "why", "what to do", "source")
    for rule in report.rules:
        table.add_row(rule.name, rule.why, rule.do, "\n".join(map(label, rule.sources)))
    return table


def inspect(path: given.Engine, device: given.OnDevice = None, as_json: given.Json = False) -> None:
    """Say what an artifact's file takes and gives, and what reads it; of an engine, what it was built with and for."""
    from edgesmith.exporters.tensorrt import engine

    found = describe_artifact(path, device) or engine.inspect(path, device)
    if as_json:
        print_json(found)
        return
    table = new_table(Path(found["path"]).name, "", "", header=False)
    for row in ROWS[found["kind"]](found):
        table.add_row(*row)
    print_table(table)


def _layer_rows(found: dict[str, Any]) -> Iterator[Row]:
    yield "inputs and outputs", ", ".join(found["tensors"])
    yield "layers", f"{len(found['layers'])}, {found['synchronisations']} of them signals and waits"
    yield "  precisions", describe_counts(found["precisions"])
    yield "  kernels", describe_counts(found["types"])


def _kit_rows(found: dict[str, Any]) -> Iterator[Row]:
    from edgesmith.exporters.tensorrt.kit import needs

    board = found["board"]
    brings = f"; JetPack {board['jetpack']} brings TensorRT {board['tensorrt']}" if board["jetpack"] else ""
    capability = f", SM {board['compute_capability']}" if board["compute_capability"] else ""
    yield from _model_rows(found)
    yield "kit for", f"{found['device']}: {board['title']}{capability}{brings}"
    yield "needs", f"{needs(found)} or later"
    yield "flags", describe_flags(found["flags"])
    yield from (("changed", change) for change in found["changed"])
    if "engine" in found:
        yield from _engine_rows(found["engine"])
    else:
        yield "engine", "not built here; on the device: python3 build.py --out DIR"


def _engine_rows(found: dict[str, Any]) -> Iterator[Row]:
    capabilities = ", ".join(found["compute_capabilities"]) or "unknown: not in the header, and no manifest"
    yield from _model_rows(found)
    yield "built by", f"{found['made_by']} {found['version']}"
    yield "built for", f"SM {capabilities}"
    yield "can load on", ", ".join(found["devices"]) or "no device that is known here"
    yield "size", f"{found['bytes'] / 1e6:.2f} MB"
    for change in found.get("changed", ()):
        yield "changed", f"{change} since it was published; the rest is the manifest's"
    if "flags" in found:
        yield from engine_rows(found)
    else:
        yield "flags", "not in the header, and there is no manifest beside it"


def _model_rows(found: dict[str, Any]) -> Iterator[Row]:
    if "model" in found:
        yield "model", f"{found['model']}, {found['precision']}"


ROWS = {"layers": _layer_rows, "kit": _kit_rows, "engine": _engine_rows, KIND: artifact_rows}
"""Rows for each kind of what `inspect` finds."""
