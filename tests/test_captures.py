"""Captures that tests share: one model is one capture, what differs is another, and nobody changes what is shared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support import captures as shared
from support.captures import Captures, fingerprint
from torch import Tensor, nn

from edgesmith.exporters.costs import Costs
from edgesmith.exporters.graph.capture import Program
from edgesmith.models.casvit import CasViT

X = (torch.zeros(1, 3, 32, 32),)


def model(seed: int = 0, **options: Any) -> nn.Module:
    torch.manual_seed(seed)
    return CasViT((1, 1, 1, 1), (8, 12, 16, 24), **options).eval()


@pytest.fixture
def counted() -> tuple[Captures, list[str]]:
    """Captures whose capture is a tiny graph of the model's first weight, and the calls that were made."""
    calls: list[str] = []

    class First(nn.Module):
        def __init__(self, weight: Tensor) -> None:
            super().__init__()
            self.weight = nn.Parameter(weight)

        def forward(self, x: Tensor) -> Tensor:
            return x * self.weight.sum()

    def capture(of: nn.Module, inputs: tuple[Tensor, ...], *names: Any, **options: Any) -> Program:
        calls.append("capture")
        return Program(torch.fx.symbolic_trace(First(next(of.parameters()).detach().clone())), inputs, ("x",), ("y",))

    def rewrite(program: Program, costs: Costs, *rewrites: Any, **options: Any) -> tuple[Program, list[Any]]:
        calls.append("rewrite")
        return Program(torch.fx.symbolic_trace(program.module), program.inputs, ("x",), ("y",)), []

    return Captures(capture, rewrite), calls


def test_one_model_is_captured_and_rewritten_once(counted: tuple[Captures, list[str]]) -> None:
    captures, calls = counted
    first, again = (captures.capture(model(), X, ("image",)) for _ in range(2))
    assert first is again
    cheap = [captures.rewrite(first, Costs(1))[0] for _ in range(2)]
    assert cheap[0] is cheap[1]
    assert captures.rewrite(first, Costs(2))[0] is not cheap[0]
    assert captures.rewrite(first, Costs(1), streaming=True)[0] is not cheap[0]
    assert calls == ["capture", "rewrite", "rewrite", "rewrite"]


def other_setting(of: nn.Module) -> None:
    next(m for m in of.modules() if isinstance(m, nn.BatchNorm2d)).eps = 0.1


def other_weight(of: nn.Module) -> None:
    next(of.parameters()).data[0] += 1e-6


def other_buffer(of: nn.Module) -> None:
    next(b for b in of.buffers() if b.is_floating_point()).add_(1e-6)


def training(of: nn.Module) -> None:
    of.train()


@pytest.mark.parametrize("change", [other_setting, other_weight, other_buffer, training])
def test_whatever_differs_is_another_model(change: Callable[[nn.Module], None]) -> None:
    one, other = model(), model()
    assert fingerprint(one, X) == fingerprint(other, X)
    change(other)
    assert fingerprint(one, X) != fingerprint(other, X)


def test_other_inputs_names_and_options_are_another_capture() -> None:
    known = {fingerprint(model(), X, *also) for also in ((), (("image",),), (("image",), {"dynamic_batch": True}))}
    known |= {fingerprint(model(), (X[0] + 1,)), fingerprint(model(1), X), fingerprint(model(num_classes=9), X)}
    assert len(known) == 6


def test_modules_of_a_tests_own_are_not_shared(counted: tuple[Captures, list[str]]) -> None:
    captures, calls = counted
    own = nn.Linear(2, 2)
    assert fingerprint(own, X) is None
    program = [captures.capture(own, X) for _ in range(2)]
    assert program[0] is not program[1]
    captures.rewrite(program[0], Costs(1))
    captures.rewrite(program[0], Costs(1))
    assert calls == ["capture", "capture", "rewrite", "rewrite"]


def test_who_changes_a_shared_program_is_told(counted: tuple[Captures, list[str]]) -> None:
    captures, _ = counted
    program = captures.capture(model(), X)
    with torch.no_grad():
        next(program.module.parameters()).add_(1)
    with pytest.raises(AssertionError, match="which others share"):
        captures.capture(model(), X)
    program = captures.capture(model(1), X)
    node = next(n for n in program.module.graph.nodes if n.op == "call_function")
    node.args = (*node.args[:1], 2.0)
    with pytest.raises(AssertionError, match="which others share"):
        captures.capture(model(1), X)


def test_the_oldest_make_room(counted: tuple[Captures, list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    captures, calls = counted
    monkeypatch.setattr(shared, "ROOM", 500)
    for seed in (0, 1, 0):
        captures.capture(model(seed), X)
    assert calls == ["capture"] * 3
