"""The section of estimates: tables and figures of their own, each with the word ESTIMATED, and no measurement in any.

An entry is an artifact on a device: an estimate, or the reason why there is none. A device has one table for the
entries whose errors on rows that were not fitted on are the same, which they are unless files of another version are
among them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from edgesmith.bench.estimation.estimate import Estimate, LeftOut, estimate_each
from edgesmith.bench.report.blocks import Block, Cell, Figure, Figures, Folded, Reason, Share, Table, Text
from edgesmith.bench.report.tradeoff import LEAST_ERROR, Point, draw_tradeoff
from edgesmith.bench.statistics import Interval
from edgesmith.errors import EdgesmithError
from edgesmith.exporters.artifact import Artifact
from edgesmith.models import registry
from edgesmith.profiles.device import DeviceProfile

BADGE = "ESTIMATED"
HERE = "this page"
MOST_UNFOLDED = 6
"""Artifacts on a device whose costliest operators are shown at once; those of more unfold."""


@dataclass(frozen=True)
class Entry:
    """An artifact on a device.

    Attributes:
        artifact: its folder, or what an estimate says of an artifact that is elsewhere.
        device: the device's title.
        found: the estimate, or why there is none.
        origin: the file that it is from, or HERE.
    """

    artifact: str
    device: str
    found: Estimate | str
    origin: str = HERE


Estimated = tuple[Entry, Estimate]
"""An entry with its estimate, for those that have one."""


def list_entries(
    made: Sequence[tuple[str, Artifact]], saved: Sequence[tuple[str, Estimate]], profiles: Sequence[DeviceProfile]
) -> list[Entry]:
    """Every artifact on every device, device by device, and the saved estimates that say something else."""
    found = [list(estimate_each(artifact, profiles)) for _, artifact in made]
    entries = []
    for i, profile in enumerate(profiles):
        for (name, artifact), each in zip(made, found, strict=True):
            one = each[i]
            if isinstance(one, EdgesmithError):
                entries.append(Entry(name, profile.title, str(one).replace(str(artifact.path), name)))
            else:
                entries.append(Entry(name, profile.title, one))
    known = [entry.found.as_json() for entry in entries if isinstance(entry.found, Estimate)]
    names = {artifact.digest: name for name, artifact in reversed(made)}
    for file, one in saved:
        if one.as_json() not in known:
            name = names.get(one.sha256, f"{one.model}, {one.precision}, not in this folder")
            entries.append(Entry(name, one.title, one, file))
    return entries


def estimate_blocks(entries: Sequence[Entry], errors: Mapping[str, float | None]) -> Iterator[Block]:
    """Yield the estimates for each device. errors: of the artifacts' files, by their digest."""
    if not entries:
        return
    yield Text(
        "Nothing here was run. An estimate adds up what the operators of a file compute and move, with figures of the"
        " device and coefficients that are fitted on latencies that others published. It stands in no table and no"
        " figure with what was measured."
    )
    drawn: list[Figure] = []
    for device in dict.fromkeys(entry.device for entry in entries):
        own = [entry for entry in entries if entry.device == device]
        yield Text(device, level=3)
        yield from _device(device, own)
        figures = list(_tradeoffs(device, own, errors, len(drawn)))
        drawn += figures
        if figures:
            yield Figures(tuple(figures))


def _device(device: str, entries: Sequence[Entry]) -> Iterator[Block]:
    reasons = [(entry.artifact, entry.found) for entry in entries if isinstance(entry.found, str)]
    groups = _alike(entries)
    if not groups:
        yield _none_for(device, reasons)
    for i, ((runtime, coverage, left), own) in enumerate(groups.items()):
        shared = [note for note in own[0][1].notes if all(note in one.notes for _, one in own)]
        yield Text(
            f"{BADGE}, nothing was run: one call, as by {runtime}. Such estimates were off by {left.sentence()}."
            f" The interval reaches as far as {coverage:.0%} of those rows lie from their estimates."
        )
        yield from (Text(f"Note: {note}.") for note in shared)
        yield _table(device, coverage, own, [] if i else reasons, shared)
        costliest = _costliest(device, own)
        several = len(own) > MOST_UNFOLDED
        yield Folded(f"{BADGE}: the operators that cost most", (costliest,)) if several else costliest


def _alike(entries: Sequence[Entry]) -> dict[tuple[str, float, LeftOut], list[Estimated]]:
    """Entries with an estimate, by runtime, coverage, and how far such estimates were off."""
    groups: dict[tuple[str, float, LeftOut], list[Estimated]] = {}
    for entry in entries:
        if isinstance(entry.found, Estimate):
            key = entry.found.runtime, entry.found.coverage, replace(entry.found.left_out, logs=())
            groups.setdefault(key, []).append((entry, entry.found))
    return groups


def _none_for(device: str, reasons: Sequence[tuple[str, str]]) -> Block:
    """The reasons for which there is no estimate, in a sentence where several artifacts share one."""
    if len(reasons) > 1 and len({reason for _, reason in reasons}) == 1:
        return Text(f"No artifact is estimated: {reasons[0][1]}.")
    return Table(f"Not estimated for {device}", ("artifact", "why there is no estimate"), tuple(reasons))


def _table(
    device: str,
    coverage: float,
    entries: Sequence[Estimated],
    reasons: Sequence[tuple[str, str]],
    shared: Sequence[str],
) -> Table:
    columns = ["artifact", "p50, ms", f"{coverage:.0%} interval, ms", "of it a call by itself, ms"]
    columns += ["multiply-accumulates, M", "operators"]
    with_notes = any(note not in shared for _, one in entries for note in one.notes)
    with_origin = any(entry.origin != HERE for entry, _ in entries)
    columns += ["notes"] * with_notes + ["from"] * with_origin
    rows: list[tuple[Cell, ...]] = []
    for entry, one in entries:
        low, high = one.interval_ms
        row = [entry.artifact, f"{one.p50_ms:.2f}", f"{low:.2f} to {high:.2f}", f"{one.call_ms:.2f}"]
        row += [f"{one.macs / 1e6:.0f}", str(one.operators)]
        row += ["; ".join(note for note in one.notes if note not in shared)] * with_notes + [entry.origin] * with_origin
        rows.append(tuple(row))
    rows += [(artifact, Reason(f"not estimated: {reason}")) for artifact, reason in reasons]
    return Table(f"{device}, estimated", tuple(columns), tuple(rows), figures=(1, 2, 3, 4, 5), badge=BADGE)


def _costliest(device: str, entries: Sequence[Estimated]) -> Table:
    costs = [(entry.artifact, cost) for entry, one in entries for cost in one.costliest]
    longest = max((cost.share for _, cost in costs), default=0.0) or 1.0
    rows = tuple(
        (
            artifact,
            cost.type,
            "not known" if cost.module is None else cost.module or "the model itself",
            Share(cost.share, cost.share / longest),
            f"{cost.ms:.3f}",
            cost.bound,
        )
        for artifact, cost in costs
    )
    columns = ("artifact", "operator", "module", "share of a call", "ms", "bound by")
    return Table(f"Operators that cost most on {device}, estimated", columns, rows, figures=(4,), badge=BADGE)


def _tradeoffs(
    device: str, entries: Sequence[Entry], errors: Mapping[str, float | None], count: int
) -> Iterator[Figure]:
    """Estimates against errors and published accuracies, task by task, where there are two to compare."""
    models = registry.all_models()
    points: dict[tuple[str, str], list[Point]] = {}
    for entry in entries:
        one = entry.found
        if isinstance(one, str):
            continue
        spec = models.get(one.model)
        task = spec.task if spec else one.model
        p50 = Interval(one.p50_ms, *one.interval_ms)
        label = entry.artifact + ("" if entry.origin == HERE else f", {entry.origin}")
        error = errors.get(one.sha256)
        if error is not None:
            points.setdefault(("error", task), []).append((label, p50, max(error, LEAST_ERROR)))
        if spec and spec.top1:
            points.setdefault(("accuracy", task), []).append((label, p50, max(spec.top1)))
    several = {key: own for key, own in points.items() if len(own) > 1}
    for i, ((kind, task), own) in enumerate(several.items(), count):
        yield draw_tradeoff(f"estimated-{kind}-{i}", f"{task}, {device}", kind, own, is_estimated=True)
