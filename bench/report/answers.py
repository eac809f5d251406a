"""The first screen: whether all passed, whether anything is slower, what changed since when, of which project and date.

passed    every artifact's own checks against PyTorch, as its manifest has them
slower    in every record of several artifacts, each against the first, by `compare`'s rule
changed   the last change of each series of a history, with what else was new then
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgesmith.bench.history import Series
from edgesmith.bench.measurement import Measurement
from edgesmith.bench.report import figures
from edgesmith.bench.report.blocks import Answer, Answers, Block, Figure, Figures, Table, Text, drawing, interval
from edgesmith.bench.statistics import quantile
from edgesmith.bench.verdict import INCONCLUSIVE, NOT_COMPARABLE, SLOWER, Criterion, Verdict
from edgesmith.errors import Unreadable
from edgesmith.exporters.artifact import Artifact
from edgesmith.readers.budget import read_bytes

Subjects = Mapping[str, Sequence[tuple[str, Measurement, int]]]
"""By device, what was measured there: the record's name, the record, and the subject's number in it."""

_LARGEST = 2**24
"""Bytes of a file of git's that is read."""

MOST_IN_A_STRIP = 12
"""Rows of one strip; those of more artifacts are in the tables."""


@dataclass(frozen=True)
class Origin:
    """The origin of a page's files.

    Attributes:
        project: the name of the checkout that they lie in; empty where they lie in none.
        commit: what is checked out there; empty where that is not known.
    """

    project: str = ""
    commit: str = ""


def origin_of(folder: Path) -> Origin:
    """Return the checkout that a folder lies in, by what git keeps in files. No program is started."""
    for place in (folder.resolve(), *folder.resolve().parents):
        if (place / ".git").exists():
            return Origin(place.name, _commit(place / ".git"))
    return Origin()


def _commit(git: Path) -> str:
    """Return the commit that is checked out; empty where its files do not say."""
    try:
        if git.is_file():  # of a worktree: `gitdir: PATH`
            git = (git.parent / _text(git).partition(":")[2].strip()).resolve()
        head = _text(git / "HEAD").strip()
        if not head.startswith("ref: "):
            return head
        name = head.removeprefix("ref: ")
        shared = git / "commondir"
        root = (git / _text(shared).strip()).resolve() if shared.is_file() else git
        if (root / name).is_file():
            return _text(root / name).strip()
        packed = _text(root / "packed-refs").splitlines()
        return next((line.split(" ")[0] for line in packed if line.endswith(f" {name}")), "")
    except (OSError, ValueError, RuntimeError, Unreadable):  # RuntimeError: of links in a circle
        return ""


def _text(path: Path) -> str:
    return read_bytes(path, "file of git's", _LARGEST).decode(errors="replace")


def answer_blocks(
    made: Sequence[tuple[str, Artifact]],
    records: Sequence[tuple[str, Measurement]],
    kept: Sequence[tuple[str, Sequence[Series]]],
    by_device: Subjects,
) -> Iterator[Block]:
    """Yield the answers, the verdicts behind them, and each device's strip of latencies."""
    criterion = Criterion()
    verdicts = [(name, one) for name, measurement in records for one in criterion.judge_all(measurement)]
    answers = [
        *_passed(made),
        *_slower([one for _, one in verdicts], criterion),
        *(_changed(series) for _, several in kept for series in several if series.changes),
    ]
    if kept and not any(series.changes for _, several in kept for series in several):
        answers.append(Answer("Changed", "no", "no series of a history has changed for good"))
    if answers:
        yield Answers(tuple(answers))
    if verdicts:
        yield _verdict_table(verdicts, criterion)
    strips = tuple(
        _strip(f"strip-{i}", device, subjects, len(records) > 1)
        for i, (device, subjects) in enumerate(by_device.items(), 1)
        if any(measurement.samples(n) for _, measurement, n in subjects)
    )
    if strips:
        yield Figures(strips)
    elif not answers:
        yield Text("Nothing here was checked or measured.")


def _passed(made: Sequence[tuple[str, Artifact]]) -> Iterator[Answer]:
    if not made:
        return
    missed = [name for name, one in made if "missed" in one.manifest["verification"]]
    unseen = [name for name, one in made if not _was_compared(one)]
    if missed:
        yield Answer(
            "Passed", "no", f"{len(missed)} of {len(made)} artifacts miss a threshold: {', '.join(missed)}", is_bad=True
        )
    elif unseen:
        words = f"{len(unseen)} of {len(made)} artifacts ran nowhere yet, and nobody knows: {', '.join(unseen)}"
        yield Answer("Passed", "not known", words)
    else:
        yield Answer("Passed", "yes", f"all {len(made)} hold to PyTorch" if len(made) > 1 else "it holds to PyTorch")


def _was_compared(artifact: Artifact) -> bool:
    return any("max_abs_error" in step for step in artifact.manifest["verification"]["steps"])


def _slower(verdicts: Sequence[Verdict], criterion: Criterion) -> Iterator[Answer]:
    if not verdicts:
        return
    worse = [one for one in verdicts if one.verdict == SLOWER]
    open_ones = [one for one in verdicts if one.verdict in (INCONCLUSIVE, NOT_COMPARABLE)]
    share = f"{criterion.threshold:.0%}"
    if worse:
        words = "; ".join(f"{one.head} against {one.base}: {one.reason}" for one in worse)
        yield Answer("Slower", "yes", words, is_bad=True)
    elif open_ones:
        words = "; ".join(f"{one.head} against {one.base}: {one.verdict}" for one in open_ones)
        yield Answer("Slower", "not known", words)
    else:
        yield Answer("Slower", "no", f"nothing by {share}, of {len(verdicts)} compared")


def _changed(series: Series) -> Answer:
    change = series.changes[-1]
    share = change.after_ms / change.before_ms - 1
    cause = f"; new then: {', '.join(change.cause)}" if change.cause else ""
    since = series.points[change.at].started[:10]
    words = f"{series.key.words}: {change.before_ms:.3f} to {change.after_ms:.3f} ms since {since}{cause}"
    return Answer("Changed", f"{share:+.1%}", words, is_bad=share > 0)


def _verdict_table(verdicts: Sequence[tuple[str, Verdict]], criterion: Criterion) -> Table:
    several = len({name for name, _ in verdicts}) > 1
    rows = tuple(
        (
            one.head,
            one.base,
            one.verdict,
            "" if one.ratio is None else interval(one.ratio),
            f"{criterion.threshold:.0%}",
            "" if one.head_ms is None or one.base_ms is None else f"{one.base_ms:.3f} to {one.head_ms:.3f}",
            *((name,) if several else ()),
        )
        for name, one in verdicts
    )
    columns = ("head", "base", "verdict", "time of head over base", "threshold", "median, ms", *(("record",) * several))
    return Table(f"Verdicts, with intervals of {criterion.confidence:.0%}", columns, rows, figures=(3, 4, 5))


def _strip(name: str, device: str, subjects: Sequence[tuple[str, Measurement, int]], several: bool) -> Figure:
    """Return one device's latencies, an artifact a row."""
    rows = []
    for record, measurement, i in subjects:
        if samples := measurement.samples(i):
            label = measurement.subjects[i].name + (f", {record}" if several else "")
            rows.append((label, [quantile(samples, share) for share in (0.5, 0.9, 0.99)]))
    title = f"Latencies on {device}"
    shown = rows[:MOST_IN_A_STRIP]
    fastest, slowest = (pick(rows, key=lambda row: row[1][0].value) for pick in (min, max))
    summary = (
        f"A dot is p50, the bar ends at p90, the line at p99. Fastest: {fastest[0]} with {fastest[1][0].value:.3f} ms."
        f" Slowest: {slowest[0]} with {slowest[1][0].value:.3f} ms."
        + (f" {len(rows) - len(shown)} more are in the tables." if len(rows) > len(shown) else "")
    )
    strips = [(label, p50.value, p90.value, p99.value) for label, (p50, p90, p99) in shown]
    svg = figures.draw_strip(name, title, summary, strips)
    data = tuple((label, *(interval(one) for one in found)) for label, found in rows)
    table = Table(title, ("artifact", "p50, ms", "p90, ms", "p99, ms"), data, figures=(1, 2, 3))
    return Figure(name, title, summary, drawing(svg), table)
