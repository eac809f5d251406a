"""Transposes in half precision in front of a product, of which ONNX Runtime dies: each export runs in a process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.lowering import lower
from torch import Tensor, nn

from edgesmith.exporters.graph.capture import capture

SHAPES = {(1, 0, 2): (5, 2, 3), (1, 2, 0): (3, 5, 2), (1, 2, 0, 3): (5, 1, 2, 3), (0, 2, 1): (5, 3, 2)}


class Turned(nn.Module):
    """A product of what was turned, whether rounded just before, reshaped, or computed."""

    def __init__(self, order: tuple[int, ...], before: str) -> None:
        super().__init__()
        self.order, self.before = order, before
        self.linear = nn.Linear(3, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.before == "reshaped":
            x = x.reshape(SHAPES[self.order])
        elif self.before == "computed":
            x = x.tanh()
        return self.linear(x.permute(self.order)).tanh()


@pytest.mark.parametrize("before", ["rounded", "reshaped", "computed"])
@pytest.mark.parametrize("order", SHAPES)
def test_a_product_of_what_was_turned_loads(order: tuple[int, ...], before: str, tmp_path: Path) -> None:
    model, x = Turned(order, before).eval(), torch.randn(SHAPES[order], generator=torch.Generator().manual_seed(0))
    if before == "reshaped":
        x = x.flatten()
    lower("onnx", capture(model, (x,)), tmp_path / "turned.onnx", "fp16")
    code = "import onnxruntime as o, sys; o.InferenceSession(sys.argv[1], providers=['CPUExecutionProvider'])"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "turned.onnx")], capture_output=True, text=True)
    assert done.returncode == 0, f"the process ended with {done.returncode}"
    (found,) = lower("onnx", capture(model, (x,)), tmp_path / "again.onnx", "fp16").run([[x.numpy()]])[0]
    torch.testing.assert_close(torch.from_numpy(found), model(x).detach(), rtol=2e-2, atol=2e-3)
