"""A verdict for a pull request (Markdown) and for a dashboard (JUnit XML)."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree import ElementTree

from edgesmith.bench.measurement import Measurement
from edgesmith.bench.statistics import with_ends
from edgesmith.bench.verdict import FASTER, SLOWER, UNCHANGED, Verdict
from edgesmith.show import in_markdown, in_xml


def markdown(verdicts: Sequence[Verdict], measurement: Measurement | None, threshold: float, confidence: float) -> str:
    """A table with a row for each comparison, and under it where and how it was measured."""
    rows = [
        "| base | head | base, ms | head, ms | head / base | verdict |",
        "|---|---|---:|---:|---:|---|",
    ]
    for one in verdicts:
        name = f"**{one.verdict}**" if one.verdict == SLOWER else one.verdict
        rows.append(
            f"| {in_markdown(one.base)} | {in_markdown(one.head)} | {_ms(one.base_ms)} | {_ms(one.head_ms)}"
            f" | {_ratio(one)} | {name} |"
        )
    notes = [f"Medians, and {confidence:.0%} intervals of their ratio; a change by {threshold:.1%} matters."]
    if measurement is not None:
        device = measurement.device
        ways = dict.fromkeys(measurement.held_to(i) for i in range(len(measurement.subjects)))
        named = filter(None, (f"{device.name} ({device.cpu})", device.power_mode, *ways))
        where = ", ".join(map(in_markdown, named))
        notes.append(f"{len(measurement.launches)} launches on {where}.")
    others = [
        f"{in_markdown(one.head)}: {in_markdown(one.reason)}."
        for one in verdicts
        if one.verdict not in (SLOWER, FASTER, UNCHANGED)
    ]
    return "\n".join([*rows, "", " ".join(notes), *others]) + "\n"


def junit(verdicts: Sequence[Verdict]) -> str:
    """A test for each comparison: slower is a failure, what could not be told is skipped with its reason."""
    failed = [one for one in verdicts if one.verdict == SLOWER]
    passed = [one for one in verdicts if one.verdict in (FASTER, UNCHANGED)]
    suite = ElementTree.Element(
        "testsuite",
        name="edgesmith.latency",
        tests=str(len(verdicts)),
        failures=str(len(failed)),
        errors="0",
        skipped=str(len(verdicts) - len(failed) - len(passed)),
    )
    for one in verdicts:
        case = ElementTree.SubElement(
            suite, "testcase", classname="edgesmith.latency", name=in_xml(f"{one.base} -> {one.head}")
        )
        if one in failed:
            ElementTree.SubElement(case, "failure", message=in_xml(one.reason), type=one.verdict)
        elif one not in passed:
            ElementTree.SubElement(case, "skipped", message=in_xml(f"{one.verdict}: {one.reason}"))
        ElementTree.SubElement(case, "system-out").text = in_xml(f"{one.verdict}: {one.reason}")
    ElementTree.indent(suite)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(suite, encoding="unicode") + "\n"


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _ratio(one: Verdict) -> str:
    if one.ratio is None:
        return ""
    return with_ends(one.ratio.value, one.ratio.low, one.ratio.high)
