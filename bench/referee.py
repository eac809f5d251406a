"""Does MLPerf's LoadGen see the same latency as we do? SingleStream on the same session, in turn with our own slots.

    python -m edgesmith.bench.referee ARTIFACT [launches] [seconds]

LoadGen (`pip install mlcommons-loadgen`) issues one query after the other and reports the 90th percentile of the time
from issuing a query until its completion was told. In each launch, a fresh process, our turns and LoadGen's alternate
for so many seconds; a turn of ours is calls timed as `runner.py` times them. A launch gives the median over its turns
of log(LoadGen's p90 / ours), and the ratio is that of `statistics.paired_ratio`. The bar is five per cent.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgesmith.bench import runner
from edgesmith.bench.statistics import Interval, paired_ratio
from edgesmith.errors import BackendMissing, BadInput, Unsupported
from edgesmith.exporters import artifact as artifacts

TURN_S = 2.0
BAR = 0.05
CONFIDENCE = 0.95


def main(arguments: Sequence[str] = tuple(sys.argv[1:])) -> None:
    """Run the launches and print each one's figures, then the ratio."""
    if list(arguments[:1]) == ["--launch"]:
        print(json.dumps(run_launch(Path(arguments[1]), float(arguments[2]), int(arguments[3]))))
        return
    launches = int(arguments[1]) if len(arguments) > 1 else 8
    seconds = float(arguments[2]) if len(arguments) > 2 else 24.0
    found = compare_with_loadgen(Path(arguments[0]), launches, seconds)
    print(f"load before and after: {', '.join(f'{load:.1f}' for load in found[2])}")
    for ours, theirs in zip(*found[:2], strict=True):
        print(f"p90, median of turns: ours {np.median(ours):.3f} ms, LoadGen's {np.median(theirs):.3f} ms")
    ratio = ratio_of(*found[:2])
    ends = "" if ratio.low is None or ratio.high is None else f" ({ratio.low:.4f} to {ratio.high:.4f})"
    verdict = "within" if abs(ratio.value - 1) <= BAR else "beyond"
    print(f"LoadGen's p90 is {ratio.value:.4f}{ends} of ours, {verdict} {BAR:.0%}")


def ratio_of(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> Interval:
    """LoadGen's p90 over ours, from the turns of each launch."""
    logs = [np.median(np.log(np.asarray(b) / np.asarray(a))) for a, b in zip(ours, theirs, strict=True)]
    return paired_ratio(np.asarray(logs), CONFIDENCE)


def compare_with_loadgen(
    path: Path, launches: int, seconds: float
) -> tuple[list[list[float]], list[list[float]], tuple[float, float]]:
    """The p90 of each turn in milliseconds, launch by launch, ours and LoadGen's, and the load before and after.

    Raises:
        BadInput: no artifact, or of another target than onnx.
        BackendMissing: LoadGen is not installed.
        Unsupported: a launch failed.
    """
    artifact = artifacts.read(path)
    if artifact.target != "onnx":
        raise BadInput(f"{path} is an artifact for {artifact.target}: the referee runs ONNX files")
    if importlib.util.find_spec("mlperf_loadgen") is None:
        raise BackendMissing("the referee is MLPerf's LoadGen: pip install mlcommons-loadgen")
    before = os.getloadavg()[0]
    ours, theirs = [], []
    for number in range(launches):
        command = [sys.executable, "-P", "-m", "edgesmith.bench.referee", "--launch", str(artifact.file)]
        command += [str(seconds), str(number)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  # this Python
        if done.returncode:
            raise Unsupported(f"a launch of the referee failed: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
        turns = json.loads(done.stdout.strip().splitlines()[-1])
        ours.append(turns["ours"])
        theirs.append(turns["loadgen"])
    return ours, theirs, (before, os.getloadavg()[0])


def run_launch(file: Path, seconds: float, number: int) -> dict[str, list[float]]:
    """Turns of both sides on one session: the p90 of each in milliseconds."""
    call = runner.open_onnxruntime(str(file), 1, number)
    runner.warm_up(call)
    found: dict[str, list[float]] = {"ours": [], "loadgen": []}
    turn_s = min(TURN_S, seconds / 2)
    start, turn = time.perf_counter(), number
    while not found["ours"] or time.perf_counter() - start < seconds:
        sides = (("ours", time_turn), ("loadgen", stream_turn))
        for side, run in sides if turn % 2 else sides[::-1]:
            found[side].append(run(call, turn_s))
        turn += 1
    return found


def time_turn(call: runner.Call, seconds: float) -> float:
    """The p90 of calls timed one by one for so many seconds, milliseconds."""
    start, samples = time.perf_counter(), [runner.timed(call)]
    while time.perf_counter() - start < seconds:
        samples.append(runner.timed(call))
    return float(np.quantile(samples, 0.9))


def stream_turn(call: runner.Call, seconds: float) -> float:
    """The p90 that LoadGen reports of SingleStream for so many seconds, milliseconds."""
    import mlperf_loadgen as loadgen

    def issue(queries: Sequence[loadgen.QuerySample]) -> None:
        for query in queries:
            call()
            loadgen.QuerySamplesComplete([loadgen.QuerySampleResponse(query.id, 0, 0)])

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
    return int(found[1]) / 1e6


if __name__ == "__main__":
    main()
