"""Constants, branches, loops, lists, states and the classifier's end."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from edgesmith.exporters.mil.ops import Context, ListValue, StateValue, ints, number, op

LONGEST_LOOP = 1_000_000
"""Iterations after which a loop is taken for one that does not end."""


@op("const")
def const(*, val: Any) -> Any:
    """A value of the program or of its weight file."""
    return val


@op("identity")
def identity(*, x: Any) -> Any:
    """The operand itself."""
    return x


@op("cond", context=True)
def cond(context: Context, *, pred: Tensor) -> tuple[Any, ...]:
    """The first block where `pred` is true, else the second. Only that one runs."""
    yes, no = context.operation.blocks
    return context.run_block(yes if number(pred) else no, ())


@op("while_loop", context=True)
def while_loop(context: Context, *, loop_vars: tuple[Any, ...]) -> tuple[Any, ...]:
    """The second block's results from its last, while the first block's result is true; possibly never."""
    test, body = context.operation.blocks
    for _ in range(LONGEST_LOOP):
        (again,) = context.run_block(test, loop_vars)
        if not number(again):
            return loop_vars
        loop_vars = context.run_block(body, loop_vars)
    raise ValueError(f"the loop has not ended after {LONGEST_LOOP} iterations")


@op("make_list")
def make_list(
    *,
    elem_shape: tuple[Any, ...],
    init_length: Tensor | int = 1,
    dynamic_length: Tensor | bool = True,
    dtype: str = "fp32",
) -> ListValue:
    """A list of `init_length` elements that nothing was written to."""
    return ListValue((None,) * int(number(init_length)), bool(number(dynamic_length)))


@op("list_length")
def list_length(*, ls: ListValue) -> Tensor:
    """The number of elements, unwritten ones too."""
    return torch.tensor(len(ls.items), dtype=torch.int32)


@op("list_write")
def list_write(*, ls: ListValue, index: Tensor, value: Tensor) -> ListValue:
    """The list with one element replaced. A dynamic list grows up to the index."""
    return _with(ls, [int(number(index))], [value])


@op("list_read")
def list_read(*, ls: ListValue, index: Tensor) -> Tensor:
    """One element. Raises ValueError where there is none, or nothing was written."""
    return _element(ls, int(number(index)))


@op("list_gather")
def list_gather(*, ls: ListValue, indices: Tensor) -> Tensor:
    """The elements at `indices`, stacked along a new first axis."""
    return torch.stack([_element(ls, index) for index in ints(indices)])


@op("list_scatter")
def list_scatter(*, ls: ListValue, indices: Tensor, value: Tensor) -> ListValue:
    """The list with the elements at `indices` replaced by the slices of `value` [len(indices), ...]."""
    return _with(ls, ints(indices), list(value.unbind(0)))


def _element(ls: ListValue, index: int) -> Tensor:
    if not 0 <= index < len(ls.items):
        raise ValueError(f"the list has {len(ls.items)} elements, and number {index} is read")
    value = ls.items[index]
    if value is None:
        raise ValueError(f"element {index} of the list is read before anything was written to it")
    return value


def _with(ls: ListValue, indices: list[int], values: list[Tensor]) -> ListValue:
    items = list(ls.items)
    for index, value in zip(indices, values, strict=True):
        if index < 0 or (index >= len(items) and not ls.dynamic):
            raise ValueError(f"the list has {len(items)} elements, and number {index} is written")
        items.extend([None] * (index + 1 - len(items)))
        items[index] = value
    return ListValue(tuple(items), ls.dynamic)


@op("read_state")
def read_state(*, input: StateValue) -> Tensor:  # noqa: A002 - MIL's name
    """A copy of what the state holds now."""
    return input.tensor.clone()


@op("write_state")
def write_state(*, input: StateValue, data: Tensor) -> tuple[()]:  # noqa: A002 - MIL's name
    """Overwrites the state in place, so that the caller's tensor has the new value."""
    _overwrite(input, data)
    return ()


@op("coreml_update_state")
def coreml_update_state(*, state: StateValue, value: Tensor) -> Tensor:
    """`write_state` and `read_state` in one, as coremltools has it before a program is saved."""
    _overwrite(state, value)
    return state.tensor.clone()


def _overwrite(state: StateValue, value: Tensor) -> None:
    if state.tensor.shape != value.shape:
        raise ValueError(f"a state of {list(state.tensor.shape)} is written with {list(value.shape)}")
    state.tensor.copy_(value)


@op("classify")
def classify(*, probabilities: Tensor, classes: tuple[Any, ...]) -> tuple[Any, dict[Any, float]]:
    """The label of the largest probability (the first of several), and every label's probability."""
    labels = [number(label) for label in classes]
    scores = probabilities.flatten().tolist()
    best = int(probabilities.flatten().argmax())
    return labels[best], dict(zip(labels, scores, strict=True))
