"""The command `peers`: what a model takes in other runtimes and in ours, on this machine, in one interleaved run."""

from __future__ import annotations

import datetime
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from edgesmith.cli import options as given
from edgesmith.cli.chosen import Chosen, choose, chooses_model
from edgesmith.cli.signals import Interrupted
from edgesmith.cli.tables import (
    counted,
    describe_interval,
    new_table,
    print_json,
    print_line,
    print_table,
    printing_to_stderr,
    show_progress,
    show_stage,
)
from edgesmith.errors import BadInput
from edgesmith.writing import refuse_unwritable

if TYPE_CHECKING:
    from edgesmith.bench.peers.record import ModelRecord, PeersRecord, RowRecord


@chooses_model
def peers(
    chosen: Chosen,
    names: given.PeersModels = None,
    peer: given.PeerNames = None,
    seconds: given.PeersSeconds = 60.0,
    launches: given.PeersLaunches = 8,
    threads: given.Threads = 1,
    cores: given.Cores = None,
    out: given.PeersRecordFile = None,
    as_json: given.Json = False,
) -> None:
    """Time models in other runtimes and in ours, each in a process of its own, in turn, with outputs checked.

    A peer is given the module as it is written and our export; the faster of the two counts. fp32, on this machine.
    """
    found = [choose(model=name) for name in names or ()] + ([chosen] if chosen.model is not None else [])
    if not found:
        raise BadInput("give models: names from `edgesmith models`, or --module path/to/file.py:callable")
    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%SZ")
    file = out if out is not None else Path("measurements") / f"peers-{stamp}.json"
    if file.suffix != ".json":
        raise BadInput(f"a record is a .json file, got {file}")
    refuse_unwritable(file, "record of peers")
    from edgesmith.bench.peers import peer as rivals

    entered, pinned = rivals.choose(peer), given.parse_cores(cores)
    with show_stage("import"):
        from edgesmith.bench.peers.contest import Settings
        from edgesmith.bench.peers.referee import Audience, hold_contests
        from edgesmith.bench.peers.subject import write_words
    words = [write_words(one.require(), one.options) for one in found]
    errors = sys.stderr  # what goes on puts another in its place
    audience = Audience(file, show_stage, show_progress, lambda said: print_line(f"note: {said}", to=errors))
    with printing_to_stderr():
        record = hold_contests(words, entered, Settings(seconds, launches, threads, pinned), audience)
    if as_json:
        print_json({**record, "record": str(file)})
    else:
        for model in record["models"]:
            _show_model(model, record)
        print_line(f"record: {file}")
    if not record["complete"]:
        done = sum(model["launches"] for model in record["models"])
        print_line(f"interrupted after {counted(done, 'launch', 'launches')}, kept in {file}", to_stderr=True)
        raise Interrupted


def _show_model(model: ModelRecord, record: PeersRecord) -> None:
    """Print one model's table, and what it comes to."""
    from edgesmith.bench.peers.referee import describe_outcome

    settings = f"{counted(record['threads'], 'thread')}, {counted(model['launches'], 'launch', 'launches')}"
    title = f"{model['model']}: {record['device']['cpu']}, {settings}"
    table = new_table(title, "runtime", "form", "p50, ms", "x ours", "error", "roofline", "", names=True)
    others = new_table("not timed", "runtime", "form", "error", "", names=True)
    for row in model["rows"]:
        if row["p50_ms"] is None:
            others.add_row(_title(row), row["form"], _error(row), row["why"])
        else:
            table.add_row(_title(row), row["form"], *_figures(row))
    print_table(table)
    if others.rows:
        print_table(others)
    peaks = model["peaks"]
    print_line(describe_outcome(model))
    print_line(
        f"roofline: {model['bound_ms']:.2f} ms for {model['macs'] / 1e6:.1f} M multiply-accumulates (convolutions and"
        f" matrix products as written) and {model['bytes'] / 1e6:.2f} MB, at {peaks['fma_gflops']:.1f} GFLOP/s and"
        f" {peaks['bandwidth_gb_s']:.1f} GB/s: {peaks['measured_by']}"
    )
    print_line()


def _title(row: RowRecord) -> str:
    return f"{row['title']} {row['version'].partition('-')[0]}".rstrip()


def _error(row: RowRecord) -> str:
    return "" if row["error"] is None else f"{row['error']:.1e}"


def _figures(row: RowRecord) -> tuple[str, ...]:
    """Return the cells of a row that was timed."""
    share = "" if row["share"] is None else f"{row['share']:.0%}"
    remarks = [word for word in ("ours", "counts") if row[word]]
    times = describe_interval(row["p50_ms"]), describe_interval(row["ratio"])
    return (*times, _error(row), share, ", ".join(remarks))
