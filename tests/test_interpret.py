"""The one interpreter: values in order, several calls at once, parts and changed values of a program."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import Node

from edgesmith.exporters.graph.capture import Program, capture, run
from edgesmith.exporters.graph.edit import count_operators, operators
from edgesmith.exporters.graph.interpret import Values, evaluate, interpret, recompute, run_graph, run_part
from edgesmith.kernels import channel_norm


class Model(nn.Module):
    """A fused op, a split and two outputs. [B, 4, H, W]"""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.rand(4)), nn.Parameter(torch.rand(4))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = channel_norm.OP.overload(x, self.weight, self.bias)
        a, b = y.chunk(2, 1)
        return a + b, y.relu()


@pytest.fixture(scope="module")
def program() -> Program:
    return capture(Model(), (torch.randn(2, 4, 3, 3),))


def test_a_graph_returns_what_the_program_does(program: Program) -> None:
    x = torch.randn(2, 4, 3, 3)
    leaves = torch.utils._pytree.tree_leaves(run_graph(program.module, [x]))
    assert all(torch.equal(y, z) for y, z in zip(run(program, (x,)), leaves, strict=True))
    assert not any(leaf.requires_grad for leaf in leaves)


def test_several_calls_go_side_by_side_and_a_caller_may_change_values(program: Program) -> None:
    calls = [[torch.randn(2, 4, 3, 3)] for _ in range(3)]
    names = []
    for node, values in interpret(program.module, calls):
        names.append(node.name)
        if node.op == "call_function" and "relu" in node.name:
            values[:] = [value + 1 for value in values]
        if node.op == "output":
            outputs = [torch.utils._pytree.tree_leaves(value) for value in values]
    assert names == [node.name for node in program.module.graph.nodes]
    for given, (total, shifted) in zip(calls, outputs, strict=True):
        expected, plain = run(program, given)
        assert torch.equal(total, expected)
        assert torch.equal(shifted, plain + 1)


def test_values_are_dropped_after_their_last_reader() -> None:
    program = capture(nn.Sequential(*[nn.ReLU() for _ in range(5)]), (torch.randn(3),))
    alive: list[weakref.ref[Tensor]] = []
    most = 0

    def compute(node: Node, values: Values, call: int) -> Any:
        result = evaluate(node, values)
        alive.append(weakref.ref(result))
        return result

    for _ in interpret(program.module, [[torch.randn(3)]], compute):
        gc.collect()
        most = max(most, sum(one() is not None for one in alive))
    assert len(alive) == 5
    assert most <= 2


def test_what_an_operator_computes_may_be_another_thing_in_each_call(program: Program) -> None:
    x = torch.randn(2, 4, 3, 3)

    def compute(node: Node, values: Values, call: int) -> Any:
        result = evaluate(node, values)
        return result.half().float() if call == 1 and isinstance(result, Tensor) else result

    *_, (_, (exact, rounded)) = interpret(program.module, [[x], [x]], compute)
    assert torch.equal(exact[0], run(program, (x,))[0])
    assert torch.equal(rounded[1], rounded[1].half().float())


def test_fused_ops_run_by_their_references(program: Program) -> None:
    seen: list[str] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    with Watch():
        run_graph(program.module, [torch.randn(2, 4, 3, 3)])
    assert "edgesmith.channel_norm" in count_operators(program.module)
    assert not any("channel_norm" in name for name in seen)


def test_a_part_reads_constants_and_nothing_else(program: Program) -> None:
    norm, *_ = operators(program.module)
    (x, *_) = norm.all_input_nodes
    given = torch.randn(2, 4, 3, 3)
    values = run_part(program.module, [norm], {x: given})
    assert torch.equal(values[norm].relu(), run_graph(program.module, [given])[1])
    with pytest.raises(ValueError, match=f"{x.name} is no part"):
        run_part(program.module, [norm], {})


def test_only_what_depends_on_a_changed_value_is_computed_again(program: Program) -> None:
    x = torch.randn(2, 4, 3, 3)
    values = {node: value for node, (value,) in interpret(program.module, [[x]])}
    relu = next(node for node in operators(program.module) if "relu" in node.name)
    found = recompute(program.module, values, relu, torch.zeros(1))
    assert torch.equal(found[1], torch.zeros(1))
    assert found[0] is values[program.module.graph.output_node()][0]
