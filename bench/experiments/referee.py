"""Does MLPerf's LoadGen see the same latency as we do? SingleStream on the same session, call by call in turn with us.

    python -m edgesmith.bench.experiments.referee ARTIFACT [launches] [seconds]

LoadGen (`pip install mlcommons-loadgen`) issues one query after the other and reports the 90th percentile of the time
from issuing a query until its completion was told. Once it was told, and before LoadGen issues the next, we make a call
of our own and time it as `runner.py` does, so that what the machine does to one side it does to the other. A launch is
a fresh process that gives log(LoadGen's p90 / ours); the ratio over launches is that of `statistics.paired_ratio`. The
bar is five per cent.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgesmith.bench import runner
from edgesmith.bench.experiments.interleave import in_a_process
from edgesmith.bench.statistics import paired_ratio
from edgesmith.bench.subjects import runtime_of
from edgesmith.board.common import timed, warm_up
from edgesmith.errors import BackendMissing, BadInput, Unsupported
from edgesmith.exporters import artifact as artifacts

if TYPE_CHECKING:
    from edgesmith.board.common import Call

BAR = 0.05
CONFIDENCE = 0.95


def launch(file: str, seconds: str, seed: str) -> tuple[float, float, int]:
    """Run the referee once in this process."""
    call = runner.open_onnxruntime(file, 1, int(seed))
    warm_up(call)
    return stream(call, float(seconds))


def main() -> None:
    """Run the launches and print each one's figures, then the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("launches", type=int, nargs="?", default=8)
    parser.add_argument("seconds", type=float, nargs="?", default=20.0)
    given = parser.parse_args()
    before = os.getloadavg()[0]
    found = compare_with_loadgen(given.artifact, given.launches, given.seconds)
    print(f"load {before:.1f} before, {os.getloadavg()[0]:.1f} after")
    for ours, theirs, calls in found:
        print(f"p90 of {calls} calls: ours {ours:.3f} ms, LoadGen's {theirs:.3f} ms")
    ratio = paired_ratio(np.array([np.log(theirs / ours) for ours, theirs, _ in found]), CONFIDENCE)
    ends = "" if ratio.low is None or ratio.high is None else f" ({ratio.low:.4f} to {ratio.high:.4f})"
    verdict = "within" if abs(ratio.value - 1) <= BAR else "beyond"
    print(f"LoadGen's p90 is {ratio.value:.4f}{ends} of ours, {verdict} {BAR:.0%}")


def compare_with_loadgen(path: Path, launches: int, seconds: float) -> list[tuple[float, float, int]]:
    """Return of each launch our p90 and LoadGen's, milliseconds, and of how many calls each.

    Raises:
        BadInput: no artifact, or of another target than onnx.
        BackendMissing: LoadGen is not installed.
        Unsupported: a launch failed.
    """
    artifact = artifacts.read(path)
    if runtime_of(artifact) != "onnxruntime":
        raise BadInput(f"{path} is an artifact for {artifact.target}: the referee runs ONNX files")
    if importlib.util.find_spec("mlperf_loadgen") is None:
        raise BackendMissing("the referee is MLPerf's LoadGen: pip install mlcommons-loadgen")
    return [in_a_process(__spec__.name, artifact.file, seconds, number) for number in range(launches)]


def stream(call: Call, seconds: float, own: Call | None = None) -> tuple[float, float, int]:
    """Return our p90 and LoadGen's of a call, milliseconds, from one run of SingleStream, and of how many calls each.

    own: what we time between LoadGen's queries, if it is another call than theirs.
    """
    import mlperf_loadgen as loadgen

    samples: list[float] = []

    def issue(queries: Sequence[loadgen.QuerySample]) -> None:
        for query in queries:
            call()
            loadgen.QuerySamplesComplete([loadgen.QuerySampleResponse(query.id, 0, 0)])
            samples.append(timed(own or call))

    settings = loadgen.TestSettings()
    settings.scenario = loadgen.TestScenario.SingleStream
    settings.mode = loadgen.TestMode.PerformanceOnly
    settings.min_duration_ms = round(seconds * 1e3)
    settings.min_query_count = 1
    with tempfile.TemporaryDirectory() as folder:
        logs = loadgen.LogSettings()
        logs.log_output.outdir = folder
        logs.log_output.copy_summary_to_stdout = False
        logs.enable_trace = False
        sut = loadgen.ConstructSUT(issue, lambda: None)
        qsl = loadgen.ConstructQSL(1, 1, lambda _: None, lambda _: None)
        loadgen.StartTestWithLogSettings(sut, qsl, settings, logs)
        loadgen.DestroyQSL(qsl)
        loadgen.DestroySUT(sut)
        summary = (Path(folder) / "mlperf_log_summary.txt").read_text(encoding="utf-8")
    found = re.search(r"^90\.00 percentile latency \(ns\)\s*:\s*(\d+)", summary, flags=re.MULTILINE)
    if found is None:
        raise Unsupported(f"LoadGen's summary names no 90th percentile: {summary[:200]!r}")
    return float(np.quantile(samples, 0.9)), int(found[1]) / 1e6, len(samples)


if __name__ == "__main__":
    main()
