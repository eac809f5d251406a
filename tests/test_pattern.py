"""The pattern language: holes, spellings, orders, and near misses with their reasons."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.fx import Node

from edgesmith.exporters.graph.capture import capture
from edgesmith.exporters.graph.edit import aten
from edgesmith.exporters.graph.pattern import ANY, Match, any_of, exactly, find, hole, named, near, op

X, Y = hole("x", Node), hole("y", Node)


def last(function: Callable[..., Tensor], count: int = 2) -> Node:
    """The node of a function's result."""

    class Model(nn.Module):
        def forward(self, *inputs: Tensor) -> Tensor:
            return function(*inputs)

    program = capture(Model(), [torch.rand(2, 3) for _ in range(count)])
    (returned,) = program.module.graph.output_node().all_input_nodes
    return returned


def test_a_hole_that_occurs_twice_is_the_same_value() -> None:
    square = op(aten.mul.Tensor, X, X)
    assert find(square, last(lambda a, b: a * a)) is not None
    assert find(square, last(lambda a, b: a * b)) is None


def test_sums_match_in_both_orders_and_differences_in_one() -> None:
    relu = op(aten.relu.default, Y)
    total = last(lambda a, b: a.relu() + b)
    found = find(op(aten.add.Tensor, X, relu), total)
    assert found is not None
    assert (found["x"].name, found["y"].name) == ("inputs_1", "inputs_0")
    assert find(op(aten.sub.Tensor, X, relu), last(lambda a, b: a.relu() - b)) is None


def test_a_sum_with_a_factor_is_no_plain_sum() -> None:
    scaled = last(lambda a, b: torch.add(a, b, alpha=2))
    assert find(op(aten.add.Tensor, X, Y), scaled) is None  # an argument that is left out has its default
    assert find(op(aten.add.Tensor, X, Y, 2), scaled) is not None
    found = find(op(aten.add.Tensor, X, ...), scaled)
    assert found is not None
    assert found["x"].name == "inputs_0"  # which of the two is scaled is not given up


def test_literals_are_compared_and_bound() -> None:
    power = last(lambda a, b: a**3)
    assert find(op(aten.pow.Tensor_Scalar, X, 2), power) is None
    assert find(op(aten.pow.Tensor_Scalar, X, 3), power) is not None
    found = find(op(aten.pow.Tensor_Scalar, ANY, hole("exponent", int)), power)
    assert found is not None
    assert found["exponent"] == 3


def test_the_value_of_a_pattern_can_be_named_and_given() -> None:
    node = last(lambda a, b: a.relu() * a.relu())
    product = op(aten.mul.Tensor, named("r", op(aten.relu.default, X)), hole("r"))
    assert find(product, node) is None  # two nodes, of one value
    node = last(lambda a, b: (r := a.relu()) * r)
    found = find(product, node)
    assert found is not None
    assert find(op(aten.relu.default, X), found["r"], x=found["x"]) is not None
    assert find(op(aten.relu.default, X), found["r"], x=node) is None
    assert find(op(aten.mul.Tensor, exactly(found["r"]), ANY), node) is not None


HALF = any_of(
    op(aten.div.Tensor, X, 2),
    op(aten.mul.Tensor, X, 0.5),
    near("it is divided by something else", op(aten.div.Tensor, X, ...), unless=op(aten.div.Tensor, X, 4)),
    near("it is multiplied", op(aten.mul.Tensor, X, ...)),
)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda a, b: a / 2, None),
        (lambda a, b: 0.5 * a, None),
        (lambda a, b: a / 3, "it is divided by something else"),
        (lambda a, b: a * b, "it is multiplied"),
    ],
)
def test_a_near_miss_carries_its_reason(function: Callable[..., Tensor], reason: str | None) -> None:
    found = find(HALF, last(function))
    assert found is not None
    assert found.reason == reason


def test_what_is_neither_a_match_nor_near_is_none() -> None:
    assert find(HALF, last(lambda a, b: a / 4)) is None
    assert find(HALF, last(lambda a, b: a + b)) is None
    assert find(HALF, 3) is None


def test_an_exact_match_counts_more_than_a_near_one_before_it() -> None:
    first_near = any_of(near("whatever", op(aten.mul.Tensor, X, Y)), op(aten.mul.Tensor, X, op(aten.relu.default, Y)))
    found = find(first_near, last(lambda a, b: a * b.relu()))
    assert found is not None
    assert found.reason is None
    assert Match({"x": 1}).reason is None
