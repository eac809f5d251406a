"""Attention of queries that their mask lets see no key: 0 in PyTorch, and so in every file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from support.lowering import lower
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from edgesmith.exporters import targets
from edgesmith.exporters.graph.capture import capture, run
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


NOWHERE = -torch.inf


class OfHeads(nn.Module):
    """PyTorch's own layer, whose boolean mask of padding becomes one of numbers. [1, 2, 5, 8] -> [1, 5, 8]"""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor, pad: Tensor) -> Tensor:
        causal = torch.full((5, 5), NOWHERE).triu(1)
        y: Tensor = self.layer(x[:, 0], x[:, 1], x[:, 1], key_padding_mask=pad, attn_mask=causal, need_weights=False)[0]
        return y


def fill(pad: Tensor) -> Tensor:
    return torch.zeros(1, 1, 1, 5).masked_fill(pad, NOWHERE)


MASKS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "filled": lambda bias, pad: fill(pad),
    "filled in turn": lambda bias, pad: (~pad).float().masked_fill(pad, NOWHERE).masked_fill(~pad, 0.0),
    "chosen": lambda bias, pad: torch.where(pad, NOWHERE, 0.0).expand(1, 1, 5, 5),
    "chosen otherwise": lambda bias, pad: torch.where(~pad, bias, NOWHERE),
    "two masks": lambda bias, pad: torch.full((5, 5), NOWHERE).triu(1) + fill(pad),
    "on a bias": lambda bias, pad: bias + fill(pad),
    "a bias that is filled": lambda bias, pad: bias.masked_fill(pad, NOWHERE),
}


class Masked(nn.Module):
    """Attention with masks of numbers that are made of which keys are padding, and of a bias that is computed."""

    def __init__(self, masks: Sequence[Callable[[Tensor, Tensor], Tensor]]) -> None:
        super().__init__()
        self.masks, self.heads = masks, OfHeads()

    def forward(self, x: Tensor, pad: Tensor) -> list[Tensor]:
        bias = x @ x.transpose(-1, -2)
        made = [scaled_dot_product_attention(x, x + 1, x * 2, mask(bias, pad[:, None, None])) for mask in self.masks]
        return [*made, self.heads(x, pad)]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("target", ["onnx", "coreml", "coreai", "tvm"])
def test_masks_of_numbers_make_such_rows_too(target: str, precision: str, tmp_path: Path) -> None:
    if missing := targets.get(target).missing_packages():
        pytest.skip(f"{', '.join(missing)} not installed")
    if precision not in targets.get(target).precisions:
        pytest.skip(f"{target} has no {precision}")
    x, some = x_and_lengths()[0], torch.tensor([[False, False, False, True, True]])
    model = Masked(list(MASKS.values())).eval()
    program, reports = rewrite(capture(model, (x, some)), targets.get(target).costs)
    (report,) = (report for report in reports if report.name == "zero_masked_rows")
    assert len(report.applied) == len(MASKS) + 1
    path = tmp_path / f"attention{targets.get(target).suffix}"
    lower(target, program, path, precision)
    calls = [(x, some), (x, ~some), (x, torch.ones(1, 5, dtype=torch.bool))]
    outputs = targets.get(target).open(path).run([[one.numpy() for one in call] for call in calls])
    assert isinstance(outputs, list)
    close = 1e-5 if precision == "fp32" else 2e-2
    for call, made in zip(calls, outputs, strict=True):
        for name, y, wanted in zip([*MASKS, "pytorch's layer"], made, model(*call), strict=True):
            assert bool(wanted.isfinite().all())
            np.testing.assert_allclose(y, wanted.detach(), rtol=close, atol=close, err_msg=name)


def test_a_mask_that_is_an_input_says_where_it_is_minus_infinity() -> None:
    class Given(nn.Module):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return scaled_dot_product_attention(x, x, x, mask)

    x, causal = x_and_lengths()[0], torch.full((5, 5), NOWHERE).triu(0)
    program, reports = rewrite(capture(Given(), (x, causal)), targets.get("onnx").costs)
    (report,) = (report for report in reports if report.name == "zero_masked_rows")
    assert len(report.applied) == 1
    torch.testing.assert_close(run(program, (x, causal))[0], Given()(x, causal))


def test_finite_masks_and_biases_are_left_alone() -> None:
    finite = Masked([lambda bias, pad: bias + torch.zeros(1, 1, 1, 5).masked_fill(pad, -1e4)])
    _, reports = rewrite(capture(finite, (x_and_lengths()[0], torch.zeros(1, 5) > 0)), targets.get("onnx").costs)
    (report,) = (report for report in reports if report.name == "zero_masked_rows")
    assert len(report.applied) == 1  # of PyTorch's own layer
