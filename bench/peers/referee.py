"""The referee: contests on one model after the other, and the record of them all.

The record is written after every launch, so that a run which is killed keeps what it has measured.
"""

from __future__ import annotations

import contextlib
import datetime
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgesmith import records
from edgesmith._version import __version__
from edgesmith.bench.measure import check_cores, describe_load, this_machine
from edgesmith.bench.peers.contest import Contest, Settings
from edgesmith.bench.peers.peaks import measuring
from edgesmith.bench.peers.peer import Peer
from edgesmith.bench.peers.record import SCHEMA, ModelRecord, PeersRecord
from edgesmith.bench.peers.subject import Words, prepare
from edgesmith.bench.runner import usable_cores
from edgesmith.bench.statistics import with_ends
from edgesmith.board.common import busy_cores
from edgesmith.exporters.options import Watch, silent

OnProgress = Callable[[int, int], None]


@contextlib.contextmanager
def unseen(task: str) -> Iterator[OnProgress]:
    """Show no progress."""
    yield lambda *_: None


@dataclass(frozen=True)
class Audience:
    """The listeners of contests.

    Attributes:
        record: file that is written after every launch.
        watch: entered with each stage before the launches.
        progress: entered with each model's launches; yields what hears how many are made.
        on_warning: hears a sentence about the machine.
    """

    record: Path | None = None
    watch: Watch = silent
    progress: Callable[[str], AbstractContextManager[OnProgress]] = unseen
    on_warning: Callable[[str], None] = lambda _: None


def hold_contests(
    models: Sequence[Words], peers: Sequence[Peer], settings: Settings, audience: Audience | None = None
) -> PeersRecord:
    """Hold a contest on each model.

    Args:
        models: see `subject.write_words`.

    Returns:
        The record; after Ctrl-C with the launches that were complete until then, and `complete` False.

    Raises:
        BadInput, CheckpointError: a model that cannot be made; a core that is not there.
        OutputError: the record cannot be written.
    """
    heard = audience or Audience()
    check_cores(settings.cores, usable_cores())
    loaded = describe_load("this machine", busy_cores(), len(usable_cores()), settings.threads)
    if loaded is not None:
        heard.on_warning(loaded)
    record: PeersRecord = {
        "schema": SCHEMA,
        "edgesmith": __version__,
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "complete": False,
        "device": asdict(this_machine()),
        "threads": settings.threads,
        "cores": None if settings.cores is None else list(settings.cores),
        "launches": settings.launches,
        "seconds": settings.seconds,
        "models": [],
    }
    try:
        for words in models:
            if not _hold_contest(words, peers, settings, heard, record):
                return record
    except KeyboardInterrupt:
        if not record["models"]:
            raise
        return record
    record["complete"] = True
    _write(record, heard)
    return record


def _hold_contest(
    words: Words, peers: Sequence[Peer], settings: Settings, heard: Audience, record: PeersRecord
) -> bool:
    """Hold one contest, and put what comes of it into the record. Returns whether all its launches were made."""
    before = list(record["models"])
    with tempfile.TemporaryDirectory(prefix="edgesmith-") as folder, contextlib.ExitStack() as stack:
        with heard.watch("PyTorch"):
            subject = prepare(words)
        with heard.watch("peaks of the machine"):
            meter = stack.enter_context(measuring(settings.threads, subject.bytes))
        contest = Contest(subject, Path(folder), settings, meter)
        contest.enter(peers, heard.watch)

        def keep() -> None:
            record["models"] = [*before, contest.record()]
            _write(record, heard)

        with heard.progress(f"measure {subject.name}") as on_progress:

            def hear(done: int, of: int) -> None:
                on_progress(done, of)
                if done:
                    keep()

            is_whole = contest.run(hear)
        keep()
    return is_whole


def _write(record: PeersRecord, heard: Audience) -> None:
    if heard.record is not None:
        records.write(record, heard.record, "record")


def describe_outcome(model: ModelRecord) -> str:
    """Return a sentence: ours, the best peer, and what lies between them."""
    timed = [row for row in model["rows"] if row["p50_ms"] is not None]
    ours = next((row for row in timed if row["ours"]), None)
    best = next((row for row in timed if row is not ours), None)
    if ours is None or best is None:
        return "no peer runs it" if ours is not None else "none of edgesmith's own files was timed"
    ratio: Mapping[str, Any] | None = best["ratio"]
    assert ratio is not None  # both were timed
    times = with_ends(ratio["value"], ratio["low"], ratio["high"])
    return f"the best peer is {best['title']} ({best['form']}), {times} x {ours['form']}"
