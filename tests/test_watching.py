"""Modes that see each operator: also in a model with a branch of PyTorch's own, under which they are all run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from edgesmith.exporters.graph import subgraphs
from edgesmith.exporters.graph.capture import capture, run
from edgesmith.exporters.graph.watching import Watching
from edgesmith.exporters.precision import islands
from edgesmith.exporters.verification import noise, ties

X = torch.tensor([[0.5, -1.0, 2.0, 0.25]])


class Branches(nn.Module):
    """A choice between two layers by a value, and the two largest of what it makes."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = torch.cond(x.sum() > 0, lambda v: self.one(v).exp(), lambda v: self.other(v).tanh(), (x,))
        return made.topk(2).values


class Seen(Watching):
    """The operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def watch(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        self.names.append(str(func))
        return func(*args, **kwargs)


@pytest.mark.parametrize(("sign", "runs"), [(1, "exp"), (-1, "tanh")])
def test_the_branch_that_runs_is_seen(sign: int, runs: str) -> None:
    model = Branches()
    program = capture(model, (X,))
    with Seen() as seen:
        (made,) = run(program, (sign * X,))
    torch.testing.assert_close(made, model(sign * X))
    assert [name for name in seen.names if name in ("aten.exp.default", "aten.tanh.default")] == [
        f"aten.{runs}.default"
    ]


def test_every_mode_takes_a_branch() -> None:
    modes = [kind for kind in TorchDispatchMode.__subclasses__() if kind.__module__.startswith("edgesmith.")]
    assert modes == [Watching]
    assert {islands._Watch, noise.Storing, subgraphs._Log, ties._Picking} <= {*Watching.__subclasses__()}


def test_a_branch_has_islands_noise_and_ties() -> None:
    model = Branches().eval()
    assert islands.find_islands(capture(model, (X,)), [(X,), (-X,)], 40.0) == {}
    measured = noise.NoiseMeter(model, [[X]], [[model(X).detach().numpy()]]).measure("float16")
    assert measured is not None
    assert measured[0][0] > 0
    assert ties.outputs_of_ties(model, [X]) == [False]
