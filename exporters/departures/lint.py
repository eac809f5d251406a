"""The findings in anybody's file: what whoever computes it is known to compute otherwise.

    .mlpackage .mlmodel    for Core ML, beside the Neural Engine's rules of mil/rules.py
    .aimodel               for Core AI
    .onnx                  for ONNX Runtime, or for whom `read_for` names: tensorrt@10.3, qnn, litert, xnnpack, tvm
    an artifact            as its file; a kit for the TensorRT of its board

It is a reading of the graph and no measurement. What was found depends on the version and the device that are named:
rows that do not hold there are left out, and a severity is that of a reader who does not know them otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edgesmith.errors import BadInput, Unreadable, unknown
from edgesmith.exporters import artifact as artifacts
from edgesmith.exporters.departures.book import TARGETS, Departure, all_departures
from edgesmith.exporters.departures.detectors import Position, all_detectors
from edgesmith.exporters.departures.from_onnx import graph_of_onnx
from edgesmith.exporters.departures.graph import Graph, Node
from edgesmith.exporters.departures.subjects import Subject, on_device, parse_subject
from edgesmith.exporters.manifest import MANIFEST
from edgesmith.exporters.mil import lint as packages
from edgesmith.exporters.mil.lint import Finding, Report
from edgesmith.exporters.mil.program import MlProgram
from edgesmith.exporters.mil.rules import RULES, SEVERITIES, Advice
from edgesmith.exporters.tensorrt.kit.record import KIT, read_kit
from edgesmith.readers.messages import read_onnx

PACKAGES = (".mlpackage", ".mlmodel")
SUFFIXES = tuple(dict.fromkeys(suffix for one in TARGETS.values() for suffix in one.suffixes))
"""Of the files that lint reads."""

_BYTES = {"fp16": 2, "bf16": 2, "int16": 2, "uint16": 2, "fp64": 8, "int64": 8, "fp32": 4, "int32": 4}


@dataclass(frozen=True)
class _File:
    """A file to read, and who computes it where nobody says."""

    path: Path
    subjects: tuple[Subject, ...]
    device: str | None = None


def lint(path: str | Path | MlProgram, read_for: str | Sequence[str] = (), device: str | None = None) -> Report:
    """Find in a file what whoever computes it is known to compute otherwise; in a Core ML package, rules too.

    Args:
        path: an artifact's folder, or a file of anybody's: `.onnx`, `.mlpackage`, `.mlmodel`, `.aimodel`; or what
            `mil.program.load` has read.
        read_for: who computes an ONNX file, such as `tensorrt@10.3`; several may be given.
        device: a name from `profiles/`, which narrows findings to those that hold there.

    Raises:
        BadInput: there is no such file, it is damaged, or nothing here reads its kind.
        Unsupported: a package holds no ML Program.
        BackendMissing: the packages that read such a file are not installed.
    """
    named = [parse_subject(one) for one in ([read_for] if isinstance(read_for, str) else read_for)]
    if isinstance(path, MlProgram):
        own = on_device(_choose(path.path, named), device)
        return _lint_package(path, own)
    found = _find(Path(path), named)
    subjects = on_device(found.subjects, device or found.device)
    if found.path.suffix in PACKAGES:
        return _lint_package(found.path, subjects)
    graphs = _graphs(found.path)
    size = sum(map(_bytes, graphs))
    plain = Report(found.path, (), (), sum(len(graph.nodes) for graph in graphs), size, size)
    return _with_departures(plain, graphs, subjects)


def _find(given: Path, named: Sequence[Subject]) -> _File:
    """Return the file that a path means. Raises BadInput."""
    if given.suffix in SUFFIXES:
        if not given.exists():
            raise BadInput(f"there is no {given}; give an artifact's folder, or a file {', '.join(SUFFIXES)}")
        if given.suffix == ".aimodel" and not given.is_dir():
            raise BadInput(
                f"{given.name} is a file, and an .aimodel is a folder; give the folder that holds main.mlirb"
            )
        device = _device_beside(given)
        return _File(given, _choose(given, named or (_of_target("tensorrt") if device else ())), device)
    if given.exists() and not (given / MANIFEST).is_file() and not (given.parent / MANIFEST).is_file():
        raise BadInput(f"{given} is no file that lint reads; wanted {', '.join(SUFFIXES)} or an artifact's folder")
    artifact = artifacts.read(given)
    if artifact.file.suffix not in SUFFIXES:
        raise BadInput(
            f"{given.name} is an artifact for {artifact.target} whose {artifact.file.suffix or 'file'} has no graph to"
            " read; lint the ONNX file that it was built of"
        )
    subjects = _choose(artifact.file, named or _of_target(artifact.target))
    device = artifact.manifest["target"]["options"].get("device")
    return _File(artifact.file, subjects, device or _device_beside(artifact.file))


def _of_target(target: str) -> list[Subject]:
    """Return who computes an artifact of a target, where the book has one of that name."""
    return [Subject(target)] if target in TARGETS else []


def _device_beside(file: Path) -> str | None:
    """Return the device of a kit that a file lies in."""
    kit = file.parent / KIT
    if file.suffix != ".onnx" or not kit.is_file():
        return None
    try:
        return read_kit(file.parent)["device"]
    except Unreadable:
        return None


def _choose(file: Path, named: Sequence[Subject]) -> tuple[Subject, ...]:
    """Return who computes a file. Raises BadInput where somebody who was named does not take such files."""
    known = [name for name, one in TARGETS.items() if file.suffix in one.suffixes]
    for subject in named:
        if subject.target not in known:
            raise BadInput(f"{subject.label} does not take {file.name}; of such files there are {', '.join(known)}")
    return tuple(named) or (Subject(known[0]),)


def _graphs(path: Path) -> list[Graph]:
    if path.suffix == ".onnx":
        return [graph_of_onnx(read_onnx(path, whole=False), path.name)]
    from edgesmith.exporters.departures.from_coreai import graph_of_coreai

    return [graph_of_coreai(path)]


def _lint_package(path: Path | MlProgram, subjects: Sequence[Subject]) -> Report:
    """Lint a Core ML package."""
    from edgesmith.exporters.departures.from_mil import graph_of_mil
    from edgesmith.exporters.mil.program import load

    program = path if isinstance(path, MlProgram) else load(path)
    graphs = [graph_of_mil(function) for function in program.functions.values()]
    return _with_departures(packages.lint(program), graphs, subjects)


def _with_departures(report: Report, graphs: Sequence[Graph], subjects: Sequence[Subject]) -> Report:
    """Return a report with the departures that subjects are known for added."""
    found: list[Finding] = list(report.findings)
    rows: dict[str, Departure] = {}
    severities: dict[str, str] = {}
    ruled = {one.rule for one in report.findings}
    for subject in subjects:
        for row in subject.rows():
            if row.detector is None or row.id in rows or row.rule in ruled:
                continue  # the rule has found it, under its own name
            severity = row.severity(subject.version, subject.is_chip_known)
            findings = [one for graph in graphs for one in _findings(row, severity, graph)]
            if findings:
                rows[row.id], severities[row.id] = row, severity
                found += findings
    found.sort(key=lambda one: SEVERITIES.index(one.severity))
    advice = [_advice(row, severities[row.id]) for row in rows.values()]
    advice.sort(key=lambda one: SEVERITIES.index(one.severity))
    labels = tuple(subject.label for subject in subjects)
    return replace(report, findings=tuple(found), departures=tuple(advice), read_for=labels)


def _findings(row: Departure, severity: str, graph: Graph) -> Iterator[Finding]:
    """Yield the findings of a row in a graph, each once."""
    seen: set[tuple[int | str, str]] = set()
    for position, fact in all_detectors()[row.detector or ""](graph):
        key = (position if isinstance(position, str) else id(position), fact)
        if key not in seen:
            seen.add(key)
            yield _finding(row, severity, graph, position, fact)


def _finding(row: Departure, severity: str, graph: Graph, at: Position, fact: str) -> Finding:
    function = str(graph.settings.get("name", "main"))
    if isinstance(at, Node):
        return Finding(row.id, severity, function, at.spelled or at.kind, at.name, at.module, fact)
    kind = "state" if at in graph.states else "output" if at in graph.outputs else "input"
    return Finding(row.id, severity, function, kind, at, None, fact)


def _advice(row: Departure, severity: str) -> Advice:
    return Advice(row.id, severity, f"{row.construct} {row.wrong} ({row.where}.)", row.sources, row.safe)


def find(row: Departure, graph: Graph) -> list[tuple[Position, str]]:
    """Return what a row's detector finds in a graph."""
    return list(all_detectors()[row.detector](graph)) if row.detector else []


def _bytes(graph: Graph) -> int:
    """Return the bytes of all values that are computed, as far as their sizes are known."""
    made = [graph.value(name) for node in graph.nodes for name in node.outputs]
    known = [one for one in made if one is not None and one.shape is not None and None not in one.shape]
    return sum(math.prod(size or 0 for size in one.shape or ()) * _BYTES.get(one.dtype, 1) for one in known)


def explain(name: str) -> Advice:
    """Return a rule of the Neural Engine by its name. Raises BadInput, with the nearest rules and departures."""
    if name in RULES:
        return RULES[name]
    raise unknown("rule or departure", name, [*all_departures(), *RULES], "docs/lint.md")
