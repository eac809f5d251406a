"""Attention of queries that their mask lets see no key: 0 in PyTorch, and so in every file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.lowering import lower
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from edgesmith.exporters import targets
from edgesmith.exporters.graph.capture import capture
from edgesmith.exporters.rewrites.order import rewrite

ALL = torch.ones(1, 1, 5, 5, dtype=torch.bool)
SOME = ALL.clone()
SOME[..., 2, :] = False


class Attention(nn.Module):
    """Attention with a mask that is given, or its own. [1, 2, 5, 8] -> [1, 2, 5, 8]"""

    def __init__(self, mask: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        mask = (
            self.mask if self.mask is not None else (torch.arange(5) < lengths).reshape(1, 1, 5, 1).expand(1, 1, 5, 5)
        )
        return scaled_dot_product_attention(x, x + 1, x * 2, mask)


def x_and_lengths() -> tuple[Tensor, Tensor]:
    return torch.randn(1, 2, 5, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([3])


@pytest.mark.parametrize(("mask", "hits"), [(None, 1), (SOME, 1), (ALL, 0)], ids=["computed", "some", "all"])
@pytest.mark.parametrize("target", ["onnx", "coreml", "coreai"])
def test_such_rows_are_zero(mask: Tensor | None, hits: int, target: str, tmp_path: Path) -> None:
    if missing := targets.get(target).missing_packages():
        pytest.skip(f"{', '.join(missing)} not installed")
    model, given = Attention(mask).eval(), x_and_lengths()
    expected = model(*given)
    program, reports = rewrite(capture(model, given), targets.get(target).costs)
    (report,) = (report for report in reports if report.name == "zero_masked_rows")
    assert len(report.applied) == hits
    path = tmp_path / f"attention{targets.get(target).suffix}"
    lower(target, program, path, "fp32")
    outputs = targets.get(target).open(path).run([[one.numpy() for one in given]])
    assert isinstance(outputs, list)
    torch.testing.assert_close(torch.from_numpy(outputs[0][0]), expected, rtol=1e-5, atol=1e-6)
