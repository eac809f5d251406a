"""A contest: every peer with every form of a model that it reads, in turn, in launches of fresh processes.

    convert   each peer makes its own file of each form, once, in a process of its own
    launch    a process for each: open the file, compare its outputs with PyTorch's, warm up until steady; then rounds
              with one slot for each, one process at a time, the others waiting
    rows      figures over launches, by bench/statistics.py

The machine's peaks have a slot in every round, too.

As in measure.py launches come in pairs, the second in the reverse order of the first, and so do rounds. A peer that
refuses, crashes or computes something else is out from then on, and its row says why. An interrupted contest keeps its
complete launches.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from edgesmith.bench.peers.peaks import Meter
from edgesmith.bench.peers.peer import MODULE, Peer, Source, find, keep_file
from edgesmith.bench.peers.processes import Out, Process, State, process_of
from edgesmith.bench.peers.record import IntervalRecord, ModelRecord, RowRecord
from edgesmith.bench.peers.subject import AS_WRITTEN, Form, Subject, export_forms
from edgesmith.bench.peers.worker import read_arrays, write_arrays
from edgesmith.bench.runner import turns
from edgesmith.bench.statistics import Interval, log_ratios, paired_ratio, quantile
from edgesmith.board.common import SLOT_MS
from edgesmith.errors import BadInput
from edgesmith.exporters.figures import measure
from edgesmith.exporters.options import Watch, silent

TORCH_ONNX = "edgesmith.bench.peers.torch_onnx"

CONFIDENCE = 0.95

WRONG = 1e-3
"""Of the peak: rounding in fp32 never comes to it, so a runtime beyond it computes in fewer bits, or something else."""

CONVERT_S, OPEN_S, WARM_S, SLOT_S = 600.0, 180.0, 120.0, 120.0
"""The longest that a peer may take for each."""


@dataclass(frozen=True)
class Settings:
    """The settings of a contest.

    Attributes:
        seconds: of rounds, in all launches of a model together.
        launches: of fresh processes.
        threads: of every runtime.
        cores: to pin the processes to.

    Raises:
        BadInput: a number that must be above 0 is not, or is infinite.
    """

    seconds: float = 60.0
    launches: int = 8
    threads: int = 1
    cores: Sequence[int] | None = None

    def __post_init__(self) -> None:
        for name in ("seconds", "launches", "threads"):
            if not 0 < getattr(self, name) < math.inf:
                raise BadInput(f"{name} must be more than 0 and finite, got {getattr(self, name)}")


@dataclass
class Entry:
    """A peer with one form of a model, and what has come of it so far.

    Attributes:
        file: the runtime's own; None before it is made.
        rounds_ms: the median of each round, by launch.
        steady: launches whose warm-up became steady.
    """

    peer: Peer
    form: Form
    file: str | None = None
    state: State = "timed"
    why: str = ""
    version: str = ""
    error: float | None = None
    rounds_ms: list[list[float]] = field(default_factory=list)
    steady: int = 0

    @property
    def is_in(self) -> bool:
        """Return whether it still takes part."""
        return self.state == "timed"

    @property
    def is_ours(self) -> bool:
        """Return whether it is our export in its own runtime."""
        return self.form.runs_in == self.peer.name

    def leave(self, out: Out) -> None:
        """Take it out of the contest."""
        self.state, self.why, self.rounds_ms, self.steady = out.state, str(out), [], 0


class Contest:
    """A contest under way: its entries, and the launches that are complete."""

    def __init__(self, subject: Subject, folder: Path, settings: Settings, meter: Meter) -> None:
        self.subject, self.folder, self.settings, self.entries = subject, folder, settings, list[Entry]()
        self.meter = meter
        self.launches = 0
        self._inputs = folder / "inputs"
        write_arrays(subject.inputs, self._inputs)

    def enter(self, peers: Sequence[Peer], watch: Watch = silent) -> None:
        """Make the forms that the peers read, and each peer's file of each."""
        installed = [peer for peer in peers if peer.lacks() is None]
        forms = self._forms(installed, watch)
        for peer in peers:
            if (why := peer.lacks()) is not None:
                nothing = Form("", MODULE, None)
                self.entries.append(Entry(peer, nothing, state="missing", why=why))
                continue
            self.entries += [Entry(peer, form) for form in forms if _reads(peer, form)]
        for i, entry in enumerate(one for one in self.entries if one.is_in):
            folder = self.folder / f"entry-{i}"
            if entry.form.source is None:
                entry.leave(Out("refused", entry.form.why))
            elif entry.peer.convert is keep_file:
                entry.file = str(keep_file(entry.form.source, folder))
            else:
                with watch(f"convert for {entry.peer.name}"):
                    self._convert(entry, entry.form.source, folder)

    def _forms(self, peers: Sequence[Peer], watch: Watch) -> list[Form]:
        """Return the forms that some peer reads."""
        kinds = sorted({kind for peer in peers for kind in peer.reads})
        forms = [Form(AS_WRITTEN, MODULE, self.subject.source(MODULE))]
        if any(MODULE not in peer.reads for peer in peers):
            with watch("PyTorch's ONNX export"):
                forms.append(self._written_by_pytorch())
        return forms + export_forms(self.subject, kinds, self.folder / "ours", watch)

    def _written_by_pytorch(self) -> Form:
        """Return the module as an ONNX file of PyTorch's own exporter, made in another process."""
        entry = Entry(find(TORCH_ONNX), Form(AS_WRITTEN, MODULE, None))
        self._convert(entry, self.subject.source(MODULE), self.folder / "as_written")
        if entry.file is None:
            return Form(AS_WRITTEN, "onnx", None, f"PyTorch's own ONNX exporter {entry.why}")
        return Form(AS_WRITTEN, "onnx", self.subject.source("onnx", Path(entry.file)))

    def _convert(self, entry: Entry, source: Source, folder: Path) -> None:
        """Have a peer make its own file."""
        task = {"do": "convert", "peer": entry.peer.place, "source": _words(source), "folder": str(folder)}
        try:
            with process_of(task, self.settings.threads, CONVERT_S) as (_, event):
                entry.file = event["file"]
        except Out as out:
            entry.leave(out)

    def run(self, on_progress: Callable[[int, int], None] = lambda *_: None) -> bool:
        """Make the launches. Returns whether all were made; after Ctrl-C the complete ones are kept."""
        on_progress(0, self.settings.launches)
        try:
            for number in range(self.settings.launches):
                self._launch(number)
                on_progress(number + 1, self.settings.launches)
        except KeyboardInterrupt:
            if not self.launches:
                raise
        return self.launches == self.settings.launches

    def _launch(self, number: int) -> None:
        """Time all that are in, and keep their rounds where the launch comes to its end."""
        order = [entry for entry in self.entries if entry.is_in]
        shift = (number // 2) % max(len(order), 1)
        order = order[shift:] + order[:shift]
        order = order[::-1] if number % 2 else order
        with ExitStack() as stack:
            opened = {id(entry): process for entry in order if (process := self._open(entry, stack)) is not None}
            steady = {id(entry) for entry in order if id(entry) in opened and self._warm(entry, opened[id(entry)])}
            rounds = self._rounds([entry for entry in order if entry.is_in], opened, number)
        for entry in order:
            if entry.is_in:
                entry.rounds_ms.append(rounds[id(entry)])
                entry.steady += id(entry) in steady
        self.launches += 1

    def _open(self, entry: Entry, stack: ExitStack) -> Process | None:
        """Start a peer's process, in which it opens its file, and compare its outputs. None where it is out."""
        assert entry.form.source is not None
        outputs = self.folder / "outputs"
        task = {
            "do": "time",
            "peer": entry.peer.place,
            "source": _words(entry.form.source),
            "file": entry.file,
            "threads": self.settings.threads,
            "cores": None if self.settings.cores is None else list(self.settings.cores),
            "inputs": str(self._inputs),
            "outputs": str(outputs),
            "slot_ms": SLOT_MS,
        }
        try:
            process, event = stack.enter_context(process_of(task, self.settings.threads, OPEN_S))
            entry.version = event["version"]
            entry.error = max(entry.error or 0.0, self._check(read_arrays(outputs)))
        except Out as out:
            entry.leave(out)
            return None
        if not entry.error <= WRONG:
            entry.error = entry.error if math.isfinite(entry.error) else None
            entry.leave(Out("wrong", _describe_error(entry.error)))
            return None
        return process

    def _check(self, outputs: list[list[np.ndarray]]) -> float:
        """Return how far outputs are from PyTorch's, of the peak. Raises Out where there are other ones."""
        shaped = []
        for calls, wanted in zip(outputs, self.subject.reference, strict=True):
            if [x.size for x in calls] != [y.size for y in wanted]:
                counts = " and ".join(str([list(one.shape) for one in arrays]) for arrays in (calls, wanted))
                raise Out("wrong", f"returns other outputs than PyTorch: {counts}")
            shaped.append([x.reshape(y.shape) for x, y in zip(calls, wanted, strict=True)])
        return max(measure([y], [x], 0.0).relative_error for y, x in zip(self.subject.reference, shaped, strict=True))

    def _warm(self, entry: Entry, process: Process) -> bool:
        """Have a peer warm up. Returns whether it became steady."""
        try:
            return bool(process.ask("warm", WARM_S)["is_steady"])
        except Out as out:
            entry.leave(out)
            return False

    def _rounds(self, order: Sequence[Entry], opened: Mapping[int, Process], number: int) -> dict[int, list[float]]:
        """Time entries in turn, an even number of rounds. Returns each one's median of every round."""
        rounds: dict[int, list[float]] = {id(entry): [] for entry in order}
        seconds, start = self.settings.seconds / self.settings.launches, time.perf_counter()
        for count, turn in enumerate(turns(range(len(order)), seed=number)):
            if not any(entry.is_in for entry in order):
                return rounds
            if count and count % 2 == 0 and time.perf_counter() - start >= seconds:
                return rounds
            self.meter.take()
            for entry in (order[i] for i in turn if order[i].is_in):
                try:
                    rounds[id(entry)].append(median(opened[id(entry)].ask("slot", SLOT_S)["samples_ms"]))
                except Out as out:
                    entry.leave(out)
        raise AssertionError("turns have no end")

    def record(self) -> ModelRecord:
        """Return what has come of it, under the machine's peaks."""
        peaks = self.meter.peaks
        bound = peaks.bound_ms(self.subject.macs, self.subject.bytes)
        timed = [entry for entry in self.entries if entry.is_in and entry.rounds_ms]
        middle = {id(entry): quantile(entry.rounds_ms, 0.5, CONFIDENCE) for entry in timed}
        timed.sort(key=lambda entry: middle[id(entry)].value)
        base = next((entry for entry in timed if entry.is_ours), None)
        first = {entry.peer.name: id(entry) for entry in reversed(timed)}
        rest = [entry for entry in self.entries if id(entry) not in middle]
        rows = [
            _row(entry, base, middle.get(id(entry)), bound, id(entry) in first.values()) for entry in [*timed, *rest]
        ]
        return {
            "model": self.subject.name,
            "macs": self.subject.macs,
            "bytes": self.subject.bytes,
            "bound_ms": bound,
            "peaks": {
                "fma_gflops": peaks.fma_gflops,
                "bandwidth_gb_s": peaks.bandwidth_gb_s,
                "measured_by": peaks.measured_by,
            },
            "launches": self.launches,
            "rows": rows,
        }


def _reads(peer: Peer, form: Form) -> bool:
    """Return whether a peer takes a form; of two forms as written, the module comes before the file made of it."""
    if form.label == AS_WRITTEN and form.kind != MODULE and MODULE in peer.reads:
        return False
    return form.kind in peer.reads


def _words(source: Source) -> dict[str, Any]:
    """Return a source as JSON holds it."""
    return {**vars(source), "inputs": list(source.inputs)}


def _describe_error(error: float | None) -> str:
    if error is None:
        return "WRONG: its outputs are not finite where PyTorch's are"
    return f"WRONG: its outputs are {error:.1e} of the peak from PyTorch's, and {WRONG:g} is the most"


def _interval(found: Interval) -> IntervalRecord:
    return {"value": found.value, "low": found.low, "high": found.high}


def _row(entry: Entry, base: Entry | None, middle: Interval | None, bound_ms: float, counts: bool) -> RowRecord:
    """Return an entry's row; `base` is what it is compared with, `middle` its median."""
    ratio = None
    if middle is not None and base is not None:
        ratio = paired_ratio(log_ratios(base.rounds_ms, entry.rounds_ms), CONFIDENCE)
    return {
        "peer": entry.peer.name,
        "title": entry.peer.title,
        "form": entry.form.label,
        "ours": entry.is_ours,
        "counts": counts,
        "state": entry.state,
        "why": entry.why,
        "version": entry.version,
        "error": entry.error,
        "p50_ms": None if middle is None else _interval(middle),
        "ratio": None if ratio is None else _interval(ratio),
        "share": None if middle is None else bound_ms / middle.value,
        "steady": entry.steady,
        "rounds_ms": entry.rounds_ms,
    }
