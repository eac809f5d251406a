"""Constants under names that are taken, and searches for a position that fail."""

from __future__ import annotations

import pytest
import torch
from support.rewriting import apply
from torch import Tensor, nn
from torch.fx import GraphModule, symbolic_trace

from edgesmith.exporters.graph.edit import add_constant, constant
from edgesmith.exporters.verification.divergence import position_found


def _empty() -> GraphModule:
    return symbolic_trace(nn.Identity())


@pytest.mark.parametrize("path", ["{}", "a.{}", "{}.a", "a.{}.b", "{0}.{0}"])
def test_a_constant_finds_a_name_beside_what_every_module_has(path: str) -> None:
    module, value = _empty(), torch.arange(3.0)
    first = next(iter(module.graph.nodes))
    for own in ("to", "type", "float", "apply", "forward", "training", "_parameters", "meta", "graph", "code"):
        node = add_constant(module, path.format(own), value, before=first)
        assert constant(module, node) is not None
        assert torch.equal(constant(module, node), value)  # type: ignore[arg-type]  # just asked
    assert callable(module.to)
    assert module.training is True
    module.graph.lint()


def test_a_constant_that_ends_in_a_cast_is_stored() -> None:
    class Positions(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * torch.arange(8).to(x.dtype)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pos, self.layer = Positions(), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(self.pos(x))

    assert apply(Model(), torch.randn(2, 8)).counts == {"aten.linear": 1}


def test_a_search_that_fails_finds_no_position() -> None:
    def fails() -> str | None:
        raise ValueError("zip() argument 2 is longer than argument 1")

    assert position_found(fails) is None
    assert position_found(lambda: "head") == "head"
