"""The commands that show what was made and measured: `report`, and `history` over time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from edgesmith.cli import options as given
from edgesmith.cli.tables import new_table, print_json, print_line, print_table, show_stage

if TYPE_CHECKING:
    from edgesmith.bench.history import Change, Series

HISTORY = Path("measurements") / "history.sqlite"


def report(
    folder: given.ReportFolder, estimate: given.EstimateFor = None, out: given.PagePath = Path("report.html")
) -> None:
    """Write one HTML page of what lies below a folder; it needs no network and no script."""
    from edgesmith.bench.report.page import write_report

    with show_stage("report"):
        found = write_report(folder, out, estimate or ())
    for name, reason in found.unread:
        print_line(f"not read: {name}: {reason}", to_stderr=True)
    print_line(out)


history = typer.Typer(invoke_without_command=True, help="Latencies over time, and where they changed for good.")


@history.callback()
def show(context: typer.Context, file: given.HistoryFile = HISTORY, as_json: given.Json = False) -> None:
    """Show each series of a history, and where it changed; `history add RECORD ...` adds to it."""
    if context.invoked_subcommand is not None:
        return
    from edgesmith.bench.history import describe, read

    found = read(file)
    if as_json:
        print_json(describe(found))
        return
    for series in found:
        _show_series(series)


@history.command()
def add(records: given.NewRecords, file: given.HistoryFile = HISTORY) -> None:
    """Add records to a history; what is in it already is not added again."""
    from edgesmith.bench import history as histories

    for record in records:
        count = histories.add(file, record)
        print_line(f"{record}: {count} new" if count else f"{record}: already there")


def _show_series(series: Series) -> None:
    columns = ("measured", "p50, ms", "p90, ms", "edgesmith", "runtime", "file", "")
    table = new_table(series.key.words, *columns)
    changes = {change.at: change for change in series.changes}
    for i, point in enumerate(series.points):
        ends = "" if point.low_ms is None else f" ({point.low_ms:.3f} to {point.high_ms:.3f})"
        row = (point.started, f"{point.p50_ms:.3f}{ends}", f"{point.p90_ms:.3f}", point.edgesmith, point.version)
        table.add_row(*row, point.sha256[:8], _describe_change(changes[i]) if i in changes else "")
    print_table(table)
    if len(series.points) < 6:
        print_line("fewer than 6 points: too few to see a change")


def _describe_change(change: Change) -> str:
    cause = f"; new: {', '.join(change.cause)}" if change.cause else ""
    return f"{change.after_ms / change.before_ms - 1:+.1%}: {change.before_ms:.3f} -> {change.after_ms:.3f}{cause}"
