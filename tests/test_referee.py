"""The referee runs, and both sides time the same calls."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from edgesmith.bench import referee
from edgesmith.errors import BadInput
from edgesmith.exporters.artifact import Artifact


def test_loadgen_and_we_time_the_same_calls(export_small: Callable[..., Artifact]) -> None:
    pytest.importorskip("mlperf_loadgen", reason="mlcommons-loadgen is not installed: extra dev")
    ours, theirs, _ = referee.compare_with_loadgen(export_small("onnx").path, launches=1, seconds=0.4)
    assert len(ours[0]) == len(theirs[0]) > 0
    ratio = np.median(theirs[0]) / np.median(ours[0])
    assert 0.2 < ratio < 5  # milliseconds on both sides; how near they are only a long run on a quiet machine says


def test_the_ratio_is_that_of_the_turns_of_each_launch() -> None:
    ours = [[1.0, 2.0, 4.0]] * 8
    assert referee.ratio_of(ours, [[1.1, 2.2, 9.0]] * 8).value == pytest.approx(1.1)


def test_only_onnx_has_a_referee(export_small: Callable[..., Artifact]) -> None:
    with pytest.raises(BadInput, match="the referee runs ONNX files"):
        referee.compare_with_loadgen(export_small("coreml").path, launches=1, seconds=0.1)
