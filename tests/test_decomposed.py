"""Decompositions with kernels that were made before: the program that torch itself returns, and nothing left behind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.formula import Formula
from torch import Tensor
from torch._export import utils
from torch._subclasses.fake_impls import op_implementations_dict as fake_rules
from torch.export import exported_program

from edgesmith.exporters.graph import decomposed as module
from edgesmith.exporters.graph.decomposed import decomposed, kept_kernels

aten = torch.ops.aten

X = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))

MODELS: dict[str, Callable[[Tensor], Any]] = {
    "whole": lambda x: F.pixel_unshuffle(F.silu(x), 2) @ torch.ones(4, 3),
    "in place": lambda x: x.clone().add_(1).relu_(),
    "attention": lambda x: F.scaled_dot_product_attention(x, x, x),
    "views": lambda x: (
        x.unflatten(1, (2, 2)).movedim(1, -1)[..., 0].contiguous().t_() if x.dim() == 2 else x.mT.flatten(1)
    ),
    "norm": lambda x: F.group_norm(x, 2) + F.layer_norm(x, (8,)),
    "a number": lambda x: x * x.sum().item(),
}

TABLES: dict[str, dict[Any, Callable[..., Any]]] = {
    "nothing": {},
    "one that consists of others": {aten.linear.default: lambda x, w, b=None: x @ w.mT if b is None else x @ w.mT + b},
    "one that does not": {aten.silu.default: lambda x: x * x.sigmoid()},
    "matmul and group_norm": {
        aten.matmul.default: lambda a, b: (a.unsqueeze(-1) * b).sum(-2),
        aten.group_norm.default: lambda x, groups, *_: x * groups,
    },
}


def kernels() -> tuple[dict[Any, Any], ...]:
    """Of every operator that torch gives others for a trace; and the rules for tensors without numbers."""
    ops = utils._collect_all_valid_cia_ops()
    return ({op: dict(op.py_kernels) for op in ops}, dict(fake_rules))


def named(found: tuple[dict[Any, Any], ...]) -> Any:
    """Functions by their names, as torch makes them anew each time."""
    of, rules = found
    return {op: {k: getattr(f, "__qualname__", str(k)) for k, f in own.items()} for op, own in of.items()}, set(rules)


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("model", MODELS)
def test_a_program_is_the_one_that_torch_returns(model: str, table: str) -> None:
    program = torch.export.export(Formula(MODELS[model]), (X,), strict=False)
    before = kernels()
    ours = [decomposed(program, TABLES[table]) for _ in range(2)]  # made, and made before
    assert kernels() == before
    theirs = program.run_decompositions(TABLES[table])
    assert [str(one.graph) for one in ours] == [str(theirs.graph)] * 2
    assert str(ours[0].graph_signature) == str(theirs.graph_signature)


def test_kernels_in_a_trace_are_torchs_own() -> None:
    spellings, _ = exported_program._split_decomp_table_to_cia_and_python_decomp({})
    assert len(spellings) > 400
    with module._swap_kernels(spellings):
        theirs = named(kernels())
    for _ in range(2):
        with module._with_kernels_of_a_trace(spellings):
            ours = named(kernels())
        assert ours[0] == theirs[0]
        assert ours[1] >= theirs[1]


def test_what_fails_leaves_no_kernel_behind() -> None:
    def refuse(*_: Any) -> Tensor:
        raise ValueError("refused")

    program = torch.export.export(Formula(MODELS["norm"]), (X,), strict=False)
    before, swap = kernels(), exported_program._override_composite_implicit_decomp
    with pytest.raises(ValueError, match="refused"):
        decomposed(program, {aten.group_norm.default: refuse})
    assert kernels() == before
    assert exported_program._override_composite_implicit_decomp is swap


def test_an_operator_that_is_registered_later_stays_whole() -> None:
    decomposed(torch.export.export(Formula(torch.relu), (X,)))
    with torch.library._scoped_library("edgesmith_later", "DEF") as library:
        library.define("twice(Tensor x) -> Tensor")
        library.impl("twice", lambda x: x + x, "CompositeImplicitAutograd")
        program = torch.export.export(Formula(lambda x: torch.ops.edgesmith_later.twice(x)), (X,))
        assert "edgesmith_later.twice" in str(program.run_decompositions({}).graph)
        assert "edgesmith_later.twice" in str(decomposed(program).graph)


def test_an_operator_whose_kernel_changed_has_the_new_one() -> None:
    """torch's own rule for one of its kernels may be another's by then."""
    op = aten.silu_.default if aten.silu_.default in kernels()[0] else next(iter(kernels()[0]))
    with module._with_kernels_of_a_trace({op: utils._special_op_to_preserve_cia}):
        pass
    key = torch._C.DispatchKey.CompositeImplicitAutograd
    had = dict(op.py_kernels)
    op.py_kernels[key] = mine = lambda *_: NotImplemented
    try:
        with module._with_kernels_of_a_trace({op: utils._special_op_to_preserve_cia}):
            assert mine in op.py_kernels.values()  # under the keys of devices
        assert op.py_kernels[key] is mine
    finally:
        op.py_kernels.clear()
        op.py_kernels.update(had)


def test_a_block_is_for_all_calls_in_it() -> None:
    program = torch.export.export(Formula(MODELS["norm"]), (X,), strict=False)
    with kept_kernels():
        inside = program.run_decompositions({})
        assert exported_program._override_composite_implicit_decomp is module._with_kernels_of_a_trace
    assert str(inside.graph) == str(program.run_decompositions({}).graph)
