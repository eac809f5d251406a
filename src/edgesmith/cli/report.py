"""The commands that show what was made and measured: `report`, and `history` over time."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from edgesmith.bench.history import Series


def report(
    folder: Annotated[
        Path,
        typer.Argument(help="Where artifacts, records, estimates and histories lie, at any depth.", show_default=False),
    ],
    estimate: Annotated[
        list[str] | None,
        typer.Option(
            help="Also estimate every artifact for this device, apart from what was measured; may be repeated. Names:"
            " edgesmith devices.",
            metavar="DEVICE",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The page.")] = Path("report.html"),
) -> None:
    """Write one HTML page of what lies below a folder; it needs no network and no script."""
    from edgesmith.bench.report.page import write_report

    found = write_report(folder, out, estimate or ())
    for name, reason in found.unread:
        print(f"not read: {name}: {reason}", file=sys.stderr)
    print(out)


history = typer.Typer(invoke_without_command=True, help="Latencies over time, and where they changed for good.")

File = Annotated[Path, typer.Option("--file", "-f", help="The history: one SQLite file.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
DEFAULT = Path("measurements") / "history.sqlite"


@history.callback()
def show(context: typer.Context, file: File = DEFAULT, as_json: Json = False) -> None:
    """Show each series of a history, and where it changed; `history add RECORD ...` adds to it."""
    if context.invoked_subcommand is not None:
        return
    from edgesmith.bench.history import read

    found = read(file)
    if as_json:
        print(json.dumps([asdict(series) for series in found], indent=2, ensure_ascii=False))
        return
    for series in found:
        _print_series(series)


@history.command()
def add(
    records: Annotated[list[Path], typer.Argument(help="Records of `edgesmith bench`.", show_default=False)],
    file: File = DEFAULT,
) -> None:
    """Add records to a history; what is in it already is not added again."""
    from edgesmith.bench import history as histories

    for record in records:
        count = histories.add(file, record)
        print(f"{record}: {count} new" if count else f"{record}: already there")


def _print_series(series: Series) -> None:
    from edgesmith.cli.app import _print, _table

    table = _table(series.key.words, "measured", "p50, ms", "p90, ms", "edgesmith", "runtime", "file", "")
    changes = {change.at: change for change in series.changes}
    for i, point in enumerate(series.points):
        ends = "" if point.low_ms is None else f" ({point.low_ms:.3f} to {point.high_ms:.3f})"
        said = ""
        if i in changes:
            change = changes[i]
            share = change.after_ms / change.before_ms - 1
            cause = f"; new: {', '.join(change.cause)}" if change.cause else ""
            said = f"{share:+.1%}: {change.before_ms:.3f} -> {change.after_ms:.3f}{cause}"
        row = (point.started, f"{point.p50_ms:.3f}{ends}", f"{point.p90_ms:.3f}", point.edgesmith, point.version)
        table.add_row(*row, point.sha256[:8], said)
    _print(table)
    if len(series.points) < 6:
        print("fewer than 6 points: too few to see a change")
