"""The record of a contest: every round of every launch, and the figures that follow from them.

    p50     the median over launches of each launch's median round, with its interval (bench/statistics.py)
    ratio   how many times as long as ours: in each launch the median over rounds of log(theirs / ours), which were
            timed next to each other; over launches the mean, with a bootstrap-t interval
    share   of the roofline: the time that multiply-adds or memory need at least, over the median

Ours is the fastest of our own exports in their own runtimes. Of each peer the form that is faster counts.
"""

from __future__ import annotations

from typing import Literal, TypedDict

from edgesmith.bench.peers.processes import State

SCHEMA: Literal[1] = 1


class IntervalRecord(TypedDict):
    """A figure and the ends of its 95 % interval, which need six launches."""

    value: float
    low: float | None
    high: float | None


class RowRecord(TypedDict):
    """A peer with one form of the model.

    Attributes:
        ours: it is our export in its own runtime.
        counts: it is the peer's faster form.
        state: `wrong` where its outputs are not the model's.
        why: a sentence for every state but `timed`.
        version: of the runtime, where it came to that.
        error: the largest difference from eager PyTorch over its peak; null where it is not finite or not known.
        share: of the roofline.
        steady: launches whose warm-up became steady.
        rounds_ms: the median of each round, by launch.
    """

    peer: str
    title: str
    form: str
    ours: bool
    counts: bool
    state: State
    why: str
    version: str
    error: float | None
    p50_ms: IntervalRecord | None
    ratio: IntervalRecord | None
    share: float | None
    steady: int
    rounds_ms: list[list[float]]


class PeaksRecord(TypedDict):
    """The peaks of the machine on so many threads, medians of a slot in every round, and by what they were measured."""

    fma_gflops: float
    bandwidth_gb_s: float
    measured_by: str


class ModelRecord(TypedDict):
    """The contest on one model.

    Attributes:
        macs: multiply-accumulates of convolutions and matrix products as PyTorch runs the module as written.
        bytes: of weights, inputs and outputs, each once.
        bound_ms: the roofline's, milliseconds.
        peaks: of the machine, in turn with the peers.
    """

    model: str
    macs: int
    bytes: int
    bound_ms: float
    peaks: PeaksRecord
    launches: int
    rows: list[RowRecord]


class PeersRecord(TypedDict):
    """The contests of one run of `edgesmith peers`.

    Attributes:
        complete: all launches of all models were made.
        device: as in the records of `bench`.
        launches, seconds: as they were asked for, of each model.
    """

    schema: Literal[1]
    edgesmith: str
    started: str
    complete: bool
    device: dict[str, str | None]
    threads: int
    cores: list[int] | None
    launches: int
    seconds: float
    models: list[ModelRecord]
