"""A report as SARIF 2.1.0, which code hosts show beside a change (docs.oasis-open.org/sarif/sarif/v2.1.0)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote

from edgesmith._version import __version__
from edgesmith.exporters.departures.book import SURE, all_departures
from edgesmith.exporters.mil.lint import Finding, Report
from edgesmith.exporters.mil.rules import Advice

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"


def as_sarif(report: Report) -> dict[str, Any]:
    """Return a report as one run of SARIF: a rule for each that was broken, a result for each finding.

    A place in a file is no line: the file is the physical location, function and operator are logical ones.
    """
    rules = list(report.rules)
    numbers = {rule.name: number for number, rule in enumerate(rules)}
    return {
        "$schema": SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {
                    "driver": {
                        "name": "edgesmith lint",
                        "version": __version__,
                        "rules": [_rule(rule) for rule in rules],
                    }
                },
                "properties": {"readFor": list(report.read_for), "operators": report.operators},
                "results": [_result(one, numbers, report.path.as_posix()) for one in report.findings],
            }
        ],
    }


def _rule(rule: Advice) -> dict[str, Any]:
    row = all_departures().get(rule.name)
    tags = [row.target, row.effect] if row is not None else ["coreml", "neural engine"]
    properties: dict[str, Any] = {"tags": tags, "sources": list(rule.sources)}
    if row is not None:
        properties["sure"] = SURE[row.sure]
    return {
        "id": rule.name,
        "shortDescription": {"text": row.title if row is not None else rule.why},
        "fullDescription": {"text": rule.why},
        "help": {"text": f"{rule.do} Sources: {', '.join(rule.sources)}"},
        "helpUri": rule.sources[0],
        "defaultConfiguration": {"level": _level(rule.severity)},
        "properties": properties,
    }


def _result(finding: Finding, numbers: Mapping[str, int], path: str) -> dict[str, Any]:
    name = f"{finding.function}/{finding.name}"
    return {
        "ruleId": finding.rule,
        "ruleIndex": numbers[finding.rule],
        "level": _level(finding.severity),
        "message": {"text": f"{finding.operator} {finding.position}: {finding.fact}"},
        "locations": [
            {
                "physicalLocation": {"artifactLocation": {"uri": _uri(path)}},
                "logicalLocations": [{"name": finding.name, "fullyQualifiedName": name, "kind": "member"}],
            }
        ],
        "partialFingerprints": {"operator/v1": f"{finding.rule}:{name}"},
    }


def _level(severity: str) -> str:
    """Return a severity as one of SARIF's levels, which have no word for costs."""
    return "note" if severity == "cost" else severity


def _uri(path: str) -> str:
    """Return a path as a reference of SARIF: relative as it is, absolute as a file's address."""
    return f"file://{quote(path)}" if PurePosixPath(path).is_absolute() else quote(path)
