"""Rewriting a model in a test: what every rewrite promises is asserted, and what it did is handed back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from edgesmith.exporters.costs import Costs
from edgesmith.exporters.graph.capture import Program, capture, run
from edgesmith.exporters.graph.edit import count_operators
from edgesmith.exporters.rewrites.order import rewrite
from edgesmith.exporters.rewrites.rewrite import Rewrite, RewriteReport

DEAR_COPIES = Costs(launch_us=1, copy_gb_s=1e-6)


class Rewritten(NamedTuple):
    """A rewritten program, the reports by name, and how often each operator is left."""

    program: Program
    reports: dict[str, RewriteReport]
    counts: dict[str, int]


def apply(
    model: nn.Module,
    *inputs: Tensor,
    costs: Costs = DEAR_COPIES,
    rewrites: Sequence[Rewrite] | None = None,
    tolerance: float = 1e-5,
    dynamic_batch: bool = False,
    again: bool = True,
) -> Rewritten:
    """Capture and rewrite; assert that the numbers hold and that a second run finds nothing to do.

    Args:
        tolerance: relative to each output's peak; 0 for bit by bit.
        again: run a second time.
    """
    program = capture(model.eval(), inputs, dynamic_batch=dynamic_batch)
    rewritten, reports = rewrite(program, costs, rewrites)
    for y, z in zip(run(program, inputs), run(rewritten, inputs), strict=True):
        assert (y.shape, y.dtype) == (z.shape, z.dtype)
        assert float((y - z).abs().max()) <= (tolerance * float(y.abs().max()) + 1e-7 if tolerance else 0)
    counts = count_operators(rewritten.module)
    if again:
        twice, more = rewrite(rewritten, costs, rewrites)
        assert [report.applied for report in more] == [()] * len(more)
        assert count_operators(twice.module) == counts
    return Rewritten(rewritten, {report.name: report for report in reports}, counts)


def reasons(report: RewriteReport) -> str:
    """Every near miss with its site and reason, in one line."""
    return " | ".join(f"{rejection.site}: {rejection.reason}" for rejection in report.rejected)
