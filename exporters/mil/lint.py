"""The Neural Engine lint: what of a Core ML package goes against what is published about the Neural Engine.

`lint` reads a package and applies every rule of `rules.py` to each of its functions. It is a reading of the program
and no measurement: where an operator really runs, only the compute plan on an Apple device says.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgesmith.errors import BadInput
from edgesmith.exporters import artifact as artifacts
from edgesmith.exporters.mil.program import MlProgram, Operation, StateType, load
from edgesmith.exporters.mil.rules import RULES, SEVERITIES, Place, Rule, View, memory

MENDED = "edgesmith.mended"
"""User-defined metadata: a JSON list of what the lowering has mended, as `Mended`."""


@dataclass(frozen=True)
class Finding:
    """A place that goes against a rule.

    Attributes:
        rule: its name, a key of `rules.RULES`.
        severity: `error`, `warning` or `note`.
        function: of the program.
        operator: the operator's MIL type; `input` or `state` for what comes in.
        name: the operator's own name, or the input's.
        module: of the model, where the package says from which an operator comes.
        fact: what was found, in words.
    """

    rule: str
    severity: str
    function: str
    operator: str
    name: str
    module: str | None
    fact: str

    @property
    def place(self) -> str:
        """The operator in words, with its module and, where it is not the usual one, its function."""
        known = f"{self.name}, in {self.module}" if self.module else self.name
        return known if self.function == "main" else f"{self.function}: {known}"


@dataclass(frozen=True)
class Mended:
    """What the lowering changed so that a rule is kept: the rule, the operator's name, and the change in words."""

    rule: str
    name: str
    change: str


@dataclass(frozen=True)
class Report:
    """All findings in a package.

    Attributes:
        path: of the package.
        findings: the most severe first, then in order of the rules and the program.
        mended: what the lowering has mended before.
        operators: how many operators were looked at, constants left out.
        bytes, padded_bytes: the memory that all values of the program take, and with their last axes padded to 64
            bytes. (A runtime keeps only some at a time.)
    """

    path: Path
    findings: tuple[Finding, ...]
    mended: tuple[Mended, ...]
    operators: int
    bytes: int
    padded_bytes: int

    @property
    def counts(self) -> dict[str, int]:
        """Findings by severity."""
        found = Counter(finding.severity for finding in self.findings)
        return {severity: found[severity] for severity in SEVERITIES}

    @property
    def passes(self) -> bool:
        """Whether there is nothing but notes: what `--strict` asks for."""
        return not self.counts["error"] and not self.counts["warning"]

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The rules that findings go against."""
        broken = {finding.rule for finding in self.findings}
        return tuple(rule for rule in RULES.values() if rule.name in broken)

    def as_json(self) -> dict[str, Any]:
        """The report as plain values, with each broken rule's sentences and sources."""
        return {
            "path": str(self.path),
            "counts": self.counts,
            "operators": self.operators,
            "memory": {"bytes": self.bytes, "padded": self.padded_bytes},
            "rules": [
                {"name": r.name, "severity": r.severity, "why": r.why, "sources": list(r.sources), "do": r.do}
                for r in self.rules
            ],
            "findings": [asdict(finding) for finding in self.findings],
            "mended": [asdict(one) for one in self.mended],
        }


def lint(path: str | Path) -> Report:
    """Check a Core ML package against the published rules of the Neural Engine.

    Args:
        path: an artifact's folder, or any `.mlpackage` or `.mlmodel` that holds an ML Program.

    Raises:
        BadInput: there is no such package, it is damaged, or it is an artifact of another target.
        Unsupported: it holds no ML Program.
        BackendMissing: coremltools is not installed.
    """
    return lint_program(load(package(path)))


def package(path: str | Path) -> Path:
    """The Core ML package that a path means. Raises BadInput where it means none."""
    given = Path(path)
    if given.suffix in (".mlpackage", ".mlmodel"):
        return given
    if given.suffix == ".onnx":
        raise BadInput(_not_core_ml(given.name, "an ONNX file"))
    artifact = artifacts.read(given)
    if artifact.target != "coreml":
        raise BadInput(_not_core_ml(given.name, f"an artifact for {artifact.target}"))
    return artifact.file


def _not_core_ml(name: str, kind: str) -> str:
    return (
        f"{name} is {kind}, and the Neural Engine takes Core ML packages; export with --target coreml and give that"
        " artifact, or an .mlpackage"
    )


def lint_program(program: MlProgram) -> Report:
    """Check a program that was read. See `lint`."""
    views = [View(function, program.interfaces[name]) for name, function in program.functions.items()]
    findings = [
        _finding(rule, view, place, fact)
        for rule in RULES.values()
        for view in views
        for place, fact in dict.fromkeys((_Place(place), fact) for place, fact in rule.check(view))
    ]
    sizes = [size for view in views for _, _, kind in view.values() if (size := memory(kind)) is not None]
    return Report(
        path=program.path,
        findings=tuple(findings),
        mended=mended_in(program),
        operators=sum(len(view.operations) for view in views),
        bytes=sum(own for own, _ in sizes),
        padded_bytes=sum(padded for _, padded in sizes),
    )


class _Place:
    """A place to compare by identity: operators hold dictionaries, which have no hash."""

    def __init__(self, place: Place) -> None:
        self.place = place

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Place) and other.place is self.place

    def __hash__(self) -> int:
        return id(self.place)


def _finding(rule: Rule, view: View, at: _Place, fact: str) -> Finding:
    place = at.place
    if isinstance(place, Operation):
        return Finding(rule.name, rule.severity, view.function.name, place.type, place.name, place.source, fact)
    kind = "state" if isinstance(place.type, StateType) else "input"
    return Finding(rule.name, rule.severity, view.function.name, kind, place.name, None, fact)


def mended_in(program: MlProgram) -> tuple[Mended, ...]:
    """What the package says was mended; nothing where somebody else's entry has that name."""
    try:
        listed = json.loads(program.metadata.get(MENDED, "[]"))
        return tuple(Mended(one["rule"], one["name"], one["change"]) for one in listed)
    except (ValueError, KeyError, TypeError):
        return ()


@dataclass(frozen=True)
class Group:
    """Findings of one rule, as a line of a table shows them.

    Attributes:
        rule: its name.
        findings: in order of the program.
    """

    rule: str
    findings: tuple[Finding, ...]

    @property
    def operators(self) -> dict[str, int]:
        """How many findings there are at operators of each type, most frequent first."""
        return dict(Counter(one.operator for one in self.findings).most_common())

    @property
    def facts(self) -> int:
        """How many different facts they are."""
        return len({one.fact for one in self.findings})


def group(findings: Sequence[Finding]) -> list[Group]:
    """Findings by rule, in order."""
    found: dict[str, list[Finding]] = {}
    for finding in findings:
        found.setdefault(finding.rule, []).append(finding)
    return [Group(rule, tuple(ones)) for rule, ones in found.items()]


def label(source: str) -> str:
    """A source's address for a line of a table.

    >>> label("https://github.com/apple/coremltools/issues/2631")
    'apple/coremltools#2631'
    """
    short = source.removeprefix("https://").removeprefix("github.com/")
    if "/blob/" in short:
        owner, project, *_, file = short.split("/")
        return f"{owner}/{project} {file}"
    return short.replace("/issues/", "#").replace("/pull/", "#")
