"""A latency gate in a project's own tests: `BASE=base/model HEAD=head/model pytest examples/test_latency.py`.

`edgesmith_latency` is a fixture that pytest finds where edgesmith is installed. It times both artifacts in turn, on one
machine; slower fails, and what could not be told is a skip with its reason. As a workflow: docs/latency-gate.yml.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any


def test_head_is_not_slower(edgesmith_latency: Callable[..., Any]) -> None:
    """Head may take 5 % longer than base, and no more."""
    edgesmith_latency(
        os.environ["BASE"],
        os.environ["HEAD"],
        threshold=0.05,
        seconds=float(os.environ.get("SECONDS_TO_MEASURE", "60")),
    )
