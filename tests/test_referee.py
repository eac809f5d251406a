"""The referee runs, and each side times its own calls."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from edgesmith.bench.experiments import referee
from edgesmith.errors import BadInput
from edgesmith.exporters.artifact import Artifact


def test_each_side_times_its_own_calls() -> None:
    pytest.importorskip("mlperf_loadgen", reason="mlcommons-loadgen is not installed: extra dev")

    def lasting(ms: float) -> None:
        until = time.perf_counter_ns() + ms * 1e6
        while time.perf_counter_ns() < until:
            pass

    ours, theirs, calls = referee.stream(lambda: lasting(4), 0.3, own=lambda: lasting(80))
    assert calls > 2
    assert ours >= 80
    assert theirs >= 4
    assert theirs < ours  # our calls are in none of LoadGen's times


def test_a_launch_is_a_process_that_gives_both_sides_p90(export_small: Callable[..., Artifact]) -> None:
    pytest.importorskip("mlperf_loadgen", reason="mlcommons-loadgen is not installed: extra dev")
    ((ours, theirs, calls),) = referee.compare_with_loadgen(export_small("onnx").path, launches=1, seconds=0.2)
    assert ours > 0
    assert theirs > 0
    assert calls > 0


def test_only_onnx_has_a_referee(export_small: Callable[..., Artifact]) -> None:
    with pytest.raises(BadInput, match="the referee runs ONNX files"):
        referee.compare_with_loadgen(export_small("coreml").path, launches=1, seconds=0.1)
