"""The Neural Engine lint: what of a Core ML package goes against what is published about the Neural Engine.

`lint` reads a package and applies every rule of `rules.py` to each of its functions. It is a reading of the program
and no measurement: where an operator really runs, only the compute plan on an Apple device says.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, NotRequired, TypedDict

from edgesmith.errors import BadInput
from edgesmith.exporters import artifact as artifacts
from edgesmith.exporters.mil.program import MlProgram, Operation, StateType, load
from edgesmith.exporters.mil.rules import RULES, SEVERITIES, Advice, Position, Rule, View, memory

if TYPE_CHECKING:
    from edgesmith.exporters.mil.legalize import Legalization

_SUFFIXES = (".mlpackage", ".mlmodel")
"""Of files that may hold an ML Program."""

SCHEMA: Final = 1
"""Number of the record that `lint --json` prints, `LintRecord`."""


class FindingRecord(TypedDict):
    """A finding, see `Finding`."""

    rule: str
    severity: str
    function: str
    operator: str
    name: str
    module: str | None
    fact: str


class RuleRecord(TypedDict):
    """A rule that findings go against, see `rules.Advice`, or a departure of the book, by its id."""

    name: str
    severity: str
    why: str
    sources: list[str]
    do: str


class LegalizationRecord(TypedDict):
    """A change of the lowering's, so that a rule is kept, see `legalize.Legalization`."""

    rule: str
    name: str
    change: str


class MemoryRecord(TypedDict):
    """The bytes that all values of a program take, as they are and with their last axes padded to 64 bytes."""

    bytes: int
    padded: int


class LintRecord(TypedDict):
    """The findings in a file, as `edgesmith lint --json` prints them.

    Attributes:
        path: of the file.
        counts: findings by severity.
        operators: how many were looked at, constants left out.
        rules: that findings go against.
        findings: the most severe first.
        legalized: what the lowering has changed before.
        read_for: who computes it, in words: `TensorRT 10.3`.
    """

    schema: Literal[1]
    path: str
    counts: dict[str, int]
    operators: int
    memory: MemoryRecord
    rules: list[RuleRecord]
    findings: list[FindingRecord]
    legalized: list[LegalizationRecord]
    read_for: NotRequired[list[str]]


@dataclass(frozen=True)
class Finding:
    """An operator or input that goes against a rule.

    Attributes:
        rule: its name, a key of `rules.RULES`; or a departure's id.
        severity: `error`, `warning`, `cost` or `note`.
        function: of the program.
        operator: the operator's type in the file; `input`, `output` or `state` for what comes in or leaves.
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
    def position(self) -> str:
        """The operator in words, with its module and, where it is not the usual one, its function."""
        known = f"{self.name}, in {self.module}" if self.module else self.name
        return known if self.function == "main" else f"{self.function}: {known}"


@dataclass(frozen=True)
class Report:
    """The findings in a file.

    Attributes:
        path: of the file.
        findings: the most severe first, then in order of the rules and the program.
        legalized: what the lowering has changed before, so that rules are kept.
        operators: how many operators were looked at, constants left out.
        bytes, padded_bytes: the memory that all values of the program take, and with their last axes padded to 64
            bytes. (A runtime keeps only some at a time.)
        departures: the rows of the book that findings are of, as advice.
        read_for: who computes the file, in words.
    """

    path: Path
    findings: tuple[Finding, ...]
    legalized: tuple[Legalization, ...]
    operators: int
    bytes: int
    padded_bytes: int
    departures: tuple[Advice, ...] = ()
    read_for: tuple[str, ...] = ()

    @property
    def counts(self) -> dict[str, int]:
        """Findings by severity."""
        found = Counter(finding.severity for finding in self.findings)
        return {severity: found[severity] for severity in SEVERITIES}

    @property
    def passes(self) -> bool:
        """True where there is nothing but costs and notes, which is what `--strict` asks for."""
        return not self.counts["error"] and not self.counts["warning"]

    @property
    def rules(self) -> tuple[Advice, ...]:
        """The rules and departures that findings are of."""
        broken = {finding.rule for finding in self.findings}
        return (*(rule for rule in RULES.values() if rule.name in broken), *self.departures)

    def as_json(self) -> LintRecord:
        """Return the report as plain values, with each broken rule's sentences and sources."""
        record: LintRecord = {
            "schema": SCHEMA,
            "path": str(self.path),
            "counts": self.counts,
            "operators": self.operators,
            "memory": {"bytes": self.bytes, "padded": self.padded_bytes},
            "rules": [_rule_record(rule) for rule in self.rules],
            "findings": [_finding_record(finding) for finding in self.findings],
            "legalized": [{"rule": one.rule, "name": one.name, "change": one.change} for one in self.legalized],
        }
        if self.read_for:
            record["read_for"] = list(self.read_for)
        return record


def _rule_record(rule: Advice) -> RuleRecord:
    return {
        "name": rule.name,
        "severity": rule.severity,
        "why": rule.why,
        "sources": list(rule.sources),
        "do": rule.do,
    }


def _finding_record(finding: Finding) -> FindingRecord:
    return {
        "rule": finding.rule,
        "severity": finding.severity,
        "function": finding.function,
        "operator": finding.operator,
        "name": finding.name,
        "module": finding.module,
        "fact": finding.fact,
    }


def lint(path: str | Path | MlProgram) -> Report:
    """Check a Core ML package against the published rules of the Neural Engine.

    Args:
        path: an artifact's folder, or any `.mlpackage` or `.mlmodel` that holds an ML Program; or what
            `program.load` has read of one.

    Raises:
        BadInput: there is no such package, it is damaged, or it is an artifact of another target.
        Unsupported: it holds no ML Program.
        BackendMissing: coremltools is not installed.
    """
    from edgesmith.exporters.mil.legalize import legalizations_of  # of the lowering, which needs torch

    program = path if isinstance(path, MlProgram) else load(package(path))
    views = [View(function, program.interfaces[name]) for name, function in program.functions.items()]
    sizes = [size for view in views for _, _, kind in view.values() if (size := memory(kind)) is not None]
    return Report(
        path=program.path,
        findings=tuple(finding for rule in RULES.values() for view in views for finding in _findings(rule, view)),
        legalized=legalizations_of(program),
        operators=sum(len(view.operations) for view in views),
        bytes=sum(own for own, _ in sizes),
        padded_bytes=sum(padded for _, padded in sizes),
    )


def _findings(rule: Rule, view: View) -> Iterator[Finding]:
    """Yield the findings of a rule in one function, each once."""
    seen: set[tuple[int, str]] = set()
    for position, fact in rule.check(view):
        if (id(position), fact) not in seen:
            seen.add((id(position), fact))
            yield _finding(rule, view, position, fact)


def _finding(rule: Rule, view: View, at: Position, fact: str) -> Finding:
    if isinstance(at, Operation):
        return Finding(rule.name, rule.severity, view.function.name, at.type, at.name, at.source, fact)
    kind = "state" if isinstance(at.type, StateType) else "input"
    return Finding(rule.name, rule.severity, view.function.name, kind, at.name, None, fact)


def package(path: str | Path) -> Path:
    """Return the Core ML package that a path means. Raises BadInput where it means none."""
    given = Path(path)
    if given.suffix in _SUFFIXES:
        return given
    if given.suffix == ".onnx":
        raise BadInput(_not_core_ml(given.name, "an ONNX file"))
    artifact = artifacts.read(given)
    if artifact.file.suffix not in _SUFFIXES:
        raise BadInput(_not_core_ml(given.name, f"an artifact for {artifact.target}"))
    return artifact.file


def _not_core_ml(name: str, kind: str) -> str:
    return (
        f"{name} is {kind}, and the Neural Engine takes Core ML packages; export with --target coreml and give that"
        " artifact, or an .mlpackage"
    )


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
        """The number of findings at operators of each type, most frequent first."""
        return dict(Counter(one.operator for one in self.findings).most_common())

    @property
    def facts(self) -> int:
        """The number of different facts."""
        return len({one.fact for one in self.findings})


def group(findings: Sequence[Finding]) -> list[Group]:
    """Return findings by rule, in order."""
    found: dict[str, list[Finding]] = {}
    for finding in findings:
        found.setdefault(finding.rule, []).append(finding)
    return [Group(rule, tuple(ones)) for rule, ones in found.items()]


def label(source: str) -> str:
    """Return a source's address for a line of a table.

    >>> label("https://github.com/apple/coremltools/issues/2631")
    'apple/coremltools#2631'
    """
    short = source.removeprefix("https://").removeprefix("github.com/")
    if "/blob/" in short:
        owner, project, *_, file = short.split("/")
        return f"{owner}/{project} {file}"
    return short.replace("/issues/", "#").replace("/pull/", "#")
