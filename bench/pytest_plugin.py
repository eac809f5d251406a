"""A gate for latency in a project's own tests: a fixture that times two artifacts and fails where head is slower.

    def test_latency(edgesmith_latency):
        edgesmith_latency("base/lmuformer-onnx-fp32", "artifacts/lmuformer-onnx-fp32", threshold=0.05)

Both are measured in the same job, on the same machine, round by round, as `edgesmith compare` does it. Slower fails;
what could not be told is a skip with its reason, never a pass. pytest finds this module where edgesmith is installed,
and it imports nothing else of edgesmith's until a test calls the fixture.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from edgesmith.bench.verdict import Verdict

Latency = Callable[..., "Verdict"]


@pytest.fixture
def edgesmith_latency(record_property: Callable[[str, object], None]) -> Latency:
    """Times base and head in turn; see `check_latency` for its arguments. The verdict is in the JUnit XML too."""

    def check(base: str | Path, head: str | Path, **options: Any) -> Verdict:
        __tracebackhide__ = True
        return check_latency(base, head, on_result=record_property, **options)

    return check


def check_latency(
    base: str | Path,
    head: str | Path,
    *,
    threshold: float = 0.05,
    confidence: float = 0.995,
    floor: float = 0.0,
    on_result: Callable[[str, object], None] = lambda *_: None,
    **options: Any,
) -> Verdict:
    """Measure two artifacts in turn and end the test where head is slower, or where that is not known.

    Args:
        base, head: artifacts' folders or files.
        threshold, floor: shares: the smallest change that matters, and the machine's noise; see `verdict.compare`.
        confidence: of the interval.
        on_result: hears the verdict and the ratio, by name.
        options: of `measure.Settings`: seconds and launches, at most, threads, cores; and `record`, a path.

    Returns:
        The verdict, faster or unchanged.
    """
    __tracebackhide__ = True
    from edgesmith.bench.measure import Reports, Settings, measure
    from edgesmith.bench.verdict import EXIT_CODES, SLOWER, Criterion
    from edgesmith.errors import EdgesmithError
    from edgesmith.show import in_terminal

    try:
        reports = Reports(options.pop("record", None))
        criterion = Criterion(threshold, confidence, floor)
        measured = measure([base, head], settings=Settings(**options, until=criterion), reports=reports)
        if not measured.complete:  # Ctrl-C, of which pytest has to hear
            raise KeyboardInterrupt
        verdict = criterion.judge(measured, measured, 1)
    except EdgesmithError as error:
        pytest.fail(in_terminal(str(error)), pytrace=False)
    said = in_terminal(f"{verdict.head} against {verdict.base}: {verdict.verdict}: {verdict.reason}")
    on_result("edgesmith verdict", verdict.verdict)
    if verdict.ratio is not None:
        on_result("edgesmith ratio", f"{verdict.ratio.value:.4f}")
    if verdict.verdict == SLOWER:
        pytest.fail(said, pytrace=False)
    if EXIT_CODES[verdict.verdict]:
        pytest.skip(said)
    return verdict
